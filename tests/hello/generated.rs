//! The hellos of `tests/hellos` that no client sends.

use crate::support::Hello;
use crate::support::hello::{
    ALPN, EARLY_DATA, ENCRYPTED_CLIENT_HELLO, KEY_SHARE, PADDING, SERVER_NAME, SUPPORTED_VERSIONS, handshake, record,
    server_name_list, vector_u8, vector_u16,
};

const A: &str = "a.example";
const B: &str = "b.example";
/// Random values of GREASE (RFC 8701, section 2).
const GREASE: [u16; 3] = [0x3a3a, 0x8a8a, 0xcaca];
const X25519_MLKEM768: u16 = 0x11ec;

/// Each with its name in the list.
pub fn all() -> Vec<(&'static str, Vec<u8>)> {
    [well_formed(), names(), records(), large(), extensions(), several_names(), no_names(), lengths(), bad_records()]
        .into_iter()
        .chain([something_else(), incomplete()])
        .flatten()
        .collect()
}

fn to_a() -> Hello {
    Hello::to(A)
}

fn named(name: &[u8]) -> Vec<u8> {
    Hello::new().server_name(name).record()
}

fn well_formed() -> Vec<(&'static str, Vec<u8>)> {
    let with_version = |version: [u8; 2]| {
        let mut record = to_a().record();
        record[1..3].copy_from_slice(&version);
        record
    };
    let padding = vec![0; 12_000];
    let flight = [to_a().extension(EARLY_DATA, []).record(), record(23, &[0xed; 800])].concat();
    let old = Hello { legacy_version: 0x0301, extensions: None, ..Hello::new() }.server_name(A.as_bytes());
    vec![
        ("plain-b", Hello::to(B).record()),
        ("name-first", Hello::new().first_extension(SERVER_NAME, server_name_list(&[(0, A.as_bytes())])).record()),
        ("name-last-behind-12k", Hello::new().extension(PADDING, padding).server_name(A.as_bytes()).record()),
        ("tls10", old.record()),
        ("legacy-version-tls13", Hello { legacy_version: 0x0304, ..to_a() }.record()),
        ("no-session-id", Hello { session_id: vec![], ..to_a() }.record()),
        ("record-version-ssl3", with_version([3, 0])),
        ("record-version-tls12", with_version([3, 3])),
        ("record-version-unknown-minor", with_version([3, 0x7f])),
        ("record-version-unknown-major", with_version([5, 0])),
        ("early-data-flight", flight),
        ("change-cipher-spec-behind", [to_a().record(), record(20, &[1])].concat()),
        ("application-data-behind", [to_a().record(), record(23, &[0xda; 3000])].concat()),
    ]
}

fn names() -> Vec<(&'static str, Vec<u8>)> {
    let long = format!("{}a.example", "a.".repeat(122));
    vec![
        ("name-in-upper-case", named(b"A.EXAMPLE")),
        ("name-in-mixed-case", named(b"a.ExAmPlE")),
        ("name-with-trailing-dot", named(b"a.example.")),
        ("other-name", named(b"c.example")),
        ("other-name-longer", named(b"a.example.example")),
        ("other-name-below", named(b"b.a.example")),
        ("other-name-with-prefix", named(b"xa.example")),
        ("other-name-with-suffix", named(b"a.examples")),
        ("other-name-of-253-bytes", named(long.as_bytes())),
        ("other-name-in-punycode", named(b"xn--bcher-kva.example")),
        ("other-name-of-one-label", named(b"localhost")),
        ("empty-extension-block", Hello { extensions: Some(vec![]), ..Hello::new() }.record()),
        ("literal-ipv6", named(b"2001:db8::1")),
        ("literal-ipv6-in-brackets", named(b"[2001:db8::1]")),
        ("literal-number", named(b"2130706433")),
    ]
}

fn records() -> Vec<(&'static str, Vec<u8>)> {
    let message = to_a().message();
    let cut = |at: usize| [record(22, &message[..at]), record(22, &message[at..])].concat();
    let name = message.windows(A.len()).position(|window| window == A.as_bytes()).unwrap();
    let for_b = Hello::to(B);
    vec![
        ("records-of-one-byte", to_a().records(1)),
        ("record-ends-in-handshake-header", cut(2)),
        ("record-ends-behind-handshake-header", cut(4)),
        ("record-ends-in-name", cut(name + 4)),
        ("record-ends-before-last-byte", cut(message.len() - 1)),
        ("hello-for-a-then-for-b", [to_a().record(), for_b.record()].concat()),
        ("hello-for-a-and-for-b-in-a-record", record(22, &[&message[..], &for_b.message()].concat())),
    ]
}

