//! Parameters of `server` and `default-server`.

use std::time::Duration;

use crate::text::Destination;
use crate::upstream::health;

use super::context::FileContext;
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::upstream_draft::{CheckTls, UpstreamDraft};
use crate::commands::import::values::duration;

#[derive(Clone, Default)]
pub(super) struct ServerParameters {
    pub(super) check: bool,
    pub(super) interval: Option<Duration>,
    pub(super) rise: Option<u8>,
    pub(super) fall: Option<u8>,
    ssl: bool,
    check_ssl: bool,
    verify: Verify,
    ca_file: Option<String>,
    verify_host: Option<String>,
    slow_start: Option<Duration>,
    proxy_protocol: Option<&'static str>,
    unused: Option<Unused>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Verify {
    #[default]
    Required,
    None,
}

/// Why a server is left out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unused {
    Backup,
    Disabled,
    ZeroWeight,
}

impl Unused {
    fn reason(self) -> &'static str {
        match self {
            Self::Backup => "left out: snigate has no backup endpoints; it is in the result as a comment",
            Self::Disabled => "left out: disabled in the source",
            Self::ZeroWeight => "left out: `weight 0`, so it gets no connections",
        }
    }
}

impl ServerParameters {
    pub(super) fn read(&mut self, words: &[&str], location: &Location, context: &FileContext<'_>, notes: &mut Notes) {
        let mut rest = words;
        let mut unknown = Vec::new();
        while let [word, after @ ..] = rest {
            rest = after;
            if self.read_flag(word, location, notes) {
                continue;
            }
            let [value, after @ ..] = after else {
                unknown.push(*word);
                break;
            };
            rest = after;
            match *word {
                "inter" => self.interval = span(value, location, notes),
                "slowstart" => self.slow_start = span(value, location, notes),
                "rise" => self.rise = count(value, location, notes),
                "fall" => self.fall = count(value, location, notes),
                "fastinter" | "downinter" => {
                    notes.note(location, format!("`{word}` ignored: health checks have one `interval`"));
                }
                "verify" if *value == "none" => self.verify = Verify::None,
                "verify" => self.verify = Verify::Required,
                "ca-file" => self.ca_file = Some(context.ca_file(value)),
                "verifyhost" => self.verify_host = Some((*value).into()),
                "sni" | "check-sni" => {
                    let reason = format!(
                        "`{word} {value}` ignored: clients send their own SNI, and health checks send `server_name`, or \
                        else the first name in `sni`"
                    );
                    notes.note(location, reason);
                }
                "maxconn" | "minconn" | "maxqueue" => {
                    notes.note(
                        location,
                        format!("`{word}` ignored: endpoints have no such limit; see `max_connections` of a route"),
                    );
                }
                "weight" if *value == "0" => self.unused = Some(Unused::ZeroWeight),
                "weight" => notes.note(location, "`weight` ignored: all endpoints get equal shares"),
                "resolvers" | "init-addr" | "resolve-prefer" | "resolve-opts" | "resolve-net" => {
                    notes.not_needed(location);
                }
                "crt" | "crl-file" | "alpn" | "ciphers" | "ciphersuites" | "ssl-min-ver" | "ssl-max-ver" | "npn" => {
                    let reason = format!(
                        "`{word}` ignored: the client's own TLS connection, with its certificate, reaches the server"
                    );
                    notes.note(location, reason);
                }
                "port" | "addr" | "check-proto" | "check-alpn" | "agent-port" | "agent-addr" | "agent-inter"
                | "track" | "observe" | "error-limit" | "on-error" | "on-marked-up" => {
                    notes.note(
                        location,
                        format!("`{word}` ignored: no equivalent; health checks connect to the endpoint's own address"),
                    );
                }
                "on-marked-down" => {
                    notes.note(location, "`on-marked-down` ignored: `dead` of an upstream says when connections of an unreachable endpoint are closed");
                }
                "cookie" => notes.note(location, "`cookie` ignored: clients are not bound to an endpoint"),
                "source" | "usesrc" | "interface" | "id" | "tcp-ut" | "mss" | "namespace" | "max-reuse"
                | "pool-max-conn" | "pool-purge-delay" | "proto" | "ws" => {
                    notes.note(location, format!("`{word}` ignored: no equivalent"));
                }
                _ => {
                    unknown.push(*word);
                    // It may be a flag without value.
                    rest = &words[words.len() - rest.len() - 1..];
                }
            }
        }
        if !unknown.is_empty() {
            notes.note(location, format!("`{}`: not understood", unknown.join(" ")));
        }
    }

