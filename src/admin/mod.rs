//! The admin listener: looks, and changes nothing.

mod answer;
mod body;
mod exposition;
mod history;
mod hosts;
mod metrics;
mod negotiate;
mod places;
mod shared;
mod status;
mod status_pages;
mod thread;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

pub(crate) use self::answer::Answers;
use self::body::{Body, counted};
pub(crate) use self::history::History;
use self::history::Totals;
pub(crate) use self::hosts::Hosts;
pub(crate) use self::metrics::PerRoute;
pub(crate) use self::places::MAX_CONNECTIONS;
use self::places::{Answer, Place, Places};
pub(crate) use self::thread::spawn;

use crate::connection::Route;
use crate::listener::accept::{self, Events, Stop};
use crate::telemetry::Counters;

/// People who look at the page.
pub(crate) const MAX_VIEWERS: usize = 8;
/// How many routes the page shows.
const MAX_ROUTES_SHOWN: usize = 1000;
/// What they see is never older.
const EVENT_EVERY: Duration = Duration::from_secs(2);
/// For a request's head, and between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After it a connection ends with the answer that is under way, and a page comes back: the places are few.
const MAX_AGE: Duration = Duration::from_secs(60);
/// For a reader that takes nothing.
const STALLED: Duration = Duration::from_secs(30);
/// What the kernel holds for a reader; with more, one that reads slowly would seem to read nothing for a long time.
const SEND_BUFFER: usize = 128 * 1024;
/// What we hold for it, and of a request's head.
const MAX_BUFFERED: usize = 64 * 1024;

/// What one configuration has, in its order.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) routes: Vec<Arc<Route>>,
    pub(crate) listeners: Vec<ListenerAddress>,
}

/// Where a listener is.
#[derive(Clone, Debug)]
pub(crate) struct ListenerAddress {
    pub(crate) name: Box<str>,
    /// As configured.
    pub(crate) configured: SocketAddr,
    /// With the port that the kernel chose, where port 0 is configured.
    pub(crate) address: SocketAddr,
}

/// The keys that cannot change while the process runs, with their values.
pub(crate) type Fixed = [(&'static str, String); 3];

/// What the admin listener looks at.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// What is configured now.
    pub(crate) view: Arc<ArcSwap<View>>,
    /// What is not counted per route.
    pub(crate) counters: Arc<Counters>,
    /// What it was like before.
    pub(crate) history: Arc<History>,
    /// Places for those who look at the page.
    pub(crate) viewers: Arc<Semaphore>,
    /// For whom it answers.
    pub(crate) hosts: Arc<ArcSwap<Hosts>>,
    /// How much is told about each route.
    pub(crate) per_route: Arc<ArcSwap<PerRoute>>,
    /// Long answers.
    pub(crate) answers: Answers,
    /// Where connections are served.
    pub(crate) runtime: Handle,
    /// Where it is, as configured.
    pub(crate) configured: SocketAddr,
    /// What no reload changes, by key.
    pub(crate) fixed: Fixed,
    /// Cancelled when no more connections are accepted.
    pub(crate) draining: CancellationToken,
}

/// Serves until `stop`: as a rule for as long as the process runs, because probes want an answer while connections drain.
/// `closed` is told when the socket is closed; the connections that there are then are still served.
async fn run(socket: TcpListener, state: State, stop: Stop, closed: oneshot::Sender<()>) {
    let state = Arc::new(state);
    let (places, connections) = (Arc::new(Places::new()), TaskTracker::new());
    let historian = tokio::spawn(remember(Arc::clone(&state)));
    let failed = |error: &io::Error| warn!(reason = %error, "cannot accept on the admin listener; trying again");
    let (stopped, entrance, tracker) = (stop.clone(), Arc::clone(&places), connections.clone());
    let serve = move |client, peer: SocketAddr, permit| {
        let place = Arc::new(entrance.enter(peer.ip(), permit));
        tracker.spawn(serve(client, place, Arc::clone(&state), stopped.clone()));
    };
    let full = || {
        debug!("all admin connections are in use");
        places.make_room();
    };
    accept::run(socket, Arc::clone(&places.permits), stop, Events { failed, full }, serve).await;
    let _ = closed.send(());
    connections.close();
    connections.wait().await;
    historian.abort();
}

async fn remember(state: Arc<State>) {
    let mut turn = interval(history::STEP);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        let state = Arc::clone(&state);
        let take = move || {
            let view = state.view.load_full();
            let routes = view.routes.iter().take(MAX_ROUTES_SHOWN);
            state.history.take(routes.map(|route| (route.counters.name(), Totals::of(&route.counters))));
        };
        // A panic has been logged.
        let _ = spawn_blocking(take).await;
    }
}

