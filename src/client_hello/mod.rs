//! Parses the TLS ClientHello (RFC 8446, section 4.1.2), the first message of a TLS client.
//!
//! Parsing has two steps. [`Framing`] follows the bytes as they arrive, through any number of TCP segments and TLS
//! records, until the handshake message is complete. [`ClientHello::parse`] then parses the message in one pass. Names
//! and protocols borrow from the received bytes; only a hello that is split over several records is copied.
//!
//! ```
//! use snigate::client_hello::{Framing, Parsed};
//!
//! # let received = b"GET / HTTP/1.1\r\n";
//! let mut framing = Framing::default();
//! match framing.parse(received) {
//!     Parsed::Complete(hello) => println!("SNI: {:?}", hello.server_name),
//!     Parsed::Incomplete => println!("call again when more bytes have been received"),
//!     Parsed::Invalid(invalid) => println!("invalid: {}", invalid.reason),
//! }
//! ```
//!
//! The crate's `examples/hello.rs` reads from sockets this way.
//!
//! # What is validated
//! All lengths up to the server name: those of records, the handshake header, each vector of the ClientHello, the
//! extension block and each extension in it. Duplicate extensions are rejected, so that there cannot be a second
//! `server_name`. The contents of other extensions are left to the TLS server; ALPN and the supported versions are parsed if
//! they are well-formed, and [`Absent`] otherwise. A hello without a server name is only reported as such after it was
//! parsed to its last byte.
//!
//! The result depends only on the bytes: every strict prefix of a valid hello is incomplete, and however the bytes are
//! split over calls, the result is the same.

mod framing;
#[cfg(feature = "ja4")]
mod ja4;
mod lists;

use std::net::IpAddr;

pub use framing::{DEFAULT_LIMIT, Framing, Progress};
#[cfg(feature = "ja4")]
pub use ja4::{InvalidJa4, Ja4};
pub use lists::{Alpn, CipherSuites, Codes, Extension, Extensions, ExtensionsIter, Protocols, SupportedVersions};
use tls_parser::nom::IResult;
use tls_parser::{SNIType, TlsExtensionType, parse_tls_extension_sni_hostname};

use crate::name::{self, NameError, ServerName};

const HANDSHAKE_HEADER_LENGTH: usize = 4;
const MAX_SESSION_ID_LENGTH: usize = 32;

/// The result of parsing the bytes received so far.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// The hello is complete and well-formed.
    Complete(ClientHello<'a>),
    /// Well-formed so far; more bytes are needed.
    Incomplete,
    /// Not a valid hello, whatever bytes follow.
    Invalid(Invalid<'a>),
}

/// A parsed ClientHello.
#[derive(Clone, Copy, Debug)]
pub struct ClientHello<'a> {
    /// The server name (SNI; RFC 6066, section 3), if the client sent one.
    pub server_name: Option<ServerName<'a>>,
    /// The offered application protocols (ALPN; RFC 7301).
    pub alpn: Result<Alpn<'a>, Absent>,
    /// The offered TLS versions (RFC 8446, section 4.2.1).
    pub supported_versions: Result<SupportedVersions<'a>, Absent>,
    /// The version field of the hello itself; it is TLS 1.2 (`0x0303`) if the client sends `supported_versions`.
    pub legacy_version: u16,
    /// The offered cipher suites (RFC 8446, section 4.1.2).
    pub cipher_suites: CipherSuites<'a>,
    /// All extensions (RFC 8446, section 4.2).
    pub extensions: Extensions<'a>,
    /// Whether the client sends early data (RFC 8446, section 4.2.10), which must not be sent to more than one server.
    pub early_data: bool,
    /// Whether it contains an encrypted ClientHello (ECH; RFC 9849); `server_name` is then that of the outer hello.
    pub ech: bool,
    /// The IP address that the client sent as server name, with [`IpLiteral::NoName`].
    pub ip_literal: Option<IpAddr>,
}

/// How to treat an IP address as server name. RFC 6066, section 3, forbids it, but some clients send it, such as .NET
/// before version 8 on Linux.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IpLiteral {
    /// The hello is [`Invalid`].
    #[default]
    Refused,
    /// As if the client sent no server name.
    NoName,
}

