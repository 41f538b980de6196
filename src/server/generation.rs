//! The routes of one configuration: building the next generation, and draining removed routes and endpoints.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::info;

use crate::admin::{ListenerAddress, View};
use crate::config;
use crate::connection::RouteTarget;
use crate::connection::registry::{CloseReason, Registry};
use crate::route::{Matchers, Names, RouteTable};
use crate::telemetry::Counters;
use crate::upstream::{Endpoint, EndpointId, FirstAnswers, OnRemove, Removal, Setup, SharedContext, Upstream};

/// The routes of one configuration.
#[derive(Debug, Default)]
pub(crate) struct Generation {
    pub(super) table: Arc<Table>,
    /// Routes and listeners in the order of the configuration, for the admin listener.
    pub(crate) view: Arc<View>,
    /// Removed routes whose connections drain, by name.
    draining: HashMap<Box<str>, Weak<RouteTarget>>,
    /// Of generations before: a table is alive while connections are being set up with it.
    earlier: Vec<Weak<Table>>,
}

type Table = RouteTable<Arc<RouteTarget>>;

impl Generation {
    /// Its table, and those of earlier generations that are in use.
    fn tables(&self) -> Vec<Weak<Table>> {
        let earlier = self.earlier.iter().filter(|table| table.strong_count() > 0).cloned();
        earlier.chain([Arc::downgrade(&self.table)]).collect()
    }
}

/// The differences between two generations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) added: usize,
    pub(crate) changed: usize,
    pub(crate) removed: usize,
    pub(crate) unchanged: usize,
}

/// Endpoints that are no longer configured.
#[derive(Debug)]
pub(super) struct Removed {
    endpoints: Vec<(Arc<Endpoint>, Removal)>,
    policy: OnRemove,
    /// The route, if all of it was removed: kept alive so that it is recognised if it is added again.
    _route: Option<Arc<RouteTarget>>,
}

/// Endpoints that are no longer configured, unless a name has them whose first answer is not here yet.
#[derive(Debug)]
pub(super) struct Undecided {
    endpoints: Vec<Arc<Endpoint>>,
    policy: OnRemove,
    answers: FirstAnswers,
}

/// The next generation, and how it differs.
pub(super) struct Next {
    pub(super) generation: Generation,
    pub(super) changes: Changes,
    pub(super) removed: Vec<Removed>,
    pub(super) undecided: Vec<Undecided>,
}

/// Maximum number of routes logged per reload.
const MAX_NAMED: usize = 50;

/// Builds the next generation, and starts to resolve and check its endpoints; unchanged routes are kept. Takes a while
/// for many routes. Must be called within a tokio runtime.
pub(super) fn build_next(
    before: &Generation,
    routes: Vec<config::Route>,
    excluded: &[(Names, Matchers)],
    listeners: Vec<ListenerAddress>,
    counters: &Counters,
    context: &Arc<SharedContext>,
) -> Next {
    let addresses: Vec<SocketAddr> = listeners.iter().filter_map(|listener| listener.address.clone().ok()).collect();
    counters.set_listeners(&listeners.iter().map(|listener| listener.name.clone()).collect::<Vec<_>>());
    let listeners_changed = **context.listeners.load() != addresses;
    context.listeners.store(Arc::new(addresses));
    let draining = before.draining.iter().filter_map(|(name, route)| Some((&**name, route.upgrade()?)));
    let mut builder = Builder {
        counters,
        context,
        listeners_changed,
        listeners: listeners.iter().map(|listener| &*listener.name).collect(),
        running: before.view.routes.iter().map(|route| (route.counters.name(), route)).collect(),
        draining: draining.collect(),
        changes: Changes::default(),
        removed: Vec::new(),
        undecided: Vec::new(),
    };
    let mut table = RouteTable::default();
    let mut built = Vec::with_capacity(routes.len());
    for config in routes {
        let entries = config.entries();
        let route = builder.route(config);
        for (names, matchers) in entries {
            let inserted = table.add(&names, &matchers, &route);
            debug_assert!(inserted.is_ok(), "conflicts are found when the configuration is loaded");
        }
        built.push(route);
    }
    for (names, matchers) in excluded {
        let excluded = table.exclude(names, matchers);
        debug_assert!(excluded.is_ok(), "only names that no route has are excluded");
    }
    let undecided = std::mem::take(&mut builder.undecided);
    let (draining, changes, removed) = builder.remove_the_rest();
    let table = Arc::new(table);
    let view = Arc::new(View { routes: built, table: Arc::downgrade(&table), listeners });
    let generation = Generation { table, view, draining, earlier: before.tables() };
    Next { generation, changes, removed, undecided }
}

struct Builder<'b> {
    counters: &'b Counters,
    context: &'b Arc<SharedContext>,
    listeners_changed: bool,
    /// The names of all.
    listeners: Vec<&'b str>,
    /// Running routes that were not found in the new configuration yet.
    running: HashMap<&'b str, &'b Arc<RouteTarget>>,
    /// Removed routes whose connections drain.
    draining: HashMap<&'b str, Arc<RouteTarget>>,
    changes: Changes,
    removed: Vec<Removed>,
    undecided: Vec<Undecided>,
}

