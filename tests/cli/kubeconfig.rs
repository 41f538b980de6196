//! `snigate kubeconfig`, and kubectl with what it prints.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_yaml::Value;
use tempfile::TempDir;

use crate::support::backend::free;
use crate::support::tls::{self, Authority};
use crate::support::{Backend, Router, snigate};

/// A name that resolves everywhere.
const NAME: &str = "localhost";
const ALIAS: &str = "apiserver.devkubernetes01.l4lb.thisdcos.directory";

/// Without credentials, kubectl would prompt for a user name.
const TOKEN: &[&str] = &["--token=x"];

/// A directory with a configuration and the CA of its cluster.
struct Place {
    directory: TempDir,
    authority: Authority,
}

impl Place {
    fn new(config: &str) -> Self {
        let (directory, authority) = (TempDir::new().unwrap(), Authority::new());
        authority.write(directory.path(), "ca.pem");
        let place = Self { directory, authority };
        place.write("snigate.yaml", config);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// The exit code, and all output.
    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = snigate();
        command.args(["kubeconfig", "-c", "snigate.yaml"]).args(arguments).current_dir(self.directory.path());
        let ran = command.output().unwrap();
        let output = String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap();
        (ran.status.code(), output)
    }

    fn print(&self, arguments: &[&str]) -> String {
        let (code, output) = self.run(arguments);
        assert_eq!(code, Some(0), "{output}");
        output
    }

    /// The first cluster of the printed kubeconfig.
    fn cluster(&self, arguments: &[&str]) -> Value {
        parse(&self.print(arguments))["clusters"][0]["cluster"].clone()
    }

    fn refuses(&self, arguments: &[&str], expected: &str) {
        let (code, output) = self.run(arguments);
        assert_eq!(code, Some(1), "{output}");
        assert_eq!(output, format!("snigate: {expected}\n"));
    }

