//! Validates a route's `upstream` and fills in its defaults.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::build::InvalidValue;
use super::files::Files;
use super::quantities::{BoundedDuration, ConnectionRate, Weight};
use super::text::{OneOrMany, Short, Shorthand as _, Text};
use super::values::{self, CheckName, FilePath, RequestPath, TrustedFile};
use super::{Listener, raw};
use crate::name::NamePattern;
use crate::proxy_protocol::{Outgoing, Version, tlv};
use crate::text::Destination;
use crate::upstream::health::{CaFile, EXPECTED, read_file};
use crate::upstream::{
    Balance, ConnectBudget, EndpointSettings, HealthCheck, HttpCheck, MaxAge, OnRemove, Share, Source, Thresholds,
    TlsCheck, UpstreamSettings, arrives_at,
};

/// Builds a route's `upstream`; `path` is its path in the document.
pub(super) fn build(
    mut raw: raw::Upstream,
    path: &str,
    names: &[NamePattern],
    listeners: &[Listener],
    files: &mut Files<'_>,
) -> Result<UpstreamSettings, InvalidValue> {
    let endpoints = match (raw.endpoints.take(), raw.dcos.take()) {
        (Some(endpoints), None) => build_endpoints(endpoints.0, path)?,
        (None, Some(dcos)) => vec![EndpointSettings { destination: dcos.0.0, share: Share::DEFAULT }],
        (Some(_), Some(_)) => {
            return Err(InvalidValue::at(format!("{path}.dcos"), "cannot be combined with `endpoints`"));
        }
        (None, None) => return Err(InvalidValue::at(path, "missing key `endpoints` or `dcos`")),
    };
    check_endpoints(&endpoints, path, listeners)?;
    build_settings(raw, endpoints, path, names, files)
}

/// Everything but the endpoints, which have been built.
pub(super) fn build_settings(
    raw: raw::Upstream,
    endpoints: Vec<EndpointSettings>,
    path: &str,
    names: &[NamePattern],
    files: &mut Files<'_>,
) -> Result<UpstreamSettings, InvalidValue> {
    let raw::Upstream {
        endpoints: _,
        dcos: _,
        balance,
        connect,
        slow_start,
        dead,
        on_remove,
        resolve_every,
        proxy_protocol,
        source,
        max_age,
        rebalance,
        health_check,
    } = raw;
    let raw::Dead { grace, connections } = dead;
    let grace = duration_or(grace, 15);
    let closes = match connections {
        None | Some(raw::DeadConnections::Cut) => true,
        Some(raw::DeadConnections::Keep) => false,
    };
    if rebalance.is_some() && matches!(balance, Some(raw::Balance::SourceHash)) {
        let message = "cannot be combined with `balance: source_hash`: the client's address decides";
        return Err(InvalidValue::at(format!("{path}.rebalance"), message));
    }
    let check = health_check.map(|raw| build_check(raw, &format!("{path}.health_check"), names, files));
    Ok(UpstreamSettings {
        source: source.map_or(Ok(Source::Any), |source| build_source(source, path, &endpoints))?,
        endpoints,
        split: None,
        balance: match balance {
            None | Some(raw::Balance::LeastConnections) => Balance::LeastConnections,
            Some(raw::Balance::RoundRobin) => Balance::RoundRobin,
            Some(raw::Balance::Random) => Balance::Random,
            Some(raw::Balance::SourceHash) => Balance::SourceHash,
        },
        budget: build_budget(connect, path)?,
        slow_start: slow_start.map_or(Duration::from_secs(30), |duration| duration.0.0),
        dead_grace: closes.then_some(grace),
        on_remove: match on_remove {
            None | Some(raw::OnRemove::Drain) => OnRemove::Drain,
            Some(raw::OnRemove::Keep) => OnRemove::Keep,
            Some(raw::OnRemove::Cut) => OnRemove::Cut,
        },
        resolve_every: duration_or(resolve_every, 10),
        proxy_protocol: proxy_protocol.map(|outgoing| build_header(outgoing.0, path)).transpose()?,
        max_age: max_age.map(|Short(raw::MaxAge { after, jitter })| MaxAge {
            after: after.0.0,
            jitter: jitter.map_or(25, |jitter| jitter.0.0),
        }),
        rebalance: rebalance.map(|Text(ConnectionRate(rate))| rate),
        health_check: check.transpose()?,
    })
}

fn duration_or(raw: Option<Text<BoundedDuration>>, default: u64) -> Duration {
    raw.map_or(Duration::from_secs(default), |duration| duration.0.0)
}

fn build_endpoints(raw: Vec<Short<raw::Endpoint>>, path: &str) -> Result<Vec<EndpointSettings>, InvalidValue> {
    let endpoints = raw.into_iter().map(|Short(raw::Endpoint { address: Text(destination), weight, backup })| {
        let weight = weight.map_or(1, |Text(Weight(weight))| weight);
        EndpointSettings { destination, share: Share { weight, is_backup: backup } }
    });
    let endpoints: Vec<_> = endpoints.collect();
    if endpoints.iter().all(|endpoint| endpoint.share.is_backup) {
        let message = "all endpoints are backups; expected at least one without `backup: true`";
        return Err(InvalidValue::at(format!("{path}.endpoints"), message));
    }
    Ok(endpoints)
}