async fn serve(client: TcpStream, place: Arc<Place>, state: Arc<State>, stop: Stop) {
    if let Err(error) = SockRef::from(&client).set_send_buffer_size(SEND_BUFFER) {
        debug!(reason = %error, "admin connection");
    }
    converse(client, |request| answer::answer(request, Arc::clone(&state), Arc::clone(&place)), &place, stop).await;
}

/// Answers until the client has left, has stayed for long enough, reads no more, or makes room for another.
async fn converse<I: AsyncRead + AsyncWrite + Unpin, F: Future<Output = Response<Body>>>(
    client: I,
    answer: impl Fn(Request<Incoming>) -> F,
    place: &Arc<Place>,
    stop: Stop,
) {
    let has_answered = AtomicBool::new(false);
    let service = service_fn(|request| {
        place.begin();
        let answered = answer(request);
        async {
            let mut response = answered.await.map(|body| counted(body, Answer(Arc::clone(place))));
            has_answered.store(true, Relaxed);
            if stop.is_stopped() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let written = AtomicU64::new(0);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_BUFFERED)
        .serve_connection(TokioIo::new(Counted { client, written: &written, place }), service);
    let mut connection = pin!(connection);
    let now = Instant::now();
    let (mut end, mut look) = (pin!(sleep_until(now + MAX_AGE)), interval_at(now + STALLED, STALLED));
    let (mut is_old, mut is_stopped, mut last) = (false, false, 0);
    loop {
        tokio::select! {
            // First of all: a request that has arrived is seen before the connection makes room.
            biased;
            result = connection.as_mut() => {
                if let Err(error) = result {
                    debug!(reason = %error, "admin connection");
                }
                return;
            }
            () = place.to_leave() => return,
            // Who has asked gets its answer; what it asks next, it asks somebody else. Who has just come gets one.
            () = stop.stopped(), if !is_stopped => {
                is_stopped = true;
                if has_answered.load(Relaxed) {
                    connection.as_mut().graceful_shutdown();
                }
            }
            () = &mut end, if !is_old => {
                is_old = true;
                connection.as_mut().graceful_shutdown();
            }
            _ = look.tick() => {
                let taken = written.load(Relaxed);
                if taken == last {
                    debug!(reason = "it reads no more", "admin connection");
                    return;
                }
                last = taken;
            }
        }
    }
}

/// Counts what the client has taken.
struct Counted<'c, I> {
    client: I,
    written: &'c AtomicU64,
    place: &'c Place,
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<'_, I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<'_, I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.client).poll_write(context, bytes);
        if let Poll::Ready(Ok(length)) = result {
            self.written.fetch_add(length as u64, Relaxed);
        }
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Called when everything that was buffered has been written.
        let result = Pin::new(&mut self.client).poll_flush(context);
        if let Poll::Ready(Ok(())) = result {
            self.place.flushed();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use hyper::StatusCode;

    use super::answer::respond;
    use super::*;

    const TEXT: HeaderValue = HeaderValue::from_static("text/plain");

    const LENGTH: usize = 4 * 1024 * 1024;

    fn place() -> Arc<Place> {
        let places = Arc::new(Places::new());
        let permit = Arc::clone(&places.permits).try_acquire_owned().unwrap();
        Arc::new(places.enter("192.0.2.1".parse().unwrap(), permit))
    }

    /// Asks for a long answer and reads it at this pace; how much of its body has come.
    async fn read_by(chunk: usize, every: Duration, most: usize) -> usize {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let respond = |_| async { respond(StatusCode::OK, TEXT, vec![b'x'; LENGTH]) };
        let serving = tokio::spawn(async move { converse(server, respond, &place(), Stop::default()).await });
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut received = Vec::new();
        while received.len() < most {
            tokio::time::sleep(every).await;
            let mut buffer = vec![0; chunk];
            match client.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => received.extend_from_slice(&buffer[..length]),
            }
        }
        tokio::time::timeout(10 * STALLED, serving).await.expect("it ends by itself").unwrap();
        let head = received.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        received.len() - head
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_read_slowly_is_not_cut() {
        let begun = Instant::now();
        assert_eq!(read_by(32 * 1024, Duration::from_secs(5), usize::MAX).await, LENGTH);
        assert!(begun.elapsed() > 5 * MAX_AGE, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_no_more_gives_the_place_back() {
        let begun = Instant::now();
        let body = read_by(32 * 1024, Duration::from_secs(5), 64 * 1024).await;
        assert!(body < LENGTH && begun.elapsed() < MAX_AGE + 2 * STALLED, "{body} {:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_again_and_again_leaves_after_a_while() {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let respond = |_| async { respond(StatusCode::OK, TEXT, "ok") };
        let serving = tokio::spawn(async move { converse(server, respond, &place(), Stop::default()).await });
        let begun = Instant::now();
        while client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.is_ok() {
            if client.read(&mut [0; 4096]).await.unwrap() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(begun.elapsed() < 2 * MAX_AGE);
        }
        serving.await.unwrap();
        assert!(begun.elapsed() >= MAX_AGE);
    }
}
