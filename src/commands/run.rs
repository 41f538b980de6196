//! `snigate run`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant as Clock;

use anyhow::Context as _;
use snigate::config::{Config, ConfigError, Log, LogFormat};
use snigate::server::{Changes, Inherited, Server};
use snigate::systemd::{self, Phase};
use snigate::upgrade::{self, Predecessor, UpgradeError};
use snigate::watch::Watch;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::cli::Run;
use crate::{EXIT_CONFIG, logging};

pub(super) fn run(options: Run) -> anyhow::Result<ExitCode> {
    let Run { config, listen, route, default, watch, log_format } = options;
    let source = config.map(|path| Source { path, watch, log_format: log_format.map(Into::into) });
    // Before the file is read: what is written while it is read is seen later.
    let watched = source.as_ref().map(|source| Watch::new(source.path.clone()));
    let mut config = match &source {
        Some(source) => match source.load() {
            // Its log lines follow those of the predecessor.
            Err(reason) if Predecessor::is_there() => {
                logging::start(&Log { format: source.log_format.unwrap_or(LogFormat::Auto), ..Log::default() });
                error!(%reason, "cannot start");
                return Ok(ExitCode::from(EXIT_CONFIG));
            }
            loaded => loaded?,
        },
        None => Config::from_arguments(listen, route, default)?,
    };
    if let Some(format) = log_format {
        config.log.format = format.into();
    }
    logging::start(&config.log);
    let (predecessor, inherited) = match Predecessor::meet()? {
        Some((predecessor, inherited)) => (Some(predecessor), inherited),
        None => (None, systemd::sockets()?),
    };

    let mut builder = if config.workers == Some(1) {
        runtime::Builder::new_current_thread()
    } else {
        runtime::Builder::new_multi_thread()
    };
    if let Some(workers) = config.workers {
        builder.worker_threads(workers);
    }
    let runtime = builder.enable_all().build()?;
    let file = source.zip(watched);
    let result = runtime.block_on(serve(config, file, predecessor, inherited));
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

impl Source {
    fn load(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(&self.path)?;
        config.watch |= self.watch;
        config.log.format = self.log_format.unwrap_or(config.log.format);
        Ok(config)
    }
}

async fn serve(
    config: Config,
    mut file: Option<(Source, Watch)>,
    predecessor: Option<Predecessor>,
    inherited: Vec<Inherited>,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        listeners = config.listeners.len(),
        routes = config.routes.len(),
        "starting"
    );
    let watches = config.watch;
    let mut server = match Server::start(config, inherited) {
        Ok(server) => server,
        Err(reason) => {
            error!(%reason, "cannot start");
            return Ok(ExitCode::from(if reason.is_configuration() { EXIT_CONFIG } else { 1 }));
        }
    };
    systemd::tell(Phase::Serving);
    systemd::keep_telling();
    if let Some(predecessor) = predecessor {
        predecessor.dismiss()?;
    }
    Ok(match change(&mut server, &mut signals, file.as_mut(), watches).await {
        Ending::Stop(signal) => {
            info!(signal, "stopping; once more to exit at once");
            systemd::tell(Phase::Stopping);
            stop(&mut server, signals).await
        }
        Ending::Upgraded => step_back(&mut server, signals).await,
    })
}

