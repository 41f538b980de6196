//! snigate beside HAProxy and nginx on this machine: `cargo bench --bench versus -- --help`.
//!
//! Each proxy runs alone on one CPU and routes the same canned hello to a backend without crypto; load and backend run
//! on the other. The proxies take turns in short slices, so that a machine that slows down slows down all of them, and
//! what is compared is the CPU time of the proxy's own process, per unit of work, within one round. At the end is
//! what clients see of each while others take all they can (`--only stalled`, `--only descriptors`).

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a bench"
)]

mod crowd;
#[path = "../deadline/mod.rs"]
mod deadline;
mod floor;
mod load;
mod measure;
mod proxy;
mod report;
#[path = "../../tests/support/hello.rs"]
mod sample;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use load::{Load, Work};
use proxy::{Kind, Proxy};
use report::{Cell, Table};

#[derive(Parser)]
#[command(about = "Compares snigate with HAProxy and nginx, which must be installed")]
struct Options {
    /// Two short rounds, to see that it works; the figures mean little
    #[arg(long)]
    quick: bool,
    /// How often the proxies take turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only workloads whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// So many stalled hellos, as far as descriptors allow
    #[arg(long, default_value_t = 10_000)]
    stalled: usize,
    /// For so long beside them
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Another build of snigate to compare with; may be repeated
    #[arg(long, value_name = "BINARY")]
    against: Vec<PathBuf>,
    /// Worker threads, and CPUs, of each proxy
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Write all figures here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Be the floor: listen here, relay to there
    #[arg(long, hide = true, num_args = 2)]
    floor: Option<Vec<SocketAddr>>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    if let Some(addresses) = options.floor {
        floor::run(addresses[0], addresses[1]);
    }
    let kinds = Kind::all(&options.against);
    let rounds = if options.quick { 2 } else { options.rounds };
    let scale = if options.quick { 20 } else { 1 };
    let mut load = Load::new();
    let mut table = Table::new(&kinds);

    for work in Work::all() {
        if !work.name().contains(&options.only) {
            continue;
        }
        for round in 0..rounds {
            for turn in 0..kinds.len() {
                // Another proxy begins each round.
                let kind = &kinds[(turn + round) % kinds.len()];
                if !kind.does(work) {
                    continue;
                }
                let proxy = Proxy::start(kind, load.backend(work), options.workers);
                let cell = match work {
                    Work::Idle { connections } => idle(&mut load, &proxy, connections / scale),
                    _ => busy(&mut load, &proxy, work, scale),
                };
                eprintln!("{:<28} {:<28} round {} {cell}", work.name(), kind.name(), round + 1);
                table.add(&work, kind, cell);
            }
        }
    }
    print!("{}", table.text());
    let rounds = if options.quick { 1 } else { 2 };
    if crowd::STALLED.contains(&options.only) {
        let (stalled, seconds) = if options.quick { (500, 2) } else { (options.stalled, options.seconds) };
        print!("{}", crowd::stalled(&mut load, &kinds, stalled, seconds, rounds));
    }
    if crowd::DESCRIPTORS.contains(&options.only) {
        print!("{}", crowd::descriptors(&mut load, &kinds, if options.quick { 2 } else { 10 }, rounds));
    }
    if let Some(path) = options.json {
        std::fs::write(path, table.json()).unwrap();
    }
}

/// CPU per unit of work, and the time the client saw.
fn busy(load: &mut Load, proxy: &Proxy, work: Work, scale: usize) -> Cell {
    load.run(proxy.address(), work.scaled(scale * 10));
    let cpu = || proxy.pid().map(measure::cpu);
    let (before, start) = (cpu(), Instant::now());
    let latencies = load.run(proxy.address(), work.scaled(scale));
    let (wall, after) = (start.elapsed(), cpu());
    let cpu = before.zip(after).map(|(before, after)| after - before);
    Cell::busy(cpu, wall, work.scaled(scale).units(), &latencies)
}

/// Memory per idle connection: the slope between a tenth of them and all. Then all are closed and opened again: what
/// that adds is memory that was neither given back nor used again.
fn idle(load: &mut Load, proxy: &Proxy, connections: usize) -> Cell {
    let pid = proxy.pid().unwrap();
    let settled = || {
        std::thread::sleep(Duration::from_millis(300));
        (measure::resident(pid), measure::slab())
    };
    let few = load.hold(proxy.address(), connections / 10);
    let (low, slab_low) = settled();
    let many = load.hold(proxy.address(), connections - few.len());
    let (high, slab_high) = settled();
    let added = many.len() as f64;
    drop((few, many));
    std::thread::sleep(Duration::from_secs(2));
    let again = load.hold(proxy.address(), connections);
    let (second, _) = settled();
    drop(again);
    Cell::idle((high - low) / added, (slab_high - slab_low) / added, (second - high) / connections as f64)
}
