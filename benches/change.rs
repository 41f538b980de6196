//! What clients see while a proxy is changed: `cargo bench --bench change -- --help`. snigate, then HAProxy (master and
//! worker, sockets passed on) and nginx, under the same load: new connections at a fixed rate, and streams whose every byte
//! is compared.
//!
//! Reloads, half of them to invalid files; upgrades of the binary, a tenth of them to broken ones; restarts after a kill;
//! a stop with transfers under way; and, for snigate alone, large files.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a bench"
)]

mod deadline;
#[path = "../tests/support/hello.rs"]
mod sample;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Parser;
use deadline::{PATIENCE, until, within};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use sample::Hello;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

const NAME: &str = "devkubernetes01.example.com";
const BULK: &str = "bulk.example.com";

#[derive(Parser)]
#[command(about = "Compares reload, upgrade, restart and drain with HAProxy and nginx, which must be installed")]
struct Options {
    /// New connections per second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Streams that are open all the time
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Reloads, ten per second
    #[arg(long, default_value_t = 600)]
    reloads: usize,
    /// Upgrades, one after the other
    #[arg(long, default_value_t = 200)]
    upgrades: usize,
    /// Restarts after a kill
    #[arg(long, default_value_t = 100)]
    restarts: usize,
    /// Transfers of 10 MB that are under way at the stop
    #[arg(long, default_value_t = 1000)]
    transfers: usize,
    /// Routes of a large file
    #[arg(long, default_value_t = 100_000)]
    routes: usize,
    /// Reloads of a file with a hundredth of these
    #[arg(long, default_value_t = 1000)]
    large_reloads: usize,
    /// A little of each: to see that it works
    #[arg(long)]
    quick: bool,
    /// snigate alone, and an error if anything failed
    #[arg(long)]
    alone: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Snigate,
    Haproxy,
    Nginx,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut options = Options::parse();
    if options.quick {
        options = Options {
            rate: 200,
            streams: 50,
            reloads: 20,
            upgrades: 4,
            restarts: 3,
            transfers: 20,
            routes: 10_000,
            large_reloads: 20,
            ..options
        };
    }
    let kinds = [Kind::Snigate, Kind::Haproxy, Kind::Nginx];
    let kinds = if options.alone { &kinds[..1] } else { &kinds[..] };
    let mut failed = 0;
    println!("reloads: {} at 10/s, every other one to an invalid file", options.reloads);
    for kind in kinds {
        failed += reloads(*kind, &options).await;
    }
    println!("\nupgrades: {} in a row, every tenth to a binary that does not serve", options.upgrades);
    for kind in kinds {
        failed += upgrades(*kind, &options).await;
    }
    println!("\nrestarts: {} times killed and started again; from the start to the first accept", options.restarts);
    for kind in kinds {
        restarts(*kind, options.restarts).await;
    }
    println!("\nstop: {} transfers of 10 MB under way", options.transfers);
    for kind in kinds {
        failed += stop(*kind, options.transfers).await;
    }
    println!();
    large(options.routes, options.large_reloads).await;
    assert!(!options.alone || failed == 0, "{failed} failures");
}

async fn reloads(kind: Kind, options: &Options) -> usize {
    let mut proxy = Proxy::start(kind).await;
    let load = Load::start(&proxy, options).await;
    let before = proxy.memory();
    let mut ticks = interval(Duration::from_millis(100));
    for number in 0..options.reloads {
        ticks.tick().await;
        proxy.configure(number % 2 == 0, number);
        proxy.reload();
    }
    sleep(Duration::from_secs(1)).await;
    let after = proxy.memory();
    let failed = load.end(kind, &mut proxy).await;
    println!("{:<8}   memory {} kB before, {} kB after", "", before / 1024, after / 1024);
    failed
}

