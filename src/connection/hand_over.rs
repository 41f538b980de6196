//! Established connections on their way to another process, which serves in place of this one.
//!
//! A connection leaves at a moment of rest. Until the other process has confirmed that it continues the connection, this
//! process keeps its own descriptors and can continue it itself. It neither reads nor writes meanwhile, so that there is never
//! more than one process that does.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, TcpStream as Socket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strum::FromRepr;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::sleep;

use crate::connection::RouteTarget;
use crate::connection::admission::{SourceLimits, SourceTable};
use crate::connection::established::Established;
use crate::connection::parking::{Parked, Unparked};
use crate::connection::registry::{CloseReason, Registry};
use crate::relay::{PortableRest, RelaySettings};
use crate::telemetry::{ConnectionRecord, Counters, ListenerTelemetry, PortableRecord};
use crate::upstream::{EndpointId, OnRemove};

/// Version of the serialized [`PortableConnection`]; a process adopts only its own version.
const VERSION: u32 = 1;

/// A connection without its sockets.
#[derive(Debug, Deserialize, Serialize)]
struct PortableConnection {
    listener: Box<str>,
    route: Box<str>,
    endpoint: SocketAddr,
    /// Whether it stays open if the endpoint is no longer configured.
    is_kept: bool,
    /// Until it is too old.
    time_left: Option<Duration>,
    record: PortableRecord,
    rest: PortableRest,
}

#[derive(Deserialize, Serialize)]
struct Versioned<C> {
    version: u32,
    connection: C,
}

/// The answer of the other process to a connection that it was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr)]
#[repr(u8)]
pub(crate) enum Verdict {
    /// It continues the connection.
    Adopted = b'a',
    /// Its configuration has no such route, or no such endpoint in it.
    NotConfigured = b'c',
    /// It has no room for a connection now.
    NoRoom = b'r',
    /// It does not understand the record.
    Unknown = b'u',
}

/// Between connections that are closed: thousands of clients must not reconnect at the same moment.
const PAUSE: Duration = Duration::from_millis(1);
/// Between attempts to close one.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// Entries of the registry that are asked at a time. Those that are asked wait until they are offered, so these are few.
const WAVE: usize = 256;

/// The connections that leave this process.
#[derive(Debug)]
pub(crate) struct Departures {
    registry: Arc<Registry>,
    sender: UnboundedSender<Unparked>,
    leaving: UnboundedReceiver<Unparked>,
    /// The next index of the registry to ask.
    next: usize,
    /// The number of connections that are not configured in the other process.
    removed: u32,
}

impl Departures {
    /// From now on connections leave when they come to rest. Those that are open have to be asked for it.
    pub(crate) fn start(registry: &Arc<Registry>) -> Self {
        let (sender, leaving) = mpsc::unbounded_channel();
        registry.leave_to(sender.clone());
        Self { registry: Arc::clone(registry), sender, leaving, next: 0, removed: 0 }
    }

    /// The number of connections that have come to rest and wait.
    pub(crate) fn waiting(&self) -> usize {
        self.leaving.len()
    }

    /// Asks the next connections to leave. Whether all have been asked; then it begins anew.
    pub(crate) fn ask_some(&mut self) -> bool {
        let (parked, has_more) = self.registry.ask_to_leave(self.next..self.next + WAVE);
        for mut unparked in parked {
            // Otherwise its events would be reported here for as long as another process has it.
            unparked.unwatch();
            if let Err(failed) = self.sender.send(unparked) {
                failed.0.park();
            }
        }
        self.next = if has_more { self.next + WAVE } else { 0 };
        !has_more
    }

    /// Waits for connections that have come to rest, and returns at most `limit`. None if all have a message to receive here.
    pub(crate) async fn next(&mut self, limit: usize) -> Vec<Departing> {
        let mut batch = Vec::with_capacity(limit);
        self.leaving.recv_many(&mut batch, limit).await;
        let offered = |mut unparked: Unparked| {
            if unparked.handle.begin_offer() {
                return Some(Departing(Some(unparked)));
            }
            unparked.resume();
            None
        };
        batch.into_iter().filter_map(offered).collect()
    }

    /// Applies the verdict on a connection. Unless it is adopted, it continues here; if its route or endpoint is not
    /// configured any more, it is closed by `on_remove`, if that is to drain after `drain`.
    pub(crate) fn apply(&mut self, departing: Departing, verdict: Verdict, drain: Duration) {
        let Some(mut unparked) = departing.take() else { return };
        if verdict != Verdict::Adopted {
            unparked.handle.end_offer();
        }
        match verdict {
            Verdict::Adopted => unparked.handed_over(),
            Verdict::NoRoom => unparked.park(),
            Verdict::Unknown => unparked.stay_for_good(),
            Verdict::NotConfigured => {
                let endpoint = unparked.connection.established.slot.endpoint();
                let (policy, connection) = (endpoint.on_left_behind(), (unparked.handle.index() as usize, endpoint.id));
                unparked.stay_for_good();
                let after = match policy {
                    OnRemove::Cut => Duration::ZERO,
                    OnRemove::Drain => drain,
                    OnRemove::Keep => return,
                };
                self.removed += 1;
                let after = after + PAUSE * self.removed;
                tokio::spawn(close_after(Arc::clone(&self.registry), connection, after));
            }
        }
    }

    /// The connections that wait continue here; they can be asked again.
    pub(crate) fn return_waiting(&mut self) {
        while let Ok(unparked) = self.leaving.try_recv() {
            unparked.park();
        }
    }

