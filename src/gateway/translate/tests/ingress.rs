use super::*;

fn backend(service: &str, port: Value) -> Value {
    json!({"service": {"name": service, "port": port}})
}

fn ingress(name: &str, host: Value, paths: Value) -> Value {
    let spec = json!({"ingressClassName": "edge", "rules": [{"host": host, "http": {"paths": paths}}]});
    let ingress = object("networking.k8s.io/v1", "Ingress", name, spec);
    annotated(ingress, json!({"nginx.ingress.kubernetes.io/ssl-passthrough": "true"}))
}

fn simple(name: &str, host: &str) -> Value {
    ingress(name, json!(host), json!([{"path": "/", "backend": backend("a", json!({"number": 443}))}]))
}

fn options() -> Options {
    Options { ingress: Some(IngressOptions { class: "edge".into(), port: 443 }), ..Options::default() }
}

fn with(objects: &[Value]) -> Plan {
    plan_with(&[&[class(), service("ns/a")], objects].concat(), &options())
}

#[test]
fn hosts_are_routed_at_the_port_for_ingress_objects() {
    let named = ingress("ns/named", json!("b.example.com"), json!([{"backend": backend("a", json!({"name": "tls"}))}]));
    let plan = with(&[simple("ns/i", "a.example.com"), named]);
    assert_eq!(routed(&plan, EVERYWHERE, Some("a.example.com")).as_deref(), Some("ingress/ns/i/a.example.com"));
    assert_eq!(routed(&plan, EVERYWHERE, Some("b.example.com")).as_deref(), Some("ingress/ns/named/b.example.com"));
    assert_eq!(routed(&plan, EVERYWHERE, Some("c.example.com")), None);
    assert_eq!(plan.endpoints.len(), 1);
    assert_eq!(notes(&plan), [""; 0]);
    let status = status::ingress(&Value::Null, &plan.statuses.published, &applied()).unwrap();
    assert_eq!(plan.statuses.ingresses.len(), 2);
    assert_eq!(status, json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}));
    assert_eq!(status::ingress(&status, &plan.statuses.published, &applied()), None);
}

#[test]
fn only_objects_of_the_class_with_the_annotation_are_ours() {
    let ours = simple("ns/i", "a.example.com");
    let mut legacy = ours.clone();
    legacy["spec"]["ingressClassName"] = Value::Null;
    legacy["metadata"]["annotations"]["kubernetes.io/ingress.class"] = json!("edge");
    let mut other_class = ours.clone();
    other_class["spec"]["ingressClassName"] = json!("nginx");
    let mut no_class = ours.clone();
    no_class["spec"]["ingressClassName"] = Value::Null;
    let mut terminates = ours.clone();
    terminates["metadata"]["annotations"]["nginx.ingress.kubernetes.io/ssl-passthrough"] = json!("false");
    for (ingress, is_ours) in
        [(ours.clone(), true), (legacy, true), (other_class, false), (no_class, false), (terminates, false)]
    {
        let plan = with(&[ingress]);
        assert_eq!(
            (plan.routing.routes.len(), plan.routing.listeners.len()),
            (usize::from(is_ours), usize::from(is_ours))
        );
    }
    assert!(plan(&[service("ns/a"), ours]).routing.routes.is_empty(), "without --ingress-class");
}

