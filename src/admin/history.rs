//! The rates of the last quarter of an hour, for the graphs of the status page.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::telemetry::RouteCounters;

/// Length of a step.
pub(super) const STEP: Duration = Duration::from_secs(5);
/// A quarter of an hour.
const MAX_STEPS: usize = 180;

/// The steps of each route on the page.
#[derive(Debug, Default)]
pub(crate) struct History {
    steps: Mutex<Steps>,
    /// Held by who records them.
    pub(super) recorder: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Steps {
    taken: u64,
    last: Option<Instant>,
    routes: HashMap<Box<str>, RouteHistory>,
    /// What viewers are sent until the next step.
    written: Vec<Written>,
}

/// Some steps as JSON text.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) json: Bytes,
    seen: u64,
    /// How many steps there have been.
    pub(super) taken: u64,
}

#[derive(Debug)]
struct RouteHistory {
    last: Totals,
    steps: VecDeque<RateStep>,
}

/// Counters since the start of the process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) accepted: u64,
    pub(super) bytes: u64,
    pub(super) answers: u64,
    pub(super) answer_micros: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct RateStep {
    new_per_second: f64,
    bytes_per_second: f64,
    /// Mean; `None` without answers.
    answer_milliseconds: Option<f64>,
}

impl Totals {
    pub(super) fn of(route: &RouteCounters) -> Self {
        let (answers, took) = route.answers();
        Self {
            accepted: route.accepted(),
            bytes: route.received.load(Relaxed) + route.sent.load(Relaxed),
            answers,
            answer_micros: took.as_micros().try_into().unwrap_or(u64::MAX),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "differences of counters in five seconds")]
    fn since(&self, before: &Self, seconds: f64) -> RateStep {
        let answers = self.answers.saturating_sub(before.answers);
        let took = self.answer_micros.saturating_sub(before.answer_micros) as f64 / answers as f64;
        RateStep {
            new_per_second: rounded(self.accepted.saturating_sub(before.accepted) as f64 / seconds),
            bytes_per_second: rounded(self.bytes.saturating_sub(before.bytes) as f64 / seconds),
            answer_milliseconds: (answers > 0).then(|| rounded(took / 1e3)),
        }
    }
}

/// Rounded to the resolution of a small graph.
fn rounded(value: f64) -> f64 {
    if value >= 100.0 { value.round() } else { (value * 100.0).round() / 100.0 }
}

impl History {
    /// Records a step of these routes; others are dropped.
    pub(super) fn record<'r>(&self, routes: impl Iterator<Item = (&'r str, Totals)>) {
        let now = Instant::now();
        let mut steps = self.steps();
        let seconds = steps.last.map_or(STEP, |last| now - last).as_secs_f64();
        let mut before = std::mem::take(&mut steps.routes);
        for (name, totals) in routes {
            let mut line = before.remove(name).unwrap_or_else(|| RouteHistory { last: totals, steps: VecDeque::new() });
            if line.steps.len() == MAX_STEPS {
                line.steps.pop_front();
            }
            let step = totals.since(&line.last, seconds);
            line.steps.push_back(step);
            line.last = totals;
            steps.routes.insert(name.into(), line);
        }
        steps.last = Some(now);
        steps.taken += 1;
        steps.written.clear();
    }

    /// The steps since the first `seen`, the newest at the end, and how many there have been.
    pub(super) fn since(&self, seen: u64) -> (Value, u64) {
        let steps = self.steps();
        let new = usize::try_from(steps.taken.saturating_sub(seen)).unwrap_or(usize::MAX);
        let lines = steps.routes.iter().map(|(name, line)| {
            let known = line.steps.len();
            let each = || line.steps.iter().skip(known.saturating_sub(new));
            let line = json!({
                "new_per_second": each().map(|step| step.new_per_second).collect::<Vec<_>>(),
                "bytes_per_second": each().map(|step| step.bytes_per_second).collect::<Vec<_>>(),
                "answer_milliseconds": each().map(|step| step.answer_milliseconds).collect::<Vec<_>>(),
            });
            (name.to_string(), line)
        });
        (json!({"step_seconds": STEP.as_secs(), "routes": lines.collect::<Map<_, _>>()}), steps.taken)
    }

    /// The same as text on one line, shared until the next step.
    pub(super) fn write_since(&self, seen: u64) -> Written {
        let steps = self.steps();
        if let Some(written) = steps.written.iter().find(|one| (one.seen, one.taken) == (seen, steps.taken)) {
            return written.clone();
        }
        drop(steps);
        let (value, taken) = self.since(seen);
        let written = Written { json: format!("{value}\n").into(), seen, taken };
        let mut steps = self.steps();
        steps.written.retain(|one| one.taken == taken && one.seen != seen);
        // A new viewer gets all steps, the others the last one.
        if seen == 0 || seen + 1 >= taken {
            steps.written.push(written.clone());
        }
        written
    }

    fn steps(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn steps_are_kept_for_a_quarter_of_an_hour_and_for_current_routes() {
        let history = History::default();
        for number in 0..200 {
            let totals = Totals {
                accepted: 10 * number,
                bytes: 5000 * number,
                answers: number / 2,
                answer_micros: 4000 * (number / 2),
            };
            let removed = (number < 199).then_some(("removed", totals));
            history.record([("a", totals)].into_iter().chain(removed));
            tokio::time::advance(STEP).await;
        }
        let (all, taken) = history.since(0);
        assert!(all["routes"]["removed"].is_null());
        let a = &all["routes"]["a"];
        assert_eq!(a["new_per_second"].as_array().unwrap().len(), MAX_STEPS);
        assert_eq!((&a["new_per_second"][0], &a["bytes_per_second"][179]), (&json!(2.0), &json!(1000.0)));
        assert_eq!((&a["answer_milliseconds"][178], &a["answer_milliseconds"][179]), (&json!(4.0), &Value::Null));
        let (last, _) = history.since(taken - 1);
        assert_eq!(last["routes"]["a"]["new_per_second"], json!([2.0]));
    }
}
