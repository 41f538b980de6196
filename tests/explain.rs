//! `snigate explain`

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::hello::{ENCRYPTED_CLIENT_HELLO, record};
use crate::support::{Hello, snigate};

const CONFIG: &str = "listen: [127.0.0.1:0, {name: inside, address: \"[::1]:0\"}]
routes:
  - {name: one, sni: a.example, upstream: 127.0.0.1:1}
  - {name: h2, sni: a.example, alpn: h2, upstream: 127.0.0.1:2}
  - {name: below, sni: \"*.example\", upstream: 127.0.0.1:3}
  - {name: inside, sni: a.example, alpn: h2, listener: inside, upstream: 127.0.0.1:4}
";

fn explain(arguments: &[&str], input: &[u8]) -> String {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, CONFIG).unwrap();
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
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn of_name(name: &str, more: &[&str]) -> Value {
    serde_json::from_str(&explain(&[&["--json", "--sni", name], more].concat(), b"")).unwrap()
}

fn of_hello(bytes: &[u8]) -> Value {
    serde_json::from_str(&explain(&["--json", "--hello", "-"], bytes)).unwrap()
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
    let address = of_name("192.0.2.1", &[]);
    assert_eq!((&address["outcome"], &address["reason"]), (&json!("reject"), &json!("the name is an IP address")));

    let text = explain(&["--sni", "a.example"], b"");
    assert_eq!(
        text,
        "name      a.example\nroute     one\nleads to  127.0.0.1:1\nbecause   the route has this very name\n"
    );
}

#[test]
fn raw_bytes_are_explained() {
    let hello = Hello::to("a.example").alpn(&["h2"]).extension(ENCRYPTED_CLIENT_HELLO, [0; 9]);
    let expected = json!({
        "outcome": "sni", "sni": "a.example", "alpn": ["h2"], "versions": ["0x0304", "0x0303"], "ech": true,
        "reason": "the route has this very name, and its alpn matches", "route": "h2",
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
        (&record(22, &[]), "a record is empty"),
        (&Hello::to("a.example").server_name(b"b").record(), "extension 0 stands twice"),
    ] {
        let told = of_hello(bytes);
        assert_eq!((&told["outcome"], &told["reason"]), (&json!("reject"), &json!(reason)));
    }
    let bad = of_hello(&Hello::new().server_name(b"a\0b").record());
    assert_eq!((&bad["outcome"], &bad["sni"]), (&json!("reject"), &json!("a\\x00b")));
}
