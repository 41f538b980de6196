//! What a plan serves, as a configuration.

use std::collections::BTreeSet;

use super::plan::{BackendKey, Match, Names, Route, Routing, Weighted};
use crate::client_hello::IpLiteral;
use crate::config::{self, Config, Listener};
use crate::connection::admission::AccessRules;
use crate::connection::reject::RejectWith;
use crate::listener::Presence;
use crate::name::NamePattern;
use crate::route::{self, Matchers};
use crate::text::Destination;
use crate::upstream::{Backend, EndpointSettings, Share, Split};

/// The base configuration, with the listeners and routes of the cluster. What it has itself stays at its own listeners.
pub(crate) fn configuration(base: &Config, routing: &Routing) -> Config {
    let mut config = base.clone();
    let own = config.listeners.len();
    for route in &mut config.routes {
        route.matchers.listeners.get_or_insert_with(|| (0..own).collect());
    }
    config.listeners.extend(routing.listeners.iter().map(|address| Listener {
        name: address.to_string(),
        address: *address,
        presence: Presence::Required,
        is_optional: true,
        // For clients of Gateway API, a refused connection is a closed one.
        refuse: RejectWith::Close,
        accept_proxy: None,
        ip_literal: IpLiteral::NoName,
        sources: AccessRules::default(),
    }));
    config.routes.extend(routing.routes.iter().map(|route| build_route(route, own)));
    config.excluded.extend(routing.unrouted.iter().map(|excluded| entry(excluded, own)));
    config
}

/// The endpoints of a Service in a configuration.
pub(crate) fn destination(BackendKey { service, port }: &BackendKey) -> Destination {
    Destination::service(&service.namespace, &service.name, *port)
}

fn build_route(route: &Route, own: usize) -> config::Route {
    let Route { name, object: _, matches, sources, max_connections, upstream, backends } = route;
    let patterns = matches.iter().filter_map(|at| match &at.names {
        Names::Patterns(patterns) => Some(patterns.iter().cloned()),
        Names::All | Names::NoSni => None,
    });
    let patterns: BTreeSet<NamePattern> = patterns.flatten().collect();
    let keys: Vec<&BackendKey> = backends.iter().filter_map(|weighted| weighted.backend.as_ref()).collect();
    let services: BTreeSet<&BackendKey> = keys.iter().copied().collect();
    let services: Vec<&BackendKey> = services.into_iter().collect();
    let endpoint = |key: &&BackendKey| EndpointSettings { destination: destination(key), share: Share::DEFAULT };
    let backend = |Weighted { weight, backend }: &Weighted| {
        let index = backend.as_ref().and_then(|key| services.binary_search(&key).ok());
        Backend { weight: *weight, destination: index.ok_or_else(|| "the backendRef is invalid".into()) }
    };
    let is_simple = services.len() == 1 && keys.len() == backends.len();
    let mut upstream = upstream.clone();
    upstream.endpoints = services.iter().map(endpoint).collect();
    upstream.split = (!is_simple).then(|| Split(backends.iter().map(backend).collect()));
    config::Route {
        name: name.clone(),
        patterns: patterns.into_iter().collect(),
        matchers: Matchers::default(),
        by_listener: matches.iter().map(|at| entry(at, own)).collect(),
        sources: sources.clone(),
        max_connections: *max_connections,
        new_connections: None,
        upstream,
    }
}

/// The listeners of the base configuration come first.
fn entry(Match { listeners, names }: &Match, own: usize) -> (route::Names, Matchers) {
    let names = match names {
        Names::Patterns(patterns) => route::Names::Patterns(patterns.iter().cloned().collect()),
        Names::All => route::Names::All,
        Names::NoSni => route::Names::NoSni,
    };
    let listeners = listeners.iter().map(|index| own + index).collect();
    (names, Matchers { listeners: Some(listeners), ..Matchers::default() })
}
