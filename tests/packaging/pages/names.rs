//! What the pages name exists, and what exists is on the page that lists it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use serde_json::Value;

use crate::cli::schema::{keys, schema};
use crate::support::api_server::ApiServer;
use crate::support::backend::closed;
use crate::support::hello::ENCRYPTED_CLIENT_HELLO;
use crate::support::pages::{all, blocks, code, page, sources, table};
use crate::support::{Backend, Client, Hello, Router, eventually, snigate, tls};

/// Names of other programs, of answers of the admin listener, and of this program's code, as they are on the pages.
const OTHERS: &[&str] = &[
    "a02_every_prefix_is_incomplete",
    "access_denied",
    "answer_bounds_seconds",
    "answer_counts",
    "client_hello",
    "config.digest",
    "container.docker.image",
    "default_backend",
    "default_server",
    "fail_timeout",
    "g02_of_a_storm_of_signals_the_last_content_wins",
    "hand_over",
    "http.",
    "in_a_row",
    "in_service",
    "insert_leaf",
    "json_parser",
    "kubernetes.default.svc",
    "least_conn",
    "limit_conn",
    "loop_check",
    "max_fails",
    "message_length",
    "net.ipv4.tcp_mem",
    "no_new_privs",
    "operator.process",
    "operator.user",
    "parse_from",
    "predecessor_connections",
    "preread_timeout",
    "proxy_connect_timeout",
    "proxy_timeout",
    "read_hash",
    "read_hello",
    "req.ssl_sni",
    "server_hello",
    "set_real_ip_from",
    "ssl_fc_sni",
    "ssl_preread",
    "tcp_rmem",
    "tcp_wmem",
    "the_admin_listener_moves",
    "tls.",
    "tls.passthrough",
    "worker_shutdown_timeout",
];

/// What the last part of a file or a host is.
const ENDINGS: [&str; 18] = [
    "yaml", "yml", "md", "rs", "json", "cfg", "conf", "pem", "key", "service", "socket", "com", "internal", "example",
    "toml", "lock", "sock", "sh",
];

fn words(of: impl IntoIterator<Item = impl Into<String>>) -> BTreeSet<String> {
    of.into_iter().map(Into::into).collect()
}

/// A router that has served, and rejected, clients of every kind that its log lines tell apart.
struct Busy {
    router: Router,
    metrics: String,
    fields: BTreeSet<String>,
    _servers: (ApiServer, Backend),
}

