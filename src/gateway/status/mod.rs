//! What to write into the status of objects. Each function is given the status as it is, and returns what it is to be, or
//! `None` where nothing changes. What others wrote is kept.

mod conditions;
mod words;

use serde_json::{Map, Value, json};

use self::conditions::merge;
pub(crate) use self::conditions::shortened;
pub(crate) use self::words::problem;
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
    let addresses = conditions::addresses(published, applied).into_iter().map(|address| match address {
        PublishedAddress::Ip(ip) => json!({"ip": ip.to_string()}),
        PublishedAddress::Hostname(name) => json!({"hostname": name}),
    });
    with_addresses(existing, addresses.collect())
}

/// For Ingress objects that are not served any more, and whose addresses are our own.
pub(crate) fn without_addresses(existing: &Value) -> Option<Value> {
    with_addresses(existing, Vec::new())
}

fn with_addresses(existing: &Value, addresses: Vec<Value>) -> Option<Value> {
    let mut status = object(existing);
    let mut balancer = object(&existing["loadBalancer"]);
    if addresses.is_empty() {
        // As the API server writes an empty list.
        balancer.remove("ingress");
    } else {
        balancer.insert("ingress".into(), addresses.into());
    }
    status.insert("loadBalancer".into(), balancer.into());
    changed(existing, status)
}

