//! `server`: where it listens, and where it leads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use ipnet::IpNet;

use super::names::{self, Value};
use super::syntax::Directive;
use super::{Stream, reasons, upstream};
use crate::commands::import::draft::{Draft, Frontend, Listens, Outcome, Rule, TLS_ENDED, UNCERTAIN};
use crate::commands::import::expression::{Expression, Limit, Test};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::sources::{Addresses, Sources};
use crate::commands::import::values::{duration, listen_address, network};

/// What a stream says for its servers, and a server for itself.
#[derive(Clone, Default)]
pub(super) struct Inherited<'a> {
    preread: Option<&'a Directive>,
    pub(super) connect_timeout: Option<&'a Directive>,
    timeout: Option<&'a Directive>,
    hello: Option<&'a Directive>,
    pub(super) proxy_protocol: Option<&'a Directive>,
    access: Vec<&'a Directive>,
    trusted: Vec<&'a Directive>,
    limit: Option<&'a Directive>,
    pub(super) zone: Option<&'a Directive>,
}

impl<'a> Inherited<'a> {
    pub(super) fn add(&mut self, directive: &'a Directive, ledger: &mut Ledger) {
        match directive.words()[..] {
            ["ssl_preread", _] => self.preread = Some(directive),
            ["proxy_connect_timeout", _] => self.connect_timeout = Some(directive),
            ["proxy_timeout", _] => self.timeout = Some(directive),
            ["preread_timeout", _] => self.hello = Some(directive),
            ["proxy_protocol", _] => self.proxy_protocol = Some(directive),
            ["allow" | "deny", _] => self.access.push(directive),
            ["set_real_ip_from", _] => self.trusted.push(directive),
            ["limit_conn", _, _] => self.limit = Some(directive),
            ["ssl_verify_client", "on"] => ledger.wider(
                &directive.place(),
                "`ssl_verify_client`: nginx refuses clients without a certificate; here the server decides, which gets \
                the client's certificate",
            ),
            ["include", _] => {}
            _ => ledger.note(&directive.place(), reasons::of(&directive.words())),
        }
    }
}

pub(super) fn read<'a>(server: &'a Directive, stream: &mut Stream<'a>, draft: &mut Draft, ledger: &mut Ledger) {
    let mut settings = Inherited { access: Vec::new(), ..stream.inherited.clone() };
    let mut listens = Vec::new();
    let mut target = None;
    let mut server_names: Option<&Directive> = None;
    for directive in server.inside() {
        match directive.words()[..] {
            ["listen", _, ..] => listens.push(directive),
            ["proxy_pass", _] => target = Some(directive),
            ["server_name", _, ..] => server_names = Some(directive),
            _ => settings.add(directive, ledger),
        }
    }
    if settings.access.is_empty() {
        settings.access.clone_from(&stream.inherited.access);
    }
    let Some(target) = target else {
        return ledger.note(&server.whole(), "without `proxy_pass` it leads nowhere");
    };
    let mut frontend = Frontend {
        name: "port".into(),
        place: server.whole(),
        addresses: Vec::new(),
        accept_proxy: BTreeMap::new(),
        sources: Sources::default(),
        phases: Vec::new(),
        rules: Vec::new(),
        limits: Vec::new(),
        ended_tls: false,
        places: server.frame().into_iter().chain([target.place()]).collect(),
    };
    let is_default = listen_all(&mut frontend, &listens, &settings, draft, ledger);
    if let Some(first) = frontend.addresses.first() {
        frontend.name = format!("port-{}", first.port());
    }
    let rules = rules(target, &settings, stream, draft, ledger).unwrap_or_else(|reason| {
        ledger.narrower(&target.place(), format!("{reason}; its clients are refused"));
        Vec::new()
    });
    if settings.preread.is_none() && !frontend.ended_tls && !target.words[1].starts_with('$') {
        ledger.note(&server.place(), UNCERTAIN);
    }
    settings.apply(&mut frontend, stream, draft, ledger);
    let at = frontend.addresses.clone();
    let shared = draft.frontends.iter_mut().find(|other| other.addresses == frontend.addresses);
    let is_shared = match shared {
        Some(shared) if server_names.is_some() && !at.is_empty() => {
            shared.places.extend(frontend.places);
            let written = |phases: &[Vec<Rule>]| {
                let rules = phases.iter().flatten();
                rules.map(|rule| format!("{:?}{:?}", rule.when, rule.then)).collect::<Vec<_>>()
            };
            if written(&shared.phases) != written(&frontend.phases) {
                let reason = "its `allow` and `deny` differ from those of the first server at this address, which hold";
                ledger.wider(&frontend.place, reason);
            }
            true
        }
        _ => {
            keep_free(&mut frontend, draft, ledger);
            draft.frontends.push(frontend);
            false
        }
    };
    let Some(server_names) = server_names else {
        return stream.others.push((at, is_default, rules));
    };
    for (rank, when) in names::of_server(server_names, ledger) {
        let end = Rule::new(&server_names.place(), Expression::always(), Outcome::Refuse);
        for mut rule in rules.iter().cloned().chain([end]) {
            rule.when = when.clone().and(rule.when);
            rule.also.insert(server_names.place());
            stream.named.push((at.clone(), rank, rule));
        }
    }
    if is_default || !is_shared {
        stream.others.push((at, is_default, rules));
    }
}

