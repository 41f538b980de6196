//! Weights, backups, local addresses and ages of connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::backend::{closed, free};
use crate::support::client::{End, client_from};
use crate::support::{Backend, Client, Hello, Router, Stop, eventually, snigate};

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
fn b21_endpoints_added_and_removed_under_load_get_their_share_and_no_client_fails() {
    let backends = [Backend::echo(), Backend::echo(), Backend::echo()];
    let text = |some: &[&Backend]| {
        let some: Vec<String> = some.iter().map(|backend| format!("\"{}\"", backend.address())).collect();
        config(&format!("{{endpoints: [{}], balance: round_robin, slow_start: 0s, on_remove: keep}}", some.join(", ")))
    };
    let [one, two, three] = &backends;
    let router = Router::start(&text(&[one, two]));
    let hello = Hello::to(NAME).record();
    let mut lasting: Vec<Client> = (0..20).map(|_| open(&router, "127.0.0.1")).collect();
    // The first belong to connections from before the change.
    let shares = || {
        let accepted = || backends.each_ref().map(Backend::accepted);
        let before = accepted();
        let since = || std::array::from_fn::<usize, 3, _>(|index| accepted()[index] - before[index]);
        eventually("300 connections", || since().iter().sum::<usize>() >= 300);
        let since = since();
        let all: usize = since.iter().sum();
        since.map(|one| one as f64 / all as f64)
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    let mut client = open(&router, "127.0.0.1");
                    client.finish();
                    assert_eq!(client.rest(), (hello.clone(), End::Fin));
                }
            });
        }
        let is_about = |shares: [f64; 3], expected: [f64; 3]| {
            let differences = shares.iter().zip(expected).map(|(share, expected)| (share - expected).abs());
            assert!(differences.clone().all(|difference| difference < 0.03), "{shares:?}, expected {expected:?}");
        };
        is_about(shares(), [0.5, 0.5, 0.0]);
        router.reload(&text(&[one, two, three]));
        is_about(shares(), [1.0 / 3.0; 3]);
        router.reload(&text(&[two, three]));
        is_about(shares(), [0.0, 0.5, 0.5]);
        router.reload(&text(&[one, two]));
        is_about(shares(), [0.5, 0.5, 0.0]);
    });
    for client in &mut lasting {
        client.write(b"ping");
        assert_eq!(client.read(hello.len() + 4), [&hello[..], b"ping"].concat());
    }
}

