//! From the objects of a cluster to a plan. One bad object affects nothing but its own routes.

mod attachment;
mod backends;
mod grants;
mod hostnames;
mod ingress;
mod listeners;
mod order;
mod selector;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use self::attachment::{AttachedRoute, ListenerId};
use self::backends::Backends;
use self::hostnames::Hostname;
use self::listeners::{OurGateway, everywhere};
use self::order::Age;
use self::table::{Claim, Table};
use super::api::{Key, Kind, Metadata};
use super::plan::{
    ClassStatus, Condition, GatewayStatus, ListenerStatus, Note, ObjectRef, ParentStatus, Plan, Published,
    PublishedAddress, Route, RouteStatus, Routing, Statuses, Weighted,
};
use super::snapshot::Snapshot;
use crate::config::{RouteSettings, route_settings};
use crate::listener::overlap;
use crate::name::NamePattern;

/// The name of the controller in GatewayClasses.
pub(crate) const CONTROLLER: &str = "snigate.dev/gateway";

/// Annotations with this prefix are ours.
pub(crate) const ANNOTATION_PREFIX: &str = "snigate.dev/";

/// The type of the condition about annotations. It is there only if one is wrong.
pub(crate) const INVALID_ANNOTATIONS: &str = "snigate.dev/InvalidAnnotations";

/// Features of Gateway API whose conformance tests pass; in alphabetical order.
const SUPPORTED_FEATURES: &[&str] = &["Gateway", "ReferenceGrant", "TLSRoute"];

/// What the operator chose.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    /// The GatewayClasses with this controller are ours.
    pub(crate) controller: String,
    /// Only objects in these namespaces count; empty: in all.
    pub(crate) namespaces: Vec<String>,
    pub(crate) publish: Publish,
    /// `None`: no Ingress objects.
    pub(crate) ingress: Option<IngressOptions>,
}

/// Where clients reach the listeners.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Publish {
    /// At the addresses of this machine.
    #[default]
    Own,
    Addresses(Vec<PublishedAddress>),
    /// At those of a load balancer, from the status of its Service.
    Service(Key),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct IngressOptions {
    pub(crate) class: String,
    /// The port at which they are served.
    pub(crate) port: u16,
}

impl Default for IngressOptions {
    /// As ingress-nginx has it, if it is not told otherwise.
    fn default() -> Self {
        Self { class: "nginx".into(), port: 443 }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { controller: CONTROLLER.into(), namespaces: Vec::new(), publish: Publish::default(), ingress: None }
    }
}

impl Options {
    fn watches(&self, namespace: &str) -> bool {
        self.namespaces.is_empty() || self.namespaces.iter().any(|watched| watched == namespace)
    }
}

