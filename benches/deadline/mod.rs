//! A proxy may do anything, also nothing: what waits for it ends.

use std::time::{Duration, Instant};

/// More than anything takes that works.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub async fn within<T>(limit: Duration, what: &str, wanted: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, wanted).await.unwrap_or_else(|_| panic!("{what}: not within {limit:?}"))
}

/// For what is not asynchronous.
#[allow(dead_code, reason = "not every bench has such")]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
