//! `snigate explain`

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::hello::{ENCRYPTED_CLIENT_HELLO, record};
use crate::support::{Hello, snigate};

const CONFIG: &str = "listen: [127.0.0.1:0, {name: inside, address: \"[::1]:0\", deny: 192.0.2.0/24}]
routes:
  - {name: one, sni: a.example, upstream: 127.0.0.1:1}
  - {name: h2, sni: a.example, alpn: h2, upstream: 127.0.0.1:2}
  - {name: below, sni: \"*.example\", upstream: 127.0.0.1:3}
  - {name: inside, sni: a.example, alpn: h2, listener: inside, upstream: 127.0.0.1:4}
  - {name: closed, sni: c.example, allow: [10.0.0.0/8, \"2001:db8::/32\"], deny: 10.1.0.0/16, upstream: 127.0.0.1:5}
";

/// The output, and whether the client would be served.
fn explain(arguments: &[&str], input: &[u8]) -> (String, bool) {
    explain_by(CONFIG, arguments, input)
}

fn explain_by(config: &str, arguments: &[&str], input: &[u8]) -> (String, bool) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, config).unwrap();
    let mut child = snigate()
        .args(["explain", "-c"])
        .arg(&path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 1)), "{code:?}");
    (String::from_utf8(output.stdout).unwrap(), code == Some(0))
}

fn json_of(arguments: &[&str], input: &[u8]) -> Value {
    let (output, is_served) = explain(&[&["--json"], arguments].concat(), input);
    let value: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(is_served, value["route"].is_string() && value["admitted"] != false, "{output}");
    value
}

fn of_name(name: &str, more: &[&str]) -> Value {
    json_of(&[&["--sni", name], more].concat(), b"")
}

fn of_hello(bytes: &[u8]) -> Value {
    json_of(&["--hello", "-"], bytes)
}

#[test]
fn explains_a_name() {
    let output = of_name("A.Example.", &[]);
    assert_eq!(
        (&output["outcome"], &output["sni"], &output["route"]),
        (&json!("sni"), &json!("a.example"), &json!("one"))
    );
    assert_eq!(of_name("a.example", &["--alpn", "h3,h2"])["route"], "h2");
    assert_eq!(of_name("a.example", &["--alpn", "h2", "--listener", "inside"])["route"], "inside");
    let below = of_name("x.y.example", &[]);
    assert_eq!((&below["route"], &below["reason"]), (&json!("below"), &json!("wildcard *.example")));
    let unknown = of_name("b.test", &[]);
    assert_eq!((&unknown["outcome"], &unknown["route"]), (&json!("sni"), &Value::Null));
    let address = of_name("127.1", &[]);
    assert_eq!((&address["outcome"], &address["reason"]), (&json!("reject"), &json!("the name is an IP address")));

    let text = "name       a.example\nroute      one\nroutes to  127.0.0.1:1\nreason     exact name; \
        route h2 matches the name but requires ALPN h2; \
        route inside matches the name but requires listener inside and ALPN h2\n";
    assert_eq!(explain(&["--sni", "a.example"], b""), (text.into(), true));
    assert!(explain(&["--sni", "b.test"], b"").0.contains("\nroute      none: the client is refused\n"));
}

