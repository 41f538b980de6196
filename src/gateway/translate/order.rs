//! Which of two objects comes first where only one can win.

use crate::gateway::api::Metadata;

/// Older objects come first, then those with the lesser namespace and name. Without a time, an object is the youngest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Age<'o> {
    is_unknown: bool,
    created: Option<&'o str>,
    namespace: &'o str,
    name: &'o str,
}

impl<'o> Age<'o> {
    pub(super) fn of(metadata: &'o Metadata) -> Self {
        let created = metadata.creation_timestamp.as_deref();
        Self { is_unknown: created.is_none(), created, namespace: &metadata.namespace, name: &metadata.name }
    }
}
