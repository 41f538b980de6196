//! Who may be connected to the admin listener. Those who wait to be accepted find room soon: connections that have been idle
//! for longest make it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Connections at a time.
pub(super) const MAX_CONNECTIONS: usize = 64;
/// Those of one address: kubelet, scraper and people may well come from the same, but it never has all.
const MAX_OF_A_PEER: usize = MAX_CONNECTIONS / 2;
/// Requests at a time, but for those of probes, which always have a place.
const MAX_REQUESTS: usize = MAX_CONNECTIONS / 4;
/// For such a place.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that has been idle for less is about to send a request.
const MIN_IDLE: Duration = Duration::from_millis(500);
/// So many make room at a time.
const MAKE_ROOM: usize = 8;

#[derive(Debug)]
pub(super) struct Places {
    connections: Mutex<Slab<Connection>>,
    requests: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        Self { connections: Mutex::default(), requests: Arc::new(Semaphore::new(MAX_REQUESTS)) }
    }
}

#[derive(Debug)]
struct Connection {
    peer: IpAddr,
    /// None while requests are under way.
    idle_since: Option<Instant>,
    requests: usize,
    close: CancellationToken,
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    number: usize,
    /// Cancelled when it must make room.
    pub(super) close: CancellationToken,
}

/// A request under way, until its answer has been sent.
#[derive(Debug)]
pub(super) struct Request {
    places: Arc<Places>,
    number: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// Takes a place. Where the peer has half of all, its connection that has been idle for longest is closed.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr) -> Place {
        let close = CancellationToken::new();
        let mut connections = self.connections();
        if connections.iter().filter(|(_, connection)| connection.peer == peer).count() >= MAX_OF_A_PEER {
            close_idle(&connections, 1, |connection| connection.peer == peer);
        }
        let idle_since = Some(Instant::now());
        let number = connections.insert(Connection { peer, idle_since, requests: 0, close: close.clone() });
        Place { places: Arc::clone(self), number, close }
    }

    /// All places are taken, and others wait to be accepted: closes some of the connections that have been idle for longest.
    pub(super) fn make_room(&self) {
        close_idle(&self.connections(), MAKE_ROOM, |_| true);
    }

    fn connections(&self) -> MutexGuard<'_, Slab<Connection>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn close_idle(connections: &Slab<Connection>, most: usize, may_go: impl Fn(&Connection) -> bool) {
    let open = connections.iter().map(|(_, connection)| connection);
    let open = open.filter(|connection| !connection.close.is_cancelled() && may_go(connection));
    let idle = open.filter_map(|connection| Some((connection.idle_since?, connection)));
    let mut idle: Vec<_> = idle.filter(|(since, _)| since.elapsed() >= MIN_IDLE).collect();
    idle.sort_by_key(|(since, _)| *since);
    for (_, connection) in idle.into_iter().take(most) {
        connection.close.cancel();
    }
}

impl Place {
    /// Begins a request, when there is a place for it; `None`: there was none in time. Those of probes always have one.
    pub(super) fn begin(&self, is_probe: bool) -> impl Future<Output = Option<Request>> + use<> {
        let mut connections = self.places.connections();
        let connection = &mut connections[self.number];
        connection.requests += 1;
        connection.idle_since = None;
        drop(connections);
        let mut request = Request { places: Arc::clone(&self.places), number: self.number, permit: None };
        let requests = Arc::clone(&self.places.requests);
        async move {
            if !is_probe {
                request.permit = Some(timeout(REQUEST_TIMEOUT, requests.acquire_owned()).await.ok()?.ok()?);
            }
            Some(request)
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut connections = self.places.connections();
        // It may outlive its connection.
        if let Some(connection) = connections.get_mut(self.number) {
            connection.requests = connection.requests.saturating_sub(1);
            if connection.requests == 0 {
                connection.idle_since = Some(Instant::now());
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.connections().try_remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn peer(number: usize) -> IpAddr {
        [192, 0, 2, u8::try_from(number).unwrap()].into()
    }

    fn closed(places: &[Place]) -> Vec<usize> {
        (0..places.len()).filter(|number| places[*number].close.is_cancelled()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn e16_connections_that_are_idle_for_longest_make_room() {
        let places = Arc::new(Places::default());
        let held: Vec<Place> = (0..MAX_CONNECTIONS).map(|number| places.enter(peer(number))).collect();
        places.make_room();
        assert!(closed(&held).is_empty(), "they have just come");

        advance(MIN_IDLE).await;
        let at_work = held[0].begin(false).await.unwrap();
        places.make_room();
        assert_eq!(closed(&held), (1..=MAKE_ROOM).collect::<Vec<_>>());
        drop(at_work);
        places.make_room();
        assert!(!held[0].close.is_cancelled(), "idle since a moment ago");
    }

    #[tokio::test(start_paused = true)]
    async fn e16_one_peer_does_not_keep_more_than_half() {
        let places = Arc::new(Places::default());
        let squatters: Vec<Place> = (0..MAX_OF_A_PEER).map(|_| places.enter(peer(1))).collect();
        advance(MIN_IDLE).await;
        let others = [places.enter(peer(2)), places.enter(peer(1))];
        assert_eq!((closed(&squatters), closed(&others)), (vec![0], Vec::new()));
    }

    #[tokio::test(start_paused = true)]
    async fn e16_probes_have_a_place_beside_all_other_requests() {
        let places = Arc::new(Places::default());
        let viewers: Vec<Place> = (0..=MAX_REQUESTS).map(|number| places.enter(peer(number))).collect();
        let mut requests = Vec::new();
        for viewer in &viewers[1..] {
            requests.push(viewer.begin(false).await.unwrap());
        }
        assert!(viewers[0].begin(false).await.is_none(), "not within {REQUEST_TIMEOUT:?}");
        assert!(viewers[0].begin(true).await.is_some());
        requests.pop();
        assert!(viewers[0].begin(false).await.is_some());
    }
}