impl Builder<'_> {
    /// The running route if it is unchanged, or a new one that inherits the state of its endpoints.
    fn route(&mut self, config: config::Route) -> Arc<RouteTarget> {
        let digest = config.digest(&self.listeners);
        let config::Route {
            name,
            patterns,
            matchers: _,
            by_listener: _,
            sources,
            max_connections,
            new_connections,
            upstream,
        } = config;
        let setup = Setup { route: name.as_str().into(), names: patterns, settings: upstream };
        let running = self.running.remove(&*name);
        if let Some(route) = running.filter(|route| route.digest == digest && *route.upstream.setup() == setup) {
            self.changes.unchanged += 1;
            if self.listeners_changed {
                route.upstream.check_for_loops();
            }
            return Arc::clone(route);
        }
        let drained = self.draining.remove(&*name);
        let predecessor = running.or(drained.as_ref());
        let rate_usage = predecessor.map(|route| Arc::clone(&route.rate_usage)).unwrap_or_default();
        let predecessor = predecessor.map(|route| &route.upstream);
        let before = predecessor.map(Upstream::endpoints).unwrap_or_default();
        // Removed before the route was: they are removed again.
        let removed_before: Vec<(Arc<Endpoint>, OnRemove)> = drained
            .iter()
            .flat_map(|drained| drained.upstream.endpoints_ever())
            .filter_map(|endpoint| endpoint.returned_with_route().map(|policy| (endpoint, policy)))
            .collect();
        let upstream = Upstream::start(setup, self.context, predecessor);
        if let Some(predecessor) = predecessor {
            self.remove_endpoints(&before, predecessor, &upstream);
        }
        let removed_again = removed_before.into_iter().map(|(endpoint, policy)| Removed::new(vec![endpoint], policy));
        self.removed.extend(removed_again);
        let counters = self.counters.route(&name);
        if running.is_some() {
            self.changes.changed += 1;
            if self.changes.changed <= MAX_NAMED {
                info!(route = &*name, "route changed");
            }
        } else {
            self.changes.added += 1;
            if drained.is_some() {
                let connections = counters.active.load(Relaxed);
                info!(route = &*name, connections, "route added again; its connections no longer drain");
            }
        }
        Arc::new(RouteTarget { sources, max_connections, new_connections, rate_usage, upstream, counters, digest })
    }

    /// Removes what the predecessor had, present (`before`) or former, and the route no longer has.
    fn remove_endpoints(&mut self, before: &[Arc<Endpoint>], predecessor: &Upstream, upstream: &Upstream) {
        // A name may have had any of them.
        let former = if upstream.has_names() { Vec::new() } else { predecessor.former_endpoints() };
        let endpoints = before.iter().chain(&former).filter(|endpoint| endpoint.is_undecided());
        let endpoints: Vec<_> = endpoints.cloned().collect();
        if endpoints.is_empty() {
            return;
        }
        let policy = predecessor.setup().settings.on_remove;
        match upstream.first_answers() {
            Some(answers) => self.undecided.push(Undecided { endpoints, policy, answers }),
            None => self.removed.push(Removed::new(endpoints, policy)),
        }
    }

    /// Removes the running routes that are no longer configured.
    fn remove_the_rest(mut self) -> (HashMap<Box<str>, Weak<RouteTarget>>, Changes, Vec<Removed>) {
        self.changes.removed = self.running.len();
        for (name, route) in self.running {
            route.upstream.remove();
            let removed = Removed::with_route(route);
            if self.removed.len() < MAX_NAMED {
                let connections = route.counters.active.load(Relaxed);
                info!(route = name, connections, on_remove = removed.policy.label(), "route removed");
            }
            self.removed.push(removed);
            self.draining.insert(name, Arc::clone(route));
        }
        let draining = self.draining.into_iter().map(|(name, route)| (name.into(), Arc::downgrade(&route))).collect();
        (draining, self.changes, self.removed)
    }
}

/// Connections are closed in batches with a pause, so that thousands of clients do not reconnect at the same moment.
const BATCH_SIZE: usize = 10;
const BATCH_PAUSE: Duration = Duration::from_millis(10);
/// Between counts of the remaining connections.
const RECOUNT_INTERVAL: Duration = Duration::from_millis(500);

/// Closes the connections of removed routes and endpoints, and frees the old generation when no connection uses it.
pub(super) async fn retire(
    before: Arc<Generation>,
    removed: Vec<Removed>,
    undecided: Vec<Undecided>,
    registry: Arc<Registry>,
    drain: Duration,
) {
    let registry = &*registry;
    let (now, tables) = (Instant::now(), before.tables());
    let free = async {
        while Arc::strong_count(&before.table) > 1 {
            sleep(RECOUNT_INTERVAL).await;
        }
        // Takes a while for many routes.
        let _ = tokio::task::spawn_blocking(move || drop(before)).await;
    };
    let decided = async {
        let mut removed = Vec::new();
        for Undecided { endpoints, policy, answers } in undecided {
            answers.wait(now).await;
            let endpoints = endpoints.into_iter().filter(|endpoint| endpoint.is_undecided()).collect();
            removed.push(Removed::new(endpoints, policy));
        }
        close_by_policy(&tables, removed, registry, now, drain).await;
    };
    tokio::join!(close_by_policy(&tables, removed, registry, now, drain), decided, free);
}

