//! The clients that load a proxy, and the backend behind it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use rustls::client::Resumption;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, sleep_until, timeout, timeout_at};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use crate::hello::Hello;
use crate::proxy::pin;

pub const NAME: &str = "devkubernetes01.example.com";

/// More than anything takes that works.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub async fn within<T>(limit: Duration, what: &str, wanted: impl Future<Output = T>) -> T {
    timeout(limit, wanted).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}

pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// How many this process may have open.
pub fn descriptors() -> usize {
    getrlimit(Resource::Nofile).maximum.map_or(usize::MAX, |limit| limit as usize)
}

/// A `ClientHello` of 517 bytes.
pub fn hello() -> Vec<u8> {
    Hello::to(NAME).padded_to(517).record()
}

/// What the backend does after the `ClientHello`, with how many bytes.
#[derive(Clone, Copy)]
pub enum Order {
    /// Sends these bytes and closes.
    Send(usize),
    /// Receives these bytes and acknowledges them with one byte.
    Receive(usize),
    /// Sends messages of this size back.
    Echo(usize),
    /// Sends everything back until the end.
    Return,
}

impl Order {
    const LENGTH: usize = 9;

    fn encode(self) -> [u8; Self::LENGTH] {
        let (what, size) = match self {
            Self::Send(size) => (b's', size),
            Self::Receive(size) => (b'r', size),
            Self::Echo(size) => (b'e', size),
            Self::Return => (b'b', 0),
        };
        let mut encoded = [what; Self::LENGTH];
        encoded[1..].copy_from_slice(&(size as u64).to_be_bytes());
        encoded
    }

    /// With the `ClientHello` in front.
    pub fn after(self, hello: &[u8]) -> Vec<u8> {
        [hello, &self.encode()].concat()
    }
}

pub async fn open(proxy: SocketAddr, order: Order) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&order.after(&hello())).await?;
    Ok(stream)
}

/// The byte at this place of everything that is sent; it repeats after `CHUNK`.
pub fn byte_at(place: usize) -> u8 {
    u8::try_from((place ^ (place >> 8)) & 0xff).unwrap()
}

const CHUNK: usize = 256 * 1024;
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| (0..CHUNK).map(byte_at).collect());

pub async fn send(stream: &mut TcpStream, mut left: usize) -> std::io::Result<()> {
    while left > 0 {
        let length = left.min(CHUNK);
        stream.write_all(&BYTES[..length]).await?;
        left -= length;
    }
    Ok(())
}

pub async fn receive(stream: &mut TcpStream, mut left: usize) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        match stream.read(&mut chunk).await? {
            0 => return Err(std::io::Error::other(format!("{left} bytes are missing"))),
            length => left -= length,
        }
    }
    Ok(())
}

pub async fn listen() -> TcpListener {
    listen_at((Ipv4Addr::LOCALHOST, 0).into())
}

fn listen_at(address: SocketAddr) -> TcpListener {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(address).unwrap();
    socket.listen(4096).unwrap()
}

/// Carries out orders, in the runtime of the caller.
pub async fn backend() -> SocketAddr {
    backend_at((Ipv4Addr::LOCALHOST, 0).into()).await
}

pub async fn backend_at(address: SocketAddr) -> SocketAddr {
    let listener = listen_at(address);
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            tokio::spawn(serve(listener.accept().await.unwrap().0));
        }
    });
    address
}

/// Of either version; these bytes were read.
async fn skip_proxy_header(stream: &mut TcpStream, start: [u8; 5]) -> std::io::Result<()> {
    if start == *b"PROXY" {
        while stream.read_u8().await? != b'\n' {}
        return Ok(());
    }
    let mut rest = [0; 11];
    stream.read_exact(&mut rest).await?;
    let mut content = vec![0; usize::from(u16::from_be_bytes([rest[9], rest[10]]))];
    stream.read_exact(&mut content).await.map(drop)
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut header = [0; 5];
    stream.read_exact(&mut header).await?;
    if header[0] != 22 {
        skip_proxy_header(&mut stream, header).await?;
        stream.read_exact(&mut header).await?;
    }
    let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
    stream.read_exact(&mut hello).await?;
    let mut order = [0; Order::LENGTH];
    stream.read_exact(&mut order).await?;
    let size = u64::from_be_bytes(order[1..].try_into().unwrap()) as usize;
    match order[0] {
        b's' => send(&mut stream, size).await,
        b'r' => {
            receive(&mut stream, size).await?;
            stream.write_all(&[1]).await
        }
        b'b' => {
            let (mut reader, mut writer) = stream.split();
            copy(&mut reader, &mut writer).await?;
            writer.shutdown().await
        }
        _ => {
            let mut message = vec![0; size];
            loop {
                stream.read_exact(&mut message).await?;
                stream.write_all(&message).await?;
            }
        }
    }
}

/// The length of an answer from the backend to a new connection.
pub const ANSWER: usize = 100;

