//! Tokio runtimes of the router and of other commands.

use std::io;
use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder, available_parallelism};
use std::time::Duration;

use anyhow::Context;
use procfs::process::Process;
use tokio::runtime::{self, Runtime};

/// Fails if the router cannot create its threads: tokio would panic later.
pub(super) fn check(workers: Option<usize>) -> anyhow::Result<()> {
    let workers = match workers {
        Some(1) => 0,
        Some(workers) => workers,
        None => available_parallelism().map_or(1, NonZero::get),
    };
    // And those of the log, of the admin listener and its answers, and one for DNS lookups.
    try_spawn(workers + 4).context("cannot create threads (check ulimit -u and pids.max of the cgroup)")
}

/// Creates this many threads at the same time, and ends them.
fn try_spawn(threads: usize) -> io::Result<()> {
    let before = count();
    let gate = Mutex::new(());
    let made = thread::scope(|scope| {
        let _closed = gate.lock();
        let wait = || drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        (0..threads).try_for_each(|_| Builder::new().spawn_scoped(scope, wait).map(drop))
    });
    // The kernel still counts a thread shortly after it was joined.
    while count() > before {
        thread::yield_now();
    }
    made
}

/// Threads of this process; 0 without `/proc`.
fn count() -> u64 {
    Process::myself().and_then(|process| process.status()).map_or(0, |status| status.threads)
}

/// Runs on the calling thread. Does not wait for lookups that hang.
pub(super) fn run<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(future);
    runtime.shutdown_background();
    Ok(result)
}

/// With one worker everything runs on the calling thread.
pub(super) fn build(workers: Option<usize>) -> anyhow::Result<Runtime> {
    let mut builder =
        if workers == Some(1) { runtime::Builder::new_current_thread() } else { runtime::Builder::new_multi_thread() };
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    // When no more threads can be created, a pool with a thread continues with it, and an empty one panics. So one is
    // started now and threads never expire. The pool stays small: at most 32 lookups run at a time, and file operations.
    builder.thread_keep_alive(Duration::MAX);
    let runtime = builder.enable_all().build()?;
    runtime.block_on(runtime.spawn_blocking(|| ()))?;
    Ok(runtime)
}
