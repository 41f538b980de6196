//! Why a client is not served, and how it is told.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::account::{ClosedBy, Facts, Outcome, escape};
use crate::client_hello::{self, Invalid};
use crate::hello::HelloError;
use crate::relay;
use crate::upstream::{ConnectError, Failure};

/// How a client that is refused is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refuse {
    /// With a fatal TLS alert that says why. `kubectl` gives up at once.
    Alert,
    /// With a FIN. `kubectl` tries again for 50 seconds and then says `EOF`.
    Close,
    /// With a RST.
    Reset,
}

/// How long a refused client may take to read the alert and close.
const LINGER: Duration = Duration::from_secs(1);

/// How much of what it still sends is taken from it meanwhile. Bytes left unread turn a close into a RST, which can
/// overtake the alert.
const MAX_DRAINED: usize = 256 * 1024;

/// Why a client is not served.
#[derive(Debug)]
pub struct Refusal {
    /// What is counted.
    pub outcome: Outcome,
    /// In words, if there is more to say.
    pub reason: Option<Box<str>>,
    /// The name it asked for, escaped, if the name is what was wrong.
    pub server_name: Option<Box<str>>,
}

impl Refusal {
    /// With this to say.
    #[must_use]
    pub fn because(outcome: Outcome, reason: impl Into<Box<str>>) -> Self {
        Self { outcome, reason: Some(reason.into()), server_name: None }
    }

    /// Who ended the connection.
    #[must_use]
    pub fn closed_by(&self) -> ClosedBy {
        if self.outcome == Outcome::ClientGone { ClosedBy::Client } else { ClosedBy::Us }
    }

    /// What the log line will say of it.
    pub fn note(&self, facts: &mut Facts) {
        facts.reason.clone_from(&self.reason);
        if self.server_name.is_some() {
            facts.server_name.clone_from(&self.server_name);
        }
    }

    /// Tells the client and closes.
    pub async fn deliver(&self, client: TcpStream, how: Refuse) {
        match how {
            // Who sends no PROXY header where one must be is not worth a place.
            _ if matches!(self.outcome, Outcome::ClientGone | Outcome::ProxyHeader) => {}
            Refuse::Reset => relay::reset_on_close(&client),
            Refuse::Alert => {
                if let Some(alert) = self.outcome.alert() {
                    // Seven bytes fit into the empty send buffer of a new connection.
                    let _ = client.try_write(&alert.record());
                }
                close(&client).await;
            }
            Refuse::Close => close(&client).await,
        }
    }
}

/// Says that nothing more will come, and waits for the client to say so too.
async fn close(client: &TcpStream) {
    if rustix::net::shutdown(client, rustix::net::Shutdown::Write).is_err() {
        return;
    }
    let deadline = Instant::now() + LINGER;
    let mut drained = 0;
    while drained < MAX_DRAINED && timeout_at(deadline, client.readable()).await.is_ok_and(|ready| ready.is_ok()) {
        // Here and not before the loop: what lives while it waits is part of every connection's task.
        match client.try_read(&mut [0; 1024]) {
            Ok(0) => return,
            Ok(length) => drained += length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

impl From<Outcome> for Refusal {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, reason: None, server_name: None }
    }
}

impl From<HelloError> for Refusal {
    fn from(error: HelloError) -> Self {
        match error {
            HelloError::Gone => Outcome::ClientGone.into(),
            HelloError::TimedOut => Outcome::HelloTimeout.into(),
            HelloError::Invalid(reason) => Invalid::from(reason).into(),
            HelloError::UnexpectedProxyHeader => Self::because(
                Outcome::NotTls,
                "a PROXY header, which this listener does not expect (it has no accept_proxy)",
            ),
            HelloError::NoRoom => {
                Self::because(Outcome::OverLimit, "its hello is large, and limits.buffer_bytes is reached")
            }
            HelloError::ProxyHeader(reason) => Self::because(Outcome::ProxyHeader, reason.to_string()),
        }
    }
}

impl From<Invalid<'_>> for Refusal {
    fn from(invalid: Invalid<'_>) -> Self {
        let outcome = match invalid.reason {
            client_hello::Reason::NotTls => Outcome::NotTls,
            client_hello::Reason::TooLarge => Outcome::HelloTooLarge,
            _ => Outcome::Malformed,
        };
        Self { outcome, reason: Some(invalid.reason.to_string().into()), server_name: invalid.server_name.map(escape) }
    }
}

impl From<ConnectError> for Refusal {
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
