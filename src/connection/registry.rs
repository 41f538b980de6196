//! All open connections, so that they can be told to end.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use slab::Slab;
use tokio::sync::oneshot::{self, Receiver, Sender};
use tokio::time::Instant;

use crate::upstream::{EndpointId, OpenConnections};

/// Why a connection is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseReason {
    /// The process is shutting down.
    Draining,
    /// A reload has removed its route or endpoint.
    Removed,
    /// `limits.connections` is reached, and it was only waiting for its client.
    Shed,
}

/// What a connection is sent by the rest of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Close.
    Close(CloseReason),
    /// Its endpoint was found dead at this moment: it must find out whether its own connection to it is.
    Probe(Instant),
}

/// So long a hello is awaited although there is no place for others: a round trip of anybody.
const MIN_HELLO_WAIT: Duration = Duration::from_secs(1);

/// Who is here. Until it is told to end, this costs a connection no lock per poll, and some 80 bytes.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    present: Slab<Entry>,
    closed: bool,
    /// Those whose hello is awaited.
    awaiting_hello: Queue,
    /// Those that have been refused, and have not gone yet.
    awaiting_close: Queue,
}

#[derive(Debug)]
struct Entry {
    /// None once it has been sent a message, until it has received it; for ever, if it is to end.
    sender: Option<Sender<Message>>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Waiting in one of the queues.
    Waiting(Wait, Instant),
    Connecting,
    At(EndpointId),
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// For its client's hello.
    Hello,
    /// For its client to close.
    Close,
}

/// Who waits, and since when; who came last is at the end.
#[derive(Debug, Default)]
struct Queue {
    /// And some that wait no more, until they are found in it.
    entries: VecDeque<(u32, Instant)>,
    waiting: usize,
}

impl Entries {
    fn queue(&mut self, wait: Wait) -> (&mut Slab<Entry>, &mut Queue) {
        match wait {
            Wait::Hello => (&mut self.present, &mut self.awaiting_hello),
            Wait::Close => (&mut self.present, &mut self.awaiting_close),
        }
    }

    fn begin(&mut self, number: u32, wait: Wait) -> Instant {
        let since = Instant::now();
        let (present, queue) = self.queue(wait);
        if let Some(entry) = present.get_mut(number as usize) {
            debug_assert!(!matches!(entry.stage, Stage::Waiting(..)), "it waits for one thing at a time");
            entry.stage = Stage::Waiting(wait, since);
            queue.waiting += 1;
            if queue.entries.len() > 2 * queue.waiting + 64 {
                queue.entries.retain(|(number, since)| waits(present, *number, wait, *since));
            }
            queue.entries.push_back((number, since));
        }
        since
    }

    fn end(&mut self, number: u32, wait: Wait, since: Instant) -> bool {
        let (present, queue) = self.queue(wait);
        let is_there = waits(present, number, wait, since);
        if is_there {
            queue.waiting -= 1;
            present[number as usize].stage = Stage::Connecting;
        }
        is_there
    }

    /// Tells whoever has waited longest to go; whether there was somebody who has waited for so long.
    fn close_oldest(&mut self, wait: Wait, at_least: Duration) -> bool {
        loop {
            let (present, queue) = self.queue(wait);
            let Some((number, since)) = queue.entries.front().copied() else { return false };
            if waits(present, number, wait, since) && since.elapsed() < at_least {
                return false;
            }
            queue.entries.pop_front();
            if !self.end(number, wait, since) {
                continue;
            }
            // It has been told something else already, otherwise.
            if let Some(sender) = self.present[number as usize].sender.take() {
                return sender.send(Message::Close(CloseReason::Shed)).is_ok();
            }
        }
    }
}

fn waits(present: &Slab<Entry>, number: u32, wait: Wait, since: Instant) -> bool {
    present.get(number as usize).is_some_and(|entry| entry.stage == Stage::Waiting(wait, since))
}

impl Entry {
    /// Whether it can be told to end, and is connected to such an endpoint.
    fn is_at(&self, is_one: impl FnOnce(EndpointId) -> bool) -> bool {
        self.sender.is_some() && matches!(self.stage, Stage::At(endpoint) if is_one(endpoint))
    }
}

/// One connection's entry; it leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Handle {
    messages: Receiver<Message>,
    reason: Option<CloseReason>,
    number: u32,
    registry: Arc<Registry>,
}

