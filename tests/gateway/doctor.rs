//! `snigate doctor --kubeconfig`: what is wrong with a cluster.

use std::net::TcpListener;

use serde_json::json;

use super::*;
use crate::support::all_output;
use crate::support::api_server::ApiServer;
use crate::support::backend::free_everywhere;
use crate::support::pages::block;
use crate::support::tls::Authority;

const PAGE: &str = "docs/kubernetes.md";

/// It resolves to this machine.
const HOST: &str = "localhost";

/// A cluster with a route to an API server.
struct Case {
    authority: Authority,
    server: ApiServer,
    api: KubeApi,
    edge: SocketAddr,
    directory: TempDir,
}

impl Case {
    fn new() -> Self {
        let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
        authority.write(directory.path(), "kubernetes01-ca.pem");
        let (server, api, edge) = (ApiServer::start(&authority, HOST), KubeApi::start(), free());
        api.apply_all([
            class(),
            namespace("default"),
            gateway("edge", edge.ip(), &[edge.port()]),
            route("kubernetes01", HOST, &[("kubernetes01-apiserver", 1)]),
            service("kubernetes01-apiserver"),
            slice("kubernetes01-apiserver", 0, server.address(), Pod::Ready),
        ]);
        std::fs::write(directory.path().join("kubeconfig"), api.kubeconfig(None)).unwrap();
        Self { authority, server, api, edge, directory }
    }

    /// A replica that has reported this condition of the route.
    #[track_caller]
    fn replica(&self, name: &str, condition: (&str, &str, &str)) -> Replica {
        let replica = Replica::start(&self.api, &[]).ready();
        let (kind, status, reason) = condition;
        eventually("the status of the route", || {
            of_route(&self.api, name, kind) == Some((status.into(), reason.into()))
        });
        eventually("the status of the Gateway", || of_gateway(&self.api, "Programmed").is_some());
        replica
    }

    /// Exit status and output.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = snigate().arg("doctor").args(arguments).current_dir(self.directory.path()).output().unwrap();
        (output.status.code().unwrap(), all_output(&output))
    }

    fn doctor(&self, arguments: &[&str]) -> Report {
        let given = ["--kubeconfig", "kubeconfig", "--ca", "kubernetes01-ca.pem", "--json"];
        let (code, output) = self.run(&[&given, arguments].concat());
        let document = serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"));
        Report { code, document }
    }
}

struct Report {
    code: i32,
    document: Value,
}

impl Report {
    /// Step, subject and text of the checks with this result.
    fn with(&self, result: &str) -> Vec<(&str, &str, &str)> {
        let reports = ["cluster", "routes"].into_iter().flat_map(|part| self.document[part].as_array().unwrap());
        let checks = reports.flat_map(|report| report["checks"].as_array().unwrap());
        checks
            .filter(|check| check["result"] == result)
            .map(|check| (field(check, "step"), field(check, "subject"), field(check, "says")))
            .collect()
    }

    #[track_caller]
    fn has_failed(&self, expected: &[(&str, &str)]) {
        let failed = self.with("failed");
        let found: Vec<_> = failed.iter().map(|(step, _, says)| (*step, *says)).collect();
        assert!(
            found.len() == expected.len()
                && found
                    .iter()
                    .zip(expected)
                    .all(|(found, expected)| { found.0 == expected.0 && found.1.contains(expected.1) }),
            "expected {expected:#?}\n{failed:#?}\n{:#}",
            self.document
        );
        assert_eq!((self.code, &self.document["ok"]), (1, &json!(false)));
    }
}

fn field<'c>(check: &'c Value, key: &str) -> &'c str {
    check[key].as_str().unwrap()
}

/// Without addresses and times, which are others each time.
fn shape(output: &str) -> Vec<String> {
    let words = |line: &str| {
        let line = line.rsplit_once(" (").filter(|(_, took)| took.ends_with("ms)")).map_or(line, |(line, _)| line);
        let words = line.split_whitespace().filter(|word| !word.contains(|letter: char| letter.is_ascii_digit()));
        let words: Vec<&str> = words.collect();
        match words[..] {
            // What localhost resolves to depends on the machine, and the server is not that of a real cluster.
            [_, "dns", ..] => "dns".into(),
            [mark, step @ ("tls" | "chain" | "names"), ..] => format!("{mark} {step}"),
            _ => words.join(" ").replace("notes", "note"),
        }
    };
    output.lines().map(words).collect()
}

