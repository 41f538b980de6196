//! Weights, backups, local addresses and ages of connections.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::backend::closed;
use crate::support::client::{End, client_from};
use crate::support::{Backend, Client, Hello, Router, eventually, snigate};

const NAME: &str = "a.example";

fn config(upstream: &str) -> String {
    format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - sni: {NAME}\n    upstream: {upstream}\n")
}

fn open(router: &Router, from: &str) -> Client {
    let mut client = client_from(from, router.address());
    client.write(&Hello::to(NAME).record());
    client
}

fn route(router: &Router) -> Value {
    let status: Value = serde_json::from_str(&router.get("/api/status").1).unwrap();
    status["routes"][0].clone()
}

#[test]
fn b30_connections_follow_weights_and_a_reload_changes_them() {
    let (one, two) = (Backend::echo(), Backend::echo());
    let weighted = |weight: u16| {
        config(&format!(
            "{{endpoints: [\"{}\", {{address: \"{}\", weight: {weight}}}], balance: round_robin}}",
            one.address(),
            two.address()
        ))
    };
    let router = Router::start(&weighted(3));
    let mut clients: Vec<Client> = (0..8).map(|_| open(&router, "127.0.0.1")).collect();
    eventually("three of four go to the second", || (one.accepted(), two.accepted()) == (2, 6));
    let of_second = &route(&router)["upstream"][1];
    assert_eq!((&of_second["weight"], &of_second["backup"]), (&3.into(), &false.into()));

    let directory = tempfile::tempdir().unwrap();
    let new = directory.path().join("new.yaml");
    std::fs::write(&new, weighted(1)).unwrap();
    let plan = || {
        let admin = router.admin().to_string();
        let planned =
            snigate().args(["plan", "-c"]).arg(&new).args(["--admin", &admin, "--exit-code"]).output().unwrap();
        (planned.status.code(), String::from_utf8(planned.stdout).unwrap())
    };
    let (code, told) = plan();
    assert_eq!(code, Some(0), "no connection would be closed: {told}");
    assert!(told.contains(&format!("      ~ {}  weight 3 -> weight 1\n", two.address())), "{told}");
    router.reload(&weighted(1));
    let more: Vec<Client> = (0..8).map(|_| open(&router, "127.0.0.1")).collect();
    eventually("half of the new ones", || (one.accepted(), two.accepted()) == (6, 10));
    clients.extend(more);
    for client in &mut clients {
        client.write(b"ping");
        client.read(Hello::to(NAME).record().len() + 4);
    }
}

#[test]
fn b31_a_backup_serves_while_no_other_endpoint_does() {
    let backup = Backend::echo();
    let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let router = Router::start(&config(&format!(
        "{{endpoints: [\"{address}\", {{address: \"{}\", backup: true}}], slow_start: 0s,
      health_check: {{interval: 1s, timeout: 1s, rise: 1, fall: 1}}}}",
        backup.address()
    )));
    router.wait("the backup serves", |line| {
        line["message"] == "no endpoint is ready but backups; new connections go to backups"
    });
    assert_eq!((&route(&router)["serving"], &route(&router)["failing_open"]), (&"backup".into(), &false.into()));
    let mut on_backup = open(&router, "127.0.0.1");
    on_backup.read(1);
    let primary = Backend::start_on(TcpListener::bind(address).unwrap(), |mut stream| {
        let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
    });
    router.wait("the other serves again", |line| {
        line["message"] == "an endpoint is ready again; new connections no longer go to backups"
    });
    assert_eq!(route(&router)["serving"], "primary");
    let before = primary.accepted();
    let mut on_primary = open(&router, "127.0.0.1");
    on_primary.read(1);
    assert!(primary.accepted() > before);
    on_backup.write(b"still there");
    on_backup.read(Hello::to(NAME).record().len() - 1 + 11);
}

