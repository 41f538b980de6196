//! What stands behind `if` and in `acl`: as far as it is about names and addresses of clients.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;
use snigate::name::NamePattern;

use crate::commands::import::Files;
use crate::commands::import::draft::{Sources, Takes};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::values::{below, exact, network};

/// What is true of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// It asks for one of these.
    Names(Vec<NamePattern>),
    /// It asks for some name.
    HasName,
    /// It comes from one of these.
    Sources(Vec<IpNet>),
    /// That it speaks TLS, which is true of all here.
    Always,
    /// Something else.
    Other(String),
}

#[derive(Clone, Debug)]
pub(super) struct Term {
    pub(super) negated: bool,
    pub(super) test: Test,
}

/// All of these.
pub(super) type Conjunction = Vec<Term>;

pub(super) struct Condition {
    /// One of these.
    pub(super) alternatives: Vec<Conjunction>,
    /// The lines that it is made of, too.
    pub(super) places: BTreeSet<Place>,
}

/// The `acl` lines of a section, by name. Those of the same name are alternatives.
#[derive(Default)]
pub(super) struct Acls(HashMap<String, (Test, BTreeSet<Place>)>);

impl Acls {
    pub(super) fn add(&mut self, words: &[&str], place: &Place, files: &Files, ledger: &mut Ledger) {
        let [_, name, test @ ..] = words else { return };
        let test = read_test(test, place, files, ledger);
        match self.0.get_mut(*name) {
            None => {
                self.0.insert((*name).into(), (test, [place.clone()].into()));
            }
            Some((before, places)) => {
                places.insert(place.clone());
                match (before, test) {
                    (Test::Names(names), Test::Names(more)) => names.extend(more),
                    (Test::Sources(networks), Test::Sources(more)) => networks.extend(more),
                    (before, _) => *before = Test::Other(format!("the ACL `{name}` mixes different things")),
                }
            }
        }
    }

    /// What stands behind an action: nothing, or `if` or `unless` and a condition.
    pub(super) fn condition(
        &self,
        words: &[&str],
        place: &Place,
        files: &Files,
        ledger: &mut Ledger,
    ) -> Result<Condition, String> {
        match words {
            [] => Ok(Condition { alternatives: vec![Vec::new()], places: BTreeSet::new() }),
            ["if", words @ ..] => self.read(words, place, files, ledger),
            ["unless", words @ ..] => {
                let Condition { alternatives, places } = self.read(words, place, files, ledger)?;
                let alternatives = negate(alternatives).ok_or("`unless` with such a condition has no counterpart")?;
                Ok(Condition { alternatives, places })
            }
            [word, ..] => Err(format!("`{word}` is not understood")),
        }
    }

    fn read(&self, words: &[&str], place: &Place, files: &Files, ledger: &mut Ledger) -> Result<Condition, String> {
        let mut alternatives = vec![Vec::new()];
        let mut places = BTreeSet::new();
        let mut negated = false;
        let mut rest = words;
        while let [word, after @ ..] = rest {
            rest = after;
            let (bangs, word) = (word.len() - word.trim_start_matches('!').len(), word.trim_start_matches('!'));
            negated ^= bangs % 2 == 1;
            let test = match word {
                "" => continue,
                "or" | "||" => {
                    alternatives.push(Vec::new());
                    continue;
                }
                "{" => {
                    let end = rest.iter().position(|word| *word == "}").ok_or("a brace is not closed")?;
                    let test = read_test(&rest[..end], place, files, ledger);
                    rest = &rest[end + 1..];
                    test
                }
                name => match self.0.get(name) {
                    Some((test, of)) => {
                        places.extend(of.iter().cloned());
                        test.clone()
                    }
                    None if name == "TRUE" => Test::Always,
                    None => Test::Other(format!("there is no ACL `{name}`, or it has no counterpart")),
                },
            };
            if let Some(last) = alternatives.last_mut() {
                last.push(Term { negated: std::mem::take(&mut negated), test });
            }
        }
        if alternatives.iter().any(Vec::is_empty) {
            return Err("a condition is missing".into());
        }
        Ok(Condition { alternatives, places })
    }
}

