//! Slots for work in the background that may hang, kept apart by what happened last time: what hangs never delays what
//! answers.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What happened last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastResult {
    /// Nothing yet.
    None,
    /// There was an answer in time.
    Answer,
    /// There was none, or a failure.
    Failure,
}

/// How much of one kind of work may be under way at a time, in the whole process.
#[derive(Debug)]
pub(super) struct SlotPools {
    new: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    fails: Arc<Semaphore>,
}

impl SlotPools {
    pub(super) fn new(new: usize, answers: usize, fails: usize) -> Self {
        let pool = |count| Arc::new(Semaphore::new(count));
        Self { new: pool(new), answers: pool(answers), fails: pool(fails) }
    }

    /// Waits, first come first served, among the work with the same last result.
    pub(super) async fn acquire(&self, last_result: LastResult) -> OwnedSemaphorePermit {
        let pool = match last_result {
            LastResult::None => &self.new,
            LastResult::Answer => &self.answers,
            LastResult::Failure => &self.fails,
        };
        let permit = Arc::clone(pool).acquire_owned().await;
        permit.expect("never closed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_hangs_leaves_the_slots_of_what_answers() {
        let pools = SlotPools::new(1, 1, 1);
        let _hangs = pools.acquire(LastResult::Failure).await;
        let (fails, answers) = (pools.acquire(LastResult::Failure), pools.acquire(LastResult::Answer));
        tokio::pin!(fails);
        tokio::select! {
            biased;
            _ = &mut fails => panic!("it waits"),
            () = std::future::ready(()) => {}
        }
        drop(answers.await);
    }
}
