//! Values that stand in a file as text or numbers: addresses, durations, sizes, and lists of them.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::schema::Form;
use crate::connection::admission::Rate;
use crate::name::NamePattern;
use crate::text::Destination;
use crate::text::escape::{is_visible, visible};
use crate::text::pasted;
use crate::upstream::health::CaFile;

/// A value written as text.
pub(super) trait Written: Sized {
    /// What is expected, with an example.
    const EXPECTED: &'static str;

    /// What it looks like. Its range is the one that numbers are held to, its pattern is for editors only.
    const FORM: Form;

    /// The reason, where there is more to say than what was expected.
    fn read(text: &str) -> Result<Self, String>;

    /// A number of the form's range. Most values are no numbers.
    fn from_number(_: u64) -> Option<Self> {
        None
    }
}

/// Deserializes a [`Written`] value.
#[derive(Clone, Debug)]
pub(super) struct Text<T>(pub(super) T);

impl<'de, T: Written> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor(PhantomData))
    }
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: Written> TextVisitor<T> {
    fn result<E: Error>(read: Result<T, String>, written: impl fmt::Display) -> Result<Text<T>, E> {
        read.map(Text).map_err(|reason| {
            let reason = if reason.is_empty() { String::new() } else { format!("{reason}; ") };
            E::custom(format_args!("`{written}`: {reason}expected {}", T::EXPECTED))
        })
    }
}

impl<T: Written> Visitor<'_> for TextVisitor<T> {
    type Value = Text<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Self::result(T::read(text), visible(text))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        if T::FORM.numbers.is_some() {
            Self::result(within_range(number), number)
        } else {
            Err(E::invalid_type(serde::de::Unexpected::Unsigned(number), &self))
        }
    }
}

fn within_range<T: Written>(number: u64) -> Result<T, String> {
    let is_within = T::FORM.numbers.is_some_and(|range| range.contains(&number));
    is_within.then(|| T::from_number(number)).flatten().ok_or_else(|| "out of range".into())
}

/// One value, or a list of at least one.
#[derive(Clone, Debug)]
pub(super) struct OneOrMany<T>(pub(super) Vec<T>);

impl<'de, T: Written> Deserialize<'de> for OneOrMany<Text<T>> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

struct OneOrManyVisitor<T>(PhantomData<T>);

impl<'de, T: Written> Visitor<'de> for OneOrManyVisitor<T> {
    type Value = OneOrMany<Text<T>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or a list of such", T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        one_of_many(text).map(|one| OneOrMany(vec![one]))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        TextVisitor(PhantomData).visit_u64(number).map(|one| OneOrMany(vec![one]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Self::Value, A::Error> {
        let many = Vec::deserialize(SeqAccessDeserializer::new(sequence))?;
        if many.is_empty() {
            Err(A::Error::custom(format_args!("an empty list; expected {}", T::EXPECTED)))
        } else {
            Ok(OneOrMany(many))
        }
    }
}

/// Where a list may be as well.
pub(super) fn one_of_many<T: Written, E: Error>(text: &str) -> Result<Text<T>, E> {
    match pasted::list(text, |part| T::read(part).is_ok()) {
        Some(list) if T::read(text).is_err() => TextVisitor::result(Err(list), visible(text)),
        _ => TextVisitor(PhantomData).visit_str(text),
    }
}

/// A map, or text that stands for one.
pub(super) trait Shorthand: Sized {
    /// What the text may be, with an example.
    const EXPECTED: &'static str;

    type Text: Written;

    fn from_text(text: Self::Text) -> Self;

    fn from_list(_: Vec<Text<Self::Text>>) -> Option<Self> {
        None
    }
}

/// Deserializes a [`Shorthand`] value.
#[derive(Clone, Debug)]
pub(super) struct Short<T>(pub(super) T);

impl<'de, T: Shorthand + Deserialize<'de>> Deserialize<'de> for Short<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShortVisitor(PhantomData))
    }
}

struct ShortVisitor<T>(PhantomData<T>);

impl<'de, T: Shorthand + Deserialize<'de>> Visitor<'de> for ShortVisitor<T> {
    type Value = Short<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let text = if T::from_list(Vec::new()).is_some() {
            one_of_many(text)?
        } else {
            TextVisitor(PhantomData).visit_str(text)?
        };
        Ok(Short(T::from_text(text.0)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Self::Value, A::Error> {
        let list: OneOrMany<_> = OneOrManyVisitor(PhantomData).visit_seq(sequence)?;
        T::from_list(list.0).map(Short).ok_or_else(|| A::Error::invalid_type(serde::de::Unexpected::Seq, &self))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Short)
    }
}

