//! Which replica writes status: the holder of a Lease, as in client-go's leader election. Replicas serve without it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::follow::jittered;
use super::link::{Link, describe, is_unauthorized};

/// How long a Lease lasts that is not renewed.
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew it for so long stops to write, before another one takes it.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between renewals, and between attempts to acquire it.
const INTERVAL: Duration = Duration::from_secs(2);
/// For one request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A replica's side of the Lease.
pub(super) struct Candidate {
    pub(super) link: Arc<Link>,
    pub(super) namespace: String,
    pub(super) name: String,
    /// Name of this replica.
    pub(super) identity: String,
}

/// The Lease of another holder, as first seen.
struct Observed {
    version: Option<String>,
    since: Instant,
}

impl Candidate {
    /// Acquires and renews the Lease, and reports whether this replica has it, until that is of no interest any more.
    pub(super) async fn run(self: Arc<Self>, is_held: watch::Sender<bool>) {
        let mut own: Option<Lease> = None;
        let mut other: Option<Observed> = None;
        let mut renewed = Instant::now();
        let mut has_failed = false;
        while !is_held.is_closed() {
            let begun = Instant::now();
            let attempt = timeout(TIMEOUT, self.attempt(own.take(), &mut other)).await;
            match attempt {
                Ok(Ok(Some(lease))) => {
                    (own, renewed) = (Some(lease), begun);
                    has_failed = false;
                    if !is_held.send_replace(true) {
                        let (namespace, name) = (&*self.namespace, &*self.name);
                        info!(
                            namespace,
                            name,
                            identity = self.identity,
                            "holding the Lease: this replica writes status"
                        );
                    }
                }
                Ok(Ok(None)) => {
                    has_failed = false;
                    self.lost(&is_held, "another replica has it");
                }
                failed => {
                    let reason = match failed {
                        Ok(Err(error)) => {
                            if is_unauthorized(&error) {
                                self.link.renew(begun).await;
                            }
                            describe(&error)
                        }
                        _ => format!("no answer within {} s", TIMEOUT.as_secs()),
                    };
                    if !std::mem::replace(&mut has_failed, true) {
                        warn!(
                            namespace = self.namespace,
                            name = self.name,
                            reason,
                            "cannot acquire or renew the Lease"
                        );
                    }
                    if renewed.elapsed() >= DEADLINE {
                        self.lost(&is_held, "it could not be renewed in time");
                    }
                }
            }
            tokio::select! {
                () = sleep(jittered(INTERVAL)) => {}
                () = is_held.closed() => {}
            }
        }
        if let Some(lease) = own {
            // So that another replica need not wait until it expires.
            let _ = timeout(TIMEOUT, self.replace(lease, "")).await;
        }
    }

    fn lost(&self, is_held: &watch::Sender<bool>, reason: &str) {
        if is_held.send_replace(false) {
            warn!(
                namespace = self.namespace,
                name = self.name,
                reason,
                "lost the Lease; this replica serves, and writes no status"
            );
        }
    }

    /// Renews the Lease, or acquires it. `None`: another replica has it.
    async fn attempt(&self, own: Option<Lease>, other: &mut Option<Observed>) -> kube::Result<Option<Lease>> {
        if let Some(lease) = own {
            match self.replace(lease, &self.identity).await {
                Err(error) if is_conflict(&error) => {}
                renewed => return renewed.map(Some),
            }
        }
        let Some(lease) = self.api().get_opt(&self.name).await? else {
            return match self.api().create(&PostParams::default(), &self.new_lease()).await {
                Err(error) if is_conflict(&error) => Ok(None),
                created => created.map(Some),
            };
        };
        if !self.is_free(&lease, other) {
            return Ok(None);
        }
        match self.replace(lease, &self.identity).await {
            Err(error) if is_conflict(&error) => Ok(None),
            acquired => acquired.map(Some),
        }
    }

    /// Whether nobody else holds the Lease. The clocks of other machines may be wrong: it has expired when this replica has
    /// seen no renewal for as long as it lasts.
    fn is_free(&self, lease: &Lease, other: &mut Option<Observed>) -> bool {
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let version = lease.metadata.resource_version.clone();
        let observed = match other.take() {
            Some(observed) if observed.version == version => observed,
            _ => Observed { version, since: Instant::now() },
        };
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = seconds.map_or(DURATION, Duration::from_secs);
        let has_expired = observed.since.elapsed() >= lasts;
        *other = Some(observed);
        has_expired
    }

    /// Fails with a conflict if somebody else has changed it meanwhile.
    async fn replace(&self, mut lease: Lease, holder: &str) -> kube::Result<Lease> {
        let now = MicroTime(Timestamp::now());
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(holder) {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + i32::from(!holder.is_empty()));
        }
        spec.holder_identity = Some(holder.into());
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        spec.renew_time = Some(now);
        self.api().replace(&self.name, &PostParams::default(), &lease).await
    }

    fn new_lease(&self) -> Lease {
        let now = MicroTime(Timestamp::now());
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(0),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    fn api(&self) -> Api<Lease> {
        Api::namespaced(self.link.client(), &self.namespace)
    }
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
