//! The kustomization of `snigate gateway`: rights, ports, probes, arguments, and the examples.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize as _;
use serde_json::{Value, json};

use super::kubernetes::Rendered;
use super::{deployed, seconds};
use crate::support::pages::block;
#[cfg(feature = "gateway")]
use crate::support::snigate;

const PAGE: &str = "docs/kubernetes.md";

/// The documents of a file.
fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    parse(&text)
}

fn parse(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text).map(|document| Value::deserialize(document).unwrap()).collect()
}

fn file(path: &str) -> Vec<Value> {
    documents(&deployed("kubernetes/gateway").join(path))
}

fn of_kind<'o>(objects: &'o [Value], kind: &str) -> &'o Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn pods() -> [Value; 2] {
    ["deployment.yaml", "host-network/daemonset.yaml"].map(|path| file(path)[0]["spec"]["template"]["spec"].clone())
}

#[test]
fn the_gateway_may_read_what_it_watches_and_no_secret() {
    let objects = file("common/rbac.yaml");
    let mut granted = BTreeSet::new();
    for kind in ["ClusterRole", "Role"] {
        for rule in of_kind(&objects, kind)["rules"].as_array().unwrap() {
            let list = |key: &str| {
                let list = rule[key].as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned());
                list.collect::<Vec<_>>()
            };
            for resource in list("resources") {
                granted.extend(list("verbs").into_iter().map(|verb| format!("{verb} {resource}")));
            }
        }
    }
    let verbs = |resources: &[&str], verbs: &[&str]| -> Vec<String> {
        let each = resources.iter().flat_map(|resource| verbs.iter().map(move |verb| format!("{verb} {resource}")));
        each.collect()
    };
    let read = ["gatewayclasses", "gateways", "tlsroutes", "referencegrants", "ingresses"];
    let written = ["gatewayclasses/status", "gateways/status", "tlsroutes/status", "ingresses/status"];
    let expected: BTreeSet<String> = [
        verbs(&read, &["get", "list", "watch"]),
        verbs(&["services", "namespaces", "endpointslices"], &["list", "watch"]),
        verbs(&written, &["patch"]),
        verbs(&["events"], &["create"]),
        verbs(&["leases"], &["create", "get", "update"]),
    ]
    .concat()
    .into_iter()
    .collect();
    assert_eq!(granted, expected);
    let roles = of_kind(&objects, "Role")["rules"].as_array().unwrap();
    assert_eq!(roles[1]["resourceNames"], json!(["snigate.dev-gateway"]));
    let account = &of_kind(&objects, "ServiceAccount")["metadata"]["name"];
    for pod in pods() {
        assert_eq!(pod["serviceAccountName"], *account);
    }
}

#[test]
fn the_gateways_pods_are_ready_when_they_serve_and_may_do_little() {
    let config: Value =
        serde_yaml::from_str(&std::fs::read_to_string(deployed("kubernetes/gateway/common/snigate.yaml")).unwrap())
            .unwrap();
    let timeouts = &config["timeouts"];
    for pod in pods() {
        let needed = seconds(&timeouts["shutdown_delay"]) + seconds(&timeouts["drain"]);
        assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= needed + 10);
        let container = &pod["containers"][0];
        assert_eq!(container["startupProbe"]["httpGet"]["path"], "/readyz");
        for probe in ["readinessProbe", "livenessProbe"] {
            assert_eq!(container[probe]["httpGet"]["path"], "/livez", "{probe}");
        }
        let context = &container["securityContext"];
        assert_eq!(
            (&context["readOnlyRootFilesystem"], &context["allowPrivilegeEscalation"]),
            (&json!(true), &json!(false))
        );
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(
            pod["volumes"][0]["configMap"]["name"],
            file("common/kustomization.yaml")[0]["configMapGenerator"][0]["name"]
        );
    }
    let [deployment, daemon_set] = pods();
    assert_eq!(deployment["securityContext"]["runAsNonRoot"], true);
    assert_eq!(deployment["securityContext"]["sysctls"][0]["name"], "net.ipv4.ip_unprivileged_port_start");
    assert_eq!(daemon_set["containers"][0]["securityContext"]["capabilities"]["add"], json!(["NET_BIND_SERVICE"]));
    assert!(daemon_set["securityContext"]["sysctls"].is_null(), "not on the network of the node");
}

