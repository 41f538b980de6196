//! The memory budget for buffers of all connections together: incomplete hellos, and data for slow readers. When it is
//! used up, large hellos are rejected, and less is read at a time for slow readers.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

// Per process, like its memory.
static BUFFERED: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Sets the maximum number of buffered bytes.
pub(crate) fn set_limit(bytes: usize) {
    LIMIT.store(bytes, Relaxed);
}

/// The maximum number of buffered bytes.
pub(crate) fn limit() -> usize {
    LIMIT.load(Relaxed)
}

/// The number of buffered bytes.
pub(crate) fn bytes() -> usize {
    BUFFERED.load(Relaxed)
}

/// Whether `more` bytes fit into the budget.
pub(crate) fn has_room_for(more: usize) -> bool {
    bytes().saturating_add(more) <= limit()
}

/// The budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// A number of bytes reserved in the budget, released on drop.
#[derive(Debug, Default)]
pub(crate) struct Reservation(usize);

impl Reservation {
    pub(crate) fn is_none(&self) -> bool {
        self.0 == 0
    }

    /// Grows to `bytes` in total, if the budget allows.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> Result<(), Full> {
        let more = bytes.saturating_sub(self.0);
        let fits = |used: usize| used.checked_add(more).filter(|used| *used <= limit());
        if more > 0 {
            BUFFERED.fetch_update(Relaxed, Relaxed, fits).map_err(|_| Full)?;
            self.0 += more;
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        BUFFERED.fetch_sub(self.0, Relaxed);
    }
}

/// Bytes that wait for a peer, counted in the budget even beyond its limit. Small, because every connection has two.
#[derive(Debug)]
pub(crate) struct Buffered(Box<[u8]>);

impl Buffered {
    pub(crate) fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        let bytes = bytes.into();
        BUFFERED.fetch_add(bytes.len(), Relaxed);
        Self(bytes)
    }
}

impl Deref for Buffered {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        BUFFERED.fetch_sub(self.0.len(), Relaxed);
    }
}
