//! Listening sockets, and the loop that accepts from one.

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

/// Between attempts while `accept` fails. Readiness stays set after a failure, so without a pause this would spin.
const MIN_BACK_OFF: Duration = Duration::from_millis(10);
const MAX_BACK_OFF: Duration = Duration::from_millis(100);

/// How often it is told that there is no permit.
const FULL_AGAIN: Duration = Duration::from_millis(100);

/// Whom to tell.
#[derive(Debug)]
pub(crate) struct Events<F, G> {
    /// `accept` failed.
    pub(crate) failed: F,
    /// All permits are taken, and somebody may be waiting.
    pub(crate) full: G,
}

/// Ends an accept loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop {
    stopped: CancellationToken,
    leaves_queue: Arc<AtomicBool>,
}

impl Stop {
    /// No more clients are accepted but those that the kernel has queued by then.
    pub(crate) fn stop(&self) {
        self.stopped.cancel();
    }

    /// Not even those: a successor has the same socket, and with it the queue.
    pub(crate) fn hand_over(&self) {
        self.leaves_queue.store(true, Relaxed);
        self.stopped.cancel();
    }

    /// Ready once it is to end.
    pub(crate) async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// Whether it is to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.is_cancelled()
    }
}

/// Accepts until `stop`, then serves what the kernel had queued, unless a successor does, and closes the socket.
///
/// A permit is taken before each accept, so that clients beyond the limit wait in the kernel's queue. Errors never end
/// the loop.
pub(crate) async fn run(
    mut listener: TcpListener,
    permits: Arc<Semaphore>,
    stop: Stop,
    events: Events<impl Fn(&io::Error), impl Fn()>,
    serve: impl Fn(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let mut back_off = MIN_BACK_OFF;
    let address = listener.local_addr();
    while !stop.is_stopped() {
        let Some(permit) = permit(&permits, &stop, &events.full).await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.stopped() => break,
        };
        match accepted {
            Ok((client, peer)) => {
                back_off = MIN_BACK_OFF;
                serve(client, peer, permit);
            }
            Err(error) => {
                let error = match Errno::from_io_error(&error) {
                    Some(Errno::INVAL) => closed_from_outside(&mut listener, &address),
                    _ => error,
                };
                (events.failed)(&error);
                // Not at the same moments as everybody else who waits for the machine to have room.
                sleep(back_off.mul_f64(0.5 + 0.5 * fastrand::f64())).await;
                back_off = (back_off * 2).min(MAX_BACK_OFF);
            }
        }
    }
    if !stop.leaves_queue.load(Relaxed) {
        serve_queue(listener, &permits, serve).await;
    }
}

/// What has happened, once it listens again or cannot.
fn closed_from_outside(listener: &mut TcpListener, address: &io::Result<SocketAddr>) -> io::Error {
    let what = match listen_again(listener, address) {
        Ok(again) => {
            *listener = again;
            "; it listens again".into()
        }
        Err(reason) => format!(": {reason}"),
    };
    io::Error::other(format!("the socket was closed from outside (ss -K){what}"))
}

/// The same socket, of which a successor and whoever sets its options have copies.
fn listen_again(closed: &TcpListener, address: &io::Result<SocketAddr>) -> io::Result<TcpListener> {
    let socket = SockRef::from(closed).try_clone()?;
    // Otherwise all that it accepts would be closed as it is.
    connect_unspec(&socket)?;
    if let Ok(address) = *address {
        match socket.bind(&address.into()) {
            // It still has its port: the kernel gives up only those that it has chosen itself.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {}
            bound => bound?,
        }
    }
    socket.listen(BACKLOG)?;
    // The runtime never forgets that a socket was closed, so it must not know this one.
    TcpListener::from_std(socket.into()).inspect_err(|_| {
        let _ = shutdown(closed, Shutdown::Both);
    })
}

/// A permit, or nothing when it is to stop. While there is none, that is told again and again.
async fn permit(permits: &Arc<Semaphore>, stop: &Stop, full: &impl Fn()) -> Option<OwnedSemaphorePermit> {
    loop {
        // Most of the time there is one, and no timer is needed.
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Some(permit);
        }
        full();
        tokio::select! {
            Ok(permit) = Arc::clone(permits).acquire_owned() => return Some(permit),
            () = stop.stopped() => return None,
            () = sleep(FULL_AGAIN) => {}
        }
    }
}

/// For those in the queue to get a permit, when there is none left.
const QUEUE_PATIENCE: Duration = Duration::from_secs(10);