/// Gives the frontends the rules of all servers at their addresses.
pub(super) fn finish(stream: &mut Stream<'_>, draft: &mut Draft) {
    stream.named.sort_by_key(|(_, rank, _)| *rank);
    for frontend in &mut draft.frontends {
        let named = stream.named.iter().filter(|(at, ..)| *at == frontend.addresses);
        frontend.rules.extend(named.map(|(_, _, rule)| rule.clone()));
        let others = || stream.others.iter().filter(|(at, ..)| *at == frontend.addresses);
        let others = others().find(|(_, is_said, _)| *is_said).or_else(|| others().next());
        frontend.rules.extend(others.iter().flat_map(|(_, _, rules)| rules.iter().cloned()));
    }
}

fn rules<'a>(
    target: &'a Directive,
    settings: &Inherited<'a>,
    stream: &mut Stream<'a>,
    draft: &mut Draft,
    ledger: &mut Ledger,
) -> Result<Vec<Rule>, String> {
    let text = target.words[1].as_str();
    let Some(name) = names::variable(text) else {
        let upstream = upstream::lead(text, &target.place(), settings, stream, draft, ledger)?;
        return Ok(vec![Rule::new(&target.place(), Expression::always(), Outcome::To(upstream))]);
    };
    let values = names::values(name, stream, 0, ledger)?;
    if settings.preread.is_none_or(|preread| preread.words[1] != "on") {
        ledger.note(&target.place(), "without `ssl_preread on` nginx saw no names here; snigate does");
    }
    let mut rules = Vec::new();
    for Value { when, text, place, also } in values {
        let then = match upstream::lead(&text, &place, settings, stream, draft, ledger) {
            Ok(upstream) => Outcome::To(upstream),
            Err(reason) => {
                if text.is_empty() {
                    ledger.note(&place, reason);
                } else {
                    ledger.narrower(&place, format!("{reason}; its clients are refused"));
                }
                Outcome::Refuse
            }
        };
        rules.push(Rule { place, also, when, then });
    }
    Ok(rules)
}

/// Whether it is the default for one of its addresses.
fn listen_all(
    frontend: &mut Frontend,
    listens: &[&Directive],
    settings: &Inherited<'_>,
    draft: &Draft,
    ledger: &mut Ledger,
) -> bool {
    // Only among its own; whether another server has them is seen later.
    let alone = Draft::default();
    let mut is_default = false;
    let mut wide = Vec::new();
    for directive in listens {
        let place = directive.place();
        let parameters = &directive.words[2..];
        let has = |wanted: &str| parameters.iter().any(|parameter| parameter == wanted);
        let text = &directive.words[1];
        if has("udp") {
            ledger.note(&place, format!("`{text} udp` is left out: snigate takes TCP only"));
            continue;
        }
        let address = match address(text) {
            Ok(address) => address,
            Err(reason) => {
                ledger.narrower(&place, format!("`{text}` is left out: {reason}"));
                continue;
            }
        };
        if let Listens::With(wider) = alone.listen(frontend, address) {
            ledger.note(&place, format!("{wider} stands for both addresses, as it takes the clients of both"));
        } else if address.is_ipv6() && address.ip().is_unspecified() && !has("ipv6only=off") {
            wide.push((address.port(), place.clone()));
        }
        frontend.places.insert(place.clone());
        is_default |= has("default_server") || has("default");
        if has("ssl") {
            frontend.ended_tls = true;
            ledger.note(&place, TLS_ENDED);
        }
        if has("proxy_protocol") {
            accept_proxy(frontend, address, settings, &place, ledger);
        }
        let known = ["ssl", "proxy_protocol", "default_server", "default", "ipv6only=off", "ipv6only=on"];
        let rest: Vec<&str> = parameters.iter().map(String::as_str).filter(|word| !known.contains(word)).collect();
        if !rest.is_empty() {
            ledger.note(&place, format!("`{}`: not needed, or without a counterpart", rest.join(" ")));
        }
    }
    for (port, place) in wide {
        let others = draft.frontends.iter().flat_map(|other| &other.addresses).copied();
        let mut all = listens.iter().filter_map(|listen| address(&listen.words[1]).ok()).chain(others);
        if !all.any(|one| one.is_ipv4() && one.port() == port) {
            ledger.wider(&place, "a listener at [::] takes IPv4 clients, too, unless `ipv6only=off` is there");
        }
    }
    is_default
}

