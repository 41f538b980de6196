//! `upstream` blocks and other targets of `proxy_pass`.

use std::net::IpAddr;

use crate::text::Destination;

use super::reasons;
use super::stream::{StreamBlock, StreamSettings};
use super::syntax::{Directive, variable_name};
use crate::commands::import::draft::Draft;
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::upstream_draft::{
    EndpointDraft, HeaderDraft, NEEDS_CAPABILITY, OTHER_SERVERS, SourceDraft, UpstreamDraft,
};
use crate::commands::import::values::duration;

/// Maximum weight of an endpoint.
const MAX_WEIGHT: u32 = 256;

/// Adds the upstream to the draft, and returns its key there.
pub(super) fn add<'a>(
    target: &str,
    location: &Location,
    settings: &StreamSettings<'a>,
    stream: &mut StreamBlock<'a>,
    draft: &mut Draft,
    notes: &mut Notes,
) -> Result<String, String> {
    let named = stream.upstreams.get_key_value(target).map(|(name, directive)| (*name, *directive));
    let mut upstream = match named {
        Some((name, directive)) => {
            stream.used.insert(name);
            read(directive, notes)
        }
        None => UpstreamDraft {
            endpoints: vec![EndpointDraft::new(destination(target)?, location.clone())],
            ..UpstreamDraft::default()
        },
    };
    apply_settings(settings, &mut upstream, notes);
    // Servers that use one upstream may have different settings. Names have no spaces.
    let mut keys = std::iter::once(target.to_owned()).chain((2..).map(|number| format!("{target} {number}")));
    let is_free = |key: &String| {
        let is_same = |other: &UpstreamDraft| {
            let settings = |one: &UpstreamDraft| (one.connect_timeout, one.proxy_protocol.clone(), one.source.clone());
            settings(other) == settings(&upstream)
        };
        draft.upstreams.get(key).is_none_or(is_same)
    };
    let key = keys.find(is_free).unwrap_or_default();
    draft.upstreams.entry(key.clone()).or_insert(upstream);
    Ok(key)
}

fn destination(target: &str) -> Result<Destination, String> {
    if target.is_empty() {
        return Err("no upstream".into());
    }
    if target.contains('$') {
        return Err(format!("`{target}`: the endpoint is only known once a client connects"));
    }
    if target.starts_with("unix:") {
        return Err(format!("`{target}`: Unix sockets are not supported; an endpoint is host:port"));
    }
    target.parse().map_err(|reason| format!("`{target}` is neither an upstream nor host:port: {reason}"))
}

fn apply_settings(settings: &StreamSettings<'_>, upstream: &mut UpstreamDraft, notes: &mut Notes) {
    if let Some(directive) = settings.proxy_connect_timeout {
        match duration(&directive.words[1], "s") {
            Ok(span) => {
                upstream.connect_timeout = Some(span);
                upstream.locations.insert(directive.location());
            }
            Err(reason) => notes.note(&directive.location(), format!("`{}`: {reason}", directive.words.join(" "))),
        }
    }
    if let Some(directive) = settings.proxy_protocol {
        if directive.words[1] == "on" {
            upstream.proxy_protocol = Some(HeaderDraft::of_version("v1"));
        }
        upstream.locations.insert(directive.location());
    }
    if let Some(directive) = settings.proxy_bind {
        upstream.source = source(directive, notes);
        if upstream.source != SourceDraft::Any || directive.words[1] == "off" {
            upstream.locations.insert(directive.location());
        }
    }
}

/// The source address of `proxy_bind`.
fn source(directive: &Directive, notes: &mut Notes) -> SourceDraft {
    let location = directive.location();
    match directive.words()[1..] {
        ["off"] => return SourceDraft::Any,
        [address, "transparent"] if is_client_address(address) || address == "$remote_addr:$remote_port" => {
            notes.note(&location, NEEDS_CAPABILITY);
            return SourceDraft::Client;
        }
        [address] => {
            let ip = address.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
            if let Ok(ip) = ip.map(|ip| ip.to_canonical())
                && !ip.is_unspecified()
                && !ip.is_multicast()
            {
                return SourceDraft::Addresses(vec![ip]);
            }
        }
        _ => {}
    }
    let reason = format!(
        "`{}` ignored: `source` of an upstream is an IP address of this machine, or the client's (`$remote_addr \
        transparent`)",
        directive.words.join(" ")
    );
    notes.note(&location, reason);
    SourceDraft::Any
}

