//! `use_backend TEXT%[...]TEXT`: the name asked for is looked up in a map, or is the backend's.

use std::collections::{BTreeSet, HashSet};

use super::condition::Condition;
use super::lists::Entry;
use super::sample::{Sample, Variables, is_name};
use crate::commands::import::Files;
use crate::commands::import::draft::{Outcome, Rule};
use crate::commands::import::expression::{Expression, Names, Test};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::names::Form;

/// Of clients for whom it names no backend HAProxy takes the default, and no further rule.
pub(super) fn rules(
    text: &str,
    condition: Condition,
    backends: &HashSet<&str>,
    default: &Outcome,
    place: &Place,
    (variables, files): (&Variables, &Files),
    ledger: &mut Ledger,
) -> Vec<Rule> {
    let Condition { when, places: mut also } = condition;
    let parsed = text.split_once("%[").and_then(|(before, rest)| Some((before, rest.split_once(']')?)));
    let sample = match parsed {
        Some((_, (expression, after))) if !after.contains('%') => Sample::read(expression, variables, files),
        _ => Err(format!("`{text}` is not understood")),
    };
    let (before, after) = parsed.map_or(("", ""), |(before, (_, after))| (before, after));
    let sample = sample.and_then(|sample| {
        if is_name(&sample.fetch) {
            Ok(sample)
        } else {
            Err(format!("`{}` has no counterpart: only the name asked for is seen", sample.fetch))
        }
    });
    let sample = match sample {
        Ok(sample) => sample,
        Err(reason) => {
            let when = when.and(Expression::unknown(reason));
            return vec![Rule { place: place.clone(), also, when, then: Outcome::To(text.into()) }];
        }
    };
    also.extend(sample.places.iter().cloned());
    also.insert(place.clone());
    let named = |value: &str| format!("{before}{value}{after}");
    let rule = |at: &Place, form: Form, backend: &str, when: &Expression| Rule {
        place: at.clone(),
        also: also.clone(),
        when: Expression::names(Names::of([form])).and(when.clone()),
        then: Outcome::To(backend.into()),
    };
    let mut rules = Vec::new();
    match &sample.lookup {
        None => {
            let mut found: Vec<(&str, Form)> = Vec::new();
            for backend in backends {
                let name = backend.strip_prefix(before).and_then(|name| name.strip_suffix(after));
                found.extend(name.and_then(|name| Form::exact(name).ok()).map(|form| (*backend, form)));
            }
            found.sort_by_key(|(backend, _)| *backend);
            rules.extend(found.into_iter().map(|(backend, form)| rule(place, form, backend, &when)));
        }
        Some(lookup) => {
            // That it finds something is what the entries say themselves.
            let when = if asks_for_no_more(&when) { Expression::always() } else { when.clone() };
            for (form, Entry { key, value, place: at }) in &lookup.entries {
                let backend = named(value);
                if backends.contains(backend.as_str()) {
                    rules.push(rule(at, form.clone(), &backend, &when));
                } else {
                    ledger.note(at, format!("`{key}`: there is no backend `{backend}`, so it goes to the default one"));
                    let mut to_default = rule(at, form.clone(), &backend, &when);
                    to_default.then = default.clone();
                    rules.push(to_default);
                }
            }
            for (Entry { key, value, place: at }, reason) in &lookup.left_out {
                let when = when.clone().and(Expression::unknown(format!("`{key}`: {reason}")));
                rules.push(Rule { place: at.clone(), also: BTreeSet::new(), when, then: Outcome::To(named(value)) });
            }
            if let Some(value) = &lookup.default {
                let backend = named(value);
                let then = if backends.contains(backend.as_str()) { Outcome::To(backend) } else { default.clone() };
                let when = when.and(Expression::of(Test::HasName));
                rules.push(Rule { place: place.clone(), also: also.clone(), when, then });
            }
        }
    }
    rules.push(Rule { place: place.clone(), also, when, then: default.clone() });
    rules
}

/// Whether a condition is but that there is a name, or that a lookup finds one.
fn asks_for_no_more(when: &Expression) -> bool {
    when.is_always() || matches!(when.alone(), Some(Test::HasName))
}