const ADDRESS: &str = r"^(\d{1,3}(\.\d{1,3}){3}|\[[0-9A-Fa-f:.]+(%\d+)?\]):0*\d{1,5}$";

fn from_str<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| String::new())
}

impl Written for SocketAddr {
    const EXPECTED: &'static str = "an IP address and port such as 0.0.0.0:6443 or \"[::]:6443\"";
    const FORM: Form = Form::text("Address", ADDRESS);

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| pasted::listener(text).unwrap_or_default())
    }
}

/// Where the admin listener is.
#[derive(Clone, Copy, Debug)]
pub(super) struct AdminAddress(pub(super) SocketAddr);

impl Written for AdminAddress {
    const EXPECTED: &'static str = "a loopback address and port such as 127.0.0.1:9443";
    const FORM: Form = Form::text("AdminAddress", ADDRESS);

    fn read(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| pasted::listener(text).unwrap_or_default())
    }
}

impl Written for NamePattern {
    const EXPECTED: &'static str = "a DNS name such as a.example.com, or \"*.example.com\" for all names below one";
    const FORM: Form =
        Form::text("ServerName", r"^(\*\.)?([0-9A-Za-z_-]{1,63}\.)*[0-9A-Za-z_-]*[A-Za-z_-][0-9A-Za-z_-]*\.?$");

    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|error| match text {
            "*" => "to take every name, leave `sni` out".into(),
            _ => pasted::name(text, error),
        })
    }
}

impl Written for Destination {
    const EXPECTED: &'static str = "host:port such as api.example.com:6443, 192.0.2.1:6443 or \"[2001:db8::1]:6443\"";
    const FORM: Form = Form::text("Endpoint", r"^(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z_.-]+):\+?0*[1-9]\d{0,4}$");

    fn read(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

/// A DC/OS service.
#[derive(Clone, Debug)]
pub(super) struct Service(pub(super) String);

impl Written for Service {
    const EXPECTED: &'static str = "the name of a service such as dev/kubernetes01";
    const FORM: Form = Form::text("Service", "^[0-9A-Za-z_./-]+$");

    fn read(text: &str) -> Result<Self, String> {
        Destination::dcos(text, 1).map(|_| Self(text.into())).map_err(|_| String::new())
    }
}

/// A file, by its path from the directory of the configuration.
#[derive(Clone, Debug)]
pub(super) struct FilePath(pub(super) PathBuf);

impl Written for FilePath {
    const EXPECTED: &'static str = "the path of a file, from the directory of the configuration";
    const FORM: Form = Form::text("File", r"^[^\x00]+$");

    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains('\0') { Err(String::new()) } else { Ok(Self(text.into())) }
    }
}

/// Where the trusted certificates are.
#[derive(Clone, Debug)]
pub(super) struct TrustedFile(pub(super) CaFile);

impl Written for TrustedFile {
    const EXPECTED: &'static str = "the path of a PEM file, from the directory of the configuration, or system";
    const FORM: Form = Form::text("CaFile", r"^[^\x00]+$");

