//! All open connections, so that they can be told to end.

use std::collections::HashSet;
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
}

/// Who is here. Until it is told to end, this costs a connection no lock per poll, and some 80 bytes.
#[derive(Debug, Default)]
pub struct Roster {
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    present: Slab<Entry>,
    closed: bool,
}

#[derive(Debug)]
struct Entry {
    /// None once it has been told.
    sender: Option<Sender<Order>>,
    endpoint: Option<EndpointId>,
}

impl Entry {
    /// Whether it can be told to end, and is connected to such an endpoint.
    fn is_at(&self, is_one: impl FnOnce(EndpointId) -> bool) -> bool {
        self.sender.is_some() && self.endpoint.is_some_and(is_one)
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
        let number = members.present.insert(Entry { sender, endpoint: None });
        // There are never as many descriptors.
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        Member { told, order: None, number, roster: Arc::clone(self) }
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

    /// The connection has reached this endpoint.
    pub fn reached(&self, endpoint: EndpointId) {
        if let Some(entry) = self.roster.members().present.get_mut(self.number as usize) {
            entry.endpoint = Some(endpoint);
        }
    }
}

/// Ready when the connection is to end.
impl Future for Member {
    type Output = Order;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Order> {
        let order = ready!(Pin::new(&mut self.told).poll(cx)).unwrap_or(Order::Drain);
        self.order = Some(order);
        Poll::Ready(order)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.roster.members().present.try_remove(self.number as usize);
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