async fn upgrades(kind: Kind, options: &Options) -> usize {
    let mut proxy = Proxy::start(kind).await;
    let load = Load::start(&proxy, options).await;
    let (mut done, mut in_vain) = (0, 0);
    for number in 0..options.upgrades {
        let works = number % 10 != 3;
        proxy.install(works);
        let is_done = proxy.upgrade(works).await;
        done += usize::from(is_done);
        in_vain = if is_done || !works { 0 } else { in_vain + 1 };
        // An nginx that still has streams from before its last upgrade ignores the next.
        if in_vain == 3 {
            break;
        }
    }
    let failed = load.end(kind, &mut proxy).await;
    let wanted = (0..options.upgrades).filter(|number| number % 10 != 3).count();
    println!("{:<8}   {done} of {wanted} upgrades to a binary that works have taken place", "");
    failed + usize::from(kind == Kind::Snigate && done != wanted)
}

async fn restarts(kind: Kind, count: usize) {
    let mut proxy = Proxy::start(kind).await;
    let mut took = Vec::new();
    for _ in 0..count {
        // So that there is something in TIME_WAIT and something open.
        let mut open = TcpStream::connect(proxy.address).await.unwrap();
        open.write_all(&Hello::to(NAME).record()).await.unwrap();
        within(PATIENCE, "an answer", open.read_exact(&mut [0; 16])).await.unwrap();
        proxy.kill();
        let begun = Instant::now();
        proxy.run();
        while TcpStream::connect(proxy.address).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it does not listen");
            sleep(Duration::from_micros(200)).await;
        }
        took.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    println!("{:<8}   p50 {:.1} ms, most {:.1} ms", kind.name(), took[took.len() / 2], took.last().unwrap());
}

async fn stop(kind: Kind, transfers: usize) -> usize {
    let mut proxy = Proxy::start(kind).await;
    let mut downloads = JoinSet::new();
    let begun = Arc::new(AtomicUsize::new(0));
    for _ in 0..transfers {
        downloads.spawn(download(proxy.address, Arc::clone(&begun)));
    }
    let all_have_begun = async {
        while begun.load(Relaxed) < transfers {
            sleep(Duration::from_millis(5)).await;
        }
    };
    within(PATIENCE, "all transfers have begun", all_have_begun).await;
    proxy.stop();
    let mut failures = Vec::new();
    while let Some(result) = downloads.join_next().await {
        failures.extend(result.unwrap().err());
    }
    let last = Instant::now();
    let exit = proxy.wait().await;
    println!(
        "{:<8}   {} of {transfers} failed; exit {} ms after the last",
        kind.name(),
        failures.len(),
        exit.map_or("more than 60000".into(), |exit| exit.saturating_duration_since(last).as_millis().to_string())
    );
    for failure in failures.iter().take(3) {
        println!("{:<8}     {failure}", "");
    }
    failures.len()
}

/// How long a reload of a large file takes, what a stream feels of it, and what memory does.
async fn large(routes: usize, reloads: usize) {
    let mut proxy = Proxy::start(Kind::Snigate).await;
    let small = fs::read_to_string(proxy.path("config")).unwrap();
    let write = |proxy: &Proxy, count: usize, version: usize| {
        let route = |number| {
            let is_changed = number % 100 == version % 100;
            let name = if is_changed { format!("v{version}-{number}") } else { format!("n{number}") };
            format!("  - {{sni: {name}.example.com, upstream: \"{}\"}}\n", proxy.echo)
        };
        let more: String = (0..count).map(route).collect();
        fs::write(proxy.path("config"), small.replace("timeouts:", &format!("{more}timeouts:"))).unwrap();
    };
    let reload = |proxy: &Proxy| {
        let begun = Instant::now();
        proxy.reload();
        tokio::task::block_in_place(|| proxy.told()).unwrap();
        begun.elapsed()
    };

    let stop = Arc::new(AtomicBool::new(false));
    let longest = Arc::new(AtomicUsize::new(0));
    let pings = tokio::spawn(ping(proxy.address, Arc::clone(&stop), Arc::clone(&longest)));
    sleep(Duration::from_secs(2)).await;
    let before = longest.swap(0, Relaxed);
    let mut took = Vec::new();
    for version in 0..4 {
        write(&proxy, routes, version);
        took.push(reload(&proxy).as_millis());
        sleep(Duration::from_millis(500)).await;
    }
    stop.store(true, Relaxed);
    pings.await.unwrap();
    println!(
        "{routes} routes: the first reload takes {} ms, with a hundredth of them changed {:?} ms; 1 kB there and back takes {:.1} ms at most during it, {:.1} ms in the two seconds before",
        took[0],
        &took[1..],
        longest.load(Relaxed) as f64 / 1e3,
        before as f64 / 1e3
    );

    proxy.kill();
    write(&proxy, routes / 100, 0);
    proxy.run();
    let mut memory = Vec::new();
    for version in 0..=reloads {
        write(&proxy, routes / 100, version);
        reload(&proxy);
        if version % (reloads / 4) == 0 {
            memory.push(proxy.memory() / 1024);
        }
    }
    println!("{} routes, {reloads} reloads: {memory:?} kB of memory after each quarter", routes / 100);
}

