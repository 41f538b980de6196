use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::metadata::Metadata;

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct GatewayClass {
    pub(crate) metadata: Metadata,
    pub(crate) spec: GatewayClassSpec,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayClassSpec {
    pub(crate) controller_name: String,
    #[serde(default)]
    pub(crate) parameters_ref: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Gateway {
    pub(crate) metadata: Metadata,
    pub(crate) spec: GatewaySpec,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewaySpec {
    pub(crate) gateway_class_name: String,
    #[serde(default)]
    pub(crate) listeners: Vec<Listener>,
    #[serde(default)]
    pub(crate) addresses: Vec<Address>,
    #[serde(default)]
    pub(crate) infrastructure: Option<Infrastructure>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Infrastructure {
    #[serde(default)]
    pub(crate) parameters_ref: Option<Value>,
}

/// An address that a Gateway requests.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Address {
    /// Absent: `IPAddress`.
    #[serde(rename = "type", default)]
    pub(crate) kind: Option<String>,
    /// Empty: any of this type.
    #[serde(default)]
    pub(crate) value: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listener {
    pub(crate) name: String,
    /// Absent or empty: all names.
    #[serde(default)]
    pub(crate) hostname: Option<String>,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    #[serde(default)]
    pub(crate) tls: Option<ListenerTls>,
    #[serde(default)]
    pub(crate) allowed_routes: Option<AllowedRoutes>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ListenerTls {
    /// Absent: `Terminate`.
    pub(crate) mode: Option<String>,
    /// Ignored in mode `Passthrough`.
    pub(crate) certificate_refs: Vec<CertificateRef>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct CertificateRef {
    /// Absent: the core group.
    #[serde(default)]
    pub(crate) group: Option<String>,
    /// Absent: `Secret`.
    #[serde(default)]
    pub(crate) kind: Option<String>,
    /// Absent: that of the Gateway.
    #[serde(default)]
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct AllowedRoutes {
    pub(crate) namespaces: Option<RouteNamespaces>,
    /// Empty: those of the protocol.
    pub(crate) kinds: Vec<RouteGroupKind>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct RouteNamespaces {
    /// Absent: `Same`.
    pub(crate) from: Option<FromNamespaces>,
    pub(crate) selector: Option<Selector>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum FromNamespaces {
    All,
    Selector,
    Same,
    None,
}

/// A selector of labels; an empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Selector {
    pub(crate) match_labels: BTreeMap<String, String>,
    pub(crate) match_expressions: Vec<SelectorRequirement>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct SelectorRequirement {
    pub(crate) key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub(crate) operator: String,
    #[serde(default)]
    pub(crate) values: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct RouteGroupKind {
    /// Absent: that of Gateway API.
    #[serde(default)]
    pub(crate) group: Option<String>,
    pub(crate) kind: String,
}

/// Only its labels are read.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Namespace {
    pub(crate) metadata: Metadata,
}
