//! `snigate run`

mod control;
#[cfg(feature = "gateway")]
mod gateway;
mod hand_over;
mod signals;
mod upgrades;

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use crate::admin::control::Action;
use crate::config::{Config, ConfigError, Log, LogFormat};
use crate::process::inputs::Inputs;
use crate::process::sandbox::{self, Entered, Sandbox, Transparent};
use crate::process::systemd::{self, Notification, Notifier};
use crate::process::unix_socket::{self, Found, Peer};
use crate::process::upgrade::{self, Predecessor, Successor};
use crate::process::watch::FileWatch;
use crate::server::{Changes, Readiness, Server};
use crate::upstream::Drained;
use anyhow::{Context as _, anyhow};
use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{error, info, warn};

use self::control::Control;
#[cfg(feature = "gateway")]
pub(super) use self::gateway::run as run_gateway;
use self::signals::{Busy, SignalRequest, Signals};
use self::upgrades::UpgradeListener;
use super::runtime;
use crate::cli::Run;
use crate::commands::main::EXIT_CONFIG;
use crate::logging;
use crate::logging::Logging;

pub(super) fn run(options: Run) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let Run { config, listen, route, default, watch, log_format } = options;
    let log_format = log_format.map(Into::into);
    let source = config.map(|path| ConfigSource { path, watch, log_format });
    let loaded = match &source {
        Some(source) => match signals.unless_stopped(source)? {
            Some(loaded) => loaded,
            None => return Ok(ExitCode::SUCCESS),
        },
        None => Loaded { inputs: Inputs::default(), config: Config::from_arguments(listen, route, default) },
    };
    let mut config = match loaded.config {
        // Its output follows the log lines of the predecessor.
        Err(reason) if Predecessor::exists() => {
            logging::start(&Log { format: log_format.unwrap_or(LogFormat::Auto), ..Log::default() });
            error!(%reason, "cannot start");
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
        config => config?,
    };
    config.log.format = log_format.unwrap_or(config.log.format);
    // Before the sandbox forbids it. A process that was started by an upgrade inherits the socket.
    let running = match &config.upgrade_socket {
        Some(path) if !Predecessor::exists() => Some(unix_socket::open(upgrades::KEY, path)?),
        _ => None,
    };
    let control = config.control.as_ref().map(|path| unix_socket::open(control::KEY, path)).transpose()?;
    let found = FoundSockets { running, control };
    let (config, logging) = match confine(config, || source.as_ref().map(|source| source.load().config))? {
        Confined::Running(config, logging) => (*config, logging),
        Confined::Refused => return Ok(ExitCode::FAILURE),
    };
    let file = source.map(|source| (FileWatch::new(loaded.inputs), source));
    Ok(start(config, found, file, logging, signals).unwrap_or_else(|reason| {
        error!(reason = format!("{reason:#}"), "cannot start");
        ExitCode::FAILURE
    }))
}

/// A process without what it does not need.
enum Confined {
    Running(Box<Config>, Logging),
    /// The configuration requires a sandbox that is not possible, which was logged.
    Refused,
}

/// Enters the sandbox, before other threads are started, and starts to log. `reload` reads the configuration again.
fn confine(
    mut config: Config,
    reload: impl FnOnce() -> Option<Result<Config, ConfigError>>,
) -> anyhow::Result<Confined> {
    let wanted = config.sandbox;
    let transparent = if config.transparent_route().is_some() { Transparent::Yes } else { Transparent::No };
    let entered = if wanted == Sandbox::Off { Entered::default() } else { sandbox::enter(transparent) };
    // A file that cannot be read without the capabilities could not be reloaded either.
    if entered.dropped_capabilities
        && let Some(reloaded) = reload()
    {
        config = reloaded?;
    }
    // Before the check: what it leaves is for the others.
    #[cfg(feature = "jemalloc")]
    start_thread_of_allocator()?;
    runtime::check(config.workers)?;
    let logging = logging::start(&config.log);
    for reason in &entered.failures {
        warn!(reason, "sandbox incomplete");
    }
    if wanted == Sandbox::Require && !entered.failures.is_empty() {
        error!(reason = "sandbox: require", "cannot start");
        return Ok(Confined::Refused);
    }
    Ok(Confined::Running(Box::new(config), logging))
}

