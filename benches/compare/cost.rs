//! What each unit of work costs.
//!
//! Each proxy runs alone on one CPU, and routes the same ClientHello to a backend without crypto; clients and backend run
//! on the other. The proxies take turns in short slices, so that a machine that slows down slows down all of them, and
//! what is compared is the CPU time of the proxy's own processes, per unit of work, within one round.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::Args;
use procfs::Current as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::Common;
use crate::hello::Hello;
use crate::load::{ANSWER, NAME, Order, Pinned, descriptors, open, receive, send, within};
use crate::proxy::{Program, Proxy, Setup, TLV};
use crate::report::{Cell, Table, percentile};

#[derive(Args)]
pub struct Options {
    /// How often the proxies take turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only workloads whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Worker threads, and CPUs, of each proxy
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A proxy with or without a log; no program: no proxy.
#[derive(Clone, PartialEq)]
pub struct Subject {
    pub program: Option<Program>,
    pub log: bool,
}

impl Subject {
    fn all(against: &[PathBuf]) -> Vec<Self> {
        let mut programs: Vec<_> = Program::all(against).into_iter().map(Some).collect();
        programs.extend([Some(Program::Haproxy { splice: true }), Some(Program::Floor), None]);
        let logging = [Program::snigates(&[]), vec![Program::Haproxy { splice: false }, Program::Nginx]].concat();
        let without_log = programs.into_iter().map(|program| Self { program, log: false });
        without_log.chain(logging.into_iter().map(|program| Self { program: Some(program), log: true })).collect()
    }

    pub fn name(&self) -> String {
        let name = self.program.as_ref().map_or("no proxy".into(), Program::name);
        if self.log { name + ", log on" } else { name }
    }

