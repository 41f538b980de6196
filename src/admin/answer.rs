//! The response to each path.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http_body_util::channel::Channel;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval};

use super::body::{self, Body};
use super::exposition::{Format, PIECE, Rendering};
use super::query::Query;
use super::shared::{Freshness, Revocable, Shared};
use super::slots::{ConnectionSlot, MAX_ANSWERS, MAX_ANSWERS_OF_PEER};
use super::status::Selection;
use super::status_pages::Snapshot;
use super::{AdminHandles, EVENT_INTERVAL, MAX_AGE, explain, metrics, negotiate, status};

/// Responses that take long to build, each shared by all clients that request it within a second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers {
    metrics: Arc<Shared<Rendering>>,
    status: Arc<Shared<Snapshot>>,
    event: Arc<Shared<Bytes>>,
    history: Arc<Shared<Vec<Bytes>>>,
    refusals: Arc<Shared<Bytes>>,
}

/// Up to this limit, the selected routes are built for each request; otherwise a shared response with all routes is used.
const FEW_ROUTES: usize = 100;

pub(super) const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const JSON_LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");
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
const TEXT_METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// The status and text of an error response.
pub(super) type Refusal = (StatusCode, String);

pub(super) async fn answer(
    request: Request<Incoming>,
    handles: Arc<AdminHandles>,
    slot: Arc<ConnectionSlot>,
) -> Response<Body> {
    match refusal(&request, &handles) {
        Some(refusal) => in_turn(Err(refusal), &slot),
        None => read(&request, &handles, &slot).await,
    }
}

/// Answers a request that is to be admitted.
pub(super) async fn read(
    request: &Request<Incoming>,
    handles: &Arc<AdminHandles>,
    slot: &ConnectionSlot,
) -> Response<Body> {
    match probe(request.uri().path(), handles) {
        Some(response) => response,
        None => in_turn(long(request, handles).await, slot),
    }
}

fn in_turn(answer: Result<Response<Body>, Refusal>, slot: &ConnectionSlot) -> Response<Body> {
    let response = answer.unwrap_or_else(|(status, says)| respond(status, TEXT, says));
    // Checked only now: requests that wait for the same response are not refused for that.
    if slot.has_room_for_answer() {
        return response;
    }
    let says = format!(
        "too many answers are being read: at most {MAX_ANSWERS} at a time, {MAX_ANSWERS_OF_PEER} from one address; try again in a second\n"
    );
    let mut response = respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, says);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn refusal<B>(request: &Request<B>, handles: &AdminHandles) -> Option<Refusal> {
    if let Err(refusal) = handles.hosts.load().admit(request) {
        return Some(refusal);
    }
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    (!is_read).then(|| (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are allowed\n".into()))
}

/// The response to a probe, which must never wait.
fn probe(path: &str, handles: &AdminHandles) -> Option<Response<Body>> {
    let (status, says) = if path == "/livez" {
        (StatusCode::OK, "ok\n")
    } else if handles.draining.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if handles.is_starting.load(Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    } else {
        (StatusCode::OK, "ok\n")
    };
    is_probe(path).then(|| respond(status, TEXT, says))
}

pub(super) fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz" | "/healthz")
}

async fn long(request: &Request<Incoming>, handles: &Arc<AdminHandles>) -> Result<Response<Body>, Refusal> {
    let freshness = freshness(request.headers());
    match request.uri().path() {
        "/metrics" => metrics(request.headers(), freshness, handles).await,
        "/" => Ok(respond(StatusCode::OK, HTML, include_str!("page/index.html"))),
        "/page.css" => Ok(respond(StatusCode::OK, CSS, include_str!("page/page.css"))),
        "/page.js" => Ok(respond(StatusCode::OK, JAVASCRIPT, include_str!("page/page.js"))),
        "/routes.js" => Ok(respond(StatusCode::OK, JAVASCRIPT, include_str!("page/routes.js"))),
        "/drawer.js" => Ok(respond(StatusCode::OK, JAVASCRIPT, include_str!("page/drawer.js"))),
        "/parts.js" => Ok(respond(StatusCode::OK, JAVASCRIPT, include_str!("page/parts.js"))),
        "/api/events" => events(handles),
        "/api/status" => status(Query::of(request), freshness, handles).await,
        "/api/history" => {
            let history = Arc::clone(&handles.history);
            let write = move || history.write_since(0).json.chunks(PIECE).map(Bytes::copy_from_slice).collect();
            let made = made(&handles.answers.history, freshness, write).await?;
            let length = made.get().ok_or_else(outdated)?.iter().map(Bytes::len).sum();
            let body = body::shared(made, length, |pieces: &Vec<Bytes>, index| pieces.get(index).cloned());
            Ok(respond_with(JSON, body))
        }
        "/api/explain" => {
            let explanation = explain::explain(Query::of(request), handles).map_err(|says| (StatusCode::BAD_REQUEST, says))?;
            Ok(respond(StatusCode::OK, JSON, format!("{explanation:#}\n")))
        }
        "/api/refusals" => {
            let counters = Arc::clone(handles);
            let write = move || format!("{:#}\n", status::refusals(&counters, usize::MAX)).into();
            let made = made(&handles.answers.refusals, freshness, write).await?.get().ok_or_else(outdated)?;
            Ok(respond(StatusCode::OK, JSON, Bytes::clone(&made)))
        }
        _ => Err((
            StatusCode::NOT_FOUND,
            "not found; available: /, /metrics, /api/status, /api/history, /api/refusals, /api/explain, /api/events, /livez, /readyz\n".into(),
        )),
    }
}

/// `no-cache` (RFC 9111, section 5.2.1.4) asks for a response that was built after the request.
fn freshness(headers: &HeaderMap) -> Freshness {
    let directives = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let is_no_cache = |directive: &str| directive.trim().eq_ignore_ascii_case("no-cache");
    let is_new = directives.flat_map(|value| value.split(',')).any(is_no_cache);
    if is_new { Freshness::New } else { Freshness::Shared }
}

async fn made<T: Send + Sync + 'static>(
    shared: &Arc<Shared<T>>,
    freshness: Freshness,
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<Arc<Revocable<T>>, Refusal> {
    shared.get(freshness, make).await.map_err(|_| failed())
}

/// Building it has panicked, which was logged.
fn failed() -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be built\n".into())
}