#[test]
fn i14_nothing_is_wrong_with_a_cluster_that_is_well_and_the_page_shows_it() {
    let case = Case::new();
    let _replica = case.replica("kubernetes01", ("Accepted", "True", "Accepted"));
    reported_in(&case, "True");
    let report = case.doctor(&[]);
    assert_eq!((report.code, &report.document["ok"]), (0, &json!(true)), "{:#}", report.document);
    let (ok, port) = (report.with("ok"), case.edge.port());
    let (listener, edge) = (format!("tls-{port}"), case.edge.to_string());
    for expected in [
        ("class", "snigate", "Accepted"),
        ("gateway", "edge", "Accepted, Programmed"),
        ("address", &*case.edge.ip().to_string(), "published"),
        ("listener", &*listener, &*format!("port {port}, 1 route")),
        ("parent", "default/edge", "Accepted, ResolvedRefs"),
        ("backend", "default/kubernetes01-apiserver:6443", "1 ready endpoint"),
        ("listener", &*edge, "accepts connections"),
        ("names", &*case.server.address().to_string(), "the certificate is valid for localhost"),
        ("through", &*edge, "certificate of an endpoint; /readyz 200"),
    ] {
        assert!(ok.contains(&expected), "{expected:?}\n{ok:#?}");
    }

    let command = block(PAGE, "doctor").replace("~/.kube/config", "kubeconfig");
    let arguments: Vec<&str> = command.trim().strip_prefix("snigate doctor ").unwrap().split(' ').collect();
    let (code, output) = case.run(&arguments);
    assert_eq!(code, 0, "{output}");
    let shown = block(PAGE, "doctor-output").replace("kubernetes01.example.com", HOST);
    let shown = shown.replace("listener  api ", &format!("listener  {listener} "));
    assert_eq!(shape(&shown), shape(&output), "{output}");
}

#[track_caller]
fn reported_in(case: &Case, programmed: &str) {
    eventually("the status of the Gateway", || {
        of_gateway(&case.api, "Programmed").is_some_and(|(status, _)| status == programmed)
    });
}

#[test]
fn i14_a_gateway_that_is_not_programmed_is_found() {
    let case = Case::new();
    let _taken = TcpListener::bind(case.edge).unwrap();
    let _replica = case.replica("kubernetes01", ("Accepted", "True", "Accepted"));
    reported_in(&case, "False");
    case.doctor(&[]).has_failed(&[
        ("gateway", "Programmed False (AddressNotUsable): "),
        ("listener", "Programmed False (Invalid): "),
    ]);
}

#[test]
fn i14_routes_that_are_attached_to_nothing_are_found() {
    let case = Case::new();
    let mut elsewhere = route("elsewhere", "elsewhere.example.com", &[("kubernetes01-apiserver", 1)]);
    elsewhere["spec"]["parentRefs"] = json!([{"name": "egde"}]);
    let mut nowhere = route("nowhere", "nowhere.example.com", &[("missing", 1)]);
    nowhere["spec"]["parentRefs"] = json!([{"name": "edge", "sectionName": "http"}]);
    case.api.apply_all([elsewhere, nowhere]);
    let _replica = case.replica("nowhere", ("Accepted", "False", "NoMatchingParent"));
    reported_in(&case, "True");
    let (parent, service) =
        ("Accepted False (NoMatchingParent): the Gateway has no listener", "Service default/missing does not exist");
    case.doctor(&[]).has_failed(&[
        ("parent", "this Gateway does not exist"),
        ("parent", parent),
        ("parent", &format!("ResolvedRefs False (BackendNotFound): {service}")),
    ]);
    // Only what is asked for.
    let report = case.doctor(&["default/elsewhere"]);
    report.has_failed(&[("parent", "this Gateway does not exist")]);
    assert_eq!(report.document["routes"], json!([]));
    assert_eq!(case.doctor(&["default/kubernetes01"]).code, 0);
    let (code, output) = case.run(&["--kubeconfig", "kubeconfig", "default/none"]);
    assert!(code == 1 && output.contains("no route has the name `default/none`"), "{output}");
}

