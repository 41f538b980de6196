//! Binds listening sockets.

use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::relay::tcp::TcpOptions;

/// Length of the accept queue; the kernel caps it at `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// An address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}{}", hint(.address, .error))]
pub(crate) struct BindError {
    pub(crate) address: SocketAddr,
    pub(crate) error: io::Error,
}

impl BindError {
    /// Whether another socket has the address.
    pub(crate) fn is_in_use(&self) -> bool {
        Errno::from_io_error(&self.error) == Some(Errno::ADDRINUSE)
    }
}

fn hint(address: &SocketAddr, error: &io::Error) -> String {
    let hint = match Errno::from_io_error(error) {
        Some(Errno::AFNOSUPPORT) if address.ip().is_unspecified() => {
            return format!("; IPv6 is not available on this machine: use 0.0.0.0:{}", address.port());
        }
        Some(Errno::AFNOSUPPORT) => "; IPv6 is not available on this machine: use an IPv4 address",
        Some(Errno::ADDRINUSE) => "; another process is listening on it",
        Some(Errno::ACCESS) => "; ports below 1024 require CAP_NET_BIND_SERVICE",
        Some(Errno::ADDRNOTAVAIL) => {
            "; no interface of this machine has this address: set `freebind` on the listener if one will have it later"
        }
        _ => "",
    };
    hint.into()
}

/// Whether an address may be bound that no interface has yet (`IP_FREEBIND`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    Required,
    /// Clients are accepted once an interface has it.
    Expected,
}

/// Binds and listens. `[::]` accepts IPv4 clients, too.
pub(crate) fn bind(address: SocketAddr, presence: Presence, options: &TcpOptions) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = bound(address, presence)?;
        options.apply(&socket)?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|error| BindError { address, error })
}

/// Whether [`bind`] would succeed now. It does not listen, so no client can connect.
pub(crate) fn is_free(address: SocketAddr, presence: Presence) -> Result<(), BindError> {
    bound(address, presence).map(drop).map_err(|error| BindError { address, error })
}

/// Like [`bind`], but shares the port (`SO_REUSEPORT`) with `leaving`, our own sockets that are about to be closed. Until
/// then, the kernel chooses the socket with the more specific address.
pub(crate) fn bind_beside(
    leaving: &[Socket],
    address: SocketAddr,
    presence: Presence,
    options: &TcpOptions,
) -> Result<TcpListener, BindError> {
    let share = |sockets: &[Socket], is_shared| sockets.iter().try_for_each(|socket| socket.set_reuse_port(is_shared));
    let listen = || {
        let socket = new_socket(address, presence)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        options.apply(&socket)?;
        socket.listen(BACKLOG)?;
        socket.set_reuse_port(false)?;
        TcpListener::from_std(socket.into())
    };
    let listener = share(leaving, true).and_then(|()| listen());
    // Stop sharing. A process of the same user that sets the option could still bind the port.
    let _ = share(leaving, false);
    listener.map_err(|error| BindError { address, error })
}

fn bound(address: SocketAddr, presence: Presence) -> io::Result<Socket> {
    let socket = new_socket(address, presence)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn new_socket(address: SocketAddr, presence: Presence) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Allows an immediate restart. Unlike SO_REUSEPORT, it does not let two processes share a port.
    socket.set_reuse_address(true)?;
    match (presence, address) {
        (Presence::Required, _) => {}
        (Presence::Expected, SocketAddr::V4(_)) => socket.set_freebind_v4(true)?,
        (Presence::Expected, SocketAddr::V6(_)) => socket.set_freebind_v6(true)?,
    }
    Ok(socket)
}

/// Whether the two addresses cannot be bound at the same time: `[::]` includes all IPv4 addresses, too.
pub(crate) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |one: SocketAddr, other: SocketAddr| {
        one.ip().is_unspecified() && (one.is_ipv6() || other.ip().to_canonical().is_ipv4())
    };
    let is_same = one.ip().to_canonical() == other.ip().to_canonical();
    one.port() != 0 && one.port() == other.port() && (is_same || covers(one, other) || covers(other, one))
}
