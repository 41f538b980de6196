//! The objects of a cluster, as far as they are known.

use std::collections::BTreeMap;

use serde_json::Value;

use super::api::{
    EndpointSlice, Gateway, GatewayClass, Ingress, Key, Kind, Namespace, Object, ReferenceGrant, Service, TlsRoute,
    Undecodable,
};

/// The objects of a cluster, by kind, namespace and name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) classes: BTreeMap<Key, GatewayClass>,
    pub(crate) gateways: BTreeMap<Key, Gateway>,
    pub(crate) routes: BTreeMap<Key, TlsRoute>,
    pub(crate) grants: BTreeMap<Key, ReferenceGrant>,
    pub(crate) services: BTreeMap<Key, Service>,
    pub(crate) slices: BTreeMap<Key, EndpointSlice>,
    pub(crate) namespaces: BTreeMap<Key, Namespace>,
    pub(crate) ingresses: BTreeMap<Key, Ingress>,
    /// Objects that could not be decoded; they are as good as absent.
    pub(crate) undecodable: BTreeMap<(Kind, Key), String>,
}

impl Snapshot {
    /// Adds an object, or replaces its earlier version. Whether the snapshot is another one.
    pub(crate) fn insert(&mut self, kind: Kind, object: Value) -> Result<bool, Undecodable> {
        match Object::decode(kind, object) {
            Ok(object) => Ok(self.insert_decoded(object)),
            Err(undecodable) => {
                self.remove(kind, &undecodable.key);
                self.undecodable.insert((kind, undecodable.key.clone()), undecodable.reason.clone());
                Err(undecodable)
            }
        }
    }

    pub(crate) fn insert_decoded(&mut self, object: Object) -> bool {
        let (kind, (key, is_new)) = match object {
            Object::GatewayClass(object) => {
                (Kind::GatewayClass, insert(&mut self.classes, object.metadata.key(), object))
            }
            Object::Gateway(object) => (Kind::Gateway, insert(&mut self.gateways, object.metadata.key(), object)),
            Object::TlsRoute(object) => (Kind::TlsRoute, insert(&mut self.routes, object.metadata.key(), object)),
            Object::ReferenceGrant(object) => {
                (Kind::ReferenceGrant, insert(&mut self.grants, object.metadata.key(), object))
            }
            Object::Service(object) => (Kind::Service, insert(&mut self.services, object.metadata.key(), object)),
            Object::EndpointSlice(object) => {
                (Kind::EndpointSlice, insert(&mut self.slices, object.metadata.key(), object))
            }
            Object::Namespace(object) => (Kind::Namespace, insert(&mut self.namespaces, object.metadata.key(), object)),
            Object::Ingress(object) => (Kind::Ingress, insert(&mut self.ingresses, object.metadata.key(), object)),
        };
        self.undecodable.remove(&(kind, key)).is_some() || is_new
    }

    pub(crate) fn has(&self, kind: Kind, key: &Key) -> bool {
        let is_decoded = match kind {
            Kind::GatewayClass => self.classes.contains_key(key),
            Kind::Gateway => self.gateways.contains_key(key),
            Kind::TlsRoute => self.routes.contains_key(key),
            Kind::ReferenceGrant => self.grants.contains_key(key),
            Kind::Service => self.services.contains_key(key),
            Kind::EndpointSlice => self.slices.contains_key(key),
            Kind::Namespace => self.namespaces.contains_key(key),
            Kind::Ingress => self.ingresses.contains_key(key),
        };
        is_decoded || self.undecodable.contains_key(&(kind, key.clone()))
    }

    pub(crate) fn remove(&mut self, kind: Kind, key: &Key) {
        match kind {
            Kind::GatewayClass => drop(self.classes.remove(key)),
            Kind::Gateway => drop(self.gateways.remove(key)),
            Kind::TlsRoute => drop(self.routes.remove(key)),
            Kind::ReferenceGrant => drop(self.grants.remove(key)),
            Kind::Service => drop(self.services.remove(key)),
            Kind::EndpointSlice => drop(self.slices.remove(key)),
            Kind::Namespace => drop(self.namespaces.remove(key)),
            Kind::Ingress => drop(self.ingresses.remove(key)),
        }
        self.undecodable.remove(&(kind, key.clone()));
    }
}

/// Also returns whether it is another one than before.
fn insert<T: PartialEq>(objects: &mut BTreeMap<Key, T>, key: Key, object: T) -> (Key, bool) {
    let is_new = objects.get(&key) != Some(&object);
    objects.insert(key.clone(), object);
    (key, is_new)
}
