//! Sample expressions: a fetch, and converters applied to it.

use std::collections::HashMap;

use super::pattern_file::{self, FileEntry};
use crate::commands::import::expression::{Expression, Test};
use crate::commands::import::files::SourceFiles;
use crate::commands::import::name_match::NameMatch;
use crate::commands::import::name_set::NameSet;
use crate::commands::import::notes::Location;

/// Variables may refer to each other without end.
const MAX_DEPTH: usize = 8;

/// Expressions of `set-var` by variable; `None`: it depends on the client which one is set.
#[derive(Default)]
pub(super) struct Variables(HashMap<String, Option<(String, Location)>>);

pub(super) struct Sample {
    pub(super) fetch: String,
    /// By the converter `lower`.
    pub(super) is_lower_case: bool,
    pub(super) lookup: Option<MapLookup>,
    /// `set-var` lines that it is made of.
    pub(super) locations: Vec<Location>,
}

/// A map file that is looked up by SNI.
pub(super) struct MapLookup {
    pub(super) entries: Vec<(NameMatch, FileEntry)>,
    /// Entries whose keys cannot be matched, with the reasons.
    pub(super) left_out: Vec<(FileEntry, String)>,
    pub(super) default: Option<String>,
}

impl Variables {
    pub(super) fn add(&mut self, name: &str, expression: &str, is_conditional: bool, location: &Location) {
        let value = (!is_conditional && !self.0.contains_key(name)).then(|| (expression.to_owned(), location.clone()));
        self.0.insert(name.into(), value);
    }
}

impl Sample {
    pub(super) fn read(text: &str, variables: &Variables, files: &SourceFiles) -> Result<Self, String> {
        let mut locations = Vec::new();
        let mut parts: Vec<String> = split(text).into_iter().map(str::to_owned).collect();
        for _ in 0..MAX_DEPTH {
            let Some(name) = parts[0].strip_prefix("var(").and_then(|name| name.strip_suffix(')')) else { break };
            let Some(Some((expression, location))) = variables.0.get(name) else {
                return Err(format!("`{}` is not set by exactly one unconditional `set-var`", parts[0]));
            };
            locations.push(location.clone());
            let converters = parts.split_off(1);
            parts = split(expression).into_iter().map(str::to_owned).chain(converters).collect();
        }
        let fetch = parts.remove(0);
        let (mut is_lower_case, mut lookup) = (false, None);
        for converter in parts {
            match (converter.split('(').next().unwrap_or_default(), &lookup) {
                ("lower", None) => is_lower_case = true,
                ("lower", Some(_)) => {}
                ("map" | "map_str" | "map_end" | "map_dom" | "map_reg" | "map_beg" | "map_sub", None) => {
                    lookup = Some(MapLookup::read(&converter, files)?);
                }
                _ => return Err(format!("the converter `{converter}` cannot be translated")),
            }
        }
        if lookup.is_some() && !is_sni(&fetch) {
            return Err(format!("a map can only be looked up by SNI, not by `{fetch}`"));
        }
        Ok(Self { fetch, is_lower_case, lookup, locations })
    }
}

pub(super) fn is_sni(fetch: &str) -> bool {
    matches!(fetch, "req.ssl_sni" | "req_ssl_sni" | "ssl_fc_sni")
}

impl MapLookup {
    fn read(converter: &str, files: &SourceFiles) -> Result<Self, String> {
        let invalid = || format!("`{converter}` is not understood");
        let (name, arguments) = converter.strip_suffix(')').and_then(|map| map.split_once('(')).ok_or_else(invalid)?;
        let method = name.strip_prefix("map").unwrap_or_default().trim_start_matches('_');
        let method = if method.is_empty() { "str" } else { method };
        let mut arguments = arguments.split(',').map(|argument| argument.trim_matches(['"', '\'', ' ']));
        let mut lookup = Self { entries: Vec::new(), left_out: Vec::new(), default: None };
        for entry in pattern_file::read(arguments.next().unwrap_or_default(), files)? {
            match pattern_file::name_matches(method, &entry.key) {
                Ok((matches, None)) => lookup.entries.extend(matches.into_iter().map(|one| (one, entry.clone()))),
                Ok((_, Some(reason))) | Err(reason) => lookup.left_out.push((entry, reason)),
            }
        }
        lookup.default = arguments.next().map(str::to_owned);
        Ok(lookup)
    }

    /// For which clients there is a value.
    pub(super) fn finds_any(&self) -> Expression {
        if self.default.is_some() {
            return Expression::of(Test::HasSni);
        }
        self.finds(|_| true)
    }

    /// For which clients there is such a value.
    pub(super) fn finds(&self, is_wanted: impl Fn(&str) -> bool) -> Expression {
        let is_wanted = &is_wanted;
        let names = |wanted: bool| {
            let entries = self.entries.iter().filter(move |(_, entry)| is_wanted(&entry.value) == wanted);
            Expression::names(NameSet::of(entries.map(|(one, _)| one.clone()).collect::<Vec<_>>()))
        };
        if self.default.as_deref().is_some_and(is_wanted) {
            return Expression::of(Test::HasSni).and(names(false).negated());
        }
        let unknown =
            self.left_out.iter().map(|(entry, reason)| Expression::unknown(format!("`{}`: {reason}", entry.key)));
        Expression::Any(std::iter::once(names(true)).chain(unknown).collect())
    }
}

/// At commas that are not inside parentheses.
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
