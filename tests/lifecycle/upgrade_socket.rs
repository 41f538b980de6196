//! A process that anyone starts takes over from the running one.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::hand_over::{self, connect};
use super::upgrade::{UNBOUND, upgrade};
use crate::support::backend::{closed, free};
use crate::support::client::End;
use crate::support::network::inside;
use crate::support::router::config;
use crate::support::{Backend, Client, Router, eventually, snigate};

const NAME: &str = "a.example";

fn with_socket(backend: &Backend, directory: &TempDir) -> String {
    let path = directory.path().join("upgrade.sock");
    config(&[(NAME, backend.address())], &format!("upgrade: {{socket: {}}}\n", path.display()))
}

fn start(text: &str) -> Router {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    fs::write(&path, text).unwrap();
    let mut command = snigate();
    command.arg("run").arg("-c").arg(&path);
    Router::spawn(command, path, directory)
}

fn serves(router: &Router) {
    router.wait("that it serves", |line| line["message"] == "listening" && line["listener"] == "_admin");
}

fn works((client, upstream): &mut (Client, TcpStream)) {
    hand_over::works(client, upstream);
}

#[test]
fn h25_a_process_that_anyone_starts_takes_over_listeners_and_connections() {
    let (backend, held) = Backend::held();
    let directory = TempDir::new().unwrap();
    let text = with_socket(&backend, &directory);
    let mut running = start(&text);
    serves(&running);
    let address = running.address();
    let mut streams = vec![connect(&running, &held)];
    // With each, its successors end.
    let mut ended = Vec::new();
    for _ in 0..3 {
        let next = start(&text);
        serves(&next);
        assert_eq!(next.address(), address, "the same listener");
        assert_eq!(running.exit().code(), Some(0), "nothing is left there");
        ended.push(std::mem::replace(&mut running, next));
        streams.push(connect(&running, &held));
        streams.iter_mut().for_each(works);
    }
    // So does the child of an upgrade, and a process takes over from that.
    let child = upgrade(&running);
    assert_eq!(running.exit().code(), Some(0));
    let last = start(&text);
    serves(&last);
    eventually("the child has ended", || rustix::process::test_kill_process(child).is_err());
    streams.iter_mut().for_each(works);
    let (mut client, upstream) = streams.remove(0);
    client.finish();
    drop(upstream);
    assert_eq!(client.rest().1, End::Fin);
    assert_eq!(last.account_of(client.address())["bytes.sent"], 16, "of all processes");
}

#[test]
fn h25_a_process_that_cannot_serve_changes_nothing() {
    let (backend, held) = Backend::held();
    let directory = TempDir::new().unwrap();
    let text = with_socket(&backend, &directory);
    let running = start(&text);
    serves(&running);
    let mut stream = connect(&running, &held);
    let failed = |line: &Value| line["message"] == "upgrade failed; this process continues to serve";

    // A configuration that is wrong is found before; one that cannot be served is found after.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let elsewhere = text.replace("listen: 127.0.0.1:0", &format!("listen: {}", taken.local_addr().unwrap()));
    for (text, code) in [(text.replace("listen:", "listne:"), 78), (elsewhere, 1)] {
        assert_eq!(start(&text).exit().code(), Some(code));
    }
    running.wait("told", failed);
    // Something else connects.
    let socket = directory.path().join("upgrade.sock");
    for bytes in [&b"garbage"[..], b"", b"hello", b"hi v2"] {
        let mut other = UnixStream::connect(&socket).unwrap();
        other.write_all(bytes).unwrap();
        drop(other);
    }
    running.wait_many("told", 5, failed);
    works(&mut stream);

    let next = start(&text);
    serves(&next);
    works(&mut stream);
    assert_eq!(next.get("/readyz").0, 200);
}

#[test]
fn h25_a_process_that_drains_is_not_taken_over_from() {
    let (backend, held) = Backend::held();
    let directory = TempDir::new().unwrap();
    let control = directory.path().join("control.sock");
    let more = format!("timeouts: {{drain: 60s}}\ncontrol: {}\n", control.display());
    let text = with_socket(&backend, &directory) + &more;
    let running = start(&text);
    serves(&running);
    let mut stream = connect(&running, &held);
    running.signal(Signal::TERM);
    running.wait("that it drains", |line| line["message"] == "draining");
    let mut next = start(&text);
    serves(&next);
    works(&mut stream);
    // The sockets are those of the new process now.
    let socket = control.to_str().unwrap();
    assert!(snigate().args(["ctl", "--socket", socket, "reload"]).status().unwrap().success());
    let last = start(&text);
    serves(&last);
    assert_eq!(next.exit().code(), Some(0));
    works(&mut stream);
}

