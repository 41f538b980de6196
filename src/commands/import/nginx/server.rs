//! `server` blocks.

use std::collections::BTreeSet;

use super::listen::listen_all;
use super::map::{self, MapValue};
use super::stream::{DefaultRules, NamedRule, StreamBlock, StreamSettings};
use super::syntax::{Directive, variable_name};
use super::upstream;
use crate::commands::import::addresses::AddressSet;
use crate::commands::import::draft::{Action, Draft, Frontend, ListenResult, MAYBE_NOT_TLS, Rule};
use crate::commands::import::expression::{ClientLimit, Expression, Test};
use crate::commands::import::notes::Notes;
use crate::commands::import::values::{LIMITS, duration, network};

pub(super) fn read<'a>(server: &'a Directive, stream: &mut StreamBlock<'a>, draft: &mut Draft, notes: &mut Notes) {
    let mut settings = StreamSettings { access: Vec::new(), ..stream.settings.clone() };
    let mut listens = Vec::new();
    let mut target = None;
    let mut server_names: Option<&Directive> = None;
    for directive in server.inside() {
        match directive.words()[..] {
            ["listen", _, ..] => listens.push(directive),
            ["proxy_pass", _] => target = Some(directive),
            ["server_name", _, ..] => server_names = Some(directive),
            _ => settings.add(directive, notes),
        }
    }
    if settings.access.is_empty() {
        settings.access.clone_from(&stream.settings.access);
    }
    let Some(target) = target else {
        return notes.note(&server.whole(), "not translated: no `proxy_pass`");
    };
    let mut frontend = Frontend::new("port".into(), server.whole());
    frontend.locations = server.first_and_last_line().into_iter().chain([target.location()]).collect();
    let is_default = listen_all(&mut frontend, &listens, &settings, draft, notes);
    if let Some(first) = frontend.addresses.first() {
        frontend.name = format!("port-{}", first.port());
    }
    let rules = routing_rules(target, &settings, stream, draft, notes).unwrap_or_else(|reason| {
        notes.rejects_or_reroutes(&target.location(), format!("{reason}; these clients are rejected"));
        Vec::new()
    });
    if settings.ssl_preread.is_none() && !frontend.terminated_tls && !target.words[1].starts_with('$') {
        notes.note(&server.location(), MAYBE_NOT_TLS);
    }
    if !frontend.accept_proxy.is_empty() && settings.set_real_ip_from.is_empty() && tests_clients(&rules) {
        let reason = "without `set_real_ip_from` nginx compares the peer's address; snigate compares the client's address \
            in the PROXY header";
        notes.rejects_or_reroutes(&target.location(), reason);
    }
    apply_settings(&settings, &mut frontend, stream, draft, notes);
    let addresses = frontend.addresses.clone();
    let is_first = !(server_names.is_some() && share_addresses(&frontend, draft, notes));
    if is_first {
        leave_out_addresses_in_use(&mut frontend, draft, notes);
        draft.frontends.push(frontend);
    }
    let Some(server_names) = server_names else {
        return stream.default_rules.push(DefaultRules { addresses, is_explicit: is_default, rules });
    };
    for (rank, when) in map::of_server_names(server_names, notes) {
        let end = Rule::new(&server_names.location(), Expression::always(), Action::Reject);
        for mut rule in rules.iter().cloned().chain([end]) {
            rule.when = when.clone().and(rule.when);
            rule.related.insert(server_names.location());
            stream.named_rules.push(NamedRule { addresses: addresses.clone(), rank, rule });
        }
    }
    if is_default || is_first {
        stream.default_rules.push(DefaultRules { addresses, is_explicit: is_default, rules });
    }
}

fn tests_clients(rules: &[Rule]) -> bool {
    let mut found = false;
    for rule in rules {
        rule.when.visit_tests(&mut |test| found |= matches!(test, Test::ClientAddress(_)));
    }
    found
}

/// Gives the frontends the rules of all servers at their addresses.
pub(super) fn add_rules(stream: &mut StreamBlock<'_>, draft: &mut Draft) {
    stream.named_rules.sort_by_key(|named| named.rank);
    for frontend in &mut draft.frontends {
        let named = stream.named_rules.iter().filter(|named| named.addresses == frontend.addresses);
        frontend.rules.extend(named.map(|named| named.rule.clone()));
        let defaults = || stream.default_rules.iter().filter(|default| default.addresses == frontend.addresses);
        let default = defaults().find(|default| default.is_explicit).or_else(|| defaults().next());
        frontend.rules.extend(default.iter().flat_map(|default| default.rules.iter().cloned()));
    }
}

