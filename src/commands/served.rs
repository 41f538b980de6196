//! The options that say what of a cluster is served.

use std::path::PathBuf;

use crate::cli::{PublishAddress, Served};
use crate::gateway::api::Key;
use crate::gateway::cluster::Access;
use crate::gateway::plan::PublishedAddress;
use crate::gateway::translate::{IngressOptions, Options, Publish};

/// How to reach the cluster, and what of it is served.
pub(super) fn access_and_options(
    served: Served,
    kubeconfig: Option<PathBuf>,
    writes_status: bool,
    watch_seconds: u32,
) -> (Access, Options) {
    let Served { controller, namespaces, publish_service, publish_addresses, ingress_class, ingress_port } = served;
    let access = Access {
        kubeconfig,
        context: None,
        controller: controller.clone(),
        namespaces: namespaces.clone(),
        publish_namespace: publish_service.as_ref().map(|(namespace, _)| namespace.clone()),
        ingress_class: ingress_class.clone(),
        writes_status,
        watch_seconds,
    };
    let address = |address| match address {
        PublishAddress::Ip(address) => PublishedAddress::Ip(address),
        PublishAddress::Hostname(name) => PublishedAddress::Hostname(name),
    };
    let publish = match publish_service {
        Some((namespace, name)) => Publish::Service(Key::new(namespace, name)),
        None if publish_addresses.is_empty() => Publish::Own,
        None => Publish::Addresses(publish_addresses.into_iter().map(address).collect()),
    };
    let ingress = ingress_class.map(|class| IngressOptions { class, port: ingress_port });
    (access, Options { controller, namespaces, publish, ingress })
}
