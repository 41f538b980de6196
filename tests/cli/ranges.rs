//! The ranges in docs/configuration.md are those of the program: their ends are accepted, and what is just outside is not.

use std::fmt::{self, Display, Formatter};

use tempfile::TempDir;

use super::config::{route, upstream, with};
use crate::support::{all_output, pages, snigate};

const HEADER: &str = "| key | default | range and meaning |";

#[test]
fn g04_values_have_the_ranges_of_the_page() {
    let mut tried = 0;
    for row in pages::table("docs/configuration.md", HEADER) {
        let key = row[0].trim_matches('`');
        let Some([least, most]) = range(&row[2]) else { continue };
        for value in [&least, &most] {
            let told = refusal(key, &value.to_string());
            assert_eq!(told, None, "{key}: {value}, which is in its range");
        }
        for value in least.just_below().into_iter().chain([most.just_above()]) {
            let told = refusal(key, &value).unwrap_or_else(|| panic!("{key}: {value} is accepted"));
            assert!(
                told.contains("expected ") && told.contains(key.rsplit('.').next().unwrap()),
                "{key}: {value}: {told}"
            );
        }
        tried += 1;
    }
    assert!(tried > 30, "only {tried} keys have a range");
}

/// As it is written: a number with its unit, which may be none.
struct Quantity {
    number: u64,
    unit: String,
}

/// The first range in the description.
fn range(description: &str) -> Option<[Quantity; 2]> {
    let words: Vec<&str> = description.split([' ', ',', ';', ':', '(', ')']).filter(|word| !word.is_empty()).collect();
    words.windows(3).find_map(|words| match words {
        [least, "to", most] => Some([quantity(least)?, quantity(most)?]),
        _ => None,
    })
}

/// Numbers of TLVs, such as 0x01, are none.
fn quantity(word: &str) -> Option<Quantity> {
    let digits = word.find(|character: char| !character.is_ascii_digit()).unwrap_or(word.len());
    let number = word[..digits].parse().ok()?;
    (!word[digits..].starts_with('x')).then(|| Quantity { number, unit: word[digits..].into() })
}

impl Display for Quantity {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self { number, unit } = self;
        write!(out, "{number}{unit}")
    }
}

impl Quantity {
    /// In the smallest unit of its kind.
    fn in_small(&self) -> (u64, &str) {
        let Self { number, unit } = self;
        match &**unit {
            "d" => (number * 24 * 3600 * 1000, "ms"),
            "s" => (number * 1000, "ms"),
            "KiB" => (number << 10, ""),
            "MiB" => (number << 20, ""),
            "GiB" => (number << 30, ""),
            "" | "ms" | "%" | "/h" | "/s" => (*number, unit),
            unit => panic!("what is {unit}?"),
        }
    }

    /// `None`: it is 0.
    fn just_below(&self) -> Option<String> {
        let (number, unit) = self.in_small();
        Some(format!("{}{unit}", number.checked_sub(1)?))
    }

    /// Durations may be of whole seconds.
    fn just_above(&self) -> String {
        let (number, unit) = self.in_small();
        format!("{}{unit}", number + if unit == "ms" { 1000 } else { 1 })
    }
}

/// What `check` says of a file with this value, if it refuses it.
fn refusal(key: &str, value: &str) -> Option<String> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, file(key, value)).unwrap();
    let checked = snigate().arg("check").arg(&path).output().unwrap();
    (!checked.status.success()).then(|| all_output(&checked))
}

/// With what the key needs beside it.
fn file(key: &str, value: &str) -> String {
    if let Some(key) = key.strip_prefix("routes[].") {
        return route(&format!("upstream: h:1\n{}", nested(key, value)));
    }
    let Some(key) = key.strip_prefix("upstream.") else {
        return with(&nested(key, value));
    };
    let keys = match key {
        "endpoints.weight" => format!("endpoints: [{{address: \"h:1\", weight: {value}}}]"),
        "connect.per_try" => format!("connect: {{timeout: 366d, per_try: {value}}}"),
        "max_age.jitter" => format!("max_age: {{after: 1h, jitter: {value}}}"),
        "health_check.interval" => format!("health_check: {{timeout: 1ms, interval: {value}}}"),
        "health_check.timeout" => format!("health_check: {{interval: 366d, timeout: {value}}}"),
        "health_check.unready" => {
            format!("health_check: {{fall: 127, unready: {value}, tls: {{verify: false}}, http: {{}}}}")
        }
        key => nested(key, value),
    };
    let endpoints = if key.starts_with("endpoints") { "" } else { "endpoints: \"h:1\", " };
    upstream(&format!("{{{endpoints}{keys}}}"))
}

/// `a: {b: value}`.
fn nested(key: &str, value: &str) -> String {
    match key.split_once('.') {
        Some((outer, inner)) => format!("{outer}: {{{}}}", nested(inner, value)),
        None => format!("{key}: {value}"),
    }
}
