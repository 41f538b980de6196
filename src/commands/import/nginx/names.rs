//! Names in `map` and `server_name`.

use std::collections::BTreeSet;

use snigate::name::NamePattern;

use super::syntax::Directive;
use crate::commands::import::draft::{Rule, Sources, Takes};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::values::{below, exact};

/// `lead` says which upstream stands for a value.
pub(super) fn of_map(
    map: &Directive,
    mut lead: impl FnMut(&str, &Place, &mut Ledger) -> Result<String, String>,
    ledger: &mut Ledger,
) -> Vec<Rule> {
    let inside = |directive: &Directive, word| directive.words.len() == 1 && directive.words[0] == word;
    let hostnames = map.inside().iter().find(|directive| inside(directive, "hostnames"));
    let also: BTreeSet<Place> = map.frame().into_iter().chain(hostnames.map(Directive::place)).collect();
    let mut rules = Vec::new();
    let mut others = None;
    for entry in map.inside() {
        let place = entry.place();
        let (key, value) = match entry.words()[..] {
            ["hostnames"] => continue,
            ["volatile"] => {
                ledger.note(&place, "`volatile`: not needed");
                continue;
            }
            ["include", file] => {
                ledger.note(&place, format!("`include {file}`: not read; put its lines in its place"));
                continue;
            }
            [key, value] => (key, value),
            _ => {
                ledger.note(&place, format!("`{}`: not understood", entry.words.join(" ")));
                continue;
            }
        };
        let takes = if key == "default" { Ok(Takes::All) } else { of_key(key, hostnames.is_some()).map(Takes::Names) };
        let made = takes.and_then(|takes| {
            let upstream = lead(value, &place, ledger)?;
            Ok(Rule { place: place.clone(), also: also.clone(), takes, sources: Sources::default(), upstream })
        });
        match made {
            Ok(rule) if rule.takes == Takes::All => others = Some(rule),
            Ok(rule) => rules.push(rule),
            Err(reason) => ledger.note(&place, format!("\"{key}\": {reason}")),
        }
    }
    rules.extend(others);
    rules
}

fn of_key(key: &str, hostnames: bool) -> Result<Vec<NamePattern>, String> {
    let key = key.strip_prefix('\\').unwrap_or(key);
    if key.starts_with('~') {
        return Err("a regular expression; a route has names, and `*.` for all below one".into());
    }
    if key.is_empty() {
        return Err("clients that send no name are taken by the route without `sni`, if there is one".into());
    }
    if !hostnames && key.starts_with(['.', '*']) {
        return Err("without `hostnames` nginx takes it as it stands, and no client asks for such a name".into());
    }
    of_text(key)
}

fn of_text(text: &str) -> Result<Vec<NamePattern>, String> {
    match (text.strip_prefix("*."), text.strip_prefix('.')) {
        (Some(suffix), _) => Ok(vec![below(suffix)?]),
        (None, Some(name)) => Ok(vec![exact(name)?, below(name)?]),
        (None, None) => Ok(vec![exact(text)?]),
    }
}

/// The rules of a server for its names only, and for all others if it is the default one.
pub(super) fn narrowed(rules: Vec<Rule>, server_names: &Directive, is_default: bool, ledger: &mut Ledger) -> Vec<Rule> {
    let place = server_names.place();
    if rules.iter().any(|rule| rule.takes != Takes::All) {
        ledger.note(&place, "`server_name` together with a map has no counterpart; the map alone decides");
        return rules;
    }
    let mut names = Vec::new();
    for text in &server_names.words[1..] {
        match if text.starts_with('~') { Err("a regular expression".into()) } else { of_text(text) } {
            Ok(more) => names.extend(more),
            Err(reason) => ledger.note(&place, format!("`{text}`: {reason}")),
        }
    }
    if !is_default {
        ledger.note(
            &place,
            "if it is the first server at its address, nginx led other names here, too; here they are refused",
        );
    }
    let mut narrowed = Vec::new();
    for rule in rules {
        if !names.is_empty() {
            let (also, sources) = ([rule.place.clone()].into(), Sources::default());
            let (takes, upstream) = (Takes::Names(names.clone()), rule.upstream.clone());
            narrowed.push(Rule { place: place.clone(), also, takes, sources, upstream });
        }
        if is_default {
            narrowed.push(rule);
        }
    }
    narrowed
}