/// The plan for a cluster. `base` are the listeners of the configuration beside it.
pub(crate) fn translate(snapshot: &Snapshot, options: &Options, base: &[SocketAddr]) -> Plan {
    let published = published(snapshot, options);
    let classes = classes(snapshot, options);
    let accepted = classes.iter().filter(|(_, status)| status.condition.is_true).map(|(key, _)| &*key.name).collect();
    let mut backends = Backends::new(snapshot, options);
    let mut notes = Notes::default();

    let (hosts, remarks) = ingress::hosts(snapshot, options, &mut backends);
    for (ingress, message) in remarks {
        notes.add(Kind::Ingress, &ingress.metadata, "NotSupported", message);
    }
    let ingress_address =
        options.ingress.as_ref().filter(|_| !hosts.is_empty()).map(|ingress| everywhere(ingress.port));
    let is_free = |address: &SocketAddr| base.iter().all(|other| !overlap(*address, *other));
    let served_at = ingress_address.filter(is_free);
    let gateways = listeners::our_gateways(snapshot, &accepted, options, &published, base, served_at);
    let attached = attachment::attach(snapshot, &gateways, |namespace| options.watches(namespace));

    let mut table = Table::default();
    let listeners = gateways.values().flat_map(|gateway| &gateway.listeners);
    for listener in listeners {
        listener.sockets.iter().for_each(|address| table.add_listener(*address, &listener.hostname));
    }
    let mut routes = Vec::new();
    let mut statuses = Statuses { classes, ..Statuses::default() };
    for attached in &attached {
        let metadata = &attached.route.metadata;
        let (settings, invalid) = settings(metadata, &patterns(&attached.hostnames));
        notes.add_all(Kind::TlsRoute, metadata, "InvalidAnnotation", &invalid);
        let references = attached.route.spec.rules.first().map(|rule| &rule.backend_refs[..]).unwrap_or_default();
        let (shares, resolved) = backends.of_route(&metadata.namespace, references);
        claim_names(&mut table, attached, &gateways, settings.no_sni, routes.len());
        statuses.routes.insert(metadata.key(), route_status(attached, &resolved, &invalid));
        routes.push(route(Kind::TlsRoute, metadata, metadata.key().to_string(), settings, shares));
    }
    for host in hosts {
        let metadata = &host.ingress.metadata;
        let (settings, invalid) = settings(metadata, &patterns([&host.hostname]));
        notes.add_all(Kind::Ingress, metadata, "InvalidAnnotation", &invalid);
        let Some(address) = served_at else {
            let message = "not served: a listener of the configuration uses the port for Ingress objects".into();
            notes.add(Kind::Ingress, metadata, "PortUnavailable", message);
            continue;
        };
        let claim = Claim { age: Age::of(metadata), route: routes.len() };
        table.claim(address, &host.hostname, None, claim);
        if settings.no_sni {
            table.claim_no_sni(address, claim);
        }
        statuses.ingresses.insert(metadata.key());
        let name = format!("ingress/{}/{}", metadata.key(), host.hostname);
        routes.push(route(Kind::Ingress, metadata, name, settings, host.backends));
    }

    let mut decided = table.decide();
    for (loser, name, winner) in decided.lost {
        let message = format!("{name}: routed by {}, which comes first", routes[winner].object);
        notes.0.insert(Note { object: routes[loser].object.clone(), reason: "HostnameTaken", message });
    }
    let with_matches =
        |(index, route): (usize, Route)| decided.matches.remove(&index).map(|matches| Route { matches, ..route });
    let mut routes: Vec<Route> = routes.into_iter().enumerate().filter_map(with_matches).collect();
    routes.sort_by(|one, other| one.name.cmp(&other.name));
    let mut counts: BTreeMap<&ListenerId, usize> = BTreeMap::new();
    attached.iter().flat_map(|route| &route.listeners).for_each(|listener| *counts.entry(listener).or_default() += 1);
    statuses.gateways =
        gateways.iter().map(|(key, gateway)| (key.clone(), gateway_status(key, gateway, &counts))).collect();
    statuses.published = published;
    for ((kind, key), reason) in snapshot.undecodable.iter() {
        let object = ObjectRef { kind: *kind, key: key.clone(), uid: String::new() };
        notes.0.insert(Note { object, reason: "NotDecodable", message: reason.clone() });
    }
    Plan {
        routing: Routing { listeners: table.addresses(), routes, unrouted: decided.unrouted },
        endpoints: backends.into_endpoints(),
        statuses,
        notes: notes.0,
    }
}

fn published(snapshot: &Snapshot, options: &Options) -> Published {
    match &options.publish {
        Publish::Own => Published::Own,
        Publish::Addresses(addresses) => Published::Addresses(addresses.clone()),
        Publish::Service(service) => {
            let ingress = snapshot.services.get(service).map(|service| &service.status.load_balancer.ingress[..]);
            let addresses = ingress.unwrap_or_default().iter().filter_map(|ingress| {
                let ip = ingress.ip.as_deref().and_then(|ip| ip.parse().ok()).map(PublishedAddress::Ip);
                ip.or_else(|| ingress.hostname.clone().map(PublishedAddress::Hostname))
            });
            Published::Addresses(addresses.collect())
        }
    }
}

fn classes(snapshot: &Snapshot, options: &Options) -> BTreeMap<Key, ClassStatus> {
    let ours = snapshot.classes.values().filter(|class| class.spec.controller_name == options.controller);
    let status = |class: &super::api::GatewayClass| {
        let is_true = class.spec.parameters_ref.is_none();
        let (reason, message) = if is_true {
            ("Accepted", String::new())
        } else {
            ("InvalidParameters", "parametersRef is not supported: remove it".into())
        };
        let condition = Condition { kind: "Accepted", is_true, reason, message };
        ClassStatus { generation: class.metadata.generation, condition, supported_features: SUPPORTED_FEATURES }
    };
    ours.map(|class| (class.metadata.key(), status(class))).collect()
}

