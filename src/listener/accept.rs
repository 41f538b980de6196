//! The accept loop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, connect_unspec, shutdown};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use super::bind::BACKLOG;

/// Maximum delay after a failed `accept`: readiness stays set, so the loop would spin.
const BACK_OFF: Duration = Duration::from_millis(10);

/// How often [`Callbacks::full`] is repeated.
const FULL_INTERVAL: Duration = Duration::from_millis(100);

/// What an accept loop reports.
#[derive(Debug)]
pub(crate) struct Callbacks<F, G> {
    /// `accept` failed.
    pub(crate) failed: F,
    /// All permits are in use, and clients may be waiting.
    pub(crate) full: G,
}

/// Stops an accept loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    stopped: CancellationToken,
    leaves_queue: Arc<AtomicBool>,
}

impl Stop {
    /// Stops accepting, after the clients that are in the accept queue by then.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
    }

    /// Stops accepting immediately: a successor has the same socket, and its accept queue.
    pub(crate) fn hand_over(&self) {
        self.leaves_queue.store(true, Relaxed);
        self.stopped.cancel();
    }

    /// Completes when the loop is to stop.
    pub(crate) async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// Whether the loop is to stop.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.is_cancelled()
    }
}

/// Accepts until `stop`, then serves the accept queue, unless a successor does, and closes the socket.
///
/// A permit is acquired before each accept, so that clients beyond the limit wait in the accept queue. Errors never end the
/// loop; if one lacks file descriptors or memory, `freed` completes when there may be some again.
pub(crate) async fn run(
    mut listener: TcpListener,
    permits: Arc<Semaphore>,
    stop: Stop,
    callbacks: Callbacks<impl Fn(&io::Error), impl Fn()>,
    freed: impl AsyncFn(),
    serve: impl Fn(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let address = listener.local_addr();
    while !stop.is_stopped() {
        let Some(permit) = permit(&permits, &stop, &callbacks.full).await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.stopped() => break,
        };
        match accepted {
            Ok((client, peer)) => serve(client, peer, permit),
            Err(error) => {
                let error = match Errno::from_io_error(&error) {
                    Some(Errno::INVAL) => recover_closed(&mut listener, &address),
                    _ => error,
                };
                (callbacks.failed)(&error);
                back_off(&error, &freed).await;
            }
        }
    }
    if !stop.leaves_queue.load(Relaxed) {
        serve_queue(listener, &permits, freed, serve).await;
    }
}

/// Whether the process or the machine lacks descriptors or memory.
fn is_shortage(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
}

/// Waits until `accept` may no longer fail.
async fn back_off(error: &io::Error, freed: &impl AsyncFn()) {
    // Jitter: other processes may be waiting for the same resource.
    let delay = sleep(BACK_OFF.mul_f64(0.5 + 0.5 * fastrand::f64()));
    tokio::select! {
        () = freed(), if is_shortage(error) => {}
        () = delay => {}
    }
}

/// Listens again on a socket that an administrator has closed. Returns the error to report.
fn recover_closed(listener: &mut TcpListener, address: &io::Result<SocketAddr>) -> io::Error {
    let result = match listen_again(listener, address) {
        Ok(again) => {
            *listener = again;
            "; listening again".into()
        }
        Err(reason) => format!(": {reason}"),
    };
    io::Error::other(format!("the socket was closed from outside (ss -K){result}"))
}

/// Keeps the same socket, because it was duplicated for a successor and for setting options.
fn listen_again(closed: &TcpListener, address: &io::Result<SocketAddr>) -> io::Result<TcpListener> {
    let socket = SockRef::from(closed).try_clone()?;
    // Otherwise accepted sockets would be closed, too.
    connect_unspec(&socket)?;
    if let Ok(address) = *address {
        match socket.bind(&address.into()) {
            // It is still bound: the kernel only releases ports that it chose itself.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {}
            bound => bound?,
        }
    }
    socket.listen(BACKLOG)?;
    // The runtime remembers the closed state of a socket, so a new descriptor is registered.
    TcpListener::from_std(socket.into()).inspect_err(|_| {
        let _ = shutdown(closed, Shutdown::Both);
    })
}