/// Terminates TLS and sends a short answer.
async fn tls_backend(acceptor: TlsAcceptor) -> SocketAddr {
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let serve = async |acceptor: TlsAcceptor, stream| {
        let mut stream = acceptor.accept(stream).await?;
        stream.write_all(&BYTES[..ANSWER]).await?;
        stream.shutdown().await
    };
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(acceptor.clone(), stream));
        }
    });
    address
}

/// Both sides of TLS, with a certificate of their own.
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

/// Clients and backends on the last CPU, while the proxy has the first.
pub struct Pinned {
    /// Runs the clients; the backends have a thread of their own.
    pub runtime: Runtime,
    pub backend: SocketAddr,
    pub tls_backend: SocketAddr,
    pub connector: TlsConnector,
}

impl Pinned {
    pub fn new() -> Self {
        let cpus = std::thread::available_parallelism().unwrap().get();
        pin(cpus - 1..cpus);
        let (acceptor, connector) = tls();
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            runtime().block_on(async {
                sender.send((backend().await, tls_backend(acceptor).await)).unwrap();
                std::future::pending::<()>().await;
            });
        });
        let (backend, tls_backend) = receiver.recv().unwrap();
        Self { runtime: runtime(), backend, tls_backend, connector }
    }
}

/// Makes new connections and expects one answer on each.
#[derive(Clone)]
pub struct Client {
    pub proxy: SocketAddr,
    pub request: Arc<[u8]>,
    /// All of the same length.
    pub answers: &'static [&'static [u8]],
    pub patience: Duration,
}

/// A new connection: when it began, and how long its answer took or why there was none.
pub struct Attempt {
    pub begun: Instant,
    pub result: Result<Duration, String>,
}

impl Client {
    /// Of [`backend`].
    pub fn new(proxy: SocketAddr) -> Self {
        static ANSWERS: LazyLock<[&[u8]; 1]> = LazyLock::new(|| [&BYTES[..ANSWER]]);
        let request = Order::Send(ANSWER).after(&hello()).into();
        Self { proxy, request, answers: &*ANSWERS, patience: PATIENCE }
    }

    /// The open connection and its answer.
    pub async fn open(&self) -> std::io::Result<(TcpStream, Vec<u8>)> {
        let mut stream = TcpStream::connect(self.proxy).await?;
        stream.write_all(&self.request).await?;
        let mut answer = vec![0; self.answers[0].len()];
        stream.read_exact(&mut answer).await?;
        if self.answers.contains(&&*answer) {
            Ok((stream, answer))
        } else {
            Err(std::io::Error::other(format!("wrong answer {answer:?}")))
        }
    }

    pub async fn attempt(self) -> Attempt {
        let begun = Instant::now();
        let result = match timeout(self.patience, self.open()).await {
            Ok(Ok(_)) => Ok(begun.elapsed()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.patience)),
        };
        Attempt { begun, result }
    }

    /// So many new connections per second until then.
    pub async fn attempts(self, per_second: u32, until: impl Future) -> Vec<Attempt> {
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        let mut attempts = JoinSet::new();
        let mut until = std::pin::pin!(until);
        loop {
            tokio::select! {
                _ = &mut until => return attempts.join_all().await,
                _ = ticks.tick() => drop(attempts.spawn(self.clone().attempt())),
            }
        }
    }
}

/// When an open stream ends, if it does before the deadline. A busy one sends a byte each second.
pub async fn end_of(mut stream: TcpStream, is_busy: bool, deadline: Instant) -> Option<Instant> {
    let deadline = deadline.into();
    let mut next = tokio::time::Instant::now();
    while tokio::time::Instant::now() < deadline {
        if is_busy && stream.write_all(b"x").await.is_err() {
            return Some(Instant::now());
        }
        next = deadline.min(next + Duration::from_secs(1));
        match timeout_at(next, stream.read(&mut [0; 64])).await {
            Ok(Ok(1..)) => sleep_until(next).await,
            Ok(_) => return Some(Instant::now()),
            Err(_) => {}
        }
    }
    None
}

/// The longest of all round trips, in microseconds.
pub async fn ping(address: SocketAddr, stop: CancellationToken, longest: Arc<AtomicUsize>) {
    let mut kilobyte = vec![7; 1024];
    let mut stream = open(address, Order::Echo(kilobyte.len())).await.unwrap();
    // Without the time to connect.
    stream.write_all(&kilobyte).await.unwrap();
    stream.read_exact(&mut kilobyte).await.unwrap();
    while !stop.is_cancelled() {
        let begun = Instant::now();
        stream.write_all(&kilobyte).await.unwrap();
        within(PATIENCE, "an echo", stream.read_exact(&mut kilobyte)).await.unwrap();
        longest.fetch_max(begun.elapsed().as_micros() as usize, Relaxed);
        sleep(Duration::from_millis(1)).await;
    }
}
