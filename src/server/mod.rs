//! Puts the rooms together: binds, spawns, reloads, drains. The one place that sees the whole configuration.

mod capacity;
mod generation;
mod listening;
mod memory;

use std::collections::HashSet;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use arc_swap::ArcSwap;
use socket2::Socket;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use self::capacity::{Capacity, Share};
pub(crate) use self::generation::Changes;
use self::generation::{Generation, Next};
use self::listening::{Acceptor, Listening, Opened};
use self::memory::Memory;
use crate::admin::{self, Fixed, Hosts, ListenerAddress, State, View};
use crate::config::{self, Config, Limits, Log, Timeouts};
use crate::connection::Snapshot;
use crate::connection::admission::{SourceLimits, SourceTable};
use crate::connection::registry::Registry;
use crate::listener::accept::Stop;
use crate::listener::{BindError, InheritedSocket};
use crate::relay::budget;
use crate::relay::tcp::TcpOptions;
use crate::relay::{Deadlines, Engine};
use crate::telemetry::Counters;
use crate::upstream::Surroundings;

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    counters: Arc<Counters>,
    surroundings: Arc<Surroundings>,
    registry: Arc<Registry>,
    connections: TaskTracker,
    capacity: Capacity,
    source_table: Arc<SourceTable>,
    generation: ArcSwap<Generation>,
    admin_view: Arc<ArcSwap<View>>,
    listeners: Vec<(Listening, Arc<ArcSwap<Snapshot>>)>,
    admin: Option<Listening>,
    /// Removed listeners that serve their queues.
    closing: TaskTracker,
    admin_hosts: Arc<ArcSwap<Hosts>>,
    timeouts: Timeouts,
    fixed: Fixed,
    /// Readiness has gone.
    draining: CancellationToken,
}

/// The admin's listener, in logs and at a hand-over. No other one has such a name.
const ADMIN: &str = "_admin";

/// What cannot change while the process runs, by key.
pub(crate) fn fixed(config: &Config) -> Fixed {
    let Config { workers, sandbox, log: Log { format, level: _, refusals_per_second: _ }, .. } = config;
    let workers = workers.map_or_else(|| "auto".into(), |workers| workers.to_string());
    [("workers", workers), ("log.format", format.to_string()), ("sandbox", sandbox.label().into())]
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
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
    pub(crate) fn is_configuration(&self) -> bool {
        match self {
            Self::Bind(_) => false,
            Self::Descriptors { .. } => true,
        }
    }
}

/// Why the running configuration stays.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    /// As at a start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A key that is only read at the start.
    #[error(
        "{key} cannot change from {running} to {wanted} while snigate runs; restart it, or upgrade it with SIGUSR2"
    )]
    Fixed {
        /// Which one.
        key: &'static str,
        /// What it is.
        running: String,
        /// What it should become.
        wanted: String,
    },
}

/// All that a configuration needs and might not get.
struct Prepared {
    memory: Memory,
    share: Share,
    listeners: Vec<Source>,
    admin: Option<Source>,
}

enum Source {
    /// The running listener with this number.
    Running(usize),
    New(Opened),
}

/// All that has no sockets of its own.
struct Settings {
    engine: Engine,
    hello: Duration,
    hello_limit: usize,
    source_limits: SourceLimits,
    deadlines: Arc<Deadlines>,
    tcp: TcpOptions,
}

impl Server {
    /// Binds all addresses, or takes them over from what was inherited, and begins to serve; which of what was inherited it
    /// has taken over. The others are closed. Must be called within a tokio runtime.
    pub(crate) fn start(mut config: Config, inherited: Vec<InheritedSocket>) -> Result<(Self, Vec<bool>), StartError> {
        capacity::raise_limit();
        let counters = Arc::new(Counters::new(config.log.refusals_per_second));
        let registry = Arc::<Registry>::default();
        let mut server = Self {
            counters,
            surroundings: Arc::new(Surroundings::new(Arc::<Registry>::clone(&registry))),
            registry,
            connections: TaskTracker::new(),
            capacity: Capacity::default(),
            source_table: Arc::default(),
            generation: ArcSwap::default(),
            admin_view: Arc::default(),
            listeners: Vec::new(),
            admin: None,
            closing: TaskTracker::new(),
            admin_hosts: Arc::default(),
            timeouts: config.timeouts,
            fixed: fixed(&config),
            draining: CancellationToken::new(),
        };
        let (prepared, taken) = server.prepare(&config, inherited)?;
        let at = server.at(&config, &prepared);
        server.surroundings.tcp.store(Arc::new(config.tcp));
        let routes = mem::take(&mut config.routes);
        let Next { generation, .. } =
            generation::build_next(&Generation::default(), routes, at, &server.counters, &server.surroundings);
        let closed = server.commit(config, prepared, Arc::new(generation));
        debug_assert!(closed.is_empty(), "there was nothing before");
        server.counters.reloads.applied();
        Ok((server, taken))
    }