    fn read(text: &str) -> Result<Self, String> {
        match text {
            "system" => Ok(Self(CaFile::System)),
            path => FilePath::read(path).map(|FilePath(path)| Self(CaFile::File(path))),
        }
    }
}

/// The name that a certificate must carry.
#[derive(Clone, Debug)]
pub(super) struct CheckName(pub(super) rustls::pki_types::ServerName<'static>);

impl Written for CheckName {
    const EXPECTED: &'static str = "a DNS name such as kubernetes, or an IP address";
    const FORM: Form = Form::text("CertificateName", "^[0-9A-Za-z_.:-]+$");

    fn read(text: &str) -> Result<Self, String> {
        text.to_owned().try_into().map(Self).map_err(|_| String::new())
    }
}

/// What is asked for over HTTP.
#[derive(Clone, Debug)]
pub(super) struct RequestPath(pub(super) hyper::Uri);

impl Written for RequestPath {
    const EXPECTED: &'static str = "a path such as /readyz, with a query or without";
    const FORM: Form = Form::text("RequestPath", "^/[^ ]*$");

    fn read(text: &str) -> Result<Self, String> {
        let uri = from_str::<hyper::Uri>(text)?;
        if text.starts_with('/') && uri.authority().is_none() { Ok(Self(uri)) } else { Err(String::new()) }
    }
}

/// Statuses of HTTP.
#[derive(Clone, Debug)]
pub(super) struct StatusRange(pub(super) RangeInclusive<u16>);

impl Written for StatusRange {
    const EXPECTED: &'static str = "a status from 100 to 599 such as 200, or a range such as 200-399";
    const FORM: Form = Form::text("StatusRange", r"^[1-5]\d\d(-[1-5]\d\d)?$").or_number(100..=599);

    fn read(text: &str) -> Result<Self, String> {
        let status = |text: &str| {
            let is_plain = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|status| is_plain && (100..=599).contains(status)).ok_or_else(String::new)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (status(first)?, status(last)?);
        if first <= last { Ok(Self(first..=last)) } else { Err("the range ends before it begins".into()) }
    }

    fn from_number(status: u64) -> Option<Self> {
        u16::try_from(status).ok().map(|status| Self(status..=status))
    }
}

/// A name that the operator gives to something.
#[derive(Clone, Debug)]
pub(super) struct Label(pub(super) String);

impl Written for Label {
    const EXPECTED: &'static str = "a name of 1 to 253 printable characters that does not begin with '_'";
    const FORM: Form = Form::text("Label", r"^[^_\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]{0,252}$");

    fn read(text: &str) -> Result<Self, String> {
        let fits = (1..=253).contains(&text.len()) && !text.starts_with('_') && text.chars().all(is_visible);
        if fits { Ok(Self(text.into())) } else { Err(String::new()) }
    }
}

/// An application protocol (RFC 7301).
#[derive(Clone, Debug)]
pub(super) struct Protocol(pub(super) String);

impl Written for Protocol {
    const EXPECTED: &'static str = "an application protocol of 1 to 255 bytes such as h2";
    const FORM: Form = Form::text("Protocol", r"^[\s\S]{1,255}$");

    fn read(text: &str) -> Result<Self, String> {
        if (1..=255).contains(&text.len()) { Ok(Self(text.into())) } else { Err(String::new()) }
    }
}

/// The longest duration that can be configured; beyond it, sums of times could overflow.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// As humantime reads it.
const DURATION: &str = concat!(
    r"^\s*(\d[\d\s.]*(",
    "ns|nsec|nanos|us|µs|usec|ms|msec|millis|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?",
    r"|w|wks?|weeks?|M|months?|y|yrs?|years?)\s*)+$"
);

fn duration(text: &str, fits: impl FnOnce(&Duration) -> bool) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|_| String::new())?;
    if fits(&duration) { Ok(duration) } else { Err("out of range".into()) }
}

/// A duration of at least a millisecond and at most a year.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span(pub(super) Duration);

impl Written for Span {
    const EXPECTED: &'static str = "a duration from 1ms to 366d with its unit, such as 10s, 500ms, 15m or 24h";
    const FORM: Form = Form::text("Duration", DURATION);

    fn read(text: &str) -> Result<Self, String> {
        duration(text, |duration| (Duration::from_millis(1)..=MAX_DURATION).contains(duration)).map(Self)
    }
}

/// A duration that may be zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct SpanOrZero(pub(super) Duration);

impl Written for SpanOrZero {
    const EXPECTED: &'static str = "a duration from 0s to 366d with its unit, such as 25s";
    const FORM: Form = Form::text("DurationOrZero", DURATION);

    fn read(text: &str) -> Result<Self, String> {
        duration(text, |duration| *duration <= MAX_DURATION).map(Self)
    }
}

/// What the kernel counts in whole seconds, in 16 bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seconds(pub(super) Duration);

impl Written for Seconds {
    const EXPECTED: &'static str = "a duration of whole seconds from 1s to 32767s, such as 30s";
    const FORM: Form = Form::text("Seconds", DURATION);

    fn read(text: &str) -> Result<Self, String> {
        duration(text, |duration| duration.subsec_nanos() == 0 && (1..=32767).contains(&duration.as_secs())).map(Self)
    }
}

/// The range that the socket option of this name has.
#[derive(Clone, Copy, Debug)]
pub(super) struct UserTimeout(pub(super) Duration);

impl Written for UserTimeout {
    const EXPECTED: &'static str = "a duration from 1s to 24d, such as 15m";
    const FORM: Form = Form::text("UserTimeout", DURATION);

