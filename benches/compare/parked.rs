//! Connections at rest: the memory that they take, how soon a byte arrives that ends the rest of one, and what it does to
//! others when thousands continue at once. Also the memory over an hour in which connections come and go.
//!
//! The proxy is on the first CPU, both ends of all connections are in one thread on the last. Nothing there is
//! asynchronous, so that the time of a byte is that of two system calls and of the proxy.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use clap::Args;
use procfs::Current as _;
use rustix::process::nice;

use crate::Common;
use crate::load::{PATIENCE, descriptors, hello};
use crate::proxy::{Parking, Program, Proxy, Setup, pin, until};
use crate::report::{percentile, spread};

#[derive(Args)]
pub struct Options {
    /// How often the proxies take turns
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only `memory`, `wake`, `burst` or `churn`
    #[arg(long, default_value = "")]
    only: String,
    /// Silent connections, as far as file descriptors allow; more than 28,000 need a wider
    /// `net.ipv4.ip_local_port_range`
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// How often a single connection is woken
    #[arg(long, default_value_t = 2500)]
    wakes: usize,
    /// How often all connections are woken at once
    #[arg(long, default_value_t = 5)]
    bursts: usize,
    /// How long connections come and go in `churn`, which is of builds of snigate only, and left out without this
    #[arg(long)]
    minutes: Option<u64>,
}

/// All builds of snigate at once, each in front of a process of its own, which has the descriptors of its connections.
#[derive(Args, Clone, Copy)]
pub struct Churn {
    /// Which build of snigate
    index: usize,
    minutes: u64,
    connections: usize,
}

/// Descriptors of this process, or of a proxy, that are not for silent connections; snigate needs most.
const RESERVED: usize = 800;
/// Single connections are woken one after the other, at a low rate.
const PAUSE: Duration = Duration::from_millis(5);
/// So many that each is parked again before its next turn.
const WOKEN: usize = 250;
/// Streams that are busy while others are woken.
const ACTIVE: usize = 10;

/// A proxy; of snigate, when it parks.
#[derive(Clone)]
struct Subject {
    program: Program,
    park_after: Option<&'static str>,
}