    /// No more connections leave, because the other process is gone: those that wait continue here.
    pub(crate) async fn stop(mut self) {
        self.registry.stop_leaving();
        self.leaving.close();
        // Also those that are just being sent.
        while let Some(unparked) = self.leaving.recv().await {
            unparked.park();
        }
    }

    /// Completes when this process closes its connections.
    pub(crate) fn all_closed(&self) -> impl Future<Output = ()> + use<> {
        let registry = Arc::clone(&self.registry);
        async move { registry.all_closed().await }
    }
}

/// Closes a connection after some time, if it is still connected to this endpoint.
async fn close_after(registry: Arc<Registry>, (index, endpoint): (usize, EndpointId), after: Duration) {
    sleep(after).await;
    // Another message may be pending for it.
    while registry.is_connected_to(index, endpoint) {
        registry.close(&[index], &HashSet::from([endpoint]), CloseReason::Removed);
        sleep(RETRY_INTERVAL).await;
    }
}

/// A connection that is offered to the other process. `None` once it is decided.
#[derive(Debug)]
pub(crate) struct Departing(Option<Unparked>);

impl Departing {
    fn take(mut self) -> Option<Unparked> {
        self.0.take()
    }

    /// The record of the connection. Empty if it cannot be handed over.
    pub(crate) fn record(&self) -> Vec<u8> {
        let Some(Unparked { connection, handle }) = &self.0 else { return Vec::new() };
        let Parked { established, rest, .. } = &**connection;
        let endpoint = established.slot.endpoint();
        let connection = PortableConnection {
            listener: established.record.listener().into(),
            route: established.record.route().into(),
            endpoint: endpoint.address,
            is_kept: endpoint.is_kept(),
            time_left: handle.time_left(),
            record: established.record.to_portable(),
            rest: rest.to_portable(),
        };
        // Without maps, nothing in it is unknown to JSON.
        serde_json::to_vec(&Versioned { version: VERSION, connection }).unwrap_or_default()
    }

    /// The sockets, the client's first.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let connection = self.0.iter().map(|unparked| &unparked.connection);
        connection.flat_map(|connection| [connection.client.as_fd(), connection.upstream.as_fd()])
    }

    /// It continues in this process.
    pub(crate) fn stay(self) {
        if let Some(mut unparked) = self.take() {
            unparked.handle.end_offer();
            unparked.park();
        }
    }
}

impl Drop for Departing {
    /// The process ends before the other one has answered: neither can know which of them has the connection.
    fn drop(&mut self) {
        if let Some(unparked) = self.0.take() {
            unparked.abandon();
        }
    }
}

/// What connections of another process need here.
#[derive(Debug)]
pub(crate) struct Arrivals<'a> {
    pub(crate) registry: &'a Arc<Registry>,
    pub(crate) counters: &'a Arc<Counters>,
    pub(crate) source_table: &'a Arc<SourceTable>,
    pub(crate) source_limits: SourceLimits,
    pub(crate) settings: &'a Arc<RelaySettings>,
    pub(crate) listeners: &'a [Arc<ListenerTelemetry>],
    /// The routes by name.
    pub(crate) routes: &'a HashMap<Box<str>, Arc<RouteTarget>>,
}

/// A connection of another process that this one can continue.
#[derive(Debug)]
pub(crate) struct Arrived(Unparked);

impl Arrivals<'_> {
    /// Prepares to continue the connection with this record and these sockets, the client's first.
    pub(crate) fn prepare(
        &self,
        record: &[u8],
        [client, upstream]: [OwnedFd; 2],
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Arrived, Verdict> {
        let version: Versioned<serde_json::Value> = serde_json::from_slice(record).map_err(|_| Verdict::Unknown)?;
        if version.version != VERSION {
            return Err(Verdict::Unknown);
        }
        let connection = serde_json::from_value(version.connection).map_err(|_| Verdict::Unknown)?;
        let PortableConnection { listener, route, endpoint, is_kept, time_left, record, rest } = connection;
        let route = self.routes.get(&*route).ok_or(Verdict::NotConfigured)?;
        let permit = permit.ok_or(Verdict::NoRoom)?;
        let slot = route.upstream.adopt(endpoint, is_kept).ok_or(Verdict::NotConfigured)?;
        let listener = self.listener(&listener);
        let record = ConnectionRecord::adopt(&listener, &route.counters, record);
        let source_permit = self.source_table.adopt(record.source(), &self.source_limits).map(Box::new);
        let handle = self.registry.register();
        let max_age = slot.endpoint().max_age();
        let time_left = max_age.map(|max_age| time_left.unwrap_or(max_age.saturating_sub(record.age())));
        handle.connected_to(slot.endpoint().id, time_left);
        let established = Established { record, slot, settings: Arc::clone(self.settings), source_permit, permit };
        let (client, upstream) = (Socket::from(client), Socket::from(upstream));
        let connection = Box::new(Parked::at_rest(established, client, upstream, rest.into()));
        Ok(Arrived(Unparked { connection, handle }))
    }

    fn listener(&self, name: &str) -> Arc<ListenerTelemetry> {
        let configured = self.listeners.iter().find(|listener| *listener.name == *name);
        configured.map_or_else(|| self.counters.listener(name), Arc::clone)
    }
}

impl Arrived {
    /// Continues the connection.
    pub(crate) fn start(self) {
        self.0.start();
    }
}
