//! The counters behind the metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use super::histogram::{Distribution, Histogram};
use super::{LineLimit, Outcome, RecentRejections};
use strum::{EnumCount, VariantArray};

/// The `route` label of connections that have none.
pub(crate) const UNROUTED: &str = "_none";

/// In seconds. Hellos and connects take milliseconds, or one of the timeouts.
pub(crate) const LATENCY_BUCKETS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// In seconds. What is in time is milliseconds late.
const LATENESS_BUCKETS: [f64; 6] = [0.1, 0.5, 1.0, 5.0, 15.0, 60.0];

/// In seconds. Requests take milliseconds, watches minutes, port-forwards and agents days.
const LIFETIME_BUCKETS: [f64; 8] = [0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 14400.0, 86400.0];

/// All counters of the process. They outlive every configuration.
#[derive(Debug)]
pub(crate) struct Counters {
    /// Connections that are not routed, or not yet.
    pub(crate) unrouted: Arc<RouteCounters>,
    /// The sums of routes that are no longer exported, so that totals never decrease.
    pub(crate) forgotten: RouteCounters,
    routes: Mutex<BTreeMap<Box<str>, Retained<Arc<RouteCounters>>>>,
    listeners: Mutex<Vec<Retained<KnownListener>>>,
    /// From accept until the hello is complete.
    pub(crate) hello_seconds: Histogram,
    /// How late health checks begin.
    pub(crate) check_lateness: Histogram,
    /// How late lookups of hostnames begin.
    pub(crate) lookup_lateness: Histogram,
    /// Which refusals may be logged.
    pub(crate) line_limit: Arc<LineLimit>,
    pub(crate) reloads: Reloads,
    pub(crate) recent_rejections: RecentRejections,
    /// Maximum number of concurrent connections.
    pub(crate) connections_limit: AtomicU64,
    /// Open connections that are at rest.
    pub(crate) parked_connections: Arc<AtomicU64>,
    /// Connections still open in old processes after an upgrade.
    pub(crate) predecessor_connections: AtomicU64,
    /// Log lines that could not be written.
    pub(crate) log_lines_lost: AtomicU64,
    pub(crate) started: SystemTime,
    accept_errors: Mutex<BTreeMap<&'static str, u64>>,
    errors_logged: OncePerSecond,
    full_logged: OncePerSecond,
    unparked_logged: OncePerSecond,
}

/// The name of a listener in logs and metrics, and where its connections are counted.
#[derive(Debug)]
pub(crate) struct ListenerTelemetry {
    pub(crate) name: Box<str>,
    pub(crate) counters: Arc<Counters>,
}

/// Results of reloads.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    pub(crate) succeeded: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Whether the last reload failed.
    pub(crate) last_failed: AtomicBool,
    /// When the running configuration was applied, as a Unix timestamp.
    pub(crate) last_success: AtomicU64,
    /// Digest of the running configuration file; 0: there is no file.
    pub(crate) digest: AtomicU64,
    last_error: Mutex<Option<Box<str>>>,
}

impl Reloads {
    /// A reload has succeeded.
    pub(crate) fn succeed(&self) {
        self.succeeded.fetch_add(1, Relaxed);
        self.applied();
    }

    /// A configuration is in use: the first one, or one from a reload.
    pub(crate) fn applied(&self) {
        self.last_failed.store(false, Relaxed);
        *self.error() = None;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_success.store(now.as_secs(), Relaxed);
    }

    /// A reload has failed.
    pub(crate) fn fail(&self, reason: &str) {
        self.failed.fetch_add(1, Relaxed);
        self.last_failed.store(true, Relaxed);
        *self.error() = Some(reason.into());
    }

    /// Why the last reload failed; `None` if it succeeded.
    pub(crate) fn last_error(&self) -> Option<Box<str>> {
        self.error().clone()
    }

    fn error(&self) -> MutexGuard<'_, Option<Box<str>>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long series of removed routes and listeners are still exported: longer than any scrape interval.
const RETENTION: Duration = Duration::from_secs(300);

/// A value that is kept for [`RETENTION`] after it was last in use.
#[derive(Debug)]
struct Retained<T> {
    value: T,
    last_used: Instant,
}

impl<T> Retained<T> {
    fn new(value: T) -> Self {
        Self { value, last_used: Instant::now() }
    }

    /// Whether to keep it, given whether it is in use now.
    fn is_retained(&mut self, is_used: bool) -> bool {
        if is_used {
            self.last_used = Instant::now();
        }
        self.last_used.elapsed() < RETENTION
    }
}

/// A listener that is configured, was, or whose connections go on.
#[derive(Debug)]
struct KnownListener {
    name: Box<str>,
    telemetry: Weak<ListenerTelemetry>,
}

impl KnownListener {
    /// By the listener itself or one of its connections.
    fn is_used(&self) -> bool {
        self.telemetry.strong_count() > 0
    }
}

#[derive(Debug, Default)]
struct OncePerSecond(Mutex<Option<Instant>>);

impl OncePerSecond {
    /// Whether the last admission was at least a second ago.
    fn admits(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let admits = last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1));
        if admits {
            *last = Some(Instant::now());
        }
        admits
    }
}

