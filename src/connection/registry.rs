//! All open connections, so that they can be closed, probed and handed over. Those at rest live here: see
//! [`parking`](super::parking).

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::io;
use std::mem;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use slab::Slab;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot::{self, Receiver, Sender};
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, Notify};
use tokio::time::{Instant, sleep};

use crate::connection::live::{ConnectionId, LiveConnection, States};
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

/// A connection is not shed for missing its hello before this: more than a round trip to any client.
const MIN_HELLO_WAIT: Duration = Duration::from_secs(1);

/// Maximum number of connections that are closed in a second because of their age, or asked to close.
const MAX_AGED: usize = 100;
/// A connection that has been asked to close and was never quiet since is closed in the middle of a message after this.
const QUIET_WITHIN_SECONDS: u32 = 60;

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

/// A moment, in tenths of a second since the registry was made.
type Tick = u32;

/// Whether a connection is closed for its age. Times are in [`Registry::seconds`].
#[derive(Clone, Copy, Debug)]
enum Age {
    /// Never.
    Unlimited,
    /// From then on.
    ExpiresAt(u32),
    /// Since then, it has been asked to close once it is quiet.
    AskedAt(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting in one of the queues.
    Waiting(Wait, Instant),
    Connecting,
    ConnectedTo(EndpointId),
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The client's hello.
    Hello,
    /// The client's close.
    Close,
}

/// Waiting connections, the newest at the end.
#[derive(Debug, Default)]
struct Queue {
    /// Index in the slab, and since when. Entries that no longer wait are removed lazily.
    entries: VecDeque<(u32, Instant)>,
    waiting: usize,
}

impl Entries {
    fn queue(&mut self, wait: Wait) -> (&mut Slab<ConnectionEntry>, &mut Queue) {
        match wait {
            Wait::Hello => (&mut self.open, &mut self.awaiting_hello),
            Wait::Close => (&mut self.open, &mut self.awaiting_close),
        }
    }

    fn begin(&mut self, index: u32, wait: Wait) -> Instant {
        let since = Instant::now();
        let (open, queue) = self.queue(wait);
        if let Some(entry) = open.get_mut(index as usize) {
            debug_assert!(!matches!(entry.phase, Phase::Waiting(..)), "a connection waits for one thing at a time");
            entry.phase = Phase::Waiting(wait, since);
            queue.waiting += 1;
            if queue.entries.len() > 2 * queue.waiting + 64 {
                queue.entries.retain(|(index, since)| is_waiting(open, *index, wait, *since));
            }
            queue.entries.push_back((index, since));
        }
        since
    }

    fn end(&mut self, index: u32, wait: Wait, since: Instant) -> bool {
        let (open, queue) = self.queue(wait);
        let was_waiting = is_waiting(open, index, wait, since);
        if was_waiting {
            queue.waiting -= 1;
            open[index as usize].phase = Phase::Connecting;
        }
        was_waiting
    }

    /// Closes the connection that has waited longest, if it has waited `at_least` this long. Whether there was one.
    fn close_oldest(&mut self, wait: Wait, at_least: Duration) -> bool {
        loop {
            let (open, queue) = self.queue(wait);
            let Some((index, since)) = queue.entries.front().copied() else { return false };
            if is_waiting(open, index, wait, since) && since.elapsed() < at_least {
                return false;
            }
            queue.entries.pop_front();
            if !self.end(index, wait, since) {
                continue;
            }
            match mem::replace(&mut self.open[index as usize].state, TaskState::Notified) {
                TaskState::Running(task) => return task.send(Message::Close(CloseReason::Shed)).is_ok(),
                // Another message is pending; a connection without an endpoint is never parked.
                TaskState::Notified | TaskState::Parked { .. } => {}
            }
        }
    }
}

fn is_waiting(open: &Slab<ConnectionEntry>, index: u32, wait: Wait, since: Instant) -> bool {
    open.get(index as usize).is_some_and(|entry| entry.phase == Phase::Waiting(wait, since))
}

/// What a step of a survey has found.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) parked: Vec<LiveConnection>,
    /// The number of connections that will report.
    pub(super) asked: usize,
    /// Whether there are higher indices.
    pub(super) has_more: bool,
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

/// Why a connection was not parked.
#[derive(Debug)]
pub(super) enum ParkError {
    /// There is a message for it.
    Notified(Unparked),
    /// Its sockets cannot be watched.
    Unwatched(Unparked, io::Error),
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

