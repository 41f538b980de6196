//! `server`: where it listens, and where it leads.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::syntax::Directive;
use super::{Stream, names, reasons, upstream};
use crate::commands::import::draft::{Draft, Frontend, Listens, OPEN, Rule, Sources, TLS_ENDED, Takes, UNCERTAIN};
use crate::commands::import::ledger::{Ledger, Place};
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
        return ledger.note(&Place::lines(&server.range()), "without `proxy_pass` it leads nowhere");
    };
    let mut frontend = Frontend {
        name: "port".into(),
        place: Place::lines(&server.range()),
        addresses: Vec::new(),
        sources: Sources::default(),
        rules: Vec::new(),
        ended_tls: false,
        places: server.frame().into_iter().chain([target.place()]).collect(),
    };
    let is_default = listen_all(&mut frontend, &listens, draft, ledger);
    if let Some(first) = frontend.addresses.first() {
        frontend.name = format!("port-{}", first.port());
    }
    let mut rules = match rules(target, &settings, stream, draft, ledger) {
        Ok(rules) => rules,
        Err(reason) => {
            ledger.note(&target.place(), reason);
            Vec::new()
        }
    };
    if settings.preread.is_none() && !frontend.ended_tls && !target.words[1].starts_with('$') {
        ledger.note(&server.place(), UNCERTAIN);
    }
    if let Some(server_names) = server_names {
        rules = names::narrowed(rules, server_names, is_default, ledger);
    }
    settings.apply(&mut frontend, draft, ledger);
    let shared = draft.frontends.iter_mut().find(|other| other.addresses == frontend.addresses);
    match shared {
        Some(shared) if server_names.is_some() && !frontend.addresses.is_empty() => {
            shared.rules.extend(rules);
            shared.places.extend(frontend.places);
            if shared.sources != frontend.sources {
                let reason = "its `allow` and `deny` differ from those of the first server at this address, which hold";
                ledger.note(&frontend.place, reason);
            }
        }
        _ => {
            keep_free(&mut frontend, draft, ledger);
            frontend.rules = rules;
            draft.frontends.push(frontend);
        }
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
    if text.starts_with('$') {
        let variable = text.trim_start_matches("${").trim_end_matches('}').trim_start_matches('$');
        let known = stream.maps.iter().find(|(name, _)| name.trim_start_matches('$') == variable);
        let Some((name, map)) = known.map(|(name, map)| (*name, *map)) else {
            return Err(format!("`{text}`: no map from the name asked for leads to it"));
        };
        stream.used.insert(name);
        if settings.preread.is_none_or(|preread| preread.words[1] != "on") {
            ledger.note(&target.place(), "without `ssl_preread on` nginx saw no names here; snigate does");
        }
        let lead =
            |to: &str, place: &Place, ledger: &mut Ledger| upstream::lead(to, place, settings, stream, draft, ledger);
        return Ok(names::of_map(map, lead, ledger));
    }
    let upstream = upstream::lead(text, &target.place(), settings, stream, draft, ledger)?;
    let (also, sources) = (BTreeSet::new(), Sources::default());
    Ok(vec![Rule { place: target.place(), also, takes: Takes::All, sources, upstream }])
}

/// Whether it is the default for one of its addresses.
fn listen_all(frontend: &mut Frontend, listens: &[&Directive], draft: &Draft, ledger: &mut Ledger) -> bool {
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
                ledger.note(&place, format!("`{text}` is left out: {reason}"));
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
            let reason =
                "`proxy_protocol`: a listener needs to know who sends PROXY headers: `accept_proxy: {from: [NETWORK]}`";
            ledger.note(&place, reason);
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
            ledger.note(&place, "a listener at [::] takes IPv4 clients, too");
        }
    }
    is_default
}

/// Takes out the addresses that another server has.
fn keep_free(frontend: &mut Frontend, draft: &Draft, ledger: &mut Ledger) {
    for address in std::mem::take(&mut frontend.addresses) {
        if let Listens::Taken(reason) = draft.listen(frontend, address) {
            ledger.note(&frontend.place, format!("{address} is left out: {reason}"));
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
    fn apply(&self, frontend: &mut Frontend, draft: &mut Draft, ledger: &mut Ledger) {
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
        match self.sources() {
            Ok(sources) => {
                frontend.sources = sources;
                frontend.places.extend(self.access.iter().map(|directive| directive.place()));
            }
            Err(reason) => self.access.iter().for_each(|directive| ledger.note(&directive.place(), reason.clone())),
        }
    }

    /// The first that matches holds there; here what is denied is denied whatever is allowed.
    fn sources(&self) -> Result<Sources, String> {
        let mut sources = Sources::default();
        for directive in &self.access {
            match directive.words()[..] {
                ["deny", "all"] if sources.allow.is_empty() => return Err(format!("`deny all`: {OPEN}")),
                ["deny", "all"] => return Ok(sources),
                ["allow", "all"] => return Ok(Sources { allow: Vec::new(), ..sources }),
                ["allow", text] => sources.allow.push(network(text).ok_or_else(|| format!("`{text}`: {OPEN}"))?),
                ["deny", text] if sources.allow.is_empty() => {
                    sources.deny.push(network(text).ok_or_else(|| format!("`{text}`: {OPEN}"))?);
                }
                _ => return Err(format!("`deny` after `allow`: {OPEN}")),
            }
        }
        Ok(Sources { allow: Vec::new(), ..sources })
    }
}
