//! Log lines on standard error, written by a thread of their own: who reads them may be slow, or may have stopped.

mod line;
mod writer;

use std::cell::Cell;
use std::io::{IsTerminal, stderr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use snigate::account::Counters;
use snigate::config::{Log, LogFormat};
use tokio::time::interval;
use tracing::{Event, Level, Subscriber, error, warn};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use self::writer::Writer;

/// Who writes, and what tells that it has ended.
static WRITER: Mutex<Option<(Writer, Receiver<()>)>> = Mutex::new(None);

/// Begins to log. `RUST_LOG` wins over the configured level.
pub(crate) fn start(log: &Log) -> Logging {
    let (filter, ignored) = match std::env::var("RUST_LOG") {
        Ok(wanted) if !wanted.is_empty() => match wanted.parse::<Targets>() {
            Ok(filter) => (Some(filter), None),
            Err(error) => (None, Some((wanted, error))),
        },
        _ => (None, None),
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
    let (writer, end) = Writer::start();
    *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some((writer.clone(), end));
    tracing_subscriber::registry().with(filter).with(Lines { writer: writer.clone(), shape }).init();
    if let Some((value, reason)) = ignored {
        warn!(value, %reason, "RUST_LOG is ignored");
    }
    std::panic::set_hook(Box::new(|panic| {
        error!(%panic, "panicked");
    }));
    Logging { writer, level: is_configurable.then_some(level) }
}

/// Whether it is a terminal of somebody who has not said no (<https://no-color.org>).
pub(crate) fn takes_color(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn at(level: Level) -> Targets {
    Targets::new().with_default(LevelFilter::WARN).with_target("snigate", level)
}

/// Writes what waits. Lines after this are lost.
pub(crate) fn finish() {
    if let Some((writer, end)) = WRITER.lock().unwrap_or_else(PoisonError::into_inner).take() {
        writer.finish(&end);
    }
}

/// Makes a line of each event.
struct Lines {
    writer: Writer,
    shape: Shape,
}

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
        match self.shape {
            Shape::Json => line::json(&mut line, event),
            Shape::Text { is_colored } => line::text(&mut line, event, is_colored),
        }
        line.push(b'\n');
        self.writer.put(&line);
        line.clear();
        LINE.set(line);
    }
}

/// What is logged, and what could not be.
pub(crate) struct Logging {
    writer: Writer,
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

    /// Counts lost lines, and says how many there were as soon as somebody reads again. Within a tokio runtime.
    pub(crate) fn tell_losses(&self, counters: Arc<Counters>) {
        let writer = self.writer.clone();
        tokio::spawn(async move {
            let mut turn = interval(Duration::from_secs(1));
            let mut told = 0;
            loop {
                turn.tick().await;
                let lost = writer.lost();
                counters.log_lines_lost.store(lost, Relaxed);
                if lost > told {
                    warn!(lost = lost - told, "log lines were lost: they were not read fast enough");
                    told = lost;
                }
            }
        });
    }
}
