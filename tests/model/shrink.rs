//! Leaves out of a script what it also fails without.

use std::time::{Duration, Instant};

use super::script::{Script, Step};

/// How long a script is made shorter.
const LIMIT: Duration = Duration::from_secs(180);

/// The shortest script found that fails in the same way, and how it does.
pub fn shrink(script: Script, error: String, run: impl Fn(&Script) -> Result<(), String>) -> (Script, String) {
    let expected = kind(&error);
    let run = |script: &Script| match run(script) {
        Err(other) if kind(&other) == expected => Err(other),
        _ => Ok(()),
    };
    let (mut shortest, mut shortest_error) = (script, error);
    let begun = Instant::now();
    let mut length = shortest.steps.len().div_ceil(2);
    while length > 0 {
        let mut has_shrunk = false;
        let mut at = 0;
        while at < shortest.steps.len() && begun.elapsed() < LIMIT {
            let mut shorter = shortest.clone();
            shorter.steps.drain(at..(at + length).min(shortest.steps.len()));
            match run(&shorter) {
                Err(error) => {
                    (shortest, shortest_error, has_shrunk) = (shorter, error, true);
                }
                Ok(()) => at += length,
            }
        }
        if length > 1 || !has_shrunk || begun.elapsed() >= LIMIT {
            length /= 2;
        }
    }
    for at in 0..shortest.steps.len() {
        while let Some(shorter) = with_less_together(&shortest, at)
            && begun.elapsed() < LIMIT
            && let Err(error) = run(&shorter)
        {
            (shortest, shortest_error) = (shorter, error);
        }
    }
    (shortest, shortest_error)
}

/// What differs of two errors is the step and whatever has a number: this is the beginning of the rest.
fn kind(error: &str) -> String {
    let (_, rest) = error.split_once(": ").unwrap_or(("", error));
    rest.chars().filter(|char| !char.is_ascii_digit()).take(24).collect()
}

/// An operation during which one thing less happens, the last of them first.
fn with_less_together(script: &Script, at: usize) -> Option<Script> {
    let mut less = script.clone();
    let Step::Together { operation, transfers, arrivals } = &mut less.steps[at] else { return None };
    if arrivals.pop().is_none() && transfers.pop().is_none() {
        less.steps[at] = Step::Operate(operation.clone());
    }
    Some(less)
}