/// The longest of all round trips, in microseconds.
async fn ping(address: SocketAddr, stop: Arc<AtomicBool>, longest: Arc<AtomicUsize>) {
    let hello = Hello::to(NAME).record();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&hello).await.unwrap();
    stream.read_exact(&mut vec![0; hello.len()]).await.unwrap();
    let mut kilobyte = vec![7; 1024];
    while !stop.load(Relaxed) {
        let begun = Instant::now();
        stream.write_all(&kilobyte).await.unwrap();
        within(PATIENCE, "an echo", stream.read_exact(&mut kilobyte)).await.unwrap();
        longest.fetch_max(begun.elapsed().as_micros() as usize, Relaxed);
        sleep(Duration::from_millis(1)).await;
    }
}

const DOWNLOAD: usize = 10_000_000;

fn byte_at(number: usize) -> u8 {
    u8::try_from((number ^ (number >> 8)) & 0xff).unwrap()
}

/// Counts when the first byte is there.
async fn download(address: SocketAddr, begun: Arc<AtomicUsize>) -> Result<(), String> {
    let told = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).await.map_err(told)?;
    stream.write_all(&Hello::to(BULK).record()).await.map_err(told)?;
    let mut buffer = vec![0; 65536];
    let mut received = 0;
    loop {
        let read = timeout(PATIENCE, stream.read(&mut buffer)).await;
        let read = read.map_err(|_| format!("after {received} bytes: nothing for {PATIENCE:?}"))?;
        let length = read.map_err(|error| format!("after {received} bytes: {error}"))?;
        if received == 0 {
            begun.fetch_add(1, Relaxed);
        }
        if let Some(wrong) = (0..length).find(|number| buffer[*number] != byte_at(received + number)) {
            return Err(format!("byte {} is another one", received + wrong));
        }
        received += length;
        if length == 0 {
            return if received == DOWNLOAD { Ok(()) } else { Err(format!("cut after {received} bytes")) };
        }
    }
}

/// New connections, and streams that stay.
struct Load {
    stop: Arc<AtomicBool>,
    clients: JoinHandle<Vec<Result<f64, String>>>,
    streams: JoinSet<Result<u64, String>>,
}

impl Load {
    async fn start(proxy: &Proxy, options: &Options) -> Self {
        let (address, stop) = (proxy.address, Arc::new(AtomicBool::new(false)));
        let mut streams = JoinSet::new();
        for number in 0..options.streams {
            streams.spawn(stream(address, number, Arc::clone(&stop)));
        }
        sleep(Duration::from_millis(500)).await;
        let (rate, stopped) = (options.rate, Arc::clone(&stop));
        let clients = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut clients = JoinSet::new();
            while !stopped.load(Relaxed) {
                ticks.tick().await;
                clients.spawn(client(address));
            }
            clients.join_all().await
        });
        Self { stop, clients, streams }
    }

    /// How many failed.
    async fn end(mut self, kind: Kind, proxy: &mut Proxy) -> usize {
        self.stop.store(true, Relaxed);
        let clients = self.clients.await.unwrap();
        let (processes, count) = (proxy.processes(), self.streams.len());
        let mut broken = Vec::new();
        let mut bytes = 0;
        while let Some(stream) = self.streams.join_next().await {
            match stream.unwrap() {
                Ok(more) => bytes += more,
                Err(failure) => broken.push(failure),
            }
        }
        let (mut took, failed): (Vec<f64>, Vec<String>) = {
            let (good, bad): (Vec<_>, Vec<_>) = clients.iter().partition(|client| client.is_ok());
            (good.into_iter().flatten().copied().collect(), bad.into_iter().cloned().filter_map(Result::err).collect())
        };
        took.sort_by(f64::total_cmp);
        println!(
            "{:<8}   {} of {} connections failed (bound {:.6}); p50 {:.2} ms, p99 {:.2} ms, most {:.0} ms",
            kind.name(),
            failed.len(),
            clients.len(),
            3.0 / clients.len() as f64,
            took[took.len() / 2],
            took[took.len() * 99 / 100],
            took.last().unwrap()
        );
        println!(
            "{:<8}   {} of {count} streams broken, {bytes} bytes compared; {processes} processes at the end",
            "",
            broken.len()
        );
        for failure in failed.iter().take(3).chain(broken.iter().take(3)) {
            println!("{:<8}     {failure}", "");
        }
        failed.len() + broken.len()
    }
}