/// One, which gives memory back that has not been used for a while.
#[cfg(feature = "jemalloc")]
fn start_thread_of_allocator() -> anyhow::Result<()> {
    let started = tikv_jemalloc_ctl::max_background_threads::write(1)
        .and_then(|()| tikv_jemalloc_ctl::background_thread::write(true));
    started.map_err(|reason| anyhow!("cannot create threads: the allocator's: {reason}"))
}

/// What was found at the paths of the configuration.
struct FoundSockets {
    /// At `upgrade.socket`.
    running: Option<Found>,
    /// At `control`.
    control: Option<Found>,
}

fn start(
    config: Config,
    found: FoundSockets,
    file: Option<(FileWatch, ConfigSource)>,
    logging: Logging,
    signals: Signals,
) -> anyhow::Result<ExitCode> {
    let (predecessor, mut sockets) = match (Predecessor::connect()?, found.running) {
        (Some((predecessor, sockets)), _) => (Some(predecessor), sockets),
        (None, Some(Found::Running(process))) => {
            info!("taking over from the running process");
            let (predecessor, sockets) = Predecessor::greet(process).context("upgrade.socket")?;
            (Some(predecessor), sockets)
        }
        (None, Some(Found::Nobody(upgrade))) => {
            let upgrade = Some(upgrade);
            (None, upgrade::Sockets { listeners: systemd::sockets()?, upgrade, ..upgrade::Sockets::default() })
        }
        (None, None) => (None, upgrade::Sockets { listeners: systemd::sockets()?, ..upgrade::Sockets::default() }),
    };
    let inherited = sockets.control.take();
    sockets.control = control::socket(config.control.as_deref(), inherited, found.control, predecessor.is_some())?;
    let runtime = runtime::build(config.workers)?;
    let result = runtime.block_on(serve(config, file, logging, signals, predecessor, sockets));
    // Does not wait for DNS lookups.
    runtime.shutdown_background();
    result
}

/// The configuration file, with the options that override it.
#[derive(Clone)]
struct ConfigSource {
    path: PathBuf,
    watch: bool,
    log_format: Option<LogFormat>,
}

/// A loaded configuration, and the files that were read.
struct Loaded {
    inputs: Inputs,
    config: Result<Config, ConfigError>,
}

impl Signals {
    /// Loads the file on a temporary thread; `None` if a signal to stop arrived first.
    fn unless_stopped(&mut self, source: &ConfigSource) -> anyhow::Result<Option<Loaded>> {
        let from = source.clone();
        let (done, loaded) = oneshot::channel();
        let spawned = std::thread::Builder::new().name("start".into()).spawn(move || drop(done.send(from.load())));
        // `runtime::check` reports a lack of threads.
        let Ok(thread) = spawned else { return Ok(Some(source.load())) };
        let loaded = runtime::run(async {
            tokio::select! {
                loaded = loaded => Some(loaded),
                _ = self.stop(Busy::Starting) => None,
            }
        })?;
        let Some(loaded) = loaded else { return Ok(None) };
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
        Ok(Some(loaded?))
    }
}

impl ConfigSource {
    fn load(&self) -> Loaded {
        let with_options = |mut config: Config| {
            config.watch |= self.watch;
            config.log.format = self.log_format.unwrap_or(config.log.format);
            config
        };
        let mut inputs = Inputs::default();
        let config = Config::read(&self.path, &mut inputs).map(with_options);
        Loaded { inputs, config }
    }
}

