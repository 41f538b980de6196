//! The cluster: watches objects, or reads them once, and writes status and Events. The only room that knows the client of
//! Kubernetes.

mod follow;
mod lease;
mod link;
mod read;
mod report;
mod store;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use strum::IntoEnumIterator;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};

use self::follow::Watched;
use self::lease::Candidate;
pub(crate) use self::link::ConnectError;
use self::link::{Link, Way};
pub(crate) use self::read::{Reading, read};
pub(crate) use self::report::Report;
use self::report::Reporter;
use self::store::Store;
use super::api::Kind;
use super::snapshot::Snapshot;

/// How to reach the cluster, and what to watch there.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// `None`: that of the Pod.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; `None`: its current one.
    pub(crate) context: Option<String>,
    pub(crate) controller: String,
    /// Only these; empty: all.
    pub(crate) namespaces: Vec<String>,
    /// Services there are watched, too.
    pub(crate) publish_namespace: Option<String>,
    /// `None`: Ingress objects are not watched.
    pub(crate) ingress_class: Option<String>,
    pub(crate) writes_status: bool,
    /// How long one watch lasts. A connection that is silent for longer counts as broken.
    pub(crate) watch_seconds: u32,
}

impl Access {
    fn way(&self, silence: Duration) -> Way {
        Way { kubeconfig: self.kubeconfig.clone(), context: self.context.clone(), silence }
    }
}

/// A cluster that is watched.
pub(crate) struct Cluster {
    store: Arc<Store>,
    wanted: watch::Sender<Option<Arc<Report>>>,
    watches: Vec<JoinHandle<()>>,
    /// What holds the Lease and reports.
    reporting: Vec<JoinHandle<()>>,
}

impl Cluster {
    /// Starts to watch. Fails if it is not known how to reach the API server, not if that is away. Must be called within a
    /// tokio runtime.
    pub(crate) async fn watch(access: Access) -> Result<Self, ConnectError> {
        let silence = Duration::from_secs(u64::from(access.watch_seconds) + 10);
        let link = Link::open(access.way(silence)).await?;
        let all = watched(&access);
        let store = Arc::new(Store::new(all.len()));
        let follow = |watched| tokio::spawn(follow::follow(watched, Arc::clone(&link), Arc::clone(&store)));
        let watches = all.into_iter().map(follow).collect();
        let (wanted, reports) = watch::channel(None);
        let mut reporting = Vec::new();
        if access.writes_status {
            let (held, is_held) = watch::channel(false);
            let identity = identity();
            let candidate = Candidate {
                link: Arc::clone(&link),
                namespace: link.namespace(),
                name: access.controller.replace(|c: char| !(c.is_ascii_alphanumeric() || c == '.'), "-"),
                identity: identity.clone(),
            };
            let Access { controller, ingress_class, .. } = access;
            let reporter = Reporter { link, store: Arc::clone(&store), controller, ingress_class, identity };
            reporting.push(tokio::spawn(Arc::new(candidate).run(held)));
            reporting.push(tokio::spawn(reporter.run(reports, is_held)));
        }
        Ok(Self { store, wanted, watches, reporting })
    }

    /// Waits until all objects have been listed once.
    pub(crate) async fn listed(&self) {
        self.store.all_listed().await;
    }

    /// Notified when the snapshot has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.store.changes()
    }

    /// What `read` makes of the snapshot, which may take a while.
    pub(crate) async fn read<T: Send + 'static>(&self, read: impl FnOnce(&Snapshot) -> T + Send + 'static) -> T {
        let snapshot = self.store.snapshot();
        match spawn_blocking(move || read(&snapshot)).await {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Reports this from now on.
    pub(crate) fn report(&self, report: Report) {
        let is_new = |wanted: &Option<Arc<Report>>| wanted.as_deref() != Some(&report);
        if is_new(&self.wanted.borrow()) {
            self.wanted.send_replace(Some(Arc::new(report)));
        }
    }

    /// Ends all watches, and releases the Lease.
    pub(crate) async fn close(self) {
        let Self { store: _, wanted, watches, reporting } = self;
        for watch in watches {
            watch.abort();
        }
        drop(wanted);
        for task in reporting {
            // A panic was already logged.
            let _ = task.await;
        }
    }
}

fn watched(access: &Access) -> Vec<Watched> {
    let mut watched = Vec::new();
    for kind in Kind::iter().filter(|kind| *kind != Kind::Ingress || access.ingress_class.is_some()) {
        let mut namespaces: Vec<Option<String>> = match kind {
            Kind::GatewayClass | Kind::Namespace => vec![None],
            _ if access.namespaces.is_empty() => vec![None],
            _ => access.namespaces.iter().cloned().map(Some).collect(),
        };
        if kind == Kind::Service
            && let Some(publish) = access.publish_namespace.clone().map(Some)
            && namespaces.iter().all(|namespace| namespace.is_some() && *namespace != publish)
        {
            namespaces.push(publish);
        }
        let seconds = access.watch_seconds;
        watched.extend(namespaces.into_iter().map(|namespace| Watched { kind, namespace, seconds }));
    }
    watched
}

/// Unique among replicas, also on one machine.
fn identity() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}-{:08x}", fastrand::u32(..))
}