    /// Whether it makes a difference to this work.
    fn does(&self, work: Work) -> bool {
        match (work, &self.program) {
            // A log line is per connection.
            (Work::Connect { .. }, _) | (Work::Idle { .. }, Some(Program::Snigate(_))) => true,
            // Another build may not know the keys.
            (Work::Proxied { .. }, Some(program @ Program::Snigate(_))) => {
                !self.log && Program::snigates(&[])[0] == *program
            }
            (Work::Bulk { .. } | Work::Idle { .. } | Work::Proxied { .. }, None | Some(Program::Floor)) => false,
            (Work::Idle { .. }, Some(Program::Haproxy { splice: true })) => false,
            _ => !self.log,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Work {
    /// New connections with a hello of this size, each for one small answer.
    Connect { hello: usize, count: usize },
    /// The same with a PROXY header from the client, and another one to the backend. It has a TLV, by which snigate finds
    /// the route, and passes it on.
    Proxied { count: usize },
    /// Messages of this size there and back.
    RoundTrip { size: usize, connections: usize, count: usize },
    /// Streams of bytes to the client, or from it.
    Bulk { down: bool, streams: usize, bytes: usize },
    /// Messages of 100 bytes there and back on many streams, each at a low rate, beside a stream of bytes to the client.
    Fair { streams: usize, count: usize },
    /// Whole TLS handshakes, each with an answer.
    Tls { count: usize },
    /// Connections that do nothing.
    Idle { connections: usize },
}

const MEBIBYTE: usize = 1 << 20;

impl Work {
    fn all() -> Vec<Self> {
        let mut all = vec![Self::Connect { hello: 517, count: 6000 }, Self::Connect { hello: 1700, count: 6000 }];
        all.push(Self::Proxied { count: 6000 });
        for (connections, count) in [(1, 10_000), (64, 40_000)] {
            all.extend([100, 1024, 16 * 1024].map(|size| Self::RoundTrip { size, connections, count }));
        }
        for streams in [1, 32] {
            all.extend([true, false].map(|down| Self::Bulk { down, streams, bytes: 2048 * MEBIBYTE }));
        }
        all.push(Self::Fair { streams: 1000, count: 10_000 });
        all.push(Self::Tls { count: 2000 });
        // Both ends of a connection are this process's.
        let connections = descriptors().saturating_sub(1000) / 2000 * 1000;
        all.push(Self::Idle { connections: connections.clamp(1000, 20_000) });
        all
    }

    pub fn name(&self) -> String {
        match self {
            Self::Connect { hello, .. } => format!("connect {hello} B hello"),
            Self::Proxied { .. } => "connect with PROXY headers".into(),
            Self::RoundTrip { size, connections, .. } => format!("round trip {size} B x{connections}"),
            Self::Bulk { down, streams, .. } => format!("bulk {} x{streams}", if *down { "down" } else { "up" }),
            Self::Fair { streams, .. } => format!("messages x{streams} beside bulk"),
            Self::Tls { .. } => "TLS 1.3 handshake".into(),
            Self::Idle { connections } => format!("idle {connections}"),
        }
    }

    pub fn unit(&self) -> &'static str {
        match self {
            Self::Connect { .. } | Self::Proxied { .. } | Self::Tls { .. } => "µs CPU per connection",
            Self::RoundTrip { .. } => "µs CPU per round trip",
            Self::Bulk { .. } => "s CPU per GB",
            Self::Fair { .. } => "latency",
            Self::Idle { .. } => "B user memory each",
        }
    }

    /// A part of the work.
    fn scaled(self, part: usize) -> Self {
        match self {
            Self::Connect { hello, count } => Self::Connect { hello, count: count / part },
            Self::Proxied { count } => Self::Proxied { count: count / part },
            Self::Tls { count } => Self::Tls { count: count / part },
            Self::RoundTrip { size, connections, count } => {
                Self::RoundTrip { size, connections, count: (count / part).max(connections) }
            }
            Self::Bulk { down, streams, bytes } => {
                Self::Bulk { down, streams, bytes: (bytes / part).max(streams * MEBIBYTE) }
            }
            Self::Fair { streams, count } => Self::Fair { streams, count: (count / part).max(streams) },
            Self::Idle { connections } => Self::Idle { connections: connections / part },
        }
    }

    /// What CPU time is divided by: connections or round trips per µs, gigabytes per s.
    fn units(&self) -> f64 {
        match self {
            Self::Connect { count, .. }
            | Self::Proxied { count }
            | Self::RoundTrip { count, .. }
            | Self::Fair { count, .. }
            | Self::Tls { count } => *count as f64 / 1e6,
            Self::Bulk { bytes, .. } => *bytes as f64 / 1e9,
            Self::Idle { connections } => *connections as f64,
        }
    }

    /// Does the work through the proxy; the latency of each unit.
    fn run(self, load: &Pinned, proxy: SocketAddr) -> Vec<Duration> {
        let done = async {
            match self {
                Self::Connect { hello, count } => connect(proxy, &[], hello, count).await,
                Self::Proxied { count } => connect(proxy, &header(proxy), 517, count).await,
                Self::RoundTrip { size, connections, count } => round_trips(proxy, size, connections, count).await,
                Self::Bulk { down, streams, bytes } => bulk(proxy, down, streams, bytes).await,
                Self::Fair { streams, count } => fair(proxy, streams, count).await,
                Self::Tls { count } => handshakes(proxy, &load.connector, count).await,
                Self::Idle { .. } => unreachable!("see `idle`"),
            }
        };
        load.runtime.block_on(within(LIMIT, &self.name(), done))
    }
}

pub fn run(options: Options, common: &Common) {
    let rounds = if common.quick { 2 } else { options.rounds };
    let scale = if common.quick { 20 } else { 1 };
    let subjects = Subject::all(&common.against);
    let load = Pinned::new();
    let mut table = Table::default();
    let works = Work::all().into_iter().map(|work| work.scaled(scale));
    for work in works.filter(|work| work.name().contains(&options.only)) {
        let backend = if matches!(work, Work::Tls { .. }) { load.tls_backend } else { load.backend };
        for round in 0..rounds {
            for turn in 0..subjects.len() {
                // Another proxy begins each round.
                let subject = &subjects[(turn + round) % subjects.len()];
                if !subject.does(work) {
                    continue;
                }
                let setup = Setup {
                    workers: Some(options.workers),
                    log: subject.log,
                    proxied: matches!(work, Work::Proxied { .. }),
                    ..Setup::new([backend])
                };
                let proxy = subject.program.as_ref().map(|program| Proxy::start(program, setup));
                let cell = match (work, &proxy) {
                    (Work::Idle { connections }, Some(proxy)) => idle(&load, proxy, connections),
                    _ => busy(&load, proxy.as_ref(), backend, work),
                };
                eprintln!("{:<28} {:<28} round {} {cell}", work.name(), subject.name(), round + 1);
                table.add(work, subject, cell);
            }
        }
    }
    print!("{}", table.text());
    if let Some(path) = options.json {
        std::fs::write(path, table.json()).unwrap();
    }
}

/// CPU per unit of work, and the time that clients waited.
fn busy(load: &Pinned, proxy: Option<&Proxy>, backend: SocketAddr, work: Work) -> Cell {
    let address = proxy.map_or(backend, |proxy| proxy.address);
    work.scaled(10).run(load, address);
    let (before, start) = (proxy.map(Proxy::cpu), Instant::now());
    let latencies = work.run(load, address);
    let (wall, after) = (start.elapsed(), proxy.map(Proxy::cpu));
    Cell {
        // Nothing to divide by: the other stream's bytes are not counted.
        cost: before
            .zip(after)
            .filter(|_| !matches!(work, Work::Fair { .. }))
            .map(|(before, after)| (after - before).as_secs_f64() / work.units()),
        figures: vec![
            ("p50", percentile(&latencies, 50) * 1e3, "µs"),
            ("p99", percentile(&latencies, 99) * 1e3, "µs"),
            ("rate", latencies.len() as f64 / wall.as_secs_f64(), "/s"),
        ],
    }
}

/// Memory per idle connection: the slope between a tenth of them and all. Then all are closed and opened again: what
/// that adds is memory that was neither freed nor reused.
fn idle(load: &Pinned, proxy: &Proxy, connections: usize) -> Cell {
    let settled = || {
        sleep(Duration::from_millis(300));
        (proxy.memory() as f64, procfs::Meminfo::current().unwrap().slab as f64)
    };
    let few = hold(load, proxy.address, connections / 10);
    let (low, slab_low) = settled();
    let many = hold(load, proxy.address, connections - few.len());
    let (high, slab_high) = settled();
    let added = many.len() as f64;
    drop((few, many));
    sleep(Duration::from_secs(2));
    let again = hold(load, proxy.address, connections);
    let (second, _) = settled();
    drop(again);
    Cell {
        cost: Some((high - low) / added),
        figures: vec![
            ("kernel", (slab_high - slab_low) / added, "B"),
            ("reopened", (second - high) / connections as f64, "B"),
        ],
    }
}

/// For all of one kind of work through one proxy, which takes seconds.
const LIMIT: Duration = Duration::from_secs(600);

/// Connections that have been answered once and then do nothing.
fn hold(load: &Pinned, proxy: SocketAddr, count: usize) -> Vec<TcpStream> {
    let all = async {
        let mut held = Vec::new();
        for _ in 0..count {
            let mut stream = open(proxy, Order::Echo(8)).await.unwrap();
            stream.write_all(&[0; 8]).await.unwrap();
            stream.read_exact(&mut [0; 8]).await.unwrap();
            held.push(stream);
        }
        held
    };
    load.runtime.block_on(within(LIMIT, "idle connections", all))
}

/// New connections at a time.
const CONCURRENT: usize = 16;

async fn each<F: Future<Output = ()> + Send + 'static>(count: usize, connection: impl Fn() -> F) -> Vec<Duration> {
    let slots = Arc::new(Semaphore::new(CONCURRENT));
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let (connection, slot) = (connection(), Arc::clone(&slots).acquire_owned().await.unwrap());
        clients.spawn(async move {
            let _slot = slot;
            let start = Instant::now();
            connection.await;
            start.elapsed()
        });
    }
    clients.join_all().await
}

async fn read_answer(mut stream: impl AsyncRead + Unpin) {
    let mut answer = Vec::with_capacity(128);
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer.len(), ANSWER);
}

