//! What clients see when an endpoint dies: `cargo bench --bench failover -- --help`. snigate, then HAProxy with the same
//! checks, each in front of three endpoints.
//!
//! First one endpoint is killed (SIGKILL) under new connections at a fixed rate; then one turns into a black hole (packets
//! to it and to its connections are dropped, which a packet filter on its sockets does) under new connections and under
//! streams that send a byte each second. At last what becomes of streams, busy and silent ones, to an endpoint that shuts down
//! (listens no more, serves on), is killed, frozen (SIGSTOP) or vanishes.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a bench"
)]

#[path = "../deadline/mod.rs"]
mod deadline;
mod fates;
#[path = "../../tests/support/hello.rs"]
mod sample;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use deadline::{PATIENCE, within};
use fates::Fate;
use sample::Hello;
use socket2::{SockFilter, Socket};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

const NAME: &str = "devkubernetes01.example.com";

#[derive(Parser)]
#[command(about = "Compares failover with HAProxy, which must be installed")]
struct Options {
    /// New connections per second
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Seconds before an endpoint dies, and as long after
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Streams to see end after the black hole
    #[arg(long, default_value_t = 60)]
    streams: usize,
    /// Only the kill, for a few seconds: to see that it works
    #[arg(long)]
    quick: bool,
    /// Only what becomes of streams
    #[arg(long)]
    fates: bool,
    /// Be an endpoint
    #[arg(long, hide = true)]
    endpoint: bool,
    /// One that something will happen to
    #[arg(long, hide = true)]
    doomed: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    if options.endpoint {
        be_an_endpoint(if options.doomed { DOOMED } else { b"answer" });
    }
    let seconds = if options.quick { 2 } else { options.seconds };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for which in ["snigate", "HAProxy"] {
        if options.fates {
            break;
        }
        let mut endpoints: Vec<Endpoint> = (0..3).map(|_| Endpoint::start(false)).collect();
        let proxy = Proxy::start(which, &endpoints);
        let killed = runtime.block_on(under_load(proxy.address, options.rate, seconds, || endpoints[0].kill()));
        killed.print(which, "one of three killed");
        if options.quick {
            continue;
        }
        drop(proxy);
        let mut endpoints: Vec<Endpoint> = (0..3).map(|_| Endpoint::start(false)).collect();
        let proxy = Proxy::start(which, &endpoints);
        let (vanished, ends) = runtime.block_on(async {
            let streams = Streams::open(proxy.address, options.streams).await;
            let since = Arc::new(Mutex::new(None));
            let moment = Arc::clone(&since);
            let vanish = || {
                endpoints[0].vanish();
                *moment.lock().unwrap() = Some(Instant::now());
            };
            let vanished = under_load(proxy.address, options.rate, seconds, vanish).await;
            let since = since.lock().unwrap().unwrap();
            (vanished, streams.ends(since).await)
        });
        vanished.print(which, "one of three a black hole");
        let mut ends: Vec<f64> = ends.into_iter().map(|end| end.as_secs_f64()).collect();
        ends.sort_by(f64::total_cmp);
        let third = options.streams / 3;
        println!(
            "{which:<8} streams to the black hole: {} of about {third} ended within 90 s; first {:.1} s, last {:.1} s",
            ends.len(),
            ends.first().copied().unwrap_or(f64::NAN),
            ends.last().copied().unwrap_or(f64::NAN)
        );
    }
    if !options.quick {
        for row in runtime.block_on(async {
            let rows = Fate::ALL.map(|fate| ["snigate", "HAProxy"].map(|which| fates::row(which, fate)));
            futures(rows.into_iter().flatten()).await
        }) {
            println!("{row}");
        }
    }
}

/// All at once, in this order.
async fn futures(rows: impl Iterator<Item = impl Future<Output = String> + 'static>) -> Vec<String> {
    let local = tokio::task::LocalSet::new();
    let running: Vec<_> = rows.map(|row| local.spawn_local(row)).collect();
    local.await;
    let mut rows = Vec::new();
    for row in running {
        rows.push(row.await.unwrap());
    }
    rows
}

/// What the endpoint answers that something will happen to.
const DOOMED: &[u8; 6] = b"doomed";

