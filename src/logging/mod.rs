//! Writes log lines to standard error.

mod line;
mod writer;

use std::cell::Cell;
use std::ffi::OsString;
use std::io::{IsTerminal, stderr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::config::{Log, LogFormat};
use crate::telemetry::Counters;
use tokio::time::interval;
use tracing::{Event, Level, Subscriber, error, warn};
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use self::writer::WRITER;

/// Starts logging. `RUST_LOG` overrides the configured level.
pub(crate) fn start(log: &Log) -> Logging {
    let (filter, ignored) = match std::env::var_os("RUST_LOG").filter(|variable| !variable.is_empty()).map(targets) {
        Some(Ok(filter)) => (Some(filter), None),
        Some(Err(ignored)) => (None, Some(ignored)),
        None => (None, None),
    };
    let is_configurable = filter.is_none();
    let (filter, level) = reload::Layer::new(filter.unwrap_or_else(|| at(log.level)));
    let is_terminal = stderr().is_terminal();
    let as_json = match log.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let format = if as_json { LineFormat::Json } else { LineFormat::Text { is_colored: supports_color(&stderr()) } };
    WRITER.start();
    tracing_subscriber::registry().with(filter).with(LineLayer(format)).init();
    if let Some((value, reason)) = ignored {
        warn!(value, reason, "invalid RUST_LOG; ignored");
    }
    std::panic::set_hook(Box::new(|panic| {
        error!(%panic, "panicked");
    }));
    Logging { level: is_configurable.then_some(level) }
}

/// Whether it is a terminal and `NO_COLOR` is not set (<https://no-color.org>).
pub(crate) fn supports_color(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Parses `RUST_LOG`: levels, each global or for a target. The error is the value and the reason.
fn targets(variable: OsString) -> Result<Targets, (String, String)> {
    let text = variable.into_string().map_err(|raw| (raw.to_string_lossy().into(), "not UTF-8".to_owned()))?;
    if text.contains(['[', '{']) {
        return Err((
            text,
            "spans and fields are not supported; expected a comma-separated list of LEVEL or TARGET=LEVEL".into(),
        ));
    }
    let without_spaces: String = text.split_whitespace().collect();
    without_spaces.parse().map_err(|error: ParseError| (text, error.to_string()))
}

fn at(level: Level) -> Targets {
    let quiet = ["kube_client", "kube_runtime"].map(|target| (target, LevelFilter::OFF));
    // What those meet is logged by `gateway`, once.
    Targets::new().with_targets(quiet).with_default(LevelFilter::WARN).with_target("snigate", level)
}

/// Writes the remaining lines. Later lines are lost.
pub(crate) fn finish() {
    WRITER.finish();
}

/// Formats each event as a line.
struct LineLayer(LineFormat);

#[derive(Clone, Copy)]
enum LineFormat {
    Json,
    Text { is_colored: bool },
}

impl<S: Subscriber> Layer<S> for LineLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        thread_local! {
            static LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        let mut line = LINE.take();
        match self.0 {
            LineFormat::Json => line::json(&mut line, event),
            LineFormat::Text { is_colored } => line::text(&mut line, event, is_colored),
        }
        line.push(b'\n');
        WRITER.put(&line);
        line.clear();
        LINE.set(line);
    }
}

/// Changes the level of the running log.
pub(crate) struct Logging {
    /// `None`: the level is set by `RUST_LOG`.
    level: Option<reload::Handle<Targets, Registry>>,
}

impl Logging {
    /// Whether the level can be changed.
    pub(crate) fn is_configurable(&self) -> bool {
        self.level.is_some()
    }

    /// Changes the level, unless `RUST_LOG` is set.
    pub(crate) fn set_level(&self, level: Level) {
        if let Some(Err(reason)) = self.level.as_ref().map(|handle| handle.reload(at(level))) {
            warn!(%reason, "cannot change log.level");
        }
    }
}

/// Counts lost lines, and logs how many as soon as lines are being read again. Must be called within a tokio runtime.
pub(crate) fn report_lost_lines(counters: Arc<Counters>) {
    tokio::spawn(async move {
        let mut tick = interval(Duration::from_secs(1));
        let mut reported = 0;
        loop {
            tick.tick().await;
            let lost = WRITER.lost();
            counters.log_lines_lost.store(lost, Relaxed);
            if lost > reported && WRITER.is_read() {
                warn!(lost = lost - reported, "log lines lost: standard error failed or was too slow");
                reported = lost;
            }
        }
    });
}
