//! What runs now, as JSON.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Map, Value, json};

use super::State;
use crate::account::Refused;
use crate::connection::Route;
use crate::server::At;

pub(super) fn of(state: &State) -> Value {
    let generation = state.generation.load_full();
    let listener =
        |at: &At| json!({"name": at.name, "configured": at.configured.to_string(), "address": at.address.to_string()});
    let reloads = &state.counters.reloads;
    let fixed: Map<String, Value> = state.fixed.iter().map(|(key, value)| ((*key).into(), json!(value))).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": state.counters.started.elapsed().unwrap_or_default().as_secs(),
        "draining": state.draining.is_cancelled(),
        "config": {
            "last_reload_successful": !reloads.last_failed.load(Relaxed),
            "last_success_timestamp_seconds": reloads.last_success.load(Relaxed),
            "fixed": fixed,
        },
        "listeners": generation.listeners.iter().map(listener).collect::<Vec<_>>(),
        "routes": generation.routes.iter().map(|target| route(target)).collect::<Vec<_>>(),
    })
}

/// The last clients that were not served, the last one first.
pub(super) fn refusals(state: &State) -> Value {
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
    state.counters.refusals.last().iter().map(refusal).collect()
}

fn route(route: &Route) -> Value {
    let setup = route.upstream.setup();
    let endpoints = route.upstream.endpoints();
    let endpoint = |address| {
        let endpoint = endpoints.iter().find(|endpoint| endpoint.address == address)?;
        Some(json!({
            "address": endpoint.address.to_string(),
            "state": endpoint.state().label(),
            "cause": endpoint.cause(),
            "connections": endpoint.connections(),
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
        "connections": route.counters.active.load(Relaxed),
        "failing_open": route.upstream.fails_open(),
        "on_remove": setup.settings.on_remove.label(),
        "upstream": destinations.collect::<Vec<_>>(),
    })
}