impl<'a> ClientHello<'a> {
    /// Parses a complete handshake message, including its four-byte header. An IP address as server name is an error.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with the message.
    pub fn parse(message: &'a [u8]) -> Result<Self, Invalid<'a>> {
        Self::parse_with(message, IpLiteral::Refused)
    }

    /// Like [`parse`](Self::parse), with a choice of how to treat an IP address as server name.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with the message.
    pub fn parse_with(message: &'a [u8], ip_literal: IpLiteral) -> Result<Self, Invalid<'a>> {
        let mut message = Cursor(message);
        message.take(HANDSHAKE_HEADER_LENGTH, Field::Hello)?;
        let legacy_version = message.u16(Field::Hello)?;
        message.take(32, Field::Hello)?;
        // `opaque legacy_session_id<0..32>; CipherSuite cipher_suites<2..2^16-2>; opaque legacy_compression_methods<1..2^8-1>;`
        // (RFC 8446, section 4.1.2)
        if message.vector_u8(Field::SessionId)?.len() > MAX_SESSION_ID_LENGTH {
            return Err(Reason::Length(Field::SessionId).into());
        }
        let cipher_suites = message.vector_u16(Field::CipherSuites)?;
        let cipher_suites = CipherSuites::from_list(cipher_suites).ok_or(Reason::Length(Field::CipherSuites))?;
        if message.vector_u8(Field::CompressionMethods)?.is_empty() {
            return Err(Reason::Length(Field::CompressionMethods).into());
        }

        let mut hello = Self {
            server_name: None,
            alpn: Err(Absent::NotSent),
            supported_versions: Err(Absent::NotSent),
            legacy_version,
            cipher_suites,
            extensions: Extensions::default(),
            early_data: false,
            ech: false,
            ip_literal: None,
        };
        // "[…] the message either contains no data after legacy_compression_methods or […] a valid extensions block with
        // no data following." (RFC 8446, section 4.1.2)
        if message.is_empty() {
            return Ok(hello);
        }
        let extensions = message.vector_u16(Field::Extensions)?;
        message.finish(Field::Hello)?;
        hello.read_extensions(extensions, ip_literal)?;
        hello.extensions = Extensions(extensions);
        Ok(hello)
    }

    fn read_extensions(&mut self, extensions: &'a [u8], ip_literal: IpLiteral) -> Result<(), Invalid<'a>> {
        let mut extensions = Cursor(extensions);
        let mut seen = SeenTypes::default();
        while !extensions.is_empty() {
            let Extension { extension_type, content } = Extension::read(&mut extensions)?;
            // "There MUST NOT be more than one extension of the same type in a given extension block." (RFC 8446, section 4.2)
            if !seen.insert(extension_type) {
                return Err(Reason::DuplicateExtension(extension_type).into());
            }
            match TlsExtensionType(extension_type) {
                TlsExtensionType::ServerName => self.read_server_name(content, ip_literal)?,
                TlsExtensionType::ApplicationLayerProtocolNegotiation => self.alpn = Alpn::parse(content),
                TlsExtensionType::SupportedVersions => {
                    self.supported_versions = SupportedVersions::parse(content);
                }
                TlsExtensionType::EarlyData => self.early_data = true,
                ENCRYPTED_CLIENT_HELLO => self.ech = true,
                // "Servers MUST ignore unrecognized extensions." (RFC 8446, section 4.1.2)
                _ => {}
            }
        }
        Ok(())
    }

    fn read_server_name(&mut self, content: &'a [u8], ip_literal: IpLiteral) -> Result<(), Invalid<'a>> {
        match server_name(content) {
            Ok(name) => self.server_name = Some(name),
            Err(invalid) => {
                let literal = invalid.server_name.and_then(name::ip_literal);
                self.ip_literal = literal.filter(|_| ip_literal == IpLiteral::NoName);
                if self.ip_literal.is_none() {
                    return Err(invalid);
                }
            }
        }
        Ok(())
    }

    /// The highest offered TLS version, ignoring GREASE, such as `0x0304` for TLS 1.3.
    #[must_use]
    pub fn highest_version(&self) -> u16 {
        let offered = self.supported_versions.iter().flat_map(SupportedVersions::iter);
        offered.filter(|version| !is_grease(*version)).max().unwrap_or(self.legacy_version)
    }
}

/// RFC 9849, section 5.
const ENCRYPTED_CLIENT_HELLO: TlsExtensionType = TlsExtensionType(0xfe0d);

/// Whether a version, cipher suite or extension type is a GREASE value, which has no meaning: `0x0a0a`, `0x1a1a` …
/// `0xfafa` (RFC 8701, section 2).
#[must_use]
pub fn is_grease(value: u16) -> bool {
    let [high, low] = value.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

/// Parses a list with exactly one `host_name` (RFC 6066, section 3).
fn server_name(content: &[u8]) -> Result<ServerName<'_>, Invalid<'_>> {
    let mut content = Cursor(content);
    let list = content.vector_u16(Field::ServerNameList)?;
    content.finish(Field::ServerNameList)?;
    let (rest, (name_type, name)) = whole(parse_tls_extension_sni_hostname(list), Field::ServerNameList)?;
    if name_type != SNIType::HostName {
        return Err(Reason::NameType(name_type.0).into());
    }
    // "The ServerNameList MUST NOT contain more than one name of the same name_type." There is only one type.
    if !rest.is_empty() {
        return Err(Reason::SeveralNames.into());
    }
    ServerName::parse(name).map_err(|error| Invalid { reason: Reason::Name(error), server_name: Some(name) })
}

fn whole<T>(parsed: IResult<&[u8], T>, field: Field) -> Result<(&[u8], T), Reason> {
    parsed.map_err(|_| Reason::Length(field))
}

/// Why the content of an extension is not available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The client did not send it.
    NotSent,
    /// The client sent it, but it is malformed. The TLS server will reject it.
    Malformed,
}

/// An invalid hello, which must not be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid<'a> {
    /// What is wrong with it.
    pub reason: Reason,
    /// The server name, if that is invalid. It is untrusted: escape it before showing it.
    pub server_name: Option<&'a [u8]>,
}

impl From<Reason> for Invalid<'_> {
    fn from(reason: Reason) -> Self {
        Self { reason, server_name: None }
    }
}

/// What is wrong with a hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Reason {
    /// Not a TLS handshake, but for example HTTP, SSH, an SSLv2 hello or a TLS alert.
    #[error("not a TLS handshake record")]
    NotTls,
    /// A record without a payload.
    #[error("empty record")]
    EmptyRecord,
    /// A record longer than 2^14 bytes (RFC 8446, section 5.1).
    #[error("record longer than 2^14 bytes")]
    RecordTooLong,
    /// The first handshake message is not a ClientHello.
    #[error("the first handshake message is not a ClientHello")]
    NotClientHello,
    /// The message is shorter than its fixed fields.
    #[error("ClientHello shorter than its fixed fields")]
    TooShort,
    /// The hello is larger than the limit of [`Framing::new`].
    #[error("ClientHello larger than the limit")]
    TooLarge,
    /// A length does not match the content.
    #[error("wrong length of {0}")]
    Length(Field),
    /// An extension occurs more than once (RFC 8446, section 4.2).
    #[error("duplicate extension {0}")]
    DuplicateExtension(u16),
    /// A name of another type than `host_name`, the only one in RFC 6066.
    #[error("server name of type {0}, not host_name")]
    NameType(u8),
    /// More than one server name.
    #[error("more than one server name")]
    SeveralNames,
    /// The server name is invalid.
    #[error(transparent)]
    Name(NameError),
}

/// A part of the hello that has a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// The message itself.
    Hello,
    /// `legacy_session_id`
    SessionId,
    /// `cipher_suites`
    CipherSuites,
    /// `legacy_compression_methods`
    CompressionMethods,
    /// The extension block, or an extension in it.
    Extensions,
    /// `server_name_list`, or the name in it.
    ServerNameList,
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hello => "the ClientHello",
            Self::SessionId => "legacy_session_id",
            Self::CipherSuites => "cipher_suites",
            Self::CompressionMethods => "legacy_compression_methods",
            Self::Extensions => "an extension",
            Self::ServerNameList => "server_name_list",
        })
    }
}

