//! Work that would hold up everybody else, on a thread where it does not.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

/// Runs it beside everything else. Where no thread can be made, tokio's pool panics; this does not.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    // A paused clock stands still for the threads of the pool only.
    if cfg!(test) {
        return spawn_blocking(work).await.map_err(io::Error::other);
    }
    let (sender, result) = oneshot::channel();
    let runtime = Handle::current();
    let work = move || {
        let _entered = runtime.enter();
        let _ = sender.send(work());
    };
    Builder::new().name("blocking".into()).spawn(work)?;
    result.await.map_err(|_| io::Error::other("panicked"))
}

/// Whether so many threads can be made, at a time.
pub fn can_make(threads: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let _closed = gate.lock();
        let wait = || drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        (0..threads).try_for_each(|_| Builder::new().spawn_scoped(scope, wait).map(drop))
    })
}