#[test]
fn h25_a_process_that_starts_while_another_drains_gets_the_admin_address_after_that() {
    let (backend, held) = Backend::held();
    let admin = format!("admin: {}\ntimeouts: {{drain: 60s}}\n", free());
    let text = config(&[(NAME, backend.address())], "").replace("admin: 127.0.0.1:0\n", &admin);
    let mut draining = start(&text);
    serves(&draining);
    let stream = connect(&draining, &held);
    draining.signal(Signal::TERM);
    draining.wait("that it drains", |line| line["message"] == "draining");

    let next = start(&text);
    let told = next.wait("why not", |line| {
        line["message"].as_str().is_some_and(|told| told.starts_with("the admin listener is not available yet"))
    });
    assert_eq!(told["level"], "WARN");
    let mut other = connect(&next, &held);
    works(&mut other);
    fs::write(&next.config, format!("{text}refuse: close\n")).unwrap();
    next.signal(Signal::HUP);
    next.wait("that a reload does not need it", |line| line["message"] == "reloaded");
    assert_eq!(draining.get("/readyz"), (503, "draining\n".into()), "it is there until its end");

    drop(stream);
    assert_eq!(draining.exit().code(), Some(0));
    serves(&next);
    assert_eq!(next.get("/readyz").0, 200);
    works(&mut other);
}

#[test]
fn h06_an_admin_address_that_another_program_has_is_an_error() {
    let other = Backend::named("HTTP/1.1 200 OK\r\n\r\nok\n");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [other.address(), silent.local_addr().unwrap()] {
        let admin = format!("admin: {address}\n");
        let mut router = start(&config(&[(NAME, closed())], "").replace("admin: 127.0.0.1:0\n", &admin));
        assert_eq!(router.exit().code(), Some(1));
        router.wait("why", |line| {
            line["reason"].as_str().is_some_and(|reason| reason.contains("another process is listening on it"))
        });
    }
}

#[test]
fn h25_h10_a_stop_while_another_process_takes_over_closes_nothing() {
    let (backend, held) = Backend::held();
    let directory = TempDir::new().unwrap();
    let text = with_socket(&backend, &directory) + "timeouts: {drain: 1s}\n";
    let mut running = start(&text);
    serves(&running);
    let mut stream = connect(&running, &held);
    let next = start(&text);
    running.wait("that it has begun", |line| line["message"] == "upgrading");
    running.signal(Signal::TERM);
    serves(&next);
    assert_eq!(running.exit().code(), Some(0));
    works(&mut stream);
    assert_eq!(next.get("/readyz").0, 200);
    assert!(running.log().iter().all(|line| line["outcome"] != "drained"), "{:?}", running.log());
}

/// Stopped by a debugger or the freezer of its container between the greeting and its report.
#[test]
fn h25_a_process_that_is_too_late_does_not_serve_beside_the_running_one() {
    let (backend, held) = Backend::held();
    let directory = TempDir::new().unwrap();
    // So many that there is time to stop it.
    let names: Vec<String> = (0..10_000).map(|number| format!("n{number}.example")).collect();
    let routes = [NAME].into_iter().chain(names.iter().map(String::as_str));
    let routes: Vec<_> = routes.map(|name| (name, backend.address())).collect();
    let socket = directory.path().join("upgrade.sock");
    let text = config(&routes, &format!("upgrade: {{socket: {}}}\n", socket.display()));
    let mut running = start(&text);
    serves(&running);
    let mut stream = connect(&running, &held);
    // With each, its successors end.
    let mut ended = Vec::new();
    let mut late = loop {
        let next = start(&text);
        next.wait("that it has the sockets", |line| line["message"] == "starting");
        next.signal(Signal::STOP);
        if !is_upgraded(&running) {
            break next;
        }
        // It had reported before it was stopped.
        next.signal(Signal::CONT);
        ended.push(std::mem::replace(&mut running, next));
    };
    late.signal(Signal::CONT);
    assert_eq!(late.exit().code(), Some(1));
    late.wait("why", |line| {
        line["message"] == "cannot start"
            && line["reason"].as_str().is_some_and(|reason| reason.contains("did not wait for this one"))
    });
    let status: Value = serde_json::from_str(&running.get("/api/status").1).unwrap();
    assert_eq!(status["process"], running.pid().as_raw_nonzero().get());
    works(&mut stream);
    let next = start(&text);
    serves(&next);
    works(&mut stream);
}

#[test]
fn h25_a_signal_while_the_running_process_is_busy_does_not_end_the_start() {
    let (backend, _held) = Backend::held();
    let directory = TempDir::new().unwrap();
    let text = with_socket(&backend, &directory);
    let path = directory.path().join("upgrade.sock");
    let busy = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut next = start(&text);
    let (mut process, _) = busy.accept().unwrap();
    assert!(process.read(&mut [0; 64]).unwrap() > 0, "its greeting");
    eventually("it waits for the sockets", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", next.pid().as_raw_nonzero())).unwrap();
        stat.contains(" S ")
    });
    next.signal(Signal::HUP);
    drop(process);
    next.exit();
    let told = next.wait("why", |line| line["message"] == "cannot start");
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("from the old process"), "{reason}");
}

