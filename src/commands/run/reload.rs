//! Reloads of the configuration file: what asks for one, and what becomes of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant as Clock};

use crate::config::{Config, ConfigError, LogFormat};
use crate::logging::Logging;
use crate::process::inputs::Inputs;
use crate::process::unix_socket::Peer;
use crate::process::watch::FileWatch;
use crate::server::{Changes, Server};
use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info};

use super::control::Control;
use super::signals::{Busy, Signals};
use super::warn_of_includes;

/// The configuration file, with the options that override it.
#[derive(Clone)]
pub(super) struct ConfigSource {
    pub(super) path: PathBuf,
    pub(super) watch: bool,
    pub(super) log_format: Option<LogFormat>,
}

/// A loaded configuration, and the files that were read.
pub(super) struct Loaded {
    pub(super) inputs: Inputs,
    pub(super) config: Result<Config, ConfigError>,
}

impl ConfigSource {
    pub(super) fn load(&self) -> Loaded {
        let with_options = |mut config: Config| {
            config.watch |= self.watch;
            config.log.set_format(self.log_format);
            config
        };
        let mut inputs = Inputs::default();
        let config = Config::read(&self.path, &mut inputs).map(with_options);
        Loaded { inputs, config }
    }
}

/// What triggers a reload.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Trigger {
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

/// When to retry a failed reload of a watched file: files that it refers to may exist by then.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Reloads the configuration file, and remembers how that went.
pub(super) struct Reloader {
    /// `None`: snigate was started without one.
    file: Option<(FileWatch, ConfigSource)>,
    /// As the running configuration says.
    watches: bool,
    /// Why the last reload failed.
    failure: Option<String>,
    retry_at: Instant,
    /// Whether that was because it would have removed most routes.
    is_held_back: bool,
    /// Whether the last attempt was allowed to remove most routes.
    is_approved: bool,
}

impl Reloader {
    pub(super) fn new(file: Option<(FileWatch, ConfigSource)>, watches: bool) -> Self {
        Self { file, watches, failure: None, retry_at: Instant::now(), is_held_back: false, is_approved: false }
    }

    /// Waits until the watched files are to be loaded again. Can be dropped and called again at any time.
    pub(super) async fn due(&mut self) -> Trigger {
        // A change that is held back is not retried.
        let has_failed = self.failure.is_some() && !self.is_held_back;
        match &mut self.file {
            Some((watch, _)) if self.watches => {
                tokio::select! {
                    () = watch.changed() => Trigger::Watch,
                    () = sleep_until(self.retry_at), if has_failed => Trigger::Retry,
                }
            }
            _ => std::future::pending().await,
        }
    }

    /// Reloads, and answers the operator who has asked for it. Returns a signal to stop that arrived before the files were
    /// loaded; nothing has changed then.
    pub(super) async fn reload(
        &mut self,
        trigger: Trigger,
        answer: Option<oneshot::Sender<Result<Value, String>>>,
        server: &mut Server,
        signals: &mut Signals,
        control: &mut Control,
        logging: &Logging,
    ) -> Option<&'static str> {
        let started = Clock::now();
        // Loading can be interrupted, because a file system may hang. What follows must not be: it would be half applied.
        let loaded = tokio::select! {
            loaded = self.load(server) => loaded,
            never = control.meanwhile(server, logging) => match never {},
            signal = signals.stop(Busy::Reloading) => return Some(signal),
        };
        let was_held_back = std::mem::take(&mut self.is_held_back);
        self.is_approved = match trigger {
            Trigger::Signal | Trigger::Operator(_) => true,
            Trigger::Watch => was_held_back,
            Trigger::Retry => self.is_approved,
        };
        let reloaded = async {
            let loaded = loaded?;
            if !self.is_approved {
                self.check_removals(server, &loaded.config)?;
            }
            self.apply(loaded, trigger, started, server, logging).await
        };
        match reloaded.await {
            Ok(changes) => {
                self.failure = None;
                answer_operator(answer, Ok(changes));
            }
            Err(reason) => {
                let reason = format!("{reason:#}");
                answer_operator(answer, Err(&reason));
                server.counters().reloads.fail(&reason);
                if trigger != Trigger::Retry || self.failure.as_ref() != Some(&reason) {
                    log_failed(trigger, &reason);
                }
                self.failure = Some(reason);
                self.retry_at = Instant::now() + RETRY_INTERVAL;
            }
        }
        None
    }

    /// Loads the files, once the listeners that the last reload removed are closed.
    async fn load(&mut self, server: &Server) -> anyhow::Result<Loadable> {
        let (watch, source) = self.file.as_mut().context("no configuration file: snigate was started without one")?;
        server.wait_for_closing_listeners().await;
        let from = source.clone();
        // For 100,000 routes this takes a while.
        let loaded = tokio::task::spawn_blocking(move || from.load()).await?;
        watch.set_loaded(loaded.inputs);
        Ok(Loadable { path: source.path.clone(), config: loaded.config? })
    }

    /// Holds back a change that removes most routes, because it may be a mistake.
    fn check_removals(&mut self, server: &Server, config: &Config) -> anyhow::Result<()> {
        let (removed, of) = server.removed_by(config);
        if removed <= 1 || removed <= of / 2 {
            return Ok(());
        }
        self.is_held_back = true;
        if let Some((watch, _)) = &mut self.file {
            watch.set_held_back();
        }
        bail!("the change removes {removed} of {of} routes; to apply it, write the file again or send SIGHUP")
    }

    /// Applies a configuration. Returns what has changed.
    async fn apply(
        &mut self,
        loaded: Loadable,
        trigger: Trigger,
        started: Clock,
        server: &mut Server,
        logging: &Logging,
    ) -> anyhow::Result<Changes> {
        let Loadable { path, mut config } = loaded;
        let unmatched_includes = std::mem::take(&mut config.unmatched_includes);
        let (watches, level) = (config.watch, config.log.level);
        let reloaded = server.reload(config).await;
        let changes = reloaded.with_context(|| path.display().to_string())?;
        self.watches = watches;
        logging.set_level(level);
        log_reloaded(trigger, Some(&path), server, changes, started);
        warn_of_includes(&unmatched_includes);
        Ok(changes)
    }
}

/// A valid configuration that can be applied.
struct Loadable {
    path: PathBuf,
    config: Config,
}

/// Sends the result of the reload to the operator, who may have left.
fn answer_operator(answer: Option<oneshot::Sender<Result<Value, String>>>, result: Result<Changes, &str>) {
    if let Some(answer) = answer {
        let _ = answer.send(result.map(reloaded).map_err(Into::into));
    }
}

pub(super) fn reloaded(Changes { added, changed, removed, unchanged }: Changes) -> Value {
    json!({"added": added, "changed": changed, "removed": removed, "unchanged": unchanged})
}

/// Logs a reload that has succeeded, of this configuration file if there is one.
pub(super) fn log_reloaded(trigger: Trigger, file: Option<&Path>, server: &Server, changes: Changes, started: Clock) {
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

pub(super) fn log_failed(trigger: Trigger, reason: &str) {
    let (by, (user, process)) = (trigger.label(), trigger.operator());
    error!(
        by,
        operator.user = user,
        operator.process = process,
        reason,
        "reload failed; keeping the running configuration"
    );
}
