//! The control socket: what operators ask of the running process, and change in it. HTTP and JSON over a Unix socket, so
//! that `curl --unix-socket` works; also answers everything that the admin listener does.

mod close;
mod connections;

use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http_body_util::channel::Channel;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, interval_at, sleep};
use tokio_util::task::TaskTracker;
use tracing::{Level, warn};

use self::connections::Filter;
use super::answer::{self, JSON, Refusal, TEXT, respond, respond_with};
use super::body::{self, Body};
use super::query::Query;
use super::slots::{ConnectionSlot, ConnectionSlots};
use super::{AdminHandles, answer_the_last, record_history, serve_http};
use crate::connection::registry::Registry;
use crate::listener::accept::Stop;
use crate::process::unix_socket::Peer;
use crate::upstream::Drained;

/// What the control socket has access to.
#[derive(Clone, Debug)]
pub(crate) struct ControlHandles {
    pub(crate) admin: Arc<AdminHandles>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) orders: mpsc::Sender<Order>,
}

impl ControlHandles {
    /// The number of connections that have stayed in old processes, where orders do not reach them.
    fn predecessor_connections(&self) -> u64 {
        self.admin.counters.predecessor_connections.load(Relaxed)
    }
}

/// Concurrent connections.
pub(crate) const MAX_CONNECTIONS: usize = 16;

/// Orders that wait, or are being carried out.
pub(crate) const MAX_ORDERS: usize = 16;

/// An order to change something.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) action: Action,
    pub(crate) by: Peer,
    /// The result, or why it was not carried out.
    pub(crate) answer: oneshot::Sender<Result<Value, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Reload,
    LogLevel(Level),
    Drain(Drained),
    Resume(Drained),
}

/// Until the next attempt when all slots are taken, or accept has failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// All operators are on this machine, and share its slots.
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Serves until `stop`, and until what was asked by then is answered.
pub(crate) async fn run(socket: UnixListener, handles: ControlHandles, stop: Stop) {
    let handles = Arc::new(handles);
    let slots = Arc::new(ConnectionSlots::for_peers(MAX_CONNECTIONS, MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let recorder = tokio::spawn(record_history(Arc::clone(&handles.admin)));
    while !stop.is_stopped() {
        let Ok(permit) = Arc::clone(&slots.permits).try_acquire_owned() else {
            slots.make_room();
            tokio::select! {
                () = sleep(RETRY_INTERVAL) => continue,
                () = stop.stopped() => break,
            }
        };
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted.and_then(|(stream, _)| Ok((Peer::of(&stream)?, stream))),
            () = stop.stopped() => break,
        };
        match accepted {
            Ok((operator, stream)) if operator.is_trusted() => {
                let (slot, handles, stop) = (Arc::new(slots.take(PEER, permit)), Arc::clone(&handles), stop.clone());
                connections.spawn(async move {
                    let answered = Arc::clone(&slot);
                    let answer = |request| answer(request, operator, Arc::clone(&handles), Arc::clone(&answered));
                    serve_http(stream, answer, &slot, stop).await;
                });
            }
            Ok(_) => warn!("another user has connected to the control socket; closed"),
            Err(reason) => {
                warn!(%reason, "cannot accept at the control socket; retrying");
                sleep(RETRY_INTERVAL).await;
            }
        }
    }
    drop(socket);
    recorder.abort();
    answer_the_last(connections).await;
}

async fn answer(
    request: Request<Incoming>,
    operator: Peer,
    handles: Arc<ControlHandles>,
    slot: Arc<ConnectionSlot>,
) -> Response<Body> {
    let answered = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/connections") => list(&request, &handles).await,
        (_, "/connections") => Err(only("GET")),
        (&Method::POST, "/close") => close(&request, operator, &handles),
        (&Method::POST, "/reload") => none(&request).map(|()| when_done(order(&handles, Action::Reload, operator))),
        (&Method::POST, "/drain") => change(&request, Action::Drain, operator, &handles).await,
        (&Method::POST, "/resume") => change(&request, Action::Resume, operator, &handles).await,
        (&Method::POST, "/log-level") => log_level(&request, operator, &handles).await,
        (_, "/close" | "/reload" | "/drain" | "/resume" | "/log-level") => Err(only("POST")),
        (&Method::GET | &Method::HEAD, _) => return answer::read(&request, &handles.admin, &slot).await,
        _ => Err((StatusCode::NOT_FOUND, PATHS.into())),
    };
    answered.unwrap_or_else(|(status, says)| respond(status, TEXT, says))
}

