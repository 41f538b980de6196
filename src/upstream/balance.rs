//! Load balancing: which endpoint to try next.

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::health::EndpointState;

/// The load balancing algorithm. None is sticky: when an API server makes a client reconnect, the client may get another
/// endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Balance {
    /// The endpoint with the fewest connections; endpoints with equally many take turns.
    #[default]
    LeastConnections,
    /// Each endpoint in turn.
    RoundRobin,
    /// The less loaded of two random endpoints (power of two choices, P2C).
    Random,
}

/// Picks one of `untried`. Endpoints in the best state come first; among those, the ones with another address family than
/// the endpoint that just failed; among those, `balance` decides. `turn` counts connections.
pub(super) fn pick(
    endpoints: &[Arc<Endpoint>],
    untried: &[usize],
    failed_is_ipv4: Option<bool>,
    balance: Balance,
    turn: usize,
    slow_start: Duration,
) -> Option<usize> {
    let candidates = candidates(endpoints, untried, failed_is_ipv4, slow_start);
    let first = turn.checked_rem(candidates.len())?;
    let picked = match balance {
        Balance::LeastConnections => least_connections(&candidates, first),
        Balance::RoundRobin => round_robin(&candidates, first),
        Balance::Random => less_loaded(random(&candidates), random(&candidates)),
    };
    Some(picked.index)
}

/// Starts the search at `first`, so that equally loaded endpoints take turns.
fn least_connections(candidates: &[Candidate], first: usize) -> &Candidate {
    let (before, after) = candidates.split_at(first);
    after.iter().chain(before).fold(&candidates[first], less_loaded)
}

/// An endpoint in slow start skips turns, each in favour of a random endpoint, so that no neighbour gets all of them.
fn round_robin(candidates: &[Candidate], first: usize) -> &Candidate {
    let next = &candidates[first];
    if fastrand::f64() < next.weight { next } else { random(candidates) }
}

fn random(candidates: &[Candidate]) -> &Candidate {
    &candidates[fastrand::usize(..candidates.len())]
}

fn less_loaded<'a>(first: &'a Candidate, second: &'a Candidate) -> &'a Candidate {
    if second.load < first.load { second } else { first }
}

/// An endpoint that can be picked. Its state and load are read once, because they change meanwhile.
struct Candidate {
    index: usize,
    /// Less than 1 during slow start.
    weight: f64,
    load: f64,
}

