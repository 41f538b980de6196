//! The numbers behind the metrics. Incremented here, read by the admin listener.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use prometheus_client::metrics::histogram::Histogram;

use super::{Outcome, RefusalLog};

/// The route of connections that have none.
pub const UNROUTED: &str = "_none";

/// In seconds. Hellos and connects take milliseconds, or one of the timeouts.
const LATENCY_BUCKETS: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 10.0];

/// In seconds. Requests take milliseconds, watches minutes, port-forwards and agents days.
const LIFETIME_BUCKETS: [f64; 11] = [0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 14400.0, 43200.0, 86400.0];

/// All that is counted.
#[derive(Debug)]
pub struct Counters {
    /// Connections before they are routed, and those that never are.
    pub unrouted: Arc<RouteCounters>,
    listeners: Box<[Box<str>]>,
    /// From accept to the whole hello.
    pub hello_seconds: Histogram,
    /// Which refusals may be logged.
    pub refusal_log: Arc<RefusalLog>,
    /// When this process began to count.
    pub started: SystemTime,
    accept_errors: Mutex<BTreeMap<&'static str, u64>>,
    errors_logged: OncePerSecond,
    full_logged: OncePerSecond,
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
    /// For listeners with these names. `refusals_per_second` per outcome are logged; 0: all.
    #[must_use]
    pub fn new(listeners: impl Into<Box<[Box<str>]>>, refusals_per_second: u32) -> Self {
        let listeners = listeners.into();
        Self {
            unrouted: Arc::new(RouteCounters::new(UNROUTED, listeners.len())),
            listeners,
            hello_seconds: Histogram::new(LATENCY_BUCKETS),
            refusal_log: Arc::new(RefusalLog::new(refusals_per_second)),
            started: SystemTime::now(),
            accept_errors: Mutex::default(),
            errors_logged: OncePerSecond::default(),
            full_logged: OncePerSecond::default(),
        }
    }

    /// The counters of one route.
    #[must_use]
    pub fn new_route(&self, name: &str) -> Arc<RouteCounters> {
        Arc::new(RouteCounters::new(name, self.listeners.len()))
    }

    /// The name of the listener with this number.
    #[must_use]
    pub fn listener(&self, number: usize) -> &str {
        &self.listeners[number]
    }

    /// The names of all listeners, by their numbers.
    #[must_use]
    pub fn listeners(&self) -> &[Box<str>] {
        &self.listeners
    }

    /// A listener's `accept` failed. Whether that may be logged: at most once per second.
    pub fn accept_error(&self, error: &'static str) -> bool {
        *self.accept_errors.lock().unwrap_or_else(PoisonError::into_inner).entry(error).or_default() += 1;
        self.errors_logged.passes()
    }

    /// There is no room for another connection. Whether that may be logged: at most once per second.
    pub fn full(&self) -> bool {
        self.full_logged.passes()
    }

    /// How often `accept` failed, by error.
    #[must_use]
    pub fn accept_errors(&self) -> BTreeMap<&'static str, u64> {
        self.accept_errors.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is counted per route.
#[derive(Debug)]
pub struct RouteCounters {
    name: Box<str>,
    by_listener: Box<[OutcomeCounts]>,
    /// Connections open now.
    pub active: AtomicI64,
    /// Bytes from clients.
    pub received: AtomicU64,
    /// Bytes to clients.
    pub sent: AtomicU64,
    /// From the route to the connected endpoint.
    pub connect_seconds: Histogram,
    /// From accept to the end.
    pub connection_seconds: Histogram,
}

impl RouteCounters {
    fn new(name: &str, listeners: usize) -> Self {
        Self {
            name: name.into(),
            by_listener: (0..listeners).map(|_| OutcomeCounts::default()).collect(),
            active: AtomicI64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            connect_seconds: Histogram::new(LATENCY_BUCKETS),
            connection_seconds: Histogram::new(LIFETIME_BUCKETS),
        }
    }

    /// The route's name in logs and metrics.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How connections that arrived at this listener ended.
    #[must_use]
    pub fn outcomes(&self, listener: usize) -> &OutcomeCounts {
        &self.by_listener[listener]
    }
}

/// Ended connections, by outcome.
#[derive(Debug, Default)]
pub struct OutcomeCounts([AtomicU64; Outcome::ALL.len()]);

impl OutcomeCounts {
    pub(super) fn count(&self, outcome: Outcome) {
        self.0[outcome as usize].fetch_add(1, Relaxed);
    }

    /// How many ended like this.
    #[must_use]
    pub fn get(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize].load(Relaxed)
    }
}
