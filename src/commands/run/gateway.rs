//! `snigate gateway`

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant as Clock};

use crate::admin::control::Action;
use crate::config::{Config, ConfigError, LogFormat};
use crate::gateway::cluster::{Access, Cluster};
use crate::gateway::drive::Drive;
use crate::gateway::translate::Options;
use crate::process::inputs::Inputs;
use crate::process::systemd::{Notification, Notifier};
use crate::server::{Changes, Readiness, Server};
use anyhow::Context as _;
use tokio::time::timeout;
use tracing::{error, info, warn};

use super::control::{self, Control};
use super::reload::{Trigger, log_failed, log_reloaded, reloaded};
use super::signals::{SignalRequest, Signals};
use super::{Confined, confine, stop, warn_of_includes};
use crate::cli::Gateway;
use crate::commands::main::EXIT_CONFIG;
use crate::commands::{runtime, served};
use crate::logging::{self, Logging};

/// For the API server, to release the Lease.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

pub(in crate::commands) fn run(arguments: Gateway) -> anyhow::Result<ExitCode> {
    let signals = Signals::catch()?;
    let (base, access, options) = split(arguments);
    let config = base.load()?;
    let control = config.control.as_ref().map(|path| control::find(path, false));
    let control = control::socket(config.control.as_deref(), None, control, false)?;
    let (config, logging) = match confine(config, || Some(base.load()))? {
        Confined::Running(config, logging) => (*config, logging),
        Confined::Refused => return Ok(ExitCode::FAILURE),
    };
    let runtime = runtime::build(config.workers)?;
    let running = serve(config, base, access, options, control, logging, signals);
    let result = runtime.block_on(running).unwrap_or_else(|reason| {
        error!(reason = format!("{reason:#}"), "cannot start");
        ExitCode::FAILURE
    });
    runtime.shutdown_background();
    Ok(result)
}

/// The base configuration.
struct Base {
    path: Option<PathBuf>,
    log_format: Option<LogFormat>,
}

impl Base {
    fn load(&self) -> Result<Config, ConfigError> {
        let mut config = match &self.path {
            Some(path) => Config::read_base(path, &mut Inputs::default())?,
            None => Config::empty_base()?,
        };
        config.log.set_format(self.log_format);
        Ok(config)
    }
}

fn split(arguments: Gateway) -> (Base, Access, Options) {
    let Gateway { config, served, no_status, kubeconfig, watch_seconds, log_format } = arguments;
    let (access, options) = served::access_and_options(served, kubeconfig, !no_status, watch_seconds);
    let base = Base { path: config, log_format: log_format.map(Into::into) };
    (base, access, options)
}

async fn serve(
    config: Config,
    base: Base,
    access: Access,
    options: Options,
    control: Option<UnixListener>,
    logging: Logging,
    mut signals: Signals,
) -> anyhow::Result<ExitCode> {
    let pid = std::process::id();
    info!(version = env!("CARGO_PKG_VERSION"), pid, controller = access.controller, "starting");
    warn_of_includes(&config.unmatched_includes);
    let cluster = Cluster::watch(access).await.context("Kubernetes")?;
    let mut server = match Server::start(config.clone(), Vec::new(), &[], Readiness::Later) {
        Ok((server, _)) => server,
        Err(reason) => {
            error!(%reason, "cannot start");
            return Ok(ExitCode::from(if reason.is_configuration() { EXIT_CONFIG } else { 1 }));
        }
    };
    logging::report_lost_lines(std::sync::Arc::clone(server.counters()));
    let mut control = Control::start(&mut server, control)?;
    let notifier = Notifier::from_env();
    let _watchdog = notifier.start_watchdog();
    notifier.notify(Notification::Serving);
    let mut drive = Drive::new(cluster, options, config);
    let signal = follow(&mut drive, &mut server, &base, &mut control, &logging, &mut signals).await;
    drop(control);
    info!(signal, "shutting down; repeat the signal to exit immediately");
    notifier.notify_now(Notification::Stopping).await;
    let (code, _) = tokio::join!(stop(&mut server, signals), timeout(CLOSE_TIMEOUT, drive.close()));
    Ok(code)
}

/// Serves what the cluster says until a signal to stop.
async fn follow(
    drive: &mut Drive,
    server: &mut Server,
    base: &Base,
    control: &mut Control,
    logging: &Logging,
    signals: &mut Signals,
) -> &'static str {
    loop {
        tokio::select! {
            () = drive.due() => {
                server.wait_for_closing_listeners().await;
                drive.apply(server).await;
            }
            () = server.time_to_open_admin() => server.open_admin(),
            order = control.next() => match order.action {
                Action::Reload => {
                    let answer = reload(drive, server, base, logging, Trigger::Operator(order.by)).await;
                    // The operator may have left.
                    let _ = order.answer.send(answer.map(reloaded));
                }
                Action::Drain(_) | Action::Resume(_) | Action::LogLevel(_) => control::carry_out(order, server, logging),
            },
            request = signals.next() => match request {
                SignalRequest::Stop(signal) => return signal,
                SignalRequest::Reload => {
                    // The failure was logged.
                    let _ = reload(drive, server, base, logging, Trigger::Signal).await;
                }
                SignalRequest::Upgrade => {
                    warn!("SIGUSR2 ignored: in a cluster, replace the Pod");
                }
            },
        }
    }
}

/// Reads the base configuration again.
async fn reload(
    drive: &mut Drive,
    server: &mut Server,
    base: &Base,
    logging: &Logging,
    trigger: Trigger,
) -> Result<Changes, String> {
    let started = Clock::now();
    let applied = async {
        let config = base.load().map_err(|reason| reason.to_string())?;
        let level = config.log.level;
        server.wait_for_closing_listeners().await;
        let changes = drive.rebase(server, config).await.map_err(|reason| reason.to_string())?;
        logging.set_level(level);
        Ok::<_, String>(changes)
    };
    match applied.await {
        Ok(changes) => {
            log_reloaded(trigger, base.path.as_deref(), server, changes, started);
            Ok(changes)
        }
        Err(reason) => {
            server.counters().reloads.fail(&reason);
            log_failed(trigger, &reason);
            Err(reason)
        }
    }
}
