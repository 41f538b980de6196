//! The PROXY protocol, with which a load balancer in front of us, or we in front of an endpoint, pass on the client's
//! address.
//!
//! Versions 1 and 2 of <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>; section numbers refer to it.

use std::net::SocketAddr;

use crc::{CRC_32_ISCSI, Crc, Digest};
use proxy_header::{ParseConfig, ProxiedAddress, ProxyHeader};

use crate::name::ServerName;
use crate::route::Tlvs;

/// Maximum length of a version 1 header, CRLF included (section 2.1).
const MAX_TEXT: usize = 107;
/// Maximum number of TLVs in a header. Real ones have up to ten.
const MAX_TLVS: usize = 128;
/// Maximum length of a header in bytes: the length field of version 2 has 16 bits (section 2.2). Real ones have some hundred
/// bytes.
pub const MAX_LENGTH: usize = BINARY_START + u16::MAX as usize;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Length of the signature, version and command, family, and length fields (section 2.2).
const BINARY_START: usize = 16;

/// The version of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// A line of text (section 2.1).
    V1,
    /// Binary (section 2.2), which can have TLVs. We add the client's SNI and ALPN.
    V2,
}

impl Version {
    /// The value in the configuration.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// The addresses of the connection that a proxy has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxiedAddresses {
    /// The client's address.
    pub source: SocketAddr,
    /// The address that the client connected to.
    pub destination: SocketAddr,
}

/// Numbers of TLVs (section 2.2).
pub(crate) mod tlv {
    pub(crate) const ALPN: u8 = 0x01;
    pub(crate) const AUTHORITY: u8 = 0x02;
    pub(crate) const CRC32C: u8 = 0x03;
    pub(crate) const NOOP: u8 = 0x04;
}

/// A complete header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// `None` for `LOCAL` (the proxy's own connection, such as a health check), `UNKNOWN`, and transports other than TCP.
    pub addresses: Option<ProxiedAddresses>,
    /// Its TLVs; none for `LOCAL` and in version 1.
    pub tlvs: Tlvs<'a>,
    /// Length of the header in bytes.
    pub length: usize,
}

/// Why bytes are not a valid header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeader {
    /// They do not start with the signature of either version.
    #[error("missing PROXY header, which accept_proxy requires")]
    Missing,
    /// More than 107 bytes in version 1.
    #[error("PROXY header longer than {MAX_TEXT} bytes (version 1)")]
    TooLong,
    /// The header does not conform to the specification.
    #[error("malformed PROXY header")]
    Malformed,
    /// More than 128.
    #[error("more than {MAX_TLVS} TLVs in the PROXY header")]
    TooManyTlvs,
    /// The CRC-32C in the header does not match (section 2.2.3).
    #[error("wrong checksum in the PROXY header")]
    Checksum,
}

const TEXT: &[u8] = b"PROXY ";

/// Whether the bytes start with the full signature of either version.
#[must_use]
pub(crate) fn is_header(received: &[u8]) -> bool {
    received.starts_with(TEXT) || received.starts_with(SIGNATURE)
}

/// Parses the header at the start of `received`; `None` if it is incomplete.
pub fn parse(received: &[u8]) -> Result<Option<Header<'_>>, InvalidHeader> {
    let matches_so_far = |start: &[u8]| received.iter().zip(start).all(|(byte, expected)| byte == expected);
    if matches_so_far(TEXT) {
        parse_text(received)
    } else if matches_so_far(SIGNATURE) {
        parse_binary(received)
    } else {
        Err(InvalidHeader::Missing)
    }
}

fn parse_text(received: &[u8]) -> Result<Option<Header<'_>>, InvalidHeader> {
    let received = &received[..received.len().min(MAX_TEXT)];
    let Some(end) = received.windows(2).position(|two| two == b"\r\n") else {
        return if received.len() == MAX_TEXT { Err(InvalidHeader::TooLong) } else { Ok(None) };
    };
    let fields: Vec<&[u8]> = received[..end].split(|byte| *byte == b' ').collect();
    let addresses = match fields[..] {
        // The rest of the line must be ignored (section 2.1).
        [_, b"UNKNOWN", ..] => None,
        [_, b"TCP4" | b"TCP6", _, _, source_port, destination_port]
            if is_number(source_port) && is_number(destination_port) =>
        {
            let parsed = ProxyHeader::parse(&received[..end + 2], ParseConfig::default());
            let (header, _) = parsed.map_err(|_| InvalidHeader::Malformed)?;
            header.proxied_address().map(ProxiedAddresses::from)
        }
        _ => return Err(InvalidHeader::Malformed),
    };
    Ok(Some(Header { addresses, tlvs: Tlvs::default(), length: end + 2 }))
}

