//! The shim on nodes of hosted clusters, its edge, and the examples for pods.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::{deployed, seconds, values};
use crate::support::backend::free;
use crate::support::client::client_from;
use crate::support::cluster::{SERVICE, SERVICE_ADDRESS};
use crate::support::network::{Neighbour, shell};
use crate::support::pages::{block, page};
use crate::support::{Cluster, Process, Router, all_output, eventually, snigate};

const PAGE: &str = "docs/node-shim.md";
const README: &str = "deploy/node-shim/README.md";

/// A file of `deploy/`, which is valid as it is.
fn file(path: &str) -> String {
    let path = deployed(path);
    let checked = snigate().arg("check").arg(&path).output().unwrap();
    assert!(checked.status.success(), "{}", all_output(&checked));
    fs::read_to_string(path).unwrap()
}

/// With all of these in place of those.
fn with(text: &str, replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(text.to_owned(), |text, (old, new)| {
        assert!(text.contains(old), "{old} in\n{text}");
        text.replace(old, new)
    })
}

fn listener(router: &Router, name: &str) -> std::net::SocketAddr {
    router.address_of(|listener| listener == name)
}

/// A PROXY header, version 2, for a pod.
fn header(destination: [u8; 4], tlvs: &[(u8, &str)]) -> Vec<u8> {
    let tlvs = tlvs.iter().flat_map(|(number, value)| {
        [&[*number][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value.as_bytes()].concat()
    });
    let ports = [4711u16.to_be_bytes(), 443u16.to_be_bytes()].concat();
    let content: Vec<u8> = [10, 244, 0, 7].into_iter().chain(destination).chain(ports).chain(tlvs).collect();
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11"[..], &length, &content].concat()
}

/// Whether the pod of this cluster reaches it, when its node sends this.
fn is_reached_after(cluster: &Cluster, router: std::net::SocketAddr, header: &[u8]) {
    for name in [SERVICE, SERVICE_ADDRESS] {
        let mut stream = TcpStream::connect(router).unwrap();
        std::io::Write::write_all(&mut stream, header).unwrap();
        let answer = cluster.get_over(stream, name);
        assert!(answer.is_ok(), "{name} {answer:?}");
    }
}

#[test]
fn the_router_of_hypershift_serves_pods_by_id_and_others_by_name() {
    let names = ["api.blue.example.com", "api.green.example.com"];
    let [blue, green] = names.map(Cluster::start);
    let oauth = Cluster::start("oauth.blue.example.com");
    let router = Router::start(&with(
        &file("examples/hypershift.yaml"),
        &[
            ("[::]:6443", "127.0.0.1:0"),
            ("[::]:8443", "127.0.0.1:0"),
            ("127.0.0.1:9443", "127.0.0.1:0"),
            ("{from: [10.0.0.0/16]}", "{from: 127.0.0.1}"),
            ("192.0.2.0/24, 10.0.0.0/16", "127.0.0.2"),
            ("198.51.100.0/24, 10.0.0.0/16", "127.0.0.3"),
            ("kube-apiserver.clusters-blue.svc.cluster.local:6443", &blue.address().to_string()),
            ("kube-apiserver.clusters-green.svc.cluster.local:6443", &green.address().to_string()),
            ("oauth-openshift.clusters-blue.svc.cluster.local:6443", &oauth.address().to_string()),
        ],
    ));
    let (pods, external) = (listener(&router, "pods"), listener(&router, "external"));
    for (cluster, id) in
        [(&blue, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"), (&green, "7d444840-9dc0-11d1-b245-5ffdce74fad2")]
    {
        is_reached_after(cluster, pods, &header([172, 20, 0, 1], &[(0x20, id)]));
    }
    oauth.is_reached(external, "oauth.blue.example.com");
    for (cluster, name, own, other) in
        [(&blue, names[0], "127.0.0.2", "127.0.0.3"), (&green, names[1], "127.0.0.3", "127.0.0.2")]
    {
        let get = |from| cluster.get_over(client_from(from, external).stream, name);
        assert!(get(own).is_ok(), "{name}");
        let error = get(other).unwrap_err();
        assert!(error.contains("AccessDenied"), "{error}");
    }
}

#[test]
fn the_ingress_of_gardener_serves_pods_by_destination_and_others_by_name() {
    let names = ["api.blue.garden.example.com", "api.green.garden.example.com"];
    let [blue, green] = names.map(Cluster::start);
    let router = Router::start(&with(
        &file("examples/gardener.yaml"),
        &[
            ("[::]:443", "127.0.0.1:0"),
            ("[::]:8443", "127.0.0.1:0"),
            ("127.0.0.1:9443", "127.0.0.1:0"),
            ("10.250.0.0/16", "127.0.0.1"),
            ("kube-apiserver.shoot--garden--blue.svc.cluster.local:443", &blue.address().to_string()),
            ("kube-apiserver.shoot--garden--green.svc.cluster.local:443", &green.address().to_string()),
        ],
    ));
    let (pods, external) = (listener(&router, "pods"), listener(&router, "external"));
    for (cluster, name, last) in [(&blue, names[0], 11), (&green, names[1], 12)] {
        is_reached_after(cluster, pods, &header([100, 64, 0, last], &[]));
        let text = format!("PROXY TCP4 10.244.0.7 100.64.0.{last} 4711 443\r\n");
        is_reached_after(cluster, pods, text.as_bytes());
        cluster.is_reached(external, name);
    }
}

#[test]
fn the_examples_are_explained_by_the_commands_in_them() {
    let bin = Path::new(env!("CARGO_BIN_EXE_snigate")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for name in ["hypershift.yaml", "gardener.yaml"] {
        let text = file(&format!("examples/{name}"));
        let commands: String =
            text.lines().filter_map(|line| line.strip_prefix("#   ")).map(|line| format!("{line}\n")).collect();
        let mut shell = Command::new("sh");
        shell.args(["-ec", &commands]).current_dir(env!("CARGO_MANIFEST_DIR")).env("PATH", &path);
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{commands}{}", all_output(&output));
        let told = all_output(&output);
        assert!(told.contains("is valid.") && told.contains("route      blue-pods\n"), "{told}");
    }
}

/// The edge of the files, or of the page, at ports of the kernel's choice.
fn edge(text: &str, upstreams: [&str; 2], clusters: &[Cluster; 2]) -> Router {
    let [one, two] = clusters.each_ref().map(|cluster| cluster.address().to_string());
    Router::start(&with(
        text,
        &[
            ("[::]:6443", "127.0.0.1:0"),
            ("[::]:7443", "127.0.0.1:0"),
            ("10.1.0.0/16, 10.2.0.0/16", "127.0.0.9"),
            (upstreams[0], &one),
            (upstreams[1], &two),
        ],
    ))
}

/// The shim of the files, or of the page, on a node of this cluster.
fn shim(text: &str, listen: &str, edge: &Router, cluster: &str) -> Router {
    let edge = listener(edge, "nodes").to_string();
    Router::start(&with(
        text,
        &[
            ("172.31.0.1:6443", listen),
            // Nodes are listed at the edge.
            ("endpoints: edge.example.com:7443", &format!("source: 127.0.0.9\n      endpoints: {edge}")),
            ("0xe0: kubernetes01", &format!("0xe0: {cluster}")),
        ],
    ))
}

const NAMES: [&str; 2] = ["kubernetes01.example.com", "kubernetes02.example.com"];

#[test]
fn pods_and_others_reach_their_cluster_by_shim_and_edge() {
    let in_files = NAMES.map(|name| {
        let name = name.split('.').next().unwrap();
        format!("{name}-apiserver.{name}.svc.cluster.local:6443")
    });
    let file = |name: &str| with(&file(name), &[("127.0.0.1:9443", "127.0.0.1:0")]);
    for (edge_text, shim_text, upstreams) in [
        (file("node-shim/edge.yaml"), file("node-shim/shim.yaml"), in_files.each_ref().map(|name| &**name)),
        (block(PAGE, "edge"), block(PAGE, "shim"), ["\"api01.internal:6443\"", "\"api02.internal:6443\""]),
    ] {
        let clusters = NAMES.map(Cluster::start);
        let edge = edge(&edge_text, upstreams, &clusters);
        for (cluster, name) in clusters.iter().zip(NAMES) {
            let shim = shim(&shim_text, "127.0.0.1:0", &edge, name.split('.').next().unwrap());
            let at = shim.address_of(|name| name != "_admin");
            cluster.is_reached(at, SERVICE);
            cluster.is_reached(at, SERVICE_ADDRESS);
            cluster.is_reached(listener(&edge, "clients"), name);
        }
        // By a shim, no pod gets to another cluster, whatever it sends.
        let shim = shim(&shim_text, "127.0.0.1:0", &edge, "kubernetes01");
        let error = clusters[1].get(shim.address_of(|name| name != "_admin"), NAMES[1]).unwrap_err();
        assert!(error.contains("invalid peer certificate"), "{error}");
        let error = clusters[0].get(listener(&edge, "clients"), SERVICE).unwrap_err();
        assert!(error.contains("UnrecognisedName"), "{error}");
    }
}

#[test]
fn the_page_explains_by_commands_that_work() {
    let directory = tempfile::tempdir().unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_snigate")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for edge in [block(PAGE, "edge"), file("node-shim/edge.yaml")] {
        fs::write(directory.path().join("snigate.yaml"), edge).unwrap();
        for line in block(PAGE, "explain").lines() {
            for line in [line.to_owned(), line.replace("--no-sni", &format!("--sni {SERVICE}"))] {
                let output = Command::new("sh")
                    .args(["-ec", &line])
                    .current_dir(directory.path())
                    .env("PATH", &path)
                    .output()
                    .unwrap();
                let fails = line.contains("# exit status 1");
                assert_eq!(output.status.code(), Some(i32::from(fails)), "{line}: {}", all_output(&output));
                assert_eq!(all_output(&output).contains("kubernetes01-pods\n"), !fails, "{}", all_output(&output));
            }
        }
    }
}

/// The address in a configuration, without its port.
fn address_of_the_shim() -> String {
    let config: Value = serde_yaml::from_str(&file("node-shim/shim.yaml")).unwrap();
    let address = config["listen"][0]["address"].as_str().unwrap();
    assert_eq!(config["listen"][0]["freebind"], true);
    address.split(':').next().unwrap().to_owned()
}

#[test]
fn all_files_and_pages_have_the_same_address() {
    let address = address_of_the_shim();
    let unit = include_str!("../../../deploy/node-shim/snigate-service-address.service");
    assert!(unit.contains(&format!("ip address replace {address}/32 dev snigate\n")));
    assert!(init_script().contains(&format!("ip address add {address}/32 dev snigate\n")));
    assert!(block(PAGE, "on-a-node").contains(&format!("https://{address}:6443/")));
    for path in [PAGE, README] {
        assert!(page(path).contains(&format!("{address}:6443")), "{path}");
    }
}

fn daemonset() -> Value {
    serde_yaml::from_str(include_str!("../../../deploy/node-shim/daemonset.yaml")).unwrap()
}

fn init_script() -> String {
    daemonset()["spec"]["template"]["spec"]["initContainers"][0]["args"][0].as_str().unwrap().to_owned()
}

#[test]
fn the_pod_may_do_what_it_needs_to() {
    let daemonset = daemonset();
    let pod = &daemonset["spec"]["template"]["spec"];
    assert_eq!(daemonset["spec"]["selector"]["matchLabels"], daemonset["spec"]["template"]["metadata"]["labels"]);
    assert_eq!(
        pod["securityContext"],
        json!({
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}
        })
    );
    let hardened = |capabilities: Value| json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": capabilities});
    assert_eq!(pod["containers"][0]["securityContext"], hardened(json!({"drop": ["ALL"]})));
    let mut init = hardened(json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}));
    init["runAsNonRoot"] = false.into();
    init["runAsUser"] = 0.into();
    assert_eq!(pod["initContainers"][0]["securityContext"], init);
    assert_eq!((&pod["hostNetwork"], &pod["dnsPolicy"]), (&true.into(), &"Default".into()));
    assert_eq!(pod["automountServiceAccountToken"], false);
    for volume in pod["volumes"].as_array().unwrap() {
        assert!(volume["hostPath"].is_null(), "{volume}");
    }
}

