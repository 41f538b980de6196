//! What became of each line of the source: translated, not needed, or explained in a note.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::rc::Rc;

use crate::commands::printable;

/// Characters of a source line that are repeated above its notes.
const MAX_QUOTED: usize = 100;
const WIDTH: usize = 116;
/// For lines whose neighbours' notes already say why.
pub(super) const NOT_TRANSLATED: &str = "not translated";

/// Lines of the source, or one line of a file that it includes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Location {
    /// `None`: the source itself.
    file: Option<Rc<str>>,
    first: usize,
    last: usize,
}

impl Location {
    pub(super) fn line(number: usize) -> Self {
        Self { file: None, first: number, last: number }
    }

    pub(super) fn lines(range: &RangeInclusive<usize>) -> Self {
        Self { file: None, first: *range.start(), last: *range.end() }
    }

    pub(super) fn in_file(file: &Rc<str>, number: usize) -> Self {
        Self { file: Some(Rc::clone(file)), first: number, last: number }
    }

    /// None of other files.
    fn source_lines(&self) -> impl Iterator<Item = usize> {
        self.file.is_none().then_some(self.first..=self.last).into_iter().flatten()
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}, ", printable(file))?;
        }
        if self.first == self.last {
            write!(f, "line {}", self.first)
        } else {
            write!(f, "lines {}-{}", self.first, self.last)
        }
    }
}

/// The most serious first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Severity {
    /// snigate admits clients that the source rejects.
    AdmitsMore,
    /// snigate rejects clients that the source serves, or routes them to another upstream.
    RejectsOrReroutes,
    Info,
}

impl Severity {
    fn is_serious(self) -> bool {
        self <= Self::RejectsOrReroutes
    }
}

struct Note {
    severity: Severity,
    location: Location,
    reason: String,
}

pub(super) struct Notes {
    lines: Vec<String>,
    translated: BTreeSet<usize>,
    not_needed: BTreeSet<Location>,
    noted: HashSet<usize>,
    all: Vec<Note>,
    known: HashSet<(Severity, Location, String)>,
}

impl Notes {
    pub(super) fn new(source: &str) -> Self {
        Self {
            lines: source.lines().map(|line| shortened(line.trim())).collect(),
            translated: BTreeSet::new(),
            not_needed: BTreeSet::new(),
            noted: HashSet::new(),
            all: Vec::new(),
            known: HashSet::new(),
        }
    }

    pub(super) fn translated(&mut self, location: &Location) {
        self.translated.extend(location.source_lines());
    }

    /// For settings such as logging and buffers, which have no influence on where clients are routed.
    pub(super) fn not_needed(&mut self, location: &Location) {
        self.noted.extend(location.source_lines());
        self.not_needed.insert(location.clone());
    }

    /// For what is not translated, or only in part, or behaves differently.
    pub(super) fn note(&mut self, location: &Location, reason: impl Into<String>) {
        self.add(Severity::Info, location, reason.into());
    }

    pub(super) fn admits_more(&mut self, location: &Location, reason: impl Into<String>) {
        self.add(Severity::AdmitsMore, location, reason.into());
    }

    pub(super) fn rejects_or_reroutes(&mut self, location: &Location, reason: impl Into<String>) {
        self.add(Severity::RejectsOrReroutes, location, reason.into());
    }

    pub(super) fn add(&mut self, severity: Severity, location: &Location, reason: String) {
        if self.known.insert((severity, location.clone(), reason.clone())) {
            self.noted.extend(location.source_lines());
            self.all.push(Note { severity, location: location.clone(), reason });
        }
    }

    pub(super) fn is_translated(&self, line: usize) -> bool {
        self.translated.contains(&line)
    }

    /// Lines of the source with neither translation nor note; empty lines and comments need none.
    pub(super) fn unexplained(&self) -> Vec<usize> {
        (1..=self.lines.len()).filter(|number| self.is_unexplained(*number)).collect()
    }

