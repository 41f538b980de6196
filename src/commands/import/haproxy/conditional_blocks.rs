//! `.if`, `.elif`, `.else` and `.endif`.

use crate::commands::import::notes::{Location, Notes};

/// The first HAProxy that has these conditions, so that any that reads the file is at least this one.
const FIRST_VERSION: (u32, u32) = (2, 4);

#[derive(Default)]
pub(super) struct ConditionalBlocks(Vec<ConditionalBlock>);

struct ConditionalBlock {
    /// Whether HAProxy reads the current part; `None`: not known.
    is_active: Option<bool>,
    /// Whether it read one before.
    was_active: Option<bool>,
}

impl ConditionalBlocks {
    /// Whether the line is one of these keywords or in a part that is left out; it then gets a note.
    pub(super) fn skip(&mut self, words: &[String], location: &Location, notes: &mut Notes) -> bool {
        let condition = words[1..].join(" ");
        match words[0].as_str() {
            ".if" => self.0.push(ConditionalBlock { is_active: evaluate(&condition), was_active: Some(false) }),
            ".elif" | ".else" => {
                let Some(block) = self.0.last_mut() else {
                    notes.note(location, "no `.if` before it");
                    return true;
                };
                block.was_active = either(block.was_active, block.is_active);
                let own = if words[0] == ".else" { Some(true) } else { evaluate(&condition) };
                block.is_active = match (block.was_active, own) {
                    (Some(true), _) | (_, Some(false)) => Some(false),
                    (Some(false), own) => own,
                    (None, _) => None,
                };
            }
            ".endif" => drop(self.0.pop()),
            ".notice" | ".warning" | ".alert" | ".diag" => notes.not_needed(location),
            _ => return self.skip_inside(location, notes),
        }
        if words[0] != ".endif" && words[0].starts_with('.') {
            match self.0.last().map(|block| block.is_active) {
                Some(None) => notes.admits_more(
                    location,
                    "left out up to `.endif`, with all rules that reject or route clients: import does not know \
                    whether the condition is true",
                ),
                Some(Some(true)) => notes.translated(location),
                Some(Some(false)) => notes.note(location, "the condition is false"),
                None => {}
            }
        } else {
            notes.translated(location);
        }
        true
    }

    fn skip_inside(&self, location: &Location, notes: &mut Notes) -> bool {
        if self.0.iter().any(|block| block.is_active == Some(false)) {
            notes.note(location, "left out: in a block whose condition is false");
        } else if self.0.iter().any(|block| block.is_active.is_none()) {
            notes.note(location, "left out: in a block whose condition import cannot evaluate");
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

/// `None`: it depends on the HAProxy that reads the file.
fn evaluate(condition: &str) -> Option<bool> {
    let condition = condition.trim();
    if let Some(condition) = condition.strip_prefix('!') {
        return evaluate(condition).map(|value| !value);
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
    use super::evaluate;

    #[test]
    fn conditions_that_hold_for_every_version_are_evaluated() {
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
            assert_eq!(evaluate(condition), expected, "{condition}");
        }
    }
}
