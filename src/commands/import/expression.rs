//! Conditions of rules, and for which clients they hold.

use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

use crate::name::NamePattern;

use super::names::{Form, Region, Truth, wider};
use super::sources::Addresses;

#[derive(Clone, Debug)]
pub(super) enum Expression {
    Test(Rc<Test>),
    Not(Box<Expression>),
    /// Of none: true.
    All(Vec<Expression>),
    /// Of none: false.
    Any(Vec<Expression>),
}

/// What is true of a client.
#[derive(Clone, Debug)]
pub(super) enum Test {
    Names(Names),
    HasName,
    Sources(Addresses),
    /// It offers one of these protocols.
    Alpn(BTreeSet<String>),
    Constant(bool),
    /// It has fewer connections than this, or makes fewer.
    Beyond(Limit),
    /// What cannot be seen: a reason.
    Unknown(String),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    patterns: HashSet<NamePattern>,
    in_order: Vec<NamePattern>,
    pub(super) loose: Vec<Form>,
    /// Clients that it may hold for besides.
    pub(super) doubt: Option<String>,
}

/// At one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Limit {
    Connections(u64),
    /// In so many milliseconds; `None`: not known yet.
    New(u64, Option<u64>),
}

/// Clients of one region for whom it holds.
#[derive(Clone, Debug)]
pub(super) struct Holds {
    pub(super) surely: Addresses,
    /// As far as a route can tell.
    pub(super) chosen: Addresses,
    pub(super) possibly: Addresses,
}

impl Holds {
    fn of(truth: Truth) -> Self {
        let all = |holds| if holds { Addresses::all() } else { Addresses::none() };
        let (surely, chosen, possibly) = match truth {
            Truth::Yes => (true, true, true),
            Truth::No => (false, false, false),
            Truth::Partly(chosen) => (false, chosen, true),
        };
        Self { surely: all(surely), chosen: all(chosen), possibly: all(possibly) }
    }

    fn both(self, other: &Self, join: fn(&Addresses, &Addresses) -> Addresses) -> Self {
        Self {
            surely: join(&self.surely, &other.surely),
            chosen: join(&self.chosen, &other.chosen),
            possibly: join(&self.possibly, &other.possibly),
        }
    }
}

impl Names {
    pub(super) fn of(forms: impl IntoIterator<Item = Form>) -> Self {
        let mut names = Self::default();
        for form in forms {
            match form.pattern() {
                Some(pattern) => names.add(pattern),
                None => names.loose.push(form),
            }
        }
        names
    }

    fn add(&mut self, pattern: NamePattern) {
        if self.patterns.insert(pattern.clone()) {
            self.in_order.push(pattern);
        }
    }

    pub(super) fn in_order(&self) -> &[NamePattern] {
        &self.in_order
    }

    pub(super) fn is_empty(&self) -> bool {
        self.patterns.is_empty() && self.loose.is_empty()
    }

    pub(super) fn extend(&mut self, other: Self) {
        other.in_order.into_iter().for_each(|pattern| self.add(pattern));
        self.loose.extend(other.loose);
        self.doubt = self.doubt.take().or(other.doubt);
    }

    fn holds_for(&self, region: Region<'_>, doubts: &mut BTreeSet<String>) -> Truth {
        if let Region::Named(pattern) = region
            && (self.patterns.contains(pattern) || wider(pattern).any(|wider| self.patterns.contains(&wider)))
        {
            return Truth::Yes;
        }
        let mut partly = None;
        for form in &self.loose {
            match form.holds_for(region) {
                Truth::Yes => return Truth::Yes,
                Truth::No => {}
                Truth::Partly(chosen) => {
                    doubts.insert(form.doubt());
                    partly = Some(partly.unwrap_or(false) || chosen);
                }
            }
        }
        let is_exact = matches!(region, Region::Nameless | Region::Named(NamePattern::Exact(_)));
        match (&self.doubt, partly) {
            (Some(doubt), _) if !is_exact => {
                doubts.insert(doubt.clone());
                Truth::Partly(partly.unwrap_or(false))
            }
            (_, Some(chosen)) => Truth::Partly(chosen),
            (_, None) => Truth::No,
        }
    }
}

impl Expression {
    pub(super) fn of(test: Test) -> Self {
        Self::Test(Rc::new(test))
    }

    pub(super) fn always() -> Self {
        Self::All(Vec::new())
    }

    pub(super) fn names(names: Names) -> Self {
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

    /// What is in it, negated or not.
    pub(super) fn each(&self, visit: &mut impl FnMut(&Test)) {
        match self {
            Self::Test(test) => visit(test),
            Self::Not(inner) => inner.each(visit),
            Self::All(inner) | Self::Any(inner) => inner.iter().for_each(|one| one.each(visit)),
        }
    }

    /// Names without which it does not hold, if that is all to be said of a name.
    pub(super) fn names_asked(&self) -> Option<&HashSet<NamePattern>> {
        match self {
            Self::Test(test) => match &**test {
                Test::Names(names) if names.loose.is_empty() && names.doubt.is_none() => Some(&names.patterns),
                _ => None,
            },
            Self::All(all) => all.iter().find_map(Self::names_asked),
            _ => None,
        }
    }

    pub(super) fn alone(&self) -> Option<&Test> {
        match self {
            Self::Test(test) => Some(test),
            Self::All(all) | Self::Any(all) => match &all[..] {
                [one] => one.alone(),
                _ => None,
            },
            Self::Not(_) => None,
        }
    }

    /// `alpn`: whether the protocols in question are offered. Reasons why something cannot be told go to `doubts`.
    pub(super) fn holds_for(&self, region: Region<'_>, alpn: bool, doubts: &mut BTreeSet<String>) -> Holds {
        match self {
            Self::Test(test) => match &**test {
                Test::Names(names) => Holds::of(names.holds_for(region, doubts)),
                Test::HasName => Holds::of((!matches!(region, Region::Nameless)).into()),
                Test::Sources(from) => Holds { surely: from.clone(), chosen: from.clone(), possibly: from.clone() },
                Test::Alpn(_) => Holds::of(alpn.into()),
                Test::Constant(value) => Holds::of((*value).into()),
                Test::Beyond(_) => {
                    doubts.insert("a limit that is not one for each source".into());
                    Holds::of(Truth::Partly(false))
                }
                Test::Unknown(reason) => {
                    doubts.insert(reason.clone());
                    Holds::of(Truth::Partly(false))
                }
            },
            Self::Not(inner) => {
                let Holds { surely, chosen, possibly } = inner.holds_for(region, alpn, doubts);
                let is_open = surely != possibly && matches!(&**inner, Self::Test(test) if test.is_blind());
                // What cannot be seen is not taken to hold, whichever way it is asked.
                let chosen = if is_open { Addresses::none() } else { chosen.not() };
                Holds { surely: possibly.not(), chosen, possibly: surely.not() }
            }
            Self::All(all) => all.iter().fold(Holds::of(Truth::Yes), |holds, one| {
                if holds.possibly.is_empty() {
                    return holds;
                }
                holds.both(&one.holds_for(region, alpn, doubts), Addresses::and)
            }),
            Self::Any(any) => any.iter().fold(Holds::of(Truth::No), |holds, one| {
                holds.both(&one.holds_for(region, alpn, doubts), Addresses::or)
            }),
        }
    }
}

impl Test {
    fn is_blind(&self) -> bool {
        matches!(self, Self::Unknown(_) | Self::Beyond(_))
    }
}
