//! The admin listener: looks, and changes nothing.

mod history;
mod metrics;
mod status;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
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
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use self::history::History;
use self::history::Totals;

use crate::accept::{self, Events, Stop};
use crate::account::Counters;
use crate::server::{Fixed, Generation};

/// Scrapers and probes are few; more of them wait.
const MAX_CONNECTIONS: usize = 16;
/// People who look at the page.
pub const MAX_VIEWERS: usize = 8;
/// How many routes the page shows.
const MAX_ROUTES_SHOWN: usize = 1000;
/// What they see is never older.
const EVENT_EVERY: Duration = Duration::from_secs(2);
/// For a request's head, and between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For a whole connection, so that a slow reader cannot hold one of the few.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// What the admin listener looks at.
#[derive(Clone, Debug)]
pub struct State {
    /// What is configured now.
    pub generation: Arc<ArcSwap<Generation>>,
    /// What is not counted per route.
    pub counters: Arc<Counters>,
    /// What it was like before.
    pub history: Arc<History>,
    /// Places for those who look at the page.
    pub viewers: Arc<Semaphore>,
    /// What no reload changes, by key.
    pub fixed: Fixed,
    /// Cancelled when no more connections are accepted.
    pub draining: CancellationToken,
}

/// Serves until `stop`: as a rule for as long as the process runs, because probes want an answer while connections drain.
pub async fn run(socket: TcpListener, state: State, stop: Stop) {
    let state = Arc::new(state);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let historian = tokio::spawn(remember(Arc::clone(&state)));
    let failed = |error: &std::io::Error| warn!(reason = %error, "cannot accept on the admin listener; trying again");
    let stopped = stop.clone();
    let serve = move |client, _: SocketAddr, permit| {
        tokio::spawn(serve(client, permit, Arc::clone(&state), stopped.clone()));
    };
    let events = Events { failed, full: || debug!("all admin connections are in use") };
    accept::run(socket, permits, stop, events, serve).await;
    historian.abort();
}

async fn remember(state: Arc<State>) {
    let mut turn = interval(history::STEP);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        let generation = state.generation.load_full();
        let routes = generation.routes.iter().take(MAX_ROUTES_SHOWN);
        state.history.take(routes.map(|route| (route.counters.name(), Totals::of(&route.counters))));
    }
}

async fn serve(client: TcpStream, permit: OwnedSemaphorePermit, state: Arc<State>, stop: Stop) {
    let has_answered = AtomicBool::new(false);
    let service = service_fn(|request| {
        let mut response = answer(&request, &state);
        has_answered.store(true, Relaxed);
        if stop.is_stopped() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(client), service);
    let mut connection = pin!(connection);
    let served = async {
        tokio::select! {
            result = connection.as_mut() => return result,
            // Who has asked gets its answer; what it asks next, it asks somebody else. Who has just come gets one.
            () = stop.stopped() => {
                if has_answered.load(Relaxed) {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
        connection.await
    };
    if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, served).await {
        debug!(reason = %error, "admin connection");
    }
    drop(permit);
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

/// What the page shows, again and again, for as long as the connection lasts.
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
        loop {
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
            // It has gone, or its connection has lasted long enough.
            if sender.send_data(event.into()).await.is_err() {
                return;
            }
        }
    });
    let mut response = respond(StatusCode::OK, EVENTS, "");
    *response.body_mut() = body.boxed_unsync();
    response
}
