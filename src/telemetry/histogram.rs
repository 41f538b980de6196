//! Histograms of durations without a lock, so that a scrape never makes a connection wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

const MAX_BOUNDS: usize = 9;

/// Clones share their counts.
#[derive(Clone, Debug)]
pub(crate) struct Histogram(Arc<Buckets>);

#[derive(Debug)]
struct Buckets {
    /// In seconds, ascending.
    bounds: &'static [f64],
    /// One per bound, and one for longer durations.
    counts: [AtomicU64; MAX_BOUNDS + 1],
    sum_micros: AtomicU64,
}

/// The counts of a histogram at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Distribution {
    /// In seconds, ascending.
    pub(crate) bounds: &'static [f64],
    counts: [u64; MAX_BOUNDS + 1],
    /// Of all durations.
    pub(crate) sum: Duration,
}

impl Histogram {
    /// With these upper bounds in seconds, at most nine.
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        debug_assert!(bounds.len() <= MAX_BOUNDS && bounds.is_sorted());
        Self(Arc::new(Buckets { bounds, counts: Default::default(), sum_micros: AtomicU64::new(0) }))
    }

    pub(crate) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.0.bounds.iter().take_while(|bound| **bound < seconds).count();
        self.0.sum_micros.fetch_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), Relaxed);
        self.0.counts[bucket.min(MAX_BOUNDS)].fetch_add(1, Relaxed);
    }

    pub(crate) fn get(&self) -> Distribution {
        let counts = std::array::from_fn(|bucket| self.0.counts[bucket].load(Relaxed));
        Distribution { bounds: self.0.bounds, counts, sum: Duration::from_micros(self.0.sum_micros.load(Relaxed)) }
    }

    /// Adds what another histogram with the same bounds has observed.
    pub(super) fn add(&self, other: &Self) {
        let Distribution { counts, sum, .. } = other.get();
        for (count, more) in self.0.counts.iter().zip(counts) {
            count.fetch_add(more, Relaxed);
        }
        self.0.sum_micros.fetch_add(u64::try_from(sum.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }
}

impl Distribution {
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The number of durations in each bucket; the last one has no bound.
    pub(crate) fn counts(&self) -> &[u64] {
        &self.counts[..=self.bounds.len()]
    }

    /// For each bound, the number of durations up to it.
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        self.bounds.iter().zip(self.counts).scan(0, |total, (bound, count)| {
            *total += count;
            Some((*bound, *total))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_the_first_bucket_that_it_fits_into() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        for seconds in [0.0, 0.1, 0.11, 1.0, 2.5, 86_400.0] {
            histogram.observe(Duration::from_secs_f64(seconds));
        }
        let seen = histogram.get();
        assert_eq!(seen.cumulative().collect::<Vec<_>>(), [(0.1, 2), (1.0, 4)]);
        assert_eq!((seen.count(), seen.sum), (6, Duration::from_millis(86_403_710)));
        let twice = Histogram::new(&[0.1, 1.0]);
        twice.add(&histogram);
        twice.add(&histogram);
        assert_eq!((twice.get().count(), twice.get().sum), (12, 2 * seen.sum));
    }
}
