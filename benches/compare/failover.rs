//! What clients see when one of three endpoints dies, with the same health checks in each proxy: it is killed under new
//! connections at a fixed rate, or becomes unreachable (a packet filter on its sockets drops packets to it and to its
//! connections) under new connections and under streams that send a byte each second.

use std::time::{Duration, Instant};

use clap::Args;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Common;
use crate::endpoint::{ANSWER, Endpoint, Fault, proxy, streams};
use crate::load::{Attempt, end_of, runtime};
use crate::proxy::Program;
use crate::report::{self, failures, summary};

#[derive(Args)]
pub struct Options {
    /// New connections per second
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// Seconds before an endpoint dies, and as long after
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Streams that are open when an endpoint becomes unreachable
    #[arg(long, default_value_t = 60)]
    streams: usize,
}

/// How long the ends of streams are awaited.
const WATCH: Duration = Duration::from_secs(90);

pub fn run(options: Options, common: &Common) {
    let half = Duration::from_secs(if common.quick { 2 } else { options.seconds });
    for program in Program::with_health_checks(&common.against) {
        runtime().block_on(measure(&program, Fault::Killed, 0, options.rate, half));
        if !common.quick {
            runtime().block_on(measure(&program, Fault::Unreachable, options.streams, options.rate, half));
        }
    }
}

async fn measure(program: &Program, fault: Fault, count: usize, rate: u32, half: Duration) {
    let mut endpoints = [ANSWER; 3].map(Endpoint::start);
    let (_proxy, client) = proxy(program, &endpoints);
    let streams = streams(&client, count).await.into_iter();
    let deadline = Instant::now() + half + WATCH;
    let ends: JoinSet<_> = streams.map(|(stream, _)| end_of(stream, true, deadline)).collect();
    let mut died = Instant::now();
    let die = async {
        sleep(half).await;
        died = Instant::now();
        endpoints[0].inject(fault);
        sleep(half).await;
    };
    let attempts = client.attempts(rate, die).await;
    println!("{}: one of three endpoints {}", program.name(), fault.name());
    print(attempts, died);
    if count > 0 {
        let ends = ends.join_all().await;
        let after: Vec<Duration> = ends.iter().flatten().map(|end| end.saturating_duration_since(died)).collect();
        println!("  {count} streams, a third of them to it: {}", report::ends(&after, count));
    }
}

fn print(mut attempts: Vec<Attempt>, died: Instant) {
    attempts.sort_by_key(|attempt| attempt.begun);
    let begun_before = |moment| attempts.partition_point(|attempt| attempt.begun < moment);
    let (to_death, after) = attempts.split_at(begun_before(died));
    // Those begun shortly before may have been at the endpoint when it died.
    let (before, in_flight) = to_death.split_at(begun_before(died - Duration::from_millis(20)));
    println!("  before: {}", summary(before));
    println!("  in flight: {}", summary(in_flight));
    println!("  after: {}", summary(after));
    failures(after).iter().take(3).for_each(|failure| println!("    {failure}"));
}
