//! Reads the ClientHello from a socket, and the PROXY header before it.

use std::io;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::client_hello::{ClientHello, Framing, Invalid, IpLiteral, Progress, Reason};
use crate::connection::accept_proxy::Proxied;
use crate::proxy_protocol;
use crate::relay::budget::Reservation;
use crate::relay::tcp::{is_transient, try_read, with_scratch};

/// A hello as far as it was received, and the bytes after it.
#[derive(Debug)]
pub(crate) struct Hello {
    framing: Framing,
    received: Vec<u8>,
    limit: usize,
    charge: Reservation,
}

/// Memory that every hello may use; more is charged to the buffer budget. Most hellos are smaller.
const FREE_MEMORY: usize = 2048;

/// How much of a PROXY header, and of the hello after it, is read before the length of the header is known.
const FIRST_READ: usize = 4096;

/// Why there is no valid hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HelloError {
    /// The client closed or reset the connection.
    Gone,
    /// The deadline has passed.
    TimedOut,
    Invalid(Reason),
    /// The required PROXY header is missing or invalid.
    ProxyHeader(proxy_protocol::InvalidHeader),
    /// A PROXY header from a peer that `accept_proxy` does not list.
    UnexpectedProxyHeader,
    /// It is large, and the buffer budget is used up.
    NoRoom,
}

impl Hello {
    /// A hello of at most `limit` raw bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { framing: Framing::new(limit), received: Vec::new(), limit, charge: Reservation::default() }
    }

    /// Reads the PROXY header before the hello.
    pub(crate) async fn read_proxy_header(
        &mut self,
        client: &TcpStream,
        deadline: Instant,
    ) -> Result<Proxied, HelloError> {
        let read = async {
            loop {
                if let Some(header) = proxy_protocol::parse(&self.received).map_err(HelloError::ProxyHeader)? {
                    let (proxied, length) = (Proxied::of(&header), header.length);
                    // The bytes after it belong to the hello.
                    self.received.drain(..length);
                    return Ok(proxied);
                }
                let limit = proxy_protocol::length_of(&self.received).unwrap_or(0).max(FIRST_READ);
                self.read_more(client, limit).await?;
            }
        };
        timeout_at(deadline, read).await.unwrap_or(Err(HelloError::TimedOut))
    }

    /// Reads until the hello is complete. The deadline is absolute: progress does not extend it.
    pub(crate) async fn read(&mut self, client: &TcpStream, deadline: Instant) -> Result<(), HelloError> {
        timeout_at(deadline, self.read_complete(client)).await.unwrap_or(Err(HelloError::TimedOut))
    }

    async fn read_complete(&mut self, client: &TcpStream) -> Result<(), HelloError> {
        while self.framing.advance(&self.received).map_err(|reason| self.invalid(reason))? == Progress::Incomplete {
            self.read_more(client, self.limit).await?;
        }
        // It is kept while an endpoint is dialled. One that is already charged is not rejected now that it is complete.
        if self.charge.is_none() { self.charge_memory() } else { Ok(()) }
    }

    fn invalid(&self, reason: Reason) -> HelloError {
        if reason == Reason::NotTls && proxy_protocol::is_header(&self.received) {
            HelloError::UnexpectedProxyHeader
        } else {
            HelloError::Invalid(reason)
        }
    }

    /// Waits until the socket is readable and reads once, up to `limit` bytes in total.
    async fn read_more(&mut self, client: &TcpStream, limit: usize) -> Result<(), HelloError> {
        loop {
            match self.read_once(client, limit) {
                Ok(0) => return Err(HelloError::Gone),
                Ok(_) => return Ok(()),
                Err(error) if is_transient(&error) => {
                    self.charge_memory()?;
                    client.readable().await.map_err(|_| HelloError::Gone)?;
                }
                Err(_) => return Err(HelloError::Gone),
            }
        }
    }

    /// Charges the memory used so far to the buffer budget.
    fn charge_memory(&mut self) -> Result<(), HelloError> {
        let memory = self.received.capacity() + self.framing.copied();
        self.charge.grow_to(memory.saturating_sub(FREE_MEMORY)).map_err(|_| HelloError::NoRoom)
    }

    fn read_once(&mut self, client: &TcpStream, limit: usize) -> io::Result<usize> {
        with_scratch(|scratch| {
            let room = scratch.len().min(limit - self.received.len());
            let room = &mut scratch[..room];
            let length = try_read(client, room.len(), || rustix::io::read(client, &mut *room))?;
            let known = self.received.len();
            if known > 0 && known + length <= FREE_MEMORY {
                // The second segment of an ordinary hello: keep it within the free memory.
                self.received.reserve_exact(FREE_MEMORY - known);
            }
            self.received.extend_from_slice(&room[..length]);
            Ok(length)
        })
    }

    /// Parses the hello, once it is complete.
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
