//! What it costs to translate a whole cluster: `cargo bench --features gateway --bench translate`.

#![allow(clippy::pedantic, clippy::unwrap_used, missing_docs, reason = "a bench")]

use std::hint::black_box;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use snigate::internals::Cluster;

const GROUP: &str = "gateway.networking.k8s.io/v1";
const RUNS: usize = 21;

/// As the program has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    println!("CPU time, median and longest of {RUNS}");
    println!("{:>7} {:<27} {:>25} {:>25}", "", "", "translation", "a change meanwhile");
    for count in [1_000, 10_000] {
        for (name, is_granted) in [("routes", false), ("routes to other namespaces", true)] {
            let objects = objects(count, is_granted);
            let changed = [2, 3].map(|generation| {
                let mut route = objects.last().unwrap().clone();
                route["metadata"]["generation"] = generation.into();
                route
            });
            let mut cluster = Cluster::of(objects);
            let translation = measured(|_| assert_eq!(black_box(&cluster).translate(), count));
            let change = measured(|run| {
                // What a translation has.
                let copy = cluster.clone();
                cluster.apply(changed[run % 2].clone());
                copy
            });
            println!("{count:>7} {name:<27} {translation:>25} {change:>25}");
        }
    }
}

fn measured<T>(mut work: impl FnMut(usize) -> T) -> String {
    let mut times: Vec<Duration> = (0..RUNS)
        .map(|run| {
            let before = cpu();
            black_box(work(run));
            cpu() - before
        })
        .collect();
    times.sort();
    format!("{:.1?}, {:.1?}", times[RUNS / 2], times[RUNS - 1])
}

/// What this thread has used.
fn cpu() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().unwrap()
}

/// A Gateway with so many routes, each with a Service and an EndpointSlice in a namespace of its own. The routes are there,
/// too, or beside the Gateway; then each namespace has a ReferenceGrant.
fn objects(count: usize, is_granted: bool) -> Vec<Value> {
    let class = json!({
        "apiVersion": GROUP, "kind": "GatewayClass", "metadata": {"name": "snigate"},
        "spec": {"controllerName": "snigate.dev/gateway"},
    });
    let listener = json!({
        "name": "api", "port": 6443, "protocol": "TLS", "tls": {"mode": "Passthrough"},
        "allowedRoutes": {"namespaces": {"from": "All"}},
    });
    let gateway = json!({
        "apiVersion": GROUP, "kind": "Gateway", "metadata": {"namespace": "edge", "name": "edge"},
        "spec": {"gatewayClassName": "snigate", "listeners": [listener]},
    });
    let mut objects = vec![class, gateway];
    for number in 0..count {
        let (namespace, name) = (format!("tenant-{number:05}"), "kubernetes-apiserver");
        let metadata = |name: &str| {
            json!({
                "namespace": namespace, "name": name, "uid": format!("{name}-{number:032}"), "generation": 1,
                "creationTimestamp": format!("2026-01-01T{:02}:{:02}:{:02}Z", number / 3600, number / 60 % 60, number % 60),
                "labels": {"kubernetes.io/service-name": "kubernetes-apiserver"},
            })
        };
        let address = format!("10.{}.{}.{}", 1 + number / 65536, number / 256 % 256, number % 256);
        let mut route = json!({
            "apiVersion": GROUP, "kind": "TLSRoute", "metadata": metadata("kubernetes"),
            "spec": {
                "parentRefs": [{"namespace": "edge", "name": "edge"}],
                "hostnames": [format!("{namespace}.k8s.example.com")],
                "rules": [{"backendRefs": [{"namespace": namespace, "name": name, "port": 6443}]}],
            },
        });
        if is_granted {
            route["metadata"]["namespace"] = "edge".into();
            route["metadata"]["name"] = (*namespace).into();
            let from = json!({"group": "gateway.networking.k8s.io", "kind": "TLSRoute", "namespace": "edge"});
            objects.push(json!({
                "apiVersion": GROUP, "kind": "ReferenceGrant", "metadata": metadata("edge"),
                "spec": {"from": [from], "to": [{"group": "", "kind": "Service"}]},
            }));
        }
        objects.push(route);
        objects.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(name),
            "spec": {"ports": [{"name": "api", "port": 6443, "protocol": "TCP"}]},
        }));
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata("kubernetes-apiserver-x7k2p"),
            "addressType": "IPv4",
            "ports": [{"name": "api", "port": 6443, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false}}],
        }));
    }
    objects
}
