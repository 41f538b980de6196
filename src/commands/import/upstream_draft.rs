//! The upstream under translation.

use std::collections::BTreeSet;
use std::time::Duration;

use super::draft::Rule;
use super::notes::Location;
use crate::text::Destination;

#[derive(Clone, Default)]
pub(super) struct UpstreamDraft {
    pub(super) endpoints: Vec<(Destination, Location)>,
    /// snigate has no backup endpoints yet; these are written as comments.
    pub(super) backups: Vec<Destination>,
    pub(super) balance: Option<&'static str>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) slow_start: Option<Duration>,
    pub(super) proxy_protocol: Option<&'static str>,
    pub(super) check: Option<CheckDraft>,
    /// As of a frontend.
    pub(super) phases: Vec<Vec<Rule>>,
    /// HAProxy's `use-server`: rules that route to one server, which has an upstream of its own.
    pub(super) server_rules: Vec<Rule>,
    /// The source defines no server for it either, so it rejects its clients there, too.
    pub(super) is_empty_in_source: bool,
    /// Lines that are translated if the upstream is used.
    pub(super) locations: BTreeSet<Location>,
}

#[derive(Clone, Default)]
pub(super) struct CheckDraft {
    pub(super) interval: Option<Duration>,
    pub(super) timeout: Option<Duration>,
    pub(super) rise: Option<u8>,
    pub(super) fall: Option<u8>,
    pub(super) tls: Option<CheckTls>,
    pub(super) path: Option<String>,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum CheckTls {
    Unverified,
    Verified { ca_file: String, server_name: Option<String> },
}