async fn serve(
    config: Config,
    mut file: Option<(FileWatch, ConfigSource)>,
    logging: Logging,
    mut signals: Signals,
    predecessor: Option<Predecessor>,
    sockets: upgrade::Sockets,
) -> anyhow::Result<ExitCode> {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        listeners = config.listeners.len(),
        routes = config.routes.len(),
        "starting"
    );
    warn_of_includes(&config.unmatched_includes);
    let watches = config.watch;
    let upgrades = UpgradeListener::new(config.upgrade_socket.as_deref(), sockets.upgrade)?;
    let drained = sockets.drained.into_iter().map(|(route, endpoint)| Drained { route, endpoint });
    let drained: Vec<Drained> = drained.collect();
    let (mut server, adopted) = match Server::start(config, sockets.listeners, &drained, Readiness::AtStart) {
        Ok(started) => started,
        Err(reason) => {
            error!(%reason, "cannot start");
            return Ok(ExitCode::from(if reason.is_configuration() { EXIT_CONFIG } else { 1 }));
        }
    };
    logging::report_lost_lines(Arc::clone(server.counters()));
    let mut control = Control::start(&mut server, sockets.control)?;
    let notifier = Notifier::from_env();
    let watchdog = notifier.start_watchdog();
    if !Predecessor::exists() {
        // Otherwise the predecessor notifies systemd.
        notifier.notify(Notification::Serving);
    }
    let arrivals = match predecessor.map(|predecessor| predecessor.take_over(&adopted)) {
        None => None,
        Some(Ok(channel)) => {
            Some(tokio::spawn(hand_over::receive(channel, server.adopter(), Arc::clone(server.counters()))))
        }
        Some(Err(reason)) => {
            warn!(%reason, "lost the connection to the old process");
            None
        }
    };
    let entrances = Entrances { signals: &mut signals, control: &mut control, upgrades: &upgrades };
    let ended = reload_until_stopped(&mut server, entrances, file.as_mut(), watches, &notifier, &logging).await;
    // What operators ask for now is refused.
    drop(control);
    Ok(match ended {
        RunEnd::Stop(signal) => {
            info!(signal, "shutting down; repeat the signal to exit immediately");
            notifier.notify_now(Notification::Stopping).await;
            stop(&mut server, signals).await
        }
        RunEnd::Upgraded(successor) => {
            if let Some(process) = successor.process.filter(|_| successor.is_child) {
                notifier.notify_now(Notification::SucceededBy(process)).await;
            }
            if let Some(watchdog) = watchdog {
                watchdog.abort();
            }
            // The new process has a duplicate.
            drop(upgrades);
            step_back(&mut server, successor, arrivals, signals).await
        }
    })
}

/// Why this process stops serving.
enum RunEnd {
    Stop(&'static str),
    /// A new process serves.
    Upgraded(Successor),
}

/// When to retry a failed reload of a watched file: files that it refers to may exist by then.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// What triggers a reload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trigger {
    Signal,
    Watch,
    /// A retry after a failure.
    Retry,
    Operator(Peer),
}

impl Trigger {
    fn label(self) -> &'static str {
        match self {
            Self::Signal => "SIGHUP",
            Self::Watch | Self::Retry => "watch",
            Self::Operator(_) => "control",
        }
    }

    /// Who asked for it.
    fn operator(self) -> (Option<u32>, Option<u32>) {
        match self {
            Self::Operator(Peer { user, process }) => (Some(user), process),
            Self::Signal | Self::Watch | Self::Retry => (None, None),
        }
    }
}

/// Where requests come from.
struct Entrances<'e> {
    signals: &'e mut Signals,
    control: &'e mut Control,
    /// Processes that want to take over.
    upgrades: &'e UpgradeListener,
}

/// Reloads on signals, file changes and orders, until the process is to stop serving.
async fn reload_until_stopped(
    server: &mut Server,
    entrances: Entrances<'_>,
    mut file: Option<&mut (FileWatch, ConfigSource)>,
    mut watches: bool,
    notifier: &Notifier,
    logging: &Logging,
) -> RunEnd {
    let Entrances { signals, control, upgrades } = entrances;
    let mut failure: Option<String> = None;
    let mut is_held_back = false;
    loop {
        // Who waits for the result.
        let mut asked = None;
        // A change that is held back is not retried.
        let has_failed = failure.is_some() && !is_held_back;
        let changed = async {
            match &mut file {
                Some((watch, _)) if watches => {
                    tokio::select! {
                        () = watch.changed() => Trigger::Watch,
                        () = sleep(RETRY_INTERVAL), if has_failed => Trigger::Retry,
                    }
                }
                _ => std::future::pending().await,
            }
        };
        let (request, trigger) = tokio::select! {
            request = signals.next() => (request, Trigger::Signal),
            trigger = changed => (SignalRequest::Reload, trigger),
            order = control.next() => match order.action {
                Action::Reload => {
                    asked = Some(order.answer);
                    (SignalRequest::Reload, Trigger::Operator(order.by))
                }
                Action::Drain(_) | Action::Resume(_) | Action::LogLevel(_) => {
                    control::carry_out(order, server, logging);
                    continue;
                }
            },
            process = upgrades.accept() => {
                if let Some(ending) = upgrade(server, signals, control, upgrades, Some(process)).await {
                    return ending;
                }
                continue;
            }
        };
        match request {
            SignalRequest::Stop(signal) => return RunEnd::Stop(signal),
            SignalRequest::Upgrade => {
                if let Some(ending) = upgrade(server, signals, control, upgrades, None).await {
                    return ending;
                }
            }
            SignalRequest::Reload => {
                notifier.notify(Notification::Reloading);
                let started = Clock::now();
                // Loading can be interrupted, because a file system may hang. What follows must not be: it would be half applied.
                let loaded = tokio::select! {
                    loaded = load(server, file.as_deref_mut()) => loaded,
                    never = control.meanwhile(server, logging) => match never {},
                    signal = signals.stop(Busy::Reloading) => return RunEnd::Stop(signal),
                };
                let was_held_back = std::mem::take(&mut is_held_back);
                let may_remove_most = !matches!(trigger, Trigger::Watch | Trigger::Retry) || was_held_back;
                let reloaded = match loaded {
                    Ok(loaded) => match removes_most(server, &loaded.config).filter(|_| !may_remove_most) {
                        Some(reason) => {
                            is_held_back = true;
                            if let Some((watch, _)) = &mut file {
                                watch.set_held_back();
                            }
                            Err(anyhow!(reason))
                        }
                        None => apply(server, loaded, trigger, started, logging).await,
                    },
                    Err(reason) => Err(reason),
                };
                match reloaded {
                    Ok((watches_now, differences)) => {
                        (watches, failure) = (watches_now, None);
                        tell(asked, Ok(differences));
                    }
                    Err(reason) => {
                        let reason = format!("{reason:#}");
                        tell(asked, Err(&reason));
                        server.counters().reloads.fail(&reason);
                        if trigger != Trigger::Retry || failure.as_ref() != Some(&reason) {
                            log_failed(trigger, &reason);
                        }
                        failure = Some(reason);
                    }
                }
                notifier.notify(Notification::Serving);
            }
        }
    }
}

