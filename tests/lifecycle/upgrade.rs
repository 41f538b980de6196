//! A new binary in place of the running one.

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::backend::{fill, free_everywhere};
use crate::support::client::{End, rest};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, PATIENCE, Router, eventual, eventually};

const NAME: &str = "a.example";

/// A router that was started as a link beside its configuration, so that something else can take the binary's place.
pub fn linked(config: &str) -> (Router, PathBuf) {
    let directory = TempDir::new().unwrap();
    let (path, binary) = (directory.path().join("snigate.yaml"), directory.path().join("snigate"));
    fs::write(&path, config).unwrap();
    symlink(env!("CARGO_BIN_EXE_snigate"), &binary).unwrap();
    let mut command = Command::new(&binary);
    command.env_remove("RUST_LOG").stdin(Stdio::null()).arg("run").arg("-c").arg(&path);
    let router = Router::spawn(command, path, directory);
    router.wait("that it serves", |line| line["message"] == "listening" && line["listener"] == "_admin");
    (router, binary)
}

pub fn upgrade(router: &Router) -> Pid {
    router.signal(Signal::USR2);
    let upgraded = router.wait("the upgrade", |line| line["message"] == "upgraded; the new process serves");
    Pid::from_raw(upgraded["process"].as_i64().unwrap() as i32).unwrap()
}

fn is_not_upgraded(router: &Router, reason: &str) {
    let before = refusals(router).len();
    router.signal(Signal::USR2);
    eventually("the refusal", || refusals(router).len() > before);
    let told = refusals(router).pop().unwrap();
    assert!(told["reason"].as_str().unwrap().contains(reason), "{told}");
    assert_eq!(told["level"], "ERROR");
}

fn refusals(router: &Router) -> Vec<Value> {
    router
        .log()
        .into_iter()
        .filter(|line| line["message"] == "upgrade failed; this process continues to serve")
        .collect()
}

fn is_served(address: SocketAddr) -> bool {
    let mut client = Client::send(address, &Hello::to(NAME).record());
    client.finish();
    client.rest() == (b"served".to_vec(), End::Fin)
}

/// Listening sockets and all others of this process.
fn sockets(process: Pid) -> usize {
    let links = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    links.filter(|link| is_socket(&link.as_ref().unwrap().path())).count()
}

fn is_socket(link: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
}

/// A stream that stays in its process: its client does not read what the endpoint has sent, so that it never comes to rest.
fn stalled(address: SocketAddr, held: &Receiver<TcpStream>) -> (Client, TcpStream) {
    let client = Client::send(address, &Hello::to(NAME).record());
    let mut upstream = held.recv_timeout(PATIENCE).unwrap();
    fill(&mut upstream);
    (client, upstream)
}

#[test]
fn h08_an_upgrade_refuses_nobody_and_streams_continue() {
    let served = Backend::named("served");
    let (backend, held) = Backend::held();
    let text = config(&[(NAME, served.address()), ("held.example", backend.address())], "");
    let (mut router, _) = linked(&text);
    let address = router.address();
    let mut stream = Client::send(address, &Hello::to("held.example").record());
    let mut upstream = held.recv_timeout(PATIENCE).unwrap();
    let sockets_before = sockets(router.pid());

    // Clients come all the time, until told to stop.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let clients = std::thread::spawn(move || {
        let mut count = 0;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            assert!(is_served(address), "client {count}");
            count += 1;
        }
        count
    });
    let old = router.pid();
    let new = upgrade(&router);
    let at_the_upgrade = served.accepted();
    eventually("more clients", || served.accepted() > at_the_upgrade + 100);
    stop.send(()).unwrap();
    let count = clients.join().unwrap();
    assert_eq!(served.accepted(), count);
    assert_ne!(new, old);

    // The admin listener is the new process's, too.
    let uptime = router.metric("process_start_time_seconds");
    assert!(uptime > 0.0 && router.get("/readyz").0 == 200);
    assert_eq!(router.exit().code(), Some(0), "the old process has nothing left to do");
    eventually("the new one has what the old one had", || sockets(new) == sockets_before);

    // Both directions of the old stream work.
    upstream.write_all(b"down").unwrap();
    assert_eq!(stream.read(4), b"down");
    stream.finish();
    drop(rest(&mut upstream));
    drop(upstream);
    stream.rest();
    assert!(is_served(address));
    kill_process(new, Signal::TERM).unwrap();
    eventually("the new one ends, too", || test_kill_process(new).is_err());
}

