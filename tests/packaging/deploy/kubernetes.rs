//! The kustomization, rendered by kubectl; the fields by which a pod ends in order and with few rights.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Deserialize as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{deployed, seconds};
use crate::support::pages::block;
use crate::support::router::Router;
use crate::support::{Backend, Client, Hello, snigate};

const PAGE: &str = "deploy/kubernetes/README.md";

/// What this directory renders to, by kind.
pub(super) struct Rendered(Vec<Value>);

impl Rendered {
    pub(super) fn of(directory: &Path) -> Self {
        let output = Command::new("kubectl").arg("kustomize").arg(directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        Self(serde_yaml::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap()).collect())
    }

    pub(super) fn get(&self, kind: &str) -> &Value {
        let mut found = self.0.iter().filter(|object| object["kind"] == kind);
        let only = found.next().unwrap_or_else(|| panic!("no {kind}"));
        assert!(found.next().is_none(), "one {kind}");
        only
    }
}

/// A copy of the kustomization, to change.
fn copy() -> TempDir {
    let directory = TempDir::new().unwrap();
    for file in fs::read_dir(deployed("kubernetes")).unwrap() {
        let file = file.unwrap();
        if file.path().is_dir() {
            continue;
        }
        fs::copy(file.path(), directory.path().join(file.file_name())).unwrap();
    }
    directory
}

