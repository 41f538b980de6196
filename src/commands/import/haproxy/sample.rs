//! What a condition or a lookup looks at: a fetch, and what it is converted by.

use std::collections::HashMap;

use super::lists::{self, Entry};
use crate::commands::import::Files;
use crate::commands::import::expression::{Expression, Names, Test};
use crate::commands::import::ledger::Place;
use crate::commands::import::names::Form;

/// No chain of variables is longer.
const MAX_DEPTH: usize = 8;

/// `set-var`, by the name of the variable; `None`: it is not one thing for all clients.
#[derive(Default)]
pub(super) struct Variables(HashMap<String, Option<(String, Place)>>);

/// What is looked at.
pub(super) struct Sample {
    pub(super) fetch: String,
    pub(super) lookup: Option<Lookup>,
    /// Lines that it is made of.
    pub(super) places: Vec<Place>,
}

/// A map from the name asked for to a value.
pub(super) struct Lookup {
    pub(super) entries: Vec<(Form, Entry)>,
    /// Keys that are no names: where, and why.
    pub(super) left_out: Vec<(Entry, String)>,
    pub(super) default: Option<String>,
}

impl Variables {
    pub(super) fn add(&mut self, name: &str, expression: &str, is_conditional: bool, place: &Place) {
        let value = (!is_conditional && !self.0.contains_key(name)).then(|| (expression.to_owned(), place.clone()));
        self.0.insert(name.into(), value);
    }
}

impl Sample {
    pub(super) fn read(text: &str, variables: &Variables, files: &Files) -> Result<Self, String> {
        let mut places = Vec::new();
        let mut parts: Vec<String> = split(text).into_iter().map(str::to_owned).collect();
        for _ in 0..MAX_DEPTH {
            let Some(name) = parts[0].strip_prefix("var(").and_then(|name| name.strip_suffix(')')) else { break };
            let Some(Some((expression, place))) = variables.0.get(name) else {
                return Err(format!("`{}` is set nowhere, or not for all clients alike", parts[0]));
            };
            places.push(place.clone());
            let rest = parts.split_off(1);
            parts = split(expression).into_iter().map(str::to_owned).chain(rest).collect();
        }
        let fetch = parts.remove(0);
        let mut lookup = None;
        for converter in parts {
            let name = converter.split('(').next().unwrap_or_default();
            match (name, &lookup) {
                ("lower", _) => {}
                ("map" | "map_str" | "map_end" | "map_dom" | "map_reg" | "map_beg" | "map_sub", None) => {
                    lookup = Some(Lookup::read(&converter, files)?);
                }
                _ => return Err(format!("`{converter}` has no counterpart")),
            }
        }
        if lookup.is_some() && !is_name(&fetch) {
            return Err(format!("`{fetch}` has no counterpart: only the name asked for is looked up"));
        }
        Ok(Self { fetch, lookup, places })
    }
}

/// Whether it is the server name that the client sends.
pub(super) fn is_name(fetch: &str) -> bool {
    matches!(fetch, "req.ssl_sni" | "req_ssl_sni" | "ssl_fc_sni")
}

impl Lookup {
    fn read(converter: &str, files: &Files) -> Result<Self, String> {
        let wrong = || format!("`{converter}` is not understood");
        let (name, arguments) = converter.strip_suffix(')').and_then(|map| map.split_once('(')).ok_or_else(wrong)?;
        let method = name.strip_prefix("map").unwrap_or_default().trim_start_matches('_');
        let method = if method.is_empty() { "str" } else { method };
        let mut arguments = arguments.split(',').map(|argument| argument.trim_matches(['"', '\'', ' ']));
        let mut lookup = Self { entries: Vec::new(), left_out: Vec::new(), default: None };
        for entry in lists::read(arguments.next().unwrap_or_default(), files)? {
            match lists::forms(method, &entry.key) {
                Ok((forms, None)) => lookup.entries.extend(forms.into_iter().map(|form| (form, entry.clone()))),
                Ok((_, Some(reason))) | Err(reason) => lookup.left_out.push((entry, reason)),
            }
        }
        lookup.default = arguments.next().map(str::to_owned);
        Ok(lookup)
    }

    /// Clients for whom it gives something.
    pub(super) fn is_found(&self) -> Expression {
        if self.default.is_some() {
            return Expression::of(Test::HasName);
        }
        self.gives(|_| true)
    }

    /// Clients for whom it gives such a value.
    pub(super) fn gives(&self, is_wanted: impl Fn(&str) -> bool) -> Expression {
        let is_wanted = &is_wanted;
        let forms = |wanted: bool| {
            let entries = self.entries.iter().filter(move |(_, entry)| is_wanted(&entry.value) == wanted);
            Names::of(entries.map(|(form, _)| form.clone()).collect::<Vec<_>>())
        };
        if self.default.as_deref().is_some_and(is_wanted) {
            return Expression::of(Test::HasName).and(Expression::names(forms(false)).negated());
        }
        let names = Expression::names(forms(true));
        let unknown =
            self.left_out.iter().map(|(entry, reason)| Expression::unknown(format!("`{}`: {reason}", entry.key)));
        Expression::Any(std::iter::once(names).chain(unknown).collect())
    }
}

/// At commas that are in no parentheses.
fn split(expression: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let is_end = |character: char| {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    };
    expression.split(is_end).collect()
}
