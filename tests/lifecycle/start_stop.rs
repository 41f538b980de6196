//! Start and stop.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::backend::{closed, free};
use crate::support::client::{End, alert};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, PATIENCE, Router, eventually, pattern, snigate};

const NAME: &str = "a.example";

#[test]
fn h01_a_stop_lets_transfers_finish() {
    let (backend, held) = Backend::held();
    let mut router = Router::routing(&[(NAME, backend.address())]);
    let hello = Hello::to(NAME).record();
    let body = pattern(1_000_000);
    let transfers: Vec<(Client, TcpStream)> = (0..50)
        .map(|_| {
            let client = Client::send(router.address(), &hello);
            let mut upstream = held.recv_timeout(PATIENCE).unwrap();
            upstream.read_exact(&mut vec![0; hello.len()]).unwrap();
            (client, upstream)
        })
        .collect();
    assert_eq!(router.get("/readyz").0, 200);

    router.signal(Signal::TERM);
    router.wait("draining", |line| line["message"] == "draining" && line["connections"] == 50);
    assert_eq!(router.get("/readyz"), (503, "draining\n".into()));
    assert_eq!((router.get("/healthz").0, router.get("/livez").0), (503, 200));
    assert!(TcpStream::connect(router.address()).is_err(), "no longer listening");

    for (mut client, mut upstream) in transfers {
        let sent = body.clone();
        let writer = std::thread::spawn(move || upstream.write_all(&sent).unwrap());
        assert!(client.read(body.len()) == body);
        writer.join().unwrap();
    }
    assert_eq!(router.exit().code(), Some(0));
    router.wait("nothing was cut", |line| line["message"] == "drained" && line["cut"] == 0);
}

#[test]
fn h02_what_has_not_finished_in_time_is_cut_and_counted() {
    let (backend, held) = Backend::held();
    let timeouts = "timeouts: {drain: 300ms, hello: 20s}\n";
    let mut router = Router::start(&config(&[(NAME, backend.address())], timeouts));
    let mut relayed = Client::send(router.address(), &Hello::to(NAME).record());
    let _upstream = held.recv_timeout(PATIENCE).unwrap();
    let silent = Client::connect(router.address());
    eventually("both are accepted", || router.metric("snigate_connections_active{route=\"_none\"}") == 1.0);

    router.signal(Signal::INT);
    assert_eq!(relayed.rest().0, b"");
    assert_eq!(router.exit().code(), Some(0));
    router.wait("two were cut", |line| line["message"] == "drained" && line["cut"] == 2);
    for client in [&relayed, &silent] {
        let account = router.account_of(client.address());
        assert_eq!((account["outcome"].as_str(), account["closed_by"].as_str()), (Some("drained"), Some("us")));
    }
}

#[test]
fn h03_a_second_signal_exits_at_once() {
    let (backend, held) = Backend::held();
    let mut router = Router::routing(&[(NAME, backend.address())]);
    let _client = Client::send(router.address(), &Hello::to(NAME).record());
    let _upstream = held.recv_timeout(PATIENCE).unwrap();
    router.signal(Signal::TERM);
    router.wait("draining", |line| line["message"] == "draining");
    let start = Instant::now();
    router.signal(Signal::TERM);
    assert_eq!(router.exit().code(), Some(1));
    assert!(start.elapsed() < Duration::from_secs(10), "not the 25 s of the drain");
    router.wait("what was cut", |line| line["message"] == "exiting immediately" && line["cut"] == 1);
    assert!(router.log().iter().all(|line| line["level"] != "ERROR"), "to be cut is no error");
}

