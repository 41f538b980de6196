//! Each rule of Gateway API, and properties that hold for all of them.

mod addresses;
mod attachment;
mod backends;
mod ingress;
mod isolation;
mod properties;

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{IngressOptions, Options, Publish, translate};
use crate::config::Config;
use crate::gateway::api::{Key, Kind};
use crate::gateway::configuration::configuration;
use crate::gateway::plan::{Applied, Plan};
use crate::gateway::snapshot::Snapshot;
use crate::gateway::status;
use crate::name::ServerName;
use crate::route::{Arrival, Client, RouteTable};

const EVERYWHERE: &str = "[::]:443";

fn object(group_version: &str, kind: &str, name: &str, spec: Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    json!({
        "apiVersion": group_version,
        "kind": kind,
        "metadata": {"namespace": namespace, "name": name, "uid": format!("{kind}-{namespace}-{name}"), "generation": 7},
        "spec": spec,
    })
}

fn class() -> Value {
    object("gateway.networking.k8s.io/v1", "GatewayClass", "snigate", json!({"controllerName": "snigate.dev/gateway"}))
}

/// Listeners are `NAME PORT [HOSTNAME]`, for routes of all namespaces.
fn gateway(name: &str, listeners: &[&str]) -> Value {
    let listener = |text: &&str| {
        let mut words = text.split(' ');
        let mut next = || words.next();
        json!({
            "name": next(),
            "port": next().unwrap().parse::<u16>().unwrap(),
            "hostname": next(),
            "protocol": "TLS",
            "tls": {"mode": "Passthrough"},
            "allowedRoutes": {"namespaces": {"from": "All"}},
        })
    };
    let listeners: Vec<Value> = listeners.iter().map(listener).collect();
    let spec = json!({"gatewayClassName": "snigate", "listeners": listeners});
    object("gateway.networking.k8s.io/v1", "Gateway", name, spec)
}

/// Parents are `NAMESPACE/NAME[/SECTION]`.
fn tls_route(name: &str, parents: &[&str], hostnames: &[&str], backends: Value) -> Value {
    let parent = |text: &&str| {
        let mut parts = text.split('/');
        json!({"namespace": parts.next(), "name": parts.next(), "sectionName": parts.next()})
    };
    let parents: Vec<Value> = parents.iter().map(parent).collect();
    let spec = json!({"parentRefs": parents, "hostnames": hostnames, "rules": [{"backendRefs": backends}]});
    object("gateway.networking.k8s.io/v1", "TLSRoute", name, spec)
}

fn service(name: &str) -> Value {
    let ports = json!([{"name": "tls", "port": 443}, {"name": "udp", "port": 53, "protocol": "UDP"}]);
    object("v1", "Service", name, json!({"ports": ports}))
}

/// A route to the Service `a` of its namespace.
fn simple_route(name: &str, parent: &str, hostnames: &[&str]) -> Value {
    tls_route(name, &[parent], hostnames, json!([{"name": "a", "port": 443}]))
}

fn created(mut object: Value, time: &str) -> Value {
    object["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T{time}:00Z"));
    object
}

fn annotated(mut object: Value, annotations: Value) -> Value {
    object["metadata"]["annotations"] = annotations;
    object
}

fn snapshot<'o>(objects: impl IntoIterator<Item = &'o Value>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for object in objects {
        // An undecodable object is remembered.
        let _ = snapshot.insert(Kind::of(object).unwrap(), object.clone());
    }
    snapshot
}

fn plan(objects: &[Value]) -> Plan {
    plan_with(objects, &Options::default())
}

fn plan_with(objects: &[Value], options: &Options) -> Plan {
    translate(&snapshot(objects), options, &[])
}

/// The route of a client, as the server finds it.
fn routed(plan: &Plan, address: &str, name: Option<&str>) -> Option<String> {
    let config = configuration(&Config::empty_base().unwrap(), &plan.routing);
    let mut table = RouteTable::default();
    for route in &config.routes {
        for (names, matchers) in route.entries() {
            table.add(&names, &matchers, &route.name).unwrap();
        }
    }
    for (names, matchers) in &config.excluded {
        table.exclude(names, matchers).unwrap();
    }
    let address: SocketAddr = address.parse().unwrap();
    let listener = config.listeners.iter().position(|listener| listener.address == address)?;
    let name = name.map(|name| ServerName::parse(name.as_bytes()).unwrap());
    table.find(&Client::new(name, None, Arrival { listener, ..Arrival::default() })).map(|found| found.target.clone())
}

/// Type, status and reason of conditions.
fn reasons(conditions: &Value) -> Vec<String> {
    let text = |condition: &Value, key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    let reason = |condition: &Value| {
        assert_eq!(condition["observedGeneration"], 7, "{condition}");
        format!("{} {} {}", text(condition, "type"), text(condition, "status"), text(condition, "reason"))
    };
    conditions.as_array().unwrap().iter().map(reason).collect()
}

const NOW: &str = "2026-02-03T04:05:06Z";

fn applied() -> Applied {
    Applied { own_addresses: vec!["192.0.2.1".parse().unwrap()], ..Applied::default() }
}

fn gateway_status(plan: &Plan, name: &str) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    let wanted = &plan.statuses.gateways[&Key::new(namespace, name)];
    status::gateway(&Value::Null, wanted, &plan.statuses.published, &applied(), NOW).unwrap()
}

fn listener_reasons(plan: &Plan, gateway: &str, listener: &str) -> Vec<String> {
    let status = gateway_status(plan, gateway);
    let listeners = status["listeners"].as_array().unwrap();
    reasons(&listeners.iter().find(|status| status["name"] == *listener).unwrap()["conditions"])
}

fn attached_routes(plan: &Plan, gateway: &str) -> Vec<u64> {
    let status = gateway_status(plan, gateway);
    status["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .map(|listener| listener["attachedRoutes"].as_u64().unwrap())
        .collect()
}

/// Of each parent of a route.
fn route_reasons(plan: &Plan, name: &str) -> Vec<Vec<String>> {
    let (namespace, name) = name.split_once('/').unwrap();
    let wanted = plan.statuses.routes.get(&Key::new(namespace, name));
    let status = status::route(&Value::Null, wanted, "snigate.dev/gateway", NOW).unwrap_or_default();
    let parents = status["parents"].as_array().cloned().unwrap_or_default();
    parents.iter().map(|parent| reasons(&parent["conditions"])).collect()
}

fn notes(plan: &Plan) -> Vec<String> {
    plan.notes.iter().map(|note| format!("{}: {}: {}", note.object, note.reason, note.message)).collect()
}
