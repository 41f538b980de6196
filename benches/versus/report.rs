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
    cost: f64,
    p50: Option<Duration>,
    p99: Option<Duration>,
    kernel: Option<f64>,
}

impl Cell {
    pub fn busy(cpu: Duration, units: f64, latencies: &[Duration]) -> Self {
        let mut sorted = latencies.to_vec();
        sorted.sort();
        let at = |percent: usize| sorted.get(sorted.len() * percent / 100).copied();
        Self { cost: cpu.as_secs_f64() / units, p50: at(50), p99: at(99), kernel: None }
    }

    pub fn idle(user: f64, kernel: f64) -> Self {
        Self { cost: user, p50: None, p99: None, kernel: Some(kernel) }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10.3}", self.cost)?;
        if let (Some(p50), Some(p99)) = (self.p50, self.p99) {
            write!(f, "   p50 {:>8.1} µs   p99 {:>8.1} µs", p50.as_secs_f64() * 1e6, p99.as_secs_f64() * 1e6)?;
        }
        if let Some(kernel) = self.kernel {
            write!(f, "   kernel {kernel:>8.0} B")?;
        }
        Ok(())
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

    /// Medians with the spread; the ratio is the median of the rounds' ratios to HAProxy's better setting.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (work, cells) in &self.works {
            writeln!(text, "\n{}: {}", work.name(), work.unit()).unwrap();
            for kind in &self.kinds {
                let Some(rounds) = cells.get(&kind.name()) else { continue };
                let costs: Vec<f64> = rounds.iter().map(|cell| cell.cost).collect();
                let (low, middle, high) = spread(&costs);
                let ratios: Vec<f64> =
                    costs.iter().enumerate().map(|(round, cost)| cost / self.best_haproxy(cells, round)).collect();
                let (_, ratio, _) = spread(&ratios);
                write!(text, "  {:<28} {middle:>9.3}  ({low:.3} to {high:.3})  x{ratio:.2}", kind.name()).unwrap();
                let micros = |pick: fn(&Cell) -> Option<Duration>| {
                    let all: Vec<f64> = rounds.iter().filter_map(pick).map(|time| time.as_secs_f64() * 1e6).collect();
                    (!all.is_empty()).then(|| spread(&all).1)
                };
                if let (Some(p50), Some(p99)) = (micros(|cell| cell.p50), micros(|cell| cell.p99)) {
                    write!(text, "  p50 {p50:.0} µs, p99 {p99:.0} µs").unwrap();
                }
                let kernel: Vec<f64> = rounds.iter().filter_map(|cell| cell.kernel).collect();
                if !kernel.is_empty() {
                    write!(text, "  kernel {:.0} B", spread(&kernel).1).unwrap();
                }
                text.push('\n');
            }
        }
        text
    }

    fn best_haproxy(&self, cells: &BTreeMap<String, Vec<Cell>>, round: usize) -> f64 {
        let haproxies = self.kinds.iter().filter(|kind| kind.is_haproxy());
        let costs = haproxies.filter_map(|kind| Some(cells.get(&kind.name())?.get(round)?.cost));
        costs.fold(f64::INFINITY, f64::min)
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
                            json!({
                                "cost": cell.cost,
                                "p50_us": cell.p50.map(|time| time.as_secs_f64() * 1e6),
                                "p99_us": cell.p99.map(|time| time.as_secs_f64() * 1e6),
                                "kernel_bytes": cell.kernel,
                            })
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