impl Counters {
    /// Logs `refusals_per_second` rejections per outcome; 0: all.
    pub(crate) fn new(refusals_per_second: u32) -> Self {
        Self {
            unrouted: Arc::new(RouteCounters::new(UNROUTED)),
            forgotten: RouteCounters::new(""),
            routes: Mutex::default(),
            listeners: Mutex::default(),
            hello_seconds: Histogram::new(&LATENCY_BUCKETS),
            check_lateness: Histogram::new(&LATENESS_BUCKETS),
            lookup_lateness: Histogram::new(&LATENESS_BUCKETS),
            line_limit: Arc::new(LineLimit::new(refusals_per_second)),
            reloads: Reloads::default(),
            recent_rejections: RecentRejections::default(),
            connections_limit: AtomicU64::new(0),
            parked_connections: Arc::default(),
            predecessor_connections: AtomicU64::new(0),
            log_lines_lost: AtomicU64::new(0),
            started: SystemTime::now(),
            accept_errors: Mutex::default(),
            errors_logged: OncePerSecond::default(),
            full_logged: OncePerSecond::default(),
            unparked_logged: OncePerSecond::default(),
        }
    }

    /// A listener with this name: the same one while a configuration or a connection uses it.
    pub(crate) fn listener(self: &Arc<Self>, name: &str) -> Arc<ListenerTelemetry> {
        let mut listeners = self.known_listeners();
        let known = listeners.iter_mut().find(|listener| *listener.value.name == *name);
        if let Some(telemetry) = known.as_ref().and_then(|known| known.value.telemetry.upgrade()) {
            return telemetry;
        }
        let telemetry = Arc::new(ListenerTelemetry { name: name.into(), counters: Arc::clone(self) });
        let listener = KnownListener { name: name.into(), telemetry: Arc::downgrade(&telemetry) };
        match known {
            Some(known) => *known = Retained::new(listener),
            None => listeners.push(Retained::new(listener)),
        }
        telemetry
    }

    /// The counters of the route with this name: the same ones while a configuration or a connection uses them, and for
    /// [`RETENTION`] afterwards.
    pub(crate) fn route(&self, name: &str) -> Arc<RouteCounters> {
        let mut routes = self.known_routes();
        let route = routes.entry(name.into()).or_insert_with(|| Retained::new(Arc::new(RouteCounters::new(name))));
        Arc::clone(&route.value)
    }

    /// The counters of all routes that are in use, or were within [`RETENTION`], so that scrapes see their last values.
    pub(crate) fn routes(&self) -> Vec<Arc<RouteCounters>> {
        let mut routes = self.known_routes();
        routes.retain(|_, route| {
            let is_used = Arc::strong_count(&route.value) > 1;
            let is_recent = route.is_retained(is_used);
            // A removed route without a count has no last value to export.
            let is_exported = is_used || (is_recent && !route.value.ended().is_empty());
            if !is_exported {
                self.forgotten.add(&route.value);
            }
            is_exported
        });
        routes.values().map(|route| Arc::clone(&route.value)).collect()
    }

    /// Open connections, those of removed routes too.
    pub(crate) fn open(&self) -> i64 {
        let active = |route: &RouteCounters| route.active.load(Relaxed);
        active(&self.unrouted) + self.known_routes().values().map(|route| active(&route.value)).sum::<i64>()
    }

    /// The names of all listeners that are in use, or were within [`RETENTION`].
    pub(crate) fn listeners(&self) -> Vec<Box<str>> {
        let mut listeners = self.known_listeners();
        listeners.iter_mut().for_each(|listener| _ = listener.is_retained(listener.value.is_used()));
        listeners.iter().map(|listener| listener.value.name.clone()).collect()
    }

    /// Sets the listeners in use. Drops expired routes, too, in case there are no scrapes that would.
    pub(crate) fn set_listeners(&self, names: &[Box<str>]) {
        drop(self.routes());
        let mut listeners = self.known_listeners();
        for name in names {
            if !listeners.iter().any(|listener| listener.value.name == *name) {
                listeners.push(Retained::new(KnownListener { name: name.clone(), telemetry: Weak::new() }));
            }
        }
        let before = listeners.len();
        listeners.retain_mut(|listener| {
            let is_used = names.contains(&listener.value.name) || listener.value.is_used();
            listener.is_retained(is_used)
        });
        let has_dropped = listeners.len() < before;
        drop(listeners);
        if has_dropped {
            let retained = self.listeners();
            let routes = self.routes();
            for route in routes.iter().map(|route| &**route).chain([&*self.unrouted, &self.forgotten]) {
                route.ended().retain(|(listener, _)| retained.contains(listener));
            }
        }
    }

