//! All open connections, so that they can be told to end.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use slab::Slab;
use tokio::sync::oneshot::{self, Receiver, Sender};

use crate::upstream::EndpointId;

/// Why a connection is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// This process ends.
    Drain,
    /// A reload has removed its route or endpoint.
    Removed,
    /// Its endpoint is gone.
    EndpointGone,
    /// Too many wait like it, and it has waited longest.
    Crowded,
}

/// Who is here. Until it is told to end, this costs a connection no lock per poll, and some 80 bytes.
#[derive(Debug, Default)]
pub struct Roster {
    members: Mutex<Members>,
}

#[derive(Debug)]
struct Members {
    present: Slab<Entry>,
    closed: bool,
    /// Those that wait and, until they are found in it, some that no longer do; who came last is at the end.
    queue: VecDeque<(u32, u64)>,
    waiting: usize,
    most_waiting: usize,
    /// Who has begun to wait so far.
    turns: u64,
}

#[derive(Debug)]
struct Entry {
    /// None once it has been told.
    sender: Option<Sender<Order>>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has not said what it wants, or does not go; since this turn.
    Waiting(u64),
    OnTheWay,
    At(EndpointId),
}

impl Default for Members {
    fn default() -> Self {
        Self {
            present: Slab::new(),
            closed: false,
            queue: VecDeque::new(),
            waiting: 0,
            most_waiting: usize::MAX,
            turns: 0,
        }
    }
}

impl Members {
    fn wait(&mut self, number: u32) -> Option<u64> {
        let entry = self.present.get_mut(number as usize)?;
        self.turns += 1;
        let turn = self.turns;
        entry.stage = Stage::Waiting(turn);
        self.waiting += 1;
        if self.queue.len() > 2 * self.waiting + 64 {
            let present = &self.present;
            self.queue.retain(|(number, turn)| waits(present, *number, *turn));
        }
        self.queue.push_back((number, turn));
        while self.waiting > self.most_waiting
            && let Some((number, turn)) = self.queue.pop_front()
        {
            self.wait_no_more(number, turn, Some(Order::Crowded));
        }
        Some(turn)
    }

    fn wait_no_more(&mut self, number: u32, turn: u64, order: Option<Order>) {
        let Some(entry) = self.present.get_mut(number as usize) else { return };
        if entry.stage != Stage::Waiting(turn) {
            return;
        }
        entry.stage = Stage::OnTheWay;
        self.waiting -= 1;
        if let Some((sender, order)) = order.and_then(|order| Some((entry.sender.take()?, order))) {
            // It has just gone, otherwise.
            let _ = sender.send(order);
        }
    }
}

fn waits(present: &Slab<Entry>, number: u32, turn: u64) -> bool {
    present.get(number as usize).is_some_and(|entry| entry.stage == Stage::Waiting(turn))
}

impl Entry {
    /// Whether it can be told to end, and is connected to such an endpoint.
    fn is_at(&self, is_one: impl FnOnce(EndpointId) -> bool) -> bool {
        self.sender.is_some() && matches!(self.stage, Stage::At(endpoint) if is_one(endpoint))
    }
}

/// One connection's entry; it leaves when this is dropped.
#[derive(Debug)]
pub struct Member {
    /// Ready when this connection is to end.
    told: Receiver<Order>,
    order: Option<Order>,
    number: u32,
    roster: Arc<Roster>,
}

