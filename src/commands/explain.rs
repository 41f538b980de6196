//! `snigate explain`

use std::io::{Write as _, stdout};
use std::net::IpAddr;
use std::process::ExitCode;

use crate::client_hello::{Alpn, ClientHello, Framing, IpLiteral, Parsed, SupportedVersions};
use crate::config::{Config, Route};
use crate::connection::admission::{AccessRules, NotAdmitted};
use crate::name::{NamePattern, ServerName, ip_literal};
use crate::route::{Client, MatchedBy, Matchers};
use crate::text::{input, pasted};
use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::routing::{alpn_list, any_listener, any_protocol, route_table};
use crate::cli::Explain;

pub(super) fn run(options: &Explain) -> anyhow::Result<ExitCode> {
    let config = Config::load(&options.config)?;
    let listener = match &options.listener {
        None => 0,
        Some(name) => config.listeners.iter().position(|listener| listener.name == *name).with_context(|| {
            let known: Vec<&str> = config.listeners.iter().map(|listener| &*listener.name).collect();
            format!("no listener is named `{name}`; expected one of {}", known.join(", "))
        })?,
    };
    let mut explanation = match (&options.sni, &options.hello) {
        (Some(name), _) => explain_name(&config, name, &options.alpn, listener),
        (None, Some(path)) => explain_hello(
            &config,
            &input::read(path).with_context(|| format!("cannot read {}", input::name_of(path)))?,
            listener,
        ),
        (None, None) => bail!("expected --sni or --hello"),
    };
    explanation.apply_access_rules(&config, listener, options.client);
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
    reason: Option<String>,
    route: Option<String>,
    endpoints: Vec<String>,
    client: Option<IpAddr>,
    /// `None`: no client address was given.
    is_admitted: Option<bool>,
    /// The access rules that decided, or that apply.
    access: Option<String>,
}

