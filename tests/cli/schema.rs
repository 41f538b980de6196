//! The JSON Schema of the configuration says what the program says: in the same files, of the same keys.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::config::{EVERYTHING, VALID};
use crate::support::{pages, snigate, tls};

const PAGE: &str = "docs/configuration.md";

/// Files that both refuse.
const WRONG: [&str; 46] = [
    "{}",
    "listen: 127.0.0.1:0",
    "routes: [{upstream: \"h:1\"}]",
    "listen: localhost:6443\nroutes: [{upstream: \"h:1\"}]",
    "listen: 127.0.0.1\nroutes: [{upstream: \"h:1\"}]",
    "listen: {address: \"127.0.0.1:0\"}\nroutes: [{upstream: \"h:1\"}]",
    "listen: []\nroutes: [{upstream: \"h:1\"}]",
    "listen: [{name: a}]\nroutes: [{upstream: \"h:1\"}]",
    "listen: [{address: \"127.0.0.1:0\", accept_proxy: {}}]\nroutes: [{upstream: \"h:1\"}]",
    "listen: [{address: \"127.0.0.1:0\", allow: example.com}]\nroutes: [{upstream: \"h:1\"}]",
    "listen: [{address: \"127.0.0.1:0\", name: _none}]\nroutes: [{upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\nroutes: []",
    "listen: 127.0.0.1:0\nroutes: {upstream: \"h:1\"}",
    "listen: 127.0.0.1:0\nroutes: [{sni: a.example}]",
    "listen: 127.0.0.1:0\nroutes: [{sni: a..b, upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\nroutes: [{sni: \"*\", upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\nroutes: [{sni: 192.0.2.1, upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\nroutes: [{sni: [a.example, 7], upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\nroutes: [{sni: , upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\nroutes: [{alpn: [], upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\nroutes: [{deny: 10.0.0.0/33, upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\nroutes: [{deny: {}, upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\nroutes: [{deny: [{files: blocked.txt}], upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\nroutes: [{client: {file: blocked.txt}, upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\ninclude: []",
    "listen: 127.0.0.1:0\nroutes: [{max_connections: 0, upstream: \"h:1\"}]",
    "listen: 127.0.0.1:0\nroutes: [{upstream: https://api.example.com:6443}]",
    "listen: 127.0.0.1:0\nroutes: [{upstream: a}]",
    "listen: 127.0.0.1:0\nroutes: [{upstream: {balance: random}}]",
    "listen: 127.0.0.1:0\nroutes: [{upstream: {endpoints: \"h:1\", dcos: x}}]",
    "listen: 127.0.0.1:0\nroutes: [{upstream: {endpoints: \"h:1\", balance: fastest}}]",
    "listen: 127.0.0.1:0\nroutes: [{upstream: {dcos: {port: 70000}}}]",
    "listen: 127.0.0.1:0\nroutes: [{upstream: {endpoints: \"h:1\", health_check: {http: {}}}}]",
    "listen: 127.0.0.1:0\nroutes: [{upstream: {endpoints: \"h:1\", health_check: {rise: 128}}}]",
    "listen: 127.0.0.1:0\nroutes: [{upstream: {endpoints: \"h:1\", dead: {connections: drop}}}]",
    "listen: 127.0.0.1:0\nroutes: [{upstream: \"h:1\"}]\ntimeout: {}",
    "listen: 127.0.0.1:0\nroutes: [{upstream: \"h:1\"}]\ntimeouts: {halfclose: 1s}",
    "listen: 127.0.0.1:0\nroutes: [{upstream: \"h:1\"}]\ntimeouts: {hello: 10}",
    "listen: 127.0.0.1:0\nroutes: [{upstream: \"h:1\"}]\ntimeouts: {idle: 10 parsecs}",
    "listen: 127.0.0.1:0\nroutes: [{upstream: \"h:1\"}]\nwatch:",
    "listen: 127.0.0.1:0\nroutes: [{upstream: \"h:1\"}]\nlimits: {hello_bytes: 16kb}",
    "listen: 127.0.0.1:0\nroutes: [{upstream: \"h:1\"}]\nlimits: {hello_bytes: 1023}",
    "listen: 127.0.0.1:0\nroutes: [{upstream: \"h:1\"}]\nlimits: {new_per_source: 50/d}",
    "listen: 127.0.0.1:0\nroutes: [{upstream: \"h:1\"}]\nworkers: many",
    "listen: 127.0.0.1:0\nroutes: [{upstream: \"h:1\"}]\nwatch: \"yes\"",
    "listen: 127.0.0.1:0\nroutes: [{upstream: \"h:1\"}]\nadmin: {allow_remote: true}",
];

/// Values as they may also be written.
const FORMS: &str =
    "listen: [\"[::1]:0\", {name: a b, address: 127.0.0.1:0, accept_proxy: {from: \"::ffff:10.0.0.0/104\"}}]
