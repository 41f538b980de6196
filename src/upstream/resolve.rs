//! Hostnames of endpoints, looked up again and again in the background: each (hostname, port) once, however many routes
//! have it. No connection waits for a lookup, except for the very first of a name.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::slots::{LastResult, SlotPools};
use super::{failure, jittered};
use crate::telemetry::Histogram;
use crate::text::units::first_of;

/// More addresses of a name are ignored: nobody has so many API servers.
const MAX_ADDRESSES: usize = 64;

/// A lookup that takes longer counts as failed; it is still awaited, since getaddrinfo(3) cannot be cancelled.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// A failed lookup is repeated after this time, which doubles until it is `resolve_every`.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// No name is looked up more often, whatever asks for it.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// How long a name is known after its last subscriber: a reload gives the name of a route that it changes up for a moment.
const LINGER: Duration = Duration::from_secs(1);

const MAX_NEW: usize = 48;
const MAX_ANSWERING: usize = 24;
const MAX_FAILING: usize = 24;

/// Lookups at a time, each with a thread and a descriptor.
pub(crate) const MAX_LOOKUPS: usize = MAX_NEW + MAX_ANSWERING + MAX_FAILING;

static SLOTS: LazyLock<SlotPools> = LazyLock::new(|| SlotPools::new(MAX_NEW, MAX_ANSWERING, MAX_FAILING));

/// Lookups at a time of names with the same parent domain, so that a zone whose servers are silent takes only part of the
/// slots of new names.
const MAX_OF_A_ZONE: usize = 16;

/// How many addresses a log line has.
const MAX_LISTED: usize = 20;

/// The addresses, or why there are none.
pub(super) type Answer = Result<Vec<SocketAddr>, String>;
/// Returns how many connections there are to addresses that the answer no longer has.
type OnAnswer = Arc<dyn Fn(&Answer) -> usize + Send + Sync>;

/// Looks a hostname up once.
pub(crate) async fn lookup(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let host = host.to_owned();
    let lookup = tokio::task::spawn_blocking(move || getaddrinfo(&host, port));
    match timeout(LOOKUP_TIMEOUT, lookup).await {
        Ok(answer) => answer.map_err(io::Error::other)?,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, late())),
    }
}

/// getaddrinfo(3): hosts file, search domains and all that the machine is set up with.
fn getaddrinfo(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    tidy((host, port).to_socket_addrs()?.collect())
}

fn late() -> String {
    format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())
}

/// Sorted, so that the same addresses in another order are no change.
fn tidy(mut addresses: Vec<SocketAddr>) -> io::Result<Vec<SocketAddr>> {
    addresses.sort();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    if addresses.is_empty() { Err(io::Error::other("the hostname has no addresses")) } else { Ok(addresses) }
}

/// By hostname and port.
type Names = HashMap<(Box<str>, u16), Arc<Name>>;

/// All hostnames that are looked up.
#[derive(Debug)]
pub(crate) struct Lookups {
    names: Mutex<Names>,
    zones: Mutex<HashMap<Box<str>, Weak<Semaphore>>>,
    /// How late lookups begin, in seconds.
    lateness: Histogram,
}

/// One (hostname, port), for as long as anything subscribes to it.
struct Name {
    host: Box<str>,
    port: u16,
    zone: Arc<Semaphore>,
    known: Mutex<Known>,
    changed: Notify,
}

#[derive(Default)]
struct Known {
    subscribers: Vec<LookupSubscriber>,
    /// The last good answer, or why there has been none.
    answer: Option<Answer>,
    /// How many answers there have been.
    answers: u64,
    is_failing: bool,
    /// Somebody could connect to none of the addresses.
    refresh_requested: bool,
}

