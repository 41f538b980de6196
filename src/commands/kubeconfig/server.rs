//! Where clients find the router.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::config::{Config, Route};
use crate::name::ServerName;
use anyhow::{Context, bail};
use hyper::Uri;

use super::exact_names;

/// The `server` of a kubeconfig.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    url: String,
    /// The name that kubectl asks for; of an address it asks for none.
    pub(super) name: Option<String>,
    pub(super) port: u16,
}

impl Server {
    /// By the name below a wildcard that was asked for, or else the route's first exact one, at its first listener.
    pub(super) fn of_route(config: &Config, route: &Route, below: Option<&str>) -> anyhow::Result<Self> {
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
            bail!(
                "the kernel chooses the port of the listener `{}`; expected --server https://{name}:PORT",
                listener.name
            );
        }
        Ok(Self { url: format!("https://{name}:{port}"), name: Some(name.into()), port })
    }
}

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected a URL such as https://dev.example.com:6443".to_owned();
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(expected()) };
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(expected());
        }
        let host = authority.host();
        let is_address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        let name = if is_address {
            None
        } else {
            Some(ServerName::parse(host.as_bytes()).map_err(|error| format!("{error}; {}", expected()))?.to_string())
        };
        let url = text.trim_end_matches('/').to_owned();
        Ok(Self { url, name, port: authority.port_u16().unwrap_or(443) })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::Server;

    #[test]
    fn urls_are_read_as_kubectl_does() {
        for (url, name, port) in [
            ("https://Dev.example.com:6443/", Some("dev.example.com"), 6443),
            ("https://dev.example.com./k8s/one", Some("dev.example.com"), 443),
            ("https://192.0.2.1:1", None, 1),
            ("https://[2001:db8::1]", None, 443),
        ] {
            let server: Server = url.parse().unwrap();
            assert_eq!((server.name.as_deref(), server.port), (name, port), "{url}");
        }
        for wrong in
            ["dev.example.com:6443", "http://a.example", "https://", "https://u:p@a.example", "https://127.1", ""]
        {
            assert!(wrong.parse::<Server>().is_err(), "{wrong}");
        }
    }
}
