//! What has become of each line of the source: nothing goes without a word.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::rc::Rc;

use crate::commands::printable;

/// More of a line than this is not repeated.
const SHOWN: usize = 100;
const WIDTH: usize = 116;
/// What a reason says of a line that has nothing to do with where clients are led.
const NOT_NEEDED: &str = "not needed";
/// What follows from other lines.
pub(super) const NOTHING_CARRIED: &str = "nothing of it is carried over";

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    /// `None`: the source itself.
    file: Option<Rc<str>>,
    first: usize,
    last: usize,
}

impl Place {
    pub(super) fn line(number: usize) -> Self {
        Self { file: None, first: number, last: number }
    }

    pub(super) fn lines(range: &RangeInclusive<usize>) -> Self {
        Self { file: None, first: *range.start(), last: *range.end() }
    }

    /// In a file that the source names.
    pub(super) fn elsewhere(file: &Rc<str>, number: usize) -> Self {
        Self { file: Some(Rc::clone(file)), first: number, last: number }
    }

    fn of(&self) -> RangeInclusive<usize> {
        self.first..=self.last
    }
}

impl std::fmt::Display for Place {
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

/// How much a note matters; the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    /// Clients may be admitted that were not.
    Wider,
    /// Clients are refused that were not, or routed to something else.
    Narrower,
    Ordinary,
    /// It has nothing to do with where clients are routed.
    NotNeeded,
}

impl Grade {
    fn is_grave(self) -> bool {
        self <= Self::Narrower
    }
}

struct Note {
    grade: Grade,
    place: Place,
    reason: String,
}

pub(super) struct Ledger {
    lines: Vec<String>,
    carried: BTreeSet<usize>,
    noted: HashSet<usize>,
    notes: Vec<Note>,
    known: HashSet<(Place, String)>,
}

impl Ledger {
    pub(super) fn new(source: &str) -> Self {
        let lines = source.lines().map(|line| shortened(line.trim())).collect();
        let (carried, noted, known) = (BTreeSet::new(), HashSet::new(), HashSet::new());
        Self { lines, carried, noted, notes: Vec::new(), known }
    }

    /// It is represented in the result.
    pub(super) fn carry(&mut self, place: &Place) {
        if place.file.is_none() {
            self.carried.extend(place.of());
        }
    }

    /// It is not, or not entirely, or means something else there.
    pub(super) fn note(&mut self, place: &Place, reason: impl Into<String>) {
        let reason = reason.into();
        let is_needed = !reason.contains(NOT_NEEDED) || reason.contains("not needed, or");
        self.add(if is_needed { Grade::Ordinary } else { Grade::NotNeeded }, place, reason);
    }

    /// Clients may be admitted here that the source refuses.
    pub(super) fn wider(&mut self, place: &Place, reason: impl Into<String>) {
        self.add(Grade::Wider, place, reason.into());
    }

    /// Clients are refused here, or routed to something else, that the source serves.
    pub(super) fn narrower(&mut self, place: &Place, reason: impl Into<String>) {
        self.add(Grade::Narrower, place, reason.into());
    }

    fn add(&mut self, grade: Grade, place: &Place, reason: String) {
        if self.known.insert((place.clone(), reason.clone())) {
            if place.file.is_none() {
                self.noted.extend(place.of());
            }
            self.notes.push(Note { grade, place: place.clone(), reason });
        }
    }

    pub(super) fn is_carried(&self, line: usize) -> bool {
        self.carried.contains(&line)
    }

    /// Lines with something in them of which nothing has been said.
    pub(super) fn unseen(&self, range: RangeInclusive<usize>) -> Vec<usize> {
        let says_something = |number: &usize| {
            let text = number.checked_sub(1).and_then(|index| self.lines.get(index));
            text.is_some_and(|text| !text.is_empty() && !text.starts_with('#'))
        };
        let is_new = |number: &usize| !self.carried.contains(number) && !self.noted.contains(number);
        range.filter(says_something).filter(is_new).collect()
    }