/// A key share of X25519MLKEM768: ML-KEM's 1,184 bytes and X25519's 32.
fn post_quantum(group: u16, length: usize) -> Vec<u8> {
    [&group.to_be_bytes()[..], &vector_u16(&vec![0x9c; length])].concat()
}

fn with_key_shares(shares: &[Vec<u8>]) -> Hello {
    let mut hello = Hello::new();
    for (extension_type, content) in hello.extensions.as_mut().unwrap() {
        if *extension_type == KEY_SHARE {
            *content = vector_u16(&shares.concat());
        }
    }
    hello.server_name(A.as_bytes())
}

fn large() -> Vec<(&'static str, Vec<u8>)> {
    let many = |count: u16| (0..count).fold(Hello::new(), |hello, number| hello.extension(0x4000 + number, []));
    let in_records = |hello: Hello| hello.records(1 << 14);
    let suites: Vec<u8> = (0..2000_u16).flat_map(|number| (0x4000 + number).to_be_bytes()).collect();
    let two = [post_quantum(X25519_MLKEM768, 1216), post_quantum(0x0202, 1568), post_quantum(0x001d, 32)];
    let to_a_behind = |hello: Hello| hello.server_name(A.as_bytes());
    vec![
        ("padded-to-517", to_a().padded_to(517).record()),
        (
            "post-quantum-1500",
            with_key_shares(&[post_quantum(X25519_MLKEM768, 1216), two[2].clone()]).padded_to(1600).record(),
        ),
        ("post-quantum-two-shares", with_key_shares(&two).record()),
        ("hello-of-15k", to_a().padded_to(15_000).record()),
        ("hello-of-16k", to_a().padded_to(16_384).record()),
        ("hello-of-64k", in_records(to_a().extension(PADDING, vec![0; 65_000]))),
        ("hello-of-64k-name-last", in_records(to_a_behind(Hello::new().extension(PADDING, vec![0; 65_000])))),
        ("extensions-1000", to_a_behind(many(1000)).record()),
        ("extensions-3900", to_a_behind(many(3900)).record()),
        ("extensions-16000", in_records(to_a_behind(many(16_000)))),
        ("cipher-suites-2000", Hello { cipher_suites: suites, ..to_a() }.record()),
    ]
}

fn extensions() -> Vec<(&'static str, Vec<u8>)> {
    let [first, second, third] = GREASE;
    let malformed = |changed: u16| {
        let mut hello = to_a();
        for (extension_type, content) in hello.extensions.as_mut().unwrap() {
            if *extension_type == changed {
                *content = vec![0xff; 9];
            }
        }
        hello.record()
    };
    let mut grease = to_a().first_extension(first, []).extension(second, [0]);
    grease.cipher_suites.splice(0..0, third.to_be_bytes());
    for (extension_type, content) in grease.extensions.as_mut().unwrap() {
        if *extension_type == SUPPORTED_VERSIONS {
            *content = vector_u8(&[&first.to_be_bytes()[..], &[3, 4, 3, 3]].concat());
        }
    }
    // The outer form: a cipher suite, an identifier, an encapsulated key and a payload.
    let ech = [&[0, 0, 1, 0, 1, 0x2a][..], &vector_u16(&[0xec; 32]), &vector_u16(&[0x0e; 1_200])].concat();
    vec![
        ("grease-everywhere", grease.record()),
        (
            "unknown-extensions-around",
            to_a().first_extension(0x7001, vec![1; 40]).extension(0x7002, vec![2; 40]).record(),
        ),
        ("ech-outer-and-large", to_a().extension(ENCRYPTED_CLIENT_HELLO, ech).record()),
        ("alpn-malformed", to_a().extension(ALPN, [0, 9, 2, b'h']).record()),
        ("key-share-malformed", malformed(KEY_SHARE)),
        ("supported-versions-malformed", malformed(SUPPORTED_VERSIONS)),
    ]
}

