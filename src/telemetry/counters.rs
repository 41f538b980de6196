//! The numbers behind the metrics. Incremented here, read by the admin listener.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::metrics::histogram::Histogram;

use super::{LineLimit, Outcome, RecentRejections};
use strum::EnumCount;

/// The route of connections that have none.
pub(crate) const UNROUTED: &str = "_none";

/// In seconds. Hellos and connects take milliseconds, or one of the timeouts.
const LATENCY_BUCKETS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];

/// In seconds. What is in time is milliseconds late.
const LATENESS_BUCKETS: [f64; 6] = [0.1, 0.5, 1.0, 5.0, 15.0, 60.0];

/// In seconds. Requests take milliseconds, watches minutes, port-forwards and agents days.
const LIFETIME_BUCKETS: [f64; 11] = [0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 14400.0, 43200.0, 86400.0];

/// All that is counted. It outlives every configuration.
#[derive(Debug)]
pub(crate) struct Counters {
    /// Connections before they are routed, and those that never are.
    pub(crate) unrouted: Arc<RouteCounters>,
    routes: Mutex<BTreeMap<Box<str>, Used<Arc<RouteCounters>>>>,
    listeners: Mutex<Vec<Used<Box<str>>>>,
    /// From accept to the whole hello.
    pub(crate) hello_seconds: Histogram,
    /// How late health checks begin.
    pub(crate) check_lateness: Histogram,
    /// How late lookups of hostnames begin.
    pub(crate) lookup_lateness: Histogram,
    /// Which refusals may be logged.
    pub(crate) line_limit: Arc<LineLimit>,
    /// Configurations that were to replace the running one.
    pub(crate) reloads: Reloads,
    /// Clients that were not served, the last ones.
    pub(crate) recent_rejections: RecentRejections,
    /// How many connections may be open at once.
    pub(crate) connections_limit: AtomicU64,
    /// Open connections that have stayed in processes before this one, since an upgrade.
    pub(crate) predecessor_connections: AtomicU64,
    /// Log lines that nobody took.
    pub(crate) log_lines_lost: AtomicU64,
    /// When this process began to count.
    pub(crate) started: SystemTime,
    accept_errors: Mutex<BTreeMap<&'static str, u64>>,
    errors_logged: OncePerSecond,
    full_logged: OncePerSecond,
}

/// Where connections arrive, and all that is counted of them.
#[derive(Debug)]
pub(crate) struct Listener {
    /// In logs and metrics.
    pub(crate) name: Box<str>,
    /// Where they are counted.
    pub(crate) counters: Arc<Counters>,
}

/// What became of configurations that were to replace the running one.
#[derive(Debug, Default)]
pub(crate) struct Reloads {
    /// Those that did.
    pub(crate) succeeded: AtomicU64,
    /// Those that were refused.
    pub(crate) failed: AtomicU64,
    /// Whether the last one was refused.
    pub(crate) last_failed: AtomicBool,
    /// When the running configuration was taken, in seconds since the epoch.
    pub(crate) last_success: AtomicU64,
    /// Of the content of the running configuration; 0: it came from no file.
    pub(crate) digest: AtomicU64,
    last_error: Mutex<Option<Box<str>>>,
}

impl Reloads {
    /// A configuration is in use.
    pub(crate) fn succeed(&self) {
        self.succeeded.fetch_add(1, Relaxed);
        self.taken();
    }

    /// The first configuration is in use.
    pub(crate) fn taken(&self) {
        self.last_failed.store(false, Relaxed);
        *self.error() = None;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_success.store(now.as_secs(), Relaxed);
    }

    /// A configuration was refused.
    pub(crate) fn fail(&self, reason: &str) {
        self.failed.fetch_add(1, Relaxed);
        self.last_failed.store(true, Relaxed);
        *self.error() = Some(reason.into());
    }

    /// Why the last one was refused, if it was.
    pub(crate) fn last_error(&self) -> Option<Box<str>> {
        self.error().clone()
    }

