//! Log lines on standard error.

use std::io::{IsTerminal, stderr};

use snigate::config::{Log, LogFormat};
use tracing::{error, warn};
use tracing_subscriber::EnvFilter;

/// Begins to log. `RUST_LOG` wins over the configured level.
pub(crate) fn start(log: &Log) {
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
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
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
}
