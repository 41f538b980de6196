//! The routes of one configuration, and what becomes of those of the one before.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::info;

use crate::config;
use crate::connection::Route;
use crate::connection::registry::{Order, Roster};
use crate::route::RouteTable;
use crate::telemetry::Counters;
use crate::upstream::{Endpoint, EndpointId, OnRemove, Setup, Surroundings, Upstream};

/// The routes of one configuration.
#[derive(Debug, Default)]
pub(crate) struct Generation {
    pub(super) table: Arc<RouteTable<Arc<Route>>>,
    /// In the order of the configuration.
    pub(crate) routes: Vec<Arc<Route>>,
    /// In the order of the configuration.
    pub(crate) listeners: Vec<At>,
    /// Those that are no longer configured, by name, for as long as their connections are drained.
    leaving: HashMap<Box<str>, Weak<Route>>,
}

/// Where a listener is.
#[derive(Clone, Debug)]
pub(crate) struct At {
    /// Its name.
    pub(crate) name: Box<str>,
    /// As configured.
    pub(crate) configured: SocketAddr,
    /// With the port that the kernel has chosen, if it was to.
    pub(crate) address: SocketAddr,
}

/// How two generations differ, in routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Those that were not there before.
    pub(crate) added: usize,
    /// Those that are not as they were.
    pub(crate) changed: usize,
    /// Those that are no longer there.
    pub(crate) removed: usize,
    /// The rest.
    pub(crate) unchanged: usize,
}

/// Endpoints that the configuration no longer has.
#[derive(Debug)]
pub(super) struct Removed {
    endpoints: Vec<Arc<Endpoint>>,
    policy: OnRemove,
    /// The whole route, if it was removed: should it come back, it is known.
    _route: Option<Arc<Route>>,
}

/// The log names so many routes per reload.
const MAX_NAMED: usize = 50;

/// Begins to look after the routes; those that are as they were stay the same. From here on nothing can fail. For many
/// routes this takes a while. Must be called within a tokio runtime.
pub(super) fn succeed(
    before: &Generation,
    routes: Vec<config::Route>,
    listeners: Vec<At>,
    counters: &Counters,
    surroundings: &Arc<Surroundings>,
) -> (Generation, Changes, Vec<Removed>) {
    let mut known: HashMap<&str, &Arc<Route>> =
        before.routes.iter().map(|route| (route.counters.name(), route)).collect();
    let mut leaving: HashMap<Box<str>, Arc<Route>> =
        before.leaving.iter().filter_map(|(name, route)| Some((name.clone(), route.upgrade()?))).collect();
    let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.address).collect();
    counters.there_are(&listeners.iter().map(|listener| listener.name.clone()).collect::<Vec<_>>());
    let have_moved = **surroundings.listeners.load() != addresses;
    surroundings.listeners.store(Arc::new(addresses));
    let mut table = RouteTable::default();
    let mut changes = Changes::default();
    let mut removed = Vec::new();
    let mut after = Vec::with_capacity(routes.len());
    for route in routes {
        let digest = route.digest();
        let config::Route { name, patterns, matchers, sources, max_connections, upstream } = route;
        let setup = Setup { route: name.as_str().into(), names: patterns, settings: upstream };
        let names = setup.names.clone();
        let policy = setup.settings.on_remove;
        let route = match known.remove(&*name) {
            Some(route) if route.digest == digest && *route.upstream.setup() == setup => {
                changes.unchanged += 1;
                if have_moved {
                    route.upstream.look_again();
                }
                Arc::clone(route)
            }
            predecessor => {
                let left = leaving.remove(&*name);
                let old = predecessor.or(left.as_ref()).map(|route| &route.upstream);
                let before = old.map(Upstream::endpoints).unwrap_or_default();
                let upstream = Upstream::start(setup, surroundings, old);
                let endpoints: Vec<_> = before.iter().filter(|endpoint| !endpoint.is_present()).cloned().collect();
                if !endpoints.is_empty() {
                    removed.push(Removed { endpoints, policy, _route: None });
                }
                let route =
                    Arc::new(Route { sources, max_connections, upstream, counters: counters.route(&name), digest });
                if predecessor.is_some() {
                    changes.changed += 1;
                    if changes.changed <= MAX_NAMED {
                        info!(route = &*name, "route changed");
                    }
                } else {
                    changes.added += 1;
                    if left.is_some() {
                        let connections = route.counters.active.load(Relaxed);
                        info!(route = &*name, connections, "route is back: its connections are no longer drained");
                    }
                }
                route
            }
        };
        let inserted = table.insert(&names, &matchers, &route);
        debug_assert!(inserted.is_ok(), "conflicts are found when the configuration is read");
        after.push(route);
    }
    changes.removed = known.len();
    for (name, route) in known {
        route.upstream.remove();
        let policy = route.upstream.setup().settings.on_remove;
        if removed.len() < MAX_NAMED {
            let connections = route.counters.active.load(Relaxed);
            info!(route = name, connections, on_remove = policy.label(), "route removed");
        }
        let endpoints = route.upstream.endpoints_ever();
        removed.push(Removed { endpoints, policy, _route: Some(Arc::clone(route)) });
        leaving.insert(name.into(), Arc::clone(route));
    }
    let leaving = leaving.into_iter().map(|(name, route)| (name, Arc::downgrade(&route))).collect();
    (Generation { table: Arc::new(table), routes: after, listeners, leaving }, changes, removed)
}

