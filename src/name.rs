//! Server names as clients send them (SNI), and the name patterns of routes.
//!
//! The same rules apply to both: names are ASCII and compared case-insensitively, one trailing dot is removed, labels are
//! 1 to 63 bytes of letters, digits, `-` and `_` that neither start nor end with `-`, and a name has at most
//! [`MAX_LENGTH`] bytes. Names that a resolver would treat as an IP address are invalid
//! ([RFC 6066, section 3](https://www.rfc-editor.org/rfc/rfc6066#section-3)).

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// Maximum length of a name in bytes, without a trailing dot (RFC 1035, section 2.3.4).
pub const MAX_LENGTH: usize = 253;

const MAX_LABEL_LENGTH: usize = 63;

/// A valid server name.
///
/// It borrows from the hello and keeps the case of the client; [`Display`](fmt::Display) and [`fold`](Self::fold) return
/// the lower-case form in which names are compared.
#[derive(Clone, Copy, Debug)]
pub struct ServerName<'a>(&'a str);

impl<'a> ServerName<'a> {
    /// Parses the bytes of a `host_name`.
    ///
    /// # Errors
    ///
    /// The first rule that the name violates.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NameError> {
        // "[…] a byte string using ASCII encoding without a trailing dot" (RFC 6066, section 3): some clients send one.
        let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
        check(bytes)?;
        // It is ASCII after the check.
        str::from_utf8(bytes).map(Self).map_err(|_| NameError::Character)
    }

    /// The name in lower case, written into `buffer`.
    pub fn fold<'b>(&self, buffer: &'b mut [u8; MAX_LENGTH]) -> &'b str {
        let folded = &mut buffer[..self.0.len()];
        folded.copy_from_slice(self.0.as_bytes());
        folded.make_ascii_lowercase();
        str::from_utf8(folded).unwrap_or_default()
    }

    /// The name as the client sent it, without a trailing dot.
    #[must_use]
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

impl PartialEq for ServerName<'_> {
    fn eq(&self, other: &Self) -> bool {
        // "DNS hostnames are case-insensitive." (RFC 6066, section 3)
        self.0.eq_ignore_ascii_case(other.0)
    }
}

impl Eq for ServerName<'_> {}

impl fmt::Display for ServerName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.fold(&mut [0; MAX_LENGTH]))
    }
}

/// A pattern that matches one name, or all names below a suffix.
///
/// Ordered by precedence: an exact name is greater than any wildcard.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamePattern {
    /// `*.example.com`: any name that ends in `.example.com`, at any depth, but not `example.com` itself.
    /// Contains the part after `*.`, in lower case.
    Suffix(Box<str>),
    /// `a.example.com`: only this name. In lower case.
    Exact(Box<str>),
}

impl NamePattern {
    /// Parses a name, or `*.` followed by a name.
    ///
    /// # Errors
    ///
    /// The first rule that the name violates; a `*` at any other position is a [`NameError::Character`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix("*.") {
            Some(suffix) => ServerName::parse(suffix.as_bytes()).map(|name| Self::Suffix(name.to_string().into())),
            None => ServerName::parse(text.as_bytes()).map(|name| Self::Exact(name.to_string().into())),
        }
    }

    /// The name, if it is not a wildcard.
    #[must_use]
    pub fn as_exact(&self) -> Option<&str> {
        match self {
            Self::Exact(name) => Some(name),
            Self::Suffix(_) => None,
        }
    }

    /// Whether the pattern matches the name.
    #[must_use]
    pub fn matches(&self, name: &ServerName<'_>) -> bool {
        let mut buffer = [0; MAX_LENGTH];
        let name = name.fold(&mut buffer);
        match self {
            Self::Exact(exact) => name == &**exact,
            Self::Suffix(suffix) => parents(name).any(|parent| parent == &**suffix),
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

/// The parent domains of `name`, nearest first: `b.c` and `c` for `a.b.c`.
pub(crate) fn parents(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(parent(name), |name| parent(name))
}

fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, parent)| parent)
}

/// Why a name is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum NameError {
    /// Empty, or only a dot.
    #[error("the name is empty")]
    Empty,
    /// More than [`MAX_LENGTH`] bytes.
    #[error("the name is longer than 253 bytes")]
    TooLong,
    /// Two consecutive dots, or a leading dot.
    #[error("the name has an empty label")]
    EmptyLabel,
    /// A label with more than 63 bytes.
    #[error("the name has a label longer than 63 bytes")]
    LabelTooLong,
    /// A byte other than ASCII letters, digits, `-`, `_` and dots.
    #[error("the name has a character other than letters, digits, '-', '_' and '.'")]
    Character,
    /// A label that starts or ends with `-`.
    #[error("the name has a label that starts or ends with '-'")]
    Hyphen,
    /// An IP address, or a name that resolvers treat as one, because its last label is a number.
    #[error("the name is an IP address")]
    IpAddress,
}

fn check(name: &[u8]) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_LENGTH {
        return Err(NameError::TooLong);
    }
    let mut last = name;
    for label in name.split(|byte| *byte == b'.') {
        check_label(label).map_err(|error| if ip_literal(name).is_some() { NameError::IpAddress } else { error })?;
        last = label;
    }
    if is_number(last) { Err(NameError::IpAddress) } else { Ok(()) }
}

