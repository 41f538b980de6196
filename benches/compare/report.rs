//! Figures as text, and those of [`crate::cost`] as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cost::{Subject, Work};
use crate::load::Attempt;
use crate::proxy::Program;

/// In milliseconds; the 100th is the longest.
pub fn percentile(durations: &[Duration], percent: usize) -> f64 {
    let mut sorted = durations.to_vec();
    sorted.sort();
    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(index).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1e3)
}

pub fn answered(attempts: &[Attempt]) -> Vec<Duration> {
    attempts.iter().filter_map(|attempt| attempt.result.as_ref().ok().copied()).collect()
}

pub fn failures(attempts: &[Attempt]) -> Vec<&String> {
    attempts.iter().filter_map(|attempt| attempt.result.as_ref().err()).collect()
}

/// How many failed, and how long the others took.
pub fn summary(attempts: &[Attempt]) -> String {
    let (took, failed, count) = (answered(attempts), failures(attempts).len(), attempts.len());
    // The 95 % confidence limit for a rate of which nothing was observed.
    let bound = if failed == 0 { format!(" (rate below {:.6})", 3.0 / count as f64) } else { String::new() };
    let [p50, p99, longest] = [50, 99, 100].map(|percent| percentile(&took, percent));
    format!("{failed} of {count} failed{bound}; p50 {p50:.2} ms, p99 {p99:.2} ms, longest {longest:.1} ms")
}

/// After how long streams ended, of so many.
pub fn ends(after: &[Duration], of: usize) -> String {
    let [first, last] = [0, 100].map(|percent| percentile(after, percent) / 1e3);
    if after.is_empty() {
        "none ended".into()
    } else {
        format!("{} of {of} ended after {first:.1} to {last:.1} s", after.len())
    }
}

/// A line below the name of a proxy.
pub fn line(name: &str, text: impl fmt::Display) {
    println!("{name:<10} {text}");
}

/// One turn of one proxy.
pub struct Cell {
    /// CPU or memory per unit.
    pub cost: Option<f64>,
    /// Name, value and unit.
    pub figures: Vec<(&'static str, f64, &'static str)>,
}

impl Cell {
    fn figure(&self, name: &str) -> f64 {
        self.figures.iter().find(|(figure, ..)| *figure == name).unwrap().1
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10.3}", self.cost.unwrap_or(f64::NAN))?;
        self.figures.iter().try_for_each(|(name, value, unit)| write!(f, "  {name} {value:.0} {unit}"))
    }
}

/// For each kind of work, the rounds of each subject.
#[derive(Default)]
pub struct Table(Vec<(Work, Vec<Row>)>);

type Row = (Subject, Vec<Cell>);

impl Table {
    pub fn add(&mut self, work: Work, subject: &Subject, cell: Cell) {
        if self.0.last().is_none_or(|(last, _)| *last != work) {
            self.0.push((work, Vec::new()));
        }
        let rows = &mut self.0.last_mut().unwrap().1;
        match rows.iter_mut().find(|(other, _)| other == subject) {
            Some((_, rounds)) => rounds.push(cell),
            None => rows.push((subject.clone(), vec![cell])),
        }
    }

    /// Medians with the spread. A ratio is the median of the rounds' ratios to the better of HAProxy's settings with
    /// the same logging; what is added to the latency, the median of the rounds' differences to no proxy.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (work, rows) in &self.0 {
            writeln!(text, "\n{}: {}", work.name(), work.unit()).unwrap();
            let direct = rows.iter().find(|(subject, _)| subject.program.is_none());
            for (subject, rounds) in rows {
                write!(text, "  {:<28}", subject.name()).unwrap();
                let is_haproxy = |other: &Subject| matches!(other.program, Some(Program::Haproxy { .. }));
                let best = |round: usize| {
                    let haproxies = rows.iter().filter(|(other, _)| is_haproxy(other) && other.log == subject.log);
                    haproxies.filter_map(|(_, rounds)| rounds.get(round)?.cost).fold(f64::INFINITY, f64::min)
                };
                if let Some(costs) = rounds.iter().map(|cell| cell.cost).collect::<Option<Vec<_>>>() {
                    let (low, middle, high) = spread(costs.iter().copied());
                    let (_, ratio, _) = spread(costs.iter().enumerate().map(|(round, cost)| cost / best(round)));
                    write!(text, " {middle:>9.3}  ({low:.3} to {high:.3})  x{ratio:.2}").unwrap();
                }
                for (name, _, unit) in &rounds[0].figures {
                    let (_, middle, _) = spread(rounds.iter().map(|cell| cell.figure(name)));
                    write!(text, "  {name} {middle:.0} {unit}").unwrap();
                }
                if let Some((_, direct)) = direct.filter(|_| subject.program.is_some()) {
                    let pairs = rounds.iter().zip(direct);
                    let (_, added, _) = spread(pairs.map(|(with, without)| with.figure("p50") - without.figure("p50")));
                    write!(text, " (added {added:.0} µs)").unwrap();
                }
                text.push('\n');
            }
        }
        text
    }

    pub fn json(&self) -> String {
        let rounds = |(subject, rounds): &Row| {
            let rounds = rounds.iter().map(|cell| {
                let figures = cell.figures.iter().map(|(name, value, _)| (*name, *value));
                json!({ "cost": cell.cost, "figures": figures.collect::<BTreeMap<_, _>>() })
            });
            (subject.name(), rounds.collect::<Vec<_>>())
        };
        let works = self.0.iter().map(|(work, rows)| {
            let rounds: BTreeMap<_, _> = rows.iter().map(rounds).collect();
            json!({ "work": work.name(), "unit": work.unit(), "rounds": rounds })
        });
        Value::from_iter(works).to_string()
    }
}

/// The least, the median and the most.
pub fn spread(values: impl Iterator<Item = f64>) -> (f64, f64, f64) {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1])
}
