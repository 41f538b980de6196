//! Bytes that wait in our memory, for the rest of a hello or for a peer that does not take them, and how many of all
//! connections together may. When there are too many, who wants to hold more is let go: those who came before stay.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static HELD: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// How many bytes may be held.
pub fn set_limit(bytes: usize) {
    LIMIT.store(bytes, Relaxed);
}

/// How many bytes may be held.
#[must_use]
pub fn limit() -> usize {
    LIMIT.load(Relaxed)
}

/// How many bytes are held.
#[must_use]
pub fn bytes() -> usize {
    HELD.load(Relaxed)
}

/// There is no room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// So many bytes, given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Charge(usize);

impl Charge {
    pub(crate) fn bytes(&self) -> usize {
        self.0
    }

    /// Some more, if there is room for them.
    pub(crate) fn add(&mut self, bytes: usize) -> Result<(), Full> {
        let before = HELD.fetch_add(bytes, Relaxed);
        if before.saturating_add(bytes) > limit() {
            HELD.fetch_sub(bytes, Relaxed);
            return Err(Full);
        }
        self.0 += bytes;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        HELD.fetch_sub(self.0, Relaxed);
    }
}

/// Bytes that wait for a peer. It is no larger than they are: an idle connection has room for two of these.
#[derive(Debug)]
pub(crate) struct Held(Box<[u8]>);

impl Held {
    /// A copy of these bytes, if there is room for them.
    pub(crate) fn copy(bytes: &[u8]) -> Result<Self, Full> {
        let mut charge = Charge::default();
        charge.add(bytes.len())?;
        std::mem::forget(charge);
        Ok(Self(bytes.into()))
    }

    /// These bytes, which are there already.
    pub(crate) fn of(bytes: impl Into<Box<[u8]>>) -> Self {
        let bytes = bytes.into();
        HELD.fetch_add(bytes.len(), Relaxed);
        Self(bytes)
    }
}

impl Deref for Held {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(self.0.len(), Relaxed);
    }
}
