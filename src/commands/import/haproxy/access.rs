//! Rules about who is admitted, in the phases that a connection goes through.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::condition::{Acls, Condition};
use super::sections::Line;
use crate::commands::import::draft::{Outcome, Rule};
use crate::commands::import::expression::{Expression, Limit, Test};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::values::network;

/// What the rules of a section come to.
#[derive(Default)]
pub(super) struct Access {
    /// Connection, session, content, and what is inside TLS.
    phases: [Vec<Rule>; 4],
    pub(super) limits: Vec<(Limit, Place)>,
    pub(super) accept_proxy: Vec<IpNet>,
    pub(super) places: BTreeSet<Place>,
}

impl Access {
    /// Whether the line is one of these. `period` is that of a table of the name, or of the section's own.
    pub(super) fn add(
        &mut self,
        line: &Line,
        acls: &mut Acls<'_>,
        period: impl Fn(Option<&str>) -> Option<u64>,
        ledger: &mut Ledger,
    ) -> bool {
        let words = line.words();
        let place = line.place();
        let (phase, action, rest) = match &words[..] {
            ["tcp-request", "connection", action, rest @ ..] => (0, *action, rest),
            ["tcp-request", "session", action, rest @ ..] => (1, *action, rest),
            ["tcp-request", "content", action, rest @ ..] => (2, *action, rest),
            ["http-request", action, rest @ ..] => (3, *action, rest),
            _ => return false,
        };
        let at = rest.iter().position(|word| matches!(*word, "if" | "unless")).unwrap_or(rest.len());
        let condition = acls.condition(&rest[at..], &place, ledger);
        let then = match action {
            "accept" | "allow" => Outcome::Pass,
            "reject" | "deny" | "silent-drop" | "tarpit" | "auth" => Outcome::Refuse,
            "expect-proxy" if phase == 0 => {
                self.expect_proxy(&condition, &rest[at..], acls, &place, ledger);
                return true;
            }
            _ => {
                let variable = action.strip_prefix("set-var(").and_then(|name| name.strip_suffix(')'));
                if let Some(name) = variable {
                    acls.variables.add(name, &rest[..at].join(" "), at < rest.len(), &place);
                } else if let Some(name) = action.strip_prefix("set-var-fmt(").and_then(|name| name.strip_suffix(')')) {
                    acls.variables.add(name, "", true, &place);
                } else if action.starts_with("track-sc") && matches!(rest, ["src", ..]) {
                    self.places.insert(place);
                }
                return false;
            }
        };
        let Condition { when, places } =
            condition.unwrap_or_else(|reason| Condition { when: Expression::unknown(reason), places: BTreeSet::new() });
        if let Some(Test::Beyond(limit)) = when.alone()
            && then == Outcome::Refuse
            && self.phases[phase].iter().all(|rule| rule.then == Outcome::Refuse)
        {
            let limit = match *limit {
                Limit::New(count, _) => period(table(&words)).map(|period| Limit::New(count, Some(period))),
                limit @ Limit::Connections(_) => Some(limit),
            };
            if let Some(limit) = limit {
                self.limits.push((limit, place));
                self.places.extend(places);
                return true;
            }
        }
        let when = match action {
            "auth" => when.and(Expression::unknown("a password that HAProxy asks for inside TLS")),
            _ => when,
        };
        self.phases[phase].push(Rule { place, also: places, when, then });
        true
    }

    fn expect_proxy(
        &mut self,
        condition: &Result<Condition, String>,
        words: &[&str],
        acls: &Acls<'_>,
        place: &Place,
        ledger: &mut Ledger,
    ) {
        let from = match condition {
            Ok(Condition { when, .. }) if when.is_always() => Some(everywhere()),
            Ok(Condition { when, places }) => match when.alone() {
                Some(Test::Sources(from)) => {
                    self.places.extend(places.iter().cloned());
                    Some(from.networks())
                }
                _ => None,
            },
            Err(_) => None,
        };
        let _ = acls;
        match from {
            Some(from) => {
                if !words.is_empty() {
                    ledger.narrower(place, "`expect-proxy`: clients from elsewhere, that send no PROXY header, are refused at a listener with `accept_proxy`");
                }
                self.accept_proxy.extend(from);
                self.places.insert(place.clone());
            }
            None => ledger.narrower(place, "`expect-proxy`: `accept_proxy` takes networks only, so it is left out: PROXY headers are not understood, and their senders are refused"),
        }
    }

    pub(super) fn phases(&mut self) -> Vec<Vec<Rule>> {
        std::mem::take(&mut self.phases).into_iter().filter(|rules| !rules.is_empty()).collect()
    }
}

/// All networks there are.
pub(super) fn everywhere() -> Vec<IpNet> {
    ["0.0.0.0/0", "::/0"].into_iter().filter_map(network).collect()
}

/// The name of the table that a rate is looked up in, if it is said.
fn table<'w>(words: &[&'w str]) -> Option<&'w str> {
    let inside = |word: &'w str| word.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    let named =
        words.iter().skip(3).find_map(|word| inside(word)).map(|inside| inside.rsplit(',').next().unwrap_or(inside));
    named.filter(|name| !name.is_empty() && !name.bytes().all(|byte| byte.is_ascii_digit()))
}