/// One new connection: when it was begun, how long it took, and whether it got its answer.
struct Try {
    begun: Instant,
    took: Duration,
    failure: Option<String>,
}

struct Seen {
    tries: Vec<Try>,
    died: Instant,
}

/// New connections at this rate, and an endpoint that dies in the middle.
async fn under_load(proxy: SocketAddr, rate: u64, seconds: u64, die: impl FnOnce()) -> Seen {
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(rate).unwrap());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let hello = Arc::new(Hello::to(NAME).record());
    let mut clients = JoinSet::new();
    let mut begin = async |clients: &mut JoinSet<Try>, count| {
        for _ in 0..count {
            ticks.tick().await;
            clients.spawn(ask(proxy, Arc::clone(&hello)));
        }
    };
    begin(&mut clients, rate * seconds).await;
    let died = Instant::now();
    die();
    begin(&mut clients, rate * seconds).await;
    Seen { tries: clients.join_all().await, died }
}

async fn ask(proxy: SocketAddr, hello: Arc<Vec<u8>>) -> Try {
    let begun = Instant::now();
    let answer = async {
        let mut stream = TcpStream::connect(proxy).await?;
        stream.write_all(&hello).await?;
        let mut answer = [0; 6];
        stream.read_exact(&mut answer).await?;
        if &answer == b"answer" { Ok(()) } else { Err(std::io::Error::other(format!("{answer:?}"))) }
    };
    let failure = match timeout(PATIENCE, answer).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {PATIENCE:?}")),
    };
    Try { begun, took: begun.elapsed(), failure }
}

impl Seen {
    fn print(&self, which: &str, what: &str) {
        let percentiles = |tries: &[&Try]| {
            let mut took: Vec<f64> = tries.iter().map(|one| one.took.as_secs_f64() * 1e3).collect();
            took.sort_by(f64::total_cmp);
            let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
            format!("p50 {:.2} ms, p99 {:.2} ms, most {:.1} ms", at(50), at(99), took.last().unwrap())
        };
        // Those begun shortly before may have been at the endpoint when it died.
        let in_flight = self.died - Duration::from_millis(20);
        let (before, after): (Vec<&Try>, Vec<&Try>) = self.tries.iter().partition(|one| one.begun < in_flight);
        let (at_death, after): (Vec<&Try>, Vec<&Try>) = after.into_iter().partition(|one| one.begun < self.died);
        let failed = |tries: &[&Try]| tries.iter().filter(|one| one.failure.is_some()).count();
        println!("{which:<8} {what}");
        println!("{:<8}   before: {} failed of {}; {}", "", failed(&before), before.len(), percentiles(&before));
        println!("{:<8}   in flight: {} failed of {}", "", failed(&at_death), at_death.len());
        println!(
            "{:<8}   after: {} failed of {} (bound {:.5}); {}",
            "",
            failed(&after),
            after.len(),
            3.0 / after.len() as f64,
            percentiles(&after)
        );
        for one in after.iter().filter(|one| one.failure.is_some()).take(3) {
            println!("{:<8}     {}", "", one.failure.as_ref().unwrap());
        }
    }
}

/// Streams that send a byte each second, so that there is always something to be acknowledged.
struct Streams(JoinSet<Option<Instant>>);

impl Streams {
    async fn open(proxy: SocketAddr, count: usize) -> Self {
        let mut streams = JoinSet::new();
        for _ in 0..count {
            let mut stream = TcpStream::connect(proxy).await.unwrap();
            stream.write_all(&Hello::to(NAME).record()).await.unwrap();
            within(PATIENCE, "an answer", stream.read_exact(&mut [0; 6])).await.unwrap();
            streams.spawn(async move {
                loop {
                    sleep(Duration::from_secs(1)).await;
                    if stream.write_all(b"x").await.is_err() || stream.try_read(&mut [0]).is_ok_and(|read| read == 0) {
                        return Some(Instant::now());
                    }
                }
            });
        }
        Self(streams)
    }

    /// How long after this moment they ended, those that did.
    async fn ends(mut self, since: Instant) -> Vec<Duration> {
        let mut ends = Vec::new();
        let deadline = tokio::time::Instant::from_std(since + Duration::from_secs(90));
        while let Ok(Some(ended)) = tokio::time::timeout_at(deadline, self.0.join_next()).await {
            ends.extend(ended.unwrap().map(|at| at.saturating_duration_since(since)));
        }
        ends
    }
}