#[test]
fn b31_a_backup_serves_while_no_other_endpoint_does() {
    let (backup, address) = (Backend::echo(), free());
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

/// Clients that connect anew when they are closed, as informers do.
struct Informers {
    router: SocketAddr,
    clients: Vec<Client>,
    reconnects: usize,
}

impl Informers {
    fn new(router: &Router, count: usize) -> Self {
        let router = router.address();
        Self { router, clients: (0..count).map(|_| Self::open(router)).collect(), reconnects: 0 }
    }

    fn open(router: SocketAddr) -> Client {
        let hello = Hello::to(NAME).record();
        let mut client = Client::send(router, &hello);
        client.read(hello.len());
        client.stream.set_nonblocking(true).unwrap();
        client
    }

    fn reconnect(&mut self) {
        for client in &mut self.clients {
            if client.stream.read(&mut [0]).is_ok_and(|length| length == 0) {
                *client = Self::open(self.router);
                self.reconnects += 1;
            }
        }
    }
}

#[test]
fn b35_parked_connections_move_to_an_endpoint_that_has_returned_until_shares_are_even() {
    let (one, two, third) = (Backend::echo(), Backend::echo(), free());
    // Neither one that stays dead nor a backup has a share.
    let (dead, backup) = (free(), Backend::echo());
    let text = config(&format!(
        "{{endpoints: [\"{}\", \"{}\", \"{third}\", \"{dead}\", {{address: \"{}\", backup: true}}], slow_start: 0s,
      rebalance: 300/s, health_check: {{interval: 1s, timeout: 1s, rise: 1, fall: 1}}}}",
        one.address(),
        two.address(),
        backup.address()
    ));
    let router = Router::start(&format!("{text}limits: {{park_after: 100ms}}\n"));
    router.wait_many("two are dead", 2, |line| line["message"] == "endpoint is dead");
    let mut informers = Informers::new(&router, 1000);
    let shares = |router: &Router| {
        let upstream = &route(router)["upstream"];
        (0..3).map(|index| upstream[index]["endpoints"][0]["connections"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(shares(&router), [500, 500, 0]);
    eventually("all are parked", || router.metric("snigate_connections_parked") == 1000.0);

    let begun = Instant::now();
    let _third = Backend::start_on(TcpListener::bind(third).unwrap(), |mut stream| {
        let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
    });
    eventually("shares are even", || {
        informers.reconnect();
        shares(&router).iter().all(|share| (332..=334).contains(share))
    });
    assert!(begun.elapsed() >= Duration::from_millis(1000), "332 at 300 a second: {:?}", begun.elapsed());
    let told =
        router.wait("it is over", |line| line["message"].as_str().is_some_and(|told| told.starts_with("rebalanced")));
    let closed = told["closed"].as_u64().unwrap();
    assert_eq!((closed, informers.reconnects), (332, 332), "no more than had to");
    let ended: Vec<Value> = router.log().into_iter().filter(|line| line["outcome"].is_string()).collect();
    assert_eq!(ended.len(), 332);
    assert!(
        ended
            .iter()
            .all(|line| line["outcome"] == "drained" && line["reason"] == "rebalanced: another endpoint has returned")
    );
}

#[test]
fn b35_only_parked_connections_move() {
    let backends: Vec<Backend> = (0..2).map(|_| Backend::echo()).collect();
    let only = config(&format!("\"{}\"", backends[0].address()));
    let both = config(&format!(
        "{{endpoints: [\"{}\", \"{}\"], slow_start: 0s, rebalance: 1000/s}}",
        backends[0].address(),
        backends[1].address()
    ));
    let with = |text: &str, park_after: &str| format!("{text}limits: {{park_after: {park_after}}}\n");
    let router = Router::start(&with(&only, "never"));
    let mut never_parked = Informers::new(&router, 10);
    router.reload(&with(&only, "100ms"));
    let mut parked = Informers::new(&router, 10);
    eventually("they are parked", || router.metric("snigate_connections_parked") == 10.0);
    router.reload(&with(&both, "100ms"));
    eventually("half of all have moved", || {
        parked.reconnect();
        never_parked.reconnect();
        parked.reconnects == 10
    });
    assert_eq!((never_parked.reconnects, backends[1].accepted()), (0, 10));
}

#[test]
fn b35_a_reload_moves_nothing_even_if_it_changes_weights() {
    let (one, two) = (Backend::echo(), Backend::echo());
    let weighted = |weight: u16| {
        let pool = format!(
            "{{endpoints: [\"{}\", {{address: \"{}\", weight: {weight}}}], slow_start: 0s, rebalance: 1000/s}}",
            one.address(),
            two.address()
        );
        format!("{}limits: {{park_after: 100ms}}\n", config(&pool))
    };
    let router = Router::start(&weighted(1));
    let mut informers = Informers::new(&router, 20);
    eventually("they are parked", || router.metric("snigate_connections_parked") == 20.0);
    for weight in [3, 9, 1] {
        router.reload(&weighted(weight));
        // Far longer than 20 would take. Nothing else could show that nothing happens.
        std::thread::sleep(Duration::from_millis(500));
        informers.reconnect();
    }
    assert_eq!(informers.reconnects, 0);
}

#[test]
fn rebalance_contradicts_source_hash() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, config("{endpoints: [\"127.0.0.1:1\"], balance: source_hash, rebalance: 1/s}")).unwrap();
    let checked = snigate().arg("check").arg(&path).output().unwrap();
    assert_eq!(checked.status.code(), Some(78));
    let told = String::from_utf8(checked.stderr).unwrap();
    assert!(told.contains("routes[0].upstream.rebalance: cannot be combined with `balance: source_hash`"), "{told}");
}
