//! The tables in docs/configuration.md are right: the program has these defaults, accepts the ends of these ranges, and
//! refuses what is just outside.

use std::fmt::{self, Display, Formatter};

use tempfile::TempDir;

use super::config::{VALID, route, upstream, with};
use crate::support::{all_output, pages, snigate};

const HEADER: &str = "| key | default | range and meaning |";

#[test]
fn g04_values_have_the_ranges_of_the_page() {
    let mut tried = 0;
    for row in pages::table("docs/configuration.md", HEADER) {
        let key = row[0].trim_matches('`');
        let Some([least, most]) = range(&row[2]) else { continue };
        for value in [&least, &most] {
            let checked = check(key, Some(&value.to_string()));
            assert!(checked.is_ok(), "{key}: {value}, which is in its range: {checked:?}");
        }
        for value in least.just_below().into_iter().chain([most.just_above()]) {
            let told = check(key, Some(&value)).expect_err(&format!("{key}: {value} is accepted"));
            assert!(
                told.contains("expected ") && told.contains(key.rsplit('.').next().unwrap()),
                "{key}: {value}: {told}"
            );
        }
        tried += 1;
    }
    assert!(tried > 30, "only {tried} keys have a range");
}

#[test]
fn values_have_the_defaults_of_the_page() {
    let mut tried = 0;
    for row in pages::table("docs/configuration.md", HEADER) {
        let key = row[0].trim_matches('`');
        let Some(default) = row[1].strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) else { continue };
        let unset = check(key, None);
        assert_eq!(check(key, Some(default)), unset, "{key}: {default}");
        // Where another value would look the same, this would show nothing.
        let ends = range(&row[2]).into_iter().flatten().map(|end| end.to_string());
        let words = row[2].split('`').skip(1).step_by(2).map(String::from);
        let mut others = ends.chain(words).chain(["true", "false", "/livez", "1"].map(String::from));
        let is_told_apart = others.any(|other| check(key, Some(&other)).is_ok_and(|printed| Ok(printed) != unset));
        assert!(is_told_apart, "{key}: `check` tells no value from {default}");
        tried += 1;
    }
    assert!(tried > 40, "only {tried} keys have a default");
}

#[test]
fn e17_networks_of_a_route_make_at_most_65536_pairs() {
    let networks = |count: usize| {
        let networks = (0..count).map(|number| format!("10.{}.{}.0/24", number / 256, number % 256));
        networks.collect::<Vec<_>>().join(", ")
    };
    let pairs = |destinations, clients| {
        let (destinations, clients) = (networks(destinations), networks(clients));
        checked(&route(&format!("destination: [{destinations}]\nclient: [{clients}]\nupstream: h:1")))
    };
    assert!(pairs(256, 256).is_ok());
    let told = pairs(257, 256).unwrap_err();
    let expected =
        ":4:13: routes[0].client: 65792 pairs of `destination` and `client` networks; expected at most 65536\n";
    assert!(told.ends_with(expected), "{told}");
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

fn check(key: &str, value: Option<&str>) -> Result<String, String> {
    checked(&file(key, value))
}

/// What `check` says of this file: `Err` if it refuses it.
fn checked(text: &str) -> Result<String, String> {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("c.yaml"), text).unwrap();
    let checked = snigate().args(["check", "c.yaml"]).current_dir(directory.path()).output().unwrap();
    if checked.status.success() { Ok(all_output(&checked)) } else { Err(all_output(&checked)) }
}

/// With what the key needs beside it.
fn file(key: &str, value: Option<&str>) -> String {
    if let Some(key) = key.strip_prefix("routes[].") {
        return route(&format!("upstream: h:1\n{}", setting(key, value)));
    }
    if let Some(key) = key.strip_prefix("listen[].") {
        let listener = format!("[{{address: \"127.0.0.1:0\", {}}}]", setting(key, value));
        return VALID.replace("127.0.0.1:0", &listener);
    }
    let Some(key) = key.strip_prefix("upstream.") else {
        return with(&setting(key, value));
    };
    upstream(&match key.split_once('.') {
        Some(("endpoints", key)) => {
            format!("{{endpoints: [\"h:2\", {{address: \"h:1\", {}}}]}}", setting(key, value))
        }
        Some(("dcos", _)) => format!("{{{}}}", setting(key, value)),
        _ => format!("{{endpoints: \"h:1\", {}}}", setting(key, value)),
    })
}

fn setting(key: &str, value: Option<&str>) -> String {
    let (parent, beside) = match key {
        "accept_proxy.others" => ("accept_proxy", "from: 192.0.2.1"),
        "connect.per_try" => ("connect", "timeout: 366d"),
        "max_age.jitter" => ("max_age", "after: 1h"),
        "health_check.interval" => ("health_check", "timeout: 1ms"),
        "health_check.timeout" => ("health_check", "interval: 366d"),
        "health_check.unready" => ("health_check", "fall: 127, tls: {verify: false}, http: {}"),
        key if key.starts_with("health_check.http.") => ("health_check", "tls: {verify: false}"),
        // With a loopback address, it would not matter.
        "admin.allow_remote" => ("admin", "address: \"192.0.2.1:0\""),
        key if key.starts_with("admin.") => ("admin", "address: \"127.0.0.1:0\""),
        _ => return nested(key, value),
    };
    nested(parent, Some(&format!("{{{beside}, {}}}", nested(&key[parent.len() + 1..], value))))
}

/// `a: {b: value}`, or without the value.
fn nested(key: &str, value: Option<&str>) -> String {
    match (key.split_once('.'), value) {
        (Some((outer, inner)), _) => format!("{outer}: {{{}}}", nested(inner, value)),
        (None, Some(value)) => format!("{key}: {value}"),
        (None, None) => String::new(),
    }
}
