use std::cmp::Reverse;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::sample::{Index, select};

use super::*;
use crate::gateway::translate::hostnames::Hostname;

const NAMES: [&str; 8] =
    ["a.example.com", "b.example.com", "a.b.example.com", "x.a.b.example.com", "example.com", "b.com", "a.org", "org"];

fn some_hostname() -> impl Strategy<Value = &'static str> {
    select(vec![
        "*.com",
        "*.example.com",
        "*.b.example.com",
        "a.example.com",
        "a.b.example.com",
        "*.org",
        "org",
        "b.com",
    ])
}

fn some_time() -> impl Strategy<Value = Option<&'static str>> {
    option::of(select(vec!["01:00", "02:00", "03:00"]))
}

fn aged(object: Value, time: Option<&str>) -> Value {
    match time {
        Some(time) => created(object, time),
        None => object,
    }
}

fn some_gateway(index: usize) -> impl Strategy<Value = Value> {
    let listener = (select(vec![443, 8443]), option::of(some_hostname()));
    (vec(listener, 1..4), some_time()).prop_map(move |(listeners, time)| {
        let text = |(number, (port, hostname)): (usize, &(u16, Option<&str>))| {
            format!("l{number} {port} {}", hostname.unwrap_or_default()).trim_end().to_owned()
        };
        let listeners: Vec<String> = listeners.iter().enumerate().map(text).collect();
        let listeners: Vec<&str> = listeners.iter().map(|listener| &**listener).collect();
        aged(gateway(&format!("ns/gw{index}"), &listeners), time)
    })
}

fn some_route(index: usize) -> impl Strategy<Value = Value> {
    let parents = vec((0..3_usize, option::of(0..3_usize)), 1..3);
    (parents, vec(some_hostname(), 0..3), some_time(), any::<bool>()).prop_map(
        move |(parents, hostnames, time, no_sni)| {
            let name = |(gateway, section): &(usize, Option<usize>)| {
                let section = section.map_or_else(String::new, |section| format!("/l{section}"));
                format!("ns/gw{gateway}{section}")
            };
            let parents: Vec<String> = parents.iter().map(name).collect();
            let parents: Vec<&str> = parents.iter().map(|parent| &**parent).collect();
            let backends = json!([{"name": "a", "port": 443}]);
            let route = aged(tls_route(&format!("ns/r{index}"), &parents, &hostnames, backends), time);
            if no_sni { annotated(route, json!({"snigate.dev/no-sni": "true"})) } else { route }
        },
    )
}

fn some_objects() -> impl Strategy<Value = Vec<Value>> {
    let gateways = (some_gateway(0), some_gateway(1), some_gateway(2));
    let routes = (some_route(0), some_route(1), some_route(2), some_route(3), some_route(4));
    (gateways, routes)
        .prop_map(|((g0, g1, g2), (r0, r1, r2, r3, r4))| vec![class(), service("ns/a"), g0, g1, g2, r0, r1, r2, r3, r4])
}

