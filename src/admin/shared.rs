//! Responses that take long to build: built on another thread, shared by all clients that request them within a second,
//! and then dropped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Mutex as Queue, OwnedMutexGuard};
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep_until};

/// A response that took less is built anew each time: with few routes, none is outdated.
const QUICK: Duration = Duration::from_millis(10);
/// How long others are shared.
const SHARED_FOR: Duration = Duration::from_secs(1);

/// Earlier responses that slow clients may still be reading.
const MAX_OLDER: usize = 2;

/// The responses to one path.
#[derive(Debug)]
pub(super) struct Shared<T> {
    latest: Mutex<Option<Made<T>>>,
    older: Mutex<Vec<Weak<Revocable<T>>>>,
    /// Held by the request that builds the next one, for all that wait.
    making: Arc<Queue<()>>,
}

#[derive(Debug)]
struct Made<T> {
    begun: Instant,
    shared_until: Instant,
    answer: Arc<Revocable<T>>,
}

/// How old a response may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Others may just have received the same.
    Shared,
    /// Built after the request has arrived, which may take a second longer.
    New,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { latest: Mutex::default(), older: Mutex::default(), making: Arc::default() }
    }
}

impl<T> Clone for Made<T> {
    fn clone(&self) -> Self {
        Self { answer: Arc::clone(&self.answer), ..*self }
    }
}

impl<T: Send + Sync + 'static> Shared<T> {
    /// The latest response, or a new one. Fails if `make` panics.
    pub(super) async fn get(
        self: &Arc<Self>,
        freshness: Freshness,
        make: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Arc<Revocable<T>>, JoinError> {
        let asked = Instant::now();
        if let Some(answer) = self.fitting(freshness, asked) {
            return Ok(answer);
        }
        let turn = Arc::clone(&self.making).lock_owned().await;
        if let Some(answer) = self.fitting(freshness, asked) {
            return Ok(answer);
        }
        let until = self.latest().as_ref().map(|made| made.shared_until);
        if let Some(until) = until {
            sleep_until(until).await;
        }
        // Not cancelled when the client disconnects: many such clients would have it built again and again.
        tokio::spawn(Arc::clone(self).make(make, turn)).await?
    }

    fn fitting(&self, freshness: Freshness, asked: Instant) -> Option<Arc<Revocable<T>>> {
        let latest = self.latest();
        let fits = |made: &&Made<T>| match freshness {
            Freshness::Shared => Instant::now() < made.shared_until || made.begun >= asked,
            Freshness::New => made.begun >= asked,
        };
        latest.as_ref().filter(fits).map(|made| Arc::clone(&made.answer))
    }

    async fn make(
        self: Arc<Self>,
        make: impl FnOnce() -> T + Send + 'static,
        turn: OwnedMutexGuard<()>,
    ) -> Result<Arc<Revocable<T>>, JoinError> {
        let begun = Instant::now();
        let answer = Arc::new(Revocable::new(spawn_blocking(make).await?));
        let is_quick = begun.elapsed() < QUICK;
        let shared_until = Instant::now() + if is_quick { Duration::ZERO } else { SHARED_FOR };
        self.count(&answer);
        *self.latest() = Some(Made { begun, shared_until, answer: Arc::clone(&answer) });
        drop(turn);
        tokio::spawn(async move {
            sleep_until(shared_until).await;
            let _outdated = self.latest().take_if(|made| made.shared_until <= shared_until);
        });
        Ok(answer)
    }

    /// Revokes the oldest ones that are still being read, to bound memory.
    fn count(&self, new: &Arc<Revocable<T>>) {
        let mut older = self.older.lock().unwrap_or_else(PoisonError::into_inner);
        older.retain(|answer| answer.upgrade().is_some_and(|answer| answer.get().is_some()));
        while older.len() > MAX_OLDER {
            if let Some(oldest) = older.remove(0).upgrade() {
                oldest.revoke();
            }
        }
        older.push(Arc::downgrade(new));
    }

    fn latest(&self) -> MutexGuard<'_, Option<Made<T>>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A response that can be dropped while clients read it.
#[derive(Debug)]
pub(super) struct Revocable<T>(Mutex<Option<Arc<T>>>);

impl<T> Revocable<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Mutex::new(Some(Arc::new(value))))
    }

    /// The value, to be held only briefly. `None`: it was revoked.
    pub(super) fn get(&self) -> Option<Arc<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn revoke(&self) {
        let _revoked = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    static MADE: AtomicUsize = AtomicUsize::new(0);

    /// Counts how often it was made, and takes so long.
    fn slow() -> usize {
        std::thread::sleep(Duration::from_millis(100));
        MADE.fetch_add(1, SeqCst) + 1
    }

    #[tokio::test]
    async fn an_answer_is_made_once_for_all_who_ask_within_a_second() {
        let shared = Arc::<Shared<usize>>::default();
        let get = |freshness| {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { *shared.get(freshness, slow).await.unwrap().get().unwrap() })
        };
        // This one does not wait for what it asked for.
        let leaves = get(Freshness::Shared);
        tokio::time::sleep(Duration::from_millis(20)).await;
        leaves.abort();
        for one in (0..20).map(|_| get(Freshness::Shared)).collect::<Vec<_>>() {
            assert_eq!(one.await.unwrap(), 1);
        }
        let asked = Instant::now();
        for one in (0..20).map(|_| get(Freshness::New)).collect::<Vec<_>>() {
            assert_eq!(one.await.unwrap(), 2);
        }
        assert!(asked.elapsed() > Duration::from_millis(900), "{:?}", asked.elapsed());
        let last = shared.get(Freshness::Shared, slow).await.unwrap();
        assert_eq!((*last.get().unwrap(), MADE.load(SeqCst)), (2, 2));
        tokio::time::sleep(SHARED_FOR + Duration::from_millis(200)).await;
        assert_eq!(Arc::strong_count(&last), 1, "it is kept for no longer");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_quick_is_always_new() {
        let shared = Arc::<Shared<u8>>::default();
        for number in 0..3 {
            assert_eq!(*shared.get(Freshness::Shared, move || number).await.unwrap().get().unwrap(), number);
        }
    }

    #[tokio::test]
    async fn only_a_few_old_answers_are_kept_for_slow_readers() {
        let shared = Arc::<Shared<Vec<u8>>>::default();
        let mut readers = Vec::new();
        for _ in 0..6 {
            readers.push(shared.get(Freshness::New, || vec![0; 1000]).await.unwrap());
        }
        let kept: Vec<bool> = readers.iter().map(|reader| reader.get().is_some()).collect();
        assert_eq!(kept, [false, false, false, true, true, true]);
    }

    #[tokio::test]
    async fn after_a_panic_the_next_one_is_made() {
        let shared = Arc::<Shared<u8>>::default();
        assert!(shared.get(Freshness::Shared, || panic!("as the test asks")).await.is_err());
        assert_eq!(*shared.get(Freshness::Shared, || 7).await.unwrap().get().unwrap(), 7);
    }
}
