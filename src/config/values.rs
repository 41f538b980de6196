//! Addresses, names and paths in the file.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

use super::schema::ValueSyntax;
use super::text::Written;
use crate::client_hello::Ja4;
use crate::name::NamePattern;
use crate::proxy_protocol::Version;
use crate::text::Destination;
use crate::text::escape::is_visible;
use crate::text::pasted;
use crate::upstream::health::CaFile;

const ADDRESS: &str = r"^(\d{1,3}(\.\d{1,3}){3}|\[[0-9A-Fa-f:.]+(%\d+)?\]):0*\d{1,5}$";

fn from_str<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| String::new())
}

impl Written for SocketAddr {
    const EXPECTED: &'static str = "an IP address and port such as 0.0.0.0:6443 or \"[::]:6443\"";
    const SYNTAX: ValueSyntax = ValueSyntax::text("Address", ADDRESS);

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| pasted::listener(text).unwrap_or_default())
    }
}

/// The address of the admin listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdminAddress(pub(super) SocketAddr);

impl Written for AdminAddress {
    const EXPECTED: &'static str = "a loopback address and port such as 127.0.0.1:9443";
    const SYNTAX: ValueSyntax = ValueSyntax::text("AdminAddress", ADDRESS);

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| pasted::listener(text).unwrap_or_default())
    }
}

impl Written for NamePattern {
    const EXPECTED: &'static str = "a DNS name such as a.example.com, or \"*.example.com\" for all names below it";
    const SYNTAX: ValueSyntax =
        ValueSyntax::text("ServerName", r"^(\*\.)?([0-9A-Za-z_-]{1,63}\.)*[0-9A-Za-z_-]*[A-Za-z_-][0-9A-Za-z_-]*\.?$");

    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| match text {
            "*" => "to match every name, omit `sni`".into(),
            _ => pasted::name(text, error),
        })
    }
}

impl Written for Ja4 {
    const EXPECTED: &'static str = "a JA4 fingerprint of TLS over TCP such as t13d1516h2_8daaf6152771_e5627efa2ab1";
    const SYNTAX: ValueSyntax =
        ValueSyntax::text("Ja4", "^t(1[0-3]|s[23]|d[1-3]|00)[di][0-9]{4}[0-9A-Za-z]{2}_[0-9a-f]{12}_[0-9a-f]{12}$");

    fn read(text: &str) -> Result<Self, String> {
        from_str(text)
    }
}

impl Written for Destination {
    const EXPECTED: &'static str = "host:port such as api.example.com:6443, 192.0.2.1:6443 or \"[2001:db8::1]:6443\"";
    const SYNTAX: ValueSyntax =
        ValueSyntax::text("Endpoint", r"^(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z_.-]+):\+?0*[1-9]\d{0,4}$");

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

/// A DC/OS service.
#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) String);

impl Written for Service {
    const EXPECTED: &'static str = "a service name such as dev/kubernetes01";
    const SYNTAX: ValueSyntax = ValueSyntax::text("Service", "^[0-9A-Za-z_./-]+$");

    fn read(text: &str) -> Result<Self, String> {
        Destination::dcos(text, 1).map(|_| Self(text.into())).map_err(|_| String::new())
    }
}

/// The path of a file, relative to the directory of the one that has it.
#[derive(Clone, Debug)]
pub(super) struct FilePath(pub(super) PathBuf);

impl Written for FilePath {
    const EXPECTED: &'static str = "a file path, relative to the directory of this file";
    const SYNTAX: ValueSyntax = ValueSyntax::text("File", r"^[^\x00]+$");

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') { Err(String::new()) } else { Ok(Self(text.into())) }
    }
}

/// A pattern of paths of files, relative to the directory of the one that has it.
#[derive(Clone, Debug)]
pub(super) struct FilePattern(pub(super) String);

impl Written for FilePattern {
    const EXPECTED: &'static str = "a path such as routes.d/*.yaml, relative to the directory of this file";
    const SYNTAX: ValueSyntax = ValueSyntax::text("FilePattern", r"^[^\x00\[\]{}]+$");

    fn read(text: &str) -> Result<Self, String> {
        FilePath::read(text)?;
        if text.contains("**") || text.contains(['[', ']', '{', '}']) {
            return Err("only `*` and `?` are wildcards, each within one directory".into());
        }
        Ok(Self(text.into()))
    }
}

