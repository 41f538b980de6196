//! `map` and `server_name`.

use std::collections::BTreeSet;

use crate::name::NamePattern;

use super::Stream;
use super::syntax::Directive;
use crate::commands::import::expression::{Expression, Names, Test};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::names::Form;
use crate::commands::import::regex;

/// No chain of maps is longer.
const MAX_DEPTH: usize = 8;

/// What a variable is for some clients: the first of several that holds.
pub(super) struct Value {
    pub(super) when: Expression,
    pub(super) text: String,
    pub(super) place: Place,
    pub(super) also: BTreeSet<Place>,
}

/// In the order in which nginx looks: texts, wildcards, regular expressions, the default.
type Rank = (u8, usize);

struct Entry<'a> {
    rank: Rank,
    key: &'a str,
    value: &'a str,
    place: Place,
}

pub(super) fn is_name(variable: &str) -> bool {
    variable == "ssl_preread_server_name"
}

/// `$name` or `${name}`.
pub(super) fn variable(text: &str) -> Option<&str> {
    let name = text.strip_prefix('$')?;
    let name = name.strip_prefix('{').and_then(|name| name.strip_suffix('}')).unwrap_or(name);
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then_some(name)
}

pub(super) fn values(
    name: &str,
    stream: &mut Stream<'_>,
    depth: usize,
    ledger: &mut Ledger,
) -> Result<Vec<Value>, String> {
    let known =
        stream.maps.iter().find(|(map, _)| variable(map) == Some(name)).map(|(map, directive)| (*map, *directive));
    let (map, directive) = known
        .filter(|_| depth < MAX_DEPTH)
        .ok_or_else(|| format!("`${name}`: no map from the name asked for leads to it"))?;
    stream.used.insert(map);
    let source = variable(&directive.words[1]).unwrap_or_default();
    let mut also: BTreeSet<Place> = directive.frame().into_iter().collect();
    let is_flag = |inner: &&Directive| inner.words.len() == 1 && inner.words[0] == "hostnames";
    let hostnames = directive.inside().iter().find(is_flag);
    also.extend(hostnames.map(Directive::place));
    let entries = entries(directive, hostnames.is_some(), ledger);
    let value = |when, entry: &Entry<'_>, also: &BTreeSet<Place>| Value {
        when,
        text: entry.value.to_owned(),
        place: entry.place.clone(),
        also: also.clone(),
    };
    if is_name(source) {
        return Ok(entries
            .iter()
            .map(|entry| value(of_key(entry, hostnames.is_some(), ledger), entry, &also))
            .collect());
    }
    if source == "ssl_preread_alpn_protocols" {
        return Ok(entries.iter().map(|entry| value(of_protocols(entry), entry, &also)).collect());
    }
    // A map of what another gives.
    let mut all = Vec::new();
    let mut inner = values(source, stream, depth + 1, ledger)?;
    inner.push(Value {
        when: Expression::always(),
        text: String::new(),
        place: directive.place(),
        also: BTreeSet::new(),
    });
    for Value { when, text, place, also: of } in inner {
        let is_same = |entry: &&Entry<'_>| entry.rank.0 == 0 && entry.key.eq_ignore_ascii_case(&text);
        let found = entries.iter().find(is_same).or_else(|| entries.iter().find(|entry| entry.rank.0 == 3));
        let loose = entries.iter().any(|entry| matches!(entry.rank.0, 1 | 2));
        let when = if loose && !entries.iter().any(|entry| is_same(&entry)) {
            when.and(Expression::unknown(format!("`{text}`: which entry of a map with regular expressions it is")))
        } else {
            when
        };
        let mut also: BTreeSet<Place> = also.iter().cloned().chain(of).collect();
        also.extend(found.map(|entry| entry.place.clone()));
        all.push(Value { when, text: found.map(|entry| entry.value.to_owned()).unwrap_or_default(), place, also });
    }
    Ok(all)
}

