//! Listening sockets: which stay, which are new, and who accepts from them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use arc_swap::ArcSwap;
use rustix::io::Errno;
use socket2::{SockRef, Socket};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::connection::registry::Registry;
use crate::connection::{self, Snapshot};
use crate::listener::accept::{self, Stop};
use crate::listener::{BindError, InheritedSocket, bind, bind_beside, overlap};
use crate::relay::tcp::TcpOptions;
use crate::telemetry::Counters;

/// A listener, for as long as the configuration has it.
#[derive(Debug)]
pub(super) struct Listening {
    /// As configured.
    pub(super) configured: SocketAddr,
    /// Where it is.
    pub(super) address: SocketAddr,
    /// The acceptor's socket once more, for its options and for a successor.
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
    pub(super) fn new(socket: Opened, stop: Stop, acceptor: JoinHandle<()>) -> Self {
        let Opened { configured, address, socket, listener: _ } = socket;
        Self { configured, address, socket, stop: StopOnDrop(stop), acceptor }
    }

    /// Accepts no more, serves who is in the queue and closes.
    pub(super) async fn close(self) {
        let Self { socket, stop, acceptor, .. } = self;
        drop((socket, stop));
        // A panic of the loop has been logged; there is nothing left to wait for.
        let _ = acceptor.await;
    }

    /// Accepts no more, and closes: a successor has the socket, and with it who is in the queue.
    pub(super) async fn hand_over(self) {
        self.stop.0.hand_over();
        self.close().await;
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

/// Which of the sockets that there are, each with its name and the address that is configured for it, serves each listener:
/// one of the same name and address, else one of the same address. `None`: a new one.
pub(super) fn assign(wanted: &[(&str, SocketAddr)], present: &[(Option<&str>, SocketAddr)]) -> Vec<Option<usize>> {
    let mut is_taken = vec![false; present.len()];
    let mut assigned = vec![None; wanted.len()];
    for is_by_name in [true, false] {
        for ((name, address), assigned) in wanted.iter().zip(&mut assigned).filter(|(_, assigned)| assigned.is_none()) {
            let fits = |&number: &usize| {
                let (other, configured) = present[number];
                !is_taken[number] && configured == *address && (!is_by_name || other == Some(name))
            };
            *assigned = (0..present.len()).find(fits);
            if let Some(number) = *assigned {
                is_taken[number] = true;
            }
        }
    }
    assigned
}

/// Takes over a socket that was inherited. Its options are left alone as long as it is not certain that this process will
/// serve from it.
pub(super) fn take_over(inherited: InheritedSocket) -> Result<Opened, BindError> {
    let InheritedSocket { address, socket, .. } = inherited;
    let listener = socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket));
    listener.and_then(|listener| Opened::of(address, listener)).map_err(|error| BindError { address, error })
}

/// Binds a new socket, beside those that are about to be closed.
pub(super) fn open(
    address: SocketAddr,
    leaving: &[(SocketAddr, Socket)],
    options: &TcpOptions,
) -> Result<Opened, BindError> {
    let listener = bind(address, options).or_else(|error| {
        let is_in_the_way = |(other, socket): &(SocketAddr, Socket)| {
            overlap(address, *other).then(|| socket.try_clone().ok()).flatten()
        };
        let in_the_way: Vec<Socket> = leaving.iter().filter_map(is_in_the_way).collect();
        match Errno::from_io_error(&error.error) {
            Some(Errno::ADDRINUSE) if !in_the_way.is_empty() => bind_beside(&in_the_way, address, options),
            _ => Err(error),
        }
    })?;
    Opened::of(address, listener).map_err(|error| BindError { address, error })
}

/// What a data listener needs besides its socket.
#[derive(Clone, Debug)]
pub(super) struct Acceptor {
    pub(super) permits: Arc<Semaphore>,
    pub(super) counters: Arc<Counters>,
    pub(super) connections: TaskTracker,
    pub(super) registry: Arc<Registry>,
}

impl Acceptor {
    /// Accepts from it; each connection takes the snapshot that there is then.
    pub(super) fn accept(&self, mut socket: Opened, snapshot: Arc<ArcSwap<Snapshot>>) -> Option<Listening> {
        let listener = socket.take()?;
        info!(listener = &*snapshot.load().listener.name, address = %socket.address, "listening");
        let Self { permits, counters, connections, registry } = self.clone();
        let (failures, members) = (Arc::clone(&counters), Arc::clone(&registry));
        let failed = move |error: &io::Error| {
            let label = accept::error_label(error);
            if failures.accept_error(label) {
                warn!(error = label, reason = %error, "cannot accept; trying again");
            }
        };
        let serve = move |client, peer, permit| {
            // Not within another future: that would hold it twice.
            connections.spawn(connection::serve(client, peer, snapshot.load_full(), registry.register(), permit));
        };
        let full = move || {
            if counters.may_log_full() {
                warn!("limits.connections is reached; new clients wait");
            }
            // Whoever connects and says nothing leaves room for those who do.
            let limit = usize::try_from(counters.connections_limit.load(Relaxed)).unwrap_or(usize::MAX);
            members.shed_one(limit / 2);
        };
        let callbacks = accept::Callbacks { failed, full };
        let stop = Stop::default();
        let acceptor = tokio::spawn(accept::run(listener, permits, stop.clone(), callbacks, serve));
        Some(Listening::new(socket, stop, acceptor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g05_listeners_keep_their_sockets_by_name_then_by_address() {
        let chosen: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let fixed: SocketAddr = "127.0.0.1:6443".parse().unwrap();
        let present = [(Some("one"), chosen), (Some("two"), chosen), (Some("three"), fixed)];
        assert_eq!(assign(&[("two", chosen), ("one", chosen)], &present), [Some(1), Some(0)], "in another order");
        assert_eq!(assign(&[("new", chosen), ("one", chosen)], &present), [Some(1), Some(0)], "one was renamed");
        assert_eq!(assign(&[("renamed", fixed), ("three", chosen)], &present), [Some(2), Some(0)]);
        assert_eq!(assign(&[("a", chosen), ("b", chosen), ("c", chosen)], &present), [Some(0), Some(1), None]);
        assert_eq!(assign(&[("a", fixed)], &[(None, fixed)]), [Some(0)], "without a name");
    }
}
