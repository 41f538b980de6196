//! What becomes of the clients of one region, through all lists of rules that they pass.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};

use crate::name::NamePattern;
use ipnet::IpNet;

use super::rules::{Decided, Doubt, Findings, Rules};
use crate::commands::import::draft::{Draft, Frontend, Outcome, Rule, Upstream};
use crate::commands::import::expression::Test;
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::names::{Form, Region};
use crate::commands::import::sources::Addresses;

/// For the clients of one region.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    /// `None`: all are refused.
    pub(super) upstream: Option<String>,
    /// Those that are not refused.
    pub(super) clients: Addresses,
    by: Place,
    /// A rule asks for just this name.
    pub(super) is_asked_for: bool,
}

impl PartialEq for Verdict {
    fn eq(&self, other: &Self) -> bool {
        (&self.upstream, &self.clients) == (&other.upstream, &other.clients)
    }
}

pub(super) struct Judge<'a> {
    frontend: &'a Frontend,
    draft: &'a Draft,
    phases: Vec<Listed<'a>>,
    main: Listed<'a>,
    behind: HashMap<&'a str, Behind<'a>>,
    admitted: Addresses,
    notes: Vec<Note>,
}

struct Listed<'a> {
    rules: Rules<'a>,
    findings: RefCell<Findings>,
}

/// What an upstream says of its clients itself.
struct Behind<'a> {
    upstream: &'a Upstream,
    phases: Vec<Listed<'a>>,
    choices: Listed<'a>,
}

struct Note {
    is_wider: bool,
    place: Place,
    reason: String,
}

impl<'a> Listed<'a> {
    fn new(rules: &'a [Rule], otherwise: Outcome) -> Self {
        Self { rules: Rules::new(rules, otherwise), findings: RefCell::default() }
    }

    fn phases(all: &'a [Vec<Rule>]) -> Vec<Self> {
        all.iter().map(|rules| Self::new(rules, Outcome::Pass)).collect()
    }

    fn place(&self, doubt: &Doubt) -> &'a Place {
        &self.rules.rule(doubt.rule).place
    }
}

impl<'a> Judge<'a> {
    pub(super) fn new(frontend: &'a Frontend, draft: &'a Draft) -> Self {
        let mut behind = HashMap::new();
        for rule in &frontend.rules {
            let Outcome::To(key) = &rule.then else { continue };
            if let Some((key, upstream)) = draft.upstreams.get_key_value(key) {
                behind.entry(key.as_str()).or_insert_with(|| Behind {
                    upstream,
                    phases: Listed::phases(&upstream.phases),
                    choices: Listed::new(&upstream.choices, Outcome::To(key.clone())),
                });
            }
        }
        Self {
            frontend,
            draft,
            phases: Listed::phases(&frontend.phases),
            main: Listed::new(&frontend.rules, Outcome::Refuse),
            behind,
            admitted: Addresses::none(),
            notes: Vec::new(),
        }
    }

