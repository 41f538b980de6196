//! `frontend` and the front of `listen`: where it listens, and which clients are routed where.

use std::collections::{BTreeMap, HashSet};

use super::access::Access;
use super::bind;
use super::condition::{Acls, Condition};
use super::dynamic;
use super::keywords;
use super::sections::{Line, Section};
use crate::commands::import::Files;
use crate::commands::import::draft::{Draft, Frontend, Outcome, Rule, UNCERTAIN};
use crate::commands::import::expression::{Expression, Test};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::sources::Sources;
use crate::commands::import::values::{duration, label};

/// What a client has to send its hello if nothing is said.
const HELLO: std::time::Duration = std::time::Duration::from_secs(10);

/// Whether TLS comes to it, as far as that can be known.
pub(super) fn takes_tls(lines: &[&Line]) -> bool {
    let mode = lines.iter().rfind(|line| line.words[0] == "mode").and_then(|line| line.words.get(1));
    mode.is_none_or(|mode| mode == "tcp" || !keywords::is_mode(mode))
        || lines.iter().any(|line| bind::is_bind(line) && bind::ends_tls(line))
}

/// What is known of the whole file.
pub(super) struct Around<'a> {
    /// The names of all backends.
    pub(super) backends: HashSet<&'a str>,
    pub(super) files: &'a Files,
    /// Of the table of a section, in milliseconds.
    pub(super) period: &'a dyn Fn(&str) -> Option<u64>,
}

/// `lines` are those of its defaults and its own.
pub(super) fn read(section: &Section, lines: &[&Line], around: &Around<'_>, draft: &mut Draft, ledger: &mut Ledger) {
    let binds: Vec<&&Line> = lines.iter().filter(|line| bind::is_bind(line)).collect();
    let ending = binds.iter().filter(|line| bind::ends_tls(line)).count();
    let ends_tls = match ending {
        0 => Some(false),
        all if all == binds.len() => Some(true),
        _ => None,
    };
    let mut frontend = Frontend {
        name: label(&section.name),
        place: Place::lines(&section.range()),
        addresses: Vec::new(),
        accept_proxy: BTreeMap::new(),
        sources: Sources::default(),
        phases: Vec::new(),
        rules: Vec::new(),
        limits: Vec::new(),
        ended_tls: ending > 0,
        places: [section.header.place()].into(),
    };
    let mut acls = Acls::new(around.files, ends_tls);
    let mut access = Access::default();
    let default = default(section, lines);
    let then = default.as_ref().map_or(Outcome::Refuse, |rule| rule.then.clone());
    let mut waits = ending > 0;
    for line in lines {
        let words = line.words();
        let place = line.place();
        match words[..] {
            ["bind", addresses, ref parameters @ ..] => {
                bind::listen(&mut frontend, addresses, parameters, &place, draft, ledger);
            }
            ["acl", ..] => acls.add(&words, &place, ledger),
            ["use_backend", backend, ref condition @ ..] => {
                let condition = acls
                    .condition(condition, &place, ledger)
                    .unwrap_or_else(|reason| Condition { when: Expression::unknown(reason), places: [].into() });
                if backend.contains('%') {
                    let of = (&acls.variables, around.files);
                    let mut rules = dynamic::rules(backend, condition, &around.backends, &then, &place, of, ledger);
                    if let (Some(last), Some(default)) = (rules.last_mut(), &default) {
                        last.also.insert(default.place.clone());
                    }
                    frontend.rules.extend(rules);
                } else {
                    let Condition { when, places: also } = condition;
                    frontend.rules.push(Rule { place, also, when, then: Outcome::To(backend.into()) });
                }
            }
            ["tcp-request", "inspect-delay", delay, ..] => {
                waits = true;
                match duration(delay, "ms") {
                    Ok(delay) if delay > HELLO => drop(draft.timeouts.hello.insert((delay, place))),
                    Ok(_) => {
                        let reason = "after it HAProxy goes on without the hello; here a client has `timeouts.hello`, \
                            10s, and is then refused";
                        ledger.note(&place, reason);
                    }
                    Err(reason) => ledger.note(&place, format!("`{delay}`: {reason}")),
                }
            }
            ["tcp-request" | "http-request", ..] => {
                let period = |table: Option<&str>| (around.period)(table.unwrap_or(&section.name));
                access.add(line, &mut acls, period, ledger);
            }
            ["stick-table", ..] => drop(access.places.insert(place)),
            ["mode", "tcp"] => drop(frontend.places.insert(place)),
            _ => {}
        }
    }
    frontend.rules.extend(default);
    frontend.phases = access.phases();
    if access.limits.is_empty() {
        // A table that no limit is made of.
        access.places.clear();
    }
    frontend.limits = access.limits;
    frontend.places.extend(access.places);
    if !access.accept_proxy.is_empty() {
        for address in &frontend.addresses {
            frontend.accept_proxy.entry(*address).or_insert_with(|| access.accept_proxy.clone());
        }
    }
    let asks_for_names = frontend.phases.iter().flatten().chain(&frontend.rules).any(asks_for_a_name);
    let shows_tls = lines.iter().any(|line| line.words.iter().any(|word| word.contains("ssl_hello_type")));
    if !asks_for_names && !shows_tls && !frontend.ended_tls {
        ledger.note(&section.header.place(), UNCERTAIN);
    } else if asks_for_names && !waits {
        let reason = "without `tcp-request inspect-delay` HAProxy may look for the name before it is there; here all \
            clients are routed by their names";
        ledger.note(&section.header.place(), reason);
    }
    draft.frontends.push(frontend);
}

fn default(section: &Section, lines: &[&Line]) -> Option<Rule> {
    let said = lines.iter().rev().find_map(|line| match line.words()[..] {
        ["default_backend", backend, ..] => Some((line.place(), backend.to_owned())),
        _ => None,
    });
    let has_servers = section.lines.iter().any(|line| line.words[0].starts_with("server"));
    let own = || (section.kind == "listen" && has_servers).then(|| (section.header.place(), section.name.clone()));
    let (place, backend) = said.or_else(own)?;
    Some(Rule::new(&place, Expression::always(), Outcome::To(backend)))
}

fn asks_for_a_name(rule: &Rule) -> bool {
    let mut asks = false;
    rule.when.each(&mut |test| asks |= matches!(test, Test::Names(_) | Test::HasName));
    asks
}
