//! The upstream of a route: a pool of endpoints that are resolved and checked in the background, and load balanced.
//!
//! `resolve` and [`health`] update the pool, independently of each other and of connections. A connection picks an
//! endpoint, reports the result to the pool, and holds an [`EndpointSlot`] while it is open.

mod balance;
mod certificate;
mod drains;
mod endpoint;
mod failure;
mod feed;
pub(crate) mod health;
#[cfg(all(test, shuttle))]
mod interleavings;
mod loop_check;
mod pool;
mod rebalance;
mod resolve;
mod settings;
mod slots;
mod source;

use std::fmt::Debug;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

pub(crate) use self::balance::Balance;
use self::balance::Policy;
pub(crate) use self::certificate::{EXPIRES_SOON_SECONDS, EndpointCertificate};
pub(crate) use self::drains::{Drained, Drains, WholeRoute};
pub(crate) use self::endpoint::{Endpoint, EndpointId, EndpointSlot, LastCheck, Removal};
pub(crate) use self::failure::{ConnectError, Failure, error_message};
pub(crate) use self::feed::Feeds;
pub(crate) use self::health::{Checks, HealthCheck, HttpCheck, TlsCheck};
pub(crate) use self::health::{EndpointState, ProbeResult, Thresholds};
pub(crate) use self::loop_check::{LocalAddresses, OwnListeners, arrives_at};
use self::pool::Pool;
pub(crate) use self::pool::Tier;
use self::resolve::LOOKUP_TIMEOUT;
pub(crate) use self::resolve::{Lookups, MAX_LOOKUPS, lookup};
pub(crate) use self::settings::{
    Backend, ConnectBudget, EndpointSettings, MaxAge, OnRemove, Share, Source, Split, UpstreamSettings,
};
pub(crate) use self::source::{LocalAddress, Purpose, connect_to, may_be_transparent};
use crate::name::NamePattern;

/// In place of the health of a drained endpoint.
pub(crate) const DRAINED: &str = "drained";

/// Everything that defines an upstream: two with an equal setup behave the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    /// The route's name, for logs.
    pub(crate) route: Box<str>,
    /// The route's names, which certificates should cover.
    pub(crate) names: Vec<NamePattern>,
    pub(crate) settings: UpstreamSettings,
}

/// The open connections, as pools need them.
pub(crate) trait OpenConnections: Debug + Send + Sync {
    /// Makes the connections to this endpoint, which is unreachable since then, check whether the peer still responds.
    /// Returns how many there are.
    fn probe(&self, endpoint: EndpointId, since: Instant) -> usize;

    /// Closes parked connections to this endpoint, at most `most`, because others have returned. Returns how many.
    fn close_parked(&self, endpoint: EndpointId, most: usize) -> usize;
}

/// What all upstreams share; reloads update it.
#[derive(Debug)]
pub(crate) struct SharedContext {
    /// The addresses of our own listeners, to detect loops.
    pub(crate) listeners: ArcSwap<Vec<SocketAddr>>,
    pub(crate) connections: Arc<dyn OpenConnections>,
    pub(crate) drains: Drains,
    /// The addresses of Services.
    pub(crate) feeds: Arc<Feeds>,
    lookups: Arc<Lookups>,
    checks: Arc<Checks>,
}

impl SharedContext {
    pub(crate) fn new(connections: Arc<dyn OpenConnections>, lookups: Lookups, checks: Checks) -> Self {
        let (lookups, checks) = (Arc::new(lookups), Arc::new(checks));
        let (listeners, drains, feeds) = (ArcSwap::default(), Drains::default(), Arc::default());
        Self { listeners, connections, drains, feeds, lookups, checks }
    }

    /// A successor serves: nothing is looked up any more, and only endpoints that still have connections are checked.
    pub(crate) fn hand_over(&self) {
        self.lookups.retire();
        self.checks.hand_over();
    }
}

