//! Files with objects, without a cluster.

use std::path::Path;
use std::process::Output;

use tempfile::TempDir;

use crate::support::{all_output, snigate};

const OBJECTS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: apps}
spec:
  gatewayClassName: edge
  listeners:
  - {name: all, port: 443, protocol: TLS, tls: {mode: Passthrough}, allowedRoutes: {namespaces: {from: All}}}
  - {name: inner, port: 443, hostname: "*.inner.example.com", protocol: TLS, tls: {mode: Passthrough}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata:
  name: one
  namespace: apps
  annotations: {snigate.dev/allow: "192.0.2.0/24", snigate.dev/health-check: "{}"}
spec:
  parentRefs: [{name: edge, sectionName: all}]
  hostnames: ["*.example.com"]
  rules: [{backendRefs: [{name: one, port: 443}, {name: two, port: 443, weight: 3}]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: one}
"#;

fn with(objects: &str, arguments: &[&str]) -> Output {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("objects.yaml"), objects).unwrap();
    snigate().args(arguments).current_dir(directory.path()).output().unwrap()
}

#[test]
fn check_says_what_objects_amount_to() {
    let output = with(OBJECTS, &["check", "objects.yaml"]);
    let text = all_output(&output);
    assert!(output.status.success(), "{text}");
    for expected in [
        "objects.yaml: the objects are valid.\n",
        "assumed    GatewayClass edge\n",
        "assumed    Service apps/one\n",
        "ignored    Deployment: 1\n",
        "  [::]:443: allow all; refuse with close",
        "  apps/one\n    matches    *.example.com at [::]:443\n    access     allow 192.0.2.0/24\n",
        "1 to apps/one:443, 3 to apps/two:443",
        "not routed\n  *.inner.example.com at [::]:443\n",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn check_says_what_is_wrong() {
    let objects = OBJECTS
        .replace("\"192.0.2.0/24\"", "\"192.0.2.1/24\"")
        .replace("name: two", "name: two, kind: Bucket")
        .replace("port: 443, hostname", "port: 80, hostname")
        .replace("inner.example.com\", protocol: TLS, tls: {mode: Passthrough}", "inner.example.com\", protocol: HTTP");
    let output = with(&objects, &["check", "objects.yaml"]);
    let text = all_output(&output);
    assert_eq!(output.status.code(), Some(78), "{text}");
    for expected in [
        "Gateway apps/edge: Accepted True (ListenersNotValid): not valid: inner; accepted: all\n",
        "Gateway apps/edge, listener inner: Accepted False (UnsupportedProtocol): protocol HTTP is not supported",
        "TLSRoute apps/one, at Gateway edge: ResolvedRefs False (InvalidKind): Bucket `two`: expected a Service\n",
        "snigate.dev/InvalidAnnotations True (InvalidValue): snigate.dev/allow: `192.0.2.1/24`: host bits are set",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    let output = with("apiVersion: v1\nkind: Service\n---\n- a\n", &["check", "objects.yaml"]);
    assert!(all_output(&output).contains("objects.yaml: a document that is no object"), "{}", all_output(&output));
}

#[test]
fn explain_finds_the_route_that_objects_have() {
    for (name, route) in [("a.example.com", Some("apps/one")), ("a.inner.example.com", None), ("a.example.net", None)] {
        let output = with(OBJECTS, &["explain", "-c", "objects.yaml", "--sni", name, "--client", "192.0.2.7"]);
        let text = all_output(&output);
        assert_eq!(output.status.success(), route.is_some(), "{text}");
        let expected = format!("route      {}", route.unwrap_or("none: the client is refused"));
        assert!(text.contains(&expected), "{text}");
    }
}

const INGRESSES: &str = r#"
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: own, annotations: {nginx.ingress.kubernetes.io/ssl-passthrough: "true"}}
spec:
  ingressClassName: passthrough
  rules: [{host: a.example.com, http: {paths: [{path: /, backend: {service: {name: own, port: {number: 443}}}}]}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: default, annotations: {nginx.ingress.kubernetes.io/ssl-passthrough: "true"}}
spec:
  ingressClassName: nginx
  rules: [{host: b.example.com, http: {paths: [{path: /, backend: {service: {name: default, port: {number: 443}}}}]}}]
"#;

#[test]
fn ingress_objects_of_another_class_are_served_at_another_port() {
    for (options, name, others, port) in [
        (&[][..], "b.example.com", "a.example.com", 443),
        (&["--ingress-class", "passthrough"], "a.example.com", "b.example.com", 443),
        (&["--ingress-class", "passthrough", "--ingress-port", "6443"], "a.example.com", "b.example.com", 6443),
        (&["--ingress-port", "6443"], "b.example.com", "a.example.com", 6443),
    ] {
        let on = |arguments: &[&str]| with(INGRESSES, &[arguments, options].concat());
        let checked = all_output(&on(&["check", "objects.yaml"]));
        assert!(checked.contains(&format!("{name} at [::]:{port}\n")) && !checked.contains(others), "{checked}");
        let explain = |name| on(&["explain", "-c", "objects.yaml", "--sni", name]);
        assert!(explain(name).status.success() && !explain(others).status.success(), "{options:?}");
        let imported = all_output(&on(&["import", "gateway", "objects.yaml"]));
        assert!(imported.contains(&format!("[::]:{port}")) && imported.contains(name), "{imported}");
        assert!(!imported.contains(others), "{imported}");
    }
    let checked = all_output(&with(INGRESSES, &["check", "objects.yaml", "--ingress-class", "other"]));
    assert!(!checked.contains("example.com"), "{checked}");
}

#[test]
fn options_for_ingress_objects_are_refused_without_objects() {
    let config = "listen: 127.0.0.1:6443\nroutes: [{sni: a.example.com, upstream: 127.0.0.1:1}]\n";
    for (option, value) in [("--ingress-class", "nginx"), ("--ingress-port", "443")] {
        for command in [&["check", "objects.yaml"][..], &["explain", "-c", "objects.yaml", "--sni", "a.example.com"]] {
            assert!(with(config, command).status.success());
            let output = with(config, &[command, &[option, value]].concat());
            let expected = format!(
                "snigate: {option} is for files with objects of Kubernetes; objects.yaml is read as a configuration\n"
            );
            assert!(!output.status.success() && output.stdout.is_empty());
            assert_eq!(all_output(&output), expected);
        }
        let output = with("stream {}\n", &["import", "nginx", "objects.yaml", option, value]);
        let expected = format!("snigate: {option} is for objects of Kubernetes: `snigate import gateway`\n");
        assert_eq!((output.status.code(), all_output(&output)), (Some(1), expected));
    }
}

#[test]
fn import_writes_a_configuration_that_routes_the_same() {
    let output = with(OBJECTS, &["import", "gateway", "objects.yaml"]);
    assert!(output.status.success(), "{}", all_output(&output));
    let written = String::from_utf8(output.stdout).unwrap();
    for (name, client, is_served) in [
        ("a.example.com", "192.0.2.7", true),
        ("a.example.com", "198.51.100.1", false),
        ("a.inner.example.com", "192.0.2.7", false),
        ("a.example.net", "192.0.2.7", false),
    ] {
        let output = with(&written, &["explain", "-c", "objects.yaml", "--sni", name, "--client", client]);
        assert_eq!(output.status.success(), is_served, "{name} {client}\n{}\n{written}", all_output(&output));
    }
    for expected in [
        "refuse: close",
        "weight: 3",
        "one.apps.svc.cluster.local:443",
        "health_check: {}",
        "# not in the files, assumed to exist: Service apps/one",
    ] {
        assert!(written.contains(expected), "{expected}\n{written}");
    }
}

#[test]
fn import_says_what_would_be_different() {
    let invalid = OBJECTS.replace("name: two", "name: two, kind: Bucket");
    let output = with(&invalid, &["import", "gateway", "objects.yaml"]);
    let text = all_output(&output);
    assert!(!output.status.success() && output.stdout.is_empty(), "{text}");
    assert!(text.contains("apps/one: in the cluster, 3 of 4 connections are refused"), "{text}");
    let output = with(&invalid, &["import", "gateway", "objects.yaml", "--lossy"]);
    assert!(
        output.status.success() && all_output(&output).contains("# DIFFERENT: apps/one"),
        "{}",
        all_output(&output)
    );

    let output = with("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n", &["import", "gateway", "objects.yaml"]);
    assert!(all_output(&output).contains("nothing to make a route of"), "{}", all_output(&output));
    let output = with("", &["import", "nginx", "objects.yaml", "objects.yaml"]);
    assert!(all_output(&output).contains("unexpected argument objects.yaml"), "{}", all_output(&output));
}

#[test]
fn the_examples_are_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/gateway/examples");
    let mut count = 0;
    for entry in std::fs::read_dir(examples).unwrap() {
        let path = entry.unwrap().path();
        count += 1;
        // Of another class than that of ingress-nginx.
        let class = if path.ends_with("k0smotron.yaml") { "snigate" } else { "nginx" };
        let output = snigate().args(["check", "--ingress-class", class]).arg(&path).output().unwrap();
        let text = all_output(&output);
        let is_valid = text.contains("the objects are valid") && text.contains("routes to");
        // The Ingress and the TLSRoute that it becomes share their name.
        let is_shared =
            path.ends_with("ingress-nginx.yaml") && text.contains(": 1 problem.") && text.contains("HostnameTaken");
        assert!(is_valid || is_shared, "{}: {text}", path.display());
    }
    assert!(count > 3);
}

#[test]
fn the_commands_of_the_page_work() {
    let example = "deploy/kubernetes/gateway/examples/kamaji.yaml";
    for arguments in [
        &["check", example][..],
        &["explain", "-c", example, "--sni", "tenant-00.k8s.example.com"],
        &["import", "gateway", example],
    ] {
        let output = snigate().args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{}", all_output(&output));
    }
}
