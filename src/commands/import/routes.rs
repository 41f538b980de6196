//! Rules that are tried in order become routes that need none.

use std::collections::{BTreeSet, HashMap, HashSet};

use snigate::name::NamePattern;
use snigate::units::span;
use snigate::upstream::{Destination, leads_to};

use super::draft::{Draft, Frontend, Rule, Sources, Takes, Upstream};
use super::ledger::{Ledger, Place};
use super::values::label;

/// Which of two rules wins where both match.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The first one, as in HAProxy.
    First,
    /// The more specific one, as in nginx and here.
    MostSpecific,
}

pub(super) struct Route {
    pub(super) name: String,
    /// None: every other name.
    pub(super) names: Vec<NamePattern>,
    /// Names that clients may ask for once they see the API server's own certificate.
    pub(super) aliases: Vec<NamePattern>,
    /// By number.
    pub(super) frontend: usize,
    pub(super) sources: Sources,
    pub(super) upstream: String,
}

/// Frontends without routes are taken out of the draft.
pub(super) fn make(draft: &mut Draft, order: Order, ledger: &mut Ledger) -> Vec<Route> {
    check_endpoints(draft, ledger);
    let mut routes = Vec::new();
    let mut names = HashSet::new();
    for frontend in std::mem::take(&mut draft.frontends) {
        let number = draft.frontends.len();
        if frontend.addresses.is_empty() {
            ledger.note(&frontend.place, "it has no address that could be carried over");
            continue;
        }
        let made = of_frontend(&frontend, draft, order, ledger);
        if made.is_empty() {
            ledger.note(&frontend.place, "no route could be made of it, so nothing listens for it");
            continue;
        }
        frontend.places.iter().for_each(|place| ledger.carry(place));
        for Upstream { places, endpoints, .. } in made.iter().map(|one| &draft.upstreams[&one.upstream]) {
            places.iter().chain(endpoints.iter().map(|(_, place)| place)).for_each(|place| ledger.carry(place));
        }
        for Made { names: patterns, sources, upstream } in made {
            let name = unique(&mut names, &upstream, patterns.is_empty(), &frontend.name);
            routes.push(Route { name, names: patterns, aliases: Vec::new(), frontend: number, sources, upstream });
        }
        draft.frontends.push(frontend);
    }
    for (number, _) in draft.frontends.iter().enumerate().filter(|(_, frontend)| frontend.ended_tls) {
        suggest_aliases(&mut routes, number, draft);
    }
    if !routes.is_empty() {
        take_longest(draft, ledger);
    }
    routes
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

/// Endpoints that `check` would refuse.
fn check_endpoints(draft: &mut Draft, ledger: &mut Ledger) {
    let listening: Vec<_> = draft.frontends.iter().flat_map(|frontend| frontend.addresses.clone()).collect();
    for upstream in draft.upstreams.values_mut() {
        let mut seen: Vec<Destination> = Vec::new();
        upstream.endpoints.retain(|(endpoint, place)| {
            let is_own = |address| listening.iter().any(|listener| leads_to(address, *listener));
            let reason = if seen.contains(endpoint) {
                "it stands twice; one endpoint is enough"
            } else if endpoint.address().is_some_and(is_own) {
                "it is one of the listeners itself: connections would go in circles"
            } else {
                seen.push(endpoint.clone());
                return true;
            };
            ledger.note(place, format!("{endpoint}: {reason}"));
            false
        });
        upstream.backups.retain(|backup| !seen.contains(backup));
    }
}

struct Made {
    names: Vec<NamePattern>,
    sources: Sources,
    upstream: String,
}

fn of_frontend(frontend: &Frontend, draft: &Draft, order: Order, ledger: &mut Ledger) -> Vec<Made> {
    let mut claims = Claims { order, names: HashMap::new(), all: None };
    let mut made: Vec<Made> = Vec::new();
    let mut numbers: HashMap<(&str, &Sources, bool), usize> = HashMap::new();
    for rule in &frontend.rules {
        let Rule { place, also, takes, sources, upstream } = rule;
        if draft.upstreams.get(upstream).is_none_or(|upstream| upstream.endpoints.is_empty()) {
            ledger.note(place, format!("`{upstream}` has no server that could be carried over"));
            continue;
        }
        let mut names = Vec::new();
        let is_new = match takes {
            Takes::All => claims.take_all(place).map_err(|reason| ledger.note(place, reason)).is_ok(),
            Takes::Names(wanted) => {
                for name in wanted {
                    match claims.take(name, place) {
                        Ok(()) => names.push(name.clone()),
                        Err(reason) => ledger.note(place, reason),
                    }
                }
                !names.is_empty()
            }
        };
        if !is_new {
            continue;
        }
        also.iter().chain([place]).for_each(|place| ledger.carry(place));
        let number = *numbers.entry((upstream, sources, names.is_empty())).or_insert(made.len());
        match made.get_mut(number) {
            Some(same) => same.names.append(&mut names),
            None => made.push(Made { names, sources: sources.clone(), upstream: upstream.clone() }),
        }
    }
    made
}

/// Which names are taken, and where.
struct Claims {
    order: Order,
    names: HashMap<NamePattern, Place>,
    all: Option<Place>,
}

impl Claims {
    fn take(&mut self, name: &NamePattern, place: &Place) -> Result<(), String> {
        if let Some(first) = self.names.get(name) {
            return Err(format!("{name} is taken already ({first}), and the first rule wins"));
        }
        if self.order == Order::First {
            if let Some(first) = &self.all {
                return Err(format!("{name}: every name is taken already ({first}), and the first rule wins"));
            }
            let (NamePattern::Exact(text) | NamePattern::Suffix(text)) = name;
            let parents = std::iter::successors(text.split_once('.'), |(_, parent)| parent.split_once('.'));
            for (_, parent) in parents {
                let wider = NamePattern::Suffix(parent.into());
                if let Some(first) = self.names.get(&wider) {
                    return Err(format!("{name} is taken already by {wider} ({first}), and the first rule wins"));
                }
            }
        }
        self.names.insert(name.clone(), place.clone());
        Ok(())
    }

    fn take_all(&mut self, place: &Place) -> Result<(), String> {
        if let Some(first) = &self.all {
            return Err(format!("all other names are taken already ({first}), and the first rule wins"));
        }
        self.all = Some(place.clone());
        Ok(())
    }
}

fn unique(taken: &mut HashSet<String>, upstream: &str, takes_all: bool, frontend: &str) -> String {
    let upstream = label(upstream);
    let other = if takes_all { "default" } else { frontend };
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
        for (endpoint, _) in &draft.upstreams[&route.upstream].endpoints {
            let name = endpoint.name().and_then(|(name, _)| NamePattern::parse(name).ok());
            route.aliases.extend(name.filter(|name| taken.insert(name.clone())));
        }
    }
}
