//! What clients see while others take all they can: hellos that stall, and descriptors that run out and come back.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use crate::load::{Load, first_flight, hello};
use crate::measure;
use crate::proxy::{Kind, Proxy};

pub const STALLED: &str = "stalled";
pub const DESCRIPTORS: &str = "descriptors";

/// Who has no answer after so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Who had to wait for longer has noticed.
const NOTICED: Duration = Duration::from_secs(1);

/// snigate, HAProxy and nginx, without logs.
fn kinds(kinds: &[Kind]) -> Vec<&Kind> {
    let is_it = |kind: &&Kind| match kind {
        Kind::Snigate { log, .. } | Kind::Nginx { log } => !log,
        Kind::Haproxy { splice, log } => !splice && !log,
        Kind::Floor | Kind::Direct => false,
    };
    kinds.iter().filter(is_it).collect()
}

/// How long a client waited for its answer, or that it had none.
async fn ask(proxy: SocketAddr, flight: Arc<Vec<u8>>) -> Option<Duration> {
    let start = Instant::now();
    let answer = async {
        let mut stream = TcpStream::connect(proxy).await.ok()?;
        stream.write_all(&flight).await.ok()?;
        let mut answer = Vec::with_capacity(128);
        stream.read_to_end(&mut answer).await.ok()?;
        (answer.len() == 100).then(|| start.elapsed())
    };
    timeout(PATIENCE, answer).await.ok().flatten()
}

fn milliseconds(durations: &mut [Duration]) -> (f64, f64) {
    durations.sort();
    let at = |index: usize| durations.get(index).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3);
    (at(durations.len() / 2), at(durations.len().saturating_sub(1)))
}

/// Clients per second.
const RATE: u64 = 50;

/// Half a hello each, and again as soon as it is closed, beside clients at a steady rate.
pub fn stalled(load: &mut Load, all: &[Kind], wanted: usize, seconds: u64, rounds: usize) -> String {
    let descriptors = getrlimit(Resource::Nofile).maximum.map_or(usize::MAX, |limit| limit as usize);
    let room = (descriptors - 400) / 2;
    let count = wanted.min(room * 4 / 5);
    let mut text = format!(
        "\n{STALLED} {count}: half a ClientHello each, again a second after it is closed; beside them {RATE} clients per second for {seconds} s
  each may have {room} connections, then {}; snigate: timeouts.hello 10s (default); HAProxy: inspect-delay 5s, maxconn;
  nginx: preread_timeout 30s (default), worker_connections. Failed: no answer within {} s
",
        count / 2,
        PATIENCE.as_secs()
    );
    for limit in [room, count / 2] {
        for round in 0..rounds {
            for kind in kinds(all) {
                let proxy = Proxy::start_with(kind, load.plain_backend(), 1, Some(limit));
                let line = load.runtime().block_on(beside_stalled(&proxy, count, limit, seconds));
                eprintln!("{STALLED} limit {limit} {:<10} round {} {line}", kind.name(), round + 1);
                writeln!(text, "  limit {limit:<6} {:<10} {line}", kind.name()).unwrap();
            }
        }
    }
    text
}

async fn beside_stalled(proxy: &Proxy, count: usize, limit: usize, seconds: u64) -> String {
    let (pid, address) = (proxy.pid().unwrap(), proxy.address());
    let flight = Arc::new(first_flight());
    for _ in 0..20 {
        ask(address, Arc::clone(&flight)).await;
    }
    let empty = measure::resident(pid);
    let held = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    let half = Arc::new(hello()[..hello().len() / 2].to_vec());
    for number in 0..count {
        clients.spawn(stall(address, Arc::clone(&half), Arc::clone(&held)));
        if number % 100 == 99 {
            sleep(Duration::from_millis(20)).await;
        }
    }
    // Some of them are only in the queue.
    sleep(Duration::from_secs(1)).await;
    let (cpu, start) = (measure::cpu(pid), Instant::now());
    let mut full = measure::resident(pid);
    let mut most = held.load(Relaxed);
    let mut asked = JoinSet::new();
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(RATE).unwrap());
    for number in 0..RATE * seconds {
        ticks.tick().await;
        asked.spawn(ask(address, Arc::clone(&flight)));
        if number % RATE == 0 {
            full = full.max(measure::resident(pid));
            most = most.max(held.load(Relaxed));
        }
    }
    let busy = (measure::cpu(pid) - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    let answers = asked.join_all().await;
    let mut answered: Vec<Duration> = answers.iter().copied().flatten().collect();
    let (median, slowest) = milliseconds(&mut answered);
    let late = answered.iter().filter(|took| **took > NOTICED).count();
    format!(
        "{} of {} failed, {late} waited for more than {} s; p50 {median:.2} ms, slowest {slowest:.0} ms; {:.0} B of memory each; {:.1} % CPU; {most} connected at most",
        answers.len() - answered.len(),
        answers.len(),
        NOTICED.as_secs(),
        (full - empty) / limit.min(count) as f64,
        busy * 100.0
    )
}

