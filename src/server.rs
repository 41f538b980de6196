//! Puts the rooms together: binds, spawns, drains. The one place that sees the whole configuration.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::accept::{self, BindError};
use crate::account::Counters;
use crate::admin::{self, State};
use crate::config::{Config, Limits, Timeouts};
use crate::connection::{self, Route, Snapshot};
use crate::relay::{self, Deadlines, Engine};
use crate::roster::Roster;
use crate::route::RouteTable;
use crate::upstream::Upstream;
use crate::upstream::health::MAX_CHECKS;

/// A running server.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    counters: Arc<Counters>,
    drain_timeout: Duration,
    /// No new connections.
    draining: CancellationToken,
    roster: Arc<Roster>,
    acceptors: Vec<JoinHandle<()>>,
    connections: TaskTracker,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is not to be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The configuration asks for more than the machine allows.
    #[error(
        "limits.connections: {wanted} connections need {needed} file descriptors, but the hard limit of this process is {available}; raise it (LimitNOFILE=, ulimit -Hn) or leave the key out"
    )]
    Descriptors {
        /// As configured.
        wanted: usize,
        /// For that many, and for everything else.
        needed: u64,
        /// `RLIMIT_NOFILE`
        available: u64,
    },
}

impl StartError {
    /// Whether another configuration would help.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Bind(_) => false,
            Self::Descriptors { .. } => true,
        }
    }
}

impl Server {
    /// Binds all addresses and begins to serve. Must be called within a tokio runtime.
    pub fn start(config: Config) -> Result<Self, StartError> {
        // Every key is named here, so that one that is read but not used does not compile.
        let Config { listeners, routes, timeouts, tcp, user_timeout, limits, relay, workers: _, admin, log } = config;
        let Timeouts { hello, idle, half_close, drain } = timeouts;
        let Limits { connections, hello_bytes } = limits;

        let capacity = capacity(connections, listeners.len(), relay)?;
        // Each listener holds a permit while it waits, and only one of these is for the next connection.
        let permits = Arc::new(Semaphore::new(capacity + listeners.len() - 1));
        let mut sockets = Vec::new();
        for listener in &listeners {
            sockets.push(accept::bind(listener.address, &tcp)?);
        }
        let admin = admin.map(|address| accept::bind(address, &tcp)).transpose()?;
        let bound: Arc<[SocketAddr]> = sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect();

        let names: Box<[Box<str>]> = listeners.iter().map(|listener| listener.name.as_str().into()).collect();
        let counters = Arc::new(Counters::new(names, log.refusals_per_second));
        let mut table = RouteTable::default();
        let mut targets = Vec::new();
        let roster = Arc::<Roster>::default();
        for route in routes {
            let route_counters = counters.new_route(&route.name);
            let upstream = Upstream::start(
                &route.name,
                &route.patterns,
                route.upstream,
                tcp,
                Arc::clone(&bound),
                Arc::clone(&roster),
            );
            let target = Arc::new(Route { upstream, counters: route_counters });
            targets.push(Arc::clone(&target));
            let inserted = table.insert(&route.patterns, &route.matchers, &target);
            debug_assert!(inserted.is_ok(), "conflicts are found when the configuration is read");
        }
        let snapshot = Arc::new(Snapshot {
            routes: table,
            refuse: listeners.iter().map(|listener| listener.refuse).collect(),
            hello_timeout: hello,
            hello_limit: hello_bytes,
            engine: relay,
            deadlines: Arc::new(Deadlines { idle, half_close, stalled: user_timeout }),
            counters: Arc::clone(&counters),
        });

        let mut server = Self {
            addresses: Vec::new(),
            admin: admin.as_ref().and_then(|socket| socket.local_addr().ok()),
            counters,
            drain_timeout: drain,
            draining: CancellationToken::new(),
            roster,
            acceptors: Vec::new(),
            connections: TaskTracker::new(),
        };
        for (number, socket) in sockets.into_iter().enumerate() {
            server.listen(number, socket, &snapshot, &permits);
        }
        if let Some(socket) = admin {
            server.listen_admin(socket, targets);
        }
        Ok(server)
    }

