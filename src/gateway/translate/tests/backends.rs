use super::*;
use crate::gateway::plan::{BackendKey, Endpoints, Weighted};

fn grant(name: &str, from: Value, to: Value) -> Value {
    object("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", name, json!({"from": [from], "to": [to]}))
}

/// The shares of a route in `ns`, and its condition.
fn shares(backends: Value, others: &[Value]) -> (Vec<(u32, Option<String>)>, String) {
    let route = tls_route("ns/r", &["ns/gw"], &["a.example.com"], backends);
    let plan = plan(&[&[class(), gateway("ns/gw", &["tls 443"]), route], others].concat());
    assert_eq!(route_reasons(&plan, "ns/r")[0][0], "Accepted True Accepted");
    let share = |Weighted { weight, backend }: &Weighted| (*weight, backend.as_ref().map(ToString::to_string));
    let shares = plan.routing.routes[0].backends.iter().map(share).collect();
    (shares, route_reasons(&plan, "ns/r")[0][1].clone())
}

const RESOLVED: &str = "ResolvedRefs True ResolvedRefs";

#[test]
fn references_that_do_not_resolve_refuse_their_share() {
    let external =
        object("v1", "Service", "ns/external", json!({"type": "ExternalName", "externalName": "example.com"}));
    let others = [service("ns/a"), service("other/a"), external];
    for (bad, reason) in [
        (json!({"name": "absent", "port": 443}), "BackendNotFound"),
        (json!({"name": "a", "port": 444}), "BackendNotFound"),
        (json!({"name": "a"}), "BackendNotFound"),
        (json!({"name": "a", "port": 53}), "UnsupportedProtocol"),
        (json!({"name": "external", "port": 443}), "UnsupportedValue"),
        (json!({"name": "a", "port": 443, "kind": "NonExistent", "group": "unknown.example.com"}), "InvalidKind"),
        (json!({"name": "a", "port": 443, "kind": "Service", "group": "example.com"}), "InvalidKind"),
        (json!({"name": "a", "port": 443, "namespace": "other"}), "RefNotPermitted"),
    ] {
        let good = json!({"name": "a", "port": 443, "weight": 3});
        let (found, resolved) = shares(json!([good, bad]), &others);
        assert_eq!(found, [(3, Some("ns/a:443".into())), (1, None)], "{bad}");
        assert_eq!(resolved, format!("ResolvedRefs False {reason}"), "{bad}");
    }
}

#[test]
fn weights_are_shares() {
    let others = [service("ns/a"), service("ns/b")];
    let backends = json!([
        {"name": "a", "port": 443, "weight": 0},
        {"name": "b", "port": 443, "weight": 1_000_000},
        {"name": "a", "port": 443, "namespace": "ns"},
    ]);
    let expected = [(1_000_000, Some("ns/b:443".into())), (1, Some("ns/a:443".into()))];
    assert_eq!(shares(backends, &others), (expected.into(), RESOLVED.into()));
    let (none, _) = shares(json!([{"name": "a", "port": 443, "weight": 0}]), &others);
    assert_eq!(none, [], "all are refused");
}

#[test]
fn another_namespace_needs_a_grant() {
    let from = json!({"group": "gateway.networking.k8s.io", "kind": "TLSRoute", "namespace": "ns"});
    let to = json!({"group": "", "kind": "Service", "name": "a"});
    let with = |object: &Value, key: &str, value: &str| {
        let mut object = object.clone();
        object[key] = json!(value);
        object
    };
    let all = json!({"group": "", "kind": "Service"});
    for (grant, is_granted) in [
        (grant("other/g", from.clone(), to.clone()), true),
        (grant("other/g", from.clone(), all), true),
        (grant("ns/g", from.clone(), to.clone()), false),
        (grant("other/g", with(&from, "group", "example.com"), to.clone()), false),
        (grant("other/g", with(&from, "kind", "HTTPRoute"), to.clone()), false),
        (grant("other/g", with(&from, "namespace", "x"), to.clone()), false),
        (grant("other/g", from.clone(), with(&to, "group", "example.com")), false),
        (grant("other/g", from.clone(), with(&to, "kind", "Secret")), false),
        (grant("other/g", from.clone(), with(&to, "name", "b")), false),
    ] {
        let backends = json!([{"name": "a", "namespace": "other", "port": 443}]);
        let (shares, resolved) = shares(backends, &[service("other/a"), grant.clone()]);
        let expected = if is_granted { RESOLVED } else { "ResolvedRefs False RefNotPermitted" };
        assert_eq!((resolved.as_str(), shares[0].1.is_some()), (expected, is_granted), "{grant}");
    }
}

fn slice(name: &str, service: &str, kind: &str, ports: Value, endpoints: &[(&str, &str)]) -> Value {
    let endpoint = |(address, state): &(&str, &str)| {
        let conditions = match *state {
            "ready" => json!({"ready": true, "serving": true, "terminating": false}),
            "unknown" => json!({}),
            "unready" => json!({"ready": false, "serving": false, "terminating": false}),
            "terminating" => json!({"ready": false, "serving": true, "terminating": true}),
            "terminated" => json!({"ready": false, "serving": false, "terminating": true}),
            other => panic!("{other}"),
        };
        json!({"addresses": [address], "conditions": conditions})
    };
    let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
    let mut slice = object("discovery.k8s.io/v1", "EndpointSlice", name, Value::Null);
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": service});
    slice["addressType"] = json!(kind);
    slice["ports"] = ports;
    slice["endpoints"] = json!(endpoints);
    slice
}

