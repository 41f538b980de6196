//! Moves connections to endpoints that have returned: closes parked connections of those that have more than their share,
//! so that their clients connect anew. No faster than the configured rate, and not below even shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tracing::info;

use super::endpoint::Endpoint;
use super::health::EndpointState;
use super::pool::{Pool, Tier};
use crate::text::units::Rate;

/// The shortest time between closings; at higher rates, several are closed at once.
const MIN_STEP: Duration = Duration::from_millis(10);

/// How soon to look again when none of the connections is parked.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Tells the rebalancer that an endpoint has returned, was added or resumed.
#[derive(Debug, Default)]
pub(super) struct Returned {
    notify: Notify,
    /// Whether shares may still be uneven because of it.
    is_pending: AtomicBool,
}

impl Returned {
    /// Of a new pool, which goes on with what its predecessor has not finished or was not to do.
    pub(super) fn after(predecessor: Option<&Pool>) -> Self {
        let next = Self::default();
        let is_pending = |pool: &Pool| pool.returned.is_pending() || pool.setup.settings.rebalance.is_none();
        if predecessor.is_some_and(is_pending) {
            next.announce();
        }
        next
    }

    pub(super) fn announce(&self) {
        self.is_pending.store(true, Relaxed);
        self.notify.notify_one();
    }

    pub(super) fn is_pending(&self) -> bool {
        self.is_pending.load(Relaxed)
    }

    async fn wait(&self) {
        self.notify.notified().await;
        self.is_pending.store(true, Relaxed);
    }

    /// Shares are even.
    fn finish(&self) {
        self.is_pending.store(false, Relaxed);
    }
}

/// Rebalances each time endpoints have returned, for as long as the pool is in use.
pub(super) async fn run(pool: Arc<Pool>, rate: Rate) {
    let interval = rate.interval();
    let step = interval.max(MIN_STEP);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 10,000")]
    let most = step.div_duration_f64(interval) as usize;
    loop {
        pool.returned.wait().await;
        let (mut total, mut closed) = (0, 0);
        loop {
            sleep(step).await;
            match imbalance(&pool, &mut total) {
                Imbalance::None => break,
                Imbalance::SlowStart => {}
                Imbalance::Of(endpoint, excess) => {
                    match pool.context.connections.close_parked(endpoint.id, excess.min(most)) {
                        0 => sleep(RETRY_INTERVAL).await,
                        some => closed += some,
                    }
                }
            }
        }
        pool.returned.finish();
        if closed > 0 {
            info!(
                route = pool.route(),
                closed, "rebalanced: parked connections were closed, for endpoints that have returned"
            );
        }
    }
}

enum Imbalance {
    None,
    /// An endpoint has not its full share of new connections yet.
    SlowStart,
    /// This one has so many connections more than its share.
    Of(Arc<Endpoint>, usize),
}

/// The endpoint with the most connections above its share. `total` is the highest number of connections so far: what was
/// closed and has not come back yet must not make the shares smaller.
fn imbalance(pool: &Pool, total: &mut usize) -> Imbalance {
    let endpoints = pool.in_service();
    let tier = pool.tier();
    let serves = |endpoint: &&Arc<Endpoint>| {
        endpoint.state() == EndpointState::Ready && endpoint.share().is_backup == (tier == Tier::Backup)
    };
    let serving: Vec<&Arc<Endpoint>> = endpoints.iter().filter(serves).collect();
    if tier == Tier::All || serving.len() < 2 {
        return Imbalance::None;
    }
    if serving.iter().any(|endpoint| endpoint.ramp(pool.setup.settings.slow_start) < 1.0) {
        return Imbalance::SlowStart;
    }
    *total = serving.iter().map(|endpoint| endpoint.connections()).sum::<usize>().max(*total);
    let weights: usize = serving.iter().map(|endpoint| usize::from(endpoint.share().weight)).sum();
    let excess = |endpoint: &Arc<Endpoint>| {
        let share = (*total * usize::from(endpoint.share().weight)).div_ceil(weights);
        endpoint.connections().saturating_sub(share)
    };
    match serving.into_iter().max_by_key(|endpoint| excess(endpoint)) {
        Some(endpoint) if excess(endpoint) > 0 => Imbalance::Of(Arc::clone(endpoint), excess(endpoint)),
        _ => Imbalance::None,
    }
}