fn explain_name(config: &Config, name: &str, alpn: &[String], listener: usize) -> Explanation {
    let server_name = match ServerName::parse(name.as_bytes()) {
        Ok(server_name) => server_name,
        Err(_) if counts_as_no_sni(config, name.as_bytes(), listener) => {
            let list = alpn_list(alpn.iter().map(String::as_bytes));
            return explain_ip_literal(config, alpn.to_vec(), Alpn::from_list(&list).ok(), listener);
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
    let list = alpn_list(alpn.iter().map(String::as_bytes));
    let offered = Alpn::from_list(&list);
    explanation.find_route(config, &Client { server_name: Some(server_name), alpn: offered.ok(), listener });
    explanation
}

/// Whether it is an IP address, and the listener treats those as no SNI.
fn counts_as_no_sni(config: &Config, name: &[u8], listener: usize) -> bool {
    config.listeners[listener].ip_literal == IpLiteral::NoName && ip_literal(name).is_some()
}

fn explain_ip_literal(config: &Config, alpn: Vec<String>, offered: Option<Alpn<'_>>, listener: usize) -> Explanation {
    let mut explanation = Explanation { outcome: "no_sni", alpn, ..Explanation::default() };
    explanation.find_route(config, &Client { server_name: None, alpn: offered, listener });
    explanation.note_ip_literal();
    explanation
}

fn explain_hello(config: &Config, bytes: &[u8], listener: usize) -> Explanation {
    let mut framing = Framing::new(config.limits.hello_bytes);
    match framing.parse(bytes) {
        Parsed::Complete(hello) => {
            let mut explanation = describe(&hello);
            let client = Client { server_name: hello.server_name, alpn: hello.alpn.ok(), listener };
            explanation.find_route(config, &client);
            explanation
        }
        Parsed::Incomplete => Explanation {
            outcome: "need_more",
            reason: Some(format!("incomplete ClientHello: {} bytes read", bytes.len())),
            ..Explanation::default()
        },
        Parsed::Invalid(invalid)
            if invalid.server_name.is_some_and(|name| counts_as_no_sni(config, name, listener)) =>
        {
            match ClientHello::parse_with(framing.message(bytes), IpLiteral::NoName) {
                Ok(hello) => {
                    let mut explanation = describe(&hello);
                    explanation.find_route(config, &Client { server_name: None, alpn: hello.alpn.ok(), listener });
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
        ..Explanation::default()
    }
}

impl Explanation {
    fn find_route(&mut self, config: &Config, client: &Client<'_>) {
        let table = route_table(config);
        let found = table.find(client);
        let near_misses = near_misses(config, client, found.as_ref().map(|found| found.by));
        let Some(found) = found else {
            self.reason = Some(match client.server_name {
                _ if !near_misses.is_empty() => near_misses.join("; "),
                Some(_) => "no route matches this name, and there is no catch-all route".into(),
                None => "the client sent no SNI, and there is no catch-all route".into(),
            });
            return;
        };
        let route = &config.routes[*found.target];
        self.route = Some(route.name.clone());
        self.endpoints = route.upstream.destinations.iter().map(ToString::to_string).collect();
        let by_name = match found.by {
            MatchedBy::Exact => "exact name".into(),
            MatchedBy::Suffix(suffix) => format!("wildcard *.{suffix}"),
            MatchedBy::CatchAll => "catch-all route".into(),
        };
        let matchers = match (&route.matchers.alpn, &route.matchers.listeners) {
            (None, None) => "",
            (Some(_), None) => ", ALPN matches",
            (None, Some(_)) => ", listener matches",
            (Some(_), Some(_)) => ", ALPN and listener match",
        };
        let reasons: Vec<String> = [by_name + matchers].into_iter().chain(near_misses).collect();
        self.reason = Some(reasons.join("; "));
    }

    fn note_ip_literal(&mut self) {
        let reason = self.reason.take().unwrap_or_default();
        self.reason = Some(format!("an IP address in SNI counts as no SNI (ip_literal_sni); {reason}"));
    }

    /// Applies the access rules of the listener, and of the route if one matches.
    fn apply_access_rules(&mut self, config: &Config, listener: usize, client: Option<IpAddr>) {
        let listener = &config.listeners[listener];
        let proxied = listener.balancers.as_ref();
        let proxied =
            proxied.map_or(String::new(), |from| format!("; client address is from the PROXY header sent by {from}"));
        let route = config.routes.iter().find(|route| Some(&route.name) == self.route.as_ref());
        let lists = [(format!("listener {}", listener.name), &listener.sources)];
        let lists = lists.into_iter().chain(route.map(|route| (format!("route {}", route.name), &route.sources)));
        let lists: Vec<(String, &AccessRules)> =
            lists.filter(|(_, sources)| **sources != AccessRules::default()).collect();
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
            "reason": self.reason,
            "route": self.route,
            "client": self.client,
            "admitted": self.is_admitted,
            "access": self.access,
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
        lines.concat()
    }
}

/// Routes that match the name more specifically than the one found, and what else they require.
fn near_misses(config: &Config, client: &Client<'_>, found: Option<MatchedBy<'_>>) -> Vec<String> {
    let found = found.map(|by| match by {
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
        let (strength, how) = matching.max().or(catch_all)?;
        let is_better = found.is_none_or(|found| strength > found);
        is_better.then(|| format!("route {} {how} but requires {}", route.name, unmet(config, route, client)))
    };
    config.routes.iter().filter_map(near_miss).collect()
}

/// What the route requires and the client does not meet.
fn unmet(config: &Config, route: &Route, client: &Client<'_>) -> String {
    let Matchers { alpn, listeners } = &route.matchers;
    let alpn = alpn.as_ref().filter(|_| !route.matchers.alpn_holds(client.alpn));
    let listeners = listeners.as_ref().filter(|_| !route.matchers.listener_holds(client.listener));
    let alpn = alpn.map(|alpn| format!("ALPN {}", any_protocol(alpn)));
    let listeners = listeners.map(|indices| format!("listener {}", any_listener(indices, &config.listeners)));
    alpn.into_iter().chain(listeners).collect::<Vec<_>>().join(" and ")
}
