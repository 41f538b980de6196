//! Durations, sizes, rates and counts in the file.

use std::time::Duration;

use super::schema::ValueSyntax;
use super::text::{Written, number_in_range};
use crate::text::units::Rate;

/// The longest duration that can be configured; beyond it, sums of times could overflow.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// The syntax of `humantime`, between these two texts.
macro_rules! duration_syntax {
    ($before:literal, $after:literal) => {
        concat!(
            $before,
            r"\s*(\d[\d\s.]*(",
            "ns|nsec|nanos|us|µs|usec|ms|msec|millis|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?",
            r"|w|wks?|weeks?|M|months?|y|yrs?|years?)\s*)+",
            $after
        )
    };
}

const DURATION: &str = duration_syntax!("^", "$");

fn duration(text: &str, fits: impl FnOnce(&Duration) -> bool) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|_| String::new())?;
    if fits(&duration) { Ok(duration) } else { Err("out of range".into()) }
}

/// A duration of at least a millisecond and at most a year.
#[derive(Clone, Copy, Debug)]
pub(super) struct BoundedDuration(pub(super) Duration);

impl Written for BoundedDuration {
    const EXPECTED: &'static str = "a duration from 1ms to 366d with a unit, such as 10s, 500ms, 15m or 24h";
    const SYNTAX: ValueSyntax = ValueSyntax::text("Duration", DURATION);

    fn read(text: &str) -> Result<Self, String> {
        duration(text, |duration| (Duration::from_millis(1)..=MAX_DURATION).contains(duration)).map(Self)
    }
}

/// A duration that may be zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct DurationOrZero(pub(super) Duration);

impl Written for DurationOrZero {
    const EXPECTED: &'static str = "a duration from 0s to 366d with a unit, such as 25s";
    const SYNTAX: ValueSyntax = ValueSyntax::text("DurationOrZero", DURATION);

    fn read(text: &str) -> Result<Self, String> {
        duration(text, |duration| *duration <= MAX_DURATION).map(Self)
    }
}

/// A duration in whole seconds, as the kernel's keepalive options take it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seconds(pub(super) Duration);

impl Written for Seconds {
    const EXPECTED: &'static str = "a duration of whole seconds from 1s to 32767s, such as 30s";
    const SYNTAX: ValueSyntax = ValueSyntax::text("Seconds", DURATION);

    fn read(text: &str) -> Result<Self, String> {
        duration(text, |duration| duration.subsec_nanos() == 0 && (1..=32767).contains(&duration.as_secs())).map(Self)
    }
}

/// `TCP_USER_TIMEOUT`: the kernel takes milliseconds in an `i32`.
#[derive(Clone, Copy, Debug)]
pub(super) struct UserTimeout(pub(super) Duration);

impl Written for UserTimeout {
    const EXPECTED: &'static str = "a duration from 1s to 24d, such as 15m";
    const SYNTAX: ValueSyntax = ValueSyntax::text("UserTimeout", DURATION);

    fn read(text: &str) -> Result<Self, String> {
        duration(text, |duration| (1..=24 * 24 * 3600).contains(&duration.as_secs())).map(Self)
    }
}

/// The age of a connection: checked once a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age(pub(super) Duration);

impl Written for Age {
    const EXPECTED: &'static str = "a duration from 1s to 366d with a unit, such as 12h";
    const SYNTAX: ValueSyntax = ValueSyntax::text("Age", DURATION);

    fn read(text: &str) -> Result<Self, String> {
        duration(text, |duration| (Duration::from_secs(1)..=MAX_DURATION).contains(duration)).map(Self)
    }
}

/// Between log lines of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval(pub(super) Duration);

impl Written for Interval {
    const EXPECTED: &'static str = "a duration from 1s to 366d with a unit, such as 10m";
    const SYNTAX: ValueSyntax = ValueSyntax::text("Interval", DURATION);

    fn read(text: &str) -> Result<Self, String> {
        Age::read(text).map(|age| Self(age.0))
    }
}

/// When connections are parked; `None`: never.
#[derive(Clone, Copy, Debug)]
pub(super) struct ParkAfter(pub(super) Option<Duration>);

impl Written for ParkAfter {
    const EXPECTED: &'static str = "a duration from 100ms to 366d with a unit, such as 30s, or never";
    const SYNTAX: ValueSyntax = ValueSyntax::text("ParkAfter", duration_syntax!("^(never|", ")$"));

    fn read(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self(None));
        }
        let is_in_range = |duration: &Duration| (Duration::from_millis(100)..=MAX_DURATION).contains(duration);
        duration(text, is_in_range).map(|duration| Self(Some(duration)))
    }
}

/// A part of a whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Percentage(pub(super) u8);