#[test]
fn i14_a_service_without_endpoints_is_found() {
    let case = Case::new();
    case.api.apply(slice("kubernetes01-apiserver", 0, case.server.address(), Pod::Unready));
    let _replica = case.replica("kubernetes01", ("Accepted", "True", "Accepted"));
    reported_in(&case, "True");
    case.doctor(&[])
        .has_failed(&[("backend", "the Service has no ready endpoint"), ("through", "closed without a TLS alert")]);
}

#[test]
fn i14_a_certificate_for_another_name_is_found() {
    let case = Case::new();
    case.server.show(&case.authority.issue("other.example.com"));
    let _replica = case.replica("kubernetes01", ("Accepted", "True", "Accepted"));
    reported_in(&case, "True");
    let says = "not valid for localhost; its DNS names: other.example.com; add localhost to its SANs, or set \
        `tls-server-name: other.example.com` in kubeconfigs and add other.example.com to `hostnames`";
    case.doctor(&[]).has_failed(&[("names", says)]);
}

#[test]
fn i14_a_cluster_in_which_no_replica_reports_is_found_and_nothing_is_written() {
    let case = Case::new();
    case.api.apply(ingress("old", "*.old.example.com", "kubernetes01-apiserver"));
    let unreported = "no replica has reported on this";
    let report = case.doctor(&["--ingress-class", "nginx"]);
    report.has_failed(&[
        ("class", unreported),
        ("gateway", unreported),
        ("listener", unreported),
        ("parent", unreported),
    ]);
    let notes = report.with("note");
    assert!(notes.iter().any(|(step, _, says)| *step == "object" && says.contains("wildcard hosts")), "{notes:#?}");
    let requests = case.api.requests();
    assert!(requests.len() == 8 && requests.iter().all(|request| !request.is_write()), "{requests:#?}");
    assert_eq!(case.api.reads("gateways"), (1, 0), "no watch");
}

#[test]
fn i14_an_ingress_is_checked_through_its_published_address() {
    let case = Case::new();
    case.api.delete("gateways", "default", "edge");
    case.api.delete("tlsroutes", "default", "kubernetes01");
    case.api.apply(ingress("old", HOST, "kubernetes01-apiserver"));
    let (_port, number) = free_everywhere();
    let port = number.to_string();
    let options = ["--ingress-class", "nginx", "--ingress-port", &port, "--publish-address", "127.0.0.1"];
    case.doctor(&options).has_failed(&[("class", "no replica"), ("status", "no replica has reported on this")]);
    let _replica = Replica::start(&case.api, &options).ready();
    eventually("the status of the class", || {
        let class = case.api.get("gatewayclasses", "", "snigate").unwrap();
        condition(&class["status"]["conditions"], "Accepted").is_some()
    });
    eventually("the status of the Ingress", || {
        case.api.get("ingresses", "default", "old").unwrap()["status"]["loadBalancer"]["ingress"].is_array()
    });
    let report = case.doctor(&options);
    assert_eq!(report.code, 0, "{:#}", report.document);
    let (ok, at) = (report.with("ok"), format!("127.0.0.1:{port}"));
    assert!(ok.contains(&("through", &at, "certificate of an endpoint; /readyz 200")), "{ok:#?}");
    assert!(ok.contains(&("backend", "default/kubernetes01-apiserver:6443", "1 ready endpoint")), "{ok:#?}");
}

#[test]
fn i14_a_status_that_is_out_of_date_is_found() {
    let case = Case::new();
    let service = case.api.get("services", "default", "kubernetes01-apiserver").unwrap();
    case.api.delete("services", "default", "kubernetes01-apiserver");
    let mut replica = case.replica("kubernetes01", ("ResolvedRefs", "False", "BackendNotFound"));
    reported_in(&case, "True");
    replica.stop();
    case.api.apply(service);
    case.doctor(&["--through", &case.server.address().to_string()]).has_failed(&[
        ("parent", "ResolvedRefs False (BackendNotFound)"),
        ("parent", "what was reported is out of date"),
    ]);
}

