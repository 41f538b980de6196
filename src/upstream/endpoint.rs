//! One address of an API server.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::certificate::{Certificate, Certificates};
use super::health::{HealthState, ProbeResult, State, Thresholds};
use super::pool::Pool;

/// Which endpoint; no two in a process are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EndpointId(u64);

impl EndpointId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// An address, and what is known of who answers there.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// By which the registry knows its connections.
    pub(crate) id: EndpointId,
    /// Where it is.
    pub(crate) address: SocketAddr,
    /// Who has it now.
    pool: Mutex<Weak<Pool>>,
    connections: AtomicUsize,
    /// A copy of the health's, to be read on every connection's way.
    state: AtomicU8,
    suspect: AtomicBool,
    /// Whether a pool has it.
    is_present: AtomicBool,
    /// Milliseconds from `born` to when it became ready again.
    recovered: AtomicU64,
    born: Instant,
    health: Mutex<HealthState>,
    /// Whether a connection may try it although it is dead.
    may_be_tried: AtomicBool,
    certificates: Mutex<Certificates>,
    /// Whether anything is known of it.
    is_known: AtomicBool,
    last_check: Mutex<Option<LastCheck>>,
    /// Wakes who looks after it when its state has changed.
    pub(super) changed: Notify,
}

const NEVER: u64 = u64::MAX;

impl Endpoint {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            id: EndpointId::next(),
            address,
            pool: Mutex::default(),
            connections: AtomicUsize::new(0),
            state: AtomicU8::new(State::Ready as u8),
            suspect: AtomicBool::new(false),
            is_present: AtomicBool::new(true),
            recovered: AtomicU64::new(NEVER),
            born: Instant::now(),
            health: Mutex::default(),
            may_be_tried: AtomicBool::new(false),
            certificates: Mutex::default(),
            is_known: AtomicBool::new(false),
            last_check: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// From now on this pool has it.
    pub(super) fn belong_to(&self, pool: &Arc<Pool>) {
        *self.pool.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(pool);
        self.is_present.store(true, Relaxed);
    }

    /// It is no longer one of the pool's.
    pub(super) fn leave(&self) {
        self.is_present.store(false, Relaxed);
    }

    /// Whether new connections may go there, as far as the configuration and names say.
    pub(crate) fn is_present(&self) -> bool {
        self.is_present.load(Relaxed)
    }

    /// A connection has found this. Where nobody has the endpoint, nobody asks any more.
    pub(super) fn report(&self, result: &ProbeResult) {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(pool) = pool {
            pool.report_of_client(self, result);
        }
    }

    /// How many connections it has, those that are being made included.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Whether new connections go there.
    pub(crate) fn state(&self) -> State {
        State::from_repr(self.state.load(Relaxed)).unwrap_or(State::Dead)
    }

    /// Why it is not ready; empty if it is.
    pub(crate) fn cause(&self) -> Box<str> {
        self.health().cause().into()
    }

    /// The certificate that its last check was shown.
    pub(crate) fn certificate(&self) -> Option<Certificate> {
        self.certificates().last().cloned()
    }

    /// Whether a check or a connection has had to do with it: until then it counts as ready.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known.load(Relaxed)
    }

    /// The last check, if there was one.
    pub(crate) fn last_check(&self) -> Option<LastCheck> {
        *self.last_check.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn was_checked(&self, took: Duration) {
        let check = LastCheck { at: SystemTime::now(), took };
        *self.last_check.lock().unwrap_or_else(PoisonError::into_inner) = Some(check);
        self.is_known.store(true, Relaxed);
    }

    pub(super) fn was_tried(&self) {
        if !self.is_known() {
            self.is_known.store(true, Relaxed);
        }
    }

    pub(super) fn certificates(&self) -> MutexGuard<'_, Certificates> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn health(&self) -> MutexGuard<'_, HealthState> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something has failed since it last answered.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Relaxed)
    }

    /// Takes in what a check has found; the change of state that it makes, if it does.
    pub(super) fn learn(&self, result: &ProbeResult, thresholds: Thresholds) -> Option<Change> {
        self.change(|health| health.learn(result, thresholds))
    }

    /// Takes in what a connection has found; the change of state that it makes, if it does.
    pub(super) fn apply_client_result(&self, result: &ProbeResult, thresholds: Thresholds) -> Option<Change> {
        self.change(|health| health.apply_client_result(result, thresholds))
    }

    fn change(&self, learn: impl FnOnce(&mut HealthState) -> Option<State>) -> Option<Change> {
        let mut health = self.health();
        let before = learn(&mut health);
        self.suspect.store(health.failures() > 0, Relaxed);
        let (before, after) = (before?, health.state());
        match after {
            State::Ready => self.recovered.store(self.age(), Relaxed),
            State::Unready | State::Dead => {}
        }
        self.state.store(after as u8, Relaxed);
        self.changed.notify_one();
        Some(Change { before, after, results: health.failures() })
    }

    /// It accepts connections again; a client may find out whether it answers.
    pub(super) fn allow_trial(&self) {
        self.may_be_tried.store(true, Relaxed);
    }

    /// Whether this connection may be the one that finds out whether the endpoint is still dead.
    pub(super) fn takes_trial(&self) -> bool {
        self.may_be_tried.load(Relaxed) && self.state() == State::Dead && self.may_be_tried.swap(false, Relaxed)
    }

    fn age(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(NEVER)
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

/// A check that has ended, whatever it has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastCheck {
    /// When it ended.
    pub(crate) at: SystemTime,
    /// From connecting to the answer.
    pub(crate) took: Duration,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) before: State,
    pub(super) after: State,
    /// How many results in a row were not ready.
    pub(super) results: u32,
}

/// A connection's slot at an endpoint, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct EndpointSlot(Arc<Endpoint>);

impl EndpointSlot {
    pub(super) fn take(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.connections.fetch_add(1, Relaxed);
        Self(Arc::clone(endpoint))
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.0
    }

    /// The endpoint has sent its first byte.
    pub(crate) fn answered(&self) {
        if self.0.is_suspect() {
            self.0.report(&ProbeResult::Ready);
        }
    }

    /// The endpoint has sent nothing for a while, or has closed before it sent anything.
    /// To be reported once per connection.
    pub(crate) fn did_not_answer(&self, cause: &str) {
        self.0.report(&ProbeResult::Wrong(cause.into()));
    }
}

impl Drop for EndpointSlot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}
