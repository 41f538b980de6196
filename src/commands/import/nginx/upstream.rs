//! `upstream` blocks and other targets of `proxy_pass`.

use crate::text::Destination;

use super::reasons;
use super::stream::{StreamBlock, StreamSettings};
use super::syntax::Directive;
use crate::commands::import::draft::Draft;
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::upstream_draft::UpstreamDraft;
use crate::commands::import::values::duration;

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
        None => UpstreamDraft { endpoints: vec![(destination(target)?, location.clone())], ..UpstreamDraft::default() },
    };
    apply_settings(settings, &mut upstream, notes);
    // Servers that use one upstream may have different settings. Names have no spaces.
    let mut keys = std::iter::once(target.to_owned()).chain((2..).map(|number| format!("{target} {number}")));
    let is_free = |key: &String| {
        let is_same = |other: &UpstreamDraft| {
            (other.connect_timeout, other.proxy_protocol) == (upstream.connect_timeout, upstream.proxy_protocol)
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
            upstream.proxy_protocol = Some("v1");
        }
        upstream.locations.insert(directive.location());
    }
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
            ["hash" | "ip_hash" | "least_time", ..] => {
                let reason = format!(
                    "`{}` ignored: clients are not bound to an endpoint; `balance` can be least_connections, \
                    round_robin or random",
                    inner.words.join(" ")
                );
                notes.note(&location, reason);
            }
            ["zone", ..] => notes.not_needed(&location),
            _ => reasons::explain(inner, notes),
        }
    }
    upstream
}

fn add_server(
    upstream: &mut UpstreamDraft,
    address: &str,
    parameters: &[&str],
    location: &Location,
    notes: &mut Notes,
) -> Result<(), String> {
    if address.starts_with("unix:") {
        return Err("Unix sockets are not supported; an endpoint is host:port".into());
    }
    let destination: Destination = address.parse()?;
    let mut is_backup = false;
    for parameter in parameters {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match key {
            "down" => return Err("it is marked as `down`".into()),
            "backup" => is_backup = true,
            "weight" => notes.note(location, "`weight` ignored: all endpoints get equal shares"),
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
    if is_backup {
        upstream.backups.push(destination);
        return Err("snigate has no backup endpoints; it is in the result as a comment".into());
    }
    upstream.endpoints.push((destination, location.clone()));
    Ok(())
}
