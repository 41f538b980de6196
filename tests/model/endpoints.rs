//! API servers that behave as the script says, at addresses that stay theirs.

use std::net::SocketAddr;

use socket2::{Domain, SockFilter, Socket, Type};

use super::peer::Peer;
use super::script::Behaviour;
use crate::support::backend::reset;

pub struct Endpoint {
    pub address: SocketAddr,
    /// Bound and never listening, so that the address is nobody else's while the endpoint refuses.
    _reserved: Socket,
    listening: Option<Socket>,
    behaviour: Behaviour,
}

impl Endpoint {
    pub fn new() -> Self {
        let reserved = bound(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = reserved.local_addr().unwrap().as_socket().unwrap();
        let mut endpoint = Self { address, _reserved: reserved, listening: None, behaviour: Behaviour::Refuses };
        endpoint.behave(Behaviour::Serves);
        endpoint
    }

    pub fn behave(&mut self, behaviour: Behaviour) {
        self.behaviour = behaviour;
        if behaviour == Behaviour::Refuses {
            self.listening = None;
            return;
        }
        let listening = self.listening.get_or_insert_with(|| {
            let socket = bound(self.address);
            socket.listen(128).unwrap();
            socket
        });
        if behaviour == Behaviour::Hangs {
            // `ret 0`: accept no byte of any packet.
            listening.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
        } else {
            // There may be none.
            let _ = listening.detach_filter();
        }
    }

    pub fn listening(&self) -> Option<&Socket> {
        self.listening.as_ref()
    }

    /// Accepts one that is not reset at once.
    pub fn accept(&self) -> Option<Peer> {
        loop {
            let (socket, _) = self.listening.as_ref()?.accept().ok()?;
            if self.behaviour == Behaviour::Resets {
                reset(socket.into());
            } else {
                return Some(Peer::new(socket.into()));
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