#[test]
fn the_gateways_ports_are_those_of_the_examples() {
    let service = &file("service.yaml")[0]["spec"];
    let ports: BTreeSet<u64> =
        service["ports"].as_array().unwrap().iter().map(|port| port["port"].as_u64().unwrap()).collect();
    let policy = &file("network-policy.yaml")[0]["spec"]["ingress"][0]["ports"];
    let admitted = policy.as_array().unwrap().iter().map(|port| port["port"].as_u64().unwrap()).collect();
    assert_eq!(ports, admitted);
    let own = file("deployment.yaml")[0]["spec"]["template"]["metadata"]["labels"].clone();
    assert_eq!(service["selector"], own);
    let (mut gateways, class) = (0, &file("common/gateway-class.yaml")[0]["metadata"]["name"]);
    let examples = std::fs::read_dir(deployed("kubernetes/gateway/examples")).unwrap();
    let documents =
        examples.flat_map(|example| documents(&example.unwrap().path())).chain(parse(&block(PAGE, "objects")));
    for gateway in documents.filter(|object| object["kind"] == "Gateway") {
        gateways += 1;
        assert_eq!(gateway["spec"]["gatewayClassName"], *class);
        for listener in gateway["spec"]["listeners"].as_array().unwrap() {
            assert!(ports.contains(&listener["port"].as_u64().unwrap()), "{listener}");
            assert_eq!((&listener["protocol"], &listener["tls"]["mode"]), (&json!("TLS"), &json!("Passthrough")));
        }
    }
    assert!(gateways >= 4, "{gateways}");
}

/// With arguments that are wrong, the exit status is 2; with these, there only is no cluster.
#[test]
#[cfg(feature = "gateway")]
fn the_gateway_accepts_its_arguments_and_its_configuration() {
    let config = deployed("kubernetes/gateway/common/snigate.yaml");
    let directory = tempfile::tempdir().unwrap();
    let local = directory.path().join("snigate.yaml");
    std::fs::write(&local, std::fs::read_to_string(config).unwrap().replace("[::]:9443", "127.0.0.1:0")).unwrap();
    let outside = block(PAGE, "outside");
    let mut all: Vec<Vec<String>> = pods()
        .iter()
        .map(|pod| {
            let arguments = pod["containers"][0]["args"].as_array().unwrap();
            arguments.iter().map(|argument| argument.as_str().unwrap().replace("$(POD_NAMESPACE)", "snigate")).collect()
        })
        .collect();
    all.push(outside.split_whitespace().skip(1).map(str::to_owned).collect());
    for arguments in &mut all {
        for argument in arguments.iter_mut().filter(|argument| argument.starts_with("/etc/snigate/")) {
            *argument = local.to_str().unwrap().into();
        }
        let mut command = snigate();
        command.args(arguments.iter().map(|argument| argument.replace("~/", "/nowhere/")));
        let output = command.env_remove("KUBERNETES_SERVICE_HOST").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("cannot start"), "{said}");
    }
}

#[test]
#[ignore = "needs kubectl"]
fn kubectl_renders_the_gateway() {
    assert_eq!(
        block(PAGE, "apply").lines().collect::<Vec<_>>(),
        ["kubectl create namespace snigate", "kubectl apply -k deploy/kubernetes/gateway"]
    );
    for (directory, kind) in [("kubernetes/gateway", "Deployment"), ("kubernetes/gateway/host-network", "DaemonSet")] {
        let rendered = Rendered::of(&deployed(directory));
        let pods = rendered.get(kind);
        assert_eq!(pods["metadata"]["namespace"], "snigate");
        assert_eq!(pods["spec"]["selector"]["matchLabels"], pods["spec"]["template"]["metadata"]["labels"]);
        let map = &rendered.get("ConfigMap")["metadata"]["name"];
        assert_eq!(pods["spec"]["template"]["spec"]["volumes"][0]["configMap"]["name"], *map);
        for binding in ["RoleBinding", "ClusterRoleBinding"] {
            assert_eq!(rendered.get(binding)["subjects"][0]["namespace"], "snigate");
        }
    }
}
