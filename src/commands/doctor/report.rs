//! What was found, for people and for programs.

use std::fmt::{self, Display, Write as _};
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::commands::printable;
use crate::logging::supports_color;

/// One step, of one name or address.
#[derive(Debug)]
pub(super) struct Check {
    step: &'static str,
    subject: String,
    mark: Mark,
    /// `None`: it follows from what was seen already.
    took: Option<Duration>,
    says: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Ok,
    /// The operator should know, and it may be meant so.
    Note,
    Failed,
}

impl Check {
    pub(super) fn new(mark: Mark, step: &'static str, subject: impl Display, says: impl Into<String>) -> Self {
        Self { step, subject: printable(&subject.to_string()), mark, took: None, says: printable(&says.into()) }
    }

    pub(super) fn since(self, begun: Instant) -> Self {
        Self { took: Some(begun.elapsed()), ..self }
    }
}

/// All of a route's checks, or of what is no route.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) name: String,
    /// Which of the names that it takes.
    pub(super) asked: Option<String>,
    pub(super) checks: Vec<Check>,
}

impl Report {
    pub(super) fn json(&self) -> Value {
        let check = |Check { step, subject, mark, took, says }: &Check| {
            let took_ms = took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            json!({"step": step, "subject": subject, "result": mark.label(), "took_ms": took_ms, "says": says})
        };
        json!({"name": self.name, "asked": self.asked, "checks": self.checks.iter().map(check).collect::<Vec<_>>()})
    }

    pub(super) fn text(&self, style: Style) -> String {
        let width = self.checks.iter().map(|check| check.subject.len()).max().unwrap_or(0);
        let asked = self.asked.as_ref().map_or(String::new(), |name| format!(", asked for {name}"));
        let mut text = format!("{}{asked}\n", self.name);
        for Check { step, subject, mark, took, says } in &self.checks {
            let mark = style.mark(*mark);
            let took = took.map_or(String::new(), |took| match took.as_millis() {
                0 => " (under 1 ms)".into(),
                ms => format!(" ({ms} ms)"),
            });
            let _ = writeln!(text, "  {mark} {step:<8}  {subject:<width$}  {says}{took}");
        }
        text.push('\n');
        text
    }
}

impl Mark {
    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Failed => "failed",
        }
    }
}

/// Signs where people look, words elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    has_signs: bool,
    is_colored: bool,
}

impl Style {
    pub(super) fn of_stdout() -> Self {
        Self { has_signs: stdout().is_terminal(), is_colored: supports_color(&stdout()) }
    }

    fn mark(self, mark: Mark) -> String {
        let (word, sign, color) = match mark {
            Mark::Ok => ("ok", '✓', 32),
            Mark::Note => ("note", '!', 33),
            Mark::Failed => ("FAILED", '✗', 31),
        };
        match (self.has_signs, self.is_colored) {
            (false, _) => format!("{word:<6}"),
            (true, false) => sign.into(),
            (true, true) => format!("\x1b[{color}m{sign}\x1b[0m"),
        }
    }
}

/// How many there were of each.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) routes: usize,
    checks: usize,
    notes: usize,
    failures: usize,
}

impl Tally {
    pub(super) fn add(&mut self, report: &Report) {
        let count = |mark| report.checks.iter().filter(|check| check.mark == mark).count();
        self.checks += report.checks.len();
        self.notes += count(Mark::Note);
        self.failures += count(Mark::Failed);
    }

    pub(super) fn is_well(&self) -> bool {
        self.failures == 0
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { routes, checks, notes, failures } = self;
        write!(f, "routes {routes}, checks {checks}, failed {failures}, notes {notes}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_signs_and_no_escapes_of_others() {
        let check = |mark, says| Check::new(mark, "names", "a.example", says);
        let checks = vec![check(Mark::Ok, "well"), check(Mark::Failed, "carries \x1b[2J")];
        let report = Report { name: "a".into(), asked: None, checks };
        let text = report.text(Style { has_signs: true, is_colored: false });
        assert_eq!(text, "a\n  ✓ names     a.example  well\n  ✗ names     a.example  carries \\u{1b}[2J\n\n");
        let colored = report.text(Style { has_signs: true, is_colored: true });
        assert!(colored.contains("\x1b[31m✗\x1b[0m names"), "{colored}");
        let words = report.text(Style { has_signs: false, is_colored: false });
        assert!(words.contains("  ok     names") && words.contains("  FAILED names"), "{words}");
    }
}