impl Registry {
    /// A connection is here.
    pub(crate) fn enter(self: &Arc<Self>) -> Handle {
        let (sender, messages) = oneshot::channel();
        let mut entries = self.entries();
        let sender = (!entries.closed).then_some(sender);
        let number = entries.present.insert(Entry { sender, stage: Stage::Connecting });
        // There are never as many descriptors.
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Handle { messages, reason: None, number, registry: Arc::clone(self) }
    }

    /// There is no place for another one: whoever was refused and has not gone, or whose hello has been awaited longest, is
    /// told to end. A hello is awaited for a second at least, unless more than `most` are.
    pub(crate) fn shed_one(&self, most: usize) {
        let mut entries = self.entries();
        let patience = if entries.awaiting_hello.waiting > most { Duration::ZERO } else { MIN_HELLO_WAIT };
        let _ = entries.close_oldest(Wait::Close, Duration::ZERO) || entries.close_oldest(Wait::Hello, patience);
    }

    /// Tells all that are here, and all that will come, to end.
    pub(crate) fn close_all(&self) {
        let mut entries = self.entries();
        entries.closed = true;
        for (_, entry) in &mut entries.present {
            // Dropped unused, it wakes its receiver too.
            entry.sender.take();
        }
    }

    /// The numbers of those that are connected to one of these endpoints and have not been told to end.
    pub(crate) fn numbers_at(&self, endpoints: &HashSet<EndpointId>) -> Vec<usize> {
        let entries = self.entries();
        let those = entries.present.iter().filter(|(_, entry)| entry.is_at(|at| endpoints.contains(&at)));
        those.map(|(number, _)| number).collect()
    }

    /// Tells those of these numbers that are still connected to one of these endpoints; how many these are.
    pub(crate) fn close(&self, numbers: &[usize], endpoints: &HashSet<EndpointId>, reason: CloseReason) -> usize {
        let mut entries = self.entries();
        let tell = |number: &usize| {
            let entry = entries.present.get_mut(*number)?;
            if !entry.is_at(|at| endpoints.contains(&at)) {
                return None;
            }
            entry.sender.take()?.send(Message::Close(reason)).ok()
        };
        numbers.iter().filter_map(tell).count()
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenConnections for Registry {
    fn probe(&self, endpoint: EndpointId, since: Instant) -> usize {
        let mut entries = self.entries();
        let those = entries.present.iter_mut().filter(|(_, entry)| entry.is_at(|at| at == endpoint));
        those.filter_map(|(_, entry)| entry.sender.take()?.send(Message::Probe(since)).ok()).count()
    }
}

impl Handle {
    /// What it was told; the end of the process, as long as it was told nothing.
    pub(crate) fn close_reason(&self) -> CloseReason {
        self.reason.unwrap_or(CloseReason::Draining)
    }

    /// From now on, until what is returned is dropped, the connection waits for its client.
    pub(crate) fn wait(&self, wait: Wait) -> Waiting {
        let since = self.registry.entries().begin(self.number, wait);
        Waiting { wait, since, number: self.number, registry: Arc::clone(&self.registry) }
    }

    /// The connection has reached this endpoint.
    pub(crate) fn reached(&self, endpoint: EndpointId) {
        if let Some(entry) = self.registry.entries().present.get_mut(self.number as usize) {
            entry.stage = Stage::At(endpoint);
        }
    }
}

/// A connection waits for its client, for as long as it has this.
#[derive(Debug)]
pub(crate) struct Waiting {
    wait: Wait,
    since: Instant,
    number: u32,
    registry: Arc<Registry>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.registry.entries().end(self.number, self.wait, self.since);
    }
}

impl Handle {
    /// The next message; none after the one to end.
    pub(crate) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Message> {
        if self.reason.is_some() {
            return Poll::Pending;
        }
        let message = ready!(Pin::new(&mut self.messages).poll(cx)).unwrap_or(Message::Close(CloseReason::Draining));
        match message {
            Message::Close(reason) => self.reason = Some(reason),
            Message::Probe(_) => self.receive_again(),
        }
        Poll::Ready(message)
    }

