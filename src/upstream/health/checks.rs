//! Health checks, each (address, settings) once, however many routes have it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::warn;

use super::super::endpoint::Endpoint;
use super::super::jittered;
use super::super::pool::Pool;
use super::super::slots::{LastResult, SlotPools};
use super::super::source::Dial;
use super::HealthCheck;
use super::probe::{CheckReport, Credentials, probe};
use super::state::{ProbeResult, Thresholds};
use super::tls::Contents;
use crate::telemetry::Histogram;

const MAX_NEW: usize = 32;
const MAX_ANSWERING: usize = 32;
const MAX_FAILING: usize = 32;

/// Checks at a time, in the whole process: each has a descriptor, which the process reserves.
pub(crate) const MAX_CHECKS: usize = MAX_NEW + MAX_ANSWERING + MAX_FAILING;

pub(super) static SLOTS: LazyLock<SlotPools> = LazyLock::new(|| SlotPools::new(MAX_NEW, MAX_ANSWERING, MAX_FAILING));

/// The first check of an endpoint that takes longer does not count, and waits for a slot among those that fail: hundreds of
/// endpoints that are down must not delay the first check of the others by a timeout each.
const FIRST_CHECK_TIMEOUT: Duration = Duration::from_millis(500);

/// An endpoint that says that it is not ready is checked again after this time: it is about to shut down.
const UNREADY_RECHECK: Duration = Duration::from_secs(1);

/// At most one line per check and minute says that it is late.
const LATE_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Each result counts by itself.
const NO_THRESHOLDS: Thresholds = Thresholds { rise: 1, fall: 1, unready: 1 };

/// All checks.
#[derive(Debug)]
pub(crate) struct Checks {
    known: Mutex<HashMap<Key, Arc<SharedCheck>>>,
    /// How late checks begin, in seconds.
    lateness: Histogram,
    /// A successor checks; what is left here are endpoints with connections.
    has_successor: AtomicBool,
}

/// What is checked, and how. Thresholds are the subscribers' own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    address: SocketAddr,
    settings: HealthCheck,
    dial: Dial,
}

#[derive(Debug)]
struct SharedCheck {
    key: Key,
    subscribers: Mutex<Vec<CheckSubscriber>>,
    changed: Notify,
}

#[derive(Clone, Debug)]
struct CheckSubscriber {
    pool: Weak<Pool>,
    endpoint: Arc<Endpoint>,
}

/// Keeps an endpoint checked until it is dropped.
#[derive(Debug)]
pub(in crate::upstream) struct CheckSubscription {
    check: Arc<SharedCheck>,
    subscriber: CheckSubscriber,
}

impl Drop for CheckSubscription {
    fn drop(&mut self) {
        let CheckSubscriber { pool, endpoint } = &self.subscriber;
        self.check.subscribers().retain(|other| other.endpoint.id != endpoint.id || !other.pool.ptr_eq(pool));
        self.check.changed.notify_one();
    }
}

impl Checks {
    pub(crate) fn new(lateness: Histogram) -> Self {
        Self { known: Mutex::default(), lateness, has_successor: AtomicBool::new(false) }
    }

    /// Has the endpoint checked for this pool. Must be called within a tokio runtime.
    pub(in crate::upstream) fn subscribe(
        self: &Arc<Self>,
        settings: &HealthCheck,
        dial: Dial,
        pool: &Arc<Pool>,
        endpoint: &Arc<Endpoint>,
    ) -> CheckSubscription {
        let settings = HealthCheck { thresholds: NO_THRESHOLDS, ..settings.clone() };
        let key = Key { address: endpoint.address, settings, dial };
        let subscriber = CheckSubscriber { pool: Arc::downgrade(pool), endpoint: Arc::clone(endpoint) };
        let mut known = self.known();
        let check = match known.entry(key) {
            Entry::Occupied(entry) => Arc::clone(entry.get()),
            Entry::Vacant(entry) => {
                let key = entry.key().clone();
                let check = Arc::new(SharedCheck { key, subscribers: Mutex::default(), changed: Notify::new() });
                tokio::spawn(run(Arc::clone(self), Arc::clone(&check)));
                Arc::clone(entry.insert(check))
            }
        };
        check.subscribers().push(subscriber.clone());
        drop(known);
        CheckSubscription { check, subscriber }
    }

    /// A successor serves. From now on only endpoints that still have connections here are checked.
    pub(in crate::upstream) fn hand_over(&self) {
        self.has_successor.store(true, Relaxed);
    }

