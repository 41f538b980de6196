//! `acl` lines, and the conditions after `if` and `unless`.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;

use super::criterion::CriterionReader;
use crate::commands::import::addresses::AddressSet;
use crate::commands::import::expression::{Expression, Test};
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::values::network;

/// A condition and the `acl` and `set-var` lines that it is made of.
pub(super) struct RuleCondition {
    pub(super) when: Expression,
    pub(super) locations: BTreeSet<Location>,
}

impl RuleCondition {
    pub(super) fn unknown(reason: String) -> Self {
        Self { when: Expression::unknown(reason), locations: BTreeSet::new() }
    }
}

/// The ACLs of a section by name. A client needs to match one of several with the same name.
pub(super) struct Acls<'a> {
    by_name: HashMap<String, (Vec<Expression>, BTreeSet<Location>)>,
    pub(super) tests: CriterionReader<'a>,
}

impl<'a> Acls<'a> {
    pub(super) fn new(tests: CriterionReader<'a>) -> Self {
        Self { by_name: HashMap::new(), tests }
    }

    pub(super) fn add(&mut self, words: &[&str], location: &Location, notes: &mut Notes) {
        let [_, name, test @ ..] = words else { return };
        let mut locations = BTreeSet::from([location.clone()]);
        let test = self.tests.read(test, location, &mut locations, notes);
        let (tests, all) = self.by_name.entry((*name).into()).or_default();
        tests.push(test);
        all.append(&mut locations);
    }

    /// Reads the words after an action: none, or `if` or `unless` and a condition.
    pub(super) fn condition(
        &self,
        words: &[&str],
        location: &Location,
        notes: &mut Notes,
    ) -> Result<RuleCondition, String> {
        match words {
            [] => Ok(RuleCondition { when: Expression::always(), locations: BTreeSet::new() }),
            ["if", words @ ..] => self.read(words, location, notes),
            ["unless", words @ ..] => {
                let RuleCondition { when, locations } = self.read(words, location, notes)?;
                Ok(RuleCondition { when: when.negated(), locations })
            }
            [word, ..] => Err(format!("`{word}` is not understood")),
        }
    }

    fn read(&self, words: &[&str], location: &Location, notes: &mut Notes) -> Result<RuleCondition, String> {
        let mut alternatives = vec![Vec::new()];
        let mut locations = BTreeSet::new();
        let mut is_negated = false;
        let mut rest = words;
        while let [word, after @ ..] = rest {
            rest = after;
            let name = word.trim_start_matches('!');
            is_negated ^= (word.len() - name.len()) % 2 == 1;
            let test = match name {
                "" => continue,
                "or" | "||" => {
                    alternatives.push(Vec::new());
                    continue;
                }
                "{" => {
                    let end = rest.iter().position(|word| *word == "}").ok_or("a brace is not closed")?;
                    let test = self.tests.read(&rest[..end], location, &mut locations, notes);
                    rest = &rest[end + 1..];
                    test
                }
                name => match self.by_name.get(name) {
                    Some((tests, of)) => {
                        locations.extend(of.iter().cloned());
                        single_or(tests.clone(), Expression::Any)
                    }
                    None => predefined(name),
                },
            };
            if let Some(last) = alternatives.last_mut() {
                last.push(if std::mem::take(&mut is_negated) { test.negated() } else { test });
            }
        }
        if alternatives.iter().any(Vec::is_empty) {
            return Err("a condition is missing".into());
        }
        let all = alternatives.into_iter().map(|terms| single_or(terms, Expression::All)).collect();
        Ok(RuleCondition { when: single_or(all, Expression::Any), locations })
    }
}

fn single_or(mut all: Vec<Expression>, join: fn(Vec<Expression>) -> Expression) -> Expression {
    if all.len() == 1 { all.remove(0) } else { join(all) }
}

fn predefined(name: &str) -> Expression {
    match name {
        "TRUE" | "WAIT_END" | "REQ_CONTENT" => Expression::constant(true),
        "FALSE" | "HTTP" | "HTTP_1.0" | "HTTP_1.1" | "HTTP_2.0" | "RDP_COOKIE" => Expression::constant(false),
        "LOCALHOST" => {
            let local: Vec<IpNet> = ["127.0.0.0/8", "::1"].into_iter().filter_map(network).collect();
            Expression::of(Test::ClientAddress(AddressSet::of(&local)))
        }
        _ => Expression::unknown(format!(
            "`{name}` is neither an `acl` above nor a predefined ACL that snigate can test"
        )),
    }
}