const PATHS: &str = "not found; available: GET /connections, POST /close, /drain, /resume, /reload, /log-level, and what the admin listener has\n";

fn only(method: &str) -> Refusal {
    (StatusCode::METHOD_NOT_ALLOWED, format!("only {method} is allowed\n"))
}

fn bad(expected: impl Into<String>) -> Refusal {
    let mut expected = expected.into();
    expected.push('\n');
    (StatusCode::BAD_REQUEST, expected)
}

/// There is nothing in the query.
fn none<B>(request: &Request<B>) -> Result<(), Refusal> {
    Query::of(request).finish().map_err(bad)
}

async fn list(request: &Request<Incoming>, handles: &Arc<ControlHandles>) -> Result<Response<Body>, Refusal> {
    let mut query = Query::of(request);
    let selection = connections::Selection::take(&mut query).map_err(bad)?;
    query.finish().map_err(bad)?;
    let listed = connections::list(handles, selection).await;
    Ok(respond(StatusCode::OK, JSON, listed))
}

fn close(
    request: &Request<Incoming>,
    operator: Peer,
    handles: &Arc<ControlHandles>,
) -> Result<Response<Body>, Refusal> {
    let mut query = Query::of(request);
    let filter = Filter::take(&mut query).map_err(bad)?;
    let closing = close::Closing::take(&mut query, filter, operator).map_err(bad)?;
    query.finish().map_err(bad)?;
    Ok(close::start(handles, closing))
}

async fn change(
    request: &Request<Incoming>,
    action: impl FnOnce(Drained) -> Action,
    operator: Peer,
    handles: &Arc<ControlHandles>,
) -> Result<Response<Body>, Refusal> {
    let mut query = Query::of(request);
    let route = query.take("route").ok_or_else(|| bad("expected ?route=NAME, or ?route=NAME&endpoint=ADDRESS"))?;
    let endpoint = query.parse("endpoint", "an address such as 10.0.0.1:6443").map_err(bad)?;
    query.finish().map_err(bad)?;
    Ok(result(order(handles, action(Drained { route: route.into(), endpoint }), operator).await))
}

async fn log_level(
    request: &Request<Incoming>,
    operator: Peer,
    handles: &Arc<ControlHandles>,
) -> Result<Response<Body>, Refusal> {
    const EXPECTED: &str = "error, warn, info, debug or trace";
    let mut query = Query::of(request);
    let level = query.parse("level", EXPECTED).map_err(bad)?;
    query.finish().map_err(bad)?;
    let level = level.ok_or_else(|| bad(format!("expected ?level=LEVEL: {EXPECTED}")))?;
    Ok(result(order(handles, Action::LogLevel(level), operator).await))
}

fn result(carried_out: Result<Value, String>) -> Response<Body> {
    match carried_out {
        Ok(result) => respond(StatusCode::OK, JSON, format!("{result:#}\n")),
        Err(reason) => respond(StatusCode::CONFLICT, JSON, format!("{:#}\n", json!({"error": reason}))),
    }
}

/// An answer that may take long, because a file system may be slow: with an empty line now and then, so that the connection
/// is not taken for a stalled one.
fn when_done(carried_out: impl Future<Output = Result<Value, String>> + Send + 'static) -> Response<Body> {
    let (mut sender, channel) = Channel::new(1);
    tokio::spawn(async move {
        let mut carried_out = pin!(carried_out);
        let mut beat = interval_at(Instant::now() + BEAT, BEAT);
        let result = loop {
            tokio::select! {
                result = &mut carried_out => break result,
                _ = beat.tick() => if sender.send_data(Bytes::from_static(b"\n")).await.is_err() {
                    return;
                },
            }
        };
        let result = result.unwrap_or_else(|reason| json!({"error": reason}));
        // The client may have left.
        let _ = sender.send_data(Bytes::from(format!("{result:#}\n"))).await;
    });
    respond_with(JSON, body::infallible(channel))
}

/// Between empty lines.
const BEAT: Duration = Duration::from_secs(10);

/// Has an order carried out.
fn order(
    handles: &Arc<ControlHandles>,
    action: Action,
    by: Peer,
) -> impl Future<Output = Result<Value, String>> + Send + use<> {
    let (answer, answered) = oneshot::channel();
    let sent = handles.orders.try_send(Order { action, by, answer });
    async move {
        match sent {
            Ok(()) => answered.await.unwrap_or_else(|_| Err(GONE.into())),
            Err(mpsc::error::TrySendError::Full(_)) => Err("too many orders wait; try again".into()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(GONE.into()),
        }
    }
}

const GONE: &str = "this process no longer serves: it is shutting down, or a new process has taken over; try again";
