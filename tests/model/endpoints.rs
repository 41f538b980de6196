//! API servers that behave as the script says, at addresses that stay theirs.

use std::net::{Shutdown, SocketAddr};

use socket2::{Domain, SockFilter, Socket, Type};

use super::peer::Peer;
use super::script::Behaviour;
use crate::support::backend::reset;

pub struct Endpoint {
    pub address: SocketAddr,
    /// Always bound, so that the address is nobody else's while the endpoint refuses.
    socket: Socket,
    behaviour: Behaviour,
}

impl Endpoint {
    pub fn new() -> Self {
        let port_of = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = port_of.local_addr().unwrap().as_socket().unwrap();
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

    pub fn listening(&self) -> Option<&Socket> {
        (self.behaviour != Behaviour::Refuses).then_some(&self.socket)
    }

    /// Accepts one that is not reset at once.
    pub fn accept(&self) -> Option<Peer> {
        loop {
            let (socket, from) = self.listening()?.accept().ok()?;
            if self.behaviour == Behaviour::Resets {
                reset(socket.into());
            } else {
                let mut peer = Peer::new(socket.into());
                // A socket that has been reset before it is accepted no longer tells.
                peer.addresses[1] = from.as_socket().unwrap();
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
    socket.bind(&address.into()).unwrap();
    socket
}
