//! Processes that connect to the socket of `upgrade.socket` to take over.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use crate::process::unix_socket::{self, Found, Peer};

pub(super) const KEY: &str = "upgrade.socket";

/// Where a new process connects, if `upgrade.socket` is configured.
pub(super) struct UpgradeListener(Option<tokio::net::UnixListener>);

impl UpgradeListener {
    /// Listens with the socket that this process has created or inherited, or with a new one if that has another path.
    pub(super) fn new(path: Option<&Path>, socket: Option<UnixListener>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let inherited = socket.filter(|socket| unix_socket::is_at(socket, path));
        let socket = inherited.or_else(|| match unix_socket::open(KEY, path) {
            Ok(Found::Nobody(socket)) => Some(socket),
            Ok(Found::Running(_)) => {
                warn!(path = %path.display(), "another instance listens at upgrade.socket; no process can take over from this one");
                None
            }
            Err(reason) => {
                // The sandbox may have been entered before the key was set.
                warn!(%reason, "no process can take over from this one; restart snigate");
                None
            }
        });
        let listen = |socket: UnixListener| {
            socket.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(socket)
        };
        socket.map(listen).transpose().map(Self)
    }

    /// A duplicate for the next process.
    pub(super) fn try_clone(&self) -> io::Result<Option<UnixListener>> {
        self.0.as_ref().map(|socket| Ok(socket.as_fd().try_clone_to_owned()?.into())).transpose()
    }

    /// The next process of the same user or root that connects.
    pub(super) async fn accept(&self) -> UnixStream {
        let Some(socket) = &self.0 else { return std::future::pending().await };
        loop {
            match socket.accept().await.and_then(|(stream, _)| stream.into_std()) {
                Ok(stream) if Peer::of(&stream).is_ok_and(Peer::is_trusted) => return stream,
                Ok(_) => warn!("another user has connected to upgrade.socket; ignored"),
                Err(reason) => {
                    warn!(%reason, "cannot accept a process at upgrade.socket; retrying");
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}
