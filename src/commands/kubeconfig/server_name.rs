//! The `tls-server-name` of a kubeconfig: SNI that is routed to the route, and a name that the certificate has.

use crate::config::{Config, Route};
use crate::name::{NamePattern, ServerName};
use crate::route::{Client, RouteTable};
use anyhow::{Context, bail};

use super::exact_names;
use crate::cli::ServerUrl;
use crate::commands::routing::FittingClient;
use crate::commands::{kubectl_alpn, route_table};

/// How the router routes kubectl, by the SNI that it sends.
pub(super) struct KubectlRouting<'c> {
    config: &'c Config,
    table: RouteTable<usize>,
    /// The route that kubectl should reach.
    route: &'c Route,
    listener: usize,
}

/// The names known to be in the API server's certificate.
pub(super) enum CertificateNames {
    /// kubectl does not verify the certificate.
    NotVerified,
    /// Some of them.
    Partial(Vec<String>),
    Complete(Vec<String>),
}

impl CertificateNames {
    fn known(&self) -> &[String] {
        match self {
            Self::NotVerified => &[],
            Self::Partial(names) | Self::Complete(names) => names,
        }
    }
}

impl<'c> KubectlRouting<'c> {
    pub(super) fn new(config: &'c Config, route: &'c Route, server: &ServerUrl) -> Self {
        let listeners: Vec<usize> = match &route.matchers.listeners {
            Some(indices) => indices.to_vec(),
            None => (0..config.listeners.len()).collect(),
        };
        // Without a listener on this port, there is a load balancer in front.
        let same_port = listeners.iter().find(|index| config.listeners[**index].address.port() == server.port);
        let listener = same_port.or(listeners.first()).copied().unwrap_or(0);
        Self { config, table: route_table(config), route, listener }
    }

    /// `None`: the hostname of the URL is right. `given`: by the operator.
    pub(super) fn tls_server_name(
        &self,
        server: &ServerUrl,
        given: Option<&str>,
        certificate: &CertificateNames,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<Option<String>> {
        if let Some(name) = given {
            self.check_given(name)?;
            return Ok(Some(name.into()));
        }
        let route = &self.route.name;
        let hostname = server.name.as_deref();
        let is_routed = self.reaches(hostname);
        let known = certificate.known();
        let is_valid = hostname.is_some_and(|hostname| known.iter().any(|name| covers(name, hostname)));
        if is_routed && (is_valid || known.is_empty()) {
            if let (Some(hostname), CertificateNames::Partial(_), false) = (hostname, certificate, is_valid) {
                notes.push(format!(
                    "Unknown whether the API server's certificate is valid for `{hostname}`: use --admin or --probe."
                ));
            }
            return Ok(None);
        }
        if let Some(name) = known.iter().find(|name| self.reaches(Some(name))) {
            notes.push(format!("`tls-server-name`: the API server's certificate is valid for `{name}`."));
            return Ok(Some(name.clone()));
        }
        if let CertificateNames::Complete(names) = certificate {
            bail!(
                "the certificate of the route `{route}` is valid for {}, and none of these names is routed to it, so kubectl \
                 cannot verify it; expected one of them in the route's `sni`, or a certificate for one of the route's names",
                names.join(", ")
            );
        }
        if let Some(name) = known.first() {
            notes.push(format!(
                "The API server's certificate is valid for `{name}`, which is not routed to the route `{route}`. If kubectl \
                 reports another name as not valid, add `{name}` to the route's `sni` and generate this file again."
            ));
        }
        if is_routed {
            return Ok(None);
        }
        let name = exact_names(self.route).find(|name| self.reaches(Some(name)));
        let name = name.with_context(|| self.not_routed(server))?;
        notes.push(match hostname {
            Some(hostname) => format!("`tls-server-name` is routed to the route `{route}`, and `{hostname}` is not."),
            None => "`tls-server-name`: without it, kubectl sends no SNI to an IP address.".into(),
        });
        Ok(Some(name.into()))
    }

    fn check_given(&self, name: &str) -> anyhow::Result<()> {
        if self.reaches(Some(name)) {
            return Ok(());
        }
        let is_in_sni = exact_names(self.route).any(|exact| exact.eq_ignore_ascii_case(name));
        let add = if is_in_sni {
            self.unique_name()
        } else {
            format!("`{name}` added to `sni` of the route `{}`", self.route.name)
        };
        let expected: Vec<String> = self.routed_names().into_iter().chain([add]).collect();
        bail!("clients with the SNI `{name}` {}{}", self.actual(Some(name)), self.remedy(&expected));
    }

    fn not_routed(&self, server: &ServerUrl) -> String {
        let sni = server.name.as_ref().map_or("no SNI".into(), |hostname| format!("the SNI `{hostname}`"));
        let names = self.routed_names().map(|names| format!("--tls-server-name NAME where NAME is {names}"));
        let expected = ["another --server".into(), names.unwrap_or_else(|| self.unique_name())];
        let actual = self.actual(server.name.as_deref());
        format!("clients of {server} send {sni} and {actual}{}", self.remedy(&expected))
    }

    /// Whether kubectl with this SNI is routed to the route.
    fn reaches(&self, sni: Option<&str>) -> bool {
        self.find(sni).is_some_and(|route| route.name == self.route.name)
    }

    /// Where kubectl with this SNI is routed: to the route, if any client that meets its other matchers is.
    fn find(&self, sni: Option<&str>) -> Option<&Route> {
        let server_name = sni.map(|name| ServerName::parse(name.as_bytes())).transpose().ok()?;
        let mut other = None;
        for fitting in FittingClient::all_of(self.route) {
            let client = Client::new(server_name, kubectl_alpn(), fitting.arrival(self.listener));
            let found = self.table.find(&client).map(|found| &self.config.routes[*found.target]);
            if found.is_some_and(|route| route.name == self.route.name) {
                return found;
            }
            other = other.or(found);
        }
        other
    }

    fn actual(&self, sni: Option<&str>) -> String {
        match self.find(sni) {
            Some(route) => format!("are routed to the route `{}`", route.name),
            None => "are rejected".into(),
        }
    }

    fn remedy(&self, expected: &[String]) -> String {
        let route = &self.route.name;
        if !self.route.matchers.alpn_holds(kubectl_alpn()) {
            return format!(": the route `{route}` requires another ALPN than kubectl's h2 and http/1.1");
        }
        format!("; expected {}", expected.join(", or "))
    }

    fn unique_name(&self) -> String {
        format!("a name in `sni` of `{}` that no other route has", self.route.name)
    }

    /// The names of the route that are routed to it.
    fn routed_names(&self) -> Option<String> {
        if self.route.patterns.is_empty() {
            return Some("one that no other route has".into());
        }
        let is_routed = |pattern: &&NamePattern| match pattern {
            NamePattern::Exact(name) => self.reaches(Some(name)),
            NamePattern::Suffix(suffix) => self.reaches(Some(&format!("snigate-kubeconfig.{suffix}"))),
        };
        let names: Vec<String> = self.route.patterns.iter().filter(is_routed).map(ToString::to_string).collect();
        (!names.is_empty()).then(|| format!("one of {}", names.join(", ")))
    }
}

/// Whether this name of a certificate, perhaps a wildcard, is valid for the hostname (RFC 9525, section 6.3).
fn covers(name: &str, hostname: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => hostname.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => name.eq_ignore_ascii_case(hostname),
    }
}
