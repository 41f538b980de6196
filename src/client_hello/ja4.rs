//! JA4, a fingerprint of TLS clients by what their hello offers. Its
//! [definition](https://github.com/FoxIO-LLC/ja4/blob/main/technical_details/JA4.md) is under the BSD 3-Clause License.

use std::fmt;
use std::str::{self, FromStr};

use aws_lc_rs::digest::{SHA256, digest};
use tls_parser::TlsExtensionType;

use super::{ClientHello, Codes, is_grease};

/// The JA4 fingerprint of a client that speaks TLS over TCP, such as `t13d1516h2_8daaf6152771_e5627efa2ab1`.
///
/// Clients with the same TLS library and settings have the same one, whatever server they connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ja4 {
    version: [u8; 2],
    has_sni: bool,
    /// At most 99, like the number of extensions.
    cipher_suites: u8,
    extensions: u8,
    /// First and last character of the first ALPN protocol.
    protocol: [u8; 2],
    cipher_hash: Hash,
    extension_hash: Hash,
}

/// The first bytes of a SHA-256 hash; zeroes for an empty list.
type Hash = [u8; 6];

const LENGTH: usize = 36;
const HEX: &[u8; 16] = b"0123456789abcdef";

const VERSIONS: [(u16, &[u8; 2]); 9] = [
    (0x0304, b"13"),
    (0x0303, b"12"),
    (0x0302, b"11"),
    (0x0301, b"10"),
    (0x0300, b"s3"),
    (0x0002, b"s2"),
    (0xfeff, b"d1"),
    (0xfefd, b"d2"),
    (0xfefc, b"d3"),
];
const UNKNOWN_VERSION: &[u8; 2] = b"00";

const SERVER_NAME: u16 = TlsExtensionType::ServerName.0;
const ALPN: u16 = TlsExtensionType::ApplicationLayerProtocolNegotiation.0;
const SIGNATURE_ALGORITHMS: u16 = TlsExtensionType::SignatureAlgorithms.0;

impl ClientHello<'_> {
    /// The JA4 fingerprint of the client.
    #[must_use]
    pub fn ja4(&self) -> Ja4 {
        let version = self.highest_version();
        let version = VERSIONS.iter().find(|(code, _)| *code == version).map_or(UNKNOWN_VERSION, |(_, text)| *text);
        let mut suites: Vec<u16> = without_grease(self.cipher_suites.iter()).collect();
        suites.sort_unstable();
        let mut extensions: Vec<u16> = without_grease(self.extensions.types()).collect();
        let extension_count = extensions.len();
        // They depend on the server, and are in the readable part.
        extensions.retain(|extension_type| ![SERVER_NAME, ALPN].contains(extension_type));
        extensions.sort_unstable();

        let mut list = Vec::with_capacity(256);
        append(&mut list, suites.iter().copied());
        let cipher_hash = hash(&list);
        list.clear();
        append(&mut list, extensions.into_iter());
        if !list.is_empty() {
            let mut algorithms = self.signature_algorithms().peekable();
            if algorithms.peek().is_some() {
                list.push(b'_');
            }
            append(&mut list, algorithms);
        }
        Ja4 {
            version: *version,
            has_sni: self.extensions.types().any(|extension_type| extension_type == SERVER_NAME),
            cipher_suites: count(suites.len()),
            extensions: count(extension_count),
            protocol: self.alpn.ok().and_then(|alpn| alpn.iter().next()).map_or(*b"00", ends),
            cipher_hash,
            extension_hash: hash(&list),
        }
    }

    /// In the client's order; none if they are malformed.
    fn signature_algorithms(&self) -> impl Iterator<Item = u16> {
        let mut extensions = self.extensions.iter();
        let extension = extensions.find(|extension| extension.extension_type == SIGNATURE_ALGORITHMS);
        without_grease(extension.and_then(|extension| Codes::from_vector(extension.content)).into_iter().flatten())
    }
}