/// The rest of the bytes to parse.
#[derive(Clone, Debug)]
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, length: usize, field: Field) -> Result<&'a [u8], Reason> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Reason::Length(field))?;
        self.0 = rest;
        Ok(bytes)
    }

    fn u8(&mut self, field: Field) -> Result<u8, Reason> {
        self.take(1, field).map(|bytes| bytes[0])
    }

    fn u16(&mut self, field: Field) -> Result<u16, Reason> {
        self.take(2, field).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector_u8(&mut self, field: Field) -> Result<&'a [u8], Reason> {
        let length = self.u8(field)?;
        self.take(length.into(), field)
    }

    fn vector_u16(&mut self, field: Field) -> Result<&'a [u8], Reason> {
        let length = self.u16(field)?;
        self.take(length.into(), field)
    }

    fn finish(&self, field: Field) -> Result<(), Reason> {
        if self.is_empty() { Ok(()) } else { Err(Reason::Length(field)) }
    }
}

/// A set of extension types that does not allocate for the few that real hellos carry, and stays linear for the
/// thousands that others may send.
#[derive(Default)]
struct SeenTypes {
    /// The types below 64: one bit each.
    registered: u64,
    /// The first of the others.
    few: [u16; 16],
    few_length: usize,
    /// The rest: one bit for each of the 2^16 types.
    many: Option<Box<[u64; 1024]>>,
}

