//! The connections of the old process of an upgrade continue in the new one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{Instant, interval_at};
use tracing::{info, warn};

use crate::connection::hand_over::{Departing, Departures, Verdict};
use crate::process::channel::{Channel, FromPredecessor};
use crate::server::Adopter;
use crate::telemetry::Counters;

/// How often the new process learns how many connections are still open in the old one, and connections are asked again
/// to leave that could not.
const INTERVAL: Duration = Duration::from_secs(1);

/// Offers connections to the new process for as long as both run. Connections that it does not have in its configuration
/// and that are to be drained are closed after `drain`.
pub(super) async fn send(
    mut channel: Channel,
    mut departures: Departures,
    connections: impl Fn() -> usize,
    drain: Duration,
) {
    departures.ask();
    let mut tick = interval_at(Instant::now() + INTERVAL, INTERVAL);
    loop {
        let sent = tokio::select! {
            batch = departures.next() => offer(&mut channel, &departures, batch, drain).await,
            _ = tick.tick() => {
                departures.ask();
                channel.report_connections(connections() as u64).await
            }
        };
        if let Err(reason) = sent {
            info!(%reason, connections = connections(), "no more connections are handed over");
            return;
        }
    }
}

async fn offer(
    channel: &mut Channel,
    departures: &Departures,
    batch: Vec<Departing>,
    drain: Duration,
) -> io::Result<()> {
    let records: Vec<Vec<u8>> = batch.iter().map(Departing::record).collect();
    let sockets: Vec<_> = batch.iter().flat_map(Departing::sockets).collect();
    match channel.offer(&records, &sockets).await {
        Ok(answers) => {
            let verdicts: Vec<Verdict> = answers.into_iter().map(Verdict::from).collect();
            departures.apply(batch, &verdicts, drain);
            Ok(())
        }
        Err(error) => {
            batch.into_iter().for_each(Departing::stay);
            Err(error)
        }
    }
}

/// Continues the connections of the old process, and records how many it still has, until it ends.
pub(super) async fn receive(mut channel: Channel, adopter: Adopter, counters: Arc<Counters>) {
    let (mut continued, mut reported, mut remained) = (0, 0, false);
    let reason = loop {
        match channel.receive().await {
            Ok(FromPredecessor::Connections(connections)) => {
                counters.predecessor_connections.store(connections, Relaxed);
                if connections > 0 && !std::mem::replace(&mut remained, true) {
                    info!(connections, "connections continue in the old process");
                }
            }
            Ok(FromPredecessor::Offer(offered)) => {
                let (verdicts, arrived) = adopter.prepare(offered);
                continued += arrived.len();
                // Even if the old process has just ended: then nothing else has the sockets.
                let answered = channel.answer(&verdicts).await;
                for connection in arrived {
                    connection.start();
                }
                if let Err(error) = answered {
                    break error;
                }
                continue;
            }
            Err(error) => break error,
        }
        if continued > reported {
            info!(connections = continued - reported, "connections of the old process continue here");
            reported = continued;
        }
    };
    counters.predecessor_connections.store(0, Relaxed);
    if reason.kind() != io::ErrorKind::UnexpectedEof {
        warn!(%reason, "lost the connection to the old process");
    }
    info!(connections = continued - reported, "the old process has exited");
}
