//! `upstream`: its servers, and how they are chosen.

use crate::text::Destination;

use super::server::Inherited;
use super::syntax::Directive;
use super::{Stream, reasons};
use crate::commands::import::draft::{Draft, Upstream};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::values::duration;

/// The upstream that stands for what a server or a map leads to, in the draft from now on.
pub(super) fn lead<'a>(
    to: &str,
    place: &Place,
    settings: &Inherited<'a>,
    stream: &mut Stream<'a>,
    draft: &mut Draft,
    ledger: &mut Ledger,
) -> Result<String, String> {
    let named = stream.upstreams.get_key_value(to).map(|(name, directive)| (*name, *directive));
    let mut upstream = match named {
        Some((name, directive)) => {
            stream.used.insert(name);
            read(directive, ledger)
        }
        None => Upstream { endpoints: vec![(destination(to)?, place.clone())], ..Upstream::default() },
    };
    settings.of_upstream(&mut upstream, ledger);
    // Servers may differ in what they say of the same one; a space is in no name.
    let mut keys = std::iter::once(to.to_owned()).chain((2..).map(|number| format!("{to} {number}")));
    let fits = |key: &String| {
        let same = |other: &Upstream| {
            (other.connect_timeout, other.proxy_protocol) == (upstream.connect_timeout, upstream.proxy_protocol)
        };
        draft.upstreams.get(key).is_none_or(same)
    };
    let key = keys.find(fits).unwrap_or_default();
    draft.upstreams.entry(key.clone()).or_insert(upstream);
    Ok(key)
}

/// Where something leads that is the name of no upstream.
fn destination(to: &str) -> Result<Destination, String> {
    if to.is_empty() {
        return Err("it leads nowhere, so such clients are refused".into());
    }
    if to.contains('$') {
        return Err(format!("`{to}`: where a variable leads is not known beforehand"));
    }
    if to.starts_with("unix:") {
        return Err(format!("`{to}`: a Unix socket; endpoints have a host and a port"));
    }
    to.parse().map_err(|reason| format!("`{to}` is neither an upstream nor host:port: {reason}"))
}

impl Inherited<'_> {
    fn of_upstream(&self, upstream: &mut Upstream, ledger: &mut Ledger) {
        if let Some(directive) = self.connect_timeout {
            match duration(&directive.words[1], "s") {
                Ok(span) => {
                    upstream.connect_timeout = Some(span);
                    upstream.places.insert(directive.place());
                }
                Err(reason) => ledger.note(&directive.place(), format!("`{}`: {reason}", directive.words.join(" "))),
            }
        }
        if let Some(directive) = self.proxy_protocol {
            if directive.words[1] == "on" {
                upstream.proxy_protocol = Some("v1");
            }
            upstream.places.insert(directive.place());
        }
    }
}

fn read(directive: &Directive, ledger: &mut Ledger) -> Upstream {
    let mut upstream = Upstream::default();
    upstream.places.extend(directive.frame());
    for inner in directive.inside() {
        let place = inner.place();
        match inner.words()[..] {
            ["server", address, ref parameters @ ..] => {
                if let Err(reason) = server(&mut upstream, address, parameters, &place, ledger) {
                    ledger.note(&place, format!("`{address}` is left out: {reason}"));
                }
            }
            ["least_conn"] => {
                upstream.balance = Some("least_connections");
                upstream.places.insert(place);
            }
            ["random", ..] => {
                upstream.balance = Some("random");
                upstream.places.insert(place);
            }
            ["hash" | "ip_hash" | "least_time", ..] => {
                ledger.note(
                    &place,
                    format!("`{}`: no client is tied to an endpoint; see `balance`", inner.words.join(" ")),
                );
            }
            ["zone", ..] => ledger.note(&place, "`zone`: not needed: workers share what they know of endpoints"),
            _ => ledger.note(&inner.whole(), reasons::of(&inner.words())),
        }
    }
    upstream
}

fn server(
    upstream: &mut Upstream,
    address: &str,
    parameters: &[&str],
    place: &Place,
    ledger: &mut Ledger,
) -> Result<(), String> {
    if address.starts_with("unix:") {
        return Err("a Unix socket; endpoints have a host and a port".into());
    }
    let destination: Destination = address.parse()?;
    let mut is_backup = false;
    for parameter in parameters {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match key {
            "down" => return Err("`down`: it was not used".into()),
            "backup" => is_backup = true,
            "weight" => ledger.note(place, "`weight`: endpoints have equal shares"),
            "max_fails" | "fail_timeout" => {
                let reason = "not needed: connects that fail always count, and a dead endpoint is tried again; see \
                    `health_check`";
                ledger.note(place, format!("`{key}`: {reason}"));
            }
            "max_conns" => {
                ledger.note(place, "`max_conns`: endpoints have no limit; a route may have `max_connections`");
            }
            "resolve" => ledger.note(place, "`resolve`: not needed: names are looked up in the background"),
            "slow_start" => match duration(value, "s") {
                Ok(span) => upstream.slow_start = Some(span),
                Err(reason) => ledger.note(place, format!("`{parameter}`: {reason}")),
            },
            _ => ledger.note(place, format!("`{parameter}`: not understood")),
        }
    }
    if is_backup {
        upstream.backups.push(destination);
        return Err("`backup`: all endpoints are used alike, so it stands there as a comment".into());
    }
    upstream.endpoints.push((destination, place.clone()));
    Ok(())
}
