//! The upstream under translation.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::draft::Rule;
use super::notes::Location;
use super::tlv;
use crate::text::Destination;

pub(super) const NEEDS_CAPABILITY: &str = "`source: client` needs the capability CAP_NET_ADMIN, and replies of endpoints have \
    to be routed back to this machine; health checks come from its own address";

pub(super) const OTHER_SERVERS: &str = "`balance: source_hash` also binds a client address to an endpoint, but not to the \
    same one as the source does";

#[derive(Clone, Default)]
pub(super) struct UpstreamDraft {
    pub(super) endpoints: Vec<EndpointDraft>,
    pub(super) balance: Option<&'static str>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) slow_start: Option<Duration>,
    pub(super) source: SourceDraft,
    pub(super) proxy_protocol: Option<HeaderDraft>,
    pub(super) check: Option<CheckDraft>,
    /// As of a frontend.
    pub(super) phases: Vec<Vec<Rule>>,
    /// HAProxy's `use-server`: rules that route to one server, which has an upstream of its own.
    pub(super) server_rules: Vec<Rule>,
    /// The source defines no server for it either, so it rejects its clients there, too.
    pub(super) is_empty_in_source: bool,
    /// The source has servers that are no backup, whether they are translated or not.
    pub(super) has_primary_in_source: bool,
    /// Lines that are translated if the upstream is used.
    pub(super) locations: BTreeSet<Location>,
}

#[derive(Clone)]
pub(super) struct EndpointDraft {
    pub(super) destination: Destination,
    pub(super) location: Location,
    /// From 1 to 256.
    pub(super) weight: u32,
    pub(super) is_backup: bool,
}

impl EndpointDraft {
    pub(super) fn new(destination: Destination, location: Location) -> Self {
        Self { destination, location, weight: 1, is_backup: false }
    }
}

/// Where connections to endpoints come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum SourceDraft {
    #[default]
    Any,
    /// At most one of each family.
    Addresses(Vec<IpAddr>),
    Client,
}

impl SourceDraft {
    /// For an endpoint with this address, if that is known.
    pub(super) fn of_endpoint(&self, endpoint: Option<IpAddr>) -> Self {
        match (self, endpoint) {
            (Self::Addresses(all), Some(endpoint)) => {
                let one: Vec<_> = all.iter().filter(|one| one.is_ipv4() == endpoint.is_ipv4()).copied().collect();
                if one.is_empty() { Self::Any } else { Self::Addresses(one) }
            }
            (source, _) => source.clone(),
        }
    }
}

/// The PROXY header that endpoints get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeaderDraft {
    pub(super) version: &'static str,
    pub(super) tlvs: BTreeMap<u8, Vec<u8>>,
    /// TLVs of the client's own header that are passed on.
    pub(super) pass: BTreeSet<u8>,
}

impl HeaderDraft {
    pub(super) fn of_version(version: &'static str) -> Self {
        Self { version, tlvs: BTreeMap::new(), pass: BTreeSet::new() }
    }
}

impl std::fmt::Display for HeaderDraft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a PROXY {} header", self.version)?;
        let own = self.tlvs.iter().map(|(number, value)| format!("{number:#04x}={}", tlv::text(value)));
        let tlvs: Vec<String> = own.chain(self.pass.iter().map(|number| format!("{number:#04x}"))).collect();
        if tlvs.is_empty() { Ok(()) } else { write!(f, " with TLV {}", tlvs.join(", ")) }
    }
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
