//! What each address answers.

use std::sync::Arc;

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
use super::places::{MAX_ANSWERS, MAX_ANSWERS_OF_PEER, Place};
use super::shared::{Freshness, Revocable, Shared};
use super::status_pages::{Snapshot, Wanted};
use super::{EVENT_EVERY, MAX_AGE, State, metrics, negotiate, status};

/// Long answers, each made once for all who ask for it within a second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers {
    metrics: Arc<Shared<Rendering>>,
    status: Arc<Shared<Snapshot>>,
    event: Arc<Shared<Bytes>>,
    history: Arc<Shared<Vec<Bytes>>>,
    refusals: Arc<Shared<Bytes>>,
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
const TEXT_METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// What to answer instead.
pub(super) type Refusal = (StatusCode, String);

pub(super) async fn answer(request: Request<Incoming>, state: Arc<State>, place: Arc<Place>) -> Response<Body> {
    let answer = match refusal(&request, &state) {
        Some(refusal) => Err(refusal),
        None => match probe(request.uri().path(), &state) {
            Some(response) => return response,
            None => long(&request, &state).await,
        },
    };
    let response = answer.unwrap_or_else(|(status, says)| respond(status, TEXT, says));
    // Not earlier: to wait for an answer that others wait for, too, is no reason to be refused.
    if place.has_room_for_answer() {
        return response;
    }
    let says = format!(
        "too many answers are being read: at most {MAX_ANSWERS} at a time, {MAX_ANSWERS_OF_PEER} from one address; try again in a second\n"
    );
    let mut response = respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, says);
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

fn refusal<B>(request: &Request<B>, state: &State) -> Option<Refusal> {
    if let Err(refusal) = state.hosts.load().admit(request) {
        return Some(refusal);
    }
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    (!is_read).then(|| (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into()))
}

/// To what must never wait.
fn probe(path: &str, state: &State) -> Option<Response<Body>> {
    match path {
        "/readyz" | "/healthz" if state.draining.is_cancelled() => {
            Some(respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n"))
        }
        "/livez" | "/readyz" | "/healthz" => Some(respond(StatusCode::OK, TEXT, "ok\n")),
        _ => None,
    }
}

async fn long(request: &Request<Incoming>, state: &Arc<State>) -> Result<Response<Body>, Refusal> {
    let freshness = freshness(request.headers());
    match request.uri().path() {
        "/metrics" => metrics(request.headers(), freshness, state).await,
        "/" => Ok(respond(StatusCode::OK, HTML, include_str!("page/index.html"))),
        "/page.css" => Ok(respond(StatusCode::OK, CSS, include_str!("page/page.css"))),
        "/page.js" => Ok(respond(StatusCode::OK, JAVASCRIPT, include_str!("page/page.js"))),
        "/api/events" => events(state),
        "/api/status" => status(request.uri().query(), freshness, state).await,
        "/api/history" => {
            let history = Arc::clone(&state.history);
            let write = move || history.write_since(0).json.chunks(PIECE).map(Bytes::copy_from_slice).collect();
            let made = made(&state.answers.history, freshness, write).await?;
            let length = made.get().ok_or_else(outdated)?.iter().map(Bytes::len).sum();
            let mut response = respond(StatusCode::OK, JSON, "");
            *response.body_mut() = body::shared(made, length, |pieces: &Vec<Bytes>, index| pieces.get(index).cloned());
            Ok(response)
        }
        "/api/refusals" => {
            let counters = Arc::clone(state);
            let write = move || format!("{:#}\n", status::refusals(&counters, usize::MAX)).into();
            let made = made(&state.answers.refusals, freshness, write).await?.get().ok_or_else(outdated)?;
            Ok(respond(StatusCode::OK, JSON, Bytes::clone(&made)))
        }
        _ => Err((
            StatusCode::NOT_FOUND,
            "try /, /metrics, /api/status, /api/history, /api/refusals, /api/events, /livez or /readyz\n".into(),
        )),
    }
}

/// As RFC 9111 has it, a client need not content itself with what was made for others.
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

/// A panic, which has been logged.
fn failed() -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made; the log says why\n".into())
}

