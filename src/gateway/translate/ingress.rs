//! Ingress objects with ingress-nginx's annotation for TLS passthrough.
//!
//! ingress-nginx serves only exact hosts, and of each only the path `/`. The same is done here; what else such an object
//! has is reported.

use super::Options;
use super::backends::Backends;
use super::hostnames::Hostname;
use crate::gateway::api::{Ingress, IngressBackend, IngressPath, Key};
use crate::gateway::plan::{BackendKey, Weighted};
use crate::gateway::snapshot::Snapshot;
use crate::name::NamePattern;

/// A host of an Ingress.
#[derive(Debug)]
pub(super) struct IngressHost<'s> {
    pub(super) ingress: &'s Ingress,
    /// Exact.
    pub(super) hostname: Hostname,
    pub(super) backends: Vec<Weighted>,
}

/// The hosts of all Ingress objects that are ours, and what is to be said about those objects.
pub(super) fn hosts<'s>(
    snapshot: &'s Snapshot,
    options: &Options,
    backends: &mut Backends<'_>,
) -> (Vec<IngressHost<'s>>, Vec<(&'s Ingress, String)>) {
    let (mut hosts, mut remarks) = (Vec::new(), Vec::new());
    let Some(own) = &options.ingress else { return (hosts, remarks) };
    let ours = |ingress: &&Ingress| {
        ingress.passthrough_class() == Some(&own.class) && options.watches(&ingress.metadata.namespace)
    };
    for ingress in snapshot.ingresses.values().filter(ours) {
        let mut remark = |message| remarks.push((ingress, message));
        if ingress.spec.default_backend.is_some() {
            remark("defaultBackend is ignored: TLS passthrough requires a rule with a host".into());
        }
        for rule in &ingress.spec.rules {
            let host = rule.host.as_deref().unwrap_or_default();
            let hostname = match Hostname::parse(host) {
                Ok(hostname @ Hostname::Pattern(NamePattern::Exact(_))) => hostname,
                Ok(Hostname::Pattern(NamePattern::Suffix(_))) => {
                    remark(format!(
                        "host `{host}` is ignored: ingress-nginx never passed wildcard hosts through; use a TLSRoute"
                    ));
                    continue;
                }
                Ok(Hostname::Any) => {
                    remark("a rule without a host is ignored: TLS passthrough requires one".into());
                    continue;
                }
                Err(error) => {
                    remark(format!("host `{host}` is ignored: {error}"));
                    continue;
                }
            };
            let paths = rule.http.as_ref().map(|http| &http.paths[..]).unwrap_or_default();
            let is_root = |path: &&IngressPath| matches!(path.path.as_deref(), None | Some("" | "/"));
            let others: Vec<&str> =
                paths.iter().filter(|path| !is_root(path)).filter_map(|path| path.path.as_deref()).collect();
            if !others.is_empty() {
                remark(format!("host `{host}`: paths {} are ignored: TLS hides paths", others.join(", ")));
            }
            let Some(root) = paths.iter().find(is_root) else {
                remark(format!("host `{host}` is ignored: TLS passthrough requires a backend for the path `/`"));
                continue;
            };
            let backend = match find_backend(&ingress.metadata.namespace, &root.backend, backends) {
                Ok(backend) => Some(backend),
                Err(message) => {
                    remark(format!("host `{host}`: {message}; its clients are refused"));
                    None
                }
            };
            hosts.push(IngressHost { ingress, hostname, backends: vec![Weighted { weight: 1, backend }] });
        }
    }
    (hosts, remarks)
}

fn find_backend(namespace: &str, backend: &IngressBackend, backends: &mut Backends<'_>) -> Result<BackendKey, String> {
    let service = backend.service.as_ref().ok_or("the backend is not a Service")?;
    let key = Key::new(namespace, &*service.name);
    let found = match (service.port.number, &service.port.name) {
        (Some(number), _) => backends.find(key, |port| port.port == number, || number.to_string()),
        (None, Some(name)) => backends.find(key, |port| port.name.as_ref() == Some(name), || name.clone()),
        (None, None) => return Err(format!("Service {key}: the backend has no port")),
    };
    found.map_err(|problem| problem.message)
}
