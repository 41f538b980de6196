//! The admin listener: looks, and changes nothing.

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
use self::metrics::RuntimeNumbers;
use self::negotiate::Format;
use self::places::{MAX_CONNECTIONS, Place, Places};
pub(crate) use self::runtime::Runtime;
use self::shared::Shared;
use self::status::Selection;

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
    /// Where it is, as configured.
    pub(crate) configured: SocketAddr,
    /// What no reload changes, by key.
    pub(crate) fixed: Fixed,
    /// Cancelled when no more connections are accepted.
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
pub(crate) async fn run(socket: TcpListener, state: State, stop: Stop) {
    let state = Arc::new(state);
    let places = Arc::new(Places::default());
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let historian = tokio::spawn(remember(Arc::clone(&state)));
    let failed = |error: &io::Error| warn!(reason = %error, "cannot accept on the admin listener; trying again");
    let stopped = stop.clone();
    let full = Arc::clone(&places);
    let serve = move |client, peer: SocketAddr, permit| {
        let place = places.enter(peer.ip().to_canonical());
        tokio::spawn(serve(client, permit, place, Arc::clone(&state), stopped.clone()));
    };
    let events = Events { failed, full: || full.make_room() };
    accept::run(socket, permits, stop, events, serve).await;
    historian.abort();
}

async fn remember(state: Arc<State>) {
    let mut turn = interval(history::STEP);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        let view = state.view.load_full();
        let routes = view.routes.iter().take(MAX_ROUTES_SHOWN);
        state.history.take(routes.map(|route| (route.counters.name(), Totals::of(&route.counters))));
    }
}

async fn serve(client: TcpStream, permit: OwnedSemaphorePermit, place: Place, state: Arc<State>, stop: Stop) {
    if let Err(error) = SockRef::from(&client).set_send_buffer_size(SEND_BUFFER) {
        debug!(reason = %error, "admin connection");
    }
    let answer = |request: Request<Incoming>| {
        let under_way = place.begin(is_probe(request.uri().path()));
        let state = Arc::clone(&state);
        async move {
            let Some(under_way) = under_way.await else {
                return respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "too many requests at a time\n");
            };
            let response = answer(&request, &state).await;
            response.map(|body| UnderWay { body, _request: under_way }.boxed_unsync())
        }
    };
    tokio::select! {
        () = converse(client, answer, stop) => {}
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
async fn converse<I: AsyncRead + AsyncWrite + Unpin, F: Future<Output = Response<Body>>>(
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
        .serve_connection(TokioIo::new(Counted { client, written: &written }), service);
    let mut connection = pin!(connection);
    let now = Instant::now();
    let (mut end, mut look) = (pin!(sleep_until(now + MAX_AGE)), interval_at(now + STALLED, STALLED));
    let (mut is_old, mut is_stopped, mut last) = (false, false, 0);
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(error) = result {
                    debug!(reason = %error, "admin connection");
                }
                return;
            }
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
/// The page needs nothing from elsewhere, and nothing that a client has sent is ever run.
const OUR_OWN: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
const CLASSIC_METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn answer(request: &Request<Incoming>, state: &Arc<State>) -> Response<Body> {
    if let Err((status, says)) = state.hosts.load().admit(request) {
        return respond(status, TEXT, says);
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
    }
    match request.uri().path() {
        "/metrics" => metrics(request, state).await,
        "/" => respond(StatusCode::OK, HTML, include_str!("page/index.html")),
        "/page.css" => respond(StatusCode::OK, CSS, include_str!("page/page.css")),
        "/page.js" => respond(StatusCode::OK, JAVASCRIPT, include_str!("page/page.js")),
        "/api/events" => events(state),
        "/api/status" => match request.uri().query() {
            None => status(state).await,
            Some(query) => match Selection::parse(query) {
                Ok(selection) => {
                    let state = Arc::clone(state);
                    built(
                        JSON,
                        spawn_blocking(move || format!("{:#}\n", status::of(&state, &selection)).into()).await.ok(),
                    )
                }
                Err(expected) => respond(StatusCode::BAD_REQUEST, TEXT, expected),
            },
        },
        "/api/history" => respond(StatusCode::OK, JSON, format!("{}\n", state.history.since(0).0)),
        "/api/refusals" => respond(StatusCode::OK, JSON, format!("{:#}\n", status::refusals(state, usize::MAX))),
        "/readyz" | "/healthz" if state.draining.is_cancelled() => {
            respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n")
        }
        "/livez" | "/readyz" | "/healthz" => respond(StatusCode::OK, TEXT, "ok\n"),
        _ => respond(
            StatusCode::NOT_FOUND,
            TEXT,
            "try /, /metrics, /api/status, /api/history, /api/refusals, /api/events, /livez or /readyz\n",
        ),
    }
}

/// In the format and the coding that the client asks for.
async fn metrics(request: &Request<Incoming>, state: &Arc<State>) -> Response<Body> {
    let (format, is_compressed) = (negotiate::format(request.headers()), negotiate::takes_gzip(request.headers()));
    let now = RuntimeNumbers::of(&state.data_path);
    let of = Arc::clone(state);
    let Some(text) = state.answers.metrics.get(move || metrics::encode(&of, now)).await else {
        return built(TEXT, None);
    };
    let build = move || {
        let text = match format {
            Format::Classic => classic::from_open_metrics(&text),
            Format::OpenMetrics => (*text).clone(),
        };
        if is_compressed { gzip(text.as_bytes()) } else { text.into() }
    };
    let shared = &state.answers.texts[usize::from(format == Format::OpenMetrics) * 2 + usize::from(is_compressed)];
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
async fn status(state: &Arc<State>) -> Response<Body> {
    let of = Arc::clone(state);
    let build = move || Bytes::from(format!("{:#}\n", status::of(&of, &Selection::default())));
    built(JSON, state.answers.status.get(build).await.map(|text| (*text).clone()))
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
    headers.insert(CONTENT_SECURITY_POLICY, OUR_OWN);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What the page shows, again and again.
fn events(state: &Arc<State>) -> Response<Body> {
    let Ok(place) = Arc::clone(&state.viewers).try_acquire_owned() else {
        return respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "too many look at the page already\n");
    };
    let (mut sender, body) = Channel::new(1);
    let state = Arc::clone(state);
    tokio::spawn(async move {
        let _place = place;
        let mut turn = interval(EVENT_EVERY);
        let mut seen = 0;
        let end = Instant::now() + MAX_AGE;
        // It comes back, if there is a place.
        while Instant::now() < end {
            turn.tick().await;
            let of = Arc::clone(&state);
            let Some(status) = state.answers.event.get(move || status::event(&of).to_string()).await else { return };
            let of = Arc::clone(&state);
            let event = move || {
                let (steps, taken) = of.history.since(seen);
                let name = if seen == 0 { "history" } else { "steps" };
                (format!("retry: 1000\ndata: {status}\n\nevent: {name}\ndata: {steps}\n\n"), taken)
            };
            let Ok((event, taken)) = spawn_blocking(event).await else { return };
            seen = taken;
            // It has gone, or its connection has ended.
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

    /// Asks for a long answer and reads it at this pace; how much of its body has come.
    async fn read_by(chunk: usize, every: Duration, most: usize) -> usize {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let respond = async |_: Request<Incoming>| respond(StatusCode::OK, TEXT, vec![b'x'; LENGTH]);
        let serving = tokio::spawn(converse(server, respond, Stop::default()));
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
        let respond = async |_: Request<Incoming>| respond(StatusCode::OK, TEXT, "ok");
        let serving = tokio::spawn(converse(server, respond, Stop::default()));
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