/// A hello whose `server_name` extension has this content.
fn with_list(content: Vec<u8>) -> Vec<u8> {
    Hello::new().extension(SERVER_NAME, content).record()
}

fn several_names() -> Vec<(&'static str, Vec<u8>)> {
    let (a, b) = (A.as_bytes(), B.as_bytes());
    let apart = Hello::new().first_extension(SERVER_NAME, server_name_list(&[(0, a)])).server_name(b);
    vec![
        ("two-names-a-then-b", with_list(server_name_list(&[(0, a), (0, b)]))),
        ("two-names-b-then-a", with_list(server_name_list(&[(0, b), (0, a)]))),
        ("two-server-name-extensions-apart", apart.record()),
        ("two-server-name-extensions-the-same", to_a().server_name(a).record()),
        ("two-alpn-extensions", to_a().alpn(&["h2"]).alpn(&["http/1.1"]).record()),
        ("two-unknown-extensions", to_a().extension(0x7001, []).extension(0x7001, []).record()),
        ("name-of-another-type", with_list(server_name_list(&[(1, a)]))),
        ("name-of-another-type-first", with_list(server_name_list(&[(1, b), (0, a)]))),
    ]
}

fn no_names() -> Vec<(&'static str, Vec<u8>)> {
    let long_label = format!("{}.example", "a".repeat(64));
    let long = |length: usize| "a.".repeat(length / 2);
    vec![
        ("nul-in-name", named(b"a.example\0.c.example")),
        ("nul-behind-name", named(b"a.example\0")),
        ("nul-before-name", named(b"\0a.example")),
        ("empty-name", named(b"")),
        ("empty-name-list", with_list(server_name_list(&[]))),
        ("empty-server-name-extension", with_list(vec![])),
        ("only-a-dot", named(b".")),
        ("two-trailing-dots", named(b"a.example..")),
        ("leading-dot", named(b".a.example")),
        ("empty-label", named(b"a..example")),
        ("leading-space", named(b" a.example")),
        ("trailing-newline", named(b"a.example\n")),
        ("carriage-return-and-line-feed", named(b"a.example\r\nx: y")),
        ("port-behind-name", named(b"a.example:443")),
        ("slash-behind-name", named(b"a.example/")),
        ("wildcard-as-name", named(b"*.example")),
        ("percent-in-name", named(b"a%2eexample")),
        ("utf8-in-name", named("ä.example".as_bytes())),
        ("byte-255-in-name", named(b"a.example\xff")),
        ("label-of-64-bytes", named(long_label.as_bytes())),
        ("name-of-300-bytes", named(long(300).as_bytes())),
        ("name-of-10000-bytes", named(long(10_000).as_bytes())),
    ]
}

/// The plain message with a field of two bytes changed, `back` bytes before the end.
fn changed(back: usize, by: i32) -> Vec<u8> {
    let mut message = to_a().message();
    let at = message.len() - back;
    let old = u16::from_be_bytes([message[at], message[at + 1]]);
    let new = u16::try_from(i32::from(old) + by).unwrap();
    message[at..at + 2].copy_from_slice(&new.to_be_bytes());
    record(22, &message)
}