type Figures = Vec<(&'static str, f64)>;

pub fn run(options: Options, common: &Common) {
    let cpus = std::thread::available_parallelism().unwrap().get();
    pin(cpus - 1..cpus);
    let room = (descriptors() - RESERVED) / 2;
    let (rounds, wanted, wakes, bursts) = if common.quick {
        (1, 500, 300, 1)
    } else {
        (options.rounds, options.connections, options.wakes, options.bursts)
    };
    let connections = wanted.min(room);
    if connections < wanted {
        println!("{connections} connections instead of {wanted}: for more, raise RLIMIT_NOFILE");
    }
    if "memory".contains(&options.only) {
        println!("memory: the proxy's own, in bytes for each of {connections} connections");
        turns(&common.against, &["100ms", "2s"], rounds, |subject| {
            memory(&Rig::start(subject, connections), connections)
        });
    }
    if "wake".contains(&options.only) {
        println!("\nwake: {wakes} times one byte on one of {WOKEN} silent connections, until it is at the other end");
        turns(&common.against, &["100ms"], rounds, |subject| wake(&Rig::start(subject, WOKEN), wakes));
    }
    if "burst".contains(&options.only) {
        println!(
            "\nburst: a byte there and back on {connections} silent connections at once, {bursts} times; the delay of messages on {ACTIVE} others"
        );
        let connections = connections - ACTIVE;
        turns(&common.against, &["500ms"], rounds, |subject| {
            burst(&Rig::start(subject, connections), connections, bursts)
        });
    }
    if let Some(minutes) = options.minutes.filter(|_| "churn".contains(&options.only)) {
        Churn::run_all(minutes, connections, &common.against);
    }
}

/// Connections that come and go, per second.
const SHORT: usize = 50;
/// Silent connections that are replaced by others, per second.
const REPLACED: usize = 10;
/// Silent connections that have a byte each way, per second.
const SPEAKING: usize = 200;
/// How long until a burst is over and everything is parked again.
const AFTER_BURST: Duration = Duration::from_secs(30);

impl Churn {
    fn run_all(minutes: u64, connections: usize, against: &[PathBuf]) {
        println!(
            "\nchurn: {minutes} minutes with {SHORT} short connections, {REPLACED} new silent ones and {SPEAKING} messages on silent ones per second, of which there are {} to {}; then {connections} that speak at once; the proxy's own memory in MB",
            connections / 6,
            connections / 2,
        );
        let start = |index: usize| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.arg("churn").args([index.to_string(), minutes.to_string(), connections.to_string()]);
            for binary in against {
                command.arg("--against").arg(binary);
            }
            command.spawn().unwrap()
        };
        let children: Vec<Child> = (0..Program::snigates(against).len()).map(start).collect();
        children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    }

    pub fn run(self, common: &Common) {
        let Self { index, minutes, connections } = self;
        let cpus = std::thread::available_parallelism().unwrap().get();
        pin(cpus - 1..cpus);
        let program = Program::snigates(&common.against).swap_remove(index);
        let subject = Subject { program, park_after: Some("1s") };
        let rig = Rig::start(&subject, connections);
        let own = || rig.proxy.own_memory() as f64 / 1e6;
        let mut silent = rig.open(connections / 6);
        let mut samples = Vec::new();
        for minute in 1..=minutes {
            // A few thousand more after some minutes, then fewer again.
            let third = connections / 3;
            let wanted = connections / 6 + third - third.abs_diff(minute as usize % 10 * third / 5);
            for second in 0..60 {
                let begun = Instant::now();
                rig.churn(&mut silent, wanted, 60 - second);
                sleep(Duration::from_secs(1).saturating_sub(begun.elapsed()));
            }
            samples.push(own());
            eprintln!("{:<26} minute {minute}: {} silent, {:.2} MB", subject.name(), silent.len(), own());
        }
        let (least, _, most) = spread(samples.iter().copied());
        silent.truncate(connections);
        silent.extend(rig.open(connections - silent.len()));
        rig.wait_until_parked(connections);
        sleep(AFTER_BURST);
        let (before, cpu) = (own(), rig.proxy.cpu());
        wake_all(&mut silent);
        let burst = own();
        sleep(AFTER_BURST);
        rig.wait_until_parked(connections);
        let after = own();
        for _ in 0..4 {
            wake_all(&mut silent);
            rig.wait_until_parked(connections);
        }
        sleep(AFTER_BURST);
        let later = own();
        drop(silent);
        sleep(AFTER_BURST);
        println!(
            "  {:<26}  each minute {least:.1} to {most:.1}, the last {:.1}; before the burst {before:.1}, at its end {burst:.1}, {} s later {after:.1}, after four more {later:.1}, after the end of all {:.1}; CPU {:.0} s",
            subject.name(),
            samples[samples.len() - 1],
            AFTER_BURST.as_secs(),
            own(),
            cpu.as_secs_f64(),
        );
    }
}

