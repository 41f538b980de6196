//! The connections of the old process of an upgrade continue in the new one.

use std::io;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tracing::{info, warn};

use crate::connection::hand_over::{Departing, Departures, Verdict};
use crate::process::channel::{Channel, FromPredecessor, MAX_OFFERED};
use crate::server::Adopter;
use crate::telemetry::Counters;

/// How often the new process learns how many connections are still open in the old one.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Until the next connections are asked to leave, when nothing came of the last.
const WAVE_INTERVAL: Duration = Duration::from_millis(2);
/// When connections are asked again that could not leave. Doubled while the new process has no room.
const MIN_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(30);

/// Why connections stay in the old process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Refusals {
    not_configured: usize,
    no_room: usize,
    unknown: usize,
}

/// Offers connections to the new process until either ends. Connections that it does not have in its configuration and
/// that are to be drained are closed after `drain`.
pub(super) async fn send(
    channel: Channel,
    mut departures: Departures,
    connections: impl Fn() -> usize,
    drain: Duration,
) {
    let all_closed = departures.all_closed();
    tokio::select! {
        reason = offer_all(channel, &mut departures, &connections, drain) => {
            info!(%reason, connections = connections(), "no more connections are handed over");
        }
        // An answer that does not come must not keep this process.
        () = all_closed => {}
    }
    departures.stop().await;
}

async fn offer_all(
    mut channel: Channel,
    departures: &mut Departures,
    connections: &impl Fn() -> usize,
    drain: Duration,
) -> io::Error {
    let mut report = interval_at(Instant::now() + REPORT_INTERVAL, REPORT_INTERVAL);
    report.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut refusals, mut reported) = (Refusals::default(), Refusals::default());
    let (mut retry, mut ask_at) = (MIN_RETRY, Instant::now());
    loop {
        if ask_at <= Instant::now() && departures.waiting() < MAX_OFFERED {
            let all_were_asked = departures.ask_some();
            ask_at = Instant::now() + if all_were_asked { retry } else { WAVE_INTERVAL };
        }
        let sent = tokio::select! {
            batch = departures.next(MAX_OFFERED) => {
                let before = refusals.no_room;
                let offered = offer(&mut channel, departures, batch, drain, &mut refusals).await;
                if refusals.no_room > before {
                    departures.return_waiting();
                    ask_at = Instant::now() + retry;
                    retry = (retry * 2).min(MAX_RETRY);
                } else {
                    retry = MIN_RETRY;
                    if ask_at <= Instant::now() + WAVE_INTERVAL {
                        ask_at = Instant::now();
                    }
                }
                offered
            }
            _ = report.tick() => {
                let new = mem::take(&mut refusals);
                if new != Refusals::default() && new != reported {
                    let Refusals { not_configured, no_room, unknown } = new;
                    info!(not_configured, no_room, unknown, "the new process has refused connections; they continue here");
                    reported = new;
                }
                channel.report_connections(connections() as u64).await
            }
            () = sleep_until(ask_at) => Ok(()),
        };
        if let Err(error) = sent {
            return error;
        }
    }
}

async fn offer(
    channel: &mut Channel,
    departures: &mut Departures,
    batch: Vec<Departing>,
    drain: Duration,
    refusals: &mut Refusals,
) -> io::Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
    let records: Vec<Vec<u8>> = batch.iter().map(Departing::record).collect();
    let sockets: Vec<_> = batch.iter().flat_map(Departing::sockets).collect();
    let answers = match channel.offer(&records, &sockets).await {
        Ok(answers) => answers,
        Err(error) => {
            batch.into_iter().for_each(Departing::stay);
            return Err(error);
        }
    };
    for (departing, answer) in batch.into_iter().zip(answers) {
        let verdict = Verdict::from_repr(answer).unwrap_or(Verdict::Unknown);
        match verdict {
            Verdict::Adopted => {}
            Verdict::NotConfigured => refusals.not_configured += 1,
            Verdict::NoRoom => refusals.no_room += 1,
            Verdict::Unknown => refusals.unknown += 1,
        }
        departures.apply(departing, verdict, drain);
    }
    Ok(())
}

/// Continues the connections of the old process, and records how many it still has, until it ends.
pub(super) async fn receive(mut channel: Channel, mut adopter: Adopter, counters: Arc<Counters>) {
    let (mut continued, mut reported, mut remained) = (0, 0, false);
    let reason = loop {
        let answered = match channel.receive().await {
            Ok(FromPredecessor::Connections(connections)) => {
                adopter.pause();
                counters.predecessor_connections.store(connections, Relaxed);
                if connections > 0 && !mem::replace(&mut remained, true) {
                    info!(connections, "connections continue in the old process");
                }
                if continued > reported {
                    info!(connections = continued - reported, "connections of the old process continue here");
                    reported = continued;
                }
                Ok(())
            }
            Ok(FromPredecessor::Offer(offered)) => {
                let (verdicts, arrived) = adopter.prepare(offered);
                continued += arrived.len();
                // Even if the old process has just ended: then nothing else has the sockets.
                let answered = channel.answer(&verdicts).await;
                for connection in arrived {
                    connection.start();
                }
                answered
            }
            Ok(FromPredecessor::NoDescriptors(connections)) => {
                warn!(connections, "no file descriptors for connections of the old process; it offers them again");
                channel.answer(&Adopter::no_room(connections)).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = answered {
            break error;
        }
    };
    counters.predecessor_connections.store(0, Relaxed);
    let connections = continued - reported;
    if reason.kind() == io::ErrorKind::UnexpectedEof {
        info!(connections, "the old process has exited");
    } else {
        warn!(%reason, connections, "lost the connection to the old process");
    }
}
