//! `backend`, and the backend half of `listen`.

use super::acl::{Acls, RuleCondition};
use super::check::{self, CheckRequest};
use super::context::FileContext;
use super::criterion::CriterionReader;
use super::endpoint;
use super::request_rules::RequestRules;
use super::sections::{Section, SectionLine};
use super::server::ServerParameters;
use super::source::SourceParameters;
use crate::commands::import::draft::{Action, Draft, Rule};
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::upstream_draft::{EndpointDraft, OTHER_SERVERS, UpstreamDraft};
use crate::commands::import::values::duration;

struct BackendServer<'a> {
    name: &'a str,
    parameters: ServerParameters,
    address: &'a str,
    location: Location,
}

/// A `use-server` line.
struct UseServer<'a> {
    server: &'a str,
    condition: RuleCondition,
    location: Location,
}

/// `lines` include those of its `defaults`; `is_after_tls`: a frontend that terminates TLS routes to it.
pub(super) fn read(
    section: &Section,
    lines: &[&SectionLine],
    context: &FileContext<'_>,
    is_after_tls: bool,
    draft: &mut Draft,
    notes: &mut Notes,
) {
    let mut upstream = UpstreamDraft::default();
    let mut defaults = ServerParameters::default();
    let mut request = CheckRequest::default();
    let mut check_timeout = None;
    let source = lines.iter().rfind(|line| line.words[0] == "source");
    let source = source.map(|line| SourceParameters::read(&line.words()[1..], &line.location(), notes));
    let mut uses_all_backups = false;
    let mut servers: Vec<BackendServer<'_>> = Vec::new();
    let mut acls = Acls::new(CriterionReader::new(context.files, if is_after_tls { None } else { Some(false) }));
    let mut request_rules = RequestRules::default();
    let mut use_server: Vec<UseServer<'_>> = Vec::new();
    for line in lines {
        let location = line.location();
        let words = line.words();
        match words[..] {
            ["balance", ref algorithm @ ..] => {
                if let Some(balance) = balance(algorithm) {
                    if balance == "source_hash" {
                        notes.note(&location, OTHER_SERVERS);
                    }
                    upstream.balance = Some(balance);
                    upstream.locations.insert(location);
                } else {
                    let reason = format!(
                        "`balance {}` ignored: no equivalent; `balance` can be least_connections, round_robin, random or \
                        source_hash",
                        algorithm.join(" ")
                    );
                    notes.note(&location, reason);
                }
            }
            ["option", "allbackups"] => {
                uses_all_backups = true;
                upstream.locations.insert(location);
            }
            ["timeout", kind @ ("connect" | "check"), text, ..] => match (duration(text, "ms"), kind) {
                (Err(reason), _) => notes.note(&location, format!("`{text}`: {reason}")),
                (Ok(span), "check") => check_timeout = Some((span, location)),
                (Ok(span), _) => {
                    upstream.connect_timeout = Some(span);
                    upstream.locations.insert(location);
                }
            },
            ["default-server", ref parameters @ ..] => {
                defaults.read(parameters, &location, context, notes);
                upstream.locations.insert(location);
            }
            ["server", name, address, ref parameters @ ..]
            | ["server-template", name, _, address, ref parameters @ ..] => {
                let mut server = defaults.clone();
                server.read(parameters, &location, context, notes);
                server.source = server.source.or_else(|| source.clone());
                server.add_to(&mut upstream, address, is_after_tls, &location, notes);
                servers.push(BackendServer { name, parameters: server, address, location });
            }
            ["option" | "http-check", ref option @ ..] => request.read(option, &location, notes),
            ["acl", ..] if section.kind == "backend" => acls.add(&words, &location, notes),
            ["use-server", server, ref condition @ ..] => {
                let condition = acls.condition(condition, &location, notes).unwrap_or_else(RuleCondition::unknown);
                use_server.push(UseServer { server, condition, location });
            }
            // The frontend half of a `listen` has read its own.
            ["tcp-request" | "http-request", ..] if section.kind == "backend" => {
                request_rules.add(line, section, &mut acls, context, notes);
            }
            ["source", ..] | ["mode", "tcp"] => drop(upstream.locations.insert(location)),
            _ => {}
        }
    }
    if let Some(first) = servers.iter().find(|server| server.parameters.check) {
        note_other_checks(first, &servers, notes);
        let check = check::translate(&first.parameters, request, check_timeout, &mut upstream.locations, notes);
        upstream.check = Some(check);
    }
    if !upstream.has_primary_in_source {
        // HAProxy then uses the backups all the time: the first one or all of them.
        let used = if uses_all_backups { usize::MAX } else { 1 };
        upstream.endpoints.iter_mut().take(used).for_each(|endpoint| endpoint.is_backup = false);
    }
    note_balance(&upstream, uses_all_backups, notes);
    let serves_otherwise =
        |line: &&SectionLine| matches!(line.words[0].as_str(), "http-request" | "dispatch" | "use-fcgi-app" | "option");
    upstream.is_empty_in_source = servers.is_empty() && !lines.iter().any(serves_otherwise);
    upstream.phases = request_rules.take_phases();
    for UseServer { server, condition: RuleCondition { when, locations: related }, location } in use_server {
        let key = format!("{}/{server}", section.name);
        let server = servers.iter().find(|one| one.name == server);
        let alone = only(server, &upstream);
        if !alone.endpoints.is_empty() {
            let reason =
                "while this server is unreachable, these clients are rejected; HAProxy would use another server";
            notes.note(&location, reason);
        }
        draft.upstreams.insert(key.clone(), alone);
        upstream.server_rules.push(Rule { location, related, when, then: Action::RouteTo(key) });
    }
    upstream.locations.insert(section.header.location());
    draft.upstreams.insert(section.name.clone(), upstream);
}

