//! The status of the process as JSON.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::history::Totals;
use super::query::Query;
use super::{AdminHandles, ListenerAddress, MAX_ROUTES_SHOWN, View};
use crate::connection::RouteTarget;
use crate::name::NamePattern;
use crate::telemetry::{LATENCY_BUCKETS, RecentRejection};
use crate::upstream::{Endpoint, EndpointCertificate, EndpointSettings, EndpointState, LastCheck};

/// Which routes are wanted.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub(super) route: Option<String>,
    pub(super) offset: usize,
    pub(super) limit: usize,
}

impl Default for Selection {
    fn default() -> Self {
        Self { route: None, offset: 0, limit: usize::MAX }
    }
}

impl Selection {
    /// From a query such as `route=NAME` or `offset=100&limit=100`; what is expected, if it is none.
    pub(super) fn parse(mut query: Query) -> Result<Self, String> {
        const EXPECTED: &str = "expected ?route=NAME, or ?offset=NUMBER&limit=NUMBER\n";
        let mut number = |name| query.parse(name, "a number");
        let (offset, limit) = (number("offset"), number("limit"));
        let route = query.take("route");
        match (offset, limit, query.finish()) {
            (Ok(offset), Ok(limit), Ok(())) => {
                Ok(Self { route, offset: offset.unwrap_or(0), limit: limit.unwrap_or(usize::MAX) })
            }
            _ => Err(EXPECTED.into()),
        }
    }
}

pub(super) fn without_routes(handles: &AdminHandles, view: &View) -> Value {
    let listener = |ListenerAddress { name, configured, address }: &ListenerAddress| {
        let shown = address.as_ref().unwrap_or(configured).to_string();
        let unavailable = address.as_ref().err();
        json!({"name": name, "configured": configured.to_string(), "address": shown, "unavailable": unavailable})
    };
    let reloads = &handles.counters.reloads;
    let fixed = handles.fixed.iter().filter_map(|(key, value)| Some(((*key).into(), json!(value.as_ref()?))));
    let fixed: Map<String, Value> = fixed.collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "host": rustix::system::uname().nodename().to_string_lossy(),
        "process": std::process::id(),
        "uptime_seconds": handles.counters.started.elapsed().unwrap_or_default().as_secs(),
        "draining": handles.draining.is_cancelled(),
        "connections": {
            "open": handles.counters.open(),
            "parked": handles.counters.parked_connections.load(Relaxed),
            "limit": handles.counters.connections_limit.load(Relaxed),
        },
        "predecessor_connections": handles.counters.predecessor_connections.load(Relaxed),
        "config": {
            "last_reload_successful": !reloads.last_failed.load(Relaxed),
            "last_error": reloads.last_error(),
            "digest": format!("{:016x}", reloads.digest.load(Relaxed)),
            "last_success_timestamp_seconds": reloads.last_success.load(Relaxed),
            "fixed": fixed,
        },
        "admin": handles.configured.load().as_ref().map(ToString::to_string),
        "listeners": view.listeners.iter().map(listener).collect::<Vec<_>>(),
        "answer_bounds_seconds": LATENCY_BUCKETS,
        "unrouted": {"accepted": Totals::of(&handles.counters.unrouted).accepted, "rejected": handles.counters.unrouted.rejected()},
        "routes_total": view.routes.len(),
        "summary": summary(&view.routes),
    })
}

/// A summary of all routes, including those that are not listed.
fn summary(routes: &[Arc<RouteTarget>]) -> Value {
    let (mut ready, mut unready, mut dead, mut drained) = (0, 0, 0, 0);
    let (mut failing_open, mut without_address) = (0, 0);
    for route in routes {
        let endpoints = route.upstream.endpoints();
        failing_open += usize::from(route.upstream.fails_open());
        without_address += usize::from(endpoints.is_empty());
        for endpoint in &*endpoints {
            *match endpoint.state() {
                _ if route.upstream.is_drained(endpoint) => &mut drained,
                EndpointState::Ready => &mut ready,
                EndpointState::Unready => &mut unready,
                EndpointState::Dead => &mut dead,
            } += 1;
        }
    }
    json!({
        "ready": ready,
        "unready": unready,
        "dead": dead,
        "drained": drained,
        "failing_open": failing_open,
        "without_address": without_address,
    })
}

