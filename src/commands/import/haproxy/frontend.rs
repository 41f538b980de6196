//! `frontend` and the front of `listen`: where it listens, and who is led where.

use std::net::SocketAddr;

use super::access::Access;
use super::condition::Acls;
use super::keywords;
use super::rules;
use super::sections::{Line, Section};
use crate::commands::import::Files;
use crate::commands::import::draft::{Draft, Frontend, Listens, OPEN, Sources, TLS_ENDED, Takes, UNCERTAIN};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::values::{duration, label, listen_address};

/// Whether TLS comes to it, as far as that can be known.
pub(super) fn takes_tls(lines: &[&Line]) -> bool {
    let mode = lines.iter().rfind(|line| line.words[0] == "mode").and_then(|line| line.words.get(1));
    mode.is_none_or(|mode| mode == "tcp" || !keywords::is_mode(mode))
        || lines.iter().any(|line| is_bind(line) && ends_tls(line))
}

fn is_bind(line: &Line) -> bool {
    line.words[0] == "bind"
}

fn ends_tls(line: &Line) -> bool {
    line.words.iter().any(|word| word == "ssl")
}

/// `lines` are those of its defaults and its own; `backends` the names of all backends.
pub(super) fn read(
    section: &Section,
    lines: &[&Line],
    backends: &[&str],
    files: &Files,
    draft: &mut Draft,
    ledger: &mut Ledger,
) {
    let mut frontend = Frontend {
        name: label(&section.name),
        place: Place::lines(&section.range()),
        addresses: Vec::new(),
        sources: Sources::default(),
        rules: Vec::new(),
        ended_tls: lines.iter().any(|line| is_bind(line) && ends_tls(line)),
        places: [section.header.place()].into(),
    };
    let mut acls = Acls::default();
    let mut access = Access::default();
    let mut default = None;
    // All clients, in a map.
    let mut looked_up = false;
    for line in lines {
        let words = line.words();
        match words[..] {
            ["bind", addresses, ref parameters @ ..] => {
                listen(&mut frontend, addresses, parameters, &line.place(), draft, ledger);
            }
            ["acl", ..] => acls.add(&words, &line.place(), files, ledger),
            ["use_backend", backend, ref condition @ ..] => {
                match rules::of(backend, condition, &acls, backends, line, files, ledger) {
                    _ if looked_up => {
                        let reason =
                            "HAProxy does not come here: what it does not find in a map before goes to the default";
                        ledger.note(&line.place(), reason);
                    }
                    Ok(rules) => {
                        let are_for_all = rules.iter().all(|rule| rule.sources.is_empty());
                        looked_up = backend.starts_with('%') && !rules.is_empty() && are_for_all;
                        frontend.rules.extend(rules);
                    }
                    Err(reason) => ledger.note(&line.place(), reason),
                }
            }
            ["default_backend", backend, ..] => default = Some(rules::led_to(backend, Takes::All, line.place())),
            ["tcp-request", "inspect-delay", delay, ..] => match duration(delay, "ms") {
                Ok(delay) => drop(draft.timeouts.hello.insert((delay, line.place()))),
                Err(reason) => ledger.note(&line.place(), format!("`{delay}`: {reason}")),
            },
            ["tcp-request" | "http-request", ..] => {
                if let Some((action, condition)) = Access::action(&words) {
                    match acls.condition(condition, &line.place(), files, ledger) {
                        Ok(condition) => access.add(action, condition, &line.place(), ledger),
                        Err(reason) => ledger.note(&line.place(), format!("{OPEN} ({reason})")),
                    }
                }
            }
            ["mode", "tcp"] => drop(frontend.places.insert(line.place())),
            _ => {}
        }
    }
    if section.kind == "listen" && section.has_servers() {
        default = default.or_else(|| Some(rules::led_to(&section.name, Takes::All, section.header.place())));
    }
    frontend.rules.extend(default);
    rules::drop_ambiguous(&mut frontend.rules, ledger);
    let shows_tls = frontend.ended_tls || access.waits_for_tls;
    access.finish(&mut frontend, ledger);
    if !shows_tls && frontend.rules.iter().all(|rule| rule.takes == Takes::All) {
        ledger.note(&section.header.place(), UNCERTAIN);
    }
    draft.frontends.push(frontend);
}

impl Section {
    fn has_servers(&self) -> bool {
        self.lines.iter().any(|line| line.words[0].starts_with("server"))
    }
}

fn listen(
    frontend: &mut Frontend,
    addresses: &str,
    parameters: &[&str],
    place: &Place,
    draft: &Draft,
    ledger: &mut Ledger,
) {
    for text in addresses.split(',') {
        match address(text) {
            Ok(address) => match draft.listen(frontend, address) {
                Listens::Yes => drop(frontend.places.insert(place.clone())),
                Listens::With(wider) => {
                    frontend.places.insert(place.clone());
                    ledger.note(place, format!("{wider} stands for both addresses, as it takes the clients of both"));
                }
                Listens::Taken(reason) => ledger.note(place, format!("`{text}` is left out: {reason}")),
            },
            Err(reason) => ledger.note(place, format!("`{text}` is left out: {reason}")),
        }
    }
    if parameters.contains(&"ssl") {
        ledger.note(place, TLS_ENDED);
    }
    if parameters.contains(&"v6only") {
        ledger.note(place, "`v6only`: a listener at [::] takes IPv4 clients, too");
    }
    if parameters.contains(&"accept-proxy") {
        let reason =
            "`accept-proxy`: a listener needs to know who sends PROXY headers: `accept_proxy: {from: [NETWORK]}`";
        ledger.note(place, reason);
    }
    let of_tls =
        ["ssl", "crt", "verify", "ca-file", "crl-file", "alpn", "ciphers", "ciphersuites", "ssl-min-ver", "crt-list"];
    let said = ["v4v6", "v6only", "accept-proxy"];
    let mut rest = Vec::new();
    let mut is_value = false;
    for word in parameters {
        let known = of_tls.contains(word) || said.contains(word);
        if !known && !is_value {
            rest.push(*word);
        }
        is_value = of_tls.contains(word) && *word != "ssl";
    }
    if !rest.is_empty() {
        ledger.note(place, format!("`{}`: not needed, or without a counterpart", rest.join(" ")));
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = text.rsplit_once(':').ok_or("it is no address and port")?;
    let (host, is_ipv6) = match (host.strip_prefix("ipv4@"), host.strip_prefix("ipv6@")) {
        (Some(host), _) => (host, false),
        (_, Some(host)) => (host, true),
        _ => (host, false),
    };
    listen_address(if is_ipv6 && matches!(host, "" | "*") { "::" } else { host }, port)
}
