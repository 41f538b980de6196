//! Routes by more than the name: TLVs, the destination and the client's address.

use std::io::Read;
use std::net::SocketAddr;

use crate::support::client::{End, client_from};
use crate::support::{Backend, Client, Hello, PATIENCE, Router, snigate};

const NAME: &str = "kubernetes.default.svc";
/// May send PROXY headers.
const BALANCER: &str = "127.0.0.2";
const NOT_FOUND: &[u8] = b"\x15\x03\x03\0\x02\x02\x70";

fn header(tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    with_command(0x21, [10, 9, 0, 1], tlvs)
}

/// From 192.0.2.7 to this address.
fn with_command(command: u8, destination: [u8; 4], tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let encode = |(number, value): &(u8, &[u8])| {
        [&[*number][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
    };
    let tlvs: Vec<u8> = tlvs.iter().flat_map(encode).collect();
    let content = [&[192, 0, 2, 7][..], &destination, &[0x12, 0x67, 0x19, 0x2b], &tlvs].concat();
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, 0x11], &length, &content].concat()
}

fn ask(router: &Router, from: &str, bytes: &[&[u8]]) -> (Vec<u8>, SocketAddr) {
    let mut client = client_from(from, router.address());
    client.write(&bytes.concat());
    client.finish_if_open();
    (client.rest().0, client.address())
}

