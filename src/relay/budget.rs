//! Bytes that wait in our memory, for the rest of a hello or for a peer that does not take them, and how many of all
//! connections together should. When there are more, large hellos are refused, and less is read for slow readers.

use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

// Of the process, as its memory is.
static BUFFERED: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// How many bytes should be held at the most.
pub(crate) fn set_limit(bytes: usize) {
    LIMIT.store(bytes, Relaxed);
}

/// How many bytes should be held at the most.
pub(crate) fn limit() -> usize {
    LIMIT.load(Relaxed)
}

/// How many bytes are held.
pub(crate) fn bytes() -> usize {
    BUFFERED.load(Relaxed)
}

/// Whether so many more may be held.
pub(crate) fn has_room_for(more: usize) -> bool {
    bytes().saturating_add(more) <= limit()
}

/// There is no room for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// So many bytes, given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Reservation(usize);

impl Reservation {
    pub(crate) fn is_none(&self) -> bool {
        self.0 == 0
    }

    /// From now on it is so many, if there is room for them.
    pub(crate) fn grow_to(&mut self, bytes: usize) -> Result<(), Full> {
        let more = bytes.saturating_sub(self.0);
        let fits = |held: usize| held.checked_add(more).filter(|held| *held <= limit());
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

/// Bytes that wait for a peer. It is no larger than they are: an idle connection has room for two of these.
#[derive(Debug)]
pub(crate) struct Buffered(Box<[u8]>);

impl Buffered {
    pub(crate) fn of(bytes: impl Into<Box<[u8]>>) -> Self {
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
