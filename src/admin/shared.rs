//! Answers that take long to build: built beside the runtime, and shared by all who ask at about the same time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

/// What takes less is built anew each time.
const QUICK: Duration = Duration::from_millis(10);
/// No answer is older.
const MAX_AGE: Duration = Duration::from_secs(1);

/// The last answer of one kind.
#[derive(Debug)]
pub(super) struct Shared<T> {
    last: Mutex<Option<Built<T>>>,
}

#[derive(Debug)]
struct Built<T> {
    value: Arc<T>,
    at: Instant,
    took: Duration,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { last: Mutex::default() }
    }
}

impl<T: Send + Sync + 'static> Shared<T> {
    /// The last answer, if it is young or was expensive, or a new one. Those who ask meanwhile wait for the same.
    pub(super) async fn get(&self, build: impl FnOnce() -> T + Send + 'static) -> Option<Arc<T>> {
        let mut last = self.last.lock().await;
        if let Some(Built { value, at, took }) = &*last
            && *took >= QUICK
            && at.elapsed() < MAX_AGE
        {
            return Some(Arc::clone(value));
        }
        let begun = Instant::now();
        let value = Arc::new(spawn_blocking(build).await.ok()?);
        *last = Some(Built { value: Arc::clone(&value), at: Instant::now(), took: begun.elapsed() });
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[tokio::test]
    async fn what_is_expensive_is_built_once_for_all() {
        let shared = Shared::default();
        let built = Arc::new(AtomicUsize::new(0));
        let ask = |takes: Duration| {
            let built = Arc::clone(&built);
            shared.get(move || {
                std::thread::sleep(takes);
                built.fetch_add(1, SeqCst)
            })
        };
        tokio::join!(ask(2 * QUICK), ask(2 * QUICK), ask(2 * QUICK));
        assert_eq!(built.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn what_is_cheap_is_always_new() {
        let shared = Shared::default();
        for number in 0..3 {
            assert_eq!(*shared.get(move || number).await.unwrap(), number);
        }
    }
}