#[test]
fn i14_one_of_several_published_addresses_may_be_out_of_reach() {
    let case = Case::new();
    let mut edge = gateway("edge", case.edge.ip(), &[case.edge.port()]);
    let away = SocketAddr::new("127.0.0.9".parse().unwrap(), case.edge.port());
    edge["status"] = json!({"addresses": [{"value": case.edge.ip().to_string()}, {"value": away.ip().to_string()}]});
    case.api.apply(edge);
    let replica = Replica::start(&case.api, &["--no-status"]).ready();
    let report = case.doctor(&[]);
    let (notes, away) = (report.with("note"), away.to_string());
    assert!(notes.contains(&("listener", &away, "cannot connect: connection refused")), "{notes:#?}");
    drop(replica);
    let report = case.doctor(&[]);
    let failed: Vec<_> = report.with("failed").into_iter().filter(|(_, _, says)| says.contains("refused")).collect();
    assert_eq!(failed.len(), 2, "{failed:#?}");
}

/// As on a node that is the endpoint itself: listeners are those of Pods.
#[test]
fn i14_an_endpoint_on_this_machine_is_a_loop_only_at_a_published_address() {
    let case = Case::new();
    let endpoint = case.server.address();
    let mut edge = gateway("edge", endpoint.ip(), &[endpoint.port()]);
    edge["spec"].as_object_mut().unwrap().remove("addresses");
    case.api.apply(edge.clone());
    let subject = endpoint.to_string();
    let report = case.doctor(&[]);
    assert!(report.with("ok").contains(&("connect", &subject, "accepts connections")), "{:#}", report.document);

    edge["status"] = json!({"addresses": [{"value": endpoint.ip().to_string()}]});
    case.api.apply(edge);
    let report = case.doctor(&[]);
    let says = "this is snigate's own listener: forwarding loop";
    assert!(report.with("failed").contains(&("connect", &subject, says)), "{:#}", report.document);
}

#[test]
fn i14_kinds_that_the_cluster_does_not_have_are_found() {
    let case = Case::new();
    let group = "gateway.networking.k8s.io/v1";
    case.api.lack(&[(group, "tlsroutes"), (group, "gateways"), (group, "gatewayclasses"), (group, "referencegrants")]);
    let missing = ("kind", "the cluster does not have this kind; install the standard channel of Gateway API");
    let report = case.doctor(&[]);
    report.has_failed(&[missing; 3]);
    assert_eq!(report.with("note"), [("kind", "ReferenceGrant", missing.1)]);
    // For Ingress objects, none is needed.
    assert_eq!(case.doctor(&["--ingress-class", "nginx"]).code, 0);
}

#[test]
fn i14_what_the_api_server_forbids_is_named_with_the_verb() {
    let case = Case::new();
    case.api.forbid(&["tlsroutes", "services"]);
    let run = |arguments: &[&str]| case.run(&[&["--kubeconfig", "kubeconfig"], arguments].concat());
    let (code, output) = run(&[]);
    let lists = "grant the verb `list` on `tlsroutes` of the API group gateway.networking.k8s.io in the whole cluster, \
        `services` of the API group core in the whole cluster\n";
    assert!(code == 1 && output.contains("forbids what is needed (403)") && output.ends_with(lists), "{output}");
    let (_, output) = run(&["--namespace", "default"]);
    assert!(output.ends_with("`services` of the API group core in the namespace default\n"), "{output}");
    case.api.demand("a token");
    let (code, output) = run(&[]);
    assert!(code == 1 && output.contains("does not accept the credentials (401)"), "{output}");
    case.api.go_away();
    let (code, output) = run(&[]);
    assert!(
        code == 1 && output.contains("snigate: Kubernetes: cannot reach the API server at http://127.0.0.1:"),
        "{output}"
    );
    let (code, output) = run(&["--context", "none"]);
    assert!(code == 1 && output.contains("none"), "{output}");
}

#[test]
fn a_kubeconfig_is_in_place_of_a_configuration() {
    let case = Case::new();
    for arguments in [
        &["-c", "a.yaml", "--kubeconfig", "kubeconfig"][..],
        &["-c", "a.yaml", "--namespace", "default"],
        &["-c", "a.yaml", "--context", "test"],
        &["--namespace", "default"],
        &[],
    ] {
        let (code, output) = case.run(arguments);
        assert_eq!(code, 2, "{arguments:?}: {output}");
    }
    let (code, output) = case.run(&["--kubeconfig", "kubeconfig", "--context", "test"]);
    assert!(code == 1 && output.contains("no replica has reported"), "{output}");
}