/// An endpoint of its own process, that answers every hello. Dies as it is told.
struct Endpoint {
    child: Child,
    address: SocketAddr,
}

impl Endpoint {
    fn start(is_doomed: bool) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--endpoint"].into_iter().chain(is_doomed.then_some("--doomed")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut address).unwrap();
        Self { child, address: address.trim().parse().unwrap() }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn vanish(&mut self) {
        self.command(b"v");
    }

    fn command(&mut self, command: &[u8; 1]) {
        self.child.stdin.as_mut().unwrap().write_all(command).unwrap();
    }

    fn freeze(&self) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::STOP)
            .unwrap();
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn be_an_endpoint(answer: &'static [u8; 6]) -> ! {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    let sockets = Arc::new(Mutex::new(vec![Socket::from(listener.try_clone().unwrap())]));
    let all = Arc::clone(&sockets);
    let closed = Arc::new(tokio::sync::Notify::new());
    let close = Arc::clone(&closed);
    std::thread::spawn(move || {
        let mut command = [0];
        if std::io::stdin().read_exact(&mut command).is_err() {
            std::process::exit(0);
        }
        if &command == b"c" {
            all.lock().unwrap().clear();
            close.notify_one();
            std::thread::park();
        }
        for socket in all.lock().unwrap().iter() {
            // `ret 0`: accept no byte of any packet.
            let _ = socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]);
        }
        std::thread::park();
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = closed.notified() => break,
            };
            let (mut stream, _) = accepted.unwrap();
            let copy = Socket::from(std::os::fd::AsFd::as_fd(&stream).try_clone_to_owned().unwrap());
            let sockets = Arc::clone(&sockets);
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                let Ok(1..) = stream.read(&mut buffer).await else { return };
                if stream.write_all(answer).await.is_err() {
                    return;
                }
                // Only those that stay are worth to be remembered: most clients leave at once.
                if timeout(Duration::from_millis(500), stream.read(&mut buffer)).await.is_err() {
                    sockets.lock().unwrap().push(copy);
                }
                while let Ok(1..) = stream.read(&mut buffer).await {}
            });
        }
        drop(listener);
        // As an API server, that ends its streams at last; here nothing does before this process is ended.
        std::future::pending::<()>().await;
    });
    unreachable!("it never ends by itself")
}

struct Proxy {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Proxy {
    fn start(which: &str, endpoints: &[Endpoint]) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("config");
        let addresses: Vec<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        let (config, mut command) = if which == "snigate" {
            let listed: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
            let config = format!(
                "listen: {address}
routes:
  - sni: {NAME}
    upstream:
      endpoints: [{}]
      connect: {{timeout: 10s, per_try: 3s}}
      health_check: {{interval: 5s, timeout: 4s, rise: 2, fall: 3}}
log: {{level: error}}
",
                listed.join(", ")
            );
            let mut command = Command::new(env!("CARGO_BIN_EXE_snigate"));
            command.args(["run", "-c"]);
            (config, command)
        } else {
            let servers: Vec<String> =
                (1..).zip(&addresses).map(|(number, address)| format!("  server s{number} {address} check")).collect();
            let config = format!(
                "defaults
  mode tcp
  option tcpka
  option redispatch 1
  retries 3
  timeout connect 3s
  timeout client 24h
  timeout server 24h
  default-server inter 5s rise 2 fall 3 on-marked-down shutdown-sessions
frontend edge
  bind {address}
  tcp-request inspect-delay 10s
  tcp-request content accept if {{ req_ssl_hello_type 1 }}
  use_backend cluster if {{ req_ssl_sni -i {NAME} }}
backend cluster
  balance leastconn
  timeout check 4s
{}
",
                servers.join("\n")
            );
            let mut command = Command::new("haproxy");
            command.args(["-db", "-f"]);
            (config, command)
        };
        std::fs::write(&path, config).unwrap();
        let child = command.arg(&path).env_remove("RUST_LOG").stderr(Stdio::null()).stdout(Stdio::null()).spawn();
        let proxy = Self { child: child.expect("is HAProxy installed?"), address, _directory: directory };
        let deadline = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "{which} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        proxy
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
