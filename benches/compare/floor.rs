//! What no proxy of this shape can go below: one epoll, each message read and written once, no name looked at, no
//! counter, no timer, no log, no error handled. It is not a proxy; it says how much of a figure is the kernel's.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, connect, recv, send, shutdown, socket_with,
    sockopt,
};

struct Leg {
    socket: Rc<OwnedFd>,
    other: Option<Rc<OwnedFd>>,
    ended: bool,
}

pub fn run(address: SocketAddr, backend: SocketAddr) -> ! {
    let listener = TcpListener::bind(address).unwrap();
    sockopt::set_tcp_nodelay(&listener, true).unwrap();
    sockopt::set_tcp_quickack(&listener, false).unwrap();
    sockopt::set_socket_keepalive(&listener, true).unwrap();
    let epoll = epoll::create(CreateFlags::CLOEXEC).unwrap();
    epoll::add(&epoll, &listener, EventData::new_u64(0), EventFlags::IN).unwrap();
    let mut legs: HashMap<u64, Leg> = HashMap::new();
    let mut events = Vec::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    let watch = |socket: &OwnedFd| {
        epoll::add(
            &epoll,
            socket,
            EventData::new_u64(number(socket)),
            EventFlags::IN | EventFlags::RDHUP | EventFlags::ET,
        )
        .unwrap();
    };
    loop {
        events.clear();
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        for event in &events {
            let (ready, flags) = (event.data.u64(), event.flags);
            if ready == 0 {
                let client: OwnedFd = listener.accept().map(|(client, _): (TcpStream, _)| client).unwrap().into();
                watch(&client);
                legs.insert(number(&client), Leg { socket: Rc::new(client), other: None, ended: false });
                continue;
            }
            // Bytes and the end that follows them may be one event.
            let mut rounds = if flags.contains(EventFlags::RDHUP) { usize::MAX } else { 1 };
            while rounds > 0 && relay(&mut legs, ready, &mut buffer, backend, &watch) {
                rounds -= 1;
            }
        }
    }
}

fn number(socket: &OwnedFd) -> u64 {
    u64::try_from(socket.as_raw_fd()).unwrap()
}

/// Moves what is there; whether there may be more.
fn relay(
    legs: &mut HashMap<u64, Leg>,
    ready: u64,
    buffer: &mut [u8],
    backend: SocketAddr,
    watch: &impl Fn(&OwnedFd),
) -> bool {
    let Some(leg) = legs.get_mut(&ready) else { return false };
    let Ok((length, _)) = recv(&leg.socket, &mut *buffer, RecvFlags::DONTWAIT) else { return false };
    let other = leg.other.get_or_insert_with(|| {
        let upstream = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_tcp_nodelay(&upstream, true).unwrap();
        sockopt::set_tcp_quickack(&upstream, false).unwrap();
        sockopt::set_socket_keepalive(&upstream, true).unwrap();
        connect(&upstream, &backend).unwrap();
        watch(&upstream);
        Rc::new(upstream)
    });
    let (socket, other) = (Rc::clone(&leg.socket), Rc::clone(other));
    if length > 0 {
        let _ = send(&other, &buffer[..length], SendFlags::NOSIGNAL);
        legs.entry(number(&other)).or_insert(Leg { socket: other, other: Some(socket), ended: false });
        return true;
    }
    leg.ended = true;
    match legs.get(&number(&other)) {
        Some(Leg { ended: false, .. }) => {
            let _ = shutdown(&other, Shutdown::Write);
        }
        _ => {
            legs.remove(&number(&socket));
            legs.remove(&number(&other));
        }
    }
    false
}
