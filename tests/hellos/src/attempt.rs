//! One hello through a router, from a client of ours to a backend of ours.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::corpus::{Hello, Place};

/// Between two segments, so that they stay two.
const PAUSE: Duration = Duration::from_micros(500);
/// How long a router that has lost its client may take to give up the backend, too.
const AFTERMATH: Duration = Duration::from_millis(300);
/// What backends answer.
const ANSWER: &[u8] = b"snigate-hellos\n";

/// The three backends. Only one hello is under way at a time, so whatever arrives belongs to it.
pub(crate) struct Backends {
    arrivals: Receiver<Arrival>,
    /// A backend answers when it has so many bytes.
    expected: Arc<AtomicUsize>,
}

struct Arrival {
    place: Place,
    bytes: Vec<u8>,
}

impl Backends {
    /// Listens at the addresses of `a.example`, of `b.example` and of all others.
    pub(crate) fn listen(addresses: [SocketAddr; 3], patience: Duration) -> Result<Self, String> {
        let (sender, arrivals) = mpsc::channel();
        let expected = Arc::new(AtomicUsize::new(usize::MAX));
        for (place, address) in [Place::A, Place::B, Place::Other].into_iter().zip(addresses) {
            let listener = TcpListener::bind(address).map_err(|error| format!("--backends: {address}: {error}"))?;
            let (sender, expected) = (sender.clone(), Arc::clone(&expected));
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (sender, expected) = (sender.clone(), expected.load(Ordering::SeqCst));
                    thread::spawn(move || serve(stream, place, expected, patience, &sender));
                }
            });
        }
        Ok(Self { arrivals, expected })
    }
}

fn serve(mut stream: TcpStream, place: Place, expected: usize, patience: Duration, sender: &Sender<Arrival>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    let _ = stream.set_read_timeout(Some(patience));
    while bytes.len() < expected {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
        }
    }
    // Before the answer: a client that has the answer knows that this is there.
    let _ = sender.send(Arrival { place, bytes });
    let _ = stream.write_all(ANSWER);
    let _ = stream.shutdown(Shutdown::Write);
    // Reads what may follow, so that closing does not reset.
    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
}

/// What became of a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) place: Place,
    /// How the client saw it: an alert, a close, a reset, or none of these in time.
    pub(crate) end: End,
    /// What a backend got was not what the client sent, or the other way round.
    pub(crate) altered: Option<String>,
}

/// How the connection of a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Answered,
    Alert(u8),
    Closed,
    Reset,
    Held,
}

impl End {
    pub(crate) fn text(self) -> String {
        match self {
            Self::Answered => "answered".into(),
            Self::Alert(description) => format!("alert {description}"),
            Self::Closed => "closed".into(),
            Self::Reset => "reset".into(),
            Self::Held => "held".into(),
        }
    }
}

/// Sends the hello, and sees where it arrives.
///
/// # Errors
///
/// The router does not accept connections.
pub(crate) fn attempt(
    router: SocketAddr,
    backends: &Backends,
    hello: &Hello<'_>,
    bytes: &[u8],
    patience: Duration,
) -> Result<Observed, String> {
    backends.expected.store(bytes.len(), Ordering::SeqCst);
    while backends.arrivals.try_recv().is_ok() {}

    let mut client =
        TcpStream::connect_timeout(&router, patience).map_err(|error| format!("router {router}: {error}"))?;
    let _ = client.set_nodelay(true);
    let mut written = Ok(());
    for (number, segment) in hello.sent.cut(bytes).into_iter().enumerate() {
        if number > 0 {
            thread::sleep(PAUSE);
        }
        written = client.write_all(segment);
        if written.is_err() {
            break;
        }
    }
    let (received, end) = read_to_end(&mut client, patience);
    drop(client);

    let wait = if end == End::Held { AFTERMATH } else { Duration::ZERO };
    let mut arrivals: Vec<Arrival> = backends.arrivals.recv_timeout(wait).into_iter().collect();
    arrivals.extend(backends.arrivals.try_iter());
    // Some routers connect before they know whether there is anything to send.
    arrivals.retain(|arrival| !arrival.bytes.is_empty());

    let Some(first) = arrivals.first() else {
        return Ok(Observed { place: Place::Refused, end, altered: None });
    };
    let altered = if arrivals.len() > 1 {
        Some(format!("sent to {} backends", arrivals.len()))
    } else if first.bytes != bytes {
        let same = first.bytes.iter().zip(bytes).take_while(|(got, sent)| got == sent).count();
        Some(format!("{} of {} bytes, equal up to {same}", first.bytes.len(), bytes.len()))
    } else if written.is_ok() && received != ANSWER {
        Some(format!("the answer: {}", received.escape_ascii()))
    } else {
        None
    };
    Ok(Observed { place: first.place, end, altered })
}

fn read_to_end(client: &mut TcpStream, patience: Duration) -> (Vec<u8>, End) {
    let deadline = Instant::now() + patience;
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let read = match client.set_read_timeout(Some(left)) {
            Ok(()) => client.read(&mut buffer),
            // There is no time left.
            Err(_) => Err(io::Error::from(ErrorKind::TimedOut)),
        };
        match read {
            Ok(0) => break,
            Ok(length) => received.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return (received, End::Held);
            }
            Err(_) if received.is_empty() => return (received, End::Reset),
            Err(_) => break,
        }
    }
    let end = match received[..] {
        [] => End::Closed,
        [21, 3, _, 0, 2, _, description] => End::Alert(description),
        _ => End::Answered,
    };
    (received, end)
}
