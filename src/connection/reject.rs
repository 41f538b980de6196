//! Why a client is rejected, and how.

use std::io;
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::client_hello::{self, Invalid};
use crate::connection::read_hello::HelloError;
use crate::relay;
use crate::telemetry::{ClosedBy, Outcome, escape};
use crate::upstream::{ConnectError, Failure};

/// How a client is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RejectWith {
    /// A fatal TLS alert with the reason. `kubectl` fails immediately.
    Alert,
    /// A FIN. `kubectl` retries for 50 seconds and then reports `EOF`.
    Close,
    /// A RST.
    Reset,
}

/// How long a rejected client may take to read the alert and close.
const LINGER: Duration = Duration::from_secs(1);

/// How much of what it still sends is read meanwhile. Unread bytes would turn the close into a RST, which can overtake
/// the alert.
const MAX_DRAINED: usize = 256 * 1024;

/// Why a client is rejected.
#[derive(Debug)]
pub(crate) struct Rejection {
    pub(crate) outcome: Outcome,
    /// Details that the outcome does not tell.
    pub(crate) reason: Option<Box<str>>,
    /// The invalid name that the client sent, escaped.
    pub(crate) server_name: Option<Box<str>>,
}

impl Rejection {
    /// A rejection with a reason.
    pub(crate) fn because(outcome: Outcome, reason: impl Into<Box<str>>) -> Self {
        Self { outcome, reason: Some(reason.into()), server_name: None }
    }

    /// The value of `closed_by` in the log.
    pub(crate) fn closed_by(&self) -> ClosedBy {
        if self.outcome == Outcome::ClientGone { ClosedBy::Client } else { ClosedBy::Us }
    }

    /// Rejects the client and closes the connection.
    pub(crate) async fn deliver(&self, client: TcpStream, how: RejectWith) {
        match how {
            // A peer without the required PROXY header may not speak TLS, so it gets no alert.
            _ if matches!(self.outcome, Outcome::ClientGone | Outcome::ProxyHeader) => {}
            RejectWith::Reset => relay::reset_on_close(&client),
            RejectWith::Alert => {
                if let Some(alert) = self.outcome.alert() {
                    // Seven bytes fit into the empty send buffer of a new connection. Not by the runtime, which may not have
                    // learned yet that this one is writable.
                    let _ = rustix::net::send(&client, &alert.record(), SendFlags::NOSIGNAL);
                }
                close(&client).await;
            }
            RejectWith::Close => close(&client).await,
        }
    }
}

/// Sends a FIN and waits for the client's.
async fn close(client: &TcpStream) {
    if rustix::net::shutdown(client, rustix::net::Shutdown::Write).is_err() {
        return;
    }
    let deadline = Instant::now() + LINGER;
    let mut drained = 0;
    while drained < MAX_DRAINED && timeout_at(deadline, client.readable()).await.is_ok_and(|ready| ready.is_ok()) {
        // The buffer is created here because what lives across an await is part of every connection's task.
        match client.try_read(&mut [0; 1024]) {
            Ok(0) => return,
            Ok(length) => drained += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

impl From<Outcome> for Rejection {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, reason: None, server_name: None }
    }
}

impl From<HelloError> for Rejection {
    fn from(error: HelloError) -> Self {
        match error {
            HelloError::Gone => Outcome::ClientGone.into(),
            HelloError::TimedOut => Outcome::HelloTimeout.into(),
            HelloError::Invalid(reason) => Invalid::from(reason).into(),
            HelloError::UnexpectedProxyHeader => Self::because(
                Outcome::NotTls,
                "unexpected PROXY header: this peer is in no `accept_proxy.from` of this listener",
            ),
            HelloError::NoRoom => {
                Self::because(Outcome::OverLimit, "limits.buffer_bytes is reached: no memory for a large ClientHello")
            }
            HelloError::ProxyHeader(reason) => Self::because(Outcome::ProxyHeader, reason.to_string()),
        }
    }
}

impl From<Invalid<'_>> for Rejection {
    fn from(invalid: Invalid<'_>) -> Self {
        let outcome = match invalid.reason {
            client_hello::Reason::NotTls => Outcome::NotTls,
            client_hello::Reason::TooLarge => Outcome::HelloTooLarge,
            _ => Outcome::Malformed,
        };
        Self { outcome, reason: Some(invalid.reason.to_string().into()), server_name: invalid.server_name.map(escape) }
    }
}

impl From<ConnectError> for Rejection {
    fn from(error: ConnectError) -> Self {
        let outcome = match error.kind {
            Failure::NoEndpoint => Outcome::NoEndpoint,
            Failure::Loop => Outcome::Loop,
            Failure::Refused => Outcome::ConnectRefused,
            Failure::TimedOut => Outcome::ConnectTimeout,
            Failure::Local => Outcome::LocalError,
        };
        Self { outcome, reason: Some(error.to_string().into()), server_name: None }
    }
}
