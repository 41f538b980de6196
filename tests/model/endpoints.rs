//! API servers that behave as the script says, at addresses that stay theirs.

use std::collections::BTreeSet;
use std::net::{Shutdown, SocketAddr};

use rustix::event::PollFlags;
use socket2::{Domain, SockFilter, Socket, Type};

use super::peer::Peer;
use super::script::Behaviour;
use crate::support::backend::reset;
use crate::support::eventually;

pub struct Endpoint {
    pub address: SocketAddr,
    /// Always bound, so that the address is nobody else's while the endpoint refuses.
    pub socket: Socket,
    pub behaviour: Behaviour,
}

impl Endpoint {
    /// `address`: `None` for a port of the kernel's choice.
    pub fn new(address: Option<SocketAddr>) -> Self {
        let address = address.unwrap_or_else(|| {
            let port_of = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
            port_of.local_addr().unwrap().as_socket().unwrap()
        });
        // A port that was asked for stays with a socket that listens no more.
        let mut endpoint = Self { address, socket: bound(address), behaviour: Behaviour::Refuses };
        endpoint.behave(Behaviour::Serves);
        endpoint
    }

    pub fn behave(&mut self, behaviour: Behaviour) {
        let before = std::mem::replace(&mut self.behaviour, behaviour);
        match (before, behaviour) {
            (Behaviour::Refuses, Behaviour::Refuses) => return,
            (_, Behaviour::Refuses) => return self.socket.shutdown(Shutdown::Read).unwrap(),
            (Behaviour::Refuses, _) => self.socket.listen(128).unwrap(),
            _ => {}
        }
        if behaviour == Behaviour::Hangs {
            // `ret 0`: accept no byte of any packet.
            self.socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
        } else {
            // There may be none.
            let _ = self.socket.detach_filter();
        }
    }

    /// What is to be done when it is possible.
    pub fn awaited(&self) -> PollFlags {
        if self.behaviour == Behaviour::Refuses { PollFlags::empty() } else { PollFlags::IN }
    }

    /// Accepts one that is not reset at once. `nameless`: see [`World`](super::world::World).
    pub fn accept(&self, nameless: &mut BTreeSet<String>) -> Option<Peer> {
        loop {
            let (socket, from) = self.socket.accept().ok()?;
            // A socket that has been reset before it is accepted no longer tells.
            let from = from.as_socket().unwrap();
            if self.behaviour == Behaviour::Resets {
                reset(socket.into());
                nameless.insert(from.to_string());
            } else {
                let mut peer = Peer::new(socket.into());
                peer.addresses[1] = from;
                return Some(peer);
            }
        }
    }
}

fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    // So that a stalled client's buffers are soon full.
    socket.set_send_buffer_size(128 * 1024).unwrap();
    // Between its fork and its exec, a process that another thread starts has all sockets, also those of the last script.
    eventually("no other process has the address", || socket.bind(&address.into()).is_ok());
    socket
}