/// How many connections are told to end at a time, and how long before the next, more or less: thousands of clients must
/// not come back in one instant.
const AT_A_TIME: usize = 10;
const PAUSE: Duration = Duration::from_millis(10);
/// Between looks at who is still there or on the way.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Ends the connections of what was removed, and the old generation when no connection needs it any more.
pub(super) async fn end(
    before: Arc<Generation>,
    removed: Vec<Removed>,
    surroundings: Arc<Surroundings>,
    drain: Duration,
) {
    let roster = &surroundings.roster;
    let (cut, rest): (Vec<_>, Vec<_>) = removed.into_iter().partition(|removed| removed.policy == OnRemove::Cut);
    let (drained, kept): (Vec<_>, Vec<_>) = rest.into_iter().partition(|removed| removed.policy == OnRemove::Drain);
    let connections: usize = kept.iter().flat_map(Removed::gone).map(|endpoint| endpoint.connections()).sum();
    if connections > 0 {
        info!(connections, "connections of what was removed are kept");
    }
    let (now, table) = (Instant::now(), Arc::downgrade(&before.table));
    let forget = async {
        while Arc::strong_count(&before.table) > 1 {
            sleep(LOOK_AGAIN).await;
        }
        // Where there are many routes this takes a while.
        let _ = tokio::task::spawn_blocking(move || drop(before)).await;
    };
    tokio::join!(
        end_connections(&table, cut, roster, now, "connections of what was removed are cut"),
        end_connections(&table, drained, roster, now + drain, "connections of what was removed are drained"),
        forget,
    );
}

/// `table` is there for as long as a connection is on its way through it.
async fn end_connections(
    table: &Weak<RouteTable<Arc<Route>>>,
    mut removed: Vec<Removed>,
    roster: &Roster,
    deadline: Instant,
    message: &'static str,
) {
    let connections: usize = removed.iter().flat_map(Removed::gone).map(|endpoint| endpoint.connections()).sum();
    if connections > 0 {
        let within_s = deadline.saturating_duration_since(Instant::now()).as_secs_f64().round();
        info!(connections, within_s, "{message}");
    }
    let mut ended = 0;
    loop {
        // Who was still on the way when this was asked is there by the next round.
        let may_grow = table.strong_count() > 0;
        let now = Instant::now();
        if now >= deadline {
            ended += end_those_at(&removed, roster).await;
        }
        removed.retain(|removed| may_grow || removed.gone().next().is_some());
        if removed.is_empty() {
            break;
        }
        // To the moment, if that is what it is waited for.
        let next = now + LOOK_AGAIN;
        sleep_until(if now < deadline { next.min(deadline) } else { next }).await;
    }
    if ended > 0 {
        info!(cut = ended, "connections of what was removed have ended");
    }
}

async fn end_those_at(removed: &[Removed], roster: &Roster) -> usize {
    let endpoints: HashSet<EndpointId> = removed.iter().flat_map(Removed::gone).map(|endpoint| endpoint.id).collect();
    let mut members = if endpoints.is_empty() { Vec::new() } else { roster.those_at(&endpoints) };
    fastrand::shuffle(&mut members);
    let mut ended = 0;
    for some in members.chunks(AT_A_TIME) {
        ended += roster.end(some, &endpoints, Order::Removed);
        sleep(PAUSE.mul_f64(2.0 * fastrand::f64())).await;
    }
    ended
}

impl Removed {
    /// Those that have connections and have not come back.
    fn gone(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.iter().filter(|endpoint| !endpoint.is_present() && endpoint.connections() > 0)
    }
}
