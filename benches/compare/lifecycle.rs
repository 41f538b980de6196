//! What clients see while a proxy changes, under the same load: new connections at a fixed rate, and streams of random
//! sizes and pauses whose every byte is compared.
//!
//! Reloads, half of them of invalid files; upgrades of the binary, a tenth of them to broken ones; restarts after a kill;
//! a stop with transfers under way; and, for snigate alone, large files.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Common;
use crate::load::{Attempt, Client, Order, PATIENCE, backend, byte_at, open, ping, within};
use crate::proxy::{Parking, Program, Proxy, Setup};
use crate::report::{failures, line, percentile, summary};

#[derive(Args, Clone)]
pub struct Options {
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
    /// Only `reloads`, `upgrades`, `restarts`, `stop` or `large`
    #[arg(long, default_value = "")]
    only: String,
    /// Only snigate, and an error if anything failed
    #[arg(long)]
    alone: bool,
}

pub fn run(mut options: Options, common: &Common) {
    if common.quick {
        options = Options {
            rate: 200,
            streams: 100,
            reloads: 20,
            upgrades: 5,
            restarts: 3,
            transfers: 20,
            routes: 10_000,
            large_reloads: 20,
            ..options
        };
    }
    let programs = if options.alone { Program::snigates(&common.against) } else { Program::all(&common.against) };
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(measure(&options, &programs));
}

async fn measure(options: &Options, programs: &[Program]) {
    let backend = backend().await;
    let start = |program: &Program| {
        // Most streams are parked now and then, some most of the time.
        let parking = matches!(program, Program::Snigate(_)).then(|| Parking::after("300ms"));
        Proxy::start(program, Setup { connections: Some(9000), parking, ..Setup::new([backend]) })
    };
    let does = |measurement: &str| measurement.contains(&options.only);
    let mut failed = 0;
    if does("reloads") {
        println!("reloads: {} at 10/s, every other one of an invalid file", options.reloads);
        for program in programs {
            failed += reloads(start(program), options).await;
        }
    }
    if does("upgrades") {
        println!("\nupgrades: {} in a row, every tenth to a binary that does not serve", options.upgrades);
        for program in programs {
            failed += upgrades(start(program), options).await;
        }
    }
    if does("restarts") {
        println!("\nrestarts: {} times killed and started again; from the start to the first accept", options.restarts);
        for program in programs {
            restarts(start(program), options.restarts).await;
        }
    }
    if does("stop") {
        println!("\nstop: {} transfers of 10 MB under way", options.transfers);
        for program in programs {
            failed += stop(start(program), options.transfers).await;
        }
    }
    if does("large") {
        println!("\nlarge files");
        for program in programs.iter().filter(|program| matches!(program, Program::Snigate(_))) {
            large(start(program), options.routes, options.large_reloads).await;
        }
    }
    assert!(!options.alone || failed == 0, "{failed} failures");
}

async fn reloads(proxy: Proxy, options: &Options) -> usize {
    let load = Load::start(&proxy, options).await;
    let before = proxy.memory();
    let mut ticks = interval(Duration::from_millis(100));
    for number in 0..options.reloads {
        ticks.tick().await;
        if number % 2 == 0 {
            proxy.configure([format!("extra{number}.example.com")]);
        } else {
            proxy.break_configuration();
        }
        proxy.reload();
    }
    sleep(Duration::from_secs(1)).await;
    let after = proxy.memory();
    let failed = load.end(&proxy).await;
    line("", format!("memory {} kB before, {} kB after", before / 1024, after / 1024));
    failed
}

async fn upgrades(mut proxy: Proxy, options: &Options) -> usize {
    let is_snigate = matches!(proxy.program, Program::Snigate(_));
    let descriptors = proxy.descriptors();
    let load = Load::start(&proxy, options).await;
    let (mut done, mut in_vain) = (0, 0);
    // Of old processes that have exited after an upgrade.
    let (mut took, mut remaining) = (Vec::new(), 0);
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
        // The old processes of others have streams until the end.
        if is_done && is_snigate {
            match alone(&proxy).await {
                Some(duration) => took.push(duration),
                None => remaining += 1,
            }
        }
    }
    let mut failed = load.end(&proxy).await + remaining;
    let wanted = (0..options.upgrades).filter(|number| number % 10 != 3).count();
    line("", format!("{done} of {wanted} upgrades to a working binary succeeded"));
    if is_snigate {
        failed += wanted - done;
        let [median, longest] = [50, 100].map(|percent| percentile(&took, percent));
        line(
            "",
            format!(
                "the old process exits after {median:.0} ms (median), {longest:.0} ms (longest); {remaining} times not within {SOON:?}"
            ),
        );
        // Until the last streams have ended in the proxy, too.
        sleep(SOON).await;
        let gauges = ["active", "parked"].map(|kind| proxy.metric(&format!("snigate_connections_{kind}")).unwrap());
        line(
            "",
            format!(
                "descriptors before and after: {descriptors}, {}; connections open and parked after: {gauges:?}",
                proxy.descriptors()
            ),
        );
        failed += usize::from(gauges != [0, 0]);
    }
    failed
}

