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

/// What is said, and whether the client is served.
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
    let (told, is_served) = explain(&[&["--json"], arguments].concat(), input);
    let value: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(is_served, value["route"].is_string() && value["admitted"] != false, "{told}");
    value
}

fn of_name(name: &str, more: &[&str]) -> Value {
    json_of(&[&["--sni", name], more].concat(), b"")
}

fn of_hello(bytes: &[u8]) -> Value {
    json_of(&["--hello", "-"], bytes)
}

#[test]
fn a_name_is_explained() {
    let told = of_name("A.Example.", &[]);
    assert_eq!((&told["outcome"], &told["sni"], &told["route"]), (&json!("sni"), &json!("a.example"), &json!("one")));
    assert_eq!(of_name("a.example", &["--alpn", "h3,h2"])["route"], "h2");
    assert_eq!(of_name("a.example", &["--alpn", "h2", "--listener", "inside"])["route"], "inside");
    let below = of_name("x.y.example", &[]);
    assert_eq!(
        (&below["route"], &below["reason"]),
        (&json!("below"), &json!("the route has *.example, and nothing more specific matches"))
    );
    let unknown = of_name("b.test", &[]);
    assert_eq!((&unknown["outcome"], &unknown["route"]), (&json!("sni"), &Value::Null));
    let address = of_name("127.1", &[]);
    assert_eq!((&address["outcome"], &address["reason"]), (&json!("reject"), &json!("the name is an IP address")));

    let text = "name      a.example\nroute     one\nleads to  127.0.0.1:1\nbecause   the route has this very name\n";
    assert_eq!(explain(&["--sni", "a.example"], b""), (text.into(), true));
    assert!(explain(&["--sni", "b.test"], b"").0.contains("\nroute     none; the client is refused\n"));
}

#[test]
fn routes_that_have_the_name_and_want_more_are_named() {
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
        ("", &["b.example.com"][..], "none", "the route b has the name, but wants alpn h2 or h3"),
        ("", &["b.example.com", "--alpn", "h3"], "b", "the route has this very name, and its alpn matches"),
        ("", &["c.example.com"], "none", "the route c has the name, but wants the listener two"),
        ("", &["d.example.com"], "none", "the route d has the name, but wants alpn h2 and the listener two"),
        ("", &["d.example.com", "--alpn", "h2"], "none", "the route d has the name, but wants the listener two"),
        ("", &["q.b.z.test"], "none", "the route z has *.b.z.test, but wants the listener two"),
        ("", &["other.test"], "none", "no route has the name, and none takes all names"),
        (rest, &["other.test"], "none", "the route rest takes all names, but wants alpn foo"),
        (
            wide,
            &["c.example.com"],
            "wide",
            "the route has *.example.com; the route c has the name, but wants the listener two",
        ),
        (
            wide,
            &["x.b.example.com"],
            "wide",
            "the route has *.example.com; the route deep has *.b.example.com, but wants the listener two; \
             the route deeper has the name, but wants alpn h2",
        ),
        (
            rest,
            &["c.example.com", "--alpn", "foo"],
            "rest",
            "the route takes what no other route does, and its alpn matches; the route c has the name, but wants the listener two",
        ),
    ] {
        let arguments = [&["--json", "--sni"], arguments].concat();
        let (told, _) = explain_by(&format!("{routes}{more}"), &arguments, b"");
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!((told["route"].as_str().unwrap_or("none"), told["reason"].as_str().unwrap()), (route, reason));
    }
    let nameless = "listen: [127.0.0.1:0, {name: two, address: \"[::1]:0\"}]\nroutes: [{name: rest, listener: two, upstream: \"127.0.0.1:1\"}]\n";
    let hello = Hello::new().record();
    let (told, _) = explain_by(nameless, &["--hello", "-"], &hello);
    assert!(told.ends_with("because   the route rest takes all names, but wants the listener two\n"), "{told}");
}

