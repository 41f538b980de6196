//! What another proxy's configuration comes to, before it is written down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use crate::listener::overlap;
use crate::text::Destination;
use ipnet::IpNet;

use super::expression::{Expression, Limit};
use super::ledger::Place;
use super::sources::Sources;

/// What a proxy's own certificate becomes.
pub(super) const TLS_ENDED: &str = "`ssl`: snigate does not end TLS, and holds no certificate. Clients see the API \
    server's own certificate: they need its CA, and where it does not carry the name they connect to, \
    `tls-server-name`; that is then the name they ask for, and must stand in `sni`, too (the names of servers are \
    suggested there). Client certificates reach the API server";

/// What becomes of listeners that looked at nothing.
pub(super) const UNCERTAIN: &str = "nothing in it says that its clients speak TLS; those that do not are refused";

#[derive(Default)]
pub(super) struct Draft {
    pub(super) frontends: Vec<Frontend>,
    pub(super) upstreams: BTreeMap<String, Upstream>,
    pub(super) timeouts: Timeouts,
    /// For each source, at all listeners.
    pub(super) limits: Vec<Limit>,
}

/// Listeners that share their rules.
pub(super) struct Frontend {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) addresses: Vec<SocketAddr>,
    /// Peers that send PROXY headers.
    pub(super) accept_proxy: BTreeMap<SocketAddr, Vec<IpNet>>,
    /// Found once the rules are tried.
    pub(super) sources: Sources,
    /// Who is admitted; a phase ends with the first rule that matches, and refuses or lets the next one decide.
    pub(super) phases: Vec<Vec<Rule>>,
    /// Where to; what no rule matches is refused.
    pub(super) rules: Vec<Rule>,
    /// For each source.
    pub(super) limits: Vec<(Limit, Place)>,
    /// It showed a certificate of its own.
    pub(super) ended_tls: bool,
    /// Lines that hold if it is used.
    pub(super) places: BTreeSet<Place>,
}

/// The first of several that matches decides.
#[derive(Clone)]
pub(super) struct Rule {
    pub(super) place: Place,
    /// What it is made of, too.
    pub(super) also: BTreeSet<Place>,
    pub(super) when: Expression,
    pub(super) then: Outcome,
}

impl Rule {
    pub(super) fn new(place: &Place, when: Expression, then: Outcome) -> Self {
        Self { place: place.clone(), also: BTreeSet::new(), when, then }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// Of a phase: the next one decides.
    Pass,
    Refuse,
    /// An upstream, by its key.
    To(String),
}

#[derive(Clone, Default)]
pub(super) struct Upstream {
    pub(super) endpoints: Vec<(Destination, Place)>,
    /// For when all others are gone, which snigate does not have.
    pub(super) backups: Vec<Destination>,
    pub(super) balance: Option<&'static str>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) slow_start: Option<Duration>,
    pub(super) proxy_protocol: Option<&'static str>,
    pub(super) check: Option<Check>,
    /// Who is admitted to it, as of a frontend.
    pub(super) phases: Vec<Vec<Rule>>,
    /// Which of its servers alone is used by whom: upstreams of their own.
    pub(super) choices: Vec<Rule>,
    /// The source has no server for it either.
    pub(super) is_vacant: bool,
    /// Lines that hold if it is used.
    pub(super) places: BTreeSet<Place>,
}

#[derive(Clone, Default)]
pub(super) struct Check {
    pub(super) interval: Option<Duration>,
    pub(super) timeout: Option<Duration>,
    pub(super) rise: Option<u8>,
    pub(super) fall: Option<u8>,
    pub(super) tls: Option<TlsCheck>,
    pub(super) path: Option<String>,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum TlsCheck {
    Unverified,
    Verified { ca_file: String, server_name: Option<String> },
}

/// Of what is said in many places there, and holds for all connections here, the longest is taken.
#[derive(Default)]
pub(super) struct Timeouts {
    pub(super) hello: BTreeSet<(Duration, Place)>,
    pub(super) idle: BTreeSet<(Duration, Place)>,
    pub(super) half_close: BTreeSet<(Duration, Place)>,
    pub(super) drain: BTreeSet<(Duration, Place)>,
}

impl Timeouts {
    pub(super) fn named(&self) -> [(&'static str, &BTreeSet<(Duration, Place)>); 4] {
        let Self { hello, idle, half_close, drain } = self;
        [("hello", hello), ("idle", idle), ("half_close", half_close), ("drain", drain)]
    }
}

/// What becomes of an address.
pub(super) enum Listens {
    Yes,
    /// `[::]` takes IPv4 clients, too.
    With(SocketAddr),
    /// The kernel would not give it to both.
    Taken(String),
}

impl Draft {
    /// Adds an address to a frontend that is not among the others yet.
    pub(super) fn listen(&self, frontend: &mut Frontend, address: SocketAddr) -> Listens {
        for other in &self.frontends {
            if let Some(taken) = other.addresses.iter().find(|taken| overlap(**taken, address)) {
                return Listens::Taken(format!("{taken} of `{}` is the same address, or covers it", other.name));
            }
        }
        let mut wider = address;
        for taken in &frontend.addresses {
            if overlap(*taken, wider) && taken.ip().is_unspecified() && (taken.is_ipv6() || wider.is_ipv4()) {
                wider = *taken;
            }
        }
        let before = frontend.addresses.len();
        frontend.addresses.retain(|taken| !overlap(*taken, wider));
        let alone = frontend.addresses.len() == before;
        frontend.addresses.push(wider);
        if alone { Listens::Yes } else { Listens::With(wider) }
    }
}
