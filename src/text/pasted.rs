//! Hints for common mistakes: URLs, paths, ports or lists pasted where a name or an address is expected.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::name::{NameError, ServerName};
use crate::text::Destination;

/// Why this is not a server name or wildcard.
pub(crate) fn name(text: &str, error: NameError) -> String {
    if let Some((_, rest)) = text.split_once("://") {
        return format!("this is a URL{}", write_name(host_of(rest)));
    }
    let (wildcard, bare) = text.strip_prefix("*.").map_or(("", text), |bare| ("*.", bare));
    if !text.is_ascii() {
        return match ascii(bare) {
            Some(ascii) => {
                format!("non-ASCII name, which clients send as `{wildcard}{ascii}`; write that")
            }
            None => error.to_string(),
        };
    }
    let is_port = |(host, port): &(&str, &str)| is_name(host) && port.parse::<u16>().is_ok();
    if let Some((host, _)) = text.rsplit_once(':').filter(is_port) {
        return format!("a server name has no port{}", write_name(host));
    }
    if let Some((host, _)) = text.split_once('/').filter(|(host, _)| is_name(host)) {
        return format!("a server name has no path{}", write_name(host));
    }
    match text.strip_prefix('.').or_else(|| text.strip_prefix('*')) {
        Some(suffix) if is_name(suffix) => format!("to match all names below {suffix}, write \"*.{suffix}\""),
        _ => error.to_string(),
    }
}

fn write_name(host: &str) -> String {
    if is_name(host) { format!("; write `{host}`") } else { String::new() }
}

fn is_name(text: &str) -> bool {
    ServerName::parse(text.as_bytes()).is_ok()
}

/// The A-label form (RFC 5890), which is what clients send.
fn ascii(name: &str) -> Option<String> {
    idna::domain_to_ascii(name).ok().filter(|ascii| is_name(ascii))
}

/// Strips scheme, path and credentials.
fn authority(text: &str) -> &str {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
    rest.rsplit_once('@').map_or(rest, |(_, host)| host)
}