/// Rejects a sign or leading zeroes, which the library would accept.
fn is_number(field: &[u8]) -> bool {
    field == b"0" || (field.first() != Some(&b'0') && !field.is_empty() && field.iter().all(u8::is_ascii_digit))
}

fn parse_binary(received: &[u8]) -> Result<Option<Header<'_>>, InvalidHeader> {
    const LOCAL: u8 = 0x20;
    let Some(start) = received.get(..BINARY_START) else { return Ok(None) };
    let length = binary_length(start);
    let Some(header_bytes) = received.get(..length) else { return Ok(None) };
    if start[12] == LOCAL {
        // The rest must be ignored, including the family (section 2.2).
        return Ok(Some(Header { addresses: None, tlvs: Tlvs::default(), length }));
    }
    let parsed = ProxyHeader::parse(header_bytes, ParseConfig::default());
    let (header, _) = parsed.map_err(|_| InvalidHeader::Malformed)?;
    let tlvs = header_bytes.get(BINARY_START + addresses_length(start)..).and_then(Tlvs::parse);
    let tlvs = tlvs.ok_or(InvalidHeader::Malformed)?;
    if tlvs.iter().nth(MAX_TLVS).is_some() {
        return Err(InvalidHeader::TooManyTlvs);
    }
    let mut checksums = tlvs.of(tlv::CRC32C);
    if let Some(expected) = checksums.next() {
        let expected: [u8; 4] = expected.try_into().map_err(|_| InvalidHeader::Malformed)?;
        if checksums.next().is_some() {
            return Err(InvalidHeader::Malformed);
        }
        if checksum(header_bytes, tlvs) != u32::from_be_bytes(expected) {
            return Err(InvalidHeader::Checksum);
        }
    }
    let addresses = header.proxied_address().filter(|address| address.protocol == proxy_header::Protocol::Stream);
    Ok(Some(Header { addresses: addresses.map(ProxiedAddresses::from), tlvs, length }))
}

/// How many bytes the header has, if the start of one was received: as many as are to be read.
pub(crate) fn length_of(received: &[u8]) -> Option<usize> {
    received.starts_with(SIGNATURE).then(|| received.get(..BINARY_START).map(binary_length)).flatten()
}

fn binary_length(start: &[u8]) -> usize {
    BINARY_START + usize::from(u16::from_be_bytes([start[14], start[15]]))
}

fn addresses_length(start: &[u8]) -> usize {
    match start[13] >> 4 {
        0 => 0,
        1 => 12,
        2 => 36,
        _ => 216,
    }
}

const ALGORITHM: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// The CRC-32C of a version 2 header, computed with the checksum field zeroed (section 2.2.3).
fn checksum(header: &[u8], tlvs: Tlvs<'_>) -> u32 {
    let mut digest: Digest<'_, u32> = ALGORITHM.digest();
    digest.update(&header[..BINARY_START + addresses_length(header)]);
    for (number, value) in tlvs.iter() {
        digest.update(&[number]);
        // It was decoded from two bytes.
        digest.update(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        digest.update(if number == tlv::CRC32C { &[0; 4] } else { value });
    }
    digest.finalize()
}

impl From<&ProxiedAddress> for ProxiedAddresses {
    fn from(address: &ProxiedAddress) -> Self {
        Self { source: address.source, destination: address.destination }
    }
}

/// What a header tells about a client.
#[derive(Clone, Copy, Debug)]
pub struct ProxiedClient<'a> {
    /// Both addresses in canonical form and of the same family.
    pub addresses: ProxiedAddresses,
    /// The client's SNI.
    pub server_name: Option<ServerName<'a>>,
    /// The client's ALPN: a `ProtocolNameList` without its length (RFC 7301, section 3.1).
    pub alpn: Option<&'a [u8]>,
}

/// The header that endpoints are sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Outgoing {
    pub(crate) version: Version,
    /// TLVs that are added, sorted by number. Only in version 2, like `pass`.
    pub(crate) tlvs: Box<[(u8, Box<[u8]>)]>,
    /// Numbers of the TLVs of the client's own header that are passed on; none of `tlvs`.
    pub(crate) pass: Box<[u8]>,
}

