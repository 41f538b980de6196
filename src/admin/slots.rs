//! Limits on admin connections that always leave room for probes.
//!
//! A connection without a request under way may be closed to make room. Long responses are limited in total and per client
//! address, so that there always is such a connection, or a free slot.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Concurrent connections.
pub(crate) const MAX_CONNECTIONS: usize = 64;
/// Concurrent connections per client address.
const MAX_OF_PEER: usize = MAX_CONNECTIONS / 2;
/// Concurrent responses, other than to probes.
pub(super) const MAX_ANSWERS: usize = 48;
/// Per client address: a scraper may share its address with the kubelet.
pub(super) const MAX_ANSWERS_OF_PEER: usize = 24;
/// Minimum idle time before a connection is closed, so that a new one can send its request.
const GRACE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct ConnectionSlots {
    pub(super) permits: Arc<Semaphore>,
    /// Per client address: beyond that, its own longest idle connection makes room.
    max_of_peer: usize,
    entries: Mutex<Vec<Arc<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    peer: IpAddr,
    state: Mutex<EntryState>,
    /// Notified to close it, unless a request has arrived.
    to_leave: Notify,
}

#[derive(Clone, Copy, Debug)]
struct EntryState {
    /// `None` while a request is under way.
    idle_since: Option<Instant>,
    is_answered: bool,
    is_leaving: bool,
    /// The connection ends with its next answer, as none was idle for long enough to make room.
    is_last_answer: bool,
}

impl ConnectionSlots {
    pub(super) fn new() -> Self {
        Self::for_peers(MAX_CONNECTIONS, MAX_OF_PEER)
    }

    /// So many in all, and for each client address.
    pub(super) fn for_peers(max: usize, max_of_peer: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(max)), max_of_peer, entries: Mutex::default() }
    }

    /// Registers a new connection.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr, permit: OwnedSemaphorePermit) -> ConnectionSlot {
        let peer = network(peer);
        let state = Mutex::new(EntryState {
            idle_since: Some(Instant::now()),
            is_answered: false,
            is_leaving: false,
            is_last_answer: false,
        });
        let entry = Arc::new(Entry { peer, state, to_leave: Notify::new() });
        let mut entries = self.entries();
        let of_peer = staying(&entries, peer);
        entries.push(Arc::clone(&entry));
        if of_peer >= self.max_of_peer {
            end_one(entries.iter().filter(|other| other.peer == peer));
        }
        drop(entries);
        ConnectionSlot { slots: Arc::clone(self), entry, is_answer_written: AtomicBool::new(false), _permit: permit }
    }

    /// Called while all slots are taken and clients may wait in the kernel's queue.
    pub(super) fn make_room(&self) {
        let entries = self.entries();
        if entries.iter().any(|entry| entry.state().is_leaving) {
            return;
        }
        // An address with more than its share must not push out others.
        let has_too_many = |entry: &&Arc<Entry>| staying(&entries, entry.peer) > self.max_of_peer;
        let crowd: Vec<_> = entries.iter().filter(has_too_many).collect();
        if crowd.is_empty() {
            end_one(entries.iter());
        } else {
            end_one(crowd.into_iter());
        }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of connections of this address that are not about to be closed.
fn staying(entries: &[Arc<Entry>], peer: IpAddr) -> usize {
    entries.iter().filter(|entry| entry.peer == peer && !entry.state().is_leaving).count()
}

/// Closes the one that is idle for longest, or else the oldest after its next answer.
fn end_one<'e>(entries: impl Iterator<Item = &'e Arc<Entry>>) {
    let entries: Vec<_> = entries.collect();
    let idle = entries.iter().filter_map(|entry| {
        let EntryState { idle_since, is_leaving, .. } = *entry.state();
        idle_since.filter(|since| !is_leaving && since.elapsed() >= GRACE).map(|since| (since, entry))
    });
    if let Some((_, entry)) = idle.min_by_key(|(since, _)| *since) {
        entry.state().is_leaving = true;
        entry.to_leave.notify_one();
    } else if let Some(entry) = entries.iter().find(|entry| !entry.state().is_last_answer) {
        entry.state().is_last_answer = true;
    }
}

/// An IPv6 host can use any address of its /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Entry {
    fn state(&self) -> MutexGuard<'_, EntryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot of one connection.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    entry: Arc<Entry>,
    /// Whether the rest of the response is in the connection's buffer.
    is_answer_written: AtomicBool,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionSlot {
    /// Completes when the connection must make room. If a request has arrived in the meantime, it stays.
    pub(super) async fn to_leave(&self) {
        loop {
            self.entry.to_leave.notified().await;
            let mut state = self.entry.state();
            if state.idle_since.is_some() {
                return;
            }
            state.is_leaving = false;
        }
    }

    /// A request has arrived.
    pub(super) fn begin(&self) {
        self.is_answer_written.store(false, Relaxed);
        self.entry.state().idle_since = None;
    }

    /// Whether the connection is to end with this answer.
    pub(super) fn is_last_answer(&self) -> bool {
        self.entry.state().is_last_answer
    }

    /// The connection's buffer has been flushed.
    pub(super) fn flushed(&self) {
        if self.is_answer_written.swap(false, Relaxed) {
            self.entry.state().idle_since = Some(Instant::now());
        }
    }

    /// The last part of the response is in the connection's buffer.
    fn answer_ends(&self) {
        self.entry.state().is_answered = false;
        self.is_answer_written.store(true, Relaxed);
    }

    /// Whether there is room for another response that the client may read slowly.
    pub(super) fn has_room_for_answer(&self) -> bool {
        let entries = self.slots.entries();
        let answered: Vec<_> = entries.iter().filter(|entry| entry.state().is_answered).collect();
        let of_peer = answered.iter().filter(|entry| entry.peer == self.entry.peer).count();
        let has_room = answered.len() < MAX_ANSWERS && of_peer < MAX_ANSWERS_OF_PEER;
        self.entry.state().is_answered = has_room;
        has_room
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.slots.entries().retain(|entry| !Arc::ptr_eq(entry, &self.entry));
    }
}