    fn known_routes(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Retained<Arc<RouteCounters>>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_listeners(&self) -> MutexGuard<'_, Vec<Retained<KnownListener>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a failed `accept`. Whether to log it: at most once per second.
    pub(crate) fn accept_error(&self, error: &'static str) -> bool {
        *self.accept_errors.lock().unwrap_or_else(PoisonError::into_inner).entry(error).or_default() += 1;
        self.errors_logged.admits()
    }

    /// Whether to log that the connection limit is reached: at most once per second.
    pub(crate) fn may_log_full(&self) -> bool {
        self.full_logged.admits()
    }

    /// Whether to log that a connection cannot be parked: at most once per second.
    pub(crate) fn may_log_unparked(&self) -> bool {
        self.unparked_logged.admits()
    }

    /// Failed calls of `accept`, by error.
    pub(crate) fn accept_errors(&self) -> BTreeMap<&'static str, u64> {
        self.accept_errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The counters of one route.
#[derive(Debug)]
pub(crate) struct RouteCounters {
    name: Box<str>,
    /// By listener, of which there are few.
    ended: Mutex<Vec<(Box<str>, OutcomeCounts)>>,
    /// Open connections.
    pub(crate) active: AtomicI64,
    /// Of an old process.
    pub(crate) adopted: AtomicU64,
    /// Bytes from clients.
    pub(crate) received: AtomicU64,
    /// Bytes to clients.
    pub(crate) sent: AtomicU64,
    /// Made by the first connection: most of ten thousand routes may be idle.
    durations: OnceLock<Box<Durations>>,
}

/// How long things take, in seconds.
#[derive(Debug)]
pub(crate) struct Durations {
    /// From the route decision until an endpoint is connected.
    pub(crate) connect: Histogram,
    /// From the connect, when the hello is sent, to the endpoint's first bytes.
    pub(crate) answer: Histogram,
    /// From accept to the end.
    pub(crate) connection: Histogram,
}

impl RouteCounters {
    fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            ended: Mutex::default(),
            active: AtomicI64::new(0),
            adopted: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            durations: OnceLock::new(),
        }
    }

    pub(crate) fn durations(&self) -> &Durations {
        self.durations.get_or_init(|| {
            Box::new(Durations {
                connect: Histogram::new(&LATENCY_BUCKETS),
                answer: Histogram::new(&LATENCY_BUCKETS),
                connection: Histogram::new(&LIFETIME_BUCKETS),
            })
        })
    }

    /// Whether there was a connection.
    pub(crate) fn has_durations(&self) -> bool {
        self.durations.get().is_some()
    }

    /// The route's name in logs and metrics.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// An endpoint has sent its first bytes.
    pub(super) fn answered(&self, took: Duration) {
        self.durations().answer.observe(took);
    }

    /// How many endpoints have sent first bytes, and the sum of the times that this took.
    pub(crate) fn answers(&self) -> (u64, Duration) {
        self.answer_distribution().map_or_else(Default::default, |answers| (answers.count(), answers.sum))
    }

    /// How many answers took how long, in buckets of [`LATENCY_BUCKETS`]; `None` without a connection.
    pub(crate) fn answer_distribution(&self) -> Option<Distribution> {
        self.durations.get().map(|durations| durations.answer.get())
    }

    /// Ended connections of this listener, by outcome.
    pub(crate) fn outcomes(&self, listener: &str) -> OutcomeCounts {
        let ended = self.ended();
        ended.iter().find(|(name, _)| **name == *listener).map_or_else(OutcomeCounts::default, |(_, counts)| *counts)
    }

    /// Connections that this process has accepted.
    pub(crate) fn accepted(&self) -> u64 {
        let active = u64::try_from(self.active.load(Relaxed)).unwrap_or(0);
        (self.ended_in_all() + active).saturating_sub(self.adopted.load(Relaxed))
    }

    /// Of all listeners.
    fn ended_in_all(&self) -> u64 {
        self.ended().iter().flat_map(|(_, counts)| counts.0).sum()
    }

    /// Rejected clients of all listeners, without those that left by themselves.
    pub(crate) fn rejected(&self) -> u64 {
        let is_rejected = |outcome: &&Outcome| outcome.is_rejection() && **outcome != Outcome::ClientGone;
        let rejected = |counts: &OutcomeCounts| -> u64 {
            Outcome::VARIANTS.iter().filter(is_rejected).map(|outcome| counts.get(*outcome)).sum()
        };
        self.ended().iter().map(|(_, counts)| rejected(counts)).sum()
    }

