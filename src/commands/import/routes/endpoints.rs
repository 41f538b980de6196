//! Leaves out endpoints that `snigate check` would reject.

use std::net::SocketAddr;

use crate::text::Destination;
use crate::upstream::arrives_at;

use crate::commands::import::draft::{Action, Draft, Frontend};
use crate::commands::import::notes::Notes;

pub(super) fn leave_out_invalid(draft: &mut Draft, notes: &mut Notes) {
    for upstream in draft.upstreams.values_mut() {
        let mut seen: Vec<Destination> = Vec::new();
        upstream.endpoints.retain(|(endpoint, location)| {
            let is_new = !seen.contains(endpoint);
            if is_new {
                seen.push(endpoint.clone());
            } else {
                notes.note(location, format!("duplicate endpoint {endpoint}: left out"));
            }
            is_new
        });
        upstream.backups.retain(|backup| !seen.contains(backup));
    }
    // A frontend that loses its last endpoint has no listener, so endpoints of others may have its address.
    while let Some(listening) = listeners_with_loop(draft) {
        for upstream in draft.upstreams.values_mut() {
            upstream.endpoints.retain(|(endpoint, location)| {
                let is_own = endpoint.address().is_some_and(|address| is_one_of(address, &listening));
                if is_own {
                    let reason = format!("endpoint {endpoint} left out: it is one of the listeners (forwarding loop)");
                    notes.note(location, reason);
                }
                !is_own
            });
        }
    }
}

/// All listeners, if an endpoint is one of them.
fn listeners_with_loop(draft: &Draft) -> Option<Vec<SocketAddr>> {
    let has_endpoints = |frontend: &&Frontend| {
        frontend.rules.iter().any(|rule| match &rule.then {
            Action::RouteTo(key) => draft.upstreams.get(key).is_some_and(|upstream| !upstream.endpoints.is_empty()),
            _ => false,
        })
    };
    let listening: Vec<_> =
        draft.frontends.iter().filter(has_endpoints).flat_map(|frontend| frontend.addresses.iter().copied()).collect();
    let mut addresses =
        draft.upstreams.values().flat_map(|upstream| &upstream.endpoints).filter_map(|(one, _)| one.address());
    addresses.any(|address| is_one_of(address, &listening)).then_some(listening)
}

fn is_one_of(address: SocketAddr, listening: &[SocketAddr]) -> bool {
    listening.iter().any(|listener| arrives_at(address, *listener))
}
