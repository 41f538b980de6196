//! The health monitor of one endpoint: runs checks, and closes connections when the endpoint is unreachable.

mod authorities;
mod probe;
mod state;
mod tls;
mod verifier;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

pub(crate) use self::authorities::{Authorities, CaFile};
pub(crate) use self::probe::{CheckReport, check_once, read_token, request};
pub(crate) use self::state::HealthState;
pub(crate) use self::state::{EndpointState, ProbeResult, Thresholds};
pub(crate) use self::tls::{Handshake, TlsClient, tls_error_message};

use super::endpoint::Endpoint;
use super::jittered;
use super::pool::Pool;
use crate::relay::PROBE_TIME;

/// A health check. Without `tls`, it only connects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HealthCheck {
    /// Time between checks, with 10% jitter.
    pub(crate) interval: Duration,
    /// For a whole check.
    pub(crate) timeout: Duration,
    pub(crate) thresholds: Thresholds,
    pub(crate) tls: Option<TlsCheck>,
    /// The request to send over that TLS connection.
    pub(crate) http: Option<HttpCheck>,
}

/// The TLS part of a health check.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TlsCheck {
    /// The trusted certificates; `None`: nothing is verified.
    pub(crate) ca_file: Option<CaFile>,
    /// The name that the certificate must be valid for; `None`: any.
    pub(crate) verified_name: Option<ServerName<'static>>,
    /// The name to send as SNI.
    pub(crate) asked_name: Option<ServerName<'static>>,
    /// Client certificate chain and key, both PEM files.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// The HTTP part of a health check.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HttpCheck {
    /// Such as `/readyz`.
    pub(crate) path: hyper::Uri,
    /// File with a bearer token.
    pub(crate) token_file: Option<PathBuf>,
    /// Statuses that count as ready.
    pub(crate) expect: Vec<RangeInclusive<u16>>,
    /// Whether 401 and 403 count as ready: the server is alive, and no more can be known.
    pub(crate) unauthorized_is_alive: bool,
}

/// The status of a ready API server.
pub(crate) const EXPECTED: RangeInclusive<u16> = 200..=200;

/// Maximum number of concurrent checks of all routes. Their file descriptors are reserved.
pub(crate) const MAX_CHECKS: usize = 64;
/// Maximum number of concurrent checks of one route.
pub(super) const MAX_CHECKS_OF_A_POOL: usize = 16;
static CHECKS: Semaphore = Semaphore::const_new(MAX_CHECKS);

/// When to check again an endpoint that has reported itself as not ready: it is probably shutting down.
const UNREADY_INTERVAL: Duration = Duration::from_secs(1);
/// How often to check whether the pool still fails open.
const FAIL_OPEN_INTERVAL: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::from_secs(366 * 24 * 3600);

/// Runs until it is aborted, when the endpoint or the pool is removed.
pub(super) async fn monitor(pool: Arc<Pool>, endpoint: Arc<Endpoint>) {
    let check = pool.check();
    let now = Instant::now();
    let first = check.map_or(NEVER, |check| check.interval.min(Duration::from_secs(1)).mul_f64(fastrand::f64()));
    let mut next_check = now + first;
    let mut grace_began = None;
    let mut is_logged = false;
    let mut note = None;
    loop {
        let now = Instant::now();
        let is_unreachable = endpoint.health().is_unreachable();
        // The grace period does not run while the pool fails open.
        let is_doomed = is_unreachable && !pool.fails_open();
        grace_began = is_doomed.then(|| grace_began.unwrap_or(now));
        is_logged &= is_doomed;
        let probe_at = |started: Instant| Some(started + pool.dead_grace()?.saturating_sub(PROBE_TIME));
        let fail_open_check = if is_unreachable && !is_doomed { FAIL_OPEN_INTERVAL } else { NEVER };
        tokio::select! {
            () = endpoint.changed.notified() => {}
            () = sleep(fail_open_check) => {}
            () = sleep_until(next_check) => {
                let started = Instant::now();
                if let Some(check) = check {
                    // Boxed: a check is large, and usually none is running.
                    Box::pin(check_endpoint(&pool, &endpoint, check, &mut note)).await;
                }
                let at_most = if endpoint.health().is_about_to_be_unready() { UNREADY_INTERVAL } else { NEVER };
                let until_next = check.map_or(NEVER, |check| jittered(check.interval.min(at_most)));
                next_check = (started + until_next).max(Instant::now());
            }
            () = sleep_until(grace_began.and_then(probe_at).unwrap_or(now + NEVER)) => {
                let Some(since) = grace_began.filter(|_| endpoint.health().is_unreachable() && !pool.fails_open()) else {
                    continue;
                };
                let connections = pool.probe_connections(&endpoint, since);
                if connections > 0 && !std::mem::replace(&mut is_logged, true) {
                    warn!(
                        route = pool.route(), endpoint = %endpoint.address, connections, cause = &*endpoint.cause(),
                        "probing connections to a dead endpoint; those without a response are closed"
                    );
                }
                // Probe again after another grace period: other connections may lose their peer meanwhile.
                grace_began = Some(Instant::now() + PROBE_TIME);
            }
        }
    }
}

async fn check_endpoint(pool: &Pool, endpoint: &Endpoint, check: &HealthCheck, note: &mut Option<String>) {
    // So that one pool with hanging checks cannot use up all permits.
    let Ok(_pool_permit) = pool.checks.acquire().await else { return };
    let Ok(_permit) = CHECKS.acquire().await else { return };
    let started = Instant::now();
    let header = pool.setup.settings.proxy_protocol;
    let CheckReport { result, certificate, note: new_note } = check_once(endpoint.address, check, header).await;
    if result.is_ok() {
        endpoint.record_check(started.elapsed());
    }
    if let Some(certificate) = certificate {
        pool.record_certificate(endpoint, &certificate);
    }
    let new_note = match &result {
        Ok(_) => new_note.map(str::to_owned),
        Err(reason) => Some(format!("check not possible: {reason}")),
    };
    if *note != new_note {
        if let Some(note) = &new_note {
            warn!(route = pool.route(), endpoint = %endpoint.address, note, "health check");
        }
        *note = new_note;
    }
    if let Ok(result) = result {
        pool.report(endpoint, &result);
    }
}

/// Checks that a file contains certificates. The error says what is wrong with it.
pub(crate) fn read_roots(path: &Path) -> Result<(), String> {
    Authorities::read(&CaFile::File(path.to_owned())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g13_a_health_monitor_is_small() {
        fn size<F>(_: impl Fn(Arc<Pool>, Arc<Endpoint>) -> F) -> usize {
            size_of::<F>()
        }
        assert!(size(monitor) <= 640, "{}", size(monitor));
    }
}
