//! What is shipped beside the binary works as it is written.

mod container;
mod debian;
mod gateway;
mod ha;
mod kubernetes;
mod marathon;
mod node_shim;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Client, Process, Router, eventually, snigate, tls};

/// For tests that build what is shipped, on a machine that has never built it.
const FOR_A_RELEASE_BUILD: Duration = Duration::from_secs(3600);

/// Where this is in `deploy/`.
fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

/// A span of a configuration, as `25s`.
fn seconds(span: &serde_json::Value) -> u64 {
    span.as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs promtool"]
fn prometheus_takes_the_alert_rules() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/alerts.yaml");
    let output = std::process::Command::new("promtool").args(["check", "rules"]).arg(path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs systemd-analyze"]
fn the_unit_leaves_little_to_who_takes_the_process_over() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/snigate.service");
    let mut command = std::process::Command::new("systemd-analyze");
    let output =
        command.args(["security", "--offline=true", "--threshold=16", "--no-pager"]).arg(path).output().unwrap();
    assert!(output.status.success(), "more than 1.6:\n{}", String::from_utf8_lossy(&output.stdout));
}

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples").join(name);
    let output = snigate().arg("check").arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read_to_string(path).unwrap()
}

/// The example with ports of the kernel's choice, and these in place of the API servers.
fn local(example: &str, upstreams: &[(&str, SocketAddr)]) -> String {
    let mut text =
        example.replace("listen: \"[::]:6443\"", "listen: 127.0.0.1:0").replace("127.0.0.1:9443", "127.0.0.1:0");
    for (name, address) in upstreams {
        let upstream = format!("upstream: {name}:6443");
        assert!(text.contains(&upstream), "{upstream} in\n{text}");
        text = text.replace(&upstream, &format!("upstream: {address}"));
    }
    text
}

#[test]
fn one_cluster_takes_every_client() {
    let authority = tls::Authority::new();
    let cluster = tls::serve(&authority, "kubernetes.example.com", false);
    let text =
        local(&example("one-cluster.yaml"), &[("apiserver.kubernetes.l4lb.thisdcos.directory", cluster.address())]);
    let router = Router::start(&text);
    let answer = tls::get(router.address(), &authority, "kubernetes.example.com", None);
    assert_eq!(answer.unwrap(), "{\"gitVersion\":\"kubernetes.example.com\"}");
    // A client that is given an IP address sends no name.
    let error = tls::get(router.address(), &authority, "127.0.0.1", None).unwrap_err();
    assert!(error.contains("invalid peer certificate"), "it reaches the cluster: {error}");
    assert_eq!(cluster.accepted(), 2);
}

#[test]
fn two_clusters_are_told_apart_by_either_name() {
    let names = [
        ["devkubernetes01.example.com", "apiserver.devkubernetes01.l4lb.thisdcos.directory"],
        ["devkubernetes02.example.com", "apiserver.devkubernetes02.l4lb.thisdcos.directory"],
    ];
    let text = example("two-clusters.yaml");
    // Which of its names the API server's certificate carries decides which one clients verify, and so ask for.
    for which in [0, 1] {
        let authority = tls::Authority::new();
        let clusters = names.map(|names| tls::serve(&authority, names[which], false));
        let upstreams = [(names[0][1], clusters[0].address()), (names[1][1], clusters[1].address())];
        let router = Router::start(&local(&text, &upstreams));
        for names in names {
            let answer = tls::get(router.address(), &authority, names[which], None).unwrap();
            assert_eq!(answer, format!("{{\"gitVersion\":\"{}\"}}", names[which]));
        }
        let error = tls::get(router.address(), &authority, "devkubernetes03.example.com", None).unwrap_err();
        assert!(error.contains("UnrecognisedName"), "{error}");
    }
}

/// The values of this key in a unit.
fn values<'u>(unit: &'u str, key: &str) -> Vec<&'u str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

#[test]
fn the_units_start_reload_and_pass_sockets_as_snigate_expects() {
    let unit = include_str!("../../deploy/systemd/snigate.service");
    for (key, value) in [
        ("Type", "notify"),
        ("NotifyAccess", "all"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
        ("RestartPreventExitStatus", "78"),
    ] {
        assert_eq!(values(unit, key), [value]);
    }
    // The command line, with a file that is there.
    let start = values(unit, "ExecStart")[0];
    let cluster = tls::serve(&tls::Authority::new(), "a.example", false);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, crate::support::router::config(&[("a.example", cluster.address())], "")).unwrap();
    let arguments: Vec<String> = start
        .split(' ')
        .skip(1)
        .map(|argument| argument.replace("/etc/snigate/snigate.yaml", path.to_str().unwrap()))
        .collect();
    assert!(start.starts_with("/usr/bin/snigate ") && arguments.contains(&path.display().to_string()), "{start}");
    let mut command = snigate();
    command.args(arguments);
    let router = Router::spawn(command, path, directory);
    router.address();
    // It stops before systemd kills it: 25 s is the default of `timeouts.drain`.
    assert!(values(unit, "TimeoutStopSec")[0].parse::<u64>().unwrap() > 25);

    let socket = include_str!("../../deploy/systemd/snigate.socket");
    assert_eq!(values(socket, "ListenStream"), ["[::]:6443"]);
    for example in ["one-cluster.yaml", "two-clusters.yaml"] {
        assert!(self::example(example).contains("listen: \"[::]:6443\""), "the same address");
    }
}

