//! The thread that writes log lines: who reads them may be slow, or may have stopped, and nobody else waits for that.

use std::io::{Write, stderr};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// So many bytes may wait while others are being written; lines beyond are lost, and counted.
const MAX_WAITING: usize = 2 << 20;

/// Between writes. The first line after a silence is written at once, and the ones after it together: waking the thread for
/// each would cost more than the lines.
const PACE: Duration = Duration::from_millis(10);

/// For how long the last lines may take at the exit.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) struct Writer(Arc<Shared>);

struct Shared {
    waiting: Mutex<Waiting>,
    has_some: Condvar,
    lost: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    is_closed: bool,
}

impl Writer {
    /// Starts the thread. Its end closes the channel.
    ///
    /// # Panics
    ///
    /// If there is no thread to be had: the program has just begun, and needs more of them.
    pub(super) fn start() -> (Self, Receiver<()>) {
        let shared = Arc::new(Shared { waiting: Mutex::default(), has_some: Condvar::new(), lost: AtomicU64::new(0) });
        let (ended, end) = channel();
        let writer = Self(Arc::clone(&shared));
        let thread = thread::Builder::new().name("log".into());
        thread.spawn(move || shared.write(&ended)).expect("a thread for the log");
        (writer, end)
    }

    /// Takes a line, with its end, or counts that it cannot.
    pub(super) fn put(&self, line: &[u8]) {
        let mut waiting = self.0.lock();
        if waiting.is_closed || waiting.lines.len() + line.len() > MAX_WAITING {
            self.0.lost.fetch_add(1, Relaxed);
            return;
        }
        let is_first = waiting.lines.is_empty();
        waiting.lines.extend(line);
        drop(waiting);
        if is_first {
            self.0.has_some.notify_one();
        }
    }

    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Relaxed)
    }

    /// Writes what waits, if that is possible soon.
    pub(super) fn finish(&self, end: &Receiver<()>) {
        self.0.lock().is_closed = true;
        self.0.has_some.notify_one();
        // Nothing is ever sent: this is the end of the thread, or of our patience.
        let _ = end.recv_timeout(PATIENCE);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, _ended: &Sender<()>) {
        let mut lines = Vec::new();
        loop {
            let mut waiting = self.lock();
            while waiting.lines.is_empty() && !waiting.is_closed {
                waiting = self.has_some.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            if waiting.lines.is_empty() {
                return;
            }
            std::mem::swap(&mut waiting.lines, &mut lines);
            drop(waiting);
            if stderr().write_all(&lines).is_err() {
                let count = lines.split_inclusive(|byte| *byte == b'\n').count();
                self.lost.fetch_add(count as u64, Relaxed);
            }
            lines.clear();
            thread::sleep(PACE);
        }
    }
}