fn accept_proxy(
    frontend: &mut Frontend,
    address: SocketAddr,
    settings: &Inherited<'_>,
    place: &Place,
    ledger: &mut Ledger,
) {
    let trusted: Vec<IpNet> = settings.trusted.iter().filter_map(|from| network(&from.words[1])).collect();
    frontend.places.extend(settings.trusted.iter().map(|from| from.place()));
    if trusted.is_empty() {
        let reason = "`proxy_protocol`: headers are accepted from every address; let `accept_proxy` have but the \
            networks of the balancers";
        ledger.note(place, reason);
        if !settings.access.is_empty() {
            ledger.wider(
                place,
                "`allow` and `deny` look at the address in the PROXY header here, which any peer may send",
            );
        }
        let everywhere = ["0.0.0.0/0", "::/0"].into_iter().filter_map(network).collect();
        frontend.accept_proxy.insert(address, everywhere);
    } else {
        ledger.note(place, "peers elsewhere than in `accept_proxy` are refused");
        frontend.accept_proxy.insert(address, trusted);
    }
}

/// Takes out the addresses that another server has.
fn keep_free(frontend: &mut Frontend, draft: &Draft, ledger: &mut Ledger) {
    for address in std::mem::take(&mut frontend.addresses) {
        if let Listens::Taken(reason) = draft.listen(frontend, address) {
            ledger.narrower(&frontend.place, format!("{address} is left out: {reason}"));
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if text.starts_with("unix:") {
        return Err("snigate listens at IP addresses only".into());
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => listen_address(host, port),
        _ => listen_address("", text),
    }
}

impl Inherited<'_> {
    fn apply(&self, frontend: &mut Frontend, stream: &Stream<'_>, draft: &mut Draft, ledger: &mut Ledger) {
        if let Some(preread) = self.preread {
            frontend.places.insert(preread.place());
        }
        for (directive, timeouts) in [(self.timeout, &mut draft.timeouts.idle), (self.hello, &mut draft.timeouts.hello)]
        {
            let Some(directive) = directive else { continue };
            match duration(&directive.words[1], "s") {
                Ok(span) => drop(timeouts.insert((span, directive.place()))),
                Err(reason) => ledger.note(&directive.place(), format!("`{}`: {reason}", directive.words.join(" "))),
            }
        }
        let rules = self.access.iter().map(|directive| rule(directive)).collect::<Vec<_>>();
        if !rules.is_empty() {
            frontend.phases.push(rules);
        }
        if let Some(directive) = self.limit {
            let count = directive.words[2].parse().ok().filter(|count| (1..=1_000_000).contains(count));
            match count.filter(|_| stream.zones.contains(directive.words[1].as_str())) {
                Some(count) => {
                    frontend.limits.push((Limit::Connections(count), directive.place()));
                    frontend.places.extend(self.zone.map(Directive::place));
                }
                None => ledger
                    .wider(&directive.place(), "a limit that is not one for each client's address, so it is left out"),
            }
        }
    }
}

/// `allow` and `deny`: the first that matches holds.
fn rule(directive: &Directive) -> Rule {
    let text = directive.words[1].as_str();
    let when = match (text, network(text)) {
        ("all", _) => Expression::always(),
        (_, Some(network)) => Expression::of(Test::Sources(Addresses::of(&[network]))),
        // Clients of such sockets do not come here.
        _ if text.starts_with("unix:") => Expression::of(Test::Constant(false)),
        _ => Expression::unknown(format!("`{text}` is no network")),
    };
    let then = if directive.words[0] == "deny" { Outcome::Refuse } else { Outcome::Pass };
    Rule { place: directive.place(), also: BTreeSet::new(), when, then }
}
