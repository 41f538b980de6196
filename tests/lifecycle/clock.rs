//! Clocks that are wrong, and clocks that are set while snigate runs.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::router::config;
use crate::support::{Backend, Client, Hello, PATIENCE, Router, snigate};

const NAME: &str = "a.example";
const HELLO: Duration = Duration::from_millis(1500);
const DRAIN: Duration = Duration::from_secs(1);

/// `start` gets the configuration's path and the directory that it is in.
fn start(backend: &Backend, command: impl FnOnce(&std::path::Path) -> Command) -> Router {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, config(&[(NAME, backend.address())], "timeouts: {hello: 1500ms, drain: 1s}\n")).unwrap();
    let router = Router::spawn(command(&path), path, directory);
    router.wait("that it listens", |line| line["message"] == "listening" && line["listener"] == "_admin");
    router
}

/// Deadlines come when they should, not sooner, whatever is done to the clock in the meantime.
fn keeps_time(mut router: Router, set_clock: impl Fn(&str)) {
    let hello = Hello::to(NAME).record();
    let mut served = Client::send(router.address(), &hello);
    assert_eq!(served.read(hello.len()), hello);
    for step in ["-1d", "+1d"] {
        let begun = Instant::now();
        let mut silent = Client::connect(router.address());
        set_clock(step);
        silent.rest();
        assert!(begun.elapsed() >= HELLO, "{step}: {:?}", begun.elapsed());
        assert_eq!(router.account_of(silent.address())["outcome"], "hello_timeout", "{step}");
        served.write(b"still");
        assert_eq!(served.read(5), b"still", "{step}");
    }
    let begun = Instant::now();
    router.signal(Signal::TERM);
    router.wait("the drain", |line| line["message"] == "draining");
    set_clock("-2d");
    served.rest();
    assert!(begun.elapsed() >= DRAIN, "{:?}", begun.elapsed());
    assert_eq!(router.exit().code(), Some(0));
    let log = router.log();
    assert!(log.iter().any(|line| line["outcome"] == "drained"));
    let is_time =
        |(key, value): (&String, &Value)| (key.ends_with("_ms") || key.ends_with("_s")).then(|| value.as_f64());
    for line in &log {
        for time in line.as_object().unwrap().iter().filter_map(is_time) {
            assert!((0.0..PATIENCE.as_millis() as f64 * 10.0).contains(&time.unwrap()), "{line}");
        }
    }
}

#[test]
#[ignore = "needs faketime"]
fn h14_a_wall_clock_that_is_set_moves_no_deadline() {
    let found = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path().join("faketime"));
    let library = found.map(|path| path.join("libfaketimeMT.so.1")).find(|path| path.exists());
    let library = library.expect("faketime is installed");
    let backend = Backend::echo();
    let clock = TempDir::new().unwrap();
    let clock = clock.path().join("clock");
    let set_clock = |step: &str| {
        // In one piece: it is read all the time.
        std::fs::write(clock.with_extension("new"), step).unwrap();
        std::fs::rename(clock.with_extension("new"), &clock).unwrap();
    };
    set_clock("+0");
    let router = start(&backend, |path| {
        let mut command = snigate();
        command.arg("run").arg("-c").arg(path).env("LD_PRELOAD", &library).env("FAKETIME_TIMESTAMP_FILE", &clock);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        command
    });
    keeps_time(router, |step| {
        set_clock(step);
    });
}

#[test]
#[ignore = "needs root and unshare with time namespaces"]
fn h14_a_monotonic_clock_that_is_far_ahead_is_as_good_as_any() {
    let backend = Backend::echo();
    let router = start(&backend, |path| {
        let mut command = Command::new("unshare");
        // More than thirty years.
        command.args(["--time", "--monotonic", "1000000000", "--boottime", "1000000000"]);
        command.args([env!("CARGO_BIN_EXE_snigate"), "run", "-c"]).arg(path).env_remove("RUST_LOG");
        command
    });
    let clock_of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/time")).unwrap();
    assert_ne!(clock_of(&router.pid().to_string()), clock_of("self"));
    keeps_time(router, |_| {});
}