    /// After a message to end, sent to all, there is no other one: what is dropped says so at the next poll.
    fn receive_again(&mut self) {
        let (sender, messages) = oneshot::channel();
        self.messages = messages;
        let mut entries = self.registry.entries();
        if entries.closed {
            return;
        }
        if let Some(entry) = entries.present.get_mut(self.number as usize) {
            entry.sender = Some(sender);
        }
    }
}

/// Ready when the connection is to end; once. For those that have not reached an endpoint, and so are sent nothing else.
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
        let mut entries = self.registry.entries();
        if let Some(Entry { stage: Stage::Waiting(wait, _), .. }) = entries.present.try_remove(self.number as usize) {
            entries.queue(wait).1.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_are_here_and_those_who_come_late_are_told() {
        let registry = Arc::new(Registry::default());
        let (early, here) = (registry.enter(), registry.enter());
        drop(early);
        let mut waiting = tokio::spawn(here);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        registry.close_all();
        assert_eq!((&mut waiting).await.unwrap(), CloseReason::Draining);
        assert_eq!(registry.enter().await, CloseReason::Draining);
        assert!(registry.entries().present.is_empty());
    }

    fn is_told(handle: &mut Handle) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        Pin::new(handle).poll(&mut cx).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn a16_who_has_waited_longest_makes_room() {
        let registry = Arc::new(Registry::default());
        let mut entries: Vec<Handle> = (0..6).map(|_| registry.enter()).collect();
        let first = entries[0].wait(Wait::Hello);
        let _second = entries[1].wait(Wait::Hello);
        drop(first);
        let _third = entries[2].wait(Wait::Hello);
        registry.shed_one(2);
        assert!(!entries.iter_mut().any(is_told), "they have come just now");
        registry.shed_one(1);
        assert!(is_told(&mut entries[1]) && entries[1].close_reason() == CloseReason::Shed, "two are too many");
        assert!(!is_told(&mut entries[1]), "once");
        tokio::time::advance(MIN_HELLO_WAIT).await;
        let _fourth = entries[3].wait(Wait::Hello);
        let _refused = entries[4].wait(Wait::Close);
        registry.shed_one(9);
        assert!(is_told(&mut entries[4]), "who was refused goes first");
        registry.shed_one(9);
        assert!(is_told(&mut entries[2]) && !is_told(&mut entries[3]), "then who has waited a second");
        registry.shed_one(9);
        assert!(!is_told(&mut entries[3]));
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_micros(1)).await;
            drop(entries[5].wait(Wait::Hello));
        }
        assert!(registry.entries().awaiting_hello.entries.len() < 100, "what is over is forgotten");
        entries.clear();
        let entries = registry.entries();
        assert_eq!((entries.awaiting_hello.waiting, entries.awaiting_close.waiting), (0, 0));
    }

    #[tokio::test]
    async fn those_at_an_endpoint_are_told_alone() {
        let registry = Arc::new(Registry::default());
        let endpoints = [EndpointId::next(), EndpointId::next()];
        let entries = endpoints.map(|endpoint| {
            let handle = registry.enter();
            handle.reached(endpoint);
            handle
        });
        let nowhere = registry.enter();
        let first = HashSet::from([endpoints[0]]);
        let all = registry.numbers_at(&first);
        assert_eq!(registry.close(&all, &first, CloseReason::Removed), 1);
        assert_eq!(registry.close(&all, &first, CloseReason::Removed), 0, "once");
        let [there, elsewhere] = entries;
        assert_eq!(there.await, CloseReason::Removed);
        for mut handle in [elsewhere, nowhere] {
            assert!(!is_told(&mut handle));
        }
    }

    #[tokio::test]
    async fn b08_connections_are_probed_again_and_again_and_miss_no_order() {
        let registry = Arc::new(Registry::default());
        let endpoint = EndpointId::next();
        let mut connection = registry.enter();
        connection.reached(endpoint);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..3 {
            let since = Instant::now();
            assert_eq!(registry.probe(endpoint, since), 1);
            assert_eq!(registry.probe(endpoint, since), 0, "it has not received the first one yet");
            assert_eq!(connection.poll_message(&mut cx), Poll::Ready(Message::Probe(since)));
            assert_eq!(connection.poll_message(&mut cx), Poll::Pending);
        }
        assert_eq!(registry.probe(endpoint, Instant::now()), 1);
        registry.close_all();
        assert!(matches!(connection.poll_message(&mut cx), Poll::Ready(Message::Probe(_))));
        assert_eq!(
            connection.poll_message(&mut cx),
            Poll::Ready(Message::Close(CloseReason::Draining)),
            "sent in between"
        );
    }
}
