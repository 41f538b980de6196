//! Rules that are tried in order, and what comes of them for one part of the clients.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::name::NamePattern;

use crate::commands::import::draft::{Outcome, Rule};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::names::{Region, wider};
use crate::commands::import::sources::Addresses;

/// Clients, by what becomes of them.
pub(super) type Shares = Vec<(Outcome, Addresses)>;

pub(super) struct Rules<'a> {
    all: &'a [Rule],
    otherwise: Outcome,
    /// By the names that they ask for.
    by_name: HashMap<&'a NamePattern, Vec<usize>>,
    /// All others.
    general: Vec<usize>,
}

/// Those that decide for a region, with the clients that they may decide for.
struct Matched {
    number: usize,
    chosen: Addresses,
    doubtful: Addresses,
    doubts: BTreeSet<String>,
}

/// What is found out about a list of rules while regions are looked at.
#[derive(Default)]
pub(super) struct Findings {
    /// Rules that decided for someone.
    pub(super) used: HashSet<usize>,
    /// Rules that would, if none before them had: the name, and the one before.
    beaten: HashMap<usize, (Option<NamePattern>, usize)>,
    shadowed: Vec<(usize, NamePattern, usize)>,
    /// Rules of which it is not known whether they hold.
    doubted: HashSet<usize>,
}

/// Clients for whom the source may decide otherwise.
pub(super) struct Doubt {
    pub(super) rule: usize,
    pub(super) clients: Addresses,
    pub(super) reasons: BTreeSet<String>,
    /// Whether they are treated as if the rule held.
    pub(super) chosen: bool,
    /// What the rules after it make of them.
    pub(super) rest: BTreeSet<Outcome>,
}

pub(super) struct Decided<'a> {
    pub(super) shares: Shares,
    pub(super) doubts: Vec<Doubt>,
    /// The rules that decided for someone.
    pub(super) by: Vec<&'a Rule>,
}

impl<'a> Decided<'a> {
    pub(super) fn place(&self, outcome: &Outcome) -> Option<&'a Place> {
        self.by.iter().find(|rule| rule.then == *outcome).map(|rule| &rule.place)
    }
}

impl<'a> Rules<'a> {
    pub(super) fn new(rules: &'a [Rule], otherwise: Outcome) -> Self {
        let (mut by_name, mut general) = (HashMap::<_, Vec<usize>>::new(), Vec::new());
        for (number, rule) in rules.iter().enumerate() {
            match rule.when.names_asked() {
                Some(patterns) => {
                    for pattern in patterns {
                        by_name.entry(pattern).or_default().push(number);
                    }
                }
                None => general.push(number),
            }
        }
        Self { all: rules, otherwise, by_name, general }
    }

