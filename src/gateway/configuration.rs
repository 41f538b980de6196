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
    let (exact, wildcards): (Vec<_>, Vec<_>) = patterns.into_iter().partition(|pattern| pattern.as_exact().is_some());
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
        patterns: [exact, wildcards].concat(),
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::api::{Key, Kind};
    use super::super::plan::ObjectRef;
    use super::*;
    use crate::config::route_settings;

    fn key(name: &str) -> BackendKey {
        BackendKey { service: Key::new("default", name), port: 6443 }
    }

    fn route(name: &str, matches: Vec<Match>, backends: Vec<Weighted>) -> Route {
        let object = ObjectRef { kind: Kind::TlsRoute, key: Key::new("default", name), uid: String::new() };
        let upstream = route_settings([], &[]).0.upstream;
        Route {
            name: format!("default/{name}"),
            object,
            matches,
            sources: AccessRules::default(),
            max_connections: None,
            upstream,
            backends,
        }
    }

    fn at(listener: usize, name: &str) -> Match {
        let pattern = NamePattern::parse(name).unwrap();
        Match { listeners: [listener].into(), names: Names::Patterns([pattern].into()) }
    }

    fn weighted(weight: u32, name: Option<&str>) -> Weighted {
        Weighted { weight, backend: name.map(key) }
    }

    fn base() -> Config {
        let yaml = b"listen: 127.0.0.1:6443\nroutes: [{sni: own.example, upstream: \"192.0.2.1:6443\"}]";
        Config::from_yaml(yaml).unwrap()
    }

    #[test]
    fn listeners_of_the_cluster_come_after_the_own_ones_which_keep_the_own_routes() {
        let routing = Routing {
            listeners: vec![SocketAddr::from(([0, 0, 0, 0], 443)), SocketAddr::from(([0, 0, 0, 0], 8443))],
            routes: vec![route("a", vec![at(0, "a.example"), at(1, "*.example")], vec![weighted(1, Some("api"))])],
            unrouted: vec![at(1, "b.example")],
        };
        let config = configuration(&base(), &routing);
        let names: Vec<&str> = config.listeners.iter().map(|listener| &*listener.name).collect();
        assert_eq!(names, ["127.0.0.1:6443", "0.0.0.0:443", "0.0.0.0:8443"]);
        assert_eq!(
            config.listeners.iter().map(|listener| listener.is_optional).collect::<Vec<_>>(),
            [false, true, true]
        );
        assert_eq!(config.routes[0].matchers.listeners.as_deref(), Some(&[0][..]));
        let listeners = |(_, matchers): &(route::Names, Matchers)| matchers.listeners.as_deref().unwrap().to_vec();
        let entries = config.routes[1].entries();
        assert_eq!(entries.iter().map(listeners).collect::<Vec<_>>(), [[1], [2]]);
        assert_eq!(config.excluded.iter().map(listeners).collect::<Vec<_>>(), [[2]]);
        let patterns: Vec<String> = config.routes[1].patterns.iter().map(ToString::to_string).collect();
        assert_eq!(patterns, ["a.example", "*.example"]);
    }

    #[test]
    fn one_valid_backend_is_no_split() {
        let upstream = |backends| build_route(&route("a", vec![at(0, "a.example")], backends), 0).upstream;
        let destinations = |upstream: &crate::upstream::UpstreamSettings| {
            upstream.endpoints.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        for backends in [vec![weighted(1, Some("api"))], vec![weighted(1, Some("api")), weighted(9, Some("api"))]] {
            let upstream = upstream(backends);
            assert_eq!((destinations(&upstream), upstream.split), (vec!["default/api:6443".into()], None));
        }
        let split = upstream(vec![weighted(9, Some("b")), weighted(1, None), weighted(2, Some("a"))]);
        assert_eq!(destinations(&split), ["default/a:6443", "default/b:6443"]);
        let shares: Vec<(u32, Option<usize>)> =
            split.split.unwrap().0.iter().map(|backend| (backend.weight, backend.destination.clone().ok())).collect();
        assert_eq!(shares, [(9, Some(1)), (1, None), (2, Some(0))]);
        assert_eq!(upstream(vec![]).split, Some(Split(Box::new([]))), "all are refused");
    }
}