fn lengths() -> Vec<(&'static str, Vec<u8>)> {
    let message = to_a().message();
    let body = &message[4..];
    let (name, list, extension) = (A.len() + 2, A.len() + 5, A.len() + 7);
    let block = to_a().extensions.unwrap().iter().map(|(_, content)| 4 + content.len()).sum::<usize>() + 2;
    // The name's extension says that it goes on over the one behind it, which has a name of its own in it.
    let over =
        Hello::new().extension(SERVER_NAME, server_name_list(&[(0, A.as_bytes())])).extension(0x7001, B.as_bytes());
    let mut over = over.message();
    let at = over.len() - B.len() - 4 - extension;
    over[at + 1] += 4 + u8::try_from(B.len()).unwrap();
    let suites = |bytes: &[u8]| Hello { cipher_suites: bytes.to_vec(), ..to_a() }.record();
    let session_id = |bytes: usize| Hello { session_id: vec![7; bytes], ..to_a() };
    let mut long_session_id = message.clone();
    long_session_id[4 + 2 + 32] = 0xff;
    vec![
        ("list-shorter-than-extension", changed(list, -1)),
        ("list-longer-than-extension", changed(list, 1)),
        ("name-longer-than-list", changed(name, 1)),
        ("name-shorter-than-list", changed(name, -1)),
        ("name-extension-longer-than-block", changed(extension, 1)),
        ("name-extension-over-the-next", record(22, &over)),
        ("block-shorter-than-extensions", changed(block, -1)),
        ("block-longer-than-message", changed(block, 1)),
        ("bytes-behind-extensions", record(22, &handshake(1, &[body, b"behind"].concat()))),
        ("message-shorter-than-block", record(22, &handshake(1, &body[..body.len() - 1]))),
        ("session-id-of-33-bytes", session_id(33).record()),
        ("session-id-longer-than-message", record(22, &long_session_id)),
        ("half-a-cipher-suite", suites(&[0x13, 0x01, 0x13])),
        ("no-cipher-suite", suites(&[])),
        ("no-compression-method", Hello { compression_methods: vec![], ..to_a() }.record()),
        (
            "one-byte-behind-compression",
            record(22, &handshake(1, &[&Hello::new().without_extensions().message()[4..], &[0]].concat())),
        ),
        ("hello-of-nothing", record(22, &handshake(1, &[]))),
        ("hello-of-16m", record(22, &[&[1, 0xff, 0xff, 0xff], body].concat())),
    ]
}

fn bad_records() -> Vec<(&'static str, Vec<u8>)> {
    let (hello, message) = (to_a().record(), to_a().message());
    let between = |content_type: u8, payload: &[u8]| {
        [record(22, &message[..50]), record(content_type, payload), record(22, &message[50..])].concat()
    };
    let before = |content_type: u8, payload: &[u8]| [record(content_type, payload), hello.clone()].concat();
    let padded = |length: usize| to_a().padded_to(5 + length).record();
    vec![
        ("empty-record-before", before(22, &[])),
        ("empty-record-between", between(22, &[])),
        ("record-of-2-14-and-one", padded((1 << 14) + 1)),
        ("record-of-2-16", padded((1 << 16) - 1)),
        ("alert-between-records", between(21, &[1, 0])),
        ("application-data-between-records", between(23, &[0xda; 20])),
        ("alert-before", before(21, &[1, 0])),
        ("change-cipher-spec-before", before(20, &[1])),
        ("application-data-before", before(23, &[0xda; 20])),
        ("server-hello-first", record(22, &handshake(2, &message[4..]))),
        ("finished-first-then-hello", before(22, &handshake(20, &[0xf1; 12]))),
    ]
}

fn something_else() -> Vec<(&'static str, Vec<u8>)> {
    let hello = to_a().record();
    // Version 3.3, one cipher suite of three bytes, no session, a challenge of 16 bytes (RFC 5246, appendix E.2).
    let sslv2 = [&[1, 3, 3, 0, 3, 0, 0, 0, 16, 0, 0, 0x2f][..], &[0xc4; 16]].concat();
    let v1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 1111 443\r\n";
    let v2 = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", &[192, 0, 2, 1, 192, 0, 2, 2, 4, 87, 1, 187][..]].concat();
    vec![
        ("http-with-host", b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec()),
        ("ssh", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
        ("smtp", b"EHLO a.example\r\n".to_vec()),
        ("postgres", vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]),
        ("nul-bytes", vec![0; 600]),
        ("sslv2-hello", [&[0x80, u8::try_from(sslv2.len()).unwrap()], &sslv2[..]].concat()),
        ("proxy-header-v1-before", [&v1[..], &hello].concat()),
        ("proxy-header-v2-before", [&v2[..], &hello].concat()),
    ]
}

fn incomplete() -> Vec<(&'static str, Vec<u8>)> {
    let (record, records) = (to_a().record(), to_a().records(100));
    // The name is whole, and an extension behind it is not.
    let mut behind = to_a().extension(PADDING, [0; 200]).record();
    behind.truncate(behind.len() - 100);
    vec![
        ("incomplete-last-byte", record[..record.len() - 1].to_vec()),
        ("incomplete-last-record", records[..105].to_vec()),
        ("incomplete-behind-name", behind),
    ]
}
