//! What the checks of a route need: its configuration, and connections like a client's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, Listener, Route};
use crate::name::NamePattern;
use crate::route::{Arrival, Client, MatchedBy, Matchers, RouteTable, Tlvs};
use crate::text::units::{first_of, span};
use crate::upstream::health::{CaFile, EXPECTED, TlsClient};
use crate::upstream::{
    HttpCheck, LocalAddress, LocalAddresses, Purpose, TlsCheck, arrives_at, connect_to, error_message,
};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::report::Verdict;
use crate::commands::named::takes;
use crate::commands::routing::conditions;
use crate::commands::{kubectl_alpn, route_table};

/// For a handshake or a request, if the route has no health check with a timeout.
const DEFAULT_CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// IP addresses in a message.
const MAX_LISTED: usize = 8;

/// Where the routes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    File,
    #[cfg(feature = "gateway")]
    Cluster,
}

impl Source {
    pub(super) fn option(self) -> &'static str {
        match self {
            Self::File => "-c",
            #[cfg(feature = "gateway")]
            Self::Cluster => "--kubeconfig",
        }
    }

    /// What has the hostnames of a route.
    pub(super) fn hostnames(self) -> &'static str {
        match self {
            Self::File => "`sni`",
            #[cfg(feature = "gateway")]
            Self::Cluster => "`hostnames`",
        }
    }
}

/// What the checks of all routes share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) source: Source,
    pub(super) config: Config,
    table: RouteTable<usize>,
    /// The addresses of `--through`, which are checked instead of the listeners; empty without it.
    pub(super) through: Vec<SocketAddr>,
    local_addresses: LocalAddresses,
}

impl Context {
    pub(super) fn new(source: Source, config: &Config, through: Vec<SocketAddr>) -> Self {
        let (table, local_addresses) = (route_table(config), LocalAddresses::read());
        Self { source, config: config.clone(), table, through, local_addresses }
    }

    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        self.local_addresses.has(address)
    }

    /// The route that kubectl reaches at this listener by this exact pattern.
    fn exact_match(&self, name: &str, listener: usize) -> Option<&Route> {
        let server_name = crate::name::ServerName::parse(name.as_bytes()).ok();
        let arrival = Arrival { listener, ..Arrival::default() };
        let found = self.table.find(&Client::new(server_name, kubectl_alpn(), arrival))?;
        (found.by == MatchedBy::Exact).then(|| &self.config.routes[*found.target])
    }
}

/// A route to check, and the settings of its checks.
#[derive(Debug)]
pub(super) struct RouteContext {
    pub(super) route: Route,
    pub(super) shared: Arc<Context>,
    /// Only this hostname is checked, which a wildcard of the route matches.
    pub(super) hostname: Option<String>,
    /// The addresses at which a cluster says that clients reach the route; `None`: of a configuration.
    pub(super) published: Option<Vec<SocketAddr>>,
    /// The SNI that selects the route; `None`: none.
    pub(super) sni: Option<ServerName<'static>>,
    pub(super) tls: TlsCheck,
    pub(super) http: HttpCheck,
    /// Whether `http` is configured as a health check, and not the default.
    has_http_check: bool,
    /// For a handshake, and for a request.
    pub(super) check_timeout: Duration,
}

impl RouteContext {
    pub(super) fn new(route: &Route, hostname: Option<String>, shared: &Arc<Context>, ca: Option<&Path>) -> Self {
        let exact = route.patterns.iter().find(|pattern| matches!(pattern, NamePattern::Exact(_)));
        let of_pattern = exact.or(route.patterns.first()).and_then(|pattern| match pattern {
            NamePattern::Exact(name) => ServerName::try_from(name.to_string()).ok(),
            NamePattern::Suffix(suffix) => ServerName::try_from(format!("snigate-doctor.{suffix}")).ok(),
        });
        let of_hostname = hostname.clone().and_then(|name| ServerName::try_from(name).ok());
        let sni = of_hostname.clone().or(of_pattern);
        let check = route.upstream.health_check.as_ref();
        let unverified = TlsCheck { ca_file: None, verified_name: None, asked_name: None, client: None };
        let mut tls = check.and_then(|check| check.tls.clone()).unwrap_or(unverified);
        tls.ca_file = tls.ca_file.or_else(|| ca.map(|ca| CaFile::File(ca.to_owned())));
        let has_verified_name = tls.verified_name.is_some();
        tls.asked_name = of_hostname.filter(|_| !has_verified_name).or(tls.asked_name).or_else(|| sni.clone());
        let http = check.and_then(|check| check.http.clone());
        let has_http_check = http.is_some();
        let path = hyper::Uri::from_static("/readyz");
        let http =
            http.unwrap_or(HttpCheck { path, token_file: None, expect: vec![EXPECTED], unauthorized_is_alive: true });
        let check_timeout = check.map_or(DEFAULT_CHECK_TIMEOUT, |check| check.timeout);
        Self {
            route: route.clone(),
            shared: Arc::clone(shared),
            hostname,
            published: None,
            sni,
            tls,
            http,
            has_http_check,
            check_timeout,
        }
    }