fn without_grease(codes: impl Iterator<Item = u16>) -> impl Iterator<Item = u16> {
    codes.filter(|code| !is_grease(*code))
}

/// Appends the codes in hexadecimal, separated by commas.
fn append(list: &mut Vec<u8>, codes: impl Iterator<Item = u16>) {
    for (index, code) in codes.enumerate() {
        if index > 0 {
            list.push(b',');
        }
        list.extend(code.to_be_bytes().into_iter().flat_map(hex));
    }
}

fn hex(byte: u8) -> [u8; 2] {
    [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0x0f)]]
}

fn hash(list: &[u8]) -> Hash {
    let mut truncated = Hash::default();
    if !list.is_empty() {
        let length = truncated.len();
        truncated.copy_from_slice(&digest(&SHA256, list).as_ref()[..length]);
    }
    truncated
}

fn count(length: usize) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX).min(99)
}

/// The first and the last character of a protocol, or of its hexadecimal form if one of them is neither a letter nor a
/// digit.
fn ends(protocol: &[u8]) -> [u8; 2] {
    let (Some(first), Some(last)) = (protocol.first(), protocol.last()) else { return *b"00" };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        [*first, *last]
    } else {
        [hex(*first)[0], hex(*last)[1]]
    }
}

impl Ja4 {
    fn text(&self) -> [u8; LENGTH] {
        let Self { version, has_sni, cipher_suites, extensions, protocol, cipher_hash, extension_hash } = self;
        let digits = |number: u8| [b'0' + number / 10, b'0' + number % 10];
        let mut text = [b'_'; LENGTH];
        let (readable, hashes) = text.split_at_mut(10);
        readable[0] = b't';
        readable[1..3].copy_from_slice(version);
        readable[3] = if *has_sni { b'd' } else { b'i' };
        readable[4..6].copy_from_slice(&digits(*cipher_suites));
        readable[6..8].copy_from_slice(&digits(*extensions));
        readable[8..].copy_from_slice(protocol);
        let mut write = |at: usize, hash: &Hash| {
            let digits = hash.iter().copied().flat_map(hex);
            hashes[at..].iter_mut().zip(digits).for_each(|(to, digit)| *to = digit);
        };
        write(1, cipher_hash);
        write(14, extension_hash);
        text
    }

    fn read(text: &[u8]) -> Option<Self> {
        let [b't', v1, v2, sni, c1, c2, e1, e2, p1, p2, b'_', hashes @ ..] = text else { return None };
        let version = [*v1, *v2];
        let is_known = VERSIONS.iter().any(|(_, known)| **known == version) || version == *UNKNOWN_VERSION;
        let digit = |digit: u8| digit.is_ascii_digit().then(|| digit - b'0');
        let number = |tens: u8, ones: u8| Some(10 * digit(tens)? + digit(ones)?);
        let (cipher_hash, extension_hash) = hashes.split_at_checked(12)?;
        let is_protocol = p1.is_ascii_alphanumeric() && p2.is_ascii_alphanumeric();
        (is_known && is_protocol).then_some(())?;
        Some(Self {
            version,
            has_sni: match sni {
                b'd' => true,
                b'i' => false,
                _ => return None,
            },
            cipher_suites: number(*c1, *c2)?,
            extensions: number(*e1, *e2)?,
            protocol: [*p1, *p2],
            cipher_hash: read_hash(cipher_hash)?,
            extension_hash: read_hash(extension_hash.strip_prefix(b"_")?)?,
        })
    }
}

fn read_hash(text: &[u8]) -> Option<Hash> {
    let digit = |digit: u8| HEX.iter().position(|known| *known == digit).and_then(|value| u8::try_from(value).ok());
    let (pairs, rest) = text.as_chunks();
    let pairs: &[[u8; 2]; 6] = pairs.try_into().ok().filter(|_| rest.is_empty())?;
    let mut hash = Hash::default();
    for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(hash)
}

impl fmt::Display for Ja4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // All of it is ASCII.
        f.pad(str::from_utf8(&self.text()).unwrap_or_default())
    }
}

