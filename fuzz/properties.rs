//! What holds for any input, one function per fuzz target. The fuzzers look for an input that breaks it; `cargo test`
//! replays the seeds.

use rustls::pki_types::DnsName;
use rustls::server::{Accepted, Acceptor};
use snigate::client_hello::{ClientHello, DEFAULT_LIMIT, Extension, Framing, Ja4, Parsed, Progress};
use snigate::internals::{self, Version};
use snigate::name::{NamePattern, ServerName};
use tls_parser::{TlsMessage, TlsMessageHandshake};

/// RFC 8446, section 5.1.
const MAX_RECORD_LENGTH: usize = 1 << 14;
/// Room for one record header per byte of a hello.
const LIMIT_OF_SINGLE_BYTES: usize = 6 * DEFAULT_LIMIT;

/// However the bytes arrive, the answer is the same, and it is given at the same byte.
pub fn client_hello(received: &[u8]) {
    let at_once = describe(&Framing::default().parse(received));

    let mut framing = Framing::default();
    let decided_at =
        (0..=received.len()).find(|length| !matches!(framing.parse(&received[..*length]), Parsed::Incomplete));
    let Some(decided_at) = decided_at else {
        assert_eq!(at_once, "Incomplete");
        return;
    };
    assert_eq!(at_once, describe(&framing.parse(&received[..decided_at])), "byte by byte");
    assert_eq!(at_once, describe(&framing.parse(received)), "asked again, with what follows");
    if let Parsed::Complete(hello) = framing.parse(received) {
        let ja4 = hello.ja4();
        assert_eq!(ja4.to_string().parse(), Ok(ja4));
    }
    if let Some(length) = framing.length() {
        assert!(length <= decided_at, "not before its last byte");
        assert!(decided_at - length < MAX_RECORD_LENGTH, "nor later than its record");
    }

    // Every strict prefix is incomplete to a parser that has seen nothing before, too.
    let step = (decided_at / 64).max(1);
    for length in (0..decided_at).step_by(step) {
        assert!(matches!(Framing::default().parse(&received[..length]), Parsed::Incomplete));
    }

    // Two segments, cut where the input says.
    let cut = usize::from(*received.last().unwrap_or(&0)) * decided_at / 255;
    let mut framing = Framing::default();
    let _ = framing.advance(&received[..cut]);
    assert_eq!(at_once, describe(&framing.parse(received)), "cut at {cut}");
}

/// A hello says the same however it is cut into records.
pub fn records(received: &[u8]) {
    let mut framing = Framing::default();
    let Ok(Progress::Complete) = framing.advance(received) else { return };
    let message = framing.message(received).to_vec();
    let mut once = Framing::default();
    let once = once.parse(received);
    let expected = describe(&once);

    // The sizes of the records are taken from the input itself.
    let mut records = Vec::new();
    let mut rest = &message[..];
    for size in received.iter().rev().cycle() {
        let (fragment, more) = rest.split_at(usize::from(*size).max(1).min(rest.len()));
        records.extend([22, 3, 1]);
        records.extend(u16::try_from(fragment.len()).unwrap().to_be_bytes());
        records.extend(fragment);
        rest = more;
        if rest.is_empty() {
            break;
        }
    }
    let mut recut = Framing::new(LIMIT_OF_SINGLE_BYTES);
    let again = recut.parse(&records);
    assert_eq!(describe(&again), expected);
    assert_eq!(fingerprint(&again), fingerprint(&once));
    assert_eq!(recut.message(&records), message);
    assert_eq!(recut.length(), Some(records.len()));
}

fn describe(parsed: &Parsed<'_>) -> String {
    format!("{parsed:?}")
}

fn fingerprint(parsed: &Parsed<'_>) -> Option<Ja4> {
    match parsed {
        Parsed::Complete(hello) => Some(hello.ja4()),
        Parsed::Incomplete | Parsed::Invalid(_) => None,
    }
}

/// We never see another name than rustls does, nor one where it sees none; and all of us list the same.
pub fn differential(received: &[u8]) {
    let received = &received[..received.len().min(DEFAULT_LIMIT)];
    let mut framing = Framing::default();
    if let Ok(Progress::Complete) = framing.advance(received)
        && let Ok(ours) = ClientHello::parse(framing.message(received))
    {
        lists(&ours, framing.message(received));
    }
    let Parsed::Complete(ours) = framing.parse(received) else { return };
    let Some(accepted) = accepted(received) else { return };
    let theirs = accepted.client_hello();
    assert!(ours.cipher_suites.into_iter().eq(theirs.cipher_suites().iter().map(|suite| u16::from(*suite))));
    if let Some(theirs) = theirs.alpn() {
        assert!(ours.alpn.unwrap().into_iter().eq(theirs));
    }
    match (ours.server_name, theirs.server_name()) {
        (Some(ours), Some(theirs)) => {
            assert!(ours.as_str().eq_ignore_ascii_case(theirs.trim_end_matches('.')), "{ours} is not {theirs}");
        }
        (Some(ours), None) => panic!("rustls sees no name where we see {ours}"),
        // We refuse more names than rustls does, but never take a hello with one for a hello without.
        (None, Some(theirs)) => panic!("rustls sees {theirs} where we see no name"),
        (None, None) => {}
    }
}

