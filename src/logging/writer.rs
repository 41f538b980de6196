//! Who reads log lines may be slow, or may have stopped. The thread here waits for that, and nobody else does.

use std::io::{ErrorKind, Write, stderr};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// So many bytes may wait while others are being written; lines beyond are lost, and counted.
const MAX_WAITING: usize = 2 << 20;

/// Between writes. The first line after a silence is written at once, and the ones after it together: waking the thread for
/// each would cost more than the lines.
const PACE: Duration = Duration::from_millis(10);

/// For how long the last lines may take at the exit.
const PATIENCE: Duration = Duration::from_secs(1);

/// Of the process, as its standard error is.
pub(super) static WRITER: Writer = Writer {
    waiting: Mutex::new(Waiting { lines: Vec::new(), has_failed: false, is_closed: false, is_running: false }),
    changed: Condvar::new(),
    lost: AtomicU64::new(0),
};

pub(super) struct Writer {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    lost: AtomicU64,
}

struct Waiting {
    lines: Vec<u8>,
    /// What was written last could not be.
    has_failed: bool,
    is_closed: bool,
    /// Whether there is the thread.
    is_running: bool,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Panics
    ///
    /// If there is no thread to be had: the program has just begun, and needs more of them.
    pub(super) fn start(&'static self) {
        self.lock().is_running = true;
        thread::Builder::new().name("log".into()).spawn(|| self.write()).expect("a thread for the log");
    }

    /// Takes a line, with its end, or counts that it cannot.
    pub(super) fn put(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.is_closed || waiting.lines.len() + line.len() > MAX_WAITING {
            self.lost.fetch_add(1, Relaxed);
            return;
        }
        let is_first = waiting.lines.is_empty();
        waiting.lines.extend(line);
        drop(waiting);
        if is_first {
            self.changed.notify_all();
        }
    }

    /// Lines.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Whether a line that is put now will probably be read.
    pub(super) fn is_read(&self) -> bool {
        let waiting = self.lock();
        !waiting.has_failed && waiting.lines.len() < MAX_WAITING / 2
    }

    /// Writes what waits, if that is possible soon.
    pub(super) fn finish(&self) {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        self.changed.notify_all();
        let _ = self.changed.wait_timeout_while(waiting, PATIENCE, |waiting| waiting.is_running);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) {
        let mut lines = Vec::new();
        loop {
            let is_idle = |waiting: &mut Waiting| waiting.lines.is_empty() && !waiting.is_closed;
            let mut waiting = self.changed.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
            if waiting.lines.is_empty() {
                waiting.is_running = false;
                self.changed.notify_all();
                return;
            }
            std::mem::swap(&mut waiting.lines, &mut lines);
            drop(waiting);
            let unwritten = write(&lines);
            self.lost.fetch_add(unwritten.split_inclusive(|byte| *byte == b'\n').count() as u64, Relaxed);
            self.lock().has_failed = !unwritten.is_empty();
            lines.clear();
            thread::sleep(PACE);
        }
    }
}

/// What of it cannot be written.
fn write(mut lines: &[u8]) -> &[u8] {
    while !lines.is_empty() {
        match stderr().write(lines) {
            Ok(written @ 1..) => lines = &lines[written..],
            // Whoever shares it with us has made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PACE),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
        }
    }
    lines
}
