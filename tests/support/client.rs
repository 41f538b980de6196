//! A client that sends what it is told.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use super::{Hello, PATIENCE, watchdog};

/// A fatal alert, as a record.
pub fn alert(description: u8) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, description]
}

pub struct Client {
    pub stream: TcpStream,
}

/// A client with this address.
pub fn client_from(address: &str, to: SocketAddr) -> Client {
    let address: IpAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(address, 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    Client::over(socket.into())
}

/// All that a client with this address gets that asks for this name.
pub fn ask_from(address: &str, to: SocketAddr, name: &str) -> (Vec<u8>, End) {
    let mut client = client_from(address, to);
    client.write(&Hello::to(name).record());
    client.finish_if_open();
    client.rest()
}

/// What a client gets from `Backend::named("served")`.
pub fn served() -> (Vec<u8>, End) {
    (b"served".to_vec(), End::Fin)
}

/// What a client gets that is refused with this alert.
pub fn refused(description: u8) -> (Vec<u8>, End) {
    (alert(description), End::Fin)
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fin,
    Reset,
}

impl Client {
    #[track_caller]
    pub fn connect(address: SocketAddr) -> Self {
        watchdog::step(format!("a connection to {address}"));
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }

    /// What neither moves nor ends for so long has failed.
    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    /// Connects and sends these bytes.
    #[track_caller]
    pub fn send(address: SocketAddr, bytes: &[u8]) -> Self {
        let mut client = Self::connect(address);
        client.write(bytes);
        client
    }

    pub fn address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        watchdog::step(format!("a write of {} bytes", bytes.len()));
        self.stream.write_all(bytes).unwrap();
    }

    #[track_caller]
    pub fn read(&mut self, length: usize) -> Vec<u8> {
        watchdog::step(format!("a read of {length} bytes"));
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// All that comes until it is enough. That it ends before, or that nothing comes for long, is a failure.
    #[track_caller]
    pub fn read_until(&mut self, what: &str, is_enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        watchdog::step(format!("a read until {what}"));
        let (mut all, mut some) = (Vec::new(), [0; 65536]);
        while !is_enough(&all) {
            let read = self.stream.read(&mut some);
            let Ok(length @ 1..) = read else { panic!("{read:?} before {what}: {}", all.escape_ascii()) };
            all.extend_from_slice(&some[..length]);
        }
        all
    }

    pub fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// All that still comes, and how it ends.
    #[track_caller]
    pub fn rest(&mut self) -> (Vec<u8>, End) {
        rest(&mut self.stream)
    }
}

/// All that still comes, and how it ends.
#[track_caller]
pub fn rest(stream: &mut TcpStream) -> (Vec<u8>, End) {
    watchdog::step("a read to the end");
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, End::Fin),
        Err(error) if is_reset(&error) => (bytes, End::Reset),
        Err(error) => panic!("{error}"),
    }
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

impl Client {
    /// Closes our side, if the connection has not been reset.
    pub fn finish_if_open(&self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }
}