/// A valid configuration that can be applied.
struct Loadable {
    path: PathBuf,
    config: Config,
}

/// Loads the files, once the listeners that the last reload removed are closed.
async fn load(server: &Server, file: Option<&mut (FileWatch, ConfigSource)>) -> anyhow::Result<Loadable> {
    let (watch, source) = file.context("no configuration file: snigate was started without one")?;
    server.wait_for_closing_listeners().await;
    let from = source.clone();
    // For 100,000 routes this takes a while.
    let loaded = tokio::task::spawn_blocking(move || from.load()).await?;
    watch.set_loaded(loaded.inputs);
    Ok(Loadable { path: source.path.clone(), config: loaded.config? })
}

/// Why a change of the watched files is held back: one that removes most routes may be a mistake.
fn removes_most(server: &Server, config: &Config) -> Option<String> {
    let (removed, of) = server.removed_by(config);
    let is_most = removed > 1 && removed > of / 2;
    is_most.then(|| {
        format!("the change removes {removed} of {of} routes; to apply it, write the file again or send SIGHUP")
    })
}

/// Tells the operator, who may have left, the result of the reload.
fn tell(asked: Option<oneshot::Sender<Result<Value, String>>>, result: Result<Changes, &str>) {
    if let Some(asked) = asked {
        let _ = asked.send(result.map(reloaded).map_err(Into::into));
    }
}

fn reloaded(Changes { added, changed, removed, unchanged }: Changes) -> Value {
    json!({"added": added, "changed": changed, "removed": removed, "unchanged": unchanged})
}

/// Applies a configuration. Returns whether to watch the file, and what has changed.
async fn apply(
    server: &mut Server,
    loaded: Loadable,
    trigger: Trigger,
    started: Clock,
    logging: &Logging,
) -> anyhow::Result<(bool, Changes)> {
    let Loadable { path, mut config } = loaded;
    let unmatched_includes = std::mem::take(&mut config.unmatched_includes);
    let (watches, level) = (config.watch, config.log.level);
    let reloaded = server.reload(config).await;
    let changes = reloaded.with_context(|| path.display().to_string())?;
    logging.set_level(level);
    log_reloaded(trigger, Some(&path), server, changes, started);
    warn_of_includes(&unmatched_includes);
    Ok((watches, changes))
}

/// Logs a reload that has succeeded, of this configuration file if there is one.
fn log_reloaded(trigger: Trigger, file: Option<&Path>, server: &Server, changes: Changes, started: Clock) {
    let Changes { added, changed, removed, unchanged } = changes;
    let (by, (user, process)) = (trigger.label(), trigger.operator());
    info!(
        file = file.map(|file| tracing::field::display(file.display())),
        by,
        operator.user = user,
        operator.process = process,
        listeners = server.count_listeners(),
        routes = added + changed + unchanged,
        added,
        changed,
        removed,
        unchanged,
        took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "reloaded"
    );
}

