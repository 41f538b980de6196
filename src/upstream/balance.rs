//! Which endpoint is tried next.

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::health::State;

/// How endpoints share new connections. None remembers a client: one that reconnects, because its API server asked it
/// to, can land elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Balance {
    /// Where there are the fewest; equals take turns.
    #[default]
    LeastConnections,
    /// In turn.
    RoundRobin,
    /// The one with fewer connections of two chosen at random.
    Random,
}

/// The next of `untried` to be tried: the best state first, among those another address family than the one that has just
/// failed, among those by `balance`.
pub(super) fn pick(
    endpoints: &[Arc<Endpoint>],
    untried: &[usize],
    failed_is_ipv4: Option<bool>,
    balance: Balance,
    turn: usize,
    slow_start: Duration,
) -> Option<usize> {
    let candidates = candidates(endpoints, untried, failed_is_ipv4, slow_start);
    let count = candidates.len();
    let first = turn.checked_rem(count)?;
    let any = || &candidates[fastrand::usize(..count)];
    let chosen = match balance {
        Balance::LeastConnections => {
            let in_turn = candidates[first..].iter().chain(&candidates[..first]);
            in_turn.reduce(lighter)?
        }
        // What starts slowly leaves its turn to any, not always to its neighbour.
        Balance::RoundRobin => {
            Some(&candidates[first]).filter(|next| fastrand::f64() < next.weight).unwrap_or_else(any)
        }
        Balance::Random => lighter(any(), any()),
    };
    Some(chosen.number)
}

/// An endpoint of the best rank. State and load change while one is chosen: each is read once.
struct Candidate {
    number: usize,
    weight: f64,
    load: f64,
}

fn candidates(
    endpoints: &[Arc<Endpoint>],
    untried: &[usize],
    failed_is_ipv4: Option<bool>,
    slow_start: Duration,
) -> Vec<Candidate> {
    let mut best = None;
    let mut candidates = Vec::with_capacity(untried.len());
    for &number in untried {
        let endpoint = &endpoints[number];
        let state = endpoint.state();
        let rank = (state, failed_is_ipv4 == Some(endpoint.address.is_ipv4()));
        if best.is_some_and(|best| rank > best) {
            continue;
        }
        if best != Some(rank) {
            candidates.clear();
            best = Some(rank);
        }
        let weight = if state == State::Ready { endpoint.weight(slow_start) } else { 1.0 };
        let connections = u32::try_from(endpoint.connections()).unwrap_or(u32::MAX);
        candidates.push(Candidate { number, weight, load: (f64::from(connections) + 1.0) / weight });
    }
    candidates
}

fn lighter<'a>(first: &'a Candidate, second: &'a Candidate) -> &'a Candidate {
    if second.load < first.load { second } else { first }
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

    /// How often each is picked for connections that stay.
    fn shares(endpoints: &[Arc<Endpoint>], balance: Balance, connections: usize) -> Vec<usize> {
        let mut held = Vec::new();
        let mut shares = vec![0; endpoints.len()];
        for turn in 0..connections {
            let number = pick(endpoints, &[0, 1, 2], None, balance, turn, SLOW_START).unwrap();
            shares[number] += 1;
            held.push(EndpointSlot::take(&endpoints[number]));
        }
        shares
    }

    #[tokio::test]
    async fn b20_every_connection_can_land_anywhere() {
        assert_eq!(shares(&three(), Balance::LeastConnections, 300), [100; 3]);
        assert_eq!(shares(&three(), Balance::RoundRobin, 300), [100; 3]);
        assert!(shares(&three(), Balance::Random, 300).iter().all(|share| (80..=120).contains(share)));
    }

    #[tokio::test]
    async fn who_is_dead_leaves_its_turns_to_all_others() {
        let endpoints = three();
        endpoints[1].learn(&ProbeResult::Unreachable(String::new()), THRESHOLDS);
        assert_eq!(shares(&endpoints, Balance::RoundRobin, 300), [150, 0, 150]);
    }

    #[tokio::test]
    async fn few_connections_attract_more() {
        let endpoints = three();
        let _held: Vec<EndpointSlot> = (0..50).map(|_| EndpointSlot::take(&endpoints[1])).collect();
        assert_eq!(shares(&endpoints, Balance::LeastConnections, 100), [50, 0, 50]);
        assert!(shares(&endpoints, Balance::Random, 200)[1] < 60);
    }

    #[tokio::test]
    async fn the_best_state_is_tried_first_and_the_worst_at_last() {
        let endpoints = three();
        endpoints[0].learn(&ProbeResult::Unreachable(String::new()), THRESHOLDS);
        endpoints[2].learn(&ProbeResult::Unready(String::new()), THRESHOLDS);
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

    /// Whatever states change to meanwhile, an endpoint that was not tried is picked.
    #[test]
    fn b12_states_that_change_meanwhile_hide_no_endpoint() {
        let endpoints: Vec<Arc<Endpoint>> =
            (1..=64).map(|port| Arc::new(Endpoint::new(([192, 0, 2, 1], port).into()))).collect();
        let untried: Vec<usize> = (0..endpoints.len()).collect();
        for endpoint in &endpoints[1..] {
            endpoint.learn(&ProbeResult::Unreachable(String::new()), THRESHOLDS);
        }
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    endpoints[0].learn(&ProbeResult::Unreachable(String::new()), THRESHOLDS);
                    endpoints[0].learn(&ProbeResult::Ready, THRESHOLDS);
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
    async fn what_has_recovered_starts_slowly() {
        let endpoints = three();
        endpoints[0].learn(&ProbeResult::Unreachable(String::new()), THRESHOLDS);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(endpoints[0].weight(SLOW_START) > 0.99, "as long as it has not recovered");
        endpoints[0].learn(&ProbeResult::Ready, THRESHOLDS);
        let share = |balance| shares(&endpoints, balance, 300)[0];
        assert!((10..=20).contains(&share(Balance::LeastConnections)));
        assert!((10..=70).contains(&share(Balance::RoundRobin)));
        tokio::time::sleep(SLOW_START / 2).await;
        assert!((55..=65).contains(&share(Balance::LeastConnections)));
        tokio::time::sleep(SLOW_START / 2).await;
        assert_eq!(share(Balance::LeastConnections), 100);
    }
}