    fn each_test(&self, visit: &mut impl FnMut(&Test)) {
        let behind = |rule: &'a Rule| match &rule.then {
            Outcome::To(key) => self.draft.upstreams.get(key),
            _ => None,
        };
        let frontend = self.frontend;
        frontend.phases.iter().flatten().chain(&frontend.rules).for_each(|rule| rule.when.each(visit));
        let mut seen = HashSet::new();
        for upstream in frontend.rules.iter().filter_map(behind) {
            if seen.insert(std::ptr::from_ref(upstream)) {
                upstream.phases.iter().flatten().chain(&upstream.choices).for_each(|rule| rule.when.each(visit));
            }
        }
    }

    /// All names that rules tell apart, in their order: those of routes first.
    pub(super) fn patterns(&self) -> Vec<NamePattern> {
        let mut seen = HashSet::new();
        let mut patterns = Vec::new();
        let mut add = |test: &Test| {
            if let Test::Names(names) = test {
                let loose = names.loose.iter().flat_map(Form::patterns);
                for pattern in names.in_order().iter().cloned().chain(loose) {
                    if seen.insert(pattern.clone()) {
                        patterns.push(pattern);
                    }
                }
            }
        };
        self.frontend.rules.iter().for_each(|rule| rule.when.each(&mut add));
        self.each_test(&mut add);
        patterns
    }

    /// The protocols that a rule asks for.
    pub(super) fn protocols(&self) -> Vec<String> {
        let mut protocols = BTreeSet::new();
        self.each_test(&mut |test| {
            if let Test::Alpn(all) = test {
                protocols.extend(all.iter().cloned());
            }
        });
        protocols.into_iter().collect()
    }

    pub(super) fn mentioned(&self) -> Vec<IpNet> {
        let mut mentioned = Vec::new();
        self.each_test(&mut |test| {
            if let Test::Sources(from) = test {
                mentioned.extend(from.networks());
            }
        });
        mentioned
    }

    /// Clients that no phase refused, whatever their name.
    pub(super) fn admitted(&self) -> &Addresses {
        &self.admitted
    }

    pub(super) fn of(&mut self, region: Region<'_>, alpn: bool) -> Verdict {
        let mut notes = Vec::new();
        let mut by = None;
        let admitted = pass(&self.phases, region, alpn, Addresses::all(), &mut notes, &mut by);
        self.admitted = self.admitted.or(&admitted);

        let decided = self.main.rules.decide(region, alpn, &admitted, &mut self.main.findings.borrow_mut());
        notes.extend(decided.doubts.iter().map(|doubt| {
            (doubt.clients.clone(), of_route(self.main.place(doubt), doubt, self.main.rules.rule(doubt.rule)))
        }));
        let mut to: Vec<(String, Addresses, Place)> = Vec::new();
        for (outcome, clients) in decided.shares.iter().cloned() {
            let place = decided.place(&outcome).unwrap_or(&self.frontend.place);
            let Outcome::To(key) = &outcome else { continue };
            match self.behind.get(key.as_str()) {
                Some(behind) => {
                    let clients = pass(&behind.phases, region, alpn, clients, &mut notes, &mut by);
                    let chosen =
                        behind.choices.rules.decide(region, alpn, &clients, &mut behind.choices.findings.borrow_mut());
                    notes.extend(chosen.doubts.iter().map(|doubt| {
                        let note = of_route(behind.choices.place(doubt), doubt, behind.choices.rules.rule(doubt.rule));
                        (doubt.clients.clone(), note)
                    }));
                    for (outcome, clients) in chosen.shares {
                        if let Outcome::To(key) = outcome {
                            to.push((key, clients, place.clone()));
                        }
                    }
                }
                None => to.push((key.clone(), clients, place.clone())),
            }
        }
        to.retain(|(key, _, place)| {
            let upstream = self.draft.upstreams.get(key);
            let is_there = upstream.is_some_and(|upstream| !upstream.endpoints.is_empty());
            if !is_there {
                let is_vacant = self.behind.get(key.as_str()).is_some_and(|behind| behind.upstream.is_vacant);
                let reason = format!("`{key}` has no server that could be carried over, so its clients are refused");
                self.notes.push(if is_vacant {
                    Note { is_wider: false, place: place.clone(), reason: String::new() }
                } else {
                    Note { is_wider: false, place: place.clone(), reason }
                });
            }
            is_there
        });
        let asked = |pattern: &NamePattern| {
            let names = decided.by.iter().filter_map(|rule| rule.when.names_asked());
            names.into_iter().any(|names| names.contains(pattern))
        };
        let is_asked_for = matches!(region, Region::Named(pattern) if asked(pattern));
        let mut verdict = self.settle(to, by.unwrap_or_else(|| self.frontend.place.clone()));
        verdict.is_asked_for = is_asked_for;
        // Where all are refused anyway, it does not matter what else could have refused them.
        self.notes.extend(notes.into_iter().filter_map(|(clients, note)| {
            let matters = !note.is_wider || !clients.and(&verdict.clients).is_empty();
            matters.then_some(note)
        }));
        verdict
    }

    /// A route has one upstream: that of most clients.
    fn settle(&mut self, mut to: Vec<(String, Addresses, Place)>, refused_by: Place) -> Verdict {
        to.sort_by(|(_, one, _), (_, other, _)| other.is_larger_than(one).cmp(&one.is_larger_than(other)));
        let mut all = to.into_iter();
        let Some((upstream, mut clients, by)) = all.next() else {
            return Verdict { upstream: None, clients: Addresses::none(), by: refused_by, is_asked_for: false };
        };
        for (other, more, place) in all {
            let some: Vec<String> = more.networks().iter().take(4).map(ToString::to_string).collect();
            let reason = format!(
                "clients from {}{} are routed to `{}` here, not to `{}`: a route has one upstream for all addresses, and \
                a rule after it takes the same names from others",
                some.join(", "),
                if more.networks().len() > some.len() { " and so on" } else { "" },
                shown(&upstream),
                shown(&other),
            );
            self.notes.push(Note { is_wider: false, place, reason });
            clients = clients.or(&more);
        }
        Verdict { upstream: Some(upstream), clients, by, is_asked_for: false }
    }

    /// Clients without a name have no route of their own.
    pub(super) fn compare_nameless(others: &Verdict, nameless: &Verdict, ledger: &mut Ledger) {
        if others == nameless {
            return;
        }
        let to =
            |verdict: &Verdict| verdict.upstream.as_deref().map_or_else(String::new, |key| format!("`{}`", shown(key)));
        match (&others.upstream, &nameless.upstream) {
            (None, _) => ledger.narrower(
                &nameless.by,
                format!("clients that send no name are routed to {} by the source; here only a route for every name takes them, so they are refused", to(nameless)),
            ),
            (Some(_), None) => ledger.wider(
                &nameless.by,
                format!("clients that send no name are refused by the source; the route without `sni` takes them, too, to {}", to(others)),
            ),
            (Some(one), Some(other)) if one == other => ledger.wider(
                &nameless.by,
                "clients that send no name are admitted from where those with other names are, as one route takes both",
            ),
            (Some(_), Some(_)) => ledger.narrower(
                &nameless.by,
                format!("clients that send no name are routed to {}, not to {}: one route takes both them and all other names", to(others), to(nameless)),
            ),
        }
    }

    pub(super) fn report(self, ledger: &mut Ledger) {
        for Note { is_wider, place, reason } in self.notes {
            if reason.is_empty() {
                ledger.note(&place, "its backend has no server, so its clients are refused, as before");
            } else if is_wider {
                ledger.wider(&place, reason);
            } else {
                ledger.narrower(&place, reason);
            }
        }
        let behind = self.behind.into_values().flat_map(|behind| behind.phases.into_iter().chain([behind.choices]));
        for listed in self.phases.into_iter().chain([self.main]).chain(behind) {
            listed.findings.into_inner().report(&listed.rules, ledger);
        }
    }
}

