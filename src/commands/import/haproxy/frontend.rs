//! `frontend`, and the frontend half of `listen`.

use std::time::Duration;

use super::acl::{Acls, RuleCondition};
use super::bind;
use super::context::FileContext;
use super::criterion::CriterionReader;
use super::dynamic_backend::DynamicRules;
use super::keywords;
use super::request_rules::RequestRules;
use super::sections::{Section, SectionLine};
use crate::commands::import::draft::{Action, Draft, Frontend, MAYBE_NOT_TLS, Rule};
use crate::commands::import::expression::Expression;
use crate::commands::import::notes::Notes;
use crate::commands::import::values::{duration, label};

/// The default of `timeouts.hello`.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether its clients speak TLS, as far as the lines tell.
pub(super) fn receives_tls(lines: &[&SectionLine]) -> bool {
    let mode = lines.iter().rfind(|line| line.words[0] == "mode").and_then(|line| line.words.get(1));
    mode.is_none_or(|mode| mode == "tcp" || !keywords::is_mode(mode))
        || lines.iter().any(|line| bind::terminates_tls(line))
}

/// `lines` include those of its `defaults`.
pub(super) fn read(
    section: &Section,
    lines: &[&SectionLine],
    context: &FileContext<'_>,
    draft: &mut Draft,
    notes: &mut Notes,
) {
    let terminates_tls = terminates_tls(lines);
    let mut frontend = Frontend::new(label(&section.name), section.location());
    frontend.terminated_tls = terminates_tls != Some(false);
    frontend.locations.insert(section.header.location());
    let mut acls = Acls::new(CriterionReader::new(context.files, terminates_tls));
    let mut request_rules = RequestRules::default();
    let default_rule = default_rule(section, lines);
    let default = default_rule.as_ref().map_or(Action::Reject, |rule| rule.then.clone());
    let mut waits_for_hello = frontend.terminated_tls;
    for line in lines {
        let words = line.words();
        let location = line.location();
        match words[..] {
            ["bind", addresses, ref parameters @ ..] => {
                bind::listen(&mut frontend, addresses, parameters, &location, draft, notes);
            }
            ["acl", ..] => acls.add(&words, &location, notes),
            ["use_backend", backend, ref condition @ ..] => {
                let condition = acls.condition(condition, &location, notes).unwrap_or_else(RuleCondition::unknown);
                if backend.contains('%') {
                    let (backends, tests) = (&context.backends, &acls.tests);
                    let dynamic = DynamicRules { backends, default: &default, location: &location, tests };
                    let mut rules = dynamic.read(backend, condition, notes);
                    if let (Some(last), Some(default)) = (rules.last_mut(), &default_rule) {
                        last.related.insert(default.location.clone());
                    }
                    frontend.rules.extend(rules);
                } else {
                    let RuleCondition { when, locations: related } = condition;
                    frontend.rules.push(Rule { location, related, when, then: Action::RouteTo(backend.into()) });
                }
            }
            ["tcp-request", "inspect-delay", delay, ..] => {
                waits_for_hello = true;
                match duration(delay, "ms") {
                    Ok(delay) if delay > HELLO_TIMEOUT => drop(draft.timeouts.hello.insert((delay, location))),
                    Ok(_) => {
                        let reason = "without a ClientHello after this delay HAProxy goes on with its rules; snigate \
                            waits for `timeouts.hello` (10s) and then rejects the client";
                        notes.note(&location, reason);
                    }
                    Err(reason) => notes.note(&location, format!("`{delay}`: {reason}")),
                }
            }
            ["tcp-request" | "http-request", ..] => request_rules.add(line, section, &mut acls, context, notes),
            ["stick-table", ..] => drop(request_rules.locations.insert(location)),
            ["mode", "tcp"] => drop(frontend.locations.insert(location)),
            _ => {}
        }
    }
    frontend.rules.extend(default_rule);
    if let Some(accept_proxy) = &request_rules.accept_proxy {
        for address in &frontend.addresses {
            frontend.accept_proxy.entry(*address).or_insert_with(|| accept_proxy.clone());
        }
    }
    if !frontend.accept_proxy.is_empty() {
        request_rules.note_peers(notes);
    }
    frontend.phases = request_rules.take_phases();
    if request_rules.limits.is_empty() {
        // The stick table is used for something else.
        request_rules.locations.clear();
    }
    frontend.limits = request_rules.limits;
    frontend.locations.extend(request_rules.locations);
    frontend.locations.extend(request_rules.accept_proxy_locations);
    let tests_names = frontend.tests_names();
    let tests_tls = lines.iter().any(|line| line.words.iter().any(|word| word.contains("ssl_hello_type")));
    if !tests_names && !tests_tls && !frontend.terminated_tls {
        notes.note(&section.header.location(), MAYBE_NOT_TLS);
    } else if tests_names && !waits_for_hello {
        let reason = "without `tcp-request inspect-delay` HAProxy may evaluate rules before the SNI has arrived; snigate \
            always waits for it";
        notes.note(&section.header.location(), reason);
    }
    draft.frontends.push(frontend);
}

/// Whether all `bind` lines terminate TLS; `None`: only some of them.
fn terminates_tls(lines: &[&SectionLine]) -> Option<bool> {
    let binds = lines.iter().filter(|line| line.words[0] == "bind").count();
    match lines.iter().filter(|line| bind::terminates_tls(line)).count() {
        0 => Some(false),
        all if all == binds => Some(true),
        _ => None,
    }
}

fn default_rule(section: &Section, lines: &[&SectionLine]) -> Option<Rule> {
    let set = lines.iter().rev().find_map(|line| match line.words()[..] {
        ["default_backend", backend, ..] => Some((line.location(), backend.to_owned())),
        _ => None,
    });
    let has_servers = section.lines.iter().any(|line| line.words[0].starts_with("server"));
    let own = || (section.kind == "listen" && has_servers).then(|| (section.header.location(), section.name.clone()));
    let (location, backend) = set.or_else(own)?;
    Some(Rule::new(&location, Expression::always(), Action::RouteTo(backend)))
}
