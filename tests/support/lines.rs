//! What a program says, line by line.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{PATIENCE, watchdog};

/// Read by a thread of its own, so that no test waits for a line that never comes.
#[derive(Default)]
pub struct Lines {
    /// All lines, and whether the stream has ended.
    all: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Lines {
    pub fn of(source: impl Read + Send + 'static) -> Arc<Self> {
        let lines = Arc::new(Self::default());
        let writer = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(source).lines() {
                writer.lock().0.push(line.unwrap());
                writer.changed.notify_all();
            }
            writer.lock().1 = true;
            writer.changed.notify_all();
        });
        lines
    }

    /// Also for the cleaning up after a test that has failed here.
    fn lock(&self) -> MutexGuard<'_, (Vec<String>, bool)> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All so far.
    pub fn so_far(&self) -> Vec<String> {
        self.since(0)
    }

    /// All so far without the first so many.
    pub fn since(&self, first: usize) -> Vec<String> {
        self.lock().0[first..].to_vec()
    }

    /// What is taken from the first so many lines from which something is, now or later.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, count: usize, take: impl Fn(&str) -> Option<T>) -> Vec<T> {
        watchdog::step(format!("a line: {what}"));
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lock();
        let mut found = Vec::new();
        let mut read = 0;
        loop {
            for line in &lines.0[read..] {
                found.extend(take(line));
                if found.len() >= count {
                    return found;
                }
            }
            read = lines.0.len();
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && !lines.1, "no line for {what}:\n{}", lines.0.join("\n"));
            lines = self.changed.wait_timeout(lines, left).unwrap().0;
        }
    }
}
