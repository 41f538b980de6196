//! Values that HAProxy and nginx write alike: durations, networks, addresses, hostnames.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::name::NamePattern;
use ipnet::{IpNet, Ipv4Net};

/// Numbers that `limits` accepts.
pub(super) const LIMITS: std::ops::RangeInclusive<u64> = 1..=1_000_000;
/// Durations that a configuration accepts.
const DURATIONS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(366 * 24 * 60 * 60);

/// Such as `1h30m`; a number without unit is in the default unit.
pub(super) fn duration(text: &str, default_unit: &str) -> Result<Duration, String> {
    let invalid = || "not a duration".to_owned();
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..end].parse().map_err(|_| invalid())?;
        rest = &rest[end..];
        let end = rest.find(|character: char| character.is_ascii_digit()).unwrap_or(rest.len());
        let microseconds = match if end == 0 { default_unit } else { &rest[..end] } {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" => 60_000_000,
            "h" => 3_600_000_000,
            "d" => 86_400_000_000,
            "w" => 604_800_000_000,
            _ => return Err(invalid()),
        };
        rest = &rest[end..];
        let more = number.checked_mul(microseconds).map(Duration::from_micros);
        total = more.and_then(|more| total.checked_add(more)).ok_or_else(invalid)?;
    }
    if text.is_empty() {
        Err(invalid())
    } else if DURATIONS.contains(&total) {
        Ok(total)
    } else {
        Err("out of range; snigate accepts 1ms to 366d".into())
    }
}

/// HAProxy and nginx ignore bits beyond the prefix length; for snigate they are an error, so they are cleared.
pub(super) fn network(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse()).ok().or_else(|| {
        let (address, mask) = text.split_once('/')?;
        let (address, mask) = (address.parse().ok()?, mask.parse().ok()?);
        Ipv4Net::with_netmask(address, mask).ok().map(IpNet::V4)
    });
    net.map(|net| net.trunc())
}

/// All IPv4 and IPv6 addresses.
pub(super) fn everywhere() -> Vec<IpNet> {
    ["0.0.0.0/0", "::/0"].into_iter().filter_map(network).collect()
}

/// With `*` or an empty host for all IPv4 addresses.
pub(super) fn listen_address(host: &str, port: &str) -> Result<SocketAddr, String> {
    let port = port.parse().ok().filter(|port| *port > 0).ok_or("the port is not a number from 1 to 65535")?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let ip = match host {
        "" | "*" => Ipv4Addr::UNSPECIFIED.into(),
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        host => match bracketed {
            Some(host) => host.parse::<Ipv6Addr>().map(IpAddr::from),
            None => host.parse::<IpAddr>(),
        }
        .map_err(|_| "snigate listens at IP addresses only")?,
    };
    Ok(SocketAddr::new(ip, port))
}

/// A hostname without wildcard.
pub(super) fn exact_pattern(text: &str) -> Result<NamePattern, String> {
    if text.contains('*') {
        return Err("a `*` cannot be part of a hostname here".into());
    }
    NamePattern::parse(text).map_err(|error| error.to_string())
}

/// `*.` and this hostname.
pub(super) fn wildcard_pattern(text: &str) -> Result<NamePattern, String> {
    exact_pattern(text)?;
    NamePattern::parse(&format!("*.{text}")).map_err(|error| error.to_string())
}

/// Makes the text a valid name of a listener or a route.
pub(super) fn label(text: &str) -> String {
    let is_allowed = |character: char| character.is_ascii_alphanumeric() || "-_.:@".contains(character);
    let text: String = text.chars().take(100).map(|one| if is_allowed(one) { one } else { '-' }).collect();
    let text = text.trim_start_matches(['_', '-']);
    if text.is_empty() { "unnamed".into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_default_unit() {
        for (text, unit, expected) in [
            ("86400s", "ms", "24h"),
            ("10s", "ms", "10s"),
            ("5000", "ms", "5s"),
            ("1500", "ms", "1500ms"),
            ("1d", "ms", "24h"),
            ("10m", "s", "10m"),
            ("60", "s", "1m"),
            ("1h30m", "s", "90m"),
        ] {
            assert_eq!(crate::text::units::span(duration(text, unit).unwrap()), expected, "{text}");
        }
        for text in ["", "s", "10x", "0", "1us", "1y", "99999999999999999999d", "18446744073709551615d", "400d", "-1"] {
            assert!(duration(text, "ms").is_err(), "{text}");
        }
    }

    #[test]
    fn host_bits_are_cleared() {
        let of = |text| network(text).map(|network| network.to_string());
        assert_eq!(of("10.1.2.3/8").unwrap(), "10.0.0.0/8");
        assert_eq!(of("10.1.2.3").unwrap(), "10.1.2.3/32");
        assert_eq!(of("10.0.0.0/255.0.0.0").unwrap(), "10.0.0.0/8");
        assert_eq!(of("2001:db8::1/32").unwrap(), "2001:db8::/32");
        assert_eq!(of("host.example"), None);
    }

    #[test]
    fn labels_have_allowed_characters_only() {
        assert_eq!(label("_a b[[\n"), "a-b---");
        assert_eq!(label("___"), "unnamed");
        assert_eq!(label(&"ä".repeat(999)), "unnamed");
    }
}
