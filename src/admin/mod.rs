//! The admin listener: metrics, probes, status API and status page, all read-only. And the control socket, which has the
//! same and can change things.

mod answer;
mod body;
pub(crate) mod control;
pub(crate) mod draining;
mod explain;
mod exposition;
mod history;
mod hosts;
mod metrics;
mod negotiate;
mod query;
mod runtime;
mod shared;
mod slots;
mod status;
mod status_pages;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
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
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

pub(crate) use self::answer::Answers;
use self::body::{Body, counted};
pub(crate) use self::history::History;
use self::history::Totals;
pub(crate) use self::hosts::Hosts;
pub(crate) use self::metrics::PerRoute;
pub(crate) use self::runtime::Runtime;
pub(crate) use self::slots::MAX_CONNECTIONS;
use self::slots::{Answer, ConnectionSlot, ConnectionSlots};

use crate::connection::RouteTarget;
use crate::listener::accept::{self, Callbacks, Stop};
use crate::route::RouteTable;
use crate::telemetry::Counters;

/// People who look at the page.
pub(crate) const MAX_VIEWERS: usize = 8;
/// Routes on the status page.
const MAX_ROUTES_SHOWN: usize = 1000;
/// Update interval of the status page.
const EVENT_INTERVAL: Duration = Duration::from_secs(2);
/// For reading a request's headers, including the idle time before it.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection ends after the first response past this age, because connections are limited; the page reconnects.
const MAX_AGE: Duration = Duration::from_secs(60);
/// How long a client may read nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// With a larger send buffer, a slow reader would seem to read nothing for a long time.
const SEND_BUFFER: usize = 128 * 1024;
/// In user space, for each direction of a connection.
const MAX_BUFFERED: usize = 64 * 1024;

/// Routes and listeners of the running configuration, in its order.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) routes: Vec<Arc<RouteTarget>>,
    /// Not held: while a table is, connections are being set up with it.
    pub(crate) table: Weak<RouteTable<Arc<RouteTarget>>>,
    pub(crate) listeners: Vec<ListenerAddress>,
}

/// The addresses of a listener.
#[derive(Clone, Debug)]
pub(crate) struct ListenerAddress {
    pub(crate) name: Box<str>,
    pub(crate) configured: SocketAddr,
    /// The bound address, whose port the kernel chose if port 0 is configured; or why it cannot be opened.
    pub(crate) address: Result<SocketAddr, Box<str>>,
}

