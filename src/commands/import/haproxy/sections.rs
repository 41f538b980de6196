//! The syntax: sections, of lines, of words.

use std::ops::RangeInclusive;

use super::branches::Branches;
use super::keywords;
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::values::duration;
use crate::commands::{did_you_mean, nearest};

pub(super) struct Section {
    pub(super) kind: String,
    pub(super) name: String,
    /// The line that it begins with.
    pub(super) header: Line,
    pub(super) lines: Vec<Line>,
    /// The section of defaults that holds for it, by number.
    pub(super) defaults: Option<usize>,
}

impl Section {
    pub(super) fn range(&self) -> RangeInclusive<usize> {
        self.header.number..=self.lines.last().unwrap_or(&self.header).number
    }

    /// In which the table of the section counts connections, in milliseconds.
    pub(super) fn table_period(&self) -> Option<u64> {
        let table = self.lines.iter().rfind(|line| line.words[0] == "stick-table")?;
        let (_, period) = table.words.iter().find_map(|word| word.split_once("conn_rate("))?;
        let period = duration(period.split_once(')')?.0, "ms").ok()?;
        u64::try_from(period.as_millis()).ok()
    }

    pub(super) fn is_disabled(&self) -> bool {
        self.lines.iter().any(|line| line.words == ["disabled"])
    }
}

pub(super) struct Line {
    pub(super) number: usize,
    pub(super) words: Vec<String>,
}

impl Line {
    pub(super) fn place(&self) -> Place {
        Place::line(self.number)
    }

    pub(super) fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }
}

pub(super) const TRANSLATED: [&str; 5] = ["global", "defaults", "frontend", "backend", "listen"];

pub(super) const KINDS: [&str; 20] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "resolvers",
    "userlist",
    "mailers",
    "cache",
    "program",
    "http-errors",
    "ring",
    "log-forward",
    "fcgi-app",
    "crt-store",
    "traces",
    "log-profile",
    "acme",
    "healthcheck",
];

/// Lines that cannot be read are noted.
pub(super) fn read(source: &str, ledger: &mut Ledger) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut latest_defaults = None;
    let mut branches = Branches::default();
    for (index, text) in source.lines().enumerate() {
        let number = index + 1;
        let words = match words(text) {
            Ok(words) => words,
            Err(reason) => {
                ledger.note(&Place::line(number), reason);
                continue;
            }
        };
        let Some(first) = words.first() else { continue };
        if branches.leaves_out(&words, &Place::line(number), ledger) {
            continue;
        }
        if KINDS.contains(&first.as_str()) {
            let from = words.iter().position(|word| word == "from").and_then(|at| words.get(at + 1));
            let named = |name: &String| sections.iter().position(|one| one.kind == "defaults" && one.name == *name);
            let defaults = from.and_then(named).or(latest_defaults);
            if first == "defaults" {
                latest_defaults = Some(sections.len());
            }
            let (kind, name) = (first.clone(), words.get(1).cloned().unwrap_or_default());
            sections.push(Section { kind, name, header: Line { number, words }, lines: Vec::new(), defaults });
        } else if let Some(section) = sections.last_mut() {
            section.lines.push(Line { number, words });
        } else {
            let meant = did_you_mean(&nearest(first, KINDS)).filter(|_| !keywords::is_known(first));
            let meant = meant.map_or(String::new(), |meant| format!("; {meant}"));
            ledger.note(&Place::line(number), format!("it stands before the first section{meant}"));
        }
    }
    sections
}

/// Quotes keep spaces together, a backslash keeps some characters as they are, `#` begins a comment.
fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, quote) {
            (end, Some(quoted)) if end == quoted => quote = None,
            ('\\', None | Some('"')) => {
                let is_escaped = |next: &char| match next {
                    ' ' | '\\' | '#' | '"' => true,
                    '\'' => quote.is_none(),
                    '$' => quote.is_some(),
                    _ => false,
                };
                // In front of any other, as in a regular expression, it stands for itself.
                word.get_or_insert_default().push(characters.next_if(is_escaped).unwrap_or('\\'));
            }
            (inside, Some(_)) => word.get_or_insert_default().push(inside),
            ('#', None) => break,
            (space, None) if space.is_ascii_whitespace() => words.extend(word.take()),
            ('\'' | '"', None) => {
                word.get_or_insert_default();
                quote = Some(character);
            }
            (plain, None) => word.get_or_insert_default().push(plain),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_are_split_as_haproxy_does() {
        assert_eq!(words("  a b\\ c \"d # e\" 'f\"'g # h").unwrap(), ["a", "b c", "d # e", "f\"g"]);
        assert_eq!(words("a\\# \"\" x\r").unwrap(), ["a#", "", "x"]);
        assert_eq!(words(r#"^a\.b\\c "d\.e\"" 'f\.g\'"#).unwrap(), [r"^a\.b\c", r#"d\.e""#, r"f\.g\"]);
        assert!(words("a \"b").is_err() && words("'").is_err());
        assert!(words(" # a \"b").unwrap().is_empty());
    }
}