#[cfg(test)]
impl SharedContext {
    /// Without connections.
    fn sample() -> Self {
        #[derive(Debug)]
        struct NoConnections;

        impl OpenConnections for NoConnections {
            fn probe(&self, _: EndpointId, _: Instant) -> usize {
                0
            }

            fn close_parked(&self, _: EndpointId, _: usize) -> usize {
                0
            }
        }

        let counters = crate::telemetry::Counters::new(0);
        let (lookups, checks) = (counters.lookup_lateness.clone(), counters.check_lateness.clone());
        Self::new(Arc::new(NoConnections), Lookups::new(lookups), Checks::new(checks))
    }
}

/// The first answers to the lookups of an upstream.
#[derive(Debug)]
pub(crate) struct FirstAnswers(Arc<Pool>);

impl FirstAnswers {
    /// Until all lookups, which began at this time, have an answer or have failed; also those of configurations that follow.
    pub(crate) async fn wait(self, begun: Instant) {
        // A lookup may have to wait for its turn, and a Service may never have an address.
        let _ = timeout_at(begun + 2 * LOOKUP_TIMEOUT, self.0.first_answers()).await;
    }
}

/// The endpoints of one route, for as long as the route is in use.
#[derive(Debug)]
pub(crate) struct Upstream {
    pool: Arc<Pool>,
    turn: AtomicUsize,
}

impl Upstream {
    /// Starts to resolve and check, within a tokio runtime. The endpoints of a predecessor, which is retired, keep their
    /// state.
    pub(crate) fn start(setup: Setup, context: &Arc<SharedContext>, predecessor: Option<&Self>) -> Self {
        let check = setup.settings.health_check.as_ref();
        if check.and_then(|check| check.tls.as_ref()).is_some_and(|tls| tls.ca_file.is_none()) {
            warn!(route = &*setup.route, "health checks accept any certificate (verify: false)");
        }
        if setup.settings.source == Source::Client && !may_be_transparent() {
            warn!(
                route = &*setup.route,
                "`source: client` requires CAP_NET_ADMIN, which this process does not have: connections will fail"
            );
        }
        if let Some(predecessor) = predecessor {
            predecessor.retire();
        }
        let predecessor = predecessor.map(|predecessor| &*predecessor.pool);
        let pool = Arc::new(Pool::new(setup, Arc::clone(context), predecessor));
        pool.start();
        if let Some(predecessor) = predecessor {
            predecessor.succeeded_by(&pool);
            pool.compare_certificates(&predecessor.setup.names);
        }
        Self { pool, turn: AtomicUsize::new(0) }
    }

    pub(crate) fn setup(&self) -> &Setup {
        &self.pool.setup
    }

    /// Checks again for loops, after our own listeners have changed.
    pub(crate) fn check_for_loops(&self) {
        self.pool.check_for_loops();
    }

    /// Whether it has hostnames or Services, whose addresses change.
    pub(crate) fn has_names(&self) -> bool {
        self.pool.has_names()
    }

    /// For names without an answer yet, if there are any.
    pub(crate) fn first_answers(&self) -> Option<FirstAnswers> {
        (!self.pool.has_answers()).then(|| FirstAnswers(Arc::clone(&self.pool)))
    }

    /// Stops resolving and checking. Connections that are already being set up can still be established.
    pub(crate) fn retire(&self) {
        self.pool.close();
    }

    /// Retires the upstream and removes its endpoints.
    pub(crate) fn remove(&self) {
        self.pool.remove();
    }

    /// The configured endpoints, each with its current addresses.
    pub(crate) fn destinations(&self) -> Vec<(&EndpointSettings, Vec<SocketAddr>)> {
        self.pool.destinations()
    }

    /// All endpoints that may have connections: current and former ones.
    pub(crate) fn endpoints_ever(&self) -> Vec<Arc<Endpoint>> {
        self.pool.endpoints_ever()
    }

