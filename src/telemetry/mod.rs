//! The record of each connection, which is counted and logged once, and the most recent rejections.

mod address;
mod counters;
mod histogram;
mod line_limit;
mod outcome;
mod recent;
mod record;

pub(crate) use self::counters::{
    Counters, Durations, LATENCY_BUCKETS, ListenerTelemetry, Reloads, RouteCounters, UNROUTED,
};
pub(crate) use self::histogram::{Distribution, Histogram};
pub(crate) use self::line_limit::LineLimit;
pub(crate) use self::outcome::{ClosedBy, Outcome, Stage};
pub(crate) use self::recent::{RecentRejection, RecentRejections};
pub(crate) use self::record::{ConnectionRecord, LogFields, Measured, Offer, PortableRecord, canonical, escape};

#[cfg(test)]
mod tests {
    use strum::VariantArray as _;

    use super::*;

    #[test]
    fn the_page_has_the_alert_and_the_level_of_each_outcome() {
        let page = include_str!("../../docs/observability.md");
        for outcome in Outcome::VARIANTS {
            let row = page.lines().find_map(|line| line.strip_prefix(&format!("| `{}` |", outcome.label()))).unwrap();
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [_, alert, level, ..] = cells[..] else { panic!("{row}") };
            let number = alert.split(' ').next().and_then(|word| word.parse().ok());
            assert_eq!(number, outcome.alert().map(|alert| alert as u8), "{row}");
            assert_eq!(level, outcome.level().to_string().to_lowercase(), "{row}");
        }
    }
}