/// Only what stays an alternative of terms, or becomes one.
fn negate(alternatives: Vec<Conjunction>) -> Option<Vec<Conjunction>> {
    let not = |term: Term| Term { negated: !term.negated, ..term };
    if alternatives.len() == 1 {
        return Some(alternatives.into_iter().flatten().map(|term| vec![not(term)]).collect());
    }
    let all_single = alternatives.iter().all(|terms| terms.len() == 1);
    all_single.then(|| vec![alternatives.into_iter().flatten().map(not).collect()])
}

/// Which clients satisfy all of it.
pub(super) fn clients(terms: Conjunction) -> Result<(Takes, Sources), String> {
    let mut takes = Takes::All;
    let mut sources = Sources::default();
    let mut has_name = false;
    for Term { negated, test } in terms {
        match (test, negated) {
            (Test::Always, false) => {}
            (Test::Always, true) => return Err("it is true of no client that speaks TLS".into()),
            (Test::HasName, false) => has_name = true,
            (Test::Names(names), false) if takes == Takes::All => takes = Takes::Names(names),
            (Test::Names(_), false) => return Err("two conditions on one name have no counterpart".into()),
            (Test::Names(_) | Test::HasName, true) => {
                return Err("a route cannot take all clients but those with some names".into());
            }
            (Test::Sources(networks), false) if sources.allow.is_empty() => sources.allow = networks,
            (Test::Sources(_), false) => return Err("two conditions on one address have no counterpart".into()),
            (Test::Sources(mut networks), true) => sources.deny.append(&mut networks),
            (Test::Other(reason), _) => return Err(reason),
        }
    }
    if has_name && takes == Takes::All {
        return Err("a route that takes every name takes clients without one, too".into());
    }
    Ok((takes, sources))
}

/// Of one word on: what is looked at, how it is compared, with what.
fn read_test(words: &[&str], place: &Place, files: &Files, ledger: &mut Ledger) -> Test {
    let Some((sample, rest)) = words.split_first() else { return Test::Other("a condition is missing".into()) };
    let mut converters = sample.split(',');
    let fetch = converters.next().unwrap_or_default();
    if let Some(converter) = converters.find(|converter| *converter != "lower") {
        return Test::Other(format!("`{converter}` has no counterpart"));
    }
    let (fetch, method) = ["end", "dom", "str", "beg", "sub", "dir", "reg"]
        .into_iter()
        .find_map(|method| Some((fetch.strip_suffix(method)?.strip_suffix('_')?, method)))
        .unwrap_or((fetch, "str"));
    let Arguments { method, values, file } = match Arguments::read(method, rest) {
        Ok(arguments) => arguments,
        Err(reason) => return Test::Other(reason),
    };
    let mut values: Vec<(String, Place)> = values.iter().map(|value| ((*value).into(), place.clone())).collect();
    if let Some(file) = file {
        match read_list(file, files) {
            Ok(list) => values.extend(list.into_iter().map(|(key, _, place)| (key, place))),
            Err(reason) => return Test::Other(reason),
        }
    }
    match fetch {
        "req.ssl_sni" | "req_ssl_sni" | "ssl_fc_sni" if method == "found" => Test::HasName,
        "req.ssl_sni" | "req_ssl_sni" | "ssl_fc_sni" => read_names(method, &values, ledger),
        "src" => match values.iter().map(|(value, _)| network(value)).collect::<Option<Vec<IpNet>>>() {
            Some(networks) if !networks.is_empty() => Test::Sources(networks),
            _ => Test::Other("not every address in it is a network".into()),
        },
        "req.ssl_hello_type" | "req_ssl_hello_type" if values.iter().any(|(value, _)| value == "1") => Test::Always,
        "ssl_fc" | "req.ssl_ver" | "req_ssl_ver" | "req.len" | "req_len" | "always_true" => Test::Always,
        "req.ssl_alpn" | "ssl_fc_alpn" => Test::Other("it looks at the application protocols; see `alpn`".into()),
        "dst" | "dst_port" | "fc_dst" | "fc_dst_port" | "so_name" | "so_id" => {
            Test::Other("it looks at where clients arrive; see `listener`".into())
        }
        _ if fetch.starts_with("src_") || fetch.starts_with("sc") || fetch.ends_with("conn") => {
            Test::Other(format!("`{fetch}` has no counterpart; see `limits` and `max_connections`"))
        }
        _ => Test::Other(format!(
            "`{fetch}` has no counterpart: what is inside TLS is not seen, only the name asked for is"
        )),
    }
}

