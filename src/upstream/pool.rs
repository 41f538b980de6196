//! The endpoints of one route: membership, state changes and health monitors.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use strum::{FromRepr, IntoStaticStr};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::certificate::{CertificateChange, EXPIRES_SOON_SECONDS, EndpointCertificate, Expiry};
use super::endpoint::{Endpoint, EndpointId, StateChange};
use super::feed::FeedSubscription;
use super::health::{self, HealthCheck};
use super::health::{EndpointState, ProbeResult, Thresholds};
use super::loop_check::OwnListeners;
use super::rebalance::{self, Returned};
use super::settings::{EndpointSettings, OnRemove, Share};
use super::{Setup, SharedContext, resolve};
use crate::name::NamePattern;
use crate::text::Destination;
use crate::text::units::first_of;

/// Thresholds without health checks: consecutive connections that were refused, timed out or not answered.
const UNCHECKED: Thresholds = Thresholds { rise: 1, fall: 3, unready: 3 };

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) setup: Setup,
    pub(super) context: Arc<SharedContext>,
    /// In the order of the configuration.
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    members: Mutex<Members>,
    /// Number of hostnames whose first lookup connections wait for; 0 once the pool is removed or has a successor.
    unanswered: watch::Sender<usize>,
    /// Whether the route was in the configuration before.
    has_predecessor: bool,
    /// The pool of the same route in the next configuration.
    successor: OnceLock<Arc<Self>>,
    tier: AtomicU8,
    pub(super) returned: Returned,
}

#[derive(Debug, Default)]
struct Members {
    /// The last good answer of each destination, and what is wrong with the last one.
    answers: Vec<LookupResult>,
    checks: HashMap<EndpointId, health::CheckSubscription>,
    /// Tasks that watch dead endpoints.
    dead_watchers: HashMap<EndpointId, AbortHandle>,
    rebalancer: Option<AbortHandle>,
    /// By index of their destination.
    lookups: HashMap<usize, Subscription>,
    /// Addresses that are our own listeners'.
    loops: Vec<SocketAddr>,
    /// Removed endpoints, the last at the end: they keep their state in case they return.
    former: Vec<Arc<Endpoint>>,
    is_closed: bool,
}

/// Where the addresses of a destination come from.
#[derive(Debug)]
enum Subscription {
    Dns(resolve::LookupSubscription),
    Cluster(#[expect(dead_code, reason = "ends when it is dropped")] FeedSubscription),
}

/// Maximum number of former endpoints without connections that are remembered.
const MAX_IDLE_FORMER: usize = 64;

impl Members {
    fn stop_monitor(&mut self, endpoint: EndpointId) {
        self.checks.remove(&endpoint);
        if let Some(watcher) = self.dead_watchers.remove(&endpoint) {
            watcher.abort();
        }
    }

    /// Forgets the oldest former endpoints without connections if there are too many.
    fn prune_former(&mut self) {
        let is_idle = |endpoint: &Arc<Endpoint>| endpoint.connections() == 0;
        let mut too_many =
            self.former.iter().filter(|endpoint| is_idle(endpoint)).count().saturating_sub(MAX_IDLE_FORMER);
        self.former.retain(|endpoint| {
            let is_kept = too_many == 0 || !is_idle(endpoint);
            too_many -= usize::from(!is_kept);
            is_kept
        });
    }
}

/// The endpoints that new connections go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromRepr, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub(crate) enum Tier {
    /// Endpoints that are ready and no backups.
    Primary,
    /// Backups that are ready.
    Backup,
    /// All, because none is ready (fail open).
    All,
}

impl Tier {
    /// The value in the status.
    pub(crate) fn label(self) -> &'static str {
        self.into()
    }
}

/// Maximum number of addresses or names in a log line.
const MAX_LISTED: usize = 20;

/// Why the endpoints may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// The first answer of a destination.
    FirstAnswer,
    Other,
}

/// The state of a destination's DNS lookups.
#[derive(Clone, Debug, Default)]
struct LookupResult {
    /// Result of the last successful lookup.
    addresses: Vec<SocketAddr>,
    /// Why the last lookup failed, if it did.
    failure: Option<String>,
}

impl LookupResult {
    fn is_known(&self) -> bool {
        !self.addresses.is_empty() || self.failure.is_some()
    }
}

