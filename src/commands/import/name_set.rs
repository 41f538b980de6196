//! Sets of server names.

use std::collections::{BTreeSet, HashSet};

use crate::name::NamePattern;

use super::name_match::{NameClass, NameMatch, Truth, wildcards_above};

/// Server names that a test matches.
#[derive(Clone, Debug, Default)]
pub(super) struct NameSet {
    pub(super) patterns: HashSet<NamePattern>,
    in_order: Vec<NamePattern>,
    /// Comparisons that no `sni` pattern can express.
    pub(super) inexact: Vec<NameMatch>,
    /// Which other names the test may match.
    pub(super) may_match: Option<String>,
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

    pub(super) fn matches(&self, class: NameClass<'_>, uncertain: &mut BTreeSet<String>) -> Truth {
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
