//! `snigate run`

mod signals;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use crate::config::{self, Config, ConfigError, Log, LogFormat};
use crate::listener::InheritedSocket;
use crate::process::sandbox::{self, Entered, Sandbox};
use crate::process::systemd::{self, Manager, Phase};
use crate::process::upgrade::{self, Predecessor, Successor, UpgradeError};
use crate::process::watch::{Digest, Stamp, Watch};
use crate::server::{Changes, Server};
use anyhow::{Context as _, anyhow};
use rustix::process::{Pid, kill_process};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use self::signals::{Asked, Busy, Signals};
use super::runtime;
use crate::cli::Run;
use crate::commands::main::EXIT_CONFIG;
use crate::logging;
use crate::logging::Logging;

pub(super) fn run(options: Run) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::catch()?;
    let Run { config, listen, route, default, watch, log_format } = options;
    let log_format = log_format.map(Into::into);
    let source = config.map(|path| Source { path, watch, log_format });
    let loaded = match &source {
        Some(source) => match signals.unless_stopped(source)? {
            Some(loaded) => loaded,
            None => return Ok(ExitCode::SUCCESS),
        },
        None => Loaded { digest: None, config: Config::from_arguments(listen, route, default) },
    };
    let mut config = match loaded.config {
        // Its log lines follow those of the predecessor.
        Err(reason) if Predecessor::is_there() => {
            logging::start(&Log { format: log_format.unwrap_or(LogFormat::Auto), ..Log::default() });
            error!(%reason, "cannot start");
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
        config => config?,
    };
    config.log.format = log_format.unwrap_or(config.log.format);
    // Before there is a thread.
    let wanted = config.sandbox;
    let entered = if wanted == Sandbox::Off { Entered::default() } else { sandbox::enter() };
    if let Some(source) = source.as_ref().filter(|_| entered.had_more) {
        // What cannot be read any more could not be read by a reload either.
        config = source.load().config?;
    }
    runtime::check(config.workers)?;
    let logging = logging::start(&config.log);
    for reason in &entered.shortcomings {
        warn!(reason, "the sandbox is not complete");
    }
    if wanted == Sandbox::Require && !entered.shortcomings.is_empty() {
        error!(reason = "sandbox: require", "cannot start");
        return Ok(ExitCode::FAILURE);
    }
    let file = source.map(|source| (Watch::new(source.path.clone(), loaded.digest), source));
    Ok(start(config, file, logging, signals).unwrap_or_else(|reason| {
        error!(reason = format!("{reason:#}"), "cannot start");
        ExitCode::FAILURE
    }))
}

fn start(
    config: Config,
    file: Option<(Watch, Source)>,
    logging: Logging,
    signals: Signals,
) -> anyhow::Result<ExitCode> {
    let (predecessor, inherited) = match Predecessor::meet()? {
        Some((predecessor, inherited)) => (Some(predecessor), inherited),
        None => (None, systemd::sockets()?),
    };
    let runtime = runtime::build(config.workers)?;
    let result = runtime.block_on(serve(config, file, logging, signals, predecessor, inherited));
    // A name that is still being resolved must not hold up the exit.
    runtime.shutdown_background();
    result
}

/// Where configurations come from.
#[derive(Clone)]
struct Source {
    path: PathBuf,
    /// Whatever the file says.
    watch: bool,
    /// Whatever the file says.
    log_format: Option<LogFormat>,
}

/// What a file said, and what stands for it.
struct Loaded {
    digest: Option<Digest>,
    config: Result<Config, ConfigError>,
}

