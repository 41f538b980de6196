//! Writes log lines on a thread of its own, so that a slow or stopped reader blocks nothing else.

use std::io::{ErrorKind, Write, stderr};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Maximum number of buffered bytes; lines beyond it are lost and counted.
const MAX_BUFFERED: usize = 2 << 20;

/// Pause between writes. The first line after a silence is written immediately, those after it together: waking the
/// thread for each would cost more than the lines.
const WRITE_INTERVAL: Duration = Duration::from_millis(10);

/// How long writing the remaining lines may take at exit.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// One per process, like standard error.
pub(super) static WRITER: Writer = Writer {
    state: Mutex::new(WriterState { lines: Vec::new(), has_failed: false, is_closed: false, is_running: false }),
    changed: Condvar::new(),
    lost: AtomicU64::new(0),
};

pub(super) struct Writer {
    state: Mutex<WriterState>,
    changed: Condvar,
    lost: AtomicU64,
}

struct WriterState {
    lines: Vec<u8>,
    /// Whether the last write failed.
    has_failed: bool,
    is_closed: bool,
    /// Whether the thread is running.
    is_running: bool,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Panics
    ///
    /// If the thread cannot be started.
    pub(super) fn start(&'static self) {
        self.lock().is_running = true;
        thread::Builder::new().name("log".into()).spawn(|| self.write()).expect("cannot start the log thread");
    }

    /// Queues a line, including its newline, or counts it as lost.
    pub(super) fn put(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.is_closed || state.lines.len() + line.len() > MAX_BUFFERED {
            self.lost.fetch_add(1, Relaxed);
            return;
        }
        let is_first = state.lines.is_empty();
        state.lines.extend(line);
        drop(state);
        if is_first {
            self.changed.notify_all();
        }
    }

    /// The number of lost lines.
    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Whether lines are being written successfully.
    pub(super) fn is_read(&self) -> bool {
        let state = self.lock();
        !state.has_failed && state.lines.len() < MAX_BUFFERED / 2
    }

    /// Writes the remaining lines, within [`FLUSH_TIMEOUT`].
    pub(super) fn finish(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        self.changed.notify_all();
        let _ = self.changed.wait_timeout_while(state, FLUSH_TIMEOUT, |state| state.is_running);
    }

    fn lock(&self) -> MutexGuard<'_, WriterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) {
        let mut lines = Vec::new();
        loop {
            let is_idle = |state: &mut WriterState| state.lines.is_empty() && !state.is_closed;
            let mut state = self.changed.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
            if state.lines.is_empty() {
                state.is_running = false;
                self.changed.notify_all();
                return;
            }
            std::mem::swap(&mut state.lines, &mut lines);
            drop(state);
            let unwritten = write(&mut stderr(), &lines);
            self.lost.fetch_add(unwritten.split_inclusive(|byte| *byte == b'\n').count() as u64, Relaxed);
            self.lock().has_failed = !unwritten.is_empty();
            lines.clear();
            thread::sleep(WRITE_INTERVAL);
        }
    }
}

/// Largest write to a pipe that is not mixed with those of other processes (pipe(7)), such as the other one at an upgrade.
const PIPE_BUF: usize = 4096;

/// Returns the part that could not be written.
fn write<'l>(out: &mut impl Write, mut lines: &'l [u8]) -> &'l [u8] {
    while !lines.is_empty() {
        match out.write(piece(lines)) {
            Ok(written @ 1..) => lines = &lines[written..],
            // Another process that shares standard error made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(WRITE_INTERVAL),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
        }
    }
    lines
}

/// As many whole lines as fit into [`PIPE_BUF`], or else one.
fn piece(lines: &[u8]) -> &[u8] {
    let is_end = |byte: &u8| *byte == b'\n';
    let fitting = lines.get(..PIPE_BUF).map_or(Some(lines.len()), |first| Some(first.iter().rposition(is_end)? + 1));
    let end = fitting.or_else(|| Some(lines.iter().position(is_end)? + 1));
    &lines[..end.unwrap_or(lines.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes no more than this at a time.
    struct Taking(usize, Vec<Vec<u8>>);

    impl Write for Taking {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.1.push(bytes[..taken].to_vec());
            Ok(taken)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn e21_lines_are_written_whole_and_in_pieces_that_a_pipe_does_not_mix() {
        let line = |length: usize| [vec![b'x'; length - 1], vec![b'\n']].concat();
        let lengths = [100, 3996, 1, 4096, 10_000, 4095, 1, 1, 50];
        let lines = lengths.map(line).concat();
        let mut out = Taking(usize::MAX, Vec::new());
        assert!(write(&mut out, &lines).is_empty());
        assert_eq!(out.1.iter().map(Vec::len).collect::<Vec<_>>(), [4096, 1, 4096, 10_000, 4096, 51]);
        assert!(out.1.iter().all(|piece| piece.ends_with(b"\n")));
        assert_eq!(out.1.concat(), lines);
        for most in [1, 7, 4096] {
            let mut out = Taking(most, Vec::new());
            assert!(write(&mut out, &lines).is_empty());
            assert_eq!(out.1.concat(), lines);
        }
    }
}
