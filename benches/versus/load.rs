//! The load, and the backend that answers it. Both run on the CPU that the proxy does not have.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::client::Resumption;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::deadline::within;
use crate::proxy::NAME;
use crate::sample::Hello;

#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// New connections with a hello of this size, each for one small answer.
    Connect { hello: usize, count: usize },
    /// Messages of this size there and back.
    RoundTrip { size: usize, connections: usize, count: usize },
    /// Streams of bytes to the client, or from it.
    Bulk { down: bool, streams: usize, bytes: usize },
    /// Whole TLS handshakes, each with an answer.
    Tls { count: usize },
    /// Connections that do nothing.
    Idle { connections: usize },
}

const MEBIBYTE: usize = 1 << 20;

impl Work {
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Connect { hello: 517, count: 6000 }, Self::Connect { hello: 1700, count: 6000 }];
        for (connections, count) in [(1, 10_000), (64, 40_000)] {
            all.extend([100, 1024, 16 * 1024].map(|size| Self::RoundTrip { size, connections, count }));
        }
        for streams in [1, 32] {
            all.extend([true, false].map(|down| Self::Bulk { down, streams, bytes: 2048 * MEBIBYTE }));
        }
        all.push(Self::Tls { count: 2000 });
        // Both ends of a connection are this process's.
        let descriptors = getrlimit(Resource::Nofile).maximum.map_or(usize::MAX, |limit| limit as usize);
        all.push(Self::Idle { connections: ((descriptors.saturating_sub(1000)) / 2000 * 1000).clamp(1000, 20_000) });
        all
    }

    pub fn name(&self) -> String {
        match self {
            Self::Connect { hello, .. } => format!("connect {hello} B hello"),
            Self::RoundTrip { size, connections, .. } => format!("round trip {size} B x{connections}"),
            Self::Bulk { down, streams, .. } => format!("bulk {} x{streams}", if *down { "down" } else { "up" }),
            Self::Tls { .. } => "TLS 1.3 handshake".into(),
            Self::Idle { connections } => format!("idle {connections}"),
        }
    }

    pub fn unit(&self) -> &'static str {
        match self {
            Self::Connect { .. } | Self::Tls { .. } => "µs CPU per connection",
            Self::RoundTrip { .. } => "µs CPU per round trip",
            Self::Bulk { .. } => "s CPU per GB",
            Self::Idle { .. } => "B user memory each",
        }
    }

    /// A part of the work.
    pub fn scaled(self, part: usize) -> Self {
        match self {
            Self::Connect { hello, count } => Self::Connect { hello, count: count / part },
            Self::Tls { count } => Self::Tls { count: count / part },
            Self::RoundTrip { size, connections, count } => {
                Self::RoundTrip { size, connections, count: (count / part).max(connections) }
            }
            Self::Bulk { down, streams, bytes } => {
                Self::Bulk { down, streams, bytes: (bytes / part).max(streams * MEBIBYTE) }
            }
            Self::Idle { connections } => Self::Idle { connections: connections / part },
        }
    }

    /// What CPU time is divided by: connections or round trips per µs, gigabytes per s.
    pub fn units(&self) -> f64 {
        match self {
            Self::Connect { count, .. } | Self::RoundTrip { count, .. } | Self::Tls { count } => *count as f64 / 1e6,
            Self::Bulk { bytes, .. } => *bytes as f64 / 1e9,
            Self::Idle { connections } => *connections as f64,
        }
    }
}

/// What a client asks of the backend, right behind its hello.
const ORDER_LENGTH: usize = 9;

fn order(what: u8, size: usize) -> [u8; ORDER_LENGTH] {
    let mut order = [what; ORDER_LENGTH];
    order[1..].copy_from_slice(&(size as u64).to_be_bytes());
    order
}

pub struct Load {
    runtime: Runtime,
    backend: SocketAddr,
    tls_backend: SocketAddr,
    connector: TlsConnector,
}

