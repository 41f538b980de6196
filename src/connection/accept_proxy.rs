//! Which peers of a listener send a PROXY header, and what is in it.

use std::fmt;
use std::net::IpAddr;

use crate::connection::networks::Networks;
use crate::connection::reject::Rejection;
use crate::proxy_protocol::{Header, ProxiedAddresses};
use crate::route::Tlvs;
use crate::telemetry::Outcome;

/// Load balancers that must send a PROXY header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AcceptProxy {
    pub(crate) from: Networks,
    pub(crate) others: Others,
}

/// Peers that are no load balancers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Others {
    /// They are rejected.
    Refuse,
    /// They are clients, and send no header.
    Direct,
}

impl AcceptProxy {
    /// Whether this peer must send a header.
    pub(super) fn expects_header(&self, peer: IpAddr) -> Result<bool, Rejection> {
        match self.others {
            _ if self.from.contains(peer) => Ok(true),
            Others::Direct => Ok(false),
            Others::Refuse => Err(Rejection::because(Outcome::ProxyHeader, "peer not in accept_proxy.from")),
        }
    }
}

impl fmt::Display for AcceptProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, others } = self;
        match others {
            Others::Refuse => write!(f, "PROXY header required, from {from}"),
            Others::Direct => write!(f, "PROXY header required from {from}; others connect directly"),
        }
    }
}

/// What is in a PROXY header; nothing without one.
#[derive(Debug, Default)]
pub(crate) struct Proxied {
    /// `None`, too, for a header without addresses (`LOCAL`, `UNKNOWN`).
    pub(super) addresses: Option<ProxiedAddresses>,
    tlvs: Box<[u8]>,
}

impl Proxied {
    pub(super) fn of(header: &Header<'_>) -> Self {
        Self { addresses: header.addresses, tlvs: header.tlvs.as_encoded().into() }
    }

    pub(super) fn tlvs(&self) -> Tlvs<'_> {
        Tlvs::parse(&self.tlvs).unwrap_or_default()
    }
}
