//! Conditions of rules, and for which clients they hold.

use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

use crate::name::NamePattern;

use super::addresses::AddressSet;
use super::client_class::{ArrivalClass, ClientClass, Coverage};
use super::name_match::{NameClass, Truth};
use super::name_set::NameSet;

#[derive(Clone, Debug)]
pub(super) enum Expression {
    Test(Rc<Test>),
    Not(Box<Expression>),
    /// True if empty.
    All(Vec<Expression>),
    /// False if empty.
    Any(Vec<Expression>),
}

#[derive(Clone, Debug)]
pub(super) enum Test {
    Names(NameSet),
    HasSni,
    ClientAddress(AddressSet),
    /// The address that the client connects to.
    Destination(AddressSet),
    /// The client's PROXY header has this TLV with one of these values.
    ProxyTlv(u8, BTreeSet<Vec<u8>>),
    /// The client offers one of these protocols.
    Alpn(BTreeSet<String>),
    Constant(bool),
    /// The client's address has more connections than this, or opens them faster.
    OverLimit(ClientLimit),
    /// Whether it holds cannot be known here: the reason.
    Unknown(String),
}

/// For each client address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClientLimit {
    Connections(u64),
    /// New connections in a period of so many milliseconds, if that is known.
    Rate(u64, Option<u64>),
}

impl Expression {
    pub(super) fn of(test: Test) -> Self {
        Self::Test(Rc::new(test))
    }

    pub(super) fn constant(value: bool) -> Self {
        Self::of(Test::Constant(value))
    }

    pub(super) fn always() -> Self {
        Self::All(Vec::new())
    }

    pub(super) fn names(names: NameSet) -> Self {
        Self::of(Test::Names(names))
    }

    pub(super) fn unknown(reason: impl Into<String>) -> Self {
        Self::of(Test::Unknown(reason.into()))
    }

    pub(super) fn negated(self) -> Self {
        Self::Not(Box::new(self))
    }

    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::All(mut all), Self::All(more)) => {
                all.extend(more);
                Self::All(all)
            }
            (Self::All(mut all), other) | (other, Self::All(mut all)) => {
                all.push(other);
                Self::All(all)
            }
            (one, other) => Self::All(vec![one, other]),
        }
    }

    pub(super) fn is_always(&self) -> bool {
        matches!(self, Self::All(all) if all.iter().all(Self::is_always))
            || matches!(self, Self::Test(test) if matches!(**test, Test::Constant(true)))
    }

    /// Visits every test, negated or not.
    pub(super) fn visit_tests(&self, visit: &mut impl FnMut(&Test)) {
        match self {
            Self::Test(test) => visit(test),
            Self::Not(inner) => inner.visit_tests(visit),
            Self::All(inner) | Self::Any(inner) => inner.iter().for_each(|one| one.visit_tests(visit)),
        }
    }

    /// Visits the tests that may matter for clients with these names; all of them, or those that arrive like this.
    pub(super) fn visit_tests_for(
        &self,
        name: NameClass<'_>,
        arrival: Option<ArrivalClass<'_>>,
        visit: &mut impl FnMut(&Test),
    ) {
        if self.decided_by(name, arrival).is_some() {
            return;
        }
        match self {
            Self::Test(test) => visit(test),
            Self::Not(inner) => inner.visit_tests_for(name, arrival, visit),
            Self::All(inner) | Self::Any(inner) => {
                for one in inner {
                    one.visit_tests_for(name, arrival, visit);
                }
            }
        }
    }

    /// Whether it holds, if these alone decide that.
    fn decided_by(&self, name: NameClass<'_>, arrival: Option<ArrivalClass<'_>>) -> Option<bool> {
        let decided = |one: &Self| one.decided_by(name, arrival);
        match self {
            Self::Test(test) => test.decided_by(name, arrival),
            Self::Not(inner) => decided(inner).map(|holds| !holds),
            Self::All(all) if all.iter().any(|one| decided(one) == Some(false)) => Some(false),
            Self::All(all) => all.iter().all(|one| decided(one) == Some(true)).then_some(true),
            Self::Any(any) if any.iter().any(|one| decided(one) == Some(true)) => Some(true),
            Self::Any(any) => any.iter().all(|one| decided(one) == Some(false)).then_some(false),
        }
    }

    pub(super) fn tests_names(&self) -> bool {
        let mut found = false;
        self.visit_tests(&mut |test| found |= matches!(test, Test::Names(_) | Test::HasSni));
        found
    }

    /// A set of names, all of them patterns, one of which a client must send for this to hold.
    pub(super) fn required_names(&self) -> Option<&HashSet<NamePattern>> {
        match self {
            Self::Test(test) => match &**test {
                Test::Names(names) if names.inexact.is_empty() && names.may_match.is_none() => Some(&names.patterns),
                _ => None,
            },
            Self::All(all) => all.iter().find_map(Self::required_names),
            _ => None,
        }
    }

    /// The test, if the expression consists of just one that is not negated.
    pub(super) fn single_test(&self) -> Option<&Test> {
        match self {
            Self::Test(test) => Some(test),
            Self::All(all) | Self::Any(all) => match &all[..] {
                [one] => one.single_test(),
                _ => None,
            },
            Self::Not(_) => None,
        }
    }

    /// Adds to `uncertain` why the answer is not certain.
    pub(super) fn coverage(&self, class: ClientClass<'_>, uncertain: &mut BTreeSet<String>) -> Coverage {
        match self {
            Self::Test(test) => test.coverage(class, uncertain),
            Self::Not(inner) => {
                let Coverage { certain, assumed, possible } = inner.coverage(class, uncertain);
                let is_undecided =
                    certain != possible && matches!(&**inner, Self::Test(test) if test.is_beyond_a_route());
                // What cannot be tested is assumed not to hold, negated or not.
                let assumed = if is_undecided { AddressSet::none() } else { assumed.not() };
                Coverage { certain: possible.not(), assumed, possible: certain.not() }
            }
            Self::All(all) => all.iter().fold(Coverage::of(Truth::Yes), |coverage, one| {
                if coverage.possible.is_empty() {
                    return coverage;
                }
                coverage.combine(&one.coverage(class, uncertain), AddressSet::and)
            }),
            Self::Any(any) => any.iter().fold(Coverage::of(Truth::No), |coverage, one| {
                coverage.combine(&one.coverage(class, uncertain), AddressSet::or)
            }),
        }
    }
}

