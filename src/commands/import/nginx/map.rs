//! Values of variables that a `map` or `geo` sets, and `server_name`.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::name::NamePattern;
use ipnet::IpNet;

use super::stream::{KeyRank, StreamBlock};
use super::syntax::{Directive, variable_name};
use crate::commands::import::addresses::AddressSet;
use crate::commands::import::expression::{Expression, Test};
use crate::commands::import::name_match::NameMatch;
use crate::commands::import::name_set::NameSet;
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::regex;
use crate::commands::import::values::network;

/// Maps may refer to each other without end.
const MAX_DEPTH: usize = 8;

/// A value that a variable has for some clients; the first that matches applies.
pub(super) struct MapValue {
    pub(super) when: Expression,
    pub(super) text: String,
    pub(super) location: Location,
    /// Other lines that it is made of.
    pub(super) related: BTreeSet<Location>,
}

struct MapEntry<'a> {
    rank: KeyRank,
    key: &'a str,
    value: &'a str,
    location: Location,
}

fn is_sni(variable: &str) -> bool {
    variable == "ssl_preread_server_name"
}

pub(super) fn values(
    name: &str,
    stream: &mut StreamBlock<'_>,
    depth: usize,
    notes: &mut Notes,
) -> Result<Vec<MapValue>, String> {
    let known = stream.maps.iter().find(|(map, _)| variable_name(map) == Some(name));
    let (map, directive) = known
        .map(|(map, directive)| (*map, *directive))
        .filter(|_| depth < MAX_DEPTH)
        .ok_or_else(|| format!("`${name}` is not set by a `map` of `$ssl_preread_server_name` or a `geo`"))?;
    stream.used.insert(map);
    let mut related: BTreeSet<Location> = directive.first_and_last_line().into_iter().collect();
    if directive.words[0] == "geo" {
        return geo_values(directive, &related);
    }
    let is_flag = |inner: &&Directive| inner.words.len() == 1 && inner.words[0] == "hostnames";
    let hostnames = directive.inside().iter().find(is_flag);
    related.extend(hostnames.map(Directive::location));
    let entries = entries(directive, hostnames.is_some(), notes);
    let value = |when, entry: &MapEntry<'_>| MapValue {
        when,
        text: entry.value.to_owned(),
        location: entry.location.clone(),
        related: related.clone(),
    };
    match variable_name(&directive.words[1]).unwrap_or_default() {
        source if is_sni(source) => {
            let of_key = |entry: &MapEntry<'_>, notes: &mut Notes| of_name_key(entry, hostnames.is_some(), notes);
            Ok(entries.iter().map(|entry| value(of_key(entry, notes), entry)).collect())
        }
        "ssl_preread_alpn_protocols" => Ok(entries.iter().map(|entry| value(of_alpn_key(entry), entry)).collect()),
        source => {
            let mut inner = values(source, stream, depth + 1, notes)?;
            inner.push(MapValue {
                when: Expression::always(),
                text: String::new(),
                location: directive.location(),
                related: BTreeSet::new(),
            });
            Ok(inner.into_iter().map(|inner| of_value(inner, &entries, &related)).collect())
        }
    }
}

/// What a map makes of a value of another one.
fn of_value(inner: MapValue, entries: &[MapEntry<'_>], related: &BTreeSet<Location>) -> MapValue {
    let MapValue { mut when, text, location, related: inner_related } = inner;
    let exact = entries.iter().find(|entry| entry.rank == KeyRank::Exact && entry.key.eq_ignore_ascii_case(&text));
    let found = exact.or_else(|| entries.iter().find(|entry| entry.rank == KeyRank::Default));
    let has_patterns = entries.iter().any(|entry| matches!(entry.rank, KeyRank::Wildcard(_) | KeyRank::Regex(_)));
    if exact.is_none() && has_patterns {
        when = when.and(Expression::unknown(format!(
            "`{text}` may match a wildcard or regular expression of a map, which import does not evaluate"
        )));
    }
    let mut related: BTreeSet<Location> = related.iter().cloned().chain(inner_related).collect();
    related.extend(found.map(|entry| entry.location.clone()));
    MapValue { when, text: found.map(|entry| entry.value.to_owned()).unwrap_or_default(), location, related }
}

/// The longest prefix that has the client's address applies.
fn geo_values(geo: &Directive, related: &BTreeSet<Location>) -> Result<Vec<MapValue>, String> {
    let mut networks: Vec<(IpNet, &str, Location)> = Vec::new();
    let mut default = ("", geo.location());
    for entry in geo.inside() {
        let unsupported = || format!("`{}` in a `geo` block cannot be translated", entry.words.join(" "));
        match &entry.words[..] {
            [key, value] if key == "default" => default = (value, entry.location()),
            [key, value] => networks.push((network(key).ok_or_else(unsupported)?, value, entry.location())),
            _ => return Err(unsupported()),
        }
    }
    // Of equal networks the last applies.
    networks.reverse();
    networks.sort_by_key(|(network, ..)| Reverse(network.prefix_len()));
    let value = |when, text: &str, location| MapValue { when, text: text.into(), location, related: related.clone() };
    let of_network = |(network, text, location): (IpNet, &str, Location)| {
        value(Expression::of(Test::ClientAddress(AddressSet::of(&[network]))), text, location)
    };
    let (default, location) = default;
    let default = value(Expression::always(), default, location);
    Ok(networks.into_iter().map(of_network).chain([default]).collect())
}

fn entries<'a>(map: &'a Directive, hostnames: bool, notes: &mut Notes) -> Vec<MapEntry<'a>> {
    let mut all: Vec<MapEntry<'a>> = Vec::new();
    for entry in map.inside() {
        let location = entry.location();
        match &entry.words[..] {
            [flag] if flag == "hostnames" => {}
            [flag] if flag == "volatile" => notes.not_needed(&location),
            [word, _] if word == "include" => {}
            [key, value] => {
                let rank = match key.as_str() {
                    "default" => KeyRank::Default,
                    key if key.starts_with('~') => KeyRank::Regex(all.len()),
                    key if hostnames && key.starts_with(['*', '.']) => KeyRank::Wildcard(Reverse(key.len())),
                    _ => KeyRank::Exact,
                };
                all.push(MapEntry { rank, key, value, location });
            }
            words => notes.note(&location, format!("`{}`: not understood", words.join(" "))),
        }
    }
    all.sort_by_key(|entry| entry.rank);
    all
}

