//! One end of a connection: what it is to send, and what it has received.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};

use rustix::event::PollFlags;

use crate::support::client::End;

pub struct Peer {
    pub stream: TcpStream,
    /// Its own address, and that of the router's socket.
    pub addresses: [SocketAddr; 2],
    /// Each part is sent by one call, and so in segments of its own.
    to_send: VecDeque<Vec<u8>>,
    is_to_finish: bool,
    pub is_reading: bool,
    pub received: Vec<u8>,
    /// So many of these are known to be right.
    pub checked: Cell<usize>,
    pub end: Option<End>,
}

/// Of a socket that has been reset.
const UNKNOWN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

impl Peer {
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        let addresses = [stream.local_addr(), stream.peer_addr()].map(|address| address.unwrap_or(UNKNOWN));
        let to_send = VecDeque::new();
        Self {
            stream,
            addresses,
            to_send,
            is_to_finish: false,
            is_reading: true,
            received: Vec::new(),
            checked: Cell::new(0),
            end: None,
        }
    }

    pub fn send(&mut self, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.to_send.push_back(bytes);
        }
    }

    /// After all that is to be sent.
    pub fn finish(&mut self) {
        self.is_to_finish = true;
        self.finish_if_all_is_sent();
    }

    /// A FIN needs no room in a buffer.
    fn finish_if_all_is_sent(&mut self) {
        if self.to_send.is_empty() && std::mem::take(&mut self.is_to_finish) {
            // A peer that has reset is known when it is read.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    pub fn has_sent_all(&self) -> bool {
        self.to_send.is_empty()
    }

    pub fn is_to_write(&self) -> bool {
        !self.has_sent_all() && self.end != Some(End::Reset)
    }

    pub fn is_to_read(&self) -> bool {
        self.is_reading && self.end.is_none()
    }

    /// What is to be done when it is possible.
    pub fn awaited(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.is_to_read());
        flags.set(PollFlags::OUT, self.is_to_write());
        flags
    }

    /// Gives up what was not sent yet. Returns how many bytes.
    pub fn send_no_more(&mut self) -> usize {
        self.to_send.drain(..).map(|part| part.len()).sum()
    }

    /// Writes and reads as much as is possible now. Whether something was.
    pub fn advance(&mut self) -> bool {
        let mut has_advanced = self.is_to_write() && self.write();
        let mut block = [0; 16384];
        while self.is_to_read() {
            match self.stream.read(&mut block) {
                Ok(0) => self.end = Some(End::Fin),
                Ok(length) => self.received.extend_from_slice(&block[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.end = Some(End::Reset),
            }
            has_advanced = true;
        }
        has_advanced
    }

    /// Sends the next part, as far as is possible. Whether something was sent.
    pub fn write(&mut self) -> bool {
        let Some(part) = self.to_send.front_mut() else { return false };
        match self.stream.write(part) {
            Ok(length) => {
                part.drain(..length);
                if part.is_empty() {
                    self.to_send.pop_front();
                    self.finish_if_all_is_sent();
                }
                true
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(_) => {
                // The kernel says so once; a FIN may have been read before.
                self.end.get_or_insert(End::Reset);
                self.to_send.clear();
                self.is_to_finish = false;
                true
            }
        }
    }
}