impl Test {
    fn coverage(&self, class: ClientClass<'_>, uncertain: &mut BTreeSet<String>) -> Coverage {
        let mut unknown = |reason: &str| {
            uncertain.insert(reason.to_owned());
            Coverage::of(Truth::Partly { assumed: false })
        };
        match self {
            Self::Names(names) => Coverage::of(names.matches(class.name, uncertain)),
            Self::HasSni => Coverage::of((!matches!(class.name, NameClass::NoSni)).into()),
            Self::ClientAddress(from) => {
                Coverage { certain: from.clone(), assumed: from.clone(), possible: from.clone() }
            }
            Self::Destination(networks) => Coverage::of(class.arrival.is_to(networks).into()),
            Self::ProxyTlv(number, values) => match class.arrival.tlv.has(*number, values) {
                Ok(has) => Coverage::of(has.into()),
                Err(other) => unknown(&format!(
                    "it tests TLV {number:#04x}, another rule tests TLV {other:#04x}, and routes of one name can only \
                    differ in the values of one TLV"
                )),
            },
            Self::Alpn(protocols) if protocols == class.alpn.protocols => Coverage::of(class.alpn.is_offered.into()),
            Self::Alpn(protocols) => {
                let listed = |protocols: &BTreeSet<String>| protocols.iter().cloned().collect::<Vec<_>>().join(", ");
                unknown(&format!(
                    "it tests ALPN for {}, another rule tests it for {}, and routes of one name can only differ in one \
                    list of protocols",
                    listed(protocols),
                    listed(class.alpn.protocols)
                ))
            }
            Self::Constant(value) => Coverage::of((*value).into()),
            Self::OverLimit(_) => unknown("a limit that is not one for each client address"),
            Self::Unknown(reason) => unknown(reason),
        }
    }

    fn decided_by(&self, name: NameClass<'_>, arrival: Option<ArrivalClass<'_>>) -> Option<bool> {
        match self {
            Self::Names(names) => match names.matches(name, &mut BTreeSet::new()) {
                Truth::Yes => Some(true),
                Truth::No => Some(false),
                Truth::Partly { .. } => None,
            },
            Self::HasSni => Some(!matches!(name, NameClass::NoSni)),
            Self::Destination(networks) => Some(arrival?.is_to(networks)),
            Self::ProxyTlv(number, values) => arrival?.tlv.has(*number, values).ok(),
            Self::Constant(value) => Some(*value),
            Self::ClientAddress(_) | Self::Alpn(_) | Self::OverLimit(_) | Self::Unknown(_) => None,
        }
    }

    fn is_beyond_a_route(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::OverLimit(_) | Self::Alpn(_) | Self::ProxyTlv(..))
    }
}
