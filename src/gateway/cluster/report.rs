//! Writes status and Events. Only the holder of the Lease does, and only what has changed.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::follow::resource;
use super::link::{Link, describe, is_unauthorized};
use super::store::{ObjectStatus, Store};
use crate::gateway::api::{Key, Kind};
use crate::gateway::plan::{Applied, Note, Statuses};
use crate::gateway::status::{self, shortened};

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at a time.
const CONCURRENT: usize = 8;
/// How often one object is written again because others have changed it meanwhile.
const MAX_CONFLICTS: usize = 5;
/// In bytes, as the API server accepts it.
const MAX_NOTE: usize = 1024;
const MAX_FIELD_MANAGER: usize = 128;
/// Between attempts after a failure, doubling.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What is to be reported.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Report {
    pub(crate) statuses: Statuses,
    pub(crate) notes: BTreeSet<Note>,
    pub(crate) applied: Applied,
}

/// Writes what is wanted.
pub(super) struct Reporter {
    pub(super) link: Arc<Link>,
    pub(super) store: Arc<Store>,
    pub(super) controller: String,
    /// Class of the Ingress objects that are served.
    pub(super) ingress_class: Option<String>,
    /// Name of this replica, in Events.
    pub(super) identity: String,
}

impl Reporter {
    /// Reports while this replica has the Lease, until nothing is wanted any more.
    pub(super) async fn run(
        self,
        mut wanted: watch::Receiver<Option<Arc<Report>>>,
        mut is_held: watch::Receiver<bool>,
    ) {
        let mut statuses = self.store.status_changes();
        let mut published = BTreeSet::new();
        let mut retry = FIRST_RETRY;
        loop {
            let report = wanted.borrow_and_update().clone();
            let may_write = *is_held.borrow_and_update();
            statuses.mark_unchanged();
            let mut has_failed = false;
            if let Some(report) = report.filter(|_| may_write) {
                let is_written = self.write_all(&report, &is_held).await;
                let is_noted = self.publish(&report.notes, &mut published).await;
                has_failed = !(is_written && is_noted);
            }
            if !has_failed {
                retry = FIRST_RETRY;
            }
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                changed = is_held.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                _ = statuses.changed() => {}
                () = sleep(retry), if has_failed => retry = (retry * 2).min(LAST_RETRY),
            }
        }
    }

    /// Whether all is written.
    async fn write_all(&self, report: &Report, is_held: &watch::Receiver<bool>) -> bool {
        let kinds = [Kind::GatewayClass, Kind::Gateway, Kind::TlsRoute, Kind::Ingress];
        let objects = kinds.into_iter().flat_map(|kind| self.store.keys(kind).into_iter().map(move |key| (kind, key)));
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        // Most need no request.
        let changed = objects.filter(|(kind, key)| {
            let existing = self.store.status(*kind, key);
            existing.is_some_and(|existing| self.next(*kind, key, &existing, report, &now).is_some())
        });
        let changed: Vec<_> = changed.collect();
        let results = stream::iter(changed)
            .map(|(kind, key)| {
                let now = &now;
                async move {
                    // Another replica may have the Lease by now.
                    !*is_held.borrow() || self.write(kind, &key, report, now).await
                }
            })
            .buffer_unordered(CONCURRENT);
        results.fold(true, async |all, is_written| all && is_written).await
    }

    /// The status that an object is to have; `None`: it has it.
    fn next(&self, kind: Kind, key: &Key, existing: &ObjectStatus, report: &Report, now: &str) -> Option<Value> {
        let Report { statuses, notes: _, applied } = report;
        let ObjectStatus { version: _, status: existing, ingress } = existing;
        match kind {
            Kind::GatewayClass => status::class(existing, statuses.classes.get(key)?, now),
            Kind::Gateway => status::gateway(existing, statuses.gateways.get(key)?, &statuses.published, applied, now),
            Kind::TlsRoute => status::route(existing, statuses.routes.get(key), &self.controller, now),
            // What is wanted may be of an earlier version, in which it was ours.
            Kind::Ingress if statuses.ingresses.contains(key) && ingress.class == self.ingress_class => {
                status::ingress(existing, &statuses.published, applied)
            }
            Kind::Ingress if ingress.publisher.as_deref() == Some(self.field_manager()) => {
                status::without_addresses(existing)
            }
            Kind::Ingress | Kind::ReferenceGrant | Kind::Service | Kind::EndpointSlice | Kind::Namespace => None,
        }
    }

    /// What the API server notes beside the fields that this controller has set.
    fn field_manager(&self) -> &str {
        shortened(&self.controller, MAX_FIELD_MANAGER)
    }

    /// Writes the status of one object, from its newest version on. Whether that is done.
    async fn write(&self, kind: Kind, key: &Key, report: &Report, now: &str) -> bool {
        let api = self.api(kind, key);
        let Some(mut existing) = self.store.status(kind, key) else { return true };
        for _ in 0..MAX_CONFLICTS {
            let Some(wanted) = self.next(kind, key, &existing, report, now) else { return true };
            let patch = json!({
                "metadata": {"resourceVersion": existing.version},
                "status": difference(&existing.status, &wanted),
            });
            let begun = Instant::now();
            let manager = Some(self.field_manager().to_owned());
            let parameters = PatchParams { field_manager: manager, ..PatchParams::default() };
            let patch = Patch::Merge(&patch);
            let error = match timeout(TIMEOUT, api.patch_status(&key.name, &parameters, &patch)).await {
                Ok(Ok(object)) => {
                    debug!(%kind, %key, "status written");
                    self.store.set_status(kind, key, status_of(kind, object));
                    return true;
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {
                    match timeout(TIMEOUT, api.get_opt(&key.name)).await {
                        Ok(Ok(Some(object))) => {
                            existing = status_of(kind, object);
                            continue;
                        }
                        // It was deleted.
                        Ok(Ok(None)) => return true,
                        failed => failed.map(Result::err),
                    }
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => return true,
                failed => failed.map(Result::err),
            };
            return self.failed(kind, key, error.ok().flatten(), begun).await;
        }
        warn!(%kind, %key, "status not written: others change the object again and again; it is tried again later");
        false
    }

    /// `None`: the API server did not answer.
    async fn failed(&self, kind: Kind, key: &Key, error: Option<kube::Error>, begun: Instant) -> bool {
        if error.as_ref().is_some_and(is_unauthorized) {
            self.link.renew(begun).await;
        }
        let reason = error.map_or_else(|| "no answer in time".into(), |error| describe(&error));
        warn!(%kind, %key, reason, "status not written; it is tried again later");
        false
    }

    /// Publishes each note once. Whether all are published.
    async fn publish(&self, notes: &BTreeSet<Note>, published: &mut BTreeSet<Note>) -> bool {
        published.retain(|note| notes.contains(note));
        for note in notes {
            if published.contains(note) {
                continue;
            }
            let Note { object, reason, message } = note;
            match timeout(TIMEOUT, self.create_event(note)).await {
                Ok(Ok(())) => info!(%object, reason, message, "noted"),
                Ok(Err(error)) => {
                    warn!(%object, reason = describe(&error), "cannot create an Event; it is tried again later");
                    return false;
                }
                Err(_) => return false,
            }
            published.insert(note.clone());
        }
        true
    }

    /// Named by its content, so that other replicas do not repeat it.
    async fn create_event(&self, note: &Note) -> kube::Result<()> {
        let Note { object, reason, message } = note;
        let mut hasher = DefaultHasher::new();
        (reason, message, &object.uid).hash(&mut hasher);
        let namespace = if object.key.namespace.is_empty() { "default" } else { &object.key.namespace };
        let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        let event = json!({
            "metadata": {"name": event_name(&object.key.name, hasher.finish()), "namespace": namespace},
            "eventTime": now,
            "type": "Warning",
            "action": "Translate",
            "reason": reason,
            "note": shortened(message, MAX_NOTE),
            "reportingController": self.controller,
            "reportingInstance": self.identity,
            "regarding": {
                "apiVersion": resource(object.kind, "v1").api_version,
                "kind": object.kind.to_string(),
                "namespace": object.key.namespace,
                "name": object.key.name,
                "uid": object.uid,
            },
        });
        let event: DynamicObject = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
        let events: Api<DynamicObject> = Api::namespaced_with(self.link.client(), namespace, &event_resource());
        match events.create(&PostParams::default(), &event).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            created => created.map(drop),
        }
    }

    fn api(&self, kind: Kind, key: &Key) -> Api<DynamicObject> {
        let resource = resource(kind, "v1");
        if key.namespace.is_empty() {
            Api::all_with(self.link.client(), &resource)
        } else {
            Api::namespaced_with(self.link.client(), &key.namespace, &resource)
        }
    }
}

