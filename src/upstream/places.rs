//! Places for work in the background that may hang, kept apart by what happened last time: what hangs never delays what
//! answers.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What happened last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing yet.
    New,
    /// There was an answer in time.
    Answers,
    /// There was none, or a failure.
    Fails,
}

/// How much of one kind of work may be under way at a time, in the whole process.
#[derive(Debug)]
pub(super) struct FairPlaces {
    new: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    fails: Arc<Semaphore>,
}

impl FairPlaces {
    pub(super) fn new(new: usize, answers: usize, fails: usize) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { new: places(new), answers: places(answers), fails: places(fails) }
    }

    /// Waits, first come first served, among the work with the same standing.
    pub(super) async fn enter(&self, standing: Standing) -> OwnedSemaphorePermit {
        let places = match standing {
            Standing::New => &self.new,
            Standing::Answers => &self.answers,
            Standing::Fails => &self.fails,
        };
        let permit = Arc::clone(places).acquire_owned().await;
        permit.expect("never closed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_hangs_leaves_the_places_of_what_answers() {
        let places = FairPlaces::new(1, 1, 1);
        let _hangs = places.enter(Standing::Fails).await;
        let (fails, answers) = (places.enter(Standing::Fails), places.enter(Standing::Answers));
        tokio::pin!(fails);
        tokio::select! {
            biased;
            _ = &mut fails => panic!("it waits"),
            () = std::future::ready(()) => {}
        }
        drop(answers.await);
    }
}
