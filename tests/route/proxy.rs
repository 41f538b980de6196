//! PROXY headers, from balancers and to endpoints.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;

use tempfile::TempDir;

use crate::support::backend::{closed, free};
use crate::support::client::{End, alert, client_from, served};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, PATIENCE, Router, eventually};

const NAME: &str = "a.example";
const BALANCER: &str = "127.0.0.2";
const HEADER: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 4711 6443\r\n";

fn behind_a_balancer(upstream: SocketAddr, more: &str) -> Router {
    let text = config(&[(NAME, upstream)], more).replace(
        "listen: 127.0.0.1:0",
        "listen: [{address: \"127.0.0.1:0\", accept_proxy: {from: [127.0.0.2, 127.0.0.128/25]}}]",
    );
    Router::start(&text)
}

/// What who has this address gets for these bytes.
fn ask(router: &Router, from: &str, bytes: &[u8]) -> ((Vec<u8>, End), SocketAddr) {
    let mut client = client_from(from, router.address());
    let _ = client.stream.write_all(bytes);
    client.finish_if_open();
    (client.rest(), client.address())
}

fn signature(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family], &length, content].concat()
}

#[test]
fn e06_only_who_is_listed_may_name_a_client() {
    let backend = Backend::named("served");
    let router = behind_a_balancer(backend.address(), "");
    let hello = Hello::to(NAME).record();
    let with_header = [HEADER.as_bytes(), &hello].concat();
    for balancer in [BALANCER, "127.0.0.200"] {
        assert_eq!(ask(&router, balancer, &with_header).0, served());
    }
    let account = router.wait("who was served", |line| line["network.peer.address"] == BALANCER);
    assert_eq!((&account["client.address"], &account["client.port"]), (&"192.0.2.7".into(), &4711.into()));
    assert_eq!((&account["outcome"], &account["bytes.received"]), (&"completed".into(), &hello.len().into()));
    for (from, bytes, reason) in [
        ("127.0.0.3", &with_header, "peer not in accept_proxy.from"),
        ("127.0.0.3", &hello, "peer not in accept_proxy.from"),
        (BALANCER, &hello, "missing PROXY header, which accept_proxy requires"),
    ] {
        let ((received, _), client) = ask(&router, from, bytes);
        assert_eq!(received, b"", "closed");
        let account = router.account_of(client);
        assert_eq!((&account["outcome"], &account["reason"]), (&"proxy_header".into(), &reason.into()));
        assert_eq!(account["network.peer.address"], serde_json::Value::Null);
    }
    assert_eq!(backend.accepted(), 2);
    let check = crate::support::snigate().arg("check").arg(&router.config).output().unwrap();
    let told = String::from_utf8(check.stdout).unwrap();
    assert!(
        told.contains("allow all; refuse with TLS alert; PROXY header required, from 127.0.0.2, 127.0.0.128/25"),
        "{told}"
    );
}

#[test]
fn e06_without_accept_proxy_a_header_is_no_hello() {
    let router = Router::routing(&[(NAME, Backend::named("served").address())]);
    for header in [HEADER.as_bytes(), &signature(0x20, 0, b"")] {
        let ((received, _), client) = ask(&router, BALANCER, &[header, &Hello::to(NAME).record()].concat());
        let account = router.account_of(client);
        assert_eq!((received, &account["outcome"]), (Vec::new(), &"not_tls".into()));
        assert_eq!(
            account["reason"],
            "unexpected PROXY header: this peer is in no `accept_proxy.from` of this listener"
        );
    }
}

#[test]
fn e07_headers_of_either_version_in_any_number_of_segments() {
    let backend = Backend::named("served");
    let router = behind_a_balancer(backend.address(), "");
    let hello = Hello::to(NAME).padded_to(1700).record();
    let binary = signature(0x21, 0x11, &[192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x67, 0x19, 0x2b]);
    let mut served = 0;
    for header in [HEADER.as_bytes(), &binary] {
        let whole = [header, &hello].concat();
        for size in [1, 7, header.len(), header.len() + 9] {
            let mut client = client_from(BALANCER, router.address());
            client.stream.set_nodelay(true).unwrap();
            whole.chunks(size).for_each(|part| client.write(part));
            client.finish();
            assert_eq!(client.rest(), (b"served".to_vec(), End::Fin), "{size}");
            served += 1;
            let port = client.address().port();
            router
                .wait_many("who it was", served, |line| line["client.port"] == 4711 && line["outcome"] == "completed");
            assert!(!router.log().iter().any(|line| line["client.port"] == port));
        }
    }
    // Who speaks for itself, or of what is not TCP, is its own client.
    for header in [
        &b"PROXY UNKNOWN\r\n"[..],
        &signature(0x20, 0, b""),
        &signature(0x21, 0, b""),
        &signature(0x21, 0x12, &[7; 12]),
        &signature(0x21, 0x32, &[7; 216]),
    ] {
        let (answer, client) = ask(&router, BALANCER, &[header, &hello].concat());
        assert_eq!(answer.0, b"served");
        assert_eq!(router.account_of(client)["client.address"], BALANCER);
    }
    // A balancer's own check: a header and no more.
    let (answer, _) = ask(&router, BALANCER, &signature(0x20, 0, b""));
    assert_eq!(answer.0, b"");
}