    /// Runs kubectl with the printed kubeconfig, and returns its output.
    fn kubectl(&self, arguments: &[&str], credentials: &[&str]) -> String {
        let printed = self.print(arguments);
        // It must work in any directory.
        let elsewhere = TempDir::new().unwrap();
        let path = elsewhere.path().join("config");
        std::fs::write(&path, &printed).unwrap();
        let run = |arguments: &[&str]| {
            let mut command = Command::new("kubectl");
            command.arg("--kubeconfig").arg(&path).args(arguments).stdin(Stdio::null());
            let output = command.output().expect("kubectl is needed");
            (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
        };
        let (accepted, viewed) = run(&["config", "view", "--raw"]);
        assert!(accepted, "{viewed}\nof\n{printed}");
        assert_eq!(parse(&viewed)["clusters"], parse(&printed)["clusters"]);
        let (_, output) = run(&[credentials, &["get", "--raw", "/readyz"]].concat());
        output
    }
}

fn parse(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

/// A route's `upstream` with a check that verifies this name.
fn checked(server_name: Option<&str>) -> String {
    let name = server_name.map_or(String::new(), |name| format!(", server_name: {name}"));
    format!("{{endpoints: \"10.0.0.1:6443\", health_check: {{tls: {{ca_file: ca.pem{name}}}}}}}")
}

fn two_routes(dev_upstream: &str) -> String {
    format!(
        "listen: [\"[::]:6443\", {{name: inside, address: \"127.0.0.1:7443\"}}]
routes:
  - {{name: dev, sni: [\"*.dev.example.com\", Dev.example.com, alias.example.com], upstream: {dev_upstream}}}
  - {{sni: prod.example.com, listener: inside, upstream: 10.0.0.2:6443}}
"
    )
}

#[test]
fn a_cluster_is_found_by_its_route_or_a_name() {
    let place = Place::new(&two_routes(&checked(None)));
    let printed = place.print(&["dev"]);
    assert!(printed.lines().take(2).all(|line| line.starts_with("# ")), "{printed}");
    let value = parse(&printed);
    assert_eq!((&value["apiVersion"], &value["kind"]), (&"v1".into(), &"Config".into()));
    assert_eq!((&value["current-context"], &value["contexts"][0]["name"]), (&"dev".into(), &"dev".into()));
    assert_eq!(value["contexts"][0]["context"]["cluster"], "dev");
    assert_eq!(value["clusters"][0]["name"], "dev");
    let cluster = &value["clusters"][0]["cluster"];
    assert_eq!(cluster["server"], "https://dev.example.com:6443");
    assert_eq!(cluster.as_mapping().unwrap().len(), 2, "{printed}");
    let data = cluster["certificate-authority-data"].as_str().unwrap();
    let pem = data_encoding::BASE64.decode(data.as_bytes()).unwrap();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&String::from_utf8(pem).unwrap()), lines(&std::fs::read_to_string(place.path("ca.pem")).unwrap()));
    for name in ["Alias.Example.com.", "*.dev.example.com"] {
        assert_eq!(place.print(&[name]), printed);
    }
    let below = parse(&place.print(&["One.dev.example.com"]));
    assert_eq!(below["clusters"][0]["cluster"]["server"], "https://one.dev.example.com:6443");
    assert_eq!(below["current-context"], "one.dev.example.com");
    let prod = place.cluster(&["prod.example.com", "--ca", "ca.pem"]);
    assert_eq!(prod["server"], "https://prod.example.com:7443");
    let called = parse(&place.print(&["dev", "--cluster", "0x10"]));
    assert_eq!((&called["clusters"][0]["name"], &called["current-context"]), (&"0x10".into(), &"0x10".into()));
}

#[test]
fn only_certificates_are_printed() {
    let place = Place::new(&two_routes("10.0.0.1:6443"));
    let (_, key) = place.authority.issue("jane").write(place.directory.path(), "jane");
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    place.write("both.pem", &(read(&key) + &read(&place.path("ca.pem"))));
    assert_eq!(place.print(&["dev", "--ca", "both.pem"]), place.print(&["dev", "--ca", "ca.pem"]));
    place.write("none.pem", "a certificate");
    place.refuses(
        &["dev", "--ca", "none.pem"],
        "none.pem: no certificate found; expected PEM (-----BEGIN CERTIFICATE-----)",
    );
    let insecure = place.cluster(&["dev", "--insecure-skip-tls-verify"]);
    assert_eq!(insecure["insecure-skip-tls-verify"], true);
    assert!(insecure.get("certificate-authority-data").is_none());
}

#[test]
fn tls_server_name_is_set_where_kubectl_needs_it() {
    let name = |upstream: &str, arguments: &[&str]| {
        let place = Place::new(&two_routes(upstream));
        place.cluster(&[&["dev"], arguments].concat()).get("tls-server-name").cloned()
    };
    let plain = checked(None);
    assert_eq!(name(&plain, &[]), None);
    assert_eq!(name(&checked(Some("dev.example.com")), &[]), None);
    assert_eq!(name(&checked(Some("alias.example.com")), &[]), Some("alias.example.com".into()));
    assert_eq!(name(&checked(Some("kubernetes")), &[]), None, "it is not routed");
    for address in ["https://192.0.2.1:6443", "https://[2001:db8::1]", "https://balancer.example:443/one"] {
        assert_eq!(name(&plain, &["--server", address]), Some("dev.example.com".into()), "{address}");
    }
    assert_eq!(name(&plain, &["--server", "https://x.dev.example.com"]), None);
    let address = ["--server", "https://192.0.2.1:6443", "--insecure-skip-tls-verify"];
    assert_eq!(name(&checked(Some("alias.example.com")), &address), Some("dev.example.com".into()));
    assert_eq!(name(&plain, &["--tls-server-name", "X.dev.example.com"]), Some("x.dev.example.com".into()));

    let place = Place::new(&two_routes(&checked(Some("kubernetes"))));
    assert!(place.print(&["dev"]).contains("add `kubernetes` to the route's `sni`"));
    let catch_all = Place::new(&format!("listen: \"[::]:6443\"\nroutes: [{{upstream: {plain}}}]\n"));
    let cluster = catch_all.cluster(&["default", "--server", "https://192.0.2.1:6443"]);
    assert!(cluster.get("tls-server-name").is_none(), "it matches clients without SNI");
}

#[test]
fn errors_say_what_is_expected() {
    let place = Place::new(&two_routes("10.0.0.1:6443"));
    place
        .refuses(&["tst"], "no route has the name `tst` or matches it by `sni`; expected one of dev, prod.example.com");
    let expected = "no route has the name `prd.example.com` or matches it by `sni`; did you mean `prod.example.com`?";
    place.refuses(&["prd.example.com"], expected);
    place.refuses(
        &["dev"],
        "no CA for the route `dev`: API servers do not send theirs, so it cannot be fetched; expected --ca FILE, \
         `health_check: {tls: {ca_file: FILE}}` in its `upstream`, or --insecure-skip-tls-verify",
    );
    place.refuses(
        &["dev", "--ca", "ca.pem", "--tls-server-name", "kubernetes"],
        "clients with the SNI `kubernetes` are rejected; expected one of *.dev.example.com, dev.example.com, \
         alias.example.com, or `kubernetes` added to `sni` of the route `dev`",
    );
    let (code, output) = place.run(&["dev", "--server", "http://dev.example.com"]);
    assert!(code == Some(2) && output.contains("expected a URL such as https://"), "{output}");

    let place = Place::new(
        "listen: 127.0.0.1:0
routes:
  - {name: below, sni: \"*.example.com\", upstream: 10.0.0.1:6443}
  - {name: one, sni: a.example, upstream: 10.0.0.2:6443}
  - {name: h2, sni: a.example, alpn: h2, upstream: 10.0.0.3:6443}
  - {name: rest, upstream: 10.0.0.4:6443}
",
    );
    place.refuses(
        &["below"],
        "the route `below` has only wildcards in `sni`, so the hostname of the URL is unknown; expected a hostname below one \
         of them instead of the route's name, or --server https://NAME:PORT",
    );
    place.refuses(
        &["rest"],
        "the route `rest` has no `sni`, so the hostname of the URL is unknown; expected --server https://NAME:PORT",
    );
    place.refuses(
        &["one"],
        "the kernel chooses the port of the listener `127.0.0.1:0`; expected --server https://a.example:PORT",
    );
    place.refuses(&["a.example"], "several routes match `a.example`; expected one of one, h2");
    let at_address = ["below", "--server", "https://192.0.2.1", "--ca", "ca.pem"];
    place.refuses(
        &at_address,
        "clients of https://192.0.2.1 send no SNI and are routed to the route `rest`; expected another --server, or \
         --tls-server-name NAME where NAME is one of *.example.com",
    );
    let at_name = ["one", "--server", "https://a.example", "--ca", "ca.pem"];
    let (code, output) = place.run(&at_name);
    assert!(
        code == Some(1) && output.contains("send the SNI `a.example` and are routed to the route `h2`"),
        "{output}"
    );
    assert!(
        output.ends_with("; expected another --server, or a name in `sni` of `one` that no other route has\n"),
        "{output}"
    );
    place.refuses(
        &[&at_name[..], &["--tls-server-name", "a.example"]].concat(),
        "clients with the SNI `a.example` are routed to the route `h2`; expected a name in `sni` of `one` that no other route has",
    );
    place.write("snigate.yaml", "listen: nonsense");
    assert_eq!(place.run(&["one"]).0, Some(78));
}

#[test]
fn only_names_that_are_routed_to_the_route_are_suggested() {
    let place = Place::new(
        "listen: 192.0.2.1:6443
routes:
  - {name: foo, sni: x.example.com, alpn: [foo], upstream: 10.0.0.1:6443}
  - {name: wide, sni: [\"*.example.com\", \"*.b.example\", c.example], upstream: 10.0.0.2:6443}
  - {name: b, sni: [\"*.b.example\", c.example], alpn: h2, upstream: 10.0.0.3:6443}
",
    );
    let requires = "the route `foo` requires another ALPN than kubectl's h2 and http/1.1";
    let ca = ["--ca", "ca.pem"];
    place.refuses(
        &[&["foo"][..], &ca].concat(),
        &format!(
            "clients of https://x.example.com:6443 send the SNI `x.example.com` and are routed to the route `wide`: {requires}"
        ),
    );
    place.refuses(
        &[&["foo", "--tls-server-name", "x.example.com"][..], &ca].concat(),
        &format!("clients with the SNI `x.example.com` are routed to the route `wide`: {requires}"),
    );
    place.refuses(
        &[&["wide"][..], &ca].concat(),
        "clients of https://c.example:6443 send the SNI `c.example` and are routed to the route `b`; expected another --server, \
         or --tls-server-name NAME where NAME is one of *.example.com",
    );
}

#[test]
fn a_wildcard_selects_the_routes_that_it_reaches() {
    let place = Place::new(
        "listen: [192.0.2.1:6443, {name: two, address: 192.0.2.1:7443}]
routes:
  - {name: deep, sni: \"*.a.example.com\", listener: two, upstream: 10.0.0.1:6443}
  - {name: wide, sni: \"*.example.com\", upstream: 10.0.0.2:6443}
  - {name: h2, sni: \"*.b.example.com\", alpn: h2, upstream: 10.0.0.3:6443}
  - {name: b, sni: \"*.b.example.com\", upstream: 10.0.0.4:6443}
",
    );
    let several = |name: &str, routes| {
        place.refuses(&[name], &format!("several routes match `{name}`; expected one of {routes}"))
    };
    several("q.a.example.com", "deep, wide");
    several("q.b.example.com", "h2, b");
    let cluster = place.cluster(&["q.c.example.com", "--ca", "ca.pem"]);
    assert_eq!(cluster["server"], "https://q.c.example.com:6443");
}

const KUBECONFIG: &str = "apiVersion: v1
kind: Config
preferences: {colors: true}
current-context: here
contexts:
- {name: here, context: {cluster: dev, user: jane, namespace: \"on\"}}
- {name: there, context: {cluster: other, user: joe}}
clusters:
- name: other
  cluster: {server: \"https://192.0.2.9\", certificate-authority: other-ca.pem}
- name: dev
  cluster:
    server: https://alias.example.com:6443
    certificate-authority: ca.pem
    certificate-authority-data: aXQgc3RheXM=
    proxy-url: socks5://127.0.0.1:1080
users:
- name: jane
  user: {client-certificate: pki/jane.pem, client-key: /etc/jane-key.pem, token: \"1_000\"}
- name: joe
  user:
    tokenFile: token
    exec: {command: bin/login, args: [\"0x1\", -v], env: null}
";

#[test]
fn only_one_cluster_of_a_kubeconfig_is_changed() {
    let place = Place::new(&two_routes("10.0.0.1:6443"));
    std::fs::create_dir(place.path("kube")).unwrap();
    place.write("kube/config", KUBECONFIG);
    let printed = place.print(&["dev", "--from", "kube/config"]);
    assert!(printed.contains("\n# Relative paths of files were made absolute"), "{printed}");
    assert!(
        printed.contains("namespace: \"on\"") && printed.contains("token: \"1_000\""),
        "words that YAML 1.1 reads as other types stay quoted"
    );
    let absolute = |name: &str| place.path("kube").join(name).to_str().unwrap().to_owned();
    let mut expected = parse(KUBECONFIG);
    let dev = expected["clusters"][1]["cluster"].as_mapping_mut().unwrap();
    dev.remove("certificate-authority");
    dev["server"] = "https://dev.example.com:6443".into();
    // The certificate is valid for it, as kubectl has verified it so far.
    dev.insert("tls-server-name".into(), "alias.example.com".into());
    expected["clusters"][0]["cluster"]["certificate-authority"] = absolute("other-ca.pem").into();
    expected["users"][0]["user"]["client-certificate"] = absolute("pki/jane.pem").into();
    expected["users"][1]["user"]["tokenFile"] = absolute("token").into();
    expected["users"][1]["user"]["exec"]["command"] = absolute("bin/login").into();
    assert_eq!(parse(&printed), expected);

    let cluster = |arguments: &[&str]| {
        let printed = place.print(&[&["dev", "--from", "kube/config"], arguments].concat());
        parse(&printed)["clusters"][1]["cluster"].clone()
    };
    let replaced = cluster(&["--ca", "ca.pem"]);
    assert_ne!(replaced["certificate-authority-data"], "aXQgc3RheXM=");
    let insecure = cluster(&["--insecure-skip-tls-verify"]);
    assert_eq!((insecure.as_mapping().unwrap().len(), &insecure["insecure-skip-tls-verify"]), (3, &true.into()));

    place.write("kube/config", &KUBECONFIG.replace("    certificate-authority-data: aXQgc3RheXM=\n", ""));
    place.refuses(
        &["dev", "--from", "kube/config"],
        &format!("cannot read the CA of the cluster `dev`; replace it with --ca FILE: {}: No such file or directory (os error 2)", absolute("ca.pem")),
    );
    place.authority.write(&place.path("kube"), "ca.pem");
    assert_eq!(cluster(&[]), replaced);
    let other = ["dev", "--from", "kube/config", "--cluster", "other", "--ca", "ca.pem"];
    let printed = parse(&place.print(&other));
    assert_eq!(printed["clusters"][0]["cluster"]["certificate-authority-data"], replaced["certificate-authority-data"]);
    let dev = &printed["clusters"][1]["cluster"];
    assert_eq!(dev["server"], "https://alias.example.com:6443");
    assert_eq!(dev["certificate-authority"], *absolute("ca.pem"));
}

#[test]
fn an_invalid_kubeconfig_is_reported_without_its_content() {
    let place = Place::new(&two_routes("10.0.0.1:6443"));
    let from = ["dev", "--from", "kubeconfig"];
    place.refuses(&from, "cannot read kubeconfig: No such file or directory (os error 2)");
    for (content, expected) in [
        ("token: \"secret", "invalid YAML at line 1; expected a kubeconfig"),
        ("secret", "not a YAML mapping; expected a kubeconfig"),
        (
            "{clusters: [{name: a}, {name: b}]}",
            "no current context with a cluster; expected --cluster NAME (clusters: a, b)",
        ),
        (
            "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]\nclusters: [{name: a}]",
            "no cluster `c` (clusters: a)",
        ),
    ] {
        place.write("kubeconfig", content);
        place.refuses(&from, &format!("cannot update kubeconfig: {expected}"));
    }
    let unverified = "{clusters: [{name: a, cluster: {insecure-skip-tls-verify: true}}]}";
    place.write("kubeconfig", unverified);
    place.refuses(
        &[&from[..], &["--cluster", "a"]].concat(),
        "the cluster `a` is not verified (`insecure-skip-tls-verify`); expected --ca FILE, or --insecure-skip-tls-verify to keep \
         it so",
    );
    place.write("kubeconfig", &unverified.replace("insecure-skip-tls-verify: true", "server: \"https://a\""));
    let public = place.cluster(&[&from[..], &["--cluster", "a"]].concat());
    assert_eq!(public.as_mapping().unwrap().len(), 1, "kubectl still verifies with the CAs of its system");
}

/// A router with a route to this server; the route has both names, and a check that verifies one where it is given.
fn served(server: &Backend, verified: Option<&str>) -> (Router, String) {
    let address = server.address();
    let name = verified.map_or(String::new(), |name| format!(", server_name: {name}"));
    let config = |listen: SocketAddr, check: &str| {
        format!(
            "listen: \"{listen}\"\nroutes: [{{name: dev, sni: [{NAME}, {ALIAS}], upstream: {{endpoints: \"{address}\"{check}}}}}]\n"
        )
    };
    let router = Router::start(&config(([127, 0, 0, 1], 0).into(), ""));
    let check = format!(", health_check: {{tls: {{ca_file: ca.pem{name}}}}}");
    // For `kubeconfig`: with the port that the kernel has chosen.
    let config = config(router.address(), &check);
    (router, config)
}

#[test]
#[ignore = "needs kubectl"]
fn kubectl_reaches_a_cluster_with_the_printed_kubeconfig() {
    for (certificate_name, verified, by_address) in
        [(NAME, None, false), (ALIAS, Some(ALIAS), false), (NAME, None, true), (ALIAS, Some(ALIAS), true)]
    {
        let place = Place::new("");
        let server = tls::serve(&place.authority, certificate_name, false);
        let (router, config) = served(&server, verified);
        place.write("snigate.yaml", &config);
        let url = format!("https://{}", router.address());
        let arguments: &[&str] = if by_address { &["dev", "--server", &url] } else { &["dev"] };
        let answer = format!("{{\"gitVersion\":\"{certificate_name}\"}}");
        assert_eq!(place.kubectl(arguments, TOKEN), answer, "{certificate_name} {by_address}");
        let insecure = place.kubectl(&[arguments, &["--insecure-skip-tls-verify"]].concat(), TOKEN);
        assert_eq!(insecure, answer, "{certificate_name} {by_address}");
        Authority::new().write(place.directory.path(), "another-ca.pem");
        let refused = place.kubectl(&[arguments, &["--ca", "another-ca.pem"]].concat(), TOKEN);
        assert!(refused.contains("certificate signed by unknown authority"), "{refused}");
    }
}

#[test]
#[ignore = "needs kubectl"]
fn kubectl_keeps_its_client_certificate() {
    let place = Place::new("");
    let server = tls::serve(&place.authority, ALIAS, true);
    let (_router, config) = served(&server, None);
    place.write("snigate.yaml", &config.replace(", health_check: {tls: {ca_file: ca.pem}}", ""));
    let kube = place.path("kube");
    std::fs::create_dir(&kube).unwrap();
    place.authority.write(&kube, "kube-ca.pem");
    place.authority.issue("jane").write(&kube, "jane");
    place.write(
        "kube/config",
        &format!(
            "apiVersion: v1
kind: Config
current-context: dev
contexts: [{{name: dev, context: {{cluster: dev, user: jane}}}}]
clusters: [{{name: dev, cluster: {{server: \"https://{ALIAS}:6443\", certificate-authority: kube-ca.pem}}}}]
users: [{{name: jane, user: {{client-certificate: jane.pem, client-key: jane-key.pem}}}}]
"
        ),
    );
    assert_eq!(place.kubectl(&["dev", "--from", "kube/config"], &[]), format!("{{\"gitVersion\":\"{ALIAS}\"}}"));
    let without = place.kubectl(&["dev", "--ca", "ca.pem", "--tls-server-name", ALIAS], TOKEN);
    assert!(without.contains("certificate required"), "{without}");
}

#[test]
fn the_names_in_the_certificate_come_from_the_running_instance() {
    use crate::support::api_server::ApiServer;
    use crate::support::eventually;
    let authority = Authority::new();
    let server = ApiServer::start(&authority, "kubernetes");
    let directory = TempDir::new().unwrap();
    let ca = authority.write(directory.path(), "ca.pem");
    let config = |names: &str| {
        format!(
            "listen: 127.0.0.1:6443\nroutes:\n  - name: dev\n    sni: [{names}]\n    upstream:\n      endpoints: [\"{}\"]\n      \
             health_check: {{interval: 100ms, tls: {{ca_file: {}}}}}\n",
            server.address(),
            ca.display()
        )
    };
    let running = config("dev.example.com").replace("127.0.0.1:6443\n", "127.0.0.1:0\nadmin: 127.0.0.1:0\n");
    let router = Router::start(&running);
    let admin = router.admin().to_string();
    eventually("a check", || router.get("/api/status").1.contains("kubernetes\""));

    let place = Place::new(&config("dev.example.com"));
    let blind = place.print(&["dev"]);
    assert!(blind.contains("# Unknown whether the API server's certificate is valid for `dev.example.com`"), "{blind}");
    assert!(!blind.contains("user:"), "{blind}");
    for knowing in [&["dev", "--admin", &admin][..], &["dev", "--probe"]] {
        place.write("snigate.yaml", &config("dev.example.com"));
        let (code, output) = place.run(knowing);
        assert_eq!(code, Some(1), "{output}");
        assert!(
            output.contains(
                "the certificate of the route `dev` is valid for kubernetes, and none of these names is routed to it"
            ),
            "{output}"
        );
        place.write("snigate.yaml", &config("dev.example.com, kubernetes"));
        assert_eq!(place.cluster(knowing)["tls-server-name"], "kubernetes");
        place.write("snigate.yaml", &config("kubernetes"));
        assert!(place.cluster(knowing)["tls-server-name"].is_null(), "the URL has the name");
    }
    let gone = config("dev.example.com").replace(&server.address().to_string(), &free().to_string());
    place.write("snigate.yaml", &gone);
    let (code, output) = place.run(&["dev", "--probe"]);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("no endpoint of the route `dev` has shown a certificate with names: "), "{output}");
    assert!(output.contains("connection refused"), "{output}");
}
