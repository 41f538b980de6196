use serde::Deserialize;

use super::metadata::{Key, Metadata};
use super::{GATEWAY_GROUP, Kind};

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct TlsRoute {
    pub(crate) metadata: Metadata,
    pub(crate) spec: TlsRouteSpec,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TlsRouteSpec {
    #[serde(default)]
    pub(crate) parent_refs: Vec<ParentRef>,
    /// Empty: all names of the listener.
    #[serde(default)]
    pub(crate) hostnames: Vec<String>,
    #[serde(default)]
    pub(crate) rules: Vec<TlsRule>,
}

/// What a route wants to be attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ParentRef {
    /// Absent: that of Gateway API.
    #[serde(default)]
    pub(crate) group: Option<String>,
    /// Absent: `Gateway`.
    #[serde(default)]
    pub(crate) kind: Option<String>,
    /// Absent: that of the route.
    #[serde(default)]
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) section_name: Option<String>,
    #[serde(default)]
    pub(crate) port: Option<u16>,
}

impl ParentRef {
    pub(crate) fn is_gateway(&self) -> bool {
        self.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP
            && self.kind.as_deref().is_none_or(|kind| kind == Kind::Gateway.to_string())
    }

    /// Key of the parent of a route in this namespace.
    pub(crate) fn key(&self, namespace: &str) -> Key {
        Key::new(self.namespace.as_deref().unwrap_or(namespace), &*self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TlsRule {
    #[serde(default)]
    pub(crate) backend_refs: Vec<BackendRef>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct BackendRef {
    /// Absent: the core group.
    #[serde(default)]
    pub(crate) group: Option<String>,
    /// Absent: `Service`.
    #[serde(default)]
    pub(crate) kind: Option<String>,
    /// Absent: that of the route.
    #[serde(default)]
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) port: Option<u16>,
    /// Absent: 1.
    #[serde(default)]
    pub(crate) weight: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct ReferenceGrant {
    pub(crate) metadata: Metadata,
    pub(crate) spec: Grant,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Grant {
    #[serde(default)]
    pub(crate) from: Vec<GrantFrom>,
    #[serde(default)]
    pub(crate) to: Vec<GrantTo>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct GrantFrom {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct GrantTo {
    pub(crate) group: String,
    pub(crate) kind: String,
    /// Absent: all of this kind in the namespace.
    #[serde(default)]
    pub(crate) name: Option<String>,
}
