//! The contents of `stream` blocks, and the settings that servers inherit from them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::reasons;
use super::syntax::{Directive, variable_name};
use crate::commands::import::draft::Rule;
use crate::commands::import::notes::Notes;

#[derive(Default)]
pub(super) struct StreamBlock<'a> {
    pub(super) upstreams: BTreeMap<&'a str, &'a Directive>,
    /// `map` and `geo`, by the variable that they set.
    pub(super) maps: BTreeMap<&'a str, &'a Directive>,
    pub(super) servers: Vec<&'a Directive>,
    pub(super) settings: StreamSettings<'a>,
    /// Upstreams and maps that a translated server uses.
    pub(super) used: BTreeSet<&'a str>,
    pub(super) named_rules: Vec<NamedRule>,
    pub(super) default_rules: Vec<DefaultRules>,
    /// Zones of `limit_conn` that count by client address.
    pub(super) zones: BTreeSet<&'a str>,
}

/// A rule of a server for one of its names.
pub(super) struct NamedRule {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) rank: KeyRank,
    pub(super) rule: Rule,
}

/// Rules of a server for names that no server at its addresses has.
pub(super) struct DefaultRules {
    pub(super) addresses: Vec<SocketAddr>,
    /// By `default_server`.
    pub(super) is_explicit: bool,
    pub(super) rules: Vec<Rule>,
}

/// In the order in which nginx looks up a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum KeyRank {
    Exact,
    /// The longest first.
    Wildcard(std::cmp::Reverse<usize>),
    /// In the order of the file.
    Regex(usize),
    Default,
}

/// Directives of a `stream` or a `server`.
#[derive(Clone, Default)]
pub(super) struct StreamSettings<'a> {
    pub(super) ssl_preread: Option<&'a Directive>,
    pub(super) proxy_connect_timeout: Option<&'a Directive>,
    pub(super) proxy_timeout: Option<&'a Directive>,
    pub(super) preread_timeout: Option<&'a Directive>,
    pub(super) proxy_protocol: Option<&'a Directive>,
    pub(super) proxy_bind: Option<&'a Directive>,
    /// `allow` and `deny`
    pub(super) access: Vec<&'a Directive>,
    pub(super) set_real_ip_from: Vec<&'a Directive>,
    pub(super) limit_conn: Option<&'a Directive>,
    pub(super) limit_conn_zone: Option<&'a Directive>,
}

impl<'a> StreamSettings<'a> {
    pub(super) fn add(&mut self, directive: &'a Directive, notes: &mut Notes) {
        match directive.words()[..] {
            ["ssl_preread", _] => self.ssl_preread = Some(directive),
            ["proxy_connect_timeout", _] => self.proxy_connect_timeout = Some(directive),
            ["proxy_timeout", _] => self.proxy_timeout = Some(directive),
            ["preread_timeout", _] => self.preread_timeout = Some(directive),
            ["proxy_bind", _, ..] => self.proxy_bind = Some(directive),
            ["proxy_protocol", _] => self.proxy_protocol = Some(directive),
            ["allow" | "deny", _] => self.access.push(directive),
            ["set_real_ip_from", _] => self.set_real_ip_from.push(directive),
            ["limit_conn", _, _] => self.limit_conn = Some(directive),
            ["ssl_verify_client", "on"] => notes.admits_more(
                &directive.location(),
                "`ssl_verify_client`: nginx rejects clients without a certificate; snigate admits them, and the API \
                server has to reject them",
            ),
            ["include", _] => {}
            _ => reasons::explain(directive, notes),
        }
    }
}

impl<'a> StreamBlock<'a> {
    pub(super) fn add(&mut self, directive: &'a Directive, notes: &mut Notes) {
        match directive.words()[..] {
            ["upstream", name] if directive.block.is_some() => {
                if self.upstreams.insert(name, directive).is_some() {
                    notes.note(&directive.location(), format!("duplicate upstream `{name}`: the last one applies"));
                }
            }
            ["map", source, _] if directive.block.is_some() && variable_name(source).is_none() => {
                let reason = format!("not translated: `{source}` is not a single variable");
                notes.note(&directive.whole(), reason);
            }
            ["map", _, variable] | ["geo", variable] | ["geo", "$remote_addr" | "$binary_remote_addr", variable]
                if directive.block.is_some() =>
            {
                if self.maps.insert(variable, directive).is_some() {
                    notes.note(&directive.location(), format!("`{variable}` is set twice: the last block applies"));
                }
            }
            ["limit_conn_zone", "$binary_remote_addr" | "$remote_addr", zone] => {
                self.zones.extend(zone.strip_prefix("zone=").and_then(|zone| zone.split(':').next()));
                self.settings.limit_conn_zone = Some(directive);
            }
            ["server"] if directive.block.is_some() => self.servers.push(directive),
            _ if directive.block.is_some() => {
                notes.note(&directive.whole(), format!("`{}`: no equivalent", directive.words.join(" ")));
            }
            _ => self.settings.add(directive, notes),
        }
    }
}