#[test]
fn b31_a_connection_that_reaches_no_other_endpoint_gets_a_backup() {
    let backup = Backend::named("served");
    let router = Router::start(&config(&format!(
        "{{endpoints: [\"{}\", {{address: \"{}\", backup: true}}]}}",
        closed(),
        backup.address()
    )));
    let mut client = open(&router, "127.0.0.1");
    client.finish();
    assert_eq!(client.rest(), (b"served".to_vec(), End::Fin));
}

#[test]
fn b32_a_client_address_keeps_its_endpoint() {
    let backends: Vec<Backend> = (0..3).map(|_| Backend::echo()).collect();
    let endpoints: Vec<String> = backends.iter().map(|backend| format!("\"{}\"", backend.address())).collect();
    let router = Router::start(&config(&format!("{{endpoints: [{}], balance: source_hash}}", endpoints.join(", "))));
    let mut used = std::collections::HashSet::new();
    for number in 1..=24 {
        let from = format!("127.0.0.{number}");
        let endpoint = |_| {
            let client = open(&router, &from);
            client.finish();
            router.account_of(client.address())["upstream.address"].to_string()
        };
        let endpoints: Vec<String> = (0..3).map(endpoint).collect();
        assert!(endpoints.iter().all(|endpoint| *endpoint == endpoints[0]), "{from}: {endpoints:?}");
        used.extend(endpoints);
    }
    assert_eq!(used.len(), 3, "all serve someone");
}

#[test]
fn b34_old_connections_are_closed_between_messages() {
    let backend = Backend::echo();
    let router = Router::start(&config(&format!(
        "{{endpoints: \"{}\", max_age: {{after: 1s, jitter: 0%}}}}",
        backend.address()
    )));
    let mut silent = open(&router, "127.0.0.1");
    let hello = Hello::to(NAME).record();
    silent.read(hello.len());
    let mut busy = open(&router, "127.0.0.1");
    busy.read(hello.len());
    let busy_address = busy.address();
    // It sends a byte more often than once a second until the silent one has been closed. A machine that stalls for as long
    // makes it quiet, too.
    let (over, is_over) = channel::<()>();
    let talk = std::thread::spawn(move || {
        let mut last = Instant::now();
        while is_over.recv_timeout(Duration::from_millis(100)) == Err(RecvTimeoutError::Timeout) {
            let answered = busy.stream.write_all(b"x").and_then(|()| busy.stream.read_exact(&mut [0]));
            let gap = last.elapsed();
            assert!(answered.is_ok() || gap >= Duration::from_secs(1), "closed although it was busy {gap:?} ago");
            if answered.is_err() {
                break;
            }
            last = Instant::now();
        }
        busy
    });
    assert_eq!(silent.rest(), (Vec::new(), End::Fin));
    let account = router.account_of(silent.address());
    assert_eq!((&account["outcome"], &account["closed_by"]), (&"max_age".into(), &"us".into()));
    drop(over);
    let mut busy = talk.join().unwrap();
    assert_eq!(busy.rest().0, b"", "closed once it is quiet");
    assert_eq!(router.account_of(busy_address)["outcome"], "max_age");
}

#[test]
fn b34_a_slow_reader_gets_everything_before_its_connection_is_closed() {
    const LENGTH: usize = 4_000_000;
    let backend = Backend::start(|mut stream| {
        let _ = stream.write_all(&vec![b'x'; LENGTH]);
        let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut std::io::sink());
    });
    for relay in ["copy", "splice"] {
        let router = Router::start(&format!(
            "{}relay: {relay}\n",
            config(&format!("{{endpoints: \"{}\", max_age: {{after: 1s, jitter: 0%}}}}", backend.address()))
        ));
        let mut slow = open(&router, "127.0.0.1");
        let mut quick = open(&router, "127.0.0.1");
        assert_eq!(quick.rest().0.len(), LENGTH, "closed once all was read");
        let (received, end) = slow.rest();
        assert_eq!((received.len(), end), (LENGTH, End::Fin), "{relay}");
        assert_eq!(router.account_of(slow.address())["outcome"], "max_age");
    }
}
