use super::*;

/// What clients get at port 443, with one Service `a` in each namespace.
fn check(objects: &[Value], expected: &[(Option<&str>, Option<&str>)]) -> Plan {
    let services = ["ns", "x", "y"].map(|namespace| service(&format!("{namespace}/a")));
    let plan = plan(&[&[class()], &services[..], objects].concat());
    for (name, route) in expected {
        assert_eq!(routed(&plan, EVERYWHERE, *name).as_deref(), *route, "{name:?}");
    }
    plan
}

#[test]
fn the_most_specific_listener_has_the_name_across_gateways() {
    let objects = [
        gateway("ns/exact", &["tls 443 abc.example.com"]),
        gateway("ns/narrow", &["tls 443 *.example.com"]),
        gateway("ns/wide", &["tls 443 *.com"]),
        gateway("ns/any", &["tls 443"]),
        simple_route("ns/exact", "ns/exact", &["*.example.com"]),
        simple_route("ns/narrow", "ns/narrow", &["*.com"]),
        simple_route("ns/wide-exact", "ns/wide", &["abc.example.com"]),
        simple_route("ns/wide-narrow", "ns/wide", &["*.example.com", "b.com"]),
        simple_route("ns/any-wide", "ns/any", &["*.com"]),
        simple_route("ns/any-other", "ns/any", &["*.org"]),
    ];
    check(
        &objects,
        &[
            (Some("abc.example.com"), Some("ns/exact")),
            (Some("other.example.com"), Some("ns/narrow")),
            (Some("b.com"), Some("ns/wide-narrow")),
            (Some("non.matching.com"), None),
            (Some("a.org"), Some("ns/any-other")),
            (Some("a.net"), None),
            (None, None),
        ],
    );
}

#[test]
fn a_listener_without_a_route_keeps_its_names() {
    let objects = [
        gateway("ns/any", &["tls 443"]),
        gateway("ns/narrow", &["tls 443 *.example.com", "one 443 x.example.com"]),
        simple_route("ns/any", "ns/any", &["*.com", "y.example.com"]),
    ];
    let plan = check(
        &objects,
        &[
            (Some("a.com"), Some("ns/any")),
            (Some("a.example.com"), None),
            (Some("x.example.com"), None),
            // It belongs to the narrow listener, however specific the route of the other one is.
            (Some("y.example.com"), None),
        ],
    );
    assert_eq!(attached_routes(&plan, "ns/any"), [1]);
    assert_eq!(plan.routing.unrouted.len(), 1);
}

#[test]
fn listeners_at_other_ports_are_apart() {
    let objects = [
        gateway("ns/any", &["tls 443"]),
        gateway("ns/narrow", &["tls 8443 *.example.com"]),
        simple_route("ns/any", "ns/any", &["*.com"]),
        simple_route("ns/narrow", "ns/narrow", &["*.com"]),
    ];
    let plan = check(&objects, &[(Some("a.example.com"), Some("ns/any"))]);
    assert_eq!(routed(&plan, "[::]:8443", Some("a.example.com")).as_deref(), Some("ns/narrow"));
    assert_eq!(routed(&plan, "[::]:8443", Some("a.com")), None);
    assert_eq!(plan.routing.unrouted, []);
}

#[test]
fn one_route_at_several_listeners_has_other_names_at_each() {
    let objects = [
        gateway("ns/gw", &["one 443 *.example.com", "two 443 *.example.net", "three 8443 *.a.example.com"]),
        simple_route("ns/r", "ns/gw", &["*.com", "a.example.net"]),
    ];
    let names = [(Some("b.example.com"), Some("ns/r")), (Some("a.example.net"), Some("ns/r")), (Some("b.com"), None)];
    let plan = check(&objects, &names);
    assert_eq!(routed(&plan, "[::]:8443", Some("b.a.example.com")).as_deref(), Some("ns/r"));
    assert_eq!(routed(&plan, "[::]:8443", Some("b.example.com")), None);
    assert_eq!((plan.routing.routes.len(), plan.routing.routes[0].matches.len()), (1, 2));
}