async fn stall(proxy: SocketAddr, half: Arc<Vec<u8>>, held: Arc<AtomicUsize>) {
    loop {
        if let Ok(Ok(mut stream)) = timeout(PATIENCE, TcpStream::connect(proxy)).await
            && stream.write_all(&half).await.is_ok()
        {
            held.fetch_add(1, Relaxed);
            while let Ok(1..) = stream.read(&mut [0; 64]).await {}
            held.fetch_sub(1, Relaxed);
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Clients that come at a time while there is none.
const WAITING: usize = 20;

/// No descriptor is free while clients come, ten times, and then there are as many as before.
pub fn descriptors(load: &mut Load, all: &[Kind], times: usize, rounds: usize) -> String {
    let mut text = format!(
        "\n{DESCRIPTORS}: none for half a second in which {WAITING} clients come, {times} times; until the first of them has its answer, from the moment that there are some again\n"
    );
    for round in 0..rounds {
        for kind in kinds(all) {
            let proxy = Proxy::start_with(kind, load.plain_backend(), 1, None);
            let line = load.runtime().block_on(without_descriptors(&proxy, times));
            eprintln!("{DESCRIPTORS} {:<10} round {} {line}", kind.name(), round + 1);
            writeln!(text, "  {:<10} {line}", kind.name()).unwrap();
        }
    }
    text
}

async fn without_descriptors(proxy: &Proxy, times: usize) -> String {
    let (pid, address) = (proxy.pid().unwrap(), proxy.address());
    let accepting = Pid::from_raw(i32::try_from(proxy.accepting()).unwrap()).unwrap();
    let set = |current| {
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(Some(accepting), Resource::Nofile, Rlimit { current, maximum }).unwrap()
    };
    let flight = Arc::new(first_flight());
    ask(address, Arc::clone(&flight)).await;
    let (mut first, mut failed, mut last, mut busy) = (Vec::new(), 0, Vec::new(), Duration::ZERO);
    for _ in 0..times {
        let before = set(Some(4));
        let mut clients = JoinSet::new();
        for _ in 0..WAITING {
            let flight = Arc::clone(&flight);
            clients.spawn(async move { ask(address, flight).await.map(|_| Instant::now()) });
        }
        let cpu = measure::cpu(pid);
        sleep(Duration::from_millis(500)).await;
        busy += measure::cpu(pid) - cpu;
        let again = Instant::now();
        set(before.current);
        let answers = clients.join_all().await;
        // Who had an answer before was not kept from it.
        let mut served: Vec<Instant> = answers.iter().copied().flatten().collect();
        served.sort();
        failed += answers.len() - served.len();
        first.extend(served.iter().find(|at| **at > again).map(|at| *at - again));
        last.extend(served.last().map(|at| at.saturating_duration_since(again)));
    }
    let (median, most) = milliseconds(&mut first);
    let (_, last) = milliseconds(&mut last);
    format!(
        "first after {median:.1} ms (median), {most:.1} ms (most), the last after {last:.1} ms; {failed} of {} failed; {:.1} % CPU meanwhile",
        times * WAITING,
        busy.as_secs_f64() / (0.5 * times as f64) * 100.0
    )
}
