//! Keeps a flood of rejections from becoming a flood of log lines.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{Level, event};

use super::Outcome;
use strum::{EnumCount, VariantArray};

const WINDOW: Duration = Duration::from_secs(1);

/// Limits log lines per second and outcome, and logs how many were suppressed.
#[derive(Debug)]
pub(crate) struct LineLimit {
    per_second: AtomicU32,
    windows: [Mutex<Window>; Outcome::COUNT],
}

#[derive(Debug, Default)]
struct Window {
    start: Option<Instant>,
    admitted: u32,
    suppressed: u64,
}

impl LineLimit {
    pub(super) fn new(per_second: u32) -> Self {
        Self { per_second: per_second.into(), windows: Default::default() }
    }

    pub(crate) fn set_rate(&self, per_second: u32) {
        self.per_second.store(per_second, Relaxed);
    }

    /// Whether a rejection with this outcome may be logged now.
    pub(super) fn admits(self: &Arc<Self>, outcome: Outcome) -> bool {
        let per_second = self.per_second.load(Relaxed);
        if per_second == 0 {
            return true;
        }
        let now = Instant::now();
        let mut window = self.window(outcome);
        let start = match window.start {
            Some(start) if now < start + WINDOW => start,
            _ => {
                window.start = Some(now);
                window.admitted = 0;
                now
            }
        };
        if window.admitted < per_second {
            window.admitted += 1;
            return true;
        }
        window.suppressed += 1;
        if window.suppressed == 1 {
            let log = Arc::clone(self);
            tokio::spawn(async move {
                sleep_until(start + WINDOW).await;
                log.summarise(outcome);
            });
        }
        false
    }

    /// Logs now what was suppressed so far.
    pub(crate) fn flush(&self) {
        for outcome in Outcome::VARIANTS {
            self.summarise(*outcome);
        }
    }

    fn summarise(&self, outcome: Outcome) {
        let suppressed = std::mem::take(&mut self.window(outcome).suppressed);
        if suppressed == 0 {
            return;
        }
        macro_rules! line_at {
            ($level:expr) => {
                event!($level, outcome = outcome.label(), suppressed, "rejections not logged")
            };
        }
        // As the lines would have had.
        match outcome.level() {
            Level::ERROR => line_at!(Level::ERROR),
            Level::WARN => line_at!(Level::WARN),
            Level::INFO => line_at!(Level::INFO),
            _ => line_at!(Level::DEBUG),
        }
    }

    fn window(&self, outcome: Outcome) -> std::sync::MutexGuard<'_, Window> {
        self.windows[outcome as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_are_limited_per_second_and_outcome() {
        let log = Arc::new(LineLimit::new(3));
        let admitted = |log: &Arc<LineLimit>, outcome| (0..10).filter(|_| log.admits(outcome)).count();
        assert_eq!(admitted(&log, Outcome::UnknownName), 3);
        assert_eq!(admitted(&log, Outcome::NotTls), 3);
        assert_eq!(log.window(Outcome::UnknownName).suppressed, 7);

        tokio::time::sleep(WINDOW + Duration::from_millis(1)).await;
        assert_eq!(log.window(Outcome::UnknownName).suppressed, 0, "reported, and reset");
        assert_eq!(admitted(&log, Outcome::UnknownName), 3);

        assert_eq!(admitted(&Arc::new(LineLimit::new(0)), Outcome::UnknownName), 10);
    }
}
