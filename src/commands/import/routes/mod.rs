//! Turns rules of which the first match decides into routes, whose order does not matter.
//!
//! The names in all rules of a frontend divide its clients into classes, within which no rule tells one name from
//! another. The rules are evaluated for each class, for all client addresses at once. A class becomes a route unless the
//! next wider class has the same result.

mod class_result;
mod client_notes;
mod endpoints;
mod evaluate;
mod rule_list;

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::name::NamePattern;
use crate::text::units::span;
use ipnet::IpNet;

use self::class_result::{ClassResult, compare_without_sni};
use self::evaluate::Evaluator;
use super::addresses::{AccessList, AddressSet};
use super::client_class::{AlpnClass, ClientClass};
use super::draft::{Draft, Frontend};
use super::expression::ClientLimit;
use super::name_match::{NameClass, wildcards_above};
use super::notes::Notes;
use super::upstream_draft::UpstreamDraft;
use super::values::label;

pub(super) struct RouteDraft {
    pub(super) name: String,
    /// Empty: the route has no `sni` and matches every other name.
    pub(super) names: Vec<NamePattern>,
    pub(super) alpn: Vec<String>,
    /// Names that clients may send once they verify the API server's own certificate.
    pub(super) aliases: Vec<NamePattern>,
    /// The number of the frontend.
    pub(super) frontend: usize,
    pub(super) access: AccessList,
    /// `None`: the route rejects all clients.
    pub(super) upstream: Option<String>,
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
    /// Of its listeners.
    access: AccessList,
    routes: Vec<RouteDraft>,
}

/// What happens to clients of one name class, without and with the protocols of the ALPN test, if there is one.
struct NameResult {
    plain: ClassResult,
    with_alpn: Option<ClassResult>,
}

impl NameResult {
    fn is_same(&self, other: &Self) -> bool {
        (&self.plain, &self.with_alpn) == (&other.plain, &other.with_alpn)
    }
}

fn of_frontend(frontend: &Frontend, draft: &Draft, notes: &mut Notes) -> FrontendRoutes {
    let mut evaluator = Evaluator::new(frontend, draft);
    let patterns = evaluator.patterns();
    let protocols = evaluator.alpn_protocols();
    let mut evaluate = |name: NameClass<'_>| {
        let mut result = |is_offered| {
            evaluator.evaluate(ClientClass { name, alpn: AlpnClass { protocols: &protocols, is_offered } })
        };
        NameResult { plain: result(false), with_alpn: (!protocols.is_empty()).then(|| result(true)) }
    };
    let by_pattern: HashMap<&NamePattern, NameResult> =
        patterns.iter().map(|pattern| (pattern, evaluate(NameClass::Pattern(pattern)))).collect();
    let others = evaluate(NameClass::Other);
    let without_sni = evaluate(NameClass::NoSni);

    let mentioned = evaluator.mentioned_networks();
    let mut routes = RouteCollector::new(evaluator.admitted(), &mentioned, &protocols);
    for pattern in &patterns {
        let result = &by_pattern[pattern];
        let above = wildcards_above(pattern).find_map(|above| by_pattern.get(&above));
        // A name that the source lists stays visible, though the route for all other names gives the same result.
        let is_kept = above.is_none() && result.plain.upstream.is_some() && result.plain.is_listed;
        if is_kept || !result.is_same(above.unwrap_or(&others)) {
            routes.add(Some(pattern), result);
        }
    }
    routes.add(None, &others);
    let routes = routes.all;
    compare_without_sni(&others.plain, &without_sni.plain, notes);
    let access = AccessList::of(evaluator.admitted(), &AddressSet::all(), &mentioned);
    evaluator.report(notes);
    FrontendRoutes { access, routes }
}

/// Collects names with equal results in one route.
struct RouteCollector<'a> {
    all: Vec<RouteDraft>,
    /// The number of a route by its other properties, and whether it has names.
    numbers: HashMap<(Option<String>, AccessList, Vec<String>, bool), usize>,
    admitted: &'a AddressSet,
    mentioned: &'a [IpNet],
    protocols: &'a BTreeSet<String>,
}

impl<'a> RouteCollector<'a> {
    fn new(admitted: &'a AddressSet, mentioned: &'a [IpNet], protocols: &'a BTreeSet<String>) -> Self {
        Self { all: Vec::new(), numbers: HashMap::new(), admitted, mentioned, protocols }
    }

    /// `None`: all other names.
    fn add(&mut self, pattern: Option<&NamePattern>, result: &NameResult) {
        let NameResult { plain, with_alpn } = result;
        // Clients that no route matches are rejected anyway.
        if pattern.is_some() || plain.upstream.is_some() {
            self.add_one(pattern, plain, Vec::new());
        }
        if let Some(with_alpn) = with_alpn.as_ref().filter(|with_alpn| *with_alpn != plain) {
            self.add_one(pattern, with_alpn, self.protocols.iter().cloned().collect());
        }
    }

    fn add_one(&mut self, pattern: Option<&NamePattern>, result: &ClassResult, alpn: Vec<String>) {
        let access = match &result.upstream {
            Some(_) => AccessList::of(&result.admitted, self.admitted, self.mentioned),
            None => AccessList::deny_all(),
        };
        let upstream = result.upstream.clone();
        let key = (upstream.clone(), access.clone(), alpn.clone(), pattern.is_some());
        let number = *self.numbers.entry(key).or_insert(self.all.len());
        if number == self.all.len() {
            let (name, names, aliases) = (String::new(), Vec::new(), Vec::new());
            self.all.push(RouteDraft { name, names, alpn, aliases, frontend: 0, access, upstream });
        }
        self.all[number].names.extend(pattern.cloned());
    }
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

fn unique_name(used: &mut HashSet<String>, route: &RouteDraft, frontend: &str) -> String {
    let upstream = route.upstream.as_deref().map_or_else(|| "rejected".to_owned(), label);
    let other = match (&route.alpn[..], route.names.is_empty()) {
        ([protocol, ..], _) => label(protocol),
        ([], true) => "default".into(),
        ([], false) => frontend.into(),
    };
    let named = [upstream.clone(), format!("{upstream}-{other}"), format!("{upstream}-{other}-{frontend}")];
    let numbered = (2..).map(|number| format!("{upstream}-{number}"));
    let name = named.into_iter().chain(numbered).find(|name| !used.contains(name)).unwrap_or(upstream);
    used.insert(name.clone());
    name
}

fn suggest_aliases(routes: &mut [RouteDraft], frontend: usize, draft: &Draft) {
    let ours = || routes.iter().filter(|route| route.frontend == frontend);
    let mut used: BTreeSet<NamePattern> = ours().flat_map(|route| route.names.iter().cloned()).collect();
    for route in routes.iter_mut().filter(|route| route.frontend == frontend && !route.names.is_empty()) {
        let Some(upstream) = &route.upstream else { continue };
        for endpoint in &draft.upstreams[upstream].endpoints {
            let name = endpoint.destination.name().and_then(|(name, _)| NamePattern::parse(name).ok());
            route.aliases.extend(name.filter(|name| used.insert(name.clone())));
        }
    }
}