#[test]
fn the_most_specific_then_the_oldest_then_the_first_route_wins() {
    let on = |name, hostnames: &[&str]| simple_route(name, "ns/gw", hostnames);
    let objects = [
        gateway("ns/gw", &["tls 443"]),
        created(on("ns/young-exact", &["a.example.com"]), "05:00"),
        created(on("ns/old-wildcard", &["*.example.com"]), "01:00"),
        created(on("x/young-wildcard", &["*.example.com"]), "02:00"),
        created(on("y/same", &["b.example.org"]), "03:00"),
        created(on("x/same", &["b.example.org"]), "03:00"),
        on("ns/unknown-age", &["b.example.org"]),
    ];
    let plan = check(
        &objects,
        &[
            (Some("a.example.com"), Some("ns/young-exact")),
            (Some("b.example.com"), Some("ns/old-wildcard")),
            (Some("b.example.org"), Some("x/same")),
        ],
    );
    assert_eq!(attached_routes(&plan, "ns/gw"), [6], "those that lose are attached, too");
    assert_eq!(route_reasons(&plan, "y/same")[0][0], "Accepted True Accepted");
    assert_eq!(
        notes(&plan),
        [
            "TLSRoute ns/unknown-age: HostnameTaken: b.example.org: routed by TLSRoute x/same, which comes first",
            "TLSRoute x/young-wildcard: HostnameTaken: *.example.com: routed by TLSRoute ns/old-wildcard, which comes first",
            "TLSRoute y/same: HostnameTaken: b.example.org: routed by TLSRoute x/same, which comes first",
        ]
    );
}

#[test]
fn all_listeners_of_a_gateway_that_conflict_are_refused() {
    let objects = [
        gateway("ns/gw", &["one 443 a.example.com", "two 443 A.example.com", "three 443", "four 8443 a.example.com"]),
        simple_route("ns/r", "ns/gw", &["a.example.com"]),
    ];
    let plan = check(&objects, &[(Some("a.example.com"), Some("ns/r"))]);
    for listener in ["one", "two"] {
        let reasons = listener_reasons(&plan, "ns/gw", listener);
        let expected = ["Accepted False HostnameConflict", "Conflicted True HostnameConflict"];
        assert_eq!((&reasons[..2], &*reasons[3]), (&expected.map(String::from)[..], "Programmed False Invalid"));
    }
    let status = gateway_status(&plan, "ns/gw");
    assert_eq!(reasons(&status["conditions"]), ["Accepted True ListenersNotValid", "Programmed True Programmed"]);
    let message = status["conditions"][0]["message"].as_str().unwrap();
    assert_eq!(message, "not valid: one, two; accepted: three, four");
    assert_eq!(attached_routes(&plan, "ns/gw"), [1, 1, 1, 1]);
}

/// Otherwise, anyone who may create a Gateway could stop all others.
#[test]
fn of_two_gateways_the_older_keeps_its_listener() {
    let objects = [
        created(gateway("ns/young", &["tls 443", "other 443 *.example.net"]), "02:00"),
        created(gateway("x/old", &["tls 443"]), "01:00"),
        simple_route("ns/young", "ns/young", &["*.example.com"]),
        simple_route("x/old", "x/old", &["*.com"]),
    ];
    let plan = check(&objects, &[(Some("a.example.com"), Some("x/old"))]);
    assert_eq!(
        listener_reasons(&plan, "ns/young", "tls")[..2],
        ["Accepted False HostnameConflict", "Conflicted True HostnameConflict"]
    );
    assert_eq!(listener_reasons(&plan, "ns/young", "other")[0], "Accepted True Accepted");
    assert_eq!(listener_reasons(&plan, "x/old", "tls")[0], "Accepted True Accepted");
}

#[test]
fn clients_without_sni_need_the_annotation_and_a_listener_for_all_names() {
    let no_sni = || json!({"snigate.dev/no-sni": "true"});
    let objects = [
        gateway("ns/gw", &["tls 443", "narrow 443 *.example.com"]),
        annotated(created(simple_route("ns/old-narrow", "ns/gw/narrow", &["a.example.com"]), "01:00"), no_sni()),
        annotated(created(simple_route("ns/second", "ns/gw/tls", &["a.example.org"]), "02:00"), no_sni()),
        annotated(created(simple_route("ns/third", "ns/gw", &["b.example.org"]), "03:00"), no_sni()),
    ];
    check(
        &objects,
        &[(None, Some("ns/second")), (Some("c.example.org"), None), (Some("b.example.org"), Some("ns/third"))],
    );
    check(&objects[..2], &[(None, None), (Some("a.example.com"), Some("ns/old-narrow"))]);
}

#[test]
fn a_route_without_hostnames_has_those_of_the_listener() {
    let objects = [
        gateway("ns/gw", &["narrow 443 *.example.com", "tls 443"]),
        simple_route("ns/all", "ns/gw/tls", &[]),
        simple_route("ns/narrow", "ns/gw/narrow", &[]),
    ];
    let names = [(Some("a.example.com"), Some("ns/narrow")), (Some("a.net"), Some("ns/all")), (None, Some("ns/all"))];
    check(&objects, &names);
}
