//! Log lines, on standard error.

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

/// Begins to log. `RUST_LOG` wins over the configured level.
pub(crate) fn start(log: &Log) -> Logging {
    let (filter, ignored) = match std::env::var_os("RUST_LOG").filter(|wanted| !wanted.is_empty()).map(targets) {
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
    let shape = if as_json { Shape::Json } else { Shape::Text { is_colored: takes_color(&stderr()) } };
    WRITER.start();
    tracing_subscriber::registry().with(filter).with(Lines(shape)).init();
    if let Some((value, reason)) = ignored {
        warn!(value, reason, "RUST_LOG is ignored");
    }
    std::panic::set_hook(Box::new(|panic| {
        error!(%panic, "panicked");
    }));
    Logging { level: is_configurable.then_some(level) }
}

/// Whether it is a terminal of somebody who has not said no (<https://no-color.org>).
pub(crate) fn takes_color(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What `RUST_LOG` asks for: levels, each for all or for a target. Or what it is, and what is wrong with it.
fn targets(wanted: OsString) -> Result<Targets, (String, String)> {
    let text = wanted.into_string().map_err(|raw| (raw.to_string_lossy().into(), "it is not UTF-8".to_owned()))?;
    if text.contains(['[', '{']) {
        return Err((text, "spans and fields are not known here; expected LEVEL or TARGET=LEVEL, with commas".into()));
    }
    let tidy: String = text.split_whitespace().collect();
    tidy.parse().map_err(|error: ParseError| (text, error.to_string()))
}

fn at(level: Level) -> Targets {
    Targets::new().with_default(LevelFilter::WARN).with_target("snigate", level)
}

/// Writes what waits. Lines after this are lost.
pub(crate) fn finish() {
    WRITER.finish();
}

/// Makes a line of each event.
struct Lines(Shape);

#[derive(Clone, Copy)]
enum Shape {
    Json,
    Text { is_colored: bool },
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        thread_local! {
            static LINE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
        }
        let mut line = LINE.take();
        match self.0 {
            Shape::Json => line::json(&mut line, event),
            Shape::Text { is_colored } => line::text(&mut line, event, is_colored),
        }
        line.push(b'\n');
        WRITER.put(&line);
        line.clear();
        LINE.set(line);
    }
}

/// How it can be changed.
pub(crate) struct Logging {
    /// `None`: `RUST_LOG` has decided.
    level: Option<reload::Handle<Targets, Registry>>,
}

impl Logging {
    /// From now on no less than this is logged, unless `RUST_LOG` says otherwise.
    pub(crate) fn set_level(&self, level: Level) {
        if let Some(Err(reason)) = self.level.as_ref().map(|handle| handle.reload(at(level))) {
            warn!(%reason, "cannot change log.level");
        }
    }
}

/// Counts lost lines, and says how many there were as soon as somebody reads again. Within a tokio runtime.
pub(crate) fn tell_losses(counters: Arc<Counters>) {
    tokio::spawn(async move {
        let mut turn = interval(Duration::from_secs(1));
        let mut told = 0;
        loop {
            turn.tick().await;
            let lost = WRITER.lost();
            counters.log_lines_lost.store(lost, Relaxed);
            if lost > told && WRITER.is_read() {
                warn!(lost = lost - told, "log lines were lost: they could not be written, or not fast enough");
                told = lost;
            }
        }
    });
}