/// It was made long enough ago for many others to have asked meanwhile.
fn outdated() -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, "too busy; try again in a second\n".into())
}

async fn metrics(headers: &HeaderMap, freshness: Freshness, state: &Arc<State>) -> Result<Response<Body>, Refusal> {
    let (format, is_gzipped) = (negotiate::format(headers), negotiate::accepts_gzip(headers));
    let look = Arc::clone(state);
    let made = made(&state.answers.metrics, freshness, move || metrics::render(&look)).await?;
    let rendering = made.get().ok_or_else(outdated)?;
    let content_type = match format {
        Format::OpenMetrics => OPEN_METRICS,
        Format::Text => TEXT_METRICS,
    };
    let mut response = respond(StatusCode::OK, content_type, "");
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
    *response.body_mut() = if is_gzipped {
        let compress = move || rendering.gzipped(format).iter().map(Bytes::len).sum();
        let length = spawn_blocking(compress).await.map_err(|_| failed())?;
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        body::shared(made, length, move |rendering, index| rendering.gzipped(format).get(index).cloned())
    } else {
        let length = rendering.pieces(format).map(Bytes::len).sum();
        body::shared(made, length, move |rendering: &Rendering, index| rendering.piece(format, index).cloned())
    };
    Ok(response)
}

async fn status(query: Option<&str>, freshness: Freshness, state: &Arc<State>) -> Result<Response<Body>, Refusal> {
    let wanted = Wanted::parse(query.unwrap_or_default()).map_err(|says| (StatusCode::BAD_REQUEST, says))?;
    let look = Arc::clone(state);
    let made = made(&state.answers.status, freshness, move || Snapshot::of(&look)).await?;
    let page = made.get().ok_or_else(outdated)?.page(&wanted);
    let page = page.map_err(|says| (StatusCode::NOT_FOUND, says))?;
    let mut response = respond(StatusCode::OK, JSON, "");
    *response.body_mut() = body::shared(made, page.length(), move |snapshot, index| page.piece(snapshot, index));
    Ok(response)
}

pub(super) fn respond(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(body::full(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CONTENT_SECURITY_POLICY, OUR_OWN);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What the page shows, again and again.
fn events(state: &Arc<State>) -> Result<Response<Body>, Refusal> {
    let Ok(place) = Arc::clone(&state.viewers).try_acquire_owned() else {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "too many look at the page already\n".into()));
    };
    let (mut sender, channel) = Channel::new(1);
    let state = Arc::clone(state);
    tokio::spawn(async move {
        let _place = place;
        let mut turn = interval(EVENT_EVERY);
        let mut seen = 0;
        let end = Instant::now() + MAX_AGE;
        // It comes back, if there is a place.
        while Instant::now() < end {
            turn.tick().await;
            let Some((event, taken)) = event(&state, seen).await else { return };
            seen = taken;
            // It has gone, or its connection has ended.
            for part in event {
                if sender.send_data(part).await.is_err() {
                    return;
                }
            }
        }
    });
    let mut response = respond(StatusCode::OK, EVENTS, "");
    *response.body_mut() = body::infallible(channel);
    Ok(response)
}

/// The status for all viewers, and the steps that this one has not seen.
async fn event(state: &Arc<State>, seen: u64) -> Option<(Vec<Bytes>, u64)> {
    let look = Arc::clone(state);
    let make = move || format!("retry: 1000\ndata: {}\n\n", status::event(&look)).into();
    let status = state.answers.event.get(Freshness::Shared, make).await.ok()?;
    let (history, name) = (Arc::clone(&state.history), if seen == 0 { "history" } else { "steps" });
    let steps = spawn_blocking(move || history.write_since(seen)).await.ok()?;
    let status = Bytes::clone(&*status.get()?);
    let begin = Bytes::from(format!("event: {name}\ndata: "));
    Some((vec![status, begin, steps.json, Bytes::from_static(b"\n")], steps.taken))
}
