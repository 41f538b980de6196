//! Reads a hello from a socket.

use rustix::buffer::spare_capacity;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::client_hello::{ClientHello, Framing, Invalid, Progress, Reason};
use crate::tcp::{is_transient, try_read};

/// Room for a post-quantum hello of 1.7 kB.
const FIRST_READ: usize = 2048;

/// A hello as far as it has been received, and what came right behind it.
#[derive(Debug)]
pub struct Hello {
    framing: Framing,
    received: Vec<u8>,
    limit: usize,
}

/// Why a hello did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// The client closed or reset the connection.
    Gone,
    /// The deadline has passed.
    TimedOut,
    /// It is none.
    Invalid(Reason),
}

impl Hello {
    /// A hello of at most `limit` raw bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { framing: Framing::new(limit), received: Vec::new(), limit }
    }

    /// Reads until the hello is whole. The deadline is absolute: progress does not extend it.
    pub async fn read(&mut self, client: &TcpStream, deadline: Instant) -> Result<(), HelloError> {
        timeout_at(deadline, self.read_whole(client)).await.unwrap_or(Err(HelloError::TimedOut))
    }

    async fn read_whole(&mut self, client: &TcpStream) -> Result<(), HelloError> {
        loop {
            let room = self.make_room();
            match try_read(client, room, || rustix::io::read(client, spare_capacity(&mut self.received))) {
                Ok(0) => return Err(HelloError::Gone),
                Ok(_) => match self.framing.advance(&self.received) {
                    Ok(Progress::Complete) => return Ok(()),
                    Ok(Progress::Incomplete) => {}
                    Err(reason) => return Err(HelloError::Invalid(reason)),
                },
                Err(error) if is_transient(&error) => client.readable().await.map_err(|_| HelloError::Gone)?,
                Err(_) => return Err(HelloError::Gone),
            }
        }
    }

    /// How many more bytes may be read.
    fn make_room(&mut self) -> usize {
        let length = self.received.len();
        if length == self.received.capacity() {
            self.received.reserve_exact(length.max(FIRST_READ).min(self.limit - length).max(1));
        }
        self.received.capacity() - length
    }

    /// What it says, once it is whole.
    pub fn parse(&self) -> Result<ClientHello<'_>, Invalid<'_>> {
        ClientHello::parse(self.framing.message(&self.received))
    }

    /// How many bytes have been received.
    #[must_use]
    pub fn received(&self) -> usize {
        self.received.len()
    }

    /// All bytes received.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.received
    }
}
