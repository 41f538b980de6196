//! `backend` and the back of `listen`: servers, and how they are chosen and checked.

use super::Globals;
use super::access::Access;
use super::check::{self, Request};
use super::condition::{Acls, Condition};
use super::frontend::Around;
use super::sections::{Line, Section};
use super::server::Parameters;
use crate::commands::import::draft::{Draft, Outcome, Rule, Upstream};
use crate::commands::import::expression::Expression;
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::values::duration;

struct Server<'a> {
    name: &'a str,
    parameters: Parameters,
    address: &'a str,
    place: Place,
}

/// `lines` are those of its defaults and its own.
pub(super) fn read(
    section: &Section,
    lines: &[&Line],
    globals: &Globals,
    is_behind_tls: bool,
    around: &Around<'_>,
    draft: &mut Draft,
    ledger: &mut Ledger,
) {
    let mut upstream = Upstream::default();
    let mut defaults = Parameters::default();
    let mut request = Request::default();
    let mut check_timeout = None;
    let mut servers: Vec<Server<'_>> = Vec::new();
    let mut acls = Acls::new(around.files, if is_behind_tls { None } else { Some(false) });
    let mut access = Access::default();
    let mut chosen = Vec::new();
    for line in lines {
        let place = line.place();
        let words = line.words();
        match words[..] {
            ["balance", algorithm, ..] => match algorithm.split('(').next() {
                Some("roundrobin" | "static-rr") => set(&mut upstream, "round_robin", place),
                Some("leastconn") => set(&mut upstream, "least_connections", place),
                Some("random") => set(&mut upstream, "random", place),
                _ => ledger.note(&place, format!("`{algorithm}`: no client is tied to an endpoint; see `balance`")),
            },
            ["timeout", kind @ ("connect" | "check"), text, ..] => match (duration(text, "ms"), kind) {
                (Err(reason), _) => ledger.note(&place, format!("`{text}`: {reason}")),
                (Ok(span), "check") => check_timeout = Some((span, place)),
                (Ok(span), _) => {
                    upstream.connect_timeout = Some(span);
                    upstream.places.insert(place);
                }
            },
            ["default-server", ref parameters @ ..] => {
                defaults.read(parameters, &place, globals, ledger);
                upstream.places.insert(place);
            }
            ["server", name, address, ref parameters @ ..]
            | ["server-template", name, _, address, ref parameters @ ..] => {
                let mut server = defaults.clone();
                server.read(parameters, &place, globals, ledger);
                server.add_to(&mut upstream, address, is_behind_tls, &place, ledger);
                servers.push(Server { name, parameters: server, address, place });
            }
            ["option" | "http-check", ref option @ ..] => request.read(option, &place, ledger),
            ["acl", ..] if section.kind == "backend" => acls.add(&words, &place, ledger),
            ["use-server", server, ref condition @ ..] => {
                let condition = acls
                    .condition(condition, &place, ledger)
                    .unwrap_or_else(|reason| Condition { when: Expression::unknown(reason), places: [].into() });
                chosen.push((server, condition, place));
            }
            // Those of a `listen` are read with its front.
            ["tcp-request" | "http-request", ..] if section.kind == "backend" => {
                access.add(line, &mut acls, |_| None, ledger);
            }
            ["mode", "tcp"] => drop(upstream.places.insert(place)),
            _ => {}
        }
    }
    let checked: Vec<(&Parameters, &Place)> =
        servers.iter().map(|server| (&server.parameters, &server.place)).collect();
    if let Some((first, _)) = checked.iter().find(|(server, _)| server.check) {
        if let Some((_, place)) = checked.iter().find(|(other, _)| !other.is_checked_like(first)) {
            let reason = "the servers differ in how they are checked; here all are checked like the first one that is";
            ledger.note(place, reason);
        }
        upstream.check = Some(check::check(first, request, check_timeout, &mut upstream.places, ledger));
    }
    upstream.is_vacant = servers.is_empty()
        && !lines
            .iter()
            .any(|line| matches!(line.words[0].as_str(), "http-request" | "dispatch" | "use-fcgi-app" | "option"));
    upstream.phases = access.phases();
    for (name, condition, place) in chosen {
        choose(&section.name, name, condition, &place, &servers, &mut upstream, draft, ledger);
    }
    upstream.places.insert(section.header.place());
    draft.upstreams.insert(section.name.clone(), upstream);
}

fn set(upstream: &mut Upstream, balance: &'static str, place: Place) {
    upstream.balance = Some(balance);
    upstream.places.insert(place);
}

/// `use-server`: an upstream with this one alone.
#[expect(clippy::too_many_arguments, reason = "what a backend is made of")]
fn choose(
    backend: &str,
    server: &str,
    condition: Condition,
    place: &Place,
    servers: &[Server<'_>],
    upstream: &mut Upstream,
    draft: &mut Draft,
    ledger: &mut Ledger,
) {
    let Condition { when, places: also } = condition;
    let key = format!("{backend}/{server}");
    let found = servers.iter().find(|one| one.name == server);
    let destination = found.and_then(|server| super::server::destination(server.address).ok());
    let mut alone = upstream.clone();
    alone.endpoints = found.and_then(|server| Some((destination?, server.place.clone()))).into_iter().collect();
    alone.backups.clear();
    alone.choices.clear();
    alone.phases.clear();
    if !alone.endpoints.is_empty() {
        ledger.note(place, "while this server is unreachable its clients are refused; HAProxy takes another one then");
    }
    draft.upstreams.insert(key.clone(), alone);
    upstream.choices.push(Rule { place: place.clone(), also, when, then: Outcome::To(key) });
}
