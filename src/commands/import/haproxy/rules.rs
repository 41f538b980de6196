//! `use_backend`: who is led where.

use std::collections::BTreeSet;

use snigate::name::NamePattern;

use super::condition::{Acls, Conjunction, Term, Test, clients};
use super::dynamic;
use super::sections::Line;
use crate::commands::import::Files;
use crate::commands::import::draft::{Rule, Sources, Takes};
use crate::commands::import::ledger::{Ledger, Place};

/// Of one line; alternatives without a counterpart are noted and left out.
pub(super) fn of(
    backend: &str,
    condition: &[&str],
    acls: &Acls,
    backends: &[&str],
    line: &Line,
    files: &Files,
    ledger: &mut Ledger,
) -> Result<Vec<Rule>, String> {
    let place = line.place();
    let expression = backend.strip_prefix("%[").and_then(|expression| expression.strip_suffix(']'));
    let rules = match expression {
        Some(expression) => dynamic::rules(expression, backends, &place, files, ledger)?,
        None if backend.contains('%') => return Err(format!("`{backend}` is not understood")),
        None => vec![led_to(backend, Takes::All, place.clone())],
    };
    let condition = acls.condition(condition, &place, files, ledger)?;
    let mut limited = Vec::new();
    for terms in condition.alternatives {
        match narrowed(&rules, terms, expression.is_some()) {
            Ok(rules) => limited.extend(rules),
            Err(reason) => ledger.note(&place, reason),
        }
    }
    for rule in &mut limited {
        rule.also.extend(condition.places.iter().cloned());
    }
    Ok(limited)
}

pub(super) fn led_to(backend: &str, takes: Takes, place: Place) -> Rule {
    Rule { place, also: BTreeSet::new(), takes, sources: Sources::default(), upstream: backend.into() }
}

/// The rules for those clients only.
fn narrowed(rules: &[Rule], terms: Conjunction, is_dynamic: bool) -> Result<Vec<Rule>, String> {
    let has_name = |term: &Term| !term.negated && term.test == Test::HasName;
    // That a name is there is what a map asks anyway.
    let terms = terms.into_iter().filter(|term| !(is_dynamic && has_name(term))).collect();
    let (takes, sources) = clients(terms)?;
    if is_dynamic && takes != Takes::All {
        return Err("a map together with a condition on the name has no counterpart".into());
    }
    let narrow = |rule: &Rule| Rule {
        place: rule.place.clone(),
        also: rule.also.clone(),
        takes: if is_dynamic { rule.takes.clone() } else { takes.clone() },
        sources: sources.clone(),
        upstream: rule.upstream.clone(),
    };
    Ok(rules.iter().map(narrow).collect())
}

/// A client from elsewhere went on to the next rules, but is refused by a route.
pub(super) fn drop_ambiguous(rules: &mut Vec<Rule>, ledger: &mut Ledger) {
    let mut later: Vec<Rule> = Vec::new();
    while let Some(rule) = rules.pop() {
        if !rule.sources.is_empty() && later.iter().any(|other| meet(&rule.takes, &other.takes)) {
            let reason = "a rule after it takes such clients from other addresses, but a route refuses those that it \
                does not allow; so this rule is left out";
            ledger.note(&rule.place, reason);
        } else {
            later.push(rule);
        }
    }
    later.reverse();
    *rules = later;
}

fn meet(one: &Takes, other: &Takes) -> bool {
    let (Takes::Names(ones), Takes::Names(others)) = (one, other) else { return true };
    let text = |name: &NamePattern| name.to_string();
    let within =
        |inner: &str, outer: &str| inner == outer || outer.strip_prefix('*').is_some_and(|end| inner.ends_with(end));
    let others: Vec<String> = others.iter().map(text).collect();
    ones.iter().map(text).any(|one| others.iter().any(|other| within(&one, other) || within(other, &one)))
}
