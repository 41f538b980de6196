//! `snigate doctor`

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::api_server::{ApiServer, Mood};
use crate::support::backend::{closed, free};
use crate::support::tls::Authority;
use crate::support::{Backend, Router, snigate};

const NAME: &str = "localhost";

/// A cluster with a CA and an API server, and a configuration that leads there.
struct Case {
    authority: Authority,
    server: ApiServer,
    directory: TempDir,
    listen: SocketAddr,
    names: &'static str,
    http: &'static str,
    timeout: &'static str,
    more: String,
}

struct Told {
    code: i32,
    document: Value,
}

impl Case {
    fn new() -> Self {
        let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
        authority.write(directory.path(), "ca.pem");
        let server = ApiServer::start(&authority, NAME);
        Self {
            authority,
            server,
            directory,
            listen: closed(),
            names: NAME,
            http: "",
            timeout: "4s",
            more: String::new(),
        }
    }

    /// Before a running one with the same routes.
    fn running() -> (Self, Router) {
        let mut case = Self::new();
        let router = Router::start(&case.config_at("127.0.0.1:0"));
        case.listen = router.address();
        (case, router)
    }

    fn config(&self) -> String {
        self.config_at(&self.listen.to_string())
    }

    fn config_at(&self, listen: &str) -> String {
        let ca = self.directory.path().join("ca.pem");
        let Self { server, names, http, timeout, more, .. } = self;
        format!(
            "listen: {listen}\nroutes:\n  - name: dev\n    sni: [{names}]\n    upstream:\n      endpoints: \"{}\"\n      health_check: {{timeout: {timeout}, tls: {{ca_file: {}}}, http: {{{http}}}}}\n{more}",
            server.address(),
            ca.display(),
        )
    }

    fn doctor(&self, arguments: &[&str]) -> Told {
        doctor(self.directory.path(), &self.config(), arguments)
    }
}

fn doctor(directory: &Path, config: &str, arguments: &[&str]) -> Told {
    let (code, stdout, stderr) = run(directory, config, &[&["--json"], arguments].concat());
    let document = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    Told { code, document }
}

