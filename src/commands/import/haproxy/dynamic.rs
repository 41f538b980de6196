//! `use_backend %[...]`: the name asked for is looked up in a map, or is the backend's.

use std::collections::BTreeSet;

use snigate::name::NamePattern;

use super::condition::{names_like, read_list};
use crate::commands::import::Files;
use crate::commands::import::draft::{Rule, Sources, Takes};
use crate::commands::import::ledger::{Ledger, Place};

pub(super) fn rules(
    expression: &str,
    backends: &[&str],
    place: &Place,
    files: &Files,
    ledger: &mut Ledger,
) -> Result<Vec<Rule>, String> {
    let mut parts = split(expression).into_iter();
    let fetch = parts.next().unwrap_or_default();
    if !matches!(fetch, "req.ssl_sni" | "req_ssl_sni" | "ssl_fc_sni") {
        return Err(format!("`{fetch}` has no counterpart: only the name asked for is seen"));
    }
    let rule = |takes, place: &Place, also, upstream: &str| Rule {
        place: place.clone(),
        also,
        takes,
        sources: Sources::default(),
        upstream: upstream.into(),
    };
    let converters: Vec<&str> = parts.filter(|part| *part != "lower").collect();
    let map = match &converters[..] {
        [] => {
            let named = backends.iter().filter_map(|backend| Some((NamePattern::parse(backend).ok()?, *backend)));
            return Ok(named
                .map(|(name, backend)| rule(Takes::Names(vec![name]), place, [].into(), backend))
                .collect());
        }
        [map] => map,
        [_, other, ..] => return Err(format!("`{other}` has no counterpart")),
    };
    let (converter, arguments) = map
        .strip_suffix(')')
        .and_then(|map| map.split_once('('))
        .ok_or_else(|| format!("`{map}` is not understood"))?;
    let method = match converter.strip_prefix("map") {
        Some("" | "_str") => "str",
        Some("_end") => "end",
        Some("_dom") => "dom",
        _ => return Err(format!("`{converter}` has no counterpart")),
    };
    let mut arguments = arguments.split(',').map(|argument| argument.trim_matches(['"', '\'', ' ']));
    let entries = read_list(arguments.next().unwrap_or_default(), files)?;

    let mut rules = Vec::new();
    for (key, backend, at) in entries {
        if !backends.contains(&backend.as_str()) {
            ledger.note(&at, format!("`{key}`: there is no backend `{backend}`"));
            continue;
        }
        match names_like(method, &key) {
            Ok((names, caveat)) => {
                if let Some(caveat) = caveat {
                    ledger.note(&at, format!("`{key}`: {caveat}"));
                }
                rules.push(rule(Takes::Names(names), &at, BTreeSet::from([place.clone()]), &backend));
            }
            Err(reason) => ledger.note(&at, format!("`{key}`: {reason}")),
        }
    }
    if let Some(default) = arguments.next() {
        let reason =
            format!("`{default}` now takes clients that send no name, too; in HAProxy they went to `default_backend`");
        ledger.note(place, reason);
        rules.push(rule(Takes::All, place, BTreeSet::new(), default));
    }
    Ok(rules)
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
