//! Log lines on standard error, written by a thread of their own: who reads them may be slow, or may have stopped.

use std::io::{BufWriter, IsTerminal, stderr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use snigate::account::Counters;
use snigate::config::{Log, LogFormat};
use tokio::time::interval;
use tracing::{error, warn};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// So many lines may wait to be written; more are lost, and counted.
const MAX_UNWRITTEN: usize = 4096;

/// Dropped, it writes what waits, but does not wait for long itself.
static WRITER: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// Begins to log. `RUST_LOG` wins over the configured level.
pub(crate) fn start(log: &Log) -> Losses {
    let configured = format!("warn,snigate={}", log.level);
    let (filter, ignored) = match std::env::var("RUST_LOG") {
        Ok(wanted) if !wanted.is_empty() => match EnvFilter::try_new(&wanted) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(configured), Some(error)),
        },
        _ => (EnvFilter::new(configured), None),
    };
    let is_terminal = stderr().is_terminal();
    let as_json = match log.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = NonBlockingBuilder::default().buffered_lines_limit(MAX_UNWRITTEN).thread_name("log");
    let (writer, guard) = lines.finish(BufWriter::new(stderr()));
    *WRITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    let losses = Losses(writer.error_counter());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    if as_json {
        subscriber.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
    } else {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        subscriber.with_ansi(is_terminal && !no_color).init();
    }
    if let Some(reason) = ignored {
        warn!(%reason, "RUST_LOG is ignored");
    }
    std::panic::set_hook(Box::new(|panic| {
        error!(%panic, "panicked");
    }));
    losses
}

/// Writes what waits. Lines after this are lost.
pub(crate) fn finish() {
    drop(WRITER.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// Lines that nobody took.
pub(crate) struct Losses(ErrorCounter);

impl Losses {
    /// Counts them, and says how many there were as soon as somebody reads again. Within a tokio runtime.
    pub(crate) fn tell(self, counters: Arc<Counters>) {
        tokio::spawn(async move {
            let mut turn = interval(Duration::from_secs(1));
            let mut told = 0;
            loop {
                turn.tick().await;
                let lost = self.0.dropped_lines();
                counters.log_lines_lost.store(lost as u64, Relaxed);
                if lost > told {
                    warn!(lost = lost - told, "log lines were lost: they were not read fast enough");
                    told = lost;
                }
            }
        });
    }
}
