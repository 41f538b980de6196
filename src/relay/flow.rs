//! One direction of a relay.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};

use rustix::net::{SendFlags, send};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How much is read at a time, and so the most that is kept for a reader that is slower than the other side.
const CHUNK: usize = 64 * 1024;

thread_local! {
    /// Bytes are only in here between a read and the write that follows it, within one call.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// What one direction is doing.
#[derive(Debug)]
pub(super) enum Flow {
    /// Everything read so far has been handed on.
    Open,
    /// These bytes, from `start` on, are waiting for room; nothing more is read. The last of those before them was taken
    /// at `since`.
    Holding { bytes: Box<[u8]>, start: usize, since: Instant },
    /// The FIN has been passed on, after everything before it.
    Finished,
    /// One of the two sides is gone.
    Broken,
}

/// What stopped a direction before its FIN.
#[derive(Debug)]
pub(super) enum Fault {
    /// The side read from is gone, and everything it had sent has been read.
    Source(io::Error),
    /// The side written to is gone. It may have sent bytes before.
    Destination(io::Error),
}

impl Flow {
    pub(super) fn holding(bytes: impl Into<Box<[u8]>>) -> Self {
        Self::Holding { bytes: bytes.into(), start: 0, since: Instant::now() }
    }

    pub(super) fn holding_since(&self) -> Option<Instant> {
        match self {
            Self::Holding { since, .. } => Some(*since),
            Self::Open | Self::Finished | Self::Broken => None,
        }
    }

    pub(super) fn ended(&self) -> bool {
        matches!(self, Self::Finished | Self::Broken)
    }

    /// Moves what can be moved. Ready when there is nothing left to move: at the FIN, which is left to the caller to
    /// pass on, or after a fault.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        mut delivered: impl FnMut(usize),
    ) -> Poll<Result<(), Fault>> {
        SCRATCH.with_borrow_mut(|scratch| {
            loop {
                match self {
                    Self::Open => {
                        let length = ready!(poll_read(cx, from, scratch)).map_err(Fault::Source)?;
                        if length == 0 {
                            return Poll::Ready(Ok(()));
                        }
                        let written = write(to, &scratch[..length], &mut delivered).map_err(Fault::Destination)?;
                        if written < length {
                            *self = Self::holding(&scratch[written..length]);
                        }
                    }
                    Self::Holding { bytes, start, since } => {
                        ready!(to.poll_write_ready(cx)).map_err(Fault::Destination)?;
                        let written = write(to, &bytes[*start..], &mut delivered).map_err(Fault::Destination)?;
                        if written > 0 {
                            *start += written;
                            *since = Instant::now();
                        }
                        if *start == bytes.len() {
                            *self = Self::Open;
                        }
                    }
                    Self::Finished | Self::Broken => return Poll::Pending,
                }
            }
        })
    }
}

/// Reads once. A read that does not fill the buffer has emptied the socket, and the next one waits for the kernel to
/// announce more (the registration is edge-triggered) instead of asking in vain.
fn poll_read(cx: &mut Context<'_>, from: &TcpStream, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(from.poll_read_ready(cx))?;
        let mut length = 0;
        let read = from.try_io(Interest::READABLE, || {
            length = rustix::io::read(from, &mut *buffer)?;
            if (1..buffer.len()).contains(&length) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && length == 0 => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if length == 0 => return Poll::Ready(Err(error)),
            _ => return Poll::Ready(Ok(length)),
        }
    }
}

/// Writes until all is written or the socket is full; how much that was.
fn write(to: &TcpStream, bytes: &[u8], delivered: &mut impl FnMut(usize)) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match to.try_io(Interest::WRITABLE, || Ok(send(to, &bytes[written..], SendFlags::NOSIGNAL)?)) {
            Ok(length) => {
                written += length;
                delivered(length);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