/// What Gateway API says about a name, evaluated for this name alone.
fn expected(plan: &Plan, objects: &[Value], port: u16, name: &str) -> Option<String> {
    let snapshot = snapshot(objects);
    let matches = |hostname: &Hostname| Hostname::parse(name).is_ok_and(|name| hostname.covers(&name));
    let mut listeners = Vec::new();
    for (key, gateway) in snapshot.gateways.iter() {
        let statuses = &plan.statuses.gateways[key].listeners;
        for (listener, status) in gateway.spec.listeners.iter().zip(statuses) {
            let hostname = Hostname::parse(listener.hostname.as_deref().unwrap_or_default()).unwrap();
            if listener.port == port && status.refused.is_none() && status.conflict.is_none() && matches(&hostname) {
                listeners.push((hostname, key, listener));
            }
        }
    }
    let dots = |hostname: &Hostname| match hostname {
        Hostname::Any => (false, 0),
        Hostname::Pattern(pattern) => (pattern.as_exact().is_some(), pattern.to_string().matches('.').count()),
    };
    let (own, gateway, listener) = listeners.into_iter().max_by_key(|(hostname, ..)| dots(hostname))?;
    let mut routes = Vec::new();
    for route in snapshot.routes.values() {
        let is_attached = route.spec.parent_refs.iter().any(|parent| {
            parent.name == gateway.name && parent.section_name.as_ref().is_none_or(|name| *name == listener.name)
        });
        let hostnames = route.spec.hostnames.iter().map(|hostname| Hostname::parse(hostname).unwrap());
        let hostnames: Vec<Hostname> = hostnames.collect();
        let all = [Hostname::Any];
        let hostnames = if hostnames.is_empty() { &all[..] } else { &hostnames };
        for hostname in hostnames.iter().filter_map(|hostname| own.intersection(hostname)) {
            if is_attached && matches(hostname) {
                let metadata = &route.metadata;
                let age = metadata.creation_timestamp.clone().unwrap_or("9".into());
                routes.push((Reverse(dots(hostname)), age, metadata.key()));
            }
        }
    }
    routes.into_iter().min().map(|(.., key)| key.to_string())
}

/// Some JSON that may be where it does not belong.
fn some_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(json!({})),
        Just(json!([])),
        Just(json!([{}])),
        Just(json!({"a": ["b"]})),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..70_000_u32).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        some_hostname().prop_map(Value::from),
        select(vec!["All", "None", "Selector", "TLS", "Passthrough", "ExternalName", "UDP", "0"]).prop_map(Value::from),
    ]
}

/// All places in a value.
fn places(value: &Value, at: &str, places: &mut Vec<String>) {
    places.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            fields
                .iter()
                .for_each(|(key, value)| self::places(value, &format!("{at}/{}", key.replace('/', "~1")), places));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| self::places(item, &format!("{at}/{index}"), places));
        }
        _ => {}
    }
}

/// Replaces something in an object, but leaves its kind and name.
fn damage(object: &mut Value, place: Index, value: Value) {
    let mut all = Vec::new();
    places(&object["spec"], "/spec", &mut all);
    places(&object["metadata"]["annotations"], "/metadata/annotations", &mut all);
    let place = place.get(&all);
    if let Some(target) = object.pointer_mut(place) {
        *target = value;
    }
}

/// Objects, among which an EndpointSlice and an Ingress, to be damaged.
fn samples() -> Vec<Value> {
    let ports = json!([{"name": "tls", "port": 6443}]);
    let mut slice = object("discovery.k8s.io/v1", "EndpointSlice", "ns/a-1", Value::Null);
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "a"});
    slice["addressType"] = json!("IPv4");
    slice["ports"] = ports;
    slice["endpoints"] = json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}]);
    let paths = json!([{"path": "/", "backend": {"service": {"name": "a", "port": {"number": 443}}}}]);
    let rules = json!([{"host": "i.example.com", "http": {"paths": paths}}]);
    let ingress =
        object("networking.k8s.io/v1", "Ingress", "ns/i", json!({"ingressClassName": "edge", "rules": rules}));
    let annotations = json!({
        "nginx.ingress.kubernetes.io/ssl-passthrough": "true",
        "snigate.dev/allow": "10.0.0.0/8",
        "snigate.dev/health-check": "{}",
    });
    let grant = json!({"from": [{"group": "", "kind": "", "namespace": ""}], "to": [{"group": "", "kind": "Service"}]});
    vec![
        class(),
        annotated(ingress, annotations),
        slice,
        service("ns/a"),
        object("gateway.networking.k8s.io/v1", "ReferenceGrant", "ns/g", grant),
    ]
}

fn with_ingress() -> Options {
    Options { ingress: Some(IngressOptions { class: "edge".into(), port: 443 }), ..Options::default() }
}

