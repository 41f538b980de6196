//! Everything at once, for as long as `SNIGATE_SOAK` says in seconds (3 otherwise): nothing is lost, nothing grows.
//! `SNIGATE_SOAK=3600 cargo test --release --test main z11 -- --nocapture`; with `SNIGATE_SOAK_RECORD=DIRECTORY`, its samples
//! of each second are written there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::Scope;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::record::{self, Sample};
use crate::support::backend::closed;
use crate::support::client::alert;
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, Router, Stop, eventually, pattern, snigate, watchdog};

const NAME: &str = "a.example";
const FAULTY: &str = "faulty.example";
const DEAD: &str = "dead.example";
const IDLE: &str = "idle.example";
const IDLE_STREAMS: usize = 100;
/// Clients per second.
const RATE: u32 = 500;
const WORKERS: u32 = 4;
const RELOAD_INTERVAL: u64 = 2;

#[derive(Default)]
struct Made {
    connections: AtomicU64,
    bytes: AtomicU64,
}

/// One client of some kind; whether it got what it should.
fn one(router: &Router, number: u64, made: &Made) -> bool {
    let hello = |name: &str| Hello::to(name).record();
    let connect = |bytes: &[u8]| {
        made.connections.fetch_add(1, Relaxed);
        Client::send(router.address(), bytes)
    };
    match number % 8 {
        0..4 => {
            let sent = [hello(NAME), pattern((number % 50) as usize * 3000)].concat();
            made.bytes.fetch_add(sent.len() as u64, Relaxed);
            let mut client = connect(&[]);
            let mut writer = client.stream.try_clone().unwrap();
            let bytes = sent.clone();
            let writing = std::thread::spawn(move || {
                std::io::Write::write_all(&mut writer, &bytes).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let received = client.rest().0;
            writing.join().unwrap();
            received == sent
        }
        4 => connect(&hello("unknown.example")).rest().0 == alert(112),
        5 => connect(&hello(DEAD)).rest().0 == alert(80),
        // Gone before its hello is whole.
        6 => {
            drop(connect(&hello(NAME)[..40]));
            true
        }
        // Reset in the middle.
        _ => {
            let client = connect(&[hello(FAULTY), pattern(200_000)].concat());
            socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
            true
        }
    }
}

/// Clients of all kinds, until they are to stop.
fn keep_coming<'scope>(
    scope: &'scope Scope<'scope, '_>,
    router: &'scope Router,
    made: &'scope Made,
    stop: &'scope AtomicBool,
) {
    for worker in 0..WORKERS {
        scope.spawn(move || {
            let (mut number, mut next) = (u64::from(worker), Instant::now());
            while !stop.load(Relaxed) {
                assert!(one(router, number, made), "client {number}");
                number += 5;
                next += Duration::from_secs(1) * WORKERS / RATE;
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
    }
}

#[test]
fn z11_z12_h16_nothing_is_lost_and_nothing_grows() {
    let duration = Duration::from_secs(std::env::var("SNIGATE_SOAK").map_or(3, |text| text.parse().unwrap()));
    watchdog::may_take(2 * duration + Duration::from_secs(300));
    let (backend, faulty) = (Backend::echo(), Backend::echo());
    let patient = Backend::patient();
    let dead = closed();
    let routes = [(NAME, backend.address()), (FAULTY, faulty.address()), (DEAD, dead), (IDLE, patient.address())];
    // Every other one has a route with an endpoint that answers its checks and one that refuses them.
    let text = |number: u64| {
        let checked = format!(
            "  - {{sni: checked.example, upstream: {{endpoints: [\"{}\", \"{}\"], health_check: {{interval: 500ms}}}}}}\n",
            backend.address(),
            dead
        );
        config(&routes, if number.is_multiple_of(2) { "" } else { &checked })
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, text(0)).unwrap();
    let mut command = snigate();
    // A line for each of them would fill the memory of the test.
    command.args(["run", "-c"]).arg(&path).env("RUST_LOG", "warn,snigate::server=info,snigate::commands=info");
    let router = Router::spawn(command, path, directory);
    router.wait_many("that it listens", 2, |line| line["message"] == "listening");
    let made = Made::default();
    let hello = Hello::to(IDLE).record();
    let mut idle: Vec<Client> = (0..IDLE_STREAMS).map(|_| Client::send(router.address(), &hello)).collect();
    for client in &mut idle {
        assert_eq!(client.read(hello.len()), hello);
    }
    let mut samples = Vec::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        keep_coming(scope, &router, &made, &stop);
        let _stop = Stop(&stop);
        let begun = Instant::now();
        for second in 1..=duration.as_secs() {
            std::thread::sleep((begun + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
            samples.push(Sample::take(&router, second));
            if second.is_multiple_of(RELOAD_INTERVAL) {
                assert_eq!(router.reload(&text(second / RELOAD_INTERVAL))["message"], "reloaded");
            }
        }
    });
    let made_connections = made.connections.load(Relaxed) + IDLE_STREAMS as u64;
    let sum = |prefix: &str| record::sum(&router.get("/metrics").1, prefix);
    let counted = || {
        let (_, text) = router.get("/metrics");
        let lines = text.lines().filter(|line| line.starts_with("snigate_connections") && !line.ends_with(" 0"));
        lines.collect::<Vec<_>>().join("\n")
    };
    // Some may still be in the kernel's queue.
    eventually("all are accepted, and what is left is idle", || {
        let ended = sum("snigate_connections_total{") as u64;
        assert!(ended + IDLE_STREAMS as u64 <= made_connections, "{made_connections} made:\n{}", counted());
        ended + IDLE_STREAMS as u64 == made_connections && sum("snigate_connections_active{") as usize == IDLE_STREAMS
    });
    for direction in ["received", "sent"] {
        let bytes = router.metric(&format!("snigate_bytes_total{{route=\"{NAME}\",direction=\"{direction}\"}}"));
        assert_eq!(bytes as u64, made.bytes.load(Relaxed), "{direction}");
    }
    for client in &mut idle {
        client.write(b"still");
        assert_eq!(client.read(5), b"still", "it has been idle all the time");
    }
    if let Some(directory) = std::env::var_os("SNIGATE_SOAK_RECORD") {
        record::write(&samples, directory.as_ref());
    }
    let (first, last) = (samples[samples.len() / 4].memory(), samples[samples.len() - 1].memory());
    eprintln!("{made_connections} connections; {first} bytes of memory after a quarter of the time, {last} at the end");
    assert!(last < first + 8e6, "memory: {first}, later {last}");
    drop(idle);
    eventually("descriptors are given back", || router.descriptors() < 40);
}

/// Reloads, upgrades, drains and endpoints that come and go, so many of them as `SNIGATE_STORM` says (12 otherwise), while
/// clients of all kinds come: every connection is logged once, and no stream is closed that nothing has removed.
#[test]
fn g08_h08_storm_of_changes_loses_no_connection() {
    let changes: u16 = std::env::var("SNIGATE_STORM").map_or(12, |text| text.parse().unwrap());
    watchdog::may_take(Duration::from_secs(300) + Duration::from_secs(2) * changes.into());
    let [first, second, faulty, patient] = [Backend::echo(), Backend::echo(), Backend::echo(), Backend::patient()];
    let dead = closed();
    let text = |number: u16| {
        let pool = if number.is_multiple_of(2) {
            format!("\"{}\", \"{}\"", first.address(), second.address())
        } else {
            format!("\"{}\"", first.address())
        };
        // Drained, cut, and back again.
        let faulty = ["", "on_remove: cut, ", "on_remove: drain, "]
            .get(usize::from(number % 4))
            .map_or(String::new(), |policy| {
                format!("  - {{sni: {FAULTY}, upstream: {{{policy}endpoints: \"{}\"}}}}\n", faulty.address())
            });
        format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ntimeouts: {{drain: 100ms}}\nlog: {{refusals_per_second: 0}}\nroutes:\n\
             {faulty}  - {{sni: {NAME}, upstream: {{endpoints: [{pool}], on_remove: keep, slow_start: 0s}}}}\n  \
             - {{sni: {DEAD}, upstream: \"{dead}\"}}\n  - {{sni: {IDLE}, upstream: \"{}\"}}\n",
            patient.address()
        )
    };
    let router = Router::start(&text(0));
    let made = Made::default();
    let hello = Hello::to(IDLE).record();
    let mut idle: Vec<Client> = (0..20).map(|_| Client::send(router.address(), &hello)).collect();
    for client in &mut idle {
        assert_eq!(client.read(hello.len()), hello);
    }
    let address = router.address();
    let stop = AtomicBool::new(false);
    let mut newest = router.pid();
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        keep_coming(scope, &router, &made, &stop);
        let count = |message: &str| router.log().iter().filter(|line| line["message"] == message).count();
        for number in 1..=changes {
            std::fs::write(&router.config, text(number)).unwrap();
            let (signal, message) = if number % 4 == 0 {
                (Signal::USR2, "upgraded; the new process serves")
            } else {
                (Signal::HUP, "reloaded")
            };
            let before = count(message);
            kill_process(newest, signal).unwrap();
            let done = router.wait_many(message, before + 1, |line| line["message"] == message).pop().unwrap();
            if signal == Signal::USR2 {
                newest = Pid::from_raw(i32::try_from(done["process"].as_i64().unwrap()).unwrap()).unwrap();
            }
        }
        stop.store(true, Relaxed);
    });
    for client in &mut idle {
        client.write(b"still");
        assert_eq!(client.read(5), b"still", "nothing has removed it");
        client.finish();
        client.rest();
    }
    let made = usize::try_from(made.connections.load(Relaxed)).unwrap() + idle.len();
    let logged = || router.log().iter().filter(|line| line["outcome"].is_string()).count();
    eventually("each is logged", || {
        assert!(logged() <= made, "{} of {made}", logged());
        logged() == made
    });
    assert!(router.log().iter().all(|line| line["outcome"] != "local_error" && line["outcome"] != "no_endpoint"));
    let (_, metrics) = router.get("/metrics");
    let active = metrics.lines().filter(|line| line.starts_with("snigate_connections_active{"));
    assert!(active.clone().count() > 0 && active.into_iter().all(|line| line.ends_with(" 0")), "{metrics}");
    kill_process(newest, Signal::TERM).unwrap();
    eventually("the last process has ended", || std::net::TcpStream::connect(address).is_err());
}
