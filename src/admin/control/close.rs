//! Closes the connections that match a filter, no faster than said, for as long as the operator waits for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::channel::{Channel, Sender};
use hyper::Response;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::task::consume_budget;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until};
use tracing::info;

use super::connections::{Filter, matching};
use super::{ControlHandles, Query};
use crate::admin::answer::{JSON_LINES, respond_with};
use crate::admin::body::{self, Body};
use crate::connection::live::{ConnectionId, LiveConnection};
use crate::connection::registry::Registry;
use crate::process::unix_socket::Peer;

/// Connections per second.
const DEFAULT_RATE: u32 = 100;
const MAX_RATE: u32 = 100_000;

/// How often the operator learns how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// A connection that has another message pending is tried again after this, and so often.
const RETRY_AFTER: Duration = Duration::from_millis(20);
const RETRIES: usize = 5;
/// Timers are late by so much at most times. At high rates, several connections are closed at a time.
const TIMER_LATENESS: Duration = Duration::from_millis(10);

/// What is to be closed.
#[derive(Debug)]
pub(super) struct Closing {
    filter: Filter,
    rate: u32,
    is_dry_run: bool,
    operator: Peer,
}

impl Closing {
    /// Takes the other parameters out of the query; the error says what is expected.
    pub(super) fn take(query: &mut Query, filter: Filter, operator: Peer) -> Result<Self, String> {
        let is_all = query.flag("all")?;
        let is_dry_run = query.flag("dry_run")?;
        let rate = query.parse("rate", "connections per second, 1 to 100000")?.unwrap_or(DEFAULT_RATE);
        if !(1..=MAX_RATE).contains(&rate) {
            return Err(format!("rate: `{rate}`: expected connections per second, 1 to {MAX_RATE}"));
        }
        match (filter.is_empty(), is_all) {
            (true, false) => Err("without a filter, all connections would be closed: say so with all=true".into()),
            (false, true) => Err("all=true and a filter contradict each other".into()),
            _ => Ok(Self { filter, rate, is_dry_run, operator }),
        }
    }
}

/// Starts to close, and answers with lines of JSON: how many match, and how far it is.
pub(super) fn start(handles: &Arc<ControlHandles>, closing: Closing) -> Response<Body> {
    let (sender, channel) = Channel::new(4);
    tokio::spawn(close(Arc::clone(handles), closing, sender));
    respond_with(JSON_LINES, body::infallible(channel))
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    closed: usize,
    /// They had ended meanwhile.
    ended: usize,
    /// They were being closed or handed over.
    missed: usize,
}

async fn close(handles: Arc<ControlHandles>, closing: Closing, mut sender: Sender<Bytes>) {
    let Closing { filter, rate, is_dry_run, operator } = closing;
    let registry = &handles.registry;
    let (connections, _) = matching(registry, &filter).await;
    let matched = connections.len();
    if !say(&mut sender, &summary(&connections, handles.predecessor_connections())).await || is_dry_run {
        return;
    }
    let ids: Vec<ConnectionId> = connections.into_iter().map(|connection| connection.id).collect();
    let mut progress = Progress::default();
    let mut pace = Pace::new(rate);
    let mut report = interval_at(pace.next + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
    report.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_heard = true;
    for id in ids {
        while is_heard {
            tokio::select! {
                // First, also where closing takes longer than the rate allows for.
                biased;
                _ = report.tick() => is_heard = say(&mut sender, &progress.json(false)).await,
                () = pace.wait() => break,
            }
        }
        if !is_heard {
            break;
        }
        pace.advance();
        close_one(registry, id, &mut progress).await;
        consume_budget().await;
    }
    let Progress { closed, ended, missed } = progress;
    let Peer { user, process } = operator;
    let filter = filter.text();
    info!(
        verb = "close",
        filter,
        rate,
        matched,
        closed,
        ended,
        missed,
        interrupted = !is_heard,
        operator.user = user,
        operator.process = process,
        "operator: close"
    );
    say(&mut sender, &progress.json(true)).await;
}

/// When the next connection is closed.
struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    fn new(rate: u32) -> Self {
        Self { interval: Duration::from_secs(1) / rate, next: Instant::now() }
    }

    async fn wait(&self) {
        if self.next > Instant::now() {
            sleep_until(self.next).await;
        }
    }

    /// A longer delay is not made up for.
    fn advance(&mut self) {
        self.next = self.next.max(Instant::now() - TIMER_LATENESS) + self.interval;
    }
}

async fn close_one(registry: &Registry, id: ConnectionId, progress: &mut Progress) {
    for _ in 0..RETRIES {
        if registry.close_one(id) {
            progress.closed += 1;
            return;
        }
        if !registry.is_open(id) {
            progress.ended += 1;
            return;
        }
        sleep(RETRY_AFTER).await;
    }
    progress.missed += 1;
}

fn summary(connections: &[LiveConnection], elsewhere: u64) -> Value {
    let mut routes: BTreeMap<&str, usize> = BTreeMap::new();
    for connection in connections {
        *routes.entry(&connection.route).or_default() += 1;
    }
    json!({"matched": connections.len(), "routes": routes, "predecessor_connections": elsewhere})
}

impl Progress {
    fn json(self, is_done: bool) -> Value {
        let Self { closed, ended, missed } = self;
        json!({"closed": closed, "ended": ended, "missed": missed, "done": is_done})
    }
}

/// Whether the operator is still there.
async fn say(sender: &mut Sender<Bytes>, line: &Value) -> bool {
    sender.send_data(Bytes::from(format!("{line}\n"))).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many are closed within this time.
    async fn closed_within(pace: &mut Pace, time: Duration) -> u32 {
        let end = Instant::now() + time;
        let mut closed = 0;
        while pace.next < end {
            pace.wait().await;
            pace.advance();
            closed += 1;
        }
        sleep_until(end).await;
        closed
    }

    #[tokio::test(start_paused = true)]
    async fn h28_a_rate_is_kept_and_no_delay_is_made_up_for() {
        for (rate, delay) in [(1, 10), (10, 2), (100, 1), (MAX_RATE, 1)] {
            let mut pace = Pace::new(rate);
            let second = Duration::from_secs(1);
            assert_eq!(closed_within(&mut pace, second).await, rate);
            sleep(Duration::from_secs(delay)).await;
            let burst = rate / 100 + 1;
            let closed = closed_within(&mut pace, second).await;
            assert!((rate..=rate + burst).contains(&closed), "{rate}: {closed}");
        }
    }
}
