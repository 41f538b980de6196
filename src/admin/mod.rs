//! The admin listener: metrics, probes, status API and status page. Read-only.

mod classic;
mod history;
mod hosts;
mod metrics;
mod negotiate;
mod places;
mod runtime;
mod shared;
mod status;

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub(crate) use self::history::History;
use self::history::Totals;
pub(crate) use self::hosts::Hosts;
use self::metrics::RuntimeMetrics;
use self::negotiate::Format;
use self::places::{MAX_CONNECTIONS, Place, Places};
pub(crate) use self::runtime::Runtime;
use self::shared::Shared;
use self::status::Selection;

use crate::connection::RouteTarget;
use crate::listener::accept::{self, Callbacks, Stop};
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
    /// The runtime of the data path, whose numbers are shown.
    pub(crate) data_path: Handle,
    /// Answers that take long to build.
    pub(crate) answers: Arc<Answers>,
}

/// Answers that take long to build, each shared by those who ask for it.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    metrics: Shared<String>,
    /// By format, plain and compressed.
    texts: [Shared<Bytes>; 4],
    status: Shared<Bytes>,
    event: Shared<String>,
}

/// Serves until `stop`: as a rule for as long as the process runs, because probes want an answer while connections drain.
pub(crate) async fn run(socket: TcpListener, handles: AdminHandles, stop: Stop) {
    let handles = Arc::new(handles);
    let places = Arc::new(Places::default());
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let recorder = tokio::spawn(record_history(Arc::clone(&handles)));
    let failed = |error: &io::Error| warn!(reason = %error, "accept failed on the admin listener; retrying");
    let stopped = stop.clone();
    let full = Arc::clone(&places);
    let serve = move |client, peer: SocketAddr, permit| {
        let place = places.enter(peer.ip().to_canonical());
        tokio::spawn(serve(client, permit, place, Arc::clone(&handles), stopped.clone()));
    };
    let events = Callbacks { failed, full: || full.make_room() };
    accept::run(socket, permits, stop, events, serve).await;
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

async fn serve(client: TcpStream, permit: OwnedSemaphorePermit, place: Place, handles: Arc<AdminHandles>, stop: Stop) {
    if let Err(error) = SockRef::from(&client).set_send_buffer_size(SEND_BUFFER) {
        debug!(reason = %error, "admin connection");
    }
    let answer = |request: Request<Incoming>| {
        let under_way = place.begin(is_probe(request.uri().path()));
        let handles = Arc::clone(&handles);
        async move {
            let Some(under_way) = under_way.await else {
                return respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "too many requests at a time\n");
            };
            let response = answer(&request, &handles).await;
            response.map(|body| UnderWay { body, _request: under_way }.boxed_unsync())
        }
    };
    tokio::select! {
        () = serve_http(client, answer, stop) => {}
        () = place.close.cancelled() => debug!("admin connection: idle for longest, makes room"),
    }
    drop(permit);
}

fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/healthz")
}

/// An answer whose request is under way until it has been sent.
struct UnderWay {
    body: Body,
    _request: places::Request,
}

impl hyper::body::Body for UnderWay {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes that are handed on piece by piece, so that the answer is under way until nearly all has been taken.
struct Pieces(Bytes);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        const PIECE: usize = 64 * 1024;
        let length = self.0.len().min(PIECE);
        let piece = self.0.split_to(length);
        Poll::Ready((length > 0).then(|| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.len() as u64)
    }
}

/// Answers until the client has left, has stayed for long enough, or reads no more.
async fn serve_http<I: AsyncRead + AsyncWrite + Unpin, F: Future<Output = Response<Body>>>(
    client: I,
    answer: impl Fn(Request<Incoming>) -> F,
    stop: Stop,
) {
    let has_answered = AtomicBool::new(false);
    let service = service_fn(|request| {
        let answer = answer(request);
        let (has_answered, stop) = (&has_answered, &stop);
        async move {
            let mut response = answer.await;
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
const CLASSIC_METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn answer(request: &Request<Incoming>, handles: &Arc<AdminHandles>) -> Response<Body> {
    if let Err((status, says)) = handles.hosts.load().admit(request) {
        return respond(status, TEXT, says);
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD are allowed\n");
    }
    match request.uri().path() {
        "/metrics" => metrics(request, handles).await,
        "/" => respond(StatusCode::OK, HTML, include_str!("page/index.html")),
        "/page.css" => respond(StatusCode::OK, CSS, include_str!("page/page.css")),
        "/page.js" => respond(StatusCode::OK, JAVASCRIPT, include_str!("page/page.js")),
        "/api/events" => events(handles),
        "/api/status" => match request.uri().query() {
            None => status(handles).await,
            Some(query) => match Selection::parse(query) {
                Ok(selection) => {
                    let handles = Arc::clone(handles);
                    built(
                        JSON,
                        spawn_blocking(move || format!("{:#}\n", status::of(&handles, &selection)).into()).await.ok(),
                    )
                }
                Err(expected) => respond(StatusCode::BAD_REQUEST, TEXT, expected),
            },
        },
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

/// In the format and the coding that the client asks for.
async fn metrics(request: &Request<Incoming>, handles: &Arc<AdminHandles>) -> Response<Body> {
    let (format, is_compressed) = (negotiate::format(request.headers()), negotiate::takes_gzip(request.headers()));
    let now = RuntimeMetrics::of(&handles.data_path);
    let of = Arc::clone(handles);
    let Some(text) = handles.answers.metrics.get(move || metrics::encode(&of, now)).await else {
        return built(TEXT, None);
    };
    let build = move || {
        let text = match format {
            Format::Classic => classic::from_open_metrics(&text),
            Format::OpenMetrics => (*text).clone(),
        };
        if is_compressed { gzip(text.as_bytes()) } else { text.into() }
    };
    let shared = &handles.answers.texts[usize::from(format == Format::OpenMetrics) * 2 + usize::from(is_compressed)];
    let content_type = if format == Format::Classic { CLASSIC_METRICS } else { OPEN_METRICS };
    let mut response = built(content_type, shared.get(build).await.map(|text| (*text).clone()));
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    if is_compressed {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    response
}

/// Quickly: the text is very much alike throughout.
fn gzip(text: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory does not fail.
    let _ = encoder.write_all(text);
    encoder.finish().unwrap_or_default().into()
}

/// Of all routes.
async fn status(handles: &Arc<AdminHandles>) -> Response<Body> {
    let of = Arc::clone(handles);
    let build = move || Bytes::from(format!("{:#}\n", status::of(&of, &Selection::default())));
    built(JSON, handles.answers.status.get(build).await.map(|text| (*text).clone()))
}

/// `None`: it could not be built, which is a fault in the program.
fn built(content_type: HeaderValue, body: Option<Bytes>) -> Response<Body> {
    match body {
        Some(body) => respond(StatusCode::OK, content_type, body),
        None => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "the answer could not be built\n"),
    }
}

fn respond(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Pieces(body.into()).boxed_unsync());
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
            let of = Arc::clone(&handles);
            let Some(status) = handles.answers.event.get(move || status::event(&of).to_string()).await else { return };
            let of = Arc::clone(&handles);
            let event = move || {
                let (steps, taken) = of.history.since(seen);
                let name = if seen == 0 { "history" } else { "steps" };
                (format!("retry: 1000\ndata: {status}\n\nevent: {name}\ndata: {steps}\n\n"), taken)
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
        let respond = async |_: Request<Incoming>| respond(StatusCode::OK, TEXT, vec![b'x'; LENGTH]);
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
        let respond = async |_: Request<Incoming>| respond(StatusCode::OK, TEXT, "ok");
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