fn note_other_checks(first: &BackendServer<'_>, servers: &[BackendServer<'_>], notes: &mut Notes) {
    let differs = |other: &&BackendServer<'_>| {
        other.parameters.unused().is_none() && !other.parameters.is_checked_like(&first.parameters)
    };
    if let Some(other) = servers.iter().find(differs) {
        let reason = format!(
            "its health check differs from that of the server in {}, which applies to all endpoints here",
            first.location
        );
        notes.note(&other.location, reason);
    }
}

fn balance(algorithm: &[&str]) -> Option<&'static str> {
    match *algorithm {
        ["source", ..] | ["hash", "src"] => Some("source_hash"),
        [algorithm, ..] => match algorithm.split('(').next()? {
            "roundrobin" | "static-rr" => Some("round_robin"),
            "leastconn" => Some("least_connections"),
            "random" => Some("random"),
            _ => None,
        },
        [] => None,
    }
}

/// On differences in how connections are distributed.
fn note_balance(upstream: &UpstreamDraft, uses_all_backups: bool, notes: &mut Notes) {
    let endpoints = &upstream.endpoints;
    for other in endpoints.iter().filter(|endpoint| endpoint.is_backup && !uses_all_backups).skip(1) {
        let reason = "without `option allbackups` HAProxy uses only the first backup that is up; snigate distributes \
            connections over all of them";
        notes.note(&other.location, reason);
    }
    let has_weights = endpoints.iter().any(|endpoint| endpoint.weight != endpoints[0].weight);
    for endpoint in endpoints.iter().filter(|endpoint| has_weights && endpoint.destination.name().is_some()) {
        let reason = "`weight` counts for each address of the hostname; HAProxy uses one address only";
        notes.note(&endpoint.location, reason);
    }
}

/// An upstream like this one with no other server.
fn only(server: Option<&BackendServer<'_>>, upstream: &UpstreamDraft) -> UpstreamDraft {
    let endpoint = server.and_then(|server| {
        let destination = endpoint::destination(server.address).ok()?;
        Some(EndpointDraft::new(destination, server.location.clone()))
    });
    UpstreamDraft {
        endpoints: endpoint.into_iter().collect(),
        server_rules: Vec::new(),
        phases: Vec::new(),
        ..upstream.clone()
    }
}
