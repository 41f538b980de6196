//! The endpoints of one route: which there are, how they are, and who looks after them.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use super::certificate::Certificate;
use super::condition::{Finding, State, Thresholds};
use super::endpoint::{Endpoint, EndpointId};
use super::health::{self, HealthCheck};
use super::{Settings, failure, own};
use crate::name::NamePattern;
use crate::roster::{Order, Roster};

/// How many refused, timed-out or unanswered connections in a row make an endpoint dead where nothing checks it.
const UNCHECKED: Thresholds = Thresholds { rise: 1, fall: 3 };

/// A certificate that expires sooner is worth a warning.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

#[derive(Debug)]
pub(super) struct Pool {
    route: Box<str>,
    /// What clients ask for, and certificates should cover.
    names: Box<[NamePattern]>,
    pub(super) settings: Settings,
    listeners: Arc<[SocketAddr]>,
    roster: Arc<Roster>,
    /// In the order of the configuration.
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    members: Mutex<Members>,
    /// How many names have not been looked up at all yet.
    unanswered: watch::Sender<usize>,
    fails_open: AtomicBool,
}

#[derive(Debug, Default)]
struct Members {
    /// The last good answer of each destination, and what is wrong with the last one.
    answers: Vec<Answer>,
    caretakers: HashMap<EndpointId, AbortHandle>,
}

#[derive(Debug, Default)]
struct Answer {
    addresses: Vec<SocketAddr>,
    is_first: bool,
    failure: Option<String>,
}

impl Pool {
    pub(super) fn new(
        route: &str,
        names: &[NamePattern],
        settings: Settings,
        listeners: Arc<[SocketAddr]>,
        roster: Arc<Roster>,
    ) -> Self {
        let answers = settings.destinations.iter().map(|_| Answer { is_first: true, ..Answer::default() }).collect();
        let unanswered = settings.destinations.iter().filter(|destination| destination.name().is_some()).count();
        Self {
            route: route.into(),
            names: names.into(),
            settings,
            listeners,
            roster,
            endpoints: ArcSwap::default(),
            members: Mutex::new(Members { answers, caretakers: HashMap::new() }),
            unanswered: watch::Sender::new(unanswered),
            fails_open: AtomicBool::new(false),
        }
    }

    pub(super) fn route(&self) -> &str {
        &self.route
    }

    pub(super) fn check(&self) -> Option<&HealthCheck> {
        self.settings.health_check.as_ref()
    }

    pub(super) fn thresholds(&self) -> Thresholds {
        self.check().map_or(UNCHECKED, |check| check.thresholds)
    }

    /// How long a dead endpoint keeps its connections; `None`: for as long as they last.
    pub(super) fn dead_grace(&self) -> Option<Duration> {
        self.settings.dead_grace
    }

    pub(super) fn fails_open(&self) -> bool {
        self.fails_open.load(Relaxed)
    }

    pub(super) fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// The endpoints, once the first name has been looked up.
    pub(super) async fn endpoints_by(&self, deadline: Instant) -> Arc<Vec<Arc<Endpoint>>> {
        let endpoints = self.endpoints();
        if endpoints.is_empty() {
            let mut unanswered = self.unanswered.subscribe();
            let first = unanswered.wait_for(|unanswered| *unanswered == 0 || !self.endpoints.load().is_empty());
            // Late or not: what is there is there.
            let _ = timeout_at(deadline, first).await;
            return self.endpoints();
        }
        endpoints
    }

    /// Why there is no endpoint.
    pub(super) fn lookup_failures(&self) -> Vec<(String, String)> {
        let members = self.members();
        let answers = self.settings.destinations.iter().zip(&members.answers);
        let late = || "its name has not been resolved yet".to_owned();
        answers
            .filter(|(_, answer)| answer.addresses.is_empty())
            .map(|(destination, answer)| (destination.to_string(), answer.failure.clone().unwrap_or_else(late)))
            .collect()
    }

    /// A destination has been looked up.
    pub(super) fn answered(self: &Arc<Self>, number: usize, answer: io::Result<Vec<SocketAddr>>) {
        let mut members = self.members();
        let destination = &self.settings.destinations[number];
        let known = &mut members.answers[number];
        let is_first = std::mem::take(&mut known.is_first) && destination.name().is_some();
        match answer {
            Ok(addresses) => {
                if known.failure.take().is_some() {
                    info!(route = &*self.route, name = %destination, addresses = addresses.len(), "resolved again");
                }
                if known.addresses != addresses {
                    known.addresses = addresses;
                    self.assemble(&mut members);
                }
            }
            Err(error) => {
                let reason = failure::plain(&error);
                if known.failure.is_none() {
                    let kept = known.addresses.len();
                    warn!(route = &*self.route, name = %destination, %reason, kept, "cannot resolve; the last addresses are kept");
                }
                known.failure = Some(reason);
            }
        }
        drop(members);
        self.unanswered.send_modify(|unanswered| *unanswered -= usize::from(is_first));
        self.look_around();
    }

