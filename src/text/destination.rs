//! Endpoints as the operator writes them: `host:port`, where the host is an IP address or a hostname; in a cluster, a
//! Service.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::name::{NameError, ServerName};
use crate::text::pasted;

/// `host:port`. A hostname stands for all the addresses it resolves to, and a Service for those of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Destination {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Host {
    Address(IpAddr),
    Name(Box<str>),
    /// `namespace/name`, which no hostname can be.
    #[cfg_attr(not(any(test, feature = "gateway")), expect(dead_code, reason = "only clusters have Services"))]
    Service(Box<str>),
}

impl Destination {
    /// A port of a Service in a cluster.
    #[cfg(any(test, feature = "gateway"))]
    pub(crate) fn service(namespace: &str, name: &str, port: u16) -> Self {
        Self { host: Host::Service(format!("{namespace}/{name}").into()), port }
    }

    /// Whether its addresses are published by what watches the cluster.
    pub(crate) fn is_service(&self) -> bool {
        matches!(self.host, Host::Service(_))
    }

    /// `None` for a hostname or a Service.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Address(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) | Host::Service(_) => None,
        }
    }

    /// Hostname and port; `None` for an IP address or a Service.
    pub(crate) fn name(&self) -> Option<(&str, u16)> {
        match &self.host {
            Host::Address(_) | Host::Service(_) => None,
            Host::Name(name) => Some((name, self.port)),
        }
    }

    /// The API server of a Kubernetes cluster on DC/OS: the virtual address of its service, whose name has the slashes
    /// removed.
    pub(crate) fn dcos(service: &str, port: u16) -> Result<Self, String> {
        let label = service.replace('/', "");
        if label.is_empty() {
            return Err("the service name is missing".into());
        }
        format!("apiserver.{label}.l4lb.thisdcos.directory:{port}").parse()
    }
}

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Address(address.ip()), port: address.port() }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) | Host::Service(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(found) = pasted::endpoint(text) {
            return Err(found);
        }
        let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or("the port must be a number from 1 to 65535")?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = if let Some(address) = bracketed {
            Host::Address(address.parse::<Ipv6Addr>().map_err(|_| "invalid IPv6 address in brackets")?.into())
        } else if host.contains(':') {
            return Err("an IPv6 address needs brackets".into());
        } else if let Ok(address) = host.parse() {
            Host::Address(address)
        } else {
            ServerName::parse(host.as_bytes()).map_err(|error| match error {
                NameError::IpAddress => "neither an IP address nor a DNS name".into(),
                error => error.to_string(),
            })?;
            // Kept as written: a trailing dot stops resolvers from trying search domains.
            Host::Name(host.into())
        };
        Ok(Self { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_as_they_print() {
        for text in ["api.example.com:6443", "192.0.2.1:6443", "[2001:db8::1]:6443", "api_1:1", "api.example.com.:1"] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
        for text in
            ["api.example.com", ":6443", "a:0", "a:65536", "a:b", "2001:db8::1:6443", "[a]:1", "a b:1", "1.2.3:1"]
        {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_dcos_service_is_its_api_server() {
        let dcos = |service| Destination::dcos(service, 6443).map(|destination| destination.to_string());
        let expected = "apiserver.devkubernetes01.l4lb.thisdcos.directory:6443";
        assert_eq!(dcos("dev/kubernetes01").unwrap(), expected);
        assert_eq!(dcos("/dev/kubernetes01").unwrap(), expected);
        assert_eq!(dcos("kubernetes-cluster").unwrap(), "apiserver.kubernetes-cluster.l4lb.thisdcos.directory:6443");
        for service in ["", "/", "a b", "a.b/c d"] {
            assert!(dcos(service).is_err(), "{service}");
        }
    }
}
