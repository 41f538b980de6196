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

/// A direction is a bulk transfer after this many bytes in consecutive reads of at least [`BULK_READ`].
const BULK: u32 = 256 * 1024;
const BULK_READ: usize = 16 * 1024;

/// More than a pipe can hold.
const SPLICE_LENGTH: usize = 1 << 20;

/// How much is read at a time while the buffer budget is used up.
const SMALL_READ: usize = 4096;

/// One direction of a relay.
#[derive(Debug)]
pub(super) struct Flow {
    state: FlowState,
    engine: Engine,
    /// Whether something was read. The first bytes are always copied, because they are inspected.
    has_begun: bool,
    /// Bytes of consecutive large reads, saturating.
    bulk_bytes: u32,
}

#[derive(Debug)]
enum FlowState {
    /// Everything read so far was written.
    Open,
    /// The bytes from `start` on wait until the destination is writable; nothing more is read. `since` is the time of the
    /// last progress.
    Blocked { bytes: Buffered, start: usize, since: Instant },
    /// The same for bytes in a pipe.
    Piped { pipe: Pipe, since: Instant },
    /// The FIN was passed on, after all data.
    Finished,
    /// One of the two sides has failed.
    Broken,
}

/// What a direction reports about the bytes it moves.
#[derive(Clone, Copy, Debug)]
pub(super) enum FlowEvent<'a> {
    /// The first bytes were read.
    First(&'a [u8]),
    /// This many bytes were written to the destination's kernel.
    Delivered(usize),
}

/// What ended a direction before its FIN.
#[derive(Debug)]
pub(super) enum Fault {
    /// The source failed, and everything it had sent was read.
    Source(io::Error),
    /// The destination failed. It may have sent data before that.
    Destination(io::Error),
}

impl Flow {
    /// A direction that starts with these bytes, and in which something else was read before or not.
    pub(super) fn new(engine: Engine, bytes: Vec<u8>, has_begun: bool) -> Self {
        let state = if bytes.is_empty() { FlowState::Open } else { FlowState::blocked(Buffered::new(bytes)) };
        Self { state, engine, has_begun, bulk_bytes: 0 }
    }

    /// A direction whose FIN was passed on.
    pub(super) fn finished() -> Self {
        Self { state: FlowState::Finished, engine: Engine::Copy, has_begun: true, bulk_bytes: 0 }
    }

    /// Whether something was read.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether no more data will be moved.
    pub(super) fn ended(&self) -> bool {
        matches!(self.state, FlowState::Finished | FlowState::Broken)
    }

