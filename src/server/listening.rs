//! Listening sockets: which stay, which are new, and who accepts from them.

use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arc_swap::ArcSwap;
use socket2::{SockRef, Socket};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::accept::{self, BindError};
use crate::account::Counters;
use crate::connection::{self, Snapshot};
use crate::roster::Roster;
use crate::tcp::TcpOptions;

/// A listening socket that this process did not open, from a predecessor or from systemd.
#[derive(Debug)]
pub struct Inherited {
    /// The address that is configured for it; its own, unless the kernel has chosen the port.
    pub address: SocketAddr,
    /// The socket.
    pub socket: StdTcpListener,
}

/// A listener, for as long as the configuration has it.
#[derive(Debug)]
pub(super) struct Listening {
    /// As configured.
    pub(super) configured: SocketAddr,
    /// Where it is.
    pub(super) address: SocketAddr,
    /// The acceptor's socket once more, for its options and for a successor.
    pub(super) socket: Socket,
    /// Dropped, it stops the acceptor.
    stop: DropGuard,
    acceptor: JoinHandle<()>,
}

impl Listening {
    pub(super) fn new(socket: Opened, stop: CancellationToken, acceptor: JoinHandle<()>) -> Self {
        let Opened { configured, address, socket, listener: _ } = socket;
        Self { configured, address, socket, stop: stop.drop_guard(), acceptor }
    }

    /// Accepts no more, serves who is in the queue and closes.
    pub(super) async fn close(self) {
        let Self { socket, stop, acceptor, .. } = self;
        drop((socket, stop));
        // A panic of the loop has been logged; there is nothing left to wait for.
        let _ = acceptor.await;
    }

    /// For what is accepted from now on.
    pub(super) fn set_options(&self, options: &TcpOptions) {
        if let Err(error) = options.apply(&self.socket) {
            warn!(address = %self.address, reason = %error, "cannot change the options of a listener");
        }
    }
}

/// A socket that listens; nobody accepts from it yet.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) configured: SocketAddr,
    pub(super) address: SocketAddr,
    socket: Socket,
    listener: Option<TcpListener>,
}

impl Opened {
    fn of(configured: SocketAddr, listener: TcpListener) -> io::Result<Self> {
        let socket = SockRef::from(&listener).try_clone()?;
        Ok(Self { configured, address: listener.local_addr()?, socket, listener: Some(listener) })
    }

    pub(super) fn take(&mut self) -> Option<TcpListener> {
        self.listener.take()
    }
}

/// Takes the socket over from whoever left it, or binds a new one.
pub(super) fn open(
    address: SocketAddr,
    inherited: &mut Vec<Inherited>,
    options: &TcpOptions,
) -> Result<Opened, BindError> {
    let known = inherited.iter().position(|socket| socket.address == address);
    // Its options are left alone as long as it is not certain that this process will serve from it.
    let take_over = |socket: StdTcpListener| {
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket)
    };
    let listener = match known {
        Some(number) => take_over(inherited.remove(number).socket).map_err(|error| BindError { address, error })?,
        None => accept::bind(address, options)?,
    };
    Opened::of(address, listener).map_err(|error| BindError { address, error })
}

/// What a data listener needs besides its socket.
#[derive(Clone, Debug)]
pub(super) struct Acceptor {
    pub(super) permits: Arc<Semaphore>,
    pub(super) counters: Arc<Counters>,
    pub(super) connections: TaskTracker,
    pub(super) roster: Arc<Roster>,
}

impl Acceptor {
    /// Accepts from it; each connection takes the snapshot that there is then.
    pub(super) fn accept(&self, mut socket: Opened, snapshot: Arc<ArcSwap<Snapshot>>) -> Option<Listening> {
        let listener = socket.take()?;
        info!(listener = &*snapshot.load().listener.name, address = %socket.address, "listening");
        let Self { permits, counters, connections, roster } = self.clone();
        let (failures, members) = (Arc::clone(&counters), Arc::clone(&roster));
        let failed = move |error: &io::Error| {
            let label = accept::error_label(error);
            if failures.accept_error(label) {
                warn!(error = label, reason = %error, "cannot accept; trying again");
            }
        };
        let serve = move |client, peer, permit| {
            // Not within another future: that would hold it twice.
            connections.spawn(connection::serve(client, peer, snapshot.load_full(), roster.enter(), permit));
        };
        let full = move || {
            if counters.full() {
                warn!("limits.connections is reached; new clients wait");
            }
            // Whoever connects and says nothing leaves room for those who do.
            let limit = usize::try_from(counters.connections_limit.load(Relaxed)).unwrap_or(usize::MAX);
            members.make_room(limit / 2);
        };
        let events = accept::Events { failed, full };
        let stop = CancellationToken::new();
        let acceptor = tokio::spawn(accept::run(listener, permits, stop.clone(), events, serve));
        Some(Listening::new(socket, stop, acceptor))
    }
}