    pub(super) fn rule(&self, number: usize) -> &'a Rule {
        &self.all[number]
    }

    fn about(&self, region: Region<'_>) -> Vec<usize> {
        let mut numbers = self.general.clone();
        if let Region::Named(pattern) = region {
            let of = |pattern: &NamePattern| self.by_name.get(pattern).into_iter().flatten().copied();
            numbers.extend(of(pattern));
            wider(pattern).for_each(|wider| numbers.extend(of(&wider)));
            numbers.sort_unstable();
            numbers.dedup();
        }
        numbers
    }

    /// What becomes of these clients.
    pub(super) fn decide(
        &self,
        region: Region<'_>,
        alpn: bool,
        clients: &Addresses,
        findings: &mut Findings,
    ) -> Decided<'a> {
        let matched: Vec<Matched> = (self.about(region).into_iter())
            .map(|number| {
                let mut doubts = BTreeSet::new();
                let holds = self.all[number].when.holds_for(region, alpn, &mut doubts);
                let doubtful = holds.possibly.minus(&holds.surely);
                Matched { number, chosen: holds.chosen, doubtful, doubts }
            })
            .collect();
        let mut doubts = Vec::new();
        let mut by = Vec::new();
        let mut left = clients.clone();
        let mut last = None;
        for (at, Matched { number, chosen, doubtful, doubts: reasons }) in matched.iter().enumerate() {
            let number = *number;
            let taken = left.and(chosen);
            if left.is_empty() && !chosen.or(doubtful).and(clients).is_empty()
                || taken.is_empty() && !chosen.and(clients).is_empty()
            {
                findings.note_beaten(self, number, region, last);
            }
            let unsure = left.and(doubtful);
            for (clients, chosen) in [(unsure.and(chosen), true), (unsure.minus(chosen), false)] {
                if clients.is_empty() {
                    continue;
                }
                findings.doubted.insert(number);
                let rest = self.shares(&matched[at + 1..], &clients);
                let rest: BTreeSet<Outcome> =
                    rest.into_iter().map(|(outcome, _)| outcome).filter(|one| *one != self.all[number].then).collect();
                if !rest.is_empty() {
                    doubts.push(Doubt { rule: number, clients, reasons: reasons.clone(), chosen, rest });
                }
            }
            if !taken.is_empty() {
                findings.used.insert(number);
                left = left.minus(&taken);
                last = Some(number);
                by.push(&self.all[number]);
            }
        }
        Decided { shares: self.shares(&matched, clients), doubts, by }
    }

    fn shares(&self, matched: &[Matched], clients: &Addresses) -> Shares {
        let mut shares: Shares = Vec::new();
        let mut add = |outcome: &Outcome, clients: Addresses| match shares.iter_mut().find(|(one, _)| one == outcome) {
            Some((_, more)) => *more = more.or(&clients),
            None => shares.push((outcome.clone(), clients)),
        };
        let mut left = clients.clone();
        for Matched { number, chosen, .. } in matched {
            let taken = left.and(chosen);
            if !taken.is_empty() {
                left = left.minus(&taken);
                add(&self.all[*number].then, taken);
            }
            if left.is_empty() {
                break;
            }
        }
        if !left.is_empty() {
            add(&self.otherwise, left);
        }
        shares
    }
}

impl Findings {
    fn note_beaten(&mut self, rules: &Rules<'_>, number: usize, region: Region<'_>, by: Option<usize>) {
        let Some(by) = by else { return };
        let name = if let Region::Named(pattern) = region { Some(pattern.clone()) } else { None };
        let asked = rules.all[number].when.names_asked();
        if let Some(pattern) = name.as_ref().filter(|name| asked.is_some_and(|asked| asked.contains(name))) {
            self.shadowed.push((number, pattern.clone(), by));
        }
        self.beaten.entry(number).or_insert((name, by));
    }

    /// Says what became of each rule.
    pub(super) fn report(&self, rules: &Rules<'_>, ledger: &mut Ledger) {
        for (number, pattern, by) in &self.shadowed {
            let place = &rules.rule(*number).place;
            if place != &rules.rule(*by).place {
                let by = &rules.rule(*by).place;
                ledger.note(place, format!("{pattern} is decided before ({by}), and the first rule wins"));
            }
        }
        for (number, rule) in rules.all.iter().enumerate() {
            let mut carry = || rule.also.iter().chain([&rule.place]).for_each(|place: &Place| ledger.carry(place));
            if self.used.contains(&number) {
                carry();
            } else if let Some((_, by)) = self.beaten.get(&number).filter(|_| !self.doubted.contains(&number)) {
                // Such as a default that a lookup falls back to.
                let is_part = rules.rule(*by).also.contains(&rule.place);
                if is_part || self.shadowed.iter().any(|(shadowed, ..)| *shadowed == number) {
                    continue;
                }
                let by = &rules.rule(*by).place;
                ledger
                    .note(&rule.place, format!("it is never reached: the rule before ({by}) decides for its clients"));
            } else if !self.doubted.contains(&number) {
                // It holds for no client that speaks TLS.
                carry();
            }
        }
    }
}
