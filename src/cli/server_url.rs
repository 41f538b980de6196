//! The `server` URL of a kubeconfig.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hyper::Uri;

use crate::name::ServerName;

#[derive(Clone, Debug)]
pub(crate) struct ServerUrl {
    url: String,
    /// The SNI that kubectl sends; `None` for an IP address.
    pub(crate) name: Option<String>,
    pub(crate) port: u16,
}

impl ServerUrl {
    pub(crate) fn new(name: &str, port: u16) -> Self {
        Self { url: format!("https://{name}:{port}"), name: Some(name.into()), port }
    }
}

impl FromStr for ServerUrl {
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

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::ServerUrl;

    #[test]
    fn urls_are_parsed_like_kubectl() {
        for (url, name, port) in [
            ("https://Dev.example.com:6443/", Some("dev.example.com"), 6443),
            ("https://dev.example.com./k8s/one", Some("dev.example.com"), 443),
            ("https://192.0.2.1:1", None, 1),
            ("https://[2001:db8::1]", None, 443),
        ] {
            let server: ServerUrl = url.parse().unwrap();
            assert_eq!((server.name.as_deref(), server.port), (name, port), "{url}");
        }
        for wrong in
            ["dev.example.com:6443", "http://a.example", "https://", "https://u:p@a.example", "https://127.1", ""]
        {
            assert!(wrong.parse::<ServerUrl>().is_err(), "{wrong}");
        }
    }
}