/// A DNS subdomain, of at most 253 bytes.
fn event_name(object: &str, digest: u64) -> String {
    format!("{}.{digest:016x}", shortened(object, 200).trim_end_matches(['.', '-']))
}

fn event_resource() -> ApiResource {
    ApiResource {
        group: "events.k8s.io".into(),
        version: "v1".into(),
        api_version: "events.k8s.io/v1".into(),
        kind: "Event".into(),
        plural: "events".into(),
    }
}

fn status_of(kind: Kind, object: DynamicObject) -> ObjectStatus {
    ObjectStatus::take(kind, &mut serde_json::to_value(object).unwrap_or_default())
}

/// The merge patch (RFC 7386) from one value to another: without what is equal, and with null for what is to go.
fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (from, to) else { return to.clone() };
    let removed = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(*value));
    let changed = changed.map(|(key, value)| (key.clone(), difference(before.get(key).unwrap_or(&Value::Null), value)));
    Value::Object(removed.chain(changed).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_has_only_what_differs() {
        let from = json!({"a": 1, "b": {"c": [1, 2], "d": 3}, "e": 4});
        let to = json!({"a": 1, "b": {"c": [1]}, "f": {"g": 5}});
        assert_eq!(difference(&from, &to), json!({"b": {"c": [1], "d": null}, "e": null, "f": {"g": 5}}));
        assert_eq!(difference(&Value::Null, &to), to);
    }

    #[test]
    fn names_and_notes_of_events_are_not_too_long() {
        assert_eq!(event_name("a", 7), "a.0000000000000007");
        let long = format!("{}-.x", "a".repeat(198));
        assert_eq!(event_name(&long, 7), format!("{}.0000000000000007", "a".repeat(198)));
        assert_eq!((shortened("aé", 2), shortened("aé", 3), shortened("", 3)), ("a", "aé", ""));
    }
}