impl Outgoing {
    /// Numbers and values of the TLVs that are added.
    pub(crate) fn own_tlvs(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.tlvs.iter().map(|(number, value)| (*number, &**value))
    }
}

/// In bytes; longer ALPN lists are not passed on.
const MAX_ALPN: usize = 512;

/// The TLVs do not fit into a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the PROXY header for the endpoint would be longer than {MAX_LENGTH} bytes: too many TLVs to pass on")]
pub struct TooLong;

/// Encodes a header for this client, with these TLVs in version 2.
///
/// # Errors
///
/// Fails if the TLVs do not fit.
pub fn header<'t>(
    version: Version,
    client: &ProxiedClient<'_>,
    tlvs: impl IntoIterator<Item = (u8, &'t [u8])>,
) -> Result<Vec<u8>, TooLong> {
    let ProxiedAddresses { source, destination } = client.addresses;
    let mut bytes = Vec::new();
    let header = ProxyHeader::with_address(ProxiedAddress::stream(source, destination));
    let written = match version {
        Version::V1 => header.encode_v1(&mut bytes),
        Version::V2 => header.encode_v2(&mut bytes),
    };
    if written.is_err() {
        // Addresses of different families cannot be encoded.
        return Ok(local_header(version));
    }
    if version == Version::V1 {
        return Ok(bytes);
    }
    let mut add = |number: u8, value: &[u8]| Tlvs::append(&mut bytes, number, value).ok_or(TooLong);
    if let Some(name) = client.server_name {
        add(tlv::AUTHORITY, name.to_string().as_bytes())?;
    }
    // The client's whole offer: which protocol will be chosen is not known yet (section 2.2.1).
    if let Some(list) = client.alpn.filter(|list| list.len() <= MAX_ALPN) {
        let length = u16::try_from(list.len()).map_err(|_| TooLong)?;
        add(tlv::ALPN, &[&length.to_be_bytes(), list].concat())?;
    }
    tlvs.into_iter().try_for_each(|(number, value)| add(number, value))?;
    let length = u16::try_from(bytes.len() - BINARY_START).map_err(|_| TooLong)?;
    bytes[BINARY_START - 2..BINARY_START].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

/// Encodes a header for a connection of our own between these addresses, such as a health check. Receivers ignore the TLVs of
/// a header without a client, so one with TLVs has ourselves as the client.
#[must_use]
pub(crate) fn own_header(outgoing: &Outgoing, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let version = outgoing.version;
    if outgoing.tlvs.is_empty() {
        return local_header(version);
    }
    let addresses = ProxiedAddresses { source, destination };
    let client = ProxiedClient { addresses, server_name: None, alpn: None };
    header(version, &client, outgoing.own_tlvs()).unwrap_or_else(|TooLong| local_header(version))
}

/// Encodes a header without a client: `LOCAL` (version 2) or `UNKNOWN` (version 1).
#[must_use]
pub fn local_header(version: Version) -> Vec<u8> {
    let mut bytes = Vec::new();
    let header = ProxyHeader::with_local();
    // A `Vec` has room for it.
    let _ = match version {
        Version::V1 => header.encode_v1(&mut bytes),
        Version::V2 => header.encode_v2(&mut bytes),
    };
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(source: &str, destination: &str) -> ProxiedAddresses {
        ProxiedAddresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn binary(command: u8, family: u8, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, content].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 0x01, 0xbb];

    #[test]
    fn e07_headers_contain_the_clients_address() {
        let v4 = addresses("192.0.2.1:4660", "198.51.100.2:443");
        let v6 = addresses("[2001:db8::1]:4660", "[2001:db8::2]:443");
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
            let header_bytes = [&bytes[..], b"\x16\x03\x01"].concat();
            assert!(is_header(&header_bytes) && !is_header(&header_bytes[1..]) && !is_header(&header_bytes[..1]));
            let header = parse(&header_bytes).unwrap().map(|header| (header.addresses, header.length));
            assert_eq!(header, Some((expected, bytes.len())), "{}", bytes.escape_ascii());
            for length in 0..bytes.len() {
                assert_eq!(parse(&bytes[..length]), Ok(None), "{length} of {}", bytes.escape_ascii());
            }
        }
    }

    #[test]
    fn e07_malformed_headers_are_rejected() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        let mut bad_length = binary(0x21, 0x11, &V4);
        bad_length[15] = 11;
        for (bytes, reason) in [
            (&b"\x16\x03\x01\x02\0\x01"[..], InvalidHeader::Missing),
            (b"PROXYTCP4 192.0.2.1 198.51.100.2 4660 443\r\n", InvalidHeader::Missing),
            (b"proxy TCP4 192.0.2.1 198.51.100.2 4660 443\r\n", InvalidHeader::Missing),
            (b"\r\n\r\n\0\r\nQUIT\r", InvalidHeader::Missing),
            (long.as_bytes(), InvalidHeader::TooLong),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 4660\r\n", InvalidHeader::Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 4660 443 \r\n", InvalidHeader::Malformed),
            (b"PROXY TCP4  192.0.2.1 198.51.100.2 4660 443\r\n", InvalidHeader::Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 04660 443\r\n", InvalidHeader::Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 +466 443\r\n", InvalidHeader::Malformed),
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n", InvalidHeader::Malformed),
            (b"PROXY TCP4 192.0.2.01 198.51.100.2 4660 443\r\n", InvalidHeader::Malformed),
            (b"PROXY TCP4 2001:db8::1 2001:db8::2 4660 443\r\n", InvalidHeader::Malformed),
            (b"PROXY TCP6 192.0.2.1 198.51.100.2 4660 443\r\n", InvalidHeader::Malformed),
            (b"PROXY TCP6 fe80::1%eth0 2001:db8::2 4660 443\r\n", InvalidHeader::Malformed),
            (b"PROXY UDP4 192.0.2.1 198.51.100.2 4660 443\r\n", InvalidHeader::Malformed),
            (b"PROXY \r\n", InvalidHeader::Malformed),
            (b"PROXY TCP4 192.0.2.1\n198.51.100.2 4660 443\r\n", InvalidHeader::Malformed),
            (&binary(0x11, 0x11, &V4), InvalidHeader::Malformed),
            (&binary(0x22, 0x11, &V4), InvalidHeader::Malformed),
            (&binary(0x21, 0x41, &V4), InvalidHeader::Malformed),
            (&binary(0x21, 0x13, &V4), InvalidHeader::Malformed),
            (&bad_length, InvalidHeader::Malformed),
            (&binary(0x21, 0x11, &[&V4[..], b"\x05"].concat()), InvalidHeader::Malformed),
            (&binary(0x21, 0x11, &[&V4[..], b"\x05\0\x03id"].concat()), InvalidHeader::Malformed),
            (&binary(0x21, 0x11, &[&V4[..], b"\x03\0\x02\0\0"].concat()), InvalidHeader::Malformed),
            (&binary(0x21, 0x11, &[&V4[..], b"\x03\0\x04\0\0\0\0"].concat()), InvalidHeader::Checksum),
            (&binary(0x21, 0x11, &[&V4[..], &b"\x03\0\x04\0\0\0\0".repeat(2)].concat()), InvalidHeader::Malformed),
            (&binary(0x21, 0x11, &[&V4[..], &b"\x20\0\0".repeat(129)].concat()), InvalidHeader::TooManyTlvs),
        ] {
            assert_eq!(parse(bytes), Err(reason), "{}", bytes.escape_ascii());
        }
        let longest = binary(0x20, 0, &vec![7; MAX_LENGTH - BINARY_START]);
        let tlvs = Tlvs::default();
        assert_eq!(parse(&longest), Ok(Some(Header { addresses: None, tlvs, length: MAX_LENGTH })));
        assert_eq!(parse(&[b'P'; 2]), Err(InvalidHeader::Missing), "at the first byte that differs");
    }

    #[test]
    fn e07_a_checksum_is_verified() {
        let mut bytes = binary(0x21, 0x11, &[&V4[..], b"\x04\0\x01\0\x03\0\x04\0\0\0\0"].concat());
        let sum = ALGORITHM.checksum(&bytes).to_be_bytes();
        let length = bytes.len();
        bytes[length - 4..].copy_from_slice(&sum);
        assert!(parse(&bytes).is_ok_and(|header| header.is_some_and(|header| header.addresses.is_some())));
        bytes[20] ^= 1;
        assert_eq!(parse(&bytes), Err(InvalidHeader::Checksum));
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
    fn e08_encoded_headers_parse_to_the_same_addresses() {
        for version in [Version::V1, Version::V2] {
            assert_eq!(local_header(version).starts_with(b"PROXY "), version.label() == "v1");
            for addresses in [addresses("192.0.2.1:1", "192.0.2.2:2"), addresses("[2001:db8::1]:1", "[2001:db8::2]:2")]
            {
                let client = ProxiedClient {
                    addresses,
                    server_name: ServerName::parse(b"a.example").ok(),
                    alpn: Some(b"\x02h2"),
                };
                let bytes = header(version, &client, []).unwrap();
                let parsed = parse(&bytes).unwrap().map(|header| (header.addresses, header.length));
                assert_eq!(parsed, Some((Some(addresses), bytes.len())));
            }
            let own = local_header(version);
            let tlvs = Tlvs::default();
            assert_eq!(parse(&own), Ok(Some(Header { addresses: None, tlvs, length: own.len() })));
            let mixed = ProxiedClient { addresses: addresses("192.0.2.1:1", "[::1]:2"), server_name: None, alpn: None };
            assert_eq!(header(version, &mixed, []), Ok(own));
        }
        let client = ProxiedClient {
            addresses: addresses("192.0.2.1:4660", "198.51.100.2:443"),
            server_name: ServerName::parse(b"A.example.").ok(),
            alpn: Some(b"\x02h2\x08http/1.1"),
        };
        let tlvs = b"\x02\0\x09a.example\x01\0\x0e\0\x0c\x02h2\x08http/1.1";
        assert_eq!(header(Version::V2, &client, []), Ok(binary(0x21, 0x11, &[&V4[..], tlvs].concat())));
        assert_eq!(header(Version::V1, &client, []), Ok(b"PROXY TCP4 192.0.2.1 198.51.100.2 4660 443\r\n".into()));
    }

    #[test]
    fn e08_a_header_of_our_own_names_us_only_if_it_has_tlvs() {
        let addresses = addresses("192.0.2.1:4660", "198.51.100.2:443");
        let own = |version, tlvs: &[(u8, &[u8])]| {
            let tlvs = tlvs.iter().map(|(number, value)| (*number, (*value).into())).collect();
            own_header(&Outgoing { version, tlvs, pass: [5].into() }, addresses.source, addresses.destination)
        };
        assert_eq!(own(Version::V1, &[]), b"PROXY UNKNOWN\r\n");
        assert_eq!(own(Version::V2, &[]), local_header(Version::V2));
        let with_tlvs = binary(0x21, 0x11, &[&V4[..], b"\xe0\0\x02eu\xe1\0\0"].concat());
        assert_eq!(own(Version::V2, &[(0xe0, b"eu"), (0xe1, b"")]), with_tlvs);
        assert_eq!(own(Version::V2, &[(0xe0, &vec![0; 65_535])]), local_header(Version::V2), "they do not fit");
    }

    #[test]
    fn e07_tlvs_of_any_number_and_length_are_read_and_written() {
        let client =
            ProxiedClient { addresses: addresses("192.0.2.1:1", "192.0.2.2:2"), server_name: None, alpn: None };
        let long = vec![7; 65_535 - 12 - 3 - 3 - 3 - 2];
        // 0x20 is that of TLS in the specification, with a structure of its own; others use it for an identifier.
        let tlvs: [(u8, &[u8]); 3] = [(0x20, b""), (0xee, &long), (0x20, b"id")];
        let bytes = header(Version::V2, &client, tlvs).unwrap();
        assert_eq!(bytes.len(), MAX_LENGTH);
        let parsed = parse(&bytes).unwrap().unwrap();
        assert_eq!(parsed.tlvs.iter().collect::<Vec<_>>(), tlvs);
        assert_eq!(parsed.tlvs.as_encoded(), &bytes[BINARY_START + 12..]);
        assert_eq!(parsed.tlvs.of(0x20).collect::<Vec<_>>(), [&b""[..], b"id"]);
        assert_eq!(length_of(&bytes[..16]), Some(MAX_LENGTH));
        assert_eq!(header(Version::V2, &client, tlvs.into_iter().chain([(1, &b""[..])])), Err(TooLong));
        assert_eq!(header(Version::V2, &client, [(1, &*vec![0; 65_536])]), Err(TooLong));
        let mut local = bytes.clone();
        local[12] = 0x20;
        assert!(parse(&local).unwrap().unwrap().tlvs.is_empty());
    }
}
