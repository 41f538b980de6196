//! The results of checks, as text and as JSON.

use std::fmt::{self, Display, Write as _};
use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::commands::printable;
use crate::logging::supports_color;
use crate::text::units::counted;

/// The result of one step, for one hostname or address.
#[derive(Debug)]
pub(super) struct CheckResult {
    step: &'static str,
    subject: String,
    verdict: Verdict,
    /// `None`: the result follows from an earlier step.
    took: Option<Duration>,
    says: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Ok,
    /// It may be intended.
    Note,
    Failed,
}

impl CheckResult {
    pub(super) fn new(verdict: Verdict, step: &'static str, subject: impl Display, says: impl Into<String>) -> Self {
        Self { step, subject: printable(&subject.to_string()), verdict, took: None, says: printable(&says.into()) }
    }

    /// A failure that may be intended.
    pub(super) fn excused(self) -> Self {
        Self { verdict: if self.verdict == Verdict::Failed { Verdict::Note } else { self.verdict }, ..self }
    }

    pub(super) fn since(self, begun: Instant) -> Self {
        Self { took: Some(begun.elapsed()), ..self }
    }
}

/// The results for a route, or for the running snigate.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) name: String,
    /// Only this hostname was checked.
    pub(super) hostname: Option<String>,
    pub(super) results: Vec<CheckResult>,
}

impl Report {
    pub(super) fn json(&self) -> Value {
        let result = |CheckResult { step, subject, verdict, took, says }: &CheckResult| {
            let took_ms = took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            json!({"step": step, "subject": subject, "result": verdict.label(), "took_ms": took_ms, "says": says})
        };
        let results: Vec<Value> = self.results.iter().map(result).collect();
        json!({"name": self.name, "asked": self.hostname, "checks": results})
    }

    pub(super) fn text(&self, style: Style) -> String {
        let width = self.results.iter().map(|result| result.subject.len()).max().unwrap_or(0);
        let hostname = self.hostname.as_ref().map_or(String::new(), |name| format!(", SNI {name}"));
        let mut text = format!("{}{hostname}\n", self.name);
        for CheckResult { step, subject, verdict, took, says } in &self.results {
            let mark = style.mark(*verdict);
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

impl Verdict {
    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Failed => "failed",
        }
    }
}

/// Symbols on a terminal, words elsewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    has_symbols: bool,
    is_colored: bool,
}

impl Style {
    pub(super) fn of_stdout() -> Self {
        Self { has_symbols: stdout().is_terminal(), is_colored: supports_color(&stdout()) }
    }

    fn mark(self, verdict: Verdict) -> String {
        let (word, symbol, color) = match verdict {
            Verdict::Ok => ("ok", '✓', 32),
            Verdict::Note => ("note", '!', 33),
            Verdict::Failed => ("FAILED", '✗', 31),
        };
        match (self.has_symbols, self.is_colored) {
            (false, _) => format!("{word:<6}"),
            (true, false) => symbol.into(),
            (true, true) => format!("\x1b[{color}m{symbol}\x1b[0m"),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Summary {
    pub(super) routes: usize,
    checks: usize,
    failed: usize,
    notes: usize,
}

impl Summary {
    pub(super) fn add(&mut self, report: &Report) {
        let count = |verdict| report.results.iter().filter(|result| result.verdict == verdict).count();
        self.checks += report.results.len();
        self.failed += count(Verdict::Failed);
        self.notes += count(Verdict::Note);
    }

    pub(super) fn is_ok(&self) -> bool {
        self.failed == 0
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { routes, checks, failed, notes } = self;
        let (routes, checks, notes) = (counted(*routes, "route"), counted(*checks, "check"), counted(*notes, "note"));
        write!(f, "{routes}, {checks}: {failed} failed, {notes}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_shows_symbols_and_escapes_control_characters() {
        let result = |verdict, says| CheckResult::new(verdict, "names", "a.example", says);
        let results = vec![result(Verdict::Ok, "valid"), result(Verdict::Failed, "name \x1b[2J")];
        let report = Report { name: "a".into(), hostname: None, results };
        let text = report.text(Style { has_symbols: true, is_colored: false });
        assert_eq!(text, "a\n  ✓ names     a.example  valid\n  ✗ names     a.example  name \\u{1b}[2J\n\n");
        let colored = report.text(Style { has_symbols: true, is_colored: true });
        assert!(colored.contains("\x1b[31m✗\x1b[0m names"), "{colored}");
        let words = report.text(Style { has_symbols: false, is_colored: false });
        assert!(words.contains("  ok     names") && words.contains("  FAILED names"), "{words}");
        let mut summary = Summary { routes: 3, ..Summary::default() };
        summary.add(&report);
        assert_eq!(summary.to_string(), "3 routes, 2 checks: 1 failed, 0 notes");
    }
}
