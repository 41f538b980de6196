//! What the watches have found: the objects, and the status of those that snigate reports on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;
use tracing::warn;

use crate::gateway::api::{Key, Kind, Object, key_of};
use crate::gateway::snapshot::Snapshot;
use crate::gateway::status::publisher;

/// All objects, as last seen.
pub(super) struct Store {
    objects: Mutex<Objects>,
    /// A change of the snapshot.
    changed: watch::Sender<()>,
    /// A change of a status.
    status_changed: watch::Sender<()>,
    /// Watches that have not listed anything yet.
    awaited: watch::Sender<usize>,
}

#[derive(Default)]
struct Objects {
    snapshot: Snapshot,
    statuses: BTreeMap<(Kind, Key), ObjectStatus>,
}

/// The status of an object, and the version that it is of.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ObjectStatus {
    pub(super) version: String,
    pub(super) status: Value,
    /// Only of an Ingress.
    pub(super) ingress: IngressOwners,
}

/// Whose an Ingress is, in the version that its status is of.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct IngressOwners {
    /// If it has the annotation for TLS passthrough.
    pub(super) class: Option<String>,
    /// The field manager that has set its addresses.
    pub(super) publisher: Option<String>,
}

impl ObjectStatus {
    /// Takes it out of an object.
    pub(super) fn take(kind: Kind, object: &mut Value) -> Self {
        let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        let ingress = if kind == Kind::Ingress { IngressOwners::of(object) } else { IngressOwners::default() };
        let status = object.as_object_mut().and_then(|object| object.remove("status"));
        Self { version, status: status.unwrap_or_default(), ingress }
    }
}

impl IngressOwners {
    fn of(object: &Value) -> Self {
        let class = match Object::decode(Kind::Ingress, object.clone()) {
            Ok(Object::Ingress(ingress)) => ingress.passthrough_class().cloned(),
            _ => None,
        };
        Self { class, publisher: publisher(object).map(str::to_owned) }
    }
}

/// Whether snigate reports on objects of this kind.
fn has_status(kind: Kind) -> bool {
    match kind {
        Kind::GatewayClass | Kind::Gateway | Kind::TlsRoute | Kind::Ingress => true,
        Kind::ReferenceGrant | Kind::Service | Kind::EndpointSlice | Kind::Namespace => false,
    }
}

impl Store {
    pub(super) fn new(watches: usize) -> Self {
        Self {
            objects: Mutex::default(),
            changed: watch::Sender::new(()),
            status_changed: watch::Sender::new(()),
            awaited: watch::Sender::new(watches),
        }
    }

    /// A watch has its first list.
    pub(super) fn listed_first(&self) {
        self.awaited.send_modify(|awaited| *awaited -= 1);
    }

    /// Waits for the first lists of all watches.
    pub(super) async fn all_listed(&self) {
        // The sender is part of this.
        let _ = self.awaited.subscribe().wait_for(|awaited| *awaited == 0).await;
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn status_changes(&self) -> watch::Receiver<()> {
        self.status_changed.subscribe()
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.objects().snapshot.clone()
    }

    /// All that was found, at the end.
    pub(super) fn into_objects(self) -> (Snapshot, BTreeMap<(Kind, Key), Value>) {
        let Objects { snapshot, statuses } = self.objects.into_inner().unwrap_or_else(PoisonError::into_inner);
        (snapshot, statuses.into_iter().map(|(object, ObjectStatus { status, .. })| (object, status)).collect())
    }

    /// The objects of this kind with a status.
    pub(super) fn keys(&self, kind: Kind) -> Vec<Key> {
        let objects = self.objects();
        let first = (kind, Key::default());
        let of_kind = objects.statuses.range(first..).map_while(|((other, key), _)| (*other == kind).then_some(key));
        of_kind.cloned().collect()
    }

    pub(super) fn status(&self, kind: Kind, key: &Key) -> Option<ObjectStatus> {
        self.objects().statuses.get(&(kind, key.clone())).cloned()
    }

    /// A status as it was written, before the watch has it.
    pub(super) fn set_status(&self, kind: Kind, key: &Key, status: ObjectStatus) {
        if let Some(known) = self.objects().statuses.get_mut(&(kind, key.clone())) {
            *known = status;
        }
    }

    /// An object was added or has changed.
    pub(super) fn apply(&self, kind: Kind, object: Value) {
        let has_changed = self.objects().apply(kind, object);
        self.notify(kind, has_changed);
    }

    pub(super) fn delete(&self, kind: Kind, key: &Key) {
        self.objects().delete(kind, key);
        self.notify(kind, true);
    }

    /// Replaces `known`, which a watch has found before, by a complete list. Returns the keys of the latter.
    pub(super) fn replace(&self, kind: Kind, known: &BTreeSet<Key>, list: Vec<Value>) -> BTreeSet<Key> {
        let keys: BTreeSet<Key> = list.iter().map(key_of).collect();
        let mut has_changed = false;
        let mut objects = self.objects();
        for key in known.difference(&keys) {
            objects.delete(kind, key);
            has_changed = true;
        }
        for object in list {
            has_changed |= objects.apply(kind, object);
        }
        drop(objects);
        self.notify(kind, has_changed);
        keys
    }

    fn notify(&self, kind: Kind, has_changed: bool) {
        if has_changed {
            self.changed.send_replace(());
        }
        if has_status(kind) {
            self.status_changed.send_replace(());
        }
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Objects {
    /// Whether the snapshot is another one, whatever the status.
    fn apply(&mut self, kind: Kind, mut object: Value) -> bool {
        let key = key_of(&object);
        if has_status(kind) {
            self.statuses.insert((kind, key.clone()), ObjectStatus::take(kind, &mut object));
        }
        let before = self.snapshot.undecodable.get(&(kind, key)).cloned();
        let undecodable = match self.snapshot.insert(kind, object) {
            Ok(has_changed) => return has_changed,
            Err(undecodable) => undecodable,
        };
        let is_new = before.as_ref() != Some(&undecodable.reason);
        if is_new {
            let (object, reason) = (format!("{kind} {}", undecodable.key), undecodable.reason);
            warn!(object, reason, "object ignored: it does not have the fields of its kind");
        }
        is_new
    }

    fn delete(&mut self, kind: Kind, key: &Key) {
        self.snapshot.remove(kind, key);
        self.statuses.remove(&(kind, key.clone()));
    }
}