/// A connection that gets its hello back; how long that takes, in milliseconds.
async fn client(address: SocketAddr) -> Result<f64, String> {
    let begun = Instant::now();
    let hello = Hello::to(NAME).record();
    let told = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.map_err(told("connect"))?;
        stream.write_all(&hello).await.map_err(told("send"))?;
        let mut answer = vec![0; hello.len()];
        stream.read_exact(&mut answer).await.map_err(told("receive"))?;
        if answer == hello { Ok::<_, String>(()) } else { Err("another answer".into()) }
    };
    timeout(PATIENCE, exchange).await.map_err(|_| format!("no answer within {PATIENCE:?}"))??;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Sends and gets back until the end; how many bytes came back.
async fn stream(address: SocketAddr, seed: usize, stop: Arc<AtomicBool>) -> Result<u64, String> {
    let told = |what: &'static str| move |error: std::io::Error| format!("stream: {what}: {error}");
    let hello = Hello::to(NAME).record();
    let mut stream = TcpStream::connect(address).await.map_err(told("connect"))?;
    stream.write_all(&hello).await.map_err(told("send"))?;
    let late = |_| format!("stream: no echo within {PATIENCE:?}");
    timeout(PATIENCE, stream.read_exact(&mut vec![0; hello.len()])).await.map_err(late)?.map_err(told("receive"))?;
    let mut bytes = 0;
    while !stop.load(Relaxed) {
        let sent: Vec<u8> = (0..64 + seed % 1000).map(|number| byte_at(seed + bytes as usize + number)).collect();
        stream.write_all(&sent).await.map_err(told("send"))?;
        let mut back = vec![0; sent.len()];
        timeout(PATIENCE, stream.read_exact(&mut back)).await.map_err(late)?.map_err(told("receive"))?;
        if back != sent {
            return Err("stream: other bytes than were sent".into());
        }
        bytes += sent.len() as u64;
        sleep(Duration::from_millis(900 + (seed % 200) as u64)).await;
    }
    Ok(bytes)
}

/// Sends everything back.
async fn echo() -> SocketAddr {
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Sends the same 10 MB to everybody.
async fn bulk() -> SocketAddr {
    let listener = listen().await;
    let address = listener.local_addr().unwrap();
    let body: Arc<Vec<u8>> = Arc::new((0..DOWNLOAD).map(byte_at).collect());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let body = Arc::clone(&body);
            tokio::spawn(async move {
                let _ = stream.read(&mut vec![0; 4096]).await;
                let _ = stream.write_all(&body).await;
                let _ = stream.shutdown().await;
                let _ = stream.read(&mut [0]).await;
            });
        }
    });
    address
}

async fn listen() -> TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.listen(4096).unwrap()
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Snigate => "snigate",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
        }
    }
}

/// A proxy in a process group of its own.
struct Proxy {
    kind: Kind,
    address: SocketAddr,
    echo: SocketAddr,
    bulk: SocketAddr,
    directory: TempDir,
    child: Option<Child>,
    /// Whom to send signals.
    main: Option<Pid>,
    group: Option<Pid>,
    /// Told by snigate who serves.
    manager: UnixDatagram,
}

