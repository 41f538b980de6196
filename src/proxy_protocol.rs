//! PROXY headers: by which a balancer in front of us names the client, and by which we name it to an API server.
//!
//! Versions 1 and 2 of <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>; the sections named here are its.

use std::net::SocketAddr;

use crc::{CRC_32_ISCSI, Crc, Digest};
use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader, Tlv};

use crate::name::ServerName;

/// The longest header of version 1, its CRLF included (section 2.1).
const MAX_TEXT: usize = 107;
/// The longest header of version 2 that is taken. Addresses and what balancers add to them have some hundred bytes.
const MAX_BINARY: usize = 4096;
/// No header is longer.
pub const MAX_LENGTH: usize = MAX_BINARY;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// With the signature, version and command, family, and length.
const BINARY_START: usize = 16;

/// How a header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// As a line of text.
    V1,
    /// In binary, with the name that the client asks for and the protocols that it offers.
    V2,
}

impl Version {
    /// As it is configured.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// Both ends of a connection that somebody else has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The client.
    pub source: SocketAddr,
    /// Where it has connected to.
    pub destination: SocketAddr,
}

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// `None`: the balancer speaks for itself (a health check), or of a connection that is none of TCP.
    pub named: Option<Named>,
    /// In bytes.
    pub length: usize,
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// They begin like none.
    #[error("no PROXY header, which this listener requires (accept_proxy)")]
    Missing,
    /// Longer than is taken.
    #[error("the PROXY header is longer than {MAX_TEXT} bytes of text, or {MAX_BINARY} of binary")]
    TooLong,
    /// Not of the form that the specification gives.
    #[error("the PROXY header is malformed")]
    Malformed,
    /// Its checksum is another.
    #[error("the PROXY header has a wrong checksum")]
    Checksum,
}

const TEXT: &[u8] = b"PROXY ";

/// Whether this is the beginning of a header, and not only its first byte.
#[must_use]
pub(crate) fn begins(received: &[u8]) -> bool {
    received.starts_with(TEXT) || received.starts_with(SIGNATURE)
}

/// Reads the header that these bytes begin with; `None`: more are needed.
pub fn parse(received: &[u8]) -> Result<Option<Header>, Invalid> {
    let begins_like = |start: &[u8]| received.iter().zip(start).all(|(byte, expected)| byte == expected);
    if begins_like(TEXT) {
        parse_text(received)
    } else if begins_like(SIGNATURE) {
        parse_binary(received)
    } else {
        Err(Invalid::Missing)
    }
}

fn parse_text(received: &[u8]) -> Result<Option<Header>, Invalid> {
    let received = &received[..received.len().min(MAX_TEXT)];
    let Some(end) = received.windows(2).position(|two| two == b"\r\n") else {
        return if received.len() == MAX_TEXT { Err(Invalid::TooLong) } else { Ok(None) };
    };
    let fields: Vec<&[u8]> = received[..end].split(|byte| *byte == b' ').collect();
    let named = match fields[..] {
        // Whatever follows is to be ignored.
        [_, b"UNKNOWN", ..] => None,
        [_, b"TCP4" | b"TCP6", _, _, source_port, destination_port]
            if is_number(source_port) && is_number(destination_port) =>
        {
            let parsed = ProxyHeader::parse(&received[..end + 2], ParseConfig::default());
            let (header, _) = parsed.map_err(|_| Invalid::Malformed)?;
            header.proxied_address().map(Named::from)
        }
        _ => return Err(Invalid::Malformed),
    };
    Ok(Some(Header { named, length: end + 2 }))
}

/// Without a sign or leading zeroes, which the library would take.
fn is_number(field: &[u8]) -> bool {
    field == b"0" || (field.first() != Some(&b'0') && !field.is_empty() && field.iter().all(u8::is_ascii_digit))
}

