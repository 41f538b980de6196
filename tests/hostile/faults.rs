//! System calls that fail, injected by strace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::router::config;
use crate::support::{Backend, Hello, PATIENCE, Router, eventually, pattern, watchdog};

const NAME: &str = "a.example";
const STOPPING: &str = "shutting down; repeat the signal to exit immediately";

/// Which calls fail, and how. `EAGAIN` out of nowhere is no fault that a kernel has. `recvfrom` is left out: we read by
/// `read`, and tokio ends the process when the pipe of its own signal handler cannot be read.
const FAULTS: [(&str, &[&str]); 12] = [
    ("accept4", &["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ECONNABORTED", "EPROTO", "EPERM", "EINTR"]),
    ("socket", &["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"]),
    ("connect", &["ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH", "EADDRNOTAVAIL", "EACCES"]),
    ("setsockopt", &["EINVAL", "ENOMEM"]),
    ("getsockopt", &["EINVAL"]),
    ("splice", &["EINVAL", "EINTR", "ENOMEM", "EPIPE"]),
    ("pipe2", &["EMFILE", "ENFILE"]),
    ("epoll_ctl", &["ENOMEM", "ENOSPC"]),
    ("read", &["ECONNRESET", "EINTR", "ENOMEM"]),
    ("sendto", &["ECONNRESET", "EPIPE", "EINTR", "ENOBUFS"]),
    ("shutdown", &["ENOTCONN", "ENOBUFS"]),
    ("ioctl", &["EINVAL"]),
];

/// Asks for all of it back; whether that is what came.
fn is_served(address: SocketAddr, bytes: &[u8]) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sent = bytes.to_vec();
    let writing = std::thread::spawn(move || {
        let _ = writer.write_all(&sent);
        let _ = writer.shutdown(std::net::Shutdown::Write);
    });
    let mut received = Vec::new();
    let end = stream.read_to_end(&mut received);
    writing.join().unwrap();
    if let Err(error) = &end {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it hangs");
    }
    assert!(bytes.starts_with(&received) || received.starts_with(&[21, 3, 3]), "other bytes");
    received == bytes
}

