//! Rules of which the first that matches decides, evaluated for one class of clients.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::name::NamePattern;

use crate::commands::import::addresses::AddressSet;
use crate::commands::import::client_class::ClientClass;
use crate::commands::import::draft::{Action, Rule};
use crate::commands::import::name_match::{NameClass, wildcards_above};
use crate::commands::import::notes::{Location, Notes};

pub(super) type ClientsByAction = Vec<(Action, AddressSet)>;

pub(super) struct RuleList<'a> {
    all: &'a [Rule],
    /// For clients that no rule matches.
    otherwise: Action,
    /// Rules that only match certain names, by these.
    by_name: HashMap<&'a NamePattern, Vec<usize>>,
    others: Vec<usize>,
    usage: RuleUsage,
}

/// What was seen of each rule in all evaluations.
#[derive(Default)]
struct RuleUsage {
    used: HashSet<usize>,
    /// The same for a name that the rule lists.
    used_names: HashSet<(usize, NamePattern)>,
    /// Rules that match clients for which an earlier rule decides, with that rule.
    preempted: HashMap<usize, usize>,
    /// The same for a name that the rule lists.
    preempted_names: Vec<(usize, NamePattern, usize)>,
    /// Rules that match certain clients or not, which cannot be known here.
    uncertain: HashSet<usize>,
}

/// A rule that may match a class of clients.
struct CandidateRule {
    number: usize,
    assumed: AddressSet,
    uncertain: AddressSet,
    reasons: BTreeSet<String>,
}

/// Clients for which the source may decide differently from the translation.
pub(super) struct Uncertainty<'a> {
    pub(super) rule: &'a Rule,
    pub(super) clients: AddressSet,
    pub(super) reasons: BTreeSet<String>,
    /// Whether the translation lets the rule match.
    pub(super) is_assumed: bool,
    /// What may happen to these clients instead.
    pub(super) otherwise: BTreeSet<Action>,
}

pub(super) struct Evaluation<'a> {
    pub(super) clients_by_action: ClientsByAction,
    pub(super) uncertainties: Vec<Uncertainty<'a>>,
    pub(super) deciding_rules: Vec<&'a Rule>,
}

impl<'a> Evaluation<'a> {
    pub(super) fn location(&self, action: &Action) -> Option<&'a Location> {
        self.deciding_rules.iter().find(|rule| rule.then == *action).map(|rule| &rule.location)
    }
}

impl<'a> RuleList<'a> {
    pub(super) fn new(rules: &'a [Rule], otherwise: Action) -> Self {
        let (mut by_name, mut others) = (HashMap::<_, Vec<usize>>::new(), Vec::new());
        for (number, rule) in rules.iter().enumerate() {
            match rule.when.required_names() {
                Some(patterns) => {
                    for pattern in patterns {
                        by_name.entry(pattern).or_default().push(number);
                    }
                }
                None => others.push(number),
            }
        }
        Self { all: rules, otherwise, by_name, others, usage: RuleUsage::default() }
    }

