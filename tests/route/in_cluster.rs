//! Pods connect to an IP address, or to `kubernetes.default.svc`: each must reach its own cluster all the same, with a
//! client certificate.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::support::client::client_from;
use crate::support::cluster::{SERVICE, SERVICE_ADDRESS};
use crate::support::network::{Neighbour, alone, shell};
use crate::support::{Cluster, Hello, Router};

fn two_clusters() -> [Cluster; 2] {
    ["kubernetes01", "kubernetes02"].map(Cluster::start)
}

/// Where shims of these tests connect from.
const NODE: &str = "127.0.0.9";

/// An edge for two clusters, the routes of which have these matchers.
fn edge(listener: &str, clusters: &[Cluster; 2], matchers: [&str; 2]) -> Router {
    let routes: String = clusters
        .iter()
        .zip(matchers)
        .map(|(cluster, matcher)| format!("  - {{{matcher}, upstream: \"{}\"}}\n", cluster.address()))
        .collect();
    Router::start(&format!("listen: [{listener}]\nroutes:\n{routes}"))
}

/// On a node: sends whatever it gets to the edge.
fn shim(listen: &str, edge: SocketAddr, proxy_protocol: &str) -> Router {
    Router::start(&format!(
        "listen: {listen}
routes: [{{upstream: {{endpoints: \"{edge}\", source: {NODE}, proxy_protocol: {proxy_protocol}}}}}]
"
    ))
}

fn with_tlv(cluster: &str) -> String {
    format!("{{version: v2, tlvs: {{0xe0: {cluster}}}}}")
}

const BY_TLV: [&str; 2] =
    ["name: kubernetes01, proxy_tlv: {0xe0: kubernetes01}", "name: kubernetes02, proxy_tlv: {0xe0: kubernetes02}"];

#[test]
fn shims_with_a_tlv_tell_apart_pods_that_send_no_sni_or_the_same() {
    let clusters = two_clusters();
    let edge = edge(&format!("{{address: \"127.0.0.1:0\", accept_proxy: {{from: {NODE}}}}}"), &clusters, BY_TLV);
    let shims = ["kubernetes01", "kubernetes02"].map(|name| shim("127.0.0.1:0", edge.address(), &with_tlv(name)));
    for (cluster, shim) in clusters.iter().zip(&shims) {
        // To an IP address, a client sends no SNI.
        for name in [SERVICE_ADDRESS, SERVICE] {
            cluster.is_reached(shim.address(), name);
        }
    }
    let error = clusters[0].get(shims[1].address(), SERVICE).unwrap_err();
    assert!(error.contains("invalid peer certificate"), "it sees the other cluster's own certificate: {error}");

    let unknown = shim("127.0.0.1:0", edge.address(), &with_tlv("kubernetes03"));
    for (name, outcome) in [(SERVICE_ADDRESS, "no_name"), (SERVICE, "unknown_name")] {
        let error = clusters[0].get(unknown.address(), name).unwrap_err();
        assert!(error.contains("UnrecognisedName"), "{error}");
        edge.wait("the rejection", |line| line["outcome"] == outcome);
    }
    let error = clusters[0].get(edge.address(), SERVICE).unwrap_err();
    edge.wait("who is no node", |line| {
        line["outcome"] == "proxy_header" && line["reason"] == "peer not in accept_proxy.from"
    });
    assert!(!error.contains("certificate"), "{error}");
}

#[test]
fn the_destination_in_a_proxy_header_tells_clusters_apart() {
    let clusters = two_clusters();
    let listener = "{address: \"127.0.0.1:0\", accept_proxy: {from: 127.0.0.0/8}}";
    let by_hand =
        edge(listener, &clusters, ["name: one, destination: 10.9.0.1", "name: two, destination: 10.9.2.0/24"]);
    for (cluster, destination) in clusters.iter().zip(["10.9.0.1", "10.9.2.7"]) {
        for name in [SERVICE_ADDRESS, SERVICE] {
            let mut stream = TcpStream::connect(by_hand.address()).unwrap();
            stream.write_all(format!("PROXY TCP4 10.244.0.7 {destination} 4711 443\r\n").as_bytes()).unwrap();
            assert!(cluster.get_over(stream, name).is_ok(), "{destination} {name}");
        }
    }
    assert_eq!(clusters.each_ref().map(Cluster::accepted), [2, 2]);

    // A shim passes on the address that its clients connected to, in either version.
    let edge = edge(listener, &clusters, ["name: one, destination: 127.0.0.11", "name: two, destination: 127.0.0.12"]);
    for version in ["v1", "v2"] {
        for (cluster, address) in clusters.iter().zip(["127.0.0.11", "127.0.0.12"]) {
            let shim = shim(&format!("{address}:0"), edge.address(), version);
            for name in [SERVICE_ADDRESS, SERVICE] {
                cluster.is_reached(shim.address(), name);
            }
        }
    }
}

#[test]
fn the_address_that_clients_connect_to_tells_clusters_apart() {
    let clusters = two_clusters();
    let matchers = ["name: one, destination: 127.0.0.21", "name: two, destination: 127.0.0.22"];
    let edge = edge("\"[::]:0\"", &clusters, matchers);
    let at = |address: &str| SocketAddr::new(address.parse().unwrap(), edge.address().port());
    for (cluster, address) in clusters.iter().zip(["127.0.0.21", "127.0.0.22"]) {
        for name in [SERVICE_ADDRESS, SERVICE] {
            cluster.is_reached(at(address), name);
        }
    }
    let error = clusters[0].get(at("127.0.0.23"), SERVICE_ADDRESS).unwrap_err();
    assert!(error.contains("UnrecognisedName"), "{error}");
}

#[test]
fn others_connect_directly_to_a_listener_for_nodes_and_name_no_cluster() {
    let clusters = two_clusters();
    let listener = format!("{{address: \"127.0.0.1:0\", accept_proxy: {{from: {NODE}, others: direct}}}}");
    let matchers = [BY_TLV[0], "sni: kubernetes02.example.com"];
    let edge = edge(&listener, &clusters, matchers);
    let shim = shim("127.0.0.1:0", edge.address(), &with_tlv("kubernetes01"));
    clusters[0].is_reached(shim.address(), SERVICE);
    let public = Cluster::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), "kubernetes02.example.com");
    edge.reload(
        &std::fs::read_to_string(&edge.config)
            .unwrap()
            .replace(&clusters[1].address().to_string(), &public.address().to_string()),
    );
    public.is_reached(edge.address(), "kubernetes02.example.com");
    let account = edge.wait("the direct client", |line| line["route"] == "kubernetes02.example.com");
    assert_eq!(account["network.peer.address"], serde_json::Value::Null);

    // Whoever is not listed has no say: a header is no hello. And whoever is listed must send one.
    let header = b"PROXY TCP4 10.244.0.7 10.96.0.1 4711 443\r\n".to_vec();
    let hello = Hello::to(SERVICE).record();
    for (from, bytes, outcome, reason) in [
        (
            "127.0.0.1",
            [header, hello.clone()].concat(),
            "not_tls",
            "unexpected PROXY header: this peer is in no `accept_proxy.from` of this listener",
        ),
        (NODE, hello, "proxy_header", "missing PROXY header, which accept_proxy requires"),
    ] {
        let mut client = client_from(from, edge.address());
        client.write(&bytes);
        assert_eq!(client.rest().0, b"");
        let account = edge.account_of(client.address());
        assert_eq!((&account["outcome"], &account["reason"]), (&outcome.into(), &reason.into()));
    }
    assert_eq!(clusters[0].accepted(), 1);
}

/// An address of the service that every node has.
const ON_NODES: &str = "10.96.0.1:443";

/// Two nodes with a pod each, beside an edge, each in a network of its own; both pods connect to the same address.
#[test]
#[ignore = "needs kubectl, and root for network namespaces"]
fn kubectl_in_pods_of_two_nodes_reaches_its_own_cluster() {
    let [nodes, pods] = [(); 2].map(|()| [(); 2].map(|()| Neighbour::new()));
    let config = "listen: [{name: nodes, address: \"0.0.0.0:7443\", accept_proxy: {from: [10.9.1.2, 10.9.2.2]}}]
admin: 127.0.0.1:9443
routes:
  - {name: kubernetes01, proxy_tlv: {0xe0: kubernetes01}, upstream: \"127.0.0.1:6001\"}
  - {name: kubernetes02, proxy_tlv: {0xe0: kubernetes02}, upstream: \"127.0.0.1:6002\"}
";
    let links = [
        nodes[0].link_by("edge1", "10.9.1.1", "eth0", "10.9.1.2"),
        nodes[1].link_by("edge2", "10.9.2.1", "eth0", "10.9.2.2"),
    ];
    alone(config, &links.join(" && "), |edge| {
        let cluster = |name, port: u16| Cluster::start_on(TcpListener::bind(("127.0.0.1", port)).unwrap(), name);
        let clusters = [cluster("kubernetes01", 6001), cluster("kubernetes02", 6002)];
        for (index, ((node, pod), name)) in nodes.iter().zip(&pods).zip(["kubernetes01", "kubernetes02"]).enumerate() {
            let shim = node.inside(|| {
                let shim = Router::start(&format!(
                    "listen: [{{address: \"{ON_NODES}\", freebind: true}}]
routes: [{{upstream: {{endpoints: \"10.9.{}.1:7443\", proxy_protocol: {}}}}}]
",
                    index + 1,
                    with_tlv(name)
                ));
                // Not every kernel has dummy interfaces.
                shell("ip link add snigate type dummy || ip link add snigate type bridge");
                shell("ip address add 10.96.0.1/32 dev snigate && ip link set snigate up");
                shell(&pod.link_by("pod", "10.244.0.1", "eth0", "10.244.0.7"));
                shim
            });
            pod.inside(|| {
                shell("ip route add default via 10.244.0.1");
                clusters[index].is_reached_by_kubectl(ON_NODES, &[]);
                clusters[index].is_reached_by_kubectl(ON_NODES, &["--tls-server-name", SERVICE]);
            });
            let account = edge.wait("the pod", |line| line["route"] == name);
            assert_eq!(account["client.address"], "10.244.0.7", "the same in both clusters");
            assert_eq!(account["network.peer.address"], format!("10.9.{}.2", index + 1));
            drop(shim);
        }
    });
}