fn log_failed(trigger: Trigger, reason: &str) {
    let (by, (user, process)) = (trigger.label(), trigger.operator());
    error!(
        by,
        operator.user = user,
        operator.process = process,
        reason,
        "reload failed; keeping the running configuration"
    );
}

fn warn_of_includes(unmatched: &[String]) {
    for pattern in unmatched {
        warn!(include = pattern, "include matches no file");
    }
}

/// Starts a new process, or serves the one that has connected. `None`: that failed, and this one continues to serve.
async fn upgrade(
    server: &mut Server,
    signals: &mut Signals,
    control: &Control,
    upgrades: &UpgradeListener,
    connected: Option<UnixStream>,
) -> Option<RunEnd> {
    info!("upgrading");
    let starting = async {
        let sockets = upgrade::Sockets {
            listeners: server.sockets()?,
            upgrade: upgrades.try_clone()?,
            control: control.try_clone()?,
            drained: server.drained().into_iter().map(|Drained { route, endpoint }| (route, endpoint)).collect(),
        };
        match connected {
            Some(process) => upgrade::accept(process, sockets).await,
            None => upgrade::start(sockets).await,
        }
    };
    let started = tokio::select! {
        started = starting => started,
        signal = signals.stop(Busy::Upgrading) => {
            info!("upgrade aborted");
            return Some(RunEnd::Stop(signal));
        }
    };
    match started {
        Ok(successor) => {
            let process = successor.process;
            info!(process, "upgraded; the new process serves");
            if signals.take_reload()
                && let Some(process) = process
            {
                // It may have read the file before the change.
                send_reload(process);
            }
            Some(RunEnd::Upgraded(successor))
        }
        Err(reason) => {
            error!(%reason, "upgrade failed; this process continues to serve");
            None
        }
    }
}

fn send_reload(process: u32) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    if let Some(Err(reason)) = process.map(|process| kill_process(process, rustix::process::Signal::HUP)) {
        warn!(%reason, "cannot send SIGHUP to the new process");
    }
}

async fn stop(server: &mut Server, mut signals: Signals) -> ExitCode {
    tokio::select! {
        _ = server.drain() => ExitCode::SUCCESS,
        signal = signals.stop(Busy::Draining) => exit_immediately(signal, server.connections()),
    }
}

/// Hands connections over to the successor, those that still arrive from a predecessor too, and drains what stays for
/// `timeouts.upgrade_drain`, or for `timeouts.drain` after a signal to stop.
async fn step_back(
    server: &mut Server,
    successor: Successor,
    arrivals: Option<JoinHandle<()>>,
    mut signals: Signals,
) -> ExitCode {
    let drain = server.timeouts().drain;
    let taken_over = successor.taken_over.clone();
    // Before the listeners are closed, which may have to wait for room.
    match successor.into_channel() {
        Ok(channel) => {
            tokio::spawn(hand_over::send(channel, server.departures(), server.count_connections(), drain));
        }
        Err(reason) => warn!(%reason, "cannot hand connections over to the new process"),
    }
    server.step_back(&taken_over).await;
    let deadline = Instant::now() + server.timeouts().upgrade_drain;
    let finished = async {
        if let Some(arrivals) = arrivals {
            let _ = timeout_at(deadline, arrivals).await;
        }
        server.finish(deadline).await
    };
    let sooner = tokio::select! {
        _ = finished => {
            if std::process::id() == 1 {
                // If it exited, the container would be started again, and take over in its turn.
                info!("handed over; waiting to be stopped, because the container ends with this process");
                signals.stop(Busy::Draining).await;
            }
            return ExitCode::SUCCESS;
        }
        signal = signals.stop(Busy::Draining) => {
            info!(signal, "shutting down; repeat the signal to exit immediately");
            deadline.min(Instant::now() + drain)
        }
    };
    tokio::select! {
        _ = server.finish(sooner) => ExitCode::SUCCESS,
        signal = signals.stop(Busy::Draining) => exit_immediately(signal, server.connections()),
    }
}

fn exit_immediately(signal: &str, cut: usize) -> ! {
    warn!(signal, cut, "exiting immediately");
    logging::finish();
    // Without waiting for anything, not even for tasks to be dropped.
    std::process::exit(1)
}
