//! The listeners of Gateways: which are valid, which conflict, and where they are served.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Options;
use super::grants::{self, Target};
use super::hostnames::Hostname;
use super::order::Age;
use crate::gateway::api::{CertificateRef, GATEWAY_GROUP, Gateway, Key, Kind, Listener, RouteGroupKind};
use crate::gateway::plan::{Problem, Published, PublishedAddress};
use crate::gateway::snapshot::Snapshot;
use crate::listener::overlap;

/// A Gateway that is ours.
#[derive(Debug)]
pub(super) struct OurGateway<'s> {
    pub(super) gateway: &'s Gateway,
    /// Why none of its listeners is served.
    pub(super) refused: Option<Problem>,
    /// Addresses that it requests; empty: any.
    pub(super) requested: Vec<IpAddr>,
    /// In the order of the spec.
    pub(super) listeners: Vec<OurListener<'s>>,
}

#[derive(Debug)]
pub(super) struct OurListener<'s> {
    pub(super) spec: &'s Listener,
    pub(super) hostname: Hostname,
    pub(super) refused: Option<Problem>,
    pub(super) conflict: Option<Problem>,
    pub(super) supports_tls_routes: bool,
    pub(super) unresolved: Option<Problem>,
    /// Where it is to be served; empty if it is not.
    pub(super) sockets: BTreeSet<SocketAddr>,
}

impl OurListener<'_> {
    /// Whether it would be served but for other listeners.
    fn is_valid(&self) -> bool {
        self.refused.is_none() && self.conflict.is_none()
    }
}

/// Where all addresses of the machine are listened on.
pub(super) fn everywhere(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

/// The Gateways of our classes. `base` are listeners of the configuration; `shared` is an address that is listened on for
/// other objects.
pub(super) fn our_gateways<'s>(
    snapshot: &'s Snapshot,
    classes: &BTreeSet<&str>,
    options: &Options,
    published: &Published,
    base: &[SocketAddr],
    shared: Option<SocketAddr>,
) -> BTreeMap<Key, OurGateway<'s>> {
    let ours = |gateway: &&Gateway| {
        classes.contains(&*gateway.spec.gateway_class_name) && options.watches(&gateway.metadata.namespace)
    };
    let gateways = snapshot.gateways.values().filter(ours);
    let mut gateways: Vec<OurGateway<'_>> = gateways.map(|gateway| examine(snapshot, gateway, published)).collect();
    gateways.sort_by_key(|gateway| Age::of(&gateway.gateway.metadata));
    place(&mut gateways, base, shared);
    gateways.into_iter().map(|gateway| (gateway.gateway.metadata.key(), gateway)).collect()
}

/// What can be said of a Gateway without knowing the others.
fn examine<'s>(snapshot: &Snapshot, gateway: &'s Gateway, published: &Published) -> OurGateway<'s> {
    let mut refused = None;
    let parameters =
        gateway.spec.infrastructure.as_ref().and_then(|infrastructure| infrastructure.parameters_ref.as_ref());
    if parameters.is_some() {
        let message = "infrastructure.parametersRef is not supported: remove it".into();
        refused = Some(Problem { reason: "InvalidParameters", message });
    }
    let mut requested = Vec::new();
    for address in &gateway.spec.addresses {
        let kind = address.kind.as_deref().unwrap_or("IPAddress");
        match (kind, address.value.parse::<IpAddr>()) {
            ("IPAddress", Ok(address)) => requested.push(address.to_canonical()),
            // Any will do.
            ("IPAddress", Err(_)) if address.value.is_empty() => {}
            _ => {
                let message =
                    format!("address `{}` of type {kind} is not supported; expected an IPAddress", address.value);
                refused.get_or_insert(Problem { reason: "UnsupportedAddress", message });
            }
        }
    }
    let namespace = &gateway.metadata.namespace;
    let listeners = gateway.spec.listeners.iter().map(|listener| examine_listener(snapshot, namespace, listener));
    let mut listeners: Vec<OurListener<'_>> = listeners.collect();
    find_conflicts(&mut listeners);
    if refused.is_none() {
        for listener in listeners.iter_mut().filter(|listener| listener.is_valid() && listener.supports_tls_routes) {
            listener.sockets = sockets(listener.spec.port, &requested, published);
        }
    }
    OurGateway { gateway, refused, requested, listeners }
}

/// A load balancer's addresses are not on this machine, so that only the machine's own are listened on one by one.
fn sockets(port: u16, requested: &[IpAddr], published: &Published) -> BTreeSet<SocketAddr> {
    match published {
        Published::Own if !requested.is_empty() => requested.iter().map(|address| (*address, port).into()).collect(),
        Published::Addresses(addresses) if !requested.is_empty() => {
            let is_published = |address: &IpAddr| addresses.contains(&PublishedAddress::Ip(*address));
            requested.iter().any(is_published).then(|| everywhere(port)).into_iter().collect()
        }
        Published::Own | Published::Addresses(_) => [everywhere(port)].into(),
    }
}