#[test]
#[ignore = "needs kubectl"]
fn all_selectors_select_the_pods() {
    let rendered = Rendered::of(&deployed("kubernetes"));
    let pod = &rendered.get("Deployment")["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    assert!(labels.as_object().is_some_and(|labels| !labels.is_empty()));
    for (kind, selector) in [
        ("Deployment", "/spec/selector/matchLabels"),
        ("Service", "/spec/selector"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector/matchLabels"),
    ] {
        let object = rendered.get(kind);
        assert_eq!(object.pointer(selector), Some(labels), "{kind}");
        assert!(object["metadata"]["namespace"].is_null(), "{kind}");
    }
    let spreads = pod["spec"]["topologySpreadConstraints"].as_array().unwrap();
    assert!(spreads.iter().all(|spread| spread["labelSelector"]["matchLabels"] == *labels));
    assert_eq!(spreads[0]["topologyKey"], "kubernetes.io/hostname");
    assert_eq!(rendered.get("Service")["spec"]["externalTrafficPolicy"], "Local");
    let (replicas, kept) =
        (&rendered.get("Deployment")["spec"]["replicas"], &rendered.get("PodDisruptionBudget")["spec"]["minAvailable"]);
    assert!(kept.as_u64().unwrap() >= 1 && kept.as_u64() < replicas.as_u64(), "nodes can be drained");
}

#[test]
#[ignore = "needs kubectl"]
fn the_pod_may_do_little() {
    let rendered = Rendered::of(&deployed("kubernetes"));
    let pod = &rendered.get("Deployment")["spec"]["template"]["spec"];
    assert_eq!(
        pod["securityContext"],
        json!({"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}})
    );
    assert_eq!(
        pod["containers"][0]["securityContext"],
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
    );
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert!(pod["hostNetwork"].is_null());
    let user = include_str!("../../../deploy/container/Containerfile").lines().find(|line| line.starts_with("USER "));
    assert_eq!(user, Some("USER 65532:65532"), "the image's");
}

#[test]
#[ignore = "needs kubectl"]
fn the_configuration_is_valid_and_fits_the_pod() {
    let rendered = Rendered::of(&deployed("kubernetes"));
    let pod = &rendered.get("Deployment")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let map = rendered.get("ConfigMap");
    assert_eq!(pod["volumes"][0]["configMap"]["name"], map["metadata"]["name"]);
    let file = Path::new(container["args"][2].as_str().unwrap());
    assert_eq!(container["volumeMounts"][0]["mountPath"], file.parent().unwrap().to_str().unwrap());
    let text = map["data"][file.file_name().unwrap().to_str().unwrap()].as_str().unwrap();

    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    fs::write(&path, text).unwrap();
    let checked = snigate().arg("check").arg(&path).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let config: Value = serde_yaml::from_str(text).unwrap();
    let timeouts = &config["timeouts"];
    let needed = seconds(&timeouts["shutdown_delay"]) + seconds(&timeouts["drain"]);
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= needed + 10);
    let ports = container["ports"].as_array().unwrap();
    let port = |name: &str| ports.iter().find(|port| port["name"] == name).unwrap()["containerPort"].as_u64().unwrap();
    assert!(config["listen"].as_str().unwrap().ends_with(&format!(":{}", port("api"))) && port("api") > 1023);
    let service = &rendered.get("Service")["spec"]["ports"][0];
    assert_eq!((&service["targetPort"], &service["port"]), (&json!("api"), &json!(port("api"))));
    let admin = config["admin"]["address"].as_str().unwrap();
    assert!(admin.ends_with(&format!("]:{}", port("admin"))) && config["admin"]["allow_remote"] == true);

    // It starts with these arguments, and the probes find it well.
    let backend = Backend::named("served");
    let text = text
        .replace("[::]:6443", "127.0.0.1:0")
        .replace("[::]:9443", "127.0.0.1:0")
        .replace("kubernetes01-apiserver.kubernetes01.svc.cluster.local:6443", &format!("\"{}\"", backend.address()));
    fs::write(&path, text).unwrap();
    let mut command = snigate();
    command.args(["run", "-c"]).arg(&path);
    assert_eq!(container["args"].as_array().unwrap()[..2], [json!("run"), json!("-c")]);
    let router = Router::spawn(command, path, directory);
    router.wait_many("listening", 2, |line| line["message"] == "listening");
    let mut client = Client::send(router.address(), &Hello::to("kubernetes01.example.com").record());
    client.finish();
    assert_eq!(client.rest().0, b"served");
    for probe in ["readinessProbe", "livenessProbe"] {
        let asked = &container[probe]["httpGet"];
        assert_eq!((router.get(asked["path"].as_str().unwrap()).0, &asked["port"]), (200, &json!("admin")));
    }
}

#[test]
#[ignore = "needs kubectl"]
fn another_configuration_is_a_rollout_or_as_the_readme_says_a_reload() {
    let directory = copy();
    let name = || Rendered::of(directory.path()).get("ConfigMap")["metadata"]["name"].as_str().unwrap().to_owned();
    let before = name();
    let config = directory.path().join("snigate.yaml");
    fs::write(&config, fs::read_to_string(&config).unwrap().replace("8000", "7000")).unwrap();
    assert_ne!(name(), before);

    let kustomization = directory.path().join("kustomization.yaml");
    let fixed = block(PAGE, "fixed-name");
    let text = fs::read_to_string(&kustomization).unwrap();
    let generator = text.split("\n\n").find(|block| block.contains("configMapGenerator:")).unwrap();
    fs::write(&kustomization, text.replace(generator, &fixed)).unwrap();
    assert_eq!(name(), "snigate");
    let rendered = Rendered::of(directory.path());
    let pod = &rendered.get("Deployment")["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][0]["configMap"]["name"], "snigate");
    assert!(pod["containers"][0]["volumeMounts"][0]["subPath"].is_null(), "it would never be updated");
    assert!(rendered.get("ConfigMap")["data"]["snigate.yaml"].as_str().unwrap().contains("\nwatch: true\n"));
}

#[test]
fn the_readmes_commands_name_what_there_is() {
    assert_eq!(block(PAGE, "render"), "kubectl kustomize deploy/kubernetes\n");
    let apply = block(PAGE, "apply");
    assert_eq!(
        apply.lines().collect::<Vec<_>>(),
        [
            "kubectl apply --namespace snigate -k deploy/kubernetes",
            "kubectl rollout status --namespace snigate deployment/snigate",
        ]
    );
}

#[test]
#[ignore = "needs kubectl"]
fn on_the_network_of_the_nodes_a_new_pod_takes_over() {
    assert_eq!(block(PAGE, "render-host-network"), "kubectl kustomize deploy/kubernetes/host-network\n");
    let rendered = Rendered::of(&deployed("kubernetes/host-network"));
    let daemon_set = &rendered.get("DaemonSet")["spec"];
    let pod = &daemon_set["template"];
    assert_eq!(daemon_set["selector"]["matchLabels"], pod["metadata"]["labels"]);
    assert_eq!(daemon_set["updateStrategy"]["rollingUpdate"], json!({"maxSurge": 1, "maxUnavailable": 0}));
    assert!(daemon_set["minReadySeconds"].as_u64().unwrap() > 30, "more than a start may take");
    let pod = &pod["spec"];
    let container = &pod["containers"][0];
    assert_eq!(pod["hostNetwork"], true);
    assert!(container["ports"].is_null(), "or a second pod does not fit on the node");
    assert!(pod["hostPID"].is_null(), "snigate is the first process of its container");
    assert_eq!(
        container["securityContext"],
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}})
    );

    let map = rendered.get("ConfigMap");
    let text = map["data"]["snigate.yaml"].as_str().unwrap();
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    fs::write(&path, text).unwrap();
    let checked = snigate().arg("check").arg(&path).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let config: Value = serde_yaml::from_str(text).unwrap();
    let socket = Path::new(config["upgrade"]["socket"].as_str().unwrap());
    let mounts = container["volumeMounts"].as_array().unwrap();
    let mount = mounts.iter().find(|mount| mount["name"] == "upgrade").unwrap();
    assert_eq!(mount["mountPath"], socket.parent().unwrap().to_str().unwrap());
    assert!(mount["readOnly"].is_null());
    let needed = seconds(&config["timeouts"]["shutdown_delay"]) + seconds(&config["timeouts"]["drain"]);
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= needed + 10);
}
