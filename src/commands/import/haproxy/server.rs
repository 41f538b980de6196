//! What stands behind `server` and `default-server`.

use std::time::Duration;

use crate::text::Destination;
use crate::upstream::health;

use super::Globals;
use crate::commands::import::draft::{TlsCheck, Upstream};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::values::duration;

#[derive(Clone, Default)]
pub(super) struct Parameters {
    pub(super) check: bool,
    pub(super) interval: Option<Duration>,
    pub(super) rise: Option<u8>,
    pub(super) fall: Option<u8>,
    ssl: bool,
    check_ssl: bool,
    trust: Trust,
    ca_file: Option<String>,
    verify_host: Option<String>,
    slow_start: Option<Duration>,
    proxy_protocol: Option<&'static str>,
    unused: Option<&'static str>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Trust {
    /// `verify required`, which is the default.
    #[default]
    Verified,
    /// `verify none`
    Anyone,
}

impl Parameters {
    pub(super) fn read(&mut self, words: &[&str], place: &Place, globals: &Globals, ledger: &mut Ledger) {
        let mut rest = words;
        let mut unknown = Vec::new();
        while let [word, after @ ..] = rest {
            rest = after;
            if self.read_flag(word, place, ledger) {
                continue;
            }
            let [value, after @ ..] = after else {
                unknown.push(*word);
                break;
            };
            rest = after;
            match *word {
                "inter" => self.interval = span(value, place, ledger),
                "slowstart" => self.slow_start = span(value, place, ledger),
                "rise" => self.rise = count(value, place, ledger),
                "fall" => self.fall = count(value, place, ledger),
                "fastinter" | "downinter" => ledger.note(place, format!("`{word}`: checks have one `interval`")),
                "verify" if *value == "none" => self.trust = Trust::Anyone,
                "verify" => self.trust = Trust::Verified,
                "ca-file" => self.ca_file = Some(globals.ca_file(value)),
                "verifyhost" => self.verify_host = Some((*value).into()),
                "sni" | "check-sni" => {
                    let reason = format!(
                        "`{word} {value}`: clients send the name themselves, and checks send `server_name`, or without \
                        it the first name in `sni`"
                    );
                    ledger.note(place, reason);
                }
                "maxconn" | "minconn" | "maxqueue" => {
                    ledger
                        .note(place, format!("`{word}`: endpoints have no limit; a route may have `max_connections`"));
                }
                "weight" if *value == "0" => self.unused = Some("`weight 0`: a server that gets no connections"),
                "weight" => ledger.note(place, "`weight`: endpoints have equal shares"),
                "resolvers" | "init-addr" | "resolve-prefer" | "resolve-opts" | "resolve-net" => {
                    ledger.note(place, format!("`{word}`: not needed: names are looked up in the background"));
                }
                "crt" | "crl-file" | "alpn" | "ciphers" | "ciphersuites" | "ssl-min-ver" | "ssl-max-ver" | "npn" => {
                    let reason =
                        format!("`{word}`: TLS is between the client and the server; client certificates reach it");
                    ledger.note(place, reason);
                }
                "port" | "addr" | "check-proto" | "check-alpn" | "agent-port" | "agent-addr" | "agent-inter"
                | "track" | "observe" | "error-limit" | "on-error" | "on-marked-up" => {
                    ledger.note(place, format!("`{word}`: without a counterpart; checks ask the endpoint itself"));
                }
                "on-marked-down" => {
                    ledger.note(place, "`on-marked-down`: see `dead`; connections of an endpoint that is gone are cut");
                }
                "cookie" => ledger.note(place, "`cookie`: no client is tied to an endpoint"),
                "source" | "usesrc" | "interface" | "id" | "tcp-ut" | "mss" | "namespace" | "max-reuse"
                | "pool-max-conn" | "pool-purge-delay" | "proto" | "ws" => {
                    ledger.note(place, format!("`{word}`: without a counterpart"));
                }
                _ => {
                    unknown.push(*word);
                    // It may be a flag.
                    rest = &words[words.len() - rest.len() - 1..];
                }
            }
        }
        if !unknown.is_empty() {
            ledger.note(place, format!("`{}`: not understood", unknown.join(" ")));
        }
    }

