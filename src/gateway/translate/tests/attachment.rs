use super::*;

/// The outcome for one route and one listener, and the number of routes of that listener.
fn attach(gateway: Value, route: Value) -> (String, u64) {
    let plan = plan(&[class(), gateway, service("ns/a"), route]);
    let reasons = route_reasons(&plan, "ns/r");
    (reasons[0][0].clone(), attached_routes(&plan, "ns/gw").iter().sum())
}

const ACCEPTED: &str = "Accepted True Accepted";

#[test]
fn hostnames_must_intersect() {
    for (listener, hostnames, is_accepted) in [
        ("tls 443", &["a.example.com"][..], true),
        ("tls 443 a.example.com", &["*.example.com"], true),
        ("tls 443 *.example.com", &["*.com"], true),
        ("tls 443 *.com", &["*.example.com", "other"], true),
        ("tls 443 *.example.com", &["a.b.c.example.com"], true),
        ("tls 443 *.example.com", &["example.com"], false),
        ("tls 443 www.example.com", &["www.nomatch.com", "*.nomatch.com"], false),
    ] {
        let (accepted, count) = attach(gateway("ns/gw", &[listener]), simple_route("ns/r", "ns/gw", hostnames));
        let expected = if is_accepted { ACCEPTED } else { "Accepted False NoMatchingListenerHostname" };
        assert_eq!((&*accepted, count), (expected, u64::from(is_accepted)), "{listener} {hostnames:?}");
    }
}

#[test]
fn a_section_and_a_port_select_listeners() {
    let listeners = ["one 443 *.example.com", "two 8443", "three 8443 *.example.net"];
    for (section, port, expected) in [
        (None, None, Some(vec![1, 1, 0])),
        (Some("one"), None, Some(vec![1, 0, 0])),
        (Some("two"), Some(8443), Some(vec![0, 1, 0])),
        (None, Some(8443), Some(vec![0, 1, 0])),
        (Some("one"), Some(8443), None),
        (Some("four"), None, None),
        (None, Some(444), None),
    ] {
        let mut route = simple_route("ns/r", "ns/gw", &["a.example.com"]);
        route["spec"]["parentRefs"][0]["sectionName"] = json!(section);
        route["spec"]["parentRefs"][0]["port"] = json!(port);
        let plan = plan(&[class(), gateway("ns/gw", &listeners), service("ns/a"), route]);
        let accepted = &route_reasons(&plan, "ns/r")[0][0];
        match expected {
            Some(counts) => assert_eq!((&**accepted, attached_routes(&plan, "ns/gw")), (ACCEPTED, counts)),
            None => assert_eq!(accepted, "Accepted False NoMatchingParent", "{section:?} {port:?}"),
        }
    }
}

#[test]
fn namespaces_must_be_allowed() {
    let own = object("v1", "Namespace", "ns", json!({}));
    let mut other = object("v1", "Namespace", "other", json!({}));
    other["metadata"]["labels"] = json!({"team": "a"});
    let selector = |labels: Value| json!({"from": "Selector", "selector": {"matchLabels": labels}});
    for (namespaces, in_own, in_other) in [
        (Value::Null, true, false),
        (json!({}), true, false),
        (json!({"from": "Same"}), true, false),
        (json!({"from": "All"}), true, true),
        (json!({"from": "None"}), false, false),
        (selector(json!({"team": "a"})), false, true),
        (selector(json!({"team": "b"})), false, false),
        (json!({"from": "Selector", "selector": {}}), true, true),
        (json!({"from": "Selector"}), false, false),
    ] {
        let mut gateway = gateway("ns/gw", &["tls 443"]);
        gateway["spec"]["listeners"][0]["allowedRoutes"]["namespaces"] = namespaces.clone();
        let routes = ["ns/r", "other/r"].map(|name| simple_route(name, "ns/gw", &["a.example.com"]));
        let [one, two] = routes;
        let plan = plan(&[class(), gateway, own.clone(), other.clone(), service("ns/a"), service("other/a"), one, two]);
        for (name, is_allowed) in [("ns/r", in_own), ("other/r", in_other)] {
            let expected = if is_allowed { ACCEPTED } else { "Accepted False NotAllowedByListeners" };
            assert_eq!(route_reasons(&plan, name)[0][0], expected, "{namespaces} {name}");
        }
    }
}