impl Load {
    pub fn new() -> Self {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
        let last = std::thread::available_parallelism().unwrap().get() - 1;
        let status = std::process::Command::new("taskset")
            .args(["-a", "-c", "-p", &last.to_string(), &std::process::id().to_string()])
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "taskset is needed");
        let (acceptor, connector) = tls();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let tls = TcpListener::bind("127.0.0.1:0").await.unwrap();
                sender.send((plain.local_addr().unwrap(), tls.local_addr().unwrap())).unwrap();
                loop {
                    tokio::select! {
                        accepted = plain.accept() => drop(tokio::spawn(serve(accepted.unwrap().0))),
                        accepted = tls.accept() => drop(tokio::spawn(serve_tls(acceptor.clone(), accepted.unwrap().0))),
                    }
                }
            });
        });
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (backend, tls_backend) = receiver.recv().unwrap();
        Self { runtime, backend, tls_backend, connector }
    }

    pub fn backend(&self, work: Work) -> SocketAddr {
        if matches!(work, Work::Tls { .. }) { self.tls_backend } else { self.backend }
    }

    /// The one without TLS.
    pub fn plain_backend(&self) -> SocketAddr {
        self.backend
    }

    /// Where clients run.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Does the work through the proxy; the latency of each unit.
    pub fn run(&mut self, proxy: SocketAddr, work: Work) -> Vec<Duration> {
        let done = async {
            match work {
                Work::Connect { hello, count } => connect(proxy, hello, count).await,
                Work::RoundTrip { size, connections, count } => round_trips(proxy, size, connections, count).await,
                Work::Bulk { down, streams, bytes } => bulk(proxy, down, streams, bytes).await,
                Work::Tls { count } => handshakes(proxy, &self.connector, count).await,
                Work::Idle { .. } => Vec::new(),
            }
        };
        self.runtime.block_on(async { within(LIMIT, &work.name(), done).await })
    }

    /// Connections that have been answered once and then do nothing.
    pub fn hold(&mut self, proxy: SocketAddr, count: usize) -> Vec<TcpStream> {
        let all = async {
            let mut held = Vec::new();
            for _ in 0..count {
                let mut stream = open(proxy, 517, order(b'r', 8)).await;
                stream.write_all(&[0; 8]).await.unwrap();
                stream.read_exact(&mut [0; 8]).await.unwrap();
                held.push(stream);
            }
            held
        };
        self.runtime.block_on(async { within(LIMIT, "all are held", all).await })
    }
}

async fn open(proxy: SocketAddr, hello: usize, order: [u8; ORDER_LENGTH]) -> TcpStream {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut first = Hello::to(NAME).padded_to(hello).record();
    first.extend(order);
    stream.write_all(&first).await.unwrap();
    stream
}

/// For all of one kind of work through one proxy, which takes seconds.
const LIMIT: Duration = Duration::from_secs(600);

/// New connections at a time.
const CONCURRENT: usize = 16;

/// A hello for the one route.
pub fn hello() -> Vec<u8> {
    Hello::to(NAME).padded_to(517).record()
}

/// The same, and an order for one small answer.
pub fn first_flight() -> Vec<u8> {
    [hello().as_slice(), &order(b'c', 100)].concat()
}

async fn connect(proxy: SocketAddr, hello: usize, count: usize) -> Vec<Duration> {
    let mut first = Hello::to(NAME).padded_to(hello).record();
    first.extend(order(b'c', 100));
    let (first, slots) = (Arc::new(first), Arc::new(Semaphore::new(CONCURRENT)));
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let (first, slot) = (Arc::clone(&first), Arc::clone(&slots).acquire_owned().await.unwrap());
        clients.spawn(async move {
            let _slot = slot;
            let start = Instant::now();
            let mut stream = TcpStream::connect(proxy).await.unwrap();
            stream.write_all(&first).await.unwrap();
            let mut answer = Vec::with_capacity(128);
            stream.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer.len(), 100);
            start.elapsed()
        });
    }
    clients.join_all().await
}

