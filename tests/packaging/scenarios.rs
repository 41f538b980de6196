//! `scenarios.md` says of each fault which tests cover it, by their names. `SNIGATE_WRITE=1 cargo test scenarios` writes
//! it anew.

use std::collections::BTreeMap;

use crate::support::pages::{page, sources};

fn is_scenario(word: &str) -> bool {
    let (group, number) = word.split_at(word.len().min(1));
    matches!(group, "a" | "b" | "c" | "d" | "e" | "f" | "g" | "h" | "i" | "z")
        && (1..=2).contains(&number.len())
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// The names of tests by the scenarios that they begin with.
fn tests() -> BTreeMap<String, Vec<String>> {
    let mut tests: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for directory in ["src", "tests"] {
        for file in sources(directory) {
            let text = std::fs::read_to_string(file).unwrap();
            for name in text.split("fn ").skip(1).filter_map(|rest| rest.split('(').next()) {
                for scenario in name.split('_').take_while(|word| is_scenario(word)) {
                    tests.entry(scenario.to_uppercase()).or_default().push(name.to_owned());
                }
            }
        }
    }
    tests
}

#[test]
fn every_scenario_is_covered_or_says_why_not() {
    let written = page("tests/scenarios.md");
    let mut tests = tests();
    let mut anew = String::new();
    for line in written.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, id, priority, scenario, by, remark, _] = cells[..] else {
            anew += &format!("{line}\n");
            continue;
        };
        let Some(names) = tests.remove(id) else {
            assert!(matches!(id, "id" | "---") || !remark.is_empty(), "{id} has neither a test nor a reason");
            let by = if matches!(id, "id" | "---") { by } else { "" };
            anew += &format!("| {id} | {priority} | {scenario} | {by} | {remark} |\n");
            continue;
        };
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        anew += &format!("| {id} | {priority} | {scenario} | {} | {remark} |\n", names.join(" "));
    }
    assert!(tests.is_empty(), "in no row: {tests:?}");
    crate::support::is_written("tests/scenarios.md", &anew);
}
