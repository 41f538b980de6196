//! `snigate explain`

use std::io::{Write as _, stdout};
use std::net::IpAddr;
use std::process::ExitCode;

use crate::client_hello::{Alpn, ClientHello, Framing, IpLiteral, Ja4, Parsed, SupportedVersions};
use crate::config::{Config, Listener, Route};
use crate::connection::accept_proxy::{AcceptProxy, Others};
use crate::connection::admission::{AccessRules, Fingerprints, NotAdmitted};
use crate::connection::unrouted;
use crate::name::{NamePattern, ServerName, ip_literal};
use crate::route::{Arrival, Client, Match, MatchedBy, Matchers, Tlvs};
use crate::text::units::counted;
use crate::text::{input, pasted};
use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::routing::{conditions, encode_tlvs, limits, route_table};
use crate::cli::Explain;

pub(super) fn run(options: &Explain) -> anyhow::Result<ExitCode> {
    #[cfg(feature = "gateway")]
    let config = super::manifests::load(&options.config, &options.in_files)?;
    #[cfg(not(feature = "gateway"))]
    let config = Config::load(&options.config)?;
    let listener = match &options.listener {
        None => 0,
        Some(name) => config.listeners.iter().position(|listener| listener.name == *name).with_context(|| {
            let known: Vec<&str> = config.listeners.iter().map(|listener| &*listener.name).collect();
            format!("no listener is named `{name}`; expected one of {}", known.join(", "))
        })?,
    };
    if !options.tlvs.is_empty() && config.listeners[listener].accept_proxy.is_none() {
        bail!("--tlv: the listener `{}` accepts no PROXY headers (`accept_proxy`)", config.listeners[listener].name);
    }
    let tlvs = encode_tlvs(&options.tlvs).context("--tlv: a value is longer than 65535 bytes")?;
    let arrival = Arrival {
        listener,
        client: options.client.map(|client| client.to_canonical()),
        destination: options.destination.map(|destination| destination.to_canonical()),
        tlvs: Tlvs::parse(&tlvs).unwrap_or_default(),
    };
    let mut explanation = match (&options.sni, &options.hello) {
        (Some(name), _) => explain_name(&config, name, &options.alpn, arrival),
        (None, Some(path)) => explain_hello(
            &config,
            &input::read(path).with_context(|| format!("cannot read {}", input::name_of(path)))?,
            arrival,
        ),
        // --no-sni
        (None, None) => explain_no_name(&config, &options.alpn, arrival),
    };
    explanation.apply_access_rules(&config, listener, options.client);
    explanation.apply_fingerprints(&config, listener);
    let text = if options.json { format!("{}\n", explanation.json()) } else { explanation.text() };
    stdout().write_all(text.as_bytes())?;
    Ok(if explanation.is_served() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How a client is routed, and why.
#[derive(Debug, Default)]
struct Explanation {
    outcome: &'static str,
    name: Option<String>,
    alpn: Vec<String>,
    versions: Vec<String>,
    ech: bool,
    /// `None`: there is no ClientHello.
    ja4: Option<Ja4>,
    reason: Option<String>,
    route: Option<String>,
    endpoints: Vec<String>,
    /// Of the route.
    limits: Vec<String>,
    client: Option<IpAddr>,
    /// `None`: no client address was given.
    is_admitted: Option<bool>,
    /// The access rules that decided, or that apply.
    access: Option<String>,
    /// The fingerprint rules that decided, or that apply.
    ja4_access: Option<String>,
}

fn explain_name(config: &Config, name: &str, alpn: &[String], arrival: Arrival<'_>) -> Explanation {
    let server_name = match ServerName::parse(name.as_bytes()) {
        Ok(server_name) => server_name,
        Err(_) if counts_as_no_sni(config, name.as_bytes(), arrival.listener) => {
            let mut explanation = explain_no_name(config, alpn, arrival);
            explanation.note_ip_literal();
            return explanation;
        }
        Err(error) => {
            let reason = Some(pasted::name(name, error));
            return Explanation { outcome: "reject", reason, ..Explanation::default() };
        }
    };
    let mut explanation = Explanation {
        outcome: "sni",
        name: Some(server_name.to_string()),
        alpn: alpn.to_vec(),
        ..Explanation::default()
    };
    let list = Alpn::encode(alpn.iter().map(String::as_bytes)).unwrap_or_default();
    let offered = Alpn::from_list(&list);
    explanation.find_route(config, &Client::new(Some(server_name), offered.ok(), arrival));
    explanation
}

/// Whether it is an IP address, and the listener treats those as no SNI.
fn counts_as_no_sni(config: &Config, name: &[u8], listener: usize) -> bool {
    config.listeners[listener].ip_literal == IpLiteral::NoName && ip_literal(name).is_some()
}

fn explain_no_name(config: &Config, alpn: &[String], arrival: Arrival<'_>) -> Explanation {
    let mut explanation = Explanation { outcome: "no_sni", alpn: alpn.to_vec(), ..Explanation::default() };
    let list = Alpn::encode(alpn.iter().map(String::as_bytes)).unwrap_or_default();
    explanation.find_route(config, &Client::new(None, Alpn::from_list(&list).ok(), arrival));
    explanation
}

fn explain_hello(config: &Config, bytes: &[u8], arrival: Arrival<'_>) -> Explanation {
    let mut framing = Framing::new(config.limits.hello_bytes);
    match framing.parse(bytes) {
        Parsed::Complete(hello) => {
            let mut explanation = describe(&hello);
            let client = Client::new(hello.server_name, hello.alpn.ok(), arrival);
            explanation.find_route(config, &client);
            explanation
        }
        Parsed::Incomplete => Explanation {
            outcome: "need_more",
            reason: Some(format!("incomplete ClientHello: {} bytes read", bytes.len())),
            ..Explanation::default()
        },
        Parsed::Invalid(invalid)
            if invalid.server_name.is_some_and(|name| counts_as_no_sni(config, name, arrival.listener)) =>
        {
            match ClientHello::parse_with(framing.message(bytes), IpLiteral::NoName) {
                Ok(hello) => {
                    let mut explanation = describe(&hello);
                    explanation.find_route(config, &Client::new(None, hello.alpn.ok(), arrival));
                    explanation.note_ip_literal();
                    explanation
                }
                Err(invalid) => Explanation {
                    outcome: "reject",
                    reason: Some(invalid.reason.to_string()),
                    ..Explanation::default()
                },
            }
        }
        Parsed::Invalid(invalid) => Explanation {
            outcome: "reject",
            name: invalid.server_name.map(|name| name.escape_ascii().to_string()),
            reason: Some(invalid.reason.to_string()),
            ..Explanation::default()
        },
    }
}

fn describe(hello: &ClientHello<'_>) -> Explanation {
    let alpn = hello.alpn.iter().flat_map(Alpn::iter);
    let versions = hello.supported_versions.iter().flat_map(SupportedVersions::iter);
    Explanation {
        outcome: if hello.server_name.is_some() { "sni" } else { "no_sni" },
        name: hello.server_name.map(|name| name.to_string()),
        alpn: alpn.map(|protocol| protocol.escape_ascii().to_string()).collect(),
        versions: versions.map(|version| format!("{version:#06x}")).collect(),
        ech: hello.ech,
        ja4: Some(hello.ja4()),
        ..Explanation::default()
    }
}

impl Explanation {
    fn find_route(&mut self, config: &Config, client: &Client<'_>) {
        let table = route_table(config);
        let found = table.find(client);
        let near_misses = near_misses(config, client, found.as_ref());
        let Some(found) = found else {
            self.reason = if near_misses.is_empty() {
                unrouted(client, &table).reason.map(Into::into)
            } else {
                Some(near_misses.join("; "))
            };
            return;
        };
        let route = &config.routes[*found.target];
        self.route = Some(route.name.clone());
        self.endpoints = route.upstream.endpoints.iter().map(ToString::to_string).collect();
        self.limits = limits(route);
        let by_name = match found.by {
            MatchedBy::Exact => "exact name".into(),
            MatchedBy::Suffix(suffix) => format!("wildcard *.{suffix}"),
            MatchedBy::CatchAll => "catch-all route".into(),
        };
        let Matchers { proxy_tlvs, destinations, clients, listeners, alpn } = &route.matchers;
        let matchers = [
            ("PROXY TLV", !proxy_tlvs.is_empty()),
            ("destination", destinations.is_some()),
            ("client", clients.is_some()),
            ("listener", listeners.is_some()),
            ("ALPN", alpn.is_some()),
        ];
        let matchers: Vec<&str> = matchers.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect();
        let matchers = match &matchers[..] {
            [] => String::new(),
            [one] => format!(", {one} matches"),
            [first @ .., last] => format!(", {} and {last} match", first.join(", ")),
        };
        let reasons: Vec<String> = [by_name + &matchers].into_iter().chain(near_misses).collect();
        self.reason = Some(reasons.join("; "));
    }

    fn note_ip_literal(&mut self) {
        let reason = self.reason.take().unwrap_or_default();
        self.reason = Some(format!("an IP address in SNI counts as no SNI (ip_literal_sni); {reason}"));
    }

    /// Applies the access rules of the listener, and of the route if one matches.
    fn apply_access_rules(&mut self, config: &Config, listener: usize, client: Option<IpAddr>) {
        let listener = &config.listeners[listener];
        let proxied =
            listener.accept_proxy.as_ref().map_or(String::new(), |AcceptProxy { from, others }| match others {
                Others::Refuse => format!("; client address is from the PROXY header sent by {from}"),
                Others::Direct => format!("; client address is from the PROXY header if {from} sends it"),
            });
        let networks = |(owner, rules): (String, &AccessRules)| {
            let networks = AccessRules { deny_ja4: Fingerprints::default(), ..rules.clone() };
            (networks != AccessRules::default()).then_some((owner, networks))
        };
        let lists: Vec<(String, AccessRules)> = self.access_rules(config, listener).filter_map(networks).collect();
        let Some(client) = client.map(|client| client.to_canonical()) else {
            let rules: Vec<String> = lists.iter().map(|(owner, sources)| format!("{owner}, {sources}")).collect();
            self.access = (!rules.is_empty())
                .then(|| format!("access depends on the address (--client IP): {}{proxied}", rules.join("; ")));
            return;
        };
        self.client = Some(client);
        let mut reasons = Vec::new();
        for (owner, sources) in lists {
            match sources.decide(client) {
                Ok(Some(network)) => reasons.push(format!("{owner}, allow {network}")),
                Ok(None) => reasons.push(format!("{owner}, not in deny")),
                Err(reason) => {
                    self.is_admitted = Some(false);
                    self.access = Some(match reason {
                        NotAdmitted::Denied(network) => format!("denied: {owner}, deny {network}{proxied}"),
                        NotAdmitted::NotAllowed => format!("denied: {owner}, not in allow{proxied}"),
                    });
                    return;
                }
            }
        }
        self.is_admitted = Some(true);
        let reasons = if reasons.is_empty() { "no access rules".into() } else { reasons.join("; ") };
        self.access = Some(format!("allowed: {reasons}{proxied}"));
    }

    /// Applies `deny_ja4` of the listener and the route.
    fn apply_fingerprints(&mut self, config: &Config, listener: usize) {
        let rules = self.access_rules(config, &config.listeners[listener]);
        let mut rules = rules.filter(|(_, rules)| !rules.deny_ja4.is_empty());
        if let Some(ja4) = self.ja4 {
            let Some((owner, _)) = rules.find(|(_, rules)| rules.denied_fingerprint(|| Some(ja4)).is_some()) else {
                return;
            };
            self.is_admitted = Some(false);
            self.ja4_access = Some(format!("denied: {owner}, deny_ja4 {ja4}"));
        } else {
            let rules: Vec<String> =
                rules.map(|(owner, rules)| format!("{owner}, deny_ja4 {}", rules.deny_ja4)).collect();
            self.ja4_access = (!rules.is_empty())
                .then(|| format!("access depends on the fingerprint (--hello FILE): {}", rules.join("; ")));
        }
    }

    /// The access rules of the listener, and of the route if one matches, each with its owner.
    fn access_rules<'c>(
        &self,
        config: &'c Config,
        listener: &'c Listener,
    ) -> impl Iterator<Item = (String, &'c AccessRules)> + use<'c> {
        let route = config.routes.iter().find(|route| Some(&route.name) == self.route.as_ref());
        let of_route = route.map(|route| (format!("route {}", route.name), &route.sources));
        [(format!("listener {}", listener.name), &listener.sources)].into_iter().chain(of_route)
    }

    fn is_served(&self) -> bool {
        self.route.is_some() && self.is_admitted != Some(false)
    }

    fn json(&self) -> Value {
        json!({
            "outcome": self.outcome,
            "sni": self.name,
            "alpn": self.alpn,
            "versions": self.versions,
            "ech": self.ech,
            "ja4": self.ja4.map(|ja4| ja4.to_string()),
            "reason": self.reason,
            "route": self.route,
            "client": self.client,
            "admitted": self.is_admitted,
            "access": self.access,
            "ja4_access": self.ja4_access,
            "limits": self.limits,
        })
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        let mut line = |key: &str, value: &str| lines.push(format!("{key:<11}{value}\n"));
        match self.outcome {
            "reject" => line("hello", "invalid"),
            "need_more" => line("hello", "incomplete"),
            _ => line("name", self.name.as_deref().unwrap_or("none")),
        }
        if !self.alpn.is_empty() {
            line("alpn", &self.alpn.join(", "));
        }
        if !self.versions.is_empty() {
            line("versions", &self.versions.join(", "));
        }
        if self.ech {
            line("ech", "yes; the name is the outer SNI");
        }
        match (self.ja4, &self.ja4_access) {
            (Some(ja4), None) => line("ja4", &ja4.to_string()),
            (_, Some(access)) => line("ja4", access),
            (None, None) => {}
        }
        if matches!(self.outcome, "sni" | "no_sni") {
            line("route", self.route.as_deref().unwrap_or("none: the client is refused"));
        }
        if !self.endpoints.is_empty() {
            line("routes to", &self.endpoints.join(", "));
        }
        if let Some(reason) = &self.reason {
            line("reason", reason);
        }
        match (self.client, &self.access) {
            (Some(client), Some(access)) => line("client", &format!("{client} {access}")),
            (None, Some(access)) => line("client", access),
            (_, None) => {}
        }
        if !self.limits.is_empty() {
            line("limits", &self.limits.join(", "));
        }
        lines.concat()
    }
}

/// Maximum number of routes that are listed because they do not match.
const MAX_NEAR_MISSES: usize = 5;

/// Routes that match the name at least as specifically as the one found, and what else they require.
fn near_misses(config: &Config, client: &Client<'_>, found: Option<&Match<'_, usize>>) -> Vec<String> {
    let strength = found.map(|found| match found.by {
        MatchedBy::Exact => usize::MAX,
        MatchedBy::Suffix(suffix) => suffix.len(),
        MatchedBy::CatchAll => 0,
    });
    let near_miss = |route: &Route| {
        let matches = |pattern: &&NamePattern| client.server_name.is_some_and(|name| pattern.matches(&name));
        let matching = route.patterns.iter().filter(matches).map(|pattern| match pattern {
            NamePattern::Exact(_) => (usize::MAX, "matches the name".into()),
            NamePattern::Suffix(suffix) => (suffix.len(), format!("matches the name by *.{suffix}")),
        });
        let catch_all = route.patterns.is_empty().then(|| (0, "is a catch-all".into()));
        let (own, how) = matching.max().or(catch_all)?;
        let unmet = conditions(route, config, Some(client));
        let is_near = strength.is_none_or(|found| own >= found) && !unmet.is_empty();
        is_near.then(|| format!("route {} {how} but requires {}", route.name, unmet.join(" and ")))
    };
    let mut near_misses: Vec<String> = config.routes.iter().filter_map(near_miss).collect();
    if near_misses.len() > MAX_NEAR_MISSES {
        let more = near_misses.len() - MAX_NEAR_MISSES;
        near_misses.truncate(MAX_NEAR_MISSES);
        near_misses.push(format!("{} with a matching name and other conditions", counted(more, "more route")));
    }
    near_misses
}