/// A response under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Answer(pub(super) Arc<ConnectionSlot>);

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.answer_ends();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const PEER: &str = "192.0.2.1";
    const OTHER: &str = "192.0.2.2";

    fn take(slots: &Arc<ConnectionSlots>, peer: &str) -> Option<Arc<ConnectionSlot>> {
        let permit = Arc::clone(&slots.permits).try_acquire_owned().ok()?;
        Some(Arc::new(slots.take(peer.parse().unwrap(), permit)))
    }

    fn leaving(slots: &[Arc<ConnectionSlot>]) -> Vec<usize> {
        (0..slots.len()).filter(|index| slots[*index].entry.state().is_leaving).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn e13_the_longest_idle_connection_makes_room_once_it_had_time_to_ask() {
        let all = Arc::new(ConnectionSlots::new());
        let mut slots = Vec::new();
        for number in 0..MAX_CONNECTIONS {
            slots.push(take(&all, &format!("192.0.2.{number}")).unwrap());
        }
        assert!(take(&all, PEER).is_none());
        all.make_room();
        assert_eq!(leaving(&slots), [] as [usize; 0]);
        advance(GRACE).await;
        slots[0].begin();
        all.make_room();
        all.make_room();
        assert_eq!(leaving(&slots), [1], "one at a time, and none that has asked");
        slots[1].to_leave().await;
        drop(slots.remove(1));
        assert!(take(&all, PEER).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn e13_a_connection_whose_request_arrives_in_time_stays() {
        let all = Arc::new(ConnectionSlots::new());
        let slot = take(&all, PEER).unwrap();
        advance(GRACE).await;
        all.make_room();
        slot.begin();
        assert!(tokio::time::timeout(Duration::from_secs(1), slot.to_leave()).await.is_err());
        assert!(!slot.entry.state().is_leaving);
        drop(Answer(Arc::clone(&slot)));
        advance(GRACE).await;
        all.make_room();
        assert!(!slot.entry.state().is_leaving, "a part of its answer has not been sent yet");
        slot.flushed();
        advance(GRACE).await;
        all.make_room();
        slot.to_leave().await;
    }

    #[tokio::test(start_paused = true)]
    async fn e13_an_address_has_half_of_the_places_and_takes_none_of_others() {
        let all = Arc::new(ConnectionSlots::new());
        let other = take(&all, OTHER).unwrap();
        advance(GRACE).await;
        let mut slots: Vec<_> = (0..MAX_OF_PEER).map(|_| take(&all, PEER).unwrap()).collect();
        advance(GRACE).await;
        slots.push(take(&all, PEER).unwrap());
        assert_eq!((leaving(&slots), other.entry.state().is_leaving), (vec![0], false));
        drop(slots.remove(0));
        // More at once than can have been idle for long enough.
        while let Some(slot) = take(&all, PEER) {
            slots.push(slot);
        }
        advance(GRACE).await;
        while let Some(index) = leaving(&slots).pop() {
            drop(slots.remove(index));
        }
        slots.push(take(&all, PEER).unwrap());
        all.make_room();
        assert!(!leaving(&slots).is_empty() && !other.entry.state().is_leaving);
    }

    #[tokio::test(start_paused = true)]
    async fn e13_where_none_is_idle_the_oldest_ends_with_its_next_answer() {
        let all = Arc::new(ConnectionSlots::new());
        let mut slots: Vec<_> = (0..MAX_OF_PEER).map(|_| take(&all, PEER).unwrap()).collect();
        let other = take(&all, OTHER).unwrap();
        slots.iter().chain([&other]).for_each(|slot| slot.begin());
        let last = |slots: &[Arc<ConnectionSlot>]| slots.iter().filter(|slot| slot.is_last_answer()).count();
        assert_eq!(last(&slots), 0);
        slots.push(take(&all, PEER).unwrap());
        assert!(slots[0].is_last_answer() && last(&slots) == 1 && !other.is_last_answer());
        all.make_room();
        assert!(slots[1].is_last_answer() && last(&slots) == 2 && !other.is_last_answer());
    }

    #[tokio::test]
    async fn e13_answers_leave_places_for_probes() {
        let all = Arc::new(ConnectionSlots::new());
        let answering = |peer: &str| {
            let slot = take(&all, peer).unwrap();
            slot.begin();
            slot.has_room_for_answer().then(|| Answer(slot))
        };
        let mut answers: Vec<_> = (0..MAX_ANSWERS_OF_PEER).map(|_| answering(PEER).unwrap()).collect();
        assert!(answering(PEER).is_none());
        answers.extend((0..MAX_ANSWERS_OF_PEER).map(|_| answering(OTHER).unwrap()));
        assert!(answering("192.0.2.3").is_none());
        answers.pop();
        assert!(answering("192.0.2.3").is_some() && answering(PEER).is_none());
    }

    #[test]
    fn e13_addresses_of_one_network_are_one_peer() {
        let same = |one: &str, other: &str| network(one.parse().unwrap()) == network(other.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::2:0:0:1") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1") && !same("192.0.2.2", "192.0.2.1"));
    }
}