#[test]
fn the_demo_shows_what_it_promises() {
    let output = snigate().args(["demo", "--once"]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{table}\n{}", String::from_utf8_lossy(&output.stderr));
    for told in [
        "kubernetes01.demo.test, issued by kubernetes01 CA   200 OK from kubernetes01    anonymous",
        "kubernetes02.demo.test, issued by kubernetes02 CA   200 OK from kubernetes02    jane",
        "alert CertificateRequired",
        "alert UnrecognisedName",
    ] {
        assert!(table.contains(told), "{told}\nin\n{table}");
    }
}

#[test]
fn the_demo_explains_before_it_logs_and_its_plan_works() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let file = std::fs::File::create(&out).unwrap();
    let mut command = snigate();
    command.arg("demo").stdout(file.try_clone().unwrap()).stderr(file);
    let demo = Process(command.spawn().unwrap());
    let said = || std::fs::read_to_string(&out).unwrap();
    eventually("its explanation", || said().contains("Press Ctrl-C to stop"));
    let text = said();
    assert!(
        !text.split("Press Ctrl-C to stop").next().unwrap().contains("\"level\""),
        "no log line cuts into it: {text}"
    );
    let plan = text.lines().find_map(|line| line.trim().split_once(" plan ")).unwrap().1;
    let planned = snigate().arg("plan").args(plan.split(' ')).output().unwrap();
    let planned = String::from_utf8(planned.stdout).unwrap();
    assert!(planned.contains("  - kubernetes02.demo.test  0 open"), "{planned}");
    let admin: SocketAddr = plan.rsplit(' ').next().unwrap().parse().unwrap();
    eventually("a dead endpoint", || {
        let mut client = Client::send(
            admin,
            format!("GET /api/status HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n").as_bytes(),
        );
        String::from_utf8(client.rest().0).unwrap().contains("\"state\": \"dead\"")
    });
    demo.signal(rustix::process::Signal::INT);
}

/// Every name of ours in this text, without the suffixes of histograms.
fn metrics_in(text: &str) -> Vec<String> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(|letter: char| !is_name(letter));
    let names = words.filter(|word| word.starts_with("snigate_") || word.starts_with("process_"));
    names.filter(|name| !name.ends_with('_')).map(|name| name.trim_end_matches("_bucket").to_owned()).collect()
}

#[test]
fn the_dashboard_and_the_alerts_ask_for_metrics_that_there_are() {
    let (authority, directory) = (tls::Authority::new(), tempfile::tempdir().unwrap());
    let server = crate::support::api_server::ApiServer::start(&authority, "kubernetes");
    let ca = authority.write(directory.path(), "ca.pem");
    let router = Router::start(&format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - sni: a.example\n    upstream: {{endpoints: \"{}\", health_check: {{interval: 100ms, tls: {{ca_file: {}}}}}}}\n",
        server.address(),
        ca.display()
    ));
    let uncovered = "snigate_endpoint_certificate_uncovered_names";
    eventually("a check", || router.get("/metrics").1.lines().any(|line| line.starts_with(&format!("{uncovered}{{"))));
    let (_, metrics) = router.get("/metrics");
    let series = metrics.lines().find(|line| line.starts_with(&format!("{uncovered}{{"))).unwrap();
    assert!(series.ends_with(" 1"), "{series}");
    let dashboard = include_str!("../../deploy/grafana/dashboard.json");
    assert!(serde_json::from_str::<serde_json::Value>(dashboard).is_ok());
    let alerts = include_str!("../../deploy/grafana/alerts.yaml");
    for text in [dashboard, alerts] {
        let names = metrics_in(text);
        assert!(names.len() >= 8);
        for name in names {
            assert!(metrics.contains(&format!("# TYPE {name} ")), "{name} in\n{metrics}");
        }
    }
    // Outcomes that alerts name are outcomes.
    for outcome in alerts.split("outcome=~\"").skip(1).flat_map(|rest| rest.split('"').next().unwrap().split('|')) {
        assert!(metrics.contains(&format!("outcome=\"{outcome}\"")), "{outcome}");
    }
}
