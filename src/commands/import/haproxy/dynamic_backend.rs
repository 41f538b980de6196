//! `use_backend` with a sample expression, such as `%[req.ssl_sni,lower,map(hosts.map)]` or `kube-%[req.ssl_sni]`.

use std::collections::{BTreeSet, HashSet};

use super::acl::RuleCondition;
use super::criterion::{CASE_IGNORED, CriterionReader};
use super::pattern_file::FileEntry;
use super::sample::{MapLookup, Sample, is_sni};
use crate::commands::import::draft::{Action, Rule};
use crate::commands::import::expression::{Expression, Test};
use crate::commands::import::name_match::NameMatch;
use crate::commands::import::name_set::NameSet;
use crate::commands::import::notes::{Location, Notes};

/// The backend is the value of the sample, between two texts.
struct Template<'t> {
    before: &'t str,
    sample: Sample,
    after: &'t str,
}

impl<'t> Template<'t> {
    fn read(text: &'t str, tests: &CriterionReader<'_>) -> Result<Self, String> {
        let parts = text.split_once("%[").and_then(|(before, rest)| Some((before, rest.split_once(']')?)));
        let Some((before, (expression, after))) = parts.filter(|(_, (_, after))| !after.contains('%')) else {
            return Err(format!("`{text}` is not understood"));
        };
        let sample = Sample::read(expression, &tests.variables, tests.files)?;
        if !is_sni(&sample.fetch) {
            return Err(format!("a backend can only depend on the SNI, not on `{}`", sample.fetch));
        }
        Ok(Self { before, sample, after })
    }

    fn backend(&self, value: &str) -> String {
        format!("{}{value}{}", self.before, self.after)
    }
}

/// The rules made of one `use_backend` line.
pub(super) struct DynamicRules<'a> {
    pub(super) backends: &'a HashSet<&'a str>,
    /// HAProxy uses the default backend, not a later rule, if there is no such backend.
    pub(super) default: &'a Action,
    pub(super) location: &'a Location,
    pub(super) tests: &'a CriterionReader<'a>,
}

impl DynamicRules<'_> {
    pub(super) fn read(&self, text: &str, condition: RuleCondition, notes: &mut Notes) -> Vec<Rule> {
        let RuleCondition { when, locations: mut related } = condition;
        let template = match Template::read(text, self.tests) {
            Ok(template) => template,
            Err(reason) => {
                let when = when.and(Expression::unknown(reason));
                return vec![self.rule(when, Action::RouteTo(text.into()), related)];
            }
        };
        if !template.sample.is_lower_case {
            notes.note(self.location, CASE_IGNORED);
        }
        related.extend(template.sample.locations.iter().cloned());
        related.insert(self.location.clone());
        let mut rules = match &template.sample.lookup {
            None => self.by_name(&template, &when, &related),
            Some(lookup) => self.by_map(&template, lookup, &when, &related, notes),
        };
        rules.push(self.rule(when, self.default.clone(), related));
        rules
    }

    fn rule(&self, when: Expression, then: Action, related: BTreeSet<Location>) -> Rule {
        Rule { location: self.location.clone(), related, when, then }
    }

    /// The SNI is part of the backend's name.
    fn by_name(&self, template: &Template<'_>, when: &Expression, related: &BTreeSet<Location>) -> Vec<Rule> {
        let mut found: Vec<(&str, NameMatch)> = Vec::new();
        for backend in self.backends {
            let name = backend.strip_prefix(template.before).and_then(|name| name.strip_suffix(template.after));
            found.extend(name.and_then(|name| NameMatch::exact(name).ok()).map(|one| (*backend, one)));
        }
        found.sort_by_key(|(backend, _)| *backend);
        let rule = |(backend, one): (&str, NameMatch)| {
            let when = Expression::names(NameSet::of([one])).and(when.clone());
            self.rule(when, Action::RouteTo(backend.into()), related.clone())
        };
        found.into_iter().map(rule).collect()
    }

    fn by_map(
        &self,
        template: &Template<'_>,
        lookup: &MapLookup,
        when: &Expression,
        related: &BTreeSet<Location>,
        notes: &mut Notes,
    ) -> Vec<Rule> {
        let mut rules = Vec::new();
        // A condition that there is an entry is implied by the entries.
        let is_implied = when.is_always() || matches!(when.single_test(), Some(Test::HasSni));
        let when = if is_implied { Expression::always() } else { when.clone() };
        for (one, FileEntry { key, value, location }) in &lookup.entries {
            let backend = template.backend(value);
            let is_known = self.backends.contains(backend.as_str());
            if !is_known {
                notes.note(location, format!("`{key}`: there is no backend `{backend}`: the default backend is used"));
            }
            rules.push(Rule {
                location: location.clone(),
                related: related.clone(),
                when: Expression::names(NameSet::of([one.clone()])).and(when.clone()),
                then: if is_known { Action::RouteTo(backend) } else { self.default.clone() },
            });
        }
        for (FileEntry { key, value, location }, reason) in &lookup.left_out {
            let when = when.clone().and(Expression::unknown(format!("`{key}`: {reason}")));
            rules.push(Rule::new(location, when, Action::RouteTo(template.backend(value))));
        }
        if let Some(value) = &lookup.default {
            let backend = template.backend(value);
            let is_known = self.backends.contains(backend.as_str());
            let then = if is_known { Action::RouteTo(backend) } else { self.default.clone() };
            rules.push(self.rule(when.and(Expression::of(Test::HasSni)), then, related.clone()));
        }
        rules
    }
}