fn run(directory: &Path, config: &str, arguments: &[&str]) -> (i32, String, String) {
    let path = directory.join("snigate.yaml");
    std::fs::write(&path, config).unwrap();
    let output = snigate().args(["doctor", "-c"]).arg(path).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const NOT_RUNNING: &str = "nobody accepts connections, so the way through it is not checked";

impl Told {
    fn checks(&self) -> impl Iterator<Item = &Value> {
        self.document["routes"].as_array().unwrap().iter().flat_map(|route| route["checks"].as_array().unwrap())
    }

    /// What the first check of this step says, which has this result.
    fn says(&self, step: &str, result: &str) -> &str {
        let check = self.checks().find(|check| check["step"] == step);
        let check = check.unwrap_or_else(|| panic!("no {step} in {:#}", self.document));
        assert_eq!(check["result"], result, "{:#}", self.document);
        check["says"].as_str().unwrap()
    }

    /// What has failed, aside from a snigate that does not run in this test.
    fn failures(&self) -> Vec<(&str, &str)> {
        let all = self.checks().filter(|check| check["result"] == "failed");
        let all = all.map(|check| (check["step"].as_str().unwrap(), check["says"].as_str().unwrap()));
        all.filter(|(_, says)| !says.starts_with(NOT_RUNNING)).collect()
    }

    /// That of the only failure.
    fn failure(&self) -> (&str, &str) {
        assert_eq!((self.code, &self.document["ok"]), (1, &Value::Bool(false)), "{:#}", self.document);
        let failed = self.failures();
        assert_eq!(failed.len(), 1, "{failed:#?}");
        failed[0]
    }

    fn is_well(&self) {
        assert_eq!((self.code, &self.document["ok"]), (0, &Value::Bool(true)), "{:#}", self.document);
    }
}

#[test]
fn what_is_well_is_said_end_to_end() {
    let (case, _router) = Case::running();
    let told = case.doctor(&[]);
    told.is_well();
    assert_eq!(told.document["routes"][0]["name"], "dev");
    assert!(told.says("dns", "ok").ends_with(": this machine"), "{:#}", told.document);
    assert_eq!(told.says("listener", "ok"), "accepts connections");
    assert_eq!(told.says("connect", "ok"), "accepts connections");
    assert_eq!(told.says("tls", "ok"), "TLS 1.3, no ALPN");
    assert!(told.says("chain", "ok").contains("ca.pem, issued by CN=test CA"), "{:#}", told.document);
    assert_eq!(told.says("names", "ok"), "the certificate is for localhost");
    assert!(told.says("expiry", "ok").starts_with("the certificate is valid until "));
    assert_eq!(told.says("ready", "ok"), "/readyz 200");
    assert_eq!(told.says("through", "ok"), "the certificate of an endpoint; /readyz 200");
    for check in told.checks() {
        let is_timed = !matches!(check["step"].as_str().unwrap(), "chain" | "names" | "expiry");
        assert_eq!(check["took_ms"].is_u64(), is_timed, "{check}");
    }
    let (code, text, _) = run(case.directory.path(), &case.config(), &[]);
    assert_eq!(code, 0);
    assert!(text.starts_with("dev\n  ok     dns       localhost "), "{text}");
    assert!(text.ends_with("\nroutes 1, checks 9, failed 0, notes 0\n") && !text.contains('\x1b'), "{text}");
}

#[test]
fn another_ca_is_told() {
    let (case, _router) = Case::running();
    Authority::new().write(case.directory.path(), "ca.pem");
    let told = case.doctor(&[]);
    let says = told.says("chain", "failed");
    assert!(says.starts_with("the certificate was issued by CN=test CA, but with another key than"), "{says}");
    assert!(told.checks().all(|check| check["step"] != "ready"), "nothing is sent to who is not believed");
    assert!(case.server.requests().is_empty());
    assert_eq!(told.code, 1);
}

#[test]
fn a_name_that_is_not_covered_is_told_with_its_cures() {
    let (mut case, _router) = Case::running();
    case.server.show(&case.authority.issue("kubernetes"));
    let told = case.doctor(&[]);
    assert_eq!(
        told.failure(),
        (
            "names",
            "the certificate is not for localhost, but for kubernetes: add localhost as a SAN to the API server's certificate, or set `tls-server-name: kubernetes` in kubeconfigs, with kubernetes added to `sni`"
        )
    );
    // Who has taken the second cure is not told for ever.
    case.names = "localhost, kubernetes";
    let told = case.doctor(&[]);
    told.is_well();
    assert!(told.says("names", "note").contains("set `tls-server-name: kubernetes` in kubeconfigs"));
    case.names = "localhost";
    case.more = "  - {name: other, sni: kubernetes, upstream: \"127.0.0.1:1\"}\n".into();
    let told = case.doctor(&["dev"]);
    let cure = "add localhost as a SAN to the API server's certificate (`tls-server-name: kubernetes` in kubeconfigs is no \
        cure: it would lead to the route other, which has that name in `sni`)";
    assert!(told.failure().1.ends_with(cure), "{:#}", told.document);
    case.more.clear();
    case.names = "localhost, kubernetes, \"*.localhost\"";
    assert!(case.doctor(&[]).says("names", "note").starts_with("the certificate is not for localhost, *.localhost,"));
}

#[test]
fn a_name_that_the_check_wants_is_told() {
    let case = Case::new();
    let config = case.config().replace("ca.pem}", "ca.pem, server_name: kubernetes}");
    let says = "the certificate is not for kubernetes (`health_check.tls.server_name`), but for localhost";
    assert_eq!(doctor(case.directory.path(), &config, &[]).failure(), ("chain", says));
}

#[test]
fn an_end_that_is_near_or_past_is_told() {
    let (case, _router) = Case::running();
    case.server.show(&case.authority.issue_for_days(NAME, 3));
    let told = case.doctor(&[]);
    told.is_well();
    assert!(told.says("expiry", "note").starts_with("the certificate expires on "), "{:#}", told.document);
    case.server.show(&case.authority.issue_expired(NAME));
    let told = case.doctor(&[]);
    assert_eq!(told.failure(), ("expiry", "the certificate has expired on 2021-01-01"));
    assert!(told.says("through", "note").contains("which is not believed"), "{:#}", told.document);
    case.server.show(&case.authority.issue_from(NAME, 4000));
    let says = "the certificate is not valid before 4000-01-01: is a clock wrong?";
    assert_eq!(case.doctor(&[]).failure(), ("expiry", says));
}

#[test]
fn a_closed_port_is_told() {
    let case = Case::new();
    let config = case.config().replace(&case.server.address().to_string(), &closed().to_string());
    let told = doctor(case.directory.path(), &config, &[]);
    assert_eq!(told.failure(), ("connect", "cannot be reached: connection refused"));
}

#[test]
fn what_is_not_tls_is_told() {
    let mut case = Case::new();
    let talker = Backend::start(|mut stream| drop(stream.write_all(b"220 mail.example ESMTP\r\n")));
    for (server, says) in [
        (talker.address(), "what answers is not TLS"),
        (Backend::start(drop).address(), "closes the connection instead of speaking TLS"),
    ] {
        let config = case.config().replace(&case.server.address().to_string(), &server.to_string());
        assert_eq!(doctor(case.directory.path(), &config, &[]).failure(), ("tls", says));
    }
    case.server.be(Mood::Hang);
    case.timeout = "200ms";
    let says = "accepts connections, but does not speak TLS: no answer within 200ms";
    assert_eq!(case.doctor(&[]).failure(), ("tls", says));
}

#[test]
fn what_takes_the_route_is_asked_for() {
    let case = Case::new();
    for (own, others) in [
        ("sni: [localhost]", ""),
        ("sni: localhost\n    alpn: h2", "sni: localhost"),
        ("sni: \"*.a.example\"", "sni: [a.example, \"*.example\"]"),
        ("max_connections: 10", "sni: [localhost, \"*.example\"]"),
    ] {
        let other = closed();
        let others = if others.is_empty() {
            String::new()
        } else {
            format!("  - {{name: other, {others}, upstream: \"{other}\"}}\n")
        };
        let config = |listen: &str| case.config_at(listen).replace("sni: [localhost]", own) + &others;
        let router = Router::start(&config("127.0.0.1:0"));
        let told = doctor(case.directory.path(), &config(&router.address().to_string()), &["dev"]);
        told.is_well();
        assert_eq!(told.says("through", "ok"), "the certificate of an endpoint; /readyz 200");
    }
}

#[test]
fn a_cluster_that_is_not_ready_is_told() {
    let (case, _router) = Case::running();
    case.server.be(Mood::Status(500, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed"));
    let told = case.doctor(&[]);
    assert_eq!(told.failure(), ("ready", "not ready: /readyz 500: etcd"));
    assert_eq!(told.says("through", "note"), "the certificate of an endpoint; not ready: /readyz 500: etcd");
}

#[test]
fn who_wants_to_know_who_asks_is_alive_and_a_token_is_not_shown() {
    let mut case = Case::new();
    case.server.be(Mood::Token("s3cret"));
    let told = case.doctor(&[]);
    assert_eq!(told.failures(), []);
    assert!(told.says("ready", "ok").contains("alive"), "{:#}", told.document);
    case.http = "token_file: token";
    std::fs::write(case.directory.path().join("token"), "s3cret\n").unwrap();
    let told = case.doctor(&[]);
    assert_eq!(told.says("ready", "ok"), "/readyz 200");
    assert!(!told.document.to_string().contains("s3cret"));

    case.http = "";
    case.server.demand(&case.authority.issue(NAME), &case.authority);
    let expected = "does not answer as an API server does: TLS: client certificate required; set \
        `client_certificate` and `client_key` in `health_check.http`";
    assert_eq!(case.doctor(&[]).failure(), ("ready", expected));
}

#[test]
fn an_upstream_name_that_does_not_resolve_is_told() {
    let case = Case::new();
    let config = case.config().replace(&case.server.address().to_string(), "api.nowhere.invalid:6443");
    let told = doctor(case.directory.path(), &config, &[]);
    let (step, says) = told.failure();
    assert!(step == "resolve" && says.starts_with("does not resolve: "), "{says}");
}

#[test]
fn a_snigate_that_does_not_run_is_told() {
    let case = Case::new();
    let told = case.doctor(&[]);
    assert_eq!(told.code, 1);
    let says = told.says("listener", "failed");
    assert_eq!(says, format!("{NOT_RUNNING}: connection refused; does snigate run here? (--through)"));
    assert!(told.checks().all(|check| check["step"] != "through"));
    let by_name = format!("localhost:{}", closed().port());
    let told = case.doctor(&["--through", &by_name]);
    assert_eq!(told.failure(), ("listener", "does not accept connections: connection refused"));
}

#[test]
fn a_snigate_with_an_older_configuration_is_told() {
    let case = Case::new();
    let older = case.config_at("127.0.0.1:0").replace("sni: [localhost]", "sni: older.example");
    let router = Router::start(&older);
    let told = case.doctor(&["--through", &router.address().to_string()]);
    let expected = "the running snigate has no route for localhost (unrecognized_name): was it reloaded?";
    assert_eq!(told.failure(), ("through", expected));
    for refuse in ["close", "reset"] {
        let router = Router::start(&older.replace("routes:", &format!("refuse: {refuse}\nroutes:")));
        let told = case.doctor(&["--through", &router.address().to_string()]);
        assert!(told.failure().1.starts_with("closed without a word: "), "{:#}", told.document);
    }
}

#[test]
fn a_name_below_a_wildcard_is_asked_for() {
    let mut case = Case::new();
    case.names = "\"*.localhost\"";
    let router = Router::start(&case.config_at("127.0.0.1:0"));
    case.listen = router.address();
    case.server.show(&case.authority.issue("api.localhost"));
    let told = case.doctor(&[]);
    assert!(told.says("dns", "note").contains("NAME is such as api.localhost"), "{:#}", told.document);
    assert!(told.says("names", "note").starts_with("the certificate is not for *.localhost"), "{:#}", told.document);
    let told = case.doctor(&["API.localhost", "one.localhost"]);
    let asked: Vec<_> = told.document["routes"].as_array().unwrap().iter().map(|route| &route["asked"]).collect();
    assert_eq!(asked, ["api.localhost", "one.localhost"]);
    assert_eq!(told.says("names", "ok"), "the certificate is for api.localhost");
    assert_eq!(told.says("through", "ok"), "the certificate of an endpoint; /readyz 200");
    let (step, says) = told.failure();
    assert!(step == "names" && says.starts_with("the certificate is not for one.localhost, but for api"), "{says}");
    let told = case.doctor(&["api.localhost"]);
    told.is_well();

    let (code, _, stderr) = run(case.directory.path(), &case.config(), &["api.localhots"]);
    let expected = "snigate: no route has the name `api.localhots` or matches it by `sni`; expected one of dev\n";
    assert_eq!((code, stderr.as_str()), (1, expected));
    let more =
        "  - {name: other, sni: one.example, upstream: \"127.0.0.1:1\"}\n  - {name: rest, upstream: \"127.0.0.1:1\"}\n";
    let (_, _, stderr) = run(case.directory.path(), &(case.config() + more), &["noe.example"]);
    let expected = "did you mean `one.example`? (`rest` is the catch-all route)\n";
    assert!(stderr.ends_with(expected), "{stderr}");
}

#[test]
fn whether_the_running_snigate_has_the_file_is_told() {
    let mut case = Case::new();
    (case.listen, case.more) = (free(), format!("admin: {}\n", free()));
    let running = |told: &Told| {
        let check = &told.document["running"][0];
        (check["result"].as_str().unwrap().to_owned(), check["says"].as_str().unwrap().to_owned())
    };
    let told = case.doctor(&[]);
    let (result, says) = running(&told);
    assert!(
        result == "note" && says.contains("not known: cannot read the status from the admin listener at "),
        "{says}"
    );
    assert_eq!(case.doctor(&["--through", &closed().to_string()]).document["running"], Value::Null);

    let router = Router::start(&case.config());
    let told = case.doctor(&[]);
    told.is_well();
    let (result, says) = running(&told);
    assert!(result == "ok" && says.starts_with("the running snigate has taken this file at 2"), "{says}");

    let before = case.config();
    case.more += "watch: false\n";
    let (result, says) = running(&case.doctor(&[]));
    let cure = format!("kill -HUP {} (systemctl reload snigate) makes one", router.pid().as_raw_nonzero());
    assert!(
        result == "note" && says.contains("another configuration than this file") && says.ends_with(&cure),
        "{says}"
    );

    router.reload("listen: nonsense\n");
    let told = case.doctor(&[]);
    let (result, says) = running(&told);
    assert!(
        result == "failed" && says.contains("has refused the last reload: ") && says.contains("nonsense"),
        "{says}"
    );
    assert_eq!(told.code, 1);
    let (result, says) = running(&doctor(case.directory.path(), &before, &[]));
    assert!(result == "note" && says.contains("and refused another one since"), "{says}");
    router.reload(&case.config());
    assert_eq!(running(&case.doctor(&[])).0, "ok");
    let (_, text, _) = run(case.directory.path(), &case.config(), &[]);
    assert!(text.starts_with("snigate\n  ok     file ") && text.contains("\nroutes 1, checks 10,"), "{text}");
}

#[test]
fn who_is_not_let_in_is_told() {
    let mut case = Case::new();
    let denies = |config: String| config.replace("    upstream:", "    deny: 127.0.0.0/8\n    upstream:");
    let router = Router::start(&denies(case.config_at("127.0.0.1:0")));
    case.listen = router.address();
    let told = doctor(case.directory.path(), &denies(case.config()), &[]);
    told.is_well();
    assert!(told.says("through", "note").contains("(access_denied)"), "{:#}", told.document);
    let told = case.doctor(&[]);
    assert!(told.failure().1.contains("although the configuration does"), "{:#}", told.document);
}

#[test]
fn without_a_ca_nothing_is_verified_and_another_certificate_is_seen() {
    let (case, _router) = Case::running();
    let route = |server: &ApiServer| {
        format!("listen: {}\nroutes: [{{sni: localhost, upstream: \"{}\"}}]\n", case.listen, server.address())
    };
    let plain = route(&case.server);
    let told = doctor(case.directory.path(), &plain, &[]);
    told.is_well();
    assert!(told.says("chain", "note").contains("not verified"), "{:#}", told.document);
    let ca = case.directory.path().join("ca.pem");
    let with_ca = ["--ca", ca.to_str().unwrap()];
    doctor(case.directory.path(), &plain, &with_ca).says("chain", "ok");

    let other = ApiServer::start(&Authority::new(), NAME);
    let told = doctor(case.directory.path(), &route(&other), &[]);
    let (step, says) = told.failure();
    assert!(step == "through" && says.starts_with("a certificate that no endpoint has shown: "), "{says}");
}

#[test]
fn routes_are_chosen_by_name() {
    let mut case = Case::new();
    for name in ["one", "two"] {
        let upstream = case.server.address();
        let _ = writeln!(case.more, "  - {{name: {name}, sni: {name}.invalid, upstream: \"{upstream}\"}}");
    }
    let names = |told: &Told| -> Vec<String> {
        let routes = told.document["routes"].as_array().unwrap().iter();
        routes.map(|route| route["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&case.doctor(&[])), ["dev", "one", "two"]);
    let told = case.doctor(&["TWO.invalid", "dev"]);
    assert_eq!(names(&told), ["dev", "two"]);
    let (code, stdout, stderr) = run(case.directory.path(), &case.config(), &["three"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert_eq!(
        stderr,
        "snigate: no route has the name `three` or matches it by `sni`; expected one of dev, one, two\n"
    );
    assert_eq!(run(case.directory.path(), "listen: here\n", &[]).0, 78);
}

#[test]
fn a_name_is_checked_at_the_listeners_where_it_leads_to_the_route() {
    let [one, two, upstream] = [closed(), closed(), closed()];
    let config = format!(
        "listen: [\"{one}\", {{name: two, address: \"{two}\"}}]
routes:
  - {{name: deep, sni: \"*.a.localhost\", listener: two, upstream: \"{upstream}\"}}
  - {{name: wide, sni: \"*.localhost\", upstream: \"{upstream}\"}}
"
    );
    let directory = TempDir::new().unwrap();
    let told = doctor(directory.path(), &config, &["q.a.localhost"]).document;
    let listeners = |route: &Value| -> Vec<Value> {
        let checks = route["checks"].as_array().unwrap().iter();
        checks.filter(|check| check["step"] == "listener").map(|check| check["subject"].clone()).collect()
    };
    let routes = told["routes"].as_array().unwrap().iter();
    let routes: Vec<_> = routes.map(|route| (route["name"].as_str().unwrap(), listeners(route))).collect();
    assert_eq!(routes, [("deep", vec![two.to_string().into()]), ("wide", vec![one.to_string().into()])]);
}

#[test]
fn a_snigate_here_is_not_the_one_elsewhere() {
    let config = format!(
        "listen: 127.0.0.1:0\nadmin: {}\nroutes: [{{sni: a.localhost, upstream: {{endpoints: \"{}\", connect: {{timeout: 100ms, per_try: 100ms}}}}}}]\n",
        free(),
        closed()
    );
    let router = Router::start(&config);
    router.reload("listen: nonsense\n");
    let config = format!("{config}watch: false\n");
    let directory = TempDir::new().unwrap();
    let running =
        |through: &str| doctor(directory.path(), &config, &["--through", through]).document["running"][0].clone();
    assert_eq!(running("127.0.0.1:1")["result"], "failed");
    let told = running("192.0.2.1:1");
    let expected = "on this machine, not where --through leads: the running snigate has another configuration";
    assert!(told["result"] == "note" && told["says"].as_str().unwrap().starts_with(expected), "{told}");
}
