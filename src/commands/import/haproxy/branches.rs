//! `.if`, `.else` and the like.

use crate::commands::import::ledger::{Ledger, Place};

/// HAProxy has had these conditions since.
const FIRST_VERSION: (u32, u32) = (2, 4);

#[derive(Default)]
pub(super) struct Branches(Vec<Branch>);

struct Branch {
    /// Whether this part holds; `None`: that is not known.
    holds: Option<bool>,
    /// Whether one before it did.
    was: Option<bool>,
}

impl Branches {
    /// Whether a line counts for nothing; that is noted. Conditions themselves are such lines.
    pub(super) fn leaves_out(&mut self, words: &[String], place: &Place, ledger: &mut Ledger) -> bool {
        let condition = words[1..].join(" ");
        match words[0].as_str() {
            ".if" => self.0.push(Branch { holds: decide(&condition), was: Some(false) }),
            ".elif" | ".else" => {
                let Some(branch) = self.0.last_mut() else {
                    ledger.note(place, "there is no `.if` before it");
                    return true;
                };
                branch.was = either(branch.was, branch.holds);
                let own = if words[0] == ".else" { Some(true) } else { decide(&condition) };
                branch.holds = match (branch.was, own) {
                    (Some(true), _) | (_, Some(false)) => Some(false),
                    (Some(false), own) => own,
                    (None, _) => None,
                };
            }
            ".endif" => drop(self.0.pop()),
            ".notice" | ".warning" | ".alert" | ".diag" => ledger.note(place, "not needed: a message"),
            _ => return self.is_inside(place, ledger),
        }
        if words[0] != ".endif" && words[0].starts_with('.') {
            match self.0.last().map(|branch| branch.holds) {
                Some(None) => ledger.wider(
                    place,
                    "whether that holds is not known here, so nothing between it and `.endif` is carried over: rules \
                    there may refuse clients, or route them",
                ),
                Some(Some(true)) => ledger.carry(place),
                Some(Some(false)) => ledger.note(place, "it does not hold"),
                None => {}
            }
        } else {
            ledger.carry(place);
        }
        true
    }

    fn is_inside(&self, place: &Place, ledger: &mut Ledger) -> bool {
        if self.0.iter().any(|branch| branch.holds == Some(false)) {
            ledger.note(place, "left out: the condition around it does not hold");
        } else if self.0.iter().any(|branch| branch.holds.is_none()) {
            ledger.note(place, "left out: whether the condition around it holds is not known");
        } else {
            return false;
        }
        true
    }
}

fn either(one: Option<bool>, other: Option<bool>) -> Option<bool> {
    match (one, other) {
        (Some(true), _) | (_, Some(true)) => Some(true),
        (Some(false), Some(false)) => Some(false),
        _ => None,
    }
}

/// What is true of every HAProxy that can read it.
fn decide(condition: &str) -> Option<bool> {
    let condition = condition.trim();
    if let Some(condition) = condition.strip_prefix('!') {
        return decide(condition).map(|holds| !holds);
    }
    let argument = |name: &str| condition.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')');
    let is_old = |version: &str| {
        let mut numbers = version.trim_matches(['"', '\'']).split(['.', '-']).map(|number| number.parse().ok());
        let version: (u32, u32) = (numbers.next()??, numbers.next().unwrap_or(Some(0))?);
        Some(version <= FIRST_VERSION)
    };
    match condition {
        "0" | "false" | "" => Some(false),
        "1" | "true" => Some(true),
        _ => match (argument("version_atleast"), argument("version_before")) {
            (Some(version), _) => is_old(version).filter(|is_old| *is_old),
            (_, Some(version)) => is_old(version).filter(|is_old| *is_old).map(|is_old| !is_old),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::decide;

    #[test]
    fn what_every_version_says_alike_is_decided() {
        for (condition, expected) in [
            ("1", Some(true)),
            ("!1", Some(false)),
            ("version_atleast(2.0)", Some(true)),
            ("!version_atleast(2.4)", Some(false)),
            ("version_before(2.2)", Some(false)),
            ("version_atleast(2.6)", None),
            ("defined(X)", None),
            ("feature(OPENSSL)", None),
            ("version_atleast(x)", None),
        ] {
            assert_eq!(decide(condition), expected, "{condition}");
        }
    }
}
