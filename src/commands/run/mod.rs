//! `snigate run`

mod control;
#[cfg(feature = "gateway")]
mod gateway;
mod hand_over;
mod reload;
mod signals;
mod upgrades;

use std::process::ExitCode;
use std::sync::Arc;

use crate::admin::control::Action;
use crate::config::{Config, ConfigError, Log, LogFormat};
use crate::process::inputs::Inputs;
use crate::process::sandbox::{self, Entered, Sandbox, Transparent};
use crate::process::systemd::{self, Notification, Notifier};
use crate::process::unix_socket::{self, Found, SocketError};
use crate::process::upgrade::{self, NotTakenOver, Predecessor, Successor};
use crate::process::watch::FileWatch;
use crate::server::{Readiness, Server};
use crate::upstream::Drained;
use anyhow::Context as _;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use self::control::Control;
#[cfg(feature = "gateway")]
pub(super) use self::gateway::run as run_gateway;
use self::reload::{ConfigSource, Loaded, Reloader, Trigger};
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
    config.log.set_format(log_format);
    // Before the sandbox forbids it. A process that was started by an upgrade inherits the socket.
    let running = match &config.upgrade_socket {
        Some(path) if !Predecessor::exists() => Some(unix_socket::open(upgrades::KEY, path)?),
        _ => None,
    };
    let has_predecessor = Predecessor::exists() || matches!(running, Some(Found::Running(_)));
    let control = match config.control.as_ref().map(|path| control::find(path, has_predecessor)) {
        // A process that was started by an upgrade is already in the sandbox, and serves without it.
        Some(Err(reason)) if !Predecessor::exists() => return Err(reason.into()),
        control => control,
    };
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

/// Starts jemalloc's background thread, which returns unused memory to the system.
#[cfg(feature = "jemalloc")]
fn start_thread_of_allocator() -> anyhow::Result<()> {
    let started = tikv_jemalloc_ctl::max_background_threads::write(1)
        .and_then(|()| tikv_jemalloc_ctl::background_thread::write(true));
    started.map_err(|reason| anyhow::anyhow!("cannot create threads: the allocator's: {reason}"))
}

/// What was found at the paths of the configuration.
struct FoundSockets {
    /// At `upgrade.socket`.
    running: Option<Found>,
    /// At `control`.
    control: Option<Result<Found, SocketError>>,
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

async fn serve(
    config: Config,
    file: Option<(FileWatch, ConfigSource)>,
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
    let reloader = Reloader::new(file, config.watch);
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
    let (mut arrivals, mut stopped) = (None, None);
    if let Some(predecessor) = predecessor {
        tokio::select! {
            taken_over = predecessor.take_over(&adopted) => match taken_over {
                Ok(channel) => {
                    let counters = Arc::clone(server.counters());
                    arrivals = Some(tokio::spawn(hand_over::receive(channel, server.adopter(), counters)));
                }
                Err(reason @ NotTakenOver::Refused) => {
                    error!(%reason, "cannot start");
                    return Ok(upgrades::yield_to_running(&mut server, &adopted, signals).await);
                }
                Err(NotTakenOver::Lost(reason)) => warn!(%reason, "lost the connection to the old process"),
            },
            signal = signals.stop(Busy::Starting) => stopped = Some(RunEnd::Stop(signal)),
        }
    }
    let ended = if let Some(stopped) = stopped {
        stopped
    } else {
        let sources = RequestSources { signals: &mut signals, control: &mut control, upgrades: &upgrades };
        reload_until_stopped(&mut server, sources, reloader, &notifier, &logging).await
    };
    // What operators ask for now is refused, and no process takes over from this one. A successor has duplicates.
    drop((control, upgrades));
    Ok(match ended {
        RunEnd::Stop(signal) => {
            info!(signal, "shutting down; repeat the signal to exit immediately");
            notifier.notify_now(Notification::Stopping).await;
            stop(&mut server, signals).await
        }
        RunEnd::Upgraded { successor, stopped } => {
            if let Some(process) = successor.process.filter(|_| successor.is_child) {
                notifier.notify_now(Notification::SucceededBy(process)).await;
            }
            if let Some(watchdog) = watchdog {
                watchdog.abort();
            }
            upgrades::yield_to_successor(&mut server, successor, stopped, arrivals, signals).await
        }
    })
}

/// Why this process stops serving.
enum RunEnd {
    Stop(&'static str),
    /// A new process serves. `stopped`: a signal to stop came before it did.
    Upgraded {
        successor: Successor,
        stopped: Option<&'static str>,
    },
}

/// Where requests come from.
struct RequestSources<'e> {
    signals: &'e mut Signals,
    control: &'e mut Control,
    /// Processes that want to take over.
    upgrades: &'e UpgradeListener,
}

/// Reloads on signals, file changes and orders, until the process is to stop serving.
async fn reload_until_stopped(
    server: &mut Server,
    sources: RequestSources<'_>,
    mut reloader: Reloader,
    notifier: &Notifier,
    logging: &Logging,
) -> RunEnd {
    let RequestSources { signals, control, upgrades } = sources;
    loop {
        // Who waits for the result.
        let mut answer = None;
        let (request, trigger) = tokio::select! {
            request = signals.next() => (request, Trigger::Signal),
            trigger = reloader.due() => (SignalRequest::Reload, trigger),
            order = control.next() => match order.action {
                Action::Reload => {
                    answer = Some(order.answer);
                    (SignalRequest::Reload, Trigger::Operator(order.by))
                }
                Action::Drain(_) | Action::Resume(_) | Action::LogLevel(_) => {
                    control::carry_out(order, server, logging);
                    continue;
                }
            },
            () = server.time_to_open_admin() => {
                server.open_admin();
                continue;
            }
            process = upgrades.accept() => {
                if let Some(ending) = upgrades::upgrade(server, signals, control, upgrades, Some(process)).await {
                    return ending;
                }
                continue;
            }
        };
        match request {
            SignalRequest::Stop(signal) => return RunEnd::Stop(signal),
            SignalRequest::Upgrade => {
                if let Some(ending) = upgrades::upgrade(server, signals, control, upgrades, None).await {
                    return ending;
                }
            }
            SignalRequest::Reload => {
                notifier.notify(Notification::Reloading);
                if let Some(signal) = reloader.reload(trigger, answer, server, signals, control, logging).await {
                    return RunEnd::Stop(signal);
                }
                notifier.notify(Notification::Serving);
            }
        }
    }
}

fn warn_of_includes(unmatched: &[String]) {
    for pattern in unmatched {
        warn!(include = pattern, "include matches no file");
    }
}

async fn stop(server: &mut Server, mut signals: Signals) -> ExitCode {
    tokio::select! {
        _ = server.drain() => ExitCode::SUCCESS,
        signal = signals.stop(Busy::Draining) => exit_immediately(signal, server.connections()),
    }
}

fn exit_immediately(signal: &str, cut: usize) -> ! {
    warn!(signal, cut, "exiting immediately");
    logging::finish();
    // Without waiting for anything, not even for tasks to be dropped.
    std::process::exit(1)
}