    /// Whether nothing needs the check any more; it is forgotten then.
    fn forget_if_unused(&self, check: &SharedCheck) -> bool {
        let mut known = self.known();
        let is_unused = check.subscribers().is_empty();
        if is_unused {
            known.remove(&check.key);
        }
        is_unused
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Arc<SharedCheck>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks at every interval, as long as anything subscribes to it.
async fn run(checks: Arc<Checks>, check: Arc<SharedCheck>) {
    let Key { address, settings, dial } = &check.key;
    let mut last_result = LastResult::None;
    let mut files = CheckFiles::default();
    let mut notes = CheckNotes::default();
    let mut due = Instant::now() + settings.interval.min(Duration::from_secs(1)).mul_f64(fastrand::f64());
    loop {
        check.wait(due).await;
        if checks.forget_if_unused(&check) {
            return;
        }
        if checks.has_successor.load(Relaxed) && !check.has_connections() {
            due = Instant::now() + jittered(settings.interval);
            continue;
        }
        // Boxed: a check is large, and most of the time there is none.
        let woken = Instant::now();
        let credentials = Box::pin(files.credentials(settings)).await;
        let queued = Instant::now();
        let slot = SLOTS.acquire(last_result).await;
        let begun = Instant::now();
        // Waiting for files is reported by itself.
        let late = (woken - due) + (begun - queued);
        checks.lateness.observe(late);
        notes.late(&check, late, last_result);
        let answer = match credentials {
            Err(reason) => CheckReport::not_made(reason),
            Ok(credentials) => {
                let mut probe = Box::pin(probe(*address, settings, dial, credentials.as_deref()));
                if last_result == LastResult::None && settings.timeout > FIRST_CHECK_TIMEOUT {
                    if let Ok(answer) = timeout(FIRST_CHECK_TIMEOUT, &mut probe).await {
                        answer
                    } else {
                        last_result = LastResult::Failure;
                        continue;
                    }
                } else {
                    probe.await
                }
            }
        };
        drop(slot);
        let has_failed = !matches!(answer.result, Ok(ProbeResult::Ready | ProbeResult::Unready(_)));
        last_result = if has_failed { LastResult::Failure } else { LastResult::Answer };
        notes.say(&check, &answer);
        check.publish(&answer, begun.elapsed());
        let interval =
            if check.is_about_to_be_unready() { settings.interval.min(UNREADY_RECHECK) } else { settings.interval };
        due = (begun + jittered(interval)).max(Instant::now());
    }
}

impl SharedCheck {
    fn subscribers(&self) -> MutexGuard<'_, Vec<CheckSubscriber>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the check is due, or nothing subscribes to it any more.
    async fn wait(&self, due: Instant) {
        loop {
            tokio::select! {
                () = sleep_until(due) => return,
                () = self.changed.notified() => {
                    if self.subscribers().is_empty() {
                        return;
                    }
                }
            }
        }
    }

    fn has_connections(&self) -> bool {
        self.subscribers().iter().any(|subscriber| subscriber.endpoint.connections() > 0)
    }

    fn is_about_to_be_unready(&self) -> bool {
        self.subscribers().iter().any(|subscriber| subscriber.endpoint.health().is_about_to_be_unready())
    }

    fn publish(&self, answer: &CheckReport, took: Duration) {
        // Not under the lock: a pool may subscribe, or end a subscription, when it learns of a change.
        let subscribers = self.subscribers().clone();
        for CheckSubscriber { pool, endpoint } in subscribers {
            let Some(pool) = pool.upgrade() else { continue };
            if answer.result.is_ok() {
                endpoint.record_check(took);
            }
            if let Some(certificate) = &answer.certificate {
                pool.record_certificate(&endpoint, certificate);
            }
            if let Ok(result) = &answer.result {
                pool.report(&endpoint, result);
            }
        }
    }

    /// One of the routes that have it, and how many there are.
    fn routes(&self) -> (String, usize) {
        // Not under the lock: the last handle of a pool ends its subscriptions.
        let subscribers = self.subscribers().clone();
        let first = subscribers.iter().find_map(|subscriber| subscriber.pool.upgrade());
        (first.map(|pool| pool.route().to_owned()).unwrap_or_default(), subscribers.len())
    }
}

/// The files of one check. Parsed again only when their contents have changed.
#[derive(Debug, Default)]
struct CheckFiles {
    last: Option<(Contents, Arc<Credentials>)>,
}

impl CheckFiles {
    async fn credentials(&mut self, settings: &HealthCheck) -> Result<Option<Arc<Credentials>>, String> {
        let Some(tls) = &settings.tls else { return Ok(None) };
        let token_file = settings.http.as_ref().and_then(|http| http.token_file.as_deref());
        let contents = Contents::fetch(tls, token_file).await?;
        if let Some((last, credentials)) = &self.last
            && last.is_same(&contents)
        {
            return Ok(Some(Arc::clone(credentials)));
        }
        let credentials = Arc::new(Credentials::new(tls, token_file, &contents)?);
        self.last = Some((contents, Arc::clone(&credentials)));
        Ok(Some(credentials))
    }
}

/// What has been logged, so that it is not logged again.
#[derive(Debug, Default)]
struct CheckNotes {
    last: Option<String>,
    late: Option<Instant>,
}

impl CheckNotes {
    /// What the operator should know although it changes no state.
    fn say(&mut self, check: &SharedCheck, answer: &CheckReport) {
        let note = match &answer.result {
            Ok(_) => answer.note.map(str::to_owned),
            Err(reason) => Some(format!("check not possible: {reason}")),
        };
        if self.last != note {
            if let Some(note) = &note {
                let (route, routes) = check.routes();
                warn!(route, endpoint = %check.key.address, routes, note, "health check");
            }
            self.last = note;
        }
    }

    /// Checks of endpoints that fail may wait for each other; others should not.
    fn late(&mut self, check: &SharedCheck, late: Duration, last_result: LastResult) {
        let is_news = self.late.is_none_or(|last| last.elapsed() >= LATE_WARNING_INTERVAL);
        if last_result != LastResult::Failure && late > check.key.settings.interval && is_news {
            self.late = Some(Instant::now());
            let (route, routes) = check.routes();
            let late_s = late.as_secs_f64().round();
            warn!(route, endpoint = %check.key.address, routes, late_s, "health check is late: this machine is overloaded");
        }
    }
}

/// Connects and no more, to learn whether an endpoint that nothing checks is back.
pub(super) fn connect_only(interval: Duration, timeout: Duration) -> HealthCheck {
    HealthCheck { interval, timeout, thresholds: NO_THRESHOLDS, tls: None, http: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_waits_is_small() {
        fn size<F>(_: impl Fn(Arc<Checks>, Arc<SharedCheck>) -> F) -> usize {
            size_of::<F>()
        }
        assert!(size(run) <= 640, "{}", size(run));
    }
}