fn build_source(
    raw: OneOrMany<Text<values::Source>>,
    path: &str,
    endpoints: &[EndpointSettings],
) -> Result<Source, InvalidValue> {
    let path = format!("{path}.source");
    let (mut v4, mut v6) = (None, None);
    let count = raw.0.len();
    for Text(source) in raw.0 {
        let (is_first, family) = match source {
            values::Source::Client if count == 1 => return Ok(Source::Client),
            values::Source::Client => {
                return Err(InvalidValue::at(path, "`client` cannot be combined with addresses"));
            }
            values::Source::Address(address) if address.is_unspecified() || address.is_multicast() => {
                let message = format!("`{address}`: expected an IP address of this machine");
                return Err(InvalidValue::at(path, message));
            }
            values::Source::Address(IpAddr::V4(address)) => (v4.replace(address).is_none(), "IPv4"),
            values::Source::Address(IpAddr::V6(address)) => (v6.replace(address).is_none(), "IPv6"),
        };
        if !is_first {
            return Err(InvalidValue::at(path, format!("two {family} addresses; expected at most one of each family")));
        }
    }
    let addresses: Option<Vec<_>> = endpoints.iter().map(|endpoint| endpoint.destination.address()).collect();
    for (family, is_set, is_ipv4) in [("IPv4", v4.is_some(), true), ("IPv6", v6.is_some(), false)] {
        let has_none = |addresses: &Vec<SocketAddr>| addresses.iter().all(|address| address.is_ipv4() != is_ipv4);
        if is_set && addresses.as_ref().is_some_and(has_none) {
            return Err(InvalidValue::at(path, format!("no endpoint has an {family} address")));
        }
    }
    Ok(Source::Addresses { v4, v6 })
}

fn build_header(raw: raw::ProxyProtocol, path: &str) -> Result<Outgoing, InvalidValue> {
    let raw::ProxyProtocol { version: Text(values::HeaderVersion(version)), tlvs, pass } = raw;
    let at = |key: &str, message: String| Err(InvalidValue::at(format!("{path}.proxy_protocol.{key}"), message));
    for (key, is_set) in [("tlvs", tlvs.is_some()), ("pass", pass.is_some())] {
        if is_set && version == Version::V1 {
            return at(key, "version 1 has no TLVs; expected `version: v2`".into());
        }
    }
    let tlvs: Box<[_]> = tlvs.map_or_else(Box::default, |tlvs| tlvs.0.into_iter().collect());
    let pass: Box<[u8]> = pass
        .map_or_else(Box::default, |pass| pass.0.into_iter().map(|Text(values::TlvNumber(number))| number).collect());
    let numbers = tlvs.iter().map(|(number, _)| ("tlvs", *number)).chain(pass.iter().map(|number| ("pass", *number)));
    for (key, number) in numbers {
        let reason = match number {
            tlv::ALPN => "is the client's ALPN, which snigate sends itself",
            tlv::AUTHORITY => "is the client's SNI, which snigate sends itself",
            tlv::CRC32C => "is the checksum of one header",
            tlv::NOOP => "is padding",
            _ => continue,
        };
        return at(key, format!("TLV {number:#04x} {reason}; expected another number"));
    }
    if let Some((number, _)) = tlvs.iter().find(|(number, _)| pass.contains(number)) {
        return at("pass", format!("TLV {number:#04x} is also in `tlvs`: clients could send another value"));
    }
    Ok(Outgoing { version, tlvs, pass })
}

fn check_endpoints(endpoints: &[EndpointSettings], path: &str, listeners: &[Listener]) -> Result<(), InvalidValue> {
    for (index, EndpointSettings { destination, .. }) in endpoints.iter().enumerate() {
        if endpoints[..index].iter().any(|other| other.destination == *destination) {
            return Err(InvalidValue::at(path, format!("duplicate endpoint {destination}")));
        }
        let reaches =
            |listener: &&Listener| destination.address().is_some_and(|address| arrives_at(address, listener.address));
        if let Some(listener) = listeners.iter().find(reaches) {
            let message = format!("{destination}: this is snigate's own listener `{}`: forwarding loop", listener.name);
            return Err(InvalidValue::at(path, message));
        }
    }
    Ok(())
}

fn build_budget(raw: raw::Connect, path: &str) -> Result<ConnectBudget, InvalidValue> {
    let raw::Connect { timeout, per_try } = raw;
    let timeout = duration_or(timeout, 10);
    let per_try = per_try.map_or(timeout.min(Duration::from_secs(3)), |per_try| per_try.0.0);
    if per_try > timeout {
        return Err(InvalidValue::at(format!("{path}.connect.per_try"), "must not be longer than `timeout`"));
    }
    Ok(ConnectBudget { timeout, per_try })
}