    fn read_flag(&mut self, word: &str, location: &Location, notes: &mut Notes) -> bool {
        match word {
            "check" => self.check = true,
            "no-check" => self.check = false,
            "ssl" => self.ssl = true,
            "no-ssl" => self.ssl = false,
            "check-ssl" => self.check_ssl = true,
            "no-check-ssl" => self.check_ssl = false,
            "send-proxy" => self.proxy_protocol = Some("v1"),
            "send-proxy-v2" | "send-proxy-v2-ssl" | "send-proxy-v2-ssl-cn" => self.proxy_protocol = Some("v2"),
            "no-send-proxy" | "no-send-proxy-v2" => self.proxy_protocol = None,
            "check-send-proxy" => notes.not_needed(location),
            "backup" => self.unused = Some(Unused::Backup),
            "disabled" => self.unused = Some(Unused::Disabled),
            "enabled" | "no-backup" => self.unused = None,
            "stick" | "non-stick" => {}
            "force-tlsv12" | "force-tlsv13" | "no-sslv3" | "no-tlsv10" | "no-tlsv11" | "no-tlsv12" | "no-tlsv13"
            | "no-tls-tickets" | "no-ssl-reuse" | "ssl-reuse" | "allow-0rtt" | "tfo" | "agent-check"
            | "no-agent-check" => {
                notes.note(location, format!("`{word}` ignored: not needed, or no equivalent"));
            }
            _ => return false,
        }
        true
    }

    pub(super) fn add_to(
        &self,
        upstream: &mut UpstreamDraft,
        address: &str,
        is_after_tls: bool,
        location: &Location,
        notes: &mut Notes,
    ) {
        let destination = match destination(address) {
            Ok(destination) => destination,
            Err(reason) => return notes.note(location, format!("`{address}` left out: {reason}")),
        };
        if let Some(unused) = self.unused {
            notes.note(location, unused.reason());
            if unused == Unused::Backup {
                upstream.backups.push(destination);
            }
            return;
        }
        if let Some((_, first)) = upstream.endpoints.first()
            && upstream.proxy_protocol != self.proxy_protocol
        {
            let header = |version: Option<&str>| {
                version.map_or("no PROXY header".to_owned(), |version| format!("a PROXY {version} header"))
            };
            let (own, others) = (header(self.proxy_protocol), header(upstream.proxy_protocol));
            let reason = format!(
                "left out: it gets {own}, the server in {first} gets {others}, and an upstream has one `proxy_protocol`"
            );
            notes.note(
                first,
                format!("endpoints of the upstream get {others}, like this server; the one in {location} differs"),
            );
            return notes.note(location, reason);
        }
        upstream.endpoints.push((destination, location.clone()));
        upstream.slow_start = upstream.slow_start.or(self.slow_start);
        upstream.proxy_protocol = upstream.proxy_protocol.or(self.proxy_protocol);
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

    /// `None`: the check does not use TLS.
    pub(super) fn check_tls(&self) -> Option<CheckTls> {
        if !self.ssl && !self.check_ssl {
            return None;
        }
        Some(match &self.ca_file {
            Some(ca_file) if self.verify == Verify::Required && !ca_file.starts_with('@') => CheckTls::Verified {
                ca_file: ca_file.clone(),
                server_name: self.verify_host.clone().filter(|name| is_hostname(name)),
            },
            _ => CheckTls::Unverified,
        })
    }

    fn note_check_tls(&self, location: &Location, notes: &mut Notes) {
        match self.check_tls() {
            Some(CheckTls::Unverified) if self.verify == Verify::Required => {
                notes
                    .note(location, "without `ca-file` the health check does not verify the server; set `tls.ca_file`");
            }
            Some(CheckTls::Verified { ca_file, .. }) => {
                if let Err(reason) = health::read_roots(ca_file.as_ref()) {
                    let reason = format!("`ca-file`: {reason}; `snigate check` fails until the file is there");
                    notes.note(location, reason);
                }
                if let Some(name) = self.verify_host.as_ref().filter(|name| !is_hostname(name)) {
                    notes.note(
                        location,
                        format!("`verifyhost {name}` ignored: not a hostname, so the check only verifies the chain"),
                    );
                }
            }
            _ => {}
        }
    }

    pub(super) fn is_used(&self) -> bool {
        self.unused.is_none()
    }

    pub(super) fn is_checked_like(&self, other: &Self) -> bool {
        let numbers = |one: &Self| (one.check, one.interval, one.rise, one.fall);
        numbers(self) == numbers(other) && self.check_tls() == other.check_tls()
    }
}

fn is_hostname(text: &str) -> bool {
    rustls::pki_types::ServerName::try_from(text).is_ok()
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

fn span(text: &str, location: &Location, notes: &mut Notes) -> Option<Duration> {
    duration(text, "ms").map_err(|reason| notes.note(location, format!("`{text}`: {reason}"))).ok()
}

fn count(text: &str, location: &Location, notes: &mut Notes) -> Option<u8> {
    let count = text.parse().ok().filter(|count| (1..=127).contains(count));
    if count.is_none() {
        notes.note(location, format!("`{text}`: not a number from 1 to 127"));
    }
    count
}
