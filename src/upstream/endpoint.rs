//! One address of an API server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::certificate::Certificate;
use super::condition::{Condition, Finding, State, Thresholds};
use super::pool::Pool;

/// Which endpoint; no two in a process are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointId(u64);

impl EndpointId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// An address, and what is known of who answers there.
#[derive(Debug)]
pub struct Endpoint {
    /// Told to the roster by the connections it has.
    pub id: EndpointId,
    /// Where it is.
    pub address: SocketAddr,
    /// Whether it is one of our own listeners.
    pub(super) is_loop: bool,
    pool: Weak<Pool>,
    connections: AtomicUsize,
    /// A copy of the condition's, to be read on every connection's way.
    state: AtomicU8,
    suspect: AtomicBool,
    /// Milliseconds from `born` to when it became ready again.
    recovered: AtomicU64,
    born: Instant,
    condition: Mutex<Condition>,
    certificate: Mutex<Option<Certificate>>,
    /// Wakes who looks after it when its state has changed.
    pub(super) changed: Notify,
}

const NEVER: u64 = u64::MAX;

impl Endpoint {
    pub(super) fn new(address: SocketAddr, is_loop: bool, pool: Weak<Pool>) -> Self {
        Self {
            id: EndpointId::next(),
            address,
            is_loop,
            pool,
            connections: AtomicUsize::new(0),
            state: AtomicU8::new(State::Ready as u8),
            suspect: AtomicBool::new(false),
            recovered: AtomicU64::new(NEVER),
            born: Instant::now(),
            condition: Mutex::default(),
            certificate: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// How many connections it has, those that are being made included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Whether new connections go there.
    #[must_use]
    pub fn state(&self) -> State {
        let state = self.state.load(Relaxed);
        State::ALL.into_iter().find(|known| *known as u8 == state).unwrap_or(State::Dead)
    }

    /// Why it is not ready; empty if it is.
    #[must_use]
    pub fn cause(&self) -> Box<str> {
        self.condition().cause().into()
    }

    /// The certificate that its last check was shown.
    #[must_use]
    pub fn certificate(&self) -> Option<Certificate> {
        self.certificate.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps it; the one before.
    pub(super) fn keep_certificate(&self, certificate: Certificate) -> Option<Certificate> {
        self.certificate.lock().unwrap_or_else(PoisonError::into_inner).replace(certificate)
    }

    pub(super) fn condition(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something has failed since it last answered.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Relaxed)
    }

    /// Takes a finding in; the change of state that it makes, if it does.
    pub(super) fn learn(&self, finding: &Finding, thresholds: Thresholds) -> Option<Change> {
        let mut condition = self.condition();
        let before = condition.learn(finding, thresholds);
        self.suspect.store(condition.failures() > 0, Relaxed);
        let before = before?;
        let change = Change { before, after: condition.state(), findings: condition.failures() };
        self.publish(&condition);
        Some(change)
    }

    /// See [`Condition::forgive`].
    pub(super) fn forgive(&self, thresholds: Thresholds) {
        let mut condition = self.condition();
        condition.forgive(thresholds);
        self.publish(&condition);
    }

    fn publish(&self, condition: &Condition) {
        if condition.state() == State::Ready {
            let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(NEVER);
            self.recovered.store(now, Relaxed);
        }
        self.state.store(condition.state() as u8, Relaxed);
        self.changed.notify_one();
    }

    /// The share of its load that it may have by now: from a tenth right after it became ready again to all of it.
    pub(super) fn weight(&self, slow_start: Duration) -> f64 {
        let recovered = self.recovered.load(Relaxed);
        if recovered == NEVER || slow_start.is_zero() {
            return 1.0;
        }
        let since = self.born.elapsed().saturating_sub(Duration::from_millis(recovered));
        (since.as_secs_f64() / slow_start.as_secs_f64()).clamp(0.1, 1.0)
    }
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) before: State,
    pub(super) after: State,
    /// How many findings in a row were not ready.
    pub(super) findings: u32,
}

/// A connection's place at an endpoint, given back when it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Endpoint>);

impl Place {
    pub(super) fn take(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.connections.fetch_add(1, Relaxed);
        Self(Arc::clone(endpoint))
    }

    /// Where it is.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.0
    }

    /// The first byte has come from there.
    pub fn answered(&self) {
        if self.0.is_suspect() {
            self.report(|pool| pool.answered_a_client(&self.0));
        }
    }

    /// Nothing has come from there for a while, or it has closed before anything did.
    pub fn did_not_answer(&self, cause: &str) {
        self.report(|pool| pool.report(&self.0, &Finding::Wrong(cause.into())));
    }

    fn report(&self, tell: impl FnOnce(&Pool)) {
        // Where the pool is gone, nobody asks any more.
        if let Some(pool) = self.0.pool.upgrade() {
            tell(&pool);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}