#[test]
fn h08_a_client_that_waits_at_the_connection_limit_is_served_by_the_new_process() {
    let served = Backend::named("served");
    let (backend, held) = Backend::held();
    let routes = [(NAME, served.address()), ("held.example", backend.address())];
    let (router, _) = linked(&config(&routes, "limits: {connections: 2}\n"));
    let streams: Vec<Client> =
        (0..2).map(|_| Client::send(router.address(), &Hello::to("held.example").record())).collect();
    let _upstreams: Vec<TcpStream> = (0..2).map(|_| held.recv_timeout(PATIENCE).unwrap()).collect();
    let mut waiting: Vec<Client> = (0..3).map(|_| Client::send(router.address(), &Hello::to(NAME).record())).collect();
    router.wait("that it is full", |line| {
        line["message"].as_str().is_some_and(|message| message.starts_with("limits.connections reached"))
    });
    upgrade(&router);
    for client in &mut waiting {
        client.finish();
        assert_eq!(client.rest(), (b"served".to_vec(), End::Fin));
    }
    drop(streams);
}

#[test]
fn h08_the_new_process_tells_how_many_connections_the_old_ones_have() {
    let (backend, held) = Backend::held();
    let (router, _) = linked(&config(&[(NAME, backend.address())], ""));
    let mut streams = Vec::new();
    let mut newest = router.pid();
    let mut old = Vec::new();
    for count in 1..=2 {
        streams.push(stalled(router.address(), &held));
        eventually("it is connected", || {
            router.metric(&format!("snigate_connections_active{{route=\"{NAME}\"}}")) == 1.0
        });
        kill_process(newest, Signal::USR2).unwrap();
        let upgraded = |line: &Value| line["message"] == "upgraded; the new process serves";
        let process = router.wait_many("the upgrade", count, upgraded).pop().unwrap()["process"].as_i64().unwrap();
        old.push(newest);
        newest = Pid::from_raw(process as i32).unwrap();
        let stay =
            |line: &Value| line["message"] == "connections continue in the old process" && line["connections"] == count;
        router.wait("that they stay", stay);
        eventually("the count", || router.metric("snigate_predecessor_connections") == count as f64);
    }
    let (_, status) = router.get("/api/status");
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["predecessor_connections"], 2, "those of the first process, too");
    drop(streams);
    eventually("they have ended", || router.metric("snigate_predecessor_connections") == 0.0);
    kill_process(newest, Signal::KILL).unwrap();
}

#[test]
fn h11_an_upgrade_to_overlapping_addresses_serves_who_waits_at_the_old_ones() {
    let served = Backend::named("served");
    let text = config(&[(NAME, served.address())], "");
    let (_reserved, port) = free_everywhere();
    let narrow = SocketAddr::from(([127, 0, 0, 1], port));
    let (mut router, _) = linked(&text.replace("listen: 127.0.0.1:0", &format!("listen: {narrow}")));
    let wide = SocketAddr::new([0, 0, 0, 0].into(), narrow.port());
    fs::write(&router.config, text.replace("listen: 127.0.0.1:0", &format!("listen: {wide}"))).unwrap();
    let new = upgrade(&router);
    assert!(is_served(narrow));
    assert_eq!(router.exit().code(), Some(0));
    assert!(is_served(narrow) && is_served(SocketAddr::new([127, 0, 0, 9].into(), narrow.port())));
    kill_process(new, Signal::TERM).unwrap();
}

#[test]
fn how_the_process_that_took_over_ends_is_a_warning_only_if_it_crashed() {
    let (backend, held) = Backend::held();
    for (signal, level) in [(Signal::TERM, "INFO"), (Signal::KILL, "WARN")] {
        let (router, _) = linked(&config(&[(NAME, backend.address())], "timeouts: {drain: 0s}\n"));
        let _stream = stalled(router.address(), &held);
        kill_process(upgrade(&router), signal).unwrap();
        let told = router.wait("its end", |line| {
            line["message"].as_str().is_some_and(|message| message.starts_with("the new process has exited"))
        });
        assert_eq!(told["level"], level, "{told}");
    }
}

#[test]
fn h11_an_upgrade_takes_the_new_binary_and_the_new_configuration() {
    let (first, second) = (Backend::named("first"), Backend::named("served"));
    let (mut router, binary) = linked(&config(&[(NAME, first.address())], ""));
    let address = router.address();
    // Another inode under the same name, as a package manager leaves it.
    let copy = binary.with_extension("new");
    symlink(env!("CARGO_BIN_EXE_snigate"), &copy).unwrap();
    fs::rename(&copy, &binary).unwrap();
    // One listener goes, another comes; what cannot change by a reload can.
    let text = config(&[(NAME, second.address())], "workers: 2\n")
        .replace("listen: 127.0.0.1:0", "listen: [127.0.0.1:0, {name: other, address: \"127.0.0.2:0\"}]");
    fs::write(&router.config, text).unwrap();
    upgrade(&router);
    assert_eq!(router.exit().code(), Some(0), "nothing was open");
    assert!(is_served(address));
    assert!(is_served(router.address_of(|name| name == "other")));
}