    fn read(text: &str) -> Result<Self, String> {
        duration(text, |duration| (1..=24 * 24 * 3600).contains(&duration.as_secs())).map(Self)
    }
}

/// A whole number in a range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count<const MIN: u32, const MAX: u32>(pub(super) u32);

macro_rules! count {
    ($min:literal, $max:literal, $name:literal, $expected:literal) => {
        impl Written for Count<$min, $max> {
            const EXPECTED: &'static str = $expected;
            const FORM: Form = Form::number($name, $min..=$max);

            fn read(_: &str) -> Result<Self, String> {
                Err(String::new())
            }

            fn from_number(number: u64) -> Option<Self> {
                u32::try_from(number).ok().map(Self)
            }
        }
    };
}

count!(1, 127, "SmallCount", "a whole number from 1 to 127");
count!(1, 65_535, "Port", "a port from 1 to 65535");
count!(1, 10_000_000, "Count", "a whole number from 1 to 10000000");
count!(0, 1_000_000, "CountOrAll", "a whole number from 0 to 1000000");

/// How large a hello may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct HelloSize(pub(super) usize);

impl Written for HelloSize {
    const EXPECTED: &'static str = "a size from 1KiB to 64KiB, such as 16KiB";
    const FORM: Form = Form::text("HelloSize", SIZE).or_number(1 << 10..=1 << 16);

    fn read(text: &str) -> Result<Self, String> {
        size(text).and_then(within_range)
    }

    fn from_number(bytes: u64) -> Option<Self> {
        usize::try_from(bytes).ok().map(Self)
    }
}

/// How much may be held in all.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldSize(pub(super) usize);

impl Written for HeldSize {
    const EXPECTED: &'static str = "a size from 1MiB to 1024GiB, such as 256MiB";
    const FORM: Form = Form::text("HeldSize", SIZE).or_number(1 << 20..=1 << 40);

    fn read(text: &str) -> Result<Self, String> {
        size(text).and_then(within_range)
    }

    fn from_number(bytes: u64) -> Option<Self> {
        usize::try_from(bytes).ok().map(Self)
    }
}

const SIZE: &str = r"^\+?\d+\s*(KiB|MiB|GiB)$";

fn size(text: &str) -> Result<u64, String> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let read = units.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?.trim_end(), *bytes)));
    let (number, unit) = read.ok_or("")?;
    let number: u64 = number.parse().map_err(|_| "")?;
    number.checked_mul(unit).ok_or_else(|| "out of range".into())
}

/// Addresses of clients. IPv4 written as IPv6 becomes IPv4, as clients do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network(pub(super) IpNet);

impl Written for Network {
    const EXPECTED: &'static str = "a network such as 192.0.2.0/24 or \"2001:db8::/32\", or an address";
    const FORM: Form = Form::text(
        "Network",
        r"^(\d{1,3}(\.\d{1,3}){3}(/([0-2]?\d|3[0-2]))?|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(/\d{1,3})?)$",
    );

    fn read(text: &str) -> Result<Self, String> {
        let net = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => from_str(text)?,
        };
        if net.addr() != net.network() {
            return Err(format!("it has bits beyond its length; perhaps {} is meant", net.trunc()));
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

/// How fast new connections may come.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewRate(pub(super) Rate);

impl Written for NewRate {
    const EXPECTED: &'static str = "a rate from 1/h to 1000000/s, such as 50/s, 300/m or 1000/h";
    const FORM: Form = Form::text("Rate", r"^\s*\+?\d+\s*/\s*[smh]\s*$");

    fn read(text: &str) -> Result<Self, String> {
        let (count, unit) = text.split_once('/').ok_or("")?;
        let per = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(String::new()),
        };
        let count = count.trim().parse().ok().filter(|count| (1..=1_000_000).contains(count)).ok_or("")?;
        Ok(Self(Rate { count, per: Duration::from_secs(per) }))
    }
}

/// How many worker threads; `None`: as many as CPUs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workers(pub(super) Option<usize>);

impl Written for Workers {
    const EXPECTED: &'static str = "auto, or a whole number from 1 to 1024";
    const FORM: Form = Form::text("Workers", "^auto$").or_number(1..=1024);

    fn read(text: &str) -> Result<Self, String> {
        if text == "auto" { Ok(Self(None)) } else { Err(String::new()) }
    }

    fn from_number(number: u64) -> Option<Self> {
        usize::try_from(number).ok().map(|number| Self(Some(number)))
    }
}