/// When an old process is to have exited.
const SOON: Duration = Duration::from_secs(1);

/// How long until there is one process, if that is soon.
async fn alone(proxy: &Proxy) -> Option<Duration> {
    let begun = Instant::now();
    while proxy.processes().len() > 1 {
        if begun.elapsed() > SOON {
            return None;
        }
        sleep(Duration::from_millis(2)).await;
    }
    Some(begun.elapsed())
}

async fn restarts(mut proxy: Proxy, count: usize) {
    let client = Client::new(proxy.address);
    let mut took = Vec::new();
    for _ in 0..count {
        // So that there is something in TIME_WAIT and something open.
        let _open = within(PATIENCE, "an answer", client.open()).await.unwrap();
        proxy.kill();
        let begun = Instant::now();
        proxy.run();
        while TcpStream::connect(proxy.address).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "it does not listen");
            sleep(Duration::from_micros(200)).await;
        }
        took.push(begun.elapsed());
    }
    let [median, longest] = [50, 100].map(|percent| percentile(&took, percent));
    line(&proxy.program.name(), format!("p50 {median:.1} ms, longest {longest:.1} ms"));
}

async fn stop(mut proxy: Proxy, transfers: usize) -> usize {
    let begun = Arc::new(AtomicUsize::new(0));
    let mut downloads: JoinSet<_> = (0..transfers).map(|_| download(proxy.address, Arc::clone(&begun))).collect();
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
    let exit = proxy.exited().await.map(|exit| exit.saturating_duration_since(last).as_millis());
    let exit = exit.map_or("more than 60000".into(), |exit| exit.to_string());
    let failed = failures.len();
    line(&proxy.program.name(), format!("{failed} of {transfers} failed; exit {exit} ms after the last"));
    failures.iter().take(3).for_each(|failure| line("", failure));
    failed
}

/// How long a reload of a large file takes, how long a message takes meanwhile, and how memory grows.
async fn large(mut proxy: Proxy, routes: usize, reloads: usize) {
    let write = |proxy: &Proxy, count: usize, version: usize| {
        proxy.configure((0..count).map(|number| {
            let is_changed = number % 100 == version % 100;
            if is_changed { format!("v{version}-{number}.example.com") } else { format!("n{number}.example.com") }
        }));
    };
    let reload = |proxy: &Proxy| {
        let begun = Instant::now();
        proxy.reload();
        tokio::task::block_in_place(|| proxy.notified()).unwrap();
        begun.elapsed().as_millis()
    };

    let (stop, longest) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let pings = tokio::spawn(ping(proxy.address, stop.clone(), Arc::clone(&longest)));
    sleep(Duration::from_secs(2)).await;
    let before = longest.swap(0, Relaxed);
    let mut took = Vec::new();
    for version in 0..4 {
        write(&proxy, routes, version);
        took.push(reload(&proxy));
        sleep(Duration::from_millis(500)).await;
    }
    stop.cancel();
    pings.await.unwrap();
    let text = format!(
        "{routes} routes: the first reload takes {} ms, with a hundredth of them changed {:?} ms; 1 kB there and back takes {:.1} ms at most during it, {:.1} ms in the two seconds before",
        took[0],
        &took[1..],
        longest.load(Relaxed) as f64 / 1e3,
        before as f64 / 1e3
    );
    line(&proxy.program.name(), text);

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
    line("", format!("{} routes, {reloads} reloads: {memory:?} kB of memory after each quarter", routes / 100));
}

const DOWNLOAD: usize = 10_000_000;

