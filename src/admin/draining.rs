//! Asks another process whether it drains, and so leaves what it has.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long it has to connect and to answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(1);
const MAX_ANSWER: u64 = 4096;

/// Whether the process with this admin listener drains.
pub(crate) fn is_draining_at(address: SocketAddr) -> bool {
    let asked = TcpStream::connect_timeout(&address, TIMEOUT).and_then(|process| {
        process.set_read_timeout(Some(TIMEOUT))?;
        is_draining(process)
    });
    asked.unwrap_or(false)
}

/// Whether the process at the other end does, which has a read timeout.
pub(crate) fn is_draining(mut process: impl Read + Write) -> io::Result<bool> {
    process.write_all(b"GET /readyz HTTP/1.1\r\nhost: snigate\r\nconnection: close\r\n\r\n")?;
    let mut response = String::new();
    process.take(MAX_ANSWER).read_to_string(&mut response)?;
    Ok(response.ends_with("\r\n\r\ndraining\n"))
}