    fn read_flag(&mut self, word: &str, place: &Place, ledger: &mut Ledger) -> bool {
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
            "check-send-proxy" => ledger.note(place, "not needed: checks send a header where connections do"),
            "backup" => self.unused = Some("`backup`: all endpoints are used alike, so it stands there as a comment"),
            "disabled" => self.unused = Some("`disabled`: it was not used"),
            "enabled" | "no-backup" => self.unused = None,
            "stick" | "non-stick" => {}
            "force-tlsv12" | "force-tlsv13" | "no-sslv3" | "no-tlsv10" | "no-tlsv11" | "no-tlsv12" | "no-tlsv13"
            | "no-tls-tickets" | "no-ssl-reuse" | "ssl-reuse" | "allow-0rtt" | "tfo" | "agent-check"
            | "no-agent-check" => {
                ledger.note(place, format!("`{word}`: not needed, or without a counterpart"));
            }
            _ => return false,
        }
        true
    }

    pub(super) fn add_to(
        &self,
        upstream: &mut Upstream,
        address: &str,
        is_behind_tls: bool,
        place: &Place,
        ledger: &mut Ledger,
    ) {
        let destination = match destination(address) {
            Ok(destination) => destination,
            Err(reason) => return ledger.note(place, format!("`{address}` is left out: {reason}")),
        };
        if let Some(reason) = self.unused {
            ledger.note(place, format!("left out: {reason}"));
            if reason.starts_with("`backup`") {
                upstream.backups.push(destination);
            }
            return;
        }
        if let Some((_, first)) = upstream.endpoints.first()
            && upstream.proxy_protocol != self.proxy_protocol
        {
            let told = |version: Option<&str>| {
                version.map_or("no PROXY header".to_owned(), |one| format!("a PROXY header {one}"))
            };
            let reason = format!(
                "left out: it gets {}, the server before ({first}) {}, and an upstream has one `proxy_protocol`",
                told(self.proxy_protocol),
                told(upstream.proxy_protocol)
            );
            ledger.note(
                first,
                format!(
                    "the upstream sends what this server gets: {}; the one in {place} differs",
                    told(upstream.proxy_protocol)
                ),
            );
            return ledger.note(place, reason);
        }
        upstream.endpoints.push((destination, place.clone()));
        upstream.slow_start = upstream.slow_start.or(self.slow_start);
        upstream.proxy_protocol = upstream.proxy_protocol.or(self.proxy_protocol);
        if is_behind_tls && !self.ssl {
            ledger.note(
                place,
                "HAProxy sent what was inside TLS; the server now gets the client's TLS, and must speak it",
            );
        }
        if !is_behind_tls && self.ssl {
            ledger.note(
                place,
                "`ssl`: HAProxy put the client's bytes into TLS of its own; the server now gets the client's TLS",
            );
        }
        if self.ssl && !self.check && self.trust == Trust::Verified && self.ca_file.is_some() {
            ledger.note(
                place,
                "`verify required`: the client verifies the server now; without `check` nothing else does",
            );
        }
        if self.check {
            self.judge_tls(place, ledger);
        }
    }

    /// How a check verifies; `None`: it only connects.
    pub(super) fn check_tls(&self) -> Option<TlsCheck> {
        if !self.ssl && !self.check_ssl {
            return None;
        }
        Some(match &self.ca_file {
            Some(ca_file) if self.trust == Trust::Verified && !ca_file.starts_with('@') => TlsCheck::Verified {
                ca_file: ca_file.clone(),
                server_name: self.verify_host.clone().filter(|name| is_name(name)),
            },
            _ => TlsCheck::Unverified,
        })
    }

    fn judge_tls(&self, place: &Place, ledger: &mut Ledger) {
        match self.check_tls() {
            Some(TlsCheck::Unverified) if self.trust == Trust::Verified => {
                ledger.note(
                    place,
                    "without a `ca-file` of its own the check believes any certificate; give it a `ca_file`",
                );
            }
            Some(TlsCheck::Verified { ca_file, .. }) => {
                if let Err(reason) = health::read_roots(ca_file.as_ref()) {
                    let reason =
                        format!("`ca-file`: {reason}. `snigate check` refuses the result until the file is there");
                    ledger.note(place, reason);
                }
                if let Some(name) = self.verify_host.as_ref().filter(|name| !is_name(name)) {
                    ledger.note(place, format!("`verifyhost {name}` is no name, so only the chain is verified"));
                }
            }
            _ => {}
        }
    }

    pub(super) fn is_checked_like(&self, other: &Self) -> bool {
        let numbers = |one: &Self| (one.check, one.interval, one.rise, one.fall);
        numbers(self) == numbers(other) && self.check_tls() == other.check_tls()
    }
}

fn is_name(text: &str) -> bool {
    rustls::pki_types::ServerName::try_from(text).is_ok()
}

pub(super) fn destination(text: &str) -> Result<Destination, String> {
    if text.starts_with('_') {
        return Err("a name of SRV records; snigate looks up addresses only: write the hostname and its port".into());
    }
    if text.starts_with('/') || text.starts_with("unix@") || text.starts_with("abns@") {
        return Err("a Unix socket; endpoints have a host and a port".into());
    }
    let text = text.strip_prefix("ipv4@").or_else(|| text.strip_prefix("ipv6@")).unwrap_or(text);
    match text.rsplit_once(':') {
        Some((host, port)) if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}").parse(),
        _ => text.parse(),
    }
}

fn span(text: &str, place: &Place, ledger: &mut Ledger) -> Option<Duration> {
    duration(text, "ms").map_err(|reason| ledger.note(place, format!("`{text}`: {reason}"))).ok()
}

fn count(text: &str, place: &Place, ledger: &mut Ledger) -> Option<u8> {
    let count = text.parse().ok().filter(|count| (1..=127).contains(count));
    if count.is_none() {
        ledger.note(place, format!("`{text}`: no number from 1 to 127"));
    }
    count
}