/// Increments `begun` when the first byte has arrived.
async fn download(address: SocketAddr, begun: Arc<AtomicUsize>) -> Result<(), String> {
    let mut stream = open(address, Order::Send(DOWNLOAD)).await.map_err(|error| error.to_string())?;
    let mut buffer = vec![0; 65536];
    let mut received = 0;
    loop {
        let read = timeout(PATIENCE, stream.read(&mut buffer)).await;
        let read = read.map_err(|_| format!("after {received} bytes: nothing for {PATIENCE:?}"))?;
        let length = read.map_err(|error| format!("after {received} bytes: {error}"))?;
        if received == 0 {
            begun.fetch_add(1, Relaxed);
        }
        if let Some(wrong) = (0..length).find(|place| buffer[*place] != byte_at(received + place)) {
            return Err(format!("byte {} is wrong", received + wrong));
        }
        received += length;
        if length == 0 {
            return if received == DOWNLOAD { Ok(()) } else { Err(format!("closed after {received} bytes")) };
        }
    }
}

/// New connections, and streams that stay.
struct Load {
    attempts: JoinHandle<Vec<Attempt>>,
    stop: CancellationToken,
    streams: JoinSet<Result<u64, String>>,
}

impl Load {
    async fn start(proxy: &Proxy, options: &Options) -> Self {
        let (address, stop) = (proxy.address, CancellationToken::new());
        let streams = (0..options.streams).map(|number| stream(address, number, stop.clone())).collect();
        sleep(Duration::from_millis(500)).await;
        let attempts = tokio::spawn(Client::new(address).attempts(options.rate, stop.clone().cancelled_owned()));
        Self { stop, attempts, streams }
    }

    /// How many failed.
    async fn end(mut self, proxy: &Proxy) -> usize {
        self.stop.cancel();
        let attempts = self.attempts.await.unwrap();
        let (processes, count) = (proxy.processes().len(), self.streams.len());
        let (mut broken, mut bytes) = (Vec::new(), 0);
        while let Some(stream) = within(PATIENCE, "the end of the streams", self.streams.join_next()).await {
            match stream.unwrap() {
                Ok(more) => bytes += more,
                Err(failure) => broken.push(failure),
            }
        }
        line(&proxy.program.name(), format!("new connections: {}", summary(&attempts)));
        let text = format!(
            "streams: {} of {count} broken, {bytes} bytes compared; {processes} processes at the end",
            broken.len()
        );
        line("", text);
        let failed = failures(&attempts);
        failed.iter().copied().take(3).chain(broken.iter().take(3)).for_each(|failure| line("", failure));
        failed.len() + broken.len()
    }
}

/// Most messages are smaller than this.
const MESSAGE: u64 = 16 * 1024;

/// Sends messages of random sizes after random pauses, and receives all of them back meanwhile; how many bytes. Every
/// fourth stream is silent from its first message until the end.
async fn stream(address: SocketAddr, seed: usize, stop: CancellationToken) -> Result<u64, String> {
    let stream = open(address, Order::Return).await.map_err(|error| format!("stream: {error}"))?;
    let (mut reader, mut writer) = stream.into_split();
    let mut random = Random(seed as u64 + 1);
    let send = async {
        let mut sent = 0;
        let mut is_last = false;
        loop {
            let is_large = random.below(20) == 0;
            let size = 1 + random.below(if is_large { 64 * MESSAGE } else { MESSAGE }) as usize;
            let message: Vec<u8> = (0..size).map(|place| byte_at(seed + sent + place)).collect();
            writer.write_all(&message).await.map_err(|error| format!("stream: after {sent} bytes sent: {error}"))?;
            sent += size;
            if is_last {
                break;
            }
            let pause = if seed.is_multiple_of(4) { Duration::MAX } else { Duration::from_millis(random.below(2000)) };
            is_last = timeout(pause, stop.cancelled()).await.is_ok();
        }
        writer.shutdown().await.map_err(|error| format!("stream: at its end: {error}"))?;
        Ok(sent)
    };
    let receive = async {
        let mut received = 0;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let read = reader.read(&mut buffer).await;
            let length = read.map_err(|error| format!("stream: after {received} bytes: {error}"))?;
            if let Some(wrong) = (0..length).find(|place| buffer[*place] != byte_at(seed + received + place)) {
                return Err(format!("stream: byte {} is wrong", received + wrong));
            }
            received += length;
            if length == 0 {
                return Ok(received);
            }
        }
    };
    let (sent, received) = tokio::try_join!(send, receive)?;
    if sent == received { Ok(sent as u64) } else { Err(format!("stream: {received} of {sent} bytes came back")) }
}

/// Xorshift, of a seed that is not 0.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
