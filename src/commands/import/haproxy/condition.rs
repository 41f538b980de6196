//! What stands behind `if` and in `acl`.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;

use super::lists;
use super::sample::{Lookup, Sample, Variables, is_name};
use crate::commands::import::Files;
use crate::commands::import::expression::{Expression, Limit, Names, Test};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::sources::Addresses;
use crate::commands::import::values::network;

pub(super) struct Condition {
    pub(super) when: Expression,
    /// The lines that it is made of, too.
    pub(super) places: BTreeSet<Place>,
}

/// The `acl` lines of a section, by name. Those of the same name are alternatives.
pub(super) struct Acls<'a> {
    named: HashMap<String, (Vec<Expression>, BTreeSet<Place>)>,
    pub(super) variables: Variables,
    files: &'a Files,
    /// Of the frontend's listeners: all, none, or some.
    ends_tls: Option<bool>,
}

impl<'a> Acls<'a> {
    pub(super) fn new(files: &'a Files, ends_tls: Option<bool>) -> Self {
        Self { named: HashMap::new(), variables: Variables::default(), files, ends_tls }
    }

    pub(super) fn add(&mut self, words: &[&str], place: &Place, ledger: &mut Ledger) {
        let [_, name, test @ ..] = words else { return };
        let mut places = BTreeSet::from([place.clone()]);
        let test = self.read_test(test, place, &mut places, ledger);
        let (tests, all) = self.named.entry((*name).into()).or_default();
        tests.push(test);
        all.append(&mut places);
    }

    /// What stands behind an action: nothing, or `if` or `unless` and a condition.
    pub(super) fn condition(&self, words: &[&str], place: &Place, ledger: &mut Ledger) -> Result<Condition, String> {
        match words {
            [] => Ok(Condition { when: Expression::always(), places: BTreeSet::new() }),
            ["if", words @ ..] => self.read(words, place, ledger),
            ["unless", words @ ..] => {
                let Condition { when, places } = self.read(words, place, ledger)?;
                Ok(Condition { when: when.negated(), places })
            }
            [word, ..] => Err(format!("`{word}` is not understood")),
        }
    }