#[test]
fn e07_whatever_is_malformed_is_closed() {
    let backend = Backend::named("served");
    let router = behind_a_balancer(backend.address(), "log: {refusals_per_second: 0}\n");
    let hello = Hello::to(NAME).record();
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
    for header in [
        &b"PROXY TCP4 192.0.2.7 198.51.100.1 4711\r\n"[..],
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 6443 1\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 99999\r\n",
        b"PROXY TCP4 ::1 ::1 4711 6443\r\n",
        b"PROXY TCP5 192.0.2.7 198.51.100.1 4711 6443\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 6443\n",
        b"PROXYTCP4",
        b"PROXZ",
        long.as_bytes(),
        &signature(0x11, 0x11, &[7; 12]),
        &signature(0x23, 0x11, &[7; 12]),
        &signature(0x21, 0x51, &[7; 12]),
        &signature(0x21, 0x11, &[7; 11]),
        &signature(0x21, 0x11, &[7; 14]),
        &signature(0x21, 0x11, &[&[7; 12][..], b"\x03\0\x04\x01\x02\x03\x04"].concat()),
        &signature(0x21, 0x11, &[7; 65535]),
    ] {
        let ((received, _), client) = ask(&router, BALANCER, &[header, &hello].concat());
        assert_eq!(received, b"", "{}", header[..header.len().min(60)].escape_ascii());
        assert_eq!(router.account_of(client)["outcome"], "proxy_header");
    }
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn a17_one_deadline_for_header_and_hello() {
    let router = behind_a_balancer(closed(), "timeouts: {hello: 400ms}\n");
    let hello = Hello::to(NAME).record();
    for bytes in [&b"PROXY TCP4 "[..], HEADER.as_bytes(), &[HEADER.as_bytes(), &hello[..50]].concat()] {
        let mut client = client_from(BALANCER, router.address());
        client.write(bytes);
        assert_eq!(client.rest().0, alert(80));
    }
    let accounts = router.wait_many("their ends", 3, |line| line["outcome"] == "hello_timeout");
    for account in accounts {
        let duration = account["duration_ms"].as_f64().unwrap();
        assert!((400.0..10_000.0).contains(&duration), "{account}");
    }
}

#[test]
fn e09_rules_and_limits_are_about_the_client_that_is_named() {
    let backend = Backend::echo();
    let text = format!(
        "listen: [{{address: \"127.0.0.1:0\", deny: 203.0.113.0/24, accept_proxy: {{from: 127.0.0.2}}}}]\nadmin: 127.0.0.1:0\nlimits: {{per_source: 2}}\nroutes:\n  - {{sni: {NAME}, allow: [192.0.2.0/24, \"2001:db8::/32\"], upstream: \"{}\"}}\n",
        backend.address()
    );
    let router = Router::start(&text);
    let hello = Hello::to(NAME).record();
    let connect = |source: &str| {
        let (family, destination) = if source.contains(':') { ("TCP6", "::1") } else { ("TCP4", "198.51.100.1") };
        let header = format!("PROXY {family} {source} {destination} 1 6443\r\n");
        let mut client = client_from(BALANCER, router.address());
        client.write(&[header.as_bytes(), &hello].concat());
        let first = client.read(7);
        (client, first)
    };
    assert_eq!(connect("203.0.113.9").1, alert(49), "at the listener");
    assert_eq!(connect("198.51.100.7").1, alert(49), "for the route");
    assert_eq!(connect("::ffff:198.51.100.7").1, alert(49));
    let held = [connect("192.0.2.1"), connect("::ffff:192.0.2.1")];
    assert!(held.iter().all(|(_, first)| *first == hello[..7]));
    assert_eq!(connect("192.0.2.1").1, alert(80), "it has two");
    assert_eq!(connect("192.0.2.2").1, hello[..7], "another has none");
    assert_eq!(connect("2001:db8::7").1, hello[..7]);
}

/// An endpoint that hands over all that it receives.
fn recorder() -> (Backend, std::sync::mpsc::Receiver<Vec<u8>>) {
    let (sender, receiver) = channel();
    let backend = Backend::start(move |mut stream| {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let _ = stream.write_all(b"served");
        let _ = sender.send(bytes);
    });
    (backend, receiver)
}

#[test]
fn e08_an_endpoint_is_told_once_who_the_client_is() {
    let (backend, received) = recorder();
    let text = |version: &str| {
        format!(
            "listen: \"[::]:0\"\nroutes:\n  - sni: {NAME}\n    upstream: {{endpoints: [\"{}\", \"{}\"], balance: round_robin, proxy_protocol: {version}}}\n",
            closed(),
            backend.address()
        )
    };
    for version in ["v1", "v2"] {
        let router = Router::start(&text(version));
        let to = SocketAddr::new("127.0.0.1".parse().unwrap(), router.address().port());
        let hello = Hello::to(NAME).alpn(&["h2", "http/1.1"]).record();
        // Every other one is refused by the first endpoint.
        for from in ["127.0.0.2", "127.0.0.3", "127.0.0.4"] {
            let mut client = client_from(from, to);
            client.write(&hello);
            client.finish();
            assert_eq!(client.rest(), served());
            let source: IpAddr = from.parse().unwrap();
            let expected = if version == "v1" {
                format!("PROXY TCP4 {source} 127.0.0.1 {} {}\r\n", client.address().port(), to.port()).into_bytes()
            } else {
                let ports = [client.address().port().to_be_bytes(), to.port().to_be_bytes()].concat();
                let IpAddr::V4(source) = source else { unreachable!() };
                let content = [&source.octets()[..], &[127, 0, 0, 1], &ports, b"\x02\0\x09a.example"].concat();
                signature(0x21, 0x11, &[&content[..], b"\x01\0\x0e\0\x0c\x02h2\x08http/1.1"].concat())
            };
            assert_eq!(
                received.recv_timeout(PATIENCE).unwrap(),
                [expected, hello.clone()].concat(),
                "then the hello, as it was"
            );
        }
    }
}

#[test]
fn e08_a_header_is_passed_on_and_checks_speak_for_themselves() {
    let (backend, received) = recorder();
    let text = format!(
        "listen: [{{address: \"127.0.0.1:0\", accept_proxy: {{from: 127.0.0.2}}}}]\nroutes:\n  - sni: {NAME}\n    upstream: {{endpoints: \"{}\", proxy_protocol: v1, health_check: {{interval: 100ms}}}}\n",
        backend.address()
    );
    let router = Router::start(&text);
    eventually("a check", || received.recv_timeout(PATIENCE).unwrap() == b"PROXY UNKNOWN\r\n");
    let hello = Hello::to(NAME).record();
    assert_eq!(ask(&router, BALANCER, &[HEADER.as_bytes(), &hello].concat()).0, served());
    eventually("the client", || received.recv_timeout(PATIENCE).unwrap() == [HEADER.as_bytes(), &hello].concat());
}

fn haproxy(directory: &TempDir, config: &str) -> std::process::Child {
    let path = directory.path().join("haproxy.cfg");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new("/usr/sbin/haproxy");
    command.arg("-db").arg("-f").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
#[ignore = "needs haproxy"]
fn haproxy_before_and_behind() {
    let backend = Backend::named("served");
    let (front, back) = (free(), free());
    let text = format!(
        "listen: [{{address: \"127.0.0.1:0\", accept_proxy: {{from: 127.0.0.1}}}}]\nroutes:\n  - {{sni: {NAME}, upstream: {{endpoints: \"{back}\", proxy_protocol: v2}}}}\n",
    );
    let router = Router::start(&text);
    let directory = TempDir::new().unwrap();
    // Only a client that is named as 127.0.0.9 gets through the one behind.
    let mut child = haproxy(
        &directory,
        &format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\nlisten front\n bind {front}\n server snigate {} send-proxy-v2 proxy-v2-options crc32c,unique-id\nlisten back\n bind {back} accept-proxy\n tcp-request session reject if !{{ src 127.0.0.9 }}\n tcp-request content reject if !{{ fc_pp_authority {NAME} }}\n server api {}\n",
            router.address(),
            backend.address()
        ),
    );
    eventually("haproxy listens", || std::net::TcpStream::connect(front).is_ok());
    let get = |from: &str| {
        let mut client = client_from(from, front);
        client.write(&Hello::to(NAME).record());
        client.finish_if_open();
        client.rest().0
    };
    assert_eq!(get("127.0.0.9"), b"served");
    assert_ne!(get("127.0.0.8"), b"served");
    let account = router.wait("who was served", |line| line["client.address"] == "127.0.0.9");
    assert_eq!(account["network.peer.address"], "127.0.0.1");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_list_of_balancers_that_is_wrong_is_refused() {
    for (value, expected) in [
        ("{from: 10.0.0.1/8}", "did you mean 10.0.0.0/8?"),
        ("{from: []}", "empty list"),
        ("{}", "missing key `from`"),
        ("{from: 10.0.0.1, to: 1}", "unknown"),
    ] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("snigate.yaml");
        let listen = format!("listen: [{{address: \"127.0.0.1:0\", accept_proxy: {value}}}]\nroutes:\n");
        std::fs::write(&path, format!("{listen}  - upstream: 127.0.0.1:1\n")).unwrap();
        let check = crate::support::snigate().arg("check").arg(path).output().unwrap();
        let told = String::from_utf8(check.stderr).unwrap();
        assert!(check.status.code() == Some(78) && told.contains(expected), "{told}");
    }
}

#[test]
fn e06_a_client_who_is_told_nothing_waits_for_nothing() {
    let router = behind_a_balancer(closed(), "");
    // Not listed: refused before it has said anything.
    let mut client: Client = client_from("127.0.0.3", router.address());
    assert_eq!(client.stream.read(&mut [0; 8]).unwrap(), 0);
}