/// For a key of a map of the SNI.
fn of_name_key(entry: &MapEntry<'_>, hostnames: bool, notes: &mut Notes) -> Expression {
    if entry.rank == KeyRank::Default {
        return Expression::always();
    }
    if let Some(expression) = entry.key.strip_prefix('~') {
        return match regex::name_matches(expression.trim_start_matches('*')) {
            Ok((matches, may_match)) => {
                let listed: Vec<String> = matches.iter().map(ToString::to_string).collect();
                let case = if expression.starts_with('*') { "" } else { "; unlike nginx, snigate ignores case here" };
                notes.note(&entry.location, format!("`{}` is translated as {}{case}", entry.key, listed.join(", ")));
                Expression::names(NameSet::of(matches).and_maybe(may_match))
            }
            Err(reason) => Expression::unknown(format!("`{}`: {reason}", entry.key)),
        };
    }
    let key = entry.key.strip_prefix('\\').unwrap_or(entry.key);
    if key.is_empty() {
        return Expression::of(Test::HasSni).negated();
    }
    if !hostnames && key.starts_with(['.', '*']) {
        let reason = format!("\"{key}\" never matches: without `hostnames` nginx compares it literally");
        notes.note(&entry.location, reason);
        return Expression::constant(false);
    }
    match of_hostname(key) {
        Ok(matches) => Expression::names(NameSet::of(matches)),
        Err(reason) if key.ends_with(".*") => Expression::unknown(format!("\"{key}\": {reason}")),
        Err(reason) => {
            notes.note(&entry.location, format!("\"{key}\" never matches: {reason}"));
            Expression::constant(false)
        }
    }
}

/// For a key of a map of the client's list of protocols, which are separated by commas.
fn of_alpn_key(entry: &MapEntry<'_>) -> Expression {
    if entry.rank == KeyRank::Default {
        return Expression::always();
    }
    let is_protocol = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_/.".contains(&byte))
    };
    let listed = match entry.key.strip_prefix('~') {
        Some(expression) => {
            let plain = expression.trim_start_matches('*').replace("\\b", "").replace("\\.", ".").replace("\\/", "/");
            let inner = plain.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
            inner.map(|inner| inner.trim_start_matches("?:").to_owned()).unwrap_or(plain)
        }
        // ACME validation offers nothing else (RFC 8737, section 3).
        None if entry.key.starts_with("acme-tls/") => entry.key.to_owned(),
        None => String::new(),
    };
    if listed.split('|').all(is_protocol) {
        return Expression::of(Test::Alpn(listed.split('|').map(str::to_owned).collect()));
    }
    Expression::unknown(format!(
        "`{}`: `alpn` of a route can only test whether the client offers a protocol",
        entry.key
    ))
}

fn of_hostname(text: &str) -> Result<Vec<NameMatch>, String> {
    match (text.strip_prefix("*."), text.strip_prefix('.')) {
        (Some(suffix), _) => Ok(vec![NameMatch::below(suffix)?]),
        (None, Some(name)) => Ok(vec![NameMatch::exact(name)?, NameMatch::below(name)?]),
        (None, None) => Ok(vec![NameMatch::exact(text)?]),
    }
}

pub(super) fn of_server_names(server_names: &Directive, notes: &mut Notes) -> Vec<(KeyRank, Expression)> {
    let location = server_names.location();
    let mut all = Vec::new();
    for text in &server_names.words[1..] {
        let matches = match text.strip_prefix('~') {
            Some(expression) => regex::name_matches(expression),
            None => of_hostname(text).map(|matches| (matches, None)),
        };
        match matches {
            Ok((matches, may_match)) => {
                for one in matches {
                    let rank = match one.as_pattern() {
                        Some(NamePattern::Exact(_)) => KeyRank::Exact,
                        Some(NamePattern::Suffix(suffix)) => KeyRank::Wildcard(Reverse(suffix.len())),
                        None => KeyRank::Regex(all.len()),
                    };
                    let names = NameSet::of([one]).and_maybe(may_match.clone());
                    all.push((rank, Expression::names(names)));
                }
            }
            Err(_) if text == "_" || text.is_empty() => {}
            Err(reason) => {
                notes.note(&location, format!("`{text}`: {reason}"));
                all.push((KeyRank::Regex(all.len()), Expression::unknown(format!("`{text}`: {reason}"))));
            }
        }
    }
    all
}
