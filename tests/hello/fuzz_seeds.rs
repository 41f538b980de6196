//! The fuzzers' seeds, each named by its shape and replayed here: what a name promises is what the parser says, and what
//! the fuzzers check holds. Of what campaigns have found, in `found`, the latter alone.

use std::path::{Path, PathBuf};

use snigate::client_hello::{Framing, Parsed};
use snigate::internals;
use snigate::name::ServerName;

#[path = "../../fuzz/properties.rs"]
pub mod properties;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let seeds = files(target);
    assert!(seeds.len() >= 5, "{target} has seeds");
    seeds
}

fn found(target: &str) -> impl Iterator<Item = Vec<u8>> {
    let found = files(&format!("{target}/found"));
    assert!(found.len() >= 100, "campaigns have found more in {target}");
    found.into_iter().map(|(_, bytes)| bytes)
}

fn files(below: &str) -> Vec<(String, Vec<u8>)> {
    let directory: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(below);
    let files = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let files = files.map(|file| file.unwrap().path()).filter(|path| path.is_file());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())).collect()
}

/// What the fuzzers of hellos check, all of them.
pub fn hello(bytes: &[u8]) {
    for property in [properties::client_hello, properties::records, properties::differential] {
        property(bytes);
    }
}

#[test]
fn what_campaigns_have_found_holds() {
    found("client_hello").for_each(|bytes| hello(&bytes));
    found("proxy_header").for_each(|bytes| properties::proxy_header(&bytes));
    found("name").for_each(|bytes| properties::name(&bytes));
}

#[test]
fn a27_hellos_are_what_they_are_called_and_name_whom_rustls_sees() {
    for (name, bytes) in seeds("client_hello") {
        let mut framing = Framing::default();
        let shape = match framing.parse(&bytes) {
            Parsed::Complete(hello) if hello.server_name.is_some() => "named",
            Parsed::Complete(_) => "nameless",
            Parsed::Incomplete => "incomplete",
            Parsed::Invalid(_) => "refused",
        };
        assert!(name.starts_with(shape), "{name} is {shape}");
        hello(&bytes);
    }
}

/// The fingerprints are those of another implementation, ja4plus 1.4.0 from PyPI.
#[test]
fn a28_fingerprints_are_those_of_another_implementation() {
    let expected = [
        ("named-early-data", "t13d040600_77f0cd3447db_ebe7f26e3008"),
        ("named-forty-extensions", "t13d044500_77f0cd3447db_7f07675220de"),
        ("named-grease-and-ech", "t13d040600_77f0cd3447db_c7112704c764"),
        ("named-name-first", "t13d040500_77f0cd3447db_e12c865f31a5"),
        ("named-one-record", "t13d040500_77f0cd3447db_e12c865f31a5"),
        ("named-records-of-50-bytes", "t13d040500_77f0cd3447db_e12c865f31a5"),
        ("named-records-of-one-byte", "t13d040500_77f0cd3447db_e12c865f31a5"),
        ("named-rustls-post-quantum", "t13d101000_61a7ad8aa9b6_0d308c48d2a3"),
        ("named-tls12-alpn", "t12d0404h2_77f0cd3447db_4e0be11b965e"),
        ("named-two-messages-in-a-record", "t13d040500_77f0cd3447db_e12c865f31a5"),
        ("nameless-tls13", "t13i040400_77f0cd3447db_e12c865f31a5"),
        ("nameless-without-extensions", "t12i040000_77f0cd3447db_000000000000"),
    ];
    let mut seen = Vec::new();
    for (name, bytes) in seeds("client_hello") {
        if let Parsed::Complete(hello) = Framing::default().parse(&bytes) {
            seen.push((name, hello.ja4().to_string()));
        }
    }
    seen.sort();
    assert!(seen.iter().map(|(name, ja4)| (&**name, &**ja4)).eq(expected), "{seen:#?}");
}

#[test]
fn names_headers_and_configurations_are_what_they_are_called() {
    for (name, bytes) in seeds("name") {
        let shape = if ServerName::parse(&bytes).is_ok() { "good" } else { "bad" };
        assert!(name.starts_with(shape), "{name} is {shape}");
        properties::name(&bytes);
    }
    for (name, bytes) in seeds("config") {
        let shape = if internals::config(&bytes).is_ok() { "valid" } else { "refused" };
        assert!(name.starts_with(shape), "{name} is {shape}");
        properties::config(&bytes);
    }
    for (name, bytes) in seeds("proxy_header") {
        let shape = match internals::parse(&bytes) {
            Ok(Some(_)) => "good",
            Ok(None) => "incomplete",
            Err(_) => "bad",
        };
        assert!(name.starts_with(shape), "{name} is {shape}");
        properties::proxy_header(&bytes);
    }
}
