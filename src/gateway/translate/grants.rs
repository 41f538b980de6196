//! Whether a reference into another namespace is permitted there.

use crate::gateway::api::{GATEWAY_GROUP, GrantTo, Key, Kind};
use crate::gateway::plan::Problem;
use crate::gateway::snapshot::Snapshot;

/// What an object refers to.
pub(super) struct Target<'t> {
    pub(super) group: &'t str,
    pub(super) kind: &'t str,
    pub(super) key: &'t Key,
}

/// Whether an object of Gateway API in this namespace may refer to the target.
pub(super) fn check(snapshot: &Snapshot, kind: Kind, namespace: &str, target: &Target<'_>) -> Result<(), Problem> {
    if target.key.namespace == namespace || is_granted(snapshot, kind, namespace, target) {
        return Ok(());
    }
    let message = format!(
        "{} {} is in another namespace, which has no ReferenceGrant for {kind} objects of {namespace}",
        target.kind, target.key
    );
    Err(Problem { reason: "RefNotPermitted", message })
}

fn is_granted(snapshot: &Snapshot, kind: Kind, namespace: &str, target: &Target<'_>) -> bool {
    snapshot.grants.in_namespace(&target.key.namespace).any(|grant| {
        let is_from =
            grant.spec.from.iter().any(|from| {
                from.group == GATEWAY_GROUP && from.kind == kind.to_string() && from.namespace == namespace
            });
        let is_to = |to: &GrantTo| {
            let is_named = to.name.as_deref().is_none_or(|name| name.is_empty() || name == target.key.name);
            to.group == target.group && to.kind == target.kind && is_named
        };
        is_from && grant.spec.to.iter().any(is_to)
    })
}
