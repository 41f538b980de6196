//! The established connections as they are now, for whoever operates the process.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout_at};

use crate::connection::established::measured;
use crate::connection::registry::Registry;
use crate::telemetry::{ConnectionRecord, Measured};
use crate::upstream::Endpoint;

/// Identifies an open connection of this process; not used again before four thousand million others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId {
    /// In the registry.
    pub(super) index: u32,
    /// Distinguishes it from others that had the same index.
    pub(super) serial: u32,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.index, self.serial)
    }
}

impl FromStr for ConnectionId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (index, serial) = text.split_once('-')?;
            Some(Self { index: index.parse().ok()?, serial: serial.parse().ok()? })
        };
        parse().ok_or("expected the ID of a connection, such as 17-4242")
    }
}

/// An established connection.
#[derive(Clone, Debug)]
pub(crate) struct LiveConnection {
    pub(crate) id: ConnectionId,
    pub(crate) client: SocketAddr,
    pub(crate) listener: Box<str>,
    pub(crate) route: Box<str>,
    /// The name that the client asked for, escaped.
    pub(crate) server_name: Option<Box<str>>,
    pub(crate) endpoint: SocketAddr,
    pub(crate) age: Duration,
    /// For how long no data has been moved.
    pub(crate) idle: Duration,
    /// Bytes from the client.
    pub(crate) received: u64,
    /// Bytes to the client.
    pub(crate) sent: u64,
    pub(crate) is_parked: bool,
    pub(crate) client_rtt: Option<Duration>,
    pub(crate) upstream_rtt: Option<Duration>,
}

impl LiveConnection {
    pub(super) fn new(
        id: ConnectionId,
        (record, endpoint): (&ConnectionRecord, &Endpoint),
        (client, upstream): (impl AsFd, impl AsFd),
        idle: Duration,
        is_parked: bool,
    ) -> Self {
        let (received, sent) = record.bytes();
        let Measured { client_rtt, upstream_rtt, .. } = measured(client, upstream);
        Self {
            id,
            client: record.client(),
            listener: record.listener().into(),
            route: record.route().into(),
            server_name: record.fields.server_name.clone(),
            endpoint: endpoint.address,
            age: record.age(),
            idle,
            received,
            sent,
            is_parked,
            client_rtt,
            upstream_rtt,
        }
    }
}

/// How many connections are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct States {
    pub(crate) awaiting_hello: usize,
    pub(crate) connecting: usize,
    pub(crate) relaying: usize,
    pub(crate) parked: usize,
    /// Rejected, until the client closes.
    pub(crate) rejected: usize,
}

/// Entries of the registry that are looked at under one lock. Those with a task are woken, so these are few.
const STEP: usize = 64;
/// For the answers of one step: more than a busy worker takes.
const STEP_TIMEOUT: Duration = Duration::from_millis(500);

/// Looks at all connections, a few at a time, so that none is delayed. Those that do not answer in time, because they are
/// being closed or handed over, are only counted. One caller at a time; others wait.
pub(crate) async fn survey(registry: &Arc<Registry>, mut visit: impl FnMut(LiveConnection)) -> States {
    let _turn = registry.surveying().await;
    let (answers, mut answered) = unbounded_channel();
    registry.report_to(Some(answers));
    let _guard = StopReports(registry);
    let mut states = States::default();
    let mut start = 0;
    loop {
        let step = registry.look(start..start + STEP, &mut states);
        step.parked.into_iter().for_each(&mut visit);
        receive(&mut answered, step.asked, &mut visit).await;
        if !step.has_more {
            return states;
        }
        start += STEP;
        yield_now().await;
    }
}

async fn receive(
    answered: &mut UnboundedReceiver<LiveConnection>,
    mut count: usize,
    visit: &mut impl FnMut(LiveConnection),
) {
    let deadline = Instant::now() + STEP_TIMEOUT;
    while count > 0 {
        let Ok(Some(connection)) = timeout_at(deadline, answered.recv()).await else { return };
        visit(connection);
        count -= 1;
    }
}

struct StopReports<'r>(&'r Registry);

impl Drop for StopReports<'_> {
    fn drop(&mut self) {
        self.0.report_to(None);
    }
}