    pub(super) fn all(&self) -> RangeInclusive<usize> {
        1..=self.lines.len()
    }

    /// How many there are on clients that are not served as before, and others that are worth reading.
    pub(super) fn counts(&self) -> (usize, usize) {
        let grave = self.notes.iter().filter(|note| note.grade.is_grave()).count();
        let worth_reading = self.notes.iter().filter(|note| note.grade != Grade::NotNeeded).count();
        (grave, worth_reading - grave)
    }

    /// The notes alone, for an error: at most so many, and none on what is not needed anyway.
    pub(super) fn first_notes(&self, count: usize) -> String {
        let is_told = |note: &&Note| note.grade != Grade::NotNeeded && note.reason != NOTHING_CARRIED;
        let mut told: Vec<&Note> = self.notes.iter().filter(is_told).collect();
        told.sort_by_key(|note| (!note.grade.is_grave(), &note.place));
        let grave = told.iter().filter(|note| note.grade.is_grave()).count();
        // What may be wrong for clients is never cut off.
        let count = count.max(grave);
        let mut text = String::new();
        for Note { place, reason, .. } in told.iter().take(count) {
            let _ = write!(text, "\n  {place}: {}: {}", self.text(place), printable(reason));
        }
        match told.len().saturating_sub(count) {
            0 => {}
            more => {
                let _ = write!(text, "\n  and {more} more");
            }
        }
        text
    }

    /// Those on clients that are not served as before, as comments.
    pub(super) fn write_grave(&mut self, text: &mut String) {
        self.notes.sort_by(|one, other| (one.grade, &one.place).cmp(&(other.grade, &other.place)));
        for (grade, title) in [
            (Grade::Wider, "Clients that could not connect before and can now"),
            (Grade::Narrower, "Clients that are refused now, or routed to something else"),
        ] {
            let notes: Vec<&Note> = self.notes.iter().filter(|note| note.grade == grade).collect();
            if !notes.is_empty() {
                let _ = writeln!(text, "#\n# {title}:");
                self.write_notes(text, &notes);
            }
        }
    }

    /// What else is to be said, as comments.
    pub(super) fn write(&self, text: &mut String) {
        let _ = writeln!(text, "\n# Lines that are carried over: {}.", ranges(&self.carried));
        let of = |grade| self.notes.iter().filter(move |note| note.grade == grade);
        let mut ordinary: Vec<&Note> = of(Grade::Ordinary).collect();
        if !ordinary.is_empty() {
            ordinary.sort_by_key(|note| &note.place);
            text.push_str("#\n# What is not, or not entirely, or means something else here:\n");
            self.write_notes(text, &ordinary);
        }
        let elsewhere = of(Grade::NotNeeded).filter(|note| note.place.file.is_some()).count();
        let lines: BTreeSet<usize> =
            of(Grade::NotNeeded).filter(|note| note.place.file.is_none()).flat_map(|note| note.place.of()).collect();
        if !lines.is_empty() {
            let more = if elsewhere > 0 { format!(", and {elsewhere} in files that it names") } else { String::new() };
            let _ =
                writeln!(text, "#\n# Not needed here (logs, workers, buffers and the like): {}{more}.", ranges(&lines));
        }
    }

    fn write_notes(&self, text: &mut String, notes: &[&Note]) {
        let mut before = None;
        for Note { place, reason, .. } in notes {
            if before.replace(place) != Some(place) {
                let line = format!("# {place}: {}", self.text(place));
                let _ = writeln!(text, "#\n{}", line.trim_end());
            }
            wrapped(text, &printable(reason));
        }
    }

    fn text(&self, place: &Place) -> &str {
        match &place.file {
            None => place.first.checked_sub(1).and_then(|index| self.lines.get(index)).map_or("", String::as_str),
            Some(_) => "",
        }
    }
}

fn shortened(line: &str) -> String {
    match line.char_indices().nth(SHOWN) {
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

fn wrapped(text: &mut String, reason: &str) {
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