/// What comes of the upgrade that is under way. A process may take half a minute to serve.
fn is_upgraded(running: &Router) -> bool {
    let begun = Instant::now();
    loop {
        let log = running.log();
        let is_told = |message: &str| log.iter().any(|line| line["message"] == message);
        if is_told("upgrade failed; this process continues to serve") {
            return false;
        }
        if is_told("upgraded; the new process serves") {
            return true;
        }
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn h25_a_wrong_path_is_an_error_at_the_start_and_a_reload_cannot_change_it() {
    let (backend, _held) = Backend::held();
    let directory = TempDir::new().unwrap();
    let text = with_socket(&backend, &directory);
    let error = |text: &str| {
        let path = directory.path().join("snigate.yaml");
        fs::write(&path, text).unwrap();
        let output = snigate().arg("run").arg("-c").arg(&path).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    for (path, expected) in [
        ("relative.sock", "expected an absolute path of at most 107 bytes, such as /run/snigate/control.sock"),
        ("/missing/upgrade.sock", "upgrade.socket: /missing/upgrade.sock: /missing: No such file or directory"),
        (directory.path().to_str().unwrap(), "exists and is not a socket; remove it, or set another path"),
    ] {
        let text = config(&[(NAME, backend.address())], &format!("upgrade: {{socket: {path}}}\n"));
        assert!(error(&text).contains(expected), "{path}: {}", error(&text));
    }
    let router = start(&text);
    serves(&router);
    fs::write(&router.config, text.replace("upgrade.sock", "other.sock")).unwrap();
    router.signal(Signal::HUP);
    router.wait("why not", |line| {
        line["reason"].as_str().is_some_and(|reason| reason.contains("upgrade.socket cannot be changed from"))
    });
}

#[test]
fn h25_a_socket_whose_file_was_removed_is_made_again_by_an_upgrade() {
    let (backend, _held) = Backend::held();
    let directory = TempDir::new().unwrap();
    let text = format!("{UNBOUND}{}", with_socket(&backend, &directory));
    let mut running = start(&text);
    serves(&running);
    fs::remove_file(directory.path().join("upgrade.sock")).unwrap();
    let child = upgrade(&running);
    assert_eq!(running.exit().code(), Some(0));
    let last = start(&text);
    serves(&last);
    assert_eq!(last.address(), running.address(), "it has taken over");
    eventually("the child has ended", || rustix::process::test_kill_process(child).is_err());
}

/// The first process of a container, in a mount and PID namespace of its own.
fn contained(network: &Path, text: &str) -> Router {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    fs::write(&path, text).unwrap();
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", network.display()));
    command.args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(env!("CARGO_BIN_EXE_snigate")).arg("run").arg("-c").arg(&path).env_remove("RUST_LOG");
    Router::spawn(command, path, directory)
}

/// The process of the container, as it is called outside.
fn first_process(router: &Router) -> rustix::process::Pid {
    let mut process = router.pid();
    loop {
        let of = process.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap();
        match children.trim().parse().ok().and_then(rustix::process::Pid::from_raw) {
            Some(child) => process = child,
            None => return process,
        }
    }
}

#[test]
#[ignore = "needs root, unshare, nsenter and ip"]
fn h26_a_container_takes_over_from_another_that_waits_to_be_stopped() {
    let directory = TempDir::new().unwrap();
    let mut network = Command::new("unshare");
    network.args(["--net", "sh", "-c", "ip link set lo up && echo ready >&2 && exec sleep 300"]);
    let network = Router::spawn(network, directory.path().into(), TempDir::new().unwrap());
    network.wait_line("the network", |line| line == "ready");
    let path = format!("/proc/{}/ns/net", network.pid());
    inside(network.pid(), || {
        let (backend, held) = Backend::held();
        let text = with_socket(&backend, &directory);
        let mut running = contained(Path::new(&path), &text);
        let mut ended = Vec::new();
        serves(&running);
        let mut streams = vec![connect(&running, &held)];
        for _ in 0..10 {
            let next = contained(Path::new(&path), &text);
            running.wait("that it has begun", |line| line["message"] == "upgrading");
            kill_process(first_process(&running), Signal::HUP).unwrap();
            serves(&next);
            running.wait("that it waits", |line| {
                line["message"]
                    .as_str()
                    .is_some_and(|message| message.starts_with("handed over; waiting to be stopped"))
            });
            streams.iter_mut().for_each(works);
            kill_process(first_process(&running), Signal::TERM).unwrap();
            assert_eq!(running.exit().code(), Some(0));
            streams.iter_mut().for_each(works);
            ended.push(std::mem::replace(&mut running, next));
            streams.push(connect(&running, &held));
        }
        kill_process(first_process(&running), Signal::TERM).unwrap();
        // Which an upgrade that was over by then does not tell.
        assert!(ended.iter().flat_map(Router::log).any(|line| {
            line["message"] == "cannot pass SIGHUP on to the new process; send it there"
                && line["reason"] == "it is in another PID namespace"
        }));
    });
}
