//! What a `server` line becomes: an endpoint of its upstream.

use crate::text::Destination;

use super::server::{ServerParameters, Verify};
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::upstream_draft::{EndpointDraft, HeaderDraft, SourceDraft, UpstreamDraft};

impl ServerParameters {
    pub(super) fn add_to(
        &self,
        upstream: &mut UpstreamDraft,
        address: &str,
        is_after_tls: bool,
        location: &Location,
        notes: &mut Notes,
    ) {
        if let Some(reason) = self.unused() {
            return notes.note(location, reason);
        }
        upstream.has_primary_in_source |= !self.is_backup();
        let destination = match destination(address) {
            Ok(destination) => destination,
            Err(reason) => return notes.note(location, format!("`{address}` left out: {reason}")),
        };
        let header = self.header.translate(location, notes);
        if let Some(first) = upstream.endpoints.first().map(|first| first.location.clone())
            && upstream.proxy_protocol != header
        {
            let written = |header: &Option<HeaderDraft>| {
                header.as_ref().map_or_else(|| "no PROXY header".to_owned(), ToString::to_string)
            };
            let (own, others) = (written(&header), written(&upstream.proxy_protocol));
            let reason = format!(
                "left out: it gets {own}, the server in {first} gets {others}, and an upstream has one `proxy_protocol`"
            );
            notes.note(
                &first,
                format!("endpoints of the upstream get {others}, like this server; the one in {location} differs"),
            );
            return notes.note(location, reason);
        }
        self.add_source(upstream, &destination, location, notes);
        let (weight, is_backup) = (self.weight(), self.is_backup());
        upstream.endpoints.push(EndpointDraft { destination, location: location.clone(), weight, is_backup });
        upstream.slow_start = upstream.slow_start.or(self.slow_start);
        upstream.proxy_protocol = header;
        if is_after_tls && !self.ssl {
            notes.note(
                location,
                "HAProxy connects to this server without TLS; snigate forwards the client's TLS connection, so the server \
                has to terminate TLS",
            );
        }
        if !is_after_tls && self.ssl {
            notes.note(
                location,
                "`ssl`: HAProxy wraps the client's TLS connection in another one; snigate forwards it as it is",
            );
        }
        if self.ssl && !self.check && self.verify == Verify::Required && self.ca_file.is_some() {
            notes.note(
                location,
                "`verify required`: clients verify the server; snigate would do so in a health check, but there is no \
                `check` here",
            );
        }
        if self.check {
            self.note_check_tls(location, notes);
        }
    }

    /// An upstream has one address of each family, where HAProxy has one for each server.
    fn add_source(
        &self,
        upstream: &mut UpstreamDraft,
        destination: &Destination,
        location: &Location,
        notes: &mut Notes,
    ) {
        let ip = |destination: &Destination| destination.address().map(|address| address.ip());
        let own = self
            .source
            .as_ref()
            .map_or(SourceDraft::Any, |source| source.translate(notes))
            .of_endpoint(ip(destination));
        let is_other_family = |other: &EndpointDraft| {
            let families = ip(&other.destination).zip(ip(destination));
            families.is_some_and(|(one, other)| one.is_ipv4() != other.is_ipv4())
        };
        match (&mut upstream.source, own) {
            (source, own) if upstream.endpoints.is_empty() => *source = own,
            (source, own) if source.of_endpoint(ip(destination)) == own => {}
            (SourceDraft::Addresses(all), SourceDraft::Addresses(own))
                if upstream.endpoints.iter().all(is_other_family) =>
            {
                all.extend(own);
            }
            (source @ SourceDraft::Any, own @ SourceDraft::Addresses(_))
                if upstream.endpoints.iter().all(is_other_family) =>
            {
                *source = own;
            }
            _ => {
                let first = &upstream.endpoints[0].location;
                let reason = format!(
                    "its `source` differs from that of the server in {first}: an upstream has one `source`, so that of \
                    the first server applies"
                );
                notes.note(location, reason);
            }
        }
    }
}

pub(super) fn destination(text: &str) -> Result<Destination, String> {
    if text.starts_with('_') {
        return Err("SRV records are not supported; list the servers as hostname:port".into());
    }
    if text.starts_with('/') || text.starts_with("unix@") || text.starts_with("abns@") {
        return Err("Unix sockets are not supported; an endpoint is host:port".into());
    }
    let text = text.strip_prefix("ipv4@").or_else(|| text.strip_prefix("ipv6@")).unwrap_or(text);
    match text.rsplit_once(':') {
        Some((host, port)) if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}").parse(),
        _ => text.parse(),
    }
}
