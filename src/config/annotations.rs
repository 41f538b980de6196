//! Settings of routes that are written as annotations of Kubernetes objects, each parsed as the value of the same key in
//! the file.

use std::iter;
use std::path::Path;

use ipnet::IpNet;
use serde::Deserialize;

use super::files::Files;
use super::quantities::Count;
use super::raw;
use super::text::{Short, Text, Written as _};
use super::upstream;
use super::values::Network;
use super::yaml::{self, Root};
use crate::connection::admission::AccessRules;
use crate::connection::networks::Networks;
use crate::name::NamePattern;
use crate::process::inputs::Inputs;
use crate::upstream::UpstreamSettings;

/// What annotations say about a route.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RouteSettings {
    pub(crate) sources: AccessRules,
    pub(crate) max_connections: Option<u32>,
    /// Whether clients without SNI are routed, too.
    pub(crate) no_sni: bool,
    /// Without endpoints.
    pub(crate) upstream: UpstreamSettings,
}

const KEYS: [&str; 7] = ["allow", "deny", "max-connections", "health-check", "proxy-protocol", "no-sni", "balance"];

/// The settings of a route with these names, from keys and values of annotations. Also returns which keys are wrong, and
/// why. They have no effect, except that access rules which are not understood admit no client.
pub(crate) fn route_settings<'a>(
    annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    names: &[NamePattern],
) -> (RouteSettings, Vec<(String, String)>) {
    let mut inputs = Inputs::default();
    let mut files = Files::new(Path::new(""), &mut inputs);
    let mut build = |raw| {
        let built = upstream::build_settings(raw, Vec::new(), "", names, &mut files);
        built.map_err(|invalid| below(invalid.location.path.trim_start_matches('.'), &invalid.message))
    };
    let upstream =
        build(raw::Upstream::default()).unwrap_or_else(|reason| unreachable!("the defaults are valid: {reason}"));
    let mut settings =
        RouteSettings { sources: AccessRules::default(), max_connections: None, no_sni: false, upstream };
    let (mut invalid, mut admits_none) = (Vec::new(), false);
    for (key, value) in annotations {
        let result = match key {
            "allow" => networks(value).map(|networks| settings.sources.allow = Some(networks)),
            "deny" => networks(value).map(|networks| settings.sources.deny = Some(networks)),
            _ => parse(key, value).and_then(|parsed| parsed.apply(&mut settings, &mut build)),
        };
        if let Err(reason) = result {
            if matches!(key, "allow" | "deny") {
                admits_none = true;
            }
            invalid.push((key.to_owned(), reason));
        }
    }
    if admits_none {
        settings.sources.allow = Some(iter::empty::<IpNet>().collect());
    }
    (settings, invalid)
}

/// Networks, separated by commas.
fn networks(value: &str) -> Result<Networks, String> {
    let network = |text: &str| {
        let parsed = Network::parse(text.trim()).map_err(|reason| format!("`{}`: {reason}", text.trim()))?;
        Ok(parsed.0)
    };
    let networks: Vec<IpNet> = value.split(',').map(network).collect::<Result<_, String>>()?;
    Ok(networks.into_iter().collect())
}

/// Annotations as keys of a document. It has one of them.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Annotation {
    max_connections: Option<Text<Count<1, 10_000_000>>>,
    no_sni: Option<bool>,
    balance: Option<raw::Balance>,
    health_check: Option<raw::HealthCheck>,
    proxy_protocol: Option<Short<raw::ProxyProtocol>>,
}

impl Root for Annotation {
    const KEYS: &'static str = "a value";
}

fn parse(key: &str, value: &str) -> Result<Annotation, String> {
    if !KEYS.contains(&key) {
        return Err(format!("unknown annotation; expected one of {}", KEYS.join(", ")));
    }
    let key = &key.replace('-', "_");
    // Indented, so that it is the value of this key, whatever it is.
    let value: String = value.lines().flat_map(|line| ["\n  ", line]).collect();
    let document = format!("{key}:{value}\n");
    yaml::parse(document.as_bytes()).map_err(|error| match error.message.strip_prefix(&**key) {
        Some(rest) if rest.starts_with([':', '.']) => rest.trim_start_matches([':', '.', ' ']).to_owned(),
        _ => error.message,
    })
}

impl Annotation {
    fn apply(
        self,
        settings: &mut RouteSettings,
        build: impl FnOnce(raw::Upstream) -> Result<UpstreamSettings, String>,
    ) -> Result<(), String> {
        match self {
            Self { max_connections: Some(Text(count)), .. } => settings.max_connections = Some(count.0),
            Self { no_sni: Some(no_sni), .. } => settings.no_sni = no_sni,
            Self { balance: balance @ Some(_), .. } => {
                settings.upstream.balance = build(raw::Upstream { balance, ..raw::Upstream::default() })?.balance;
            }
            Self { health_check: Some(check), .. } => {
                refuse_files(&check)?;
                let raw = raw::Upstream { health_check: Some(check), ..raw::Upstream::default() };
                settings.upstream.health_check = build(raw)?.health_check;
            }
            Self { proxy_protocol: proxy_protocol @ Some(_), .. } => {
                let raw = raw::Upstream { proxy_protocol, ..raw::Upstream::default() };
                settings.upstream.proxy_protocol = build(raw)?.proxy_protocol;
            }
            Self { max_connections: None, no_sni: None, balance: None, health_check: None, proxy_protocol: None } => {
                return Err("no value".into());
            }
        }
        Ok(())
    }
}

