//! One route, from the names that clients ask for to what answers them.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Config, Listener, Route};
use crate::name::NamePattern;
use crate::route::{Client, MatchedBy, RouteTable};
use crate::text::Destination;
use crate::text::units::first_of;
use crate::text::units::span;
use crate::upstream::health::{CaFile, EXPECTED, TlsClient};
use crate::upstream::{
    EndpointCertificate, HttpCheck, LocalAddresses, OwnListeners, TlsCheck, arrives_at, connect_to, error_message,
    lookup,
};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinError;
use tokio::time::timeout;

use super::listener::{Door, door, given_door, name_leads_here};
use super::report::{Check, Mark, Report};
use super::{all, end_to_end, endpoint};
use crate::commands::named::takes;
use crate::commands::{kubectl_alpn, route_table, unresolved};

/// Where no health check says how long it may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// A name or an answer with more addresses is cut in the text.
const MAX_LISTED: usize = 8;

/// What all routes have in common.
#[derive(Debug)]
pub(super) struct Here {
    pub(super) config: Config,
    table: RouteTable<usize>,
    /// In place of the listeners on this machine, if there are any.
    pub(super) through: Vec<SocketAddr>,
    own: LocalAddresses,
}

impl Here {
    pub(super) fn of(config: &Config, through: Vec<SocketAddr>) -> Self {
        Self { config: config.clone(), table: route_table(config), through, own: LocalAddresses::read() }
    }

    /// The route that has this very name, for kubectl at this listener.
    pub(super) fn has_name(&self, name: &str, listener: usize) -> Option<&Route> {
        let server_name = crate::name::ServerName::parse(name.as_bytes()).ok();
        let found = self.table.find(&Client { server_name, alpn: kubectl_alpn(), listener })?;
        (found.by == MatchedBy::Exact).then(|| &self.config.routes[*found.target])
    }

    /// Whether it is an address of this machine.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.own.has(address)
    }
}

/// A route, and how it is looked at.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) route: Route,
    pub(super) here: Arc<Here>,
    /// The name below a wildcard of it that clients are taken to ask for.
    below: Option<String>,
    /// What a client asks for to take the route; `None`: nothing.
    pub(super) asked_name: Option<ServerName<'static>>,
    pub(super) tls: TlsCheck,
    pub(super) http: HttpCheck,
    /// Whether the health check makes this request, too.
    pub(super) is_checked: bool,
    /// For a handshake, and for a request.
    pub(super) patience: Duration,
}

impl Visit {
    pub(super) fn of(route: &Route, below: Option<String>, here: &Arc<Here>, ca: Option<&Path>) -> Self {
        let exact = route.patterns.iter().find(|pattern| matches!(pattern, NamePattern::Exact(_)));
        let asked_name = exact.or(route.patterns.first()).and_then(|pattern| match pattern {
            NamePattern::Exact(name) => ServerName::try_from(name.to_string()).ok(),
            NamePattern::Suffix(suffix) => ServerName::try_from(format!("snigate-doctor.{suffix}")).ok(),
        });
        let below_name = below.clone().and_then(|name| ServerName::try_from(name).ok());
        let asked_name = below_name.clone().or(asked_name);
        let check = route.upstream.health_check.as_ref();
        let unverified = TlsCheck { ca_file: None, verified_name: None, asked_name: None, client: None };
        let mut tls = check.and_then(|check| check.tls.clone()).unwrap_or(unverified);
        tls.ca_file = tls.ca_file.or_else(|| ca.map(|ca| CaFile::File(ca.to_owned())));
        let is_bound = tls.verified_name.is_some();
        tls.asked_name = below_name.filter(|_| !is_bound).or(tls.asked_name).or_else(|| asked_name.clone());
        let http = check.and_then(|check| check.http.clone());
        let is_checked = http.is_some();
        let path = hyper::Uri::from_static("/readyz");
        let http =
            http.unwrap_or(HttpCheck { path, token_file: None, expect: vec![EXPECTED], unauthorized_is_alive: true });
        let patience = check.map_or(PATIENCE, |check| check.timeout);
        Self { route: route.clone(), here: Arc::clone(here), below, asked_name, tls, http, is_checked, patience }
    }

    /// The names that its clients ask for, as far as they are known.
    pub(super) fn names(&self) -> Vec<NamePattern> {
        let below = self.below.as_deref().and_then(|name| NamePattern::parse(name).ok());
        below.map_or_else(|| self.route.patterns.clone(), |name| vec![name])
    }

    pub(super) async fn examine(self: Arc<Self>) -> Result<Report, JoinError> {
        let (names, doors, endpoints) = tokio::join!(self.ways_here(), self.doors(), self.endpoints());
        let (mut checks, doors, (upstream, shown)) = (names?, doors?, endpoints?);
        let shown = Arc::new(shown);
        let ways = doors.iter().filter_map(|door| door.open);
        let ways = all(ways.map(|door| end_to_end::examine(Arc::clone(&self), door, Arc::clone(&shown)))).await?;
        checks.extend(doors.into_iter().map(|door| door.check));
        checks.extend(upstream);
        checks.extend(ways);
        Ok(Report { name: self.route.name.clone(), asked: self.below.clone(), checks })
    }