    /// Endpoints that are no longer configured.
    pub(crate) fn former_endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.pool.former_endpoints()
    }

    /// Counts a connection that another process has made to this address. `None`: the upstream cannot have it. It can have
    /// any whose endpoint was removed but that stay open (`is_kept`).
    pub(crate) fn adopt(&self, address: SocketAddr, is_kept: bool) -> Option<EndpointSlot> {
        self.pool.adopt(address, is_kept).as_ref().map(EndpointSlot::take)
    }

    /// The current endpoints.
    pub(crate) fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.pool.endpoints()
    }

    /// Whether the endpoint gets no new connections, because an operator has drained it.
    pub(crate) fn is_drained(&self, endpoint: &Endpoint) -> bool {
        self.pool.is_drained(endpoint)
    }

    /// The endpoint's state in the status and in metrics: its health, or [`DRAINED`].
    pub(crate) fn state_label(&self, endpoint: &Endpoint) -> &'static str {
        if self.is_drained(endpoint) { DRAINED } else { endpoint.state().label() }
    }

    /// An operator has drained something of the route.
    pub(crate) fn drained(&self) {
        self.pool.drained();
    }

    /// An operator has resumed something of the route.
    pub(crate) fn resumed(&self) {
        self.pool.resumed();
    }

    /// Whether connections are sent to all endpoints, because none is ready.
    pub(crate) fn fails_open(&self) -> bool {
        self.pool.fails_open()
    }

    /// Which endpoints new connections go to.
    pub(crate) fn tier(&self) -> Tier {
        self.pool.tier()
    }

    /// Connects this client to an endpoint; if that fails, tries the next one, within the budget. Nothing is sent to any of them.
    pub(crate) async fn connect(&self, client: SocketAddr) -> Result<Connected, ConnectError> {
        let deadline = Instant::now() + self.pool.setup.settings.budget.timeout;
        let (pool, endpoints) = self.pool.resolved_by(deadline).await;
        let UpstreamSettings { balance, budget, slow_start, source, .. } = pool.setup.settings;
        let policy = Policy { balance, slow_start, turn: self.turn.fetch_add(1, Relaxed), client: client.ip() };
        let mut failure = ConnectError::none();
        let offered = pool.offer(&endpoints).inspect_err(|reason| failure.add_reason(reason));
        let mut untried = offered.unwrap_or_default();
        let mut failed = Vec::new();
        let mut failed_is_ipv4 = None;
        let mut trial = pool.trial(&endpoints, &untried);
        while let Some(index) = trial.take().or_else(|| balance::pick(&endpoints, &untried, failed_is_ipv4, &policy)) {
            let endpoint = &endpoints[index];
            let slot = EndpointSlot::take(endpoint);
            let started = Instant::now();
            let try_until = deadline.min(started + budget.per_try);
            let local = source.local(client, endpoint.address);
            let connecting = connect_to(endpoint.address, local, Purpose::Relay);
            let (kind, reason) = match timeout_at(try_until, connecting).await {
                Ok(Ok((stream, local))) => {
                    endpoint.mark_known();
                    let failed_attempts = (failure.tries > 0).then_some(failure);
                    return Ok(Connected { stream, local, slot, failed_attempts });
                }
                Ok(Err(error)) => (local.failure(&error), source.describe(&error, endpoint.address)),
                Err(_) => (Failure::TimedOut, source.describe_timeout().into()),
            };
            endpoint.mark_known();
            failure.add(kind, &endpoint.address, &reason);
            // An attempt that the total timeout has cut short says nothing about the endpoint. If both timeouts are equal, a
            // little of it has passed before.
            let had_time = try_until - started >= budget.per_try.mul_f64(0.9);
            if kind == Failure::Refused || (kind == Failure::TimedOut && had_time && source.timeouts_count()) {
                endpoint.report(&ProbeResult::Unreachable(reason));
            }
            untried.retain(|other| *other != index);
            failed.push(index);
            failed_is_ipv4 = Some(endpoint.address.is_ipv4());
            if Instant::now() >= deadline {
                break;
            }
        }
        pool.refresh_names_of(&endpoints, &failed);
        if endpoints.is_empty() && failure.tries == 0 {
            for endpoint in pool.endpoints().iter().filter(|endpoint| pool.is_drained(endpoint)) {
                failure.add(Failure::NoEndpoint, &endpoint.address, &"drained by an operator");
            }
            for address in pool.loops() {
                failure.add(Failure::Loop, &address, &"one of snigate's own listeners");
            }
            for (destination, reason) in pool.lookup_failures() {
                failure.add(Failure::NoEndpoint, &destination, &reason);
            }
        }
        Err(failure)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.retire();
    }
}

