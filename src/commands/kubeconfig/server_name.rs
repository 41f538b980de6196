//! Which name kubectl has to ask for, so that it is led to the route and can verify who answers.

use crate::config::{Config, Route};
use crate::name::{NamePattern, ServerName};
use crate::route::{Client, RouteTable};
use anyhow::{Context, bail};

use super::exact_names;
use crate::cli::ServerUrl;
use crate::commands::{kubectl_alpn, route_table};

/// Clients that come to the router for one route.
pub(super) struct Clients<'c> {
    config: &'c Config,
    table: RouteTable<usize>,
    route: &'c Route,
    listener: usize,
}

/// What is known of the names in the API server's certificate.
pub(super) enum Certificate {
    /// Nobody verifies them.
    Unverified,
    /// Somebody verifies these already; there may be others.
    Verified(Vec<String>),
    /// All of them.
    Seen(Vec<String>),
}

/// Whether this name of a certificate, perhaps a wildcard, is good for this host (RFC 9525, section 6.3).
fn covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => name.eq_ignore_ascii_case(host),
    }
}

impl<'c> Clients<'c> {
    pub(super) fn of(config: &'c Config, route: &'c Route, server: &ServerUrl) -> Self {
        let numbers: Vec<usize> = match &route.matchers.listeners {
            Some(numbers) => numbers.to_vec(),
            None => (0..config.listeners.len()).collect(),
        };
        // A balancer in front may have a port of its own.
        let same_port = numbers.iter().find(|number| config.listeners[**number].address.port() == server.port);
        let listener = same_port.or(numbers.first()).copied().unwrap_or(0);
        Self { config, table: route_table(config), route, listener }
    }

    /// The `tls-server-name` they need. `wanted`: by the operator.
    pub(super) fn tls_server_name(
        &self,
        server: &ServerUrl,
        wanted: Option<&str>,
        certificate: &Certificate,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<Option<String>> {
        let route = &self.route.name;
        if let Some(name) = wanted {
            if !self.lead_here(Some(name)) {
                let has_it = exact_names(self.route).any(|exact| exact.eq_ignore_ascii_case(name));
                let to_add =
                    if has_it { self.new_name() } else { format!("`{name}` added to `sni` of the route `{route}`") };
                let expected: Vec<String> = self.names().into_iter().chain([to_add]).collect();
                bail!("clients that ask for `{name}` {}{}", self.fate(wanted), self.cure(&expected));
            }
            return Ok(Some(name.into()));
        }
        let host = server.name.as_deref();
        let host_leads_here = self.lead_here(host);
        let carried = match certificate {
            Certificate::Unverified => &[][..],
            Certificate::Verified(names) | Certificate::Seen(names) => names,
        };
        let is_carried = host.is_some_and(|host| carried.iter().any(|name| covers(name, host)));
        if host_leads_here && (is_carried || carried.is_empty()) {
            if let (Some(host), Certificate::Verified(_), false) = (host, certificate, is_carried) {
                notes.push(format!(
                    "Whether the API server's certificate has `{host}` is not known here: --admin asks the running snigate."
                ));
            }
            return Ok(None);
        }
        if let Some(name) = carried.iter().find(|name| self.lead_here(Some(name))) {
            notes.push("`tls-server-name`: the certificate carries it, or it would not be verified already.".into());
            return Ok(Some(name.clone()));
        }
        if let Certificate::Seen(names) = certificate {
            let list = names.join(", ");
            bail!(
                "the certificate of the route `{route}` has {list}, of which none routes there: kubectl would not verify \
                 it; expected one of these names in the route's `sni`, or a certificate that has one of the route's names"
            );
        }
        if let Some(name) = carried.first() {
            notes.push(format!(
                "The certificate is known to carry `{name}`, which does not lead to the route `{route}`. Should kubectl \
                 find it not valid for the name in use, add `{name}` to the route's `sni`, and make this again."
            ));
        }
        if host_leads_here {
            return Ok(None);
        }
        let name = exact_names(self.route).find(|name| self.lead_here(Some(name)));
        let name = name.with_context(|| {
            let asked = host.map_or("no name".into(), |host| format!("`{host}`"));
            let names = self.names().map(|names| format!("--tls-server-name NAME where NAME is {names}"));
            let expected = ["another --server".into(), names.unwrap_or_else(|| self.new_name())];
            format!("clients of {server} ask for {asked}, and {}{}", self.fate(host), self.cure(&expected))
        })?;
        notes.push(match host {
            Some(host) => format!("`tls-server-name` leads to the route `{route}`, which `{host}` does not."),
            None => "`tls-server-name` is there as kubectl asks for no name where the server is an address.".into(),
        });
        Ok(Some(name.into()))
    }

    /// If they ask for this name, or for none.
    fn lead_here(&self, name: Option<&str>) -> bool {
        self.led_to(name).is_some_and(|route| route.name == self.route.name)
    }

    fn led_to(&self, name: Option<&str>) -> Option<&Route> {
        let server_name = name.map(|name| ServerName::parse(name.as_bytes())).transpose().ok()?;
        let client = Client { server_name, alpn: kubectl_alpn(), listener: self.listener };
        self.table.find(&client).map(|found| &self.config.routes[*found.target])
    }

    fn fate(&self, name: Option<&str>) -> String {
        match self.led_to(name) {
            Some(route) => format!("are led to the route `{}`", route.name),
            None => "are refused".into(),
        }
    }

    /// What to do where they are led elsewhere.
    fn cure(&self, expected: &[String]) -> String {
        let route = &self.route.name;
        if !self.route.matchers.alpn_holds(kubectl_alpn()) {
            return format!(": kubectl offers h2 and http/1.1, and the route `{route}` wants another `alpn`");
        }
        format!("; expected {}", expected.join(", or "))
    }

    fn new_name(&self) -> String {
        format!("a name in `sni` of `{}` that no other route has", self.route.name)
    }

    /// Those of the route's names that lead here.
    fn names(&self) -> Option<String> {
        if self.route.patterns.is_empty() {
            return Some("one that no other route has".into());
        }
        let leads_here = |pattern: &&NamePattern| match pattern {
            NamePattern::Exact(name) => self.lead_here(Some(name)),
            NamePattern::Suffix(suffix) => self.lead_here(Some(&format!("snigate-kubeconfig.{suffix}"))),
        };
        let names: Vec<String> = self.route.patterns.iter().filter(leads_here).map(ToString::to_string).collect();
        (!names.is_empty()).then(|| format!("one of {}", names.join(", ")))
    }
}
