//! A runtime of the admin listener's own. On that of the data path, one scrape of thousands of routes would delay relayed
//! bytes, and a flood of connections the probe that decides whether the pod lives.

use std::io;
use std::time::Duration;

use rustix::process::nice;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::debug;

/// Threads that build answers: one at a time, so that on a small machine a CPU is left for connections.
const BUILDERS: usize = 1;

/// Added to that of the process for the threads that build answers: bytes of clients go first.
const NICENESS: i32 = 10;

/// A thread that answers requests, until this is dropped, and one that builds long answers.
#[derive(Debug)]
pub(crate) struct Runtime {
    handle: Handle,
    _running: oneshot::Sender<()>,
}

impl Runtime {
    pub(crate) fn start() -> io::Result<Self> {
        let be_nice = || {
            // Linux keeps it per thread.
            if let Err(error) = nice(NICENESS) {
                debug!(%error, "cannot lower the priority of a thread");
            }
        };
        let mut builder = Builder::new_current_thread();
        builder.enable_all().max_blocking_threads(BUILDERS).thread_name("admin-answers").on_thread_start(be_nice);
        // Where no thread can be made any more, a pool that has none panics: it keeps the one that is made below.
        let runtime = builder.thread_keep_alive(Duration::MAX).build()?;
        let handle = runtime.handle().clone();
        let (running, stopped) = oneshot::channel();
        let run = move || {
            runtime.block_on(async {
                let _ = spawn_blocking(|| ()).await;
                let _ = stopped.await;
            });
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("admin".into()).spawn(run)?;
        Ok(Self { handle, _running: running })
    }

    /// What is spawned and registered with it belongs to this runtime.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Serves from this socket there.
    pub(crate) fn spawn<F: Future<Output = ()> + Send + 'static>(
        &self,
        socket: TcpListener,
        serve: impl FnOnce(TcpListener) -> F,
    ) -> io::Result<JoinHandle<()>> {
        // Not `into_std`: that fails, and loses the socket, where the kernel lacks memory for a moment.
        let listen = SockRef::from(&socket).try_clone()?;
        drop(socket);
        let _context = self.handle.enter();
        let register = || TcpListener::from_std(listen.try_clone()?.into());
        let registered = register().or_else(|_| register())?;
        Ok(self.handle.spawn(serve(registered)))
    }
}