/// Acquires a permit; `None` when the loop is to stop. Calls `full` repeatedly while there is none.
async fn permit(permits: &Arc<Semaphore>, stop: &Stop, full: &impl Fn()) -> Option<OwnedSemaphorePermit> {
    loop {
        // Usually there is one, and no timer is needed.
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Some(permit);
        }
        full();
        tokio::select! {
            Ok(permit) = Arc::clone(permits).acquire_owned() => return Some(permit),
            () = stop.stopped() => return None,
            () = sleep(FULL_INTERVAL) => {}
        }
    }
}

/// How long clients in the accept queue wait for a permit after the loop was stopped.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Closing a listening socket resets the connections in its queue, so they are accepted first: at most a full queue, so
/// that new clients cannot keep the socket open.
async fn serve_queue(
    listener: TcpListener,
    permits: &Arc<Semaphore>,
    freed: impl AsyncFn(),
    serve: impl Fn(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let Ok(listener) = listener.into_std() else { return };
    let deadline = Instant::now() + QUEUE_TIMEOUT;
    for _ in 0..BACKLOG {
        if !has_client(&listener) {
            return;
        }
        let Ok(Ok(permit)) = timeout_at(deadline, Arc::clone(permits).acquire_owned()).await else { return };
        let (client, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) if is_shortage(&error) => match timeout_at(deadline, back_off(&error, &freed)).await {
                Ok(()) => continue,
                Err(_) => return,
            },
            // This client has disconnected; the next one may be served.
            Err(_) => continue,
        };
        if client.set_nonblocking(true).is_err() {
            continue;
        }
        if let Ok(client) = TcpStream::from_std(client) {
            serve(client, peer, permit);
        }
    }
}

/// Whether a client is in the accept queue.
fn has_client(listener: &std::net::TcpListener) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // If poll fails, try to accept.
    poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&now)).map_or(true, |ready| ready > 0)
}

