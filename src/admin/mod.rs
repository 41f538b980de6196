//! The admin listener: metrics, probes, status API and status page. Read-only.

mod history;
mod hosts;
mod metrics;
mod status;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use http_body_util::channel::Channel;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub(crate) use self::history::History;
use self::history::Totals;
pub(crate) use self::hosts::Hosts;

use crate::connection::RouteTarget;
use crate::listener::accept::{self, Callbacks, Stop};
use crate::telemetry::Counters;

/// Concurrent connections; more of them wait.
const MAX_CONNECTIONS: usize = 16;
/// Concurrent viewers of the status page.
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

/// Routes and listeners of the running configuration, in its order.
#[derive(Debug, Default)]
pub(crate) struct View {
    pub(crate) routes: Vec<Arc<RouteTarget>>,
    pub(crate) listeners: Vec<ListenerAddress>,
}

/// The addresses of a listener.
#[derive(Clone, Debug)]
pub(crate) struct ListenerAddress {
    pub(crate) name: Box<str>,
    pub(crate) configured: SocketAddr,
    /// The bound address, whose port the kernel chose if port 0 is configured.
    pub(crate) address: SocketAddr,
}

/// The keys that a reload cannot change, with their values.
pub(crate) type Fixed = [(&'static str, String); 3];

/// What the admin listener has access to.
#[derive(Clone, Debug)]
pub(crate) struct AdminHandles {
    pub(crate) view: Arc<ArcSwap<View>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) history: Arc<History>,
    /// Permits for viewers of the status page.
    pub(crate) viewers: Arc<Semaphore>,
    pub(crate) hosts: Arc<ArcSwap<Hosts>>,
    /// The configured address of the admin listener.
    pub(crate) configured: SocketAddr,
    pub(crate) fixed: Fixed,
    /// Cancelled when the process is no longer ready.
    pub(crate) draining: CancellationToken,
}

/// Serves until `stop`, which is usually the end of the process, because probes continue while connections drain.
pub(crate) async fn run(socket: TcpListener, handles: AdminHandles, stop: Stop) {
    let handles = Arc::new(handles);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let recorder = tokio::spawn(record_history(Arc::clone(&handles)));
    let failed = |error: &io::Error| warn!(reason = %error, "accept failed on the admin listener; retrying");
    let stopped = stop.clone();
    let serve = move |client, _: SocketAddr, permit| {
        tokio::spawn(serve(client, permit, Arc::clone(&handles), stopped.clone()));
    };
    let callbacks = Callbacks { failed, full: || debug!("all admin connections in use") };
    accept::run(socket, permits, stop, callbacks, serve).await;
    recorder.abort();
}

async fn record_history(handles: Arc<AdminHandles>) {
    let mut tick = interval(history::STEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let view = handles.view.load_full();
        let routes = view.routes.iter().take(MAX_ROUTES_SHOWN);
        handles.history.record(routes.map(|route| (route.counters.name(), Totals::of(&route.counters))));
    }
}

async fn serve(client: TcpStream, permit: OwnedSemaphorePermit, handles: Arc<AdminHandles>, stop: Stop) {
    if let Err(error) = SockRef::from(&client).set_send_buffer_size(SEND_BUFFER) {
        debug!(reason = %error, "admin connection");
    }
    serve_http(client, |request| answer(request, &handles), stop).await;
    drop(permit);
}

/// Serves requests until the client closes, the connection has reached [`MAX_AGE`], or the client stops reading.
async fn serve_http<I: AsyncRead + AsyncWrite + Unpin>(
    client: I,
    answer: impl Fn(&Request<Incoming>) -> Response<Body>,
    stop: Stop,
) {
    let has_answered = AtomicBool::new(false);
    let service = service_fn(|request| {
        let mut response = answer(&request);
        has_answered.store(true, Relaxed);
        if stop.is_stopped() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        async { Ok::<_, Infallible>(response) }
    });
    let written = AtomicU64::new(0);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(CountingIo { client, written: &written }), service);
    let mut connection = pin!(connection);
    let now = Instant::now();
    let (mut end, mut look) = (pin!(sleep_until(now + MAX_AGE)), interval_at(now + STALL_TIMEOUT, STALL_TIMEOUT));
    let (mut is_old, mut is_stopped, mut last) = (false, false, 0);
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    debug!(reason = %error, "admin connection");
                }
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
        Pin::new(&mut self.client).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.client).poll_shutdown(context)
    }
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const CSS: HeaderValue = HeaderValue::from_static("text/css; charset=utf-8");
const JAVASCRIPT: HeaderValue = HeaderValue::from_static("text/javascript; charset=utf-8");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
/// The page loads nothing from elsewhere, and text from clients is never executed.
const CONTENT_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn answer(request: &Request<Incoming>, handles: &Arc<AdminHandles>) -> Response<Body> {
    if let Err((status, message)) = handles.hosts.load().admit(request) {
        return respond(status, TEXT, message);
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are allowed\n");
    }
    match request.uri().path() {
        "/metrics" => match metrics::encode(handles) {
            Ok(text) => respond(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        },
        "/" => respond(StatusCode::OK, HTML, include_str!("page/index.html")),
        "/page.css" => respond(StatusCode::OK, CSS, include_str!("page/page.css")),
        "/page.js" => respond(StatusCode::OK, JAVASCRIPT, include_str!("page/page.js")),
        "/api/events" => events(handles),
        "/api/status" => respond(StatusCode::OK, JSON, format!("{:#}\n", status::of(handles, usize::MAX))),
        "/api/history" => respond(StatusCode::OK, JSON, format!("{}\n", handles.history.since(0).0)),
        "/api/refusals" => respond(StatusCode::OK, JSON, format!("{:#}\n", status::refusals(handles, usize::MAX))),
        "/readyz" | "/healthz" if handles.draining.is_cancelled() => {
            respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n")
        }
        "/livez" | "/readyz" | "/healthz" => respond(StatusCode::OK, TEXT, "ok\n"),
        _ => respond(
            StatusCode::NOT_FOUND,
            TEXT,
            "not found; available: /, /metrics, /api/status, /api/history, /api/refusals, /api/events, /livez, /readyz\n",
        ),
    }
}

fn respond(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CONTENT_SECURITY_POLICY, CONTENT_POLICY);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A stream of server-sent events for the status page.
fn events(handles: &Arc<AdminHandles>) -> Response<Body> {
    let Ok(permit) = Arc::clone(&handles.viewers).try_acquire_owned() else {
        return respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "too many viewers of the status page\n");
    };
    let (mut sender, body) = Channel::new(1);
    let handles = Arc::clone(handles);
    tokio::spawn(async move {
        let _permit = permit;
        let mut tick = interval(EVENT_INTERVAL);
        let mut seen = 0;
        let end = Instant::now() + MAX_AGE;
        // The page reconnects after that.
        while Instant::now() < end {
            tick.tick().await;
            let handles = Arc::clone(&handles);
            // For many routes this takes a while.
            let event = move || {
                let (steps, total) = handles.history.since(seen);
                let name = if seen == 0 { "history" } else { "steps" };
                let status = status::event(&handles);
                (format!("retry: 1000\ndata: {status}\n\nevent: {name}\ndata: {steps}\n\n"), total)
            };
            let Ok((event, total)) = spawn_blocking(event).await else { return };
            seen = total;
            // The connection has ended.
            if sender.send_data(event.into()).await.is_err() {
                return;
            }
        }
    });
    let mut response = respond(StatusCode::OK, EVENTS, "");
    *response.body_mut() = body.boxed_unsync();
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LENGTH: usize = 4 * 1024 * 1024;

    /// Requests a large response and reads it at this pace. Returns how much of the body was received.
    async fn read_by(chunk: usize, every: Duration, most: usize) -> usize {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let respond = |_: &Request<Incoming>| respond(StatusCode::OK, TEXT, vec![b'x'; LENGTH]);
        let serving = tokio::spawn(serve_http(server, respond, Stop::default()));
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
        tokio::time::timeout(10 * STALL_TIMEOUT, serving).await.expect("the connection ends").unwrap();
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
        let respond = |_: &Request<Incoming>| respond(StatusCode::OK, TEXT, "ok");
        let serving = tokio::spawn(serve_http(server, respond, Stop::default()));
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
