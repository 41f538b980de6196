//! `/api/explain`, from the running routes.

use serde_json::{Value, json};

use crate::support::router::config;
use crate::support::{Backend, Client, Hello, Router};

const CONFIG: &str = "\
listen: [{name: kubectl, address: 127.0.0.1:0}, {name: nodes, address: 127.0.0.1:0}]
admin: 127.0.0.1:0
routes:
  - {sni: dev.example.com, upstream: 127.0.0.1:1}
  - {name: tenants, sni: \"*.tenants.example.com\", upstream: 127.0.0.1:1}
  - {name: agents, sni: nodes.example.com, listener: nodes, upstream: 127.0.0.1:1}
  - {name: h2, sni: nodes.example.com, listener: kubectl, alpn: [h2], upstream: 127.0.0.1:1}
";

fn explain(router: &Router, query: &str) -> Value {
    let (status, body) = router.get(&format!("/api/explain{query}"));
    assert_eq!(status, 200, "{query}: {body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn a_name_is_explained_by_the_route_and_the_pattern_that_match() {
    let router = Router::start(CONFIG);
    for (query, route, matched) in [
        ("?name=DEV.example.com.", "dev.example.com", "dev.example.com"),
        ("?name=a.b.tenants.example.com", "tenants", "*.tenants.example.com"),
        ("?name=nodes.example.com&listener=nodes", "agents", "nodes.example.com"),
        ("?name=nodes.example.com&alpn=http/1.1,h2", "h2", "nodes.example.com"),
    ] {
        let explanation = explain(&router, query);
        assert_eq!((&explanation["route"], &explanation["matched"]), (&route.into(), &matched.into()), "{query}");
        assert_eq!((&explanation["outcome"], &explanation["reason"]), (&Value::Null, &Value::Null), "{query}");
    }
    assert_eq!(
        explain(&router, "?name=nodes.example.com&alpn=http/1.1"),
        json!({
            "name": "nodes.example.com",
            "alpn": ["http/1.1"],
            "listener": "kubectl",
            "route": null,
            "matched": null,
            "outcome": "unknown_name",
            "reason": "no other matcher of the routes with this name matches the client",
        })
    );
}

#[test]
fn what_is_explained_is_what_clients_get_also_after_a_reload() {
    let backend = Backend::named("served");
    let router = Router::routing(&[("dev.example.com", backend.address())]);
    let is_refused_as_explained = |name: &str| {
        let mut client = Client::send(router.address(), &Hello::new().server_name(name.as_bytes()).record());
        client.finish();
        client.rest();
        let line = router.wait("the refusal", |line| line["server.address"] == name);
        let explanation = explain(&router, &format!("?name={name}"));
        assert_eq!(explanation["route"], Value::Null);
        assert_eq!((&explanation["outcome"], &explanation["reason"]), (&line["outcome"], &line["reason"]));
    };
    is_refused_as_explained("prod.example.com");
    assert_eq!(explain(&router, "")["outcome"], "no_name");
    router.reload(&config(&[("prod.example.com", backend.address())], ""));
    assert_eq!(explain(&router, "?name=prod.example.com")["route"], "prod.example.com");
    is_refused_as_explained("dev.example.com");
    let catch_all = format!("routes: [{{name: rest, upstream: {}}}]\n", backend.address());
    router.reload(&format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\n{catch_all}"));
    let explanation = explain(&router, "?name=dev.example.com");
    assert_eq!((&explanation["route"], &explanation["matched"]), (&"rest".into(), &Value::Null));
    assert_eq!(explain(&router, "")["route"], "rest");
}

#[test]
fn a_bad_question_is_answered_by_what_is_wrong() {
    let router = Router::start(CONFIG);
    let expected = "expected ?name=NAME, with &alpn=NAMES or &listener=NAME\n";
    for (query, says) in [
        (
            "?name=https://dev.example.com/",
            "name: `https://dev.example.com/`: this is a URL; write `dev.example.com`\n",
        ),
        (
            "?name=dev.example.com:443",
            "name: `dev.example.com:443`: a server name has no port; write `dev.example.com`\n",
        ),
        ("?name=a&alpn=h2,,h3", "alpn: expected names of 1 to 255 bytes, separated by commas\n"),
        ("?name=a&listener=b", "listener: there is none with this name; expected one of kubectl, nodes\n"),
        ("?nmae=a", &format!("unknown or repeated parameter `nmae`; {expected}")),
        ("?name=a&name=b", &format!("unknown or repeated parameter `name`; {expected}")),
    ] {
        assert_eq!(router.get(&format!("/api/explain{query}")), (400, says.into()), "{query}");
    }
    let mut client = Client::send(
        router.admin(),
        b"POST /api/explain?name=a HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n",
    );
    assert!(client.rest().0.starts_with(b"HTTP/1.1 405"));
}
