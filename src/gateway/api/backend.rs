use std::net::IpAddr;

use serde::Deserialize;

use super::metadata::Metadata;

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct Service {
    pub(crate) metadata: Metadata,
    #[serde(default)]
    pub(crate) spec: ServiceSpec,
    #[serde(default)]
    pub(crate) status: ServiceStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceSpec {
    /// Absent: `ClusterIP`.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct ServicePort {
    /// Absent or empty if it is the only one; the name of its port in EndpointSlices.
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// Absent: `TCP`.
    #[serde(default)]
    pub(crate) protocol: Option<String>,
    pub(crate) port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceStatus {
    pub(crate) load_balancer: LoadBalancer,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct LoadBalancer {
    pub(crate) ingress: Vec<LoadBalancerIngress>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct LoadBalancerIngress {
    pub(crate) ip: Option<String>,
    pub(crate) hostname: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EndpointSlice {
    pub(crate) metadata: Metadata,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub(crate) address_type: String,
    #[serde(default)]
    pub(crate) endpoints: Vec<SliceEndpoint>,
    #[serde(default)]
    pub(crate) ports: Vec<SlicePort>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct SliceEndpoint {
    /// IP addresses of one Pod, or names if that is the slice's type.
    pub(crate) addresses: Vec<String>,
    pub(crate) conditions: EndpointConditions,
}

impl SliceEndpoint {
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.addresses.first()?.parse().ok()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct EndpointConditions {
    /// Absent: true.
    pub(crate) ready: Option<bool>,
    /// Absent: as `ready`.
    pub(crate) serving: Option<bool>,
    /// Absent: false.
    pub(crate) terminating: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(crate) struct SlicePort {
    /// Name of the Service's port; absent or empty for the only one.
    #[serde(default)]
    pub(crate) name: Option<String>,
    /// Absent: `TCP`.
    #[serde(default)]
    pub(crate) protocol: Option<String>,
    /// Absent: no restriction.
    #[serde(default)]
    pub(crate) port: Option<u16>,
}
