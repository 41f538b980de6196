//! Sockets that listen, and the loop that accepts from one. Knows nothing of TLS or routes.

pub(crate) mod accept;
mod bind;

use std::net::{SocketAddr, TcpListener};

pub(crate) use self::bind::{BindError, bind, bind_beside, is_free, overlap};

/// A listening socket that this process did not open, from a predecessor or from systemd.
#[derive(Debug)]
pub(crate) struct Inherited {
    /// The address that is configured for it; its own, unless the kernel has chosen the port.
    pub(crate) address: SocketAddr,
    /// The listener's name, if it is known.
    pub(crate) name: Option<Box<str>>,
    /// The socket.
    pub(crate) socket: TcpListener,
}