/// The text is not a JA4 fingerprint of TLS over TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a JA4 fingerprint of TLS over TCP, such as t13d1516h2_8daaf6152771_e5627efa2ab1")]
pub struct InvalidJa4;

impl FromStr for Ja4 {
    type Err = InvalidJa4;

    fn from_str(text: &str) -> Result<Self, InvalidJa4> {
        Self::read(text.as_bytes()).ok_or(InvalidJa4)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Hello, server_name_list, vector_u8, vector_u16};
    use super::*;

    fn ja4(hello: &Hello) -> String {
        ClientHello::parse(&hello.message()).unwrap().ja4().to_string()
    }

    fn bytes(codes: &str) -> Vec<u8> {
        let codes = codes.split(',').map(|code| u16::from_str_radix(code, 16).unwrap());
        codes.flat_map(u16::to_be_bytes).collect()
    }

    /// A hello with these suites, extensions and signature algorithms, as `JA4_ro` lists them, and with GREASE.
    fn of_lists(suites: &str, extensions: &str, algorithms: &str) -> Hello {
        let content = |extension_type: u16| match extension_type {
            SERVER_NAME => server_name_list(&[(0, b"a.example")]),
            ALPN => vector_u16(&[vector_u8(b"h2"), vector_u8(b"http/1.1")].concat()),
            SIGNATURE_ALGORITHMS => vector_u16(&bytes(algorithms)),
            43 => vector_u8(&bytes("9a9a,0304,0303")),
            _ => Vec::new(),
        };
        let hello = Hello { cipher_suites: bytes(&format!("5a5a,{suites}")), extensions: None, ..Hello::new() };
        let hello = hello.extension(0xfafa, []);
        let types = extensions.split(',').map(|code| u16::from_str_radix(code, 16).unwrap());
        types.fold(hello, |hello, extension_type| hello.extension(extension_type, content(extension_type)))
    }

    const SUITES: &str = "1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035";

    /// The example of the definition.
    #[test]
    fn a28_the_defined_example() {
        let extensions = "001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015";
        let algorithms = "0403,0804,0401,0503,0805,0501,0806,0601";
        assert_eq!(ja4(&of_lists(SUITES, extensions, algorithms)), "t13d1516h2_8daaf6152771_e5627efa2ab1");
        let mut without_algorithms = of_lists(SUITES, extensions, algorithms);
        for (extension_type, content) in without_algorithms.extensions.iter_mut().flatten() {
            if *extension_type == SIGNATURE_ALGORITHMS {
                content.clear();
            }
        }
        assert_eq!(ja4(&without_algorithms), "t13d1516h2_8daaf6152771_6d807ffa2a79");
    }

    /// The fingerprints of captured clients that come with the reference implementation, with the lists that they are made of.
    #[test]
    fn a28_published_fingerprints() {
        for (suites, extensions, algorithms, expected) in [
            // badcurveball.pcap
            (
                format!("{SUITES},000a"),
                "0000,0017,ff01,000a,000b,0023,0010,0005,000d,0012,0033,002d,002b,001b,0015",
                "0403,0804,0401,0503,0805,0501,0806,0601,0201",
                "t13d1615h2_46e7e9700bed_45f260be83e2",
            ),
            // sigalg-grease.pcapng
            (
                SUITES.into(),
                "fe0d,0010,0017,0033,44cd,ff01,000a,000d,0023,002b,000b,ca34,002d,0000,0005,001b,0012",
                "baba,0904,0905,0906,0403,0804,0401,0503,0805,0501,0806,0601",
                "t13d1517h2_8daaf6152771_cb7bf5808d99",
            ),
        ] {
            assert_eq!(ja4(&of_lists(&suites, extensions, algorithms)), expected);
        }
    }

