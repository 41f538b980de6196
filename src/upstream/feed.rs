//! Endpoints that something outside publishes, as what watches a cluster does for its Services. They may change often, and
//! no configuration is loaded for that.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::text::Destination;

type OnAddresses = Arc<dyn Fn(&[SocketAddr]) + Send + Sync>;

/// All destinations with published addresses, each once, however many routes have it.
#[derive(Debug, Default)]
pub(crate) struct Feeds(Mutex<HashMap<Destination, Feed>>);

#[derive(Default)]
struct Feed {
    /// `None`: nothing has been published yet.
    addresses: Option<Vec<SocketAddr>>,
    subscribers: Vec<(u64, OnAddresses)>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Receives the addresses of a destination until it is dropped.
#[derive(Debug)]
pub(super) struct FeedSubscription {
    feeds: Arc<Feeds>,
    destination: Destination,
    id: u64,
}

impl Drop for FeedSubscription {
    fn drop(&mut self) {
        let mut feeds = self.feeds.feeds();
        let Some(feed) = feeds.get_mut(&self.destination) else { return };
        let position = feed.subscribers.iter().position(|(id, _)| *id == self.id);
        let _dropped_unlocked = position.map(|position| feed.subscribers.swap_remove(position));
        drop(feeds);
    }
}

impl Feeds {
    /// Replaces all addresses. Destinations that are missing are published no more; whoever has them keeps the last ones.
    #[cfg(any(test, feature = "gateway"))]
    pub(crate) fn publish(&self, published: impl IntoIterator<Item = (Destination, Vec<SocketAddr>)>) {
        let mut published: HashMap<_, _> = published.into_iter().collect();
        let mut changed = Vec::new();
        let mut feeds = self.feeds();
        feeds.retain(|destination, feed| published.contains_key(destination) || !feed.subscribers.is_empty());
        for (destination, addresses) in published.drain() {
            let feed = feeds.entry(destination).or_default();
            if feed.addresses.as_ref() != Some(&addresses) {
                feed.addresses = Some(addresses.clone());
                let subscribers = feed.subscribers.iter().map(|(_, on_addresses)| Arc::clone(on_addresses));
                changed.push((addresses, subscribers.collect::<Vec<_>>()));
            }
        }
        drop(feeds);
        // Not under the lock: a route may end its subscription.
        for (addresses, subscribers) in changed {
            for on_addresses in subscribers {
                on_addresses(&addresses);
            }
        }
    }

    /// `on_addresses` is called for each change, and at once if there are addresses.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        destination: &Destination,
        on_addresses: impl Fn(&[SocketAddr]) + Send + Sync + 'static,
    ) -> FeedSubscription {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Relaxed);
        let on_addresses: OnAddresses = Arc::new(on_addresses);
        let mut feeds = self.feeds();
        let feed = feeds.entry(destination.clone()).or_default();
        feed.subscribers.push((id, Arc::clone(&on_addresses)));
        let addresses = feed.addresses.clone();
        drop(feeds);
        if let Some(addresses) = addresses {
            on_addresses(&addresses);
        }
        FeedSubscription { feeds: Arc::clone(self), destination: destination.clone(), id }
    }

    fn feeds(&self) -> MutexGuard<'_, HashMap<Destination, Feed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscribers_get_what_is_known_and_each_change() {
        let feeds = Arc::<Feeds>::default();
        let (api, other) = (Destination::service("a", "api", 443), Destination::service("b", "api", 443));
        let address = |port| SocketAddr::from(([192, 0, 2, 1], port));
        feeds.publish([(api.clone(), vec![address(1)])]);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = Arc::clone(&seen);
        let subscription = feeds.subscribe(&api, move |addresses| note.lock().unwrap().push(addresses.to_vec()));
        feeds.publish([(api.clone(), vec![address(1)]), (other.clone(), vec![address(7)])]);
        feeds.publish([(api.clone(), vec![])]);
        feeds.publish([(other.clone(), vec![address(8)])]);
        assert_eq!(*seen.lock().unwrap(), [vec![address(1)], vec![]], "the same again and others say nothing");
        drop(subscription);
        feeds.publish([(other.clone(), vec![address(8)])]);
        assert_eq!(feeds.feeds().keys().collect::<Vec<_>>(), [&other], "what is neither published nor used is dropped");
    }
}