/// With 10% jitter, so that tasks that started together spread out.
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) stream: TcpStream,
    /// The local address.
    pub(crate) local: SocketAddr,
    pub(crate) slot: EndpointSlot,
    /// The endpoints that failed before.
    pub(crate) failed_attempts: Option<ConnectError>,
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tokio::net::TcpListener;

    use super::*;
    use crate::text::Destination;

    fn service(name: &str) -> Destination {
        Destination::service("default", name, 443)
    }

    fn upstream(services: &[&str], split: Option<Split>, context: &Arc<SharedContext>) -> Upstream {
        let endpoint = |name: &&str| EndpointSettings { destination: service(name), share: Share::DEFAULT };
        let settings = UpstreamSettings { split, ..UpstreamSettings::sample(services.iter().map(endpoint).collect()) };
        Upstream::start(Setup { route: "a".into(), names: Vec::new(), settings }, context, None)
    }

    /// Where connections are accepted, and dropped.
    async fn listener() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        address
    }

    const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7);

    #[tokio::test]
    async fn i03_published_addresses_come_and_go_and_connections_stay() {
        let context = Arc::new(SharedContext::sample());
        let (one, two) = (listener().await, listener().await);
        context.feeds.publish([(service("api"), vec![one])]);
        let upstream = upstream(&["api"], None, &context);
        let connected = upstream.connect(CLIENT).await.unwrap();
        assert_eq!(connected.slot.endpoint().address, one);

        context.feeds.publish([(service("api"), vec![two])]);
        assert_eq!(upstream.connect(CLIENT).await.unwrap().slot.endpoint().address, two);
        let former = connected.slot.endpoint();
        assert!(!former.is_present() && former.connections() == 1 && former.is_kept());

        context.feeds.publish([(service("api"), vec![])]);
        let refused = upstream.connect(CLIENT).await.unwrap_err();
        assert_eq!(refused.kind, Failure::NoEndpoint);
        assert_eq!(refused.to_string(), "1 failed; default/api:443: the Service has no ready endpoint");

        context.feeds.publish([(service("api"), vec![one])]);
        assert!(former.is_present(), "it has kept its state");
    }

    #[tokio::test]
    async fn i04_a_split_is_by_weight_and_invalid_backends_refuse_their_share() {
        let context = Arc::new(SharedContext::sample());
        let (one, two) = (listener().await, listener().await);
        context.feeds.publish([(service("one"), vec![one]), (service("two"), vec![two]), (service("none"), vec![])]);
        let backend = |weight, destination| Backend { weight, destination };
        let split = Split(Box::new([
            backend(50, Ok(0)),
            backend(0, Err("never".into())),
            backend(20, Ok(1)),
            backend(10, Ok(2)),
            backend(20, Err("default/gone: not found".into())),
        ]));
        let upstream = upstream(&["one", "two", "none"], Some(split), &context);
        fastrand::seed(7);
        let mut counts: HashMap<String, u32> = HashMap::new();
        for _ in 0..500 {
            let result = upstream.connect(CLIENT).await;
            let key = result.map_or_else(|refused| refused.to_string(), |to| to.slot.endpoint().address.to_string());
            *counts.entry(key).or_default() += 1;
        }
        for (key, expected) in [
            (one.to_string(), 250),
            (two.to_string(), 100),
            ("1 failed; default/none:443: the Service has no ready endpoint".into(), 50),
            ("1 failed; default/gone: not found".into(), 100),
        ] {
            let count = counts.remove(&key).unwrap_or(0);
            assert!(count.abs_diff(expected) < 50, "{key}: {count}");
        }
        assert!(counts.is_empty(), "{counts:?}");
    }

    #[tokio::test]
    async fn a_split_without_any_backend_refuses_all() {
        let context = Arc::new(SharedContext::sample());
        let all_invalid = Split(Box::new([Backend { weight: 1, destination: Err("default/gone: not found".into()) }]));
        let no_weight = Split(Box::new([Backend { weight: 0, destination: Err("never".into()) }]));
        for (split, reason) in [(all_invalid, "default/gone: not found"), (no_weight, "no backend has a weight")] {
            let refused = upstream(&[], Some(split), &context).connect(CLIENT).await.unwrap_err();
            assert_eq!((refused.kind, &*refused.last), (Failure::NoEndpoint, reason));
        }
    }
}