/// One run in which the call fails the `number`th time that a thread makes it.
fn survives(call: &str, error: &str, number: usize) {
    let backend = Backend::echo();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    let more = "workers: 1\nrelay: splice\ntimeouts: {idle: 10s, half_close: 2s, drain: 1s}\n";
    std::fs::write(&path, config(&[(NAME, backend.address())], more)).unwrap();
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-qqq", "-o", "/dev/null", "-e"]);
    command.arg(format!("inject={call}:error={error}:when={number}"));
    command.args([env!("CARGO_BIN_EXE_snigate"), "run", "-c"]).arg(&path);
    let mut router = Router::spawn(command, path, directory);
    let case = format!("{call} {error} {number}");
    let begins = router.wait_line(&case, |line| {
        let has_failed = line.contains("\"cannot start\"") || line.starts_with("snigate: ");
        has_failed || line.contains("error while loading shared libraries") || line.contains("\"_admin\"")
    });
    if !begins.contains("\"_admin\"") {
        let code = router.exit().code();
        assert!(matches!(code, Some(1 | 78 | 127)), "{case}: {code:?} {begins}");
        return;
    }
    let hello = [Hello::to(NAME).record(), pattern(100_000)].concat();
    for _ in 0..4 {
        is_served(router.address(), &hello);
    }
    eventually(&case, || is_served(router.address(), &hello));
    let own = format!("/proc/{}/fd", router.pid().as_raw_nonzero());
    let sockets = || {
        let links = std::fs::read_dir(&own).unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    };
    eventually(&case, || {
        // An answer of the admin listener may be what fails.
        let Some(metrics) = metrics(&router) else { return false };
        let active = metrics.lines().filter(|line| line.starts_with("snigate_connections_active"));
        active.clone().count() == 2 && active.into_iter().all(|line| line.ends_with(" 0"))
    });
    // Two listeners, each with its second handle; the rest has ended.
    eventually(&case, || sockets() <= 12);
    router.signal(Signal::TERM);
    let is_stopping = || router.log().iter().any(|line| line["message"].as_str() == Some(STOPPING));
    // The call that failed may be the one by which the signal's handler tells the runtime of it.
    let patience = if call == "sendto" { Duration::from_secs(3) } else { PATIENCE };
    let deadline = Instant::now() + patience;
    while !is_stopping() {
        if Instant::now() > deadline {
            assert_eq!(call, "sendto", "{case}");
            router.signal(Signal::TERM);
            router.wait_line(&case, |line| line.contains(STOPPING));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(router.exit().code(), Some(0), "{case}");
    assert!(!router.log().iter().any(|line| line["message"] == "panicked"), "{case}: {:?}", router.log());
}

fn metrics(router: &Router) -> Option<String> {
    let mut stream = TcpStream::connect(router.admin()).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// What it has started, from its start to its end, with traffic, checks, lookups and a reload in between.
fn started(asks_for_upgrade: bool) -> Vec<String> {
    let backend = Backend::echo();
    let directory = TempDir::new().unwrap();
    let (path, trace) = (directory.path().join("c.yaml"), directory.path().join("trace"));
    let port = backend.address().port();
    let more = format!(
        "  - sni: b.example\n    upstream: {{endpoints: [\"localhost:{port}\"], resolve_every: 1s, health_check: {{interval: 1s}}}}\n"
    );
    std::fs::write(&path, config(&[(NAME, backend.address())], &more)).unwrap();
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-q", "-e", "trace=execve,execveat,fork,vfork,clone,clone3", "-o"]).arg(&trace);
    command.args([env!("CARGO_BIN_EXE_snigate"), "run", "-c"]).arg(&path).env_remove("RUST_LOG");
    let mut router = Router::spawn(command, path, directory);
    router.wait("that it listens", |line| line["listener"] == "_admin");
    let hello = [Hello::to(NAME).record(), pattern(100_000)].concat();
    assert!(is_served(router.address(), &hello));
    let by_name = Hello::to("b.example").record();
    eventually("the name is known", || is_served(router.address(), &by_name));
    let checks = backend.accepted();
    eventually("it is checked", || backend.accepted() > checks);
    assert_eq!(router.reload_as_it_is()["message"], "reloaded");
    if asks_for_upgrade {
        router.signal(Signal::USR2);
        eventually("it is upgraded", || !router.successors().is_empty());
    } else {
        router.signal(Signal::TERM);
    }
    let end = format!("{:<5} +++ exited with {} +++", router.pid().as_raw_nonzero(), router.exit().code().unwrap());
    eventually("the trace is written", || std::fs::read_to_string(&trace).unwrap().contains(&end));
    let trace = std::fs::read_to_string(&trace).unwrap();
    let calls: Vec<&str> = trace.lines().filter(|line| line.contains('(')).collect();
    assert!(calls[0].contains("execve(") && calls.iter().any(|call| call.contains("CLONE_THREAD")), "{trace}");
    calls[1..]
        .iter()
        .filter(|call| !call.contains("CLONE_THREAD") && !call.contains("resumed"))
        .map(|&call| call.into())
        .collect()
}

#[test]
#[ignore = "needs strace"]
fn h15_no_program_is_started_but_by_an_upgrade() {
    assert_eq!(started(false), [""; 0]);
    assert!(started(true).iter().any(|call| call.contains("execve(")), "otherwise this test would see nothing");
}

/// With `SNIGATE_FAULTS` each of the first so many occurrences; some of them otherwise.
#[test]
#[ignore = "needs strace"]
fn f02_f04_z13_whatever_system_call_fails_only_its_connection_ends() {
    let numbers: Vec<usize> = match std::env::var("SNIGATE_FAULTS") {
        Ok(most) => (1..=most.parse().unwrap()).collect(),
        Err(_) => vec![1, 2, 5, 11],
    };
    let cases: Vec<(&str, &str, usize)> = FAULTS
        .iter()
        .flat_map(|(call, errors)| errors.iter().map(move |error| (*call, *error)))
        .flat_map(|(call, error)| numbers.iter().map(move |number| (call, error, *number)))
        .collect();
    watchdog::may_take(Duration::from_secs(60) * u32::try_from(cases.len()).unwrap());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some((call, error, number)) = cases.get(next.fetch_add(1, SeqCst)) {
                    survives(call, error, *number);
                }
            });
        }
    });
    eprintln!("{} runs", cases.len());
}
