//! Where a route leads: endpoints, and how one of them is reached.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use crate::name::{NameError, ServerName};
use crate::tcp::TcpOptions;

/// An API server, or several behind one name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Host {
    Address(IpAddr),
    Name(Box<str>),
}

impl Endpoint {
    /// The address, if the endpoint is not a name.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Address(ip) => Some(SocketAddr::new(ip, self.port)),
            Host::Name(_) => None,
        }
    }

    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        match &self.host {
            Host::Address(ip) => Ok(vec![SocketAddr::new(*ip, self.port)]),
            Host::Name(name) => Ok(lookup_host((&**name, self.port)).await?.collect()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return Err("a URL".into());
        }
        let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or("the port is no number from 1 to 65535")?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = if let Some(address) = bracketed {
            Host::Address(address.parse::<Ipv6Addr>().map_err(|_| "no IPv6 address in the brackets")?.into())
        } else if host.contains(':') {
            return Err("an IPv6 address needs brackets".into());
        } else if let Ok(address) = host.parse() {
            Host::Address(address)
        } else {
            ServerName::parse(host.as_bytes()).map_err(|error| match error {
                NameError::IpAddress => "neither an IP address nor a DNS name".into(),
                error => error.to_string(),
            })?;
            // As written: a trailing dot keeps resolvers from trying search domains.
            Host::Name(host.into())
        };
        Ok(Self { host, port })
    }
}

/// How long may be spent on reaching an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct ConnectBudget {
    /// In all, name resolution included.
    pub timeout: Duration,
    /// On one address.
    pub per_try: Duration,
}

/// The endpoints of one route.
#[derive(Debug)]
pub struct Upstream {
    endpoints: Box<[Endpoint]>,
    budget: ConnectBudget,
    tcp: TcpOptions,
    turn: AtomicUsize,
}

impl Upstream {
    /// Endpoints that take turns at being tried first.
    #[must_use]
    pub fn new(endpoints: impl Into<Box<[Endpoint]>>, budget: ConnectBudget, tcp: TcpOptions) -> Self {
        Self { endpoints: endpoints.into(), budget, tcp, turn: AtomicUsize::new(0) }
    }

    /// Connects to the first address that answers, trying every one in turn within the budget.
    pub async fn connect(&self) -> Result<Connected, ConnectError> {
        let deadline = Instant::now() + self.budget.timeout;
        let first = self.turn.fetch_add(1, Relaxed) % self.endpoints.len().max(1);
        let (before, from) = self.endpoints.split_at(first);
        let mut failure = ConnectError { kind: ConnectErrorKind::NoEndpoint, tries: 0, last: "no endpoint".into() };
        for endpoint in from.iter().chain(before) {
            let addresses = match timeout_at(deadline, endpoint.resolve()).await {
                Ok(Ok(addresses)) => addresses,
                Ok(Err(error)) => {
                    failure.or(ConnectErrorKind::NoEndpoint, endpoint, &error);
                    continue;
                }
                Err(_) => {
                    failure.or(ConnectErrorKind::NoEndpoint, endpoint, &"its name was not resolved in time");
                    break;
                }
            };
            for address in addresses {
                if Instant::now() >= deadline {
                    break;
                }
                let try_until = deadline.min(Instant::now() + self.budget.per_try);
                match timeout_at(try_until, self.connect_to(address)).await {
                    Ok(Ok(stream)) => {
                        let passed_over = (failure.tries > 0).then_some(failure);
                        return Ok(Connected { stream, address, passed_over });
                    }
                    Ok(Err(error)) => failure.or(ConnectErrorKind::of(&error), &address, &error),
                    Err(_) => failure.or(ConnectErrorKind::TimedOut, &address, &"no answer in time"),
                }
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(failure)
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        self.tcp.apply(&socket)?;
        socket.connect(address).await
    }
}

/// An endpoint that answered.
#[derive(Debug)]
pub struct Connected {
    /// The connection.
    pub stream: TcpStream,
    /// Whose it is.
    pub address: SocketAddr,
    /// What failed on the way to it, if anything did.
    pub passed_over: Option<ConnectError>,
}

/// No endpoint was reached.
#[derive(Debug, thiserror::Error)]
#[error("{tries} failed; {last}")]
pub struct ConnectError {
    /// The gravest of the failures.
    pub kind: ConnectErrorKind,
    /// How many names and addresses failed.
    pub tries: usize,
    /// The one that failed last with this kind, and how.
    pub last: String,
}

impl ConnectError {
    fn or(&mut self, kind: ConnectErrorKind, place: &dyn fmt::Display, error: &dyn fmt::Display) {
        self.tries += 1;
        if kind >= self.kind {
            self.kind = kind;
            self.last = format!("{place}: {error}");
        }
    }
}

/// Kinds of failure; a later one says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectErrorKind {
    /// There is no address to connect to.
    NoEndpoint,
    /// This machine could not try: no descriptor, port, memory or address of that family.
    Local,
    /// The endpoint refused, or could not be reached.
    Refused,
    /// The endpoint did not answer.
    TimedOut,
}

impl ConnectErrorKind {
    fn of(error: &io::Error) -> Self {
        use rustix::io::Errno;
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL | Errno::PERM) => {
                Self::Local
            }
            Some(Errno::TIMEDOUT) => Self::TimedOut,
            _ => Self::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_they_print() {
        for text in ["api.example.com:6443", "192.0.2.1:6443", "[2001:db8::1]:6443", "api_1:1", "api.example.com.:1"] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
        for text in
            ["api.example.com", ":6443", "a:0", "a:65536", "a:b", "2001:db8::1:6443", "[a]:1", "a b:1", "1.2.3:1"]
        {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_gravest_failure_is_told() {
        let mut failure = ConnectError { kind: ConnectErrorKind::NoEndpoint, tries: 0, last: String::new() };
        failure.or(ConnectErrorKind::TimedOut, &"a", &"slow");
        failure.or(ConnectErrorKind::Refused, &"b", &"closed");
        assert_eq!((failure.kind, failure.to_string().as_str()), (ConnectErrorKind::TimedOut, "2 failed; a: slow"));
    }
}