routes:
  - {sni: [\"*.A.Example.\", x_1.4-5, 0.a], listener: a b, upstream: [\"[2001:db8::1]:6443\", \"api.example.com.:1\"]}
  - {sni: b.example, upstream: {dcos: /dev/a, slow_start: 1h 30m, dead: {grace: 1.5h}, resolve_every: 2days}}
  - {sni: c.example, allow: {file: office.txt}, deny: [192.0.2.1, {file: blocked.txt}], upstream: \"h:1\"}
  - {upstream: {dcos: {}, health_check: , connect: {timeout: \" 10 s \", per_try: 1s500ms}}}
limits: {buffer_bytes: 1 MiB, hello_bytes: 1024, new_per_source: 300 / m}
timeouts:
tcp: {keepalive: }
workers: auto
watch: true
include: [routes.d/*.yaml, \"?.d/*\"]
";

/// In a directory with the files that configurations name.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let (directory, authority) = (TempDir::new().unwrap(), tls::Authority::new());
        for ca in ["dev-ca.pem", "dev.kubernetes01-ca.pem", "dev.kubernetes02-ca.pem"] {
            authority.write(directory.path(), ca);
        }
        for networks in ["office.txt", "blocked.txt"] {
            std::fs::write(directory.path().join(networks), pages::block("docs/access.md", "blocked")).unwrap();
        }
        Self(directory)
    }

    fn is_accepted(&self, text: &str) -> bool {
        let path = self.0.path().join("snigate.yaml");
        std::fs::write(&path, text).unwrap();
        let status = snigate().arg("check").arg(path).output().unwrap().status.code();
        assert!(matches!(status, Some(0 | 78)), "{status:?}\n{text}");
        status == Some(0)
    }
}

fn manifest(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn shipped() -> Vec<String> {
    let examples = ["one-cluster.yaml", "two-clusters.yaml"];
    let of = |directory: &str| examples.map(|name| format!("deploy/{directory}/{name}"));
    let others = ["deploy/kubernetes/snigate.yaml", "deploy/systemd/snigate.yaml"].map(Into::into);
    [of("examples"), of("marathon"), others].concat()
}

/// Files that both accept.
fn valid() -> Vec<String> {
    let shipped = shipped().into_iter().map(|path| std::fs::read_to_string(manifest(&path)).unwrap());
    let whole = pages::configurations().into_iter().map(|block| match block.text.contains("listen:") {
        true => block.text,
        false => format!("listen: 127.0.0.1:0\n{}", block.text),
    });
    shipped.chain(whole).chain([VALID, EVERYTHING, FORMS].map(Into::into)).collect()
}

fn printed() -> String {
    let output = snigate().arg("schema").output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

pub fn schema() -> Value {
    serde_json::from_str(&printed()).unwrap()
}

#[test]
fn the_shipped_schema_is_the_one_that_is_printed() {
    crate::support::is_written("deploy/snigate.schema.json", printed());
    assert_eq!(schema()["$schema"], "http://json-schema.org/draft-07/schema#");
}

#[test]
fn shipped_configurations_name_the_schema() {
    for path in shipped() {
        let text = std::fs::read_to_string(manifest(&path)).unwrap();
        let named = text.lines().next().unwrap().strip_prefix("# yaml-language-server: $schema=").unwrap();
        let schema = match named.strip_prefix("/usr/share/doc/snigate/") {
            // As the package installs it.
            Some(name) => manifest("deploy").join(name),
            None => manifest(&path).parent().unwrap().join(named),
        };
        assert_eq!(schema.canonicalize().unwrap(), manifest("deploy/snigate.schema.json").canonicalize().unwrap());
    }
}

#[test]
fn the_program_refuses_what_is_wrong_and_nothing_else() {
    let files = Files::new();
    for text in valid() {
        assert!(files.is_accepted(&text), "{text}");
    }
    for text in WRONG {
        assert!(!files.is_accepted(text), "{text}");
    }
}

#[test]
#[ignore = "needs python3-jsonschema"]
fn the_schema_refuses_what_is_wrong_and_nothing_else() {
    let validate = "import json, sys
from jsonschema import Draft7Validator
schema, files = json.load(sys.stdin)
Draft7Validator.check_schema(schema)
validator = Draft7Validator(schema)
json.dump([[error.message for error in validator.iter_errors(file)] for file in files], sys.stdout)";
    let (valid, wrong) = (valid(), WRONG.map(String::from));
    let read = |text: &String| serde_yaml::from_str::<Value>(text).unwrap();
    let files: Vec<Value> = valid.iter().chain(&wrong).map(read).collect();
    let mut python = Command::new("/usr/bin/python3");
    let mut child = python.args(["-c", validate]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(json!([schema(), files]).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let errors: Vec<Vec<String>> = serde_json::from_slice(&output.stdout).unwrap();
    for (text, errors) in valid.iter().zip(&errors) {
        assert!(errors.is_empty(), "{text}\n{errors:?}");
    }
    for (text, errors) in wrong.iter().zip(&errors[valid.len()..]) {
        assert!(!errors.is_empty(), "{text}");
    }
}

/// The maps that this schema allows, with those that it refers to.
fn maps<'s>(root: &'s Value, schema: &'s Value) -> Vec<&'s Value> {
    if let Some(reference) = schema["$ref"].as_str() {
        return maps(root, root.pointer(reference.strip_prefix('#').unwrap()).unwrap());
    }
    if schema["properties"].is_object() {
        return vec![schema];
    }
    let choices = ["allOf", "anyOf"].iter().filter_map(|key| schema[key].as_array()).flatten();
    choices.chain(schema.get("items")).flat_map(|choice| maps(root, choice)).collect()
}

/// The paths of all keys, such as `routes.upstream.balance`.
pub fn keys(schema: &Value) -> BTreeSet<String> {
    fn collect(root: &Value, schema: &Value, path: &str, found: &mut BTreeSet<String>) {
        for map in maps(root, schema) {
            for (key, property) in map["properties"].as_object().unwrap() {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(root, property, &path, found);
                found.insert(path);
            }
        }
    }
    let mut found = BTreeSet::new();
    collect(schema, schema, "", &mut found);
    found
}

/// The schema of the value at a path such as `routes[].upstream.balance`.
fn property<'s>(root: &'s Value, path: &str) -> &'s Value {
    path.split('.').fold(root, |schema, key| {
        let key = key.trim_end_matches("[]");
        let maps = maps(root, schema);
        maps.iter().find_map(|map| map["properties"].get(key)).unwrap_or_else(|| panic!("{path}: no {key}"))
    })
}

fn description(property: &Value) -> String {
    property["description"].as_str().unwrap().replace('`', "")
}

#[test]
fn maps_are_closed_and_every_key_is_described() {
    let schema = schema();
    let maps = schema["definitions"].as_object().unwrap().values().chain([&schema]);
    let mut keys = 0;
    for map in maps.filter(|map| map["properties"].is_object()) {
        assert_eq!(map["additionalProperties"], false, "{map}");
        for (key, property) in map["properties"].as_object().unwrap() {
            assert!(description(property).ends_with('.'), "{key}");
            keys += 1;
        }
    }
    assert!(keys > 70, "{keys}");
}

#[test]
fn the_page_has_every_key_with_its_default_and_range() {
    let schema = schema();
    let (mut defaults, mut ranges) = (0, 0);
    let mut described = BTreeSet::new();
    for row in pages::table(PAGE, "| key | default | range and meaning |") {
        let [keys, default, meaning] = &row[..] else { panic!("{row:?}") };
        for key in keys.split(", ") {
            let key = key.trim_matches('`');
            let key = match key.strip_prefix("upstream.") {
                Some(key) => format!("routes[].upstream.{key}"),
                None => key.to_owned(),
            };
            assert!(described.insert(key.replace("[]", "")), "{key}: twice");
            let property = property(&schema, &key);
            let default = default.strip_prefix('`').and_then(|default| default.strip_suffix('`'));
            let each: Vec<(&Value, &str)> = match default {
                None => Vec::new(),
                Some(map) if map.starts_with('{') => {
                    let members = map.trim_matches(['{', '}']).split(", ").map(|one| one.split_once(": ").unwrap());
                    members
                        .map(|(member, default)| (self::property(&schema, &format!("{key}.{member}")), default))
                        .collect()
                }
                Some(default) => vec![(property, default)],
            };
            for (property, default) in each {
                let description = description(property);
                let told = description.split("Default: ").nth(1).unwrap_or_else(|| panic!("{key}: {description}"));
                assert!(told.split(['.', ',']).next() == Some(default), "{key}: {default}: {description}");
                defaults += 1;
            }
            let words: Vec<&str> = meaning.split([' ', ',']).take(3).collect();
            let is_map = default.is_some_and(|default| default.starts_with('{'));
            if let ([from, "to", to], false) = (&words[..], is_map) {
                assert!(description(property).contains(&format!("{from} to {to}")), "{key}: {meaning}");
                ranges += 1;
            }
        }
    }
    assert!(defaults > 25 && ranges > 20, "{defaults} {ranges}");
    // A map whose keys all have rows of their own needs none.
    let paths = keys(&schema);
    let is_map = |path: &String| described.iter().any(|key| key.starts_with(&format!("{path}.")));
    for path in &paths {
        assert!(described.contains(path) || is_map(path), "{PAGE} has no row for `{path}`");
    }
    for key in &described {
        assert!(paths.contains(key), "{key} is in {PAGE}, and no key");
    }
}