impl SeenTypes {
    /// Whether the type was not seen before.
    fn insert(&mut self, extension_type: u16) -> bool {
        if extension_type < 64 {
            return set_bit(&mut self.registered, extension_type);
        }
        if self.few[..self.few_length].contains(&extension_type) {
            return false;
        }
        if let Some(free) = self.few.get_mut(self.few_length) {
            *free = extension_type;
            self.few_length += 1;
            return true;
        }
        let many = self.many.get_or_insert_with(|| Box::new([0; 1024]));
        set_bit(&mut many[usize::from(extension_type / 64)], extension_type % 64)
    }
}

/// Whether the bit was not set before.
fn set_bit(word: &mut u64, bit: u16) -> bool {
    let mask = 1 << bit;
    let fresh = *word & mask == 0;
    *word |= mask;
    fresh
}

#[cfg(test)]
#[path = "../../tests/support/hello.rs"]
pub(crate) mod sample;

#[cfg(test)]
mod tests {
    use super::sample::{self, Hello, handshake, record, server_name_list, vector_u16};
    use super::*;

    fn parse(hello: &Hello) -> Result<Option<String>, Reason> {
        let message = hello.message();
        let hello = ClientHello::parse(&message).map_err(|invalid| invalid.reason)?;
        Ok(hello.server_name.map(|name| name.to_string()))
    }

    #[test]
    fn a21_grease_is_no_version() {
        let highest = |first: u16| {
            let versions = [first.to_be_bytes(), [3, 3]].concat();
            let message =
                Hello { extensions: None, ..Hello::new() }.extension(43, [&[4][..], &versions].concat()).message();
            ClientHello::parse(&message).unwrap().highest_version()
        };
        for nibble in 0..16 {
            let byte = nibble << 4 | 0x0a;
            assert_eq!(highest(byte << 8 | byte), 0x0303);
        }
        for other in [0x0a1a, 0x1a0a, 0x0b0b, 0xaaab, 0x0304] {
            assert_eq!(highest(other), other, "{other:#06x}");
        }
    }

    #[test]
    fn a08_session_ids_have_at_most_32_bytes() {
        for length in 0..=40 {
            let hello = Hello { session_id: vec![7; length], ..Hello::to("a.example") };
            assert_eq!(ClientHello::parse(&hello.message()).is_ok(), length <= 32, "{length}");
        }
    }

    #[test]
    fn a_name_is_read_wherever_it_stands() {
        let last = Hello::to("a.example");
        let first = Hello::new().first_extension(sample::SERVER_NAME, server_name_list(&[(0, b"A.Example.")]));
        for hello in [last, first] {
            assert_eq!(parse(&hello), Ok(Some("a.example".into())));
        }
        assert_eq!(parse(&Hello::new()), Ok(None));
        assert_eq!(parse(&Hello::new().without_extensions()), Ok(None));
        assert_eq!(parse(&Hello { extensions: Some(Vec::new()), ..Hello::new() }), Ok(None));
    }