fn entries<'a>(map: &'a Directive, hostnames: bool, ledger: &mut Ledger) -> Vec<Entry<'a>> {
    let mut all: Vec<Entry<'a>> = Vec::new();
    for entry in map.inside() {
        let place = entry.place();
        match &entry.words[..] {
            [flag] if flag == "hostnames" => {}
            [flag] if flag == "volatile" => ledger.note(&place, "`volatile`: not needed"),
            [word, _] if word == "include" => {}
            [key, value] => {
                let rank = match key.as_str() {
                    "default" => (3, 0),
                    key if key.starts_with('~') => (2, all.len()),
                    key if hostnames && key.starts_with(['*', '.']) => (1, usize::MAX - key.len()),
                    _ => (0, 0),
                };
                all.push(Entry { rank, key, value, place });
            }
            words => ledger.note(&place, format!("`{}`: not understood", words.join(" "))),
        }
    }
    all.sort_by_key(|entry| entry.rank);
    all
}

fn of_key(entry: &Entry<'_>, hostnames: bool, ledger: &mut Ledger) -> Expression {
    let key = entry.key.strip_prefix('\\').unwrap_or(entry.key);
    if entry.rank.0 == 3 {
        return Expression::always();
    }
    if let Some(expression) = entry.key.strip_prefix('~') {
        return match regex::forms(expression.trim_start_matches('*')) {
            Ok((forms, doubt)) => {
                let read: Vec<String> = forms.iter().map(ToString::to_string).collect();
                ledger.note(&entry.place, format!("`{}` is read as {}", entry.key, read.join(", ")));
                let mut names = Names::of(forms);
                names.doubt = doubt;
                Expression::names(names)
            }
            Err(reason) => Expression::unknown(format!("`{}`: {reason}", entry.key)),
        };
    }
    if key.is_empty() {
        return Expression::of(Test::HasName).negated();
    }
    if !hostnames && key.starts_with(['.', '*']) {
        let reason = "without `hostnames` nginx takes it as it stands, and no client asks for such a name";
        ledger.note(&entry.place, format!("\"{key}\": {reason}"));
        return Expression::of(Test::Constant(false));
    }
    match of_text(key) {
        Ok(forms) => Expression::names(Names::of(forms)),
        Err(reason) if key.ends_with(".*") => Expression::unknown(format!("\"{key}\": {reason}")),
        Err(reason) => {
            ledger.note(&entry.place, format!("\"{key}\": {reason}"));
            Expression::of(Test::Constant(false))
        }
    }
}

/// Of the protocols that the client offers, with commas between.
fn of_protocols(entry: &Entry<'_>) -> Expression {
    if entry.rank.0 == 3 {
        return Expression::always();
    }
    let is_protocol = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_/.".contains(&byte))
    };
    let key = entry.key.strip_prefix('~').unwrap_or_default().trim_start_matches('*').replace("\\b", "");
    let key = key.replace("\\.", ".").replace("\\/", "/");
    if is_protocol(&key) {
        return Expression::of(Test::Alpn([key].into()));
    }
    Expression::unknown(format!("`{}`: whether a protocol is offered is all that a route asks", entry.key))
}

pub(super) fn of_text(text: &str) -> Result<Vec<Form>, String> {
    match (text.strip_prefix("*."), text.strip_prefix('.')) {
        (Some(suffix), _) => Ok(vec![Form::below(suffix)?]),
        (None, Some(name)) => Ok(vec![Form::exact(name)?, Form::below(name)?]),
        (None, None) => Ok(vec![Form::exact(text)?]),
    }
}

/// The names of a server, each with its rank.
pub(super) fn of_server(server_names: &Directive, ledger: &mut Ledger) -> Vec<(Rank, Expression)> {
    let place = server_names.place();
    let mut all = Vec::new();
    for text in &server_names.words[1..] {
        let forms = if let Some(expression) = text.strip_prefix('~') {
            regex::forms(expression)
        } else {
            of_text(text).map(|forms| (forms, None))
        };
        match forms {
            Ok((forms, doubt)) => {
                for form in forms {
                    let rank = match form.pattern() {
                        Some(NamePattern::Exact(_)) => (0, 0),
                        Some(NamePattern::Suffix(suffix)) => (1, usize::MAX - suffix.len()),
                        None => (2, all.len()),
                    };
                    let mut names = Names::of([form]);
                    names.doubt.clone_from(&doubt);
                    all.push((rank, Expression::names(names)));
                }
            }
            Err(_) if text == "_" || text.is_empty() => {}
            Err(reason) => {
                ledger.note(&place, format!("`{text}`: {reason}"));
                all.push(((2, all.len()), Expression::unknown(format!("`{text}`: {reason}"))));
            }
        }
    }
    all
}