impl Written for Percentage {
    const EXPECTED: &'static str = "a percentage from 0% to 100%, such as 25%";
    const SYNTAX: ValueSyntax = ValueSyntax::text("Percentage", "^[0-9]{1,3}%$");

    fn read(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix('%').filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        number
            .and_then(|number| number.parse().ok())
            .filter(|percent| *percent <= 100)
            .map(Self)
            .ok_or_else(String::new)
    }
}

/// The weight of an endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weight(pub(super) u16);

impl Written for Weight {
    const EXPECTED: &'static str =
        "a whole number from 1 to 256; to send no connections to an endpoint, remove it from the list";
    const SYNTAX: ValueSyntax = ValueSyntax::number("Weight", 1..=256);

    fn read(_: &str) -> Result<Self, String> {
        Err(String::new())
    }

    fn from_number(number: u64) -> Option<Self> {
        u16::try_from(number).ok().map(Self)
    }
}

/// A whole number in a range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count<const MIN: u32, const MAX: u32>(pub(super) u32);

macro_rules! count {
    ($min:literal, $max:literal, $name:literal, $expected:literal) => {
        impl Written for Count<$min, $max> {
            const EXPECTED: &'static str = $expected;
            const SYNTAX: ValueSyntax = ValueSyntax::number($name, $min..=$max);

            fn read(_: &str) -> Result<Self, String> {
                Err(String::new())
            }

            fn from_number(number: u64) -> Option<Self> {
                u32::try_from(number).ok().map(Self)
            }
        }
    };
}

count!(1, 127, "SmallCount", "a whole number from 1 to 127");
count!(1, 65_535, "Port", "a port from 1 to 65535");
count!(1, 10_000_000, "Count", "a whole number from 1 to 10000000");
count!(0, 1_000_000, "CountOrAll", "a whole number from 0 to 1000000");

/// The maximum size of a ClientHello.
#[derive(Clone, Copy, Debug)]
pub(super) struct HelloSize(pub(super) usize);

impl Written for HelloSize {
    const EXPECTED: &'static str = "a size from 1KiB to 64KiB, such as 16KiB";
    const SYNTAX: ValueSyntax = ValueSyntax::text("HelloSize", SIZE).or_number(1 << 10..=1 << 16);

    fn read(text: &str) -> Result<Self, String> {
        size(text).and_then(number_in_range)
    }

    fn from_number(bytes: u64) -> Option<Self> {
        usize::try_from(bytes).ok().map(Self)
    }
}

/// The maximum size of all buffers together.
#[derive(Clone, Copy, Debug)]
pub(super) struct BufferSize(pub(super) usize);

impl Written for BufferSize {
    const EXPECTED: &'static str = "a size from 1MiB to 1024GiB, such as 256MiB";
    const SYNTAX: ValueSyntax = ValueSyntax::text("BufferSize", SIZE).or_number(1 << 20..=1 << 40);

    fn read(text: &str) -> Result<Self, String> {
        size(text).and_then(number_in_range)
    }

    fn from_number(bytes: u64) -> Option<Self> {
        usize::try_from(bytes).ok().map(Self)
    }
}

const SIZE: &str = r"^\+?\d+\s*(KiB|MiB|GiB)$";

fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let read = units.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?.trim_end(), *bytes)));
    let (number, unit) = read.ok_or("")?;
    let number: u64 = number.parse().map_err(|_| "")?;
    number.checked_mul(unit).ok_or_else(|| "out of range".into())
}

/// A rate of new connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionRate(pub(super) Rate);

impl Written for ConnectionRate {
    const EXPECTED: &'static str = "a rate from 1/h to 1000000/s, such as 50/s, 300/m or 1000/h";
    const SYNTAX: ValueSyntax = ValueSyntax::text("Rate", r"^\s*\+?\d+\s*/\s*[smh]\s*$");

    fn read(text: &str) -> Result<Self, String> {
        let (count, unit) = text.split_once('/').ok_or("")?;
        let per = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(String::new()),
        };
        let count = count.trim().parse().ok().filter(|count| (1..=1_000_000).contains(count)).ok_or("")?;
        Ok(Self(Rate { count, per: Duration::from_secs(per) }))
    }
}

/// The number of worker threads; `None`: one per CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workers(pub(super) Option<usize>);

impl Written for Workers {
    const EXPECTED: &'static str = "auto, or a whole number from 1 to 1024";
    const SYNTAX: ValueSyntax = ValueSyntax::text("Workers", "^auto$").or_number(1..=1024);

    fn read(text: &str) -> Result<Self, String> {
        if text == "auto" { Ok(Self(None)) } else { Err(String::new()) }
    }

    fn from_number(number: u64) -> Option<Self> {
        usize::try_from(number).ok().map(|number| Self(Some(number)))
    }
}
