//! One direction of a relay.

use std::io;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::pipe::Pipe;
use super::{Engine, Readiness};
use crate::relay::budget::{self, Buffered};
use crate::relay::tcp::{is_transient, try_read, with_scratch};

/// A direction is bulk when so much has come in a row, in reads of at least [`BULK_READ`].
const BULK: u32 = 256 * 1024;
const BULK_READ: usize = 16 * 1024;

/// More than fits into a pipe.
const SPLICE_LENGTH: usize = 1 << 20;

/// How much is read at a time while too many bytes are held already, by all connections together.
const SMALL_READ: usize = 4096;

/// One direction of a relay.
#[derive(Debug)]
pub(super) struct Flow {
    state: State,
    engine: Engine,
    /// Whether something has been read. The first bytes are always copied: they are looked at.
    has_begun: bool,
    /// How much has come in a row in large reads; it stays at the most.
    streak: u32,
}

#[derive(Debug)]
enum State {
    /// Everything read so far has been handed on.
    Open,
    /// These bytes, from `start` on, are waiting for room; nothing more is read. The last of those before them was taken
    /// at `since`.
    Holding { bytes: Buffered, start: usize, since: Instant },
    /// The same, for the bytes in the pipe.
    Piped { pipe: Pipe, since: Instant },
    /// The FIN has been passed on, after everything before it.
    Finished,
    /// One of the two sides is gone.
    Broken,
}

/// What a direction tells of the bytes it moves.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece<'a> {
    /// The first that were read.
    First(&'a [u8]),
    /// So many were handed on.
    Delivered(usize),
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
    /// A direction that begins with these bytes.
    pub(super) fn new(engine: Engine, bytes: Vec<u8>) -> Self {
        let state = if bytes.is_empty() { State::Open } else { State::holding(Buffered::of(bytes)) };
        Self { state, engine, has_begun: false, streak: 0 }
    }

    /// Whether nothing will be moved any more.
    pub(super) fn ended(&self) -> bool {
        matches!(self.state, State::Finished | State::Broken)
    }

    /// Since when bytes are waiting for room.
    pub(super) fn holding_since(&self) -> Option<Instant> {
        match &self.state {
            State::Holding { since, .. } | State::Piped { since, .. } => Some(*since),
            State::Open | State::Finished | State::Broken => None,
        }
    }

    /// Passes the FIN on. The second of the two is left to the close that follows it.
    pub(super) fn finish(&mut self, to: &TcpStream, is_second: bool) -> Result<(), Fault> {
        if !is_second {
            shutdown(to, Shutdown::Write).map_err(|error| Fault::Destination(error.into()))?;
        }
        self.state = State::Finished;
        Ok(())
    }

    /// One of the two sides is gone.
    pub(super) fn give_up(&mut self) {
        if !self.ended() {
            self.state = State::Broken;
        }
    }

    /// Moves what can be moved. Ready when there is nothing left to move: at the FIN, which is left to the caller to
    /// pass on, or after a fault.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        readiness: Readiness,
        tell: &mut impl FnMut(Piece<'_>),
    ) -> Poll<Result<(), Fault>> {
        loop {
            let length = match &mut self.state {
                State::Open => {
                    let pipe = if readiness == Readiness::AsAnnounced { self.pipe() } else { None };
                    let spliced = match pipe {
                        Some(pipe) => ready!(self.poll_splice(cx, from, pipe))?,
                        None => None,
                    };
                    match spliced {
                        Some(length) => Some(length),
                        None => Some(ready!(self.poll_copy(cx, from, to, readiness, tell))?),
                    }
                }
                State::Holding { bytes, start, since } => {
                    ready!(to.poll_write_ready(cx)).map_err(Fault::Destination)?;
                    let written = write(to, &bytes[*start..], tell).map_err(Fault::Destination)?;
                    if written > 0 {
                        *start += written;
                        *since = Instant::now();
                    }
                    if *start == bytes.len() {
                        self.state = State::Open;
                    }
                    None
                }
                State::Piped { pipe, since } => {
                    ready!(poll_empty(cx, pipe, since, to, tell)).map_err(Fault::Destination)?;
                    self.state = if pipe.held == 0 {
                        State::Open
                    } else {
                        // Not a socket that splices after all.
                        self.engine = Engine::Copy;
                        State::holding(Buffered::of(pipe.drain().map_err(Fault::Source)?))
                    };
                    None
                }
                State::Finished | State::Broken => return Poll::Pending,
            };
            match length {
                Some(0) => return Poll::Ready(Ok(())),
                Some(length) if length >= BULK_READ => {
                    self.streak = self.streak.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
                }
                Some(_) => self.streak = 0,
                None => {}
            }
        }
    }

    /// A pipe, if the engine wants one now and there is one.
    fn pipe(&self) -> Option<Pipe> {
        let wanted = match self.engine {
            Engine::Auto => self.streak >= BULK,
            Engine::Copy => false,
            Engine::Splice => self.has_begun,
        };
        if wanted { Pipe::take() } else { None }
    }

    /// Reads once into the scratch buffer and writes that. How much it was; 0 is the FIN.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        readiness: Readiness,
        tell: &mut impl FnMut(Piece<'_>),
    ) -> Poll<Result<usize, Fault>> {
        with_scratch(|scratch| {
            // What is not taken must be held. Where there is no room for much, less is read at a time.
            let room = if budget::has_room_for(scratch.len()) { scratch.len() } else { SMALL_READ };
            let scratch = &mut scratch[..room];
            let read = match readiness {
                Readiness::AsAnnounced => poll_read(cx, from, scratch),
                Readiness::Ignored => read_now(from, scratch),
            };
            let length = ready!(read).map_err(Fault::Source)?;
            let bytes = &scratch[..length];
            if length > 0 && !std::mem::replace(&mut self.has_begun, true) {
                tell(Piece::First(bytes));
            }
            let written = write(to, bytes, tell).map_err(Fault::Destination)?;
            if written < length {
                self.state = State::holding(Buffered::of(&bytes[written..]));
            }
            Poll::Ready(Ok(length))
        })
    }

    /// Moves bytes into the pipe. How much it was; 0 is the FIN, and `None` that they must be copied: this socket does not
    /// splice, or not the urgent byte that is the next one.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        mut pipe: Pipe,
    ) -> Poll<Result<Option<usize>, Fault>> {
        loop {
            ready!(from.poll_read_ready(cx)).map_err(Fault::Source)?;
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            let spliced = from.try_io(Interest::READABLE, || {
                match splice(from, None, pipe.writer()?, None, SPLICE_LENGTH, flags) {
                    Err(Errno::AGAIN) if has_more(from) => Ok(None),
                    spliced => Ok(Some(spliced?)),
                }
            });
            match spliced {
                Ok(None) => return Poll::Ready(Ok(None)),
                Ok(Some(0)) => return Poll::Ready(Ok(Some(0))),
                Ok(Some(length)) => {
                    pipe.held = length;
                    self.state = State::Piped { pipe, since: Instant::now() };
                    return Poll::Ready(Ok(Some(length)));
                }
                Err(error) if is_transient(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.engine = Engine::Copy;
                    return Poll::Ready(Ok(None));
                }
                Err(error) => return Poll::Ready(Err(Fault::Source(error))),
            }
        }
    }
}