    fn listen(&mut self, number: usize, socket: TcpListener, snapshot: &Arc<Snapshot>, permits: &Arc<Semaphore>) {
        if let Ok(address) = socket.local_addr() {
            info!(listener = self.counters.listener(number), %address, "listening");
            self.addresses.push(address);
        }
        let counters = Arc::clone(&self.counters);
        let failed = move |error: &io::Error| {
            let label = accept::error_label(error);
            if counters.accept_error(label) {
                warn!(error = label, reason = %error, "cannot accept; trying again");
            }
        };
        let (snapshot, connections, roster) =
            (Arc::clone(snapshot), self.connections.clone(), Arc::clone(&self.roster));
        let serve = move |client, peer, permit| {
            // Not within another future: that would hold it twice.
            connections.spawn(connection::serve(client, peer, number, Arc::clone(&snapshot), roster.enter(), permit));
        };
        let counters = Arc::clone(&self.counters);
        let full = move || {
            if counters.full() {
                warn!("limits.connections is reached; new clients wait");
            }
        };
        let events = accept::Events { failed, full };
        let acceptor = accept::run(socket, Arc::clone(permits), self.draining.clone(), events, serve);
        self.acceptors.push(tokio::spawn(acceptor));
    }

    fn listen_admin(&self, socket: TcpListener, routes: Vec<Arc<Route>>) {
        if let Some(address) = self.admin {
            info!(listener = "_admin", %address, "listening");
        }
        let state = State { routes, counters: Arc::clone(&self.counters), draining: self.draining.clone() };
        tokio::spawn(admin::run(socket, state));
    }

    /// Where it listens, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where the admin listener is, if there is one.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// How many connections are open.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Accepts no more, lets connections run for `timeouts.drain`, then closes those that are left; how many these
    /// were.
    pub async fn drain(&mut self) -> usize {
        let deadline = Instant::now() + self.drain_timeout;
        self.draining.cancel();
        for acceptor in std::mem::take(&mut self.acceptors) {
            // A panic of the loop has been logged; there is nothing left to wait for.
            let _ = acceptor.await;
        }
        self.connections.close();
        info!(connections = self.connections.len(), timeout_s = self.drain_timeout.as_secs_f64(), "draining");
        let mut cut = 0;
        if timeout_at(deadline, self.connections.wait()).await.is_err() {
            cut = self.connections.len();
            self.roster.end_all();
            self.connections.wait().await;
        }
        self.counters.refusal_log.flush();
        info!(cut, "drained");
        cut
    }
}

/// Descriptors for everything but connections: the admin's, health checks, name resolution, logs.
const RESERVED_DESCRIPTORS: u64 = 61 + MAX_CHECKS as u64;
/// Its own, and those of a connection that it has accepted beyond the limit.
const DESCRIPTORS_PER_LISTENER: u64 = 3;
/// More are not faster: a pipe is only in use while bytes are in it.
const MAX_PIPES: u64 = 64;
const DESCRIPTORS_PER_PIPE: u64 = 2;
/// A connection has two sockets.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;
/// Where there is no limit to derive one from.
const MAX_CONNECTIONS: usize = 1 << 20;

/// How many connections may be open at once. Raises the soft limit on descriptors to the hard one.
fn capacity(configured: Option<usize>, listeners: usize, engine: Engine) -> Result<usize, StartError> {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!(%error, "cannot raise RLIMIT_NOFILE");
    }
    let available = getrlimit(Resource::Nofile).current;
    let pipes = match engine {
        Engine::Copy => 0,
        Engine::Auto | Engine::Splice => available.map_or(MAX_PIPES, |available| MAX_PIPES.min(available / 32)),
    };
    relay::set_pipe_limit(usize::try_from(pipes).unwrap_or(0));
    let reserved = RESERVED_DESCRIPTORS + DESCRIPTORS_PER_LISTENER * listeners as u64 + DESCRIPTORS_PER_PIPE * pipes;
    let capacity = match (configured, available) {
        (Some(wanted), Some(available)) => {
            let needed = reserved + DESCRIPTORS_PER_CONNECTION * wanted as u64;
            if needed > available {
                return Err(StartError::Descriptors { wanted, needed, available });
            }
            wanted
        }
        (Some(wanted), None) => wanted,
        (None, Some(available)) => derived_capacity(available, reserved),
        (None, None) => MAX_CONNECTIONS,
    };
    info!(connections = capacity, descriptors = available, "connection limit");
    Ok(capacity)
}

fn derived_capacity(descriptors: u64, reserved: u64) -> usize {
    let reserved = reserved.min(descriptors / 4);
    let fitting = (descriptors - reserved) / DESCRIPTORS_PER_CONNECTION;
    usize::try_from(fitting).unwrap_or(MAX_CONNECTIONS).clamp(1, MAX_CONNECTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_limit_follows_from_the_descriptors() {
        for (descriptors, connections) in [(20_000, 9968), (1024, 480), (64, 24), (3, 1), (0, 1), (u64::MAX, 1 << 20)] {
            assert_eq!(derived_capacity(descriptors, 64), connections, "{descriptors} descriptors");
        }
    }
}