/// What tls-parser lists is what we do, and all extensions together are the block that they stand in.
fn lists(ours: &ClientHello<'_>, message: &[u8]) {
    let Ok((_, TlsMessage::Handshake(TlsMessageHandshake::ClientHello(theirs)))) =
        tls_parser::parse_tls_message_handshake(message)
    else {
        return;
    };
    assert!(ours.cipher_suites.into_iter().eq(theirs.ciphers.iter().map(|suite| suite.0)));
    let block: Vec<u8> = ours
        .extensions
        .into_iter()
        .flat_map(|Extension { extension_type, content }| {
            let length = u16::try_from(content.len()).unwrap();
            [&extension_type.to_be_bytes()[..], &length.to_be_bytes(), content].concat()
        })
        .collect();
    assert_eq!(block, theirs.ext.unwrap_or_default());
}

/// What rustls says of the hello; `None` if it refuses it.
fn accepted(mut received: &[u8]) -> Option<Accepted> {
    let mut acceptor = Acceptor::default();
    loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => return Some(accepted),
            Ok(None) if received.is_empty() => return None,
            Ok(None) => {
                acceptor.read_tls(&mut received).ok()?;
            }
            Err(_) => return None,
        }
    }
}

/// A name that passes is one to everybody, and means the same in a hello and in a configuration.
pub fn name(bytes: &[u8]) {
    let Ok(name) = ServerName::parse(bytes) else { return };
    let folded = name.to_string();
    assert_eq!(ServerName::parse(folded.as_bytes()).unwrap(), name);
    assert!(DnsName::try_from(folded.as_str()).is_ok(), "{folded} is no name to rustls");
    assert!(folded.parse::<std::net::IpAddr>().is_err());

    let exact = NamePattern::parse(&folded).unwrap();
    assert!(exact.matches(&name) && exact.to_string() == folded);
    if let Some((_, parent)) = folded.split_once('.') {
        let wildcard = NamePattern::parse(&format!("*.{parent}")).unwrap();
        assert!(wildcard.matches(&name));
        assert!(!wildcard.matches(&ServerName::parse(parent.as_bytes()).unwrap()), "the apex");
    }
}

/// A PROXY header is complete at its last byte and not before, whatever follows it, its addresses and TLVs can be encoded
/// again, and an independent reader finds the same.
pub fn proxy_header(received: &[u8]) {
    let Ok(Some(header)) = internals::parse(received) else { return };
    assert!(header.length <= received.len().min(internals::MAX_LENGTH));
    assert_eq!(internals::parse(&received[..header.length]), Ok(Some(header)));
    for length in 0..header.length {
        assert_eq!(internals::parse(&received[..length]), Ok(None), "{length}");
    }
    let tlvs: Vec<(u8, &[u8])> = header.tlvs.iter().collect();
    for version in [Version::V1, Version::V2] {
        let client =
            header.addresses.map(|addresses| internals::ProxiedClient { addresses, server_name: None, alpn: None });
        // A checksum is that of another header.
        let kept = || tlvs.iter().copied().filter(|(number, _)| *number != 3);
        let written = match &client {
            Some(client) => internals::header(version, client, kept()).unwrap(),
            None => internals::local_header(version),
        };
        let again = internals::parse(&written).unwrap().unwrap();
        assert_eq!((again.addresses, again.length), (header.addresses, written.len()));
        if version == Version::V2 && client.is_some() {
            assert_eq!(again.tlvs.iter().collect::<Vec<_>>(), kept().collect::<Vec<_>>());
        }
    }
    other_reader(&received[..header.length], header.addresses, &tlvs);
}

/// Version 2 as the crate `ppp` reads it, which also accepts what we reject.
fn other_reader(header: &[u8], addresses: Option<internals::ProxiedAddresses>, tlvs: &[(u8, &[u8])]) {
    use ppp::v2::{Addresses, Command, Header, Protocol};

    if header.starts_with(b"PROXY") {
        return;
    }
    // A header without a client may have anything in place of addresses.
    let Ok(other) = Header::try_from(header) else {
        assert_eq!(header[12], 0x20, "only we accept it");
        return;
    };
    if other.command == Command::Local {
        assert!(addresses.is_none() && tlvs.is_empty());
        return;
    }
    let expected = match other.addresses {
        Addresses::IPv4(of) => {
            Some(((of.source_address, of.source_port).into(), (of.destination_address, of.destination_port).into()))
        }
        Addresses::IPv6(of) => {
            Some(((of.source_address, of.source_port).into(), (of.destination_address, of.destination_port).into()))
        }
        Addresses::Unspecified | Addresses::Unix(_) => None,
    };
    let expected = expected.filter(|_| other.protocol == Protocol::Stream);
    assert_eq!(addresses.map(|addresses| (addresses.source, addresses.destination)), expected);
    if !matches!(other.addresses, Addresses::IPv4(_) | Addresses::IPv6(_)) {
        // It takes TLVs after other addresses for a part of these.
        return;
    }
    let others: Vec<_> = other.tlvs().map(|tlv| tlv.unwrap()).map(|tlv| (tlv.kind, tlv.value.into_owned())).collect();
    assert_eq!(others.iter().map(|(number, value)| (*number, &**value)).collect::<Vec<_>>(), tlvs);
}

/// Any file is read or refused, and an error names what is wrong.
pub fn config(file: &[u8]) {
    match internals::config(file) {
        Ok((listeners, routes)) => assert!(listeners > 0 && routes > 0),
        Err(error) => assert!(!error.is_empty()),
    }
}