/// Why this process serves no more.
enum Ending {
    Stop(&'static str),
    /// Another process serves in its place.
    Upgraded,
}

/// Takes new configurations, until something ends that.
async fn change(
    server: &mut Server,
    signals: &mut Signals,
    mut file: Option<&mut (Source, Watch)>,
    mut watches: bool,
) -> Ending {
    loop {
        let changed = async {
            match &mut file {
                Some((_, watch)) if watches => watch.changed().await,
                _ => std::future::pending().await,
            }
        };
        let asked = tokio::select! {
            asked = signals.next() => Some(asked),
            () = changed => None,
        };
        match (asked, &mut file) {
            (Some(Asked::Stop(signal)), _) => return Ending::Stop(signal),
            (Some(Asked::Upgrade), _) => {
                if let Some(ending) = upgrade(server, signals).await {
                    return ending;
                }
            }
            (Some(Asked::Reload) | None, None) => {
                warn!("there is no file to reload: snigate was started without one");
            }
            (asked @ (Some(Asked::Reload) | None), Some((source, watch))) => {
                if asked.is_some() {
                    watch.take();
                }
                systemd::tell(Phase::Reloading);
                match reload(server, source).await {
                    Ok(new) => watches = new,
                    Err(reason) => {
                        server.counters().reloads.fail();
                        error!(reason = format!("{reason:#}"), "not reloaded; the running configuration stays");
                    }
                }
                systemd::tell(Phase::Serving);
            }
        }
    }
}

/// Takes what the file says now, if it is valid; whether the file is to be watched.
async fn reload(server: &mut Server, source: &Source) -> anyhow::Result<bool> {
    let begun = Clock::now();
    let from = source.clone();
    // For 100,000 routes this takes a while.
    let config = tokio::task::spawn_blocking(move || from.load()).await??;
    let (listeners, routes, watches) = (config.listeners.len(), config.routes.len(), config.watch);
    let reloaded = server.reload(config).await;
    let Changes { added, changed, removed, unchanged } = reloaded.with_context(|| source.path.display().to_string())?;
    let took_ms = begun.elapsed().as_millis();
    info!(listeners, routes, added, changed, removed, unchanged, took_ms, "reloaded");
    Ok(watches)
}

/// Starts a new process in place of this one; how this one ends, if it is to.
async fn upgrade(server: &mut Server, signals: &mut Signals) -> Option<Ending> {
    info!("upgrading");
    let starting = async {
        let sockets = server.sockets().map_err(UpgradeError::from)?;
        upgrade::start(sockets).await
    };
    tokio::pin!(starting);
    loop {
        tokio::select! {
            result = &mut starting => match result {
                Ok(process) => {
                    info!(process, "upgraded; the new process serves");
                    return Some(Ending::Upgraded);
                }
                Err(reason) => {
                    error!(%reason, "not upgraded; this process goes on");
                    return None;
                }
            },
            asked = signals.next() => match asked {
                Asked::Stop(signal) => return Some(Ending::Stop(signal)),
                Asked::Reload | Asked::Upgrade => warn!("an upgrade is under way; ignored"),
            },
        }
    }
}

async fn stop(server: &mut Server, mut signals: Signals) -> ExitCode {
    tokio::select! {
        _ = server.drain() => ExitCode::SUCCESS,
        signal = signals.stop() => exit_at_once(signal, server.connections()),
    }
}

/// Lets connections run for `timeouts.upgrade_drain`, or, once asked to stop, for `timeouts.drain`.
async fn step_back(server: &mut Server, mut signals: Signals) -> ExitCode {
    server.step_back().await;
    let deadline = Instant::now() + server.timeouts().upgrade_drain;
    let sooner = tokio::select! {
        _ = server.finish(deadline) => return ExitCode::SUCCESS,
        signal = signals.stop() => {
            info!(signal, "stopping; once more to exit at once");
            deadline.min(Instant::now() + server.timeouts().drain)
        }
    };
    tokio::select! {
        _ = server.finish(sooner) => ExitCode::SUCCESS,
        signal = signals.stop() => exit_at_once(signal, server.connections()),
    }
}

fn exit_at_once(signal: &str, cut: usize) -> ! {
    warn!(signal, cut, "exiting at once");
    // Without waiting for anything, not even for the tasks to be dropped.
    std::process::exit(1)
}

/// What a signal asks for.
#[derive(Clone, Copy)]
enum Asked {
    Stop(&'static str),
    Reload,
    Upgrade,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Asked {
        loop {
            return tokio::select! {
                _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
                _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
                _ = self.quit.recv() => Asked::Stop("SIGQUIT"),
                _ = self.hang_up.recv() => Asked::Reload,
                _ = self.user2.recv() => Asked::Upgrade,
                // It would end the process, and means something to other proxies.
                _ = self.user1.recv() => {
                    debug!("SIGUSR1 means nothing here");
                    continue;
                }
            };
        }
    }

    async fn stop(&mut self) -> &'static str {
        loop {
            match self.next().await {
                Asked::Stop(signal) => return signal,
                Asked::Reload | Asked::Upgrade => warn!("stopping; ignored"),
            }
        }
    }
}