    /// Makes room for a new connection: closes the oldest one that was rejected and still lingers, or else the oldest one
    /// without a hello. A hello is given [`MIN_HELLO_WAIT`], unless more than `max_awaiting_hello` are awaited.
    pub(crate) fn shed_one(&self, max_awaiting_hello: usize) {
        let mut entries = self.entries();
        let is_crowded = entries.awaiting_hello.waiting > max_awaiting_hello;
        let min_wait = if is_crowded { Duration::ZERO } else { MIN_HELLO_WAIT };
        let _ = entries.close_oldest(Wait::Close, Duration::ZERO) || entries.close_oldest(Wait::Hello, min_wait);
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

    fn unparked(&self, index: usize, connection: Box<Parked>, messages: Receiver<Message>) -> Unparked {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Unparked { connection, handle: Handle { messages, reason: None, index, registry: self.this.upgrade() } }
    }

    fn resume(&self, unparked: Unparked) {
        if let Some(Err(unparked)) = self.lot.get().map(|lot| lot.resume(unparked)) {
            // The runtime is shutting down. Dropping it would lock the entries again.
            mem::forget(unparked);
        }
    }

    /// Continues the parked connection with this index, if there is one.
    pub(super) fn resume_at(&self, index: usize) {
        if let Some(entry) = self.entries().open.get_mut(index)
            && let Some(unparked) = self.unpark(index, entry)
        {
            self.resume(unparked);
        }
    }

    /// Takes a connection out of its entry, if it is parked there.
    fn unpark(&self, index: usize, entry: &mut ConnectionEntry) -> Option<Unparked> {
        if !matches!(entry.state, TaskState::Parked { .. }) {
            return None;
        }
        let (sender, messages) = oneshot::channel();
        match mem::replace(&mut entry.state, TaskState::Running(sender)) {
            TaskState::Parked { connection, .. } => Some(self.unparked(index, connection, messages)),
            TaskState::Running(_) | TaskState::Notified => None,
        }
    }

    /// Continues the parked connections with these indices whose deadline has passed. Whether there are higher indices.
    pub(super) fn resume_due(&self, indices: Range<usize>) -> bool {
        // Rounded down, while deadlines are rounded up: none is early.
        let now = self.tick(Instant::now()).saturating_sub(1);
        let mut entries = self.entries();
        let has_more = entries.open.capacity() > indices.end;
        for index in indices {
            if let Some(entry) = entries.open.get_mut(index)
                && matches!(entry.state, TaskState::Parked { deadline, .. } if deadline <= now)
                && let Some(unparked) = self.unpark(index, entry)
            {
                self.resume(unparked);
            }
        }
        has_more
    }

    fn tick(&self, at: Instant) -> Tick {
        u32::try_from(at.saturating_duration_since(self.created).as_millis().div_ceil(100)).unwrap_or(u32::MAX)
    }

    /// Where connections at rest are parked, once it is set.
    pub(super) fn lot(&self) -> &OnceLock<ParkingLot> {
        &self.lot
    }

    /// From now on connections leave when they come to rest. Those that are open have to be asked for it.
    pub(crate) fn leave_to(&self, leaving: UnboundedSender<Unparked>) {
        self.entries().leaving = Some(leaving);
    }

    /// No more connections leave.
    pub(crate) fn stop_leaving(&self) {
        self.entries().leaving = None;
    }

    /// Asks the connections with these indices to leave, and returns those that are parked. Whether there are higher indices.
    pub(super) fn ask_to_leave(&self, indices: Range<usize>) -> (Vec<Unparked>, bool) {
        let mut parked = Vec::new();
        let mut entries = self.entries();
        let has_more = entries.open.capacity() > indices.end;
        for index in indices {
            let Some(entry) = entries.open.get_mut(index) else { continue };
            if entry.stays || !matches!(entry.phase, Phase::ConnectedTo(_)) {
                continue;
            }
            match self.unpark(index, entry) {
                Some(unparked) => parked.push(unparked),
                None => {
                    self.send(index, entry, Message::HandOver);
                }
            }
        }
        (parked, has_more)
    }

    /// Waits for others who survey the connections.
    pub(super) async fn surveying(&self) -> AsyncMutexGuard<'_, ()> {
        self.surveying.lock().await
    }

    /// Where connections report to.
    pub(super) fn report_to(&self, reports: Option<UnboundedSender<LiveConnection>>) {
        self.entries().reports = reports;
    }