impl Signals {
    /// Loads the file on a thread of its own, of which nothing is left then; `None`: it was to stop before that was done.
    fn unless_stopped(&mut self, source: &Source) -> anyhow::Result<Option<Loaded>> {
        let from = source.clone();
        let (done, loaded) = oneshot::channel();
        let spawned = std::thread::Builder::new().name("start".into()).spawn(move || drop(done.send(from.load())));
        // Whether there are enough threads is for others to say.
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

impl Source {
    fn load(&self) -> Loaded {
        let content = match config::read(&self.path) {
            Ok(content) => content,
            Err(error) => return Loaded { digest: None, config: Err(error) },
        };
        let with_options = |mut config: Config| {
            config.watch |= self.watch;
            config.log.format = self.log_format.unwrap_or(config.log.format);
            config
        };
        let config = Config::of_file(&self.path, &content).map(with_options);
        Loaded { digest: Some(Digest::of(&content)), config }
    }
}

async fn serve(
    config: Config,
    mut file: Option<(Watch, Source)>,
    logging: Logging,
    mut signals: Signals,
    predecessor: Option<Predecessor>,
    inherited: Vec<InheritedSocket>,
) -> anyhow::Result<ExitCode> {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        pid = std::process::id(),
        listeners = config.listeners.len(),
        routes = config.routes.len(),
        "starting"
    );
    let watches = config.watch;
    let (mut server, taken) = match Server::start(config, inherited) {
        Ok(started) => started,
        Err(reason) => {
            error!(%reason, "cannot start");
            return Ok(ExitCode::from(if reason.is_configuration() { EXIT_CONFIG } else { 1 }));
        }
    };
    logging::report_lost_lines(Arc::clone(server.counters()));
    let manager = Manager::find();
    let watchdog = manager.keep_telling();
    match predecessor.map(|predecessor| predecessor.dismiss(&taken)) {
        None => manager.tell(Phase::Serving),
        // It tells the service manager who serves now.
        Some(Ok(draining)) => {
            let counters = Arc::clone(server.counters());
            tokio::spawn(async move { draining.watch(&counters).await });
        }
        Some(Err(reason)) => warn!(%reason, "the predecessor is gone"),
    }
    Ok(match change(&mut server, &mut signals, file.as_mut(), watches, &manager, &logging).await {
        Ending::Stop(signal) => {
            info!(signal, "stopping; once more to exit at once");
            manager.tell_now(Phase::Stopping).await;
            stop(&mut server, signals).await
        }
        Ending::Upgraded(successor) => {
            manager.tell_now(Phase::SucceededBy(successor.process)).await;
            if let Some(watchdog) = watchdog {
                watchdog.abort();
            }
            step_back(&mut server, successor, signals).await
        }
    })
}

/// Why this process serves no more.
enum Ending {
    Stop(&'static str),
    /// This process serves in its place.
    Upgraded(Successor),
}

/// After a reload that failed the watched file is tried again: what it needs may be there by then.
const TRY_AGAIN: Duration = Duration::from_secs(30);

/// What makes us reload.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trigger {
    Signal,
    Watch,
    /// Nothing new; what has failed is tried again.
    Again,
}

/// Takes new configurations, until something ends that.
async fn change(
    server: &mut Server,
    signals: &mut Signals,
    mut file: Option<&mut (Watch, Source)>,
    mut watches: bool,
    manager: &Manager,
    logging: &Logging,
) -> Ending {
    let mut failure: Option<String> = None;
    let mut is_held_back = false;
    loop {
        // What is held back is not tried again by itself.
        let has_failed = failure.is_some() && !is_held_back;
        let changed = async {
            match &mut file {
                Some((watch, _)) if watches => {
                    tokio::select! {
                        () = watch.changed() => Trigger::Watch,
                        () = sleep(TRY_AGAIN), if has_failed => Trigger::Again,
                    }
                }
                _ => std::future::pending().await,
            }
        };
        let (asked, trigger) = tokio::select! {
            asked = signals.next() => (asked, Trigger::Signal),
            trigger = changed => (Asked::Reload, trigger),
        };
        match asked {
            Asked::Stop(signal) => return Ending::Stop(signal),
            Asked::Upgrade => {
                if let Some(ending) = upgrade(server, signals).await {
                    return ending;
                }
            }
            Asked::Reload => {
                manager.tell(Phase::Reloading);
                let begun = Clock::now();
                // A file system may hang. What follows does not, and half of it would be worse than none.
                let loaded = tokio::select! {
                    loaded = load(server, file.as_deref_mut()) => loaded,
                    signal = signals.stop(Busy::Reloading) => return Ending::Stop(signal),
                };
                let was_held_back = std::mem::take(&mut is_held_back);
                let may_remove_most = trigger == Trigger::Signal || was_held_back;
                let reloaded = match loaded {
                    Ok(loaded) => match removes_most(server, &loaded.config).filter(|_| !may_remove_most) {
                        Some(reason) => {
                            is_held_back = true;
                            if let Some((watch, _)) = &mut file {
                                watch.has_held_back(loaded.stamp);
                            }
                            Err(anyhow!(reason))
                        }
                        None => apply(server, loaded, trigger, begun, logging).await,
                    },
                    Err(reason) => Err(reason),
                };
                match reloaded {
                    Ok(new) => (watches, failure) = (new, None),
                    Err(reason) => {
                        let reason = format!("{reason:#}");
                        server.counters().reloads.fail(&reason);
                        if trigger != Trigger::Again || failure.as_ref() != Some(&reason) {
                            error!(reason, "not reloaded; the running configuration stays");
                        }
                        failure = Some(reason);
                    }
                }
                manager.tell(Phase::Serving);
            }
        }
    }
}

/// What a file said that may be applied.
struct Loadable {
    path: PathBuf,
    config: Config,
    stamp: Option<Stamp>,
}

/// What the file says now, if it is valid, once the listeners that the last reload has removed are closed.
async fn load(server: &Server, file: Option<&mut (Watch, Source)>) -> anyhow::Result<Loadable> {
    let (watch, source) = file.context("there is no file: snigate was started without one")?;
    server.settle().await;
    let stamp = watch.stamp().await;
    let from = source.clone();
    // For 100,000 routes this takes a while.
    let loaded = tokio::task::spawn_blocking(move || from.load()).await?;
    watch.has_taken(loaded.digest);
    Ok(Loadable { path: source.path.clone(), config: loaded.config?, stamp })
}

/// Why a watched file is not applied as soon as it changes: half of it may be missing by mistake.
fn removes_most(server: &Server, config: &Config) -> Option<String> {
    let (removed, of) = server.removed_by(config);
    let is_most = removed > 1 && removed > of / 2;
    is_most.then(|| {
        format!("the watched file removes {removed} of {of} routes; to apply it write it once more, or send SIGHUP")
    })
}

/// Serves as it says; whether the file is to be watched.
async fn apply(
    server: &mut Server,
    loaded: Loadable,
    trigger: Trigger,
    begun: Clock,
    logging: &Logging,
) -> anyhow::Result<bool> {
    let Loadable { path, config, stamp: _ } = loaded;
    let file = path.display().to_string();
    let (listeners, routes, watches) = (config.listeners.len(), config.routes.len(), config.watch);
    let level = config.log.level;
    let reloaded = server.reload(config).await;
    let Changes { added, changed, removed, unchanged } = reloaded.with_context(|| file.clone())?;
    logging.set_level(level);
    let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let by = match trigger {
        Trigger::Signal => "SIGHUP",
        Trigger::Watch | Trigger::Again => "watch",
    };
    info!(file, by, listeners, routes, added, changed, removed, unchanged, took_ms, "reloaded");
    Ok(watches)
}

/// Starts a new process in place of this one; how this one ends, if it is to.
async fn upgrade(server: &mut Server, signals: &mut Signals) -> Option<Ending> {
    info!("upgrading");
    let starting = async {
        let sockets = server.sockets().map_err(UpgradeError::from)?;
        upgrade::start(sockets).await
    };
    let started = tokio::select! {
        started = starting => started,
        signal = signals.stop(Busy::Upgrading) => {
            info!("the upgrade is given up");
            return Some(Ending::Stop(signal));
        }
    };
    match started {
        Ok(successor) => {
            let process = successor.process;
            info!(process, "upgraded; the new process serves");
            if signals.forget_reload() {
                // It may have read the file before it was changed.
                send_reload(process);
            }
            Some(Ending::Upgraded(successor))
        }
        Err(reason) => {
            error!(%reason, "not upgraded; this process goes on");
            None
        }
    }
}

fn send_reload(process: u32) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    if let Some(Err(reason)) = process.map(|process| kill_process(process, rustix::process::Signal::HUP)) {
        warn!(%reason, "cannot ask the new process to reload");
    }
}