#[test]
fn h09_a_new_binary_that_does_not_serve_changes_nothing() {
    let served = Backend::named("served");
    let text = config(&[(NAME, served.address())], "");
    let (router, binary) = linked(&text);
    let address = router.address();
    let sockets_before = sockets(router.pid());
    let replace = |content: Option<&str>, mode: u32| {
        fs::remove_file(&binary).unwrap();
        if let Some(content) = content {
            fs::write(&binary, content).unwrap();
            fs::set_permissions(&binary, Permissions::from_mode(mode)).unwrap();
        }
    };
    replace(Some("#!/bin/sh\nexit 0\n"), 0o755);
    is_not_upgraded(&router, "the new process ended before it served: exit status: 0");
    replace(Some("#!/bin/sh\nkill -SEGV $$\n"), 0o755);
    is_not_upgraded(&router, "signal: 11");
    replace(Some("#!/bin/sh\nexec sleep 60 <&-\n"), 0o755);
    is_not_upgraded(&router, "it closed its standard input");
    replace(Some("#!/bin/sh\necho garbage >&0; exec sleep 60 <&-\n"), 0o755);
    is_not_upgraded(&router, "ended before it served");
    replace(Some("#!/bin/sh\nprintf 'hi v2ready' >&0; exit 3\n"), 0o755);
    is_not_upgraded(&router, "the new process ended before it served: exit status: 3");
    replace(Some("\x7fELF, but no more"), 0o755);
    is_not_upgraded(&router, "cannot start");
    replace(Some("#!/bin/sh\nexit 0\n"), 0o644);
    is_not_upgraded(&router, "Permission denied");
    fs::remove_file(&binary).unwrap();
    symlink("nowhere", &binary).unwrap();
    is_not_upgraded(&router, "cannot start");

    fs::remove_file(&binary).unwrap();
    symlink(env!("CARGO_BIN_EXE_snigate"), &binary).unwrap();
    fs::write(&router.config, "listen: nonsense\n").unwrap();
    is_not_upgraded(&router, "exit status: 78");
    router.wait("why", |line| {
        line["message"] == "cannot start" && line["reason"].as_str().is_some_and(|reason| reason.contains("nonsense"))
    });
    assert!(is_served(address));
    eventually("nothing is left over", || sockets(router.pid()) == sockets_before);

    fs::write(&router.config, text).unwrap();
    upgrade(&router);
    assert!(is_served(address));
}

#[test]
fn h09_a_new_binary_that_hangs_is_killed() {
    let served = Backend::named("served");
    let (router, binary) = linked(&config(&[(NAME, served.address())], UNBOUND));
    upgrade_to_what_hangs(&router, &binary);
    assert!(is_served(router.address()));
    router.signal(Signal::USR2);
    let begun = Instant::now();
    while refusals(&router).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(refusals(&router)[0]["reason"].as_str().unwrap().contains("did not serve within 30 s"));
    eventually("it is gone", || test_kill_process(hanging(&binary)).is_err());
    assert!(is_served(router.address()));
    let upgrades = router.log().iter().filter(|line| line["message"] == "upgrading").count();
    assert_eq!(upgrades, 1, "one at a time");
}

/// The scripts that stand for a new binary write files.
pub const UNBOUND: &str = "sandbox: off\n";

/// Puts a script in the place of the binary.
pub fn install(binary: &Path, script: &str) {
    fs::remove_file(binary).unwrap();
    fs::write(binary, script).unwrap();
    fs::set_permissions(binary, Permissions::from_mode(0o755)).unwrap();
}

/// Begins an upgrade to a binary that neither serves nor ends.
fn upgrade_to_what_hangs(router: &Router, binary: &Path) {
    install(binary, &format!("#!/bin/sh\necho $$ > {}\nexec sleep 300\n", hangs(binary)));
    router.signal(Signal::USR2);
    eventually("it hangs", || fs::read_to_string(hangs(binary)).is_ok_and(|text| text.ends_with('\n')));
}

fn hangs(binary: &Path) -> String {
    binary.with_extension("pid").display().to_string()
}

fn hanging(binary: &Path) -> Pid {
    Pid::from_raw(fs::read_to_string(hangs(binary)).unwrap().trim().parse().unwrap()).unwrap()
}