/// Newer responses have already replaced it.
fn outdated() -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, "too busy; try again in a second\n".into())
}

async fn metrics(
    headers: &HeaderMap,
    freshness: Freshness,
    handles: &Arc<AdminHandles>,
) -> Result<Response<Body>, Refusal> {
    let (format, is_gzipped) = (negotiate::format(headers), negotiate::accepts_gzip(headers));
    let look = Arc::clone(handles);
    let made = made(&handles.answers.metrics, freshness, move || metrics::render(&look)).await?;
    let rendering = made.get().ok_or_else(outdated)?;
    let content_type = match format {
        Format::OpenMetrics => OPEN_METRICS,
        Format::Text => TEXT_METRICS,
    };
    let body = if is_gzipped {
        let compress = move || rendering.gzipped(format).iter().map(Bytes::len).sum();
        let length = spawn_blocking(compress).await.map_err(|_| failed())?;
        body::shared(made, length, move |rendering, index| rendering.gzipped(format).get(index).cloned())
    } else {
        let length = rendering.pieces(format).map(Bytes::len).sum();
        body::shared(made, length, move |rendering: &Rendering, index| rendering.piece(format, index).cloned())
    };
    let mut response = respond_with(content_type, body);
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    if is_gzipped {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}

async fn status(query: Query, freshness: Freshness, handles: &Arc<AdminHandles>) -> Result<Response<Body>, Refusal> {
    let selection = Selection::parse(query).map_err(|expected| (StatusCode::BAD_REQUEST, expected))?;
    let look = Arc::clone(handles);
    let (made, page) = if selection.route.is_some() || selection.limit <= FEW_ROUTES {
        let selected = spawn_blocking(move || Snapshot::of_selected(&look, &selection)).await.map_err(|_| failed())?;
        let (snapshot, page) = selected.map_err(|says| (StatusCode::NOT_FOUND, says))?;
        (Arc::new(Revocable::new(snapshot)), page)
    } else {
        let made = made(&handles.answers.status, freshness, move || Snapshot::of(&look)).await?;
        let page = made.get().ok_or_else(outdated)?.page(&selection).map_err(|says| (StatusCode::NOT_FOUND, says))?;
        (made, page)
    };
    let body = body::shared(made, page.length(), move |snapshot, index| page.piece(snapshot, index));
    Ok(respond_with(JSON, body))
}

pub(super) fn respond(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = respond_with(content_type, body::full(body));
    *response.status_mut() = status;
    response
}

/// 200 with this body.
pub(super) fn respond_with(content_type: HeaderValue, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CONTENT_SECURITY_POLICY, CONTENT_POLICY);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A stream of server-sent events for the status page.
fn events(handles: &Arc<AdminHandles>) -> Result<Response<Body>, Refusal> {
    let Ok(permit) = Arc::clone(&handles.viewers).try_acquire_owned() else {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "too many viewers of the status page\n".into()));
    };
    let (mut sender, channel) = Channel::new(1);
    let handles = Arc::clone(handles);
    tokio::spawn(async move {
        let _permit = permit;
        let mut tick = interval(EVENT_INTERVAL);
        let mut seen = 0;
        let end = Instant::now() + MAX_AGE;
        // The page reconnects after that.
        while Instant::now() < end {
            tick.tick().await;
            let Some((event, taken)) = event(&handles, seen).await else { return };
            seen = taken;
            // The connection has ended.
            for part in event {
                if sender.send_data(part).await.is_err() {
                    return;
                }
            }
        }
    });
    Ok(respond_with(EVENTS, body::infallible(channel)))
}

/// The status, shared by all viewers, and the steps that this one has not received.
async fn event(handles: &Arc<AdminHandles>, seen: u64) -> Option<(Vec<Bytes>, u64)> {
    let look = Arc::clone(handles);
    let make = move || format!("retry: 1000\ndata: {}\n\n", status::event(&look)).into();
    let status = handles.answers.event.get(Freshness::Shared, make).await.ok()?;
    let (history, name) = (Arc::clone(&handles.history), if seen == 0 { "history" } else { "steps" });
    let steps = spawn_blocking(move || history.write_since(seen)).await.ok()?;
    let status = Bytes::clone(&*status.get()?);
    let begin = Bytes::from(format!("event: {name}\ndata: "));
    Some((vec![status, begin, steps.json, Bytes::from_static(b"\n")], steps.taken))
}
