//! The most recent rejections, for the status page.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::Outcome;

const MAX_REMEMBERED: usize = 256;

/// A rejected client.
#[derive(Clone, Debug)]
pub(crate) struct RecentRejection {
    pub(crate) at: SystemTime,
    pub(crate) client: SocketAddr,
    pub(crate) listener: Box<str>,
    /// [`UNROUTED`](super::UNROUTED) if no route was found.
    pub(crate) route: Box<str>,
    /// SNI, escaped.
    pub(crate) server_name: Option<Box<str>>,
    pub(crate) outcome: Outcome,
    pub(crate) reason: Option<Box<str>>,
}

/// The most recent rejections.
#[derive(Debug, Default)]
pub(crate) struct RecentRejections(Mutex<VecDeque<RecentRejection>>);

impl RecentRejections {
    pub(super) fn add(&self, rejection: RecentRejection) {
        let mut rejections = self.lock();
        if rejections.len() == MAX_REMEMBERED {
            rejections.pop_front();
        }
        rejections.push_back(rejection);
    }

    /// The newest first.
    pub(crate) fn newest_first(&self) -> Vec<RecentRejection> {
        self.lock().iter().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<RecentRejection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
