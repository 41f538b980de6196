//! Listening sockets, and the loop that accepts from one.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::tcp::TcpOptions;

/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Between attempts while `accept` fails. Readiness stays set after a failure, so without a pause this would spin.
const MIN_BACK_OFF: Duration = Duration::from_millis(10);
const MAX_BACK_OFF: Duration = Duration::from_millis(100);

/// An address could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", hint(.source))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Why.
    pub source: io::Error,
}

fn hint(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::ADDRINUSE) => "; another process listens there",
        Some(Errno::ACCESS) => "; ports below 1024 need the capability CAP_NET_BIND_SERVICE",
        Some(Errno::ADDRNOTAVAIL) => "; no interface of this machine has that address",
        _ => "",
    }
}

/// Listens. `[::]` takes IPv4 clients too.
pub fn bind(address: SocketAddr, options: &TcpOptions) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        // To listen again at once after a restart. Unlike SO_REUSEPORT it does not let two processes share a port.
        socket.set_reuse_address(true)?;
        options.apply(&socket)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|source| BindError { address, source })
}

/// Accepts until `stop`, then serves what the kernel had queued and closes the socket.
///
/// A permit is taken before each accept, so that clients beyond the limit wait in the kernel's queue. Errors are told
/// to `failed` and never end the loop.
pub async fn run(
    listener: TcpListener,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
    failed: impl Fn(&io::Error),
    serve: impl Fn(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let mut back_off = MIN_BACK_OFF;
    loop {
        let permit = tokio::select! {
            biased;
            Ok(permit) = Arc::clone(&permits).acquire_owned() => permit,
            () = stop.cancelled() => return,
        };
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((client, peer)) => {
                back_off = MIN_BACK_OFF;
                serve(client, peer, permit);
            }
            Err(error) => {
                failed(&error);
                sleep(back_off).await;
                back_off = (back_off * 2).min(MAX_BACK_OFF);
            }
        }
    }
}

/// The label of an accept error.
#[must_use]
pub fn error_label(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE) => "EMFILE",
        Some(Errno::NFILE) => "ENFILE",
        Some(Errno::NOBUFS) => "ENOBUFS",
        Some(Errno::NOMEM) => "ENOMEM",
        Some(Errno::CONNABORTED) => "ECONNABORTED",
        Some(Errno::PROTO) => "EPROTO",
        Some(Errno::PERM) => "EPERM",
        _ => "other",
    }
}