    pub(super) fn evaluate(&mut self, class: ClientClass<'_>, clients: &AddressSet) -> Evaluation<'a> {
        let all = self.all;
        let candidates = self.candidates(class);
        let (mut uncertainties, mut deciding_rules) = (Vec::new(), Vec::new());
        let mut undecided = clients.clone();
        let mut last_used = None;
        for (index, CandidateRule { number, assumed, uncertain, reasons }) in candidates.iter().enumerate() {
            let (number, rule) = (*number, &all[*number]);
            let matched = undecided.and(assumed);
            let would_match = !assumed.and(clients).is_empty();
            let may_match = would_match || !uncertain.and(clients).is_empty();
            if let Some(earlier) = last_used
                && ((undecided.is_empty() && may_match) || (matched.is_empty() && would_match))
            {
                self.note_preempted(number, class.name, earlier);
            }
            let uncertain = undecided.and(uncertain);
            for (clients, is_assumed) in [(uncertain.and(assumed), true), (uncertain.minus(assumed), false)] {
                if clients.is_empty() {
                    continue;
                }
                self.usage.uncertain.insert(number);
                let mut otherwise = self.possible_actions(&candidates[index + 1..], &clients);
                otherwise.remove(&rule.then);
                if !otherwise.is_empty() {
                    uncertainties.push(Uncertainty { rule, clients, reasons: reasons.clone(), is_assumed, otherwise });
                }
            }
            if !matched.is_empty() {
                self.usage.used.insert(number);
                self.usage.used_names.extend(self.listed_name(number, class.name).map(|name| (number, name)));
                undecided = undecided.minus(&matched);
                last_used = Some(number);
                deciding_rules.push(rule);
            }
        }
        let clients_by_action = self.clients_by_action(&candidates, clients);
        Evaluation { clients_by_action, uncertainties, deciding_rules }
    }

    /// Rules that may match clients with these names.
    pub(super) fn rules_for(&self, name: NameClass<'_>) -> impl Iterator<Item = &'a Rule> {
        let all = self.all;
        self.numbers_for(name).into_iter().map(move |number| &all[number])
    }

    fn numbers_for(&self, name: NameClass<'_>) -> Vec<usize> {
        let mut numbers = self.others.clone();
        if let NameClass::Pattern(pattern) = name {
            for pattern in std::iter::once(pattern.clone()).chain(wildcards_above(pattern)) {
                numbers.extend(self.by_name.get(&pattern).into_iter().flatten());
            }
            numbers.sort_unstable();
            numbers.dedup();
        }
        numbers
    }

    fn candidates(&self, class: ClientClass<'_>) -> Vec<CandidateRule> {
        let candidate = |number: usize| {
            let mut reasons = BTreeSet::new();
            let coverage = self.all[number].when.coverage(class, &mut reasons);
            let uncertain = coverage.possible.minus(&coverage.certain);
            CandidateRule { number, assumed: coverage.assumed, uncertain, reasons }
        };
        self.numbers_for(class.name).into_iter().map(candidate).collect()
    }

    fn clients_by_action(&self, candidates: &[CandidateRule], clients: &AddressSet) -> ClientsByAction {
        let mut all: ClientsByAction = Vec::new();
        let mut add = |action: &Action, clients: AddressSet| match all.iter_mut().find(|(one, _)| one == action) {
            Some((_, before)) => *before = before.or(&clients),
            None => all.push((action.clone(), clients)),
        };
        let mut undecided = clients.clone();
        for CandidateRule { number, assumed, .. } in candidates {
            let matched = undecided.and(assumed);
            if !matched.is_empty() {
                undecided = undecided.minus(&matched);
                add(&self.all[*number].then, matched);
            }
            if undecided.is_empty() {
                break;
            }
        }
        if !undecided.is_empty() {
            add(&self.otherwise, undecided);
        }
        all
    }

    /// Tests of several rules may depend on each other, so that none is assumed to match or not.
    fn possible_actions(&self, candidates: &[CandidateRule], clients: &AddressSet) -> BTreeSet<Action> {
        let mut all = BTreeSet::new();
        let mut undecided = clients.clone();
        for CandidateRule { number, assumed, uncertain, .. } in candidates {
            if !undecided.and(&assumed.or(uncertain)).is_empty() {
                all.insert(self.all[*number].then.clone());
            }
            undecided = undecided.minus(&assumed.minus(uncertain));
            if undecided.is_empty() {
                return all;
            }
        }
        all.insert(self.otherwise.clone());
        all
    }

    fn note_preempted(&mut self, number: usize, class: NameClass<'_>, earlier: usize) {
        if let Some(pattern) = self.listed_name(number, class) {
            self.usage.preempted_names.push((number, pattern, earlier));
        }
        self.usage.preempted.entry(number).or_insert(earlier);
    }

    /// The pattern of the class, if the rule lists it.
    fn listed_name(&self, number: usize, class: NameClass<'_>) -> Option<NamePattern> {
        let NameClass::Pattern(pattern) = class else { return None };
        let names = self.all[number].when.required_names();
        names.is_some_and(|names| names.contains(pattern)).then(|| pattern.clone())
    }

    /// Notes for each rule whether it is translated.
    pub(super) fn report(&self, notes: &mut Notes) {
        let RuleUsage { used, used_names, preempted, preempted_names, uncertain } = &self.usage;
        let mut reported = used_names.clone();
        for (number, pattern, earlier) in preempted_names {
            // Clients with this name that arrive elsewhere may match it.
            if !reported.insert((*number, pattern.clone())) {
                continue;
            }
            let (location, earlier) = (&self.all[*number].location, &self.all[*earlier].location);
            if location != earlier {
                notes.note(location, format!("no effect for {pattern}: the rule in {earlier} matches it first"));
            }
        }
        for (number, rule) in self.all.iter().enumerate() {
            if uncertain.contains(&number) && !used.contains(&number) {
                continue;
            }
            match preempted.get(&number) {
                Some(earlier) if !used.contains(&number) => {
                    let earlier = &self.all[*earlier];
                    // Such as a default backend that a map lookup falls back to.
                    let is_part_of_it = earlier.related.contains(&rule.location);
                    if !is_part_of_it && !preempted_names.iter().any(|(preempted, ..)| *preempted == number) {
                        let reason = format!("never used: the rule in {} matches its clients first", earlier.location);
                        notes.note(&rule.location, reason);
                    }
                }
                // Rules without any client match no client that speaks TLS.
                _ => rule.related.iter().chain([&rule.location]).for_each(|location| notes.translated(location)),
            }
        }
    }
}