impl Proxy {
    async fn start(kind: Kind) -> Self {
        let address = listen().await.local_addr().unwrap();
        let directory = TempDir::new().unwrap();
        let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        let mut proxy = Self {
            kind,
            address,
            echo: echo().await,
            bulk: bulk().await,
            directory,
            child: None,
            main: None,
            group: None,
            manager,
        };
        proxy.configure(true, 0);
        proxy.install(true);
        proxy.run();
        let begun = Instant::now();
        while TcpStream::connect(proxy.address).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "{} does not listen", kind.name());
            sleep(Duration::from_millis(10)).await;
        }
        proxy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A route more or less each time, or a file that is wrong.
    fn configure(&self, is_valid: bool, number: usize) {
        let Self { address, echo, bulk, .. } = self;
        let extra = format!("extra{number}.example.com");
        let text = match self.kind {
            Kind::Snigate => format!(
                "listen: {address}\nroutes:\n  - {{sni: {NAME}, upstream: \"{echo}\"}}\n  - {{sni: {BULK}, upstream: \"{bulk}\"}}\n  - {{sni: {extra}, upstream: \"{echo}\"}}\ntimeouts: {{drain: 24h}}\nlog: {{level: error}}\n{}",
                if is_valid { "" } else { "nonsense: 1\n" }
            ),
            Kind::Haproxy => format!(
                "global
  maxconn 9000
  stats socket {} mode 600 level admin expose-fd listeners
defaults
  mode tcp
  timeout connect 10s
  timeout client 24h
  timeout server 24h
frontend edge
  bind {address}
  tcp-request inspect-delay 10s
  tcp-request content accept if {{ req_ssl_hello_type 1 }}
  use_backend bulk if {{ req_ssl_sni -i {BULK} }}
  use_backend echo if {{ req_ssl_sni -i {NAME} }}
  use_backend echo if {{ req_ssl_sni -i {extra} }}
backend echo
  server s {echo}
backend bulk
  server s {bulk}
{}",
                self.path("stats").display(),
                if is_valid { "" } else { "nonsense\n" }
            ),
            Kind::Nginx => format!(
                "{}
daemon on;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {};
error_log /dev/null crit;
events {{ worker_connections 9000; }}
stream {{
  map $ssl_preread_server_name $upstream {{ {BULK} {bulk}; {NAME} {echo}; {extra} {echo}; }}
  server {{ listen {address} backlog=4096; ssl_preread on; proxy_pass $upstream; proxy_timeout 24h; }}
{}}}
",
                include(),
                self.path("pid").display(),
                if is_valid { "" } else { "nonsense\n" }
            ),
        };
        // Never half a file.
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("config")).unwrap();
    }

    /// What is started by the next upgrade: the binary, or something that ends at once.
    fn install(&self, works: bool) {
        let binary = match self.kind {
            Kind::Snigate => PathBuf::from(env!("CARGO_BIN_EXE_snigate")),
            Kind::Haproxy => which("haproxy"),
            Kind::Nginx => which("nginx"),
        };
        // HAProxy's master becomes whatever is there, and cannot be told of a broken binary.
        let target = if works || self.kind == Kind::Haproxy { binary } else { PathBuf::from("/bin/false") };
        symlink(target, self.path("next")).unwrap();
        fs::rename(self.path("next"), self.path("proxy")).unwrap();
    }

    fn run(&mut self) {
        let mut command = Command::new(self.path("proxy"));
        match self.kind {
            Kind::Snigate => command.args(["run", "-c"]).arg(self.path("config")),
            Kind::Haproxy => command.args(["-W", "-db", "-f"]).arg(self.path("config")),
            Kind::Nginx => command.arg("-c").arg(self.path("config")),
        };
        command.env_remove("RUST_LOG").env("NOTIFY_SOCKET", self.path("notify")).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("is {} installed? {error}", self.kind.name()));
        self.main = Some(Pid::from_child(&child));
        match self.kind {
            Kind::Snigate => drop(self.told()),
            Kind::Haproxy => {}
            // It can only be upgraded as a daemon, which has a group of its own.
            Kind::Nginx => {
                child.wait().unwrap();
                until("nginx is a daemon", || self.pid_of_nginx().is_some());
                self.main = self.pid_of_nginx();
            }
        }
        self.group = self.main;
        self.child = Some(child);
    }

    /// Which process serves from now on.
    fn told(&self) -> Option<Pid> {
        let mut message = [0; 4096];
        loop {
            let length = self.manager.recv(&mut message).ok()?;
            let message = String::from_utf8_lossy(&message[..length]).into_owned();
            if let Some(process) = message.lines().find_map(|line| line.strip_prefix("MAINPID=")) {
                return Pid::from_raw(process.parse().unwrap());
            }
        }
    }

    fn pid_of_nginx(&self) -> Option<Pid> {
        fs::read_to_string(self.path("pid")).ok()?.trim().parse().ok().and_then(Pid::from_raw)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.main.unwrap(), signal).unwrap();
    }

    fn reload(&self) {
        self.signal(if self.kind == Kind::Haproxy { Signal::USR2 } else { Signal::HUP });
    }

    /// Whether another process serves.
    async fn upgrade(&mut self, works: bool) -> bool {
        // What came of reloads is over.
        self.manager.set_nonblocking(true).unwrap();
        while self.told().is_some() {}
        self.manager.set_nonblocking(false).unwrap();
        let before = self.main;
        self.signal(Signal::USR2);
        match self.kind {
            Kind::Snigate if works => self.main = tokio::task::block_in_place(|| self.told()).or(before),
            Kind::Nginx if works => {
                let begun = Instant::now();
                while self.pid_of_nginx().is_none_or(|now| Some(now) == before) {
                    if begun.elapsed() > Duration::from_secs(3) {
                        return false;
                    }
                    sleep(Duration::from_millis(5)).await;
                }
                sleep(Duration::from_millis(100)).await;
                self.main = self.pid_of_nginx();
                kill_process(before.unwrap(), Signal::QUIT).unwrap();
                sleep(Duration::from_millis(100)).await;
            }
            Kind::Snigate | Kind::Haproxy | Kind::Nginx => sleep(Duration::from_millis(300)).await,
        }
        works && (self.main != before || self.kind == Kind::Haproxy)
    }

    fn stop(&self) {
        self.signal(match self.kind {
            Kind::Snigate => Signal::TERM,
            Kind::Haproxy => Signal::USR1,
            Kind::Nginx => Signal::QUIT,
        });
    }

    /// When it exits by itself.
    async fn wait(&mut self) -> Option<Instant> {
        for _ in 0..60_000 {
            let is_ours = self.kind != Kind::Nginx;
            let child = self.child.as_mut()?;
            let has_ended = if is_ours { child.try_wait().unwrap().is_some() } else { self.processes() == 0 };
            if has_ended {
                return Some(Instant::now());
            }
            sleep(Duration::from_millis(1)).await;
        }
        None
    }

    /// All processes of the group.
    fn members(&self) -> Vec<procfs::process::Process> {
        let all = procfs::process::all_processes().unwrap().flatten();
        let is_member = |process: &procfs::process::Process| {
            process.stat().is_ok_and(|stat| Pid::from_raw(stat.pgrp) == self.group && stat.state != 'Z')
        };
        all.filter(is_member).collect()
    }

    fn processes(&self) -> usize {
        self.members().len()
    }

    /// Resident, of all processes.
    fn memory(&self) -> u64 {
        self.members().iter().filter_map(|process| Some(process.stat().ok()?.rss * procfs::page_size())).sum()
    }

    fn kill(&mut self) {
        if let Some(group) = self.group {
            // Unless it has ended by itself.
            let _ = kill_process_group(group, Signal::KILL);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        until("all its processes have ended", || self.group.is_none() || self.processes() == 0);
        let _ = fs::remove_file(self.path("pid"));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.kill();
    }
}

fn which(program: &str) -> PathBuf {
    let places = std::env::var("PATH").unwrap_or_default();
    let found = places.split(':').chain(["/usr/sbin"]).map(|place| Path::new(place).join(program));
    found.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("is {program} installed?"))
}

/// Debian has the module in a file of its own.
fn include() -> &'static str {
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    if Path::new(module).exists() { "load_module /usr/lib/nginx/modules/ngx_stream_module.so;" } else { "" }
}
