//! Connects to an endpoint, from a local address if one is configured.

use std::io;
use std::net::SocketAddr;

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};
use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use super::failure::{Failure, error_message};
use super::settings::{Source, UpstreamSettings};
use crate::proxy_protocol::{self, Outgoing};
use crate::relay::sys;
use crate::relay::tcp::TcpOptions;

/// Where a connection comes from, as its endpoint sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LocalAddress {
    /// Chosen by the kernel.
    Any,
    /// This address; a port of zero is chosen by the kernel.
    Ours(SocketAddr),
    /// The address of another machine (transparent proxying), with its port if that is free.
    Theirs(SocketAddr),
}

impl LocalAddress {
    /// What a failed connect from here says.
    pub(super) fn failure(self, error: &io::Error) -> Failure {
        match (self, Errno::from_io_error(error)) {
            // It is of no use for this endpoint, such as 127.0.0.1 for another machine. (Without it, the endpoint's route
            // is a black hole.)
            (Self::Ours(_) | Self::Theirs(_), Some(Errno::INVAL)) => Failure::Local,
            _ => Failure::of(error),
        }
    }
}

/// How health checks connect to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Dial {
    pub(crate) local: LocalAddress,
    /// The PROXY header that the endpoint expects, if it does.
    header: Option<Outgoing>,
}

impl Dial {
    /// The PROXY header of a connection of our own; empty if the endpoint expects none.
    pub(crate) fn header(&self, stream: &TcpStream) -> io::Result<Vec<u8>> {
        self.header.as_ref().map_or(Ok(Vec::new()), |outgoing| {
            Ok(proxy_protocol::own_header(outgoing, stream.local_addr()?, stream.peer_addr()?))
        })
    }
}

impl UpstreamSettings {
    /// For checks of this endpoint.
    pub(crate) fn dial(&self, endpoint: SocketAddr) -> Dial {
        Dial { local: self.source.own(endpoint), header: self.proxy_protocol.clone() }
    }
}

impl Source {
    /// For the connection of this client to an endpoint.
    pub(super) fn local(self, client: SocketAddr, endpoint: SocketAddr) -> LocalAddress {
        match self {
            // A client of one family cannot be shown to an endpoint of the other.
            Self::Client if client.is_ipv4() == endpoint.is_ipv4() => LocalAddress::Theirs(client),
            _ => self.own(endpoint),
        }
    }

    /// For our own connections to an endpoint, such as health checks.
    pub(crate) fn own(self, endpoint: SocketAddr) -> LocalAddress {
        match (self, endpoint) {
            (Self::Addresses { v4: Some(address), .. }, SocketAddr::V4(_)) => LocalAddress::Ours((address, 0).into()),
            (Self::Addresses { v6: Some(address), .. }, SocketAddr::V6(_)) => LocalAddress::Ours((address, 0).into()),
            (Self::Any | Self::Addresses { .. } | Self::Client, _) => LocalAddress::Any,
        }
    }

    /// Whether an unanswered connect counts against the endpoint: not if the answer may have been routed elsewhere.
    pub(super) fn timeouts_count(self) -> bool {
        self != Self::Client
    }

    /// Why a connection was not answered in time, for the operator.
    pub(super) fn describe_timeout(self) -> &'static str {
        match self {
            Self::Client => "timed out; with `source: client`, its answers must be routed to this machine",
            Self::Any | Self::Addresses { .. } => "timed out",
        }
    }

    /// Why a connection failed, for the operator.
    pub(super) fn describe(self, error: &io::Error, endpoint: SocketAddr) -> String {
        let message = error_message(error);
        let hint = match (self, Errno::from_io_error(error)) {
            (Self::Client, Some(Errno::PERM)) => "`source: client` requires CAP_NET_ADMIN",
            (Self::Client, Some(Errno::INVAL)) => "the endpoint cannot be reached from the client's address",
            (Self::Addresses { .. }, Some(Errno::INVAL)) => {
                "the endpoint cannot be reached from the address in `source`"
            }
            (Self::Addresses { .. }, Some(Errno::ADDRNOTAVAIL)) => match self.own(endpoint) {
                LocalAddress::Ours(_) => {
                    "no interface has the address in `source`, or all of its ports to this endpoint are in use"
                }
                LocalAddress::Any | LocalAddress::Theirs(_) => return message,
            },
            (_, Some(Errno::ADDRNOTAVAIL)) => "all local ports to this endpoint are in use",
            _ => return message,
        };
        format!("{message}: {hint}")
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The bytes of a client. Its handshake waits for the first of them, and the relay sets keepalives.
    Relay,
    /// Something short of our own, which may send nothing.
    Check,
}

