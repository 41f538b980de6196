//! The objects of a cluster, as far as they are known.

use std::collections::BTreeMap;
use std::ops::Index;
use std::sync::Arc;

use serde_json::Value;

use super::api::{
    EndpointSlice, Gateway, GatewayClass, Ingress, Key, Kind, Namespace, Object, ReferenceGrant, Service, TlsRoute,
    Undecodable, key_of,
};

/// The objects of a cluster, by kind, namespace and name. To copy it costs nothing; to change one of the copies then, a copy
/// of the references to the objects of that kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) classes: Objects<GatewayClass>,
    pub(crate) gateways: Objects<Gateway>,
    pub(crate) routes: Objects<TlsRoute>,
    pub(crate) grants: Objects<ReferenceGrant>,
    pub(crate) services: Objects<Service>,
    pub(crate) slices: Objects<EndpointSlice>,
    pub(crate) namespaces: Objects<Namespace>,
    pub(crate) ingresses: Objects<Ingress>,
    /// Objects that could not be decoded; they are as good as absent.
    pub(crate) undecodable: Shared<(Kind, Key), String>,
}

/// Of one kind.
type Objects<T> = Shared<Key, T>;

impl Snapshot {
    /// Adds an object, or replaces its earlier version. Whether the snapshot is another one.
    pub(crate) fn insert(&mut self, kind: Kind, object: Value) -> Result<bool, Undecodable> {
        let key = key_of(&object);
        let object = Object::decode(kind, object).inspect_err(|undecodable| {
            self.remove(kind, &key);
            self.undecodable.insert((kind, key.clone()), undecodable.reason.clone());
        })?;
        let was_undecodable = self.undecodable.remove(&(kind, key.clone()));
        let is_new = match object {
            Object::GatewayClass(object) => self.classes.insert(key, object),
            Object::Gateway(object) => self.gateways.insert(key, object),
            Object::TlsRoute(object) => self.routes.insert(key, object),
            Object::ReferenceGrant(object) => self.grants.insert(key, object),
            Object::Service(object) => self.services.insert(key, object),
            Object::EndpointSlice(object) => self.slices.insert(key, object),
            Object::Namespace(object) => self.namespaces.insert(key, object),
            Object::Ingress(object) => self.ingresses.insert(key, object),
        };
        Ok(was_undecodable || is_new)
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
            Kind::GatewayClass => self.classes.remove(key),
            Kind::Gateway => self.gateways.remove(key),
            Kind::TlsRoute => self.routes.remove(key),
            Kind::ReferenceGrant => self.grants.remove(key),
            Kind::Service => self.services.remove(key),
            Kind::EndpointSlice => self.slices.remove(key),
            Kind::Namespace => self.namespaces.remove(key),
            Kind::Ingress => self.ingresses.remove(key),
        };
        self.undecodable.remove(&(kind, key.clone()));
    }
}

/// A map that is copied by reference, until one of the copies changes.
#[derive(Debug, PartialEq)]
pub(crate) struct Shared<K, V>(Arc<BTreeMap<K, Arc<V>>>);

impl<K: Ord + Clone, V> Shared<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.0.get(key).map(|value| &**value)
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.0.contains_key(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().map(|(key, value)| (key, &**value))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.values().map(|value| &**value)
    }

    /// Whether there was one.
    fn remove(&mut self, key: &K) -> bool {
        self.contains_key(key) && Arc::make_mut(&mut self.0).remove(key).is_some()
    }
}

impl<K: Ord + Clone, V: PartialEq> Shared<K, V> {
    /// Whether it is another one than before.
    fn insert(&mut self, key: K, value: V) -> bool {
        let is_new = self.get(&key) != Some(&value);
        if is_new {
            Arc::make_mut(&mut self.0).insert(key, Arc::new(value));
        }
        is_new
    }
}

impl<T> Objects<T> {
    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &T> {
        let from = self.0.range(Key::new(namespace, "")..);
        from.take_while(move |(key, _)| key.namespace == namespace).map(|(_, object)| &**object)
    }
}

impl<K, V> Clone for Shared<K, V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, V> Default for Shared<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Ord, V> Index<&K> for Shared<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        &self.0[key]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(name: &str, port: u16) -> Value {
        json!({"metadata": {"namespace": "ns", "name": name}, "spec": {"ports": [{"port": port}]}})
    }

    #[test]
    fn a_copy_stays_as_it_is_and_shares_what_has_not_changed() {
        let mut snapshot = Snapshot::default();
        let grant = json!({"metadata": {"namespace": "ns", "name": "grant"}, "spec": {"from": [], "to": []}});
        assert_eq!(snapshot.insert(Kind::ReferenceGrant, grant), Ok(true));
        for name in ["changed", "removed", "other"] {
            assert_eq!(snapshot.insert(Kind::Service, service(name, 1)), Ok(true));
        }
        let copy = snapshot.clone();
        let is_shared = |snapshot: &Snapshot| Arc::ptr_eq(&snapshot.services.0, &copy.services.0);
        let key = |name: &str| Key::new("ns", name);

        assert_eq!(snapshot.insert(Kind::Service, service("changed", 1)), Ok(false));
        snapshot.remove(Kind::Service, &key("absent"));
        assert!(is_shared(&snapshot), "nothing has changed");

        assert_eq!(snapshot.insert(Kind::Service, service("changed", 2)), Ok(true));
        snapshot.remove(Kind::Service, &key("removed"));
        assert!(!is_shared(&snapshot) && Arc::ptr_eq(&snapshot.grants.0, &copy.grants.0));
        let ports = |snapshot: &Snapshot, name: &str| {
            snapshot.services.get(&key(name)).map(|service| service.spec.ports[0].port)
        };
        assert_eq!(["changed", "removed", "other"].map(|name| ports(&snapshot, name)), [Some(2), None, Some(1)]);
        assert_eq!(["changed", "removed", "other"].map(|name| ports(&copy, name)), [Some(1); 3]);
        assert!(Arc::ptr_eq(&snapshot.services.0[&key("other")], &copy.services.0[&key("other")]));
    }

    #[test]
    fn objects_of_a_namespace_are_those_with_exactly_its_name() {
        let mut snapshot = Snapshot::default();
        for (namespace, name) in [("a", "1"), ("a", "2"), ("a-b", "3"), ("b", "4"), ("", "5")] {
            let object = json!({"metadata": {"namespace": namespace, "name": name}});
            snapshot.insert(Kind::Service, object).unwrap();
        }
        let names = |namespace| -> Vec<&str> {
            snapshot.services.in_namespace(namespace).map(|service| &*service.metadata.name).collect()
        };
        assert_eq!((names("a"), names("a-b"), names("c")), (vec!["1", "2"], vec!["3"], Vec::new()));
    }
}