    /// Counts the connections with these indices, asks those with a task to report, and returns those that are parked.
    pub(super) fn look(&self, indices: Range<usize>, states: &mut States) -> Look {
        let mut entries = self.entries();
        let mut look = Look { parked: Vec::new(), asked: 0, has_more: entries.open.capacity() > indices.end };
        for index in indices {
            let Some(entry) = entries.open.get_mut(index) else { continue };
            *match (entry.phase, &entry.state) {
                (Phase::Waiting(Wait::Hello, _), _) => &mut states.awaiting_hello,
                (Phase::Waiting(Wait::Close, _), _) => &mut states.rejected,
                (Phase::Connecting, _) => &mut states.connecting,
                (Phase::ConnectedTo(_), TaskState::Parked { .. }) => &mut states.parked,
                (Phase::ConnectedTo(_), TaskState::Running(_) | TaskState::Notified) => &mut states.relaying,
            } += 1;
            match &entry.state {
                TaskState::Parked { connection, .. } => look.parked.push(connection.describe(entry.id(index))),
                TaskState::Running(_) if matches!(entry.phase, Phase::ConnectedTo(_)) => {
                    look.asked += usize::from(self.send(index, entry, Message::Report));
                }
                TaskState::Running(_) | TaskState::Notified => {}
            }
        }
        look
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

    /// Closes connections at their maximum age, for as long as the process runs.
    pub(crate) async fn close_aged(&self) {
        loop {
            self.aging.notified().await;
            while self.close_some_aged() {
                sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// A moment in whole seconds since this was made: a quarter of the size of an `Instant`, for each connection.
    fn seconds(&self, from_now: Duration) -> u32 {
        let since = self.created.elapsed() + from_now;
        u32::try_from(since.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
    }

    /// Closes at most [`MAX_AGED`] connections, or asks them to. Whether any have a maximum age.
    fn close_some_aged(&self) -> bool {
        let now = self.seconds(Duration::ZERO);
        let mut entries = self.entries();
        let Entries { open, next_aged, aging, .. } = &mut *entries;
        in_turn(open, next_aged, MAX_AGED, |index, entry| {
            let message = match entry.age {
                Age::AskedAt(since) if now - since >= QUIET_WITHIN_SECONDS => Message::Close(CloseReason::MaxAge),
                Age::AskedAt(_) => Message::CloseIfQuiet,
                Age::ExpiresAt(at) if at <= now => Message::CloseIfQuiet,
                Age::Unlimited | Age::ExpiresAt(_) => return false,
            };
            if matches!(entry.state, TaskState::Notified) {
                return false;
            }
            if matches!(entry.age, Age::ExpiresAt(_)) {
                entry.age = Age::AskedAt(now);
            }
            // Otherwise it has just ended.
            let _ = self.send(index, entry, message);
            true
        });
        *aging > 0
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

/// Lets `take` choose connections, from index `next` on and then from the first one, until it has taken `most`. The search
/// after this one begins behind the last one taken, so that each has its turn. Returns how many were taken.
fn in_turn(
    open: &mut Slab<ConnectionEntry>,
    next: &mut usize,
    most: usize,
    mut take: impl FnMut(usize, &mut ConnectionEntry) -> bool,
) -> usize {
    let (start, mut taken) = (*next, 0);
    for is_behind in [true, false] {
        for (index, entry) in open.iter_mut().filter(|(index, _)| (*index >= start) == is_behind) {
            if taken == most {
                return taken;
            }
            if take(index, entry) {
                taken += 1;
                *next = index + 1;
            }
        }
    }
    taken
}

impl Handle {
    /// The reason of the `Close` message; `Draining` if there was none yet.
    pub(crate) fn close_reason(&self) -> CloseReason {
        self.reason.unwrap_or(CloseReason::Draining)
    }

    /// Marks the connection as waiting for its client until the guard is dropped.
    pub(crate) fn wait(&self, wait: Wait) -> WaitGuard {
        let registry = self.registry.clone();
        let since = registry.as_ref().map_or_else(Instant::now, |registry| registry.entries().begin(self.index, wait));
        WaitGuard { wait, since, index: self.index, registry }
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

    /// Answers [`Message::Report`].
    pub(super) fn report(&self, describe: impl FnOnce(ConnectionId) -> LiveConnection) {
        let Some(registry) = &self.registry else { return };
        let entries = registry.entries();
        let id = entries.open.get(self.index as usize).map(|entry| entry.id(self.index as usize));
        let reports = entries.reports.clone();
        drop(entries);
        if let (Some(id), Some(reports)) = (id, reports) {
            // Nobody waits for it any more.
            let _ = reports.send(describe(id));
        }
    }

    /// How long until the connection is too old.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        let registry = self.registry.as_ref()?;
        match registry.entries().open.get(self.index as usize)?.age {
            Age::Unlimited => None,
            Age::ExpiresAt(at) => Some(Duration::from_secs(at.saturating_sub(registry.seconds(Duration::ZERO)).into())),
            Age::AskedAt(_) => Some(Duration::ZERO),
        }
    }

    pub(super) fn registry(&self) -> Option<&Arc<Registry>> {
        self.registry.as_ref()
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// Keeps the connection in the registry until `deadline`, or until there is an event or a message for it. Fails if there
    /// is a message already.
    pub(super) fn park(mut self, mut connection: Box<Parked>, deadline: Instant) -> Result<(), ParkError> {
        let Some(registry) = self.registry.take() else {
            return Err(ParkError::Notified(Unparked { connection, handle: self }));
        };
        let mut entries = registry.entries();
        let entry = entries.open.get_mut(self.index as usize);
        let Some(entry) = entry.filter(|entry| matches!(entry.state, TaskState::Running(_))) else {
            drop(entries);
            self.registry = Some(registry);
            return Err(ParkError::Notified(Unparked { connection, handle: self }));
        };
        // Under the lock: an event that is reported before the entry is parked would not be reported again.
        let watched = registry.lot.get().ok_or_else(|| io::ErrorKind::Unsupported.into());
        if let Err(error) = watched.and_then(|lot| lot.watch(&mut connection, self.index)) {
            drop(entries);
            self.registry = Some(registry);
            return Err(ParkError::Unwatched(Unparked { connection, handle: self }, error));
        }
        entry.state = TaskState::Parked { connection, deadline: registry.tick(deadline) };
        Ok(())
    }

    /// Where the connection goes, if it leaves.
    pub(super) fn leaving(&self) -> Option<UnboundedSender<Unparked>> {
        let entries = self.registry.as_ref()?.entries();
        let stays = entries.open.get(self.index as usize)?.stays;
        entries.leaving.clone().filter(|_| !stays)
    }

    /// No message reaches the connection from here on, because another process may continue it: who sends one learns that.
    /// `false` if there is a message that it must receive first.
    pub(super) fn begin_offer(&mut self) -> bool {
        let Some(registry) = &self.registry else { return false };
        let mut entries = registry.entries();
        let Some(entry) = entries.open.get_mut(self.index as usize) else { return false };
        match mem::replace(&mut entry.state, TaskState::Notified) {
            TaskState::Running(_) => true,
            TaskState::Notified | TaskState::Parked { .. } => match self.messages.try_recv() {
                Ok(Message::HandOver | Message::Report) => true,
                Ok(message @ (Message::Close(_) | Message::CloseIfQuiet | Message::Probe(_))) => {
                    let (sender, messages) = oneshot::channel();
                    self.messages = messages;
                    let _ = sender.send(message);
                    false
                }
                Err(_) => false,
            },
        }
    }

    /// It continues in this process, and receives messages again.
    pub(super) fn end_offer(&mut self) {
        self.receive_again(false);
    }

    /// The connection stays when others leave.
    pub(super) fn set_stays(&self) {
        let Some(registry) = &self.registry else { return };
        if let Some(entry) = registry.entries().open.get_mut(self.index as usize) {
            entry.stays = true;
        }
    }
}

#[cfg(all(test, shuttle))]
impl Registry {
    pub(super) fn id_at(&self, index: usize) -> ConnectionId {
        self.entries().open[index].id(index)
    }

    /// How many connections wait.
    pub(super) fn waiting(&self) -> [usize; 2] {
        let entries = self.entries();
        [&entries.awaiting_hello, &entries.awaiting_close].map(|queue| queue.waiting)
    }
}

/// Marks a connection as waiting for its client. See [`Handle::wait`].
#[derive(Debug)]
pub(crate) struct WaitGuard {
    wait: Wait,
    since: Instant,
    index: u32,
    registry: Option<Arc<Registry>>,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        if let Some(registry) = &self.registry {
            registry.entries().end(self.index, self.wait, self.since);
        }
    }
}

impl Handle {
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

    fn is_closed(handle: &mut Handle) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        Pin::new(handle).poll(&mut cx).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn a16_the_connection_that_waited_longest_is_shed() {
        let registry = Registry::new();
        let mut entries: Vec<Handle> = (0..6).map(|_| registry.register()).collect();
        let first = entries[0].wait(Wait::Hello);
        let _second = entries[1].wait(Wait::Hello);
        drop(first);
        let _third = entries[2].wait(Wait::Hello);
        registry.shed_one(2);
        assert!(!entries.iter_mut().any(is_closed), "none has waited long enough");
        registry.shed_one(1);
        assert!(
            is_closed(&mut entries[1]) && entries[1].close_reason() == CloseReason::Shed,
            "two wait, one more than allowed"
        );
        assert!(!is_closed(&mut entries[1]), "once");
        tokio::time::advance(MIN_HELLO_WAIT).await;
        let _fourth = entries[3].wait(Wait::Hello);
        let _rejected = entries[4].wait(Wait::Close);
        registry.shed_one(9);
        assert!(is_closed(&mut entries[4]), "a rejected connection is shed first");
        registry.shed_one(9);
        assert!(is_closed(&mut entries[2]) && !is_closed(&mut entries[3]), "then one that has waited for a second");
        registry.shed_one(9);
        assert!(!is_closed(&mut entries[3]));
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_micros(1)).await;
            drop(entries[5].wait(Wait::Hello));
        }
        assert!(registry.entries().awaiting_hello.entries.len() < 100, "entries that no longer wait are removed");
        entries.clear();
        let entries = registry.entries();
        assert_eq!((entries.awaiting_hello.waiting, entries.awaiting_close.waiting), (0, 0));
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

    fn message_of(handle: &mut Handle) -> Option<Message> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match handle.poll_message(&mut cx) {
            Poll::Ready(message) => Some(message),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn h28_who_closes_a_connection_learns_that_another_process_may_have_it() {
        let registry = Registry::new();
        let mut connection = registry.register();
        connection.connected_to(EndpointId::next(), None);
        let id = registry.entries().open[0].id(0);
        let closed = Some(Message::Close(CloseReason::Operator));

        registry.ask_to_leave(0..1);
        assert!(connection.begin_offer(), "that it is to leave is no reason against it");
        assert!(!registry.close_one(id) && registry.is_open(id), "not reached, and not ended");
        connection.end_offer();
        assert_eq!(message_of(&mut connection), None);
        assert!(registry.close_one(id));
        assert!(!connection.begin_offer(), "it is to be closed here");
        assert_eq!(message_of(&mut connection), closed);

        let mut other = registry.register();
        other.connected_to(EndpointId::next(), None);
        assert!(other.begin_offer());
        registry.close_all();
        other.end_offer();
        assert_eq!(message_of(&mut other), Some(Message::Close(CloseReason::Draining)));
    }

    #[tokio::test(start_paused = true)]
    async fn b34_aged_connections_take_turns_and_are_closed_if_they_are_never_quiet() {
        let registry = Registry::new();
        let endpoint = EndpointId::next();
        let hour = Duration::from_secs(3600);
        let mut handles: Vec<Handle> = (0..120).map(|_| registry.register()).collect();
        for handle in &handles {
            handle.connected_to(endpoint, Some(hour));
        }
        let mut ageless = registry.register();
        ageless.connected_to(endpoint, None);
        assert!(registry.close_some_aged());
        assert!(handles.iter_mut().all(|handle| message_of(handle).is_none()), "too early");
        tokio::time::advance(hour).await;
        let mut asked = vec![0; handles.len()];
        for _ in 0..6 {
            // A task may poll so many channels until it yields.
            tokio::task::yield_now().await;
            registry.close_some_aged();
            let messages = handles.iter_mut().map(message_of).collect::<Vec<_>>();
            assert!(messages.iter().flatten().all(|message| *message == Message::CloseIfQuiet));
            assert_eq!(messages.iter().flatten().count(), MAX_AGED);
            for (asked, message) in asked.iter_mut().zip(messages) {
                *asked += usize::from(message.is_some());
            }
        }
        assert!(asked.iter().all(|asked| *asked == 5), "each in turn: {asked:?}");
        tokio::time::advance(Duration::from_secs(QUIET_WITHIN_SECONDS.into())).await;
        for _ in 0..2 {
            registry.close_some_aged();
        }
        tokio::task::yield_now().await;
        assert!(handles.iter_mut().all(|handle| message_of(handle) == Some(Message::Close(CloseReason::MaxAge))));
        tokio::task::yield_now().await;
        assert_eq!(message_of(&mut ageless), None);
        drop(handles);
        assert!(!registry.close_some_aged(), "none is left");
        assert_eq!(registry.entries().aging, 0);
    }
}
