//! The list of hellos in `tests/hellos`, and the program beside it that tries routers with them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use snigate::client_hello::{ClientHello, Framing, IpLiteral, Progress};

use super::{fuzz_seeds, generated};
use crate::support::backend::free;
use crate::support::{Router, all_output, is_written};

#[path = "../hellos/src/corpus.rs"]
#[allow(dead_code, reason = "the program uses more of it")]
mod list;

use list::Hello;
pub use list::Place;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hellos")
}

/// Whether the list has such a hello.
pub fn read_list(is_it: impl Fn(&Hello<'_>) -> bool) -> bool {
    list::parse(&text()).unwrap().iter().any(is_it)
}

fn text() -> String {
    std::fs::read_to_string(directory().join("hellos.ini")).unwrap()
}

#[test]
fn generated_hellos_are_written_and_listed() {
    let text = text();
    let list = list::parse(&text).unwrap();
    for (name, bytes) in generated::all() {
        is_written(&format!("tests/hellos/bytes/{name}"), bytes);
    }
    let listed: BTreeSet<&str> = list.iter().filter_map(|hello| hello.file.strip_prefix("bytes/")).collect();
    let files = std::fs::read_dir(directory().join("bytes")).unwrap();
    let files: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(listed, files.iter().map(String::as_str).collect(), "hellos.ini lists the files in bytes/");

    let made: BTreeSet<&str> = generated::all().into_iter().map(|(name, _)| name).collect();
    let said =
        list.iter().filter(|hello| hello.from == "generated").filter_map(|hello| hello.file.strip_prefix("bytes/"));
    assert_eq!(said.collect::<BTreeSet<_>>(), made, "from = generated");
    let names: BTreeSet<&str> = list.iter().map(|hello| hello.name).collect();
    assert_eq!(names.len(), list.len(), "each has a name of its own");
}

/// Where snigate's defaults send it, as far as the parser decides.
pub fn parsed(bytes: &[u8]) -> Place {
    let mut framing = Framing::default();
    let Ok(Progress::Complete) = framing.advance(bytes) else { return Place::Refused };
    let Ok(hello) = ClientHello::parse_with(framing.message(bytes), IpLiteral::NoName) else { return Place::Refused };
    match hello.server_name.map(|name| name.to_string()).as_deref() {
        Some("a.example") => Place::A,
        Some("b.example") => Place::B,
        _ => Place::Other,
    }
}

#[test]
fn the_parser_finds_each_listed_hello_its_place() {
    let text = text();
    for Hello { name, file, right, rule, .. } in list::parse(&text).unwrap() {
        let bytes = std::fs::read(directory().join(file)).unwrap();
        fuzz_seeds::hello(&bytes);
        let place = parsed(&bytes);
        assert!(right.contains(&place), "{name}: {place}, expected {right:?}: {}: {}", rule.source, rule.says);
    }
}

/// The program, built apart as others build it.
fn snigate_hellos() -> Command {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hellos");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline", "--locked", "--manifest-path"])
        .arg(directory().join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", all_output(&built));
    let mut command = Command::new(target.join("debug/snigate-hellos"));
    command.stdin(Stdio::null());
    command
}

#[test]
fn a22_every_listed_hello_reaches_its_place_through_the_router() {
    let backends = [free(), free(), free()].map(|address| address.to_string()).join(",");
    let listen = ["--listen", "127.0.0.1:0"];
    let config = snigate_hellos().args(["--configuration", "snigate", "--backends", &backends]).args(listen).output();
    let router = Router::start(&String::from_utf8(config.unwrap().stdout).unwrap());

    let named = format!("snigate={}", router.address());
    let arguments = ["--router", &named, "--backends", &backends, "--format", "json"];
    let output = snigate_hellos().args(arguments).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let results: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wrong: Vec<&Value> = results.iter().filter(|result| result["verdict"] != "right").collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(output.status.success() && results.len() > 150, "{} hellos", results.len());
    // Not merely refused: each is told, or has run out of time.
    for result in results.iter().filter(|result| result["observed"] == "refused") {
        assert!(result["end"] == "closed" || result["end"].as_str().unwrap().starts_with("alert "), "{result}");
    }
}

#[test]
fn a_router_that_confuses_its_backends_is_found_out() {
    let addresses = [free(), free(), free()];
    let backends = addresses.map(|address| address.to_string()).join(",");
    // The names are exchanged, and whoever sends none is for the first.
    let [a, b, _] = addresses;
    let config = format!(
        "listen: 127.0.0.1:0\ntimeouts: {{hello: 1s}}\nroutes:\n  - {{sni: a.example, upstream: \"{b}\"}}\n  - {{upstream: \"{a}\"}}\n"
    );
    let router = Router::start(&config);
    let run = |only: &str, format: &str| {
        let address = router.address().to_string();
        let arguments = ["--router", &address, "--backends", &backends, "--only", only, "--format", format];
        snigate_hellos().args(arguments).output().unwrap()
    };
    for (only, expected) in [("plain", "hole: b; right: a"), ("no-name", "hole: a; right: other")] {
        let output = run(only, "text");
        let text = all_output(&output);
        assert!(output.status.code() == Some(1) && text.contains(expected), "{text}");
        assert!(text.contains("RFC 6066, section 3: "), "with the sentence: {text}");
    }
    let table = all_output(&run("plain-b", "markdown"));
    assert!(table.contains("| plain-b | generated | b | **hole: a** |"), "{table}");
    drop(router);
    let gone = run_against_nothing(&backends);
    assert_eq!(gone.0, Some(2), "{}", gone.1);
}

fn run_against_nothing(backends: &str) -> (Option<i32>, String) {
    let router = free().to_string();
    let output = snigate_hellos().args(["--router", &router, "--backends", backends]).output().unwrap();
    (output.status.code(), all_output(&output))
}