fn check_label(label: &[u8]) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::EmptyLabel);
    }
    if label.len() > MAX_LABEL_LENGTH {
        return Err(NameError::LabelTooLong);
    }
    if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        return Err(NameError::Character);
    }
    if label.starts_with(b"-") || label.ends_with(b"-") {
        return Err(NameError::Hyphen);
    }
    Ok(())
}

/// `inet_aton(3)` accepts `1.2.3.4`, `127.1`, `0x7f.1` and `2130706433`: all end in a number.
fn is_number(label: &[u8]) -> bool {
    match label {
        [b'0', b'x' | b'X', hex @ ..] => hex.iter().all(u8::is_ascii_hexdigit),
        decimal => decimal.iter().all(u8::is_ascii_digit),
    }
}

/// Parses an IP address, with or without brackets; not the other forms of `inet_aton(3)`.
#[must_use]
pub fn ip_literal(name: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(name).ok()?;
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(bracketed) => bracketed.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a10_hostile_names_are_refused() {
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = format!("{}example", "a.".repeat(124));
        let cases: &[(&[u8], NameError)] = &[
            (b"", NameError::Empty),
            (b".", NameError::Empty),
            (b"..", NameError::EmptyLabel),
            (b"a..b", NameError::EmptyLabel),
            (b".a", NameError::EmptyLabel),
            (b"a.example..", NameError::EmptyLabel),
            (b"a.example\0", NameError::Character),
            (b"a\0.example", NameError::Character),
            (b"a b.example", NameError::Character),
            (b"a%00.example", NameError::Character),
            (b"a/b.example", NameError::Character),
            (b"a.example:443", NameError::Character),
            (b"a.example\r\nX: y", NameError::Character),
            ("ä.example".as_bytes(), NameError::Character),
            (b"\xff.example", NameError::Character),
            (b"*.example", NameError::Character),
            (b"-", NameError::Hyphen),
            (b"-a.example", NameError::Hyphen),
            (b"a-.example", NameError::Hyphen),
            (long_label.as_bytes(), NameError::LabelTooLong),
            (long_name.as_bytes(), NameError::TooLong),
        ];
        for (name, expected) in cases {
            assert_eq!(ServerName::parse(name).err(), Some(*expected), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn a11_case_is_folded_and_one_trailing_dot_dropped() {
        for name in ["a.example.com", "A.Example.COM", "a.example.com.", "A.EXAMPLE.COM."] {
            let name = ServerName::parse(name.as_bytes()).unwrap();
            assert_eq!(name.to_string(), "a.example.com");
            assert_eq!(name, ServerName::parse(b"a.EXAMPLE.com").unwrap());
            assert!(NamePattern::parse("A.example.com.").unwrap().matches(&name));
            assert!(NamePattern::parse("*.Example.com.").unwrap().matches(&name));
        }
    }

    #[test]
    fn a12_addresses_are_not_names() {
        let addresses = [
            "1.2.3.4",
            "1.2.3.4.",
            "127.1",
            "0x7f.0.0.1",
            "0x7F000001",
            "017700000001",
            "2130706433",
            "a.0x",
            "::1",
            "[::1]",
            "fe80::1",
            "[2001:db8::1]",
            "::ffff:1.2.3.4",
        ];
        for address in addresses {
            assert_eq!(ServerName::parse(address.as_bytes()).err(), Some(NameError::IpAddress), "{address}");
            assert!(NamePattern::parse(address).is_err(), "{address}");
        }
    }

    #[test]
    fn ordinary_names_pass() {
        let longest = format!("{}a.example", "a.".repeat(122));
        assert_eq!(longest.len(), MAX_LENGTH);
        let longest_label = format!("{}.example", "a".repeat(63));
        let names = ["a", "localhost", "a_b.example", "_tcp.example", "xn--bcher-kva.example", "1.example", "a.1a"];
        for name in names.into_iter().chain([longest.as_str(), &longest_label]) {
            let parsed = ServerName::parse(name.as_bytes()).unwrap();
            assert_eq!(parsed.as_str(), name);
            assert_ne!(parsed, ServerName::parse(b"b.example").unwrap());
        }
    }

    #[test]
    fn e14_a_suffix_covers_any_depth_but_not_the_apex() {
        let pattern = NamePattern::parse("*.example.com").unwrap();
        for (name, expected) in [
            ("a.example.com", true),
            ("a.b.c.example.com", true),
            ("example.com", false),
            ("aexample.com", false),
            ("example.com.evil", false),
            ("com", false),
        ] {
            assert_eq!(pattern.matches(&ServerName::parse(name.as_bytes()).unwrap()), expected, "{name}");
        }
        for wrong in ["*", "*.", "a.*.example", "a*.example", "**.example", "*.*.example", "*.1.2.3.4"] {
            assert!(NamePattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn patterns_print_as_they_are_read() {
        for text in ["a.example.com", "*.example.com", "*.com"] {
            let pattern = NamePattern::parse(text).unwrap();
            assert_eq!(pattern.to_string(), text);
            assert_eq!(pattern.as_exact(), Some(text).filter(|text| !text.starts_with('*')));
        }
    }
}
