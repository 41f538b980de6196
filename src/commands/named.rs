//! Which routes an operator means by a name.

use crate::client_hello::Alpn;
use crate::config::{Config, Route};
use crate::name::{NamePattern, ServerName};
use crate::route::{Client, RouteTable};

use super::{alpn_list, did_you_mean, listed, nearest, route_table};

/// A route that was named.
pub(super) struct Named<'c> {
    pub(super) route: &'c Route,
    /// The name, if it is below a wildcard of the route.
    pub(super) below: Option<String>,
}

/// By the route's own name or one in its `sni`; if there is none, by the wildcards that lead clients of the name there.
pub(super) fn named<'c>(config: &'c Config, name: &str) -> anyhow::Result<Vec<Named<'c>>> {
    let pattern = NamePattern::parse(name).ok();
    let has_it = |route: &Route| pattern.as_ref().is_some_and(|pattern| route.patterns.contains(pattern));
    let found = config.routes.iter().filter(|route| route.name == name || has_it(route));
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

/// Whether clients of this listener that ask for the name, and offer what the route wants, are led to it.
pub(super) fn takes(
    config: &Config,
    table: &RouteTable<usize>,
    route: &Route,
    name: ServerName<'_>,
    listener: usize,
) -> bool {
    let leads_there = |alpn: Option<Alpn<'_>>| {
        let found = table.find(&Client { server_name: Some(name), alpn, listener });
        found.is_some_and(|found| config.routes[*found.target].name == route.name)
    };
    let Some(wanted) = &route.matchers.alpn else { return leads_there(None) };
    wanted.iter().any(|protocol| leads_there(Alpn::from_list(&alpn_list([&**protocol])).ok()))
}

fn unknown(config: &Config, name: &str) -> anyhow::Error {
    let patterns = config.routes.iter().flat_map(|route| &route.patterns).map(ToString::to_string);
    let known: Vec<String> = config.routes.iter().map(|route| route.name.clone()).chain(patterns).collect();
    let hint = did_you_mean(&nearest(name, known.iter().map(String::as_str)));
    let hint = hint.unwrap_or_else(|| format!("expected one of {}", listed(config.routes.iter())));
    let rest = config.routes.iter().find(|route| route.patterns.is_empty());
    let rest = rest.map_or(String::new(), |route| format!(" (The route `{}` takes all other names.)", route.name));
    anyhow::anyhow!("no route is named `{name}`, or takes it by its `sni`; {hint}{rest}")
}
