//! What happens to open streams, busy and silent ones, and to new connections when one of two endpoints shuts down, is
//! killed, freezes or becomes unreachable.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::Common;
use crate::endpoint::{ANSWER, Endpoint, Fault, WATCHED, proxy, streams};
use crate::load::{end_of, runtime};
use crate::proxy::Program;
use crate::report::{self, answered, percentile};

const STREAMS: usize = 30;
/// New connections.
const PER_SECOND: u32 = 50;

/// All programs and faults at the same time.
pub fn run(common: &Common) {
    // An API server ends its streams after 60 s.
    let watch = Duration::from_secs(if common.quick { 5 } else { 75 });
    runtime().block_on(async {
        let mut rows = Vec::new();
        for fault in Fault::ALL {
            for program in Program::with_health_checks(&common.against) {
                rows.push(tokio::spawn(row(program, fault, watch)));
            }
        }
        for row in rows {
            println!("{}", row.await.unwrap());
        }
    });
}

async fn row(program: Program, fault: Fault, watch: Duration) -> String {
    let mut endpoints = [WATCHED, ANSWER].map(Endpoint::start);
    let (_proxy, client) = proxy(&program, &endpoints);
    // Those to the other endpoint count for the balance.
    let (watched, _others): (Vec<_>, Vec<_>) =
        streams(&client, STREAMS).await.into_iter().partition(|(_, answer)| answer == WATCHED);
    let since = Instant::now();
    endpoints[0].inject(fault);
    let count = watched.len();
    let mut ends = JoinSet::new();
    for (number, (stream, _)) in watched.into_iter().enumerate() {
        let is_busy = number % 2 == 0;
        ends.spawn(async move { (is_busy, end_of(stream, is_busy, since + watch).await) });
    }
    let attempts = client.attempts(PER_SECOND, sleep(watch)).await;
    let failed = attempts.iter().filter(|attempt| attempt.result.is_err());
    let last = failed.clone().map(|attempt| attempt.begun - since).max();
    let ends = ends.join_all().await;
    let ended = |busy| {
        let ends: Vec<_> = ends.iter().filter(|(is_busy, _)| *is_busy == busy).map(|(_, end)| *end).collect();
        let after: Vec<Duration> = ends.iter().flatten().map(|end| end.duration_since(since)).collect();
        report::ends(&after, ends.len())
    };
    format!(
        "{:<8} {:<11} {count} streams: busy {}; silent {}; new connections: {} of {} failed{}, slowest {:.1} s",
        program.name(),
        fault.name(),
        ended(true),
        ended(false),
        failed.count(),
        attempts.len(),
        last.map_or(String::new(), |at| format!(" (the last after {:.1} s)", at.as_secs_f64())),
        percentile(&answered(&attempts), 100) / 1e3
    )
}