impl Roster {
    /// A connection is here.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Member {
        let (sender, told) = oneshot::channel();
        let mut members = self.members();
        let sender = (!members.closed).then_some(sender);
        let number = members.present.insert(Entry { sender, stage: Stage::OnTheWay });
        // There are never as many descriptors.
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Member { told, order: None, number, roster: Arc::clone(self) }
    }

    /// From now on so many may wait; when there are more, those that have waited longest are told to end.
    pub fn let_wait(&self, most: usize) {
        self.members().most_waiting = most;
    }

    /// Tells all that are here, and all that will come, to end.
    pub fn end_all(&self) {
        let mut members = self.members();
        members.closed = true;
        for (_, entry) in &mut members.present {
            // Dropped unused, it wakes its receiver too.
            entry.sender.take();
        }
    }

    /// Tells those that are connected to this endpoint; how many these are.
    pub fn end_those_at(&self, endpoint: EndpointId, order: Order) -> usize {
        let mut members = self.members();
        let those = members.present.iter_mut().filter(|(_, entry)| entry.is_at(|at| at == endpoint));
        those.filter_map(|(_, entry)| entry.sender.take()?.send(order).ok()).count()
    }

    /// The numbers of those that are connected to one of these endpoints and have not been told to end.
    #[must_use]
    pub fn those_at(&self, endpoints: &HashSet<EndpointId>) -> Vec<usize> {
        let members = self.members();
        let those = members.present.iter().filter(|(_, entry)| entry.is_at(|at| endpoints.contains(&at)));
        those.map(|(number, _)| number).collect()
    }

    /// Tells those of these numbers that are still connected to one of these endpoints; how many these are.
    pub fn end(&self, numbers: &[usize], endpoints: &HashSet<EndpointId>, order: Order) -> usize {
        let mut members = self.members();
        let tell = |number: &usize| {
            let entry = members.present.get_mut(*number)?;
            if !entry.is_at(|at| endpoints.contains(&at)) {
                return None;
            }
            entry.sender.take()?.send(order).ok()
        };
        numbers.iter().filter_map(tell).count()
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// What it was told; the end of the process, as long as it was told nothing.
    #[must_use]
    pub fn order(&self) -> Order {
        self.order.unwrap_or(Order::Drain)
    }

    /// From now on, until what is returned is dropped, the connection waits for its client.
    #[must_use]
    pub fn wait(&self) -> Waiting {
        let turn = self.roster.members().wait(self.number).unwrap_or(0);
        Waiting { turn, number: self.number, roster: Arc::clone(&self.roster) }
    }

    /// The connection has reached this endpoint.
    pub fn reached(&self, endpoint: EndpointId) {
        if let Some(entry) = self.roster.members().present.get_mut(self.number as usize) {
            entry.stage = Stage::At(endpoint);
        }
    }
}

/// A connection waits for its client, for as long as it has this.
#[derive(Debug)]
pub struct Waiting {
    turn: u64,
    number: u32,
    roster: Arc<Roster>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.roster.members().wait_no_more(self.number, self.turn, None);
    }
}

/// Ready when the connection is to end; once.
impl Future for Member {
    type Output = Order;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Order> {
        if self.order.is_some() {
            return Poll::Pending;
        }
        let order = ready!(Pin::new(&mut self.told).poll(cx)).unwrap_or(Order::Drain);
        self.order = Some(order);
        Poll::Ready(order)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut members = self.roster.members();
        let gone = members.present.try_remove(self.number as usize);
        if gone.is_some_and(|entry| matches!(entry.stage, Stage::Waiting(_))) {
            members.waiting -= 1;
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

    #[tokio::test]
    async fn a16_who_has_waited_longest_makes_room() {
        let roster = Arc::new(Roster::default());
        roster.let_wait(2);
        let is_told = |member: &mut Member| {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            Pin::new(member).poll(&mut cx).is_ready()
        };
        let mut members: Vec<Member> = (0..5).map(|_| roster.enter()).collect();
        let first = members[0].wait();
        let second = members[1].wait();
        drop(first);
        let third = members[2].wait();
        assert!(!members.iter_mut().any(is_told), "the first has said what it wants");
        let fourth = members[3].wait();
        assert!(is_told(&mut members[1]) && members[1].order() == Order::Crowded);
        assert!(!is_told(&mut members[1]), "once");
        let again = members[0].wait();
        assert!(is_told(&mut members[2]) && !is_told(&mut members[3]));
        drop((second, third, fourth));
        assert_eq!(roster.members().waiting, 1);
        for _ in 0..1000 {
            drop(members[4].wait());
        }
        assert!(roster.members().queue.len() < 100, "what is over is forgotten");
        drop(members.remove(0));
        drop(again);
        assert_eq!(roster.members().waiting, 0);
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
        assert_eq!(roster.end_those_at(endpoints[0], Order::EndpointGone), 1);
        assert_eq!(roster.end_those_at(endpoints[0], Order::EndpointGone), 0, "once");
        let [there, elsewhere] = members;
        assert_eq!(there.await, Order::EndpointGone);
        for mut member in [elsewhere, nowhere] {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            assert!(Pin::new(&mut member).poll(&mut cx).is_pending());
        }
    }
}