impl Pool {
    /// Inherits the state of the same destinations and endpoints from its predecessor.
    pub(super) fn new(setup: Setup, context: Arc<SharedContext>, predecessor: Option<&Self>) -> Self {
        let endpoints = predecessor.map(Self::endpoints).unwrap_or_default();
        let (before, former) = predecessor.map(Self::known).unwrap_or_default();
        let answer = |destination: &Destination| {
            let known = before.iter().find(|(name, _)| name == destination);
            let literal = || LookupResult { addresses: destination.address().into_iter().collect(), failure: None };
            known.map_or_else(literal, |(_, answer)| answer.clone())
        };
        let answers: Vec<LookupResult> =
            setup.settings.endpoints.iter().map(|endpoint| answer(&endpoint.destination)).collect();
        let unanswered = answers.iter().filter(|answer| !answer.is_known()).count();
        Self {
            setup,
            context,
            endpoints: ArcSwap::new(endpoints),
            members: Mutex::new(Members { answers, former, ..Members::default() }),
            unanswered: watch::Sender::new(unanswered),
            has_predecessor: predecessor.is_some(),
            successor: OnceLock::new(),
            tier: AtomicU8::new(predecessor.map_or(Tier::Primary, Self::tier) as u8),
            returned: Returned::after(predecessor),
        }
    }

    /// The lookup results of all destinations, and the former endpoints.
    fn known(&self) -> (Vec<(Destination, LookupResult)>, Vec<Arc<Endpoint>>) {
        let members = self.members();
        let destinations = self.setup.settings.endpoints.iter().map(|endpoint| endpoint.destination.clone());
        let answers = destinations.zip(members.answers.iter().cloned());
        (answers.collect(), members.former.clone())
    }

    pub(super) fn route(&self) -> &str {
        &self.setup.route
    }

    pub(super) fn check(&self) -> Option<&HealthCheck> {
        self.setup.settings.health_check.as_ref()
    }

    pub(super) fn thresholds(&self) -> Thresholds {
        self.check().map_or(UNCHECKED, |check| check.thresholds)
    }

    /// How long connections to a dead endpoint may continue; `None`: forever.
    pub(super) fn dead_grace(&self) -> Option<Duration> {
        self.setup.settings.dead_grace
    }

    /// The endpoints that serve.
    pub(super) fn tier(&self) -> Tier {
        Tier::from_repr(self.tier.load(Relaxed)).unwrap_or(Tier::All)
    }

    pub(super) fn fails_open(&self) -> bool {
        self.tier() == Tier::All
    }

    /// Whether connections to dead endpoints may be closed: if no endpoint is ready, drained or not, what finds them dead
    /// may itself be at fault.
    pub(super) fn may_cut(&self) -> bool {
        !self.fails_open() && self.endpoints().iter().any(|endpoint| endpoint.state() == EndpointState::Ready)
    }

    pub(super) fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// Whether an operator has drained this endpoint.
    pub(super) fn is_drained(&self, endpoint: &Endpoint) -> bool {
        self.context.drains.contains(self.route(), endpoint.address)
    }

    /// The endpoints that may get new connections.
    pub(super) fn in_service(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.context.drains.in_service(self.route(), self.endpoints())
    }

    /// The pool that a new connection takes its endpoint from, and those that may get it; waits for the first lookups if
    /// there are none but backups. If the configuration changes meanwhile, the pool is the successor.
    pub(super) async fn resolved_by(self: &Arc<Self>, deadline: Instant) -> (Arc<Self>, Arc<Vec<Arc<Endpoint>>>) {
        let has_primary = |endpoints: &[Arc<Endpoint>]| endpoints.iter().any(|endpoint| !endpoint.share().is_backup);
        let mut pool = Arc::clone(self);
        loop {
            let endpoints = pool.in_service();
            if has_primary(&endpoints) {
                return (pool, endpoints);
            }
            let mut unanswered = pool.unanswered.subscribe();
            let first = unanswered.wait_for(|unanswered| *unanswered == 0 || has_primary(&pool.in_service()));
            let _ = timeout_at(deadline, first).await;
            // After the deadline, the list may be empty.
            let endpoints = pool.in_service();
            let Some(successor) = pool.successor.get().filter(|_| !has_primary(&endpoints)).map(Arc::clone) else {
                return (pool, endpoints);
            };
            pool = successor;
        }
    }

    /// Addresses of our own listeners.
    pub(super) fn loops(&self) -> Vec<SocketAddr> {
        self.members().loops.clone()
    }

    /// Which of the endpoints a connection may be sent to, or why none.
    pub(super) fn offer(&self, endpoints: &[Arc<Endpoint>]) -> Result<Vec<usize>, Box<str>> {
        let Some(split) = &self.setup.settings.split else { return Ok((0..endpoints.len()).collect()) };
        let backend = split.draw().ok_or("no backend has a weight")?;
        let destination = backend.destination.clone()?;
        let members = self.members();
        let LookupResult { addresses, failure } = &members.answers[destination];
        let is_offered = |index: &usize| addresses.contains(&endpoints[*index].address);
        let offered: Vec<usize> = (0..endpoints.len()).filter(is_offered).collect();
        if !offered.is_empty() {
            return Ok(offered);
        }
        let destination = &self.setup.settings.endpoints[destination].destination;
        Err(format!("{destination}: {}", failure.as_deref().unwrap_or("no endpoint is in service")).into())
    }

