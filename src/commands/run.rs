//! `snigate run`

use std::process::ExitCode;

use snigate::config::Config;
use snigate::server::Server;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use crate::cli::Run;
use crate::{EXIT_CONFIG, logging};

pub(super) fn run(options: Run) -> anyhow::Result<ExitCode> {
    let Run { config, listen, route, default, log_format } = options;
    let mut config = match config {
        Some(path) => Config::load(&path)?,
        None => Config::from_arguments(listen, route, default)?,
    };
    if let Some(format) = log_format {
        config.log.format = format.into();
    }
    logging::start(&config.log);

    let mut builder = if config.workers == Some(1) {
        runtime::Builder::new_current_thread()
    } else {
        runtime::Builder::new_multi_thread()
    };
    if let Some(workers) = config.workers {
        builder.worker_threads(workers);
    }
    let runtime = builder.enable_all().build()?;
    let result = runtime.block_on(serve(config));
    // A name that is still being resolved must not hold up the exit.
    runtime.shutdown_background();
    result
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        listeners = config.listeners.len(),
        routes = config.routes.len(),
        "starting"
    );
    let mut server = match Server::start(config) {
        Ok(server) => server,
        Err(reason) => {
            error!(%reason, "cannot start");
            return Ok(ExitCode::from(if reason.is_configuration() { EXIT_CONFIG } else { 1 }));
        }
    };
    let name = signals.next().await;
    info!(signal = name, "stopping; once more to exit at once");
    tokio::select! {
        _ = server.drain() => Ok(ExitCode::SUCCESS),
        name = signals.next() => {
            warn!(signal = name, cut = server.connections(), "exiting at once");
            // Without waiting for anything, not even for the tasks to be dropped.
            std::process::exit(1)
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