/// The path of a Unix socket.
#[derive(Clone, Debug)]
pub(super) struct SocketPath(pub(super) PathBuf);

impl Written for SocketPath {
    const EXPECTED: &'static str = "an absolute path of at most 107 bytes, such as /run/snigate/control.sock";
    const SYNTAX: ValueSyntax = ValueSyntax::text("SocketPath", r"^/[^\x00]{1,106}$");

    fn read(text: &str) -> Result<Self, String> {
        let fits = text.starts_with('/') && (2..=107).contains(&text.len()) && !text.contains('\0');
        if fits && !text.ends_with('/') { Ok(Self(text.into())) } else { Err(String::new()) }
    }
}

/// A PEM file with trusted certificates, or those of the system.
#[derive(Clone, Debug)]
pub(super) struct TrustedFile(pub(super) CaFile);

impl Written for TrustedFile {
    const EXPECTED: &'static str = "the path of a PEM file, relative to the directory of this file, or system";
    const SYNTAX: ValueSyntax = ValueSyntax::text("CaFile", r"^[^\x00]+$");

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "system" => Ok(Self(CaFile::System)),
            path => FilePath::read(path).map(|FilePath(path)| Self(CaFile::File(path))),
        }
    }
}

/// The name to verify in a certificate.
#[derive(Clone, Debug)]
pub(super) struct CheckName(pub(super) rustls::pki_types::ServerName<'static>);

impl Written for CheckName {
    const EXPECTED: &'static str = "a DNS name such as kubernetes, or an IP address";
    const SYNTAX: ValueSyntax = ValueSyntax::text("CertificateName", "^[0-9A-Za-z_.:-]+$");

    fn read(text: &str) -> Result<Self, String> {
        text.to_owned().try_into().map(Self).map_err(|_| String::new())
    }
}

/// The path of an HTTP request.
#[derive(Clone, Debug)]
pub(super) struct RequestPath(pub(super) hyper::Uri);

impl Written for RequestPath {
    const EXPECTED: &'static str = "a path such as /readyz, with or without a query";
    const SYNTAX: ValueSyntax = ValueSyntax::text("RequestPath", "^/[^ ]*$");

    fn read(text: &str) -> Result<Self, String> {
        let uri = from_str::<hyper::Uri>(text)?;
        if text.starts_with('/') && uri.authority().is_none() { Ok(Self(uri)) } else { Err(String::new()) }
    }
}

/// HTTP status codes.
#[derive(Clone, Debug)]
pub(super) struct StatusRange(pub(super) RangeInclusive<u16>);

impl Written for StatusRange {
    const EXPECTED: &'static str = "an HTTP status from 100 to 599 such as 200, or a range such as 200-399";
    const SYNTAX: ValueSyntax = ValueSyntax::text("StatusRange", r"^[1-5]\d\d(-[1-5]\d\d)?$").or_number(100..=599);

    fn read(text: &str) -> Result<Self, String> {
        let status = |text: &str| {
            let has_three_digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|status| has_three_digits && (100..=599).contains(status)).ok_or_else(String::new)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (status(first)?, status(last)?);
        if first <= last { Ok(Self(first..=last)) } else { Err("the end of the range is below its start".into()) }
    }

    fn from_number(status: u64) -> Option<Self> {
        u16::try_from(status).ok().map(|status| Self(status..=status))
    }
}

/// The version of a PROXY header.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeaderVersion(pub(super) Version);

impl Written for HeaderVersion {
    const EXPECTED: &'static str = "v1 or v2";
    const SYNTAX: ValueSyntax = ValueSyntax::text("HeaderVersion", "^v[12]$");

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "v1" => Ok(Self(Version::V1)),
            "v2" => Ok(Self(Version::V2)),
            _ => Err(String::new()),
        }
    }
}

/// The local address of connections to endpoints.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// The address of the client.
    Client,
    Address(IpAddr),
}

impl Written for Source {
    const EXPECTED: &'static str = "an IP address of this machine such as 192.0.2.9, or client";
    const SYNTAX: ValueSyntax =
        ValueSyntax::text("Source", r"^(client|\d{1,3}(\.\d{1,3}){3}|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)$");

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "client" => Ok(Self::Client),
            _ => from_str(text).map(|address: IpAddr| Self::Address(address.to_canonical())),
        }
    }
}