proptest! {
    #[test]
    fn names_are_routed_as_gateway_api_says(objects in some_objects()) {
        let plan = plan(&objects);
        for (port, address) in [(443, "[::]:443"), (8443, "[::]:8443")] {
            for name in NAMES {
                prop_assert_eq!(routed(&plan, address, Some(name)), expected(&plan, &objects, port, name), "{}", name);
            }
        }
    }

    #[test]
    fn the_order_of_objects_and_events_does_not_matter(
        objects in some_objects(),
        events in vec((any::<Index>(), any::<bool>()), 0..20),
        order in any::<u64>(),
    ) {
        let wanted = plan(&objects);
        let mut shuffled = objects.clone();
        // Some order that depends on the number.
        shuffled.sort_by_key(|object| object.to_string().bytes().fold(order, |sum, byte| sum.wrapping_mul(31) ^ u64::from(byte)));
        let mut known = Snapshot::default();
        for (index, is_removed) in events {
            let object = index.get(&objects);
            let (kind, metadata) = (Kind::of(object).unwrap(), &object["metadata"]);
            let (namespace, name) = (metadata["namespace"].as_str().unwrap(), metadata["name"].as_str().unwrap());
            if is_removed {
                known.remove(kind, &Key::new(namespace, name));
            } else {
                // An earlier version, perhaps one that cannot be decoded.
                let mut earlier = object.clone();
                earlier["spec"] = json!({"parentRefs": [], "gatewayClassName": "snigate", "listeners": [{"port": index.index(2)}]});
                let _ = known.insert(kind, earlier);
            }
        }
        for object in &shuffled {
            known.insert(Kind::of(object).unwrap(), object.clone()).unwrap();
        }
        prop_assert_eq!(translate(&known, &Options::default(), &[]), wanted);
    }

    #[test]
    fn a_bad_route_changes_nothing_else(objects in some_objects(), index in 5_usize..10, place: Index, value in some_value()) {
        let mut damaged = objects.clone();
        damage(&mut damaged[index], place, value);
        let mut without = objects;
        let own = without.remove(index)["metadata"]["name"].as_str().unwrap().to_owned();
        let (damaged, without) = (plan(&damaged), plan(&without));
        let own = format!("ns/{own}");
        for address in ["[::]:443", "[::]:8443"] {
            for name in NAMES.map(Some).into_iter().chain([None]) {
                let (now, before) = (routed(&damaged, address, name), routed(&without, address, name));
                prop_assert!(now == before || now.as_ref() == Some(&own), "{name:?} {now:?} {before:?}");
            }
        }
        prop_assert_eq!(&damaged.routing.listeners, &without.routing.listeners);
        for (key, status) in &without.statuses.routes {
            prop_assert_eq!(damaged.statuses.routes.get(key), Some(status));
        }
    }

    #[test]
    fn damaged_objects_never_panic(
        objects in some_objects(),
        damages in vec((any::<Index>(), any::<Index>(), some_value()), 1..6),
    ) {
        let mut objects = [objects, samples()].concat();
        for (object, place, value) in damages {
            let index = object.index(objects.len());
            damage(&mut objects[index], place, value);
        }
        let plan = plan_with(&objects, &with_ingress());
        for address in ["[::]:443", "[::]:8443"] {
            routed(&plan, address, Some("a.example.com"));
        }
        for wanted in plan.statuses.gateways.values() {
            let status = status::gateway(&Value::Null, wanted, &plan.statuses.published, &applied(), NOW);
            prop_assert_eq!(status::gateway(&status.unwrap(), wanted, &plan.statuses.published, &applied(), "later"), None);
        }
        for wanted in plan.statuses.routes.values() {
            let status = status::route(&Value::Null, Some(wanted), "snigate.dev/gateway", NOW);
            prop_assert_eq!(status::route(&status.unwrap(), Some(wanted), "snigate.dev/gateway", "later"), None);
        }
    }
}
