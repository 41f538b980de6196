//! The app for Marathon, against the fields that Marathon's API documents for apps (its RAML of `/v2/apps`).

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::{deployed, seconds};
use crate::support::api_server::ApiServer;
use crate::support::pages::{block, page};
use crate::support::{Router, eventually, snigate, tls};

const APP: &str = include_str!("../../../deploy/marathon/snigate.json");
const PAGE: &str = "deploy/marathon/README.md";
const CONFIGS: [&str; 2] = ["one-cluster.yaml", "two-clusters.yaml"];

/// What a field may be.
enum Type {
    Text,
    Whole,
    Number,
    Flag,
    OneOf(&'static [&'static str]),
    List(&'static Type),
    Object(&'static Fields),
}

type Fields = [(&'static str, Type)];

use Type::{Flag, List, Number, Object, OneOf, Text, Whole};

const APP_FIELDS: &Fields = &[
    ("id", Text),
    ("acceptedResourceRoles", List(&Text)),
    ("args", List(&Text)),
    ("backoffFactor", Number),
    ("backoffSeconds", Whole),
    ("cmd", Text),
    ("constraints", List(&List(&Text))),
    ("container", Object(CONTAINER)),
    ("cpus", Number),
    ("disk", Number),
    ("healthChecks", List(&Object(HEALTH_CHECK))),
    ("instances", Whole),
    ("maxLaunchDelaySeconds", Whole),
    ("mem", Number),
    ("networks", List(&Object(&[("mode", OneOf(&["container", "container/bridge", "host"])), ("name", Text)]))),
    ("portDefinitions", List(&Object(PORT_DEFINITION))),
    ("requirePorts", Flag),
    ("taskKillGracePeriodSeconds", Whole),
    ("upgradeStrategy", Object(&[("maximumOverCapacity", Number), ("minimumHealthCapacity", Number)])),
    ("user", Text),
];

const CONTAINER: &Fields = &[
    ("type", OneOf(&["MESOS", "DOCKER"])),
    ("docker", Object(&[("image", Text), ("forcePullImage", Flag)])),
    ("volumes", List(&Object(&[("containerPath", Text), ("hostPath", Text), ("mode", OneOf(&["RO", "RW"]))]))),
];

const PORT_DEFINITION: &Fields = &[("port", Whole), ("name", Text), ("protocol", OneOf(&["tcp", "udp", "udp,tcp"]))];

const HEALTH_CHECK: &Fields = &[
    ("delaySeconds", Whole),
    ("gracePeriodSeconds", Whole),
    ("intervalSeconds", Whole),
    ("ipProtocol", OneOf(&["IPv4", "IPv6"])),
    ("maxConsecutiveFailures", Whole),
    ("path", Text),
    ("port", Whole),
    ("portIndex", Whole),
    ("protocol", OneOf(&["HTTP", "HTTPS", "TCP", "COMMAND", "MESOS_TCP", "MESOS_HTTP", "MESOS_HTTPS"])),
    ("timeoutSeconds", Whole),
];

/// What is wrong with this value.
fn wrong(path: &str, value: &Value, expected: &Type) -> Vec<String> {
    let is_right = match expected {
        Text => value.as_str().is_some_and(|text| !text.is_empty()),
        Whole => value.as_u64().is_some(),
        Number => value.as_f64().is_some_and(|number| number >= 0.0),
        Flag => value.is_boolean(),
        OneOf(all) => value.as_str().is_some_and(|text| all.contains(&text)),
        List(_) => value.is_array(),
        Object(_) => value.is_object(),
    };
    if !is_right {
        return vec![format!("{path}: {value}")];
    }
    match (expected, value) {
        (List(each), Value::Array(items)) => items
            .iter()
            .enumerate()
            .flat_map(|(number, item)| wrong(&format!("{path}[{number}]"), item, each))
            .collect(),
        (Object(fields), Value::Object(members)) => members
            .iter()
            .flat_map(|(name, member)| match fields.iter().find(|(known, _)| known == name) {
                Some((_, expected)) => wrong(&format!("{path}.{name}"), member, expected),
                None => vec![format!("{path}.{name}: no such field")],
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn app() -> Value {
    serde_json::from_str(APP).unwrap()
}

/// This file, with CA files beside it that it names.
fn config(name: &str, authority: &tls::Authority) -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::copy(deployed("marathon").join(name), &path).unwrap();
    for cluster in ["01", "02"] {
        authority.write(directory.path(), &format!("dev.kubernetes{cluster}-ca.pem"));
    }
    (directory, path)
}

#[test]
fn the_app_has_fields_that_marathon_knows() {
    assert_eq!(wrong("app", &app(), &Object(APP_FIELDS)), Vec::<String>::new());
    // Otherwise this would find nothing.
    let misspelled = APP.replace("hostPath", "hostpath").replace("\"MESOS\"", "\"UCR\"").replace("40", "\"40s\"");
    let found = wrong("app", &serde_json::from_str(&misspelled).unwrap(), &Object(APP_FIELDS));
    assert_eq!(
        found,
        [
            "app.container.type: \"UCR\"",
            "app.container.volumes[0].hostpath: no such field",
            "app.taskKillGracePeriodSeconds: \"40s\"",
        ]
    );
}

#[test]
fn a_deployment_of_the_app_can_finish() {
    let app = app();
    assert!(app["cmd"].is_null() && app["args"][0] == "run", "the image's entry point is the binary");
    // The new instance needs the port that the old one has, so an old one must go first.
    let (instances, strategy) = (app["instances"].as_f64().unwrap(), &app["upgradeStrategy"]);
    let healthy = (instances * strategy["minimumHealthCapacity"].as_f64().unwrap()).ceil();
    assert!(healthy < instances && strategy["maximumOverCapacity"] == 0);
    assert_eq!((&app["requirePorts"], &app["networks"][0]["mode"]), (&true.into(), &"host".into()));
    let check = &app["healthChecks"][0];
    assert!(check["port"].is_null() != check["portIndex"].is_null(), "exactly one of the two");
}

#[test]
fn the_configurations_are_valid_and_fit_the_app() {
    let (app, authority) = (app(), tls::Authority::new());
    let ports: Vec<u64> =
        app["portDefinitions"].as_array().unwrap().iter().map(|port| port["port"].as_u64().unwrap()).collect();
    let volume = &app["container"]["volumes"][0];
    let file = Path::new(app["args"][2].as_str().unwrap());
    assert_eq!(file.parent().unwrap(), Path::new(volume["containerPath"].as_str().unwrap()));
    assert_eq!(volume["mode"], "RO");
    for name in CONFIGS {
        let (_directory, path) = config(name, &authority);
        let checked = snigate().arg("check").arg(&path).output().unwrap();
        assert!(checked.status.success(), "{name}: {}", String::from_utf8_lossy(&checked.stderr));
        let config: Value = serde_yaml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let port = |key: &str| config[key].as_str().unwrap().rsplit_once(':').unwrap().1.parse::<u64>().unwrap();
        assert_eq!([port("listen"), port("admin")], *ports, "{name}");
        assert_eq!(app["healthChecks"][0]["port"], port("admin"));
        let grace = app["taskKillGracePeriodSeconds"].as_u64().unwrap();
        let timeouts = &config["timeouts"];
        assert!(grace > seconds(&timeouts["drain"]) + seconds(&timeouts["shutdown_delay"]), "{name}");
        // The README's arithmetic: 8 MB, 7.5 kB each idle, and as much again for what waits in buffers.
        let connections = config["limits"]["connections"].as_u64().unwrap();
        assert!(8_000_000 + 2 * 7_500 * connections < app["mem"].as_u64().unwrap() << 20, "{name}");
        assert!(page(PAGE).contains(&format!("{},000 connections, which is `limits.connections`", connections / 1000)));
    }
}

/// The example with ports of the kernel's choice, and these in place of the clusters.
fn start(name: &str, authority: &tls::Authority, clusters: &[(&str, &ApiServer)]) -> Router {
    let (directory, path) = config(name, authority);
    let mut text = std::fs::read_to_string(&path).unwrap();
    for (service, cluster) in clusters {
        let (there, here) = (format!("dcos: {service}\n"), format!("endpoints: \"{}\"\n", cluster.address()));
        assert!(text.contains(&there), "{there} in {text}");
        text = text.replace(&there, &here);
    }
    let text = text
        .replace("[::]:6443", "127.0.0.1:0")
        .replace("127.0.0.1:9443", "127.0.0.1:0")
        .replace("health_check:\n", "health_check:\n        interval: 500ms\n");
    std::fs::write(&path, text).unwrap();
    let mut command = snigate();
    let arguments = app()["args"].clone();
    command.args(arguments.as_array().unwrap()[..2].iter().map(|argument| argument.as_str().unwrap())).arg(&path);
    let router = Router::spawn(command, path, directory);
    router.wait_many("listening", 2, |line| line["message"] == "listening");
    router
}

#[test]
fn one_cluster_takes_every_client_and_answers_the_health_check() {
    let authority = tls::Authority::new();
    let cluster = ApiServer::start(&authority, "kubernetes.example.com");
    let router = start("one-cluster.yaml", &authority, &[("kubernetes-cluster", &cluster)]);
    assert_eq!(tls::get(router.address(), &authority, "kubernetes.example.com", None).unwrap(), "ok");
    assert_eq!(router.get(app()["healthChecks"][0]["path"].as_str().unwrap()).0, 200);
}

#[test]
fn two_clusters_are_verified_each_with_its_own_name() {
    let names =
        ["apiserver.devkubernetes01.l4lb.thisdcos.directory", "apiserver.devkubernetes02.l4lb.thisdcos.directory"];
    let authority = tls::Authority::new();
    // The second shows the first one's certificate.
    let clusters = [ApiServer::start(&authority, names[0]), ApiServer::start(&authority, names[0])];
    let router = start(
        "two-clusters.yaml",
        &authority,
        &[("dev/kubernetes01", &clusters[0]), ("dev/kubernetes02", &clusters[1])],
    );
    let state = |route: usize| {
        let status: Value = serde_json::from_str(&router.get("/api/status").1).unwrap();
        status["routes"][route]["upstream"][0]["endpoints"][0]["state"].as_str().unwrap().to_owned()
    };
    eventually("the second is not believed", || state(1) == "dead");
    assert!(clusters[1].requests().is_empty(), "it is not asked before it is verified");
    eventually("the first is asked, and ready", || !clusters[0].requests().is_empty() && state(0) == "ready");
    assert!(clusters[0].requests()[0].starts_with("GET /readyz "));
    assert_eq!(tls::get(router.address(), &authority, names[0], None).unwrap(), "ok");
    clusters[1].show(&authority.issue(names[1]));
    eventually("the second is ready", || state(1) == "ready");
}

#[test]
#[ignore = "needs kubectl"]
fn the_readme_shows_how_to_write_a_clusters_ca_to_a_file() {
    let directory = TempDir::new().unwrap();
    let authority = tls::Authority::new();
    let ca = authority.write(directory.path(), "ca.pem");
    let kubeconfig = directory.path().join("config");
    let kubectl = |arguments: &[&str]| {
        let status = Command::new("kubectl").args(arguments).env("KUBECONFIG", &kubeconfig).status().unwrap();
        assert!(status.success(), "{arguments:?}");
    };
    let embedded = format!("--certificate-authority={}", ca.display());
    kubectl(&["config", "set-cluster", "dev", "--server=https://dev.example.com:6443", &embedded, "--embed-certs"]);
    kubectl(&["config", "set-context", "dev", "--cluster=dev"]);
    kubectl(&["config", "use-context", "dev"]);
    let output = Command::new("sh")
        .args(["-ec", &block(PAGE, "ca")])
        .current_dir(directory.path())
        .env("KUBECONFIG", &kubeconfig)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written = std::fs::read(directory.path().join("dev.kubernetes01-ca.pem")).unwrap();
    assert_eq!(written, std::fs::read(ca).unwrap());
}