/// Closes connections as each policy says; what drains has until `drain` after `since`.
async fn close_by_policy(
    tables: &[Weak<Table>],
    removed: Vec<Removed>,
    registry: &Registry,
    since: Instant,
    drain: Duration,
) {
    let (cut, rest): (Vec<_>, Vec<_>) = removed.into_iter().partition(|removed| removed.policy == OnRemove::Cut);
    let (drained, kept): (Vec<_>, Vec<_>) = rest.into_iter().partition(|removed| removed.policy == OnRemove::Drain);
    tokio::join!(
        close_and_hold(tables, cut, registry, Some(since), "closing connections of removed routes and endpoints"),
        close_and_hold(
            tables,
            drained,
            registry,
            Some(since + drain),
            "draining connections of removed routes and endpoints"
        ),
        close_and_hold(
            tables,
            kept,
            registry,
            None,
            "connections of removed routes and endpoints stay open (on_remove: keep)"
        ),
    );
}

/// Closes connections once the deadline has passed, if there is one. What was removed is held while it has connections, so
/// that a route that returns has them again. `tables`: those with which connections may be set up that get there.
async fn close_and_hold(
    tables: &[Weak<Table>],
    mut removed: Vec<Removed>,
    registry: &Registry,
    deadline: Option<Instant>,
    message: &'static str,
) {
    let connections: usize = removed.iter().flat_map(Removed::remaining).map(|endpoint| endpoint.connections()).sum();
    if connections > 0 {
        let within_s = deadline.map(|at| at.saturating_duration_since(Instant::now()).as_secs_f64().round());
        info!(connections, within_s, "{message}");
    }
    let mut closed = 0;
    loop {
        // A connection that is being set up is counted in the next round.
        let may_grow = tables.iter().any(|table| table.strong_count() > 0);
        let now = Instant::now();
        if deadline.is_some_and(|deadline| now >= deadline) {
            closed += close_connections_at(&removed, registry).await;
        }
        removed.retain(|removed| may_grow || removed.remaining().next().is_some());
        if removed.is_empty() {
            break;
        }
        // Exactly at the deadline, if that is next.
        let next = now + RECOUNT_INTERVAL;
        sleep_until(deadline.filter(|deadline| now < *deadline).map_or(next, |deadline| next.min(deadline))).await;
    }
    if closed > 0 {
        info!(closed, "closed connections of removed routes and endpoints");
    }
}

async fn close_connections_at(removed: &[Removed], registry: &Registry) -> usize {
    let remaining =
        || -> HashSet<EndpointId> { removed.iter().flat_map(Removed::remaining).map(|endpoint| endpoint.id).collect() };
    let endpoints = remaining();
    let mut connections = if endpoints.is_empty() { Vec::new() } else { registry.connected_to(&endpoints) };
    fastrand::shuffle(&mut connections);
    let mut closed = 0;
    for batch in connections.chunks(BATCH_SIZE) {
        // Some may have been added again meanwhile.
        let endpoints = remaining();
        if endpoints.is_empty() {
            break;
        }
        closed += registry.close(batch, &endpoints, CloseReason::Removed);
        sleep(BATCH_PAUSE.mul_f64(2.0 * fastrand::f64())).await;
    }
    closed
}

impl Removed {
    /// The policy is that of the configuration that had them.
    fn new(endpoints: Vec<Arc<Endpoint>>, policy: OnRemove) -> Self {
        Self::by(Endpoint::removed_by, endpoints, policy, None)
    }

    /// All that the route has and had.
    fn with_route(route: &Arc<RouteTarget>) -> Self {
        let policy = route.upstream.setup().settings.on_remove;
        Self::by(Endpoint::removed_with_route, route.upstream.endpoints_ever(), policy, Some(Arc::clone(route)))
    }

    fn by(
        remove: impl Fn(&Endpoint, OnRemove) -> Option<Removal>,
        endpoints: Vec<Arc<Endpoint>>,
        policy: OnRemove,
        route: Option<Arc<RouteTarget>>,
    ) -> Self {
        let with_removal = |endpoint: Arc<Endpoint>| {
            let removal = remove(&endpoint, policy)?;
            Some((endpoint, removal))
        };
        Self { endpoints: endpoints.into_iter().filter_map(with_removal).collect(), policy, _route: route }
    }

    /// The endpoints that still have connections and were neither added again nor removed anew.
    fn remaining(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let is_removed = |(endpoint, removal): &&(Arc<Endpoint>, Removal)| endpoint.is_removed_by(*removal);
        let endpoints = self.endpoints.iter().filter(is_removed).map(|(endpoint, _)| endpoint);
        endpoints.filter(|endpoint| endpoint.connections() > 0)
    }
}