#[test]
fn explains_routes_that_match_the_name_but_require_more() {
    let routes = "listen: [{name: one, address: 127.0.0.1:0}, {name: two, address: \"[::1]:0\"}]
routes:
  - {name: b, sni: b.example.com, alpn: [h2, h3], upstream: 127.0.0.1:1}
  - {name: c, sni: c.example.com, listener: two, upstream: 127.0.0.1:2}
  - {name: d, sni: d.example.com, listener: two, alpn: h2, upstream: 127.0.0.1:3}
  - {name: deep, sni: \"*.b.example.com\", listener: two, upstream: 127.0.0.1:4}
  - {name: deeper, sni: x.b.example.com, alpn: h2, upstream: 127.0.0.1:5}
  - {name: z, sni: [\"*.z.test\", \"*.b.z.test\"], listener: two, upstream: 127.0.0.1:5}
";
    let wide = "  - {name: wide, sni: \"*.example.com\", upstream: 127.0.0.1:6}\n";
    let rest = "  - {name: rest, alpn: foo, upstream: 127.0.0.1:7}\n";
    for (more, arguments, route, reason) in [
        ("", &["b.example.com"][..], "none", "route b matches the name but requires ALPN h2 or h3"),
        ("", &["b.example.com", "--alpn", "h3"], "b", "exact name, ALPN matches"),
        ("", &["c.example.com"], "none", "route c matches the name but requires listener two"),
        ("", &["d.example.com"], "none", "route d matches the name but requires listener two and ALPN h2"),
        ("", &["d.example.com", "--alpn", "h2"], "none", "route d matches the name but requires listener two"),
        ("", &["q.b.z.test"], "none", "route z matches the name by *.b.z.test but requires listener two"),
        ("", &["other.test"], "none", "no route matches this name, and there is no catch-all route"),
        (rest, &["other.test"], "none", "route rest is a catch-all but requires ALPN foo"),
        (
            wide,
            &["c.example.com"],
            "wide",
            "wildcard *.example.com; route c matches the name but requires listener two",
        ),
        (
            wide,
            &["x.b.example.com"],
            "wide",
            "wildcard *.example.com; route deep matches the name by *.b.example.com but requires listener two; \
             route deeper matches the name but requires ALPN h2",
        ),
        (
            rest,
            &["c.example.com", "--alpn", "foo"],
            "rest",
            "catch-all route, ALPN matches; route c matches the name but requires listener two",
        ),
    ] {
        let arguments = [&["--json", "--sni"], arguments].concat();
        let (output, _) = explain_by(&format!("{routes}{more}"), &arguments, b"");
        let output: Value = serde_json::from_str(&output).unwrap();
        assert_eq!((output["route"].as_str().unwrap_or("none"), output["reason"].as_str().unwrap()), (route, reason));
    }
    let nameless = "listen: [127.0.0.1:0, {name: two, address: \"[::1]:0\"}]\nroutes: [{name: rest, listener: two, upstream: \"127.0.0.1:1\"}]\n";
    let hello = Hello::new().record();
    let (output, _) = explain_by(nameless, &["--hello", "-"], &hello);
    assert!(output.ends_with("reason     route rest is a catch-all but requires listener two\n"), "{output}");
}

#[test]
fn explains_access_rules() {
    let at = |client, more: &[&str]| {
        let output = of_name("c.example", &[&["--client", client], more].concat());
        (output["admitted"].as_bool().unwrap(), output["access"].as_str().unwrap().to_owned())
    };
    for (client, is_admitted, access) in [
        ("10.0.0.1", true, "allowed: route closed, allow 10.0.0.0/8"),
        ("::ffff:10.1.2.3", false, "denied: route closed, deny 10.1.0.0/16"),
        ("192.0.2.1", false, "denied: route closed, not in allow"),
        ("2001:db8::1", true, "allowed: route closed, allow 2001:db8::/32"),
    ] {
        assert_eq!(at(client, &[]), (is_admitted, access.into()), "{client}");
    }
    let inside = ["--listener", "inside"];
    assert_eq!(at("192.0.2.1", &inside), (false, "denied: listener inside, deny 192.0.2.0/24".into()));
    let both = "allowed: listener inside, not in deny; route closed, allow 10.0.0.0/8";
    assert_eq!(at("10.0.0.1", &inside), (true, both.into()));
    assert_eq!(of_name("a.example", &["--client", "192.0.2.1"])["access"], "allowed: no access rules");

    let (text, is_served) = explain(&["--sni", "c.example"], b"");
    let expected = "client     access depends on the address (--client IP): route closed, allow 10.0.0.0/8, 2001:db8::/32, \
        deny 10.1.0.0/16\n";
    assert!(is_served && text.ends_with(expected), "{text}");
    let (text, _) = explain(&["--sni", "c.example", "--client", "10.1.0.1"], b"");
    assert!(text.ends_with("client     10.1.0.1 denied: route closed, deny 10.1.0.0/16\n"), "{text}");
    for refused in ["b.test", "192.0.2.1"] {
        let (text, is_served) = explain(&["--sni", refused, "--client", "10.0.0.1"], b"");
        assert!(!is_served && text.ends_with("client     10.0.0.1 allowed: no access rules\n"), "{text}");
    }

    let balanced = CONFIG.replace("127.0.0.1:0", "{address: \"127.0.0.1:0\", accept_proxy: {from: 10.9.0.0/16}}");
    let (text, _) = explain_by(&balanced, &["--sni", "a.example", "--client", "192.0.2.1"], b"");
    let proxied = "; client address is from the PROXY header sent by 10.9.0.0/16\n";
    assert!(text.ends_with(&format!("client     192.0.2.1 allowed: no access rules{proxied}")), "{text}");
    let (text, _) = explain_by(&balanced, &["--sni", "c.example", "--client", "192.0.2.1"], b"");
    assert!(text.ends_with(&format!("denied: route closed, not in allow{proxied}")), "{text}");
    let (text, _) = explain_by(&balanced, &["--sni", "c.example"], b"");
    assert!(text.ends_with(&format!("deny 10.1.0.0/16{proxied}")), "{text}");
}

#[test]
fn explains_denied_fingerprints_and_limits() {
    const DENIED: &str = "t13d0406h2_77f0cd3447db_e12c865f31a5";
    let config = format!("listen: 127.0.0.1:0
routes:
  - {{name: closed, sni: a.example, deny_ja4: {DENIED}, max_connections: 5, new_connections: 200/s, upstream: 127.0.0.1:1}}
");
    let (text, is_served) = explain_by(&config, &["--hello", "-"], &Hello::to("a.example").alpn(&["h2"]).record());
    assert!(!is_served && text.contains(&format!("ja4        denied: route closed, deny_ja4 {DENIED}\n")), "{text}");
    assert!(text.ends_with("limits     max_connections 5, new_connections 200/s\n"), "{text}");
    let (text, is_served) = explain_by(&config, &["--hello", "-"], &Hello::to("a.example").record());
    assert!(is_served && text.contains("ja4        t13d040500_77f0cd3447db_e12c865f31a5\n"), "{text}");
    let (text, is_served) = explain_by(&config, &["--sni", "a.example"], b"");
    let depends =
        format!("ja4        access depends on the fingerprint (--hello FILE): route closed, deny_ja4 {DENIED}\n");
    assert!(is_served && text.contains(&depends) && !text.contains("--client"), "{text}");
    let json = explain_by(&config, &["--json", "--hello", "-"], &Hello::to("a.example").alpn(&["h2"]).record()).0;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["admitted"], &json["ja4"]), (&json!(false), &json!(DENIED)));
    assert_eq!(json["limits"], json!(["max_connections 5", "new_connections 200/s"]));
}

#[test]
fn explains_an_ip_address_in_sni() {
    let reason = "an IP address in SNI counts as no SNI (ip_literal_sni); ";
    let output = of_name("192.0.2.1", &["--alpn", "h2"]);
    let expected = json!(format!("{reason}the client sent no SNI, and there is no catch-all route"));
    assert_eq!((&output["outcome"], &output["route"], &output["reason"]), (&json!("no_sni"), &Value::Null, &expected));
    let rest = format!("{CONFIG}  - {{name: rest, upstream: 127.0.0.1:6}}\n");
    let hello = Hello::to("[2001:db8::1]").alpn(&["h2"]);
    for (arguments, input) in
        [(&["--sni", "2001:db8::1", "--json"][..], Vec::new()), (&["--hello", "-", "--json"], hello.record())]
    {
        let (text, is_served) = explain_by(&rest, arguments, &input);
        let output: Value = serde_json::from_str(&text).unwrap();
        assert!(
            is_served && output["route"] == "rest" && output["reason"].as_str().unwrap().starts_with(reason),
            "{output}"
        );
    }
    let strict = rest.replace("[127.0.0.1:0,", "[{address: 127.0.0.1:0, ip_literal_sni: refuse},");
    for (arguments, input) in
        [(&["--sni", "2001:db8::1", "--json"][..], Vec::new()), (&["--hello", "-", "--json"], hello.record())]
    {
        let (text, is_served) = explain_by(&strict, arguments, &input);
        let output: Value = serde_json::from_str(&text).unwrap();
        assert!(
            !is_served && output["outcome"] == "reject" && output["reason"] == "the name is an IP address",
            "{output}"
        );
    }
}

#[test]
fn explains_a_raw_client_hello() {
    let hello = Hello::to("a.example").alpn(&["h2"]).extension(ENCRYPTED_CLIENT_HELLO, [0; 9]);
    let expected = json!({
        "outcome": "sni", "sni": "a.example", "alpn": ["h2"], "versions": ["0x0304", "0x0303"], "ech": true,
        "reason": "exact name, ALPN matches; route inside matches the name but requires listener inside", "route": "h2",
        "client": null, "admitted": null, "access": null, "limits": [],
        "ja4": "t13d0407h2_77f0cd3447db_c7112704c764", "ja4_access": null,
    });
    assert_eq!(of_hello(&hello.record()), expected);
    assert_eq!(of_hello(&hello.records(10)), expected);

    let nameless = of_hello(&Hello::new().record());
    assert_eq!(
        (&nameless["outcome"], &nameless["sni"], &nameless["route"]),
        (&json!("no_sni"), &Value::Null, &Value::Null)
    );
    assert_eq!(of_hello(&hello.record()[..99])["outcome"], "need_more");
    assert_eq!(of_hello(b"")["outcome"], "need_more");
    for (bytes, reason) in [
        (&b"GET / HTTP/1.1\r\n"[..], "not a TLS handshake record"),
        (&record(22, &[]), "empty record"),
        (&Hello::to("a.example").server_name(b"b").record(), "duplicate extension 0"),
    ] {
        let output = of_hello(bytes);
        assert_eq!((&output["outcome"], &output["reason"]), (&json!("reject"), &json!(reason)));
    }
    let bad = of_hello(&Hello::new().server_name(b"a\0b").record());
    assert_eq!((&bad["outcome"], &bad["sni"]), (&json!("reject"), &json!("a\\x00b")));
}
