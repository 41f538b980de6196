//! Figures, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use serde_json::json;

use crate::load::Work;
use crate::proxy::Kind;

/// One slice of one proxy.
#[derive(Clone, Debug)]
pub struct Cell {
    /// CPU or memory per unit.
    cost: Option<f64>,
    figures: BTreeMap<Figure, f64>,
}

/// What is told beside the cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    P50,
    P99,
    Rate,
    Kernel,
    Again,
}

impl Figure {
    fn say(self, value: f64) -> String {
        match self {
            Self::P50 => format!("p50 {value:.0} µs"),
            Self::P99 => format!("p99 {value:.0} µs"),
            Self::Rate => format!("{value:.0}/s"),
            Self::Kernel => format!("kernel {value:.0} B"),
            Self::Again => format!("closed and opened again {value:+.0} B"),
        }
    }
}

impl Cell {
    pub fn busy(cpu: Option<Duration>, wall: Duration, units: f64, latencies: &[Duration]) -> Self {
        let mut sorted = latencies.to_vec();
        sorted.sort();
        let at = |percent: usize| sorted[sorted.len() * percent / 100].as_secs_f64() * 1e6;
        let rate = sorted.len() as f64 / wall.as_secs_f64();
        let figures = [(Figure::P50, at(50)), (Figure::P99, at(99)), (Figure::Rate, rate)].into();
        Self { cost: cpu.map(|cpu| cpu.as_secs_f64() / units), figures }
    }

    pub fn idle(user: f64, kernel: f64, again: f64) -> Self {
        Self { cost: Some(user), figures: [(Figure::Kernel, kernel), (Figure::Again, again)].into() }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cost {
            Some(cost) => write!(f, "{cost:>10.3}")?,
            None => write!(f, "{:>10}", "-")?,
        }
        self.figures.iter().try_for_each(|(figure, value)| write!(f, "  {}", figure.say(*value)))
    }
}

pub struct Table {
    kinds: Vec<Kind>,
    works: Vec<(Work, BTreeMap<String, Vec<Cell>>)>,
}

impl Table {
    pub fn new(kinds: &[Kind]) -> Self {
        Self { kinds: kinds.to_vec(), works: Vec::new() }
    }

    pub fn add(&mut self, work: &Work, kind: &Kind, cell: Cell) {
        if self.works.last().is_none_or(|(last, _)| last.name() != work.name()) {
            self.works.push((*work, BTreeMap::new()));
        }
        let (_, cells) = self.works.last_mut().unwrap();
        cells.entry(kind.name()).or_default().push(cell);
    }

    /// Medians with the spread. A ratio is the median of the rounds' ratios to the better of HAProxy's settings with
    /// the same logging; what is added to the latency, the median of the rounds' differences to no proxy.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (work, cells) in &self.works {
            writeln!(text, "\n{}: {}", work.name(), work.unit()).unwrap();
            for kind in &self.kinds {
                let Some(rounds) = cells.get(&kind.name()) else { continue };
                write!(text, "  {:<28}", kind.name()).unwrap();
                let costs: Vec<f64> = rounds.iter().filter_map(|cell| cell.cost).collect();
                if !costs.is_empty() {
                    let (low, middle, high) = spread(&costs);
                    let ratios: Vec<f64> = costs
                        .iter()
                        .enumerate()
                        .map(|(round, cost)| cost / self.best_haproxy(cells, round, kind.logs()))
                        .collect();
                    write!(text, " {middle:>9.3}  ({low:.3} to {high:.3})  x{:.2}", spread(&ratios).1).unwrap();
                }
                for figure in rounds[0].figures.keys() {
                    let values: Vec<f64> = rounds.iter().map(|cell| cell.figures[figure]).collect();
                    write!(text, "  {}", figure.say(spread(&values).1)).unwrap();
                }
                let direct = cells.get(&Kind::Direct.name()).filter(|_| !matches!(kind, Kind::Direct));
                if let Some(direct) = direct {
                    let p50 = |cell: &Cell| cell.figures[&Figure::P50];
                    let added: Vec<f64> =
                        rounds.iter().zip(direct).map(|(with, without)| p50(with) - p50(without)).collect();
                    write!(text, " (added {:.0} µs)", spread(&added).1).unwrap();
                }
                text.push('\n');
            }
        }
        text
    }

    fn best_haproxy(&self, cells: &BTreeMap<String, Vec<Cell>>, round: usize, logs: bool) -> f64 {
        let haproxies = self.kinds.iter().filter(|kind| kind.is_haproxy() && kind.logs() == logs);
        let costs = haproxies.filter_map(|kind| cells.get(&kind.name())?.get(round)?.cost);
        // Where there is none with this logging, the other will do.
        let best = costs.fold(f64::INFINITY, f64::min);
        if best.is_finite() || !logs { best } else { self.best_haproxy(cells, round, false) }
    }

    pub fn json(&self) -> String {
        let works: Vec<_> = self
            .works
            .iter()
            .map(|(work, cells)| {
                let proxies: BTreeMap<_, Vec<_>> = cells
                    .iter()
                    .map(|(name, rounds)| {
                        let rounds = rounds.iter().map(|cell| {
                            let figures: BTreeMap<String, f64> = cell
                                .figures
                                .iter()
                                .map(|(figure, value)| (format!("{figure:?}").to_lowercase(), *value))
                                .collect();
                            json!({ "cost": cell.cost, "figures": figures })
                        });
                        (name, rounds.collect())
                    })
                    .collect();
                json!({ "work": work.name(), "unit": work.unit(), "rounds": proxies })
            })
            .collect();
        json!(works).to_string()
    }
}

/// The least, the median and the most.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1])
}
