//! Finds the routes that a command-line argument names.

use crate::client_hello::Alpn;
use crate::config::{Config, Route};
use crate::name::{NamePattern, ServerName};
use crate::route::{Client, RouteTable};

use super::routing::FittingClient;
use super::{did_you_mean, listed, nearest, route_table};

pub(super) struct Named<'c> {
    pub(super) route: &'c Route,
    /// The argument, if it is a hostname that only a wildcard of the route matches.
    pub(super) below: Option<String>,
}

/// Routes with this `name`, or with this pattern in `sni`; if there are none, routes with a wildcard that routes the hostname.
pub(super) fn named<'c>(config: &'c Config, name: &str) -> anyhow::Result<Vec<Named<'c>>> {
    let pattern = NamePattern::parse(name).ok();
    let has_pattern = |route: &Route| pattern.as_ref().is_some_and(|pattern| route.patterns.contains(pattern));
    let found = config.routes.iter().filter(|route| route.name == name || has_pattern(route));
    let mut found: Vec<Named> = found.map(|route| Named { route, below: None }).collect();
    if let (true, Ok(server_name)) = (found.is_empty(), ServerName::parse(name.as_bytes())) {
        let table = route_table(config);
        let is_below = |route: &&Route| route.patterns.iter().any(|pattern| pattern.matches(&server_name));
        let takes =
            |route: &&Route| (0..config.listeners.len()).any(|at| takes(config, &table, route, server_name, at));
        let routes = config.routes.iter().filter(is_below).filter(takes);
        found.extend(routes.map(|route| Named { route, below: Some(server_name.to_string()) }));
    }
    if found.is_empty() { Err(unknown(config, name)) } else { Ok(found) }
}

/// Whether a client at this listener that sends this SNI, and meets the other matchers of the route, is routed to it.
pub(super) fn takes(
    config: &Config,
    table: &RouteTable<usize>,
    route: &Route,
    name: ServerName<'_>,
    listener: usize,
) -> bool {
    let is_routed = |alpn: Option<Alpn<'_>>| {
        FittingClient::all_of(route).any(|fitting| {
            let found = table.find(&Client::new(Some(name), alpn, fitting.arrival(listener)));
            found.is_some_and(|found| config.routes[*found.target].name == route.name)
        })
    };
    let Some(required) = &route.matchers.alpn else { return is_routed(None) };
    required.iter().any(|protocol| is_routed(Alpn::from_list(&Alpn::encode([&**protocol]).unwrap_or_default()).ok()))
}

fn unknown(config: &Config, name: &str) -> anyhow::Error {
    let patterns = config.routes.iter().flat_map(|route| &route.patterns).map(ToString::to_string);
    let known: Vec<String> = config.routes.iter().map(|route| route.name.clone()).chain(patterns).collect();
    let hint = did_you_mean(&nearest(name, known.iter().map(String::as_str)));
    let hint = hint.unwrap_or_else(|| format!("expected one of {}", listed(config.routes.iter())));
    let catch_all = config.routes.iter().find(|route| route.patterns.is_empty());
    let note = catch_all.map_or(String::new(), |route| format!(" (`{}` is the catch-all route)", route.name));
    anyhow::anyhow!("no route has the name `{name}` or matches it by `sni`; {hint}{note}")
}
