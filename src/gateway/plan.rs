//! What to serve, and what to report about each object: the result of [`translate`](super::translate::translate).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::api::{Key, Kind, ParentRef};
use crate::connection::admission::AccessRules;
use crate::name::NamePattern;
use crate::upstream::UpstreamSettings;

/// Equal for equal snapshots, in whatever order their objects came.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// A change requires a reload.
    pub(crate) routing: Routing,
    /// A change of these alone does not.
    pub(crate) endpoints: BTreeMap<BackendKey, Endpoints>,
    pub(crate) statuses: Statuses,
    /// About objects, beyond their conditions.
    pub(crate) notes: BTreeSet<Note>,
}

/// Listeners and routes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Routing {
    /// Sorted by address; no two overlap, and none overlaps a listener of the base configuration.
    pub(crate) listeners: Vec<SocketAddr>,
    /// Sorted by name. No two have the same name, and no two match the same name at the same listener.
    pub(crate) routes: Vec<Route>,
    /// Names that no route may take at these listeners, although the pattern of a route covers them: they belong to a
    /// listener of a Gateway that has no route for them.
    pub(crate) unrouted: Vec<Match>,
}

/// Names at some listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Match {
    /// Indices in [`Routing::listeners`].
    pub(crate) listeners: BTreeSet<usize>,
    pub(crate) names: Names,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Names {
    /// At least one.
    Patterns(BTreeSet<NamePattern>),
    /// Every name, and clients without SNI.
    All,
    /// Clients without SNI.
    NoSni,
}

impl Default for Names {
    fn default() -> Self {
        Self::Patterns(BTreeSet::new())
    }
}

/// A route, and where it is matched.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Route {
    /// `NAMESPACE/NAME` of the TLSRoute; for a host of an Ingress, `ingress/NAMESPACE/NAME/HOST`.
    pub(crate) name: String,
    pub(crate) object: ObjectRef,
    /// At least one.
    pub(crate) matches: Vec<Match>,
    pub(crate) sources: AccessRules,
    pub(crate) max_connections: Option<u32>,
    /// Without endpoints: they are those of the backends.
    pub(crate) upstream: UpstreamSettings,
    /// New connections are divided among these by weight; without any, all are refused.
    pub(crate) backends: Vec<Weighted>,
}

/// A share of the connections of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Weighted {
    /// 1 to 1,000,000.
    pub(crate) weight: u32,
    /// `None`: they are refused.
    pub(crate) backend: Option<BackendKey>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BackendKey {
    pub(crate) service: Key,
    pub(crate) port: u16,
}

impl fmt::Display for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

/// The endpoints of a backend. Connections to endpoints that are in neither set stay open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Endpoints {
    /// They get new connections.
    pub(crate) serving: BTreeSet<SocketAddr>,
    /// They terminate, and get no new connections.
    pub(crate) terminating: BTreeSet<SocketAddr>,
}

/// An object of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectRef {
    pub(crate) kind: Kind,
    pub(crate) key: Key,
    pub(crate) uid: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}

/// Something that the owner of an object should know: an Event once, until it changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Note {
    pub(crate) object: ObjectRef,
    /// In one word, `CamelCase`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// What is to be in the status of each object that is ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Statuses {
    pub(crate) classes: BTreeMap<Key, ClassStatus>,
    pub(crate) gateways: BTreeMap<Key, GatewayStatus>,
    /// Routes with a parent that is ours. From all others, entries of this controller are removed.
    pub(crate) routes: BTreeMap<Key, RouteStatus>,
    /// Ingress objects that are served. Their addresses are those of `published`.
    pub(crate) ingresses: BTreeSet<Key>,
    pub(crate) published: Published,
}

/// A condition, except for the time of its last transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: &'static str,
    pub(crate) is_true: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Condition {
    /// Whether the references of an object resolve.
    pub(crate) fn resolved_refs(problem: Option<&Problem>) -> Self {
        const RESOLVED_REFS: &str = "ResolvedRefs";
        let (reason, message) =
            problem.map_or((RESOLVED_REFS, String::new()), |problem| (problem.reason, problem.message.clone()));
        Self { kind: RESOLVED_REFS, is_true: problem.is_none(), reason, message }
    }
}

/// Why something is not served, with the reason that the API names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Problem {
    /// With the reason of the first, and what all say.
    pub(crate) fn all(problems: &[Self]) -> Option<Self> {
        let messages: Vec<&str> = problems.iter().map(|problem| &*problem.message).collect();
        problems.first().map(|first| Self { reason: first.reason, message: messages.join("; ") })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClassStatus {
    pub(crate) generation: i64,
    pub(crate) condition: Condition,
    /// Sorted.
    pub(crate) supported_features: &'static [&'static str],
}

/// What is known of a Gateway before its listeners are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewayStatus {
    pub(crate) generation: i64,
    /// Why none of its listeners is served.
    pub(crate) refused: Option<Problem>,
    /// Addresses that the spec requests; empty: any.
    pub(crate) requested: Vec<IpAddr>,
    /// In the order of the spec.
    pub(crate) listeners: Vec<ListenerStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListenerStatus {
    pub(crate) name: String,
    /// Why it is not accepted.
    pub(crate) refused: Option<Problem>,
    /// The listener that it conflicts with; then it is not accepted, either.
    pub(crate) conflict: Option<Problem>,
    /// What it refers to that is not there, or not supported.
    pub(crate) unresolved: Option<Problem>,
    /// Whether TLSRoute is among the kinds that are supported and allowed.
    pub(crate) supports_tls_routes: bool,
    pub(crate) attached_routes: usize,
    /// Where it is to be served.
    pub(crate) sockets: BTreeSet<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RouteStatus {
    pub(crate) generation: i64,
    /// In the order of the spec.
    pub(crate) parents: Vec<ParentStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParentStatus {
    /// As in the spec.
    pub(crate) parent: ParentRef,
    pub(crate) conditions: Vec<Condition>,
}

/// The addresses at which clients reach the listeners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Published {
    /// The addresses of this machine.
    #[default]
    Own,
    /// These; empty: not assigned yet.
    Addresses(Vec<PublishedAddress>),
}

/// An IP address or a hostname.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PublishedAddress {
    Ip(IpAddr),
    Hostname(String),
}

/// What became of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The listeners that could not be opened, and why.
    pub(crate) failed: BTreeMap<SocketAddr, String>,
    /// The addresses of this machine that clients can reach.
    pub(crate) own_addresses: Vec<IpAddr>,
}
