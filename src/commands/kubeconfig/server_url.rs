//! Where clients find the router, as its configuration says.

use anyhow::{Context, bail};

use super::exact_names;
use crate::cli::ServerUrl;
use crate::config::{Config, Route};

/// By the name below a wildcard that was asked for, or else the route's first exact one, at its first listener.
pub(super) fn of_route(config: &Config, route: &Route, below: Option<&str>) -> anyhow::Result<ServerUrl> {
    let name = below.or_else(|| exact_names(route).next()).with_context(|| {
        let takes = if route.patterns.is_empty() { "every name" } else { "wildcards" };
        format!(
            "the route `{}` takes {takes}, and has no exact name in `sni` for a URL; expected {}--server https://NAME:PORT",
            route.name,
            if route.patterns.is_empty() { "" } else { "a name below one of them in its place, or " }
        )
    })?;
    let first = route.matchers.listeners.as_ref().and_then(|numbers| numbers.first());
    let listener = &config.listeners[first.copied().unwrap_or(0)];
    let port = listener.address.port();
    if port == 0 {
        bail!("the kernel chooses the port of the listener `{}`; expected --server https://{name}:PORT", listener.name);
    }
    Ok(ServerUrl::new(name, port))
}