    fn error(&self) -> MutexGuard<'_, Option<Box<str>>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long what was removed is still shown: longer than from one scrape to the next.
const SHOWN_AFTER_USE: Duration = Duration::from_secs(300);

/// Something, and when it was seen in use last.
#[derive(Debug)]
struct Used<T> {
    what: T,
    last: Instant,
}

impl<T> Used<T> {
    fn new(what: T) -> Self {
        Self { what, last: Instant::now() }
    }

    fn is_worth_showing(&mut self, is_used: bool) -> bool {
        if is_used {
            self.last = Instant::now();
        }
        self.last.elapsed() < SHOWN_AFTER_USE
    }
}

#[derive(Debug, Default)]
struct OncePerSecond(Mutex<Option<Instant>>);

impl OncePerSecond {
    /// Whether the last time was a second ago.
    fn passes(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let passes = last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1));
        if passes {
            *last = Some(Instant::now());
        }
        passes
    }
}

impl Counters {
    /// `refusals_per_second` per outcome are logged; 0: all.
    pub(crate) fn new(refusals_per_second: u32) -> Self {
        Self {
            unrouted: Arc::new(RouteCounters::new(UNROUTED)),
            routes: Mutex::default(),
            listeners: Mutex::default(),
            hello_seconds: Histogram::new(LATENCY_BUCKETS),
            check_lateness: Histogram::new(LATENESS_BUCKETS),
            lookup_lateness: Histogram::new(LATENESS_BUCKETS),
            line_limit: Arc::new(LineLimit::new(refusals_per_second)),
            reloads: Reloads::default(),
            recent_rejections: RecentRejections::default(),
            connections_limit: AtomicU64::new(0),
            predecessor_connections: AtomicU64::new(0),
            log_lines_lost: AtomicU64::new(0),
            started: SystemTime::now(),
            accept_errors: Mutex::default(),
            errors_logged: OncePerSecond::default(),
            full_logged: OncePerSecond::default(),
        }
    }

    /// A listener with this name.
    pub(crate) fn listener(self: &Arc<Self>, name: &str) -> Arc<Listener> {
        Arc::new(Listener { name: name.into(), counters: Arc::clone(self) })
    }

    /// The counters of the route with this name: the same for as long as a configuration or a connection has them, and for
    /// some minutes more.
    pub(crate) fn route(&self, name: &str) -> Arc<RouteCounters> {
        let mut routes = self.known_routes();
        let route = routes.entry(name.into()).or_insert_with(|| Used::new(Arc::new(RouteCounters::new(name))));
        Arc::clone(&route.what)
    }

    /// The counters of all routes that a configuration or a connection has, or had some minutes ago: what was removed has
    /// ended in the eyes of a scraper, too.
    pub(crate) fn routes(&self) -> Vec<Arc<RouteCounters>> {
        let mut routes = self.known_routes();
        routes.retain(|_, route| {
            let is_used = Arc::strong_count(&route.what) > 1;
            let is_recent = route.is_worth_showing(is_used);
            // What nothing has been counted of is not missed.
            is_used || (is_recent && !route.what.ended().is_empty())
        });
        routes.values().map(|route| Arc::clone(&route.what)).collect()
    }

    /// The names of all listeners that there are, or were some minutes ago.
    pub(crate) fn listeners(&self) -> Vec<Box<str>> {
        self.known_listeners().iter().map(|listener| listener.what.clone()).collect()
    }

    /// From now on there are these listeners. Routes that nobody has any more are forgotten, too: it may be that nobody
    /// scrapes.
    pub(crate) fn set_listeners(&self, names: &[Box<str>]) {
        drop(self.routes());
        let mut listeners = self.known_listeners();
        for name in names {
            if !listeners.iter().any(|listener| listener.what == *name) {
                listeners.push(Used::new(name.clone()));
            }
        }
        let before = listeners.len();
        listeners.retain_mut(|listener| {
            let is_used = names.contains(&listener.what);
            listener.is_worth_showing(is_used)
        });
        let has_forgotten = listeners.len() < before;
        drop(listeners);
        if has_forgotten {
            let shown = self.listeners();
            for route in self.routes().iter().chain([&self.unrouted]) {
                route.ended().retain(|(listener, _)| shown.contains(listener));
            }
        }
    }