#[test]
fn what_ingress_nginx_ignored_is_refused_and_reported() {
    let root = || json!([{"path": "/", "backend": backend("a", json!({"number": 443}))}]);
    let only_path = json!([{"path": "/api", "backend": backend("a", json!({"number": 443}))}]);
    let both = json!([{"path": "/", "backend": backend("a", json!({"number": 443}))}, {"path": "/api", "backend": {}}]);
    let absent = json!([{"path": "/", "backend": backend("absent", json!({"number": 443}))}]);
    let resource = json!([{"path": "/", "backend": {"resource": {"kind": "Bucket", "name": "x"}}}]);
    let mut default = simple("ns/i", "a.example.com");
    default["spec"]["defaultBackend"] = backend("a", json!({"number": 443}));
    for (ingress, is_routed, expected) in [
        (
            ingress("ns/i", json!("*.example.com"), root()),
            false,
            "host `*.example.com` is ignored: ingress-nginx never passed wildcard",
        ),
        (ingress("ns/i", Value::Null, root()), false, "a rule without a host is ignored"),
        (ingress("ns/i", json!("192.0.2.1"), root()), false, "host `192.0.2.1` is ignored: the name is an IP address"),
        (ingress("ns/i", json!("a.example.com"), only_path), false, "host `a.example.com`: paths /api are ignored"),
        (
            ingress("ns/i", json!("a.example.com"), both),
            true,
            "host `a.example.com`: paths /api are ignored: TLS hides paths",
        ),
        (
            ingress("ns/i", json!("a.example.com"), absent),
            true,
            "host `a.example.com`: Service ns/absent does not exist; its clients are refused",
        ),
        (ingress("ns/i", json!("a.example.com"), resource), true, "host `a.example.com`: the backend is not a Service"),
        (default, true, "defaultBackend is ignored"),
    ] {
        let plan = with(&[ingress]);
        let notes = notes(&plan);
        assert!(
            notes.iter().any(|note| note.starts_with(&format!("Ingress ns/i: NotSupported: {expected}"))),
            "{notes:?}"
        );
        assert_eq!(plan.routing.routes.len(), usize::from(is_routed), "{expected}");
    }
}

#[test]
fn names_are_shared_with_gateways_by_age() {
    let objects = |route_created, ingress_created| {
        [
            gateway("ns/gw", &["tls 443 *.example.com"]),
            created(simple_route("ns/r", "ns/gw", &["a.example.com", "*.example.com"]), route_created),
            created(simple("ns/i", "a.example.com"), ingress_created),
        ]
    };
    let plan = with(&objects("01:00", "02:00"));
    assert_eq!(routed(&plan, EVERYWHERE, Some("a.example.com")).as_deref(), Some("ns/r"));
    assert_eq!(plan.notes.len(), 1);
    let plan = with(&objects("02:00", "01:00"));
    assert_eq!(routed(&plan, EVERYWHERE, Some("a.example.com")).as_deref(), Some("ingress/ns/i/a.example.com"));
    assert_eq!(routed(&plan, EVERYWHERE, Some("b.example.com")).as_deref(), Some("ns/r"));
}

#[test]
fn a_taken_port_is_reported() {
    let objects = [class(), service("ns/a"), simple("ns/i", "a.example.com")];
    let plan = translate(&snapshot(&objects), &options(), &["0.0.0.0:443".parse().unwrap()]);
    assert!(plan.routing.routes.is_empty() && plan.routing.listeners.is_empty() && plan.statuses.ingresses.is_empty());
    assert!(notes(&plan)[0].starts_with("Ingress ns/i: PortUnavailable: not served"), "{:?}", notes(&plan));
}

#[test]
fn annotations_are_settings_of_the_route_and_a_wrong_one_is_reported() {
    let annotations = json!({
        "snigate.dev/max-connections": "5",
        "snigate.dev/balance": "fastest",
        "snigate.dev/no-sni": "true",
        "nginx.ingress.kubernetes.io/ssl-passthrough": "true",
    });
    let route = annotated(simple_route("ns/r", "ns/gw", &["b.example.com"]), annotations.clone());
    let plan = with(&[gateway("ns/gw", &["tls 8443"]), route, annotated(simple("ns/i", "a.example.com"), annotations)]);
    for route in &plan.routing.routes {
        assert_eq!(route.max_connections, Some(5));
    }
    assert_eq!(routed(&plan, EVERYWHERE, None).as_deref(), Some("ingress/ns/i/a.example.com"));
    assert_eq!(routed(&plan, "[::]:8443", None).as_deref(), Some("ns/r"));
    let message = "InvalidAnnotation: snigate.dev/balance: `fastest`: expected one of";
    let notes = notes(&plan);
    assert!(notes.len() == 2 && notes.iter().all(|note| note.contains(message)), "{notes:?}");
    assert_eq!(route_reasons(&plan, "ns/r")[0][2], "snigate.dev/InvalidAnnotations True InvalidValue");
}
