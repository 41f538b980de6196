//! Options that both legs of a connection share.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// How the kernel looks after a connection.
#[derive(Clone, Copy, Debug)]
pub struct TcpOptions {
    /// Silence before the first keepalive probe; whole seconds.
    pub keepalive_idle: Duration,
    /// Between probes; whole seconds.
    pub keepalive_interval: Duration,
    /// Probes without an answer before the peer is dead.
    pub keepalive_count: u32,
}

impl TcpOptions {
    /// Sets them, and `TCP_NODELAY`. What a listener accepts inherits all of them (Linux).
    ///
    /// `TCP_USER_TIMEOUT` is left alone: where it is set, the kernel counts no keepalive probes any more (tcp(7)).
    pub fn apply(&self, socket: &impl AsFd) -> io::Result<()> {
        let socket = SockRef::from(socket);
        let keepalive = TcpKeepalive::new()
            .with_time(self.keepalive_idle)
            .with_interval(self.keepalive_interval)
            .with_retries(self.keepalive_count);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_nodelay(true)
    }
}
