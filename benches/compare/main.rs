//! snigate beside HAProxy and nginx on this machine: `cargo bench --bench compare -- --help`.

#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    reason = "a bench"
)]

mod cost;
mod endpoint;
mod failover;
mod floor;
#[path = "../../tests/support/hello.rs"]
mod hello;
mod lifecycle;
mod load;
mod outage;
mod overload;
mod parked;
mod proxy;
mod report;
mod routes;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[derive(Parser)]
#[command(
    bin_name = "cargo bench --bench compare --",
    about = "Compares snigate with HAProxy and nginx, which must be installed"
)]
struct Options {
    #[command(subcommand)]
    measurement: Measurement,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Measurement {
    /// CPU time, latency and memory per connection, round trip, gigabyte and TLS handshake
    Cost(cost::Options),
    /// New connections beside thousands of stalled ClientHellos, and after file descriptors ran out
    Overload(overload::Options),
    /// New connections and streams when one of three endpoints is killed or becomes unreachable
    Failover(failover::Options),
    /// Open streams when an endpoint shuts down, is killed, freezes or becomes unreachable
    Outage,
    /// Reload, upgrade, restart and stop under load
    Lifecycle(lifecycle::Options),
    /// Memory of silent connections, and the time until their next byte arrives
    Parked(parked::Options),
    /// Start, memory, CPU time, reload and scrape with 10,000 routes
    Routes(routes::Options),
    /// One proxy's part of `parked --minutes`
    #[command(hide = true)]
    Churn(parked::Churn),
    /// Run the relay of `floor.rs`
    #[command(hide = true)]
    Floor { listen: SocketAddr, backend: SocketAddr },
    /// Run an endpoint of `endpoint.rs`
    #[command(hide = true)]
    Endpoint { answer: String },
}

#[derive(Args)]
struct Common {
    /// A short run, to see that it works; the figures mean little
    #[arg(long, global = true)]
    quick: bool,
    /// Another build of snigate to compare with; may be repeated
    #[arg(long, global = true, value_name = "BINARY")]
    against: Vec<PathBuf>,
    /// Passed by cargo
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

fn main() {
    let Options { measurement, common } = Options::parse();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    match measurement {
        Measurement::Cost(options) => cost::run(options, &common),
        Measurement::Overload(options) => overload::run(options, &common),
        Measurement::Failover(options) => failover::run(options, &common),
        Measurement::Outage => outage::run(&common),
        Measurement::Lifecycle(options) => lifecycle::run(options, &common),
        Measurement::Parked(options) => parked::run(options, &common),
        Measurement::Routes(options) => routes::run(options, &common),
        Measurement::Churn(churn) => churn.run(&common),
        Measurement::Floor { listen, backend } => floor::run(listen, backend),
        Measurement::Endpoint { answer } => endpoint::run(answer),
    }
}
