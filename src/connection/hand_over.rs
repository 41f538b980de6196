//! Established connections on their way to another process, which serves in place of this one.
//!
//! A connection leaves at a moment of rest. Until the other process has confirmed that it continues the connection, this
//! process keeps its own descriptors and can continue it itself; it does neither read nor write meanwhile, so that there is
//! never more than one process that does.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream as Socket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::connection::RouteTarget;
use crate::connection::admission::{SourceLimits, SourceTable};
use crate::connection::established::Established;
use crate::connection::parking::{Parked, Unparked};
use crate::connection::registry::{CloseReason, Registry};
use crate::relay::{PortableRest, RelaySettings};
use crate::telemetry::{ConnectionRecord, Counters, ListenerTelemetry, PortableRecord};
use crate::upstream::{EndpointId, OnRemove};

/// Of [`PortableConnection`]. A process continues no connection with another version.
const VERSION: u32 = 1;

/// A connection without its sockets.
#[derive(Debug, Deserialize, Serialize)]
struct PortableConnection {
    listener: Box<str>,
    route: Box<str>,
    endpoint: SocketAddr,
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

/// What the other process says about a connection that it was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Verdict {
    /// It continues the connection.
    Adopted = b'a',
    /// Its configuration has no such route, or no such endpoint in it.
    NotConfigured = b'c',
    /// It has no room for a connection now.
    NoRoom = b'r',
    /// It does not understand the record, or cannot use the sockets.
    Unknown = b'u',
}

impl From<u8> for Verdict {
    fn from(byte: u8) -> Self {
        match byte {
            b'a' => Self::Adopted,
            b'c' => Self::NotConfigured,
            b'r' => Self::NoRoom,
            _ => Self::Unknown,
        }
    }
}

/// Connections that are offered at a time: their descriptors fit into one message.
pub(crate) const BATCH: usize = 64;
/// Connections that are closed at a time, with a pause: thousands of clients must not reconnect at the same moment.
const FEW: usize = 10;
const PAUSE: Duration = Duration::from_millis(10);
/// Entries of the registry that are looked at under one lock.
const CHUNK: usize = 1024;

/// The connections that leave this process.
#[derive(Debug)]
pub(crate) struct Departures {
    registry: Arc<Registry>,
    sender: UnboundedSender<Unparked>,
    leaving: UnboundedReceiver<Unparked>,
}

/// Connections that the other process does not have in its configuration, by what becomes of them: index and endpoint.
#[derive(Debug, Default)]
struct Removed {
    cut: Vec<(usize, EndpointId)>,
    drain: Vec<(usize, EndpointId)>,
}

impl Departures {
    /// From now on connections leave when they come to rest. Those that are open have to be asked for it.
    pub(crate) fn start(registry: &Arc<Registry>) -> Self {
        let (sender, leaving) = mpsc::unbounded_channel();
        registry.leave_to(sender.clone());
        Self { registry: Arc::clone(registry), sender, leaving }
    }

    /// Asks all connections that have not been refused for good to leave.
    pub(crate) fn ask(&self) {
        let (registry, sender) = (Arc::clone(&self.registry), self.sender.clone());
        tokio::spawn(async move {
            let mut start = 0;
            loop {
                let (parked, has_more) = registry.ask_to_leave(start..start + CHUNK);
                for mut unparked in parked {
                    // Otherwise its events would be reported here for as long as another process has it.
                    unparked.unwatch();
                    if let Err(failed) = sender.send(unparked) {
                        failed.0.stay(false);
                    }
                }
                if !has_more {
                    return;
                }
                start += CHUNK;
                yield_now().await;
            }
        });
    }

    /// Waits for connections that have come to rest. Empty: there will be none.
    pub(crate) async fn next(&mut self) -> Vec<Departing> {
        let mut batch = Vec::with_capacity(BATCH);
        self.leaving.recv_many(&mut batch, BATCH).await;
        batch.into_iter().map(Departing).collect()
    }

