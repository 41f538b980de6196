//! One watch: lists objects of a kind in pages, then follows their changes. The list is repeated when the API server no
//! longer knows where the watch was.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::link::{Link, describe, is_unauthorized};
use super::store::Store;
use crate::gateway::api::{Key, Kind, key_of};

/// Between attempts, doubling.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// Without an error for so long, a watch works. Longer than any attempt waits for the one before, and for a connection.
const CALM: Duration = Duration::from_secs(30);
/// Until kinds that the API server does not have are looked for again.
const MISSING_RETRY: Duration = Duration::from_secs(10);
/// Objects per page of a list.
const PAGE: u32 = 500;

/// What one watch is for.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) kind: Kind,
    /// `None`: all, or the kind has none.
    pub(super) namespace: Option<String>,
    /// How long a watch lasts, in seconds.
    pub(super) seconds: u32,
}

/// In order of preference.
fn versions(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::ReferenceGrant => &["v1", "v1beta1"],
        _ => &["v1"],
    }
}

/// The resource of a kind.
pub(super) fn resource(kind: Kind, version: &str) -> ApiResource {
    let (name, group) = (kind.to_string(), kind.group());
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let plural = match kind {
        Kind::GatewayClass => "gatewayclasses",
        Kind::Gateway => "gateways",
        Kind::TlsRoute => "tlsroutes",
        Kind::ReferenceGrant => "referencegrants",
        Kind::Service => "services",
        Kind::EndpointSlice => "endpointslices",
        Kind::Namespace => "namespaces",
        Kind::Ingress => "ingresses",
    };
    ApiResource { group: group.into(), version: version.into(), api_version, kind: name, plural: plural.into() }
}

/// Follows the objects for as long as the process runs. What is known stays known while the API server is away.
pub(super) async fn follow(watched: Watched, link: Arc<Link>, store: Arc<Store>) {
    let known = BTreeSet::new();
    let mut follower = Follower { watched, link, store, known, is_listed: false, retry: FIRST_RETRY, trouble: None };
    let mut version = 0;
    loop {
        let versions = versions(follower.watched.kind);
        let ended = follower.follow(versions[version]).await;
        if ended == Ended::Missing {
            version = (version + 1) % versions.len();
            if version == 0 {
                follower.has_nothing();
                sleep(jittered(MISSING_RETRY)).await;
            }
        }
    }
}

/// The objects, read once; `None`: the API server does not have this kind.
pub(super) async fn list(watched: &Watched, link: &Link) -> watcher::Result<Option<Vec<Value>>> {
    for version in versions(watched.kind) {
        match first_list(watched, version, link).await {
            Err(error) if is_missing(&error) => {}
            listed => return listed.map(Some),
        }
    }
    Ok(None)
}

/// All pages of the list that a watch begins with.
async fn first_list(watched: &Watched, version: &str, link: &Link) -> watcher::Result<Vec<Value>> {
    let mut events = pin!(events(watched, version, link));
    let mut list = Vec::new();
    while let Some(event) = events.next().await {
        match event? {
            Event::Init => list.clear(),
            Event::InitApply(object) => list.push(object),
            Event::InitDone | Event::Apply(_) | Event::Delete(_) => break,
        }
    }
    Ok(list)
}

/// Why a watch is begun anew.
#[derive(PartialEq, Eq)]
enum Ended {
    /// The API server does not have this kind.
    Missing,
    /// With new credentials.
    Renewed,
}

struct Follower {
    watched: Watched,
    link: Arc<Link>,
    store: Arc<Store>,
    /// The objects that it has found.
    known: BTreeSet<Key>,
    is_listed: bool,
    /// Until the next attempt, if this one fails.
    retry: Duration,
    /// What was logged last.
    trouble: Option<Trouble>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Missing,
    Failing,
}

