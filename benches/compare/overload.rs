//! What clients see while others exhaust the proxy: ClientHellos that stall, and file descriptors that run out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Common;
use crate::load::{Client, Pinned, descriptors, hello};
use crate::proxy::{Program, Proxy, Setup};
use crate::report::{answered, failures, line, percentile, summary};

#[derive(Args)]
pub struct Options {
    /// Only `stalled` or `descriptors`
    #[arg(long, default_value = "")]
    only: String,
    /// Stalled ClientHellos, as far as file descriptors allow
    #[arg(long, default_value_t = 10_000)]
    stalled: usize,
    /// How long new connections are made beside them
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// New connections per second beside the stalled ones.
const RATE: u32 = 50;
/// An answer that takes longer is a failure.
const PATIENCE: Duration = Duration::from_secs(10);
const LATE: Duration = Duration::from_secs(1);
/// Descriptors that every proxy has left at the highest connection limit; snigate needs most, 465 with one listener.
const RESERVED: usize = 500;
/// New connections while no descriptor is free.
const WAITING: usize = 20;

pub fn run(options: Options, common: &Common) {
    let load = Pinned::new();
    let (stalled, seconds) = if common.quick { (500, 2) } else { (options.stalled, options.seconds) };
    let (rounds, times) = if common.quick { (1, 2) } else { (2, 10) };
    let programs = Program::all(&common.against);
    let start = |program, connections| {
        let setup = Setup { workers: Some(1), connections, ..Setup::new([load.backend]) };
        let proxy = Proxy::start(program, setup);
        let client = Client { patience: PATIENCE, ..Client::new(proxy.address) };
        (proxy, client)
    };
    if "stalled".contains(&options.only) {
        let room = (descriptors() - RESERVED) / 2;
        let count = stalled.min(room * 4 / 5);
        println!(
            "stalled {count}: half a ClientHello each, again a second after it is closed; beside them {RATE} new connections per second for {seconds} s
  snigate: timeouts.hello 10s (default); HAProxy: inspect-delay 5s; nginx: preread_timeout 30s (default)
  failed: no answer within {} s",
            PATIENCE.as_secs()
        );
        for limit in [room, count / 2] {
            println!(
                "at most {limit} connections (snigate: limits.connections; HAProxy: maxconn; nginx: worker_connections)"
            );
            for program in programs.iter().cycle().take(rounds * programs.len()) {
                let (proxy, client) = start(program, Some(limit));
                line(&program.name(), load.runtime.block_on(beside_stalled(&proxy, client, count, limit, seconds)));
            }
        }
    }
    if "descriptors".contains(&options.only) {
        println!(
            "\ndescriptors: none for half a second in which {WAITING} clients connect, {times} times; until the first of them has its answer, from the moment that descriptors are free again"
        );
        for program in programs.iter().cycle().take(rounds * programs.len()) {
            let (proxy, client) = start(program, None);
            line(&program.name(), load.runtime.block_on(without_descriptors(&proxy, client, times)));
        }
    }
}

async fn beside_stalled(proxy: &Proxy, client: Client, count: usize, limit: usize, seconds: u64) -> String {
    for _ in 0..20 {
        client.clone().attempt().await;
    }
    let empty = proxy.memory();
    let connected = Arc::new(AtomicUsize::new(0));
    let mut stalled = JoinSet::new();
    let half: Arc<[u8]> = hello()[..hello().len() / 2].into();
    for number in 0..count {
        stalled.spawn(stall(proxy.address, Arc::clone(&half), Arc::clone(&connected)));
        if number % 100 == 99 {
            sleep(Duration::from_millis(20)).await;
        }
    }
    // Until those in the accept queue are accepted.
    sleep(Duration::from_secs(1)).await;
    let (cpu, start) = (proxy.cpu(), Instant::now());
    let (mut full, mut most) = (proxy.memory(), connected.load(Relaxed));
    let mut busy = 0.0;
    let sample = async {
        for _ in 0..seconds {
            sleep(Duration::from_secs(1)).await;
            full = full.max(proxy.memory());
            most = most.max(connected.load(Relaxed));
        }
        busy = (proxy.cpu() - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    };
    let attempts = client.attempts(RATE, sample).await;
    let late = answered(&attempts).into_iter().filter(|took| *took > LATE).count();
    format!(
        "{}; {late} waited for more than {} s; {} B of memory each; {:.1} % CPU; at most {most} stalled at once",
        summary(&attempts),
        LATE.as_secs(),
        full.saturating_sub(empty) / limit.min(count) as u64,
        busy * 100.0
    )
}

async fn stall(proxy: SocketAddr, half: Arc<[u8]>, connected: Arc<AtomicUsize>) {
    loop {
        if let Ok(Ok(mut stream)) = timeout(PATIENCE, TcpStream::connect(proxy)).await
            && stream.write_all(&half).await.is_ok()
        {
            connected.fetch_add(1, Relaxed);
            while let Ok(1..) = stream.read(&mut [0; 64]).await {}
            connected.fetch_sub(1, Relaxed);
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn without_descriptors(proxy: &Proxy, client: Client, times: usize) -> String {
    // From then on there is a worker.
    client.open().await.unwrap();
    let accepting = proxy.accepting();
    let set = |current| {
        let maximum = getrlimit(Resource::Nofile).maximum;
        prlimit(Some(accepting), Resource::Nofile, Rlimit { current, maximum }).unwrap()
    };
    let (mut first, mut last, mut failed, mut busy) = (Vec::new(), Vec::new(), 0, Duration::ZERO);
    for _ in 0..times {
        let before = set(Some(4));
        let clients: JoinSet<_> = (0..WAITING).map(|_| client.clone().attempt()).collect();
        let cpu = proxy.cpu();
        sleep(Duration::from_millis(500)).await;
        busy += proxy.cpu() - cpu;
        let again = Instant::now();
        set(before.current);
        let attempts = clients.join_all().await;
        failed += failures(&attempts).len();
        // An answer from before did not wait for a descriptor.
        let ends = attempts.iter().filter_map(|attempt| Some(attempt.begun + *attempt.result.as_ref().ok()?));
        let mut waited: Vec<Duration> = ends.filter(|end| *end > again).map(|end| end - again).collect();
        waited.sort();
        first.extend(waited.first());
        last.extend(waited.last());
    }
    format!(
        "first after {:.1} ms (median), {:.1} ms (most), the last after {:.1} ms; {failed} of {} failed; {:.1} % CPU meanwhile",
        percentile(&first, 50),
        percentile(&first, 100),
        percentile(&last, 100),
        times * WAITING,
        busy.as_secs_f64() / (0.5 * times as f64) * 100.0
    )
}