    #[test]
    fn a08_every_length_must_be_exact() {
        let message = Hello::to("a.example").alpn(&["h2"]).message();
        let name = message.windows(9).position(|window| window == b"a.example").unwrap();
        let extensions = 4 + 2 + 32 + 1 + 32 + 2 + 8 + 2;
        // Session id, cipher suites, compression methods, extension block, the extension before the name,
        // server_name, its list, the name.
        for (at, width) in [(38, 1), (71, 2), (81, 1), (extensions, 2), (name - 7, 2), (name - 5, 2), (name - 2, 2)] {
            for delta in [-5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 0xff, 0xffff] {
                let mut wrong = message.clone();
                let field = &mut wrong[at..at + width];
                let old = field.iter().fold(0i64, |value, byte| value << 8 | i64::from(*byte));
                let new = if delta == 0xffff { 0xffff } else { old + delta };
                field.copy_from_slice(&new.to_be_bytes()[8 - width..]);
                if wrong == message {
                    continue;
                }
                let parsed = ClientHello::parse(&wrong).map(|hello| hello.server_name.map(|name| name.to_string()));
                assert!(parsed.is_err(), "byte {at} {delta:+}: {parsed:?}");
            }
        }
        for cut in 1..5 {
            let body = &message[4..];
            assert!(ClientHello::parse(&handshake(1, &body[..body.len() - cut])).is_err(), "{cut} bytes short");
            assert!(ClientHello::parse(&handshake(1, &[body, &[0; 5][..cut]].concat())).is_err(), "{cut} bytes long");
        }
    }

    #[test]
    fn a08_the_field_with_the_wrong_length_is_named() {
        let message = Hello::to("a.example").message();
        let reason = |message: &[u8]| ClientHello::parse(message).unwrap_err().reason.to_string();
        let list = message.windows(9).position(|window| window == b"a.example").unwrap() - 5;
        for (at, width, field) in [
            (38, 1, "legacy_session_id"),
            (71, 2, "cipher_suites"),
            (81, 1, "legacy_compression_methods"),
            (83, 2, "an extension"),
            (list, 2, "server_name_list"),
        ] {
            let mut wrong = message.clone();
            wrong[at..at + width].fill(0xff);
            assert_eq!(reason(&wrong), format!("wrong length of {field}"));
        }
        assert_eq!(reason(&message[..37]), "wrong length of the ClientHello");
    }

    #[test]
    fn a09_one_host_name_and_nothing_else() {
        let with = |content: Vec<u8>| parse(&Hello::new().extension(sample::SERVER_NAME, content));
        assert_eq!(
            parse(&Hello::to("a.example").server_name(b"b.example")),
            Err(Reason::DuplicateExtension(sample::SERVER_NAME))
        );
        assert_eq!(with(server_name_list(&[(0, b"a.example"), (0, b"b.example")])), Err(Reason::SeveralNames));
        assert_eq!(with(server_name_list(&[(0, b"a.example"), (1, b"b.example")])), Err(Reason::SeveralNames));
        assert_eq!(with(server_name_list(&[(1, b"a.example")])), Err(Reason::NameType(1)));
        assert_eq!(with(server_name_list(&[(0, b"")])), Err(Reason::Name(NameError::Empty)));
        assert_eq!(with(server_name_list(&[])), Err(Reason::Length(Field::ServerNameList)));
        assert_eq!(with(vec![]), Err(Reason::Length(Field::ServerNameList)));
        assert!(Reason::Length(Field::ServerNameList).to_string().contains("server_name_list"));
        assert_eq!(
            with([server_name_list(&[(0, b"a")]), vec![0]].concat()),
            Err(Reason::Length(Field::ServerNameList))
        );
    }

    #[test]
    fn a10_a_bad_name_is_told_with_its_bytes() {
        let message = Hello::new().server_name(b"a.example\0").message();
        let invalid = ClientHello::parse(&message).unwrap_err();
        assert_eq!(invalid.reason, Reason::Name(NameError::Character));
        assert_eq!(invalid.server_name, Some(&b"a.example\0"[..]));
    }

