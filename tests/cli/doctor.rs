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

/// A cluster with a CA and an API server, and a configuration with a route to it.
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

struct Report {
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

    /// The same, with a router that runs this configuration.
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

    fn doctor(&self, arguments: &[&str]) -> Report {
        doctor(self.directory.path(), &self.config(), arguments)
    }
}

fn doctor(directory: &Path, config: &str, arguments: &[&str]) -> Report {
    let (code, stdout, stderr) = run(directory, config, &[&["--json"], arguments].concat());
    let document = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    Report { code, document }
}

fn run(directory: &Path, config: &str, arguments: &[&str]) -> (i32, String, String) {
    let path = directory.join("snigate.yaml");
    std::fs::write(&path, config).unwrap();
    let output = snigate().args(["doctor", "-c"]).arg(path).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const NOT_RUNNING: &str = "snigate is not reachable: ";

impl Report {
    fn checks(&self) -> impl Iterator<Item = &Value> {
        self.document["routes"].as_array().unwrap().iter().flat_map(|route| route["checks"].as_array().unwrap())
    }

    /// The text of the first check of this step, which must have this result.
    fn says(&self, step: &str, result: &str) -> &str {
        let check = self.checks().find(|check| check["step"] == step);
        let check = check.unwrap_or_else(|| panic!("no {step} in {:#}", self.document));
        assert_eq!(check["result"], result, "{:#}", self.document);
        check["says"].as_str().unwrap()
    }

    /// The step and the text of each failure, except that no snigate is running.
    fn failures(&self) -> Vec<(&str, &str)> {
        let all = self.checks().filter(|check| check["result"] == "failed");
        let all = all.map(|check| (check["step"].as_str().unwrap(), check["says"].as_str().unwrap()));
        all.filter(|(_, says)| !says.starts_with(NOT_RUNNING)).collect()
    }

    /// The only failure.
    fn failure(&self) -> (&str, &str) {
        assert_eq!((self.code, &self.document["ok"]), (1, &Value::Bool(false)), "{:#}", self.document);
        let failed = self.failures();
        assert_eq!(failed.len(), 1, "{failed:#?}");
        failed[0]
    }

    fn assert_ok(&self) {
        assert_eq!((self.code, &self.document["ok"]), (0, &Value::Bool(true)), "{:#}", self.document);
    }
}

#[test]
fn every_step_is_checked_end_to_end() {
    let (case, _router) = Case::running();
    let report = case.doctor(&[]);
    report.assert_ok();
    assert_eq!(report.document["routes"][0]["name"], "dev");
    assert!(report.says("dns", "ok").ends_with(": this machine"), "{:#}", report.document);
    assert_eq!(report.says("listener", "ok"), "accepts connections");
    assert_eq!(report.says("connect", "ok"), "accepts connections");
    assert_eq!(report.says("tls", "ok"), "TLS 1.3, no ALPN");
    assert!(report.says("chain", "ok").contains("ca.pem, issued by CN=test CA"), "{:#}", report.document);
    assert_eq!(report.says("names", "ok"), "the certificate is valid for localhost");
    assert!(report.says("expiry", "ok").starts_with("the certificate is valid until "));
    assert_eq!(report.says("ready", "ok"), "/readyz 200");
    assert_eq!(report.says("through", "ok"), "certificate of an endpoint; /readyz 200");
    for check in report.checks() {
        let is_timed = !matches!(check["step"].as_str().unwrap(), "chain" | "names" | "expiry");
        assert_eq!(check["took_ms"].is_u64(), is_timed, "{check}");
    }
    let (code, text, _) = run(case.directory.path(), &case.config(), &[]);
    assert_eq!(code, 0);
    assert!(text.starts_with("dev\n  ok     dns       localhost "), "{text}");
    assert!(text.ends_with("\n1 route, 9 checks: 0 failed, 0 notes\n") && !text.contains('\x1b'), "{text}");
}

#[test]
fn a_wrong_ca_fails_the_chain() {
    let mut case = Case::new();
    // Without health checks, which would ask the server, too.
    let unchecked = format!("{{name: dev, sni: {NAME}, upstream: \"{}\"}}", case.server.address());
    let router = Router::start(&format!("listen: 127.0.0.1:0\nroutes: [{unchecked}]\n"));
    case.listen = router.address();
    Authority::new().write(case.directory.path(), "ca.pem");
    let report = case.doctor(&[]);
    let says = report.says("chain", "failed");
    assert!(says.starts_with("the certificate was issued by CN=test CA, but not with the CA key in "), "{says}");
    assert!(report.checks().all(|check| check["step"] != "ready"), "no request goes to an unverified server");
    assert!(case.server.requests().is_empty());
    assert_eq!(report.code, 1);
}

#[test]
fn a_missing_san_is_reported_with_remedies() {
    let (mut case, _router) = Case::running();
    case.server.show(&case.authority.issue("kubernetes"));
    let report = case.doctor(&[]);
    assert_eq!(
        report.failure(),
        (
            "names",
            "the certificate is not valid for localhost; its DNS names: kubernetes; add localhost to its SANs, or set `tls-server-name: kubernetes` in kubeconfigs and add kubernetes to `sni`"
        )
    );
    // The second remedy turns the failure into a note.
    case.names = "localhost, kubernetes";
    let report = case.doctor(&[]);
    report.assert_ok();
    assert!(report.says("names", "note").contains("set `tls-server-name: kubernetes` in kubeconfigs"));
    case.names = "localhost";
    case.more = "  - {name: other, sni: kubernetes, upstream: \"127.0.0.1:1\"}\n".into();
    let report = case.doctor(&["dev"]);
    let remedy = "; add localhost to its SANs (`tls-server-name: kubernetes` in kubeconfigs would not help: the route other \
        has kubernetes in `sni`)";
    assert!(report.failure().1.ends_with(remedy), "{:#}", report.document);
    case.more.clear();
    case.names = "localhost, kubernetes, \"*.localhost\"";
    assert!(
        case.doctor(&[]).says("names", "note").starts_with("the certificate is not valid for localhost, *.localhost;")
    );
}

#[test]
fn a_missing_server_name_of_the_health_check_is_reported() {
    let case = Case::new();
    let config = case.config().replace("ca.pem}", "ca.pem, server_name: kubernetes}");
    let says = "the certificate is not valid for kubernetes (`health_check.tls.server_name`); its DNS names: localhost";
    assert_eq!(doctor(case.directory.path(), &config, &[]).failure(), ("chain", says));
}

#[test]
fn expiring_and_expired_certificates_are_reported() {
    let (case, _router) = Case::running();
    case.server.show(&case.authority.issue_for_days(NAME, 3));
    let report = case.doctor(&[]);
    report.assert_ok();
    assert!(report.says("expiry", "note").starts_with("the certificate expires on "), "{:#}", report.document);
    case.server.show(&case.authority.issue_expired(NAME));
    let report = case.doctor(&[]);
    assert_eq!(report.failure(), ("expiry", "the certificate expired on 2021-01-01"));
    assert!(report.says("through", "note").contains("which does not verify"), "{:#}", report.document);
    case.server.show(&case.authority.issue_from(NAME, 4000));
    let says = "the certificate is not valid before 4000-01-01: is a clock wrong?";
    assert_eq!(case.doctor(&[]).failure(), ("expiry", says));
}

#[test]
fn a_closed_port_is_reported() {
    let case = Case::new();
    let config = case.config().replace(&case.server.address().to_string(), &closed().to_string());
    let report = doctor(case.directory.path(), &config, &[]);
    assert_eq!(report.failure(), ("connect", "cannot connect: connection refused"));
}

#[test]
fn servers_without_tls_are_reported() {
    let mut case = Case::new();
    let talker = Backend::start(|mut stream| drop(stream.write_all(b"220 mail.example ESMTP\r\n")));
    for (server, says) in [
        (talker.address(), "the response is not TLS"),
        (Backend::start(drop).address(), "the connection was closed during the TLS handshake"),
    ] {
        let config = case.config().replace(&case.server.address().to_string(), &server.to_string());
        assert_eq!(doctor(case.directory.path(), &config, &[]).failure(), ("tls", says));
    }
    case.server.be(Mood::Hang);
    case.timeout = "200ms";
    let says = "TLS handshake failed: no response within 200ms";
    assert_eq!(case.doctor(&[]).failure(), ("tls", says));
}

#[test]
fn the_client_hello_matches_the_route() {
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
        let report = doctor(case.directory.path(), &config(&router.address().to_string()), &["dev"]);
        report.assert_ok();
        assert_eq!(report.says("through", "ok"), "certificate of an endpoint; /readyz 200");
    }
}