struct LookupSubscriber {
    id: u64,
    every: Duration,
    on_answer: OnAnswer,
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Keeps a hostname looked up until it is dropped.
#[derive(Debug)]
pub(super) struct LookupSubscription {
    name: Arc<Name>,
    id: u64,
}

impl LookupSubscription {
    /// Nothing answers at any of the addresses: they may have changed. Looks the name up at once, at most once a second.
    pub(super) fn refresh(&self) {
        self.name.known().refresh_requested = true;
        self.name.changed.notify_one();
    }
}

impl Drop for LookupSubscription {
    fn drop(&mut self) {
        let mut known = self.name.known();
        let position = known.subscribers.iter().position(|subscriber| subscriber.id == self.id);
        let _dropped_unlocked = position.map(|position| known.subscribers.swap_remove(position));
        drop(known);
        self.name.changed.notify_one();
    }
}

impl Lookups {
    pub(crate) fn new(lateness: Histogram) -> Self {
        Self { names: Mutex::default(), zones: Mutex::default(), lateness }
    }

    /// Looks the name up at least this often. `on_answer` is called for each answer, and at once if there has been one.
    /// Must be called within a tokio runtime.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        host: &str,
        port: u16,
        every: Duration,
        on_answer: impl Fn(&Answer) -> usize + Send + Sync + 'static,
    ) -> LookupSubscription {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Relaxed);
        let on_answer: OnAnswer = Arc::new(on_answer);
        let mut names = self.names();
        let name = match names.entry((host.into(), port)) {
            Entry::Occupied(entry) => Arc::clone(entry.get()),
            Entry::Vacant(entry) => {
                let name = Name {
                    host: host.into(),
                    port,
                    zone: self.zone(host),
                    known: Mutex::default(),
                    changed: Notify::new(),
                };
                let name = Arc::clone(entry.insert(Arc::new(name)));
                tokio::spawn(Arc::clone(self).run(Arc::clone(&name)));
                name
            }
        };
        let mut known = name.known();
        known.subscribers.push(LookupSubscriber { id, every, on_answer: Arc::clone(&on_answer) });
        let (mut delivered, mut answer) = (known.answers, known.answer.clone());
        drop(known);
        drop(names);
        name.changed.notify_one();
        while let Some(known_answer) = answer.take() {
            on_answer(&known_answer);
            // Another one that came meanwhile may have been delivered before this one.
            let known = name.known();
            if known.answers != delivered {
                (delivered, answer) = (known.answers, known.answer.clone());
            }
        }
        LookupSubscription { name, id }
    }

    /// A successor serves: nothing is looked up any more.
    pub(super) fn retire(&self) {
        for name in self.names().values() {
            name.known().subscribers.clear();
            name.changed.notify_one();
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slots of the names with the same parent domain.
    fn zone(&self, host: &str) -> Arc<Semaphore> {
        let parent = host.trim_end_matches('.').split_once('.').map_or("", |(_, parent)| parent);
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(zone) = zones.get(parent).and_then(Weak::upgrade) {
            return zone;
        }
        zones.retain(|_, zone| zone.strong_count() > 0);
        let zone = Arc::new(Semaphore::new(MAX_OF_A_ZONE));
        zones.insert(parent.into(), Arc::downgrade(&zone));
        zone
    }

    /// Whether nothing needs the name any more; it is forgotten then.
    fn forget_if_unused(&self, name: &Name) -> bool {
        let mut names = self.names();
        let is_unused = name.is_unused();
        if is_unused {
            names.remove(&(name.host.clone(), name.port));
        }
        is_unused
    }

    async fn run(self: Arc<Self>, name: Arc<Name>) {
        let lookup = |slot: LookupSlot| {
            let (host, port) = (name.host.clone(), name.port);
            let lookup = tokio::task::spawn_blocking(move || {
                // Taken until the resolver is done, not until nobody waits any more.
                let _slot = slot;
                getaddrinfo(&host, port)
            });
            async move { lookup.await.map_err(io::Error::other)? }
        };
        self.run_with(&name, lookup).await;
    }

    async fn run_with<F: Future<Output = io::Result<Vec<SocketAddr>>>>(
        &self,
        name: &Name,
        lookup: impl Fn(LookupSlot) -> F,
    ) {
        let mut last_result = LastResult::None;
        let mut retry = FIRST_RETRY;
        let mut due = Instant::now();
        loop {
            if name.is_unused() {
                sleep(LINGER).await;
                if self.forget_if_unused(name) {
                    return;
                }
                due = Instant::now();
            }
            let slot = LookupSlot::acquire(name, last_result).await;
            let begun = Instant::now();
            self.note_lateness(name, begun - due);
            name.known().refresh_requested = false;
            let mut lookup = pin!(lookup(slot));
            let answer = loop {
                match timeout(LOOKUP_TIMEOUT, &mut lookup).await {
                    Ok(answer) => break answer,
                    Err(_) => name.publish(&Err(late())),
                }
            };
            let is_answer = answer.is_ok();
            name.publish(&answer.map_err(|error| failure::error_message(&error)));
            let every = name.every();
            last_result = if is_answer { LastResult::Answer } else { LastResult::Failure };
            let ended = Instant::now();
            // A resolver that takes long to fail gets its pause, too.
            let (since, pause) = if is_answer { (begun, every) } else { (ended, retry.min(every)) };
            retry = if is_answer { FIRST_RETRY } else { (retry * 2).min(every) };
            due = name.wait(since, (since + jittered(pause)).max(ended)).await;
        }
    }

    fn note_lateness(&self, name: &Name, late: Duration) {
        self.lateness.observe(late);
        if late > name.every() {
            let late_s = late.as_secs_f64().round();
            warn!(%name, late_s, "lookup is late: too many lookups hang or fail at the same time");
        }
    }
}

/// A slot of its zone and one of all.
struct LookupSlot {
    _of_zone: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl LookupSlot {
    async fn acquire(name: &Name, last_result: LastResult) -> Self {
        let of_zone = Arc::clone(&name.zone).acquire_owned().await;
        Self { _of_zone: of_zone.expect("never closed"), _of_all: SLOTS.acquire(last_result).await }
    }
}

impl Name {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_unused(&self) -> bool {
        self.known().subscribers.is_empty()
    }

    /// As often as the most demanding subscriber says.
    fn every(&self) -> Duration {
        let known = self.known();
        known.subscribers.iter().map(|subscriber| subscriber.every).min().unwrap_or(Duration::from_secs(10))
    }

    /// Waits until the next lookup, at `due` or sooner if something has changed. Returns when it was due.
    async fn wait(&self, begun: Instant, due: Instant) -> Instant {
        let mut due = due;
        loop {
            {
                let known = self.known();
                if known.subscribers.is_empty() {
                    return Instant::now();
                }
                if known.refresh_requested {
                    due = due.min((begun + MIN_PAUSE).max(Instant::now()));
                }
            }
            due = due.min((begun + self.every().mul_f64(1.1)).max(Instant::now()));
            tokio::select! {
                () = sleep_until(due) => return due,
                () = self.changed.notified() => {}
            }
        }
    }

    /// Tells the subscribers, and logs what has changed.
    fn publish(&self, answer: &Answer) {
        let mut known = self.known();
        known.answers += 1;
        let before = known.answer.take();
        known.answer = match (&before, answer) {
            // A subscriber that comes now can still use these.
            (Some(Ok(before)), Err(_)) => Some(Ok(before.clone())),
            _ => Some(answer.clone()),
        };
        let was_failing = std::mem::replace(&mut known.is_failing, answer.is_err());
        let on_answer: Vec<OnAnswer> =
            known.subscribers.iter().map(|subscriber| Arc::clone(&subscriber.on_answer)).collect();
        drop(known);
        // Not under the lock: a route may end its subscription.
        let connections: usize = on_answer.iter().map(|on_answer| on_answer(answer)).sum();

        let (name, routes) = (self, on_answer.len());
        let before = before.and_then(Result::ok).unwrap_or_default();
        match answer {
            Err(reason) if !was_failing => {
                warn!(%name, %reason, kept = before.len(), routes, "cannot resolve hostname; keeping the last addresses");
            }
            Ok(after) if was_failing => info!(%name, addresses = after.len(), routes, "hostname resolves again"),
            _ => {}
        }
        if let Ok(after) = answer
            && before != *after
        {
            let missing = |of: &[SocketAddr], from: &[SocketAddr]| {
                let missing: Vec<_> = of.iter().filter(|address| !from.contains(address)).collect();
                first_of(missing.into_iter(), MAX_LISTED)
            };
            let (added, removed) = (missing(after, &before), missing(&before, after));
            info!(%name, added, removed, connections, addresses = after.len(), routes, "addresses changed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answers = Vec<(u64, Result<usize, String>)>;

    fn lookups() -> Arc<Lookups> {
        Arc::new(Lookups::new(Histogram::new(&[1.0])))
    }

    /// A name with one subscriber that is not looked up by itself.
    fn name(every: Duration, on_answer: impl Fn(&Answer) -> usize + Send + Sync + 'static) -> Name {
        let subscriber = LookupSubscriber { id: u64::MAX, every, on_answer: Arc::new(on_answer) };
        let known = Known { subscribers: vec![subscriber], ..Known::default() };
        Name {
            host: "a.example".into(),
            port: 7,
            zone: Arc::new(Semaphore::new(1)),
            known: known.into(),
            changed: Notify::new(),
        }
    }

    /// What is published at which second, with a resolver that answers like this.
    async fn published<F: Future<Output = io::Result<Vec<SocketAddr>>>>(
        seconds: u64,
        lookup: impl Fn() -> F,
    ) -> Answers {
        let published = Arc::new(Mutex::new(Vec::new()));
        let (start, note) = (Instant::now(), Arc::clone(&published));
        let name = name(Duration::from_secs(10), move |answer| {
            let answer = answer.clone().map(|addresses| addresses.len());
            note.lock().unwrap().push((start.elapsed().as_secs(), answer));
            0
        });
        let lookups = lookups();
        let run = lookups.run_with(&name, |slot| {
            let lookup = lookup();
            async {
                let _slot = slot;
                lookup.await
            }
        });
        let _ = timeout(Duration::from_secs(seconds), run).await;
        let published = published.lock().unwrap();
        published.clone()
    }

    fn numbered(count: u16) -> Vec<SocketAddr> {
        (1..=count).rev().map(|port| SocketAddr::from(([192, 0, 2, 1], port))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn c04_a_resolver_that_hangs_is_reported_in_time() {
        let answers = published(26, std::future::pending).await;
        assert_eq!(answers[0], (5, Err("no answer within 5 s".into())));
        assert_eq!(answers.len(), 5, "and the same lookup is awaited: {answers:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn c06_addresses_are_bounded() {
        let answers = published(25, async || tidy([numbered(500), numbered(3)].concat())).await;
        assert_eq!(answers.iter().map(|answer| answer.1.clone()).collect::<Vec<_>>(), [Ok(64), Ok(64), Ok(64)]);
        assert_eq!(tidy([numbered(2), numbered(2)].concat()).unwrap(), [numbered(1), vec![numbered(2)[0]]].concat());
    }

    #[tokio::test(start_paused = true)]
    async fn c01_a_failed_lookup_is_repeated_after_one_second_then_two_then_four() {
        let answers = published(60, async || tidy(Vec::new())).await;
        assert_eq!(answers[0].1, Err("the hostname has no addresses".into()));
        let times: Vec<u64> = answers.iter().map(|answer| answer.0).collect();
        let pauses: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        for (pause, expected) in pauses.iter().zip([1, 2, 4, 8, 10, 10, 10]) {
            assert!(pause.abs_diff(expected) <= 1, "{pauses:?}");
        }
        assert!(times.len() >= 8, "{times:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn c04_a_resolver_slower_than_its_interval_makes_no_lookup_late() {
        const TAKES: u64 = 20;
        for (is_answer, pauses) in [(true, [0; 4]), (false, [1, 2, 4, 8])] {
            let (lookups, name) = (lookups(), name(Duration::from_secs(10), |_| 0));
            let (start, begun) = (Instant::now(), Mutex::new(Vec::new()));
            let run = lookups.run_with(&name, async |_| {
                begun.lock().unwrap().push(start.elapsed().as_secs());
                sleep(Duration::from_secs(TAKES)).await;
                if is_answer { Ok(numbered(1)) } else { tidy(Vec::new()) }
            });
            let _ = timeout(Duration::from_secs(150), run).await;
            let begun = begun.into_inner().unwrap();
            for (pair, pause) in begun.windows(2).zip(pauses) {
                assert!((pair[1] - pair[0] - TAKES).abs_diff(pause) <= 1, "{begun:?}");
            }
            assert!(begun.len() > pauses.len(), "{begun:?}");
            assert!(lookups.lateness.get().sum < Duration::from_secs(1), "{:?}", lookups.lateness.get());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn c01_a_name_at_which_nothing_answers_is_looked_up_at_once() {
        let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
        let name = Arc::new(name(Duration::from_secs(1000), move |_| sender.send(Instant::now()).map_or(0, |()| 0)));
        let lookups = lookups();
        let looked_up = Arc::clone(&name);
        let task = tokio::spawn(async move {
            lookups.run_with(&looked_up, async |_| Ok(numbered(1))).await;
        });
        let first = answers.recv().await.unwrap();
        let mut last = first;
        for _ in 0..3 {
            for _ in 0..10 {
                LookupSubscription { name: Arc::clone(&name), id: 0 }.refresh();
            }
            let next = answers.recv().await.unwrap();
            assert!(next - last >= MIN_PAUSE, "at most once a second");
            last = next;
        }
        assert!(last - first < Duration::from_secs(10));
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn c04_a_name_that_is_given_up_for_a_moment_is_not_late() {
        let (lookups, name) = (lookups(), Arc::new(name(Duration::from_millis(500), |_| 0)));
        let looking = tokio::spawn({
            let (lookups, name) = (Arc::clone(&lookups), Arc::clone(&name));
            async move { lookups.run_with(&name, async |_| Ok(numbered(1))).await }
        });
        for _ in 0..10 {
            sleep(Duration::from_secs(1)).await;
            let subscribers = std::mem::take(&mut name.known().subscribers);
            name.changed.notify_one();
            sleep(LINGER / 2).await;
            name.known().subscribers = subscribers;
            name.changed.notify_one();
        }
        assert!(lookups.lateness.get().sum < LINGER / 2, "{:?}", lookups.lateness.get().sum);
        looking.abort();
    }

    #[tokio::test]
    async fn subscribers_share_one_lookup_and_it_ends_with_the_last() {
        let lookups = lookups();
        let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
        let subscribe = || {
            let sender = sender.clone();
            let on_answer = move |answer: &Answer| sender.send(answer.clone()).map_or(0, |()| 0);
            lookups.subscribe("localhost", 7, Duration::from_secs(1000), on_answer)
        };
        let mut subscriptions: Vec<_> = (0..10_000).map(|_| subscribe()).collect();
        for _ in 0..10_000 {
            let addresses = answers.recv().await.unwrap().unwrap();
            assert!(addresses.iter().all(|address| address.ip().is_loopback()));
        }
        assert_eq!(lookups.names().len(), 1);
        subscriptions.push(subscribe());
        assert!(answers.recv().await.unwrap().is_ok(), "who comes later need not wait");
        drop(subscriptions);
        tokio::task::yield_now().await;
        let again = subscribe();
        assert!(answers.try_recv().is_ok(), "a route that changes gives it up for a moment only");
        drop(again);
        let gone = async {
            while !lookups.names().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), gone).await.expect("the lookup ends");
    }

    #[tokio::test]
    async fn c01_an_answer_that_comes_while_a_pool_subscribes_is_the_last_it_gets() {
        let lookups = lookups();
        let _first = lookups.subscribe("a.invalid", 7, Duration::from_secs(1000), |_| 0);
        let name = Arc::clone(lookups.names().values().next().unwrap());
        name.publish(&Ok(numbered(1)));
        let told = Arc::new(Mutex::new(Vec::new()));
        let (note, overtaking) = (Arc::clone(&told), Arc::clone(&name));
        let _second = lookups.subscribe("a.invalid", 7, Duration::from_secs(1000), move |answer| {
            // The next answer is there before this one is taken.
            if *answer == Ok(numbered(1)) {
                overtaking.publish(&Ok(numbered(2)));
            }
            note.lock().unwrap().push(answer.clone());
            0
        });
        assert_eq!(told.lock().unwrap().last(), Some(&Ok(numbered(2))));
    }

    #[tokio::test]
    async fn a_name_that_does_not_exist_is_an_error() {
        assert!(lookup("nowhere.invalid", 7).await.is_err());
    }
}