    #[test]
    fn a12_an_address_as_name_is_no_name_if_that_was_chosen() {
        for (name, literal) in [("192.0.2.1", "192.0.2.1"), ("[2001:db8::1]", "2001:db8::1")] {
            let message = Hello::to(name).message();
            let invalid = ClientHello::parse_with(&message, IpLiteral::Refused).unwrap_err();
            assert_eq!(invalid.reason, Reason::Name(NameError::IpAddress));
            let hello = ClientHello::parse_with(&message, IpLiteral::NoName).unwrap();
            assert_eq!((hello.server_name, hello.ip_literal), (None, literal.parse().ok()));
        }
        for (name, error) in [("127.1", NameError::IpAddress), ("a..example", NameError::EmptyLabel)] {
            let message = Hello::to(name).message();
            let invalid = ClientHello::parse_with(&message, IpLiteral::NoName).unwrap_err();
            assert_eq!(invalid.reason, Reason::Name(error), "{name}");
        }
    }

    #[test]
    fn a09_duplicate_extensions_are_found_among_few_and_many() {
        for count in [2, 17, 18, 100, 3000] {
            let types = |count| (0..count).map(|number| 0x1000 + number);
            let all_different = types(count).fold(Hello::to("a.example"), |hello, number| hello.extension(number, []));
            assert_eq!(parse(&all_different), Ok(Some("a.example".into())));
            for twice in [0x1000, 0x1000 + count / 2, 0x1000 + count - 1] {
                assert_eq!(
                    parse(&all_different.clone().extension(twice, [])),
                    Err(Reason::DuplicateExtension(twice)),
                    "{count} extensions"
                );
            }
        }
    }

    #[test]
    fn a09_types_at_the_edge_of_the_registered_ones_are_seen_once() {
        for twice in [62, 63, 64, 65, 127, 128, u16::MAX] {
            let mut seen = SeenTypes::default();
            assert!(seen.insert(twice) && !seen.insert(twice), "{twice}");
            assert!(seen.insert(twice ^ 64), "another than {twice}");
        }
    }

    #[test]
    fn a21_grease_early_data_and_ech_are_no_obstacle() {
        let message = Hello::to("a.example")
            .first_extension(0x0a0a, [])
            .extension(0xfafa, [0])
            .extension(sample::EARLY_DATA, [])
            .extension(sample::ENCRYPTED_CLIENT_HELLO, [0; 64])
            .message();
        let hello = ClientHello::parse(&message).unwrap();
        assert_eq!(hello.server_name, ServerName::parse(b"a.example").ok());
        assert!(hello.early_data && hello.ech);
        assert_eq!(hello.highest_version(), 0x0304);
    }

    #[test]
    fn a26_other_extensions_are_not_judged() {
        for broken in [&[][..], &[0], &[9, 9, 9], &[0xff; 40]] {
            let mut hello = Hello::to("a.example").extension(sample::ALPN, broken).extension(0xff01, broken);
            for extension in hello.extensions.as_mut().unwrap() {
                if extension.0 == sample::SUPPORTED_VERSIONS || extension.0 == sample::KEY_SHARE {
                    extension.1 = broken.to_vec();
                }
            }
            let message = hello.message();
            let hello = ClientHello::parse(&message).unwrap();
            assert_eq!(hello.server_name, ServerName::parse(b"a.example").ok());
            assert_eq!(hello.alpn.err(), Some(Absent::Malformed));
            assert_eq!(hello.supported_versions.err(), Some(Absent::Malformed));
            assert_eq!(hello.highest_version(), 0x0303);
        }
        assert_eq!(Alpn::parse(&vector_u16(&[0])).err(), Some(Absent::Malformed), "an empty protocol");
    }

    #[test]
    fn protocols_and_versions_are_listed_in_order() {
        let message = Hello::to("a.example").alpn(&["h2", "http/1.1"]).message();
        let hello = ClientHello::parse(&message).unwrap();
        let alpn = hello.alpn.unwrap();
        assert_eq!(alpn.iter().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
        assert_eq!(alpn.as_list(), b"\x02h2\x08http/1.1");
        assert_eq!(hello.supported_versions.unwrap().iter().collect::<Vec<_>>(), [0x0304, 0x0303]);
        let message = Hello::new().message();
        assert_eq!(ClientHello::parse(&message).unwrap().alpn.err(), Some(Absent::NotSent));
    }

    #[test]
    fn any_message_may_be_parsed_alone() {
        for bytes in [&b""[..], b"\x01", b"\x01\0\0\0", &record(22, b"x")] {
            assert!(ClientHello::parse(bytes).is_err());
        }
    }
}
