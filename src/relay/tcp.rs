//! What both legs of a connection share: socket options, and how they are read.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt::set_tcp_quickack;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// How the kernel looks after a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "other options would not begin with `keepalive`")]
pub(crate) struct TcpOptions {
    /// Silence before the first keepalive probe; whole seconds.
    pub(crate) keepalive_idle: Duration,
    /// Between probes; whole seconds.
    pub(crate) keepalive_interval: Duration,
    /// Probes without an answer before the peer is dead.
    pub(crate) keepalive_count: u32,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self { keepalive_idle: Duration::from_secs(30), keepalive_interval: Duration::from_secs(5), keepalive_count: 3 }
    }
}

impl TcpOptions {
    /// Sets them, and `TCP_NODELAY`. What a listener accepts inherits all of them (Linux).
    ///
    /// `TCP_USER_TIMEOUT` is left alone: where it is set, the kernel counts no keepalive probes any more (tcp(7)).
    ///
    /// Urgent bytes (`MSG_OOB`) are bytes like others, in their place in the stream: nothing that is sent is lost.
    pub(crate) fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        let options = SockRef::from(socket);
        self.keep_alive(socket)?;
        options.set_out_of_band_inline(true)?;
        // Each side of a handshake is about to answer: its acknowledgement can ride with the bytes that follow at once,
        // from the client's hello and from ours to the API server. A packet saved on both legs.
        set_tcp_quickack(socket, false)?;
        options.set_tcp_nodelay(true)
    }

    /// The part of it that is about keepalives.
    pub(crate) fn keep_alive(&self, socket: &impl AsFd) -> io::Result<()> {
        let keepalive = TcpKeepalive::new()
            .with_time(self.keepalive_idle)
            .with_interval(self.keepalive_interval)
            .with_retries(self.keepalive_count);
        SockRef::from(socket).set_tcp_keepalive(&keepalive)
    }

    /// Has the kernel send keepalives now, one a second, until the options that it had, which are returned, are set again.
    /// None is sent while bytes wait for an acknowledgement: these are sent again instead.
    pub(crate) fn probe(socket: &impl AsFd) -> io::Result<Self> {
        let options = SockRef::from(socket);
        let before = Self {
            keepalive_idle: options.tcp_keepalive_time()?,
            keepalive_interval: options.tcp_keepalive_interval()?,
            keepalive_count: options.tcp_keepalive_retries()?,
        };
        let second = Duration::from_secs(1);
        // Whether the peer is dead is not for the kernel to decide, so it counts to more than it will send.
        Self { keepalive_idle: second, keepalive_interval: second, keepalive_count: 100 }.keep_alive(socket)?;
        Ok(before)
    }
}

/// How much is read at a time.
pub(crate) const CHUNK: usize = 64 * 1024;

thread_local! {
    /// Bytes are only in here within one call: what waits holds no buffer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// Lends this thread's buffer.
pub(crate) fn with_scratch<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| use_it(scratch))
}

/// Reads once into so much room. A read that does not fill it has emptied the socket, and the next one waits for the
/// kernel to announce more (the registration is edge-triggered) instead of asking in vain.
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

/// Whether it is worth another try.
pub(crate) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