#[test]
fn who_may_come_in_is_explained() {
    let at = |client, more: &[&str]| {
        let told = of_name("c.example", &[&["--client", client], more].concat());
        (told["admitted"].as_bool().unwrap(), told["access"].as_str().unwrap().to_owned())
    };
    for (client, is_admitted, access) in [
        ("10.0.0.1", true, "`allow` of the route closed has 10.0.0.0/8"),
        ("::ffff:10.1.2.3", false, "`deny` of the route closed has 10.1.0.0/16"),
        ("192.0.2.1", false, "`allow` of the route closed does not have it"),
        ("2001:db8::1", true, "`allow` of the route closed has 2001:db8::/32"),
    ] {
        assert_eq!(at(client, &[]), (is_admitted, access.into()), "{client}");
    }
    let inside = ["--listener", "inside"];
    assert_eq!(at("192.0.2.1", &inside), (false, "`deny` of the listener inside has 192.0.2.0/24".into()));
    let both = "`deny` of the listener inside does not have it, and `allow` of the route closed has 10.0.0.0/8";
    assert_eq!(at("10.0.0.1", &inside), (true, both.into()));
    assert_eq!(of_name("a.example", &["--client", "192.0.2.1"])["access"], "from anywhere");

    let (text, is_served) = explain(&["--sni", "c.example"], b"");
    let expected = "client    its address decides, too (--client IP): the route closed is open to 10.0.0.0/8, 2001:db8::/32, \
        not from 10.1.0.0/16\n";
    assert!(is_served && text.ends_with(expected), "{text}");
    let (text, _) = explain(&["--sni", "c.example", "--client", "10.1.0.1"], b"");
    assert!(text.ends_with("client    10.1.0.1 is refused: `deny` of the route closed has 10.1.0.0/16\n"), "{text}");
    for refused in ["b.test", "192.0.2.1"] {
        let (text, is_served) = explain(&["--sni", refused, "--client", "10.0.0.1"], b"");
        assert!(!is_served && text.ends_with("client    10.0.0.1 is let in by its address: from anywhere\n"), "{text}");
    }

    let balanced = CONFIG.replace("127.0.0.1:0", "{address: \"127.0.0.1:0\", accept_proxy: {from: 10.9.0.0/16}}");
    let (text, _) = explain_by(&balanced, &["--sni", "a.example", "--client", "192.0.2.1"], b"");
    let named = "; its address is the one in a PROXY header from 10.9.0.0/16\n";
    assert!(text.ends_with(&format!("client    192.0.2.1 may come in: from anywhere{named}")), "{text}");
    let (text, _) = explain_by(&balanced, &["--sni", "c.example", "--client", "192.0.2.1"], b"");
    assert!(text.ends_with(&format!("`allow` of the route closed does not have it{named}")), "{text}");
    let (text, _) = explain_by(&balanced, &["--sni", "c.example"], b"");
    assert!(text.ends_with(&format!("not from 10.1.0.0/16{named}")), "{text}");
}

#[test]
fn an_address_as_the_name_is_explained() {
    let reason = "an IP address as the name counts as none (`ip_literal_sni`); ";
    let told = of_name("192.0.2.1", &["--alpn", "h2"]);
    let expected = json!(format!("{reason}no route takes clients without a name"));
    assert_eq!((&told["outcome"], &told["route"], &told["reason"]), (&json!("no_sni"), &Value::Null, &expected));
    let rest = format!("{CONFIG}  - {{name: rest, upstream: 127.0.0.1:6}}\n");
    let hello = Hello::to("[2001:db8::1]").alpn(&["h2"]);
    for (arguments, input) in
        [(&["--sni", "2001:db8::1", "--json"][..], Vec::new()), (&["--hello", "-", "--json"], hello.record())]
    {
        let (text, is_served) = explain_by(&rest, arguments, &input);
        let told: Value = serde_json::from_str(&text).unwrap();
        assert!(is_served && told["route"] == "rest" && told["reason"].as_str().unwrap().starts_with(reason), "{told}");
    }
    let strict = rest.replace("[127.0.0.1:0,", "[{address: 127.0.0.1:0, ip_literal_sni: refuse},");
    for (arguments, input) in
        [(&["--sni", "2001:db8::1", "--json"][..], Vec::new()), (&["--hello", "-", "--json"], hello.record())]
    {
        let (text, is_served) = explain_by(&strict, arguments, &input);
        let told: Value = serde_json::from_str(&text).unwrap();
        assert!(!is_served && told["outcome"] == "reject" && told["reason"] == "the name is an IP address", "{told}");
    }
}

#[test]
fn raw_bytes_are_explained() {
    let hello = Hello::to("a.example").alpn(&["h2"]).extension(ENCRYPTED_CLIENT_HELLO, [0; 9]);
    let expected = json!({
        "outcome": "sni", "sni": "a.example", "alpn": ["h2"], "versions": ["0x0304", "0x0303"], "ech": true,
        "reason": "the route has this very name, and its alpn matches", "route": "h2",
        "client": null, "admitted": null, "access": null,
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
        let told = of_hello(bytes);
        assert_eq!((&told["outcome"], &told["reason"]), (&json!("reject"), &json!(reason)));
    }
    let bad = of_hello(&Hello::new().server_name(b"a\0b").record());
    assert_eq!((&bad["outcome"], &bad["sni"]), (&json!("reject"), &json!("a\\x00b")));
}