fn examine_listener<'s>(snapshot: &Snapshot, namespace: &str, spec: &'s Listener) -> OurListener<'s> {
    let unsupported = |message: String| Some(Problem { reason: "UnsupportedValue", message });
    let mode = spec.tls.as_ref().and_then(|tls| tls.mode.as_deref()).unwrap_or("Terminate");
    let hostname = Hostname::parse(spec.hostname.as_deref().unwrap_or_default());
    let refused = match (&*spec.protocol, mode, &hostname) {
        ("TLS", "Passthrough", Ok(_)) => None,
        ("TLS", "Passthrough", Err(error)) => {
            unsupported(format!("hostname `{}`: {error}", spec.hostname.as_deref().unwrap_or_default()))
        }
        ("TLS", mode, _) => {
            unsupported(format!("tls.mode {mode} is not supported: snigate has no keys; expected Passthrough"))
        }
        (protocol, ..) => {
            let message = format!("protocol {protocol} is not supported; expected TLS with tls.mode Passthrough");
            Some(Problem { reason: "UnsupportedProtocol", message })
        }
    };
    let is_tls_route = |kind: &&RouteGroupKind| {
        kind.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP && kind.kind == Kind::TlsRoute.to_string()
    };
    let kinds = spec.allowed_routes.as_ref().map_or(&[][..], |allowed| &allowed.kinds);
    let has_protocol = spec.protocol == "TLS" && mode == "Passthrough";
    let supports_tls_routes = has_protocol && (kinds.is_empty() || kinds.iter().any(|kind| is_tls_route(&kind)));
    let invalid = kinds.iter().filter(|kind| !has_protocol || !is_tls_route(kind));
    let invalid: Vec<&str> = invalid.map(|kind| &*kind.kind).collect();
    let mut unresolved = Vec::new();
    if !invalid.is_empty() {
        let message =
            format!("{}: not supported; expected TLSRoute at a listener with protocol TLS", invalid.join(", "));
        unresolved.push(Problem { reason: "InvalidRouteKinds", message });
    }
    if mode != "Passthrough" {
        let certificates = spec.tls.iter().flat_map(|tls| &tls.certificate_refs);
        unresolved.extend(certificates.map(|reference| unreadable(snapshot, namespace, reference)));
    }
    OurListener {
        spec,
        hostname: hostname.unwrap_or(Hostname::Any),
        refused,
        conflict: None,
        supports_tls_routes,
        unresolved: Problem::all(&unresolved),
        sockets: BTreeSet::new(),
    }
}

/// Why a certificate cannot be had. Secrets are not read, so none can.
fn unreadable(snapshot: &Snapshot, namespace: &str, reference: &CertificateRef) -> Problem {
    let CertificateRef { group, kind, namespace: other, name } = reference;
    let (group, kind) = (group.as_deref().unwrap_or_default(), kind.as_deref().unwrap_or("Secret"));
    let key = &Key::new(other.as_deref().unwrap_or(namespace), &**name);
    let refused = grants::check(snapshot, Kind::Gateway, namespace, &Target { group, kind, key }).err();
    refused.unwrap_or_else(|| Problem {
        reason: "InvalidCertificateRef",
        message: format!("{kind} {key} is not read: snigate terminates nothing"),
    })
}

/// Within a Gateway, all listeners that cannot be told apart are refused. TLS settings do not tell them apart.
fn find_conflicts(listeners: &mut [OurListener<'_>]) {
    let mut same: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, listener) in listeners.iter().enumerate().filter(|(_, listener)| listener.spec.protocol == "TLS") {
        let hostname = listener.spec.hostname.as_deref().unwrap_or_default().to_ascii_lowercase();
        same.entry((listener.spec.port, hostname)).or_default().push(index);
    }
    for indices in same.values().filter(|indices| indices.len() > 1) {
        for index in indices {
            let others = indices.iter().filter(|other| *other != index).map(|other| &*listeners[*other].spec.name);
            let others = others.collect::<Vec<_>>().join(", ");
            let message = format!("same port and hostname as {others} of this Gateway");
            listeners[*index].conflict = Some(Problem { reason: HOSTNAME_CONFLICT, message });
        }
    }
}

const HOSTNAME_CONFLICT: &str = "HostnameConflict";

/// Decides between listeners of several Gateways, the oldest first: a new Gateway takes nothing from those that are served.
fn place(gateways: &mut [OurGateway<'_>], base: &[SocketAddr], shared: Option<SocketAddr>) {
    let mut sockets: BTreeMap<SocketAddr, String> =
        base.iter().map(|address| (*address, "a listener of the configuration".into())).collect();
    sockets.extend(shared.map(|address| (address, "Ingress objects".into())));
    let mut owners: BTreeMap<(SocketAddr, Hostname), String> = BTreeMap::new();
    for gateway in gateways {
        let key = gateway.gateway.metadata.key();
        for listener in &mut gateway.listeners {
            let overlapping = |wanted: &SocketAddr| {
                let overlaps =
                    |other: &SocketAddr| overlap(*wanted, *other) && (wanted != other || base.contains(other));
                sockets.iter().find(|(other, _)| overlaps(other))
            };
            let owner = |socket: &SocketAddr| owners.get(&(*socket, listener.hostname.clone()));
            if let Some((address, by)) = listener.sockets.iter().find_map(overlapping) {
                let message = format!("port {} is used by {by} at {address}", listener.spec.port);
                listener.refused = Some(Problem { reason: "PortUnavailable", message });
            } else if let Some(owner) = listener.sockets.iter().find_map(owner) {
                let message = format!("same port and hostname as {owner}, which is older");
                listener.conflict = Some(Problem { reason: HOSTNAME_CONFLICT, message });
            } else {
                let name = format!("listener {} of Gateway {key}", listener.spec.name);
                for socket in &listener.sockets {
                    sockets.entry(*socket).or_insert_with(|| format!("Gateway {key}"));
                    owners.insert((*socket, listener.hostname.clone()), name.clone());
                }
                continue;
            }
            listener.sockets.clear();
        }
    }
}
