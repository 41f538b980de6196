//! Syntax: sections, lines and words.

use std::ops::RangeInclusive;

use super::conditional_blocks::ConditionalBlocks;
use super::keywords::{self, SECTIONS};
use crate::commands::import::notes::{Location, Notes};
use crate::commands::{did_you_mean, nearest};

pub(super) struct Section {
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) header: SectionLine,
    pub(super) lines: Vec<SectionLine>,
    /// The number of the `defaults` section that applies.
    pub(super) defaults: Option<usize>,
}

impl Section {
    pub(super) fn is_frontend(&self) -> bool {
        matches!(self.kind.as_str(), "frontend" | "listen")
    }

    pub(super) fn is_backend(&self) -> bool {
        matches!(self.kind.as_str(), "backend" | "listen")
    }

    pub(super) fn range(&self) -> RangeInclusive<usize> {
        self.header.number..=self.lines.last().unwrap_or(&self.header).number
    }

    pub(super) fn location(&self) -> Location {
        Location::lines(&self.range())
    }

    pub(super) fn is_disabled(&self) -> bool {
        self.lines.iter().any(|line| line.words == ["disabled"])
    }
}

pub(super) struct SectionLine {
    pub(super) number: usize,
    pub(super) words: Vec<String>,
}

impl SectionLine {
    pub(super) fn location(&self) -> Location {
        Location::line(self.number)
    }

    pub(super) fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }
}

/// The lines of a section, after those of its `defaults`.
pub(super) fn with_defaults<'a>(section: &'a Section, all: &'a [Section]) -> Vec<&'a SectionLine> {
    let defaults = section.defaults.map_or(&[][..], |number| &all[number].lines[..]);
    defaults.iter().chain(&section.lines).collect()
}

/// Lines with syntax errors get a note.
pub(super) fn read(source: &str, notes: &mut Notes) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut latest_defaults = None;
    let mut blocks = ConditionalBlocks::default();
    for (index, text) in source.lines().enumerate() {
        let number = index + 1;
        let words = match words(text) {
            Ok(words) => words,
            Err(reason) => {
                notes.note(&Location::line(number), reason);
                continue;
            }
        };
        let Some(first) = words.first() else { continue };
        if blocks.skip(&words, &Location::line(number), notes) {
            continue;
        }
        if SECTIONS.contains(&first.as_str()) {
            let from = words.iter().position(|word| word == "from").and_then(|at| words.get(at + 1));
            let named = |name: &String| sections.iter().position(|one| one.kind == "defaults" && one.name == *name);
            let defaults = from.and_then(named).or(latest_defaults);
            if first == "defaults" {
                latest_defaults = Some(sections.len());
            }
            let (kind, name) = (first.clone(), words.get(1).cloned().unwrap_or_default());
            sections.push(Section { kind, name, header: SectionLine { number, words }, lines: Vec::new(), defaults });
        } else if let Some(section) = sections.last_mut() {
            section.lines.push(SectionLine { number, words });
        } else {
            let meant = did_you_mean(&nearest(first, SECTIONS)).filter(|_| !keywords::is_known(first));
            let meant = meant.map_or(String::new(), |meant| format!("; {meant}"));
            notes.note(&Location::line(number), format!("not inside a section{meant}"));
        }
    }
    sections
}

/// As HAProxy splits a line: with quotes, escapes and comments.
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
                // Before any other character, as in regular expressions, the backslash is literal.
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