    #[cfg(feature = "gateway")]
    pub(super) fn published_at(self, addresses: Vec<SocketAddr>) -> Self {
        Self { published: Some(addresses), ..self }
    }

    /// The names that the certificate should be valid for.
    pub(super) fn names(&self) -> Vec<NamePattern> {
        let hostname = self.hostname.as_deref().and_then(|name| NamePattern::parse(name).ok());
        hostname.map_or_else(|| self.route.patterns.clone(), |name| vec![name])
    }

    /// The indices of the listeners where clients are routed to the route.
    pub(super) fn listeners(&self) -> impl Iterator<Item = usize> {
        let Context { config, table, .. } = &*self.shared;
        let name = self.hostname.as_ref().and_then(|name| crate::name::ServerName::parse(name.as_bytes()).ok());
        (0..config.listeners.len()).filter(move |listener| {
            self.route.matchers.listener_holds(*listener)
                && name.is_none_or(|name| takes(config, table, &self.route, name, *listener))
        })
    }

    /// What else than the name the route requires of a client that connects from this machine, and does not get.
    pub(super) fn unmet_by(&self, listener: usize, local: SocketAddr, destination: SocketAddr) -> Vec<String> {
        let arrival = Arrival {
            listener,
            client: Some(local.ip().to_canonical()),
            destination: Some(destination.ip().to_canonical()),
            tlvs: Tlvs::default(),
        };
        // The ALPN that is offered is what the route requires.
        let route = Route { matchers: Matchers { alpn: None, ..self.route.matchers.clone() }, ..self.route.clone() };
        conditions(&route, &self.shared.config, Some(&Client::new(None, None, arrival)))
    }

    /// Connects to an endpoint as health checks do.
    pub(super) async fn connect_to_endpoint(&self, address: SocketAddr) -> Result<TcpStream, String> {
        self.connect_from(self.route.upstream.dial(address).local, address).await
    }

    /// Connects within the timeout of the router.
    pub(super) async fn connect(&self, address: SocketAddr) -> Result<TcpStream, String> {
        self.connect_from(LocalAddress::Any, address).await
    }

    async fn connect_from(&self, local: LocalAddress, address: SocketAddr) -> Result<TcpStream, String> {
        let per_try = self.route.upstream.budget.per_try;
        match timeout(per_try, connect_to(address, local, Purpose::Check)).await {
            Ok(result) => result.map(|(stream, _)| stream).map_err(|error| error_message(&error)),
            Err(_) => Err(no_response(per_try)),
        }
    }

    /// Reads the files on a thread of their own, as a file system may hang.
    pub(super) async fn tls_client(&self) -> Result<TlsClient, String> {
        let tls = self.tls.clone();
        let read = tokio::task::spawn_blocking(move || TlsClient::read(&tls)).await;
        read.map_err(|error| error.to_string())?
    }

    /// Whether `allow` and `deny` of the route, and of the listener at this address, admit the client.
    pub(super) fn admits(&self, listener: SocketAddr, client: SocketAddr) -> bool {
        let ip = client.ip().to_canonical();
        let is_it = |configured: &&Listener| arrives_at(listener, configured.address);
        let listener = self.shared.config.listeners.iter().find(is_it);
        self.route.sources.admit(ip) && listener.is_none_or(|listener| listener.sources.admit(ip))
    }

    /// Another route that has this exact name in `sni`.
    pub(super) fn other_route_with(&self, name: &str) -> Option<&Route> {
        let listener = self.route.matchers.listeners.as_ref().and_then(|indices| indices.first());
        self.shared.exact_match(name, listener.copied().unwrap_or(0)).filter(|route| route.name != self.route.name)
    }

    /// The message for an expected response.
    pub(super) fn expected_response(&self) -> String {
        let HttpCheck { path, expect, .. } = &self.http;
        if *expect == [EXPECTED] { format!("{path} 200") } else { format!("{path}: a status in `expect`") }
    }

    /// Without an HTTP health check, the server may well be no API server.
    pub(super) fn verdict_on_unexpected_response(&self) -> Verdict {
        if self.has_http_check { Verdict::Failed } else { Verdict::Note }
    }
}

/// The address at which this machine reaches a listener that is bound to `address`.
pub(super) fn reachable_at(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        // [::] accepts IPv4, too.
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}

pub(super) fn no_response(within: Duration) -> String {
    format!("no response within {}", span(within))
}

pub(super) fn list(addresses: &[IpAddr]) -> String {
    first_of(addresses.iter(), MAX_LISTED)
}