fn build_check(
    raw: raw::HealthCheck,
    path: &str,
    names: &[NamePattern],
    files: &mut Files<'_>,
) -> Result<HealthCheck, InvalidValue> {
    let raw::HealthCheck { interval, timeout, rise, fall, unready, tls, http } = raw;
    let interval = duration_or(interval, 5);
    let timeout = timeout.map_or(interval.min(Duration::from_secs(4)), |timeout| timeout.0.0);
    if timeout > interval {
        let message = "must not be longer than `interval`: checks of one endpoint do not overlap";
        return Err(InvalidValue::at(format!("{path}.timeout"), message));
    }
    if unready.is_some() && http.is_none() {
        let message = "requires `http`: only an HTTP response can say that an endpoint is not ready";
        return Err(InvalidValue::at(format!("{path}.unready"), message));
    }
    let (http, client) = match http {
        None => (None, None),
        Some(_) if tls.is_none() => {
            return Err(InvalidValue::at(
                format!("{path}.http"),
                "requires `tls`: API servers serve HTTP over TLS only",
            ));
        }
        Some(raw) => {
            let (http, client) = build_http(raw, &format!("{path}.http"), files)?;
            (Some(http), client)
        }
    };
    let mut tls = tls.map(|raw| build_tls(raw, &format!("{path}.tls"), names, files)).transpose()?;
    if let Some(tls) = &mut tls {
        tls.client = client;
    }
    let fall = fall.map_or(3, |fall| fall.0.0);
    let unready = unready.map_or(fall.min(2), |unready| unready.0.0);
    let thresholds = Thresholds { rise: rise.map_or(2, |rise| rise.0.0), fall, unready };
    Ok(HealthCheck { interval, timeout, thresholds, tls, http })
}

fn build_tls(
    raw: raw::TlsCheck,
    path: &str,
    names: &[NamePattern],
    files: &mut Files<'_>,
) -> Result<TlsCheck, InvalidValue> {
    let raw::TlsCheck { ca_file, server_name, verify } = raw;
    let verified_name = server_name.map(|Text(CheckName(name))| name);
    let verify = verify.unwrap_or(true);
    let ca_file = match (ca_file, verify) {
        (Some(Text(TrustedFile(from))), true) => {
            let from = match from {
                CaFile::File(file) => CaFile::File(files.absolute_path(&file)),
                CaFile::System => CaFile::System,
            };
            files.check_authorities(&from).map_err(|reason| InvalidValue::at(format!("{path}.ca_file"), reason))?;
            Some(from)
        }
        (None, false) => None,
        (Some(_), false) => {
            return Err(InvalidValue::at(format!("{path}.ca_file"), "cannot be combined with `verify: false`"));
        }
        (None, true) => {
            let message = "missing key `ca_file`: the PEM file of the cluster's CA, or `system`; to accept any certificate, set `verify: false`";
            return Err(InvalidValue::at(path, message));
        }
    };
    let first_exact = names.iter().find_map(NamePattern::as_exact);
    let sni = verified_name.clone().or_else(|| ServerName::try_from(first_exact?.to_owned()).ok());
    Ok(TlsCheck { ca_file, verified_name, asked_name: sni, client: None })
}

type ClientFiles = Option<(PathBuf, PathBuf)>;

fn build_http(
    raw: raw::HttpCheck,
    path: &str,
    files: &mut Files<'_>,
) -> Result<(HttpCheck, ClientFiles), InvalidValue> {
    let raw::HttpCheck { path: request_path, token_file, client_certificate, client_key, expect, unauthorized } = raw;
    let file = |raw: Option<Text<FilePath>>, key: &str| {
        raw.map(|Text(FilePath(file))| {
            let file = files.absolute_path(&file);
            // Only whether it can be read: what is in it may be a secret, and may be another one tomorrow.
            read_file(&file).map_err(|reason| InvalidValue::at(format!("{path}.{key}"), reason))?;
            Ok(file)
        })
        .transpose()
    };
    let token_file = file(token_file, "token_file")?;
    let client = match (file(client_certificate, "client_certificate")?, file(client_key, "client_key")?) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        (Some(_), None) => return Err(InvalidValue::at(path, "`client_certificate` requires `client_key`")),
        (None, Some(_)) => return Err(InvalidValue::at(path, "`client_key` requires `client_certificate`")),
    };
    let unauthorized_is_alive = match unauthorized {
        None | Some(raw::Unauthorized::Alive) => true,
        Some(raw::Unauthorized::Failed) => false,
    };
    let path = request_path.map_or_else(|| hyper::Uri::from_static("/readyz"), |Text(RequestPath(path))| path);
    let expect =
        expect.map_or_else(|| vec![EXPECTED], |expect| expect.0.into_iter().map(|Text(range)| range.0).collect());
    Ok((HttpCheck { path, token_file, expect, unauthorized_is_alive }, client))
}

impl raw::Upstream {
    /// An upstream with defaults for everything but its endpoints.
    pub(super) fn with_endpoints(endpoints: Vec<Destination>) -> Self {
        let endpoints = endpoints.into_iter().map(|endpoint| Short(raw::Endpoint::from_text(endpoint)));
        Self { endpoints: Some(OneOrMany(endpoints.collect())), ..Self::default() }
    }
}
