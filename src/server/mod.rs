//! The server: starts, reloads and drains.

mod capacity;
mod control;
mod generation;
mod hand_over;
mod listening;
mod memory;
mod prepare;

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use self::capacity::Capacity;
pub(crate) use self::control::{DrainError, DrainResult};
pub(crate) use self::generation::Changes;
use self::generation::{Generation, Next};
pub(crate) use self::hand_over::Adopter;
use self::hand_over::AdoptionSettings;
use self::listening::{Acceptor, Listening, OpenSocket};
use self::prepare::{ListenerSource, Prepared};
use crate::admin::draining::is_draining_at;
use crate::admin::{self, AdminHandles, Answers, Fixed, History, Hosts, PerRoute, View};
use crate::config::{self, Config, Limits, Log, Timeouts};
use crate::connection::Snapshot;
use crate::connection::admission::{SourceLimits, SourceTable};
use crate::connection::parking::ParkingLot;
use crate::connection::registry::Registry;
use crate::listener::accept::Stop;
use crate::listener::{BindError, InheritedSocket, Presence, is_free};
use crate::relay::RelaySettings;
use crate::relay::budget;
use crate::relay::tcp::TcpOptions;
use crate::telemetry::Counters;
#[cfg(feature = "gateway")]
use crate::text::Destination;
use crate::upstream::{Checks, Drained, Lookups, SharedContext, Source, may_be_transparent};

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    counters: Arc<Counters>,
    context: Arc<SharedContext>,
    registry: Arc<Registry>,
    capacity: Capacity,
    source_table: Arc<SourceTable>,
    generation: Arc<ArcSwap<Generation>>,
    /// While connections of an old process are adopted.
    adoption: Arc<ArcSwapOption<AdoptionSettings>>,
    admin_view: Arc<ArcSwap<View>>,
    listeners: Vec<(Listening, Arc<ArcSwap<Snapshot>>)>,
    /// Optional listeners that cannot be opened, by name, and why.
    unavailable: HashMap<String, BindError>,
    admin: Option<Listening>,
    /// Where to listen once the process that drains there has ended.
    awaited_admin: Option<AwaitedAdmin>,
    /// Removed listeners that still serve their accept queues.
    closing: TaskTracker,
    /// As it is configured, of an admin listener that is open.
    admin_address: Arc<ArcSwapOption<SocketAddr>>,
    admin_hosts: Arc<ArcSwap<Hosts>>,
    admin_per_route: Arc<ArcSwap<PerRoute>>,
    /// Once there is an admin listener or a control socket.
    admin_runtime: Option<admin::Runtime>,
    history: Arc<History>,
    /// What serves the control socket, and what stops it.
    control: Option<(Stop, JoinHandle<()>)>,
    timeouts: Timeouts,
    fixed: Fixed,
    /// Cancelled when the process is no longer ready.
    draining: CancellationToken,
    /// Whether it is not known yet what to serve.
    is_starting: Arc<AtomicBool>,
}

/// An admin listener whose address another process still has.
#[derive(Clone, Copy, Debug)]
struct AwaitedAdmin {
    address: SocketAddr,
    options: TcpOptions,
    next_attempt: Instant,
}

/// When a server is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    AtStart,
    /// Once [`Server::set_ready`] is called.
    Later,
}

/// The name of the admin listener, in logs and in an upgrade. Configured names cannot start with `_`.
const ADMIN: &str = "_admin";

/// How often to try to open an admin listener whose address another process still has.
const ADMIN_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The keys that a reload cannot change, with their values.
pub(crate) fn fixed(config: &Config) -> Fixed {
    let Config { workers, sandbox, upgrade_socket, control, .. } = config;
    let Log { format, is_format_option, level: _, refusals_per_second: _, progress: _ } = &config.log;
    let workers = workers.map_or_else(|| "auto".into(), |workers| workers.to_string());
    let path = |path: &Option<PathBuf>| path.as_ref().map_or_else(|| "none".into(), |path| path.display().to_string());
    [
        ("workers", Some(workers)),
        ("log.format", (!is_format_option).then(|| format.to_string())),
        ("sandbox", Some(sandbox.label().into())),
        ("upgrade.socket", Some(path(upgrade_socket))),
        ("control", Some(path(control))),
    ]
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(
        "limits.connections: {wanted} connections need {needed} file descriptors, but the hard limit of this process is {available}; raise that limit (LimitNOFILE=, ulimit -Hn) or remove the key"
    )]
    Descriptors {
        wanted: usize,
        /// For connections and everything else.
        needed: u64,
        /// `RLIMIT_NOFILE`
        available: u64,
    },
}

