//! What is reported of objects that were served, and are no longer.

use serde_json::json;

use super::*;
use crate::support::backend::free_everywhere;

const CONTROLLER: &str = "snigate.dev/gateway";

/// Ingress objects with these names in a cluster without Gateways.
fn ingresses(names: &[&str]) -> KubeApi {
    let api = KubeApi::start();
    api.apply_all([namespace("default"), service("api")]);
    api.apply_all(names.iter().map(|name| own(name)));
    api
}

fn own(name: &str) -> Value {
    ingress(name, &format!("{name}.example.com"), "api")
}

/// Of another class.
fn others(name: &str) -> Value {
    let mut ingress = own(name);
    ingress["spec"]["ingressClassName"] = "other".into();
    ingress
}

fn with_address(mut ingress: Value, address: &str) -> Value {
    ingress["status"] = json!({"loadBalancer": {"ingress": [{"ip": address}]}});
    ingress
}

fn publish(api: &KubeApi, port: u16) -> Replica {
    let port = port.to_string();
    let options = ["--ingress-class", "nginx", "--ingress-port", &port, "--publish-address", "192.0.2.1"];
    Replica::start(api, &options)
}

fn address(api: &KubeApi, name: &str) -> Option<String> {
    let ingress = api.get("ingresses", "default", name).unwrap();
    Some(ingress["status"]["loadBalancer"]["ingress"].get(0)?["ip"].as_str()?.to_owned())
}

fn published() -> Option<String> {
    Some("192.0.2.1".into())
}

#[test]
fn i15_an_ingress_that_is_not_served_any_more_loses_the_addresses_once() {
    let api = ingresses(&["class", "annotation", "overwritten", "served"]);
    let (_port, number) = free_everywhere();
    let _replica = publish(&api, number).ready();
    eventually("all addresses", || {
        ["class", "annotation", "overwritten", "served"].iter().all(|name| address(&api, name) == published())
    });
    let before = api.status_writes();

    let mut annotation = own("annotation");
    annotation["metadata"]["annotations"] = json!({});
    api.apply_all([others("class"), annotation, with_address(others("overwritten"), "198.51.100.1")]);
    eventually("that both have none", || ["class", "annotation"].iter().all(|name| address(&api, name).is_none()));
    assert_eq!(api.status_writes(), before + 2);

    // Nothing more is written because all is listed again, or something else changes.
    let (lists, _) = api.reads("ingresses");
    api.compact();
    eventually("another list", || api.reads("ingresses").0 > lists);
    api.apply(own("new"));
    eventually("the address of another one", || address(&api, "new") == published());
    assert_eq!(api.status_writes(), before + 3);
    assert_eq!((address(&api, "overwritten"), address(&api, "served")), (Some("198.51.100.1".into()), published()));

    api.apply(own("class"));
    eventually("the address of one that is served again", || address(&api, "class") == published());
}

#[test]
fn i15_a_replica_removes_what_the_one_before_it_has_published() {
    let api = ingresses(&["left", "overwritten"]);
    let (_port, number) = free_everywhere();
    let mut replica = publish(&api, number).ready();
    eventually("the addresses", || ["left", "overwritten"].iter().all(|name| address(&api, name) == published()));
    replica.stop();
    // Of two that look the same, one is of another controller, and of one that it has changed in between as well.
    api.apply_all([others("left"), with_address(others("foreign"), "192.0.2.1")]);
    api.apply(with_address(others("overwritten"), "198.51.100.1"));
    api.apply(with_address(others("overwritten"), "192.0.2.1"));
    let before = api.status_writes();
    let _replica = publish(&api, number);
    eventually("that it has none", || address(&api, "left").is_none());
    api.apply(own("new"));
    eventually("the address of another one", || address(&api, "new") == published());
    assert_eq!(api.status_writes(), before + 2);
    assert_eq!((address(&api, "foreign"), address(&api, "overwritten")), (published(), published()));
}

