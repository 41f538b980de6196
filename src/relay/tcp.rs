//! Socket options and reads, for connections with clients and with endpoints alike.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt::set_tcp_quickack;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// TCP keepalive options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "other options would not start with `keepalive`")]
pub(crate) struct TcpOptions {
    /// Idle time before the first probe; whole seconds.
    pub(crate) keepalive_idle: Duration,
    /// Time between probes; whole seconds.
    pub(crate) keepalive_interval: Duration,
    /// Unanswered probes after which the peer is dead.
    pub(crate) keepalive_count: u32,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TcpOptions {
    pub(crate) const DEFAULT: Self = Self {
        keepalive_idle: Duration::from_secs(30),
        keepalive_interval: Duration::from_secs(5),
        keepalive_count: 3,
    };

    /// Sets the keepalive options, `TCP_NODELAY`, and inline urgent data (`MSG_OOB`), so that no byte is lost. Sockets
    /// accepted from a listener inherit all of them (Linux).
    ///
    /// `TCP_USER_TIMEOUT` is not set, because it overrides the number of keepalive probes (tcp(7)).
    pub(crate) fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        self.keep_alive(socket)?;
        Self::apply_all_but_keepalive(socket)
    }

    /// For connections that may be short: [`Self::keep_alive`] costs four system calls.
    pub(crate) fn apply_all_but_keepalive(socket: &impl AsFd) -> io::Result<()> {
        let options = SockRef::from(socket);
        options.set_out_of_band_inline(true)?;
        // Each side of a handshake sends data immediately, which can carry the acknowledgement: one packet less per
        // connection.
        set_tcp_quickack(socket, false)?;
        options.set_tcp_nodelay(true)
    }

    /// Sets the keepalive options only.
    pub(crate) fn keep_alive(&self, socket: &impl AsFd) -> io::Result<()> {
        let keepalive = TcpKeepalive::new()
            .with_time(self.keepalive_idle)
            .with_interval(self.keepalive_interval)
            .with_retries(self.keepalive_count);
        SockRef::from(socket).set_tcp_keepalive(&keepalive)
    }

    /// Makes the kernel send a keepalive every second. Returns the previous options, to be restored. While data is in
    /// flight the kernel retransmits that instead.
    pub(crate) fn probe(socket: &impl AsFd) -> io::Result<Self> {
        let options = SockRef::from(socket);
        let before = Self {
            keepalive_idle: options.tcp_keepalive_time()?,
            keepalive_interval: options.tcp_keepalive_interval()?,
            keepalive_count: options.tcp_keepalive_retries()?,
        };
        let second = Duration::from_secs(1);
        // More than are sent before the options are restored, so that the kernel never closes the connection.
        Self { keepalive_idle: second, keepalive_interval: second, keepalive_count: 100 }.keep_alive(socket)?;
        Ok(before)
    }
}

/// Maximum size of a read.
pub(crate) const CHUNK: usize = 64 * 1024;

thread_local! {
    /// Only used within one call, so that idle connections need no buffer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// Calls `use_it` with this thread's buffer.
pub(crate) fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| use_it(scratch))
}

/// Reads once into a buffer of `room` bytes. A read that does not fill it has emptied the socket, so the readiness is
/// cleared (the registration is edge-triggered), which saves a read that would return `WouldBlock`.
pub(crate) fn try_read(
    stream: &TcpStream,
    room: usize,
    read: impl FnOnce() -> rustix::io::Result<usize>,
) -> io::Result<usize> {
    let mut length = 0;
    let result = stream.try_io(Interest::READABLE, || {
        length = read()?;
        if (1..room).contains(&length) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match result {
        Err(error) if length == 0 => Err(error),
        _ => Ok(length),
    }
}

/// Whether to try again.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