#[test]
fn h10_a_stop_ends_an_upgrade_that_is_under_way() {
    let served = Backend::named("served");
    let (mut router, binary) = linked(&config(&[(NAME, served.address())], UNBOUND));
    upgrade_to_what_hangs(&router, &binary);
    router.signal(Signal::TERM);
    assert_eq!(router.exit().code(), Some(0));
    eventually("no orphan", || test_kill_process(hanging(&binary)).is_err());
}

#[test]
fn h10_who_drains_does_not_upgrade_and_a_stop_after_an_upgrade_drains() {
    let (backend, held) = Backend::held();
    let text = config(&[(NAME, backend.address())], "timeouts: {drain: 300ms}\n");
    let (mut router, _) = linked(&text);
    let (mut client, _upstream) = stalled(router.address(), &held);
    let new = upgrade(&router);
    router.wait("a long drain", |line| line["message"] == "draining" && line["timeout_s"] == 86400.0);
    for ignored in [Signal::USR2, Signal::HUP] {
        router.signal(ignored);
    }
    router.wait_many("neither", 2, |line| line["message"] == "signal ignored: this process is draining");
    router.signal(Signal::TERM);
    assert_eq!(router.exit().code(), Some(0));
    client.rest();
    router.wait("one was cut", |line| line["message"] == "drained" && line["cut"] == 1);
    assert!(TcpStream::connect(router.address()).is_ok() && test_kill_process(new).is_ok(), "the new one serves");
}

#[test]
fn a_reload_that_is_asked_for_during_an_upgrade_is_not_forgotten() {
    let (first, second) = (Backend::named("first"), Backend::named("served"));
    let (router, binary) = linked(&config(&[(NAME, first.address())], ""));
    let go = binary.with_extension("go");
    install(&binary, &format!("#!/bin/sh\nuntil [ -e {} ]; do sleep 0.05; done\nexit 1\n", go.display()));
    router.signal(Signal::USR2);
    router.wait("it waits", |line| line["message"] == "upgrading");
    fs::write(&router.config, config(&[(NAME, second.address())], "")).unwrap();
    router.signal(Signal::HUP);
    router
        .wait("that it waits", |line| line["message"] == "reload postponed until the upgrade has succeeded or failed");
    fs::write(&go, "").unwrap();
    router.wait("the refusal", |line| line["message"] == "upgrade failed; this process continues to serve");
    router.wait("and then the reload", |line| line["message"] == "reloaded");
    assert!(is_served(router.address()));
}

#[test]
fn who_keeps_a_connection_to_the_old_admin_listener_is_sent_away() {
    let backend = Backend::named("served");
    let (held_backend, held) = Backend::held();
    let (router, _) = linked(&config(&[(NAME, backend.address()), ("held.example", held_backend.address())], ""));
    let _stream = Client::send(router.address(), &Hello::to("held.example").record());
    let _upstream = held.recv_timeout(PATIENCE).unwrap();
    let mut scraper = Client::send(router.admin(), b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
    assert!(String::from_utf8(scraper.read(15)).unwrap().ends_with("200 OK"));
    upgrade(&router);
    let (rest, end) = scraper.rest();
    assert!(end == End::Fin && rest.ends_with(b"ok\n"), "its answer, and no 503 after it");
    assert_eq!(router.get("/readyz").0, 200);
}

/// The process that serves, by its status. Whoever connects and then takes too long to ask, as on a busy machine, asks again.
pub fn serving(router: &Router) -> Pid {
    eventual("the status", || {
        let mut stream = TcpStream::connect(router.admin()).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /api/status HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n").ok()?;
        let response = std::io::read_to_string(stream).ok()?;
        let status: Value = serde_json::from_str(response.split_once("\r\n\r\n")?.1).ok()?;
        Pid::from_raw(status["process"].as_i64()? as i32)
    })
}

#[test]
fn h31_upgrades_in_quick_succession_leave_one_process() {
    let backend = Backend::echo();
    let (mut router, _) = linked(&config(&[("a.example", backend.address())], ""));
    let mut processes = vec![router.pid()];
    for _ in 0..3 {
        // As soon as it serves, and not when the one before it has stepped back.
        kill_process(processes[processes.len() - 1], Signal::USR2).unwrap();
        eventually("a new process serves", || {
            let process = serving(&router);
            let is_new = !processes.contains(&process);
            if is_new {
                processes.push(process);
            }
            is_new
        });
    }
    assert_eq!(router.exit().code(), Some(0));
    let last = processes.pop().unwrap();
    eventually("the others have ended", || processes[1..].iter().all(|one| test_kill_process(*one).is_err()));
    assert_eq!(serving(&router), last);
    assert!(refusals(&router).is_empty());
}
