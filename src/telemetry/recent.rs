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
pub struct Refused {
    /// When.
    pub at: SystemTime,
    /// Who.
    pub client: SocketAddr,
    /// Where it arrived.
    pub listener: Box<str>,
    /// Who should have served it, if that was known.
    pub route: Box<str>,
    /// What it asked for, escaped.
    pub server_name: Option<Box<str>>,
    /// Why.
    pub outcome: Outcome,
    /// Why, in words.
    pub reason: Option<Box<str>>,
}

/// The last refusals.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<VecDeque<Refused>>);

impl Refusals {
    pub(super) fn note(&self, refused: Refused) {
        let mut refusals = self.lock();
        if refusals.len() == MAX_REMEMBERED {
            refusals.pop_front();
        }
        refusals.push_back(refused);
    }

    /// The last one first.
    #[must_use]
    pub fn last(&self) -> Vec<Refused> {
        self.lock().iter().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Refused>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
