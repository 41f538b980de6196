//! From the objects of a cluster to a plan.

use std::net::SocketAddr;

use super::api::Key;
use super::plan::{Plan, PublishedAddress};
use super::snapshot::Snapshot;

/// The name of the controller in GatewayClasses.
pub(crate) const CONTROLLER: &str = "snigate.dev/gateway";

/// What the operator chose.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    /// The GatewayClasses with this controller are ours.
    pub(crate) controller: String,
    /// Only objects in these namespaces are read; empty: in all. Services and EndpointSlices of others are not found.
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

impl Default for Options {
    fn default() -> Self {
        Self { controller: CONTROLLER.into(), namespaces: Vec::new(), publish: Publish::default(), ingress: None }
    }
}

/// The plan for a cluster. `base` are the listeners of the configuration beside it.
pub(crate) fn translate(_snapshot: &Snapshot, _options: &Options, _base: &[SocketAddr]) -> Plan {
    Plan::default()
}
