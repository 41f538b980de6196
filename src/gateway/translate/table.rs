//! Which names each route gets at each address that is listened on.
//!
//! A name belongs to the most specific listener that matches it (listener isolation), and there to the route with the most
//! specific hostname, the oldest if there are several. The route table of the server does not know Gateways. So that it
//! decides the same, routes are left with the patterns that they win, and names of listeners that have no route for them
//! are kept from the wider patterns of other listeners.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::hostnames::Hostname;
use super::order::Age;
use crate::gateway::plan::{Match, Names};

/// What routes claim, by address.
#[derive(Default)]
pub(super) struct Table<'s> {
    addresses: BTreeMap<SocketAddr, Claims<'s>>,
}

#[derive(Default)]
struct Claims<'s> {
    /// The hostnames of listeners.
    listeners: BTreeSet<Hostname>,
    /// The routes for a hostname, with the listener that they are attached to; `None`: to any.
    routes: BTreeMap<Hostname, BTreeSet<(Claim<'s>, Option<Hostname>)>>,
    /// The routes for clients without SNI.
    no_sni: BTreeSet<Claim<'s>>,
}

/// Of equal claims, the least wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim<'s> {
    pub(super) age: Age<'s>,
    /// Index of the route.
    pub(super) route: usize,
}

/// The outcome.
#[derive(Debug, Default)]
pub(super) struct Decided {
    /// By index of the route.
    pub(super) matches: BTreeMap<usize, Vec<Match>>,
    pub(super) unrouted: Vec<Match>,
    /// Routes that do not get a name, and those that do.
    pub(super) lost: BTreeSet<(usize, String, usize)>,
}

impl<'s> Table<'s> {
    pub(super) fn add_listener(&mut self, address: SocketAddr, hostname: &Hostname) {
        self.addresses.entry(address).or_default().listeners.insert(hostname.clone());
    }

    /// `hostname` is that of a route, within that of the listener that it is attached to.
    pub(super) fn claim(
        &mut self,
        address: SocketAddr,
        hostname: &Hostname,
        listener: Option<&Hostname>,
        claim: Claim<'s>,
    ) {
        let claims = self.addresses.entry(address).or_default();
        claims.routes.entry(hostname.clone()).or_default().insert((claim, listener.cloned()));
    }

    pub(super) fn claim_no_sni(&mut self, address: SocketAddr, claim: Claim<'s>) {
        self.addresses.entry(address).or_default().no_sni.insert(claim);
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.keys().copied().collect()
    }

    pub(super) fn decide(&self) -> Decided {
        let mut decided = Decided::default();
        let mut won: BTreeMap<usize, BTreeMap<Claimed, BTreeSet<usize>>> = BTreeMap::new();
        let mut unrouted: BTreeMap<Claimed, BTreeSet<usize>> = BTreeMap::new();
        for (index, claims) in self.addresses.values().enumerate() {
            let mut winners: BTreeMap<&Hostname, usize> = BTreeMap::new();
            let mut decide = |claimed: Claimed, claims: &mut dyn Iterator<Item = Claim<'s>>| {
                let winner = claims.next()?.route;
                for loser in claims.filter(|loser| loser.route != winner) {
                    decided.lost.insert((loser.route, claimed.to_string(), winner));
                }
                won.entry(winner).or_default().entry(claimed).or_default().insert(index);
                Some(winner)
            };
            for (hostname, routes) in &claims.routes {
                let owner = claims.owner(hostname);
                let is_own = |listener: &Option<Hostname>| listener.is_none() || *listener == owner;
                let mut entitled = routes.iter().filter(|(_, listener)| is_own(listener)).map(|(claim, _)| *claim);
                if let Some(winner) = decide(Claimed::Hostname(hostname.clone()), &mut entitled) {
                    winners.insert(hostname, winner);
                }
            }
            decide(Claimed::NoSni, &mut claims.no_sni.iter().copied());
            for hostname in claims.listeners.iter().filter(|hostname| !winners.contains_key(hostname)) {
                if hostname.wider().any(|wider| winners.contains_key(&wider)) {
                    unrouted.entry(Claimed::Hostname(hostname.clone())).or_default().insert(index);
                }
            }
        }
        decided.matches = won.into_iter().map(|(route, claimed)| (route, matches(claimed))).collect();
        decided.unrouted = matches(unrouted);
        decided
    }
}

impl Claims<'_> {
    /// The listener that a hostname belongs to.
    fn owner(&self, hostname: &Hostname) -> Option<Hostname> {
        let mut candidates = [hostname.clone()].into_iter().chain(hostname.wider());
        candidates.find(|candidate| self.listeners.contains(candidate))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claimed {
    Hostname(Hostname),
    NoSni,
}

impl std::fmt::Display for Claimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hostname(hostname) => hostname.fmt(f),
            Self::NoSni => f.write_str("clients without SNI"),
        }
    }
}

/// Patterns with the same listeners are in one match.
fn matches(claimed: BTreeMap<Claimed, BTreeSet<usize>>) -> Vec<Match> {
    let mut patterns: BTreeMap<BTreeSet<usize>, BTreeSet<_>> = BTreeMap::new();
    let mut matches = Vec::new();
    for (claimed, listeners) in claimed {
        match claimed {
            Claimed::Hostname(Hostname::Pattern(pattern)) => {
                patterns.entry(listeners).or_default().insert(pattern);
            }
            Claimed::Hostname(Hostname::Any) => matches.push(Match { listeners, names: Names::All }),
            Claimed::NoSni => matches.push(Match { listeners, names: Names::NoSni }),
        }
    }
    let patterns =
        patterns.into_iter().map(|(listeners, patterns)| Match { listeners, names: Names::Patterns(patterns) });
    matches.extend(patterns);
    matches.sort();
    matches
}
