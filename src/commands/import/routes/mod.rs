//! Turns rules of which the first match decides into routes, whose order does not matter.
//!
//! The names in all rules of a frontend divide its clients into classes, within which no rule tells one name from
//! another. The same for the addresses that clients connect to, one TLV and one list of protocols. The rules are evaluated
//! for each class, for all client addresses at once. A class becomes a route, or several with other clients, unless the
//! next wider class has the same result.

mod class_result;
mod client_networks;
mod client_notes;
mod collect;
mod distinctions;
mod endpoints;
mod evaluate;
mod name_result;
mod naming;
mod rule_list;

use std::collections::{HashMap, HashSet};

use crate::name::NamePattern;
use crate::text::units::span;
use ipnet::IpNet;

use self::collect::RouteCollector;
use self::evaluate::Evaluator;
use self::name_result::NameResult;
use self::naming::{suggest_aliases, unique_name};
use super::addresses::{AccessList, AddressSet};
use super::draft::{Draft, Frontend};
use super::expression::ClientLimit;
use super::name_match::{NameClass, wildcards_above};
use super::notes::Notes;
use super::upstream_draft::UpstreamDraft;

pub(super) struct RouteDraft {
    pub(super) name: String,
    /// Empty: the route has no `sni` and matches every other name.
    pub(super) names: Vec<NamePattern>,
    pub(super) matchers: RouteMatchers,
    /// Names that clients may send once they verify the API server's own certificate.
    pub(super) aliases: Vec<NamePattern>,
    /// The number of the frontend.
    pub(super) frontend: usize,
    pub(super) access: AccessList,
    /// `None`: the route rejects all clients.
    pub(super) upstream: Option<String>,
}

/// Besides names. Empty: any client.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct RouteMatchers {
    pub(super) alpn: Vec<String>,
    pub(super) clients: Vec<IpNet>,
    pub(super) destinations: Vec<IpNet>,
    pub(super) tlv: Option<(u8, Vec<u8>)>,
}

/// Removes frontends without routes from the draft.
pub(super) fn make(draft: &mut Draft, notes: &mut Notes) -> Vec<RouteDraft> {
    endpoints::leave_out_invalid(draft, notes);
    let mut routes = Vec::new();
    let mut names = HashSet::new();
    for mut frontend in std::mem::take(&mut draft.frontends) {
        let number = draft.frontends.len();
        if frontend.addresses.is_empty() {
            notes
                .rejects_or_reroutes(&frontend.location, "not translated: snigate can listen at none of its addresses");
            continue;
        }
        let FrontendRoutes { access, routes: made } = of_frontend(&frontend, draft, notes);
        if made.iter().all(|one| one.upstream.is_none()) {
            notes.rejects_or_reroutes(&frontend.location, "not translated: no upstream is left that it could route to");
            continue;
        }
        frontend.access = access;
        frontend.locations.iter().for_each(|location| notes.translated(location));
        for upstream in made.iter().filter_map(|one| one.upstream.as_ref()) {
            let UpstreamDraft { locations, endpoints, .. } = &draft.upstreams[upstream];
            locations
                .iter()
                .chain(endpoints.iter().map(|endpoint| &endpoint.location))
                .for_each(|location| notes.translated(location));
        }
        for route in made {
            let name = unique_name(&mut names, &route, &frontend.name);
            routes.push(RouteDraft { name, frontend: number, ..route });
        }
        draft.frontends.push(frontend);
    }
    for (number, _) in draft.frontends.iter().enumerate().filter(|(_, frontend)| frontend.terminated_tls) {
        suggest_aliases(&mut routes, number, draft);
    }
    if !routes.is_empty() {
        note_shorter_timeouts(draft, notes);
        set_limits(draft, notes);
    }
    routes
}

struct FrontendRoutes {
    /// Access list of its listeners.
    access: AccessList,
    routes: Vec<RouteDraft>,
}

fn of_frontend(frontend: &Frontend, draft: &Draft, notes: &mut Notes) -> FrontendRoutes {
    let mut evaluator = Evaluator::new(frontend, draft);
    let patterns = evaluator.patterns();
    let by_pattern: HashMap<&NamePattern, NameResult> = patterns
        .iter()
        .map(|pattern| (pattern, NameResult::evaluate(&mut evaluator, NameClass::Pattern(pattern))))
        .collect();
    let others = NameResult::of_others(&mut evaluator, notes);

    let mentioned = evaluator.mentioned_networks();
    let mut routes = RouteCollector::new(evaluator.admitted(), &mentioned);
    for pattern in &patterns {
        let result = &by_pattern[pattern];
        let above = wildcards_above(pattern).find_map(|above| by_pattern.get(&above));
        // A name that the source lists stays visible, though the route for all other names gives the same result.
        let general = result.general();
        let is_kept = above.is_none() && !general.shares.is_empty() && general.is_listed;
        if is_kept || !result.is_same(above.unwrap_or(&others)) {
            routes.add(Some(pattern), result);
        }
    }
    routes.add(None, &others);
    let routes = routes.all;
    let access = AccessList::of(evaluator.admitted(), &AddressSet::all(), &mentioned);
    evaluator.report(notes);
    FrontendRoutes { access, routes }
}

fn note_shorter_timeouts(draft: &Draft, notes: &mut Notes) {
    for (key, all) in draft.timeouts.by_key() {
        let Some((longest, _)) = all.last() else { continue };
        for (duration, location) in all {
            notes.translated(location);
            if duration < longest {
                let longest = span(*longest);
                notes.note(
                    location,
                    format!(
                        "`timeouts.{key}` is {longest}, the longest in the source: snigate has one for all connections"
                    ),
                );
            }
        }
    }
}

/// A limit for each client address counts at all listeners together, so it is only set if all have one.
fn set_limits(draft: &mut Draft, notes: &mut Notes) {
    type Is = fn(&ClientLimit) -> bool;
    let kinds: [Is; 2] =
        [|limit| matches!(limit, ClientLimit::Connections(_)), |limit| matches!(limit, ClientLimit::Rate(..))];
    for is_kind in kinds {
        let of = |frontend: &Frontend| frontend.limits.iter().filter(|(limit, _)| is_kind(limit)).cloned().min();
        let limits: Vec<_> = draft.frontends.iter().map(of).collect();
        let widest = limits.iter().flatten().map(|(limit, _)| *limit).max();
        let Some(widest) = widest else { continue };
        for (limit, location) in limits.iter().flatten() {
            if limits.iter().any(Option::is_none) {
                let reason = "limit left out: `limits.per_source` and `new_per_source` apply to all listeners, and another \
                    one has no such limit. Clients over this limit are admitted";
                notes.admits_more(location, reason);
            } else if *limit != widest {
                notes.admits_more(location, "`limits.per_source` and `new_per_source` apply to all listeners: the highest limit of the source is used");
            } else {
                notes.translated(location);
            }
        }
        if limits.iter().all(Option::is_some) {
            draft.limits.push(widest);
        }
    }
}
