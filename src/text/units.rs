//! Formats durations and sizes as the configuration accepts them, and dates and lists.

use std::fmt::{self, Display};
use std::time::{Duration, UNIX_EPOCH};

/// `count` events in each `per`, with a burst of `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rate {
    /// At least 1.
    pub(crate) count: u32,
    /// Not zero.
    pub(crate) per: Duration,
}

impl Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "m",
            3600 => "h",
            _ => return write!(f, "{} per {}", self.count, span(self.per)),
        };
        write!(f, "{}/{unit}", self.count)
    }
}

impl Rate {
    /// Between two events at this rate.
    pub(crate) fn interval(self) -> Duration {
        self.per / self.count.max(1)
    }
}

/// In the largest unit that divides it. One day stays `24h`, the usual spelling.
pub(crate) fn span(duration: Duration) -> String {
    const HOUR: u128 = 3_600_000_000_000;
    const UNITS: [(u128, &str); 5] =
        [(HOUR, "h"), (60_000_000_000, "m"), (1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")];
    match duration.as_nanos() {
        0 => "0s".into(),
        days if days > 24 * HOUR => in_unit(days, &[&[(24 * HOUR, "d")], &UNITS[..]].concat(), "ns"),
        less => in_unit(less, &UNITS, "ns"),
    }
}

/// In the largest unit that divides it; bytes have no unit.
pub(crate) fn size(bytes: usize) -> String {
    const UNITS: [(u128, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    in_unit(bytes as u128, &UNITS, "")
}

/// A Unix timestamp in RFC 3339.
pub(crate) fn time(seconds: u64) -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds))
}

/// The first `most` items, and how many more there are.
pub(crate) fn first_of(items: impl ExactSizeIterator<Item: Display>, most: usize) -> String {
    let more = items.len().saturating_sub(most);
    let listed = items.take(most).map(|item| item.to_string()).collect::<Vec<_>>().join(", ");
    if more == 0 { listed } else { format!("{listed} and {more} more") }
}

/// How many of these there are, whose plural ends with an s.
pub(crate) fn counted<N: Copy + Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    format!("{number} {noun}{}", if number == N::from(1) { "" } else { "s" })
}

fn in_unit(number: u128, units: &[(u128, &str)], smallest: &str) -> String {
    let fits = units.iter().copied().find(|(count, _)| number.is_multiple_of(*count));
    let (count, unit) = fits.unwrap_or((1, smallest));
    format!("{}{unit}", number / count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted_durations_parse_to_the_same_value() {
        for text in ["0s", "1ns", "1500us", "500ms", "1s", "90s", "15m", "24h", "25h", "2d", "366d"] {
            assert_eq!(span(humantime::parse_duration(text).unwrap()), text);
        }
        assert_eq!([1_000, 1 << 10, 3 << 19, 1 << 40].map(size), ["1000", "1KiB", "1536KiB", "1024GiB"]);
    }
}
