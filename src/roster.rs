//! All open connections, so that they can be told to end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;
use tokio::sync::oneshot::{self, Receiver, Sender};

/// Who is here. Telling a connection costs it nothing until then: no lock per poll, some 60 bytes.
#[derive(Debug, Default)]
pub struct Roster {
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    /// A member that has been told has no sender any more, but keeps its number until it leaves.
    present: Slab<Option<Sender<()>>>,
    closed: bool,
}

/// One connection's entry; it leaves when this is dropped.
#[derive(Debug)]
pub struct Member {
    /// Ready when this connection is to end, whether with a value or an error.
    pub told: Receiver<()>,
    number: usize,
    roster: Arc<Roster>,
}

impl Roster {
    /// A connection is here.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Member {
        let (sender, told) = oneshot::channel();
        let mut members = self.members();
        let sender = (!members.closed).then_some(sender);
        let number = members.present.insert(sender);
        Member { told, number, roster: Arc::clone(self) }
    }

    /// Tells all that are here, and all that will come, to end.
    pub fn end_all(&self) {
        let mut members = self.members();
        members.closed = true;
        for (_, sender) in &mut members.present {
            // Dropped unused, it wakes its receiver too.
            sender.take();
        }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.roster.members().present.remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_are_here_and_those_who_come_late_are_told() {
        let roster = Arc::new(Roster::default());
        let (early, mut here) = (roster.enter(), roster.enter());
        drop(early);
        assert!(here.told.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        let mut waiting = tokio::spawn(async move { (&mut here.told).await });
        tokio::task::yield_now().await;
        roster.end_all();
        assert!((&mut waiting).await.unwrap().is_err());
        let mut late = roster.enter();
        assert!((&mut late.told).await.is_err());
        drop(late);
        assert!(roster.members().present.is_empty());
    }
}
