//! Conditions of rules, and for which clients they hold.

use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

use crate::name::NamePattern;

use super::addresses::AddressSet;
use super::name_match::{NameClass, NameMatch, Truth, wildcards_above};

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
    /// The client offers one of these protocols.
    Alpn(BTreeSet<String>),
    Constant(bool),
    /// The client's address has more connections than this, or opens them faster.
    OverLimit(ClientLimit),
    /// Whether it holds cannot be known here: the reason.
    Unknown(String),
}

/// Server names that a test matches.
#[derive(Clone, Debug, Default)]
pub(super) struct NameSet {
    patterns: HashSet<NamePattern>,
    in_order: Vec<NamePattern>,
    /// Comparisons that no `sni` pattern can express.
    pub(super) inexact: Vec<NameMatch>,
    /// Which other names the test may match.
    pub(super) may_match: Option<String>,
}

/// For each client address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ClientLimit {
    Connections(u64),
    /// New connections in a period of so many milliseconds, if that is known.
    Rate(u64, Option<u64>),
}

/// Clients that differ in nothing that a route can match, except for their addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientClass<'a> {
    pub(super) name: NameClass<'a>,
    pub(super) alpn: AlpnClass<'a>,
}

/// Routes of one frontend can tell clients apart by one list of protocols: two routes with different lists would both
/// match a client that offers protocols of both.
#[derive(Clone, Copy, Debug)]
pub(super) struct AlpnClass<'a> {
    pub(super) protocols: &'a BTreeSet<String>,
    /// Whether the client offers one of them.
    pub(super) is_offered: bool,
}

/// The client addresses for which an expression holds within one class of clients.
#[derive(Clone, Debug)]
pub(super) struct Coverage {
    pub(super) certain: AddressSet,
    /// Those for which the translation lets it hold.
    pub(super) assumed: AddressSet,
    pub(super) possible: AddressSet,
}

impl Coverage {
    fn of(truth: Truth) -> Self {
        let all = |holds| if holds { AddressSet::all() } else { AddressSet::none() };
        let (certain, assumed, possible) = match truth {
            Truth::Yes => (true, true, true),
            Truth::No => (false, false, false),
            Truth::Partly { assumed } => (false, assumed, true),
        };
        Self { certain: all(certain), assumed: all(assumed), possible: all(possible) }
    }

    fn combine(self, other: &Self, operation: fn(&AddressSet, &AddressSet) -> AddressSet) -> Self {
        Self {
            certain: operation(&self.certain, &other.certain),
            assumed: operation(&self.assumed, &other.assumed),
            possible: operation(&self.possible, &other.possible),
        }
    }
}

impl NameSet {
    pub(super) fn of(matches: impl IntoIterator<Item = NameMatch>) -> Self {
        let mut names = Self::default();
        for one in matches {
            match one.as_pattern() {
                Some(pattern) => names.add(pattern),
                None => names.inexact.push(one),
            }
        }
        names
    }

    pub(super) fn and_maybe(self, may_match: Option<String>) -> Self {
        Self { may_match, ..self }
    }

    fn add(&mut self, pattern: NamePattern) {
        if self.patterns.insert(pattern.clone()) {
            self.in_order.push(pattern);
        }
    }

    /// Every pattern that the test mentions or that is worth a route of its own.
    pub(super) fn all_patterns(&self) -> impl Iterator<Item = NamePattern> {
        self.in_order.iter().cloned().chain(self.inexact.iter().flat_map(NameMatch::nearby_patterns))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.patterns.is_empty() && self.inexact.is_empty()
    }

    pub(super) fn extend(&mut self, other: Self) {
        other.in_order.into_iter().for_each(|pattern| self.add(pattern));
        self.inexact.extend(other.inexact);
        self.may_match = self.may_match.take().or(other.may_match);
    }

    fn matches(&self, class: NameClass<'_>, uncertain: &mut BTreeSet<String>) -> Truth {
        if let NameClass::Pattern(pattern) = class
            && (self.patterns.contains(pattern) || wildcards_above(pattern).any(|above| self.patterns.contains(&above)))
        {
            return Truth::Yes;
        }
        let mut partly = None;
        for one in &self.inexact {
            match one.matches(class) {
                Truth::Yes => return Truth::Yes,
                Truth::No => {}
                Truth::Partly { assumed } => {
                    uncertain.insert(one.undecided_names());
                    partly = Some(partly.unwrap_or(false) || assumed);
                }
            }
        }
        let is_one_name = matches!(class, NameClass::NoSni | NameClass::Pattern(NamePattern::Exact(_)));
        match (&self.may_match, partly) {
            (Some(names), _) if !is_one_name => {
                uncertain.insert(names.clone());
                Truth::Partly { assumed: partly.unwrap_or(false) }
            }
            (_, Some(assumed)) => Truth::Partly { assumed },
            (_, None) => Truth::No,
        }
    }
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
            Self::Alpn(protocols) if protocols == class.alpn.protocols => Coverage::of(class.alpn.is_offered.into()),
            Self::Alpn(protocols) => {
                let listed = |protocols: &BTreeSet<String>| protocols.iter().cloned().collect::<Vec<_>>().join(", ");
                unknown(&format!(
                    "it tests ALPN for {}, another rule tests it for {}, and routes of one listener can only differ in \
                    one list of protocols",
                    listed(protocols),
                    listed(class.alpn.protocols)
                ))
            }
            Self::Constant(value) => Coverage::of((*value).into()),
            Self::OverLimit(_) => unknown("a limit that is not one for each client address"),
            Self::Unknown(reason) => unknown(reason),
        }
    }

    fn is_beyond_a_route(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::OverLimit(_) | Self::Alpn(_))
    }
}