#[test]
fn without_an_address_nothing_is_written_to_an_ingress_again_and_again() {
    let api = ingresses(&["first"]);
    let (_port, number) = free_everywhere();
    let port = number.to_string();
    let options = ["--ingress-class", "nginx", "--ingress-port", &port, "--publish-service", "default/balancer"];
    // As the API server has it.
    let mut first = own("first");
    first["status"] = json!({"loadBalancer": {}});
    api.apply(first);
    let mut balancer = service("balancer");
    balancer["status"] = json!({"loadBalancer": {}});
    api.apply(balancer.clone());
    let _replica = Replica::start(&api, &options).ready();
    eventually("a holder", || holder(&api).is_some());
    api.apply(others("second"));
    balancer["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    api.apply(balancer.clone());
    eventually("the address", || address(&api, "first") == published());
    assert_eq!(api.status_writes(), 1);
    balancer["status"] = json!({"loadBalancer": {}});
    api.apply(balancer);
    eventually("that it has none", || address(&api, "first").is_none());
}

/// Controllers and Gateways that have reported on the route.
fn parents(api: &KubeApi) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let route = api.get("tlsroutes", "default", "a").unwrap();
    let parents = route["status"]["parents"].as_array().cloned().unwrap_or_default();
    let mut parents: Vec<_> =
        parents.iter().map(|parent| (text(&parent["controllerName"]), text(&parent["parentRef"]["name"]))).collect();
    parents.sort();
    parents
}

#[test]
fn i15_a_route_keeps_no_entry_of_a_parent_that_it_has_no_more() {
    let backend = Backend::named("served");
    let (api, _) = cluster(&backend);
    let entry = |controller: &str, gateway: &str| (controller.to_owned(), gateway.to_owned());
    let foreign = entry("example.com/other", "edge");
    let (edge, second, third) = (entry(CONTROLLER, "edge"), entry(CONTROLLER, "second"), entry(CONTROLLER, "third"));
    let to = |names: &[&str]| {
        let mut object = route("a", NAME, &[("api", 1)]);
        object["spec"]["parentRefs"] = names.iter().map(|name| json!({"name": name})).collect();
        object
    };
    let mut all = to(&["edge", "second", "third"]);
    let parent = json!({"parentRef": {"name": "edge"}, "controllerName": "example.com/other", "conditions": []});
    all["status"] = json!({"parents": [parent]});
    let mut other = class();
    other["metadata"]["name"] = "other".into();
    other["spec"]["controllerName"] = "example.com/other".into();
    let at = |name: &str| {
        let address = free();
        gateway(name, address.ip(), &[address.port()])
    };
    let third_gateway = at("third");
    api.apply_all([other, at("second"), third_gateway.clone(), all]);
    let _replica = Replica::start(&api, &[]).ready();
    eventually("all entries", || parents(&api) == [&foreign, &edge, &second, &third].map(Clone::clone));
    eventually("the status of the Gateways", || {
        api.all("gateways").iter().all(|gateway| gateway["status"]["listeners"][0]["attachedRoutes"] == 1)
    });

    // The route refers to it no more.
    api.apply(to(&["edge", "third"]));
    eventually("that its entry is gone", || parents(&api) == [&foreign, &edge, &third].map(Clone::clone));

    // It belongs to another controller, which is to replace the status of the Gateway.
    let gateway = |name: &str| api.get("gateways", "default", name).unwrap();
    let before = gateway("third")["status"].clone();
    let mut changed = third_gateway;
    changed["spec"]["gatewayClassName"] = "other".into();
    api.apply(changed);
    eventually("that its entry is gone", || parents(&api) == [&foreign, &edge].map(Clone::clone));
    assert_eq!(gateway("third")["status"], before);

    api.delete("gateways", "default", "edge");
    eventually("that its entry is gone", || parents(&api) == [foreign.clone()]);
    let writes = |path: &str| {
        let requests = api.requests();
        requests.iter().filter(|request| request.is_status_write() && request.path.contains(path)).count()
    };
    let written = (writes("/gateways/third/"), writes("/tlsroutes/a/"));
    let mut last = route("b", "b.example.com", &[("api", 1)]);
    last["spec"]["parentRefs"] = json!([{"name": "second"}]);
    api.apply(last);
    eventually("the status of another route", || of_route(&api, "b", "Accepted") == truly("Accepted"));
    assert_eq!((writes("/gateways/third/"), writes("/tlsroutes/a/")), written);
}