    /// Since when bytes have been waiting without progress.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        match &self.state {
            FlowState::Blocked { since, .. } | FlowState::Piped { since, .. } => Some(*since),
            FlowState::Open | FlowState::Finished | FlowState::Broken => None,
        }
    }

    /// Passes the FIN on. For the second direction, the close that follows does that.
    pub(super) fn finish(&mut self, to: &TcpStream, is_second: bool) -> Result<(), Fault> {
        if !is_second {
            shutdown(to, Shutdown::Write).map_err(|error| Fault::Destination(error.into()))?;
        }
        self.state = FlowState::Finished;
        Ok(())
    }

    /// Ends the direction because one of the two sides has failed.
    pub(super) fn abort(&mut self) {
        if !self.ended() {
            self.state = FlowState::Broken;
        }
    }

    /// Writes what is buffered, and reads nothing. Ready after a fault.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        to: &TcpStream,
        report: &mut impl FnMut(FlowEvent<'_>),
    ) -> Poll<Result<(), Fault>> {
        while self.blocked_since().is_some() {
            ready!(self.poll_blocked(cx, to, report))?;
        }
        Poll::Pending
    }

    /// Moves as much data as possible. Ready at the FIN, which the caller has to pass on, or after a fault.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        readiness: Readiness,
        report: &mut impl FnMut(FlowEvent<'_>),
    ) -> Poll<Result<(), Fault>> {
        loop {
            let length = match &mut self.state {
                FlowState::Open => {
                    let pipe = if readiness == Readiness::Required { self.pipe() } else { None };
                    let spliced = match pipe {
                        Some(pipe) => ready!(self.poll_splice(cx, from, pipe))?,
                        None => None,
                    };
                    match spliced {
                        Some(length) => Some(length),
                        None => Some(ready!(self.poll_copy(cx, from, to, readiness, report))?),
                    }
                }
                FlowState::Blocked { .. } | FlowState::Piped { .. } => {
                    ready!(self.poll_blocked(cx, to, report))?;
                    None
                }
                FlowState::Finished | FlowState::Broken => return Poll::Pending,
            };
            match length {
                Some(0) => return Poll::Ready(Ok(())),
                // Such reads are not limited by the runtime, which reports the rest anyway.
                Some(_) if readiness == Readiness::Ignored => return Poll::Pending,
                Some(length) if length >= BULK_READ => {
                    self.bulk_bytes = self.bulk_bytes.saturating_add(u32::try_from(length).unwrap_or(u32::MAX));
                }
                Some(_) => self.bulk_bytes = 0,
                None => {}
            }
        }
    }

    /// Writes some of what is buffered.
    fn poll_blocked(
        &mut self,
        cx: &mut Context<'_>,
        to: &TcpStream,
        report: &mut impl FnMut(FlowEvent<'_>),
    ) -> Poll<Result<(), Fault>> {
        match &mut self.state {
            FlowState::Blocked { bytes, start, since } => {
                ready!(to.poll_write_ready(cx)).map_err(Fault::Destination)?;
                let written = write(to, &bytes[*start..], report).map_err(Fault::Destination)?;
                if written > 0 {
                    *start += written;
                    *since = Instant::now();
                }
                if *start == bytes.len() {
                    self.state = FlowState::Open;
                }
            }
            FlowState::Piped { pipe, since } => {
                ready!(poll_empty(cx, pipe, since, to, report)).map_err(Fault::Destination)?;
                self.state = if pipe.buffered == 0 {
                    FlowState::Open
                } else {
                    // The destination does not support splice.
                    self.engine = Engine::Copy;
                    FlowState::blocked(Buffered::new(pipe.drain().map_err(Fault::Source)?))
                };
            }
            FlowState::Open | FlowState::Finished | FlowState::Broken => {}
        }
        Poll::Ready(Ok(()))
    }

    /// A pipe, if the engine uses one now and one is available.
    fn pipe(&self) -> Option<Pipe> {
        let uses_pipe = match self.engine {
            Engine::Auto => self.bulk_bytes >= BULK,
            Engine::Copy => false,
            Engine::Splice => self.has_begun,
        };
        if uses_pipe { Pipe::take() } else { None }
    }

    /// Reads once into the scratch buffer and writes that. Returns the length; 0 is the FIN.
    fn poll_copy(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        readiness: Readiness,
        report: &mut impl FnMut(FlowEvent<'_>),
    ) -> Poll<Result<usize, Fault>> {
        with_scratch(|scratch| {
            // What the destination does not accept must be buffered, so read less when the budget is used up.
            let room = if budget::has_room_for(scratch.len()) { scratch.len() } else { SMALL_READ };
            let scratch = &mut scratch[..room];
            let read = match readiness {
                Readiness::Required => poll_read(cx, from, scratch),
                Readiness::Ignored => read_now(from, scratch),
            };
            let length = ready!(read).map_err(Fault::Source)?;
            let bytes = &scratch[..length];
            if length > 0 && !std::mem::replace(&mut self.has_begun, true) {
                report(FlowEvent::First(bytes));
            }
            let mut written = 0;
            if readiness == Readiness::Ignored && length > 0 {
                // The runtime may not know yet that the socket is writable.
                written = match send(to, bytes, SendFlags::NOSIGNAL) {
                    Ok(written) => written,
                    Err(Errno::AGAIN | Errno::INTR) => 0,
                    Err(error) => return Poll::Ready(Err(Fault::Destination(error.into()))),
                };
                if written > 0 {
                    report(FlowEvent::Delivered(written));
                }
            }
            written += write(to, &bytes[written..], report).map_err(Fault::Destination)?;
            if written < length {
                self.state = FlowState::blocked(Buffered::new(&bytes[written..]));
            }
            Poll::Ready(Ok(length))
        })
    }

    /// Moves bytes into the pipe. Returns the length; 0 is the FIN, and `None` means that they must be copied: the socket
    /// does not support splice, or the next byte is urgent.
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
                    pipe.buffered = length;
                    self.state = FlowState::Piped { pipe, since: Instant::now() };
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

impl FlowState {
    fn blocked(bytes: Buffered) -> Self {
        Self::Blocked { bytes, start: 0, since: Instant::now() }
    }
}

/// Moves the bytes out of the pipe. Bytes that are left when it is ready cannot be spliced.
fn poll_empty(
    cx: &mut Context<'_>,
    pipe: &mut Pipe,
    since: &mut Instant,
    to: &TcpStream,
    report: &mut impl FnMut(FlowEvent<'_>),
) -> Poll<io::Result<()>> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    while pipe.buffered > 0 {
        let spliced =
            to.try_io(Interest::WRITABLE, || Ok(splice(pipe.reader()?, None, to, None, pipe.buffered, flags)?));
        match spliced {
            Ok(length) => {
                pipe.buffered -= length;
                *since = Instant::now();
                report(FlowEvent::Delivered(length));
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

/// Writes until all is written or the socket is full, and returns how much was written.
fn write(to: &TcpStream, bytes: &[u8], report: &mut impl FnMut(FlowEvent<'_>)) -> io::Result<usize> {
    let mut written = 0;
    while written < bytes.len() {
        match to.try_io(Interest::WRITABLE, || Ok(send(to, &bytes[written..], SendFlags::NOSIGNAL)?)) {
            Ok(length) => {
                written += length;
                report(FlowEvent::Delivered(length));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
