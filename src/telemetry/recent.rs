//! The last clients that were not served, and why: for whoever asks why somebody cannot get in.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::Outcome;

/// Those before are forgotten.
const MAX_REMEMBERED: usize = 256;

/// A client that was not served.
#[derive(Clone, Debug)]
pub(crate) struct RecentRejection {
    /// When.
    pub(crate) at: SystemTime,
    /// Who.
    pub(crate) client: SocketAddr,
    /// Where it arrived.
    pub(crate) listener: Box<str>,
    /// Who should have served it, if that was known.
    pub(crate) route: Box<str>,
    /// What it asked for, escaped.
    pub(crate) server_name: Option<Box<str>>,
    /// Why.
    pub(crate) outcome: Outcome,
    /// Why, in words.
    pub(crate) reason: Option<Box<str>>,
}

/// The last refusals.
#[derive(Debug, Default)]
pub(crate) struct RecentRejections(Mutex<VecDeque<RecentRejection>>);

impl RecentRejections {
    pub(super) fn note(&self, refused: RecentRejection) {
        let mut refusals = self.lock();
        if refusals.len() == MAX_REMEMBERED {
            refusals.pop_front();
        }
        refusals.push_back(refused);
    }

    /// The last one first.
    pub(crate) fn last(&self) -> Vec<RecentRejection> {
        self.lock().iter().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<RecentRejection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