    /// Applies what the other process said. Connections that it has not adopted continue here; those of routes and endpoints
    /// that it does not have are closed by `on_remove`, if that is to drain after `drain`. Returns how many were adopted.
    pub(crate) fn apply(&self, batch: Vec<Departing>, verdicts: &[Verdict], drain: Duration) -> usize {
        let mut removed = Removed::default();
        let adopted = verdicts.iter().filter(|verdict| **verdict == Verdict::Adopted).count();
        let mut verdicts = verdicts.iter();
        for Departing(unparked) in batch {
            let endpoint = unparked.connection.established.slot.endpoint();
            match verdicts.next().unwrap_or(&Verdict::Unknown) {
                Verdict::Adopted => unparked.handed_over(),
                Verdict::NoRoom => unparked.stay(false),
                Verdict::Unknown => unparked.stay(true),
                Verdict::NotConfigured => {
                    let (policy, id) = (endpoint.on_remove(), endpoint.id);
                    let index = unparked.handle.index() as usize;
                    unparked.stay(true);
                    match policy {
                        OnRemove::Cut => removed.cut.push((index, id)),
                        OnRemove::Drain => removed.drain.push((index, id)),
                        OnRemove::Keep => {}
                    }
                }
            }
        }
        close(&self.registry, &removed.cut);
        if !removed.drain.is_empty() {
            let registry = Arc::clone(&self.registry);
            tokio::spawn(async move {
                sleep(drain).await;
                for few in removed.drain.chunks(FEW) {
                    close(&registry, few);
                    sleep(PAUSE).await;
                }
            });
        }
        adopted
    }
}

impl Drop for Departures {
    /// The other process is gone: what has not left continues here.
    fn drop(&mut self) {
        self.registry.stop_leaving();
        self.leaving.close();
        while let Ok(unparked) = self.leaving.try_recv() {
            unparked.stay(false);
        }
    }
}

/// A connection that is offered to the other process.
#[derive(Debug)]
pub(crate) struct Departing(Unparked);

impl Departing {
    /// The record of the connection.
    pub(crate) fn record(&self) -> Vec<u8> {
        let Unparked { connection, handle } = &self.0;
        let Parked { established, rest, .. } = &**connection;
        let connection = PortableConnection {
            listener: established.record.listener().into(),
            route: established.record.route().into(),
            endpoint: established.slot.endpoint().address,
            time_left: handle.time_left(),
            record: established.record.to_portable(),
            rest: rest.to_portable(),
        };
        // It has no maps with other keys than strings, which is all that JSON lacks.
        serde_json::to_vec(&Versioned { version: VERSION, connection }).unwrap_or_default()
    }

    /// The sockets, the client's first.
    pub(crate) fn sockets(&self) -> [BorrowedFd<'_>; 2] {
        [self.0.connection.client.as_fd(), self.0.connection.upstream.as_fd()]
    }

    /// It continues in this process.
    pub(crate) fn stay(self) {
        self.0.stay(false);
    }
}

/// What connections of another process need here.
#[derive(Debug)]
pub(crate) struct Arrivals<'a> {
    pub(crate) registry: &'a Arc<Registry>,
    pub(crate) counters: &'a Arc<Counters>,
    pub(crate) source_table: &'a Arc<SourceTable>,
    pub(crate) source_limits: SourceLimits,
    pub(crate) settings: Arc<RelaySettings>,
    pub(crate) listeners: Vec<Arc<ListenerTelemetry>>,
    /// The routes by name.
    pub(crate) routes: HashMap<&'a str, &'a Arc<RouteTarget>>,
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
        let PortableConnection { listener, route, endpoint, time_left, record, rest } = connection;
        let route = self.routes.get(&*route).ok_or(Verdict::NotConfigured)?;
        let slot = route.upstream.adopt(endpoint).ok_or(Verdict::NotConfigured)?;
        let permit = permit.ok_or(Verdict::NoRoom)?;
        let listener = self.listener(&listener);
        let record = ConnectionRecord::adopt(&listener, &route.counters, record);
        let source_permit = self.source_table.adopt(record.source(), &self.source_limits).map(Box::new);
        let handle = self.registry.register();
        let max_age = slot.endpoint().max_age();
        let time_left = max_age.map(|max_age| time_left.unwrap_or(max_age.saturating_sub(record.age())));
        handle.connected_to(slot.endpoint().id, time_left);
        let established = Established { record, slot, settings: Arc::clone(&self.settings), source_permit, permit };
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
        let Self(unparked) = self;
        if unparked.connection.rest.is_half_closed() {
            unparked.resume();
        } else {
            unparked.park();
        }
    }
}

/// Closes these connections, if they are still connected to these endpoints.
fn close(registry: &Registry, connections: &[(usize, EndpointId)]) {
    let endpoints = connections.iter().map(|(_, endpoint)| *endpoint).collect();
    let indices: Vec<usize> = connections.iter().map(|(index, _)| *index).collect();
    registry.close(&indices, &endpoints, CloseReason::Removed);
}
