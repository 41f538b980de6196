//! What another proxy's configuration comes to, before it is written down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use snigate::config::overlap;
use snigate::name::NamePattern;
use snigate::upstream::Destination;

use super::ledger::Place;

/// What a proxy's own certificate becomes.
pub(super) const TLS_ENDED: &str = "`ssl`: snigate does not end TLS, and holds no certificate. Clients see the API \
    server's own certificate: they need its CA, and where it does not carry the name they connect to, \
    `tls-server-name`; that is then the name they ask for, and must stand in `sni`, too (the names of servers are \
    suggested there). Client certificates reach the API server";

/// What a rule about addresses becomes that cannot be one.
pub(super) const OPEN: &str = "NOT carried over, so clients that it kept out may come in: see `allow` and `deny`";

/// What becomes of listeners that looked at nothing.
pub(super) const UNCERTAIN: &str = "nothing in it says that its clients speak TLS; those that do not are refused";

#[derive(Default)]
pub(super) struct Draft {
    pub(super) frontends: Vec<Frontend>,
    pub(super) upstreams: BTreeMap<String, Upstream>,
    pub(super) timeouts: Timeouts,
}

/// Listeners that share their rules.
pub(super) struct Frontend {
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) sources: Sources,
    pub(super) rules: Vec<Rule>,
    /// It showed a certificate of its own.
    pub(super) ended_tls: bool,
    /// Lines that hold if it is used.
    pub(super) places: BTreeSet<Place>,
}

/// From where clients may come; empty lists say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Sources {
    pub(super) allow: Vec<IpNet>,
    pub(super) deny: Vec<IpNet>,
}

impl Sources {
    pub(super) fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

pub(super) struct Rule {
    pub(super) place: Place,
    /// What it is made of, too.
    pub(super) also: BTreeSet<Place>,
    pub(super) takes: Takes,
    pub(super) sources: Sources,
    pub(super) upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// Every other name, and none.
    All,
    /// At least one.
    Names(Vec<NamePattern>),
}

#[derive(Default)]
pub(super) struct Upstream {
    pub(super) endpoints: Vec<(Destination, Place)>,
    /// For when all others are gone, which snigate does not have.
    pub(super) backups: Vec<Destination>,
    pub(super) balance: Option<&'static str>,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) slow_start: Option<Duration>,
    pub(super) proxy_protocol: Option<&'static str>,
    pub(super) check: Option<Check>,
    /// Lines that hold if it is used.
    pub(super) places: BTreeSet<Place>,
}

#[derive(Default)]
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