/// Those clients that no phase refuses.
fn pass(
    phases: &[Listed<'_>],
    region: Region<'_>,
    alpn: bool,
    clients: Addresses,
    notes: &mut Vec<(Addresses, Note)>,
    refused_by: &mut Option<Place>,
) -> Addresses {
    let mut left = clients;
    for phase in phases {
        let Decided { shares, doubts, by } = phase.rules.decide(region, alpn, &left, &mut phase.findings.borrow_mut());
        for doubt in doubts {
            let note = of_phase(phase.place(&doubt), &doubt, phase.rules.rule(doubt.rule));
            notes.push((doubt.clients, note));
        }
        left = Addresses::none();
        for (outcome, clients) in shares {
            if outcome == Outcome::Pass {
                left = clients;
            } else if refused_by.is_none() {
                *refused_by = by.iter().find(|rule| rule.then == outcome).map(|rule| rule.place.clone());
            }
        }
    }
    left
}

fn of_phase(place: &Place, doubt: &Doubt, rule: &Rule) -> Note {
    let why = why(doubt);
    let (is_wider, reason) = match (rule.then == Outcome::Refuse, doubt.chosen) {
        (true, false) => (true, format!("{why}: clients that it refuses for that are admitted")),
        (true, true) => (false, format!("{why}: they are refused, too")),
        (false, false) => (false, format!("{why}: clients that it accepts for that may be refused by a later line")),
        (false, true) => (true, format!("{why}: they are admitted, too")),
    };
    Note { is_wider, place: place.clone(), reason }
}

fn of_route(place: &Place, doubt: &Doubt, rule: &Rule) -> Note {
    let why = why(doubt);
    let then = outcome(&rule.then);
    let (is_wider, reason) = if doubt.chosen {
        (doubt.rest.contains(&Outcome::Refuse), format!("{why}: they are {then}, too"))
    } else {
        (
            rule.then == Outcome::Refuse,
            format!("{why}: where this decides, clients go on to later rules, and are not {then}"),
        )
    };
    Note { is_wider, place: place.clone(), reason }
}

fn why(doubt: &Doubt) -> String {
    doubt.reasons.iter().map(String::as_str).collect::<Vec<_>>().join("; ")
}

fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Pass => "admitted".into(),
        Outcome::Refuse => "refused".into(),
        Outcome::To(key) => format!("routed to `{}`", shown(key)),
    }
}

/// Keys of upstreams may have a number behind the name.
fn shown(key: &str) -> &str {
    key.split(' ').next().unwrap_or(key)
}