    /// Who is still there keeps its state and its connections. Who is not gets no new ones.
    fn assemble(self: &Arc<Self>, members: &mut Members) {
        let before = self.endpoints();
        let mut after: Vec<Arc<Endpoint>> = Vec::new();
        for address in members.answers.iter().flat_map(|answer| &answer.addresses) {
            if after.iter().any(|endpoint| endpoint.address == *address) {
                continue;
            }
            let known = before.iter().find(|endpoint| endpoint.address == *address);
            after.push(known.map_or_else(|| self.welcome(*address, &mut members.caretakers), Arc::clone));
        }
        for endpoint in before.iter().filter(|endpoint| !after.iter().any(|other| other.id == endpoint.id)) {
            if let Some(caretaker) = members.caretakers.remove(&endpoint.id) {
                caretaker.abort();
            }
            let connections = endpoint.connections();
            info!(route = &*self.route, endpoint = %endpoint.address, connections, "endpoint removed; its connections stay");
        }
        self.endpoints.store(Arc::new(after));
    }

    fn welcome(
        self: &Arc<Self>,
        address: SocketAddr,
        caretakers: &mut HashMap<EndpointId, AbortHandle>,
    ) -> Arc<Endpoint> {
        let is_loop = own::leads_to_one_of(&self.listeners, address);
        let endpoint = Arc::new(Endpoint::new(address, is_loop, Arc::downgrade(self)));
        if is_loop {
            warn!(route = &*self.route, endpoint = %address, "endpoint is one of our own listeners and is not used");
        } else {
            info!(route = &*self.route, endpoint = %address, "endpoint added");
            let caretaker = tokio::spawn(health::look_after(Arc::clone(self), Arc::clone(&endpoint)));
            caretakers.insert(endpoint.id, caretaker.abort_handle());
        }
        endpoint
    }

    /// Nobody is looked after any more.
    pub(super) fn close(&self) {
        for (_, caretaker) in self.members().caretakers.drain() {
            caretaker.abort();
        }
    }

    /// Something was found out about an endpoint.
    pub(super) fn report(&self, endpoint: &Endpoint, finding: &Finding) {
        let Some(change) = endpoint.learn(finding, self.thresholds()) else { return };
        let (before, connections) = (change.before.label(), endpoint.connections());
        match change.after {
            State::Ready => {
                info!(
                    route = &*self.route, endpoint = %endpoint.address, state = change.after.label(), before, connections,
                    "endpoint"
                );
            }
            State::Unready | State::Dead => {
                warn!(
                    route = &*self.route, endpoint = %endpoint.address, state = change.after.label(), before, connections,
                    cause = &*endpoint.cause(), in_a_row = change.findings,
                    "endpoint"
                );
            }
        }
        self.look_around();
    }

    /// A client got an answer. Where endpoints are checked, that does not say whether they are ready.
    pub(super) fn answered_a_client(&self, endpoint: &Endpoint) {
        if self.check().is_none() {
            self.report(endpoint, &Finding::Ready);
        }
    }

    /// Whether there is still, or again, an endpoint that is ready.
    pub(super) fn look_around(&self) {
        let endpoints = self.endpoints.load();
        let none_ready = !endpoints.is_empty() && endpoints.iter().all(|endpoint| endpoint.state() != State::Ready);
        if self.fails_open.swap(none_ready, Relaxed) == none_ready {
            return;
        }
        if none_ready {
            warn!(
                route = &*self.route,
                endpoints = endpoints.len(),
                "no endpoint is ready; connections are tried with all of them"
            );
        } else {
            info!(route = &*self.route, "an endpoint is ready again");
        }
    }

    /// Ends the connections of an endpoint that is gone.
    pub(super) fn cut(&self, endpoint: &Endpoint) {
        let cut = self.roster.end_those_at(endpoint.id, Order::EndpointGone);
        if cut > 0 {
            warn!(route = &*self.route, endpoint = %endpoint.address, cut, cause = &*endpoint.cause(), "connections of a dead endpoint are cut");
        }
    }

    /// A check was shown this certificate.
    pub(super) fn shown(&self, endpoint: &Endpoint, certificate: &Certificate) {
        let before = endpoint.keep_certificate(certificate.clone());
        if before.as_ref() == Some(certificate) {
            return;
        }
        let route = &*self.route;
        if let Some(changed) = before.and_then(|before| certificate.changes_from(&before)) {
            info!(route, endpoint = %endpoint.address, changed, issuer = certificate.issuer, "certificate");
        }
        let uncovered: Vec<String> =
            self.names.iter().filter(|name| !certificate.covers(name)).map(ToString::to_string).collect();
        if !uncovered.is_empty() {
            warn!(
                route, endpoint = %endpoint.address, not_covered = uncovered.join(", "), covered = certificate.names.join(", "),
                "certificate does not cover the route's names: clients that verify it need tls-server-name"
            );
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = certificate.expires - i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if left < i64::try_from(EXPIRES_SOON.as_secs()).unwrap_or(i64::MAX) {
            warn!(route, endpoint = %endpoint.address, hours_left = left / 3600, "certificate expires soon, or has expired");
        }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
