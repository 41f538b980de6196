//! Every way a connection can end, and what each means to the client, the log and the metrics.

use strum::{EnumCount, IntoStaticStr, VariantArray};
use tracing::Level;

/// How a connection ended. The label in logs and metrics is the variant's name in snake case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub(crate) enum Outcome {
    /// Both sides closed in order.
    Completed,
    /// The client reset the connection.
    ClientReset,
    /// The API server reset the connection.
    UpstreamReset,
    /// No byte for `timeouts.idle`.
    IdleTimeout,
    /// No byte for `timeouts.half_close` after one side had closed.
    HalfCloseTimeout,
    /// A side did not answer keepalives, or took no byte for `tcp.user_timeout`.
    PeerDead,
    /// Closed by us at the end of `timeouts.drain`.
    Drained,
    /// Closed by us because its endpoint was dead for `dead.grace`.
    CutEndpoint,
    /// No route has the name.
    UnknownName,
    /// The client sent no name, and no route takes such clients.
    NoName,
    /// The hello is no well-formed ClientHello, or its name is none.
    Malformed,
    /// The client does not speak TLS.
    NotTls,
    /// The hello was not whole within `timeouts.hello`.
    HelloTimeout,
    /// The hello is larger than `limits.hello_bytes`.
    HelloTooLarge,
    /// Where a PROXY header must come first there was none, a wrong one, or it came from somebody who may not send one.
    ProxyHeader,
    /// The client's address is not allowed here.
    Denied,
    /// The route, or the client's source, has as many connections as it may.
    OverLimit,
    /// No address to connect to: the endpoints' names do not resolve.
    NoEndpoint,
    /// Every endpoint refused, or could not be reached.
    ConnectRefused,
    /// No endpoint answered within the connect budget.
    ConnectTimeout,
    /// The only endpoints are our own listeners.
    Loop,
    /// This machine could not serve it: out of descriptors, ports or memory.
    LocalError,
    /// The client left before it was served.
    ClientGone,
}

/// A TLS alert description (RFC 8446, section 6), sent as fatal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Alert {
    /// The hello could not be read.
    DecodeError = 50,
    /// It may not come in.
    AccessDenied = 49,
    /// We cannot serve it now.
    InternalError = 80,
    /// We do not know the name.
    UnrecognizedName = 112,
}

impl Alert {
    /// The alert as a whole TLS record.
    pub(crate) fn record(self) -> [u8; 7] {
        const FATAL: u8 = 2;
        [21, 3, 3, 0, 2, FATAL, self as u8]
    }
}

/// Who ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum ClosedBy {
    /// The client.
    Client,
    /// The API server.
    Upstream,
    /// snigate.
    Us,
}

impl Outcome {
    /// The value of `outcome` in logs and metrics.
    pub(crate) fn label(self) -> &'static str {
        self.into()
    }

    /// How far up it is logged: clients cannot raise warnings, what needs the operator is at least one.
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

    /// What a client that is refused is told, if it speaks TLS.
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
            | Self::NotTls
            | Self::ProxyHeader
            | Self::ClientGone => None,
        }
    }

    /// Where on its way a connection can end like this.
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
            | Self::CutEndpoint => Stage::Relay,
        }
    }

    /// Whether the connection never reached an endpoint.
    pub(crate) fn is_rejection(self) -> bool {
        match self.stage() {
            Stage::BeforeRoute | Stage::Connect => true,
            Stage::Relay => false,
            Stage::Any => self != Self::Drained,
        }
    }
}

/// Where on its way a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before a route took it.
    BeforeRoute,
    /// While an endpoint was dialled.
    Connect,
    /// While bytes were relayed.
    Relay,
    /// Anywhere.
    Any,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operators' queries and dashboards are written with these.
    #[test]
    fn labels_stay_what_they_are() {
        let labels: Vec<&str> = Outcome::VARIANTS.iter().map(|outcome| outcome.label()).collect();
        let expected = "completed client_reset upstream_reset idle_timeout half_close_timeout peer_dead drained cut_endpoint \
            unknown_name no_name malformed not_tls hello_timeout hello_too_large proxy_header denied over_limit \
            no_endpoint connect_refused connect_timeout loop local_error client_gone";
        assert_eq!(labels.join(" "), expected);
    }

    #[test]
    fn alerts_are_records_of_their_own() {
        assert_eq!(Alert::UnrecognizedName.record(), [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x70]);
    }
}