fn read(directive: &Directive, notes: &mut Notes) -> UpstreamDraft {
    let mut upstream = UpstreamDraft::default();
    upstream.locations.extend(directive.first_and_last_line());
    for inner in directive.inside() {
        let location = inner.location();
        match inner.words()[..] {
            ["server", address, ref parameters @ ..] => {
                if let Err(reason) = add_server(&mut upstream, address, parameters, &location, notes) {
                    notes.note(&location, format!("`{address}` left out: {reason}"));
                }
            }
            ["least_conn"] => {
                upstream.balance = Some("least_connections");
                upstream.locations.insert(location);
            }
            ["random", ..] => {
                upstream.balance = Some("random");
                upstream.locations.insert(location);
            }
            ["hash", key] | ["hash", key, "consistent"] if is_client_address(key) => {
                notes.note(&location, OTHER_SERVERS);
                upstream.balance = Some("source_hash");
                upstream.locations.insert(location);
            }
            ["hash" | "ip_hash" | "least_time", ..] => {
                let reason = format!(
                    "`{}` ignored: no equivalent; `balance` can be least_connections, round_robin, random or source_hash",
                    inner.words.join(" ")
                );
                notes.note(&location, reason);
            }
            ["zone", ..] => notes.not_needed(&location),
            _ => reasons::explain(inner, notes),
        }
    }
    scale_weights(&mut upstream.endpoints, notes);
    upstream
}

fn scale_weights(endpoints: &mut [EndpointDraft], notes: &mut Notes) {
    let Some(largest) = endpoints.iter().map(|endpoint| endpoint.weight).max() else { return };
    if largest <= MAX_WEIGHT {
        return;
    }
    for endpoint in endpoints {
        let scaled = u64::from(endpoint.weight) * u64::from(MAX_WEIGHT) / u64::from(largest);
        let scaled = u32::try_from(scaled).unwrap_or(MAX_WEIGHT).max(1);
        let reason = format!("`weight={}` becomes {scaled}: weights are from 1 to {MAX_WEIGHT}", endpoint.weight);
        notes.note(&endpoint.location, reason);
        endpoint.weight = scaled;
    }
}

fn is_client_address(text: &str) -> bool {
    matches!(variable_name(text), Some("remote_addr" | "binary_remote_addr"))
}

fn add_server(
    upstream: &mut UpstreamDraft,
    address: &str,
    parameters: &[&str],
    location: &Location,
    notes: &mut Notes,
) -> Result<(), String> {
    let is = |wanted: &str| parameters.contains(&wanted);
    if is("down") {
        return Err("it is marked as `down`".into());
    }
    upstream.has_primary_in_source |= !is("backup");
    if address.starts_with("unix:") {
        return Err("Unix sockets are not supported; an endpoint is host:port".into());
    }
    let destination: Destination = address.parse()?;
    let mut endpoint = EndpointDraft::new(destination, location.clone());
    for parameter in parameters {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match key {
            "backup" => endpoint.is_backup = true,
            "weight" => match value.parse().ok().filter(|weight| *weight > 0) {
                Some(weight) => endpoint.weight = weight,
                None => notes.note(location, format!("`{parameter}`: not understood")),
            },
            "max_fails" | "fail_timeout" | "resolve" => notes.not_needed(location),
            "max_conns" => {
                let reason = "`max_conns` ignored: endpoints have no such limit; see `max_connections` of a route";
                notes.note(location, reason);
            }
            "slow_start" => match duration(value, "s") {
                Ok(span) => upstream.slow_start = Some(span),
                Err(reason) => notes.note(location, format!("`{parameter}`: {reason}")),
            },
            _ => notes.note(location, format!("`{parameter}`: not understood")),
        }
    }
    upstream.endpoints.push(endpoint);
    Ok(())
}