impl State {
    fn holding(bytes: Buffered) -> Self {
        Self::Holding { bytes, start: 0, since: Instant::now() }
    }
}

/// Moves the bytes out of the pipe. Those that are left when it is ready cannot be spliced.
fn poll_empty(
    cx: &mut Context<'_>,
    pipe: &mut Pipe,
    since: &mut Instant,
    to: &TcpStream,
    tell: &mut impl FnMut(Piece<'_>),
) -> Poll<io::Result<()>> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    while pipe.held > 0 {
        let spliced = to.try_io(Interest::WRITABLE, || Ok(splice(pipe.reader()?, None, to, None, pipe.held, flags)?));
        match spliced {
            Ok(length) => {
                pipe.held -= length;
                *since = Instant::now();
                tell(Piece::Delivered(length));
            }
            Err(error) if is_transient(&error) => ready!(to.poll_write_ready(cx))?,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
    Poll::Ready(Ok(()))
}

fn has_more(from: &TcpStream) -> bool {
    recv(from, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok_and(|(length, _)| length > 0)
}

fn read_now(from: &TcpStream, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    match rustix::io::read(from, buffer) {
        Err(Errno::AGAIN | Errno::INTR) => Poll::Pending,
        result => Poll::Ready(result.map_err(Into::into)),
    }
}

fn poll_read(cx: &mut Context<'_>, from: &TcpStream, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(from.poll_read_ready(cx))?;
        match try_read(from, buffer.len(), || rustix::io::read(from, &mut *buffer)) {
            Err(error) if is_transient(&error) => {}
            result => return Poll::Ready(result),
        }
    }
}

/// Writes until all is written or the socket is full; how much that was.
fn write(to: &TcpStream, bytes: &[u8], tell: &mut impl FnMut(Piece<'_>)) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match to.try_io(Interest::WRITABLE, || Ok(send(to, &bytes[written..], SendFlags::NOSIGNAL)?)) {
            Ok(length) => {
                written += length;
                tell(Piece::Delivered(length));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