    /// Takes this configuration in place of the running one, as a whole or not at all. Connections and what both
    /// configurations have stay as they are.
    pub(crate) async fn reload(&mut self, mut config: Config) -> Result<Changes, ReloadError> {
        if let Some(((key, running), (_, wanted))) =
            self.fixed.iter().zip(&fixed(&config)).find(|(running, wanted)| running != wanted)
        {
            return Err(ReloadError::Fixed { key, running: running.clone(), wanted: wanted.clone() });
        }
        let (prepared, _) = self.prepare(&config, Vec::new())?;

        let at = self.at(&config, &prepared);
        self.surroundings.tcp.store(Arc::new(config.tcp));
        let before = self.generation.load_full();
        let (old, routes) = (Arc::clone(&before), mem::take(&mut config.routes));
        let (counters, surroundings) = (Arc::clone(&self.counters), Arc::clone(&self.surroundings));
        // For 100,000 routes this takes long enough to be felt by connections.
        let work = move || generation::build_next(&old, routes, at, &counters, &surroundings);
        let built = tokio::task::spawn_blocking(work).await;
        let Next { generation, changes, removed } = match built {
            Ok(built) => built,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let closed = self.commit(config, prepared, Arc::new(generation));
        for listener in closed {
            info!(address = %listener.address, "no longer listening");
            self.closing.spawn(listener.close());
        }
        tokio::spawn(generation::retire(before, removed, Arc::clone(&self.registry), self.timeouts.drain));
        self.counters.reloads.succeed();
        Ok(changes)
    }

    /// Waits until the listeners that were removed have served their queues: their addresses are free then.
    pub(crate) async fn settle(&self) {
        self.closing.close();
        self.closing.wait().await;
        self.closing.reopen();
    }

    /// How many of the running routes this configuration does not have, and how many there are.
    pub(crate) fn removed_by(&self, config: &Config) -> (usize, usize) {
        let kept: HashSet<&str> = config.routes.iter().map(|route| &*route.name).collect();
        let routes = &self.generation.load().view.routes;
        let removed = routes.iter().filter(|route| !kept.contains(route.counters.name())).count();
        (removed, routes.len())
    }

    /// All that can fail, and changes nothing; and which of what was inherited is needed.
    fn prepare(&self, config: &Config, inherited: Vec<InheritedSocket>) -> Result<(Prepared, Vec<bool>), StartError> {
        let Limits { connections, hello_bytes: _, buffer_bytes: _, source: _ } = config.limits;
        let memory = Memory::read();
        let share = capacity::share(connections, config.listeners.len(), config.relay, memory)?;

        let wanted: Vec<(&str, SocketAddr)> = config
            .listeners
            .iter()
            .map(|listener| (&*listener.name, listener.address))
            .chain(config.admin.as_ref().map(|admin| (ADMIN, admin.address)))
            .collect();
        let names: Vec<Arc<Snapshot>> = self.listeners.iter().map(|(_, snapshot)| snapshot.load_full()).collect();
        let names = names.iter().map(|snapshot| &*snapshot.listener.name).chain(self.admin.as_ref().map(|_| ADMIN));
        let running: Vec<&Listening> =
            self.listeners.iter().map(|(listening, _)| listening).chain(&self.admin).collect();
        let present: Vec<_> = names.zip(&running).map(|(name, listening)| (Some(name), listening.configured)).collect();
        let mut kept = listening::assign(&wanted, &present);
        for (kept, (name, _)) in kept.iter_mut().zip(&wanted) {
            // The admin's socket accepts for the admin only; where an address changes hands, a new one is bound beside it.
            *kept = kept.filter(|number| (*name == ADMIN) == (present[*number].0 == Some(ADMIN)));
        }
        let passed: Vec<_> = inherited.iter().map(|socket| (socket.name.as_deref(), socket.address)).collect();
        let taken_over = listening::assign(&wanted, &passed);

        let is_kept = |number: usize| kept.contains(&Some(number));
        let mut leaving: Vec<(SocketAddr, Socket)> = Vec::new();
        for (_, listening) in running.iter().enumerate().filter(|(number, _)| !is_kept(*number)) {
            leaving.extend(listening.socket.try_clone().map(|socket| (listening.address, socket)));
        }
        let taken: Vec<bool> = (0..inherited.len()).map(|number| taken_over.contains(&Some(number))).collect();
        let mut inherited: Vec<Option<InheritedSocket>> = inherited.into_iter().map(Some).collect();
        for socket in
            inherited.iter_mut().zip(&taken).filter(|(_, is_taken)| !**is_taken).filter_map(|(one, _)| one.take())
        {
            info!(address = %socket.address, "inherited, but not configured: closed");
            leaving.push((socket.address, socket.socket.into()));
        }

        let mut listeners = Vec::new();
        for (number, (_, address)) in wanted.into_iter().enumerate() {
            let inherited = taken_over[number].and_then(|number| inherited[number].take());
            listeners.push(match (kept[number], inherited) {
                (Some(number), _) => Source::Running(number),
                (None, Some(socket)) => Source::New(listening::take_over(socket)?),
                (None, None) => Source::New(listening::open(address, &leaving, &config.tcp)?),
            });
        }
        let admin = if config.admin.is_some() { listeners.pop() } else { None };
        Ok((Prepared { memory, share, listeners, admin }, taken))
    }

    /// Where the listeners will be.
    fn at(&self, config: &Config, prepared: &Prepared) -> Vec<ListenerAddress> {
        let addresses = prepared.listeners.iter().map(|source| match source {
            Source::Running(number) => self.listeners[*number].0.address,
            Source::New(opened) => opened.address,
        });
        let at = |(listener, address): (&config::Listener, _)| ListenerAddress {
            name: listener.name.as_str().into(),
            configured: listener.address,
            address,
        };
        config.listeners.iter().zip(addresses).map(at).collect()
    }

    /// What cannot fail. The listeners that are no longer configured are left to be closed.
    fn commit(&mut self, config: Config, prepared: Prepared, generation: Arc<Generation>) -> Vec<Listening> {
        // Every key is named here, so that one that is read but not used does not compile.
        let Config {
            digest,
            listeners,
            routes: _,
            timeouts,
            tcp,
            user_timeout,
            limits,
            relay,
            workers: _,
            watch: _,
            admin,
            sandbox: _,
            log,
        } = config;
        let Timeouts { hello, idle, half_close, drain: _, upgrade_drain: _, shutdown_delay: _ } = timeouts;
        let Limits { connections: _, hello_bytes, buffer_bytes, source } = limits;
        let Log { format: _, level: _, refusals_per_second } = log;
        let settings = Settings {
            engine: relay,
            hello,
            hello_limit: hello_bytes,
            source_limits: source,
            deadlines: Arc::new(Deadlines { idle, half_close, stalled: user_timeout }),
            tcp,
        };
        self.counters.line_limit.set_rate(refusals_per_second);
        self.counters.reloads.digest.store(digest.unwrap_or(0), Relaxed);
        budget::set_limit(buffer_bytes.unwrap_or_else(|| prepared.memory.buffer_bytes()));
        self.capacity.set(prepared.share);
        self.counters.connections_limit.store(self.capacity.connections as u64, Relaxed);
        self.timeouts = timeouts;

        let mut closed = self.listen(listeners, prepared.listeners, &settings, &generation);
        self.admin_view.store(Arc::clone(&generation.view));
        self.generation.store(generation);
        if let Some(admin) = admin {
            self.admin_hosts.store(Arc::new(admin.hosts));
        }
        if !matches!(prepared.admin, Some(Source::Running(_))) {
            closed.extend(self.admin.take());
        }
        if let Some(Source::New(opened)) = prepared.admin {
            self.admin = self.listen_admin(opened);
        }
        closed
    }

    /// From here on connections are served as configured.
    fn listen(
        &mut self,
        configured: Vec<config::Listener>,
        sources: Vec<Source>,
        settings: &Settings,
        generation: &Generation,
    ) -> Vec<Listening> {
        let mut running: Vec<Option<_>> = mem::take(&mut self.listeners).into_iter().map(Some).collect();
        let acceptor = Acceptor {
            permits: Arc::clone(&self.capacity.permits),
            counters: Arc::clone(&self.counters),
            connections: self.connections.clone(),
            registry: Arc::clone(&self.registry),
        };
        for (
            listener_index,
            (config::Listener { name, address: _, refuse: reject_with, balancers, ip_literal, sources }, source),
        ) in configured.into_iter().zip(sources).enumerate()
        {
            let snapshot = Arc::new(Snapshot {
                listener: self.counters.listener(&name),
                listener_index,
                reject_with,
                balancers,
                ip_literal,
                sources,
                source_limits: settings.source_limits,
                source_table: Arc::clone(&self.source_table),
                routes: Arc::clone(&generation.table),
                hello_timeout: settings.hello,
                hello_limit: settings.hello_limit,
                deadlines: Arc::clone(&settings.deadlines),
                engine: settings.engine,
            });
            match source {
                Source::Running(number) => {
                    let Some((listening, current)) = running[number].take() else { continue };
                    listening.set_options(&settings.tcp);
                    current.store(snapshot);
                    self.listeners.push((listening, current));
                }
                Source::New(opened) => {
                    let current = Arc::new(ArcSwap::new(snapshot));
                    if let Some(listening) = acceptor.accept(opened, Arc::clone(&current)) {
                        listening.set_options(&settings.tcp);
                        self.listeners.push((listening, current));
                    }
                }
            }
        }
        running.into_iter().flatten().map(|(listening, _)| listening).collect()
    }

    fn listen_admin(&self, mut socket: Opened) -> Option<Listening> {
        let listener = socket.take()?;
        info!(listener = ADMIN, address = %socket.address, "listening");
        let state = State {
            view: Arc::clone(&self.admin_view),
            counters: Arc::clone(&self.counters),
            history: Arc::default(),
            viewers: Arc::new(Semaphore::new(admin::MAX_VIEWERS)),
            hosts: Arc::clone(&self.admin_hosts),
            configured: socket.configured,
            fixed: self.fixed.clone(),
            draining: self.draining.clone(),
        };
        let stop = Stop::default();
        let acceptor = tokio::spawn(admin::run(listener, state, stop.clone()));
        Some(Listening::new(socket, stop, acceptor))
    }

    /// Where it listens, in the order of the configuration.
    #[cfg(feature = "demo")]
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|(listening, _)| listening.address).collect()
    }

    /// Where the admin listener is, if there is one.
    #[cfg(feature = "demo")]
    pub(crate) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|listening| listening.address)
    }

    /// How many connections are open.
    pub(crate) fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Counts the connections that are open at any time, those of predecessors included.
    pub(crate) fn count_connections(&self) -> impl Fn() -> usize + Send + 'static {
        let (connections, counters) = (self.connections.clone(), Arc::clone(&self.counters));
        move || {
            let of_predecessors = counters.predecessor_connections.load(Relaxed);
            connections.len().saturating_add(usize::try_from(of_predecessors).unwrap_or(usize::MAX))
        }
    }

    /// Where reloads are counted.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// How long things may take, as configured now.
    pub(crate) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// The listening sockets once more, the admin's included, for a successor.
    pub(crate) fn sockets(&self) -> io::Result<Vec<InheritedSocket>> {
        let names = self.listeners.iter().map(|(_, snapshot)| snapshot.load().listener.name.clone());
        let listeners = self.listeners.iter().map(|(listening, _)| listening).chain(&self.admin);
        let inherit = |(name, listening): (Box<str>, &Listening)| {
            let socket = listening.socket.try_clone()?.into();
            Ok(InheritedSocket { address: listening.configured, name: Some(name), socket })
        };
        names.chain([ADMIN.into()]).zip(listeners).map(inherit).collect()
    }

    /// A successor serves: this process accepts no more, not even for the admin. The queues of the sockets that the successor
    /// has taken over, as [`Server::sockets`] lists them, are its own.
    pub(crate) async fn step_back(&mut self, taken: &[bool]) {
        self.draining.cancel();
        let listeners =
            mem::take(&mut self.listeners).into_iter().map(|(listening, _)| listening).chain(self.admin.take());
        for (number, listening) in listeners.enumerate() {
            if taken.get(number).copied().unwrap_or(false) {
                self.closing.spawn(listening.hand_over());
            } else {
                self.closing.spawn(listening.close());
            }
        }
        self.settle().await;
        self.connections.close();
    }

    /// Says that it is not ready, and after `timeouts.shutdown_delay` accepts no more; lets connections run for
    /// `timeouts.drain`, then closes those that are left; how many these were.
    pub(crate) async fn drain(&mut self) -> usize {
        self.draining.cancel();
        let Timeouts { shutdown_delay, drain, .. } = self.timeouts;
        if !shutdown_delay.is_zero() {
            info!(seconds = shutdown_delay.as_secs_f64(), "no longer ready; still accepting");
            sleep(shutdown_delay).await;
        }
        let deadline = Instant::now() + drain;
        self.accept_no_more().await;
        self.finish(deadline).await
    }

    async fn accept_no_more(&mut self) {
        for (listening, _) in mem::take(&mut self.listeners) {
            self.closing.spawn(listening.close());
        }
        self.settle().await;
        self.connections.close();
    }

    /// Accepts no more; lets connections run until then, and closes those that are left; how many these were.
    pub(crate) async fn finish(&mut self, deadline: Instant) -> usize {
        let left = deadline.saturating_duration_since(Instant::now());
        let pid = std::process::id();
        info!(connections = self.connections.len(), timeout_s = left.as_secs_f64().round(), pid, "draining");
        let mut cut = 0;
        if timeout_at(deadline, self.connections.wait()).await.is_err() {
            cut = self.connections.len();
            self.registry.close_all();
            self.connections.wait().await;
        }
        self.counters.line_limit.flush();
        info!(cut, pid, "drained");
        cut
    }
}
