//! What is done about an endpoint that is dead: its connections are probed after a grace, and where no check is configured
//! it is connected to now and then, to learn whether it is back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use super::super::endpoint::Endpoint;
use super::super::jittered;
use super::super::pool::Pool;
use super::super::slots::LastResult;
use super::checks::{SLOTS, connect_only};
use super::probe::probe;
use super::state::{EndpointState, ProbeResult};
use crate::relay::PROBE_TIME;

/// How soon it is seen that the endpoint has become unreachable, which is no change of its state, or that another is ready
/// again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often a dead endpoint is connected to where no check is configured.
const TRIAL_EVERY: Duration = Duration::from_secs(10);
const NEVER: Duration = Duration::from_secs(366 * 24 * 3600);

/// Runs until the endpoint is no longer dead, or it is aborted: when the endpoint has left the pool, or the pool the
/// configuration.
pub(in crate::upstream) async fn watch_dead(pool: Arc<Pool>, endpoint: Arc<Endpoint>) {
    let mut grace_began = None;
    let mut is_announced = false;
    let mut next_trial = Instant::now() + if pool.check().is_none() { jittered(TRIAL_EVERY) } else { NEVER };
    while endpoint.state() == EndpointState::Dead {
        let now = Instant::now();
        // As long as no endpoint is ready, the grace does not run.
        let is_doomed = endpoint.health().is_unreachable() && pool.may_cut();
        grace_began = is_doomed.then(|| grace_began.unwrap_or(now));
        is_announced &= is_doomed;
        let probe_at = |begun: Instant| Some(begun + pool.dead_grace()?.saturating_sub(PROBE_TIME));
        let look_again = if is_doomed { NEVER } else { LOOK_AGAIN };
        tokio::select! {
            () = endpoint.changed.notified() => {}
            () = sleep(look_again) => {}
            () = sleep_until(next_trial) => {
                // Boxed: it is large, and rare.
                Box::pin(try_to_connect(&pool, &endpoint)).await;
                next_trial = Instant::now() + jittered(TRIAL_EVERY);
            }
            () = sleep_until(grace_began.and_then(probe_at).unwrap_or(now + NEVER)) => {
                let Some(since) = grace_began.filter(|_| endpoint.health().is_unreachable() && pool.may_cut()) else {
                    continue;
                };
                let connections = pool.probe_connections(&endpoint, since);
                if connections > 0 && !std::mem::replace(&mut is_announced, true) {
                    warn!(
                        route = pool.route(), endpoint = %endpoint.address, connections, cause = &*endpoint.cause(),
                        "probing connections to a dead endpoint; those without a response are closed"
                    );
                }
                // Again after another grace: in between, others may have lost their peer.
                grace_began = Some(Instant::now() + PROBE_TIME);
            }
        }
    }
}

/// No client has to wait for an endpoint that is still unreachable. If it accepts again, and that was all that was wrong, it
/// is ready; where it had accepted and not answered, the next client finds out whether it answers.
async fn try_to_connect(pool: &Arc<Pool>, endpoint: &Endpoint) {
    let _slot = SLOTS.acquire(LastResult::Failure).await;
    let check = connect_only(TRIAL_EVERY, pool.setup.settings.budget.per_try);
    let answer = probe(endpoint.address, &check, &pool.setup.settings.dial(endpoint.address), None).await;
    if answer.result != Ok(ProbeResult::Ready) {
        return;
    }
    if endpoint.health().is_unreachable() {
        pool.report(endpoint, &ProbeResult::Ready);
    } else {
        endpoint.allow_trial();
    }
}
