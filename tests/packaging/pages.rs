//! The pages say what is so: their commands work, their names exist, their links lead somewhere.

/// Every command, typed.
mod commands;
/// The code of docs/fuzzing.md.
mod embedded;
/// Tables and the length of lines.
mod layout;
/// Files and headings.
mod links;
/// Keys, flags, metrics, log fields, outcomes.
mod names;

use std::collections::BTreeSet;

use tempfile::TempDir;

use crate::support::pages::{block, page, table};
use crate::support::{Backend, Client, Hello, Router, all_output, snigate, tls};

#[test]
fn the_parser_is_embedded_as_the_page_shows() {
    assert_eq!(block("docs/fuzzing.md", "embed"), include_str!("pages/embedded.rs"));
    let hello = Hello::to("a.example").record();
    assert_eq!(embedded::name_of(&hello).as_deref(), Some("a.example"));
    assert_eq!(embedded::name_of(&hello[1..]), None);
}

#[test]
fn the_readme_is_one_page() {
    let lines = page("README.md").lines().count();
    assert!(lines <= 150, "{lines}");
}

#[test]
fn the_figures_of_the_readme_are_those_of_the_benchmarks() {
    let benchmarks = page("docs/benchmarks.md");
    let measured: Vec<BTreeSet<&str>> = benchmarks.lines().map(numbers).collect();
    for row in table("README.md", "| | snigate | HAProxy 2.6 | nginx 1.22 |") {
        let row = row.join(" ");
        let is_there = measured.iter().any(|line| line.is_superset(&numbers(&row)));
        assert!(is_there, "docs/benchmarks.md has no row with these numbers: {row}");
    }
}

fn numbers(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_digit() && !matches!(letter, '.' | ','));
    words.map(|word| word.trim_matches(['.', ','])).filter(|word| !word.is_empty()).collect()
}

/// What `check` says of the configuration in this block.
fn checked(page: &str, name: &str) -> String {
    let directory = TempDir::new().unwrap();
    tls::Authority::new().write(directory.path(), "dev-ca.pem");
    let path = directory.path().join("snigate.yaml");
    let text = block(page, name);
    let text = if text.contains("listen:") { text } else { format!("listen: 127.0.0.1:0\n{text}") };
    std::fs::write(&path, text).unwrap();
    let checked = snigate().arg("check").arg(path).output().unwrap();
    assert!(checked.status.success(), "{}", all_output(&checked));
    String::from_utf8(checked.stdout).unwrap()
}

#[test]
fn examples_mean_what_the_pages_say() {
    let networks = checked("docs/access.md", "networks");
    let headers = checked("docs/access.md", "proxy-headers");
    let pool = checked("docs/upstreams.md", "pool");
    let services = checked("docs/self-hosting.md", "services");
    for (said, parts) in [
        (
            &networks,
            &[
                "198.51.100.0/24",
                "10.0.0.0/8, 2001:db8::/32",
                "10.66.0.0/16",
                "max_connections 5000; new_connections 200/s",
                "1000",
            ][..],
        ),
        (&headers, &["10.0.0.0/28", "PROXY header v2"]),
        (&pool, &["10.0.0.1:6443, 10.0.0.2:6443, 10.0.0.3:6443", "GET /readyz", "rise 2, fall 3", "kubernetes"]),
        (&services, &["200-399", "PROXY header v2", "198.51.100.0/24"]),
    ] {
        for part in parts {
            assert!(said.contains(part), "{part}\nin\n{said}");
        }
    }
}

#[test]
fn the_form_without_a_file_works() {
    let (dev, other) = (Backend::named("dev"), Backend::named("other"));
    let command = block("docs/configuration.md", "without-a-file")
        .replace("0.0.0.0:6443", "127.0.0.1:0")
        .replace("10.0.0.1:6443", &dev.address().to_string())
        .replace("10.0.0.9:6443", &other.address().to_string());
    let directory = TempDir::new().unwrap();
    let mut process = snigate();
    process.args(command.split_whitespace().skip(1));
    let router = Router::spawn(process, directory.path().into(), directory);
    for (name, expected) in [("dev.example.com", "dev"), ("x.example.com", "other")] {
        let mut client = Client::send(router.address(), &Hello::to(name).record());
        client.finish();
        assert_eq!(client.rest().0, expected.as_bytes());
    }
}
