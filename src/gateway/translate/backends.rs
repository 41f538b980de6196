//! Which endpoints a route's connections go to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::Options;
use super::grants::{self, Target};
use crate::gateway::api::{BackendRef, EndpointSlice, Key, Kind, Service, ServicePort, SliceEndpoint, SlicePort};
use crate::gateway::plan::{BackendKey, Condition, Endpoints, Problem, Weighted};
use crate::gateway::snapshot::Snapshot;

/// The label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Finds backends, and remembers which.
pub(super) struct Backends<'s> {
    snapshot: &'s Snapshot,
    options: &'s Options,
    /// By namespace and name of the Service.
    slices: BTreeMap<(&'s str, &'s str), Vec<&'s EndpointSlice>>,
    found: BTreeMap<BackendKey, &'s ServicePort>,
}

impl<'s> Backends<'s> {
    pub(super) fn new(snapshot: &'s Snapshot, options: &'s Options) -> Self {
        let mut slices: BTreeMap<_, Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in snapshot.slices.values() {
            if let Some(service) = slice.metadata.labels.get(SERVICE_NAME) {
                slices.entry((&*slice.metadata.namespace, &**service)).or_default().push(slice);
            }
        }
        Self { snapshot, options, slices, found: BTreeMap::new() }
    }

    /// The shares of a route, and the condition about its references.
    pub(super) fn of_route(&mut self, namespace: &str, references: &[BackendRef]) -> (Vec<Weighted>, Condition) {
        let (mut shares, mut problems) = (Vec::new(), Vec::new());
        for reference in references {
            let backend = self.resolve(namespace, reference).map_err(|problem| problems.push(problem)).ok();
            let weight = reference.weight.unwrap_or(1);
            if weight > 0 {
                shares.push(Weighted { weight, backend });
            }
        }
        (shares, Condition::resolved_refs(Problem::all(&problems).as_ref()))
    }

    fn resolve(&mut self, namespace: &str, reference: &BackendRef) -> Result<BackendKey, Problem> {
        let refuse = |reason, message| Err(Problem { reason, message });
        let BackendRef { group, kind, namespace: other, name, port, weight: _ } = reference;
        let (group, kind) = (group.as_deref().unwrap_or_default(), kind.as_deref().unwrap_or("Service"));
        if (group, kind) != ("", "Service") {
            let group = if group.is_empty() { String::new() } else { format!(" of group {group}") };
            return refuse("InvalidKind", format!("{kind}{group} `{name}`: expected a Service"));
        }
        let service = Key::new(other.as_deref().unwrap_or(namespace), &**name);
        grants::check(self.snapshot, Kind::TlsRoute, namespace, &Target { group, kind, key: &service })?;
        let Some(port) = *port else {
            return refuse(BACKEND_NOT_FOUND, format!("Service {service}: the reference has no port"));
        };
        self.find(service, |candidate| candidate.port == port, || port.to_string())
    }

    /// The backend of a Service's port.
    pub(super) fn find(
        &mut self,
        service: Key,
        is_wanted: impl Fn(&ServicePort) -> bool,
        wanted: impl FnOnce() -> String,
    ) -> Result<BackendKey, Problem> {
        let refuse = |reason, message| Err(Problem { reason, message });
        if !self.options.watches(&service.namespace) {
            return refuse(BACKEND_NOT_FOUND, format!("Service {service}: this namespace is not watched"));
        }
        let Some(Service { spec, .. }) = self.snapshot.services.get(&service) else {
            return refuse(BACKEND_NOT_FOUND, format!("Service {service} does not exist"));
        };
        if spec.kind.as_deref() == Some("ExternalName") {
            let message = format!("Service {service} is of type ExternalName, which is not supported");
            return refuse("UnsupportedValue", message);
        }
        let is_tcp = |port: &&ServicePort| port.protocol.as_deref().unwrap_or("TCP") == "TCP";
        let mut ports = spec.ports.iter().filter(|port| is_wanted(port)).peekable();
        if ports.peek().is_none() {
            return refuse(BACKEND_NOT_FOUND, format!("Service {service} has no port {}", wanted()));
        }
        let Some(port) = ports.find(is_tcp) else {
            let message = format!("Service {service}: port {} is not a TCP port", wanted());
            return refuse("UnsupportedProtocol", message);
        };
        let key = BackendKey { service, port: port.port };
        self.found.insert(key.clone(), port);
        Ok(key)
    }

    /// The endpoints of all backends that were found.
    pub(super) fn into_endpoints(self) -> BTreeMap<BackendKey, Endpoints> {
        let endpoints = |(key, port): (BackendKey, &ServicePort)| {
            let slices =
                self.slices.get(&(&*key.service.namespace, &*key.service.name)).map(Vec::as_slice).unwrap_or_default();
            let endpoints = endpoints(slices, port.name.as_deref().unwrap_or_default());
            (key, endpoints)
        };
        self.found.into_iter().map(endpoints).collect()
    }
}

const BACKEND_NOT_FOUND: &str = "BackendNotFound";

/// The endpoints of a port, by the name that it has in the Service.
fn endpoints(slices: &[&EndpointSlice], port_name: &str) -> Endpoints {
    let is_meant = |port: &&SlicePort| {
        port.name.as_deref().unwrap_or_default() == port_name && port.protocol.as_deref().unwrap_or("TCP") == "TCP"
    };
    let (mut ready, mut terminating, mut serving) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for slice in slices.iter().filter(|slice| matches!(&*slice.address_type, "IPv4" | "IPv6")) {
        for port in slice.ports.iter().filter(is_meant).filter_map(|port| port.port) {
            for endpoint in &slice.endpoints {
                let Some(ip) = endpoint.ip() else { continue };
                let address = SocketAddr::new(ip, port);
                let SliceEndpoint { conditions, .. } = endpoint;
                let is_ready = conditions.ready.unwrap_or(true);
                let is_terminating = conditions.terminating.unwrap_or(false);
                if is_ready {
                    ready.insert(address);
                } else if is_terminating && conditions.serving.unwrap_or(is_ready) {
                    serving.insert(address);
                }
                if is_terminating {
                    terminating.insert(address);
                }
            }
        }
    }
    let serving = if ready.is_empty() { serving } else { ready };
    let terminating = terminating.into_iter().filter(|address| !serving.contains(address)).collect();
    Endpoints { serving, terminating }
}
