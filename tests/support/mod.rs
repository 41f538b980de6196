//! The real binary on port 0, peers that behave as told, and hellos made by hand.

pub mod api_server;
pub mod backend;
pub mod browser;
pub mod client;
pub mod cluster;
pub mod hello;
pub mod lines;
pub mod network;
pub mod pages;
pub mod router;
pub mod tls;
pub mod watchdog;

pub use backend::Backend;
pub use client::Client;
pub use cluster::Cluster;
pub use hello::Hello;
pub use router::{Router, snigate};

use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Longer than anything takes on a busy machine; what waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes in which a lost, doubled or moved run shows.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|number| u8::try_from((number ^ (number >> 8)) & 0xff).unwrap()).collect()
}

/// This is what the file has; with `SNIGATE_WRITE=1` it is from now on.
pub fn is_written(path: &str, content: impl AsRef<[u8]>) {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let content = content.as_ref();
    if std::env::var_os("SNIGATE_WRITE").is_some() {
        std::fs::write(full, content).unwrap();
    } else {
        let is_same = std::fs::read(full).is_ok_and(|written| written == content);
        assert!(is_same, "{path} is not what it should be; SNIGATE_WRITE=1 writes it anew");
    }
}

/// Tries until it is so.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    eventual(what, || is_so().then_some(()));
}

/// Tries until there is something.
#[track_caller]
pub fn eventual<T>(what: &str, try_it: impl FnMut() -> Option<T>) -> T {
    within(what, String::new, try_it)
}

#[track_caller]
fn within<T>(what: &str, more: impl FnOnce() -> String, mut try_it: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        watchdog::step(what);
        if let Some(found) = try_it() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}\n{}", more());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the process to exit by itself; if it does not, this is what to know of it.
#[track_caller]
pub fn exit(child: &mut Child, about: impl FnOnce() -> String) -> ExitStatus {
    within("the exit", about, || child.try_wait().unwrap())
}

/// What a program has said, on both of its outputs.
pub fn all_output(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Stops threads that would go on for ever, also when what is tested fails.
pub struct Stop<'a>(pub &'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A program that ends with its test.
pub struct Process(pub Child);

impl Process {
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Waits for it to exit by itself.
    #[track_caller]
    pub fn exit(&mut self) -> ExitStatus {
        exit(&mut self.0, String::new)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