/// A PROXY header of version 2 with the TLV of [`crate::proxy::TLV`].
fn header(proxy: SocketAddr) -> Vec<u8> {
    let port = proxy.port().to_be_bytes();
    let tlv = [&[TLV.0, 0, TLV.1.len() as u8][..], TLV.1.as_bytes()].concat();
    let length = (12 + tlv.len() as u16).to_be_bytes();
    let addresses = [192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x67, port[0], port[1]];
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11"[..], &length, &addresses, &tlv].concat()
}

async fn connect(proxy: SocketAddr, header: &[u8], hello: usize, count: usize) -> Vec<Duration> {
    let order = Order::Send(ANSWER).after(&Hello::to(NAME).padded_to(hello).record());
    let request: Arc<[u8]> = [header, &order].concat().into();
    let connection = || {
        let request = Arc::clone(&request);
        async move {
            let mut stream = TcpStream::connect(proxy).await.unwrap();
            stream.write_all(&request).await.unwrap();
            read_answer(stream).await;
        }
    };
    each(count, connection).await
}

async fn handshakes(proxy: SocketAddr, connector: &TlsConnector, count: usize) -> Vec<Duration> {
    let connection = || {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(proxy).await.unwrap();
            read_answer(connector.connect(NAME.try_into().unwrap(), stream).await.unwrap()).await;
        }
    };
    each(count, connection).await
}

