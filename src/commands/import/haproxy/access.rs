//! Rules about where clients may come from: they become the lists of the listeners, if they say the same.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::condition::{Condition, Test};
use crate::commands::import::draft::{Frontend, OPEN, Sources};
use crate::commands::import::ledger::{Ledger, Place};

#[derive(Default)]
pub(super) struct Access {
    sources: Sources,
    /// Accepted before anything else was asked; holds once all others are rejected.
    accepted: Vec<IpNet>,
    accepting: BTreeSet<Place>,
    places: BTreeSet<Place>,
    pub(super) waits_for_tls: bool,
    accepts_names: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Reject,
}

impl Access {
    /// If it is one: what is done, and the words of the condition.
    pub(super) fn action<'w>(words: &'w [&'w str]) -> Option<(Action, &'w [&'w str])> {
        let (action, condition) = match words {
            ["tcp-request", "connection" | "content" | "session", action, condition @ ..]
            | ["http-request", action, condition @ ..] => (*action, condition),
            _ => return None,
        };
        let at = condition.iter().position(|word| matches!(*word, "if" | "unless")).unwrap_or(condition.len());
        match action {
            "accept" | "allow" => Some((Action::Accept, &condition[at..])),
            "reject" | "deny" | "silent-drop" | "tarpit" => Some((Action::Reject, &condition[at..])),
            _ => None,
        }
    }

    pub(super) fn add(&mut self, action: Action, condition: Condition, place: &Place, ledger: &mut Ledger) {
        for terms in condition.alternatives {
            let terms: Vec<(bool, Test)> = terms.into_iter().map(|term| (term.negated, term.test)).collect();
            let done = match action {
                Action::Accept => self.accept(&terms, place, ledger),
                Action::Reject => self.reject(terms, place, ledger),
            };
            if done {
                self.places.insert(place.clone());
                self.places.extend(condition.places.iter().cloned());
            }
        }
    }

    fn accept(&mut self, terms: &[(bool, Test)], place: &Place, ledger: &mut Ledger) -> bool {
        match terms {
            [(false, Test::Sources(networks))] if !self.waits_for_tls => {
                self.accepted.extend(networks);
                self.accepting.insert(place.clone());
                return false;
            }
            _ if terms.iter().all(|(negated, test)| !negated && *test == Test::Always) => {
                ledger.note(place, "not needed: a client is routed when its whole ClientHello is there");
                self.waits_for_tls = true;
            }
            [(false, Test::Names(_) | Test::HasName), ..] => {
                ledger.note(place, "not needed: a name that no route has is refused");
                self.accepts_names = true;
            }
            _ => ledger.note(place, "a condition for accepting clients without a counterpart; see `allow`"),
        }
        false
    }

    fn reject(&mut self, terms: Vec<(bool, Test)>, place: &Place, ledger: &mut Ledger) -> bool {
        if terms.is_empty() {
            return self.reject_others(place, ledger);
        }
        let are_only = |negation: bool| {
            terms.iter().all(|(negated, test)| *negated == negation && matches!(test, Test::Sources(_)))
        };
        let is_accepting = !self.accepting.is_empty();
        if are_only(false) && terms.len() == 1 && !is_accepting {
            self.sources.deny.extend(networks(terms));
            return true;
        }
        if are_only(true) && self.sources.allow.is_empty() && !is_accepting {
            self.sources.allow.extend(networks(terms));
            return true;
        }
        let is_not = |wanted: Test| terms.iter().any(|(negated, test)| *negated && *test == wanted);
        let reason = if is_not(Test::Always) {
            "not needed: what is not TLS is refused"
        } else if is_not(Test::HasName) {
            "clients that send no name are refused here, too, unless there is a route without `sni`"
        } else {
            OPEN
        };
        ledger.note(place, reason);
        false
    }

    fn reject_others(&mut self, place: &Place, ledger: &mut Ledger) -> bool {
        if self.accepting.is_empty() || !self.sources.allow.is_empty() {
            let reason = if self.accepts_names && self.accepting.is_empty() {
                "only the names accepted before came in; here a route without `sni`, if there is one, takes all others"
            } else if self.waits_for_tls && self.accepting.is_empty() {
                "not needed: what is not TLS is refused"
            } else {
                OPEN
            };
            ledger.note(place, reason);
            return false;
        }
        self.sources.allow.append(&mut self.accepted);
        self.places.append(&mut self.accepting);
        true
    }

    pub(super) fn finish(self, frontend: &mut Frontend, ledger: &mut Ledger) {
        for place in &self.accepting {
            ledger.note(place, "not needed: all clients are accepted, except those of `deny`");
        }
        frontend.sources = self.sources;
        frontend.places.extend(self.places);
    }
}

fn networks(terms: Vec<(bool, Test)>) -> Vec<IpNet> {
    let networks = |(_, test)| if let Test::Sources(networks) = test { networks } else { Vec::new() };
    terms.into_iter().flat_map(networks).collect()
}
