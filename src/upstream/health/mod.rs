//! Looks after one endpoint: asks it whether it is ready, lets its connections go when it is gone.

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
pub(crate) use self::probe::{Answer, ask_once, read_token, request};
pub(crate) use self::state::HealthState;
pub(crate) use self::state::{ProbeResult, State, Thresholds};
pub(crate) use self::tls::{Handshake, TlsClient, said};

use super::endpoint::Endpoint;
use super::jittered;
use super::pool::Pool;
use crate::relay::PROBE_TIME;

/// How an endpoint is asked whether it is ready. Without `tls`: whether it can be connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HealthCheck {
    /// From one to the next, give or take a tenth.
    pub(crate) interval: Duration,
    /// For one, from connecting to the answer.
    pub(crate) timeout: Duration,
    /// How many in a row change the state.
    pub(crate) thresholds: Thresholds,
    /// A TLS handshake.
    pub(crate) tls: Option<TlsCheck>,
    /// A request over that TLS.
    pub(crate) http: Option<HttpCheck>,
}

/// Whether the other end of TLS is who it should be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TlsCheck {
    /// The certificates that are trusted; `None`: all, nothing is verified.
    pub(crate) ca_file: Option<CaFile>,
    /// The name that the certificate must carry, too; `None`: any.
    pub(crate) verified_name: Option<ServerName<'static>>,
    /// The name that is asked for (SNI).
    pub(crate) asked_name: Option<ServerName<'static>>,
    /// Certificate chain and key that we show, both PEM.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HttpCheck {
    /// `/readyz`
    pub(crate) path: hyper::Uri,
    /// A bearer token.
    pub(crate) token_file: Option<PathBuf>,
    /// What counts as ready.
    pub(crate) expect: Vec<RangeInclusive<u16>>,
    /// Whether 401 and 403 mean that it is alive, which is all that can be known then.
    pub(crate) unauthorized_is_alive: bool,
}

/// How API servers say that they are ready.
pub(crate) const EXPECTED: RangeInclusive<u16> = 200..=200;

/// Checks at a time, of all routes: each has a descriptor, and the process has put these aside.
pub(crate) const MAX_CHECKS: usize = 64;
/// And of one route.
pub(super) const MAX_CHECKS_OF_A_POOL: usize = 16;
static CHECKS: Semaphore = Semaphore::const_new(MAX_CHECKS);

/// An endpoint that says that it is not ready is asked again so soon: it is about to shut down.
const SOON: Duration = Duration::from_secs(1);
/// How soon it is seen that a pool no longer fails open.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const NEVER: Duration = Duration::from_secs(366 * 24 * 3600);

/// Runs until it is aborted: when the endpoint has left the pool, or the pool the configuration.
pub(super) async fn monitor(pool: Arc<Pool>, endpoint: Arc<Endpoint>) {
    let check = pool.check();
    let now = Instant::now();
    let first = check.map_or(NEVER, |check| check.interval.min(Duration::from_secs(1)).mul_f64(fastrand::f64()));
    let mut next_check = now + first;
    let mut grace_began = None;
    let mut is_announced = false;
    let mut note = None;
    loop {
        let now = Instant::now();
        let is_unreachable = endpoint.health().is_unreachable();
        // As long as the pool fails open, the grace does not run.
        let is_doomed = is_unreachable && !pool.fails_open();
        grace_began = is_doomed.then(|| grace_began.unwrap_or(now));
        is_announced &= is_doomed;
        let probe_at = |begun: Instant| Some(begun + pool.dead_grace()?.saturating_sub(PROBE_TIME));
        let look_again = if is_unreachable && !is_doomed { LOOK_AGAIN } else { NEVER };
        tokio::select! {
            () = endpoint.changed.notified() => {}
            () = sleep(look_again) => {}
            () = sleep_until(next_check) => {
                let begun = Instant::now();
                if let Some(check) = check {
                    // Boxed: a check is large, and most of the time there is none.
                    Box::pin(ask(&pool, &endpoint, check, &mut note)).await;
                }
                let at_most = if endpoint.health().is_about_to_be_unready() { SOON } else { NEVER };
                let until_next = check.map_or(NEVER, |check| jittered(check.interval.min(at_most)));
                next_check = (begun + until_next).max(Instant::now());
            }
            () = sleep_until(grace_began.and_then(probe_at).unwrap_or(now + NEVER)) => {
                let Some(since) = grace_began.filter(|_| endpoint.health().is_unreachable() && !pool.fails_open()) else {
                    continue;
                };
                let connections = pool.probe_connections(&endpoint, since);
                if connections > 0 && !std::mem::replace(&mut is_announced, true) {
                    warn!(
                        route = pool.route(), endpoint = %endpoint.address, connections, cause = &*endpoint.cause(),
                        "connections of a dead endpoint are probed; those that it does not acknowledge are closed"
                    );
                }
                // Again after another grace: in between, others may have lost their peer.
                grace_began = Some(Instant::now() + PROBE_TIME);
            }
        }
    }
}

async fn ask(pool: &Pool, endpoint: &Endpoint, check: &HealthCheck, note: &mut Option<String>) {
    // One pool that hangs cannot take the places of all.
    let Ok(_own) = pool.checks.acquire().await else { return };
    let Ok(_permit) = CHECKS.acquire().await else { return };
    let begun = Instant::now();
    let header = pool.setup.settings.proxy_protocol;
    let Answer { result, certificate, note: new_note } = ask_once(endpoint.address, check, header).await;
    if result.is_ok() {
        endpoint.was_checked(begun.elapsed());
    }
    if let Some(certificate) = certificate {
        pool.shown(endpoint, &certificate);
    }
    let new_note = match &result {
        Ok(_) => new_note.map(str::to_owned),
        Err(reason) => Some(format!("not made: {reason}")),
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

/// Whether a file has certificates that can be trusted: what is wrong with it, otherwise.
pub(crate) fn read_roots(path: &Path) -> Result<(), String> {
    Authorities::read(&CaFile::File(path.to_owned())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g13_looking_after_an_endpoint_is_small() {
        fn size<F>(_: impl Fn(Arc<Pool>, Arc<Endpoint>) -> F) -> usize {
            size_of::<F>()
        }
        assert!(size(monitor) <= 640, "{}", size(monitor));
    }
}