#[test]
fn readiness_goes_first_and_clients_are_still_served() {
    let backend = Backend::named("served");
    let mut router = Router::start(&config(&[(NAME, backend.address())], "timeouts: {shutdown_delay: 1s}\n"));
    router.signal(Signal::QUIT);
    router.wait("the delay", |line| {
        line["message"] == "not ready; still accepting for shutdown_delay" && line["seconds"] == 1.0
    });
    assert_eq!(router.get("/readyz").0, 503);
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    client.finish();
    assert_eq!(client.rest().0, b"served");
    assert_eq!(router.exit().code(), Some(0));

    // It can be cut short.
    let mut router = Router::start(&config(&[(NAME, backend.address())], "timeouts: {shutdown_delay: 1h}\n"));
    router.signal(Signal::TERM);
    router.wait("the delay", |line| line["message"] == "not ready; still accepting for shutdown_delay");
    router.signal(Signal::TERM);
    assert_eq!(router.exit().code(), Some(1));
}

#[test]
fn h20_signals_that_mean_nothing_do_nothing() {
    let backend = Backend::named("served");
    let router = Router::routing(&[(NAME, backend.address())]);
    for signal in [Signal::USR1, Signal::PIPE, Signal::CHILD, Signal::WINCH] {
        router.signal(signal);
        let mut client = Client::send(router.address(), &Hello::to(NAME).record());
        client.finish();
        assert_eq!(client.rest().0, b"served");
    }
}

#[test]
fn h19_a_stop_of_the_process_cuts_nothing() {
    let backend = Backend::echo();
    let router = Router::routing(&[(NAME, backend.address())]);
    let hello = Hello::to(NAME).record();
    let mut held = Client::send(router.address(), &hello);
    held.read(hello.len());
    router.signal(Signal::STOP);
    // In the queue of the kernel.
    let mut queued: Vec<Client> = (0..20).map(|_| Client::send(router.address(), &hello)).collect();
    std::thread::sleep(Duration::from_secs(2));
    router.signal(Signal::CONT);
    for client in queued.iter_mut().chain([&mut held]) {
        client.write(b"there?");
    }
    held.read(6);
    for client in &mut queued {
        client.read(hello.len() + 6);
    }
}

#[test]
fn h04_clients_in_the_queue_at_a_stop_are_served() {
    let backend = Backend::named("served");
    let mut router = Router::routing(&[(NAME, backend.address())]);
    router.signal(Signal::STOP);
    let mut clients: Vec<Client> = (0..20).map(|_| Client::send(router.address(), &Hello::to(NAME).record())).collect();
    router.signal(Signal::TERM);
    router.signal(Signal::CONT);
    for client in &mut clients {
        client.finish();
        assert_eq!(client.rest().0, b"served");
    }
    assert_eq!(router.exit().code(), Some(0));
}

#[test]
fn h04_e03_clients_in_the_queue_at_a_stop_who_are_denied_are_told_why() {
    let text = config(&[(NAME, closed())], "")
        .replace("listen: 127.0.0.1:0", "listen: [{address: \"127.0.0.1:0\", deny: 127.0.0.0/8}]");
    let mut router = Router::start(&text);
    router.signal(Signal::STOP);
    let mut clients: Vec<Client> = (0..20).map(|_| Client::send(router.address(), &Hello::to(NAME).record())).collect();
    router.signal(Signal::TERM);
    router.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.rest(), (alert(49), End::Fin));
    }
    assert_eq!(router.exit().code(), Some(0));
}

#[test]
fn h05_listens_again_at_once_after_a_kill() {
    let backend = Backend::echo();
    let text = format!("listen: {}\nroutes:\n  - {{sni: {NAME}, upstream: \"{}\"}}\n", free(), backend.address());
    let hello = Hello::to(NAME).record();
    for _ in 0..10 {
        let mut router = Router::start(&text);
        let mut client = Client::send(router.address(), &hello);
        assert_eq!(client.read(hello.len()), hello);
        router.signal(Signal::KILL);
        router.exit();
    }
}

