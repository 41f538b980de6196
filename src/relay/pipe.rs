//! A pool of pipes for splice(2), shared by all connections; each is in use only while it contains bytes.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Room for 64 fragments of one page each, as network cards deliver them.
const SIZE: usize = 256 * 1024;
/// Users with many pipes get smaller ones from the kernel (`pipe-user-pages-soft`), which are slower than copying.
const MIN_SIZE: usize = 64 * 1024;

/// Maximum number of pipes. Zero until [`set_limit`] is called, because pipes cost file descriptors.
static LIMIT: AtomicUsize = AtomicUsize::new(0);
static OPEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARE: RefCell<Vec<(OwnedFd, OwnedFd)>> = const { RefCell::new(Vec::new()) };
}

/// Sets the maximum number of pipes, of two file descriptors each.
pub(crate) fn set_limit(pipes: usize) {
    LIMIT.store(pipes, Relaxed);
}

/// A pipe and the number of bytes in it. It returns to the pool if it is empty on drop.
#[derive(Debug)]
pub(super) struct Pipe {
    ends: Option<(OwnedFd, OwnedFd)>,
    pub(super) buffered: usize,
}

impl Pipe {
    /// A pipe from the pool or a new one; `None` at the limit.
    pub(super) fn take() -> Option<Self> {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        spare.or_else(open).map(|ends| Self { ends: Some(ends), buffered: 0 })
    }

    pub(super) fn reader(&self) -> io::Result<BorrowedFd<'_>> {
        self.ends.as_ref().map(|(reader, _)| reader.as_fd()).ok_or_else(closed)
    }

    pub(super) fn writer(&self) -> io::Result<BorrowedFd<'_>> {
        self.ends.as_ref().map(|(_, writer)| writer.as_fd()).ok_or_else(closed)
    }

    /// Reads the bytes out of it.
    pub(super) fn drain(&mut self) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; self.buffered];
        let mut read = 0;
        while read < bytes.len() {
            read += rustix::io::read(self.reader()?, &mut bytes[read..])?;
        }
        self.buffered = 0;
        Ok(bytes.into())
    }
}

fn closed() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

fn open() -> Option<(OwnedFd, OwnedFd)> {
    OPEN.fetch_update(Relaxed, Relaxed, |open| (open < LIMIT.load(Relaxed)).then_some(open + 1)).ok()?;
    let opened = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok().filter(|(reader, _)| {
        // If the larger size is not allowed, the current one may suffice.
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
        // A pipe with bytes of one connection must not be used by another. `try_with` fails while the thread exits.
        let kept = self.buffered == 0 && SPARE.try_with(|spare| spare.borrow_mut().push(ends)).is_ok();
        if !kept {
            OPEN.fetch_sub(1, Relaxed);
        }
    }
}