impl StartError {
    /// Whether the configuration is at fault.
    pub(crate) fn is_configuration(&self) -> bool {
        match self {
            Self::Bind(_) => false,
            Self::Descriptors { .. } => true,
        }
    }
}

/// Why a reload failed. The running configuration stays in use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReloadError {
    #[error(transparent)]
    Start(#[from] StartError),
    /// A key that is only read at the start.
    #[error("{key} cannot be changed from {running} to {wanted} by a reload; restart snigate{}", or_upgrade(key))]
    Fixed { key: &'static str, running: String, wanted: String },
    /// The process lacks what the configuration needs.
    #[error(
        "the route `{route}` has `source: client`, which requires CAP_NET_ADMIN, and this process does not have it (the sandbox drops it at the start if no route needs it); restart snigate"
    )]
    Transparent { route: String },
}

/// The new process of an upgrade is in the sandbox of the old one, where it can neither leave that nor create sockets.
fn or_upgrade(key: &str) -> &'static str {
    match key {
        "sandbox" | "upgrade.socket" | "control" => "",
        _ => ", or upgrade it with SIGUSR2",
    }
}

/// What all listeners have in common.
struct CommonSettings {
    hello: Duration,
    hello_limit: usize,
    source_limits: SourceLimits,
    relay: Arc<RelaySettings>,
    tcp: TcpOptions,
}

impl Server {
    /// Binds all addresses, or adopts inherited sockets, and starts to serve; what is `drained` gets no connections. Also
    /// returns which of the inherited sockets are used; the others are closed. Must be called within a tokio runtime.
    pub(crate) fn start(
        mut config: Config,
        inherited: Vec<InheritedSocket>,
        drained: &[Drained],
        readiness: Readiness,
    ) -> Result<(Self, Vec<bool>), StartError> {
        capacity::raise_limit();
        let counters = Arc::new(Counters::new(config.log.refusals_per_second));
        let registry = Registry::new();
        if let Err(reason) = ParkingLot::open(&registry, Arc::clone(&counters.parked_connections)) {
            warn!(%reason, "connections at rest keep their tasks");
        }
        let aged = Arc::clone(&registry);
        tokio::spawn(async move { aged.close_aged().await });
        let context = SharedContext::new(
            Arc::<Registry>::clone(&registry),
            Lookups::new(counters.lookup_lateness.clone()),
            Checks::new(counters.check_lateness.clone()),
        );
        for drained in drained {
            context.drains.drain(drained);
        }
        let mut server = Self {
            counters,
            context: Arc::new(context),
            registry,
            capacity: Capacity::default(),
            source_table: Arc::default(),
            generation: Arc::default(),
            adoption: Arc::default(),
            admin_view: Arc::default(),
            listeners: Vec::new(),
            unavailable: HashMap::new(),
            admin: None,
            awaited_admin: None,
            closing: TaskTracker::new(),
            admin_address: Arc::default(),
            admin_hosts: Arc::default(),
            admin_per_route: Arc::default(),
            admin_runtime: None,
            history: Arc::default(),
            control: None,
            timeouts: config.timeouts,
            fixed: fixed(&config),
            draining: CancellationToken::new(),
            is_starting: Arc::new((readiness == Readiness::Later).into()),
        };
        if let Some(config::Admin { address, .. }) = &config.admin
            && inherited.iter().all(|socket| socket.address != *address)
            && is_free(*address, Presence::Required).is_err_and(|error| error.is_in_use())
            && is_draining_at(*address)
        {
            let next_attempt = Instant::now() + ADMIN_RETRY_INTERVAL;
            server.awaited_admin = Some(AwaitedAdmin { address: *address, options: config.tcp, next_attempt });
        }
        let (prepared, adopted) = server.prepare(&config, inherited)?;
        let addresses = server.listener_addresses(&config, &prepared);
        let (routes, excluded) = (mem::take(&mut config.routes), mem::take(&mut config.excluded));
        let (before, counters, context) = (Generation::default(), &server.counters, &server.context);
        let Next { generation, .. } = generation::build_next(&before, routes, &excluded, addresses, counters, context);
        let closed = server.commit(config, prepared, Arc::new(generation));
        debug_assert!(closed.is_empty(), "there were no listeners before");
        server.counters.reloads.applied();
        Ok((server, adopted))
    }