#[test]
fn other_protocols_and_modes_are_not_supported() {
    for (protocol, mode, reason) in [
        ("HTTP", Value::Null, "UnsupportedProtocol"),
        ("HTTPS", json!("Terminate"), "UnsupportedProtocol"),
        ("TCP", Value::Null, "UnsupportedProtocol"),
        ("example.com/own", Value::Null, "UnsupportedProtocol"),
        ("TLS", json!("Terminate"), "UnsupportedValue"),
        ("TLS", Value::Null, "UnsupportedValue"),
    ] {
        let mut gateway = gateway("ns/gw", &["bad 443", "good 8443"]);
        gateway["spec"]["listeners"][0]["protocol"] = json!(protocol);
        gateway["spec"]["listeners"][0]["tls"]["mode"] = mode;
        let route = simple_route("ns/r", "ns/gw/bad", &["a.example.com"]);
        let plan = plan(&[class(), gateway.clone(), service("ns/a"), route]);
        let bad = listener_reasons(&plan, "ns/gw", "bad");
        let expected = [
            &*format!("Accepted False {reason}"),
            "Conflicted False NoConflicts",
            "ResolvedRefs True ResolvedRefs",
            "Programmed False Invalid",
        ];
        assert_eq!(bad, expected, "{protocol}");
        assert_eq!(route_reasons(&plan, "ns/r")[0][0], "Accepted False NotAllowedByListeners");
        let status = gateway_status(&plan, "ns/gw");
        assert_eq!(reasons(&status["conditions"]), ["Accepted True ListenersNotValid", "Programmed True Programmed"]);
        assert_eq!(status["listeners"][0]["supportedKinds"], json!([]));
        assert_eq!(plan.routing.listeners, ["[::]:8443".parse().unwrap()]);

        gateway["spec"]["listeners"].as_array_mut().unwrap().pop();
        let plan = super::plan(&[class(), gateway]);
        let status = gateway_status(&plan, "ns/gw");
        assert_eq!(reasons(&status["conditions"]), ["Accepted False ListenersNotValid", "Programmed False Invalid"]);
        assert!(plan.routing.listeners.is_empty());
    }
}

/// As the API says, they are ignored in mode Passthrough.
#[test]
fn certificates_that_nothing_could_read_are_not_resolved() {
    let from = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "ns"});
    let to = json!({"group": "", "kind": "Secret"});
    let grant =
        object("gateway.networking.k8s.io/v1", "ReferenceGrant", "granting/g", json!({"from": [from], "to": [to]}));
    let (own, other) = (json!({"name": "a"}), json!({"name": "a", "namespace": "other"}));
    let granted = json!({"name": "a", "namespace": "granting"});
    let custom = json!({"name": "a", "kind": "Certificate", "group": "example.com"});
    let custom_elsewhere = json!({"name": "a", "kind": "Certificate", "group": "example.com", "namespace": "granting"});
    for (protocol, mode, certificates, reason) in [
        ("TLS", json!("Terminate"), json!([own]), Some("InvalidCertificateRef")),
        ("TLS", json!("Terminate"), json!([custom]), Some("InvalidCertificateRef")),
        ("TLS", json!("Terminate"), json!([granted]), Some("InvalidCertificateRef")),
        ("TLS", json!("Terminate"), json!([custom_elsewhere]), Some("RefNotPermitted")),
        ("TLS", json!("Terminate"), json!([other, own]), Some("RefNotPermitted")),
        ("HTTPS", Value::Null, json!([own]), Some("InvalidCertificateRef")),
        ("TLS", json!("Passthrough"), json!([own, other]), None),
    ] {
        let mut gateway = gateway("ns/gw", &["tls 443"]);
        let listener = &mut gateway["spec"]["listeners"][0];
        listener["protocol"] = json!(protocol);
        listener["tls"] = json!({"mode": mode, "certificateRefs": certificates});
        let plan = plan(&[class(), grant.clone(), gateway]);
        let found = listener_reasons(&plan, "ns/gw", "tls");
        let expected =
            reason.map_or("ResolvedRefs True ResolvedRefs".into(), |reason| format!("ResolvedRefs False {reason}"));
        assert_eq!(found[2], expected, "{protocol} {mode} {certificates}");
        assert_eq!(found[0] == ACCEPTED, reason.is_none(), "{protocol} {mode} {certificates}");
    }
}

