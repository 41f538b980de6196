//! Every way a connection can end, and its TLS alert, log level and metric label.

use strum::{EnumCount, IntoStaticStr, VariantArray};
use tracing::Level;

/// How a connection ended. The label in logs and metrics is the variant's name in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub(crate) enum Outcome {
    /// Both sides closed with a FIN.
    Completed,
    /// The client reset the connection.
    ClientReset,
    /// The API server reset the connection.
    UpstreamReset,
    /// No data for `timeouts.idle`.
    IdleTimeout,
    /// No data for `timeouts.half_close` after one side had closed.
    HalfCloseTimeout,
    /// A peer did not answer keepalives, or did not acknowledge data for too long.
    PeerDead,
    /// Closed by us: a shutdown, a removed route or endpoint, an operator, or `rebalance`.
    Drained,
    /// Closed by us because its endpoint was unreachable for `dead.grace` and did not acknowledge a probe.
    CutEndpoint,
    /// Closed by us because it was older than `max_age`.
    MaxAge,
    /// No route matches the name.
    UnknownName,
    /// The client sent no SNI, and there is no catch-all route.
    NoName,
    /// The ClientHello or the name in it is malformed.
    Malformed,
    /// The client does not speak TLS.
    NotTls,
    /// The ClientHello was not complete within `timeouts.hello`.
    HelloTimeout,
    /// The ClientHello is larger than `limits.hello_bytes`.
    HelloTooLarge,
    /// A required PROXY header was missing, invalid, or from a peer that is not in `accept_proxy.from`.
    ProxyHeader,
    /// `allow` or `deny` of the listener or route rejects the client's address, or `deny_ja4` its fingerprint.
    Denied,
    /// A limit on connections or memory is reached.
    OverLimit,
    /// There is no endpoint to connect to: hostnames do not resolve, or all endpoints are drained.
    NoEndpoint,
    /// Every endpoint refused the connection or was unreachable.
    ConnectRefused,
    /// No endpoint accepted the connection within the connect timeout.
    ConnectTimeout,
    /// All endpoints are snigate's own listeners.
    Loop,
    /// A local error: out of file descriptors, ports or memory.
    LocalError,
    /// The client closed before it was connected to an endpoint.
    ClientGone,
}

/// A TLS alert description (RFC 8446, section 6), sent as fatal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Alert {
    AccessDenied = 49,
    DecodeError = 50,
    InternalError = 80,
    UnrecognizedName = 112,
}

impl Alert {
    /// The alert as a TLS record.
    pub(crate) fn record(self) -> [u8; 7] {
        const FATAL: u8 = 2;
        [21, 3, 3, 0, 2, FATAL, self as u8]
    }
}

/// Which party ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum ClosedBy {
    Client,
    Upstream,
    Us,
}

impl ClosedBy {
    pub(super) fn label(self) -> &'static str {
        self.into()
    }
}

impl Outcome {
    /// The value of `outcome` in logs and metrics.
    pub(crate) fn label(self) -> &'static str {
        self.into()
    }

    /// The log level. Clients cannot cause warnings; what needs the operator's attention is at least a warning.
    pub(crate) fn level(self) -> Level {
        match self {
            Self::Completed
            | Self::ClientReset
            | Self::UpstreamReset
            | Self::IdleTimeout
            | Self::HalfCloseTimeout
            | Self::PeerDead
            | Self::Drained
            | Self::CutEndpoint
            | Self::MaxAge
            | Self::UnknownName
            | Self::NoName
            | Self::Malformed
            | Self::NotTls
            | Self::HelloTimeout
            | Self::HelloTooLarge
            | Self::ProxyHeader
            | Self::Denied
            | Self::OverLimit
            | Self::ClientGone => Level::INFO,
            Self::NoEndpoint | Self::ConnectRefused | Self::ConnectTimeout | Self::Loop => Level::WARN,
            Self::LocalError => Level::ERROR,
        }
    }

    /// The alert for a rejected client, unless it does not speak TLS.
    pub(crate) fn alert(self) -> Option<Alert> {
        match self {
            Self::UnknownName | Self::NoName => Some(Alert::UnrecognizedName),
            Self::Malformed => Some(Alert::DecodeError),
            Self::Denied => Some(Alert::AccessDenied),
            Self::HelloTimeout
            | Self::HelloTooLarge
            | Self::OverLimit
            | Self::NoEndpoint
            | Self::ConnectRefused
            | Self::ConnectTimeout
            | Self::Loop
            | Self::LocalError => Some(Alert::InternalError),
            Self::Completed
            | Self::ClientReset
            | Self::UpstreamReset
            | Self::IdleTimeout
            | Self::HalfCloseTimeout
            | Self::PeerDead
            | Self::Drained
            | Self::CutEndpoint
            | Self::MaxAge
            | Self::NotTls
            | Self::ProxyHeader
            | Self::ClientGone => None,
        }
    }

    /// At which stage a connection can end with this outcome.
    pub(crate) fn stage(self) -> Stage {
        match self {
            Self::UnknownName
            | Self::NoName
            | Self::Malformed
            | Self::NotTls
            | Self::HelloTimeout
            | Self::HelloTooLarge
            | Self::ProxyHeader => Stage::BeforeRoute,
            Self::ClientGone | Self::LocalError | Self::Drained | Self::Denied | Self::OverLimit => Stage::Any,
            Self::NoEndpoint | Self::ConnectRefused | Self::ConnectTimeout | Self::Loop => Stage::Connect,
            Self::Completed
            | Self::ClientReset
            | Self::UpstreamReset
            | Self::IdleTimeout
            | Self::HalfCloseTimeout
            | Self::PeerDead
            | Self::CutEndpoint
            | Self::MaxAge => Stage::Relay,
        }
    }

    /// Whether the connection was never connected to an endpoint.
    pub(crate) fn is_rejection(self) -> bool {
        match self.stage() {
            Stage::BeforeRoute | Stage::Connect => true,
            Stage::Relay => false,
            Stage::Any => self != Self::Drained,
        }
    }
}

/// The stage at which a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before a route was found.
    BeforeRoute,
    /// While connecting to an endpoint.
    Connect,
    Relay,
    Any,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operators' queries and dashboards are written with these.
    #[test]
    fn labels_stay_what_they_are() {
        let labels: Vec<&str> = Outcome::VARIANTS.iter().map(|outcome| outcome.label()).collect();
        let expected = "completed client_reset upstream_reset idle_timeout half_close_timeout peer_dead drained cut_endpoint max_age \
            unknown_name no_name malformed not_tls hello_timeout hello_too_large proxy_header denied over_limit \
            no_endpoint connect_refused connect_timeout loop local_error client_gone";
        assert_eq!(labels.join(" "), expected);
    }

    #[test]
    fn an_alert_is_one_record() {
        assert_eq!(Alert::UnrecognizedName.record(), [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70]);
    }
}
