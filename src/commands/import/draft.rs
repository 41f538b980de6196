//! The configuration under translation: what a proxy's file says, in snigate's terms, before its rules become routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::listener::overlap;
use ipnet::IpNet;

use super::addresses::AccessList;
use super::expression::{ClientLimit, Expression};
use super::notes::Location;
use super::upstream_draft::UpstreamDraft;
use super::values::everywhere;

pub(super) const TLS_NOT_TERMINATED: &str = "`ssl`: snigate does not terminate TLS and needs no certificate. Clients \
    see the API server's own certificate and verify it with its CA. If the hostname they connect to is not in that \
    certificate's SAN, they set `tls-server-name` to one that is; they then send that name as SNI, so add it to `sni` \
    (likely ones are there as comments). Client certificates reach the API server";

pub(super) const MAYBE_NOT_TLS: &str = "nothing here says that clients speak TLS; snigate rejects those that do not";

#[derive(Default)]
pub(super) struct Draft {
    pub(super) frontends: Vec<Frontend>,
    pub(super) upstreams: BTreeMap<String, UpstreamDraft>,
    pub(super) timeouts: TimeoutsDraft,
    /// At all listeners.
    pub(super) limits: Vec<ClientLimit>,
}

/// Listeners that share their rules: a `frontend` of HAProxy, the `server`s of nginx at one address.
pub(super) struct Frontend {
    pub(super) name: String,
    pub(super) location: Location,
    pub(super) addresses: Vec<SocketAddr>,
    /// Peers that send PROXY headers.
    pub(super) accept_proxy: BTreeMap<SocketAddr, AcceptProxyDraft>,
    /// Empty until the rules are evaluated.
    pub(super) access: AccessList,
    /// Lists of accept and reject rules that a client passes one after another.
    pub(super) phases: Vec<Vec<Rule>>,
    /// Which upstream a client is routed to; a client that matches no rule is rejected.
    pub(super) rules: Vec<Rule>,
    pub(super) limits: Vec<(ClientLimit, Location)>,
    pub(super) terminated_tls: bool,
    /// Lines that are translated if the frontend is.
    pub(super) locations: BTreeSet<Location>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AcceptProxyDraft {
    pub(super) from: Vec<IpNet>,
    /// Other peers are clients that send no header.
    pub(super) others_are_direct: bool,
}

impl AcceptProxyDraft {
    /// All peers send a header.
    pub(super) fn everywhere() -> Self {
        Self { from: everywhere(), others_are_direct: false }
    }
}

impl Frontend {
    pub(super) fn new(name: String, location: Location) -> Self {
        Self {
            name,
            location,
            addresses: Vec::new(),
            accept_proxy: BTreeMap::new(),
            access: AccessList::default(),
            phases: Vec::new(),
            rules: Vec::new(),
            limits: Vec::new(),
            terminated_tls: false,
            locations: BTreeSet::new(),
        }
    }

    /// Whether a rule looks at the server name.
    pub(super) fn tests_names(&self) -> bool {
        self.phases.iter().flatten().chain(&self.rules).any(|rule| rule.when.tests_names())
    }
}

/// In a list of rules the first that matches decides.
#[derive(Clone)]
pub(super) struct Rule {
    pub(super) location: Location,
    /// Other lines that the rule is made of, such as `acl` lines.
    pub(super) related: BTreeSet<Location>,
    pub(super) when: Expression,
    pub(super) then: Action,
}

impl Rule {
    pub(super) fn new(location: &Location, when: Expression, then: Action) -> Self {
        Self { location: location.clone(), related: BTreeSet::new(), when, then }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Action {
    /// The client goes on to the next list of rules.
    Accept,
    Reject,
    /// To an upstream, by its key.
    RouteTo(String),
}

/// The source sets these per section, snigate once: the longest applies.
#[derive(Default)]
pub(super) struct TimeoutsDraft {
    pub(super) hello: BTreeSet<(Duration, Location)>,
    pub(super) idle: BTreeSet<(Duration, Location)>,
    pub(super) half_close: BTreeSet<(Duration, Location)>,
    pub(super) drain: BTreeSet<(Duration, Location)>,
}

impl TimeoutsDraft {
    pub(super) fn by_key(&self) -> [(&'static str, &BTreeSet<(Duration, Location)>); 4] {
        let Self { hello, idle, half_close, drain } = self;
        [("hello", hello), ("idle", idle), ("half_close", half_close), ("drain", drain)]
    }
}

pub(super) enum ListenResult {
    Added,
    /// One listener at this address serves both: `[::]` accepts IPv4 clients, too.
    MergedInto(SocketAddr),
    /// Another frontend listens there.
    InUse(String),
}

impl Draft {
    /// Adds an address to a frontend that is not part of the draft yet.
    pub(super) fn listen(&self, frontend: &mut Frontend, address: SocketAddr) -> ListenResult {
        for other in &self.frontends {
            if let Some(used) = other.addresses.iter().find(|used| overlap(**used, address)) {
                return ListenResult::InUse(format!("`{}` already listens at {used}", other.name));
            }
        }
        let mut merged = address;
        for own in &frontend.addresses {
            if overlap(*own, merged) && own.ip().is_unspecified() && (own.is_ipv6() || merged.is_ipv4()) {
                merged = *own;
            }
        }
        let count = frontend.addresses.len();
        frontend.addresses.retain(|own| !overlap(*own, merged));
        let is_new = frontend.addresses.len() == count;
        frontend.addresses.push(merged);
        if is_new { ListenResult::Added } else { ListenResult::MergedInto(merged) }
    }
}