#[test]
fn the_configuration_fits_the_pod() {
    let config: Value = serde_yaml::from_str(&file("node-shim/shim.yaml")).unwrap();
    let daemonset = daemonset();
    let pod = &daemonset["spec"]["template"]["spec"];
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() >= seconds(&config["timeouts"]["drain"]) + 10);
    let container = &pod["containers"][0];
    for probe in ["readinessProbe", "livenessProbe"] {
        let asked = &container[probe]["httpGet"];
        let address = format!("{}:{}", asked["host"].as_str().unwrap(), asked["port"]);
        assert_eq!(config["admin"], address, "only this machine may connect to it");
    }
    assert_eq!(container["args"], json!(["run", "-c", "/etc/snigate/shim.yaml"]));
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/etc/snigate");
    let memory = container["resources"]["limits"]["memory"].as_str().unwrap().strip_suffix("Mi").unwrap();
    let connections = config["limits"]["connections"].as_u64().unwrap();
    assert!(connections * 7500 * 2 < memory.parse::<u64>().unwrap() << 20, "half of it is free");
    assert_eq!(config["watch"], true, "another ConfigMap is a reload");
}

#[test]
#[ignore = "needs kubectl"]
fn kubectl_renders_the_manifests() {
    let output = Command::new("kubectl").arg("kustomize").arg(deployed("node-shim")).output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut objects = text.split("\n---\n").map(|text| serde_yaml::from_str::<Value>(text).unwrap());
    let (map, set) = (objects.next().unwrap(), objects.next().unwrap());
    assert_eq!((&map["kind"], &set["kind"], objects.next()), (&"ConfigMap".into(), &"DaemonSet".into(), None));
    let pod = &set["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][0]["configMap"]["name"], map["metadata"]["name"]);
    assert_eq!(map["data"]["shim.yaml"].as_str().unwrap(), file("node-shim/shim.yaml"));
    for object in [&map, &set] {
        assert_eq!(object["metadata"]["namespace"], "kube-system");
    }
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    let apply = block(README, "apply");
    assert_eq!(
        apply.lines().collect::<Vec<_>>(),
        [
            "kubectl apply -k deploy/node-shim",
            &format!(
                "kubectl rollout status --namespace kube-system daemonset/{}",
                set["metadata"]["name"].as_str().unwrap()
            ),
        ]
    );
}

#[test]
#[ignore = "needs root for network namespaces"]
fn the_init_container_adds_the_address_once_and_the_shim_serves_it() {
    let address = address_of_the_shim();
    Neighbour::new().inside(|| {
        let clusters = NAMES.map(Cluster::start);
        let edge = edge(&block(PAGE, "edge"), ["\"api01.internal:6443\"", "\"api02.internal:6443\""], &clusters);
        let text = with(&file("node-shim/shim.yaml"), &[("127.0.0.1:9443", "127.0.0.1:0")]);
        let shim = shim(&text, &format!("{address}:6443"), &edge, "kubernetes01");
        // Not every kernel has dummy interfaces.
        let has_dummy = Command::new("ip").args(["link", "add", "probe", "type", "dummy"]).output().unwrap();
        let script =
            init_script().replace("type dummy", if has_dummy.status.success() { "type dummy" } else { "type bridge" });
        for _ in 0..2 {
            shell(&format!("set -e; {script}"));
        }
        assert_eq!(shell("ip -oneline -4 address show dev snigate").lines().count(), 1);
        let at = shim.address_of(|name| name == "service");
        assert_eq!(at.to_string(), format!("{address}:6443"));
        clusters[0].is_reached(at, SERVICE_ADDRESS);
    });
}

/// What a unit says, but for comments.
fn lines(unit: &str) -> Vec<&str> {
    unit.lines().filter(|line| !line.starts_with('#')).collect()
}

#[test]
fn the_unit_is_that_of_the_package_with_fewer_rights() {
    let package = lines(include_str!("../../../deploy/systemd/snigate.service"));
    let unit = lines(include_str!("../../../deploy/node-shim/snigate-node-shim.service"));
    let only = |one: &[&str], other: &[&str]| {
        one.iter().filter(|line| !other.contains(line)).map(|line| line.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(
        only(&unit, &package),
        [
            "Description=snigate: the API server of this node's cluster, through the edge",
            "Wants=network-online.target snigate-service-address.service",
            "ExecStart=/usr/bin/snigate run -c /etc/snigate/shim.yaml",
            "TimeoutStopSec=15",
            "CapabilityBoundingSet=",
        ]
    );
    assert_eq!(unit.len() + 2, package.len(), "without AmbientCapabilities and RuntimeDirectory");
    let address = include_str!("../../../deploy/node-shim/snigate-service-address.service");
    assert_eq!(values(address, "CapabilityBoundingSet"), ["CAP_NET_ADMIN"]);
}

#[test]
fn the_commands_to_install_the_service_work() {
    let root = tempfile::tempdir().unwrap();
    let commands = block(README, "service");
    let (install, enable) = commands.trim().rsplit_once('\n').unwrap();
    let install = install.replace(" /etc", &format!(" {}/etc", root.path().display()));
    let output = Command::new("sh").args(["-ec", &install]).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    let unit = enable.strip_prefix("systemctl enable --now ").unwrap();
    let unit = fs::read_to_string(root.path().join("etc/systemd/system").join(unit).with_extension("service")).unwrap();
    for wanted in values(&unit, "Wants")[0].split(' ').filter(|wanted| wanted.starts_with("snigate")) {
        assert!(root.path().join("etc/systemd/system").join(wanted).exists(), "{wanted}");
    }
    let config = values(&unit, "ExecStart")[0].rsplit(' ').next().unwrap();
    assert!(root.path().join(&config[1..]).exists(), "{config}");
}

#[test]
#[ignore = "needs systemd-analyze"]
fn systemd_understands_the_units_of_the_shim() {
    let directory = tempfile::tempdir().unwrap();
    for (name, threshold) in [("snigate-service-address.service", "27"), ("snigate-node-shim.service", "16")] {
        let text = fs::read_to_string(deployed("node-shim").join(name)).unwrap();
        let path = directory.path().join(name);
        fs::write(&path, text.replace("/usr/bin/snigate", env!("CARGO_BIN_EXE_snigate"))).unwrap();
        let analyze = |arguments: &[&str]| Command::new("systemd-analyze").args(arguments).arg(&path).output().unwrap();
        let verified = analyze(&["verify", "--man=no"]);
        assert!(verified.status.success() && verified.stderr.is_empty(), "{}", all_output(&verified));
        let rated = analyze(&["security", "--offline=true", "--no-pager", &format!("--threshold={threshold}")]);
        assert!(rated.status.success(), "{}", all_output(&rated));
    }
}

#[test]
#[ignore = "needs haproxy"]
fn haproxy_is_a_shim_as_the_page_shows() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("haproxy.cfg");
    let clusters = NAMES.map(Cluster::start);
    for (matcher, own) in [
        ("proxy_tlv: {0x05: kubernetes01}", "proxy_tlv: {0x05: kubernetes02}"),
        ("destination: OWN", "destination: 127.0.0.0/8"),
    ] {
        let own_address = free();
        let matcher = matcher.replace("OWN", &own_address.ip().to_string());
        assert!(page(PAGE).contains(matcher.split(": ").next().unwrap()));
        let edge = Router::start(&format!(
            "listen: [{{address: \"127.0.0.1:0\", accept_proxy: {{from: 127.0.0.0/8}}}}]
routes:
  - {{name: one, {matcher}, upstream: \"{}\"}}
  - {{name: two, {own}, upstream: \"{}\"}}
",
            clusters[0].address(),
            clusters[1].address()
        ));
        let text = with(
            &block(PAGE, "haproxy"),
            &[("172.31.0.1:6443", &own_address.to_string()), ("edge.example.com:7443", &edge.address().to_string())],
        );
        fs::write(&path, &text).unwrap();
        let _haproxy = Process(Command::new("/usr/sbin/haproxy").args(["-db", "-f"]).arg(&path).spawn().unwrap());
        eventually("haproxy listens", || TcpStream::connect(own_address).is_ok());
        for name in [SERVICE, SERVICE_ADDRESS] {
            clusters[0].is_reached(own_address, name);
        }
    }
    // What the page says of this version.
    let text = with(
        &block(PAGE, "haproxy"),
        &[("proxy-v2-options unique-id", "set-proxy-v2-tlv-fmt(0xe0) %[str(kubernetes01)]")],
    );
    fs::write(&path, text).unwrap();
    let haproxy = |arguments: &[&str]| Command::new("/usr/sbin/haproxy").args(arguments).output().unwrap();
    let checked = all_output(&haproxy(&["-c", "-f", path.to_str().unwrap()]));
    let is_2_6 = all_output(&haproxy(&["-v"])).contains("version 2.6");
    assert_eq!(checked.contains("unknown keyword 'set-proxy-v2-tlv-fmt(0xe0)'"), is_2_6, "{checked}");
}
