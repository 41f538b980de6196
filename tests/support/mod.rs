//! The real binary on port 0, peers that behave as told, and hellos made by hand.

pub mod api_server;
pub mod backend;
pub mod browser;
pub mod client;
pub mod hello;
pub mod network;
pub mod router;
pub mod tls;

pub use backend::Backend;
pub use client::Client;
pub use hello::Hello;
pub use router::{Router, snigate};

use std::path::Path;
use std::process::Child;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything takes on a busy machine; what waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes in which a lost, doubled or moved run shows.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|number| u8::try_from((number ^ (number >> 8)) & 0xff).unwrap()).collect()
}

/// This is what the file has; with `SNIGATE_WRITE=1` it is from now on.
pub fn is_written(path: &str, text: &str) {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("SNIGATE_WRITE").is_some() {
        std::fs::write(full, text).unwrap();
    } else {
        let is_same = std::fs::read_to_string(full).is_ok_and(|written| written == text);
        assert!(is_same, "{path} is not what it should be; SNIGATE_WRITE=1 writes it anew");
    }
}

/// Tries until it is so.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a program has said, on both of its outputs.
pub fn all_output(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A program that ends with its test.
pub struct Process(pub Child);

impl Process {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