/// The untried endpoints of the best rank.
fn candidates(
    endpoints: &[Arc<Endpoint>],
    untried: &[usize],
    failed_is_ipv4: Option<bool>,
    slow_start: Duration,
) -> Vec<Candidate> {
    let mut best = None;
    let mut candidates = Vec::with_capacity(untried.len());
    for &index in untried {
        let endpoint = &endpoints[index];
        let state = endpoint.state();
        let rank = (state, failed_is_ipv4 == Some(endpoint.address.is_ipv4()));
        if best.is_some_and(|best| rank > best) {
            continue;
        }
        if best != Some(rank) {
            candidates.clear();
            best = Some(rank);
        }
        let weight = if state == EndpointState::Ready { endpoint.weight(slow_start) } else { 1.0 };
        let connections = u32::try_from(endpoint.connections()).unwrap_or(u32::MAX);
        candidates.push(Candidate { index, weight, load: (f64::from(connections) + 1.0) / weight });
    }
    candidates
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::super::endpoint::EndpointSlot;
    use super::super::health::{ProbeResult, Thresholds};
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { rise: 1, fall: 1, unready: 1 };
    const SLOW_START: Duration = Duration::from_secs(30);

    fn endpoints(addresses: &[&str]) -> Vec<Arc<Endpoint>> {
        addresses.iter().map(|address| Arc::new(Endpoint::new(address.parse().unwrap()))).collect()
    }

    fn three() -> Vec<Arc<Endpoint>> {
        endpoints(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"])
    }

    /// How often each endpoint is picked for connections that stay open.
    fn shares(endpoints: &[Arc<Endpoint>], balance: Balance, connections: usize) -> Vec<usize> {
        let mut slots = Vec::new();
        let mut shares = vec![0; endpoints.len()];
        for turn in 0..connections {
            let index = pick(endpoints, &[0, 1, 2], None, balance, turn, SLOW_START).unwrap();
            shares[index] += 1;
            slots.push(EndpointSlot::take(&endpoints[index]));
        }
        shares
    }

    #[tokio::test]
    async fn b20_endpoints_get_equal_shares() {
        assert_eq!(shares(&three(), Balance::LeastConnections, 300), [100; 3]);
        assert_eq!(shares(&three(), Balance::RoundRobin, 300), [100; 3]);
        assert!(shares(&three(), Balance::Random, 300).iter().all(|share| (80..=120).contains(share)));
    }

    #[tokio::test]
    async fn the_turns_of_a_dead_endpoint_are_shared_by_all_others() {
        let endpoints = three();
        endpoints[1].apply_check_result(&ProbeResult::Unreachable(String::new()), THRESHOLDS);
        assert_eq!(shares(&endpoints, Balance::RoundRobin, 300), [150, 0, 150]);
    }

    #[tokio::test]
    async fn endpoints_with_fewer_connections_get_more() {
        let endpoints = three();
        let _slots: Vec<EndpointSlot> = (0..50).map(|_| EndpointSlot::take(&endpoints[1])).collect();
        assert_eq!(shares(&endpoints, Balance::LeastConnections, 100), [50, 0, 50]);
        assert!(shares(&endpoints, Balance::Random, 200)[1] < 60);
    }

    #[tokio::test]
    async fn the_best_state_is_tried_first_and_the_worst_at_last() {
        let endpoints = three();
        endpoints[0].apply_check_result(&ProbeResult::Unreachable(String::new()), THRESHOLDS);
        endpoints[2].apply_check_result(&ProbeResult::Unready(String::new()), THRESHOLDS);
        for balance in [Balance::LeastConnections, Balance::RoundRobin, Balance::Random] {
            let next = |untried: &[usize]| pick(&endpoints, untried, None, balance, 0, SLOW_START);
            assert_eq!(
                [next(&[0, 1, 2]), next(&[0, 2]), next(&[0]), next(&[])],
                [Some(1), Some(2), Some(0), None],
                "{balance:?}"
            );
        }
    }

    #[tokio::test]
    async fn c08_after_a_failure_the_other_family_is_next() {
        let endpoints = endpoints(&["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1", "192.0.2.2:1"]);
        let next = |untried: &[usize], failed| pick(&endpoints, untried, failed, Balance::RoundRobin, 0, SLOW_START);
        assert_eq!(
            [next(&[0, 1, 2, 3], None), next(&[1, 2, 3], Some(false)), next(&[1, 3], Some(true))],
            [Some(0), Some(2), Some(1)]
        );
    }

    /// Some untried endpoint is picked, however states change meanwhile.
    #[test]
    fn b12_an_endpoint_is_picked_while_states_change() {
        let endpoints: Vec<Arc<Endpoint>> =
            (1..=64).map(|port| Arc::new(Endpoint::new(([192, 0, 2, 1], port).into()))).collect();
        let untried: Vec<usize> = (0..endpoints.len()).collect();
        for endpoint in &endpoints[1..] {
            endpoint.apply_check_result(&ProbeResult::Unreachable(String::new()), THRESHOLDS);
        }
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    endpoints[0].apply_check_result(&ProbeResult::Unreachable(String::new()), THRESHOLDS);
                    endpoints[0].apply_check_result(&ProbeResult::Ready, THRESHOLDS);
                }
            });
            let picked = (0..20_000).all(|turn| {
                let balance = [Balance::LeastConnections, Balance::RoundRobin, Balance::Random][turn % 3];
                pick(&endpoints, &untried, None, balance, turn, SLOW_START).is_some()
            });
            is_over.store(true, Relaxed);
            assert!(picked);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_recovered_endpoint_starts_slowly() {
        let endpoints = three();
        endpoints[0].apply_check_result(&ProbeResult::Unreachable(String::new()), THRESHOLDS);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(endpoints[0].weight(SLOW_START) > 0.99, "slow start begins with the recovery");
        endpoints[0].apply_check_result(&ProbeResult::Ready, THRESHOLDS);
        let share = |balance| shares(&endpoints, balance, 300)[0];
        assert!((10..=20).contains(&share(Balance::LeastConnections)));
        assert!((10..=70).contains(&share(Balance::RoundRobin)));
        tokio::time::sleep(SLOW_START / 2).await;
        assert!((55..=65).contains(&share(Balance::LeastConnections)));
        tokio::time::sleep(SLOW_START / 2).await;
        assert_eq!(share(Balance::LeastConnections), 100);
    }
}
