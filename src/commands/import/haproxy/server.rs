//! Parameters of `server` and `default-server`.

use std::time::Duration;

use super::context::FileContext;
use super::proxy_header::HeaderParameters;
use super::source::{INTERFACE_IGNORED, SourceParameters};
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::values::duration;

const MAX_WEIGHT: u32 = 256;

#[derive(Clone, Default)]
pub(super) struct ServerParameters {
    pub(super) check: bool,
    pub(super) interval: Option<Duration>,
    pub(super) rise: Option<u8>,
    pub(super) fall: Option<u8>,
    pub(super) ssl: bool,
    pub(super) check_ssl: bool,
    pub(super) verify: Verify,
    pub(super) ca_file: Option<String>,
    pub(super) verify_host: Option<String>,
    pub(super) slow_start: Option<Duration>,
    pub(super) header: HeaderParameters,
    pub(super) source: Option<SourceParameters>,
    share: ShareParameters,
}

/// Which connections the server gets.
#[derive(Clone, Default)]
struct ShareParameters {
    /// From 0 to 256.
    weight: Option<u32>,
    is_backup: bool,
    is_disabled: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Verify {
    #[default]
    Required,
    None,
}

impl ServerParameters {
    pub(super) fn read(&mut self, words: &[&str], location: &Location, context: &FileContext<'_>, notes: &mut Notes) {
        let mut rest = words;
        let mut unknown = Vec::new();
        while let [word, after @ ..] = rest {
            rest = after;
            if self.read_flag(word, location, notes) || self.header.read_flag(word) {
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
                "weight" => match value.parse().ok().filter(|weight| *weight <= MAX_WEIGHT) {
                    Some(weight) => self.share.weight = Some(weight),
                    None => notes.note(location, format!("`weight {value}`: not a number from 0 to {MAX_WEIGHT}")),
                },
                "source" => self.source = Some(SourceParameters::new(value, location)),
                "usesrc" => {
                    if let Some(source) = &mut self.source {
                        source.transparent = Some((*value).into());
                    }
                }
                "interface" => notes.note(location, INTERFACE_IGNORED),
                "proxy-v2-options" => notes.note(
                    location,
                    format!("`proxy-v2-options {value}` ignored: snigate sends the client's SNI and ALPN; for others see `tlvs` of `proxy_protocol`"),
                ),
                word if self.header.read_tlv(word, value, location, notes) => {}
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
                "cookie" => notes.note(location, "`cookie` ignored: clients are only bound to an endpoint by `balance: source_hash`"),
                "id" | "tcp-ut" | "mss" | "namespace" | "max-reuse"
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
            "check-send-proxy" => notes.not_needed(location),
            "backup" => self.share.is_backup = true,
            "no-backup" => self.share.is_backup = false,
            "disabled" => self.share.is_disabled = true,
            "enabled" => self.share.is_disabled = false,
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

    pub(super) fn weight(&self) -> u32 {
        self.share.weight.unwrap_or(1)
    }

    pub(super) fn is_backup(&self) -> bool {
        self.share.is_backup
    }

    /// Why HAProxy sends no connections to the server, if it does not.
    pub(super) fn unused(&self) -> Option<&'static str> {
        if self.share.is_disabled {
            Some("left out: disabled in the source")
        } else if self.weight() == 0 {
            Some("left out: `weight 0`, so it gets no connections")
        } else {
            None
        }
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
