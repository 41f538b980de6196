//! Objects of a cluster.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

const GROUP: &str = "gateway.networking.k8s.io/v1";

pub fn class() -> Value {
    json!({
        "apiVersion": GROUP, "kind": "GatewayClass", "metadata": {"name": "snigate"},
        "spec": {"controllerName": "snigate.dev/gateway"},
    })
}

pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {"large": "and not asked for"}})
}

/// With a listener for TLS at each of these ports of the address.
pub fn gateway(name: &str, address: IpAddr, ports: &[u16]) -> Value {
    let listener = |port: &u16| json!({"name": format!("tls-{port}"), "port": port, "protocol": "TLS", "tls": {"mode": "Passthrough"}});
    json!({
        "apiVersion": GROUP, "kind": "Gateway", "metadata": {"namespace": "default", "name": name},
        "spec": {
            "gatewayClassName": "snigate",
            "addresses": [{"type": "IPAddress", "value": address.to_string()}],
            "listeners": ports.iter().map(listener).collect::<Vec<_>>(),
        },
    })
}

/// A route of the Gateway `edge` to Services, with their weights.
pub fn route(name: &str, hostname: &str, backends: &[(&str, u32)]) -> Value {
    let backend = |(service, weight): &(&str, u32)| json!({"name": service, "port": 6443, "weight": weight});
    json!({
        "apiVersion": GROUP, "kind": "TLSRoute", "metadata": {"namespace": "default", "name": name},
        "spec": {
            "parentRefs": [{"name": "edge"}],
            "hostnames": [hostname],
            "rules": [{"backendRefs": backends.iter().map(backend).collect::<Vec<_>>()}],
        },
    })
}

pub fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"ports": [{"name": "api", "port": 6443, "protocol": "TCP"}]},
    })
}

/// Of the class `nginx`, with the annotation for TLS passthrough.
pub fn ingress(name: &str, host: &str, service: &str) -> Value {
    let backend = json!({"service": {"name": service, "port": {"number": 6443}}});
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {
            "namespace": "default", "name": name,
            "annotations": {"nginx.ingress.kubernetes.io/ssl-passthrough": "true"},
        },
        "spec": {
            "ingressClassName": "nginx",
            "rules": [{"host": host, "http": {"paths": [{"path": "/", "backend": backend}]}}],
        },
    })
}

/// The state of a Pod behind a Service.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pod {
    Ready,
    Unready,
    /// It still serves.
    Terminating,
}

/// One slice per Pod, because its ports are those of all its Pods.
pub fn slice(service: &str, number: usize, address: SocketAddr, pod: Pod) -> Value {
    let conditions = match pod {
        Pod::Ready => json!({"ready": true, "serving": true, "terminating": false}),
        Pod::Unready => json!({"ready": false, "serving": false, "terminating": false}),
        Pod::Terminating => json!({"ready": false, "serving": true, "terminating": true}),
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": "default", "name": format!("{service}-{number}"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "api", "port": address.port(), "protocol": "TCP"}],
        "endpoints": [{"addresses": [address.ip().to_string()], "conditions": conditions}],
    })
}

/// The condition of this type, as its status and reason.
pub fn condition(conditions: &Value, kind: &str) -> Option<(String, String)> {
    let found = conditions.as_array()?.iter().find(|condition| condition["type"] == kind)?;
    Some((found["status"].as_str()?.to_owned(), found["reason"].as_str()?.to_owned()))
}
