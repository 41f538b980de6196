//! The default URL of the router.

use anyhow::{Context, bail};

use super::exact_names;
use crate::cli::ServerUrl;
use crate::config::{Config, Route};

/// With this hostname, or else the route's first exact one, and the port of the route's first listener.
pub(super) fn default(config: &Config, route: &Route, hostname: Option<&str>) -> anyhow::Result<ServerUrl> {
    let name = hostname.or_else(|| exact_names(route).next()).with_context(|| {
        let (lacks, alternative) = if route.patterns.is_empty() {
            ("has no `sni`", "")
        } else {
            ("has only wildcards in `sni`", "a hostname below one of them instead of the route's name, or ")
        };
        format!(
            "the route `{}` {lacks}, so the hostname of the URL is unknown; expected {alternative}--server \
             https://NAME:PORT",
            route.name
        )
    })?;
    let first = route.matchers.listeners.as_ref().and_then(|indices| indices.first());
    let listener = &config.listeners[first.copied().unwrap_or(0)];
    let port = listener.address.port();
    if port == 0 {
        bail!("the kernel chooses the port of the listener `{}`; expected --server https://{name}:PORT", listener.name);
    }
    Ok(ServerUrl::new(name, port))
}