    /// Whether clients that ask for the route's names come here.
    async fn ways_here(self: &Arc<Self>) -> Result<Vec<Check>, JoinError> {
        let names = self.names();
        let exact = names.iter().filter_map(NamePattern::as_exact);
        let mut checks = all(exact.map(|name| name_leads_here(Arc::clone(&self.here), name.to_owned()))).await?;
        if let (true, Some(NamePattern::Suffix(suffix))) = (checks.is_empty(), names.first()) {
            let says = format!(
                "which names below it clients ask for is not known here, so it is not checked where those lead, nor whether the \
                 certificate is for them: `snigate doctor -c FILE NAME` checks one, where NAME is such as api.{suffix}"
            );
            checks.push(Check::new(Mark::Note, "dns", &names[0], says));
        }
        Ok(checks)
    }

    /// Where clients of the route connect to.
    async fn doors(self: &Arc<Self>) -> Result<Vec<Door>, JoinError> {
        let through = &self.here.through;
        if !through.is_empty() {
            return all(through.iter().map(|address| given_door(Arc::clone(self), *address))).await;
        }
        let numbers = (0..self.here.config.listeners.len()).filter(|number| self.is_led_to_at(*number));
        all(numbers.map(|number| door(Arc::clone(self), number))).await
    }

    /// Whether clients of this listener come to the route.
    fn is_led_to_at(&self, listener: usize) -> bool {
        let name = self.below.as_ref().and_then(|name| crate::name::ServerName::parse(name.as_bytes()).ok());
        let Here { config, table, .. } = &*self.here;
        self.route.matchers.listener_holds(listener)
            && name.is_none_or(|name| takes(config, table, &self.route, name, listener))
    }

    /// Where the route leads, and the certificates there.
    async fn endpoints(self: &Arc<Self>) -> Result<(Vec<Check>, Vec<EndpointCertificate>), JoinError> {
        let destinations = self.route.upstream.destinations.clone();
        let mut checks = Vec::new();
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for (check, found) in all(destinations.into_iter().map(resolve)).await? {
            checks.extend(check);
            addresses.extend(found);
        }
        addresses.sort_unstable();
        addresses.dedup();
        let listeners: Vec<SocketAddr> = self.here.config.listeners.iter().map(|listener| listener.address).collect();
        let own = OwnListeners::new(&listeners);
        let (loops, addresses): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| own.contains(*address));
        drop(own);
        let says = "is a listener of this snigate: connections would go in circles";
        let looped = |address| Check::new(Mark::Failed, "connect", address, says);
        checks.extend(loops.into_iter().map(looped));
        let mut certificates = Vec::new();
        for (found, certificate) in
            all(addresses.into_iter().map(|address| endpoint::examine(Arc::clone(self), address))).await?
        {
            checks.extend(found);
            certificates.extend(certificate);
        }
        Ok((checks, certificates))
    }

    /// As the router does, in the time that it allows.
    pub(super) async fn connect(&self, address: SocketAddr) -> Result<TcpStream, String> {
        let per_try = self.route.upstream.budget.per_try;
        match timeout(per_try, connect_to(address, &self.here.config.tcp)).await {
            Ok(result) => result.map(|(stream, _)| stream).map_err(|error| error_message(&error)),
            Err(_) => Err(late(per_try)),
        }
    }

    /// On a thread where a file system that hangs holds up nobody else.
    pub(super) async fn client(&self) -> Result<TlsClient, String> {
        let tls = self.tls.clone();
        let read = tokio::task::spawn_blocking(move || TlsClient::read(&tls)).await;
        read.map_err(|error| error.to_string())?
    }

    /// Whether the configuration lets a client with this address in at this listener.
    pub(super) fn admits(&self, door: SocketAddr, client: SocketAddr) -> bool {
        let ip = client.ip().to_canonical();
        let is_it = |listener: &&Listener| arrives_at(door, listener.address);
        let listener = self.here.config.listeners.iter().find(is_it);
        self.route.sources.admit(ip) && listener.is_none_or(|listener| listener.sources.admit(ip))
    }

    /// The other route that has this very name.
    pub(super) fn other_with(&self, name: &str) -> Option<&Route> {
        let listener = self.route.matchers.listeners.as_ref().and_then(|numbers| numbers.first());
        self.here.has_name(name, listener.copied().unwrap_or(0)).filter(|route| route.name != self.route.name)
    }

    /// What was asked, and that the answer is the right one.
    pub(super) fn well_answered(&self) -> String {
        let HttpCheck { path, expect, .. } = &self.http;
        if *expect == [EXPECTED] { format!("{path} 200") } else { format!("{path} as `expect` has it") }
    }

    /// What the operator has not configured as a check need not be there.
    pub(super) fn mark_of_wrong_answer(&self) -> Mark {
        if self.is_checked { Mark::Failed } else { Mark::Note }
    }
}

pub(super) fn late(within: Duration) -> String {
    format!("no answer within {}", span(within))
}

/// The addresses of a destination; an address needs no check.
async fn resolve(destination: Destination) -> (Option<Check>, Vec<SocketAddr>) {
    let begun = Instant::now();
    let Some((host, port)) = destination.name() else { return (None, destination.address().into_iter().collect()) };
    let (mark, says, addresses) = match lookup(host, port).await {
        Ok(addresses) => {
            let ips: Vec<IpAddr> = addresses.iter().map(SocketAddr::ip).collect();
            (Mark::Ok, format!("resolves to {}", list(&ips)), addresses)
        }
        Err(error) => (Mark::Failed, format!("does not resolve: {}", unresolved(&error)), Vec::new()),
    };
    (Some(Check::new(mark, "resolve", &destination, says).since(begun)), addresses)
}

pub(super) fn list(addresses: &[IpAddr]) -> String {
    first_of(addresses.iter(), MAX_LISTED)
}
