//! Checks `Host` and `Origin` of requests to the admin listener, against DNS rebinding and cross-site requests.
//!
//! With DNS rebinding, a website lets its own hostname resolve to the admin listener's address, so that browsers treat
//! both as the same origin; `Host` then contains that hostname. So only configured hostnames are accepted. An IP address
//! in `Host` is safe, because it cannot be rebound.

use std::net::{IpAddr, Ipv6Addr};

use hyper::header::{HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::http::uri::{Authority, Uri};
use hyper::{Request, StatusCode};

use crate::name::{NamePattern, ServerName};
use crate::text::escape::visible;

/// Hostnames of the admin listener, besides IP addresses and `localhost`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hosts(pub(crate) Vec<NamePattern>);

impl Hosts {
    /// Whether to serve the request; the error is the response to send instead.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Result<(), (StatusCode, String)> {
        // Probes send whatever they are configured with, and learn nothing that is worth protecting.
        if super::is_probe(request.uri().path()) {
            return Ok(());
        }
        let wrong = |what: &str| (StatusCode::BAD_REQUEST, format!("{what}\n"));
        let mut hosts = request.headers().get_all(HOST).iter();
        let host = hosts.next().filter(|host| !host.is_empty()).map(authority);
        if hosts.next().is_some() {
            return Err(wrong("more than one Host header"));
        }
        let host = host.transpose().map_err(|()| wrong("invalid Host header"))?;
        // In a request to a proxy, the host in the URL counts.
        for authority in request.uri().authority().into_iter().chain(&host) {
            if !self.has(authority.host()) {
                return Err((StatusCode::MISDIRECTED_REQUEST, misdirected(authority.host())));
            }
        }
        // Some scrapers send none; browsers always do.
        if host.is_none() && request.uri().path() != "/metrics" {
            return Err((StatusCode::MISDIRECTED_REQUEST, "missing Host header\n".into()));
        }
        if is_cross_site(request.headers(), host.as_ref()) {
            return Err((StatusCode::FORBIDDEN, "cross-origin request\n".into()));
        }
        Ok(())
    }

    fn has(&self, host: &str) -> bool {
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Some(address) = bracketed {
            return address.parse::<Ipv6Addr>().is_ok();
        }
        if host.parse::<IpAddr>().is_ok() {
            return true;
        }
        let Ok(name) = ServerName::parse(host.as_bytes()) else { return false };
        name.to_string() == "localhost" || self.0.iter().any(|pattern| pattern.matches(&name))
    }
}

fn authority(host: &HeaderValue) -> Result<Authority, ()> {
    let authority: Authority = host.to_str().map_err(drop)?.parse().map_err(drop)?;
    if authority.as_str().contains('@') { Err(()) } else { Ok(authority) }
}

fn misdirected(host: &str) -> String {
    format!(
        "unknown host `{host}`; use an IP address or localhost, or allow this hostname with \
         `admin: {{address: …, hosts: [{host}]}}`\n",
        host = visible(host)
    )
}

/// Whether another website caused the request. It could not read the response, but it could use up connections. Following
/// a link is allowed.
fn is_cross_site(headers: &HeaderMap, host: Option<&Authority>) -> bool {
    let is = |header: &str, value: &str| headers.get(header).is_some_and(|sent| sent == value);
    let is_other_site = is("sec-fetch-site", "cross-site") || is("sec-fetch-site", "same-site");
    let is_link = is("sec-fetch-mode", "navigate") && is("sec-fetch-dest", "document");
    let is_same_origin = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        host.is_some() && origin.as_ref().and_then(Uri::authority) == host
    };
    (is_other_site && !is_link) || !headers.get_all(ORIGIN).iter().all(is_same_origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(path: &str, headers: &[(&str, &str)]) -> u16 {
        let hosts =
            Hosts(["admin.example.com", "*.svc.cluster.local"].map(|one| NamePattern::parse(one).unwrap()).into());
        let mut request = Request::get(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        hosts.admit(&request.body(()).unwrap()).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn hostnames_that_can_be_rebound_are_refused() {
        for host in [
            "127.0.0.1:9443",
            "127.0.0.1",
            "10.1.2.3:80",
            "[::1]:9443",
            "[2001:db8::1]",
            "localhost",
            "LOCALHOST:1",
            "localhost.:9443",
            "Admin.Example.com:9443",
            "snigate.edge.svc.cluster.local",
        ] {
            assert_eq!(status("/api/status", &[("host", host)]), 200, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9443",
            "admin.example.com.evil.example",
            "svc.cluster.local",
            "localhost.evil.example",
            "evil.localhost",
            "127.0.0.1.evil.example",
            "2130706433",
            "0x7f.1",
            "127.1",
        ] {
            assert_eq!(status("/api/status", &[("host", host)]), 421, "{host}");
            assert_eq!(status("/metrics", &[("host", host)]), 421, "{host}");
        }
        for host in ["127.0.0.1@evil.example", "a b", "evil.example/", "[::1", "\u{e4}"] {
            assert_eq!(status("/api/status", &[("host", host)]), 400, "{host}");
        }
        assert_eq!(status("/", &[("host", "127.0.0.1"), ("host", "evil.example")]), 400);
        assert_eq!(status("http://evil.example/api/status", &[("host", "127.0.0.1")]), 421);
        assert_eq!(status("http://127.0.0.1/api/status", &[("host", "evil.example")]), 421);
    }

    #[test]
    fn probes_need_no_host() {
        for path in ["/livez", "/readyz", "/healthz", "/metrics"] {
            assert_eq!((status(path, &[]), status(path, &[("host", "")])), (200, 200), "{path}");
        }
        assert_eq!(status("/livez", &[("host", "whatever.example")]), 200);
        assert_eq!(status("/metrics", &[("host", "whatever.example")]), 421);
        for path in ["/", "/api/status", "/page.js", "/metrics/x"] {
            assert_eq!(status(path, &[]), 421, "{path}");
        }
    }

    #[test]
    fn cross_origin_requests_are_refused() {
        let status_of = |more: &[(&str, &str)]| status("/api/events", &[&[("host", "127.0.0.1:9443")], more].concat());
        assert_eq!(status_of(&[("origin", "http://127.0.0.1:9443")]), 200);
        assert_eq!(status_of(&[("sec-fetch-site", "same-origin")]), 200);
        assert_eq!(status_of(&[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")]), 200);
        let link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert_eq!(status_of(&link), 200);
        let frame = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "iframe")];
        for wrong in [
            &[("origin", "http://evil.example")][..],
            &[("origin", "http://127.0.0.1:9444")],
            &[("origin", "null")],
            &[("sec-fetch-site", "cross-site")],
            &[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "no-cors")],
            &frame,
        ] {
            assert_eq!(status_of(wrong), 403, "{wrong:?}");
        }
    }
}