/// The keys that a reload cannot change, with their values; `None`: an option of the command line has set it.
pub(crate) type Fixed = [(&'static str, Option<String>); 5];

/// What the admin listener has access to.
#[derive(Clone, Debug)]
pub(crate) struct AdminHandles {
    pub(crate) view: Arc<ArcSwap<View>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) history: Arc<History>,
    /// Permits for viewers of the status page.
    pub(crate) viewers: Arc<Semaphore>,
    pub(crate) hosts: Arc<ArcSwap<Hosts>>,
    pub(crate) per_route: Arc<ArcSwap<PerRoute>>,
    /// The configured address of the admin listener, if there is one.
    pub(crate) configured: Arc<ArcSwapOption<SocketAddr>>,
    pub(crate) fixed: Fixed,
    /// Cancelled when the process is no longer ready.
    pub(crate) draining: CancellationToken,
    /// Whether it is not known yet what to serve.
    pub(crate) is_starting: Arc<AtomicBool>,
    /// The runtime of the data path, whose numbers are shown.
    pub(crate) data_path: Handle,
    /// Answers that take long to build.
    pub(crate) answers: Answers,
}

/// For answers that are under way when a listener closes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Waits until these connections have ended, but not for long: the process may have nothing else to do.
async fn answer_the_last(connections: TaskTracker) {
    connections.close();
    let _ = timeout(ANSWER_TIMEOUT, connections.wait()).await;
}

/// Serves until `stop`: as a rule for as long as the process runs, because probes want an answer while connections drain.
pub(crate) async fn run(socket: TcpListener, handles: AdminHandles, stop: Stop) {
    let handles = Arc::new(handles);
    let slots = Arc::new(ConnectionSlots::new());
    let recorder = tokio::spawn(record_history(Arc::clone(&handles)));
    let counters = Arc::clone(&handles.counters);
    let failed = move |error: &io::Error| {
        let label = accept::error_label(error);
        if counters.accept_error(label) {
            warn!(error = label, reason = %error, "accept failed on the admin listener; retrying");
        }
    };
    let (stopped, free) = (stop.clone(), Arc::clone(&slots));
    let connections = TaskTracker::new();
    let accepted = connections.clone();
    let serve = move |client, peer: SocketAddr, permit| {
        let slot = Arc::new(free.take(peer.ip(), permit));
        accepted.spawn(serve(client, slot, Arc::clone(&handles), stopped.clone()));
    };
    let callbacks = Callbacks { failed, full: || slots.make_room() };
    accept::run(socket, Arc::clone(&slots.permits), stop, callbacks, std::future::pending, serve).await;
    recorder.abort();
    answer_the_last(connections).await;
}

/// Only one of those that serve the same history records it.
async fn record_history(handles: Arc<AdminHandles>) {
    let _only = handles.history.recorder.lock().await;
    let mut tick = interval(history::STEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let handles = Arc::clone(&handles);
        let record = move || {
            let view = handles.view.load_full();
            let routes = view.routes.iter().take(MAX_ROUTES_SHOWN);
            handles.history.record(routes.map(|route| (route.counters.name(), Totals::of(&route.counters))));
        };
        // A panic has been logged.
        let _ = spawn_blocking(record).await;
    }
}

async fn serve(client: TcpStream, slot: Arc<ConnectionSlot>, handles: Arc<AdminHandles>, stop: Stop) {
    if let Err(error) = SockRef::from(&client).set_send_buffer_size(SEND_BUFFER) {
        debug!(reason = %error, "admin connection");
    }
    serve_http(client, |request| answer::answer(request, Arc::clone(&handles), Arc::clone(&slot)), &slot, stop).await;
}

/// Answers until the client has left, has stayed for long enough, reads no more, or makes room for another.
async fn serve_http<I: AsyncRead + AsyncWrite + Unpin, F: Future<Output = Response<Body>>>(
    client: I,
    answer: impl Fn(Request<Incoming>) -> F,
    slot: &Arc<ConnectionSlot>,
    stop: Stop,
) {
    let has_answered = AtomicBool::new(false);
    let service = service_fn(|request| {
        slot.begin();
        let answered = answer(request);
        async {
            let mut response = answered.await.map(|body| counted(body, Answer(Arc::clone(slot))));
            has_answered.store(true, Relaxed);
            if stop.is_stopped() || slot.is_last_answer() {
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
        .serve_connection(TokioIo::new(CountingIo { client, written: &written, slot }), service);
    let mut connection = pin!(connection);
    let now = Instant::now();
    let (mut end, mut look) = (pin!(sleep_until(now + MAX_AGE)), interval_at(now + STALL_TIMEOUT, STALL_TIMEOUT));
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
            () = slot.to_leave() => {
                debug!("admin connection: idle for longest, makes room");
                return;
            }
            // The current request is still answered, and so is the first one of a new connection.
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
                let total = written.load(Relaxed);
                if total == last {
                    debug!(reason = "client stopped reading", "admin connection");
                    return;
                }
                last = total;
            }
        }
    }
}

/// Counts the bytes written to the client.
struct CountingIo<'c, I> {
    client: I,
    written: &'c AtomicU64,
    slot: &'c ConnectionSlot,
}

impl<I: AsyncRead + Unpin> AsyncRead for CountingIo<'_, I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for CountingIo<'_, I> {
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
            self.slot.flushed();
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

    fn slot() -> Arc<ConnectionSlot> {
        let slots = Arc::new(ConnectionSlots::new());
        let permit = Arc::clone(&slots.permits).try_acquire_owned().unwrap();
        Arc::new(slots.take("192.0.2.1".parse().unwrap(), permit))
    }

    /// Requests a large response and reads it at this pace. Returns how much of the body was received.
    async fn read_by(chunk: usize, every: Duration, most: usize) -> usize {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let respond = async |_: Request<Incoming>| respond(StatusCode::OK, TEXT, vec![b'x'; LENGTH]);
        let serving = tokio::spawn(async move { serve_http(server, respond, &slot(), Stop::default()).await });
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
        timeout(10 * STALL_TIMEOUT, serving).await.expect("the connection ends").unwrap();
        let head = received.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        received.len() - head
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_gets_the_whole_response() {
        let started = Instant::now();
        assert_eq!(read_by(32 * 1024, Duration::from_secs(5), usize::MAX).await, LENGTH);
        assert!(started.elapsed() > 5 * MAX_AGE, "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_disconnected() {
        let started = Instant::now();
        let body = read_by(32 * 1024, Duration::from_secs(5), 64 * 1024).await;
        assert!(body < LENGTH && started.elapsed() < MAX_AGE + 2 * STALL_TIMEOUT, "{body} {:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_persistent_connection_ends_at_its_maximum_age() {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let respond = async |_: Request<Incoming>| respond(StatusCode::OK, TEXT, "ok");
        let serving = tokio::spawn(async move { serve_http(server, respond, &slot(), Stop::default()).await });
        let started = Instant::now();
        while client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.is_ok() {
            if client.read(&mut [0; 4096]).await.unwrap() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert!(started.elapsed() < 2 * MAX_AGE);
        }
        serving.await.unwrap();
        assert!(started.elapsed() >= MAX_AGE);
    }
}