#[test]
fn kinds_of_routes_that_are_not_supported_are_named() {
    let tls = json!([{"group": "gateway.networking.k8s.io", "kind": "TLSRoute"}]);
    for (kinds, supported, is_resolved, is_served) in [
        (json!([]), &tls, true, true),
        (json!([{"kind": "TLSRoute"}]), &tls, true, true),
        (json!([{"kind": "TCPRoute"}, {"kind": "TLSRoute"}]), &tls, false, true),
        (json!([{"kind": "TLSRoute", "group": "example.com"}]), &json!([]), false, false),
        (json!([{"kind": "HTTPRoute"}]), &json!([]), false, false),
    ] {
        let mut gateway = gateway("ns/gw", &["tls 443"]);
        gateway["spec"]["listeners"][0]["allowedRoutes"]["kinds"] = kinds.clone();
        let plan = plan(&[class(), gateway, service("ns/a"), simple_route("ns/r", "ns/gw", &["a.example.com"])]);
        assert_eq!(gateway_status(&plan, "ns/gw")["listeners"][0]["supportedKinds"], *supported, "{kinds}");
        let resolved =
            if is_resolved { "ResolvedRefs True ResolvedRefs" } else { "ResolvedRefs False InvalidRouteKinds" };
        let programmed = if is_served { "Programmed True Programmed" } else { "Programmed False Invalid" };
        let expected = [ACCEPTED, "Conflicted False NoConflicts", resolved, programmed];
        assert_eq!(listener_reasons(&plan, "ns/gw", "tls"), expected, "{kinds}");
        let accepted = if is_served { ACCEPTED } else { "Accepted False NotAllowedByListeners" };
        assert_eq!(route_reasons(&plan, "ns/r")[0][0], accepted, "{kinds}");
    }
}

#[test]
fn parents_that_are_not_ours_get_no_status() {
    let mut foreign = gateway("ns/foreign", &["tls 443"]);
    foreign["spec"]["gatewayClassName"] = json!("other");
    let mut route = tls_route("ns/r", &["ns/foreign", "ns/absent", "ns/gw"], &["a.example.com"], json!([]));
    route["spec"]["parentRefs"].as_array_mut().unwrap().push(json!({"kind": "Service", "group": "", "name": "a"}));
    let plan = plan(&[class(), foreign, gateway("ns/gw", &["tls 8443"]), service("ns/a"), route]);
    assert_eq!(route_reasons(&plan, "ns/r").len(), 1);
    assert_eq!(plan.statuses.gateways.len(), 1);
    assert_eq!(plan.routing.listeners, ["[::]:8443".parse().unwrap()]);

    let plan = super::plan(&[gateway("ns/gw", &["tls 443"]), simple_route("ns/r", "ns/gw", &["a.example.com"])]);
    assert_eq!((plan.statuses.gateways.len(), plan.statuses.routes.len()), (0, 0), "without a class of ours");
}

#[test]
fn an_invalid_hostname_is_ignored() {
    let objects = [class(), gateway("ns/gw", &["tls 443"]), service("ns/a")];
    let with = |hostnames: &[&str]| plan(&[&objects[..], &[simple_route("ns/r", "ns/gw", hostnames)]].concat());
    let some = with(&["a..example.com", "b.example.com"]);
    assert_eq!(route_reasons(&some, "ns/r")[0][0], ACCEPTED);
    assert_eq!(routed(&some, EVERYWHERE, Some("b.example.com")).as_deref(), Some("ns/r"));
    let none = with(&["192.0.2.1"]);
    assert_eq!(route_reasons(&none, "ns/r")[0][0], "Accepted False UnsupportedValue");
    assert_eq!(none.routing.routes, []);
}

#[test]
fn a_class_with_parameters_is_not_accepted() {
    let mut class = class();
    let ours = |class: &Value| {
        let plan = plan(&[class.clone(), gateway("ns/gw", &["tls 443"])]);
        let status = status::class(&Value::Null, &plan.statuses.classes[&Key::new("", "snigate")], NOW).unwrap();
        (reasons(&status["conditions"]), status["supportedFeatures"].clone(), plan.routing.listeners.len())
    };
    let features = json!([{"name": "Gateway"}, {"name": "ReferenceGrant"}, {"name": "TLSRoute"}]);
    assert_eq!(ours(&class), (vec![ACCEPTED.into()], features.clone(), 1));
    class["spec"]["parametersRef"] = json!({"group": "", "kind": "ConfigMap", "name": "x"});
    assert_eq!(ours(&class), (vec!["Accepted False InvalidParameters".into()], features, 0));
}
