//! Latency of sparse messages, with and without `latency.spin`: 100 bytes to the endpoint and back, at a fixed rate for all
//! streams together. Proxies, clients and endpoint share all CPUs, as nothing is measured but waking up.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use clap::Args;

use crate::Common;
use crate::load::{PATIENCE, hello};
use crate::proxy::{Program, Proxy, Setup};
use crate::report::{percentile, spread};

#[derive(Args)]
pub struct Options {
    /// How often the proxies take turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3)]
    seconds: u64,
}

/// Messages per second of all streams together, and streams.
const LOADS: [(u32, u32); 4] = [(100, 1), (10_000, 1), (10_000, 8), (10_000, 64)];

type Figures = [f64; 3];

pub fn run(options: Options, common: &Common) {
    let (rounds, time) = if common.quick {
        (1, Duration::from_millis(300))
    } else {
        (options.rounds, Duration::from_secs(options.seconds))
    };
    let spins = Program::snigates(&common.against).into_iter().map(|program| (program, Some("60us")));
    let subjects: Vec<_> =
        Program::all(&common.against).into_iter().map(|program| (program, None)).chain(spins).collect();
    for (rate, streams) in LOADS {
        println!(
            "{rate} messages per second on {streams} streams: median and 99th percentile there and back, CPU of the proxy"
        );
        let mut all: Vec<Vec<Figures>> = vec![Vec::new(); subjects.len()];
        for round in 0..rounds {
            for turn in 0..subjects.len() {
                // Another proxy begins each round.
                let index = (turn + round) % subjects.len();
                let (program, spin) = &subjects[index];
                all[index].push(measure(program, *spin, rate, streams, time));
            }
        }
        for ((program, spin), rounds) in subjects.iter().zip(&all) {
            let name = spin.map_or(program.name(), |spin| format!("{}, spin {spin}", program.name()));
            print!("  {name:<24}");
            for (place, unit) in ["µs", "µs", "µs CPU per message"].into_iter().enumerate() {
                let (low, middle, high) = spread(rounds.iter().map(|figures| figures[place]));
                print!("  {middle:.0} ({low:.0} to {high:.0}) {unit}");
            }
            println!();
        }
    }
}

fn measure(program: &Program, spin: Option<&'static str>, rate: u32, streams: u32, time: Duration) -> Figures {
    let endpoint = TcpListener::bind("127.0.0.1:0").unwrap();
    let setup = Setup { spin, ..Setup::new([endpoint.local_addr().unwrap()]) };
    let proxy = Proxy::start(program, setup);
    let echoes = spawn(move || {
        for stream in endpoint.incoming().take(streams as usize) {
            spawn(move || echo(stream.unwrap()));
        }
    });
    let cpu = proxy.cpu();
    let gap = Duration::from_secs(1) * streams / rate;
    let clients: Vec<_> = (0..streams)
        .map(|number| {
            let address = proxy.address;
            spawn(move || messages(address, gap / streams * number, gap, time))
        })
        .collect();
    let took: Vec<Duration> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    let cpu = (proxy.cpu() - cpu).as_secs_f64() * 1e6 / took.len() as f64;
    echoes.join().unwrap();
    let [median, late] = [50, 99].map(|percent| percentile(&took, percent) * 1e3);
    [median, late, cpu]
}

fn echo(mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

/// Sends a message each `gap`, the first after `delay`; how long each takes.
fn messages(proxy: SocketAddr, delay: Duration, gap: Duration, time: Duration) -> Vec<Duration> {
    let hello = hello();
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&hello).unwrap();
    stream.read_exact(&mut vec![0; hello.len()]).unwrap();
    let begun = Instant::now();
    let (mut next, mut took, mut bytes) = (begun + delay, Vec::new(), [0; 100]);
    while begun.elapsed() < time {
        sleep(next.saturating_duration_since(Instant::now()));
        next += gap;
        let sent = Instant::now();
        stream.write_all(&bytes).unwrap();
        stream.read_exact(&mut bytes).unwrap();
        took.push(sent.elapsed());
    }
    took
}