/// The values of the label `error` of accept errors.
pub(crate) const ERROR_LABELS: [&str; 8] =
    ["ECONNABORTED", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EPERM", "EPROTO", "other"];

/// The label of an accept error.
pub(crate) fn error_label(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE) => "EMFILE",
        Some(Errno::NFILE) => "ENFILE",
        Some(Errno::NOBUFS) => "ENOBUFS",
        Some(Errno::NOMEM) => "ENOMEM",
        Some(Errno::CONNABORTED) => "ECONNABORTED",
        Some(Errno::PROTO) => "EPROTO",
        Some(Errno::PERM) => "EPERM",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::io::AsyncReadExt;
    use tokio::sync::Notify;

    use super::*;
    use crate::listener::{BindError, Presence, bind};
    use crate::relay::tcp::TcpOptions;

    const OPTIONS: TcpOptions = TcpOptions {
        keepalive_idle: Duration::from_secs(31),
        keepalive_interval: Duration::from_secs(6),
        keepalive_count: 4,
    };

    #[tokio::test]
    async fn d17_both_legs_have_nodelay_and_keepalive() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), Presence::Required, &OPTIONS).unwrap();
        let dialled = tokio::net::TcpSocket::new_v4().unwrap();
        OPTIONS.apply(&dialled).unwrap();
        let (dialled, accepted) = tokio::join!(dialled.connect(listener.local_addr().unwrap()), listener.accept());
        for stream in [dialled.unwrap(), accepted.unwrap().0] {
            let socket = SockRef::from(&stream);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), OPTIONS.keepalive_idle);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), OPTIONS.keepalive_interval);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), OPTIONS.keepalive_count);
            // It would override the keepalive.
            assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        }
    }

    #[test]
    fn without_ipv6_the_error_suggests_an_ipv4_address() {
        let message = |address: &str| {
            let error = io::Error::from(Errno::AFNOSUPPORT);
            BindError { address: address.parse().unwrap(), error }.to_string()
        };
        assert!(
            message("[::]:6443").ends_with("; IPv6 is not available on this machine: use 0.0.0.0:6443"),
            "{}",
            message("[::]:6443")
        );
        assert!(message("[::1]:6443").ends_with("; IPv6 is not available on this machine: use an IPv4 address"));
    }

    #[tokio::test]
    async fn d24_a_panic_costs_one_connection_and_gives_its_permit_back() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), Presence::Required, &OPTIONS).unwrap();
        let address = listener.local_addr().unwrap();
        let permits = Arc::new(Semaphore::new(1));
        let served = Arc::new(AtomicUsize::new(0));
        let serve = move |client: TcpStream, _, permit| {
            let number = served.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let _permit: (TcpStream, OwnedSemaphorePermit) = (client, permit);
                assert!(number % 2 == 1, "as the test asks");
            });
        };
        let stop = Stop::default();
        let acceptor = tokio::spawn(run(
            listener,
            Arc::clone(&permits),
            stop.clone(),
            Callbacks { failed: |_: &_| {}, full: || {} },
            pending,
            serve,
        ));
        for _ in 0..6 {
            let mut client = TcpStream::connect(address).await.unwrap();
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "accepted, and closed when its task ended");
        }
        stop.stop();
        acceptor.await.unwrap();
        assert_eq!(permits.available_permits(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn f03_freed_descriptors_end_the_delay_of_those_that_lack_them() {
        let ended = Notify::new();
        let delayed = async |errno: Errno, freed: bool| {
            if freed {
                ended.notify_one();
            }
            let started = Instant::now();
            back_off(&errno.into(), &async || ended.notified().await).await;
            started.elapsed() >= BACK_OFF / 2
        };
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(!delayed(errno, true).await, "{errno}");
            assert!(delayed(errno, false).await, "{errno}");
        }
        assert!(delayed(Errno::PERM, true).await);
    }

    /// Runs a stopped accept loop over a queue of three clients. Returns how many it accepts, and a duplicate of the
    /// socket, as a successor has it.
    async fn accepted_of_three(permits: usize, end: impl FnOnce(&Stop)) -> (usize, std::net::TcpListener) {
        let listener = bind("127.0.0.1:0".parse().unwrap(), Presence::Required, &OPTIONS).unwrap();
        let address = listener.local_addr().unwrap();
        let _clients: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let copy = SockRef::from(&listener).try_clone().unwrap().into();
        let served = std::sync::Mutex::new(Vec::new());
        let serve = |client, _, permit| served.lock().unwrap().push((client, permit));
        let stop = Stop::default();
        end(&stop);
        let callbacks = Callbacks { failed: |_: &_| {}, full: || {} };
        run(listener, Arc::new(Semaphore::new(permits)), stop, callbacks, pending, serve).await;
        (served.into_inner().unwrap().len(), copy)
    }

    #[tokio::test]
    async fn h04_after_stop_only_the_queue_is_served() {
        let (served, copy) = accepted_of_three(9, Stop::stop).await;
        let address = copy.local_addr().unwrap();
        drop(copy);
        assert_eq!(served, 3);
        assert!(std::net::TcpStream::connect(address).is_err(), "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn h04_without_a_permit_no_client_is_accepted() {
        let (served, copy) = accepted_of_three(2, Stop::stop).await;
        assert_eq!(served, 2);
        assert!(copy.accept().is_ok(), "the third one is still in the queue");
    }

    #[tokio::test(start_paused = true)]
    async fn h04_an_empty_queue_does_not_wait_for_a_permit() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), Presence::Required, &OPTIONS).unwrap();
        let started = Instant::now();
        serve_queue(listener, &Arc::new(Semaphore::new(0)), pending, |_, _, _| {}).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn h04_the_queue_of_a_socket_that_was_closed_from_outside_is_given_up_at_once() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), Presence::Required, &OPTIONS).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(bind(address, Presence::Required, &OPTIONS).unwrap_err().is_in_use());
        // From now on, `accept` fails.
        shutdown(&listener, Shutdown::Both).unwrap();
        let started = Instant::now();
        serve_queue(listener, &Arc::new(Semaphore::new(1)), pending, |_, _, _| {}).await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn h08_the_queue_is_left_to_a_successor() {
        let (served, copy) = accepted_of_three(9, Stop::hand_over).await;
        assert_eq!(served, 0);
        for _ in 0..3 {
            copy.accept().unwrap();
        }
    }
}
