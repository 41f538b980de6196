//! The thread that answers admin requests, and the one beside it that makes long answers.

use std::io;
use std::time::Duration;

use rustix::process::{getpriority_process, setpriority_process};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tracing::{debug, error};

use super::{State, run};
use crate::listener::accept::Stop;

/// How much less than relayed messages long answers matter: enough to give way at once, not so much that a scrape on a
/// machine without an idle CPU takes longer than scrapers wait.
const LESS_URGENT: i32 = 10;

/// Serves until `stop`; ready once the socket is closed. What has been asked by then is still answered.
///
/// This is done on a runtime of its own, so that neither can starve the other: a probe is answered while all workers of the
/// data path are busy, and no relayed message waits while a scrape of 10,000 routes is made and compressed. Probes do not wait
/// for that either: it is made one at a time, by the only thread of the runtime's blocking pool, at a lower priority.
pub(crate) fn spawn(socket: TcpListener, state: State, stop: Stop) -> io::Result<oneshot::Receiver<()>> {
    let socket = socket.into_std()?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .thread_name("admin-answers")
        // Where no thread can be made any more, a pool that has none panics.
        .thread_keep_alive(Duration::MAX)
        // The only threads that this runtime starts.
        .on_thread_start(give_way)
        .build()?;
    let (done, closed) = oneshot::channel();
    std::thread::Builder::new().name("admin".into()).spawn(move || {
        runtime.block_on(async {
            let _is_there = spawn_blocking(|| ()).await;
            match TcpListener::from_std(socket) {
                Ok(socket) => run(socket, state, stop, done).await,
                Err(reason) => error!(%reason, "cannot serve the admin listener"),
            }
        });
    })?;
    Ok(closed)
}

/// Lowers the priority of the calling thread.
fn give_way() {
    // In Linux, priorities are of threads.
    let lowered = getpriority_process(None).and_then(|now| setpriority_process(None, (now + LESS_URGENT).min(19)));
    if let Err(reason) = lowered {
        debug!(%reason, "cannot lower the priority of the thread that makes long answers");
    }
}
