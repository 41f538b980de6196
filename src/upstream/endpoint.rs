//! One address of an API server, with its state and connections.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::certificate::{Certificates, EndpointCertificate};
use super::health::{EndpointState, HealthState, ProbeResult, Thresholds};
use super::pool::Pool;
use super::settings::{MaxAge, OnRemove, Share};
use crate::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use crate::sync::{Mutex, MutexGuard};

/// Identifies an endpoint; unique in the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EndpointId(u64);

impl EndpointId {
    pub(crate) fn next() -> Self {
        // A static outlives the schedules of a test.
        use std::sync::atomic::AtomicU64 as Unscheduled;

        static NEXT: Unscheduled = Unscheduled::new(1);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// An address, and the state of the server there.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: EndpointId,
    pub(crate) address: SocketAddr,
    /// The pool that it belongs to.
    pool: Mutex<Weak<Pool>>,
    /// See [`pack`]; a reload can change it.
    share: AtomicU32,
    /// For round robin.
    credit: AtomicI64,
    connections: AtomicUsize,
    /// A copy of the state in `health` that can be read without a lock.
    state: AtomicU8,
    suspect: AtomicBool,
    /// Whether it is a member of the pool, and not removed.
    is_present: AtomicBool,
    /// What becomes of its connections since the configuration has lost it; [`UNDECIDED`] until then.
    on_remove: AtomicU8,
    /// What that was before all of its route was removed; [`NOT_REMOVED`] while the route is configured.
    on_remove_before: AtomicU8,
    /// Changes whenever it is added or removed.
    membership: AtomicU32,
    /// When it became ready again, in milliseconds since `created`.
    recovered: AtomicU64,
    created: Instant,
    health: Mutex<HealthState>,
    /// Whether a connection may try it although it is dead.
    may_be_tried: AtomicBool,
    certificates: Mutex<Certificates>,
    /// Whether a check or a connection has tried it.
    is_known: AtomicBool,
    last_check: Mutex<Option<LastCheck>>,
    /// Wakes its health monitor when the state has changed.
    pub(super) changed: Notify,
}

/// One removal of an endpoint from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removal(u32);

const NEVER: u64 = u64::MAX;
const UNDECIDED: u8 = u8::MAX;
const NOT_REMOVED: u8 = u8::MAX - 1;

/// A share as one number, so that both parts are read at once.
fn pack(share: Share) -> u32 {
    u32::from(share.weight) << 1 | u32::from(share.is_backup)
}

fn unpack(packed: u32) -> Share {
    Share { weight: u16::try_from(packed >> 1).unwrap_or(u16::MAX), is_backup: packed & 1 == 1 }
}

impl Endpoint {
    pub(super) fn new(address: SocketAddr, share: Share) -> Self {
        Self {
            id: EndpointId::next(),
            address,
            pool: Mutex::default(),
            share: AtomicU32::new(pack(share)),
            credit: AtomicI64::new(0),
            connections: AtomicUsize::new(0),
            state: AtomicU8::new(EndpointState::Ready as u8),
            suspect: AtomicBool::new(false),
            is_present: AtomicBool::new(true),
            on_remove: AtomicU8::new(UNDECIDED),
            on_remove_before: AtomicU8::new(NOT_REMOVED),
            membership: AtomicU32::new(0),
            recovered: AtomicU64::new(NEVER),
            created: Instant::now(),
            health: Mutex::default(),
            may_be_tried: AtomicBool::new(false),
            certificates: Mutex::default(),
            is_known: AtomicBool::new(false),
            last_check: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Makes it a member of this pool.
    pub(super) fn join(&self, pool: &Arc<Pool>) {
        let mut of = self.pool_lock();
        *of = Arc::downgrade(pool);
        self.on_remove.store(UNDECIDED, Relaxed);
        self.membership.fetch_add(1, Relaxed);
        self.is_present.store(true, Relaxed);
    }

    /// The settings of this pool apply to it, whether it is a member or was one.
    pub(super) fn belong_to(&self, pool: &Arc<Pool>) {
        *self.pool_lock() = Arc::downgrade(pool);
    }

    /// Removes it from the pool.
    pub(super) fn leave(&self) {
        self.is_present.store(false, Relaxed);
    }

    /// Whether it is still in the configuration and in DNS.
    pub(crate) fn is_present(&self) -> bool {
        self.is_present.load(Relaxed)
    }

    /// Reports the result of a connection to the pool, if it still exists.
    pub(super) fn report(&self, result: &ProbeResult) {
        if let Some(pool) = self.pool() {
            pool.report_of_client(self, result);
        }
    }

    /// How old a new connection may become; `None`: any age.
    pub(crate) fn max_age(&self) -> Option<Duration> {
        self.pool()?.setup.settings.max_age.map(MaxAge::of_one)
    }

    /// The configuration that has lost it, or its route, decides what becomes of its connections, until it is added or
    /// removed again. `None`: it has just been added again, by a lookup.
    pub(crate) fn removed_by(&self, policy: OnRemove) -> Option<Removal> {
        let _members = self.pool_lock();
        if self.is_present() {
            return None;
        }
        self.on_remove.store(policy as u8, Relaxed);
        Some(Removal(self.membership.fetch_add(1, Relaxed).wrapping_add(1)))
    }

    /// Decides the same, for an endpoint that is removed with its whole route.
    pub(crate) fn removed_with_route(&self, policy: OnRemove) -> Option<Removal> {
        self.on_remove_before.store(self.on_remove.load(Relaxed), Relaxed);
        self.removed_by(policy)
    }

    /// Its route is configured again, before its connections were closed. Returns what had become of them before, if it had
    /// been removed without its route: that applies again.
    pub(crate) fn returned_with_route(&self) -> Option<OnRemove> {
        let _members = self.pool_lock();
        let before = self.on_remove_before.swap(NOT_REMOVED, Relaxed);
        if before == NOT_REMOVED {
            return None;
        }
        self.on_remove.store(before, Relaxed);
        self.membership.fetch_add(1, Relaxed);
        OnRemove::from_repr(before)
    }

    /// Whether it has left, and nothing has decided what becomes of its connections: it is no longer in DNS, or a reload is
    /// going to remove it.
    pub(crate) fn is_undecided(&self) -> bool {
        !self.is_present() && self.removed_by_policy().is_none()
    }

    /// Whether this removal is the last that has happened to it.
    pub(crate) fn is_removed_by(&self, removal: Removal) -> bool {
        self.membership.load(Relaxed) == removal.0
    }

    /// Whether its connections stay open when it is no longer configured, or have since then.
    pub(crate) fn is_kept(&self) -> bool {
        self.removed_by_policy().or_else(|| self.policy_of_route()) == Some(OnRemove::Keep)
    }

    /// What becomes of its connections if the process that takes over has no place for them: the running configuration of
    /// its route decides, also for what an earlier one has kept.
    pub(crate) fn on_left_behind(&self) -> OnRemove {
        self.policy_of_route().or_else(|| self.removed_by_policy()).unwrap_or(OnRemove::Drain)
    }

    fn policy_of_route(&self) -> Option<OnRemove> {
        Some(self.pool()?.setup.settings.on_remove)
    }

    fn removed_by_policy(&self) -> Option<OnRemove> {
        OnRemove::from_repr(self.on_remove.load(Relaxed))
    }

    /// Whether a connection of an old process may come here: not if a removal would have closed it.
    pub(super) fn may_be_adopted(&self) -> bool {
        self.is_present() || !matches!(self.removed_by_policy(), Some(OnRemove::Drain | OnRemove::Cut))
    }

    pub(super) fn pool(&self) -> Option<Arc<Pool>> {
        self.pool_lock().upgrade()
    }

    fn pool_lock(&self) -> MutexGuard<'_, Weak<Pool>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its part in new connections.
    pub(crate) fn share(&self) -> Share {
        unpack(self.share.load(Relaxed))
    }

    pub(super) fn set_share(&self, share: Share) {
        self.share.store(pack(share), Relaxed);
    }

    /// Credit is worth what it was earned for: other weights, or others to share with, begin anew.
    pub(super) fn reset_credit(&self) {
        self.credit.store(0, Relaxed);
    }

    /// Adds to its credit for round robin. Returns the new credit.
    pub(super) fn add_credit(&self, credit: i64) -> i64 {
        self.credit.fetch_add(credit, Relaxed) + credit
    }

    /// The number of connections, including those that are being established.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Whether new connections go there.
    pub(crate) fn state(&self) -> EndpointState {
        EndpointState::from_repr(self.state.load(Relaxed)).unwrap_or(EndpointState::Dead)
    }

    /// Why it is not ready; empty if it is.
    pub(crate) fn cause(&self) -> Box<str> {
        self.health().cause().into()
    }

    /// The certificate of the last check.
    pub(crate) fn certificate(&self) -> Option<EndpointCertificate> {
        self.certificates().last().cloned()
    }

    /// Whether a check or a connection has tried it; until then it counts as ready.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known.load(Relaxed)
    }

    pub(crate) fn last_check(&self) -> Option<LastCheck> {
        *self.last_check.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn record_check(&self, took: Duration) {
        let check = LastCheck { at: SystemTime::now(), took };
        *self.last_check.lock().unwrap_or_else(PoisonError::into_inner) = Some(check);
        self.is_known.store(true, Relaxed);
    }

    pub(super) fn mark_known(&self) {
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

    /// Whether anything has failed since its last success.
    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Relaxed)
    }

    /// Applies the result of a check. Returns the change of state, if any.
    pub(super) fn apply_check_result(&self, result: &ProbeResult, thresholds: Thresholds) -> Option<StateChange> {
        self.change(|health| health.apply_check_result(result, thresholds))
    }

    /// Applies the result of a connection. Returns the change of state, if any.
    pub(super) fn apply_client_result(&self, result: &ProbeResult, thresholds: Thresholds) -> Option<StateChange> {
        self.change(|health| health.apply_client_result(result, thresholds))
    }

    fn change(&self, apply: impl FnOnce(&mut HealthState) -> Option<EndpointState>) -> Option<StateChange> {
        let mut health = self.health();
        let before = apply(&mut health);
        self.suspect.store(health.failures() > 0, Relaxed);
        let (before, after) = (before?, health.state());
        match after {
            EndpointState::Ready => self.recovered.store(self.age(), Relaxed),
            EndpointState::Unready => {}
            EndpointState::Dead => self.may_be_tried.store(false, Relaxed),
        }
        self.state.store(after as u8, Relaxed);
        self.changed.notify_one();
        Some(StateChange { before, after, results: health.failures() })
    }

    /// It accepts connections again; a client may find out whether it answers.
    pub(super) fn allow_trial(&self) {
        self.may_be_tried.store(true, Relaxed);
    }

    /// Whether this connection may be the one that finds out whether the endpoint is still dead.
    pub(super) fn takes_trial(&self) -> bool {
        self.may_be_tried.load(Relaxed) && self.state() == EndpointState::Dead && self.may_be_tried.swap(false, Relaxed)
    }

    fn age(&self) -> u64 {
        u64::try_from(self.created.elapsed().as_millis()).unwrap_or(NEVER)
    }

    /// The part of its weight that counts during slow start: from a tenth when it became ready again, up to 1.
    pub(super) fn ramp(&self, slow_start: Duration) -> f64 {
        let recovered = self.recovered.load(Relaxed);
        if recovered == NEVER || slow_start.is_zero() {
            return 1.0;
        }
        let since = self.created.elapsed().saturating_sub(Duration::from_millis(recovered));
        (since.as_secs_f64() / slow_start.as_secs_f64()).clamp(0.1, 1.0)
    }
}

/// The last completed check, whatever its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastCheck {
    /// When it ended.
    pub(crate) at: SystemTime,
    pub(crate) took: Duration,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StateChange {
    pub(super) before: EndpointState,
    pub(super) after: EndpointState,
    /// Consecutive results that were not ready.
    pub(super) results: u32,
}

/// Counts a connection to an endpoint until it is dropped.
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

    /// The endpoint has sent its first bytes.
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

#[cfg(test)]
impl EndpointSlot {
    /// Of an endpoint in no pool.
    pub(crate) fn sample() -> Self {
        Self::take(&Endpoint::sample())
    }
}

#[cfg(test)]
impl Endpoint {
    /// In no pool.
    pub(super) fn sample() -> Arc<Self> {
        Arc::new(Self::new(SocketAddr::from(([127, 0, 0, 1], 7)), Share::DEFAULT))
    }
}

impl Drop for EndpointSlot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Relaxed);
    }
}