fn parse_binary(received: &[u8]) -> Result<Option<Header>, Invalid> {
    const LOCAL: u8 = 0x20;
    let Some(start) = received.get(..BINARY_START) else { return Ok(None) };
    let length = BINARY_START + usize::from(u16::from_be_bytes([start[14], start[15]]));
    if length > MAX_BINARY {
        return Err(Invalid::TooLong);
    }
    let Some(whole) = received.get(..length) else { return Ok(None) };
    let command = start[12];
    if command == LOCAL {
        // The rest is to be ignored, the family included.
        return Ok(Some(Header { named: None, length }));
    }
    let (header, _) = ProxyHeader::parse(whole, ParseConfig::default()).map_err(|_| Invalid::Malformed)?;
    if header.tlvs().any(|tlv| tlv.is_err()) {
        return Err(Invalid::Malformed);
    }
    if let Some(expected) = header.crc32c()
        && checksum(whole) != Some(expected)
    {
        return Err(Invalid::Checksum);
    }
    let named = header.proxied_address().filter(|address| address.protocol == proxy_header::Protocol::Stream);
    Ok(Some(Header { named: named.map(Named::from), length }))
}

const ALGORITHM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Of a header of version 2, its own checksum counted as zeroes (section 2.2.3).
fn checksum(header: &[u8]) -> Option<u32> {
    const CRC32C: u8 = 0x03;
    let addresses = match header[13] >> 4 {
        0 => 0,
        1 => 12,
        2 => 36,
        _ => 216,
    };
    let mut digest: Digest<'_, u32> = ALGORITHM.digest();
    let (before, mut rest) = header.split_at_checked(BINARY_START + addresses)?;
    digest.update(before);
    while let [kind, high, low, ..] = *rest {
        let (tlv, more) = rest.split_at_checked(3 + usize::from(u16::from_be_bytes([high, low])))?;
        if kind == CRC32C {
            digest.update(&tlv[..3]);
            digest.update(&[0; 4]);
        } else {
            digest.update(tlv);
        }
        rest = more;
    }
    Some(digest.finalize())
}

impl From<&ProxiedAddress> for Named {
    fn from(address: &ProxiedAddress) -> Self {
        Self { source: address.source, destination: address.destination }
    }
}

/// What a client is named by.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Both addresses, of one family and in their canonical form.
    pub named: Named,
    /// What it asks for.
    pub server_name: Option<ServerName<'a>>,
    /// What it offers: a `ProtocolNameList` without its length (RFC 7301, section 3.1).
    pub alpn: Option<&'a [u8]>,
}

/// More protocols than this are not passed on.
const MAX_ALPN: usize = 512;