/// An event of the status page.
pub(super) fn event(handles: &AdminHandles) -> Value {
    const REFUSALS: usize = 20;
    let view = handles.view.load_full();
    let mut status = without_routes(handles, &view);
    status["routes"] = shown(&view.routes).into_iter().map(|target| route(target)).collect();
    json!({
        "time": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        "status": status,
        "refusals": refusals(handles, REFUSALS),
    })
}

/// If there are too many, those in trouble rather than others.
fn shown(routes: &[Arc<RouteTarget>]) -> Vec<&Arc<RouteTarget>> {
    let mut shown: Vec<_> = routes.iter().collect();
    if shown.len() > MAX_ROUTES_SHOWN {
        shown.sort_by_cached_key(|route| !has_trouble(route));
        shown.truncate(MAX_ROUTES_SHOWN);
    }
    shown
}

fn has_trouble(route: &RouteTarget) -> bool {
    let endpoints = route.upstream.endpoints();
    let is_well =
        |endpoint: &Arc<Endpoint>| endpoint.state() == EndpointState::Ready || route.upstream.is_drained(endpoint);
    endpoints.is_empty() || !endpoints.iter().all(is_well)
}

/// The most recent rejections, the newest first.
pub(super) fn refusals(handles: &AdminHandles, most: usize) -> Value {
    let refusal = |rejection: &RecentRejection| {
        let RecentRejection { at, client, listener, route, server_name, outcome, reason } = rejection;
        json!({
            "time": humantime::format_rfc3339_millis(*at).to_string(),
            "client": client.to_string(),
            "listener": listener,
            "route": route,
            "server_name": server_name,
            "outcome": outcome.label(),
            "reason": reason,
        })
    };
    handles.counters.recent_rejections.newest_first().iter().take(most).map(refusal).collect()
}

pub(super) fn route(route: &RouteTarget) -> Value {
    let setup = route.upstream.setup();
    let active = route.counters.active.load(Relaxed);
    let Totals { accepted, bytes: _, answers, answer_micros } = Totals::of(&route.counters);
    let endpoints = route.upstream.endpoints();
    let endpoint = |address| {
        let endpoint = endpoints.iter().find(|endpoint| endpoint.address == address)?;
        Some(json!({
            "address": endpoint.address.to_string(),
            "state": route.upstream.state_label(endpoint),
            "health": endpoint.state().label(),
            "cause": endpoint.cause(),
            "known": endpoint.is_known(),
            "last_check": endpoint.last_check().map(last_check),
            "connections": endpoint.connections(),
            "certificate": endpoint.certificate().map(|certificate| certificate_of(&certificate, &setup.names)),
        }))
    };
    let destinations =
        route.upstream.destinations().into_iter().map(|(EndpointSettings { destination, share }, addresses)| {
            let endpoints: Vec<Value> = addresses.into_iter().filter_map(endpoint).collect();
            json!({
                "destination": destination.to_string(),
                "weight": share.weight,
                "backup": share.is_backup,
                "endpoints": endpoints,
            })
        });
    json!({
        "name": route.counters.name(),
        "sni": setup.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        // As text: some JSON parsers cannot represent 64-bit integers.
        "digest": format!("{:016x}", route.digest),
        "connections": active,
        "accepted": accepted,
        "rejected": route.counters.rejected(),
        "answers": answers,
        "answer_micros": answer_micros,
        "answer_counts": route.counters.answer_distribution().map(|answers| answers.counts().to_vec()),
        "bytes_received": route.counters.received.load(Relaxed),
        "bytes_sent": route.counters.sent.load(Relaxed),
        "failing_open": route.upstream.fails_open(),
        "serving": route.upstream.tier().label(),
        "on_remove": setup.settings.on_remove.label(),
        "upstream": destinations.collect::<Vec<_>>(),
    })
}

fn last_check(check: LastCheck) -> Value {
    let LastCheck { at, took } = check;
    json!({"time": humantime::format_rfc3339_millis(at).to_string(), "seconds": took.as_secs_f64()})
}

/// A certificate may have thousands.
const MAX_NAMES_SHOWN: usize = 100;

/// The certificate of the last check, and which of these names it does not cover.
fn certificate_of(certificate: &EndpointCertificate, names: &[NamePattern]) -> Value {
    let not_covered = certificate.not_covered(names).into_iter().map(ToString::to_string);
    json!({
        "expires_timestamp_seconds": certificate.expires,
        "issuer": certificate.issuer,
        "names": certificate.names.iter().take(MAX_NAMES_SHOWN).collect::<Vec<_>>(),
        "names_total": certificate.names.len(),
        "not_covered": not_covered.collect::<Vec<_>>(),
    })
}
