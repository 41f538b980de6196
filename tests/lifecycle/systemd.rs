//! What a service manager is told, and what it passes on.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::router::config;
use crate::support::{Backend, Client, Hello, PATIENCE, Router, eventually, snigate};

const NAME: &str = "a.example";

/// A router that is told of this service manager.
fn under_a_manager(directory: TempDir, text: &str, change: impl FnOnce(&mut Command)) -> (Router, UnixDatagram) {
    let (path, socket) = (directory.path().join("snigate.yaml"), directory.path().join("notify"));
    std::fs::write(&path, text).unwrap();
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = snigate();
    command.env("NOTIFY_SOCKET", &socket).arg("run").arg("-c").arg(&path);
    change(&mut command);
    (Router::spawn(command, path, directory), manager)
}

fn told(manager: &UnixDatagram) -> String {
    let mut message = [0; 4096];
    let length = manager.recv(&mut message).unwrap();
    String::from_utf8(message[..length].to_vec()).unwrap()
}

#[test]
fn h13_systemd_is_told_when_it_serves_reloads_upgrades_and_stops() {
    let backend = Backend::named("served");
    let text = config(&[(NAME, backend.address())], "");
    let (mut router, manager) = under_a_manager(TempDir::new().unwrap(), &text, |_| {});
    let first = router.pid();
    assert_eq!(told(&manager), format!("MAINPID={first}\nREADY=1\n"));
    assert_eq!(router.get("/readyz").0, 200, "it serves by now");

    for text in ["nonsense", &text] {
        router.reload(text);
        let reloading = told(&manager);
        assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
        assert!(told(&manager).ends_with("READY=1\n"), "whatever has become of it");
    }

    router.signal(Signal::USR2);
    let serving = told(&manager);
    router.wait("the upgrade", |line| line["process"].is_number());
    let second = router.successors().pop().unwrap();
    assert_eq!(serving, format!("MAINPID={second}\nREADY=1\n"));
    assert_eq!(router.exit().code(), Some(0));
    rustix::process::kill_process(second, Signal::TERM).unwrap();
    assert_eq!(told(&manager), "STOPPING=1\n", "the first has not said so: the unit goes on");
}

#[test]
fn h13_the_watchdog_is_fed() {
    let backend = Backend::named("served");
    let text = config(&[(NAME, backend.address())], "");
    let (_router, manager) = under_a_manager(TempDir::new().unwrap(), &text, |command| {
        command.env("WATCHDOG_USEC", "200000");
    });
    assert!(told(&manager).ends_with("READY=1\n"));
    for _ in 0..3 {
        assert_eq!(told(&manager), "WATCHDOG=1\n");
    }
}

#[test]
fn h13_after_an_upgrade_only_the_new_process_feeds_the_watchdog() {
    let (backend, held) = Backend::held();
    let text = config(&[(NAME, backend.address())], "");
    let (router, manager) = under_a_manager(TempDir::new().unwrap(), &text, |command| {
        command.env("WATCHDOG_USEC", "100000");
    });
    let _client = Client::send(router.address(), &Hello::to(NAME).record());
    let _upstream = held.recv_timeout(PATIENCE).unwrap();
    router.signal(Signal::USR2);
    eventually("it is told of the upgrade", || told(&manager).contains("MAINPID"));
    router.wait("the upgrade", |line| line["process"].is_number());
    router.wait("a drain", |line| line["message"] == "draining");
    let new = router.successors().pop().unwrap();
    eventually("the watchdog is fed", || told(&manager) == "WATCHDOG=1\n");
    rustix::process::kill_process(new, Signal::STOP).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
    // What was on the way, and then nothing.
    eventually("nobody feeds it", || manager.recv(&mut [0; 64]).is_err());
    assert!(rustix::process::test_kill_process(router.pid()).is_ok(), "the old one is still there");
}

#[test]
fn a_manager_that_does_not_listen_holds_nothing_up() {
    let backend = Backend::named("served");
    let text = config(&[(NAME, backend.address())], "workers: 1\n");
    let (mut router, manager) = under_a_manager(TempDir::new().unwrap(), &text, |command| {
        command.env("WATCHDOG_USEC", "1000");
    });
    router.address();
    // Its queue is full when no more is told.
    let mut before = 0;
    eventually("its queue is full", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let last = std::mem::replace(&mut before, queued(&manager));
        before > 0 && before == last
    });
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    client.finish();
    assert_eq!(client.rest().0, b"served");
    router.signal(Signal::TERM);
    assert_eq!(router.exit().code(), Some(0));
}

/// Bytes that have been told and not been listened to.
fn queued(manager: &UnixDatagram) -> u64 {
    rustix::io::ioctl_fionread(manager).unwrap()
}

#[test]
fn sockets_of_a_socket_unit_are_served_and_others_are_closed() {
    let backend = Backend::named("served");
    let [socket, unused] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let (address, other) = (socket.local_addr().unwrap(), unused.local_addr().unwrap());
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    let text = config(&[(NAME, backend.address())], "").replace("listen: 127.0.0.1:0", &format!("listen: {address}"));
    std::fs::write(&path, text).unwrap();
    // A client from before.
    let mut early = Client::send(address, &Hello::to(NAME).record());
    early.finish();

    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0 4<&1 </dev/null >/dev/null; LISTEN_FDS=2 LISTEN_PID=$$ exec \"$0\" run -c \"$1\""]);
    command.arg(env!("CARGO_BIN_EXE_snigate")).arg(&path).stdin(OwnedFd::from(socket));
    let router = Router::spawn_with(command, path, directory, OwnedFd::from(unused).into());
    assert_eq!(router.address(), address);
    let line = router.wait("the other", |line| line["message"] == "closing inherited socket that is not configured");
    assert_eq!(line["address"], other.to_string());
    assert_eq!(early.rest().0, b"served");
    assert!(std::net::TcpStream::connect(other).is_err());
}
