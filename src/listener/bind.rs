//! How addresses are listened on.

use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::relay::tcp::TcpOptions;

/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// An address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {error}{}", hint(.address, .error))]
pub(crate) struct BindError {
    /// The address.
    pub(crate) address: SocketAddr,
    /// Why.
    pub(crate) error: io::Error,
}

fn hint(address: &SocketAddr, error: &io::Error) -> String {
    let hint = match Errno::from_io_error(error) {
        Some(Errno::AFNOSUPPORT) if address.ip().is_unspecified() => {
            return format!("; this machine has no IPv6: write 0.0.0.0:{}", address.port());
        }
        Some(Errno::AFNOSUPPORT) => "; this machine has no IPv6: write an IPv4 address",
        Some(Errno::ADDRINUSE) => "; another process listens there",
        Some(Errno::ACCESS) => "; ports below 1024 need the capability CAP_NET_BIND_SERVICE",
        Some(Errno::ADDRNOTAVAIL) => "; no interface of this machine has that address",
        _ => "",
    };
    hint.into()
}

/// Listens. `[::]` takes IPv4 clients too.
pub(crate) fn bind(address: SocketAddr, options: &TcpOptions) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = bound(address)?;
        options.apply(&socket)?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|error| BindError { address, error })
}

/// Whether [`bind`] could listen there now. Nobody sees this: it does not listen, and keeps nobody from doing so.
pub(crate) fn is_free(address: SocketAddr) -> Result<(), BindError> {
    bound(address).map(drop).map_err(|error| BindError { address, error })
}

/// Listens where one of `leaving` stands in the way, a socket of ours that is about to be closed: both share the port until
/// then, and a client reaches the one whose address is closer to what it has connected to.
pub(crate) fn bind_beside(
    leaving: &[Socket],
    address: SocketAddr,
    options: &TcpOptions,
) -> Result<TcpListener, BindError> {
    let share = |sockets: &[Socket], is_shared| sockets.iter().try_for_each(|socket| socket.set_reuse_port(is_shared));
    let listen = || {
        let socket = new_socket(address)?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        options.apply(&socket)?;
        socket.listen(BACKLOG)?;
        socket.set_reuse_port(false)?;
        TcpListener::from_std(socket.into())
    };
    let listener = share(leaving, true).and_then(|()| listen());
    // Another process is not to share it. The kernel remembers, so one of the same user that asks for it still can.
    let _ = share(leaving, false);
    listener.map_err(|error| BindError { address, error })
}

fn bound(address: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(address)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // To listen again at once after a restart. Unlike SO_REUSEPORT it does not let two processes share a port.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Whether the kernel would refuse to listen on the second of the two: `[::]` takes the IPv4 addresses, too.
pub(crate) fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |one: SocketAddr, other: SocketAddr| {
        one.ip().is_unspecified() && (one.is_ipv6() || other.ip().to_canonical().is_ipv4())
    };
    let is_same = one.ip().to_canonical() == other.ip().to_canonical();
    one.port() != 0 && one.port() == other.port() && (is_same || covers(one, other) || covers(other, one))
}