struct Arguments<'a> {
    method: &'a str,
    values: Vec<&'a str>,
    file: Option<&'a str>,
}

impl<'a> Arguments<'a> {
    fn read(method: &'a str, words: &[&'a str]) -> Result<Self, String> {
        let mut arguments = Self { method, values: Vec::new(), file: None };
        let mut rest = words;
        while let [word, after @ ..] = rest {
            rest = after;
            match (*word, after) {
                ("-i" | "-n", _) => {}
                ("-m", [method, after @ ..]) => (arguments.method, rest) = (method, after),
                ("-f", [file, after @ ..]) => (arguments.file, rest) = (Some(*file), after),
                ("--", values) => {
                    arguments.values.extend(values);
                    break;
                }
                (flag, _) if flag.len() == 2 && flag.starts_with('-') => {
                    return Err(format!("the flag `{flag}` is not understood"));
                }
                (value, _) => arguments.values.push(value),
            }
        }
        Ok(arguments)
    }
}

fn read_names(method: &str, values: &[(String, Place)], ledger: &mut Ledger) -> Test {
    let mut names = Vec::new();
    let mut reason = "no name is given".to_owned();
    for (value, place) in values {
        match names_like(method, value) {
            Ok((like, caveat)) => {
                names.extend(like);
                if let Some(caveat) = caveat {
                    ledger.note(place, format!("`{value}`: {caveat}"));
                }
            }
            Err(why) => {
                reason = format!("`{value}`: {why}");
                ledger.note(place, reason.clone());
            }
        }
    }
    if names.is_empty() { Test::Other(reason) } else { Test::Names(names) }
}

/// The names that compare so with the text, and what is lost.
pub(super) fn names_like(method: &str, text: &str) -> Result<(Vec<NamePattern>, Option<&'static str>), String> {
    match (method, text.strip_prefix('.')) {
        ("str", _) => Ok((vec![exact(text)?], None)),
        ("end", Some(suffix)) => Ok((vec![below(suffix)?], None)),
        ("end", None) => {
            let caveat = "HAProxy took names that merely end in these letters, too, within a label";
            Ok((vec![exact(text)?, below(text)?], Some(caveat)))
        }
        ("dom", _) => {
            let text = text.trim_matches('.');
            Ok((vec![exact(text)?, below(text)?], Some("HAProxy took names that have it in the middle, too")))
        }
        ("reg", _) => Err("a regular expression; a route has names, and `*.` for all below one".into()),
        _ => Err(format!("the comparison `{method}` has no counterpart")),
    }
}

/// The lines of a file that the source names: a key, and perhaps a value.
pub(super) fn read_list(path: &str, files: &Files) -> Result<Vec<(String, String, Place)>, String> {
    let text = files.read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let file = path.into();
    let lines = text.lines().map(str::trim).enumerate();
    let says_something = |(_, line): &(usize, &str)| !line.is_empty() && !line.starts_with('#');
    let read = |(index, line): (usize, &str)| {
        let (key, value) = line.split_once(|character: char| character.is_ascii_whitespace()).unwrap_or((line, ""));
        (key.to_owned(), value.trim().to_owned(), Place::elsewhere(&file, index + 1))
    };
    Ok(lines.filter(says_something).map(read).collect())
}
