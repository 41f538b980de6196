//! A relay at rest: its state, in this process and on its way to another one.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::liveness::Liveness;
use super::{RelaySettings, Side};

/// Everything that a relay knows besides its sockets, while nothing is buffered.
#[derive(Debug)]
pub(crate) struct Rest {
    pub(super) last_activity: Instant,
    pub(super) liveness: Liveness,
    /// Bytes delivered to the side that closed first, since it did; saturating at 4 GiB.
    pub(super) delivered_after_close: u32,
    pub(super) closed_first: Option<Side>,
    /// Whether the upstream has sent nothing yet, and that was not reported.
    pub(super) awaits_answer: bool,
    /// Whether the client and the upstream have sent anything, apart from the hello.
    pub(super) has_begun: [bool; 2],
    /// When it is next reported that the relay lasts.
    pub(super) progress_at: Option<Box<Instant>>,
}

impl Rest {
    /// The state of a relay that has not begun.
    pub(crate) fn new() -> Self {
        Self {
            last_activity: Instant::now(),
            liveness: Liveness::default(),
            delivered_after_close: 0,
            closed_first: None,
            awaits_answer: true,
            has_begun: [false; 2],
            progress_at: None,
        }
    }

    /// When the relay has to be continued, whether there is data or not.
    pub(crate) fn deadline(&self, settings: &RelaySettings) -> Instant {
        let silence = if self.closed_first.is_some() { settings.half_close } else { settings.idle };
        let end = self.last_activity + silence;
        [self.liveness.deadline(), self.progress_at.as_deref().copied()].into_iter().flatten().fold(end, Instant::min)
    }

    /// For how long no data has been moved.
    pub(crate) fn idle(&self) -> Duration {
        self.last_activity.elapsed()
    }

    /// Whether one side has closed: then a socket at rest is readable, and the relay has to be continued at once.
    pub(crate) fn is_half_closed(&self) -> bool {
        self.closed_first.is_some()
    }

    /// The state for another process. A suspicion that a peer is dead starts anew there.
    pub(crate) fn to_portable(&self) -> PortableRest {
        let now = Instant::now();
        PortableRest {
            silent: now.saturating_duration_since(self.last_activity),
            next_check: self.liveness.deadline().map(|at| at.saturating_duration_since(now)),
            delivered_after_close: self.delivered_after_close,
            closed_first: self.closed_first,
            awaits_answer: self.awaits_answer,
            has_begun: self.has_begun,
            next_progress: self.progress_at.as_deref().map(|at| at.saturating_duration_since(now)),
        }
    }
}

/// A [`Rest`] with durations in place of moments.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct PortableRest {
    silent: Duration,
    next_check: Option<Duration>,
    delivered_after_close: u32,
    closed_first: Option<Side>,
    awaits_answer: bool,
    has_begun: [bool; 2],
    next_progress: Option<Duration>,
}

impl From<PortableRest> for Rest {
    fn from(portable: PortableRest) -> Self {
        let PortableRest {
            silent,
            next_check,
            delivered_after_close,
            closed_first,
            awaits_answer,
            has_begun,
            next_progress,
        } = portable;
        let now = Instant::now();
        Self {
            last_activity: now.checked_sub(silent).unwrap_or(now),
            liveness: Liveness::with_check_at(next_check.map(|after| now + after)),
            delivered_after_close,
            closed_first,
            awaits_answer,
            has_begun,
            progress_at: next_progress.map(|after| Box::new(now + after)),
        }
    }
}
