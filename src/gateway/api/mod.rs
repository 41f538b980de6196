//! Kubernetes objects: the fields that are read, and no others.

mod backend;
mod gateway;
mod ingress;
pub(crate) mod manifests;
mod metadata;
mod route;

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;
use strum::{Display, EnumIter, IntoEnumIterator as _};

pub(crate) use self::backend::{EndpointSlice, Service, ServicePort, SliceEndpoint, SlicePort};
pub(crate) use self::gateway::{
    CertificateRef, FromNamespaces, Gateway, GatewayClass, Listener, Namespace, RouteGroupKind, Selector,
    SelectorRequirement,
};
pub(crate) use self::ingress::{Ingress, IngressBackend, IngressPath};
pub(crate) use self::metadata::{Key, Metadata, key_of};
pub(crate) use self::route::{BackendRef, GrantTo, ParentRef, ReferenceGrant, TlsRoute};

pub(crate) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// The kinds of objects that are read.
#[derive(Clone, Copy, Debug, Display, EnumIter, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Kind {
    GatewayClass,
    Gateway,
    #[strum(to_string = "TLSRoute")]
    TlsRoute,
    ReferenceGrant,
    Service,
    EndpointSlice,
    Namespace,
    Ingress,
}

impl Kind {
    /// The kind of an object, whatever its version.
    pub(crate) fn of(object: &Value) -> Option<Self> {
        let group = object["apiVersion"].as_str()?.rsplit_once('/').map_or("", |(group, _)| group);
        let name = object["kind"].as_str()?;
        Self::iter().find(|kind| kind.group() == group && kind.to_string() == name)
    }

    /// Whether its objects are in namespaces.
    pub(crate) fn is_namespaced(self) -> bool {
        !matches!(self, Self::GatewayClass | Self::Namespace)
    }

    /// The API group; empty for the core group.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::GatewayClass | Self::Gateway | Self::TlsRoute | Self::ReferenceGrant => GATEWAY_GROUP,
            Self::Service | Self::Namespace => "",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::Ingress => "networking.k8s.io",
        }
    }
}

/// An object that does not have the fields of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Undecodable {
    pub(crate) kind: Kind,
    pub(crate) key: Key,
    pub(crate) reason: String,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key, reason } = self;
        write!(f, "{kind} {key}: {reason}")
    }
}

fn decode<T: DeserializeOwned>(kind: Kind, object: Value) -> Result<T, Undecodable> {
    let key = key_of(&object);
    serde_json::from_value(without_nulls(object)).map_err(|error| Undecodable { kind, key, reason: error.to_string() })
}

/// The API server writes empty lists and maps of some fields as null.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
            fields.map(|(key, value)| (key, without_nulls(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        value => value,
    }
}

/// An object of any of the kinds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    GatewayClass(GatewayClass),
    Gateway(Gateway),
    TlsRoute(TlsRoute),
    ReferenceGrant(ReferenceGrant),
    Service(Service),
    EndpointSlice(EndpointSlice),
    Namespace(Namespace),
    Ingress(Ingress),
}

impl Object {
    pub(crate) fn decode(kind: Kind, object: Value) -> Result<Self, Undecodable> {
        Ok(match kind {
            Kind::GatewayClass => Self::GatewayClass(decode(kind, object)?),
            Kind::Gateway => Self::Gateway(decode(kind, object)?),
            Kind::TlsRoute => Self::TlsRoute(decode(kind, object)?),
            Kind::ReferenceGrant => Self::ReferenceGrant(decode(kind, object)?),
            Kind::Service => Self::Service(decode(kind, object)?),
            Kind::EndpointSlice => Self::EndpointSlice(decode(kind, object)?),
            Kind::Namespace => Self::Namespace(decode(kind, object)?),
            Kind::Ingress => Self::Ingress(decode(kind, object)?),
        })
    }
}
