//! What runs now, as JSON.

use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::history::Totals;
use super::{MAX_ROUTES_SHOWN, State};
use crate::account::Refused;
use crate::connection::Route;
use crate::name::NamePattern;
use crate::server::At;
use crate::upstream::{Certificate, LastCheck};

/// With so many routes at most.
pub(super) fn of(state: &State, max_routes: usize) -> Value {
    let generation = state.generation.load_full();
    let listener =
        |at: &At| json!({"name": at.name, "configured": at.configured.to_string(), "address": at.address.to_string()});
    let reloads = &state.counters.reloads;
    let fixed: Map<String, Value> = state.fixed.iter().map(|(key, value)| ((*key).into(), json!(value))).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "host": rustix::system::uname().nodename().to_string_lossy(),
        "process": std::process::id(),
        "uptime_seconds": state.counters.started.elapsed().unwrap_or_default().as_secs(),
        "draining": state.draining.is_cancelled(),
        "predecessor_connections": state.counters.predecessor_connections.load(Relaxed),
        "config": {
            "last_reload_successful": !reloads.last_failed.load(Relaxed),
            "last_error": reloads.last_error(),
            "digest": format!("{:016x}", reloads.digest.load(Relaxed)),
            "last_success_timestamp_seconds": reloads.last_success.load(Relaxed),
            "fixed": fixed,
        },
        "listeners": generation.listeners.iter().map(listener).collect::<Vec<_>>(),
        "routes_total": generation.routes.len(),
        "routes": generation.routes.iter().take(max_routes).map(|target| route(target)).collect::<Vec<_>>(),
    })
}

/// What the page shows.
pub(super) fn event(state: &State) -> Value {
    const REFUSALS: usize = 20;
    json!({
        "time": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        "status": of(state, MAX_ROUTES_SHOWN),
        "refusals": refusals(state, REFUSALS),
    })
}

/// The last clients that were not served, the last one first.
pub(super) fn refusals(state: &State, most: usize) -> Value {
    let refusal = |refused: &Refused| {
        let Refused { at, client, listener, route, server_name, outcome, reason } = refused;
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
    state.counters.refusals.last().iter().take(most).map(refusal).collect()
}

fn route(route: &Route) -> Value {
    let setup = route.upstream.setup();
    let active = route.counters.active.load(Relaxed);
    let Totals { accepted, bytes: _, answers, answer_micros } = Totals::of(&route.counters);
    let endpoints = route.upstream.endpoints();
    let endpoint = |address| {
        let endpoint = endpoints.iter().find(|endpoint| endpoint.address == address)?;
        Some(json!({
            "address": endpoint.address.to_string(),
            "state": endpoint.state().label(),
            "cause": endpoint.cause(),
            "known": endpoint.is_known(),
            "last_check": endpoint.last_check().map(last_check),
            "connections": endpoint.connections(),
            "certificate": endpoint.certificate().map(|certificate| certificate_of(&certificate, &setup.names)),
        }))
    };
    let destinations = route.upstream.destinations().into_iter().map(|(destination, addresses)| {
        let endpoints: Vec<Value> = addresses.into_iter().filter_map(endpoint).collect();
        json!({"destination": destination.to_string(), "endpoints": endpoints})
    });
    json!({
        "name": route.counters.name(),
        "sni": setup.names.iter().map(ToString::to_string).collect::<Vec<_>>(),
        // A number of 64 bits is too large for some readers of JSON.
        "digest": format!("{:016x}", route.digest),
        "connections": active,
        "accepted": accepted,
        "answers": answers,
        "answer_micros": answer_micros,
        "bytes_received": route.counters.received.load(Relaxed),
        "bytes_sent": route.counters.sent.load(Relaxed),
        "failing_open": route.upstream.fails_open(),
        "on_remove": setup.settings.on_remove.label(),
        "upstream": destinations.collect::<Vec<_>>(),
    })
}

fn last_check(check: LastCheck) -> Value {
    let LastCheck { at, took } = check;
    json!({"time": humantime::format_rfc3339_millis(at).to_string(), "seconds": took.as_secs_f64()})
}

/// The certificate that the last check was shown, and which of these names it does not cover.
fn certificate_of(certificate: &Certificate, names: &[NamePattern]) -> Value {
    let not_covered = certificate.not_covered(names).map(ToString::to_string);
    json!({
        "expires_timestamp_seconds": certificate.expires,
        "issuer": certificate.issuer,
        "names": certificate.names,
        "not_covered": not_covered.collect::<Vec<_>>(),
    })
}
