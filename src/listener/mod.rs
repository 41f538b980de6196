//! Listening sockets, and the accept loop. Independent of TLS and routes.

pub(crate) mod accept;
mod bind;

use std::net::{SocketAddr, TcpListener};

pub(crate) use self::bind::{BindError, Presence, bind, bind_beside, is_free, overlap};

/// A listening socket that was opened by the predecessor or by systemd.
#[derive(Debug)]
pub(crate) struct InheritedSocket {
    /// The configured address: that of the socket, unless the kernel chose the port.
    pub(crate) address: SocketAddr,
    /// The listener's name, if it is known.
    pub(crate) name: Option<Box<str>>,
    pub(crate) socket: TcpListener,
}
