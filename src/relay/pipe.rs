//! Pipes for splice(2): a few, shared by all connections, held only while bytes are in them.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Room for 64 fragments of a page each, which is how a network card delivers.
const SIZE: usize = 256 * 1024;
/// The kernel gives users with many pipes small ones (`pipe-user-pages-soft`): those are slower than copying.
const MIN_SIZE: usize = 64 * 1024;

/// Pipes cost descriptors, and those are the process's. Zero until the process has said how many it has to spare.
static LIMIT: AtomicUsize = AtomicUsize::new(0);
static OPEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARE: RefCell<Vec<(OwnedFd, OwnedFd)>> = const { RefCell::new(Vec::new()) };
}

/// How many pipes, of two descriptors each, this process may have open for relays.
pub(crate) fn set_limit(pipes: usize) {
    LIMIT.store(pipes, Relaxed);
}

/// A pipe, and how many bytes are in it. Goes back to the others when it is dropped empty.
#[derive(Debug)]
pub(super) struct Pipe {
    ends: Option<(OwnedFd, OwnedFd)>,
    pub(super) held: usize,
}

impl Pipe {
    /// A pipe, if there is one to be had.
    pub(super) fn take() -> Option<Self> {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        spare.or_else(open).map(|ends| Self { ends: Some(ends), held: 0 })
    }

    pub(super) fn reader(&self) -> io::Result<BorrowedFd<'_>> {
        self.ends.as_ref().map(|(reader, _)| reader.as_fd()).ok_or_else(closed)
    }

    pub(super) fn writer(&self) -> io::Result<BorrowedFd<'_>> {
        self.ends.as_ref().map(|(_, writer)| writer.as_fd()).ok_or_else(closed)
    }

    /// The bytes in it, to be handed on in another way.
    pub(super) fn drain(&mut self) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; self.held];
        let mut read = 0;
        while read < bytes.len() {
            read += rustix::io::read(self.reader()?, &mut bytes[read..])?;
        }
        self.held = 0;
        Ok(bytes.into())
    }
}

fn closed() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

fn open() -> Option<(OwnedFd, OwnedFd)> {
    OPEN.fetch_update(Relaxed, Relaxed, |open| (open < LIMIT.load(Relaxed)).then_some(open + 1)).ok()?;
    let opened = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok().filter(|(reader, _)| {
        // Where the larger size is not allowed, the one it has may do.
        let _ = fcntl_setpipe_size(reader, SIZE);
        fcntl_getpipe_size(reader).is_ok_and(|size| size >= MIN_SIZE)
    });
    if opened.is_none() {
        OPEN.fetch_sub(1, Relaxed);
    }
    opened
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let Some(ends) = self.ends.take() else { return };
        // With bytes of one connection in it, it must not serve another. Without its thread, it serves nobody.
        let kept = self.held == 0 && SPARE.try_with(|spare| spare.borrow_mut().push(ends)).is_ok();
        if !kept {
            OPEN.fetch_sub(1, Relaxed);
        }
    }
}
