//! What to write into the status of objects. Each function is given the status as it is, and returns what it is to be, or
//! `None` where nothing changes. What others wrote is kept.

mod conditions;

use serde_json::{Map, Value, json};

use self::conditions::merge;
use super::api::{GATEWAY_GROUP, ParentRef};
use super::plan::{
    Applied, ClassStatus, Condition, GatewayStatus, ListenerStatus, ParentStatus, Published, PublishedAddress,
    RouteStatus,
};

/// Maximum number of parents in the status of a route.
const MAX_PARENTS: usize = 32;

/// Maximum number of addresses in the status of a Gateway.
const MAX_ADDRESSES: usize = 16;

/// `now` is in RFC 3339, in UTC and whole seconds.
pub(crate) fn class(existing: &Value, wanted: &ClassStatus, now: &str) -> Option<Value> {
    let mut status = object(existing);
    let conditions = [wanted.condition.clone()];
    status.insert("conditions".into(), merge(&existing["conditions"], &conditions, wanted.generation, now));
    let features = wanted.supported_features.iter().map(|name| json!({"name": name})).collect();
    status.insert("supportedFeatures".into(), Value::Array(features));
    changed(existing, status)
}

pub(crate) fn gateway(
    existing: &Value,
    wanted: &GatewayStatus,
    published: &Published,
    applied: &Applied,
    now: &str,
) -> Option<Value> {
    let mut status = object(existing);
    let outcome = conditions::gateway(wanted, published, applied);
    status.insert("conditions".into(), merge(&existing["conditions"], &outcome.conditions, wanted.generation, now));
    let addresses = outcome.addresses.iter().take(MAX_ADDRESSES).map(|address| match address {
        PublishedAddress::Ip(ip) => json!({"type": "IPAddress", "value": ip.to_string()}),
        PublishedAddress::Hostname(name) => json!({"type": "Hostname", "value": name}),
    });
    status.insert("addresses".into(), addresses.collect());
    let before = existing["listeners"].as_array().map(Vec::as_slice).unwrap_or_default();
    let listener = |wanted: &ListenerStatus| {
        let before = before.iter().find(|before| before["name"] == *wanted.name).unwrap_or(&Value::Null);
        listener(before, wanted, &conditions::listener(wanted, applied), outcome.generation, now)
    };
    status.insert("listeners".into(), wanted.listeners.iter().map(listener).collect());
    changed(existing, status)
}

fn listener(existing: &Value, wanted: &ListenerStatus, conditions: &[Condition], generation: i64, now: &str) -> Value {
    let mut status = object(existing);
    let kinds = wanted.supports_tls_routes.then(|| json!({"group": GATEWAY_GROUP, "kind": "TLSRoute"}));
    status.insert("name".into(), json!(wanted.name));
    status.insert("supportedKinds".into(), kinds.into_iter().collect());
    status.insert("attachedRoutes".into(), json!(wanted.attached_routes));
    status.insert("conditions".into(), merge(&existing["conditions"], conditions, generation, now));
    status.into()
}

/// For all routes: without a status that is wanted, the entries of this controller are removed.
pub(crate) fn route(existing: &Value, wanted: Option<&RouteStatus>, controller: &str, now: &str) -> Option<Value> {
    let before = existing["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_own = |entry: &&Value| entry["controllerName"] == controller;
    let own: Vec<&Value> = before.iter().filter(is_own).collect();
    if wanted.is_none() && own.is_empty() {
        return None;
    }
    let mut parents: Vec<Value> = before.iter().filter(|entry| !is_own(entry)).cloned().collect();
    if let Some(RouteStatus { generation, parents: wanted }) = wanted {
        for ParentStatus { parent, conditions } in wanted {
            let parent = parent_ref(parent);
            let before = own.iter().find(|entry| entry["parentRef"] == parent).copied().unwrap_or(&Value::Null);
            let mut entry = object(before);
            entry.insert("conditions".into(), merge(&before["conditions"], conditions, *generation, now));
            entry.insert("controllerName".into(), json!(controller));
            entry.insert("parentRef".into(), parent);
            parents.push(entry.into());
        }
    }
    parents.truncate(MAX_PARENTS);
    let mut status = object(existing);
    // The order of entries has no meaning, so that another one is no change.
    let order = |entry: &Value| {
        before.iter().position(|before| {
            before["parentRef"] == entry["parentRef"] && before["controllerName"] == entry["controllerName"]
        })
    };
    parents.sort_by_key(|entry| order(entry).unwrap_or(usize::MAX));
    status.insert("parents".into(), parents.into());
    changed(existing, status)
}

/// As in the spec, with the defaults that the API server fills in.
fn parent_ref(parent: &ParentRef) -> Value {
    let ParentRef { group, kind, namespace, name, section_name, port } = parent;
    let mut reference = Map::new();
    reference.insert("group".into(), json!(group.as_deref().unwrap_or(GATEWAY_GROUP)));
    reference.insert("kind".into(), json!(kind.as_deref().unwrap_or("Gateway")));
    reference.insert("name".into(), json!(name));
    let optional = [
        ("namespace", namespace.as_ref().map(|namespace| json!(namespace))),
        ("sectionName", section_name.as_ref().map(|name| json!(name))),
        ("port", port.map(|port| json!(port))),
    ];
    reference.extend(optional.into_iter().filter_map(|(key, value)| Some((key.into(), value?))));
    reference.into()
}

/// For Ingress objects that are served.
pub(crate) fn ingress(existing: &Value, published: &Published, applied: &Applied) -> Option<Value> {
    let mut status = object(existing);
    let addresses = conditions::addresses(published, applied).into_iter().map(|address| match address {
        PublishedAddress::Ip(ip) => json!({"ip": ip.to_string()}),
        PublishedAddress::Hostname(name) => json!({"hostname": name}),
    });
    let mut balancer = object(&existing["loadBalancer"]);
    balancer.insert("ingress".into(), addresses.collect());
    status.insert("loadBalancer".into(), balancer.into());
    changed(existing, status)
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn changed(existing: &Value, status: Map<String, Value>) -> Option<Value> {
    let status = Value::Object(status);
    (status != *existing).then_some(status)
}
