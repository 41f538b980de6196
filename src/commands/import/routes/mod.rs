//! Rules that are tried in order become routes that need none.
//!
//! The names in the rules divide all clients into regions, within which no rule tells one name from another. What the
//! rules make of each region is found by trying them, for all addresses of clients at once; a region becomes a route
//! unless the one around it says the same.

mod endpoints;
mod region;
mod rules;

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::name::NamePattern;
use crate::text::units::span;

use self::region::{Judge, Verdict};
use super::draft::{Draft, Frontend, Upstream};
use super::expression::Limit;
use super::ledger::Ledger;
use super::names::{Region, wider};
use super::sources::Sources;
use super::values::label;

pub(super) struct Route {
    pub(super) name: String,
    /// None: every other name.
    pub(super) names: Vec<NamePattern>,
    pub(super) alpn: Vec<String>,
    /// Names that clients may ask for once they see the API server's own certificate.
    pub(super) aliases: Vec<NamePattern>,
    /// By number.
    pub(super) frontend: usize,
    pub(super) sources: Sources,
    /// `None`: all are refused.
    pub(super) upstream: Option<String>,
}

/// Frontends without routes are taken out of the draft.
pub(super) fn make(draft: &mut Draft, ledger: &mut Ledger) -> Vec<Route> {
    endpoints::check(draft, ledger);
    let mut routes = Vec::new();
    let mut names = HashSet::new();
    for mut frontend in std::mem::take(&mut draft.frontends) {
        let number = draft.frontends.len();
        if frontend.addresses.is_empty() {
            ledger.narrower(&frontend.place, "it has no address that could be carried over, so nothing listens for it");
            continue;
        }
        let Made { shared, routes: made } = of_frontend(&frontend, draft, ledger);
        if made.iter().all(|one| one.upstream.is_none()) {
            ledger.narrower(&frontend.place, "no route could be made of it, so nothing listens for it");
            continue;
        }
        frontend.sources = shared;
        frontend.places.iter().for_each(|place| ledger.carry(place));
        for upstream in made.iter().filter_map(|one| one.upstream.as_ref()) {
            let Upstream { places, endpoints, .. } = &draft.upstreams[upstream];
            places.iter().chain(endpoints.iter().map(|(_, place)| place)).for_each(|place| ledger.carry(place));
        }
        for route in made {
            let name = unique(&mut names, &route, &frontend.name);
            routes.push(Route { name, frontend: number, ..route });
        }
        draft.frontends.push(frontend);
    }
    for (number, _) in draft.frontends.iter().enumerate().filter(|(_, frontend)| frontend.ended_tls) {
        suggest_aliases(&mut routes, number, draft);
    }
    if !routes.is_empty() {
        take_longest(draft, ledger);
        limit(draft, ledger);
    }
    routes
}

struct Made {
    /// What holds at the listener already.
    shared: Sources,
    routes: Vec<Route>,
}