    fn read(&self, words: &[&str], place: &Place, ledger: &mut Ledger) -> Result<Condition, String> {
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
                    let test = self.read_test(&rest[..end], place, &mut places, ledger);
                    rest = &rest[end + 1..];
                    test
                }
                name => match self.named.get(name) {
                    Some((tests, of)) => {
                        places.extend(of.iter().cloned());
                        match &tests[..] {
                            [one] => one.clone(),
                            _ => Expression::Any(tests.clone()),
                        }
                    }
                    None => predefined(name),
                },
            };
            if let Some(last) = alternatives.last_mut() {
                last.push(if std::mem::take(&mut negated) { test.negated() } else { test });
            }
        }
        if alternatives.iter().any(Vec::is_empty) {
            return Err("a condition is missing".into());
        }
        let mut all: Vec<Expression> = alternatives.into_iter().map(conjunction).collect();
        let when = if all.len() == 1 { all.remove(0) } else { Expression::Any(all) };
        Ok(Condition { when, places })
    }

    /// Of one word on: what is looked at, how it is compared, with what.
    fn read_test(
        &self,
        words: &[&str],
        place: &Place,
        places: &mut BTreeSet<Place>,
        ledger: &mut Ledger,
    ) -> Expression {
        let test = self.try_test(words, place, places, ledger);
        test.unwrap_or_else(|reason| Expression::unknown(format!("`{}`: {reason}", words.join(" "))))
    }

    fn try_test(
        &self,
        words: &[&str],
        place: &Place,
        places: &mut BTreeSet<Place>,
        ledger: &mut Ledger,
    ) -> Result<Expression, String> {
        let (sample, rest) = words.split_first().ok_or("a condition is missing")?;
        let (sample, method) = ["end", "dom", "str", "beg", "sub", "dir", "reg"]
            .into_iter()
            .find_map(|method| Some((sample.strip_suffix(method)?.strip_suffix('_')?, method)))
            .unwrap_or((sample, "str"));
        let Sample { fetch, lookup, places: of } = Sample::read(sample, &self.variables, self.files)?;
        places.extend(of);
        let Arguments { method, values, files } = Arguments::read(method, rest)?;
        let mut values: Vec<(String, Place)> = values.iter().map(|value| ((*value).into(), place.clone())).collect();
        for file in files {
            values.extend(lists::read(file, self.files)?.into_iter().map(|entry| (entry.key, entry.place)));
        }
        if let Some(lookup) = lookup {
            return of_lookup(&lookup, method, &values);
        }
        match fetch.as_str() {
            fetch if is_name(fetch) || fetch == "ssl_fc_has_sni" => {
                let sees = if fetch.starts_with("ssl_fc") { self.ends_tls } else { self.ends_tls.map(|ends| !ends) };
                match (sees, method) {
                    (Some(false), _) if fetch.starts_with("ssl_fc") => Ok(Expression::of(Test::Constant(false))),
                    (_, "found") => Ok(Expression::of(Test::HasName)),
                    _ if fetch == "ssl_fc_has_sni" => Ok(Expression::of(Test::HasName)),
                    _ => of_names(method, &values, ledger),
                }
            }
            "src" => {
                let networks: Option<Vec<IpNet>> = values.iter().map(|(value, _)| network(value)).collect();
                match networks {
                    Some(networks) if !networks.is_empty() => {
                        Ok(Expression::of(Test::Sources(Addresses::of(&networks))))
                    }
                    _ => Err("not every address in it is a network".into()),
                }
            }
            "req.ssl_hello_type" | "req_ssl_hello_type" => {
                Ok(Expression::of(Test::Constant(values.iter().any(|(value, _)| value == "1"))))
            }
            "ssl_fc" => self
                .ends_tls
                .map(|ends| Expression::of(Test::Constant(ends)))
                .ok_or_else(|| "only some of the listeners of the frontend end TLS".into()),
            "req.ssl_ver" | "req_ssl_ver" if is_every_version(&values) => Ok(Expression::of(Test::Constant(true))),
            "req.len" | "req_len" if is_above_zero(&values) => Ok(Expression::of(Test::Constant(true))),
            "always_true" => Ok(Expression::of(Test::Constant(true))),
            "always_false" => Ok(Expression::of(Test::Constant(false))),
            "req.ssl_alpn" | "ssl_fc_alpn" => of_alpn(&fetch, method, &values),
            "dst" | "dst_port" | "fc_dst" | "fc_dst_port" | "so_name" | "so_id" => {
                Err("it looks at where clients arrive; see `listener`".into())
            }
            fetch => match limit(fetch, &values) {
                Some(limit) => Ok(Expression::of(Test::Beyond(limit))),
                None if fetch.starts_with("src_") || fetch.starts_with("sc") || fetch.ends_with("conn") => {
                    Err("it has no counterpart; see `limits` and `max_connections`".into())
                }
                None if fetch.contains("ssl_ver") || fetch.contains("len") => {
                    Err("it is not looked at: a client is routed by the name that it asks for".into())
                }
                None => Err("it has no counterpart: what is inside TLS is not seen, only the name asked for is".into()),
            },
        }
    }
}

fn conjunction(mut terms: Vec<Expression>) -> Expression {
    if terms.len() == 1 { terms.remove(0) } else { Expression::All(terms) }
}

fn predefined(name: &str) -> Expression {
    match name {
        "TRUE" | "WAIT_END" | "REQ_CONTENT" => Expression::of(Test::Constant(true)),
        "FALSE" | "HTTP" | "HTTP_1.0" | "HTTP_1.1" | "HTTP_2.0" | "RDP_COOKIE" => Expression::of(Test::Constant(false)),
        "LOCALHOST" => {
            let local: Vec<IpNet> = ["127.0.0.0/8", "::1"].into_iter().filter_map(network).collect();
            Expression::of(Test::Sources(Addresses::of(&local)))
        }
        _ => Expression::unknown(format!("there is no ACL `{name}`, or it has no counterpart")),
    }
}

fn of_names(method: &str, values: &[(String, Place)], ledger: &mut Ledger) -> Result<Expression, String> {
    let mut names = Names::default();
    let mut unknown = Vec::new();
    for (value, place) in values {
        match lists::forms(method, value) {
            Ok((forms, doubt)) => {
                if method == "reg" {
                    let read: Vec<String> = forms.iter().map(ToString::to_string).collect();
                    ledger.note(place, format!("`{value}` is read as {}", read.join(", ")));
                }
                let mut more = Names::of(forms);
                more.doubt = doubt;
                names.extend(more);
            }
            Err(why) => unknown.push(Expression::unknown(format!("`{value}`: {why}"))),
        }
    }
    if names.is_empty() && unknown.is_empty() {
        return Err("no name is given".into());
    }
    if unknown.is_empty() {
        return Ok(Expression::names(names));
    }
    Ok(Expression::Any(std::iter::once(Expression::names(names)).chain(unknown).collect()))
}