    #[test]
    fn the_first_protocol_is_in_it_with_its_first_and_last_character() {
        for (protocol, expected) in [
            (&b"h2"[..], "h2"),
            (b"http/1.1", "h1"),
            (b"x", "xx"),
            (b"\xab", "ab"),
            (b"\xab\xcd", "ad"),
            (b"\x30\xab", "3b"),
            (b"\x30\x31\xab\xcd", "3d"),
            (b"\x30\xab\xcd\x31", "01"),
            (b"/x", "28"),
            (b"x/", "7f"),
        ] {
            let hello = Hello::new().extension(ALPN, vector_u16(&[vector_u8(protocol), vector_u8(b"h2")].concat()));
            assert_eq!(&ja4(&hello)[8..10], expected, "{}", protocol.escape_ascii());
        }
        for malformed in [&[][..], &[0, 0], &[0, 1, 0], &[0, 9, 1]] {
            assert_eq!(&ja4(&Hello::new().extension(ALPN, malformed))[8..10], "00");
        }
        assert_eq!(&ja4(&Hello::new())[8..10], "00");
    }

    #[test]
    fn the_version_is_the_highest_offered_or_that_of_the_message() {
        let offering = |codes: &str| Hello::new().without_extensions().extension(43, vector_u8(&bytes(codes)));
        for (hello, expected) in [
            (offering("0303,0304,0302"), "13"),
            (offering("aaaa,0302"), "11"),
            (offering("7f1c"), "00"),
            (offering("0303,fefd"), "d2"),
            (Hello { legacy_version: 0x0301, ..Hello::new().without_extensions() }, "10"),
            (Hello { legacy_version: 0x0300, ..Hello::new().without_extensions() }, "s3"),
            (Hello { legacy_version: 0x0002, ..Hello::new().without_extensions() }, "s2"),
            (Hello { legacy_version: 0x0305, ..Hello::new().without_extensions() }, "00"),
        ] {
            assert_eq!(&ja4(&hello)[1..3], expected);
        }
    }

    #[test]
    fn nothing_to_hash_is_zeroes_and_counts_end_at_99() {
        let only_grease = Hello { cipher_suites: bytes("0a0a,1a1a"), ..Hello::new().without_extensions() };
        let text = "t12i000000_000000000000_000000000000";
        assert_eq!(ja4(&only_grease), text);
        assert_eq!(text.parse::<Ja4>(), Ok(ClientHello::parse(&only_grease.message()).unwrap().ja4()));
        let only_sni = Hello { extensions: None, ..only_grease }.server_name(b"a.example").alpn(&["h2"]);
        assert_eq!(ja4(&only_sni), "t12d0002h2_000000000000_000000000000");
        let many = (0..150).fold(Hello::new(), |hello, number| hello.extension(0x1000 + number, []));
        let many = Hello { cipher_suites: (0..150).flat_map(|number: u16| number.to_be_bytes()).collect(), ..many };
        assert_eq!(&ja4(&many)[..10], "t13i999900");
    }

    #[test]
    fn the_text_is_read_back() {
        let text = "t13d1516h2_8daaf6152771_e5627efa2ab1";
        assert_eq!(text.parse::<Ja4>().unwrap().to_string(), text);
        for number in 0..text.len() {
            assert_eq!(text[..number].parse::<Ja4>(), Err(InvalidJa4));
        }
        for wrong in [
            "q13d1516h2_8daaf6152771_e5627efa2ab1",
            "t99d1516h2_8daaf6152771_e5627efa2ab1",
            "t13x1516h2_8daaf6152771_e5627efa2ab1",
            "t13d1x16h2_8daaf6152771_e5627efa2ab1",
            "t13d1516/2_8daaf6152771_e5627efa2ab1",
            "t13d1516h2_8DAAF6152771_e5627efa2ab1",
            "t13d1516h2-8daaf6152771-e5627efa2ab1",
            "t13d1516h2_8daaf6152771_e5627efa2ab1 ",
            "t13d1516h2_8daaf6152771_e5627efa2ab\u{e9}",
        ] {
            assert_eq!(wrong.parse::<Ja4>(), Err(InvalidJa4), "{wrong}");
        }
    }
}
