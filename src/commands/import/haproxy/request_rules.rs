//! `tcp-request` and `http-request` rules, which accept and reject clients.

use std::collections::BTreeSet;

use super::acl::{Acls, RuleCondition};
use super::context::FileContext;
use super::sections::{Section, SectionLine};
use crate::commands::import::addresses::AddressSet;
use crate::commands::import::draft::{AcceptProxyDraft, Action, Rule};
use crate::commands::import::expression::{ClientLimit, Expression, Test};
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::values::everywhere;

/// The phase of `tcp-request connection`.
const CONNECTION: usize = 0;

#[derive(Default)]
pub(super) struct RequestRules {
    /// `tcp-request connection`, `session`, `content`, and `http-request`.
    phases: [Vec<Rule>; 4],
    pub(super) limits: Vec<(ClientLimit, Location)>,
    /// By `expect-proxy`.
    pub(super) accept_proxy: Option<AcceptProxyDraft>,
    pub(super) accept_proxy_locations: BTreeSet<Location>,
    /// Lines that the limits are made of.
    pub(super) locations: BTreeSet<Location>,
}

impl RequestRules {
    pub(super) fn add(
        &mut self,
        line: &SectionLine,
        section: &Section,
        acls: &mut Acls<'_>,
        context: &FileContext<'_>,
        notes: &mut Notes,
    ) {
        let words = line.words();
        let location = line.location();
        let (phase, action, rest) = match &words[..] {
            ["tcp-request", "connection", action, rest @ ..] => (CONNECTION, *action, rest),
            ["tcp-request", "session", action, rest @ ..] => (1, *action, rest),
            ["tcp-request", "content", action, rest @ ..] => (2, *action, rest),
            ["http-request", action, rest @ ..] => (3, *action, rest),
            _ => return,
        };
        let if_at = rest.iter().position(|word| matches!(*word, "if" | "unless")).unwrap_or(rest.len());
        let (arguments, condition) = rest.split_at(if_at);
        let is_conditional = !condition.is_empty();
        let condition = acls.condition(condition, &location, notes);
        let then = match action {
            "accept" | "allow" => Action::Accept,
            "reject" | "deny" | "silent-drop" | "tarpit" | "auth" => Action::Reject,
            "expect-proxy" if phase == CONNECTION => {
                return self.expect_proxy(condition, is_conditional, &location, notes);
            }
            _ => {
                let variable = |name| action.strip_prefix(name).and_then(|rest| rest.strip_suffix(')'));
                if let Some(name) = variable("set-var(") {
                    acls.tests.variables.add(name, &arguments.join(" "), is_conditional, &location);
                } else if let Some(name) = variable("set-var-fmt(") {
                    acls.tests.variables.add(name, "", true, &location);
                } else if action.starts_with("track-sc") && arguments.first() == Some(&"src") {
                    self.locations.insert(location);
                }
                return;
            }
        };
        let RuleCondition { mut when, locations } = condition.unwrap_or_else(RuleCondition::unknown);
        if action == "auth" {
            when = when.and(Expression::unknown("HTTP authentication happens inside TLS"));
        }
        let is_first = self.phases[phase].iter().all(|rule| rule.then == Action::Reject);
        if let Some(limit) = limit(&when, &words, section, context).filter(|_| is_first && then == Action::Reject) {
            self.limits.push((limit, location));
            self.locations.extend(locations);
            return;
        }
        self.phases[phase].push(Rule { location, related: locations, when, then });
    }

    fn expect_proxy(
        &mut self,
        condition: Result<RuleCondition, String>,
        is_conditional: bool,
        location: &Location,
        notes: &mut Notes,
    ) {
        let from = condition.ok().and_then(|RuleCondition { when, locations }| match when.single_test() {
            _ if when.is_always() => Some(everywhere()),
            Some(Test::ClientAddress(from)) => {
                self.accept_proxy_locations.extend(locations);
                Some(from.networks())
            }
            _ => None,
        });
        let Some(from) = from else {
            let reason = "`expect-proxy` left out: `accept_proxy` can only depend on the peer's address (`src`). Clients \
                that send a PROXY header are rejected";
            return notes.rejects_or_reroutes(location, reason);
        };
        if self.phases[CONNECTION].iter().any(|rule| rule.then == Action::Accept) {
            let reason = "`expect-proxy`: clients that an earlier rule accepts must send a PROXY header, too";
            notes.rejects_or_reroutes(location, reason);
        }
        let accept_proxy = self.accept_proxy.get_or_insert_default();
        let is_new = accept_proxy.from.is_empty();
        accept_proxy.others_are_direct = is_conditional && (is_new || accept_proxy.others_are_direct);
        accept_proxy.from = AddressSet::of(&accept_proxy.from).or(&AddressSet::of(&from)).networks();
        self.accept_proxy_locations.insert(location.clone());
    }

    /// `src` and `dst` are other addresses before the PROXY header is read.
    pub(super) fn note_peers(&self, notes: &mut Notes) {
        for rule in &self.phases[CONNECTION] {
            let mut tests_peer = false;
            rule.when.visit_tests(&mut |test| {
                tests_peer |= matches!(test, Test::ClientAddress(_) | Test::Destination(_));
            });
            if tests_peer {
                let reason = "`src` and `dst` are those of the peer here, before HAProxy reads its PROXY header; snigate \
                    uses the addresses in the header";
                notes.rejects_or_reroutes(&rule.location, reason);
            }
        }
    }

    pub(super) fn take_phases(&mut self) -> Vec<Vec<Rule>> {
        std::mem::take(&mut self.phases).into_iter().filter(|rules| !rules.is_empty()).collect()
    }
}

/// What a condition limits, if that is all it tests.
fn limit(when: &Expression, words: &[&str], section: &Section, context: &FileContext<'_>) -> Option<ClientLimit> {
    let Some(Test::OverLimit(limit)) = when.single_test() else { return None };
    match *limit {
        ClientLimit::Rate(count, _) => {
            let period = context.rate_period(table(words).unwrap_or(&section.name))?;
            Some(ClientLimit::Rate(count, Some(period)))
        }
        limit @ ClientLimit::Connections(_) => Some(limit),
    }
}

/// The stick table that a counter names, if any.
fn table<'w>(words: &[&'w str]) -> Option<&'w str> {
    let arguments = |word: &'w str| word.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    let arguments = words.iter().skip(3).find_map(|word| arguments(word))?;
    let name = arguments.rsplit(',').next().unwrap_or(arguments);
    Some(name).filter(|name| !name.is_empty() && !name.bytes().all(|byte| byte.is_ascii_digit()))
}
