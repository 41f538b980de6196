//! Listening sockets: which are kept over a reload, which are opened, and their accept loops.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arc_swap::ArcSwap;
use socket2::{SockRef, Socket};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::connection::registry::Registry;
use crate::connection::{self, Snapshot};
use crate::listener::accept::{self, Stop};
use crate::listener::{BindError, InheritedSocket, Presence, bind, bind_beside, overlap};
use crate::relay::tcp::TcpOptions;
use crate::telemetry::Counters;

/// A running listener.
#[derive(Debug)]
pub(super) struct Listening {
    /// The configured address.
    pub(super) configured: SocketAddr,
    /// The bound address.
    pub(super) address: SocketAddr,
    /// A duplicate of the accept loop's socket, to set its options and to hand it over.
    pub(super) socket: Socket,
    stop: StopOnDrop,
    acceptor: JoinHandle<()>,
}

#[derive(Debug)]
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Listening {
    pub(super) fn new(socket: OpenSocket, stop: Stop, acceptor: JoinHandle<()>) -> Self {
        let OpenSocket { configured, address, socket, listener: _ } = socket;
        Self { configured, address, socket, stop: StopOnDrop(stop), acceptor }
    }

    /// Stops accepting, serves the accept queue and closes.
    pub(super) async fn close(self) {
        let Self { socket, stop, acceptor, .. } = self;
        drop((socket, stop));
        // A panic of the loop was already logged.
        let _ = acceptor.await;
    }

    /// Stops accepting and closes; the accept queue is left to a successor with the same socket.
    pub(super) async fn hand_over(self) {
        self.stop.0.hand_over();
        self.close().await;
    }

    /// Sets the options of connections accepted from now on.
    pub(super) fn set_options(&self, options: &TcpOptions) {
        if let Err(error) = options.apply(&self.socket) {
            warn!(address = %self.address, reason = %error, "cannot set the socket options of a listener");
        }
    }
}

/// A listening socket without an accept loop.
#[derive(Debug)]
pub(super) struct OpenSocket {
    pub(super) configured: SocketAddr,
    pub(super) address: SocketAddr,
    socket: Socket,
    listener: Option<TcpListener>,
}

impl OpenSocket {
    fn of(configured: SocketAddr, listener: TcpListener) -> io::Result<Self> {
        let socket = SockRef::from(&listener).try_clone()?;
        Ok(Self { configured, address: listener.local_addr()?, socket, listener: Some(listener) })
    }

    pub(super) fn take(&mut self) -> Option<TcpListener> {
        self.listener.take()
    }
}

/// Assigns existing sockets, given by name and configured address, to the listeners of a configuration: one with the same
/// name and address, or else one with the same address. `None`: a new socket is needed.
pub(super) fn assign(wanted: &[(&str, SocketAddr)], existing: &[(Option<&str>, SocketAddr)]) -> Vec<Option<usize>> {
    let mut is_taken = vec![false; existing.len()];
    let mut assigned = vec![None; wanted.len()];
    for is_by_name in [true, false] {
        for ((name, address), assigned) in wanted.iter().zip(&mut assigned).filter(|(_, assigned)| assigned.is_none()) {
            let fits = |&index: &usize| {
                let (other, configured) = existing[index];
                !is_taken[index] && configured == *address && (!is_by_name || other == Some(name))
            };
            *assigned = (0..existing.len()).find(fits);
            if let Some(index) = *assigned {
                is_taken[index] = true;
            }
        }
    }
    assigned
}

/// Adopts an inherited socket. Its options are not changed before it is certain that this process will serve from it.
pub(super) fn take_over(inherited: InheritedSocket) -> Result<OpenSocket, BindError> {
    let InheritedSocket { address, socket, .. } = inherited;
    let listener = socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket));
    listener.and_then(|listener| OpenSocket::of(address, listener)).map_err(|error| BindError { address, error })
}

/// Binds a new socket, sharing the port with sockets that are about to be closed if necessary.
pub(super) fn open(
    address: SocketAddr,
    presence: Presence,
    leaving: &[(SocketAddr, Socket)],
    options: &TcpOptions,
) -> Result<OpenSocket, BindError> {
    let listener = bind(address, presence, options).or_else(|error| {
        let overlapping = |(other, socket): &(SocketAddr, Socket)| {
            overlap(address, *other).then(|| socket.try_clone().ok()).flatten()
        };
        let overlapping: Vec<Socket> = leaving.iter().filter_map(overlapping).collect();
        if error.is_in_use() && !overlapping.is_empty() {
            return bind_beside(&overlapping, address, presence, options);
        }
        Err(error)
    })?;
    OpenSocket::of(address, listener).map_err(|error| BindError { address, error })
}

/// What the accept loop of a listener needs besides its socket.
#[derive(Clone, Debug)]
pub(super) struct Acceptor {
    pub(super) permits: Arc<Semaphore>,
    pub(super) counters: Arc<Counters>,
    pub(super) registry: Arc<Registry>,
}

impl Acceptor {
    /// Starts the accept loop; each connection uses the snapshot that is current when it is accepted.
    pub(super) fn accept(&self, mut socket: OpenSocket, snapshot: Arc<ArcSwap<Snapshot>>) -> Option<Listening> {
        let listener = socket.take()?;
        info!(listener = &*snapshot.load().listener.name, address = %socket.address, "listening");
        let Self { permits, counters, registry } = self.clone();
        let (failures, open, ending) = (Arc::clone(&counters), Arc::clone(&registry), Arc::clone(&registry));
        let failed = move |error: &io::Error| {
            let label = accept::error_label(error);
            if failures.accept_error(label) {
                warn!(error = label, reason = %error, "accept failed; retrying");
            }
        };
        let serve = move |client, peer, permit| {
            tokio::spawn(connection::serve(client, peer, snapshot.load_full(), registry.register(), permit));
        };
        let full = move || {
            if counters.may_log_full() {
                warn!("limits.connections reached; new clients wait in the accept queue");
            }
            // Clients that connect and send nothing make room for others.
            let limit = usize::try_from(counters.connections_limit.load(Relaxed)).unwrap_or(usize::MAX);
            open.shed_one(limit / 2);
        };
        let callbacks = accept::Callbacks { failed, full };
        // Each connection has two descriptors.
        let freed = async move || ending.ended().await;
        let stop = Stop::default();
        let acceptor = tokio::spawn(accept::run(listener, permits, stop.clone(), callbacks, freed, serve));
        Some(Listening::new(socket, stop, acceptor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g09_listeners_keep_their_sockets_by_name_then_by_address() {
        let chosen: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let fixed: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        let existing = [(Some("one"), chosen), (Some("two"), chosen), (Some("three"), fixed)];
        assert_eq!(assign(&[("two", chosen), ("one", chosen)], &existing), [Some(1), Some(0)], "reordered");
        assert_eq!(assign(&[("new", chosen), ("one", chosen)], &existing), [Some(1), Some(0)], "one renamed");
        assert_eq!(assign(&[("renamed", fixed), ("three", chosen)], &existing), [Some(2), Some(0)]);
        assert_eq!(assign(&[("a", chosen), ("b", chosen), ("c", chosen)], &existing), [Some(0), Some(1), None]);
        assert_eq!(assign(&[("a", fixed)], &[(None, fixed)]), [Some(0)], "without a name");
    }
}