#[test]
fn h06_h07_an_address_that_is_not_to_be_had_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut addresses = vec![
        (taken.local_addr().unwrap().to_string(), "another process is listening on it"),
        ("192.0.2.1:6443".into(), "set `freebind` on the listener if one will have it later"),
    ];
    if !rustix::process::geteuid().is_root() {
        addresses.push(("127.0.0.1:443".into(), "CAP_NET_BIND_SERVICE"));
    }
    let running = Router::routing(&[(NAME, Backend::echo().address())]);
    addresses.push((running.address().to_string(), "another process is listening on it"));
    for (address, hint) in addresses {
        let output = snigate().args(["run", "--listen", &address, "--default", "127.0.0.1:1"]).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        let event: serde_json::Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
        let reason = event["reason"].as_str().unwrap();
        assert_eq!((event["level"].as_str(), event["message"].as_str()), (Some("ERROR"), Some("cannot start")));
        assert!(reason.starts_with(&format!("cannot listen on {address}: ")) && reason.ends_with(hint), "{reason}");
    }
}

#[test]
fn f01_with_few_descriptors_clients_wait_instead_of_failing() {
    let backend = Backend::echo();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, config(&[(NAME, backend.address())], "")).unwrap();
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -n 64; exec \"$0\" run -c \"$1\"", env!("CARGO_BIN_EXE_snigate")]).arg(&path);
    let router = Router::spawn(command, path, directory);
    router.wait("the derived limit", |line| line["message"] == "connection limit" && line["connections"] == 20);

    let hello = Hello::to(NAME).record();
    let mut clients: Vec<Client> = (0..100).map(|_| Client::send(router.address(), &hello)).collect();
    for client in &mut clients {
        assert_eq!(client.read(hello.len()), hello);
        client.finish();
        assert_eq!(client.rest().0, b"");
    }
    router.wait("that the limit is reached", |line| {
        line["message"] == "limits.connections reached; new clients wait in the accept queue" && line["level"] == "WARN"
    });
    let (_, metrics) = router.get("/metrics");
    let errors = metrics.lines().filter(|line| line.starts_with("snigate_accept_errors_total{"));
    assert!(errors.clone().count() == 8 && errors.clone().all(|line| line.ends_with(" 0")), "{metrics}");
}

/// A router that has caught its signals, and still reads its configuration: it is large.
fn reading(route: &str) -> Router {
    use std::fmt::Write;
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    let mut text = format!("listen: 127.0.0.1:0\nsandbox: off\nroutes:\n  - {route}\n");
    for number in 0..20_000 {
        writeln!(text, "  - {{sni: r{number}.example, upstream: \"127.0.0.1:9\"}}").unwrap();
    }
    std::fs::write(&path, text).unwrap();
    let mut command = snigate();
    command.arg("run").arg("-c").arg(&path);
    let router = Router::spawn(command, path, directory);
    let status = format!("/proc/{}/status", router.pid());
    let is_caught = |signal: Signal| {
        let status = std::fs::read_to_string(&status).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap() & (1 << (signal.as_raw() - 1)) != 0
    };
    let deadline = Instant::now() + PATIENCE;
    while ![Signal::HUP, Signal::USR1, Signal::USR2, Signal::TERM].into_iter().all(is_caught) {
        assert!(Instant::now() < deadline, "signals are caught");
    }
    assert!(router.log().is_empty(), "it still reads");
    router
}

#[test]
fn h01_a_reload_that_is_asked_for_while_the_file_is_still_read_comes_after_the_start() {
    let backend = Backend::named("served");
    let router = reading(&format!("{{sni: {NAME}, upstream: \"{}\"}}", backend.address()));
    for signal in [Signal::USR1, Signal::HUP, Signal::HUP] {
        router.signal(signal);
    }
    router.wait("the reload", |line| line["message"] == "reloaded");
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    client.finish();
    assert_eq!(client.rest().0, b"served");
}

#[test]
fn h01_a_stop_while_the_file_is_still_read_ends_the_process_in_order() {
    let mut router = reading("{sni: a.example, upstream: \"127.0.0.1:9\"}");
    router.signal(Signal::TERM);
    assert_eq!(router.exit().code(), Some(0));
    assert!(router.log().is_empty(), "it never served: {:?}", router.log());
}