fn of_lookup(lookup: &Lookup, method: &str, values: &[(String, Place)]) -> Result<Expression, String> {
    let values: Vec<&str> = values.iter().map(|(value, _)| value.as_str()).collect();
    let compare: fn(&str, &str) -> bool = match method {
        "found" => return Ok(lookup.is_found()),
        "str" => |value, text| value == text,
        "beg" => |value, text| value.starts_with(text),
        "end" => |value, text| value.ends_with(text),
        "sub" => |value, text| value.contains(text),
        _ => return Err(format!("the comparison `{method}` has no counterpart")),
    };
    Ok(lookup.gives(|value| values.iter().any(|text| compare(value, text))))
}

fn of_alpn(fetch: &str, method: &str, values: &[(String, Place)]) -> Result<Expression, String> {
    let values: Vec<&str> = values.iter().map(|(value, _)| value.as_str()).collect();
    // What the client offers is one text there, with commas; at the end of TLS it is what was agreed on.
    let fits = match (fetch, method) {
        ("req.ssl_alpn", "sub") => values.iter().all(|value| !value.contains(',')),
        (_, "str") => values.iter().all(|value| value.starts_with("acme-tls/")),
        _ => false,
    };
    if values.is_empty() || !fits {
        return Err("whether a protocol is offered is all that a route asks; see `alpn`".into());
    }
    Ok(Expression::of(Test::Alpn(values.into_iter().map(str::to_owned).collect())))
}

/// Every client of today has one of these versions.
fn is_every_version(values: &[(String, Place)]) -> bool {
    let number = |text: &str| {
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    };
    let texts: Vec<&str> = values.iter().map(|(value, _)| value.as_str()).collect();
    match texts[..] {
        ["gt", text] => number(text).is_some_and(|number| number < (3, 1)),
        ["ge", text] => number(text).is_some_and(|number| number <= (3, 1)),
        [text] => text.strip_suffix(':').and_then(number).is_some_and(|number| number <= (3, 1)),
        _ => false,
    }
}

fn is_above_zero(values: &[(String, Place)]) -> bool {
    let texts: Vec<&str> = values.iter().map(|(value, _)| value.as_str()).collect();
    matches!(texts[..], ["gt", "0"] | ["ge", "1" | "0"] | ["1:"])
}

/// A comparison with what a source has.
fn limit(fetch: &str, values: &[(String, Place)]) -> Option<Limit> {
    let texts: Vec<&str> = values.iter().map(|(value, _)| value.as_str()).collect();
    let allowed = match texts[..] {
        ["gt", number] => number.parse().ok()?,
        ["ge", number] => number.parse::<u64>().ok()?.checked_sub(1)?,
        _ => return None,
    };
    let allowed = Some(allowed).filter(|allowed| (1..=1_000_000).contains(allowed))?;
    let counter = fetch.strip_prefix("src_").or_else(|| {
        let counter = fetch.strip_prefix("sc")?;
        counter.strip_prefix(['0', '1', '2', '_'])
    })?;
    match counter.trim_start_matches('_').split('(').next()? {
        "conn_cur" => Some(Limit::Connections(allowed)),
        "conn_rate" => Some(Limit::New(allowed, None)),
        _ => None,
    }
}

struct Arguments<'a> {
    method: &'a str,
    values: Vec<&'a str>,
    files: Vec<&'a str>,
}

impl<'a> Arguments<'a> {
    fn read(method: &'a str, words: &[&'a str]) -> Result<Self, String> {
        let mut arguments = Self { method, values: Vec::new(), files: Vec::new() };
        let mut rest = words;
        while let [word, after @ ..] = rest {
            rest = after;
            match (*word, after) {
                ("-i" | "-n" | "-M", _) => {}
                ("-m", [method, after @ ..]) => (arguments.method, rest) = (method, after),
                ("-u", [_, after @ ..]) => rest = after,
                ("-f", [file, after @ ..]) => {
                    arguments.files.push(file);
                    rest = after;
                }
                ("--", values) => {
                    arguments.values.extend(values);
                    break;
                }
                (flag, _) if flag.len() == 2 && flag.starts_with('-') && arguments.values.is_empty() => {
                    return Err(format!("the flag `{flag}` is not understood"));
                }
                (value, _) => arguments.values.push(value),
            }
        }
        Ok(arguments)
    }
}