impl Busy {
    fn new() -> Self {
        let (authority, directory) = (tls::Authority::new(), tempfile::tempdir().unwrap());
        let server = ApiServer::start(&authority, "kubernetes");
        let refuses = Backend::start(|mut stream| {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&crate::support::client::alert(40));
        });
        let ca = authority.write(directory.path(), "ca.pem");
        let router = Router::start(&format!(
            "listen: [{{name: direct, address: \"127.0.0.1:0\"}}, {{name: balanced, address: \"127.0.0.1:0\", accept_proxy: {{from: 127.0.0.0/8}}}}]
admin: 127.0.0.1:0
routes:
  - sni: kubernetes
    upstream: {{endpoints: [\"{}\"], health_check: {{interval: 100ms, tls: {{ca_file: {}}}}}}}
  - {{sni: refuses.example, upstream: \"{}\"}}
  - {{sni: tried.example, upstream: [\"{}\", \"{}\"]}}
  - {{sni: dead.example, upstream: {{endpoints: \"{}\", health_check: {{interval: 100ms}}}}}}
",
            server.address(), ca.display(), refuses.address(), closed(), server.address(), closed()
        ));
        let uncovered = "snigate_endpoint_certificate_uncovered_names{";
        eventually("a check", || router.get("/metrics").1.contains(uncovered));
        let direct = router.address_of(|name| name == "direct");
        let balanced = router.address_of(|name| name == "balanced");
        assert!(tls::get(direct, &authority, "kubernetes", None).is_ok());
        let header = b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 6443\r\n".to_vec();
        let hello = |name: &str| Hello::to(name).alpn(&["h2"]).extension(ENCRYPTED_CLIENT_HELLO, []).record();
        for (to, bytes) in [
            (direct, hello("refuses.example")),
            (direct, hello("unknown.example")),
            (balanced, [header, hello("refuses.example")].concat()),
        ] {
            let mut client = Client::send(to, &bytes);
            client.finish_if_open();
            client.rest();
        }
        let lines = router.wait_many("its connections", 4, |line| line["outcome"].is_string());
        let fields = lines.iter().flat_map(|line| line.as_object().unwrap().keys().cloned()).collect();
        // What is 0 for a route or an endpoint is left out.
        let _open = Client::send(direct, &hello("kubernetes"));
        let is_complete =
            |text: &str| text.contains("snigate_endpoint_connections{") && text.contains("snigate_route_failing_open{");
        eventually("all series", || is_complete(&router.get("/metrics").1));
        let metrics = router.get("/metrics").1;
        Self { router, metrics, fields, _servers: (server, refuses) }
    }

    /// Every family as it is scraped, with its labels.
    fn families(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut families = BTreeMap::new();
        let mut kinds = BTreeMap::new();
        for line in self.metrics.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                kinds.insert(name.to_owned(), kind.to_owned());
            }
            if line.starts_with('#') {
                continue;
            }
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let labels = labels.trim_end_matches('}').split("\",").filter_map(|label| label.split_once('='));
            let labels = labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le");
            let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let name =
                histogram.filter(|name| kinds.get(*name).is_some_and(|kind| kind == "histogram")).unwrap_or(name);
            families.entry(name.to_owned()).or_insert_with(BTreeSet::new).extend(labels);
        }
        families
    }

    fn outcomes(&self) -> BTreeSet<String> {
        let found = self.metrics.split("outcome=\"").skip(1);
        found.map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
    }
}

/// The names in the first column of a table, in `backticks`.
fn listed(path: &str, header: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for row in table(path, header) {
        for name in row[0].split('`').skip(1).step_by(2) {
            assert!(found.insert(name.to_owned()), "{path}: {name}: twice");
        }
    }
    found
}

#[track_caller]
fn are_the_same(what: &str, on_page: &BTreeSet<String>, real: &BTreeSet<String>) {
    let (missing, wrong): (Vec<_>, Vec<_>) = (real.difference(on_page).collect(), on_page.difference(real).collect());
    assert!(missing.is_empty() && wrong.is_empty(), "{what}: not on the page {missing:?}; only on the page {wrong:?}");
}

const OBSERVABILITY: &str = "docs/observability.md";

#[test]
fn the_tables_of_metrics_outcomes_fields_and_paths_are_complete_and_true() {
    let busy = Busy::new();
    let metrics = listed(OBSERVABILITY, "| metric | type | meaning |");
    let families = busy.families().into_iter().map(|(name, labels)| match labels.is_empty() {
        true => name,
        false => format!("{name}{{{}}}", sorted(labels.iter().map(String::as_str))),
    });
    let metrics = metrics.iter().map(|metric| match metric.strip_suffix('}').and_then(|rest| rest.split_once('{')) {
        Some((name, labels)) => format!("{name}{{{}}}", sorted(labels.split(','))),
        None => metric.clone(),
    });
    are_the_same("scraped metrics", &metrics.collect(), &families.collect());
    let outcomes = listed(OBSERVABILITY, "| outcome | meaning | alert | level | what to do |");
    are_the_same("labels of outcomes", &outcomes, &busy.outcomes());
    are_the_same("fields of log lines", &listed(OBSERVABILITY, "| field | meaning |"), &busy.fields);

    let paths = listed(OBSERVABILITY, "| path | what it returns |");
    for path in paths.iter().filter(|path| *path != "/api/events") {
        assert_eq!(busy.router.get(path).0, 200, "{path}");
    }
    let (_, hint) = busy.router.get("/nothing");
    for path in hint.split([' ', ',', '\n']).filter(|word| word.starts_with('/')) {
        assert!(paths.contains(path), "{path} is not on the page");
    }
}

fn sorted<'a>(labels: impl Iterator<Item = &'a str>) -> String {
    labels.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(",")
}

fn help(command: &[&str]) -> String {
    let output = snigate().args(command).arg("--help").output().unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The flags in a text, as `--flag` or `-f`.
fn flags(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| letter.is_whitespace() || "`,;()[]<>|=\"'".contains(letter));
    let is_flag = |word: &&str| {
        let name = word.trim_start_matches('-');
        let dashes = word.len() - name.len();
        let is_name = name.chars().all(|letter| letter.is_ascii_lowercase() || matches!(letter, '-' | '_'));
        is_name && (dashes == 2 && name.len() > 1 || dashes == 1 && name.len() == 1)
    };
    words.map(|word| word.trim_end_matches(['.', ':'])).filter(is_flag).map(Into::into).collect()
}

/// Every subcommand with its flags; not those that all have.
fn commands() -> BTreeMap<String, BTreeSet<String>> {
    commands_of(&[])
}

/// Those of this command.
fn commands_of(command: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    let text = help(command);
    let section = text.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = section.lines().map(|line| line.split_whitespace().next().unwrap()).filter(|name| *name != "help");
    let of = |name: &str| {
        let options = help(&[command, &[name]].concat()).split("Options:\n").nth(1).unwrap().to_owned();
        let is_own = |flag: &String| !["--help", "-h", "--version", "-V"].contains(&&**flag);
        // Where an option is defined, its line begins with it.
        let definitions = options.lines().filter(|line| line.trim_start().starts_with('-') && line.len() > 2);
        let definitions = definitions.filter(|line| !line.trim_start().starts_with("- "));
        let first = definitions.flat_map(|line| flags(line.trim_start().split("  ").next().unwrap()));
        first.filter(is_own).collect()
    };
    names.map(|name| (name.to_owned(), of(name))).collect()
}

/// Whether the program has this command, which may be a feature that is off by default.
fn is_built(command: &str) -> bool {
    command != "gateway" || cfg!(feature = "gateway")
}

/// Flags of other commands that are part of that feature.
const OF_CLUSTERS: [(&str, &[&str]); 4] = [
    (
        "doctor",
        &[
            "--kubeconfig",
            "--context",
            "--controller",
            "--namespace",
            "--publish-service",
            "--publish-address",
            "--ingress-class",
            "--ingress-port",
        ],
    ),
    ("check", IN_FILES),
    ("explain", IN_FILES),
    ("import", IN_FILES),
];

/// For objects in files.
const IN_FILES: &[&str] = &["--ingress-class", "--ingress-port"];

fn is_flag_built(command: &str, flag: &str) -> bool {
    let is_it = |(name, flags): &(&str, &[&str])| *name == command && flags.contains(&flag);
    is_built("gateway") || !OF_CLUSTERS.iter().any(is_it)
}

#[test]
fn the_table_of_commands_has_every_flag() {
    let mut commands = commands();
    assert!(commands.len() > 8, "{commands:?}");
    for row in table("docs/operations.md", "| command | what it does | options |") {
        let name = row[0].trim_matches('`').strip_prefix("snigate ").unwrap().to_owned();
        if !is_built(&name) {
            continue;
        }
        let real = commands.remove(&name).unwrap_or_else(|| panic!("there is no command {name}"));
        let long = |flags: &BTreeSet<String>| {
            let built = flags.iter().filter(|flag| is_flag_built(&name, flag));
            built.filter(|flag| flag.starts_with("--")).cloned().collect::<BTreeSet<_>>()
        };
        are_the_same(&format!("flags of {name}"), &long(&flags(&row[2])), &long(&real));
    }
    assert!(commands.is_empty(), "not on the page: {commands:?}");
}

#[test]
fn commands_on_pages_have_the_flags_that_they_are_given() {
    let (commands, verbs) = (commands(), commands_of(&["ctl"]));
    let mut count = 0;
    for path in all() {
        let shell =
            blocks(&path).into_iter().filter(|block| block.kind == "sh").map(|block| block.text.replace("\\\n", " "));
        let text: Vec<String> = shell.chain(code(&path)).collect();
        for line in text.iter().flat_map(|text| text.lines()) {
            for part in line.split("snigate ").skip(1) {
                let command = part.split(['#', '|', '>', '&', ';']).next().unwrap();
                let Some(name) = command.split_whitespace().next() else { continue };
                if !is_built(name) {
                    continue;
                }
                let Some(real) = commands.get(name) else {
                    // Such as `systemctl restart snigate 2>&1`; but what begins with it is one of its commands.
                    let is_typed = line.trim_start().starts_with("snigate ") && name.starts_with(char::is_alphabetic);
                    assert!(!is_typed, "{path}: {line}: there is no command {name}");
                    continue;
                };
                let verb = command.split_whitespace().nth(1).filter(|_| name == "ctl");
                let real = verb.and_then(|verb| verbs.get(verb)).unwrap_or(real);
                for flag in flags(command).into_iter().filter(|flag| is_flag_built(name, flag)) {
                    let is_common = ["--help", "--version"].contains(&&*flag);
                    assert!(is_common || real.contains(&flag), "{path}: snigate {name} has no {flag}");
                    count += 1;
                }
            }
        }
    }
    assert!(count > 15, "{count}");
}

/// All values that the schema lists, such as `least_connections`.
fn values(schema: &Value, found: &mut BTreeSet<String>) {
    match schema {
        Value::Object(map) => {
            for key in ["const", "enum"] {
                let listed =
                    map.get(key).into_iter().flat_map(|value| value.as_array().cloned().unwrap_or(vec![value.clone()]));
                found.extend(listed.filter_map(|value| value.as_str().map(Into::into)));
            }
            map.values().for_each(|value| values(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| values(value, found)),
        _ => {}
    }
}

#[test]
fn names_on_pages_are_keys_values_fields_metrics_or_outcomes() {
    let busy = Busy::new();
    let schema = schema();
    let paths = keys(&schema);
    let single: BTreeSet<&str> = paths.iter().flat_map(|path| path.split('.')).collect();
    let families = busy.families();
    let mut known = words(OTHERS.iter().copied());
    values(&schema, &mut known);
    known.extend(busy.outcomes());
    known.extend(busy.fields.iter().cloned());
    known.extend(families.keys().cloned());
    known.extend(single.iter().map(|key| (*key).to_owned()));
    let is_key = |name: &str| {
        let name = name.replace("[]", "");
        let is_end = |path: &String| *path == name || path.ends_with(&format!(".{name}"));
        paths.iter().any(is_end)
    };
    let is_file = |name: &str| ENDINGS.iter().any(|ending| name.ends_with(&format!(".{ending}")));
    let (mut unknown, mut others) = (BTreeSet::new(), BTreeSet::new());
    let mut count = 0;
    for path in all().into_iter().filter(|path| path != "tests/scenarios.md") {
        for span in code(&path) {
            let is_name =
                |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "_.[]".contains(letter);
            let has_letters = span.starts_with(|letter: char| letter.is_ascii_lowercase());
            let is_one = has_letters && span.chars().all(is_name) && span.contains(['_', '.']) && !is_file(&span);
            // `key: value`, as in a configuration.
            let before = span.split_once(": ").map(|(key, _)| key).filter(|key| {
                key.contains('_') && key.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_')
            });
            let name = if is_one { Some(&*span) } else { before };
            let Some(name) = name else { continue };
            count += 1;
            others.extend(OTHERS.iter().copied().find(|other| *other == name));
            if !known.contains(name) && !is_key(name) {
                unknown.insert(format!("{path}: {name}"));
            }
        }
        for metric in page(&path).split(|letter: char| !letter.is_ascii_lowercase() && letter != '_') {
            let is_metric = metric.starts_with("snigate_") || metric.starts_with("process_") && metric != "process_";
            if is_metric && !metric.ends_with('_') && !families.contains_key(metric) {
                unknown.insert(format!("{path}: {metric}"));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
    let unused: Vec<_> = OTHERS.iter().filter(|other| !others.contains(**other)).collect();
    assert!(unused.is_empty(), "on no page: {unused:?}");
    assert!(count > 150, "{count}");
}

#[test]
fn the_map_of_the_code_has_every_room() {
    let listed = listed("docs/architecture.md", "| room | what it holds |");
    let entries = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let rooms: BTreeSet<String> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            match (path.is_dir(), name) {
                (true, name) => format!("{name}/"),
                (false, "main.rs" | "lib.rs") => name.into(),
                (false, name) => name.trim_end_matches(".rs").into(),
            }
        })
        .collect();
    are_the_same("rooms in src/", &listed, &rooms);
}

/// The names of environment variables of the tests in a text.
fn variables(text: &str) -> BTreeSet<String> {
    let words = text.split(|letter: char| !letter.is_ascii_uppercase() && letter != '_');
    words.filter(|word| word.len() > "SNIGATE_".len() && word.starts_with("SNIGATE_")).map(Into::into).collect()
}

#[test]
fn every_variable_of_the_tests_is_explained() {
    let mut read = BTreeSet::new();
    for path in ["src", "tests"].map(sources).concat() {
        if !path.ends_with("pages/names.rs") {
            read.extend(variables(&std::fs::read_to_string(path).unwrap()));
        }
    }
    are_the_same("variables of the tests", &variables(&page("CONTRIBUTING.md")), &read);
}
