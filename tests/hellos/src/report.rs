//! What a run says: a table for people, Markdown for pages, JSON for programs.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use crate::attempt::{End, Observed};
use crate::corpus::{Hello, Place};

/// How what was observed compares with the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// It is where it may be.
    Right,
    /// It was refused and should have been routed.
    Blocked,
    /// It should have been refused, and was sent to the backend of its one name or of all other names.
    Passed,
    /// It reached a backend that is not its own, or its bytes were altered.
    Hole,
}

impl Verdict {
    pub(crate) const ALL: [Self; 4] = [Self::Right, Self::Blocked, Self::Passed, Self::Hole];

    pub(crate) fn of(hello: &Hello<'_>, observed: &Observed) -> Self {
        if observed.altered.is_some() {
            return Self::Hole;
        }
        match observed.place {
            place if hello.right.contains(&place) => Self::Right,
            Place::Refused => Self::Blocked,
            place if hello.harmless.contains(&place) => Self::Passed,
            Place::Other if hello.right.contains(&Place::Refused) => Self::Passed,
            Place::A | Place::B | Place::Other => Self::Hole,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Right => "right",
            Self::Blocked => "blocked",
            Self::Passed => "passed",
            Self::Hole => "hole",
        })
    }
}

/// The results of each hello, one per router.
pub(crate) struct Report<'a> {
    pub(crate) routers: Vec<&'a str>,
    pub(crate) rows: Vec<(&'a Hello<'a>, Vec<Observed>)>,
}

impl Report<'_> {
    pub(crate) fn is_all_right(&self) -> bool {
        self.rows.iter().all(|(hello, row)| row.iter().all(|observed| Verdict::of(hello, observed) == Verdict::Right))
    }

    /// How many hellos had each verdict, per router.
    fn counts(&self, router: usize) -> BTreeMap<Verdict, usize> {
        let mut counts: BTreeMap<_, _> = Verdict::ALL.into_iter().map(|verdict| (verdict, 0)).collect();
        for (hello, row) in &self.rows {
            *counts.entry(Verdict::of(hello, &row[router])).or_default() += 1;
        }
        counts
    }

    /// A line per hello that some router got wrong, with the sentence that decides, and a summary.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (hello, row) in &self.rows {
            let wrong = self.routers.iter().zip(row).filter(|(_, observed)| !is_right(hello, observed));
            let wrong: Vec<String> =
                wrong.map(|(router, observed)| format!("{router}: {}", cell(hello, observed))).collect();
            if !wrong.is_empty() {
                let Hello { name, rule, .. } = hello;
                let _ = writeln!(text, "{name}: {}; right: {}", wrong.join("; "), places(hello));
                let _ = writeln!(text, "    {}: {}", rule.source, rule.says);
            }
        }
        if !text.is_empty() {
            text.push('\n');
        }
        let width = self.routers.iter().map(|router| router.len()).max().unwrap_or_default();
        for (number, router) in self.routers.iter().enumerate() {
            let counts = self.counts(number).into_iter().map(|(verdict, count)| format!("{count} {verdict}"));
            let _ = writeln!(text, "{router:width$}  {}", counts.collect::<Vec<_>>().join(", "));
        }
        text
    }

    /// A table of all hellos, what is not right in bold.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("| hello | from | right | {} |\n", self.routers.join(" | "));
        let _ = writeln!(text, "|---|---|---|{}", "---|".repeat(self.routers.len()));
        for (hello, row) in &self.rows {
            let cells = row.iter().map(|observed| match cell(hello, observed) {
                cell if is_right(hello, observed) => cell,
                cell => format!("**{cell}**"),
            });
            let cells = cells.collect::<Vec<_>>().join(" | ");
            let _ = writeln!(text, "| {} | {} | {} | {cells} |", hello.name, hello.from, places(hello));
        }
        for verdict in Verdict::ALL {
            let counts = (0..self.routers.len()).map(|router| self.counts(router)[&verdict].to_string());
            let _ = writeln!(text, "| {verdict} | | | {} |", counts.collect::<Vec<_>>().join(" | "));
        }
        text
    }

    /// One JSON object per hello and router, on a line each.
    pub(crate) fn json(&self) -> String {
        let mut text = String::new();
        for (hello, row) in &self.rows {
            for (router, observed) in self.routers.iter().zip(row) {
                let right: Vec<String> = hello.right.iter().map(|place| quoted(&place.to_string())).collect();
                let altered = observed.altered.as_deref().map_or("null".into(), quoted);
                let _ = writeln!(
                    text,
                    r#"{{"router":{},"hello":{},"from":{},"right":[{}],"observed":{},"end":{},"altered":{altered},"verdict":{},"rule":{}}}"#,
                    quoted(router),
                    quoted(hello.name),
                    quoted(hello.from),
                    right.join(","),
                    quoted(&observed.place.to_string()),
                    quoted(&observed.end.text()),
                    quoted(&Verdict::of(hello, observed).to_string()),
                    quoted(hello.rule.source),
                );
            }
        }
        text
    }
}

fn is_right(hello: &Hello<'_>, observed: &Observed) -> bool {
    Verdict::of(hello, observed) == Verdict::Right
}

fn places(hello: &Hello<'_>) -> String {
    hello.right.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// `a`, `refused (alert 50)`, `hole: b`.
fn cell(hello: &Hello<'_>, observed: &Observed) -> String {
    let place = match (observed.place, observed.end) {
        (Place::Refused, end) => format!("refused ({})", end.text()),
        (place, End::Answered) => place.to_string(),
        (place, end) => format!("{place} ({})", end.text()),
    };
    let place = match &observed.altered {
        Some(altered) => format!("{place}, altered: {altered}"),
        None => place,
    };
    match Verdict::of(hello, observed) {
        Verdict::Right => place,
        verdict => format!("{verdict}: {place}"),
    }
}

/// As a JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            control if control < ' ' => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