/// The number of a TLV in a PROXY header.
#[derive(Clone, Copy, Debug)]
pub(super) struct TlvNumber(pub(super) u8);

impl Written for TlvNumber {
    const EXPECTED: &'static str = "the number of a TLV from 0x00 to 0xff, such as 0xe0";
    const SYNTAX: ValueSyntax = ValueSyntax::text("TlvNumber", "^(0x[0-9A-Fa-f]{1,2}|[0-9]{1,3})$").or_number(0..=255);

    fn read(text: &str) -> Result<Self, String> {
        let number = match text.strip_prefix("0x") {
            Some(hex) => u8::from_str_radix(hex, 16).ok().filter(|_| !hex.starts_with('+')),
            None => text.parse().ok().filter(|_| !text.starts_with('+')),
        };
        number.map(Self).ok_or_else(String::new)
    }

    fn from_number(number: u64) -> Option<Self> {
        u8::try_from(number).ok().map(Self)
    }
}

/// The value of a TLV in a PROXY header.
#[derive(Clone, Debug)]
pub(super) struct TlvValue(pub(super) Box<[u8]>);

/// In bytes. Longer ones cannot be compared with what anybody would write in a file.
const MAX_TLV_VALUE: usize = 4096;

impl Written for TlvValue {
    const EXPECTED: &'static str =
        "a value in quotes: text, or bytes in hexadecimal such as \"0x6ba7b810\"; at most 4096 bytes";
    const SYNTAX: ValueSyntax = ValueSyntax::text("TlvValue", r"^[\s\S]*$");

    fn read(text: &str) -> Result<Self, String> {
        let bytes = match text.strip_prefix("0x") {
            None => text.as_bytes().to_vec(),
            Some(hex) => {
                let digit = |digit: u8| char::from(digit).to_digit(16);
                let byte = |two: &[u8]| {
                    let &[high, low] = two else { return None };
                    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
                };
                let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(byte).collect();
                bytes.ok_or("after `0x` there must be two hexadecimal digits for each byte")?
            }
        };
        if bytes.len() > MAX_TLV_VALUE { Err(String::new()) } else { Ok(Self(bytes.into())) }
    }
}

/// The operator's name for a listener or route.
#[derive(Clone, Debug)]
pub(super) struct Label(pub(super) String);

impl Written for Label {
    const EXPECTED: &'static str = "a name of 1 to 253 printable characters that does not start with '_'";
    const SYNTAX: ValueSyntax = ValueSyntax::text("Label", r"^[^_\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]{0,252}$");

    fn read(text: &str) -> Result<Self, String> {
        let fits = (1..=253).contains(&text.chars().count()) && !text.starts_with('_') && text.chars().all(is_visible);
        if fits { Ok(Self(text.into())) } else { Err(String::new()) }
    }
}

/// An application protocol (RFC 7301).
#[derive(Clone, Debug)]
pub(super) struct Protocol(pub(super) String);

impl Written for Protocol {
    const EXPECTED: &'static str = "an ALPN protocol of 1 to 255 bytes such as h2";
    const SYNTAX: ValueSyntax = ValueSyntax::text("Protocol", r"^[\s\S]{1,255}$");

    fn read(text: &str) -> Result<Self, String> {
        if (1..=255).contains(&text.len()) { Ok(Self(text.into())) } else { Err(String::new()) }
    }
}

/// A network of clients. IPv4-mapped IPv6 becomes IPv4, as clients' addresses do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network(pub(super) IpNet);

impl Written for Network {
    const EXPECTED: &'static str = "a network such as 192.0.2.0/24 or \"2001:db8::/32\", or a single address";
    const SYNTAX: ValueSyntax = ValueSyntax::text(
        "Network",
        r"^(\d{1,3}(\.\d{1,3}){3}(/([0-2]?\d|3[0-2]))?|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(/\d{1,3})?)$",
    );

    fn read(text: &str) -> Result<Self, String> {
        let net = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => from_str(text)?,
        };
        if net.addr() != net.network() {
            return Err(format!("host bits are set (did you mean {}?)", net.trunc()));
        }
        let canonical = match net {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => {
                v6.network().to_ipv4_mapped().and_then(|v4| Ipv4Net::new(v4, v6.prefix_len() - 96).ok()).map(IpNet::V4)
            }
            _ => None,
        };
        Ok(Self(canonical.unwrap_or(net)))
    }
}