#[test]
fn an_unready_cluster_is_reported() {
    let (case, _router) = Case::running();
    case.server.be(Mood::Status(500, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed"));
    let report = case.doctor(&[]);
    assert_eq!(report.failure(), ("ready", "not ready: /readyz 500: etcd"));
    assert_eq!(report.says("through", "note"), "certificate of an endpoint; not ready: /readyz 500: etcd");
}

#[test]
fn a_server_that_requires_credentials_is_alive_and_a_token_is_not_printed() {
    let mut case = Case::new();
    case.server.be(Mood::Token("s3cret"));
    let report = case.doctor(&[]);
    assert_eq!(report.failures(), []);
    assert!(report.says("ready", "ok").contains("alive"), "{:#}", report.document);
    case.http = "token_file: token";
    std::fs::write(case.directory.path().join("token"), "s3cret\n").unwrap();
    let report = case.doctor(&[]);
    assert_eq!(report.says("ready", "ok"), "/readyz 200");
    assert!(!report.document.to_string().contains("s3cret"));

    case.http = "";
    case.server.demand(&case.authority.issue(NAME), &case.authority);
    let expected = "request failed: TLS: client certificate required; set \
        `client_certificate` and `client_key` in `health_check.http`";
    assert_eq!(case.doctor(&[]).failure(), ("ready", expected));
}

#[test]
fn an_unresolvable_endpoint_is_reported() {
    let case = Case::new();
    let config = case.config().replace(&case.server.address().to_string(), "api.nowhere.invalid:6443");
    let report = doctor(case.directory.path(), &config, &[]);
    let (step, says) = report.failure();
    assert!(step == "resolve" && says.starts_with("does not resolve: "), "{says}");
}

#[test]
fn a_snigate_that_is_not_running_is_reported() {
    let case = Case::new();
    let report = case.doctor(&[]);
    assert_eq!(report.code, 1);
    let says = report.says("listener", "failed");
    assert_eq!(says, format!("{NOT_RUNNING}connection refused; if it runs elsewhere, pass its address with --through"));
    assert!(report.checks().all(|check| check["step"] != "through"));
    let by_name = format!("localhost:{}", closed().port());
    let report = case.doctor(&["--through", &by_name]);
    assert_eq!(report.failure(), ("listener", "cannot connect: connection refused"));
}

#[test]
fn a_snigate_without_the_route_is_reported() {
    let case = Case::new();
    let older = case.config_at("127.0.0.1:0").replace("sni: [localhost]", "sni: older.example");
    let router = Router::start(&older);
    let report = case.doctor(&["--through", &router.address().to_string()]);
    let expected = "the running snigate has no route for localhost (unrecognized_name): was it reloaded?";
    assert_eq!(report.failure(), ("through", expected));
    for refuse in ["close", "reset"] {
        let router = Router::start(&older.replace("routes:", &format!("refuse: {refuse}\nroutes:")));
        let report = case.doctor(&["--through", &router.address().to_string()]);
        assert!(report.failure().1.starts_with("closed without a TLS alert: "), "{:#}", report.document);
    }
}

#[test]
fn a_hostname_below_a_wildcard_is_sent_as_sni() {
    let mut case = Case::new();
    case.names = "\"*.localhost\"";
    let router = Router::start(&case.config_at("127.0.0.1:0"));
    case.listen = router.address();
    case.server.show(&case.authority.issue("api.localhost"));
    let report = case.doctor(&[]);
    assert!(report.says("dns", "note").contains("NAME is such as api.localhost"), "{:#}", report.document);
    assert!(
        report.says("names", "note").starts_with("the certificate is not valid for *.localhost"),
        "{:#}",
        report.document
    );
    let report = case.doctor(&["API.localhost", "one.localhost"]);
    let hostnames: Vec<_> = report.document["routes"].as_array().unwrap().iter().map(|route| &route["asked"]).collect();
    assert_eq!(hostnames, ["api.localhost", "one.localhost"]);
    assert_eq!(report.says("names", "ok"), "the certificate is valid for api.localhost");
    assert_eq!(report.says("through", "ok"), "certificate of an endpoint; /readyz 200");
    let (step, says) = report.failure();
    assert!(
        step == "names" && says.starts_with("the certificate is not valid for one.localhost; its DNS names: api"),
        "{says}"
    );
    let report = case.doctor(&["api.localhost"]);
    report.assert_ok();

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
fn the_file_is_compared_with_the_running_configuration() {
    let mut case = Case::new();
    (case.listen, case.more) = (free(), format!("admin: {}\n", free()));
    let running = |report: &Report| {
        let check = &report.document["running"][0];
        (check["result"].as_str().unwrap().to_owned(), check["says"].as_str().unwrap().to_owned())
    };
    let report = case.doctor(&[]);
    let (result, says) = running(&report);
    assert!(
        result == "note" && says.contains("has loaded this file: cannot read the status from the admin listener at "),
        "{says}"
    );
    assert_eq!(case.doctor(&["--through", &closed().to_string()]).document["running"], Value::Null);

    let router = Router::start(&case.config());
    let report = case.doctor(&[]);
    report.assert_ok();
    let (result, says) = running(&report);
    assert!(result == "ok" && says.starts_with("the running snigate loaded this file at 2"), "{says}");

    let before = case.config();
    case.more += "watch: false\n";
    let (result, says) = running(&case.doctor(&[]));
    let command = format!("`kill -HUP {}`", router.pid().as_raw_nonzero());
    assert!(result == "note" && says.contains("has another configuration") && says.ends_with(&command), "{says}");

    router.reload("listen: nonsense\n");
    let report = case.doctor(&[]);
    let (result, says) = running(&report);
    assert!(
        result == "failed" && says.contains("it rejected the last reload: ") && says.contains("nonsense"),
        "{says}"
    );
    assert_eq!(report.code, 1);
    let (result, says) = running(&doctor(case.directory.path(), &before, &[]));
    assert!(result == "note" && says.contains("and rejected another one since"), "{says}");
    router.reload(&case.config());
    assert_eq!(running(&case.doctor(&[])).0, "ok");
    let (_, text, _) = run(case.directory.path(), &case.config(), &[]);
    assert!(text.starts_with("snigate\n  ok     file ") && text.contains("\n1 route, 10 checks: "), "{text}");
}

#[test]
fn denied_clients_are_reported() {
    let mut case = Case::new();
    let denies = |config: String| config.replace("    upstream:", "    deny: 127.0.0.0/8\n    upstream:");
    let router = Router::start(&denies(case.config_at("127.0.0.1:0")));
    case.listen = router.address();
    let report = doctor(case.directory.path(), &denies(case.config()), &[]);
    report.assert_ok();
    assert!(report.says("through", "note").contains("(access_denied)"), "{:#}", report.document);
    let report = case.doctor(&[]);
    assert!(report.failure().1.contains("but the configuration file allows it"), "{:#}", report.document);
}

#[test]
fn without_a_ca_certificates_are_compared_instead_of_verified() {
    let (case, _router) = Case::running();
    let route = |server: &ApiServer| {
        format!("listen: {}\nroutes: [{{sni: localhost, upstream: \"{}\"}}]\n", case.listen, server.address())
    };
    let plain = route(&case.server);
    let report = doctor(case.directory.path(), &plain, &[]);
    report.assert_ok();
    assert!(report.says("chain", "note").contains("not verified"), "{:#}", report.document);
    let ca = case.directory.path().join("ca.pem");
    let with_ca = ["--ca", ca.to_str().unwrap()];
    doctor(case.directory.path(), &plain, &with_ca).says("chain", "ok");

    let other = ApiServer::start(&Authority::new(), NAME);
    let report = doctor(case.directory.path(), &route(&other), &[]);
    let (step, says) = report.failure();
    assert!(step == "through" && says.starts_with("not the certificate of an endpoint: "), "{says}");
}

#[test]
fn routes_are_selected_by_name() {
    let mut case = Case::new();
    for name in ["one", "two"] {
        let upstream = case.server.address();
        let _ = writeln!(case.more, "  - {{name: {name}, sni: {name}.invalid, upstream: \"{upstream}\"}}");
    }
    let names = |report: &Report| -> Vec<String> {
        let routes = report.document["routes"].as_array().unwrap().iter();
        routes.map(|route| route["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&case.doctor(&[])), ["dev", "one", "two"]);
    let report = case.doctor(&["TWO.invalid", "dev"]);
    assert_eq!(names(&report), ["dev", "two"]);
    let (code, stdout, stderr) = run(case.directory.path(), &case.config(), &["three"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert_eq!(
        stderr,
        "snigate: no route has the name `three` or matches it by `sni`; expected one of dev, one, two\n"
    );
    assert_eq!(run(case.directory.path(), "listen: here\n", &[]).0, 78);
}

#[test]
fn a_hostname_is_checked_at_the_listeners_that_route_it() {
    let [one, two, upstream] = [closed(), closed(), closed()];
    let config = format!(
        "listen: [\"{one}\", {{name: two, address: \"{two}\"}}]
routes:
  - {{name: deep, sni: \"*.a.localhost\", listener: two, upstream: \"{upstream}\"}}
  - {{name: wide, sni: \"*.localhost\", upstream: \"{upstream}\"}}
"
    );
    let directory = TempDir::new().unwrap();
    let report = doctor(directory.path(), &config, &["q.a.localhost"]).document;
    let listeners = |route: &Value| -> Vec<Value> {
        let checks = route["checks"].as_array().unwrap().iter();
        checks.filter(|check| check["step"] == "listener").map(|check| check["subject"].clone()).collect()
    };
    let routes = report["routes"].as_array().unwrap().iter();
    let routes: Vec<_> = routes.map(|route| (route["name"].as_str().unwrap(), listeners(route))).collect();
    assert_eq!(routes, [("deep", vec![two.to_string().into()]), ("wide", vec![one.to_string().into()])]);
}

#[test]
fn a_local_snigate_is_not_the_one_at_through() {
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
    let report = running("192.0.2.1:1");
    let expected = "on this machine, not at --through: the running snigate has another configuration";
    assert!(report["result"] == "note" && report["says"].as_str().unwrap().starts_with(expected), "{report}");
}