#[test]
fn endpoints_are_those_of_the_slices() {
    let tls = |port: u16| json!([{"name": "tls", "port": port, "protocol": "TCP"}, {"name": "other", "port": 1}]);
    for (slices, serving, terminating) in [
        (vec![], "", ""),
        (
            vec![slice(
                "ns/a-1",
                "a",
                "IPv4",
                tls(6443),
                &[("10.0.0.1", "ready"), ("10.0.0.2", "unready"), ("10.0.0.3", "unknown")],
            )],
            "10.0.0.1:6443 10.0.0.3:6443",
            "",
        ),
        (
            vec![
                slice("ns/a-1", "a", "IPv4", tls(6443), &[("10.0.0.1", "ready"), ("10.0.0.2", "terminating")]),
                slice("ns/a-2", "a", "IPv6", tls(7443), &[("2001:db8::1", "ready"), ("2001:db8::2", "terminated")]),
            ],
            "10.0.0.1:6443 [2001:db8::1]:7443",
            "10.0.0.2:6443 [2001:db8::2]:7443",
        ),
        (
            vec![slice(
                "ns/a-1",
                "a",
                "IPv4",
                tls(6443),
                &[("10.0.0.1", "terminating"), ("10.0.0.2", "terminated"), ("10.0.0.3", "unready")],
            )],
            "10.0.0.1:6443",
            "10.0.0.2:6443",
        ),
        (vec![slice("ns/b-1", "b", "IPv4", tls(6443), &[("10.0.0.1", "ready")])], "", ""),
        (vec![slice("other/a-1", "a", "IPv4", tls(6443), &[("10.0.0.1", "ready")])], "", ""),
        (vec![slice("ns/a-1", "a", "FQDN", tls(6443), &[("example.com", "ready")])], "", ""),
        (vec![slice("ns/a-1", "a", "IPv4", json!([{"port": 6443}]), &[("10.0.0.1", "ready")])], "", ""),
        (vec![slice("ns/a-1", "a", "IPv4", json!([{"name": "tls"}]), &[("10.0.0.1", "ready")])], "", ""),
        (vec![slice("ns/a-1", "a", "IPv4", Value::Null, &[("10.0.0.1", "ready")])], "", ""),
    ] {
        let route = simple_route("ns/r", "ns/gw", &["a.example.com"]);
        let objects = [&[class(), gateway("ns/gw", &["tls 443"]), service("ns/a"), route], &slices[..]].concat();
        let plan = plan(&objects);
        assert!(plan.statuses.routes.len() == 1 && plan.notes.is_empty(), "{:?}", plan.notes);
        let addresses = |text: &str| text.split_whitespace().map(|address| address.parse().unwrap()).collect();
        let expected = Endpoints { serving: addresses(serving), terminating: addresses(terminating) };
        let key = BackendKey { service: Key::new("ns", "a"), port: 443 };
        assert_eq!(plan.endpoints, [(key, expected)].into(), "{slices:?}");
    }
}

#[test]
fn endpoints_alone_do_not_change_the_routing() {
    let objects = |address| {
        let ports = json!([{"name": "tls", "port": 6443}]);
        let route = simple_route("ns/r", "ns/gw", &["a.example.com"]);
        let slice = slice("ns/a-1", "a", "IPv4", ports, &[(address, "ready")]);
        [class(), gateway("ns/gw", &["tls 443"]), service("ns/a"), route, slice]
    };
    let (one, other) = (plan(&objects("10.0.0.1")), plan(&objects("10.0.0.2")));
    assert_ne!(one.endpoints, other.endpoints);
    assert_eq!((one.routing, one.statuses), (other.routing, other.statuses));
}

#[test]
fn namespaces_that_are_not_watched_do_not_exist() {
    let options = Options { namespaces: vec!["ns".into()], ..Options::default() };
    let from = json!({"group": "gateway.networking.k8s.io", "kind": "TLSRoute", "namespace": "ns"});
    let objects = [
        class(),
        gateway("ns/gw", &["tls 443"]),
        gateway("x/gw", &["tls 8443"]),
        simple_route("x/r", "ns/gw", &["x.example.com"]),
        tls_route("ns/r", &["ns/gw"], &["a.example.com"], json!([{"name": "a", "namespace": "x", "port": 443}])),
        service("x/a"),
        grant("x/g", from, json!({"group": "", "kind": "Service"})),
    ];
    let plan = plan_with(&objects, &options);
    assert_eq!(plan.routing.listeners, [EVERYWHERE.parse().unwrap()]);
    assert_eq!(plan.routing.routes.len(), 1);
    assert_eq!(route_reasons(&plan, "ns/r")[0][1], "ResolvedRefs False BackendNotFound");
}