    fn known_routes(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Used<Arc<RouteCounters>>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_listeners(&self) -> MutexGuard<'_, Vec<Used<Box<str>>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A listener's `accept` failed. Whether that may be logged: at most once per second.
    pub(crate) fn accept_error(&self, error: &'static str) -> bool {
        *self.accept_errors.lock().unwrap_or_else(PoisonError::into_inner).entry(error).or_default() += 1;
        self.errors_logged.passes()
    }

    /// There is no room for another connection. Whether that may be logged: at most once per second.
    pub(crate) fn full(&self) -> bool {
        self.full_logged.passes()
    }

    /// How often `accept` failed, by error.
    pub(crate) fn accept_errors(&self) -> BTreeMap<&'static str, u64> {
        self.accept_errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is counted per route.
#[derive(Debug)]
pub(crate) struct RouteCounters {
    name: Box<str>,
    /// By listener; there are few.
    ended: Mutex<Vec<(Box<str>, OutcomeCounts)>>,
    /// Connections open now.
    pub(crate) active: AtomicI64,
    /// Bytes from clients.
    pub(crate) received: AtomicU64,
    /// Bytes to clients.
    pub(crate) sent: AtomicU64,
    /// From the route to the connected endpoint.
    pub(crate) connect_seconds: Histogram,
    /// From the connected endpoint, which is sent the hello at once, to its first bytes.
    pub(crate) answer_seconds: Histogram,
    /// The same once more, for means: so many, and microseconds in all.
    pub(crate) answers: AtomicU64,
    /// See `answers`.
    pub(crate) answer_micros: AtomicU64,
    /// From accept to the end.
    pub(crate) connection_seconds: Histogram,
}

impl RouteCounters {
    fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            ended: Mutex::default(),
            active: AtomicI64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            connect_seconds: Histogram::new(LATENCY_BUCKETS),
            answer_seconds: Histogram::new(LATENCY_BUCKETS),
            answers: AtomicU64::new(0),
            answer_micros: AtomicU64::new(0),
            connection_seconds: Histogram::new(LIFETIME_BUCKETS),
        }
    }

    /// The route's name in logs and metrics.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// An endpoint has answered its first bytes after this time.
    pub(super) fn answered(&self, took: Duration) {
        self.answer_seconds.observe(took.as_secs_f64());
        self.answers.fetch_add(1, Relaxed);
        self.answer_micros.fetch_add(took.as_micros().try_into().unwrap_or(u64::MAX), Relaxed);
    }

    /// How connections ended that arrived at this listener.
    pub(crate) fn outcomes(&self, listener: &str) -> OutcomeCounts {
        let ended = self.ended();
        ended.iter().find(|(name, _)| **name == *listener).map_or_else(OutcomeCounts::default, |(_, counts)| *counts)
    }

    /// How many connections have ended, wherever they arrived.
    pub(crate) fn ended_in_all(&self) -> u64 {
        self.ended().iter().flat_map(|(_, counts)| counts.0).sum()
    }

    /// A connection that arrived at this listener has ended.
    pub(super) fn count(&self, listener: &str, outcome: Outcome) {
        let mut ended = self.ended();
        let number = ended.iter().position(|(name, _)| **name == *listener).unwrap_or_else(|| {
            ended.push((listener.into(), OutcomeCounts::default()));
            ended.len() - 1
        });
        ended[number].1.0[outcome as usize] += 1;
    }

    fn ended(&self) -> MutexGuard<'_, Vec<(Box<str>, OutcomeCounts)>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ended connections, by outcome.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OutcomeCounts([u64; Outcome::COUNT]);

impl OutcomeCounts {
    /// How many ended like this.
    pub(crate) fn get(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize]
    }
}
