//! Names of routes, and names that clients may send.

use std::collections::{BTreeSet, HashSet};

use crate::name::NamePattern;
use ipnet::IpNet;

use super::{RouteDraft, RouteMatchers};
use crate::commands::import::draft::Draft;
use crate::commands::import::tlv;
use crate::commands::import::values::label;

pub(super) fn unique_name(used: &mut HashSet<String>, route: &RouteDraft, frontend: &str) -> String {
    let upstream = route.upstream.as_deref().map_or_else(|| "rejected".to_owned(), label);
    let other = match matched(&route.matchers) {
        Some(matched) => label(&matched),
        None if route.names.is_empty() => "default".into(),
        None => frontend.into(),
    };
    let named = [upstream.clone(), format!("{upstream}-{other}"), format!("{upstream}-{other}-{frontend}")];
    let numbered = (2..).map(|number| format!("{upstream}-{number}"));
    let name = named.into_iter().chain(numbered).find(|name| !used.contains(name)).unwrap_or(upstream);
    used.insert(name.clone());
    name
}

/// What tells it from other routes of the same upstream.
fn matched(matchers: &RouteMatchers) -> Option<String> {
    let RouteMatchers { alpn, clients, destinations, tlv } = matchers;
    let text = |network: &IpNet| {
        let is_host = network.prefix_len() == network.max_prefix_len();
        if is_host { network.addr().to_string() } else { network.to_string() }
    };
    let network = |all: &[IpNet]| all.first().map(text);
    let tlv = tlv.as_ref().map(|(_, value)| tlv::text(value));
    tlv.or_else(|| network(destinations)).or_else(|| network(clients)).or_else(|| alpn.first().cloned())
}

pub(super) fn suggest_aliases(routes: &mut [RouteDraft], frontend: usize, draft: &Draft) {
    let ours = || routes.iter().filter(|route| route.frontend == frontend);
    let mut used: BTreeSet<NamePattern> = ours().flat_map(|route| route.names.iter().cloned()).collect();
    for route in routes.iter_mut().filter(|route| route.frontend == frontend && !route.names.is_empty()) {
        let Some(upstream) = &route.upstream else { continue };
        for endpoint in &draft.upstreams[upstream].endpoints {
            let name = endpoint.destination.name().and_then(|(name, _)| NamePattern::parse(name).ok());
            route.aliases.extend(name.filter(|name| used.insert(name.clone())));
        }
    }
}
