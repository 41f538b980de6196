//! Leaves out endpoints that `snigate check` would reject.

use std::net::{IpAddr, SocketAddr};

use crate::text::Destination;
use crate::upstream::arrives_at;

use crate::commands::import::draft::{Action, Draft, Frontend};
use crate::commands::import::notes::Notes;
use crate::commands::import::upstream_draft::{EndpointDraft, SourceDraft, UpstreamDraft};

pub(super) fn leave_out_invalid(draft: &mut Draft, notes: &mut Notes) {
    for upstream in draft.upstreams.values_mut() {
        let mut seen: Vec<Destination> = Vec::new();
        upstream.endpoints.retain(|EndpointDraft { destination: endpoint, location, .. }| {
            let is_new = !seen.contains(endpoint);
            if is_new {
                seen.push(endpoint.clone());
            } else {
                notes.note(location, format!("duplicate endpoint {endpoint}: left out"));
            }
            is_new
        });
    }
    // A frontend that loses its last endpoint has no listener, so endpoints of others may have its address.
    while let Some(listening) = listeners_with_loop(draft) {
        for upstream in draft.upstreams.values_mut() {
            upstream.endpoints.retain(|EndpointDraft { destination: endpoint, location, .. }| {
                let is_own = endpoint.address().is_some_and(|address| is_one_of(address, &listening));
                if is_own {
                    let reason = format!("endpoint {endpoint} left out: it is one of the listeners (forwarding loop)");
                    notes.note(location, reason);
                }
                !is_own
            });
        }
    }
    for upstream in draft.upstreams.values_mut() {
        replace_primaries(upstream, notes);
        leave_out_unused_sources(upstream, notes);
    }
}

/// Backups need endpoints that are none.
fn replace_primaries(upstream: &mut UpstreamDraft, notes: &mut Notes) {
    let UpstreamDraft { endpoints, has_primary_in_source, .. } = upstream;
    if endpoints.iter().any(|endpoint| !endpoint.is_backup) {
        return;
    }
    for endpoint in endpoints {
        if *has_primary_in_source {
            let reason = "this backup is used all the time: no server that is no backup could be translated";
            notes.rejects_or_reroutes(&endpoint.location, reason);
        }
        endpoint.is_backup = false;
    }
}

/// Leaves out source addresses of a family that no endpoint has.
fn leave_out_unused_sources(upstream: &mut UpstreamDraft, notes: &mut Notes) {
    let SourceDraft::Addresses(all) = &mut upstream.source else { return };
    let endpoints = &upstream.endpoints;
    let may_have = |endpoint: &EndpointDraft, source: &IpAddr| {
        endpoint.destination.address().is_none_or(|address| address.is_ipv4() == source.is_ipv4())
    };
    all.retain(|source| {
        let is_used = endpoints.iter().any(|endpoint| may_have(endpoint, source));
        if let (false, Some(first)) = (is_used, endpoints.first()) {
            let reason = format!("the source address {source} is left out: no endpoint has an address of its family");
            notes.note(&first.location, reason);
        }
        is_used
    });
    if all.is_empty() {
        upstream.source = SourceDraft::Any;
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
        draft.upstreams.values().flat_map(|upstream| &upstream.endpoints).filter_map(|one| one.destination.address());
    addresses.any(|address| is_one_of(address, &listening)).then_some(listening)
}

fn is_one_of(address: SocketAddr, listening: &[SocketAddr]) -> bool {
    listening.iter().any(|listener| arrives_at(address, *listener))
}
