//! The threads of a running router, and of commands that ask others.

use std::io;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder, available_parallelism};
use std::time::Duration;

use anyhow::Context;
use procfs::process::Process;
use tokio::runtime::{self, Runtime};

/// Whether there will be threads for all: tokio panics where one cannot be made.
pub(super) fn check(workers: Option<usize>) -> anyhow::Result<()> {
    let workers = match workers {
        Some(1) => 0,
        Some(workers) => workers,
        None => available_parallelism().map_or(1, NonZero::get),
    };
    // Of the log, of the admin listener and its answers, and the first for names.
    make(workers + 4)
        .context("cannot make the threads that it needs (ulimit -u, or pids.max of its control group, is a limit)")
}

/// So many at a time.
fn make(threads: usize) -> io::Result<()> {
    let before = count();
    let gate = Mutex::new(());
    let made = thread::scope(|scope| {
        let _closed = gate.lock();
        let wait = || drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        (0..threads).try_for_each(|_| Builder::new().spawn_scoped(scope, wait).map(drop))
    });
    // The kernel counts a thread for a little longer than it can be waited for.
    while count() > before {
        thread::yield_now();
    }
    made
}

/// Of this process, if there is a `/proc` that tells.
fn count() -> u64 {
    Process::myself().and_then(|process| process.status()).map_or(0, |status| status.threads)
}

/// On the thread that calls. A lookup that hangs is not waited for.
pub(super) fn run<T>(asked: impl Future<Output = T>) -> io::Result<T> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(asked);
    runtime.shutdown_background();
    Ok(result)
}

/// With one worker everything runs on the thread that calls.
pub(super) fn build(workers: Option<usize>) -> anyhow::Result<Runtime> {
    let mut builder =
        if workers == Some(1) { runtime::Builder::new_current_thread() } else { runtime::Builder::new_multi_thread() };
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    // Where no thread can be made any more, a pool that has one goes on with it, and an empty one panics. The pool is as
    // large as the most that was asked of it at a time: 32 lookups, and files.
    builder.thread_keep_alive(Duration::MAX);
    let runtime = builder.enable_all().build()?;
    runtime.block_on(runtime.spawn_blocking(|| ()))?;
    Ok(runtime)
}
