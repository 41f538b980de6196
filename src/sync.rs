//! What threads share. With `--cfg shuttle`, tests of the library have shuttle's, which decides at each lock and atomic which
//! thread goes on, and so tries orders that are rare: `RUSTFLAGS='--cfg shuttle' cargo test --lib interleavings`. What is
//! done between two of them, such as to channels of tokio, is one step there.

#[cfg(all(test, shuttle))]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(all(test, shuttle)))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

/// Runs these steps under so many schedules of either kind as `SNIGATE_INTERLEAVINGS` says (3,000 otherwise).
#[cfg(all(test, shuttle))]
pub(crate) fn check(steps: impl Fn() + Copy + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    use shuttle::{Config, Runner};

    /// What goes wrong only if the thread changes at so many certain steps is found with a known probability.
    const DEPTH: usize = 3;

    let schedules = std::env::var("SNIGATE_INTERLEAVINGS").map_or(3000, |text| text.parse().unwrap());
    let config = || {
        let mut config = Config::new();
        config.stack_size = 1 << 18;
        config
    };
    Runner::new(RandomScheduler::new(schedules), config()).run(steps);
    Runner::new(PctScheduler::new(DEPTH, schedules), config()).run(steps);
}