async fn handshakes(proxy: SocketAddr, connector: &TlsConnector, count: usize) -> Vec<Duration> {
    let slots = Arc::new(Semaphore::new(CONCURRENT));
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let (connector, slot) = (connector.clone(), Arc::clone(&slots).acquire_owned().await.unwrap());
        clients.spawn(async move {
            let _slot = slot;
            let start = Instant::now();
            let stream = TcpStream::connect(proxy).await.unwrap();
            let mut stream = connector.connect(NAME.try_into().unwrap(), stream).await.unwrap();
            let mut answer = Vec::with_capacity(128);
            stream.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer.len(), 100);
            start.elapsed()
        });
    }
    clients.join_all().await
}

/// Both ends of TLS, with a certificate of their own.
fn tls() -> (TlsAcceptor, TlsConnector) {
    let issued = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(issued.cert.der().clone()).unwrap();
    let key = PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der());
    let server = ServerConfig::builder().with_no_client_auth();
    let server = server.with_single_cert(vec![issued.cert.der().clone()], key.into()).unwrap();
    let mut client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    client.resumption = Resumption::disabled();
    (Arc::new(server).into(), Arc::new(client).into())
}

async fn serve_tls(acceptor: TlsAcceptor, stream: TcpStream) -> Option<()> {
    let mut stream = acceptor.accept(stream).await.ok()?;
    stream.write_all(&[0x61; 100]).await.ok()?;
    stream.shutdown().await.ok()
}

async fn round_trips(proxy: SocketAddr, size: usize, connections: usize, count: usize) -> Vec<Duration> {
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        clients.spawn(async move {
            let mut stream = open(proxy, 517, order(b'r', size)).await;
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

async fn bulk(proxy: SocketAddr, down: bool, streams: usize, bytes: usize) -> Vec<Duration> {
    let share = bytes / streams;
    let mut clients = JoinSet::new();
    for _ in 0..streams {
        clients.spawn(async move {
            let mut stream = open(proxy, 517, order(if down { b'd' } else { b'u' }, share)).await;
            let start = Instant::now();
            if down {
                sink(&mut stream, share).await;
            } else {
                pour(&mut stream, share).await;
                stream.read_exact(&mut [0]).await.unwrap();
            }
            start.elapsed()
        });
    }
    clients.join_all().await
}

async fn pour(stream: &mut TcpStream, mut left: usize) {
    let chunk = vec![0x5a; 256 * 1024];
    while left > 0 {
        let length = left.min(chunk.len());
        stream.write_all(&chunk[..length]).await.unwrap();
        left -= length;
    }
}

async fn sink(stream: &mut TcpStream, mut left: usize) {
    let mut chunk = vec![0; 256 * 1024];
    while left > 0 {
        match stream.read(&mut chunk).await.unwrap() {
            0 => panic!("{left} bytes are missing"),
            length => left -= length,
        }
    }
}

/// One connection of the backend: a hello, an order, and what is ordered.
async fn serve(mut stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut header = [0; 5];
    stream.read_exact(&mut header).await.ok()?;
    let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
    stream.read_exact(&mut hello).await.ok()?;
    let mut order = [0; ORDER_LENGTH];
    stream.read_exact(&mut order).await.ok()?;
    let size = u64::from_be_bytes(order[1..].try_into().unwrap()) as usize;
    match order[0] {
        b'c' => stream.write_all(&vec![0x61; size]).await.ok()?,
        b'd' => pour(&mut stream, size).await,
        b'u' => {
            sink(&mut stream, size).await;
            stream.write_all(&[1]).await.ok()?;
        }
        _ => {
            let mut message = vec![0; size];
            loop {
                stream.read_exact(&mut message).await.ok()?;
                stream.write_all(&message).await.ok()?;
            }
        }
    }
    Some(())
}
