//! Which room of the code may use which. A new line in this table is a decision, and a circle cannot be written down.

use std::path::{Path, PathBuf};

use crate::support::pages::sources;

/// Each room may use the rooms above it that it lists, and no other. `commands` may use all.
const ROOMS: [(&str, &[&str]); 19] = [
    // Pure: no I/O, no clock, no configuration.
    ("name", &[]),
    ("client_hello", &["name"]),
    ("server_hello", &[]),
    ("route", &["client_hello", "name"]),
    ("proxy_protocol", &["name", "route"]),
    ("text", &["name"]),
    ("sync", &[]),
    // The data path.
    ("relay", &[]),
    ("listener", &["relay"]),
    ("telemetry", &["client_hello", "server_hello"]),
    ("upstream", &["name", "proxy_protocol", "relay", "server_hello", "sync", "telemetry", "text"]),
    (
        "connection",
        &["client_hello", "proxy_protocol", "relay", "route", "server_hello", "sync", "telemetry", "text", "upstream"],
    ),
    // Around it.
    ("process", &["listener", "relay", "text"]),
    (
        "admin",
        &[
            "client_hello",
            "connection",
            "listener",
            "name",
            "process",
            "relay",
            "route",
            "telemetry",
            "text",
            "upstream",
        ],
    ),
    (
        "config",
        &[
            "admin",
            "client_hello",
            "connection",
            "listener",
            "name",
            "process",
            "proxy_protocol",
            "relay",
            "route",
            "telemetry",
            "text",
            "upstream",
        ],
    ),
    ("logging", &["config", "telemetry", "text"]),
    ("cli", &["config", "name", "text"]),
    ("server", &["admin", "config", "connection", "listener", "relay", "route", "telemetry", "text", "upstream"]),
    ("gateway", &["client_hello", "config", "connection", "listener", "name", "route", "server", "text", "upstream"]),
];

/// Rooms in which a crate may be named; elsewhere it may not. Outside `config` and `logging`, serde is for the records of
/// connections on their way to another process, and for objects of Kubernetes.
const CRATES: [(&str, &[&str]); 6] = [
    ("serde", &["config", "logging", "connection", "gateway", "relay", "telemetry"]),
    ("tls_parser", &["client_hello", "server_hello"]),
    ("clap", &["cli", "commands"]),
    ("anyhow", &["commands"]),
    ("kube", &["gateway"]),
    ("k8s_openapi", &["gateway"]),
];

/// The pure rooms name none of these.
const IMPURE: [&str; 6] = ["tokio", "tracing", "std::time", "std::fs", "std::thread", "std::sync"];

/// Room, file, and the code of the file without comments and tests.
fn files() -> Vec<(String, PathBuf, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    for path in sources("src").into_iter().filter(|path| !path.ends_with("relay/tests.rs")) {
        let inside = path.strip_prefix(&src).unwrap().to_path_buf();
        let room = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        files.push((room, inside, code.collect::<Vec<_>>().join("\n")));
    }
    assert!(files.len() > 100, "the sources are found");
    files
}

fn first_words<'c>(code: &'c str, after: &str) -> Vec<&'c str> {
    let word = |rest: &'c str| rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next();
    code.split(after).skip(1).filter_map(word).collect()
}

#[test]
fn rooms_use_only_what_the_table_allows() {
    let mut seen = std::collections::BTreeSet::new();
    for (room, file, code) in files() {
        if matches!(room.as_str(), "lib" | "main" | "commands") {
            continue;
        }
        let allowed =
            ROOMS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("a room without a line: {room}"));
        assert!(!code.contains("use crate::{"), "{}: one `use crate::ROOM` line per room", file.display());
        for used in first_words(&code, "crate::").into_iter().filter(|used| *used != room && !used.is_empty()) {
            assert!(allowed.1.contains(&used), "{}: `{room}` must not use `{used}`", file.display());
            seen.insert((room.clone(), used.to_owned()));
        }
    }
    for (room, allowed) in ROOMS {
        for used in allowed {
            assert!(
                seen.contains(&(room.into(), (*used).into())),
                "`{room}` does not use `{used}`: remove it from the table"
            );
        }
    }
}

#[test]
fn no_circle_can_be_written_down() {
    for (number, (room, allowed)) in ROOMS.iter().enumerate() {
        for used in *allowed {
            assert!(ROOMS[..number].iter().any(|(above, _)| above == used), "`{used}` must stand above `{room}`");
        }
    }
}

/// The client of Kubernetes is known to `cluster` only, and what translates is pure.
#[test]
fn in_the_gateway_only_cluster_knows_the_client_and_only_it_and_drive_do_anything() {
    for (_, file, code) in files().into_iter().filter(|(room, ..)| room == "gateway") {
        let part = file.iter().nth(1).unwrap().to_str().unwrap().trim_end_matches(".rs");
        for name in ["kube", "k8s_openapi", "futures_util"] {
            let is_named = code.contains(&format!("use {name}::")) || code.contains(&format!(" {name}::"));
            assert!(!is_named || part == "cluster", "{}: `{name}`", file.display());
        }
        if !matches!(part, "cluster" | "drive") {
            is_pure(&file, &code);
        }
    }
}

#[test]
fn crates_are_named_only_where_they_belong() {
    for (room, file, code) in files() {
        for (name, rooms) in CRATES {
            let is_named = code.contains(&format!("use {name}::")) || code.contains(&format!("{name}::Deserialize"));
            assert!(!is_named || rooms.contains(&room.as_str()), "{}: `{name}`", file.display());
        }
        if matches!(room.as_str(), "name" | "client_hello" | "server_hello" | "route" | "proxy_protocol") {
            is_pure(&file, &code);
        }
    }
}

fn is_pure(file: &Path, code: &str) {
    // Shares what does not change.
    let code = code.replace("std::sync::Arc", "");
    for name in IMPURE {
        assert!(!code.contains(name), "{}: `{name}` in a pure part", file.display());
    }
}
