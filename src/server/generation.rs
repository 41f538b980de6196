//! The routes of one configuration, and what becomes of those of the one before.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::info;

use crate::account::Counters;
use crate::config;
use crate::connection::Route;
use crate::roster::{Order, Roster};
use crate::route::RouteTable;
use crate::tcp::TcpOptions;
use crate::upstream::{Endpoint, EndpointId, OnRemove, Setup, Upstream};

/// The routes of one configuration.
#[derive(Debug, Default)]
pub struct Generation {
    pub(super) table: Arc<RouteTable<Arc<Route>>>,
    /// In the order of the configuration.
    pub routes: Vec<Arc<Route>>,
    /// In the order of the configuration.
    pub listeners: Vec<At>,
}

/// Where a listener is.
#[derive(Clone, Debug)]
pub struct At {
    /// Its name.
    pub name: Box<str>,
    /// As configured.
    pub configured: SocketAddr,
    /// With the port that the kernel has chosen, if it was to.
    pub address: SocketAddr,
}

/// How two generations differ, in routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that were not there before.
    pub added: usize,
    /// Those that are not as they were.
    pub changed: usize,
    /// Those that are no longer there.
    pub removed: usize,
    /// The rest.
    pub unchanged: usize,
}

/// Endpoints that the configuration no longer has.
#[derive(Debug)]
pub(super) struct Removed {
    endpoints: Vec<Arc<Endpoint>>,
    policy: OnRemove,
    /// Where they may turn up again, under a name.
    route: Option<Arc<Route>>,
}

/// What a generation needs besides its routes.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) tcp: TcpOptions,
    pub(super) listeners: Vec<At>,
    pub(super) counters: Arc<Counters>,
    pub(super) roster: Arc<Roster>,
}

/// Begins to look after the routes; those that are as they were stay the same. From here on nothing can fail. For many
/// routes this takes a while. Must be called within a tokio runtime.
pub(super) fn succeed(
    before: &Generation,
    routes: Vec<config::Route>,
    ground: &Ground,
) -> (Generation, Changes, Vec<Removed>) {
    let mut known: HashMap<&str, &Arc<Route>> =
        before.routes.iter().map(|route| (route.counters.name(), route)).collect();
    let mut addresses: Vec<SocketAddr> = ground.listeners.iter().map(|listener| listener.address).collect();
    addresses.sort();
    let addresses: Arc<[SocketAddr]> = addresses.into();
    let mut table = RouteTable::default();
    let mut changes = Changes::default();
    let mut removed = Vec::new();
    let mut after = Vec::with_capacity(routes.len());
    for route in routes {
        let digest = route.digest();
        let config::Route { name, patterns, matchers, upstream } = route;
        let setup = Setup {
            route: name.as_str().into(),
            names: patterns,
            settings: upstream,
            tcp: ground.tcp,
            listeners: Arc::clone(&addresses),
        };
        let names = setup.names.clone();
        let policy = setup.settings.on_remove;
        let route = match known.remove(&*name) {
            Some(route) if route.digest == digest && *route.upstream.setup() == setup => {
                changes.unchanged += 1;
                Arc::clone(route)
            }
            predecessor => {
                let old = predecessor.map(|route| &route.upstream);
                let before = old.map(Upstream::endpoints).unwrap_or_default();
                let upstream = Upstream::start(setup, Arc::clone(&ground.roster), old);
                let route = Arc::new(Route { upstream, counters: ground.counters.route(&name), digest });
                let has = |endpoint: &EndpointId| route.upstream.endpoints().iter().any(|now| now.id == *endpoint);
                let endpoints: Vec<_> = before.iter().filter(|endpoint| !has(&endpoint.id)).cloned().collect();
                if !endpoints.is_empty() {
                    removed.push(Removed { endpoints, policy, route: Some(Arc::clone(&route)) });
                }
                if predecessor.is_some() {
                    changes.changed += 1;
                } else {
                    changes.added += 1;
                }
                route
            }
        };
        let inserted = table.insert(&names, &matchers, &route);
        debug_assert!(inserted.is_ok(), "conflicts are found when the configuration is read");
        after.push(route);
    }
    changes.removed = known.len();
    for route in known.into_values() {
        route.upstream.retire();
        let policy = route.upstream.setup().settings.on_remove;
        removed.push(Removed { endpoints: route.upstream.endpoints_ever(), policy, route: None });
    }
    let listeners = ground.listeners.clone();
    (Generation { table: Arc::new(table), routes: after, listeners }, changes, removed)
}

/// How many connections are told to end at a time, and how long after the next: thousands of clients must not come back
/// in one instant.
const AT_A_TIME: usize = 10;
const PAUSE: Duration = Duration::from_millis(10);
/// Between looks at who is still on the way.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Ends the connections of what was removed, and the old generation when no connection needs it any more.
pub(super) async fn end(before: Arc<Generation>, removed: Vec<Removed>, roster: Arc<Roster>, drain: Duration) {
    let (cut, rest): (Vec<_>, Vec<_>) = removed.into_iter().partition(|removed| removed.policy == OnRemove::Cut);
    let drained = rest.into_iter().filter(|removed| removed.policy == OnRemove::Drain).collect();
    let (now, table) = (Instant::now(), Arc::downgrade(&before.table));
    let forget = async {
        while Arc::strong_count(&before.table) > 1 {
            sleep(LOOK_AGAIN).await;
        }
        // Where there are many routes this takes a while.
        let _ = tokio::task::spawn_blocking(move || drop(before)).await;
    };
    tokio::join!(
        end_connections(&table, cut, &roster, now, "connections of what was removed are cut"),
        end_connections(&table, drained, &roster, now + drain, "connections of what was removed are drained"),
        forget,
    );
}

/// `table` is there for as long as a connection is on its way through it.
async fn end_connections(
    table: &Weak<RouteTable<Arc<Route>>>,
    removed: Vec<Removed>,
    roster: &Roster,
    deadline: Instant,
    message: &'static str,
) {
    if removed.is_empty() {
        return;
    }
    let open = |removed: &Removed| removed.endpoints.iter().map(|endpoint| endpoint.connections()).sum::<usize>();
    let connections: usize = removed.iter().map(open).sum();
    if connections > 0 {
        let within = deadline.saturating_duration_since(Instant::now());
        info!(connections, within_s = within.as_secs_f64(), "{message}");
    }
    sleep_until(deadline).await;
    let mut ended = 0;
    loop {
        // Last of all those that were still on the way when the rest was told.
        let was_in_use = table.strong_count() > 0;
        let ids: Vec<EndpointId> = removed.iter().flat_map(Removed::gone).collect();
        let told = if ids.is_empty() { 0 } else { roster.end_those_at(&ids, Order::Drain, AT_A_TIME) };
        ended += told;
        if told > 0 {
            sleep(PAUSE).await;
        } else if was_in_use {
            sleep(LOOK_AGAIN).await;
        } else {
            break;
        }
    }
    if ended > 0 {
        info!(cut = ended, "connections of what was removed have ended");
    }
}

impl Removed {
    /// Those that have connections and have not turned up again.
    fn gone(&self) -> impl Iterator<Item = EndpointId> {
        let now = self.route.as_ref().map(|route| route.upstream.endpoints()).unwrap_or_default();
        let has = move |endpoint: &EndpointId| now.iter().any(|now| now.id == *endpoint);
        let open = self.endpoints.iter().filter(|endpoint| endpoint.connections() > 0);
        open.map(|endpoint| endpoint.id).filter(move |endpoint| !has(endpoint))
    }
}
