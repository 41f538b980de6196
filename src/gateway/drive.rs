//! Applies each state of the cluster to the server: endpoints at once, listeners and routes by a reload if they have
//! changed, and then what is to be reported.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info};

use super::cluster::{Cluster, Report};
use super::configuration::{configuration, destination};
use super::plan::{Applied, Endpoints, Plan, Routing};
use super::translate::{Options, translate};
use crate::config::Config;
use crate::server::{Changes, ReloadError, Server};

/// From a change until it is applied, with those that come meanwhile.
const GATHER: Duration = Duration::from_millis(20);
/// Between the end of one application and the next one, and as a multiple of how long that one took: a cluster that never
/// rests takes a fifth of a core at most.
const MIN_PAUSE: Duration = Duration::from_millis(100);
const PAUSE_FACTOR: u32 = 4;
/// Until listeners that cannot be opened are tried again, or a reload that has failed.
const RETRY: Duration = Duration::from_secs(5);

/// Makes a server serve what a cluster says.
pub(crate) struct Drive {
    cluster: Cluster,
    options: Arc<Options>,
    base: Config,
    changes: watch::Receiver<()>,
    /// Whether all objects have been listed.
    is_listed: bool,
    /// When a change is to be applied.
    due: Option<Instant>,
    /// None is before this.
    pause_until: Instant,
    retry: Option<Instant>,
    /// What the server has; `None`: not what is wanted.
    applied: Option<Routing>,
}

impl Drive {
    /// The server runs with the base configuration.
    pub(crate) fn new(cluster: Cluster, options: Options, base: Config) -> Self {
        let changes = cluster.changes();
        let options = Arc::new(options);
        let pause_until = Instant::now();
        Self { cluster, options, base, changes, is_listed: false, due: None, pause_until, retry: None, applied: None }
    }

    /// Waits until something is to be applied. It may be dropped and called again.
    pub(crate) async fn due(&mut self) {
        if !self.is_listed {
            self.cluster.listed().await;
            self.is_listed = true;
            self.changes.mark_unchanged();
            return;
        }
        loop {
            let at = self.due.into_iter().chain(self.retry).min();
            let wait = async {
                match at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    self.due.get_or_insert_with(|| (Instant::now() + GATHER).max(self.pause_until));
                }
                () = wait => {
                    (self.due, self.retry) = (None, None);
                    return;
                }
            }
        }
    }

    /// Replaces the base configuration.
    pub(crate) async fn rebase(&mut self, server: &mut Server, base: Config) -> Result<Changes, ReloadError> {
        let before = std::mem::replace(&mut self.base, base);
        let applied = self.applied.take();
        let result = if self.is_listed {
            self.apply_plan(server).await
        } else {
            server.reload(self.base.clone()).await.map(Some)
        };
        if result.is_err() {
            (self.base, self.applied) = (before, applied);
        }
        result.map(Option::unwrap_or_default)
    }

    /// Applies the present state of the cluster. A failure is logged, and tried again.
    pub(crate) async fn apply(&mut self, server: &mut Server) {
        let started = Instant::now();
        match self.apply_plan(server).await {
            Ok(Some(Changes { added, changed, removed, unchanged })) => {
                let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                let routes = added + changed + unchanged;
                info!(by = "cluster", routes, added, changed, removed, unchanged, took_ms, "reloaded");
            }
            // Endpoints at most.
            Ok(None) => {}
            Err(reason) => {
                server.counters().reloads.fail(&reason.to_string());
                error!(%reason, "cannot serve what the cluster says; keeping what is served");
                self.retry = Some(Instant::now() + RETRY);
            }
        }
        self.pause_until = Instant::now() + MIN_PAUSE.max(started.elapsed() * PAUSE_FACTOR);
    }

    /// `None`: listeners and routes are as before.
    async fn apply_plan(&mut self, server: &mut Server) -> Result<Option<Changes>, ReloadError> {
        let listeners: Vec<SocketAddr> = self.base.listeners.iter().map(|listener| listener.address).collect();
        let options = Arc::clone(&self.options);
        let plan = self.cluster.read(move |snapshot| translate(snapshot, &options, &listeners)).await;
        let Plan { routing, endpoints, statuses, notes } = plan;
        let addresses =
            |(key, endpoints): (_, &Endpoints)| (destination(key), endpoints.serving.iter().copied().collect());
        server.publish(endpoints.iter().map(addresses));
        let is_new = self.applied.as_ref() != Some(&routing);
        let has_unavailable = !server.unavailable().is_empty();
        let changes = if is_new || has_unavailable {
            Some(server.reload(configuration(&self.base, &routing)).await?)
        } else {
            None
        };
        self.retry = (!server.unavailable().is_empty()).then(|| Instant::now() + RETRY);
        let reason = |address: &SocketAddr| server.unavailable().get(&address.to_string()).map(ToString::to_string);
        let failed = |address: &SocketAddr| Some((*address, reason(address)?));
        let failed = routing.listeners.iter().filter_map(failed).collect();
        self.applied = Some(routing);
        server.set_ready();
        self.cluster.report(Report { statuses, notes, applied: Applied { failed, own_addresses: own_addresses() } });
        Ok(changes.filter(|_| is_new))
    }

    /// Ends what watches the cluster.
    pub(crate) async fn close(self) {
        self.cluster.close().await;
    }
}

/// The addresses of this machine that clients elsewhere can reach; in their absence, the others.
fn own_addresses() -> Vec<IpAddr> {
    let all = if_addrs::get_if_addrs().unwrap_or_default();
    let mut all: Vec<IpAddr> = all.iter().map(if_addrs::Interface::ip).collect();
    all.sort();
    all.dedup();
    let is_link_local = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let reachable = all.iter().copied().filter(|address| !address.is_loopback() && !is_link_local(address));
    let reachable: Vec<IpAddr> = reachable.collect();
    if reachable.is_empty() { all } else { reachable }
}
