//! Reads a hello from a socket, and the PROXY header that may come before it.

use std::io;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::client_hello::{ClientHello, Framing, Invalid, IpLiteral, Progress, Reason};
use crate::proxy_protocol::{self, Named};
use crate::relay::budget::Reservation;
use crate::relay::tcp::{is_transient, try_read, with_scratch};

/// A hello as far as it has been received, and what came right behind it.
#[derive(Debug)]
pub(crate) struct Hello {
    framing: Framing,
    received: Vec<u8>,
    limit: usize,
    charge: Reservation,
}

/// So much memory every hello may have; more only as long as there is room. Most hellos are smaller.
const ALWAYS_HELD: usize = 2048;

/// Why a hello did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HelloError {
    /// The client closed or reset the connection.
    Gone,
    /// The deadline has passed.
    TimedOut,
    /// It is none.
    Invalid(Reason),
    /// No header comes before it, where one should.
    ProxyHeader(proxy_protocol::Invalid),
    /// A header comes before it, where none should.
    UnexpectedProxyHeader,
    /// It is large, and there is no room for more of such.
    NoRoom,
}

impl Hello {
    /// A hello of at most `limit` raw bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { framing: Framing::new(limit), received: Vec::new(), limit, charge: Reservation::default() }
    }

    /// Reads the PROXY header that comes before the hello; whom it names.
    pub(crate) async fn read_proxy_header(
        &mut self,
        client: &TcpStream,
        deadline: Instant,
    ) -> Result<Option<Named>, HelloError> {
        let read = async {
            loop {
                if let Some(header) = proxy_protocol::parse(&self.received).map_err(HelloError::ProxyHeader)? {
                    // What came right behind it is of the hello.
                    self.received.drain(..header.length);
                    return Ok(header.named);
                }
                self.read_more(client, proxy_protocol::MAX_LENGTH).await?;
            }
        };
        timeout_at(deadline, read).await.unwrap_or(Err(HelloError::TimedOut))
    }

    /// Reads until the hello is whole. The deadline is absolute: progress does not extend it.
    pub(crate) async fn read(&mut self, client: &TcpStream, deadline: Instant) -> Result<(), HelloError> {
        timeout_at(deadline, self.read_whole(client)).await.unwrap_or(Err(HelloError::TimedOut))
    }

    async fn read_whole(&mut self, client: &TcpStream) -> Result<(), HelloError> {
        while self.framing.advance(&self.received).map_err(|reason| self.refused(reason))? == Progress::Incomplete {
            self.read_more(client, self.limit).await?;
        }
        // For as long as an endpoint is dialled. Who has waited with a large one is not refused at its end.
        if self.charge.is_none() { self.hold() } else { Ok(()) }
    }

    fn refused(&self, reason: Reason) -> HelloError {
        if reason == Reason::NotTls && proxy_protocol::begins(&self.received) {
            HelloError::UnexpectedProxyHeader
        } else {
            HelloError::Invalid(reason)
        }
    }

    /// Reads once, when there is something to read, until there are so many bytes at most.
    async fn read_more(&mut self, client: &TcpStream, limit: usize) -> Result<(), HelloError> {
        loop {
            match self.read_once(client, limit) {
                Ok(0) => return Err(HelloError::Gone),
                Ok(_) => return Ok(()),
                Err(error) if is_transient(&error) => {
                    self.hold()?;
                    client.readable().await.map_err(|_| HelloError::Gone)?;
                }
                Err(_) => return Err(HelloError::Gone),
            }
        }
    }

    /// What has come must wait.
    fn hold(&mut self) -> Result<(), HelloError> {
        let memory = self.received.capacity() + self.framing.copied();
        self.charge.grow_to(memory.saturating_sub(ALWAYS_HELD)).map_err(|_| HelloError::NoRoom)
    }

    fn read_once(&mut self, client: &TcpStream, limit: usize) -> io::Result<usize> {
        with_scratch(|scratch| {
            let room = scratch.len().min(limit - self.received.len());
            let room = &mut scratch[..room];
            let length = try_read(client, room.len(), || rustix::io::read(client, &mut *room))?;
            let known = self.received.len();
            if known > 0 && known + length <= ALWAYS_HELD {
                // The second segment of an ordinary hello: no more than it may have.
                self.received.reserve_exact(ALWAYS_HELD - known);
            }
            self.received.extend_from_slice(&room[..length]);
            Ok(length)
        })
    }

    /// What it says, once it is whole.
    pub(crate) fn parse(&self, ip_literal: IpLiteral) -> Result<ClientHello<'_>, Invalid<'_>> {
        ClientHello::parse_with(self.framing.message(&self.received), ip_literal)
    }

    /// How many bytes have been received.
    pub(crate) fn received(&self) -> usize {
        self.received.len()
    }

    /// All bytes received.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.received
    }
}
