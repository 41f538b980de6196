//! A runtime of the admin listener's own. On that of the data path, one scrape of thousands of routes would delay relayed
//! bytes, and a flood of connections the probe that decides whether the pod lives.

use std::io;
use std::net::TcpListener as StdTcpListener;

use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::debug;

/// Threads that build answers; how many may be built at a time.
const BUILDERS: usize = 2;

/// Of the threads that build answers: bytes of clients go first. 0 is ordinary, 19 the lowest.
const NICENESS: i32 = 10;

/// One thread, until this is dropped, and a few more while answers are built.
#[derive(Debug)]
pub(crate) struct Runtime {
    handle: Handle,
    _running: oneshot::Sender<()>,
}

impl Runtime {
    pub(crate) fn start() -> io::Result<Self> {
        let be_nice = || {
            if let Err(error) = setpriority_process(Some(gettid()), NICENESS) {
                debug!(%error, "cannot lower the priority of a thread");
            }
        };
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_all().max_blocking_threads(BUILDERS).on_thread_start(be_nice).build()?;
        let handle = runtime.handle().clone();
        let (running, stopped) = oneshot::channel();
        let run = move || {
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("admin".into()).spawn(run)?;
        Ok(Self { handle, _running: running })
    }

    /// Serves from this socket there.
    pub(crate) fn spawn<F: Future<Output = ()> + Send + 'static>(
        &self,
        socket: TcpListener,
        serve: impl FnOnce(TcpListener) -> F,
    ) -> io::Result<JoinHandle<()>> {
        let socket: StdTcpListener = socket.into_std()?;
        let _context = self.handle.enter();
        Ok(self.handle.spawn(serve(TcpListener::from_std(socket)?)))
    }
}