/// The only field manager that has set the addresses of an Ingress, as they are. They are one field, so that who sets other
/// ones replaces it.
pub(crate) fn publisher(ingress: &Value) -> Option<&str> {
    let entries = ingress["metadata"]["managedFields"].as_array()?;
    let has_set = |entry: &&Value| entry["fieldsV1"].pointer("/f:status/f:loadBalancer/f:ingress").is_some();
    let mut entries = entries.iter().filter(has_set);
    let manager = entries.next()?["manager"].as_str();
    manager.filter(|_| entries.next().is_none())
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn changed(existing: &Value, status: Map<String, Value>) -> Option<Value> {
    let status = Value::Object(status);
    (status != *existing).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::plan::Problem;

    const BEFORE: &str = "2026-01-01T00:00:00Z";
    const NOW: &str = "2026-02-03T04:05:06Z";
    const OWN: &str = "snigate.dev/gateway";

    fn condition(kind: &'static str, is_true: bool, message: &str) -> Condition {
        Condition { kind, is_true, reason: kind, message: message.into() }
    }

    fn json_condition(kind: &str, status: &str, message: &str, generation: i64, since: &str) -> Value {
        json!({
            "type": kind,
            "status": status,
            "reason": kind,
            "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": since,
        })
    }

    fn route_status(generation: i64, conditions: Vec<Condition>) -> RouteStatus {
        let parent = ParentRef {
            group: None,
            kind: None,
            namespace: None,
            name: "gw".into(),
            section_name: Some("tls".into()),
            port: Some(443),
        };
        RouteStatus { generation, parents: vec![ParentStatus { parent, conditions }] }
    }

    fn entry(controller: &str, conditions: &[Value]) -> Value {
        let parent =
            json!({"group": GATEWAY_GROUP, "kind": "Gateway", "name": "gw", "sectionName": "tls", "port": 443});
        json!({"parentRef": parent, "controllerName": controller, "conditions": conditions})
    }

    #[test]
    fn the_time_moves_only_if_the_status_of_the_condition_does() {
        let wanted = route_status(3, vec![condition("Accepted", true, "")]);
        let first = route(&Value::Null, Some(&wanted), OWN, BEFORE).unwrap();
        let expected = [json_condition("Accepted", "True", "", 3, BEFORE)];
        assert_eq!(first, json!({"parents": [entry(OWN, &expected)]}));
        assert_eq!(route(&first, Some(&wanted), OWN, NOW), None, "nothing to write");

        let message = route_status(4, vec![condition("Accepted", true, "new")]);
        let second = route(&first, Some(&message), OWN, NOW).unwrap();
        let expected = [json_condition("Accepted", "True", "new", 4, BEFORE)];
        assert_eq!(second, json!({"parents": [entry(OWN, &expected)]}));

        let flipped = route_status(4, vec![condition("Accepted", false, "new")]);
        let third = route(&second, Some(&flipped), OWN, NOW).unwrap();
        let expected = [json_condition("Accepted", "False", "new", 4, NOW)];
        assert_eq!(third, json!({"parents": [entry(OWN, &expected)]}));
    }

    #[test]
    fn what_others_wrote_stays() {
        let foreign = json_condition("example.com/Checked", "True", "x", 1, BEFORE);
        let others = entry("example.com/other", &[json_condition("Accepted", "False", "x", 1, BEFORE)]);
        let existing = json!({
            "parents": [others, entry(OWN, &[foreign.clone(), json_condition("Accepted", "True", "", 3, BEFORE)])],
            "unknown": 1,
        });
        let wanted = route_status(3, vec![condition("Accepted", true, ""), condition("ResolvedRefs", true, "")]);
        let status = route(&existing, Some(&wanted), OWN, NOW).unwrap();
        let own = [
            foreign,
            json_condition("Accepted", "True", "", 3, BEFORE),
            json_condition("ResolvedRefs", "True", "", 3, NOW),
        ];
        assert_eq!(status, json!({"parents": [others, entry(OWN, &own)], "unknown": 1}));

        let removed = route(&status, None, OWN, NOW).unwrap();
        assert_eq!(removed, json!({"parents": [others], "unknown": 1}));
        assert_eq!(route(&removed, None, OWN, NOW), None);
        assert_eq!(route(&Value::Null, None, OWN, NOW), None);
    }

    #[test]
    fn a_condition_of_a_later_generation_stays() {
        let later = entry(OWN, &[json_condition("Accepted", "False", "later", 9, BEFORE)]);
        let existing = json!({"parents": [later]});
        assert_eq!(route(&existing, Some(&route_status(8, vec![condition("Accepted", true, "")])), OWN, NOW), None);
        assert!(route(&existing, Some(&route_status(9, vec![condition("Accepted", true, "")])), OWN, NOW).is_some());
    }

    #[test]
    fn the_condition_about_annotations_goes_when_they_are_right() {
        let kind = crate::gateway::translate::INVALID_ANNOTATIONS;
        let wrong = route_status(3, vec![condition("Accepted", true, ""), condition(kind, true, "wrong")]);
        let right = route_status(3, vec![condition("Accepted", true, "")]);
        let status = route(&Value::Null, Some(&wrong), OWN, BEFORE).unwrap();
        assert_eq!(status["parents"][0]["conditions"].as_array().unwrap().len(), 2);
        let status = route(&status, Some(&right), OWN, NOW).unwrap();
        assert_eq!(status, json!({"parents": [entry(OWN, &[json_condition("Accepted", "True", "", 3, BEFORE)])]}));
    }

    #[test]
    fn addresses_of_an_ingress_come_and_go_and_what_others_wrote_stays() {
        let empty = json!({"loadBalancer": {"unknown": 1}, "other": 2});
        let published = Published::Addresses(vec![
            PublishedAddress::Ip("192.0.2.1".parse().unwrap()),
            PublishedAddress::Hostname("lb.example.com".into()),
        ]);
        let applied = Applied::default();
        let written = ingress(&empty, &published, &applied).unwrap();
        let addresses = json!([{"ip": "192.0.2.1"}, {"hostname": "lb.example.com"}]);
        assert_eq!(written, json!({"loadBalancer": {"unknown": 1, "ingress": addresses}, "other": 2}));
        assert_eq!(ingress(&written, &published, &applied), None);
        let none = Published::Addresses(Vec::new());
        assert_eq!(ingress(&written, &none, &applied), Some(empty.clone()));
        assert_eq!(without_addresses(&written), Some(empty.clone()));
        assert_eq!((without_addresses(&empty), ingress(&empty, &none, &applied)), (None, None));
    }

    #[test]
    fn the_publisher_is_who_alone_has_set_the_addresses() {
        let entry = |manager: &str, fields: Value| json!({"manager": manager, "fieldsV1": {"f:status": fields}});
        let set = || json!({"f:loadBalancer": {"f:ingress": {}}});
        let other = || json!({"f:loadBalancer": {}});
        for (entries, expected) in [
            (json!(null), None),
            (json!([]), None),
            (json!([entry(OWN, other())]), None),
            (json!([entry(OWN, set()), entry("example.com/other", other())]), Some(OWN)),
            (json!([entry("example.com/other", set()), entry(OWN, other())]), Some("example.com/other")),
            (json!([entry(OWN, set()), entry("example.com/other", set())]), None),
        ] {
            assert_eq!(publisher(&json!({"metadata": {"managedFields": entries}})), expected);
        }
    }

    #[test]
    fn there_are_at_most_32_parents() {
        let others = (0..40).map(|number| entry(&format!("example.com/{number}"), &[]));
        let existing = json!({"parents": others.take(31).collect::<Vec<_>>()});
        let one = route_status(1, vec![condition("Accepted", true, "")]);
        let two = RouteStatus { parents: [&one.parents[..], &one.parents].concat(), ..one.clone() };
        for wanted in [one, two] {
            let status = route(&existing, Some(&wanted), OWN, NOW).unwrap();
            assert_eq!(status["parents"].as_array().unwrap().len(), 32);
        }
    }

    #[test]
    fn the_status_that_the_api_server_fills_in_is_replaced() {
        let pending = |kind| {
            json!({
                "type": kind, "status": "Unknown", "reason": "Pending", "message": "Waiting for controller",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            })
        };
        let existing = json!({
            "conditions": [pending("Accepted"), pending("Programmed")],
            "listeners": [{"name": "removed", "attachedRoutes": 1, "conditions": []}],
            "attachedListenerSets": 0,
        });
        let problem = Problem { reason: "UnsupportedProtocol", message: "x".into() };
        let listener = |name: &str, refused| ListenerStatus {
            name: name.into(),
            refused,
            conflict: None,
            unresolved: None,
            supports_tls_routes: true,
            attached_routes: 2,
            sockets: ["[::]:443".parse().unwrap()].into(),
        };
        let wanted = GatewayStatus {
            generation: 5,
            refused: None,
            requested: Vec::new(),
            listeners: vec![listener("tls", None), listener("http", Some(problem))],
        };
        let applied = Applied { own_addresses: vec!["2001:db8::1".parse().unwrap()], ..Applied::default() };
        let status = gateway(&existing, &wanted, &Published::Own, &applied, NOW).unwrap();
        let conditions = status["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 2);
        assert!(conditions.iter().all(|condition| condition["lastTransitionTime"] == NOW));
        assert_eq!(
            (conditions[0]["observedGeneration"].as_i64(), &conditions[1]["reason"]),
            (Some(5), &json!("Programmed"))
        );
        let names: Vec<&Value> =
            status["listeners"].as_array().unwrap().iter().map(|listener| &listener["name"]).collect();
        assert_eq!(
            (names, status["attachedListenerSets"].as_i64()),
            (["tls", "http"].map(|name| json!(name)).iter().collect(), Some(0))
        );
        assert_eq!(status["addresses"], json!([{"type": "IPAddress", "value": "2001:db8::1"}]));
        assert_eq!(gateway(&status, &wanted, &Published::Own, &applied, "later"), None);
    }
}