/// Prints the medians of all rounds, with the spread.
fn turns(against: &[PathBuf], park_after: &[&'static str], rounds: usize, measure: impl Fn(&Subject) -> Figures) {
    let mut subjects = Vec::new();
    for program in Program::all(against) {
        let settings = match program {
            Program::Snigate(_) => park_after.iter().copied().chain(["never"]).map(Some).collect(),
            _ => vec![None],
        };
        subjects.extend(settings.into_iter().map(|park_after| Subject { program: program.clone(), park_after }));
    }
    let mut all: Vec<Vec<Figures>> = vec![Vec::new(); subjects.len()];
    for round in 0..rounds {
        for turn in 0..subjects.len() {
            // Another proxy begins each round.
            let index = (turn + round) % subjects.len();
            let figures = measure(&subjects[index]);
            eprintln!("{:<26} round {} {figures:.1?}", subjects[index].name(), round + 1);
            all[index].push(figures);
        }
    }
    for (subject, rounds) in subjects.iter().zip(&all) {
        print!("  {:<26}", subject.name());
        for (place, (name, _)) in rounds[0].iter().enumerate() {
            let (low, middle, high) = spread(rounds.iter().map(|figures| figures[place].1));
            let decimals = if high < 100.0 { 1 } else { 0 };
            print!("  {name} {middle:.decimals$} ({low:.decimals$} to {high:.decimals$})");
        }
        println!();
    }
}

impl Subject {
    fn name(&self) -> String {
        let name = self.program.name();
        self.park_after.map_or(name.clone(), |after| format!("{name}, park_after {after}"))
    }
}

/// A proxy and its only endpoint.
struct Rig {
    proxy: Proxy,
    listener: TcpListener,
}

impl Rig {
    fn start(subject: &Subject, connections: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let limit = match subject.program {
            // Both ends count.
            Program::Nginx => 2 * connections + 200,
            _ => connections + 50,
        };
        let setup = Setup {
            workers: Some(1),
            connections: Some(limit),
            parking: subject.park_after.map(Parking::after),
            ..Setup::new([listener.local_addr().unwrap()])
        };
        Self { proxy: Proxy::start(&subject.program, setup), listener }
    }

    fn open(&self, count: usize) -> Vec<Pair> {
        (0..count).map(|_| Pair::open(self.proxy.address, &self.listener)).collect()
    }

    /// One second of connections that come and go, on the way to so many silent ones.
    fn churn(&self, silent: &mut Vec<Pair>, wanted: usize, seconds_left: usize) {
        drop(self.open(SHORT));
        let more = wanted.saturating_sub(silent.len()) / seconds_left;
        let fewer = silent.len().saturating_sub(wanted) / seconds_left;
        for _ in 0..REPLACED + fewer {
            silent.swap_remove(fastrand::usize(..silent.len()));
        }
        silent.extend(self.open(REPLACED + more));
        for _ in 0..SPEAKING {
            let chosen = fastrand::usize(..silent.len());
            let pair = &mut silent[chosen];
            pair.up();
            pair.down();
        }
    }

    /// Until so many are parked, if they ever are.
    fn wait_until_parked(&self, count: usize) {
        sleep(Duration::from_millis(700));
        match &self.proxy.setup.parking {
            Some(parking) if parking.after != "never" => {
                until("all are parked", || {
                    sleep(Duration::from_millis(50));
                    self.proxy.metric("snigate_connections_parked") == Some(count as u64)
                });
            }
            _ => {}
        }
    }
}

/// Both ends of a connection.
struct Pair {
    client: TcpStream,
    endpoint: TcpStream,
}

impl Pair {
    fn open(proxy: SocketAddr, listener: &TcpListener) -> Self {
        let hello = hello();
        let mut client = TcpStream::connect(proxy).unwrap();
        client.write_all(&hello).unwrap();
        let mut endpoint = listener.accept().unwrap().0;
        for stream in [&client, &endpoint] {
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        endpoint.read_exact(&mut vec![0; hello.len()]).unwrap();
        let mut pair = Self { client, endpoint };
        pair.down();
        pair
    }

    /// Sends a byte to the endpoint; how long it takes.
    fn up(&mut self) -> Duration {
        pass(&mut self.client, &mut self.endpoint)
    }

    /// Sends a byte to the client; how long it takes.
    fn down(&mut self) -> Duration {
        pass(&mut self.endpoint, &mut self.client)
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) -> Duration {
    let begun = Instant::now();
    send(from);
    receive(to);
    begun.elapsed()
}

fn send(stream: &mut TcpStream) {
    stream.write_all(b"x").unwrap();
}

fn receive(stream: &mut TcpStream) {
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

/// A byte there and back on all of them at once.
fn wake_all(pairs: &mut [Pair]) {
    pairs.iter_mut().for_each(|pair| send(&mut pair.client));
    for pair in &mut *pairs {
        receive(&mut pair.endpoint);
        send(&mut pair.endpoint);
    }
    pairs.iter_mut().for_each(|pair| receive(&mut pair.client));
}

/// What silent connections take after their first message; after all have spoken again one after the other; while all of
/// them speak at once, after that, and after four more times; and what is left of that when all have ended. Opened within
/// `park_after`, nearly all of them are awake at once from the beginning.
fn memory(rig: &Rig, connections: usize) -> Figures {
    let few = rig.open(connections / 10);
    rig.wait_until_parked(few.len());
    let added = (connections - few.len()) as f64;
    let own = || rig.proxy.own_memory() as f64;
    let slab = || procfs::Meminfo::current().unwrap().slab as f64;
    let (low, low_slab) = (own(), slab());
    let each = || (own() - low) / added;
    let settled = || {
        rig.wait_until_parked(connections);
        each()
    };
    let mut many = rig.open(connections - few.len());
    let first = settled();
    let kernel = (slab() - low_slab) / added;
    for pair in &mut many {
        pair.up();
        pair.down();
    }
    let again = settled();
    wake_all(&mut many);
    let awake = each();
    let after = settled();
    for _ in 0..4 {
        wake_all(&mut many);
        settled();
    }
    let later = each();
    drop(many);
    rig.wait_until_parked(few.len());
    vec![
        ("first", first),
        ("again", again),
        ("all at once", awake),
        ("after that", after),
        ("four times later", later),
        ("after their end", each()),
        ("kernel", kernel),
    ]
}

fn wake(rig: &Rig, times: usize) -> Figures {
    let mut pairs = rig.open(WOKEN);
    rig.wait_until_parked(WOKEN);
    let (mut took, cpu) = (Vec::new(), rig.proxy.cpu());
    for number in 0..times {
        let pair = &mut pairs[number % WOKEN];
        took.push(if (number / WOKEN).is_multiple_of(2) { pair.up() } else { pair.down() });
        sleep(PAUSE);
    }
    let cpu = (rig.proxy.cpu() - cpu).as_secs_f64() * 1e6 / times as f64;
    rig.wait_until_parked(WOKEN);
    let [p50, p99, longest] = [50, 99, 100].map(|percent| percentile(&took, percent) * 1e3);
    vec![("p50 µs", p50), ("p99 µs", p99), ("longest µs", longest), ("CPU µs", cpu)]
}

fn burst(rig: &Rig, connections: usize, times: usize) -> Figures {
    let mut pairs = rig.open(connections);
    let longest = Arc::new(AtomicU64::new(0));
    let active: Vec<_> = rig.open(ACTIVE).into_iter().map(|pair| Active::start(pair, Arc::clone(&longest))).collect();
    let (mut took, mut before, mut during) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..times {
        rig.wait_until_parked(connections);
        longest.store(0, Relaxed);
        sleep(Duration::from_millis(500));
        before.push(Duration::from_micros(longest.swap(0, Relaxed)));
        let begun = Instant::now();
        wake_all(&mut pairs);
        took.push(begun.elapsed());
        // A message that is still on its way.
        sleep(Duration::from_millis(100));
        during.push(Duration::from_micros(longest.load(Relaxed)));
    }
    drop(active);
    vec![
        ("all answers ms", percentile(&took, 50)),
        ("longest ms", percentile(&took, 100)),
        ("delay of others ms", percentile(&during, 50)),
        ("longest ms", percentile(&during, 100)),
        ("before ms", percentile(&before, 100)),
    ]
}

/// A busy stream, until it is dropped.
struct Active {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Active {
    /// Keeps the longest time of a byte, in microseconds.
    fn start(mut pair: Pair, longest: Arc<AtomicU64>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            // Before the thread with all the others; without the right to that, figures are of both.
            let _ = nice(-10);
            while !stopped.load(Relaxed) {
                longest.fetch_max(pair.up().max(pair.down()).as_micros() as u64, Relaxed);
                sleep(Duration::from_millis(1));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