    pub(super) fn is_unexplained(&self, number: usize) -> bool {
        let text = number.checked_sub(1).and_then(|index| self.lines.get(index));
        text.is_some_and(|text| !text.is_empty() && !text.starts_with('#'))
            && !self.translated.contains(&number)
            && !self.noted.contains(&number)
    }

    /// The numbers of serious notes and of all others.
    pub(super) fn counts(&self) -> (usize, usize) {
        let serious = self.all.iter().filter(|note| note.severity.is_serious()).count();
        (serious, self.all.len() - serious)
    }

    /// For an error message: all serious notes, and others up to `count`.
    pub(super) fn first_notes(&self, count: usize) -> String {
        let mut shown: Vec<&Note> = self.all.iter().filter(|note| note.reason != NOT_TRANSLATED).collect();
        shown.sort_by_key(|note| (!note.severity.is_serious(), &note.location));
        let serious = shown.iter().filter(|note| note.severity.is_serious()).count();
        let count = count.max(serious);
        let mut text = String::new();
        for Note { location, reason, .. } in shown.iter().take(count) {
            let _ = write!(text, "\n  {location}: {}: {}", self.quoted(location), printable(reason));
        }
        match shown.len().saturating_sub(count) {
            0 => {}
            more => {
                let _ = write!(text, "\n  and {more} more");
            }
        }
        text
    }

    /// The serious notes, as comments.
    pub(super) fn write_serious(&self, text: &mut String) {
        for (severity, title) in [
            (Severity::AdmitsMore, "Clients that the source rejects and snigate admits"),
            (
                Severity::RejectsOrReroutes,
                "Clients that snigate rejects, or routes to another upstream than the source",
            ),
        ] {
            self.write_section(text, severity, title);
        }
    }

    /// What became of all lines, as comments.
    pub(super) fn write_summary(&self, text: &mut String) {
        let _ = writeln!(text, "\n# Translated lines: {}.", ranges(&self.translated));
        self.write_section(text, Severity::Info, "Not translated, translated in part, or different in snigate");
        let lines: BTreeSet<usize> = self.not_needed.iter().flat_map(Location::source_lines).collect();
        let in_files = self.not_needed.iter().filter(|location| location.file.is_some()).count();
        if !lines.is_empty() {
            let more = if in_files > 0 { format!(", and {in_files} in included files") } else { String::new() };
            let lines = ranges(&lines);
            let _ = writeln!(text, "#\n# Not needed in snigate (logging, workers, buffers and so on): {lines}{more}.");
        }
    }

    fn write_section(&self, text: &mut String, severity: Severity, title: &str) {
        let mut notes: Vec<&Note> = self.all.iter().filter(|note| note.severity == severity).collect();
        if notes.is_empty() {
            return;
        }
        notes.sort_by_key(|note| &note.location);
        let _ = writeln!(text, "#\n# {title}:");
        let mut previous = None;
        for Note { location, reason, .. } in notes {
            if previous.replace(location) != Some(location) {
                let line = format!("# {location}: {}", self.quoted(location));
                let _ = writeln!(text, "#\n{}", line.trim_end());
            }
            write_wrapped(text, &printable(reason));
        }
    }

    fn quoted(&self, location: &Location) -> &str {
        let first = location.source_lines().next().and_then(|number| number.checked_sub(1));
        first.and_then(|index| self.lines.get(index)).map_or("", String::as_str)
    }
}

fn shortened(line: &str) -> String {
    match line.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}...", printable(&line[..end])),
        None => printable(line),
    }
}

fn ranges(numbers: &BTreeSet<usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => runs.push((*number, *number)),
        }
    }
    let run = |(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

fn write_wrapped(text: &mut String, reason: &str) {
    const INDENT: &str = "#     ";
    let mut column = 0;
    for word in reason.split(' ') {
        let length = word.chars().count();
        if column == 0 || column + 1 + length > WIDTH - INDENT.len() {
            text.push_str(if column == 0 { INDENT } else { "\n#     " });
            column = 0;
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}