/// Closing a listening socket resets those that wait in its queue, so they are accepted first: at most a full queue, so
/// that clients who keep coming cannot keep it open.
async fn serve_queue(
    listener: TcpListener,
    permits: &Arc<Semaphore>,
    serve: impl Fn(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    let Ok(listener) = listener.into_std() else { return };
    let deadline = Instant::now() + QUEUE_PATIENCE;
    for _ in 0..BACKLOG {
        if !has_client(&listener) {
            return;
        }
        let Ok(Ok(permit)) = timeout_at(deadline, Arc::clone(permits).acquire_owned()).await else { return };
        let (client, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // This client has gone, or there is no room for it; the next one may be served.
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

/// Whether somebody is in the queue.
fn has_client(listener: &std::net::TcpListener) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Where that cannot be asked, accepting tells.
    poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&now)).map_or(true, |ready| ready > 0)
}

/// The labels of accept errors.
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
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::listener::{BindError, bind};
    use crate::relay::tcp::TcpOptions;

    const OPTIONS: TcpOptions = TcpOptions {
        keepalive_idle: Duration::from_secs(31),
        keepalive_interval: Duration::from_secs(6),
        keepalive_count: 4,
    };

    #[tokio::test]
    async fn d17_both_legs_have_nodelay_and_keepalive() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), &OPTIONS).unwrap();
        let dialled = tokio::net::TcpSocket::new_v4().unwrap();
        OPTIONS.apply(&dialled).unwrap();
        let (dialled, accepted) = tokio::join!(dialled.connect(listener.local_addr().unwrap()), listener.accept());
        for stream in [dialled.unwrap(), accepted.unwrap().0] {
            let socket = SockRef::from(&stream);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), OPTIONS.keepalive_idle);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), OPTIONS.keepalive_interval);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), OPTIONS.keepalive_count);
            // It would overrule the keepalive.
            assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        }
    }

    #[test]
    fn a_machine_without_ipv6_is_told_what_to_write() {
        let told = |address: &str| {
            let error = io::Error::from(Errno::AFNOSUPPORT);
            BindError { address: address.parse().unwrap(), error }.to_string()
        };
        assert!(told("[::]:6443").ends_with("; this machine has no IPv6: write 0.0.0.0:6443"), "{}", told("[::]:6443"));
        assert!(told("[::1]:6443").ends_with("; this machine has no IPv6: write an IPv4 address"));
    }

    #[tokio::test]
    async fn d24_a_panic_costs_one_connection_and_gives_its_permit_back() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), &OPTIONS).unwrap();
        let address = listener.local_addr().unwrap();
        let permits = Arc::new(Semaphore::new(1));
        let served = Arc::new(AtomicUsize::new(0));
        let serve = move |client: TcpStream, _, permit| {
            let number = served.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let _held: (TcpStream, OwnedSemaphorePermit) = (client, permit);
                assert!(number % 2 == 1, "as the test asks");
            });
        };
        let stop = Stop::default();
        let acceptor = tokio::spawn(run(
            listener,
            Arc::clone(&permits),
            stop.clone(),
            Events { failed: |_: &_| {}, full: || {} },
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

    /// Runs an accept loop that is stopped, over a queue of three clients, with so many permits; how many it accepts, and
    /// the socket's copy that a successor has.
    async fn accepted_of_three(permits: usize, end: impl FnOnce(&Stop)) -> (usize, std::net::TcpListener) {
        let listener = bind("127.0.0.1:0".parse().unwrap(), &OPTIONS).unwrap();
        let address = listener.local_addr().unwrap();
        let _clients: Vec<_> = (0..3).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let copy = SockRef::from(&listener).try_clone().unwrap().into();
        let served = std::sync::Mutex::new(Vec::new());
        let serve = |client, _, permit| served.lock().unwrap().push((client, permit));
        let stop = Stop::default();
        end(&stop);
        run(listener, Arc::new(Semaphore::new(permits)), stop, Events { failed: |_: &_| {}, full: || {} }, serve).await;
        (served.into_inner().unwrap().len(), copy)
    }

    #[tokio::test]
    async fn h04_at_the_stop_the_queue_is_served_and_no_more() {
        let (served, copy) = accepted_of_three(9, Stop::stop).await;
        let address = copy.local_addr().unwrap();
        drop(copy);
        assert_eq!(served, 3);
        assert!(std::net::TcpStream::connect(address).is_err(), "closed");
    }

    #[tokio::test(start_paused = true)]
    async fn h04_without_a_permit_nobody_is_accepted() {
        let (served, copy) = accepted_of_three(2, Stop::stop).await;
        assert_eq!(served, 2);
        assert!(copy.accept().is_ok(), "the third one is still in the queue");
    }

    #[tokio::test(start_paused = true)]
    async fn h04_an_empty_queue_waits_for_no_permit() {
        let listener = bind("127.0.0.1:0".parse().unwrap(), &OPTIONS).unwrap();
        let begun = Instant::now();
        serve_queue(listener, &Arc::new(Semaphore::new(0)), |_, _, _| {}).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn h08_a_queue_that_a_successor_has_is_left_to_it() {
        let (served, copy) = accepted_of_three(9, Stop::hand_over).await;
        assert_eq!(served, 0);
        for _ in 0..3 {
            copy.accept().unwrap();
        }
    }
}