/// Two clusters by TLV, one by destination, one by the client's network, and one for all others.
fn router(others: &str) -> Router {
    let upstream = |name| Backend::named(name).address();
    Router::start(&format!(
        "listen: [{{address: \"127.0.0.1:0\", accept_proxy: {{from: {BALANCER}, others: {others}}}}}]
admin: 127.0.0.1:0
log: {{refusals_per_second: 0}}
routes:
  - {{name: one, sni: {NAME}, proxy_tlv: {{0x20: one}}, upstream: \"{}\"}}
  - {{name: two, sni: {NAME}, proxy_tlv: {{0x20: \"0x74776f\"}}, upstream: \"{}\"}}
  - {{name: both, sni: {NAME}, proxy_tlv: {{0x20: one, 0xe0: eu}}, upstream: \"{}\"}}
  - {{name: three, destination: [10.9.0.0/16, \"2001:db8::/32\"], upstream: \"{}\"}}
  - {{name: four, client: 127.0.0.0/8, upstream: \"{}\"}}
",
        upstream("one"),
        upstream("two"),
        upstream("both"),
        upstream("three"),
        upstream("four"),
    ))
}

#[test]
fn e17_clients_with_the_same_name_or_none_reach_their_own_cluster() {
    let router = router("direct");
    let (named, unnamed) = (Hello::to(NAME).record(), Hello::new().record());
    for (tlvs, expected) in [
        (&[(0x20, &b"one"[..])][..], &b"one"[..]),
        (&[(0x20, b"two")], b"two"),
        (&[(0xe0, b"eu"), (0x20, b"one")], b"both"),
        (&[(0xe0, b"eu"), (0x20, b"two")], b"two"),
        (&[(0x20, b"three")], b"three"),
        (&[(0x20, b"")], b"three"),
        (&[], b"three"),
    ] {
        assert_eq!(ask(&router, BALANCER, &[&header(tlvs), &named]).0, expected, "{tlvs:?}");
    }
    assert_eq!(ask(&router, BALANCER, &[&header(&[(0x20, b"one")]), &unnamed]).0, b"three", "by its destination");
    let elsewhere = with_command(0x21, [10, 8, 0, 1], &[]);
    assert_eq!(ask(&router, BALANCER, &[&elsewhere, &unnamed]).0, NOT_FOUND);
    router.wait("why", |line| line["reason"] == "the client sent no SNI, and no catch-all route matches it");
    let (answer, _) = ask(&router, BALANCER, &[&elsewhere, &named]);
    assert_eq!(answer, NOT_FOUND);
    router.wait("why", |line| line["reason"] == "no other matcher of the routes with this name matches the client");
    assert_eq!(ask(&router, "127.0.0.3", &[&unnamed]).0, b"four", "by its own address");
}

#[test]
fn e17_the_address_that_a_client_connects_to_chooses_its_cluster() {
    let upstream = |name| Backend::named(name).address();
    let router = Router::start(&format!(
        "listen: 0.0.0.0:0
routes:
  - {{name: one, destination: 127.0.1.1, upstream: \"{}\"}}
  - {{name: two, destination: 127.0.1.2, upstream: \"{}\"}}
",
        upstream("one"),
        upstream("two")
    ));
    let port = router.address().port();
    for (address, expected) in [("127.0.1.1", &b"one"[..]), ("127.0.1.2", b"two"), ("127.0.1.3", NOT_FOUND)] {
        let mut client = Client::send(format!("{address}:{port}").parse().unwrap(), &Hello::new().record());
        client.finish_if_open();
        assert_eq!(client.rest().0, expected, "{address}");
    }
}

#[test]
fn e18_tlvs_twice_empty_long_and_of_local_headers() {
    let router = router("direct");
    let hello = Hello::to(NAME).record();
    let long = vec![b'x'; 65_535 - 12 - 3 - 6];
    for (bytes, expected) in [
        (header(&[(0x20, b""), (0x20, b"zero"), (0x20, b"two"), (0x20, b"one")]), &b"two"[..]),
        (header(&[(0xee, &long), (0x20, b"one")]), b"one"),
        // The balancer's own connection: what follows the address is ignored.
        (with_command(0x20, [10, 9, 0, 1], &[(0x20, b"one")]), b"four"),
    ] {
        assert_eq!(ask(&router, BALANCER, &[&bytes, &hello]).0, expected);
    }
    // One whose value is longer than the header.
    let mut cut = header(&[(0x20, b"one")]);
    let at = cut.len() - 4;
    cut[at] = 9;
    let (answer, client) = ask(&router, BALANCER, &[&cut, &hello]);
    assert_eq!((answer, &router.account_of(client)["reason"]), (Vec::new(), &"malformed PROXY header".into()));
}

#[test]
fn e18_only_tlvs_that_the_route_names_are_passed_on() {
    let (sent, received) = std::sync::mpsc::channel();
    let backend = Backend::start(move |mut stream| {
        let mut start = [0; 16];
        stream.read_exact(&mut start).unwrap();
        let mut rest = vec![0; usize::from(u16::from_be_bytes([start[14], start[15]]))];
        stream.read_exact(&mut rest).unwrap();
        sent.send(rest).unwrap();
    });
    let router = Router::start(&format!(
        "listen: [{{address: \"127.0.0.1:0\", accept_proxy: {{from: {BALANCER}}}}}]
routes:
  - upstream:
      endpoints: \"{}\"
      proxy_protocol: {{version: v2, tlvs: {{0xe0: kubernetes01, 0xe1: \"0x00ff\"}}, pass: [0x20, 0xee]}}
",
        backend.address()
    ));
    let long = vec![b'x'; 60_000];
    let own = header(&[(0x20, b"one"), (0x05, b"id"), (0xe0, b"forged"), (0xee, &long), (0x20, b"")]);
    let mut client = client_from(BALANCER, router.address());
    client.write(&[own, Hello::to("a.example").record()].concat());
    let passed = received.recv_timeout(PATIENCE).unwrap();
    let mut expected = header(&[
        (0x02, b"a.example"),
        (0xe0, b"kubernetes01"),
        (0xe1, b"\x00\xff"),
        (0x20, b"one"),
        (0xee, &long),
        (0x20, b""),
    ]);
    expected.drain(..16);
    assert_eq!(passed.len(), expected.len());
    assert!(passed == expected, "the address, SNI, own TLVs, and those that are passed on");

    let too_long = vec![b'x'; 65_535 - 12 - 3];
    let mut client = client_from(BALANCER, router.address());
    client.write(&[header(&[(0xee, &too_long)]), Hello::to("a.example").record()].concat());
    assert_eq!(client.rest(), (b"\x15\x03\x03\0\x02\x02\x50".to_vec(), End::Fin));
    let log = router.wait("the rejection", |line| line["outcome"] == "over_limit");
    assert!(log["reason"].as_str().unwrap().contains("too many TLVs"), "{log}");
}

#[test]
fn e19_others_connect_directly_but_cannot_send_a_header() {
    let hello = Hello::new().record();
    let forged = header(&[(0x20, b"one")]);
    let router = router("direct");
    assert_eq!(ask(&router, "127.0.0.3", &[&hello]).0, b"four");
    let (answer, client) = ask(&router, "127.0.0.3", &[&forged, &hello]);
    assert_eq!((answer, &router.account_of(client)["outcome"]), (Vec::new(), &"not_tls".into()));
    let check = snigate().arg("check").arg(&router.config).output().unwrap();
    let told = String::from_utf8(check.stdout).unwrap();
    assert!(told.contains("PROXY header required from 127.0.0.2; others connect directly"), "{told}");
    assert!(told.contains("matches    kubernetes.default.svc; PROXY TLV 0x20=two\n"), "{told}");
    assert!(told.contains("; destination 10.9.0.0/16, 2001:db8::/32\n"), "{told}");
}

#[test]
fn e17_explain_says_which_matcher_decides_and_what_is_required() {
    let router = router("direct");
    let explain = |arguments: &[&str]| {
        let told = snigate().args(["explain", "-c"]).arg(&router.config).args(arguments).output().unwrap();
        String::from_utf8(told.stdout).unwrap()
    };
    let told = explain(&["--sni", NAME, "--tlv", "0x20=one", "--tlv", "0xE0=eu"]);
    assert!(told.contains("route      both\n") && told.contains("reason     exact name, PROXY TLV matches"), "{told}");
    let told = explain(&["--sni", NAME, "--tlv", "0x20=three"]);
    assert!(told.contains("none: the client is refused"), "{told}");
    assert!(told.contains("route one matches the name but requires PROXY TLV 0x20=one"), "{told}");
    let told = explain(&["--no-sni", "--destination", "10.9.3.1"]);
    assert!(told.contains("route      three\n") && told.contains("catch-all route, destination matches"), "{told}");
    let told = explain(&["--no-sni", "--client", "192.0.2.1"]);
    assert!(told.contains("route four is a catch-all but requires client 127.0.0.0/8"), "{told}");
}