async fn round_trips(proxy: SocketAddr, size: usize, connections: usize, count: usize) -> Vec<Duration> {
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        clients.spawn(async move {
            let mut stream = open(proxy, Order::Echo(size)).await.unwrap();
            let (message, mut answer) = (vec![1; size], vec![0; size]);
            let mut latencies = Vec::with_capacity(count / connections);
            for _ in 0..count / connections {
                let start = Instant::now();
                stream.write_all(&message).await.unwrap();
                stream.read_exact(&mut answer).await.unwrap();
                latencies.push(start.elapsed());
            }
            latencies
        });
    }
    clients.join_all().await.concat()
}

/// How often each of many streams has a message, beside another one that never pauses.
const PAUSE: Duration = Duration::from_millis(500);

async fn fair(proxy: SocketAddr, streams: usize, count: usize) -> Vec<Duration> {
    let mut other = open(proxy, Order::Send(usize::MAX)).await.unwrap();
    let busy = tokio::spawn(async move { receive(&mut other, usize::MAX).await });
    let mut clients = JoinSet::new();
    for number in 0..streams {
        let mut stream = open(proxy, Order::Echo(100)).await.unwrap();
        clients.spawn(async move {
            let mut latencies = Vec::with_capacity(count / streams);
            let begun = tokio::time::Instant::now() + PAUSE.mul_f64(number as f64 / streams as f64);
            let mut ticks = tokio::time::interval_at(begun, PAUSE);
            for _ in 0..count / streams {
                ticks.tick().await;
                let start = Instant::now();
                stream.write_all(&[1; 100]).await.unwrap();
                stream.read_exact(&mut [0; 100]).await.unwrap();
                latencies.push(start.elapsed());
            }
            latencies
        });
    }
    let latencies = clients.join_all().await.concat();
    busy.abort();
    latencies
}

async fn bulk(proxy: SocketAddr, down: bool, streams: usize, bytes: usize) -> Vec<Duration> {
    let share = bytes / streams;
    let mut clients = JoinSet::new();
    for _ in 0..streams {
        clients.spawn(async move {
            let order = if down { Order::Send(share) } else { Order::Receive(share) };
            let mut stream = open(proxy, order).await.unwrap();
            let start = Instant::now();
            if down {
                receive(&mut stream, share).await.unwrap();
            } else {
                send(&mut stream, share).await.unwrap();
                stream.read_exact(&mut [0]).await.unwrap();
            }
            start.elapsed()
        });
    }
    clients.join_all().await
}