    /// A dead endpoint that is to be tried by a connection, because no health check would find out that it has recovered.
    pub(super) fn trial(&self, endpoints: &[Arc<Endpoint>], offered: &[usize]) -> Option<usize> {
        if self.check().is_some() {
            return None;
        }
        // Not a backup while others serve.
        let serves = |endpoint: &Endpoint| !endpoint.share().is_backup || self.tier() != Tier::Primary;
        let is_tried = |index: &usize| serves(&endpoints[*index]) && endpoints[*index].takes_trial();
        offered.iter().copied().find(is_tried)
    }

    /// Why destinations have no addresses.
    pub(super) fn lookup_failures(&self) -> Vec<(String, String)> {
        let members = self.members();
        let answers = self.setup.settings.endpoints.iter().zip(&members.answers);
        let pending = if members.is_closed { "the route was removed" } else { "hostname not resolved yet" };
        answers
            .filter(|(_, answer)| answer.addresses.is_empty())
            .map(|(endpoint, answer)| {
                (endpoint.destination.to_string(), answer.failure.clone().unwrap_or_else(|| pending.to_owned()))
            })
            .collect()
    }

    pub(super) fn destinations(&self) -> Vec<(&EndpointSettings, Vec<SocketAddr>)> {
        let members = self.members();
        let addresses = members.answers.iter().map(|answer| answer.addresses.clone());
        self.setup.settings.endpoints.iter().zip(addresses).collect()
    }

    /// Starts with the addresses that need no lookup, and with the endpoints of the predecessor.
    pub(super) fn start(self: &Arc<Self>) {
        let mut members = self.members();
        for endpoint in &*self.endpoints() {
            self.spawn_monitor(endpoint, &mut members);
        }
        for endpoint in &members.former {
            endpoint.belong_to(self);
        }
        self.assemble(&mut members, Change::Other);
        self.update_tier(&members);
        members.rebalancer = self
            .setup
            .settings
            .rebalance
            .map(|rate| tokio::spawn(rebalance::run(Arc::clone(self), rate)).abort_handle());
        drop(members);
        for (number, EndpointSettings { destination, .. }) in self.setup.settings.endpoints.iter().enumerate() {
            let pool = Arc::downgrade(self);
            let on_answer =
                move |answer: &resolve::Answer| pool.upgrade().map_or(0, |pool| pool.answered(number, answer));
            let subscription = match destination.name() {
                Some((host, port)) => {
                    let every = self.setup.settings.resolve_every;
                    Subscription::Dns(self.context.lookups.subscribe(host, port, every, on_answer))
                }
                None if destination.is_service() => {
                    let on_addresses = move |addresses: &[SocketAddr]| {
                        on_answer(&Ok(addresses.to_vec()));
                    };
                    Subscription::Cluster(self.context.feeds.subscribe(destination, on_addresses))
                }
                None => continue,
            };
            self.members().lookups.insert(number, subscription);
        }
    }

    /// Connections to these have failed. The names that have no other address are looked up at once.
    pub(super) fn refresh_names_of(&self, endpoints: &[Arc<Endpoint>], failed: &[usize]) {
        let has_failed = |address: &SocketAddr| failed.iter().any(|index| endpoints[*index].address == *address);
        Self::refresh_names(&self.members(), has_failed);
    }

    fn refresh_names(members: &Members, has_failed: impl Fn(&SocketAddr) -> bool) {
        for (number, subscription) in &members.lookups {
            let Subscription::Dns(subscription) = subscription else { continue };
            let addresses = &members.answers[*number].addresses;
            // Also if there are none yet.
            if addresses.iter().all(&has_failed) {
                subscription.refresh();
            }
        }
    }

    /// The endpoint with this address, present or former. A hostname may have had any address, and a configuration before
    /// this one may have kept the connections of an endpoint that it removed (`is_kept`).
    pub(super) fn adopt(self: &Arc<Self>, address: SocketAddr, is_kept: bool) -> Option<Arc<Endpoint>> {
        let mut members = self.members();
        let endpoints = self.endpoints();
        let known = endpoints.iter().chain(&members.former).find(|endpoint| endpoint.address == address);
        if let Some(known) = known {
            return (is_kept || known.may_be_adopted()).then(|| Arc::clone(known));
        }
        let destinations = &self.setup.settings.endpoints;
        let host = destinations.iter().find(|endpoint| endpoint.destination.address().is_none());
        let share = host.map(|host| host.share).or_else(|| is_kept.then_some(Share::DEFAULT))?;
        let endpoint = Arc::new(Endpoint::new(address, share));
        endpoint.belong_to(self);
        endpoint.leave();
        if host.is_none() {
            endpoint.removed_by(OnRemove::Keep);
        }
        members.former.push(Arc::clone(&endpoint));
        Some(endpoint)
    }

