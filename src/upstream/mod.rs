//! Where a route leads: a pool of endpoints that is resolved, checked and balanced in the background, and how one of
//! them is reached.
//!
//! `resolve` and [`health`] publish into the pool and know nothing of each other, nor of connections. A connection
//! asks the pool for the next endpoint, tells it what happened, and holds a [`EndpointSlot`] there for as long as it lasts.

mod balance;
mod certificate;
mod endpoint;
mod failure;
pub(crate) mod health;
mod loop_check;
mod pool;
mod resolve;

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

pub(crate) use self::balance::Balance;
pub(crate) use self::certificate::{Certificate, EXPIRES_SOON_SECONDS};
pub(crate) use self::endpoint::{Endpoint, EndpointId, EndpointSlot, LastCheck};
pub(crate) use self::failure::{ConnectError, Failure, plain};
pub(crate) use self::health::{HealthCheck, HttpCheck, TlsCheck};
pub(crate) use self::health::{ProbeResult, State, Thresholds};
pub(crate) use self::loop_check::{LocalAddresses, OwnListeners, arrives_at};
use self::pool::Pool;
pub(crate) use self::resolve::lookup;
use crate::name::NamePattern;
use crate::proxy_protocol;
use crate::relay::tcp::TcpOptions;
use crate::text::Destination;

/// How a route's endpoints are found, kept and reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct UpstreamSettings {
    /// At least one; no two the same.
    pub(crate) destinations: Vec<Destination>,
    /// Which one is next.
    pub(crate) balance: Balance,
    /// For reaching one.
    pub(crate) budget: ConnectBudget,
    /// From the return of an endpoint to its full share.
    pub(crate) slow_start: Duration,
    /// How long a dead endpoint keeps its connections; `None`: for as long as they last.
    pub(crate) dead_grace: Option<Duration>,
    /// What becomes of the connections of an endpoint, or of all, when the configuration no longer has it.
    pub(crate) on_remove: OnRemove,
    /// How often names are looked up.
    pub(crate) resolve_every: Duration,
    /// How endpoints are told who the client is, if they expect that.
    pub(crate) proxy_protocol: Option<proxy_protocol::Version>,
    /// How endpoints are checked; `None`: only what connections find out counts.
    pub(crate) health_check: Option<HealthCheck>,
}

/// What becomes of connections to an endpoint that the configuration no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OnRemove {
    /// They may last for `timeouts.drain`.
    Drain,
    /// They stay.
    Keep,
    /// They are closed.
    Cut,
}

impl OnRemove {
    /// As it is configured.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Keep => "keep",
            Self::Cut => "cut",
        }
    }
}

/// How long may be spent on reaching an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConnectBudget {
    /// In all, waiting for the first answer to a name included.
    pub(crate) timeout: Duration,
    /// On one address.
    pub(crate) per_try: Duration,
}

/// What a route says of its upstream: two with the same setup do the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    /// The route's name, for logs.
    pub(crate) route: Box<str>,
    /// What its clients ask for, and certificates should cover.
    pub(crate) names: Vec<NamePattern>,
    /// As configured.
    pub(crate) settings: UpstreamSettings,
}

/// The open connections, as far as pools need to know them.
pub(crate) trait OpenConnections: Debug + Send + Sync {
    /// Has those of this endpoint, which cannot be reached since then, find out whether their peer still answers; how many
    /// these are.
    fn probe(&self, endpoint: EndpointId, since: Instant) -> usize;
}

/// What all upstreams have in common, as it is now.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// For the connections that are made.
    pub(crate) tcp: ArcSwap<TcpOptions>,
    /// Our own addresses, which are no upstreams.
    pub(crate) listeners: ArcSwap<Vec<SocketAddr>>,
    /// All that are open.
    pub(crate) connections: Arc<dyn OpenConnections>,
}

impl Surroundings {
    pub(crate) fn new(connections: Arc<dyn OpenConnections>) -> Self {
        Self { tcp: ArcSwap::default(), listeners: ArcSwap::default(), connections }
    }
}

/// The endpoints of one route, for as long as the route is in use.
#[derive(Debug)]
pub(crate) struct Upstream {
    pool: Arc<Pool>,
    turn: AtomicUsize,
    resolvers: Vec<AbortHandle>,
}

impl Upstream {
    /// Begins to resolve and to check, within a tokio runtime. The endpoints of a predecessor keep what is known of them;
    /// it is retired.
    pub(crate) fn start(setup: Setup, surroundings: &Arc<Surroundings>, predecessor: Option<&Self>) -> Self {
        let check = setup.settings.health_check.as_ref();
        if check.and_then(|check| check.tls.as_ref()).is_some_and(|tls| tls.ca_file.is_none()) {
            warn!(
                route = &*setup.route,
                "health checks believe any certificate (verify: false): whoever answers is taken for the API server"
            );
        }
        if let Some(predecessor) = predecessor {
            predecessor.retire();
        }
        let pool =
            Arc::new(Pool::new(setup, Arc::clone(surroundings), predecessor.map(|predecessor| &*predecessor.pool)));
        pool.begin();
        let settings = &pool.setup.settings;
        let mut resolvers = Vec::new();
        for (number, destination) in settings.destinations.iter().enumerate() {
            if let Some((host, port)) = destination.name() {
                let told = Arc::clone(&pool);
                let lookups = resolve::run(host.into(), port, settings.resolve_every, move |answer| {
                    told.answered(number, answer)
                });
                resolvers.push(tokio::spawn(lookups).abort_handle());
            }
        }
        Self { pool, turn: AtomicUsize::new(0), resolvers }
    }

