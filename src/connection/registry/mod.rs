//! All open connections, so that they can be closed, probed and handed over. Those at rest live here: see
//! [`parking`](super::parking).

mod aging;
mod offer;
mod parked;
mod survey;
mod waiting;

use std::collections::HashSet;
use std::future::Future;
use std::mem;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use slab::Slab;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot::{self, Receiver, Sender};
use tokio::sync::{Mutex as AsyncMutex, Notify};
use tokio::time::Instant;

use self::aging::{Age, in_turn};
pub(super) use self::parked::ParkError;
use self::parked::Tick;
use self::waiting::Queue;
pub(crate) use self::waiting::Wait;
use crate::connection::live::{ConnectionId, LiveConnection};
use crate::connection::parking::{Parked, ParkingLot, Unparked};
use crate::sync::{Mutex, MutexGuard};
use crate::upstream::{EndpointId, OpenConnections};

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The process is shutting down.
    Draining,
    /// Its route or endpoint is no longer configured.
    Removed,
    /// It is older than its route's `max_age`.
    MaxAge,
    /// By an operator.
    Operator,
    /// Other endpoints of its route have returned.
    Rebalance,
    /// `limits.connections` is reached, and the connection was only waiting for its client.
    Shed,
}

/// A message to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Close(CloseReason),
    /// It is older than its route's `max_age`: close it if it is between two messages.
    CloseIfQuiet,
    /// Its endpoint was found dead at this time: check whether the connection to it still works.
    Probe(Instant),
    /// Another process takes the connections over: come to rest.
    HandOver,
    /// Report what it is, with [`Handle::report`].
    Report,
}

/// The open connections. It costs each some 80 bytes, and no lock per poll until it receives a message.
#[derive(Debug)]
pub(crate) struct Registry {
    this: Weak<Self>,
    created: Instant,
    entries: Mutex<Entries>,
    /// Notified when there is a first connection with a maximum age.
    aging: Notify,
    /// Notified when all connections are closed.
    closed: Notify,
    /// Notified when the last connection has ended.
    emptied: Notify,
    /// Notified when a connection has ended.
    ended: Notify,
    lot: OnceLock<ParkingLot>,
    /// Held by whoever surveys the connections.
    surveying: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct Entries {
    open: Slab<ConnectionEntry>,
    closed: bool,
    /// The number of connections with a maximum age.
    aging: usize,
    /// Where to look for the next ones that have reached it, so that each has its turn.
    next_aged: usize,
    awaiting_hello: Queue,
    /// Rejected connections whose client has not closed yet.
    awaiting_close: Queue,
    /// Where connections go that come to rest while another process takes them over.
    leaving: Option<UnboundedSender<Unparked>>,
    /// Where to look for the next ones to close for others that have returned, so that each has its turn.
    next_rebalanced: usize,
    /// Where connections report to, during a survey.
    reports: Option<UnboundedSender<LiveConnection>>,
    next_serial: u32,
}

#[derive(Debug)]
struct ConnectionEntry {
    serial: u32,
    state: TaskState,
    phase: Phase,
    age: Age,
    /// Whether it stays in this process although others leave.
    stays: bool,
}

/// How a connection can be reached.
#[derive(Debug)]
enum TaskState {
    /// It has a task, which receives one message.
    Running(Sender<Message>),
    /// It has a task, which was sent a message that it has not received; for good once the message is `Close`.
    Notified,
    /// It has no task.
    Parked { connection: Box<Parked>, deadline: Tick },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting in one of the queues.
    Waiting(Wait, Instant),
    Connecting,
    ConnectedTo(EndpointId),
}

impl ConnectionEntry {
    fn id(&self, index: usize) -> ConnectionId {
        ConnectionId { index: u32::try_from(index).unwrap_or(u32::MAX), serial: self.serial }
    }