async fn stop(server: &mut Server, mut signals: Signals) -> ExitCode {
    tokio::select! {
        _ = server.drain() => ExitCode::SUCCESS,
        signal = signals.stop(Busy::Draining) => exit_at_once(signal, server.connections()),
    }
}

/// Lets connections run for `timeouts.upgrade_drain`, or, once asked to stop, for `timeouts.drain`.
async fn step_back(server: &mut Server, successor: Successor, mut signals: Signals) -> ExitCode {
    server.step_back(&successor.taken).await;
    if let Err(reason) = successor.keep_telling(server.count_connections()) {
        warn!(%reason, "the new process cannot be told how many connections are left here");
    }
    let deadline = Instant::now() + server.timeouts().upgrade_drain;
    let sooner = tokio::select! {
        _ = server.finish(deadline) => return ExitCode::SUCCESS,
        signal = signals.stop(Busy::Draining) => {
            info!(signal, "stopping; once more to exit at once");
            deadline.min(Instant::now() + server.timeouts().drain)
        }
    };
    tokio::select! {
        _ = server.finish(sooner) => ExitCode::SUCCESS,
        signal = signals.stop(Busy::Draining) => exit_at_once(signal, server.connections()),
    }
}

fn exit_at_once(signal: &str, cut: usize) -> ! {
    warn!(signal, cut, "exiting at once");
    logging::finish();
    // Without waiting for anything else, not even for the tasks to be dropped.
    std::process::exit(1)
}