    /// What it depends on.
    pub(crate) fn setup(&self) -> &Setup {
        &self.pool.setup
    }

    /// The surroundings have changed.
    pub(crate) fn check_for_loops(&self) {
        self.pool.check_for_loops();
    }

    /// No longer resolves or checks. Connections that came before may still be made, also those that wait for the first
    /// answer to a name.
    pub(crate) fn retire(&self) {
        self.pool.close();
    }

    /// The same, and no other upstream has its endpoints.
    pub(crate) fn remove(&self) {
        self.pool.remove();
    }

    /// The destinations, each with the addresses that it stands for now.
    pub(crate) fn destinations(&self) -> Vec<(&Destination, Vec<SocketAddr>)> {
        self.pool.destinations()
    }

    /// All endpoints that may have connections: those there are now, and those that have left.
    pub(crate) fn endpoints_ever(&self) -> Vec<Arc<Endpoint>> {
        self.pool.endpoints_ever()
    }

    /// The endpoints there are now.
    pub(crate) fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.pool.endpoints()
    }

    /// Whether connections are tried with all endpoints, because none is ready.
    pub(crate) fn fails_open(&self) -> bool {
        self.pool.fails_open()
    }

    /// Connects to the first endpoint that answers, trying every one in turn within the budget. Nothing has been sent to
    /// any of them.
    pub(crate) async fn connect(&self) -> Result<Connected, ConnectError> {
        let UpstreamSettings { balance, budget, slow_start, .. } = self.pool.setup.settings;
        let deadline = Instant::now() + budget.timeout;
        let endpoints = self.pool.endpoints_by(deadline).await;
        let turn = self.turn.fetch_add(1, Relaxed);
        let tcp = **self.pool.surroundings.tcp.load();
        let mut failure = ConnectError::none();
        let mut untried: Vec<usize> = (0..endpoints.len()).collect();
        let mut failed_is_ipv4 = None;
        let mut trial = self.pool.trial(&endpoints);
        while let Some(number) =
            trial.take().or_else(|| balance::pick(&endpoints, &untried, failed_is_ipv4, balance, turn, slow_start))
        {
            let endpoint = &endpoints[number];
            let slot = EndpointSlot::take(endpoint);
            let begun = Instant::now();
            let try_until = deadline.min(begun + budget.per_try);
            let (kind, reason) = match timeout_at(try_until, connect_to(endpoint.address, &tcp)).await {
                Ok(Ok((stream, local))) => {
                    endpoint.was_tried();
                    let failed_attempts = (failure.tries > 0).then_some(failure);
                    return Ok(Connected { stream, local, slot, failed_attempts });
                }
                Ok(Err(error)) => (Failure::of(&error), plain(&error)),
                Err(_) => (Failure::TimedOut, "no answer in time".into()),
            };
            endpoint.was_tried();
            failure.or(kind, &endpoint.address, &reason);
            // Late is who had the time that he should have.
            let had_time = try_until >= begun + budget.per_try;
            if kind == Failure::Refused || (kind == Failure::TimedOut && had_time) {
                endpoint.report(&ProbeResult::Unreachable(reason));
            }
            untried.retain(|other| *other != number);
            failed_is_ipv4 = Some(endpoint.address.is_ipv4());
            if Instant::now() >= deadline {
                break;
            }
        }
        if endpoints.is_empty() {
            for address in self.pool.loops() {
                failure.or(Failure::Loop, &address, &"one of our own listeners");
            }
            for (destination, reason) in self.pool.lookup_failures() {
                failure.or(Failure::NoEndpoint, &destination, &reason);
            }
        }
        Err(failure)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.retire();
        for resolver in &self.resolvers {
            resolver.abort();
        }
    }
}

/// Connects to one address, as connections are; the stream and its local address.
pub(crate) async fn connect_to(address: SocketAddr, tcp: &TcpOptions) -> io::Result<(TcpStream, SocketAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    tcp.apply(&socket)?;
    let stream = socket.connect(address).await?;
    let local = local_address(&stream, address)?;
    Ok((stream, local))
}

/// The local address of a stream that was to connect to `address`, unless it is connected to itself: where nobody listens on a
/// port of this machine, the kernel may do that (a simultaneous open).
fn local_address(stream: &TcpStream, address: SocketAddr) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    // However it is written: `::ffff:192.0.2.1` is 192.0.2.1, and 0.0.0.0 any address of this machine.
    let (ip, wanted) = (local.ip().to_canonical(), address.ip().to_canonical());
    let is_itself = local.port() == address.port() && (ip == wanted || wanted.is_unspecified());
    if is_itself { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok(local) }
}

/// Give or take a tenth, so that what was configured together does not happen at the same moment for ever.
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// An endpoint that answered.
#[derive(Debug)]
pub(crate) struct Connected {
    /// The connection.
    pub(crate) stream: TcpStream,
    /// Its local address.
    pub(crate) local: SocketAddr,
    /// Its slot there.
    pub(crate) slot: EndpointSlot,
    /// The endpoints that failed before it.
    pub(crate) failed_attempts: Option<ConnectError>,
}
