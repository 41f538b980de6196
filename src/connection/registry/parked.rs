//! Connections at rest, which have no task: the registry keeps them. See [`parking`](crate::connection::parking).

use std::io;
use std::mem;
use std::ops::Range;
use std::sync::OnceLock;

use tokio::sync::oneshot::{self, Receiver};
use tokio::time::Instant;

use super::{ConnectionEntry, Handle, Message, Registry, TaskState};
use crate::connection::parking::{Parked, ParkingLot, Unparked};

/// A moment, in tenths of a second since the registry was made.
pub(super) type Tick = u32;

/// Why a connection was not parked.
#[derive(Debug)]
pub(in crate::connection) enum ParkError {
    /// There is a message for it.
    Notified(Unparked),
    /// Its sockets cannot be watched.
    Unwatched(Unparked, io::Error),
}

impl Registry {
    /// Where connections at rest are parked, once it is set.
    pub(in crate::connection) fn lot(&self) -> &OnceLock<ParkingLot> {
        &self.lot
    }

    /// Continues the parked connection with this index, if there is one.
    pub(in crate::connection) fn resume_at(&self, index: usize) {
        if let Some(entry) = self.entries().open.get_mut(index)
            && let Some(unparked) = self.unpark(index, entry)
        {
            self.resume(unparked);
        }
    }

    /// Continues the parked connections with these indices whose deadline has passed. Whether there are higher indices.
    pub(in crate::connection) fn resume_due(&self, indices: Range<usize>) -> bool {
        // Rounded down, while deadlines are rounded up: none is early.
        let now = self.tick(Instant::now()).saturating_sub(1);
        let mut entries = self.entries();
        let has_more = entries.has_more_after(&indices);
        for index in indices {
            if let Some(entry) = entries.open.get_mut(index)
                && matches!(entry.state, TaskState::Parked { deadline, .. } if deadline <= now)
                && let Some(unparked) = self.unpark(index, entry)
            {
                self.resume(unparked);
            }
        }
        has_more
    }

    pub(super) fn unparked(&self, index: usize, connection: Box<Parked>, messages: Receiver<Message>) -> Unparked {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        Unparked { connection, handle: Handle { messages, reason: None, index, registry: self.this.upgrade() } }
    }

    pub(super) fn resume(&self, unparked: Unparked) {
        if let Some(Err(unparked)) = self.lot.get().map(|lot| lot.resume(unparked)) {
            // The runtime is shutting down. Dropping it would lock the entries again.
            mem::forget(unparked);
        }
    }

    /// Takes a connection out of its entry, if it is parked there.
    pub(super) fn unpark(&self, index: usize, entry: &mut ConnectionEntry) -> Option<Unparked> {
        if !matches!(entry.state, TaskState::Parked { .. }) {
            return None;
        }
        let (sender, messages) = oneshot::channel();
        match mem::replace(&mut entry.state, TaskState::Running(sender)) {
            TaskState::Parked { connection, .. } => Some(self.unparked(index, connection, messages)),
            TaskState::Running(_) | TaskState::Notified => None,
        }
    }

    fn tick(&self, at: Instant) -> Tick {
        u32::try_from(at.saturating_duration_since(self.created).as_millis().div_ceil(100)).unwrap_or(u32::MAX)
    }
}

impl Handle {
    /// Keeps the connection in the registry until `deadline`, or until there is an event or a message for it. Fails if there
    /// is a message already.
    pub(in crate::connection) fn park(
        mut self,
        mut connection: Box<Parked>,
        deadline: Instant,
    ) -> Result<(), ParkError> {
        let Some(registry) = self.registry.take() else {
            return Err(ParkError::Notified(Unparked { connection, handle: self }));
        };
        let mut entries = registry.entries();
        let entry = entries.open.get_mut(self.index as usize);
        let Some(entry) = entry.filter(|entry| matches!(entry.state, TaskState::Running(_))) else {
            drop(entries);
            self.registry = Some(registry);
            return Err(ParkError::Notified(Unparked { connection, handle: self }));
        };
        // Under the lock: an event that is reported before the entry is parked would not be reported again.
        let watched = registry.lot.get().ok_or_else(|| io::ErrorKind::Unsupported.into());
        if let Err(error) = watched.and_then(|lot| lot.watch(&mut connection, self.index)) {
            drop(entries);
            self.registry = Some(registry);
            return Err(ParkError::Unwatched(Unparked { connection, handle: self }, error));
        }
        entry.state = TaskState::Parked { connection, deadline: registry.tick(deadline) };
        Ok(())
    }
}