/// The settings that annotations have, and what is wrong with them.
fn settings(metadata: &Metadata, names: &[NamePattern]) -> (RouteSettings, Vec<String>) {
    let own = |(key, value)| Some((str::strip_prefix(key, ANNOTATION_PREFIX)?, value));
    let annotations = metadata.annotations.iter().map(|(key, value)| (&**key, &**value)).filter_map(own);
    let (settings, invalid) = route_settings(annotations, names);
    (settings, invalid.into_iter().map(|(key, message)| format!("{ANNOTATION_PREFIX}{key}: {message}")).collect())
}

fn patterns<'h>(hostnames: impl IntoIterator<Item = &'h Hostname>) -> Vec<NamePattern> {
    let pattern = |hostname: &Hostname| match hostname {
        Hostname::Any => None,
        Hostname::Pattern(pattern) => Some(pattern.clone()),
    };
    hostnames.into_iter().filter_map(pattern).collect()
}

/// A route without matches.
fn route(kind: Kind, metadata: &Metadata, name: String, settings: RouteSettings, backends: Vec<Weighted>) -> Route {
    let RouteSettings { sources, max_connections, upstream, no_sni: _ } = settings;
    let object = ObjectRef { kind, key: metadata.key(), uid: metadata.uid.clone() };
    Route { name, object, matches: Vec::new(), sources, max_connections, upstream, backends }
}

fn claim_names<'s>(
    table: &mut Table<'s>,
    attached: &AttachedRoute<'s>,
    gateways: &BTreeMap<Key, OurGateway<'s>>,
    no_sni: bool,
    route: usize,
) {
    let claim = Claim { age: Age::of(&attached.route.metadata), route };
    for (key, index) in &attached.listeners {
        let listener = &gateways[key].listeners[*index];
        for address in &listener.sockets {
            let hostnames = attached.hostnames.iter().filter_map(|own| listener.hostname.intersection(own));
            for hostname in hostnames {
                table.claim(*address, hostname, Some(&listener.hostname), claim);
            }
            if attached.hostnames.is_empty() {
                table.claim(*address, &listener.hostname, Some(&listener.hostname), claim);
            }
            // A client without SNI has no name that a listener with a hostname could match.
            if no_sni && listener.hostname == Hostname::Any {
                table.claim_no_sni(*address, claim);
            }
        }
    }
}

fn route_status(attached: &AttachedRoute<'_>, resolved: &Condition, invalid: &[String]) -> RouteStatus {
    let annotations = (!invalid.is_empty()).then(|| Condition {
        kind: INVALID_ANNOTATIONS,
        is_true: true,
        reason: "InvalidValue",
        message: invalid.join("; "),
    });
    let parent = |(parent, accepted): &(&super::api::ParentRef, Condition)| {
        let conditions = [accepted.clone(), resolved.clone()].into_iter().chain(annotations.clone()).collect();
        ParentStatus { parent: (*parent).clone(), conditions }
    };
    RouteStatus {
        generation: attached.route.metadata.generation,
        parents: attached.parents.iter().map(parent).collect(),
    }
}

fn gateway_status(key: &Key, gateway: &OurGateway<'_>, attached: &BTreeMap<&ListenerId, usize>) -> GatewayStatus {
    let listener = |(index, listener): (usize, &listeners::OurListener<'_>)| {
        let id: ListenerId = (key.clone(), index);
        ListenerStatus {
            name: listener.spec.name.clone(),
            refused: listener.refused.clone(),
            conflict: listener.conflict.clone(),
            unresolved: listener.unresolved.clone(),
            supports_tls_routes: listener.supports_tls_routes,
            attached_routes: attached.get(&id).copied().unwrap_or_default(),
            sockets: listener.sockets.clone(),
        }
    };
    GatewayStatus {
        generation: gateway.gateway.metadata.generation,
        refused: gateway.refused.clone(),
        requested: gateway.requested.clone(),
        listeners: gateway.listeners.iter().enumerate().map(listener).collect(),
    }
}

#[derive(Default)]
struct Notes(BTreeSet<Note>);

impl Notes {
    fn add(&mut self, kind: Kind, metadata: &Metadata, reason: &'static str, message: String) {
        let object = ObjectRef { kind, key: metadata.key(), uid: metadata.uid.clone() };
        self.0.insert(Note { object, reason, message });
    }

    fn add_all(&mut self, kind: Kind, metadata: &Metadata, reason: &'static str, messages: &[String]) {
        for message in messages {
            self.add(kind, metadata, reason, message.clone());
        }
    }
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "what objects are made of is written in place")]
mod tests;