impl Follower {
    async fn follow(&mut self, version: &str) -> Ended {
        let mut events = pin!(events(&self.watched, version, &self.link));
        let mut list = Vec::new();
        let mut begun = Instant::now();
        loop {
            let Ok(event) = timeout(CALM, events.next()).await else {
                // A watch that goes on where it was says nothing until something changes.
                if self.is_listed {
                    self.has_recovered();
                }
                continue;
            };
            let Some(event) = event else { return Ended::Renewed };
            match event {
                Ok(Event::Init) => list.clear(),
                Ok(Event::InitApply(object)) => list.push(object),
                Ok(Event::InitDone) => {
                    self.known = self.store.replace(self.watched.kind, &self.known, std::mem::take(&mut list));
                    self.has_listed();
                }
                Ok(Event::Apply(object)) => {
                    self.known.insert(key_of(&object));
                    self.store.apply(self.watched.kind, object);
                    self.has_listed();
                }
                Ok(Event::Delete(object)) => {
                    let key = key_of(&object);
                    self.known.remove(&key);
                    self.store.delete(self.watched.kind, &key);
                }
                Err(error) => {
                    if is_missing(&error) {
                        return Ended::Missing;
                    }
                    if has_expired(&error) {
                        debug!(kind = %self.watched.kind, "watch has expired; listing again");
                        sleep(jittered(FIRST_RETRY)).await;
                        continue;
                    }
                    self.is_failing(&error);
                    let is_unauthorized = cause(&error).is_some_and(is_unauthorized);
                    if is_unauthorized {
                        self.link.renew(begun).await;
                    }
                    sleep(jittered(self.retry)).await;
                    self.retry = (self.retry * 2).min(LAST_RETRY);
                    if is_unauthorized {
                        return Ended::Renewed;
                    }
                }
            }
            begun = Instant::now();
        }
    }

    fn has_listed(&mut self) {
        if !std::mem::replace(&mut self.is_listed, true) {
            self.store.listed_first();
        }
        self.has_recovered();
    }

    fn has_recovered(&mut self) {
        self.retry = FIRST_RETRY;
        if self.trouble.take().is_some() {
            info!(kind = %self.watched.kind, namespace = self.watched.namespace, "watching again");
        }
    }

    /// The cluster does not have the kind, and so no object of it.
    fn has_nothing(&mut self) {
        let kind = self.watched.kind;
        if self.trouble != Some(Trouble::Missing) {
            let group = kind.group();
            warn!(%kind, group, "the cluster does not have this kind; install the standard channel of Gateway API");
        }
        self.known = self.store.replace(kind, &self.known, Vec::new());
        if !std::mem::replace(&mut self.is_listed, true) {
            self.store.listed_first();
        }
        self.trouble = Some(Trouble::Missing);
    }

    fn is_failing(&mut self, error: &watcher::Error) {
        if self.trouble != Some(Trouble::Failing) {
            let (kind, reason) = (self.watched.kind, describe(error));
            warn!(%kind, namespace = self.watched.namespace, reason, "cannot watch; what is known stays in use");
        }
        self.trouble = Some(Trouble::Failing);
    }
}

fn events<'s>(watched: &Watched, version: &str, link: &Link) -> BoxStream<'s, watcher::Result<Event<Value>>> {
    let resource = resource(watched.kind, version);
    let config = watcher::Config::default().timeout(watched.seconds).page_size(PAGE);
    let client = link.client();
    if watched.kind == Kind::Namespace {
        // Only metadata is asked for.
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &resource);
        return values(watched.kind, watcher(api, config)).boxed();
    }
    let api: Api<DynamicObject> = match &watched.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    values(watched.kind, watcher(api, config)).boxed()
}

fn values<K: Serialize + Debug>(
    kind: Kind,
    events: impl stream::Stream<Item = watcher::Result<Event<K>>>,
) -> impl stream::Stream<Item = watcher::Result<Event<Value>>> {
    // Objects were JSON before.
    let value = move |object: K| {
        let mut value = serde_json::to_value(object).unwrap_or_default();
        // Only of an Ingress is it of interest who has set what.
        if kind != Kind::Ingress
            && let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.remove("managedFields");
        }
        value
    };
    events.map(move |event| {
        event.map(|event| match event {
            Event::Init => Event::Init,
            Event::InitApply(object) => Event::InitApply(value(object)),
            Event::InitDone => Event::InitDone,
            Event::Apply(object) => Event::Apply(value(object)),
            Event::Delete(object) => Event::Delete(value(object)),
        })
    })
}

pub(super) fn cause(error: &watcher::Error) -> Option<&kube::Error> {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Some(error),
        watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => None,
    }
}

fn is_missing(error: &watcher::Error) -> bool {
    matches!(cause(error), Some(kube::Error::Api(status)) if status.code == 404)
}

/// Whether the place of the watch, or of the list, is too old.
fn has_expired(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchError(status) => status.code == 410,
        _ => matches!(cause(error), Some(kube::Error::Api(status)) if status.code == 410),
    }
}

/// Varies a pause, so that replicas do not ask at the same moment.
pub(super) fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + 0.5 * fastrand::f64())
}
