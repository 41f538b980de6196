//! The admin listener: looks, and changes nothing.

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

/// Scrapers and probes are few; more of them wait.
const MAX_CONNECTIONS: usize = 16;
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
    pub(crate) routes: Vec<Arc<RouteTarget>>,
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
}

/// Serves until `stop`: as a rule for as long as the process runs, because probes want an answer while connections drain.
pub(crate) async fn run(socket: TcpListener, state: State, stop: Stop) {
    let state = Arc::new(state);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let historian = tokio::spawn(remember(Arc::clone(&state)));
    let failed = |error: &io::Error| warn!(reason = %error, "cannot accept on the admin listener; trying again");
    let stopped = stop.clone();
    let serve = move |client, _: SocketAddr, permit| {
        tokio::spawn(serve(client, permit, Arc::clone(&state), stopped.clone()));
    };
    let callbacks = Callbacks { failed, full: || debug!("all admin connections are in use") };
    accept::run(socket, permits, stop, callbacks, serve).await;
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

async fn serve(client: TcpStream, permit: OwnedSemaphorePermit, state: Arc<State>, stop: Stop) {
    if let Err(error) = SockRef::from(&client).set_send_buffer_size(SEND_BUFFER) {
        debug!(reason = %error, "admin connection");
    }
    converse(client, |request| answer(request, &state), stop).await;
    drop(permit);
}

/// Answers until the client has left, has stayed for long enough, or reads no more.
async fn converse<I: AsyncRead + AsyncWrite + Unpin>(
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

type Body = UnsyncBoxBody<Bytes, Infallible>;

fn answer(request: &Request<Incoming>, state: &Arc<State>) -> Response<Body> {
    if let Err((status, says)) = state.hosts.load().admit(request) {
        return respond(status, TEXT, says);
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
    }
    match request.uri().path() {
        "/metrics" => match metrics::encode(state) {
            Ok(text) => respond(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")),
        },
        "/" => respond(StatusCode::OK, HTML, include_str!("page/index.html")),
        "/page.css" => respond(StatusCode::OK, CSS, include_str!("page/page.css")),
        "/page.js" => respond(StatusCode::OK, JAVASCRIPT, include_str!("page/page.js")),
        "/api/events" => events(state),
        "/api/status" => respond(StatusCode::OK, JSON, format!("{:#}\n", status::of(state, usize::MAX))),
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

fn respond(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
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
            let state = Arc::clone(&state);
            // For many routes this takes a while.
            let event = move || {
                let (steps, taken) = state.history.since(seen);
                let name = if seen == 0 { "history" } else { "steps" };
                let status = status::event(&state);
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
        let respond = |_: &Request<Incoming>| respond(StatusCode::OK, TEXT, vec![b'x'; LENGTH]);
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
        let respond = |_: &Request<Incoming>| respond(StatusCode::OK, TEXT, "ok");
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
