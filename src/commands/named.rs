//! Which routes an operator means by a name.

use snigate::config::{Config, Route};
use snigate::name::{NamePattern, ServerName};

use super::{did_you_mean, listed, nearest};

/// A route that was named.
pub(super) struct Named<'c> {
    pub(super) route: &'c Route,
    /// The name, if it is below a wildcard of the route.
    pub(super) below: Option<String>,
}

/// By the route's own name or one in its `sni`; if there is none, by the longest wildcard that the name is below.
pub(super) fn named<'c>(config: &'c Config, name: &str) -> anyhow::Result<Vec<Named<'c>>> {
    let pattern = NamePattern::parse(name).ok();
    let has_it = |route: &Route| pattern.as_ref().is_some_and(|pattern| route.patterns.contains(pattern));
    let found = config.routes.iter().filter(|route| route.name == name || has_it(route));
    let mut found: Vec<Named> = found.map(|route| Named { route, below: None }).collect();
    if let (true, Ok(server_name)) = (found.is_empty(), ServerName::parse(name.as_bytes())) {
        let patterns =
            config.routes.iter().flat_map(|route| route.patterns.iter().map(move |pattern| (route, pattern)));
        let wildcards = patterns.filter(|(_, pattern)| pattern.matches(&server_name));
        let mut longest = 0;
        for (route, wildcard) in wildcards {
            let length = wildcard.to_string().len();
            if length > longest {
                longest = length;
                found.clear();
            }
            if length == longest {
                found.push(Named { route, below: Some(server_name.to_string()) });
            }
        }
    }
    if found.is_empty() { Err(unknown(config, name)) } else { Ok(found) }
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
