//! Tables for people, and the numbers in them.

use std::fmt::Write;
use std::time::Duration;

/// Columns as wide as their widest cell; the last one is not padded. `>` before a title aligns its column to the right.
pub(super) fn table<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = titles.map(|title| title.trim_start_matches('>').len());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let heads = titles.map(|title| title.trim_start_matches('>').to_owned());
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = String::new();
        for ((title, width), cell) in titles.iter().zip(widths).zip(row) {
            // Writing to a string cannot fail.
            let _ =
                if title.starts_with('>') { write!(line, "{cell:>width$}  ") } else { write!(line, "{cell:width$}  ") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// In the two largest units.
pub(super) fn duration(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    let (days, hours, minutes, seconds) = (whole / 86400, whole / 3600 % 24, whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{seconds:02}s"),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// With three digits.
pub(super) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut size = number as f64;
    let mut unit = 0;
    while size >= 999.5 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(unit > 0 && size < 99.95);
    format!("{size:.decimals$} {}", UNITS[unit])
}

/// With a decimal, if there is room.
#[cfg(feature = "top")]
pub(super) fn rate(number: f64) -> String {
    let is_whole = number == 0.0 || number >= 99.95;
    if is_whole { format!("{number:.0}") } else { format!("{number:.1}") }
}

#[cfg(feature = "top")]
pub(super) fn milliseconds(number: f64) -> String {
    match number {
        short if short < 9.95 => format!("{short:.1} ms"),
        short if short < 999.5 => format!("{short:.0} ms"),
        long => format!("{:.1} s", long / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.4, 59.9, 61.0, 3_661.0, 90_000.0].map(duration), ["0s", "59s", "1m01s", "1h01m", "1d01h"]);
        assert_eq!(
            [0, 999, 1000, 1024, 99_999_999, u64::MAX].map(bytes),
            ["0 B", "999 B", "1.0 KiB", "1.0 KiB", "95.4 MiB", "16384 PiB"]
        );
    }

    #[cfg(feature = "top")]
    #[test]
    fn rates_and_latencies_are_short() {
        assert_eq!([0.0, 0.04, 12.34, 99.94, 99.96, 12_345.6].map(rate), ["0", "0.0", "12.3", "99.9", "100", "12346"]);
        assert_eq!(
            [0.04, 9.94, 9.96, 999.4, 999.6, 10_000.0].map(milliseconds),
            ["0.0 ms", "9.9 ms", "10 ms", "999 ms", "1.0 s", "10.0 s"]
        );
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "1", "x"].map(String::from), ["long", "100", ""].map(String::from)];
        assert_eq!(table(["NAME", ">N", "LAST"], &rows), "NAME    N  LAST\na       1  x\nlong  100\n");
    }
}
