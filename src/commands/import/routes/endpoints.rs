//! Endpoints that `check` would refuse.

use std::net::SocketAddr;

use crate::text::Destination;
use crate::upstream::arrives_at as leads_to;

use crate::commands::import::draft::{Draft, Frontend, Outcome};
use crate::commands::import::ledger::Ledger;

pub(super) fn check(draft: &mut Draft, ledger: &mut Ledger) {
    for upstream in draft.upstreams.values_mut() {
        let mut seen: Vec<Destination> = Vec::new();
        upstream.endpoints.retain(|(endpoint, place)| {
            let is_new = !seen.contains(endpoint);
            if is_new {
                seen.push(endpoint.clone());
            } else {
                ledger.note(place, format!("{endpoint}: it stands twice; one endpoint is enough"));
            }
            is_new
        });
        upstream.backups.retain(|backup| !seen.contains(backup));
    }
    // A listener that loses its last endpoint is none, so it is not in the way of others.
    while let Some(listening) = loops(draft) {
        for upstream in draft.upstreams.values_mut() {
            upstream.endpoints.retain(|(endpoint, place)| {
                let is_own = endpoint.address().is_some_and(|address| is_among(address, &listening));
                if is_own {
                    let reason =
                        format!("{endpoint}: it is one of the listeners itself: connections would go in circles");
                    ledger.note(place, reason);
                }
                !is_own
            });
        }
    }
}

/// The listeners, if an endpoint is one of them.
fn loops(draft: &Draft) -> Option<Vec<SocketAddr>> {
    let listens = |frontend: &&Frontend| {
        frontend.rules.iter().any(|rule| match &rule.then {
            Outcome::To(key) => draft.upstreams.get(key).is_some_and(|upstream| !upstream.endpoints.is_empty()),
            _ => false,
        })
    };
    let listening: Vec<_> =
        draft.frontends.iter().filter(listens).flat_map(|frontend| frontend.addresses.iter().copied()).collect();
    let mut addresses =
        draft.upstreams.values().flat_map(|upstream| &upstream.endpoints).filter_map(|(one, _)| one.address());
    addresses.any(|address| is_among(address, &listening)).then_some(listening)
}

fn is_among(address: SocketAddr, listening: &[SocketAddr]) -> bool {
    listening.iter().any(|listener| leads_to(address, *listener))
}