fn host_of(text: &str) -> &str {
    let authority = authority(text);
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// What is wrong with this endpoint, if it is a known mistake.
pub(crate) fn endpoint(text: &str) -> Option<String> {
    let write = |found: &str| {
        let encoded = found.rsplit_once(':').and_then(|(host, port)| Some(format!("{}:{port}", ascii(host)?)));
        let found = encoded.filter(|_| !found.is_ascii()).unwrap_or_else(|| found.to_owned());
        let is_valid = found.parse::<Destination>().is_ok();
        if is_valid { format!("; write {}", quoted(&found)) } else { String::new() }
    };
    if let Some((scheme, _)) = text.split_once("://") {
        let with_port = |port| format!("{}:{port}", authority(text));
        let port = match scheme {
            "http" => with_port(80),
            _ => with_port(443),
        };
        let found = authority(text);
        let has_port = found.parse::<Destination>().is_ok();
        return Some(format!("this is a URL{}", write(if has_port { found } else { &port })));
    }
    if text.starts_with("unix") && text[4..].starts_with([':', '@']) || text.starts_with('/') {
        return Some("Unix sockets are not supported; endpoints are reached over TCP".into());
    }
    if let Some((_, zone)) = text.split_once('%') {
        let zone = zone.split(']').next().unwrap_or_default();
        return Some(format!(
            "link-local addresses with a zone (`%{zone}`) are not supported; write another address of the endpoint"
        ));
    }
    if let Some((found, _)) = text.split_once('/') {
        return Some(format!("an endpoint has no path{}", write(found)));
    }
    if let Some(found) = text.split_whitespace().next().filter(|found| found.len() < text.len()) {
        return Some(format!("expected a single endpoint and nothing else{}", write(found)));
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<Ipv6Addr>() {
        if text.starts_with('[') {
            return Some(format!("the port is missing; write \"[{address}]:6443\""));
        }
        let with_port = text.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
        return Some(match with_port {
            Some((host, Ok(port))) if port > 999 && host.parse::<Ipv6Addr>().is_ok() => {
                format!("an IPv6 address needs brackets; write \"[{host}]:{port}\"")
            }
            _ => format!("an IPv6 address needs brackets and a port; write \"[{address}]:6443\""),
        });
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, "6443"));
    if host.is_empty() {
        return Some("the host is missing".into());
    }
    if !host.is_ascii() {
        let ascii = ascii(host)?;
        return Some(format!("non-ASCII hostname, which is looked up as `{ascii}`; write `{ascii}:{port}`"));
    }
    None
}

/// What is wrong with this address to listen on, if it is a known mistake.
pub(crate) fn listener(text: &str) -> Option<String> {
    let everywhere =
        |port: &str| Some(format!("the address is missing; write 0.0.0.0:{port}, or \"[::]:{port}\" for IPv6 as well"));
    let text = if text.contains("://") { authority(text) } else { text };
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    if is_port(text) {
        return everywhere(text);
    }
    if let Some((_, zone)) = text.split_once('%') {
        let zone = zone.split(']').next().unwrap_or_default();
        return Some(format!("the zone `{zone}` must be the interface index that `ip link` shows"));
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    if is_port(port) {
        match host.trim_start_matches('[').trim_end_matches(']') {
            "" | "*" => return everywhere(port),
            "localhost" => return Some(format!("this is a hostname; write 127.0.0.1:{port} or \"[::1]:{port}\"")),
            "::" => return Some(format!("an IPv6 address needs brackets; write \"[::]:{port}\"")),
            host if host.parse::<IpAddr>().is_err() && ServerName::parse(host.as_bytes()).is_ok() => {
                return Some("this is a hostname; write an IP address of this machine".into());
            }
            _ => {}
        }
    }
    if bare.parse::<Ipv4Addr>().is_ok() {
        return Some(format!("the port is missing; write {bare}:6443"));
    }
    if let Ok(address) = bare.parse::<Ipv6Addr>() {
        return Some(format!("the brackets or the port are missing; write \"[{address}]:6443\""));
    }
    None
}

/// How to write several values in one string as a list, if each of them is valid.
pub(crate) fn list(text: &str, is_valid: impl Fn(&str) -> bool) -> Option<String> {
    let parts: Vec<&str> = text
        .split(|character: char| ",;".contains(character) || character.is_whitespace())
        .filter(|part| !part.is_empty())
        .collect();
    let are_valid = parts.len() > 1 && parts.iter().all(|part| is_valid(part));
    are_valid.then(|| format!("several values in one string; write a list: {parts:?}"))
}

/// Quoted where YAML requires it.
fn quoted(text: &str) -> String {
    if text.starts_with('[') { format!("\"{text}\"") } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::NamePattern;

    #[test]
    fn names_are_what_clients_send() {
        for (text, expected) in [
            ("münchen.example", "non-ASCII name, which clients send as `xn--mnchen-3ya.example`; write that"),
            ("mu\u{308}nchen.example", "non-ASCII name, which clients send as `xn--mnchen-3ya.example`; write that"),
            ("*.Straße.example", "non-ASCII name, which clients send as `*.xn--strae-oqa.example`; write that"),
            ("a.example\u{200b}", "non-ASCII name, which clients send as `a.example`; write that"),
            ("a\u{a0}b.example", "the name has a character other than letters, digits, '-', '_' and '.'"),
            ("https://a.example:6443/x", "this is a URL; write `a.example`"),
            ("https://", "this is a URL"),
            ("a.example:6443", "a server name has no port; write `a.example`"),
            ("a.example/x", "a server name has no path; write `a.example`"),
            (".a.example", "to match all names below a.example, write \"*.a.example\""),
            ("*a.example", "to match all names below a.example, write \"*.a.example\""),
            ("a..b", "the name has an empty label"),
        ] {
            assert_eq!(name(text, NamePattern::parse(text).unwrap_err()), expected, "{text}");
        }
    }

    #[test]
    fn endpoints_are_host_and_port() {
        for (text, expected) in [
            ("https://10.0.0.1:6443/readyz", Some("this is a URL; write 10.0.0.1:6443")),
            ("https://user:word@api.internal", Some("this is a URL; write api.internal:443")),
            ("https://b\u{fc}cher.example/x", Some("this is a URL; write xn--bcher-kva.example:443")),
            ("http://[2001:db8::1]", Some("this is a URL; write \"[2001:db8::1]:80\"")),
            ("https://", Some("this is a URL")),
            ("unix:/run/x.sock", Some("Unix sockets are not supported; endpoints are reached over TCP")),
            ("/run/x.sock", Some("Unix sockets are not supported; endpoints are reached over TCP")),
            ("10.0.0.1:6443/readyz", Some("an endpoint has no path; write 10.0.0.1:6443")),
            ("10.0.0.1:6443 check", Some("expected a single endpoint and nothing else; write 10.0.0.1:6443")),
            ("[2001:db8::1]", Some("the port is missing; write \"[2001:db8::1]:6443\"")),
            ("2001:db8::1:6443", Some("an IPv6 address needs brackets; write \"[2001:db8::1]:6443\"")),
            ("2001:db8::1", Some("an IPv6 address needs brackets and a port; write \"[2001:db8::1]:6443\"")),
            (
                "[fe80::1%eth0]:6443",
                Some(
                    "link-local addresses with a zone (`%eth0`) are not supported; write another address of the endpoint",
                ),
            ),
            (":6443", Some("the host is missing")),
            (
                "bücher.example:1",
                Some(
                    "non-ASCII hostname, which is looked up as `xn--bcher-kva.example`; write `xn--bcher-kva.example:1`",
                ),
            ),
            ("unixes", None),
            ("a:b", None),
        ] {
            assert_eq!(endpoint(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn listeners_are_address_and_port() {
        let everywhere = "the address is missing; write 0.0.0.0:6443, or \"[::]:6443\" for IPv6 as well";
        for (text, expected) in [
            (":6443", everywhere),
            ("*:6443", everywhere),
            ("6443", everywhere),
            ("http://:6443", everywhere),
            ("localhost:6443", "this is a hostname; write 127.0.0.1:6443 or \"[::1]:6443\""),
            ("a.example:6443", "this is a hostname; write an IP address of this machine"),
            ("0.0.0.0", "the port is missing; write 0.0.0.0:6443"),
            ("[::]", "the brackets or the port are missing; write \"[::]:6443\""),
            (":::6443", "an IPv6 address needs brackets; write \"[::]:6443\""),
            ("[fe80::1%eth0]:1", "the zone `eth0` must be the interface index that `ip link` shows"),
        ] {
            assert_eq!(listener(text).as_deref(), Some(expected), "{text}");
        }
        assert_eq!(listener("256.0.0.0:1"), None);
    }

    #[test]
    fn several_values_are_a_list() {
        let is_valid = |part: &str| part != "x";
        assert_eq!(
            list("a, b;c\td", is_valid).unwrap(),
            r#"several values in one string; write a list: ["a", "b", "c", "d"]"#
        );
        for text in ["a", "a,", "a x", ""] {
            assert_eq!(list(text, is_valid), None, "{text}");
        }
    }
}