fn of_frontend(frontend: &Frontend, draft: &Draft, ledger: &mut Ledger) -> Made {
    let mut judge = Judge::new(frontend, draft);
    let patterns = judge.patterns();
    let regions = patterns.iter().map(Region::Named).chain([Region::Other, Region::Nameless]);
    let has_alpn = !judge.protocols().is_empty();
    let verdicts: Vec<(Region<'_>, Vec<Verdict>)> = regions
        .map(|region| {
            (region, [false, true][..=usize::from(has_alpn)].iter().map(|alpn| judge.of(region, *alpn)).collect())
        })
        .collect();
    let within = judge.admitted().clone();
    let mentioned = judge.mentioned();
    let written = |verdict: &Verdict| match &verdict.upstream {
        Some(upstream) => (Some(upstream.clone()), Sources::of(&verdict.clients, &within, &mentioned)),
        None => (None, Sources::nobody()),
    };
    let (named, [(_, others), (_, nameless)]) = verdicts.split_at(patterns.len()) else {
        return Made { shared: Sources::default(), routes: Vec::new() };
    };
    let by_pattern: HashMap<&NamePattern, &Vec<Verdict>> =
        patterns.iter().zip(named).map(|(pattern, (_, verdicts))| (pattern, verdicts)).collect();

    let mut routes: Vec<Route> = Vec::new();
    let mut numbers = HashMap::new();
    let mut add = |pattern: Option<&NamePattern>, verdict: &Verdict, alpn: Vec<String>| {
        let (upstream, sources) = written(verdict);
        let key = (upstream.clone(), sources.clone(), alpn.clone(), pattern.is_none());
        let number = *numbers.entry(key).or_insert(routes.len());
        if number == routes.len() {
            routes.push(Route {
                name: String::new(),
                names: Vec::new(),
                alpn,
                aliases: Vec::new(),
                frontend: 0,
                sources,
                upstream,
            });
        }
        routes[number].names.extend(pattern.cloned());
    };
    for (pattern, (_, verdicts)) in patterns.iter().zip(named) {
        let above = wider(pattern).find_map(|wider| by_pattern.get(&wider).copied());
        // What the source has as a name of its own stays one, though the route for all others may say the same.
        let is_kept = above.is_none() && verdicts[0].upstream.is_some() && verdicts[0].is_asked_for;
        if verdicts == above.unwrap_or(others) && !is_kept {
            continue;
        }
        add(Some(pattern), &verdicts[0], Vec::new());
        if let Some(verdict) = verdicts.get(1).filter(|verdict| **verdict != verdicts[0]) {
            add(Some(pattern), verdict, judge.protocols());
        }
    }
    if let Some(verdict) = others.get(1).filter(|verdict| **verdict != others[0]) {
        add(None, verdict, judge.protocols());
    }
    if others[0].upstream.is_some() {
        add(None, &others[0], Vec::new());
    }
    Judge::compare_nameless(&others[0], &nameless[0], ledger);
    judge.report(ledger);
    Made { shared: Sources::of(&within, &super::sources::Addresses::all(), &mentioned), routes }
}

fn take_longest(draft: &Draft, ledger: &mut Ledger) {
    for (key, all) in draft.timeouts.named() {
        let Some((longest, _)) = all.last() else { continue };
        for (duration, place) in all {
            ledger.carry(place);
            if duration < longest {
                let longest = span(*longest);
                ledger.note(place, format!("`timeouts.{key}` is one for all connections: the longest, {longest}"));
            }
        }
    }
}

/// Limits hold at all listeners here, so all must have one.
fn limit(draft: &mut Draft, ledger: &mut Ledger) {
    type Is = fn(&Limit) -> bool;
    let kinds: [Is; 2] = [|limit| matches!(limit, Limit::Connections(_)), |limit| matches!(limit, Limit::New(..))];
    for is_kind in kinds {
        let of = |frontend: &Frontend| frontend.limits.iter().filter(|(limit, _)| is_kind(limit)).cloned().min();
        let limits: Vec<_> = draft.frontends.iter().map(of).collect();
        let widest = limits.iter().flatten().map(|(limit, _)| *limit).max();
        let Some(widest) = widest else { continue };
        for (limit, place) in limits.iter().flatten() {
            if limits.iter().any(Option::is_none) {
                let reason = "a limit for each source holds at all listeners here, and another one has none, so it is \
                    left out: clients that it refuses are admitted";
                ledger.wider(place, reason);
            } else if *limit != widest {
                ledger.wider(place, "a limit for each source holds at all listeners here: the highest one is taken");
            } else {
                ledger.carry(place);
            }
        }
        if limits.iter().all(Option::is_some) {
            draft.limits.push(widest);
        }
    }
}

fn unique(taken: &mut HashSet<String>, route: &Route, frontend: &str) -> String {
    let upstream = route.upstream.as_deref().map_or_else(|| "refused".to_owned(), label);
    let other = match (&route.alpn[..], route.names.is_empty()) {
        ([protocol, ..], _) => label(protocol),
        ([], true) => "default".into(),
        ([], false) => frontend.into(),
    };
    let named = [upstream.clone(), format!("{upstream}-{other}"), format!("{upstream}-{other}-{frontend}")];
    let numbered = (2..).map(|number| format!("{upstream}-{number}"));
    let name = named.into_iter().chain(numbered).find(|name| !taken.contains(name)).unwrap_or(upstream);
    taken.insert(name.clone());
    name
}

fn suggest_aliases(routes: &mut [Route], frontend: usize, draft: &Draft) {
    let ours = || routes.iter().filter(|route| route.frontend == frontend);
    let mut taken: BTreeSet<NamePattern> = ours().flat_map(|route| route.names.iter().cloned()).collect();
    for route in routes.iter_mut().filter(|route| route.frontend == frontend && !route.names.is_empty()) {
        let Some(upstream) = &route.upstream else { continue };
        for (endpoint, _) in &draft.upstreams[upstream].endpoints {
            let name = endpoint.name().and_then(|(name, _)| NamePattern::parse(name).ok());
            route.aliases.extend(name.filter(|name| taken.insert(name.clone())));
        }
    }
}
