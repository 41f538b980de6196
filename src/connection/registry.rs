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

use crate::upstream::EndpointId;

/// Why a connection is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// This process ends.
    Drain,
    /// A reload has removed its route or endpoint.
    Removed,
    /// There is no place for others, and it only waits.
    Crowded,
}

/// What a connection is sent by the rest of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// It must end.
    End(Order),
    /// Its endpoint was found dead at this moment: it must find out whether its own connection to it is.
    Probe(Instant),
}

/// So long a hello is awaited although there is no place for others: a round trip of anybody.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who is here. Until it is told to end, this costs a connection no lock per poll, and some 80 bytes.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    present: Slab<Entry>,
    closed: bool,
    /// Those whose hello is awaited.
    expected: Queue,
    /// Those that have been refused, and have not gone yet.
    leaving: Queue,
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
    OnTheWay,
    At(EndpointId),
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// For its client's hello.
    Hello,
    /// For its client to go.
    Leave,
}

/// Who waits, and since when; who came last is at the end.
#[derive(Debug, Default)]
struct Queue {
    /// And some that wait no more, until they are found in it.
    entries: VecDeque<(u32, Instant)>,
    waiting: usize,
}

impl Members {
    fn queue(&mut self, wait: Wait) -> (&mut Slab<Entry>, &mut Queue) {
        match wait {
            Wait::Hello => (&mut self.present, &mut self.expected),
            Wait::Leave => (&mut self.present, &mut self.leaving),
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
            present[number as usize].stage = Stage::OnTheWay;
        }
        is_there
    }