/// Connects to one address. Returns the stream and its local address.
pub(crate) async fn connect_to(
    address: SocketAddr,
    local: LocalAddress,
    purpose: Purpose,
) -> io::Result<(TcpStream, SocketAddr)> {
    let connected = connect_from(local, address, purpose).await;
    match (local, &connected) {
        // The client's port is in use, or one of the first 1024, for which there may be no permission.
        (LocalAddress::Theirs(client), Err(error))
            if matches!(Errno::from_io_error(error), Some(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL | Errno::ACCESS)) =>
        {
            connect_from(LocalAddress::Theirs(SocketAddr::new(client.ip(), 0)), address, purpose).await
        }
        _ => connected,
    }
}

async fn connect_from(
    local: LocalAddress,
    address: SocketAddr,
    purpose: Purpose,
) -> io::Result<(TcpStream, SocketAddr)> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    match purpose {
        Purpose::Relay => TcpOptions::apply_all_but_keepalive(&socket)?,
        Purpose::Check => {}
    }
    let source = match local {
        LocalAddress::Any => None,
        LocalAddress::Ours(source) => Some(source),
        LocalAddress::Theirs(client) => {
            let options = SockRef::from(&socket);
            match client {
                SocketAddr::V4(_) => options.set_ip_transparent_v4(true)?,
                SocketAddr::V6(_) => options.set_ip_transparent_v6(true)?,
            }
            // Otherwise a client's port could not be listened on while its connection is open.
            socket.set_reuseaddr(true)?;
            Some(client)
        }
    };
    if let Some(source) = source {
        if source.port() == 0 {
            // The port is chosen by the connect, which knows the endpoint: 28,000 connections to each, and not in all.
            sys::bind_address_no_port(&socket)?;
        }
        socket.bind(source)?;
    }
    let stream = socket.connect(address).await?;
    let local = local_address(&stream, address)?;
    Ok((stream, local))
}

/// Whether this process may connect from the addresses of its clients.
pub(crate) fn may_be_transparent() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// The local address of a stream that was connected to `address`, unless it is connected to itself: if nothing listens on
/// an ephemeral port of this machine, the kernel may do that (TCP simultaneous open).
fn local_address(stream: &TcpStream, address: SocketAddr) -> io::Result<SocketAddr> {
    let local = stream.local_addr()?;
    // `::ffff:192.0.2.1` is 192.0.2.1, and 0.0.0.0 is any address of this machine.
    let (ip, wanted) = (local.ip().to_canonical(), address.ip().to_canonical());
    let is_itself = local.port() == address.port() && (ip == wanted || wanted.is_unspecified());
    if is_itself { Err(io::ErrorKind::ConnectionRefused.into()) } else { Ok(local) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_connect_says_what_its_source_has_to_do_with_it() {
        let v4 = Source::Addresses { v4: Some("198.51.100.1".parse().unwrap()), v6: None };
        let v6 = Source::Addresses { v4: None, v6: Some("2001:db8::1".parse().unwrap()) };
        for (source, errno, hint) in [
            (Source::Client, Errno::PERM, ": `source: client` requires CAP_NET_ADMIN"),
            (Source::Client, Errno::INVAL, ": the endpoint cannot be reached from the client's address"),
            (Source::Client, Errno::ADDRNOTAVAIL, ": all local ports to this endpoint are in use"),
            (v4, Errno::INVAL, ": the endpoint cannot be reached from the address in `source`"),
            (
                v4,
                Errno::ADDRNOTAVAIL,
                ": no interface has the address in `source`, or all of its ports to this endpoint are in use",
            ),
            (v6, Errno::ADDRNOTAVAIL, ""),
            (v4, Errno::CONNREFUSED, ""),
            (Source::Any, Errno::INVAL, ""),
            (Source::Any, Errno::ADDRNOTAVAIL, ": all local ports to this endpoint are in use"),
        ] {
            let error = io::Error::from(errno);
            let described = source.describe(&error, "192.0.2.1:443".parse().unwrap());
            assert_eq!(described, error_message(&error) + hint, "{source:?}, {errno:?}");
        }
    }
}