    /// Replaces the running configuration, as a whole or not at all. Connections, and whatever is the same in both
    /// configurations, are kept.
    pub(crate) async fn reload(&mut self, mut config: Config) -> Result<Changes, ReloadError> {
        for ((key, running), (_, wanted)) in self.fixed.iter().zip(fixed(&config)) {
            if let (Some(running), Some(wanted)) = (running, wanted)
                && *running != wanted
            {
                return Err(ReloadError::Fixed { key, running: running.clone(), wanted });
            }
        }
        if let Some(route) = config.transparent_route()
            && !may_be_transparent()
            && !self.has_transparent_route()
        {
            return Err(ReloadError::Transparent { route: route.name.clone() });
        }
        let (prepared, _) = self.prepare(&config, Vec::new())?;

        let addresses = self.listener_addresses(&config, &prepared);
        let before = self.generation.load_full();
        let (old, routes, excluded) =
            (Arc::clone(&before), mem::take(&mut config.routes), mem::take(&mut config.excluded));
        let (counters, context) = (Arc::clone(&self.counters), Arc::clone(&self.context));
        // For 100,000 routes this takes long enough to delay connections.
        let work = move || generation::build_next(&old, routes, &excluded, addresses, &counters, &context);
        let built = tokio::task::spawn_blocking(work).await;
        let Next { generation, changes, removed, undecided } = match built {
            Ok(built) => built,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let closed = self.commit(config, prepared, Arc::new(generation));
        for listener in closed {
            info!(address = %listener.address, "no longer listening");
            self.closing.spawn(listener.close());
        }
        tokio::spawn(generation::retire(before, removed, undecided, Arc::clone(&self.registry), self.timeouts.drain));
        self.counters.reloads.succeed();
        Ok(changes)
    }

    /// Waits until removed listeners have served their accept queues and are closed.
    pub(crate) async fn wait_for_closing_listeners(&self) {
        self.closing.close();
        self.closing.wait().await;
        self.closing.reopen();
    }

    /// What is to be served is known, and is served.
    #[cfg(feature = "gateway")]
    pub(crate) fn set_ready(&self) {
        self.is_starting.store(false, Relaxed);
    }

    /// Replaces the addresses of all Services.
    #[cfg(feature = "gateway")]
    pub(crate) fn publish(&self, addresses: impl IntoIterator<Item = (Destination, Vec<SocketAddr>)>) {
        self.context.feeds.publish(addresses);
    }

    /// Optional listeners that could not be opened, by name, and why. A reload tries again.
    #[cfg(feature = "gateway")]
    pub(crate) fn unavailable(&self) -> &HashMap<String, BindError> {
        &self.unavailable
    }

    fn has_transparent_route(&self) -> bool {
        let routes = &self.generation.load().view.routes;
        routes.iter().any(|route| route.upstream.setup().settings.source == Source::Client)
    }

    /// How many of the running routes this configuration would remove, and how many there are.
    pub(crate) fn removed_by(&self, config: &Config) -> (usize, usize) {
        let kept: HashSet<&str> = config.routes.iter().map(|route| &*route.name).collect();
        let routes = &self.generation.load().view.routes;
        let removed = routes.iter().filter(|route| !kept.contains(route.counters.name())).count();
        (removed, routes.len())
    }

    /// Applies a prepared configuration; this cannot fail. Returns the listeners that are no longer configured.
    fn commit(&mut self, config: Config, prepared: Prepared, generation: Arc<Generation>) -> Vec<Listening> {
        // All keys are listed, so that a key that is not used fails to compile.
        let Config {
            digest,
            files: _,
            unmatched_includes: _,
            listeners,
            routes: _,
            excluded: _,
            timeouts,
            tcp,
            user_timeout,
            limits,
            relay,
            workers: _,
            watch: _,
            upgrade_socket: _,
            control: _,
            admin,
            sandbox: _,
            log,
        } = config;
        let Timeouts { hello, idle, half_close, drain: _, upgrade_drain: _, shutdown_delay: _ } = timeouts;
        let Limits { connections: _, hello_bytes, buffer_bytes, source, park_after } = limits;
        let Log { format: _, is_format_option: _, level: _, refusals_per_second, progress } = log;
        let settings = CommonSettings {
            hello,
            hello_limit: hello_bytes,
            source_limits: source,
            relay: Arc::new(RelaySettings {
                engine: relay,
                idle,
                half_close,
                stalled: user_timeout,
                keepalive: tcp,
                park_after,
                progress,
            }),
            tcp,
        };
        self.counters.line_limit.set_rate(refusals_per_second);
        self.counters.reloads.digest.store(digest.unwrap_or(0), Relaxed);
        budget::set_limit(buffer_bytes.unwrap_or_else(|| prepared.memory.buffer_bytes()));
        self.capacity.set(prepared.limits);
        self.counters.connections_limit.store(self.capacity.connections as u64, Relaxed);
        self.timeouts = timeouts;

        let mut closed = self.listen(listeners, prepared.listeners, &settings, &generation);
        let names = self.listeners.iter().map(|(_, snapshot)| Arc::clone(&snapshot.load().listener));
        let (relay, source_limits) = (Arc::clone(&settings.relay), settings.source_limits);
        let adoption = AdoptionSettings { relay, source_limits, listeners: names.collect() };
        self.adoption.store(Some(Arc::new(adoption)));
        self.admin_view.store(Arc::clone(&generation.view));
        self.generation.store(generation);
        if let Some(admin) = admin {
            self.admin_hosts.store(Arc::new(admin.hosts));
            self.admin_per_route.store(Arc::new(admin.per_route));
        }
        if !matches!(prepared.admin, Some(ListenerSource::Running(_))) {
            closed.extend(self.admin.take());
        }
        match prepared.admin {
            Some(ListenerSource::New(opened)) => self.listen_admin(opened),
            Some(ListenerSource::Unavailable(reason)) => {
                if let Some(awaited) = &mut self.awaited_admin {
                    awaited.options = settings.tcp;
                }
                warn!(%reason, "the admin listener is not available yet: a process that drains has its address");
            }
            Some(ListenerSource::Running(_)) | None => self.awaited_admin = None,
        }
        self.show_admin_address();
        closed
    }

    fn show_admin_address(&self) {
        self.admin_address.store(self.admin.as_ref().map(|listening| listening.configured.into()));
    }

    fn awaits_admin(&self, address: SocketAddr) -> bool {
        self.awaited_admin.is_some_and(|awaited| awaited.address == address)
    }

    /// When to try again to open the admin listener; never, if that has an address.
    pub(crate) async fn time_to_open_admin(&self) {
        match self.awaited_admin {
            Some(awaited) => sleep_until(awaited.next_attempt).await,
            None => pending().await,
        }
    }

    /// Opens the admin listener if its address is free now.
    pub(crate) fn open_admin(&mut self) {
        let Some(awaited) = &mut self.awaited_admin else { return };
        awaited.next_attempt = Instant::now() + ADMIN_RETRY_INTERVAL;
        if let Ok(opened) = listening::open(awaited.address, Presence::Required, &[], &awaited.options) {
            self.listen_admin(opened);
            self.show_admin_address();
        }
    }

    /// Starts and updates listeners. Returns those that are no longer configured.
    fn listen(
        &mut self,
        configured: Vec<config::Listener>,
        sources: Vec<ListenerSource>,
        settings: &CommonSettings,
        generation: &Generation,
    ) -> Vec<Listening> {
        let before = mem::take(&mut self.unavailable);
        let mut running: Vec<Option<_>> = mem::take(&mut self.listeners).into_iter().map(Some).collect();
        let acceptor = Acceptor {
            permits: Arc::clone(&self.capacity.permits),
            counters: Arc::clone(&self.counters),
            registry: Arc::clone(&self.registry),
        };
        for (
            listener_index,
            (
                config::Listener {
                    name,
                    address: _,
                    presence: _,
                    is_optional: _,
                    refuse: reject_with,
                    accept_proxy,
                    ip_literal,
                    sources,
                },
                source,
            ),
        ) in configured.into_iter().zip(sources).enumerate()
        {
            let snapshot = Arc::new(Snapshot {
                listener: self.counters.listener(&name),
                listener_index,
                reject_with,
                accept_proxy,
                ip_literal,
                sources,
                source_limits: settings.source_limits,
                source_table: Arc::clone(&self.source_table),
                routes: Arc::clone(&generation.table),
                hello_timeout: settings.hello,
                hello_limit: settings.hello_limit,
                relay: Arc::clone(&settings.relay),
            });
            match source {
                ListenerSource::Running(index) => {
                    let Some((listening, current)) = running[index].take() else { continue };
                    listening.set_options(&settings.tcp);
                    current.store(snapshot);
                    self.listeners.push((listening, current));
                }
                ListenerSource::New(opened) => {
                    let current = Arc::new(ArcSwap::new(snapshot));
                    if let Some(listening) = acceptor.accept(opened, Arc::clone(&current)) {
                        listening.set_options(&settings.tcp);
                        self.listeners.push((listening, current));
                    }
                }
                ListenerSource::Unavailable(error) => {
                    if before.get(&*name).is_none_or(|before| before.to_string() != error.to_string()) {
                        warn!(listener = name, reason = %error, "listener is not available; the others serve");
                    }
                    self.unavailable.insert(name, error);
                }
            }
        }
        running.into_iter().flatten().map(|(listening, _)| listening).collect()
    }

    fn listen_admin(&mut self, mut socket: OpenSocket) {
        self.awaited_admin = None;
        let Some(listener) = socket.take() else { return };
        info!(listener = ADMIN, address = %socket.address, "listening");
        let handles = self.admin_handles();
        let stop = Stop::default();
        let stopped = stop.clone();
        let serve = |listener| admin::run(listener, handles, stopped);
        let acceptor = match self.admin_runtime() {
            Some(runtime) => runtime.spawn(listener, serve),
            None => Ok(tokio::spawn(serve(listener))),
        };
        match acceptor {
            Ok(acceptor) => self.admin = Some(Listening::new(socket, stop, acceptor)),
            Err(reason) => warn!(%reason, "cannot serve the admin listener"),
        }
    }

    fn admin_handles(&self) -> AdminHandles {
        AdminHandles {
            view: Arc::clone(&self.admin_view),
            counters: Arc::clone(&self.counters),
            history: Arc::clone(&self.history),
            viewers: Arc::new(Semaphore::new(admin::MAX_VIEWERS)),
            hosts: Arc::clone(&self.admin_hosts),
            per_route: Arc::clone(&self.admin_per_route),
            configured: Arc::clone(&self.admin_address),
            fixed: self.fixed.clone(),
            draining: self.draining.clone(),
            is_starting: Arc::clone(&self.is_starting),
            data_path: Handle::current(),
            answers: Answers::default(),
        }
    }

    /// Starts it if it does not run yet.
    fn admin_runtime(&mut self) -> Option<&admin::Runtime> {
        if self.admin_runtime.is_none() {
            let started = admin::Runtime::start();
            let shared = "no thread for the admin listener: it shares those of the data path";
            self.admin_runtime = started.inspect_err(|error| warn!(reason = %error, "{shared}")).ok();
        }
        self.admin_runtime.as_ref()
    }

    /// The bound addresses, in the order of the configuration.
    #[cfg(feature = "demo")]
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|(listening, _)| listening.address).collect()
    }

    /// The bound address of the admin listener.
    #[cfg(feature = "demo")]
    pub(crate) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|listening| listening.address)
    }

    /// The number of open listeners.
    pub(crate) fn count_listeners(&self) -> usize {
        self.listeners.len()
    }

    /// The number of open connections.
    pub(crate) fn connections(&self) -> usize {
        self.registry.len()
    }

    /// Returns a function that counts open connections, including those of old processes.
    pub(crate) fn count_connections(&self) -> impl Fn() -> usize + Send + 'static {
        let (registry, counters) = (Arc::clone(&self.registry), Arc::clone(&self.counters));
        move || {
            let of_predecessors = counters.predecessor_connections.load(Relaxed);
            registry.len().saturating_add(usize::try_from(of_predecessors).unwrap_or(usize::MAX))
        }
    }

    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    pub(crate) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Duplicates of the listening sockets for a successor, the admin listener's last.
    pub(crate) fn sockets(&self) -> io::Result<Vec<InheritedSocket>> {
        let names = self.listeners.iter().map(|(_, snapshot)| snapshot.load().listener.name.clone());
        let listeners = self.listeners.iter().map(|(listening, _)| listening).chain(&self.admin);
        let inherit = |(name, listening): (Box<str>, &Listening)| {
            let socket = listening.socket.try_clone()?.into();
            Ok(InheritedSocket { address: listening.configured, name: Some(name), socket })
        };
        names.chain([ADMIN.into()]).zip(listeners).map(inherit).collect()
    }

    /// Closes all listeners, because a successor serves. The accept queues of sockets that it has taken over, in the order
    /// of [`Server::sockets`], are left to it.
    pub(crate) async fn yield_to_successor(&mut self, taken_over: &[bool]) {
        self.draining.cancel();
        self.hand_over_control();
        self.context.hand_over();
        let listeners =
            mem::take(&mut self.listeners).into_iter().map(|(listening, _)| listening).chain(self.admin.take());
        for (index, listening) in listeners.enumerate() {
            if taken_over.get(index).copied().unwrap_or(false) {
                self.closing.spawn(listening.hand_over());
            } else {
                self.closing.spawn(listening.close());
            }
        }
        self.wait_for_closing_listeners().await;
    }

    /// Drains: readiness fails, listeners are closed after `timeouts.shutdown_delay`, and the remaining connections after
    /// `timeouts.drain`. Returns how many those were.
    pub(crate) async fn drain(&mut self) -> usize {
        self.draining.cancel();
        // What an old process still has may drain there as well.
        self.adoption.store(None);
        let Timeouts { shutdown_delay, drain, .. } = self.timeouts;
        if !shutdown_delay.is_zero() {
            info!(seconds = shutdown_delay.as_secs_f64(), "not ready; still accepting for shutdown_delay");
            sleep(shutdown_delay).await;
        }
        let deadline = Instant::now() + drain;
        self.close_listeners().await;
        self.finish(deadline).await
    }

    async fn close_listeners(&mut self) {
        for (listening, _) in mem::take(&mut self.listeners) {
            self.closing.spawn(listening.close());
        }
        self.wait_for_closing_listeners().await;
    }

    /// Waits for connections to end until the deadline, and closes the rest. Returns how many those were.
    pub(crate) async fn finish(&mut self, deadline: Instant) -> usize {
        let left = deadline.saturating_duration_since(Instant::now());
        let pid = std::process::id();
        info!(connections = self.registry.len(), timeout_s = left.as_secs_f64().round(), pid, "draining");
        let mut closed = 0;
        if timeout_at(deadline, self.registry.all_ended()).await.is_err() {
            closed = self.registry.len();
            self.registry.close_all();
            self.registry.all_ended().await;
        }
        self.counters.line_limit.flush();
        info!(cut = closed, pid, "drained");
        closed
    }
}