    /// Counts a connection of this listener that has ended.
    pub(super) fn count(&self, listener: &str, outcome: Outcome) {
        let mut ended = self.ended();
        let index = ended.iter().position(|(name, _)| **name == *listener).unwrap_or_else(|| {
            ended.push((listener.into(), OutcomeCounts::default()));
            ended.len() - 1
        });
        ended[index].1.0[outcome as usize] += 1;
    }

    /// The sums of these counters.
    pub(crate) fn sum<'r>(routes: impl Iterator<Item = &'r Self>) -> Self {
        let sum = Self::new("");
        for route in routes {
            sum.add(route);
        }
        sum
    }

    fn add(&self, other: &Self) {
        self.active.fetch_add(other.active.load(Relaxed), Relaxed);
        for (listener, counts) in &*other.ended() {
            self.add_outcomes(listener, counts);
        }
        for (total, more) in [(&self.received, &other.received), (&self.sent, &other.sent)] {
            total.fetch_add(more.load(Relaxed), Relaxed);
        }
        if let Some(other) = other.durations.get() {
            let Durations { connect, answer, connection } = self.durations();
            connect.add(&other.connect);
            answer.add(&other.answer);
            connection.add(&other.connection);
        }
    }

    fn add_outcomes(&self, listener: &str, more: &OutcomeCounts) {
        let mut ended = self.ended();
        match ended.iter_mut().find(|(name, _)| **name == *listener) {
            Some((_, counts)) => counts.add(more),
            None => ended.push((listener.into(), *more)),
        }
    }

    fn ended(&self) -> MutexGuard<'_, Vec<(Box<str>, OutcomeCounts)>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ended connections, by outcome.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OutcomeCounts([u64; Outcome::COUNT]);

impl OutcomeCounts {
    fn add(&mut self, more: &Self) {
        for (count, more) in self.0.iter_mut().zip(more.0) {
            *count += more;
        }
    }

    pub(crate) fn are_zero(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }

    /// How many ended like this.
    pub(crate) fn get(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_listener_is_known_while_it_has_connections_and_for_a_while_after() {
        let counters = Arc::new(Counters::new(0));
        let names = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect::<Vec<Box<str>>>();
        let time_passes = || {
            for listener in &mut *counters.known_listeners() {
                listener.last_used = listener.last_used.checked_sub(RETENTION).unwrap();
            }
        };
        counters.set_listeners(&names(&["old"]));
        let connection = counters.listener("old");
        assert!(Arc::ptr_eq(&connection, &counters.listener("old")));
        counters.unrouted.count("old", Outcome::Completed);
        for _ in 0..2 {
            time_passes();
            counters.set_listeners(&names(&["new"]));
            assert_eq!(counters.listeners(), names(&["old", "new"]));
        }
        assert_eq!(counters.unrouted.outcomes("old").get(Outcome::Completed), 1);
        drop(connection);
        counters.set_listeners(&names(&["new"]));
        assert_eq!(counters.listeners(), names(&["old", "new"]), "shown for a while");
        time_passes();
        counters.set_listeners(&names(&["new"]));
        assert_eq!(counters.listeners(), names(&["new"]));
        assert_eq!(counters.unrouted.outcomes("old").get(Outcome::Completed), 0);
    }

    #[test]
    fn sums_keep_what_was_counted_of_removed_routes() {
        let counters = Counters::new(0);
        for route in [counters.route("stays"), counters.route("removed")] {
            route.count("listener", Outcome::Completed);
            route.sent.fetch_add(5, Relaxed);
            route.answered(Duration::from_millis(3));
        }
        let stays = counters.route("stays");
        let sum = || {
            let routes = counters.routes();
            let sum = RouteCounters::sum(routes.iter().map(|route| &**route).chain([&counters.forgotten]));
            let answers = sum.durations().answer.get();
            (routes.len(), sum.outcomes("listener").get(Outcome::Completed), sum.sent.load(Relaxed), answers.count())
        };
        assert_eq!(sum(), (2, 2, 10, 2));
        for route in counters.known_routes().values_mut() {
            route.last_used = route.last_used.checked_sub(RETENTION).unwrap();
        }
        assert_eq!(sum(), (1, 2, 10, 2));
        assert_eq!(sum(), (1, 2, 10, 2), "counted once");
        assert_eq!((stays.ended_in_all(), stays.rejected()), (1, 0));
        for outcome in [Outcome::ClientGone, Outcome::Drained, Outcome::OverLimit, Outcome::ConnectRefused] {
            stays.count("listener", outcome);
        }
        assert_eq!((stays.ended_in_all(), stays.rejected()), (5, 2));
        assert_eq!(stays.answer_distribution().unwrap().counts(), [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