    pub(super) fn endpoints_ever(&self) -> Vec<Arc<Endpoint>> {
        let members = self.members();
        self.endpoints().iter().chain(&members.former).cloned().collect()
    }

    pub(super) fn former_endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.members().former.clone()
    }

    /// Checks for loops again, after our own listeners have changed.
    pub(super) fn check_for_loops(self: &Arc<Self>) {
        let mut members = self.members();
        self.assemble(&mut members, Change::Other);
        self.update_tier(&members);
    }

    /// An operator has drained something of the route.
    pub(super) fn drained(&self) {
        self.update_tier(&self.members());
    }

    /// An operator has resumed something of the route.
    pub(super) fn resumed(&self) {
        self.update_tier(&self.members());
        self.returned.announce();
    }

    /// A name has been looked up. Returns the number of connections to endpoints that it has removed.
    fn answered(self: &Arc<Self>, number: usize, answer: &resolve::Answer) -> usize {
        let before = self.endpoints();
        let mut members = self.members();
        // What it would add, nothing would remove.
        if members.is_closed {
            return 0;
        }
        let known = &mut members.answers[number];
        let is_first = !known.is_known();
        match answer {
            Ok(addresses) => {
                // Only a Service has none.
                known.failure = addresses.is_empty().then(|| "the Service has no ready endpoint".into());
                known.addresses.clone_from(addresses);
                // Even if they are the same: what is our own may have changed.
                self.assemble(&mut members, if is_first { Change::FirstAnswer } else { Change::Other });
            }
            Err(reason) => known.failure = Some(reason.clone()),
        }
        self.update_tier(&members);
        self.unanswered.send_modify(|unanswered| *unanswered -= usize::from(is_first));
        drop(members);
        before.iter().filter(|endpoint| !endpoint.is_present()).map(|endpoint| endpoint.connections()).sum()
    }

    /// Builds the list of endpoints. Those that remain keep their state; those that are removed get no new connections.
    fn assemble(self: &Arc<Self>, members: &mut Members, change: Change) {
        let before = self.endpoints();
        let listeners = self.context.listeners.load();
        let mut after: Vec<Arc<Endpoint>> = Vec::new();
        let mut loops = Vec::new();
        let mut shares_changed = false;
        let own = OwnListeners::new(&listeners);
        let shares = self.setup.settings.endpoints.iter().map(|endpoint| endpoint.share);
        let with_share = |(share, answer): (Share, &LookupResult)| {
            answer.addresses.iter().map(|address| (*address, share)).collect::<Vec<_>>()
        };
        let mut addresses: Vec<(SocketAddr, Share)> = Vec::new();
        for (address, share) in shares.zip(&members.answers).flat_map(with_share) {
            match addresses.iter_mut().find(|(known, _)| *known == address) {
                // The address of two destinations is a backup only if both are.
                Some((_, known)) if known.is_backup && !share.is_backup => *known = share,
                Some(_) => {}
                None => addresses.push((address, share)),
            }
        }
        for (address, share) in addresses {
            if own.contains(address) {
                if !members.loops.contains(&address) {
                    warn!(route = &*self.setup.route, endpoint = %address, "endpoint ignored: it is one of snigate's own listeners");
                }
                loops.push(address);
                continue;
            }
            let known = before.iter().find(|endpoint| endpoint.address == address);
            let endpoint = known.map_or_else(|| self.add_endpoint(address, share, members), Arc::clone);
            shares_changed |= endpoint.share() != share;
            endpoint.set_share(share);
            after.push(endpoint);
        }
        members.loops = loops;
        self.endpoints.store(Arc::new(after.clone()));
        let lacks = |some: &[Arc<Endpoint>], one: &Endpoint| !some.iter().any(|other| other.id == one.id);
        let added: Vec<_> = after.iter().filter(|endpoint| lacks(&before, endpoint)).collect();
        let removed: Vec<_> = before.iter().filter(|endpoint| lacks(&after, endpoint)).collect();
        self.log_change(&added, &removed, after.len());
        // What a route begins with has not come later than its connections, which an old process may have had.
        let is_beginning = before.is_empty() || (change == Change::FirstAnswer && !self.has_predecessor);
        if !added.is_empty() && !is_beginning {
            self.returned.announce();
        }
        if shares_changed || !added.is_empty() {
            for endpoint in &after {
                endpoint.reset_credit();
            }
        }
        for endpoint in removed {
            members.stop_monitor(endpoint.id);
            endpoint.leave();
            members.former.push(Arc::clone(endpoint));
        }
        members.prune_former();
    }

    /// For debugging: a reload reports routes, and a lookup the addresses of its name.
    fn log_change(&self, added: &[&Arc<Endpoint>], removed: &[&Arc<Endpoint>], endpoints: usize) {
        if added.is_empty() && removed.is_empty() {
            return;
        }
        let connections: usize = removed.iter().map(|endpoint| endpoint.connections()).sum();
        let list = |some: &[&Arc<Endpoint>]| first_of(some.iter().map(|endpoint| endpoint.address), MAX_LISTED);
        let route = &*self.setup.route;
        debug!(route, added = list(added), removed = list(removed), connections, endpoints, "endpoints changed");
    }

    fn add_endpoint(self: &Arc<Self>, address: SocketAddr, share: Share, members: &mut Members) -> Arc<Endpoint> {
        let former = members.former.iter().position(|endpoint| endpoint.address == address);
        let endpoint =
            former.map_or_else(|| Arc::new(Endpoint::new(address, share)), |index| members.former.remove(index));
        self.spawn_monitor(&endpoint, members);
        endpoint
    }

    fn spawn_monitor(self: &Arc<Self>, endpoint: &Arc<Endpoint>, members: &mut Members) {
        endpoint.join(self);
        if let Some(check) = self.check() {
            let dial = self.setup.settings.dial(endpoint.address);
            let subscription = self.context.checks.subscribe(check, dial, self, endpoint);
            members.checks.insert(endpoint.id, subscription);
        } else if endpoint.state() == EndpointState::Unready
            && let Some(change) = endpoint.apply_check_result(&ProbeResult::Ready, self.thresholds())
        {
            // It was checked before; from now on, nothing would find out that it is ready again.
            self.announce(endpoint, change);
        }
        if endpoint.state() == EndpointState::Dead {
            self.watch_dead(endpoint, members);
        }
    }

    /// Watches a dead endpoint until it is no longer dead.
    fn watch_dead(self: &Arc<Self>, endpoint: &Arc<Endpoint>, members: &mut Members) {
        let watcher = tokio::spawn(health::watch_dead(Arc::clone(self), Arc::clone(endpoint)));
        if let Some(before) = members.dead_watchers.insert(endpoint.id, watcher.abort_handle()) {
            before.abort();
        }
    }

    /// Stops all lookups and health monitors.
    pub(super) fn close(&self) {
        let mut members = self.members();
        members.is_closed = true;
        members.checks.clear();
        let rebalancer = members.rebalancer.take();
        for watcher in members.dead_watchers.drain().map(|(_, watcher)| watcher).chain(rebalancer) {
            watcher.abort();
        }
        let lookups = std::mem::take(&mut members.lookups);
        drop(members);
        drop(lookups);
    }

    /// Whether it has hostnames or Services, whose addresses change.
    pub(super) fn has_names(&self) -> bool {
        self.setup.settings.endpoints.iter().any(|endpoint| endpoint.destination.address().is_none())
    }

    /// Whether each name has been answered once, or has failed.
    pub(super) fn has_answers(&self) -> bool {
        *self.unanswered.borrow() == 0
    }

    /// Until this is so, also of the pools that succeed it.
    pub(super) async fn first_answers(self: Arc<Self>) {
        let mut pool = self;
        loop {
            let _ = pool.unanswered.subscribe().wait_for(|unanswered| *unanswered == 0).await;
            let Some(successor) = pool.successor.get().cloned() else { return };
            pool = successor;
        }
    }

    /// Connections that wait for a lookup turn to this pool.
    pub(super) fn succeeded_by(&self, successor: &Arc<Self>) {
        let is_first = self.successor.set(Arc::clone(successor)).is_ok();
        debug_assert!(is_first, "a pool has one successor");
        self.unanswered.send_replace(0);
    }

    /// Stops all lookups and health monitors, and removes the endpoints. No connection waits any longer.
    pub(super) fn remove(&self) {
        self.close();
        for endpoint in &*self.endpoints() {
            endpoint.leave();
        }
        self.unanswered.send_replace(0);
    }

    /// A check has found this.
    pub(super) fn report(self: &Arc<Self>, endpoint: &Endpoint, result: &ProbeResult) {
        let change = endpoint.apply_check_result(result, self.thresholds());
        self.on_state_change(endpoint, change);
    }

    /// A connection has found this. An answer to a client proves readiness only if no health check is configured.
    pub(super) fn report_of_client(self: &Arc<Self>, endpoint: &Endpoint, result: &ProbeResult) {
        let is_enough = self.check().is_none() && *result == ProbeResult::Ready;
        let change = if is_enough {
            endpoint.apply_check_result(result, self.thresholds())
        } else {
            endpoint.apply_client_result(result, self.thresholds())
        };
        self.on_state_change(endpoint, change);
    }

    fn on_state_change(self: &Arc<Self>, endpoint: &Endpoint, change: Option<StateChange>) {
        let Some(change) = change else { return };
        let mut members = self.members();
        let endpoints = self.endpoints();
        let Some(endpoint) = endpoints.iter().find(|member| member.id == endpoint.id) else { return };
        if members.is_closed {
            drop(members);
            // A reload has just given it to another.
            if let Some(pool) = endpoint.pool().filter(|pool| !Arc::ptr_eq(pool, self)) {
                pool.on_state_change(endpoint, Some(change));
            }
            return;
        }
        if change.after == EndpointState::Dead {
            self.watch_dead(endpoint, &mut members);
            let is_dead = |address: &SocketAddr| {
                endpoints.iter().any(|other| other.address == *address && other.state() == EndpointState::Dead)
            };
            Self::refresh_names(&members, is_dead);
        }
        self.announce(endpoint, change);
        self.update_tier(&members);
    }

    /// Logs the change, and tells the rebalancer of an endpoint that has returned.
    fn announce(&self, endpoint: &Endpoint, change: StateChange) {
        let (route, address) = (&*self.setup.route, endpoint.address);
        let (before, state, connections) = (change.before.label(), change.after.label(), endpoint.connections());
        match change.after {
            EndpointState::Ready => {
                self.returned.announce();
                info!(route, endpoint = %address, state, before, connections, "endpoint is {state}");
            }
            EndpointState::Unready | EndpointState::Dead => {
                let (cause, in_a_row) = (&*endpoint.cause(), change.results);
                warn!(route, endpoint = %address, state, before, connections, cause, in_a_row, "endpoint is {state}");
            }
        }
    }

    /// Switches to backups if no other endpoint is ready, and to all endpoints if none is. Called with the lock held, so that
    /// the last caller sees the final state.
    fn update_tier(&self, members: &Members) {
        let endpoints = self.in_service();
        let mut answers = self.setup.settings.endpoints.iter().zip(&members.answers);
        let is_awaited = answers.any(|(endpoint, answer)| !endpoint.share.is_backup && !answer.is_known());
        let is_ready = |is_backup: bool| {
            endpoints
                .iter()
                .any(|endpoint| endpoint.share().is_backup == is_backup && endpoint.state() == EndpointState::Ready)
        };
        let has_ready = is_ready(false);
        let tier = if endpoints.is_empty() || is_awaited || has_ready {
            Tier::Primary
        } else if is_ready(true) {
            Tier::Backup
        } else {
            Tier::All
        };
        let before = self.tier();
        if before == tier {
            return;
        }
        self.tier.store(tier as u8, Relaxed);
        let (route, endpoints) = (&*self.setup.route, endpoints.len());
        match tier {
            // All are drained, or one that is not known yet is awaited.
            Tier::Primary if !has_ready => {}
            Tier::Primary if before == Tier::Backup => {
                info!(route, "an endpoint is ready again; new connections no longer go to backups");
            }
            Tier::Primary => info!(route, "an endpoint is ready again; no longer failing open"),
            Tier::Backup => warn!(route, endpoints, "no endpoint is ready but backups; new connections go to backups"),
            Tier::All => warn!(route, endpoints, "no endpoint is ready; failing open to all endpoints"),
        }
    }

    /// Makes the connections to an endpoint, which is unreachable since then, check whether the peer still responds.
    pub(super) fn probe_connections(&self, endpoint: &Endpoint, since: Instant) -> usize {
        self.context.connections.probe(endpoint.id, since)
    }

    /// Compares the certificates that are known with the names that the configuration before did not have.
    pub(super) fn compare_certificates(&self, before: &[NamePattern]) {
        let before: HashSet<&NamePattern> = before.iter().collect();
        let added: Vec<NamePattern> = self.setup.names.iter().filter(|name| !before.contains(name)).cloned().collect();
        if added.is_empty() {
            return;
        }
        for endpoint in &*self.endpoints() {
            if let Some(certificate) = endpoint.certificate() {
                self.warn_of_uncovered(endpoint, &certificate, &added);
            }
        }
    }

    /// Records the certificate of a check, and logs changes and problems.
    pub(super) fn record_certificate(&self, endpoint: &Endpoint, certificate: &EndpointCertificate) {
        let route = &*self.setup.route;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = certificate.expires.saturating_sub_unsigned(now.as_secs());
        let expiry = match left {
            ..=0 => Expiry::Past,
            1..EXPIRES_SOON_SECONDS => Expiry::Soon,
            _ => Expiry::Later,
        };
        let CertificateChange { is_new, change, expiry } = endpoint.certificates().record(certificate.clone(), expiry);
        if let Some(changed) = change {
            info!(route, endpoint = %endpoint.address, changed, issuer = certificate.issuer, "certificate changed");
        }
        if is_new {
            self.warn_of_uncovered(endpoint, certificate, &self.setup.names);
        }
        match expiry {
            Some(Expiry::Soon) => {
                warn!(route, endpoint = %endpoint.address, hours_left = left / 3600, "certificate expires soon");
            }
            Some(Expiry::Past) => {
                warn!(route, endpoint = %endpoint.address, hours_ago = -left / 3600, "certificate has expired");
            }
            Some(Expiry::Later) | None => {}
        }
    }

    fn warn_of_uncovered(&self, endpoint: &Endpoint, certificate: &EndpointCertificate, names: &[NamePattern]) {
        let uncovered = certificate.not_covered(names);
        if !uncovered.is_empty() {
            warn!(
                route = &*self.setup.route, endpoint = %endpoint.address, not_covered = first_of(uncovered.iter(), MAX_LISTED), covered = first_of(certificate.names.iter(), MAX_LISTED),
                "certificate does not cover the route's names: clients need tls-server-name"
            );
        }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Drained, UpstreamSettings};
    use super::*;
    use crate::text::units::Rate;

    /// Not started: nothing is looked up.
    fn pool(endpoints: &[(&str, Share)]) -> Arc<Pool> {
        let endpoint = |(destination, share): &(&str, Share)| EndpointSettings {
            destination: destination.parse().unwrap(),
            share: *share,
        };
        let settings = UpstreamSettings::sample(endpoints.iter().map(endpoint).collect());
        let pool = Arc::new(Pool::new(
            Setup { route: "a".into(), names: Vec::new(), settings },
            SharedContext::sample().into(),
            None,
        ));
        let mut members = pool.members();
        pool.assemble(&mut members, Change::Other);
        pool.update_tier(&members);
        drop(members);
        pool
    }

    const BACKUP: Share = Share { weight: 1, is_backup: true };

    fn addresses(endpoints: &[Arc<Endpoint>]) -> Vec<String> {
        endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn b31_no_backup_serves_while_another_endpoint_is_looked_up_for_the_first_time() {
        let pool = pool(&[("api.test:1", Share::DEFAULT), ("192.0.2.9:1", BACKUP)]);
        assert_eq!(pool.tier(), Tier::Primary, "nothing is known to be wrong");
        let begun = Instant::now();
        let waiting = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { pool.resolved_by(begun + Duration::from_secs(10)).await }
        });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!waiting.is_finished());
        pool.answered(0, &Ok(vec!["192.0.2.1:1".parse().unwrap()]));
        assert_eq!(addresses(&waiting.await.unwrap().1), ["192.0.2.1:1", "192.0.2.9:1"]);
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn b31_a_backup_serves_once_the_lookup_of_the_others_has_failed() {
        let pool = pool(&[("api.test:1", Share::DEFAULT), ("192.0.2.9:1", BACKUP)]);
        pool.answered(0, &Err("no such name".into()));
        assert_eq!(addresses(&pool.resolved_by(Instant::now()).await.1), ["192.0.2.9:1"]);
        assert_eq!(pool.tier(), Tier::Backup);
    }

    #[tokio::test]
    async fn b31_an_address_of_two_entries_is_a_backup_only_if_both_are() {
        for order in [[BACKUP, Share::DEFAULT], [Share::DEFAULT, BACKUP]] {
            let pool = pool(&[("api.test:1", order[0]), ("192.0.2.1:1", order[1])]);
            pool.answered(0, &Ok(vec!["192.0.2.1:1".parse().unwrap()]));
            assert_eq!(pool.endpoints()[0].share(), Share::DEFAULT, "{order:?}");
            assert_eq!(pool.tier(), Tier::Primary);
            let credit = pool.endpoints()[0].add_credit(5);
            pool.answered(0, &Ok(vec!["192.0.2.1:1".parse().unwrap()]));
            assert_eq!(pool.endpoints()[0].add_credit(0), credit, "nothing has changed");
        }
    }

    #[tokio::test]
    async fn b30_an_address_of_two_entries_has_the_weight_of_the_first() {
        let [light, heavy] = [1, 9].map(|weight| Share { weight, ..Share::DEFAULT });
        for [first, second] in [[light, heavy], [heavy, light]] {
            let pool = pool(&[("api.test:1", first), ("192.0.2.1:1", second)]);
            pool.answered(0, &Ok(vec!["192.0.2.1:1".parse().unwrap()]));
            assert_eq!(pool.endpoints()[0].share(), first);
        }
    }

    #[tokio::test]
    async fn g11_what_a_check_finds_while_a_reload_replaces_its_pool_is_known_to_the_next() {
        let before = pool(&[("192.0.2.1:1", Share::DEFAULT)]);
        let settings = before.setup.settings.clone();
        let setup = Setup { route: "a".into(), names: Vec::new(), settings };
        before.close();
        let next = Arc::new(Pool::new(setup, Arc::clone(&before.context), Some(&before)));
        next.start();
        let endpoint = Arc::clone(&before.endpoints()[0]);
        for _ in 0..next.thresholds().fall {
            before.report(&endpoint, &ProbeResult::Unreachable("gone".into()));
        }
        assert_eq!(endpoint.state(), EndpointState::Dead);
        assert!(next.fails_open() && next.members().dead_watchers.contains_key(&endpoint.id));
    }

    #[tokio::test]
    async fn b10_no_connection_is_closed_while_no_endpoint_is_ready_drained_or_not() {
        let pool = pool(&[("192.0.2.1:1", Share::DEFAULT), ("192.0.2.2:1", Share::DEFAULT)]);
        let gone = ProbeResult::Unreachable("gone".into());
        let dies = |endpoint: &Endpoint| (0..3).for_each(|_| pool.report(endpoint, &gone));
        let endpoints = pool.endpoints();
        dies(&endpoints[0]);
        assert!(pool.may_cut());
        pool.context.drains.drain(&Drained { route: "a".into(), endpoint: None });
        pool.drained();
        assert!(pool.may_cut(), "the other is ready");
        dies(&endpoints[1]);
        assert!(!pool.fails_open() && !pool.may_cut());
        pool.context.drains.resume(&Drained { route: "a".into(), endpoint: None }).unwrap();
        pool.resumed();
        assert!(pool.fails_open() && !pool.may_cut());
    }

    #[tokio::test(start_paused = true)]
    async fn b35_a_reload_goes_on_with_what_is_to_move_and_starts_nothing() {
        let before = pool(&[("192.0.2.1:1", Share::DEFAULT), ("192.0.2.2:1", Share::DEFAULT)]);
        let successor = |before: &Arc<Pool>, weight: u16| {
            let mut settings = before.setup.settings.clone();
            settings.rebalance = Some(Rate { count: 1, per: Duration::from_secs(1) });
            settings.endpoints[0].share.weight = weight;
            before.close();
            let setup = Setup { route: "a".into(), names: Vec::new(), settings };
            let next = Arc::new(Pool::new(setup, Arc::clone(&before.context), Some(before)));
            next.start();
            next
        };
        let next = successor(&before, 2);
        assert!(next.returned.is_pending(), "what the other has not finished goes on");
        while next.returned.is_pending() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let next = successor(&next, 3);
        assert!(!next.returned.is_pending(), "weights alone move nothing");
        next.resumed();
        assert!(successor(&next, 3).returned.is_pending());
    }

    #[tokio::test]
    async fn h22_a_removed_endpoint_gets_no_connection_of_an_old_process_that_its_removal_would_have_closed() {
        let pool = pool(&[("192.0.2.1:1", Share::DEFAULT), ("192.0.2.2:1", Share::DEFAULT)]);
        let address = "192.0.2.2:1".parse().unwrap();
        assert!(pool.adopt(address, false).is_some());
        let endpoint = Arc::clone(&pool.endpoints()[1]);
        pool.endpoints.store(Arc::new(vec![Arc::clone(&pool.endpoints()[0])]));
        pool.members().former.push(Arc::clone(&endpoint));
        endpoint.leave();
        for (policy, is_adopted) in [(OnRemove::Drain, false), (OnRemove::Cut, false), (OnRemove::Keep, true)] {
            endpoint.removed_by(policy).unwrap();
            assert_eq!(pool.adopt(address, false).is_some(), is_adopted, "{policy:?}");
            assert!(pool.adopt(address, true).is_some(), "a configuration before has kept it");
        }
    }

    #[tokio::test]
    async fn b31_a_dead_backup_is_not_tried_by_a_connection_while_others_serve() {
        let pool = pool(&[("192.0.2.1:1", Share::DEFAULT), ("192.0.2.9:1", BACKUP)]);
        let endpoints = pool.endpoints();
        let wrong = ProbeResult::Wrong("no answer".into());
        for endpoint in &*endpoints {
            for _ in 0..3 {
                pool.report(endpoint, &wrong);
            }
            endpoint.allow_trial();
        }
        assert_eq!(pool.tier(), Tier::All);
        assert_eq!(pool.trial(&endpoints, &[0, 1]), Some(0));
        assert_eq!(pool.trial(&endpoints, &[0, 1]), Some(1), "none serves");
        endpoints[1].allow_trial();
        pool.report(&endpoints[0], &ProbeResult::Ready);
        assert_eq!((pool.tier(), pool.trial(&endpoints, &[0, 1])), (Tier::Primary, None));
        pool.report(&endpoints[1], &ProbeResult::Ready);
        for endpoint in &*endpoints {
            (0..3).for_each(|_| pool.report(endpoint, &wrong));
        }
        assert_eq!(pool.trial(&endpoints, &[0, 1]), None, "that was before it returned");
    }
}