    /// Tells whoever has waited longest to go; whether there was somebody who has waited for so long.
    fn dismiss(&mut self, wait: Wait, at_least: Duration) -> bool {
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
                return sender.send(Message::End(Order::Crowded)).is_ok();
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
pub(crate) struct Member {
    messages: Receiver<Message>,
    order: Option<Order>,
    number: u32,
    roster: Arc<Roster>,
}

impl Roster {
    /// A connection is here.
    pub(crate) fn enter(self: &Arc<Self>) -> Member {
        let (sender, messages) = oneshot::channel();
        let mut members = self.members();
        let sender = (!members.closed).then_some(sender);
        let number = members.present.insert(Entry { sender, stage: Stage::OnTheWay });
        // There are never as many descriptors.
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Member { messages, order: None, number, roster: Arc::clone(self) }
    }

    /// There is no place for another one: whoever was refused and has not gone, or whose hello has been awaited longest, is
    /// told to end. A hello is awaited for a second at least, unless more than `most` are.
    pub(crate) fn make_room(&self, most: usize) {
        let mut members = self.members();
        let patience = if members.expected.waiting > most { Duration::ZERO } else { PATIENCE };
        let _ = members.dismiss(Wait::Leave, Duration::ZERO) || members.dismiss(Wait::Hello, patience);
    }

    /// Tells all that are here, and all that will come, to end.
    pub(crate) fn end_all(&self) {
        let mut members = self.members();
        members.closed = true;
        for (_, entry) in &mut members.present {
            // Dropped unused, it wakes its receiver too.
            entry.sender.take();
        }
    }

    /// Has those that are connected to this endpoint probe their connections, which was found dead at this moment; how many
    /// these are.
    pub(crate) fn probe_those_at(&self, endpoint: EndpointId, since: Instant) -> usize {
        let mut members = self.members();
        let those = members.present.iter_mut().filter(|(_, entry)| entry.is_at(|at| at == endpoint));
        those.filter_map(|(_, entry)| entry.sender.take()?.send(Message::Probe(since)).ok()).count()
    }

    /// The numbers of those that are connected to one of these endpoints and have not been told to end.
    pub(crate) fn those_at(&self, endpoints: &HashSet<EndpointId>) -> Vec<usize> {
        let members = self.members();
        let those = members.present.iter().filter(|(_, entry)| entry.is_at(|at| endpoints.contains(&at)));
        those.map(|(number, _)| number).collect()
    }

    /// Tells those of these numbers that are still connected to one of these endpoints; how many these are.
    pub(crate) fn end(&self, numbers: &[usize], endpoints: &HashSet<EndpointId>, order: Order) -> usize {
        let mut members = self.members();
        let tell = |number: &usize| {
            let entry = members.present.get_mut(*number)?;
            if !entry.is_at(|at| endpoints.contains(&at)) {
                return None;
            }
            entry.sender.take()?.send(Message::End(order)).ok()
        };
        numbers.iter().filter_map(tell).count()
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// What it was told; the end of the process, as long as it was told nothing.
    pub(crate) fn order(&self) -> Order {
        self.order.unwrap_or(Order::Drain)
    }

    /// From now on, until what is returned is dropped, the connection waits for its client.
    pub(crate) fn wait(&self, wait: Wait) -> Waiting {
        let since = self.roster.members().begin(self.number, wait);
        Waiting { wait, since, number: self.number, roster: Arc::clone(&self.roster) }
    }

    /// The connection has reached this endpoint.
    pub(crate) fn reached(&self, endpoint: EndpointId) {
        if let Some(entry) = self.roster.members().present.get_mut(self.number as usize) {
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
    roster: Arc<Roster>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.roster.members().end(self.number, self.wait, self.since);
    }
}

impl Member {
    /// The next message; none after the one to end.
    pub(crate) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Message> {
        if self.order.is_some() {
            return Poll::Pending;
        }
        let message = ready!(Pin::new(&mut self.messages).poll(cx)).unwrap_or(Message::End(Order::Drain));
        match message {
            Message::End(order) => self.order = Some(order),
            Message::Probe(_) => self.receive_again(),
        }
        Poll::Ready(message)
    }

    /// After a message to end, sent to all, there is no other one: what is dropped says so at the next poll.
    fn receive_again(&mut self) {
        let (sender, messages) = oneshot::channel();
        self.messages = messages;
        let mut members = self.roster.members();
        if members.closed {
            return;
        }
        if let Some(entry) = members.present.get_mut(self.number as usize) {
            entry.sender = Some(sender);
        }
    }
}

/// Ready when the connection is to end; once. For those that have not reached an endpoint, and so are sent nothing else.
impl Future for Member {
    type Output = Order;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Order> {
        loop {
            if let Message::End(order) = ready!(self.poll_message(cx)) {
                return Poll::Ready(order);
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut members = self.roster.members();
        if let Some(Entry { stage: Stage::Waiting(wait, _), .. }) = members.present.try_remove(self.number as usize) {
            members.queue(wait).1.waiting -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_are_here_and_those_who_come_late_are_told() {
        let roster = Arc::new(Roster::default());
        let (early, here) = (roster.enter(), roster.enter());
        drop(early);
        let mut waiting = tokio::spawn(here);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        roster.end_all();
        assert_eq!((&mut waiting).await.unwrap(), Order::Drain);
        assert_eq!(roster.enter().await, Order::Drain);
        assert!(roster.members().present.is_empty());
    }

    fn is_told(member: &mut Member) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        Pin::new(member).poll(&mut cx).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn a16_who_has_waited_longest_makes_room() {
        let roster = Arc::new(Roster::default());
        let mut members: Vec<Member> = (0..6).map(|_| roster.enter()).collect();
        let first = members[0].wait(Wait::Hello);
        let _second = members[1].wait(Wait::Hello);
        drop(first);
        let _third = members[2].wait(Wait::Hello);
        roster.make_room(2);
        assert!(!members.iter_mut().any(is_told), "they have come just now");
        roster.make_room(1);
        assert!(is_told(&mut members[1]) && members[1].order() == Order::Crowded, "two are too many");
        assert!(!is_told(&mut members[1]), "once");
        tokio::time::advance(PATIENCE).await;
        let _fourth = members[3].wait(Wait::Hello);
        let _refused = members[4].wait(Wait::Leave);
        roster.make_room(9);
        assert!(is_told(&mut members[4]), "who was refused goes first");
        roster.make_room(9);
        assert!(is_told(&mut members[2]) && !is_told(&mut members[3]), "then who has waited a second");
        roster.make_room(9);
        assert!(!is_told(&mut members[3]));
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_micros(1)).await;
            drop(members[5].wait(Wait::Hello));
        }
        assert!(roster.members().expected.entries.len() < 100, "what is over is forgotten");
        members.clear();
        let members = roster.members();
        assert_eq!((members.expected.waiting, members.leaving.waiting), (0, 0));
    }

    #[tokio::test]
    async fn those_at_an_endpoint_are_told_alone() {
        let roster = Arc::new(Roster::default());
        let endpoints = [EndpointId::next(), EndpointId::next()];
        let members = endpoints.map(|endpoint| {
            let member = roster.enter();
            member.reached(endpoint);
            member
        });
        let nowhere = roster.enter();
        let first = HashSet::from([endpoints[0]]);
        let all = roster.those_at(&first);
        assert_eq!(roster.end(&all, &first, Order::Removed), 1);
        assert_eq!(roster.end(&all, &first, Order::Removed), 0, "once");
        let [there, elsewhere] = members;
        assert_eq!(there.await, Order::Removed);
        for mut member in [elsewhere, nowhere] {
            assert!(!is_told(&mut member));
        }
    }

    #[tokio::test]
    async fn b08_connections_are_probed_again_and_again_and_miss_no_order() {
        let roster = Arc::new(Roster::default());
        let endpoint = EndpointId::next();
        let mut connection = roster.enter();
        connection.reached(endpoint);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..3 {
            let since = Instant::now();
            assert_eq!(roster.probe_those_at(endpoint, since), 1);
            assert_eq!(roster.probe_those_at(endpoint, since), 0, "it has not received the first one yet");
            assert_eq!(connection.poll_message(&mut cx), Poll::Ready(Message::Probe(since)));
            assert_eq!(connection.poll_message(&mut cx), Poll::Pending);
        }
        assert_eq!(roster.probe_those_at(endpoint, Instant::now()), 1);
        roster.end_all();
        assert!(matches!(connection.poll_message(&mut cx), Poll::Ready(Message::Probe(_))));
        assert_eq!(connection.poll_message(&mut cx), Poll::Ready(Message::End(Order::Drain)), "sent in between");
    }
}
