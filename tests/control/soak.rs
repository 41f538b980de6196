//! Random orders, reloads and upgrades beside traffic, for as long as `SNIGATE_SOAK` says in seconds (3 otherwise).
//! `SNIGATE_SOAK=600 cargo test --test main h29 -- --nocapture`

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use super::Operated;
use crate::lifecycle::upgrade::{linked, serving};
use crate::support::client::{End, client_from};
use crate::support::{Backend, Client, Hello, Stop, eventually, watchdog};

const NAME: &str = "a.example";
const KEPT: &str = "127.0.0.1";
/// Where streams come from that operators close.
const CLOSED: &str = "127.0.0.9";

fn config(endpoints: &[SocketAddr], route: bool) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
    let other = if route { "  - {sni: b.example, upstream: \"127.0.0.1:1\"}\n" } else { "" };
    format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nlimits: {{park_after: 100ms}}\nroutes:\n  - sni: {NAME}\n    upstream: \
         {{endpoints: [{}], slow_start: 0s, rebalance: 1/h, on_remove: keep}}\n{other}",
        endpoints.join(", ")
    )
}

fn open(from: &str, to: SocketAddr, made: &AtomicUsize) -> Client {
    made.fetch_add(1, Relaxed);
    let hello = Hello::to(NAME).record();
    // Where nothing is bound, the kernel uses the same port for one connection after another.
    let mut client = if from == KEPT { Client::connect(to) } else { client_from(from, to) };
    client.write(&hello);
    assert_eq!(client.read(hello.len()), hello);
    client
}

fn works(client: &mut Client) {
    client.write(b"ping");
    assert_eq!(client.read(4), b"ping");
}

#[test]
fn h29_random_orders_reloads_and_upgrades_break_no_stream_that_none_closed() {
    let duration = Duration::from_secs(std::env::var("SNIGATE_SOAK").map_or(3, |text| text.parse().unwrap()));
    watchdog::may_take(2 * duration + Duration::from_secs(300));
    let seed = std::env::var("SNIGATE_SEED").map_or_else(|_| std::process::id().into(), |text| text.parse().unwrap());
    eprintln!("SNIGATE_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let backends = [Backend::patient(), Backend::patient(), Backend::patient()];
    let addresses = backends.each_ref().map(Backend::address);
    let (operated, _) = Operated::starting(&config(&addresses[..2], false), linked);
    let router = &operated.router;
    let address = router.address();
    let made = AtomicUsize::new(0);
    let mut kept: Vec<Client> = (0..20).map(|_| open(KEPT, address, &made)).collect();
    let mut closed: Vec<Client> = Vec::new();
    let drained = addresses[0].to_string();
    let stop = AtomicBool::new(false);
    let (mut upgrades, mut orders) = (0, 0);
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let mut client = open(KEPT, address, &made);
                (0..20).for_each(|_| works(&mut client));
                client.finish();
                assert_eq!(client.rest().1, End::Fin);
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < duration {
            orders += 1;
            match random.u8(..11) {
                0 | 1 => {
                    let listed: Value = serde_json::from_str(&operated.says(&["connections", "--json"])).unwrap();
                    assert!(listed["states"]["relaying"].is_u64());
                }
                2 => drop(ordered(&operated, &["drain", NAME, &drained])),
                3 => drop(ordered(&operated, &["resume", NAME, &drained])),
                4 | 5 => {
                    closed.push(open(CLOSED, address, &made));
                    drop(ordered(&operated, &["close", "--client", CLOSED, "--rate", "1000"]));
                }
                6 | 7 => {
                    let more = config(&addresses[..random.usize(2..=3)], random.bool());
                    std::fs::write(&router.config, operated.with_socket(&more)).unwrap();
                    drop(ordered(&operated, &["reload"]));
                }
                8 => drop(ordered(&operated, &["log-level", "info"])),
                9 if upgrades < 200 => {
                    let running = serving(router);
                    kill_process(running, Signal::USR2).unwrap();
                    upgrades += 1;
                    eventually("the new process serves", || serving(router) != running);
                }
                _ => drop(ordered(&operated, &["endpoints"])),
            }
            kept.iter_mut().for_each(works);
        }
    });
    eprintln!("{orders} orders, {upgrades} upgrades, {} connections", made.load(Relaxed));
    // What had moved to another process when it was closed.
    ordered(&operated, &["close", "--client", CLOSED, "--rate", "1000"]);
    eventually("all that were to be closed are", || {
        ordered(&operated, &["close", "--client", CLOSED, "--rate", "1000"]).starts_with("0 connections")
    });
    closed.iter_mut().for_each(|client| assert_eq!(client.rest().1, End::Fin));
    kept.iter_mut().for_each(works);
    drop(kept);
    let is_ended = |line: &Value| line["outcome"].is_string();
    let made = made.load(Relaxed);
    let ended = router.wait_many("each connection is logged", made, is_ended);
    for line in &ended {
        let is_by_order = line["reason"] == "closed by an operator";
        assert_eq!(line["outcome"] == "drained", is_by_order, "{line}");
        assert_eq!(is_by_order, line["client.address"] == CLOSED, "{line}");
    }
    eventually("no connection is left", || router.metric("snigate_connections_active{route=\"a.example\"}") == 0.0);
    assert_eq!(router.log().into_iter().filter(is_ended).count(), made, "each once");
    assert_eq!(router.metric("snigate_connections_parked"), 0.0);
}

/// What it prints, once the process that serves carries it out.
fn ordered(operated: &Operated, arguments: &[&str]) -> String {
    let mut told = String::new();
    eventually("it is carried out", || {
        let output = operated.ctl(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        let is_retried =
            ["no longer serves", "the instance", "handed over by others"].iter().any(|part| error.contains(part));
        assert!(output.status.success() || is_retried, "{arguments:?}: {error}");
        told = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success()
    });
    told
}
