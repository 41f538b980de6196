use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};

use rustls::{ServerConfig, ServerConnection};

use super::peer::Peer;
use crate::support::tls::{Authority, server_config};

/// The name in the hello of a check, which no client has.
pub const NAME: &str = "check.example";

/// What checks send first to endpoints that get a PROXY header.
pub const HEADER: &[u8] = b"PROXY UNKNOWN\r\n";

static CONFIG: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| server_config(&Authority::new().issue(NAME), None));

/// One check, over TLS.
pub struct Probe {
    pub endpoint: usize,
    pub peer: Peer,
    tls: ServerConnection,
    /// How many of the bytes received TLS has taken.
    taken: usize,
    request: Vec<u8>,
}

/// Whether these first bytes are a check's.
pub fn asks(received: &[u8]) -> bool {
    received.windows(NAME.len()).any(|part| part == NAME.as_bytes())
}

impl Probe {
    pub fn new(endpoint: usize, peer: Peer) -> Self {
        let tls = ServerConnection::new(Arc::clone(&CONFIG)).unwrap();
        let taken = if peer.received.starts_with(HEADER) { HEADER.len() } else { 0 };
        Self { endpoint, peer, tls, taken, request: Vec::new() }
    }

    /// Answers what has arrived. Whether it goes on.
    pub fn answer(&mut self, is_ready: bool) -> bool {
        while self.taken < self.peer.received.len() {
            self.taken += self.tls.read_tls(&mut &self.peer.received[self.taken..]).unwrap();
            if self.tls.process_new_packets().is_err() {
                return false;
            }
        }
        let was_asked = self.is_asked();
        let mut part = [0; 1024];
        while let Ok(length @ 1..) = self.tls.reader().read(&mut part) {
            self.request.extend_from_slice(&part[..length]);
        }
        if self.is_asked() && !was_asked {
            let status = if is_ready { "200 OK" } else { "500 Internal Server Error" };
            write!(self.tls.writer(), "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
        let mut bytes = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut bytes).unwrap();
        }
        self.peer.send(bytes);
        self.peer.end.is_none()
    }

    fn is_asked(&self) -> bool {
        self.request.ends_with(b"\r\n\r\n")
    }
}
