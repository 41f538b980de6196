//! Which routes are attached to which listeners.

use std::collections::{BTreeMap, BTreeSet};

use super::hostnames::Hostname;
use super::listeners::{OurGateway, OurListener};
use super::selector::selects;
use crate::gateway::api::{FromNamespaces, Key, ParentRef, TlsRoute};
use crate::gateway::plan::{Condition, Problem};
use crate::gateway::snapshot::Snapshot;

/// A listener: its Gateway, and its index there.
pub(super) type ListenerId = (Key, usize);

/// A route with a parent that is ours.
#[derive(Debug)]
pub(super) struct AttachedRoute<'s> {
    pub(super) route: &'s TlsRoute,
    /// The valid ones; empty only if none is valid or, of old versions of the API, none is written.
    pub(super) hostnames: Vec<Hostname>,
    /// In the order of the spec, and whether it is accepted.
    pub(super) parents: Vec<(&'s ParentRef, Condition)>,
    /// The listeners that accept it.
    pub(super) listeners: BTreeSet<ListenerId>,
}

/// The routes with a parent that is ours.
pub(super) fn attach<'s>(
    snapshot: &'s Snapshot,
    gateways: &BTreeMap<Key, OurGateway<'s>>,
    is_watched: impl Fn(&str) -> bool,
) -> Vec<AttachedRoute<'s>> {
    let routes = snapshot.routes.values().filter(|route| is_watched(&route.metadata.namespace));
    routes.filter_map(|route| attach_route(route, snapshot, gateways)).collect()
}

fn attach_route<'s>(
    route: &'s TlsRoute,
    snapshot: &Snapshot,
    gateways: &BTreeMap<Key, OurGateway<'s>>,
) -> Option<AttachedRoute<'s>> {
    let (hostnames, invalid) = hostnames(route);
    let mut parents = Vec::new();
    let mut listeners = BTreeSet::new();
    for parent in &route.spec.parent_refs {
        let Some((key, gateway)) = find_parent(parent, route, gateways) else { continue };
        let found = match &invalid {
            Some(problem) if hostnames.is_empty() => Err(problem.clone()),
            _ => matching_listeners(parent, route, &hostnames, snapshot, gateway),
        };
        let condition = match found {
            Ok(indices) => {
                listeners.extend(indices.into_iter().map(|index| (key.clone(), index)));
                let ignored = invalid.as_ref().map_or_else(String::new, |problem| problem.message.clone());
                Condition { kind: "Accepted", is_true: true, reason: "Accepted", message: ignored }
            }
            Err(Problem { reason, message }) => Condition { kind: "Accepted", is_true: false, reason, message },
        };
        parents.push((parent, condition));
    }
    (!parents.is_empty()).then_some(AttachedRoute { route, hostnames, parents, listeners })
}

/// The valid hostnames, and what is wrong with the others.
fn hostnames(route: &TlsRoute) -> (Vec<Hostname>, Option<Problem>) {
    let (mut valid, mut invalid) = (Vec::new(), Vec::new());
    for text in &route.spec.hostnames {
        match Hostname::parse(text) {
            Ok(Hostname::Any) => invalid.push("hostname is empty".into()),
            Ok(hostname) => valid.push(hostname),
            Err(error) => invalid.push(format!("hostname `{text}` is ignored: {error}")),
        }
    }
    let problem = || Problem { reason: "UnsupportedValue", message: invalid.join("; ") };
    (valid, (!invalid.is_empty()).then(problem))
}

fn find_parent<'g, 's>(
    parent: &ParentRef,
    route: &TlsRoute,
    gateways: &'g BTreeMap<Key, OurGateway<'s>>,
) -> Option<(&'g Key, &'g OurGateway<'s>)> {
    let key = parent.key(&route.metadata.namespace);
    parent.is_gateway().then(|| gateways.get_key_value(&key)).flatten()
}

/// The listeners of a parent that accept the route, at least one; each step leaves fewer of them.
fn matching_listeners(
    parent: &ParentRef,
    route: &TlsRoute,
    hostnames: &[Hostname],
    snapshot: &Snapshot,
    gateway: &OurGateway<'_>,
) -> Result<Vec<usize>, Problem> {
    let refuse = |reason, message: String| Err(Problem { reason, message });
    let is_meant = |listener: &OurListener<'_>| {
        parent.section_name.as_deref().is_none_or(|name| name.is_empty() || name == listener.spec.name)
            && parent.port.is_none_or(|port| port == listener.spec.port)
    };
    let listeners = gateway.listeners.iter().enumerate();
    let meant: Vec<_> = listeners.filter(|(_, listener)| is_meant(listener)).collect();
    if meant.is_empty() {
        return refuse("NoMatchingParent", "the Gateway has no listener with this sectionName and port".into());
    }
    let allows = |listener: &OurListener<'_>| {
        listener.supports_tls_routes && allows_namespace(listener, gateway, &route.metadata.namespace, snapshot)
    };
    let allowed: Vec<_> = meant.into_iter().filter(|(_, listener)| allows(listener)).collect();
    if allowed.is_empty() {
        let message = "no listener allows TLSRoute objects of this namespace, with protocol TLS and mode Passthrough";
        return refuse("NotAllowedByListeners", message.into());
    }
    let meets = |listener: &OurListener<'_>| {
        hostnames.is_empty() || hostnames.iter().any(|hostname| listener.hostname.intersection(hostname).is_some())
    };
    let matching: Vec<_> =
        allowed.into_iter().filter(|(_, listener)| meets(listener)).map(|(index, _)| index).collect();
    if matching.is_empty() {
        let message = "no hostname of the route is within that of a listener";
        return refuse("NoMatchingListenerHostname", message.into());
    }
    Ok(matching)
}

fn allows_namespace(
    listener: &OurListener<'_>,
    gateway: &OurGateway<'_>,
    namespace: &str,
    snapshot: &Snapshot,
) -> bool {
    let namespaces = listener.spec.allowed_routes.as_ref().and_then(|allowed| allowed.namespaces.as_ref());
    match namespaces.and_then(|namespaces| namespaces.from).unwrap_or(FromNamespaces::Same) {
        FromNamespaces::All => true,
        FromNamespaces::None => false,
        FromNamespaces::Same => namespace == gateway.gateway.metadata.namespace,
        FromNamespaces::Selector => {
            let selector = namespaces.and_then(|namespaces| namespaces.selector.as_ref());
            let found = snapshot.namespaces.get(&Key::new("", namespace));
            found.zip(selector).is_some_and(|(namespace, selector)| selects(selector, &namespace.metadata.labels))
        }
    }
}
