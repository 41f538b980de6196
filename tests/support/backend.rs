//! API servers that behave as told.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use socket2::{Domain, SockFilter, Socket, Type};

use super::{PATIENCE, pattern};

/// A server that hands each connection to a function on a thread of its own.
pub struct Backend {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Backend {
    pub fn start(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), serve)
    }

    pub fn start_on(listener: TcpListener, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (counter, serve) = (Arc::clone(&accepted), Arc::new(serve));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                counter.fetch_add(1, SeqCst);
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { address, accepted }
    }

    /// Sends back what it receives, until it has received all.
    pub fn echo() -> Self {
        Self::start(|mut stream| {
            let mut buffer = vec![0; 65536];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
            let _ = stream.shutdown(Shutdown::Write);
        })
    }

    /// The same, however long it takes until something comes.
    pub fn patient() -> Self {
        Self::start(|mut stream| {
            stream.set_read_timeout(None).unwrap();
            let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
        })
    }

    /// Says its name and closes.
    pub fn named(name: &'static str) -> Self {
        Self::start(move |mut stream| {
            let _ = stream.read(&mut [0; 65536]);
            let _ = stream.write_all(name.as_bytes());
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        })
    }

    /// Hands each connection to the test.
    pub fn held() -> (Self, Receiver<TcpStream>) {
        let (sender, receiver) = channel();
        let hand_over = move |stream: TcpStream| {
            stream.set_write_timeout(Some(PATIENCE)).unwrap();
            drop(sender.send(stream));
        };
        (Self::start(hand_over), receiver)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}

/// A port of which nobody listens at any address, for as long as the socket is there: the kernel chooses it for nobody.
pub fn free_everywhere() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

/// An address where nobody listens, nor will: it is taken.
pub fn closed() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address
}

/// An address where nobody listens yet, nor will anybody but who is given it: no other test has its IP address, nor any
/// other run of the tests on this machine.
pub fn free() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(64);
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, NEXT.fetch_add(1, SeqCst), high, low);
    TcpListener::bind((own, 0)).unwrap().local_addr().unwrap()
}

/// A socket that listens, but whose kernel drops every packet to it: connects get no answer at all.
pub fn black_hole() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // `ret 0`: accept no byte of any packet.
    Socket::from(listener.try_clone().unwrap()).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Writes until all buffers on the way are full. Returns what was written.
pub fn fill(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut filled = Vec::new();
    let block = pattern(65536);
    loop {
        match stream.write(&block) {
            Ok(written) => filled.extend_from_slice(&block[..written]),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                return filled;
            }
        }
    }
}

/// Closes with a RST.
pub fn reset(stream: TcpStream) {
    let socket = Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}
