//! What changes from one sample to the next.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::sample::{Counters, Sample};
use crate::telemetry::UNROUTED;

/// Answers are too few to say anything of two seconds.
const LATENCY_WINDOW: Duration = Duration::from_secs(10);

/// The newest sample, and the counters of those shortly before.
#[derive(Debug)]
pub(super) struct Timeline {
    pub(super) now: Sample,
    /// Earlier samples of the same process, the newest at the end.
    before: VecDeque<Moment>,
}

#[derive(Debug)]
struct Moment {
    at: Instant,
    routes: HashMap<String, Counters>,
}

/// Per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) accepted: f64,
    pub(super) rejected: f64,
    pub(super) received: f64,
    pub(super) sent: f64,
}

/// In how many milliseconds half of the answers came, and 99 of 100.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Latency {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

impl Timeline {
    pub(super) fn new(first: Sample) -> Self {
        Self { now: first, before: VecDeque::new() }
    }

    /// Returns the process that had answered before, if this is another one.
    pub(super) fn add(&mut self, sample: Sample) -> Option<u64> {
        let before = std::mem::replace(&mut self.now, sample);
        if before.instance.process != self.now.instance.process {
            self.before.clear();
            return Some(before.instance.process);
        }
        let unrouted = (UNROUTED.to_owned(), before.unrouted);
        let routes = before.routes.into_iter().map(|route| (route.name, route.counters));
        self.before.push_back(Moment { at: before.at, routes: routes.chain([unrouted]).collect() });
        let is_old = |moment: &Moment| self.now.at.saturating_duration_since(moment.at) > LATENCY_WINDOW;
        while self.before.len() > 1 && self.before.front().is_some_and(is_old) {
            self.before.pop_front();
        }
        None
    }

    /// Since the sample before; `None` if the route was not there.
    pub(super) fn rates(&self, name: &str, now: &Counters) -> Option<Rates> {
        let last = self.before.back()?;
        let before = last.routes.get(name)?;
        let seconds = self.now.at.saturating_duration_since(last.at).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "differences of counters in seconds")]
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        (seconds > 0.0).then(|| Rates {
            accepted: rate(now.accepted, before.accepted),
            rejected: rate(now.rejected, before.rejected),
            received: rate(now.received, before.received),
            sent: rate(now.sent, before.sent),
        })
    }

    /// Latency of the answers in the last seconds; `None` if there were none.
    pub(super) fn latency(&self, name: &str, now: &Counters) -> Option<Latency> {
        let before = &self.before.front()?.routes.get(name)?.answers;
        let before = before.iter().chain(std::iter::repeat(&0));
        let counts: Vec<u64> =
            now.answers.iter().zip(before).map(|(now, before)| now.saturating_sub(*before)).collect();
        let quantile = |of_all| quantile(&self.now.answer_bounds, &counts, of_all).map(|seconds| seconds * 1e3);
        Some(Latency { p50: quantile(0.5)?, p99: quantile(0.99)? })
    }

    /// Rates of all connections, with a route or not.
    pub(super) fn totals(&self) -> Option<Rates> {
        let routes = self.now.routes.iter().filter_map(|route| self.rates(&route.name, &route.counters));
        let sum = |sum: Rates, more: Rates| Rates {
            accepted: sum.accepted + more.accepted,
            rejected: sum.rejected + more.rejected,
            received: sum.received + more.received,
            sent: sum.sent + more.sent,
        };
        Some(routes.fold(self.rates(UNROUTED, &self.now.unrouted)?, sum))
    }
}

/// As `histogram_quantile` of Prometheus has it: as if durations were spread evenly in each bucket.
#[expect(clippy::cast_precision_loss, reason = "counts of answers in seconds")]
fn quantile(bounds: &[f64], counts: &[u64], of_all: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = total as f64 * of_all;
    let (mut below, mut lower) = (0.0, 0.0);
    for (upper, count) in bounds.iter().zip(counts) {
        let count = *count as f64;
        if count > 0.0 && below + count >= rank {
            return Some(lower + (upper - lower) * (rank - below) / count);
        }
        (below, lower) = (below + count, *upper);
    }
    // Longer than the last bound.
    Some(lower)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(process: u64, [accepted, rejected, received]: [u64; 3], answers: &Value) -> Value {
        json!({
            "process": process,
            "answer_bounds_seconds": [0.001, 0.01],
            "unrouted": {"accepted": rejected, "rejected": rejected},
            "routes": [{"name": "a", "accepted": accepted, "bytes_received": received, "answer_counts": answers}],
        })
    }

    #[test]
    fn rates_are_those_between_two_samples_of_one_process() {
        let begin = Instant::now();
        let sample = |seconds, status: Value| Sample::new(begin + Duration::from_secs(seconds), &status, &Value::Null);
        let mut timeline = Timeline::new(sample(0, status(1, [100, 0, 1000], &Value::Null)));
        let rates = |timeline: &Timeline| timeline.rates("a", &timeline.now.routes[0].counters);
        assert_eq!((rates(&timeline), timeline.totals()), (None, None), "one sample has no rate");
        assert_eq!(timeline.add(sample(2, status(1, [110, 4, 3000], &json!([2, 1, 0])))), None);
        let expected = Rates { accepted: 5.0, rejected: 0.0, received: 1000.0, sent: 0.0 };
        assert_eq!(rates(&timeline), Some(expected));
        assert_eq!(timeline.totals(), Some(Rates { accepted: 7.0, rejected: 2.0, ..expected }));
        assert_eq!(timeline.rates("b", &Counters::default()), None, "a new route");
        let latency = |timeline: &Timeline| timeline.latency("a", &timeline.now.routes[0].counters);
        let first = latency(&timeline).unwrap();
        // Three answers, two of which took up to 1 ms.
        assert!((0.74..0.76).contains(&first.p50) && (9.7..9.8).contains(&first.p99), "{first:?}");
        timeline.add(sample(4, status(1, [110, 4, 3000], &json!([2, 1, 0]))));
        assert_eq!(rates(&timeline).unwrap(), Rates::default());
        assert_eq!(latency(&timeline), Some(first), "of the last ten seconds");
        timeline.add(sample(14, status(1, [110, 4, 3000], &json!([2, 1, 1]))));
        assert_eq!(latency(&timeline).unwrap(), Latency { p50: 10.0, p99: 10.0 }, "the last bound, or longer");
        assert_eq!(timeline.add(sample(16, status(2, [1, 0, 10], &Value::Null))), Some(1));
        assert_eq!(rates(&timeline), None, "another process has counted from its start");
    }
}