/// The header for this client; `None`: for ourselves.
#[must_use]
pub fn header(version: Version, client: Option<&Client<'_>>) -> Vec<u8> {
    let address = client.map(|client| ProxiedAddress::stream(client.named.source, client.named.destination));
    let mut bytes = Vec::new();
    let written = match version {
        Version::V1 => address.map_or_else(ProxyHeader::with_local, ProxyHeader::with_address).encode_v1(&mut bytes),
        Version::V2 => {
            let name = client.and_then(|client| client.server_name).map(|name| Tlv::Authority(name.to_string().into()));
            let alpn = client.and_then(|client| client.alpn).filter(|list| list.len() <= MAX_ALPN);
            // A copy of the extension, as section 2.2.1 has it: what will be chosen is not known yet.
            let extension = |list: &[u8]| [&u16::try_from(list.len()).unwrap_or(0).to_be_bytes(), list].concat();
            let tlvs = name.into_iter().chain(alpn.map(|list| Tlv::Alpn(extension(list).into())));
            ProxyHeader::with_tlvs(address, tlvs).encode_v2(&mut bytes)
        }
    };
    match written {
        Ok(()) => bytes,
        // Addresses of two families: there is no way to write that.
        Err(_) => header(version, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(source: &str, destination: &str) -> Named {
        Named { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn binary(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, content].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0x01, 0xbb];

    #[test]
    fn e07_headers_name_the_client() {
        let v4 = named("192.0.2.1:4660", "198.51.100.2:443");
        let v6 = named("[2001:db8::1]:4660", "[2001:db8::2]:443");
        let v6_binary = [
            &[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..],
            &[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x12, 0x34, 0x01, 0xbb],
        ]
        .concat();
        for (bytes, expected) in [
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 4660 443\r\n".to_vec(), Some(v4)),
            (b"PROXY TCP6 2001:DB8::1 2001:db8:0:0:0:0:0:2 4660 443\r\n".to_vec(), Some(v6)),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN what ever 0\r\n".to_vec(), None),
            (binary(0x21, 0x11, &V4), Some(v4)),
            (binary(0x21, 0x21, &v6_binary), Some(v6)),
            (binary(0x21, 0x11, &[&V4[..], b"\x05\0\x02id\x04\0\0"].concat()), Some(v4)),
            (binary(0x21, 0x12, &V4), None),
            (binary(0x21, 0x31, &[7; 216]), None),
            (binary(0x21, 0, b""), None),
            (binary(0x20, 0, b""), None),
            (binary(0x20, 0xff, b"whatever"), None),
        ] {
            let whole = [&bytes[..], b"\x16\x03\x01"].concat();
            assert!(begins(&whole) && !begins(&whole[1..]) && !begins(&whole[..1]));
            let header = Header { named: expected, length: bytes.len() };
            assert_eq!(parse(&whole), Ok(Some(header)), "{}", bytes.escape_ascii());
            for length in 0..bytes.len() {
                assert_eq!(parse(&bytes[..length]), Ok(None), "{length} of {}", bytes.escape_ascii());
            }
        }
    }

    #[test]
    fn e07_whatever_is_malformed_is_no_header() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        let mut bad_length = binary(0x21, 0x11, &V4);
        bad_length[15] = 11;
        for (bytes, reason) in [
            (&b"\x16\x03\x01\x02\0\x01"[..], Invalid::Missing),
            (b"PROXYTCP4 192.0.2.1 198.51.100.2 4660 443\r\n", Invalid::Missing),
            (b"proxy TCP4 192.0.2.1 198.51.100.2 4660 443\r\n", Invalid::Missing),
            (b"\r\n\r\n\0\r\nQUIT\r", Invalid::Missing),
            (long.as_bytes(), Invalid::TooLong),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 4660\r\n", Invalid::Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 4660 443 \r\n", Invalid::Malformed),
            (b"PROXY TCP4  192.0.2.1 198.51.100.2 4660 443\r\n", Invalid::Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 04660 443\r\n", Invalid::Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 +466 443\r\n", Invalid::Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n", Invalid::Malformed),
            (b"PROXY TCP4 192.0.2.01 198.51.100.2 4660 443\r\n", Invalid::Malformed),
            (b"PROXY TCP4 2001:db8::1 2001:db8::2 4660 443\r\n", Invalid::Malformed),
            (b"PROXY TCP6 192.0.2.1 198.51.100.2 4660 443\r\n", Invalid::Malformed),
            (b"PROXY TCP6 fe80::1%eth0 2001:db8::2 4660 443\r\n", Invalid::Malformed),
            (b"PROXY UDP4 192.0.2.1 198.51.100.2 4660 443\r\n", Invalid::Malformed),
            (b"PROXY \r\n", Invalid::Malformed),
            (b"PROXY TCP4 192.0.2.1\n198.51.100.2 4660 443\r\n", Invalid::Malformed),
            (&binary(0x11, 0x11, &V4), Invalid::Malformed),
            (&binary(0x22, 0x11, &V4), Invalid::Malformed),
            (&binary(0x21, 0x41, &V4), Invalid::Malformed),
            (&binary(0x21, 0x13, &V4), Invalid::Malformed),
            (&bad_length, Invalid::Malformed),
            (&binary(0x21, 0x11, &[&V4[..], b"\x05"].concat()), Invalid::Malformed),
            (&binary(0x21, 0x11, &[&V4[..], b"\x05\0\x03id"].concat()), Invalid::Malformed),
            (&binary(0x21, 0x11, &[&V4[..], b"\x02\0\x01\xff"].concat()), Invalid::Malformed),
            (&binary(0x21, 0x11, &[&V4[..], b"\x03\0\x04\0\0\0\0"].concat()), Invalid::Checksum),
            (&binary(0x21, 0x11, &vec![7; 65535]), Invalid::TooLong),
            (&binary(0x20, 0, &vec![7; MAX_BINARY - BINARY_START + 1]), Invalid::TooLong),
        ] {
            assert_eq!(parse(bytes), Err(reason), "{}", bytes.escape_ascii());
        }
        let longest = binary(0x20, 0, &vec![7; MAX_BINARY - BINARY_START]);
        assert_eq!(parse(&longest), Ok(Some(Header { named: None, length: MAX_BINARY })));
        assert_eq!(parse(&[b'P'; 2]), Err(Invalid::Missing), "at the first byte that shows it");
    }

    #[test]
    fn e07_a_checksum_is_verified() {
        let mut bytes = binary(0x21, 0x11, &[&V4[..], b"\x04\0\x01\0\x03\0\x04\0\0\0\0"].concat());
        let sum = checksum(&bytes).unwrap().to_be_bytes();
        let length = bytes.len();
        bytes[length - 4..].copy_from_slice(&sum);
        assert!(parse(&bytes).is_ok_and(|header| header.is_some_and(|header| header.named.is_some())));
        bytes[20] ^= 1;
        assert_eq!(parse(&bytes), Err(Invalid::Checksum));
        for (family, addresses) in [(0, 0), (0x11, 12), (0x21, 36), (0x31, 216)] {
            let mut bytes = binary(0x21, family, &[&vec![7; addresses][..], b"\x03\0\x04\0\0\0\0"].concat());
            let (length, sum) = (bytes.len(), ALGORITHM.checksum(&bytes).to_be_bytes());
            bytes[length - 4..].copy_from_slice(&sum);
            assert!(parse(&bytes).is_ok_and(|header| header.is_some()), "{family:#x}");
        }
        // The example that RFC 3720 gives for this polynomial, in section B.4.
        assert_eq!(ALGORITHM.checksum(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn e08_what_is_written_is_read() {
        for version in [Version::V1, Version::V2] {
            for named in [named("192.0.2.1:1", "192.0.2.2:2"), named("[2001:db8::1]:1", "[2001:db8::2]:2")] {
                let client = Client { named, server_name: ServerName::parse(b"a.example").ok(), alpn: Some(b"\x02h2") };
                let bytes = header(version, Some(&client));
                assert_eq!(parse(&bytes), Ok(Some(Header { named: Some(named), length: bytes.len() })));
            }
            let own = header(version, None);
            assert_eq!(parse(&own), Ok(Some(Header { named: None, length: own.len() })));
            let mixed = Client { named: named("192.0.2.1:1", "[::1]:2"), server_name: None, alpn: None };
            assert_eq!(header(version, Some(&mixed)), own);
        }
        let client = Client {
            named: named("192.0.2.1:4660", "198.51.100.2:443"),
            server_name: ServerName::parse(b"A.example.").ok(),
            alpn: Some(b"\x02h2\x08http/1.1"),
        };
        let tlvs = b"\x02\0\x09a.example\x01\0\x0e\0\x0c\x02h2\x08http/1.1";
        assert_eq!(header(Version::V2, Some(&client)), binary(0x21, 0x11, &[&V4[..], tlvs].concat()));
        assert_eq!(header(Version::V1, Some(&client)), b"PROXY TCP4 192.0.2.1 198.51.100.2 4660 443\r\n");
    }
}