/// Servers with names may have the same addresses: whether an earlier one has these.
fn share_addresses(frontend: &Frontend, draft: &mut Draft, notes: &mut Notes) -> bool {
    let has_same = |other: &&mut Frontend| other.addresses == frontend.addresses && !frontend.addresses.is_empty();
    let Some(first) = draft.frontends.iter_mut().find(has_same) else { return false };
    first.locations.extend(frontend.locations.iter().cloned());
    let text = |phases: &[Vec<Rule>]| {
        let rules = phases.iter().flatten();
        rules.map(|rule| format!("{:?}{:?}", rule.when, rule.then)).collect::<Vec<_>>()
    };
    if text(&first.phases) != text(&frontend.phases) {
        let reason =
            "its `allow` and `deny` differ from those of the first server at this address, which apply to both";
        notes.admits_more(&frontend.location, reason);
    }
    true
}

fn leave_out_addresses_in_use(frontend: &mut Frontend, draft: &Draft, notes: &mut Notes) {
    for address in std::mem::take(&mut frontend.addresses) {
        if let ListenResult::InUse(reason) = draft.listen(frontend, address) {
            notes.rejects_or_reroutes(&frontend.location, format!("{address} left out: {reason}"));
        }
    }
}

/// The rules that a `proxy_pass` comes down to: several if its target is a variable.
fn routing_rules<'a>(
    target: &'a Directive,
    settings: &StreamSettings<'a>,
    stream: &mut StreamBlock<'a>,
    draft: &mut Draft,
    notes: &mut Notes,
) -> Result<Vec<Rule>, String> {
    let text = target.words[1].as_str();
    let Some(variable) = variable_name(text) else {
        let upstream = upstream::add(text, &target.location(), settings, stream, draft, notes)?;
        return Ok(vec![Rule::new(&target.location(), Expression::always(), Action::RouteTo(upstream))]);
    };
    let values = map::values(variable, stream, 0, notes)?;
    let tests_names = values.iter().any(|value| value.when.tests_names());
    if tests_names && settings.ssl_preread.is_none_or(|ssl_preread| ssl_preread.words[1] != "on") {
        notes.note(&target.location(), "without `ssl_preread on` nginx does not see the SNI; snigate does");
    }
    let mut rules = Vec::new();
    for MapValue { when, text, location, related } in values {
        let then = match upstream::add(&text, &location, settings, stream, draft, notes) {
            Ok(upstream) => Action::RouteTo(upstream),
            Err(_) if text.is_empty() => {
                notes.note(&location, "no upstream: these clients are rejected, as in nginx");
                Action::Reject
            }
            Err(reason) => {
                notes.rejects_or_reroutes(&location, format!("{reason}; these clients are rejected"));
                Action::Reject
            }
        };
        rules.push(Rule { location, related, when, then });
    }
    Ok(rules)
}

fn apply_settings(
    settings: &StreamSettings<'_>,
    frontend: &mut Frontend,
    stream: &StreamBlock<'_>,
    draft: &mut Draft,
    notes: &mut Notes,
) {
    frontend.locations.extend(settings.ssl_preread.map(Directive::location));
    for (directive, timeouts) in
        [(settings.proxy_timeout, &mut draft.timeouts.idle), (settings.preread_timeout, &mut draft.timeouts.hello)]
    {
        let Some(directive) = directive else { continue };
        match duration(&directive.words[1], "s") {
            Ok(span) => drop(timeouts.insert((span, directive.location()))),
            Err(reason) => notes.note(&directive.location(), format!("`{}`: {reason}", directive.words.join(" "))),
        }
    }
    let rules = settings.access.iter().map(|directive| access_rule(directive)).collect::<Vec<_>>();
    if !rules.is_empty() {
        frontend.phases.push(rules);
    }
    if let Some(directive) = settings.limit_conn {
        let count = directive.words[2].parse().ok().filter(|count| LIMITS.contains(count));
        if let Some(count) = count.filter(|_| stream.zones.contains(directive.words[1].as_str())) {
            frontend.limits.push((ClientLimit::Connections(count), directive.location()));
            frontend.locations.extend(settings.limit_conn_zone.map(Directive::location));
        } else {
            let reason =
                "`limit_conn` left out: it is not a limit from 1 to 1000000 in a zone that counts by client address";
            notes.admits_more(&directive.location(), reason);
        }
    }
}

/// For an `allow` or `deny`.
fn access_rule(directive: &Directive) -> Rule {
    let text = directive.words[1].as_str();
    let when = match (text, network(text)) {
        ("all", _) => Expression::always(),
        (_, Some(network)) => Expression::of(Test::ClientAddress(AddressSet::of(&[network]))),
        // Clients at Unix sockets.
        _ if text.starts_with("unix:") => Expression::constant(false),
        _ => Expression::unknown(format!("`{text}` is not a network")),
    };
    let then = if directive.words[0] == "deny" { Action::Reject } else { Action::Accept };
    Rule { location: directive.location(), related: BTreeSet::new(), when, then }
}