/// A message about a path whose first step is the annotation.
fn below(path: &str, message: &str) -> String {
    path.split_once('.').map_or_else(|| message.to_owned(), |(_, path)| format!("{path}: {message}"))
}

/// Who can write an object must not make the controller read its files, such as its token.
fn refuse_files(raw::HealthCheck { tls, http, .. }: &raw::HealthCheck) -> Result<(), String> {
    if tls.as_ref().is_some_and(|tls| tls.ca_file.is_some()) {
        return Err("tls.ca_file: annotations cannot name files; expected `tls: {verify: false}`".into());
    }
    let Some(http) = http else { return Ok(()) };
    let files = [
        ("token_file", &http.token_file),
        ("client_certificate", &http.client_certificate),
        ("client_key", &http.client_key),
    ];
    match files.iter().find(|(_, file)| file.is_some()) {
        Some((key, _)) => Err(format!("http.{key}: annotations cannot name files")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::upstream::Balance;

    fn settings(annotations: &[(&str, &str)]) -> (RouteSettings, Vec<String>) {
        let (settings, invalid) =
            route_settings(annotations.iter().copied(), &[NamePattern::parse("a.example").unwrap()]);
        (settings, invalid.into_iter().map(|(key, reason)| format!("{key}: {reason}")).collect())
    }

    fn admits(settings: &RouteSettings, address: &str) -> bool {
        settings.sources.admit(address.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn values_are_those_of_the_configuration() {
        let (settings, invalid) = settings(&[
            ("allow", "10.0.0.0/8, 192.0.2.1"),
            ("deny", "10.1.0.0/16"),
            ("max-connections", "500"),
            ("health-check", "{interval: 2s, tls: {verify: false}, http: {}}"),
            ("proxy-protocol", "version: v2\ntlvs: {0x20: a}\n"),
            ("no-sni", "true"),
            ("balance", "source_hash"),
        ]);
        assert!(invalid.is_empty(), "{invalid:?}");
        let admitted = ["10.2.0.1", "192.0.2.1", "10.1.0.1", "192.0.2.2"].map(|address| admits(&settings, address));
        assert_eq!(admitted, [true, true, false, false]);
        assert_eq!((settings.max_connections, settings.no_sni), (Some(500), true));
        let UpstreamSettings { balance, health_check, proxy_protocol, endpoints, .. } = settings.upstream;
        assert_eq!((balance, endpoints.len()), (Balance::SourceHash, 0));
        let tls = health_check.unwrap().tls.unwrap();
        assert_eq!(tls.asked_name, Some("a.example".try_into().unwrap()));
        assert_eq!(proxy_protocol.unwrap().tlvs.len(), 1);
    }

    #[test]
    fn wrong_values_are_explained_and_the_others_work() {
        for (key, value, expected) in [
            ("balance", "fastest", "balance: `fastest`: expected one of"),
            ("max-connections", "many", "max-connections: `many`: expected a whole number from 1 to 10000000"),
            ("max-connections", "0", "max-connections: `0`: out of range; expected"),
            ("no-sni", "yes", "no-sni: string \"yes\", expected true or false"),
            ("no-sni", "", "no-sni: no value"),
            ("proxy-protocol", "v3", "proxy-protocol: `v3`: expected"),
            ("proxy-protocol", "{version: v1, pass: 0x20}", "proxy-protocol: pass: version 1 has no TLVs"),
            ("health-check", "{intervall: 5s}", "health-check: unknown key `intervall`; did you mean `interval`?"),
            ("health-check", "{interval: 1s, timeout: 2s}", "health-check: timeout: must not be longer"),
            ("health-check", "{http: {}}", "health-check: http: requires `tls`"),
            ("health-check", "[", "health-check: "),
            ("health-check", "{}\nbalance: random", "health-check: "),
            ("health-check", "{}\n---\nbalance: random", "health-check: "),
            (
                "health-check",
                "{tls: {ca_file: /etc/ca.pem}}",
                "health-check: tls.ca_file: annotations cannot name files",
            ),
            (
                "health-check",
                "{tls: {verify: false}, http: {token_file: /run/token}}",
                "health-check: http.token_file: annotations cannot name files",
            ),
            ("alow", "10.0.0.0/8", "alow: unknown annotation; expected one of allow,"),
        ] {
            let (settings, invalid) = settings(&[("allow", "10.0.0.0/8"), (key, value)]);
            assert_eq!(invalid.len(), 1, "{key} {value}: {invalid:?}");
            assert!(invalid[0].starts_with(expected), "{invalid:?}");
            assert!(admits(&settings, "10.0.0.1") && !admits(&settings, "192.0.2.1"));
        }
    }

    #[test]
    fn access_rules_that_are_not_understood_admit_no_client() {
        for (key, value) in [("allow", "10.0.0.0/8, 10.0.0.1/8"), ("deny", "everybody"), ("deny", "")] {
            for annotations in [[(key, value), ("balance", "random")], [("balance", "random"), (key, value)]] {
                let (settings, invalid) = settings(&annotations);
                assert_eq!(invalid.len(), 1, "{invalid:?}");
                assert!(invalid[0].contains("expected a network"), "{invalid:?}");
                assert!(!admits(&settings, "10.0.0.1") && !admits(&settings, "2001:db8::1"));
                assert_eq!(settings.upstream.balance, Balance::Random);
            }
        }
    }
}