    /// Whether it can be sent a message and is connected to an endpoint that matches.
    fn is_reachable_at(&self, matches: impl FnOnce(EndpointId) -> bool) -> bool {
        !matches!(self.state, TaskState::Notified)
            && matches!(self.phase, Phase::ConnectedTo(endpoint) if matches(endpoint))
    }
}

/// Keeps one connection in the registry until it is dropped, and receives its messages.
#[derive(Debug)]
pub(crate) struct Handle {
    messages: Receiver<Message>,
    reason: Option<CloseReason>,
    index: u32,
    /// `None` once the registry itself keeps the connection.
    registry: Option<Arc<Registry>>,
}

impl Registry {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            created: Instant::now(),
            entries: Mutex::default(),
            aging: Notify::new(),
            closed: Notify::new(),
            emptied: Notify::new(),
            ended: Notify::new(),
            lot: OnceLock::new(),
            surveying: AsyncMutex::new(()),
        })
    }

    /// Adds a connection.
    pub(crate) fn register(self: &Arc<Self>) -> Handle {
        let (sender, messages) = oneshot::channel();
        let mut entries = self.entries();
        let state = if entries.closed { TaskState::Notified } else { TaskState::Running(sender) };
        let serial = entries.next_serial;
        entries.next_serial = serial.wrapping_add(1);
        let entry = ConnectionEntry { serial, state, phase: Phase::Connecting, age: Age::Unlimited, stays: false };
        let index = entries.open.insert(entry);
        // There are never that many file descriptors.
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Handle { messages, reason: None, index, registry: Some(Arc::clone(self)) }
    }

    /// The number of open connections.
    pub(crate) fn len(&self) -> usize {
        self.entries().open.len()
    }

    /// Completes when all connections are closed, present and future.
    pub(crate) async fn all_closed(&self) {
        self.wait(&self.closed, |entries| entries.closed).await;
    }

    /// Completes when there is no connection.
    pub(crate) async fn all_ended(&self) {
        self.wait(&self.emptied, |entries| entries.open.is_empty()).await;
    }

    /// Waits until this holds, which `changed` is notified of.
    async fn wait(&self, changed: &Notify, holds: impl Fn(&Entries) -> bool) {
        loop {
            let mut changed = pin!(changed.notified());
            changed.as_mut().enable();
            if holds(&self.entries()) {
                return;
            }
            changed.await;
        }
    }

    /// Closes all connections, present and future.
    pub(crate) fn close_all(&self) {
        let mut entries = self.entries();
        entries.closed = true;
        self.closed.notify_waiters();
        let Entries { open, .. } = &mut *entries;
        for (index, entry) in open {
            // Even if another message is pending.
            self.send(index, entry, Message::Close(CloseReason::Draining));
        }
    }

    /// Sends a message to the connection; one that is parked is continued for that. Whether it was reached.
    fn send(&self, index: usize, entry: &mut ConnectionEntry, message: Message) -> bool {
        match mem::replace(&mut entry.state, TaskState::Notified) {
            TaskState::Running(task) => task.send(message).is_ok(),
            TaskState::Notified => false,
            TaskState::Parked { connection, .. } => {
                let (sender, messages) = oneshot::channel();
                let _ = sender.send(message);
                self.resume(self.unparked(index, connection, messages));
                true
            }
        }
    }

    /// Closes this connection, by an operator. Whether it was reached: it may have ended, or have another message pending.
    pub(crate) fn close_one(&self, id: ConnectionId) -> bool {
        let mut entries = self.entries();
        let index = id.index as usize;
        let entry = entries.open.get_mut(index).filter(|entry| entry.serial == id.serial);
        entry.is_some_and(|entry| {
            entry.is_reachable_at(|_| true) && self.send(index, entry, Message::Close(CloseReason::Operator))
        })
    }

    /// Whether this connection is open.
    pub(crate) fn is_open(&self, id: ConnectionId) -> bool {
        self.entries().open.get(id.index as usize).is_some_and(|entry| entry.serial == id.serial)
    }

    /// The indices of connections to these endpoints, except those that are being closed.
    pub(crate) fn connected_to(&self, endpoints: &HashSet<EndpointId>) -> Vec<usize> {
        let entries = self.entries();
        let connected = entries.open.iter().filter(|(_, entry)| entry.is_reachable_at(|at| endpoints.contains(&at)));
        connected.map(|(index, _)| index).collect()
    }

    /// Closes those of these connections that are still connected to one of these endpoints, and returns how many.
    pub(crate) fn close(&self, indices: &[usize], endpoints: &HashSet<EndpointId>, reason: CloseReason) -> usize {
        let mut entries = self.entries();
        let close = |index: &usize| {
            let entry = entries.open.get_mut(*index)?;
            if !entry.is_reachable_at(|at| endpoints.contains(&at)) {
                return None;
            }
            self.send(*index, entry, Message::Close(reason)).then_some(())
        };
        indices.iter().filter_map(close).count()
    }

    /// Completes when a connection has ended, immediately if one has since the last time. Each end wakes one caller.
    pub(crate) async fn ended(&self) {
        self.ended.notified().await;
    }

    /// Whether the connection with this index is still connected to this endpoint.
    pub(super) fn is_connected_to(&self, index: usize, endpoint: EndpointId) -> bool {
        self.entries().open.get(index).is_some_and(|entry| entry.phase == Phase::ConnectedTo(endpoint))
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenConnections for Registry {
    fn probe(&self, endpoint: EndpointId, since: Instant) -> usize {
        let mut entries = self.entries();
        let connected = entries.open.iter_mut().filter(|(_, entry)| entry.is_reachable_at(|at| at == endpoint));
        connected.filter_map(|(index, entry)| self.send(index, entry, Message::Probe(since)).then_some(())).count()
    }

    fn close_parked(&self, endpoint: EndpointId, most: usize) -> usize {
        let mut entries = self.entries();
        let Entries { open, next_rebalanced, .. } = &mut *entries;
        in_turn(open, next_rebalanced, most, |index, entry| {
            matches!(entry.state, TaskState::Parked { .. })
                && entry.phase == Phase::ConnectedTo(endpoint)
                && self.send(index, entry, Message::Close(CloseReason::Rebalance))
        })
    }
}

impl Entries {
    /// Whether there may be connections with higher indices than these.
    fn has_more_after(&self, indices: &Range<usize>) -> bool {
        self.open.capacity() > indices.end
    }
}

impl Handle {
    /// The reason of the `Close` message; `Draining` if there was none yet.
    pub(crate) fn close_reason(&self) -> CloseReason {
        self.reason.unwrap_or(CloseReason::Draining)
    }

    /// The connection is connected to this endpoint, and may become this old.
    pub(crate) fn connected_to(&self, endpoint: EndpointId, max_age: Option<Duration>) {
        let Some(registry) = &self.registry else { return };
        let mut entries = registry.entries();
        let is_leaving = entries.leaving.is_some();
        let index = self.index as usize;
        let Some(entry) = entries.open.get_mut(index) else { return };
        entry.phase = Phase::ConnectedTo(endpoint);
        if is_leaving {
            registry.send(index, entry, Message::HandOver);
        }
        if let Some(max_age) = max_age {
            entry.age = Age::ExpiresAt(registry.seconds(max_age));
            entries.aging += 1;
            if entries.aging == 1 {
                registry.aging.notify_one();
            }
        }
    }

    pub(super) fn registry(&self) -> Option<&Arc<Registry>> {
        self.registry.as_ref()
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// The next message; nothing follows `Close`.
    pub(crate) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Message> {
        if self.reason.is_some() {
            return Poll::Pending;
        }
        let message = ready!(Pin::new(&mut self.messages).poll(cx)).unwrap_or(Message::Close(CloseReason::Draining));
        match message {
            Message::Close(reason) => self.reason = Some(reason),
            Message::CloseIfQuiet | Message::Probe(_) | Message::Report => self.receive_again(true),
            Message::HandOver => self.receive_again(false),
        }
        Poll::Ready(message)
    }

    /// Makes a new channel for the next message. If all connections were closed meanwhile, its sender is dropped, which
    /// the next poll reports as `Close`.
    fn receive_again(&mut self, may_leave: bool) {
        let (sender, messages) = oneshot::channel();
        self.messages = messages;
        let Some(registry) = &self.registry else { return };
        let mut entries = registry.entries();
        if entries.closed {
            return;
        }
        let is_leaving = may_leave && entries.leaving.is_some();
        let index = self.index as usize;
        if let Some(entry) = entries.open.get_mut(index) {
            entry.state = TaskState::Running(sender);
            // It could not be asked while the last message was pending.
            if is_leaving && !entry.stays && matches!(entry.phase, Phase::ConnectedTo(_)) {
                registry.send(index, entry, Message::HandOver);
            }
        }
    }
}

/// Completes once, when the connection is to be closed. For connections without an endpoint, which get no probes.
impl Future for Handle {
    type Output = CloseReason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            if let Message::Close(reason) = ready!(self.poll_message(cx)) {
                return Poll::Ready(reason);
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Some(registry) = &self.registry else { return };
        let mut entries = registry.entries();
        let Some(ConnectionEntry { serial: _, state: _, phase, age, stays: _ }) =
            entries.open.try_remove(self.index as usize)
        else {
            return;
        };
        if let Phase::Waiting(wait, _) = phase {
            entries.queue(wait).1.waiting -= 1;
        }
        entries.aging -= usize::from(!matches!(age, Age::Unlimited));
        let is_empty = entries.open.is_empty();
        drop(entries);
        registry.ended.notify_one();
        if is_empty {
            registry.emptied.notify_waiters();
        }
    }
}

#[cfg(all(test, shuttle))]
impl Registry {
    pub(super) fn id_at(&self, index: usize) -> ConnectionId {
        self.entries().open[index].id(index)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn f03_the_end_of_a_connection_is_remembered_and_wakes_one_caller() {
        let registry = Registry::new();
        let has_ended = async || timeout(Duration::from_secs(1), registry.ended()).await.is_ok();
        let open = registry.register();
        assert!(!has_ended().await);
        drop(open);
        assert!(has_ended().await);
        assert!(!has_ended().await);
    }

    #[tokio::test]
    async fn close_all_reaches_present_and_future_connections() {
        let registry = Registry::new();
        let (closed, open) = (registry.register(), registry.register());
        drop(closed);
        let mut waiting = tokio::spawn(open);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        registry.close_all();
        assert_eq!((&mut waiting).await.unwrap(), CloseReason::Draining);
        assert_eq!(registry.register().await, CloseReason::Draining);
        assert!(registry.entries().open.is_empty());
    }

    #[test]
    fn there_may_be_connections_below_the_capacity() {
        let registry = Registry::new();
        let _open: Vec<Handle> = (0..100).map(|_| registry.register()).collect();
        let entries = registry.entries();
        let capacity = entries.open.capacity();
        assert!(entries.has_more_after(&(0..64)) && entries.has_more_after(&(64..capacity - 1)));
        assert!(!entries.has_more_after(&(64..capacity)) && !entries.has_more_after(&(64..capacity + 1)));
    }

    pub(super) fn is_closed(handle: &mut Handle) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        Pin::new(handle).poll(&mut cx).is_ready()
    }

    #[tokio::test]
    async fn only_connections_to_the_given_endpoints_are_closed() {
        let registry = Registry::new();
        let endpoints = [EndpointId::next(), EndpointId::next()];
        let entries = endpoints.map(|endpoint| {
            let handle = registry.register();
            handle.connected_to(endpoint, None);
            handle
        });
        let unconnected = registry.register();
        let first = HashSet::from([endpoints[0]]);
        let all = registry.connected_to(&first);
        assert_eq!(registry.close(&all, &first, CloseReason::Removed), 1);
        assert_eq!(registry.close(&all, &first, CloseReason::Removed), 0, "once");
        let [there, elsewhere] = entries;
        assert_eq!(there.await, CloseReason::Removed);
        for mut handle in [elsewhere, unconnected] {
            assert!(!is_closed(&mut handle));
        }
    }

    #[tokio::test]
    async fn a_connection_is_connected_to_its_endpoint_until_it_ends() {
        let registry = Registry::new();
        let endpoints = [EndpointId::next(), EndpointId::next()];
        let handle = registry.register();
        handle.connected_to(endpoints[0], None);
        let [index] = registry.connected_to(&endpoints.into())[..] else { panic!("there is one connection") };
        let is_connected = || endpoints.map(|endpoint| registry.is_connected_to(index, endpoint));
        assert_eq!(is_connected(), [true, false]);
        drop(handle);
        assert_eq!(is_connected(), [false, false]);
    }

    #[tokio::test]
    async fn b08_repeated_probes_lose_no_close_message() {
        let registry = Registry::new();
        let endpoint = EndpointId::next();
        let mut connection = registry.register();
        connection.connected_to(endpoint, None);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..3 {
            let since = Instant::now();
            assert_eq!(registry.probe(endpoint, since), 1);
            assert_eq!(registry.probe(endpoint, since), 0, "the first probe is still pending");
            assert_eq!(connection.poll_message(&mut cx), Poll::Ready(Message::Probe(since)));
            assert_eq!(connection.poll_message(&mut cx), Poll::Pending);
        }
        assert_eq!(registry.probe(endpoint, Instant::now()), 1);
        registry.close_all();
        assert!(matches!(connection.poll_message(&mut cx), Poll::Ready(Message::Probe(_))));
        assert_eq!(
            connection.poll_message(&mut cx),
            Poll::Ready(Message::Close(CloseReason::Draining)),
            "sent while the probe was pending"
        );
    }

    pub(super) fn message_of(handle: &mut Handle) -> Option<Message> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match handle.poll_message(&mut cx) {
            Poll::Ready(message) => Some(message),
            Poll::Pending => None,
        }
    }
}
