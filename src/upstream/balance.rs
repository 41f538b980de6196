//! Load balancing: which endpoint to try next.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use strum::IntoStaticStr;

use super::endpoint::Endpoint;
use super::health::EndpointState;

/// The load balancing algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Balance {
    /// The endpoint with the fewest connections for its weight; equals take turns.
    #[default]
    LeastConnections,
    /// Each endpoint in turn, as often as its weight (smooth weighted round robin).
    RoundRobin,
    /// The less loaded of two random endpoints (power of two choices, P2C), drawn by weight.
    Random,
    /// The same endpoint for the same client address (weighted rendezvous hashing): when an endpoint comes or goes, only
    /// its own clients move.
    SourceHash,
}

impl Balance {
    /// The value in the configuration.
    pub(crate) fn label(self) -> &'static str {
        self.into()
    }
}

/// How a connection's endpoint is picked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) balance: Balance,
    pub(super) slow_start: Duration,
    /// Counts connections.
    pub(super) turn: usize,
    pub(super) client: IpAddr,
}

/// Picks one of `untried`. Endpoints in the best state come first, among those the ones that are no backup, among those
/// the ones with another address family than the endpoint that just failed; among those, the policy decides.
pub(super) fn pick(
    endpoints: &[Arc<Endpoint>],
    untried: &[usize],
    failed_is_ipv4: Option<bool>,
    policy: &Policy,
) -> Option<usize> {
    let candidates = candidates(endpoints, untried, failed_is_ipv4, policy.slow_start);
    let first = policy.turn.checked_rem(candidates.len())?;
    let picked = match policy.balance {
        Balance::LeastConnections => least_connections(&candidates, first),
        Balance::RoundRobin => round_robin(&candidates),
        Balance::Random => less_loaded(random(&candidates), random(&candidates)),
        Balance::SourceHash => highest_score(&candidates, policy.client),
    };
    Some(picked.index)
}

/// Starts the search at `first`, so that equally loaded endpoints take turns.
fn least_connections<'c>(candidates: &'c [Candidate<'_>], first: usize) -> &'c Candidate<'c> {
    let (before, after) = candidates.split_at(first);
    after.iter().chain(before).fold(&candidates[first], less_loaded)
}

/// Smooth weighted round robin: each endpoint earns its weight in credit, and the one with the most pays for all.
fn round_robin<'c>(candidates: &'c [Candidate<'_>]) -> &'c Candidate<'c> {
    let mut next = (&candidates[0], i64::MIN);
    let mut total = 0;
    for candidate in candidates {
        #[expect(clippy::cast_possible_truncation, reason = "a weight is at most 256")]
        let weight = (candidate.weight * CREDIT_PER_WEIGHT) as i64;
        total += weight;
        let credit = candidate.endpoint.add_credit(weight);
        if credit > next.1 {
            next = (candidate, credit);
        }
    }
    next.0.endpoint.add_credit(-total);
    next.0
}

/// Fine enough for a tenth of a weight, as slow start has it.
const CREDIT_PER_WEIGHT: f64 = 1000.0;

/// Each with a probability in proportion to its weight.
fn random<'c>(candidates: &'c [Candidate<'_>]) -> &'c Candidate<'c> {
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let mut rest = fastrand::f64() * total;
    let drawn = candidates.iter().find(|candidate| {
        rest -= candidate.weight;
        rest < 0.0
    });
    // Rounding can leave nothing to the last one.
    drawn.unwrap_or(&candidates[candidates.len() - 1])
}

fn less_loaded<'c>(first: &'c Candidate<'_>, second: &'c Candidate<'_>) -> &'c Candidate<'c> {
    if second.load < first.load { second } else { first }
}

/// Weighted rendezvous hashing: of all endpoints, the one with the highest -weight / ln(hash), where the hash of client and
/// endpoint is in (0, 1).
fn highest_score<'c>(candidates: &'c [Candidate<'_>], client: IpAddr) -> &'c Candidate<'c> {
    let score = |candidate: &Candidate<'_>| {
        // Not keyed: the same in every process.
        let mut hasher = DefaultHasher::new();
        (client, candidate.endpoint.address).hash(&mut hasher);
        #[expect(clippy::cast_precision_loss, reason = "53 bits are enough")]
        let hash = ((hasher.finish() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        -candidate.weight / hash.ln()
    };
    let mut best = (&candidates[0], f64::MIN);
    for candidate in candidates {
        let score = score(candidate);
        if score > best.1 {
            best = (candidate, score);
        }
    }
    best.0
}

/// An endpoint that can be picked. Its state and load are read once, because they change meanwhile.
struct Candidate<'e> {
    index: usize,
    endpoint: &'e Endpoint,
    /// As configured; less during slow start.
    weight: f64,
    /// Connections for each unit of weight.
    load: f64,
}

/// The untried endpoints of the best rank.
fn candidates<'e>(
    endpoints: &'e [Arc<Endpoint>],
    untried: &[usize],
    failed_is_ipv4: Option<bool>,
    slow_start: Duration,
) -> Vec<Candidate<'e>> {
    let mut best = None;
    let mut candidates = Vec::with_capacity(untried.len());
    for &index in untried {
        let endpoint = &*endpoints[index];
        let (state, share) = (endpoint.state(), endpoint.share());
        let rank = (state, share.is_backup, failed_is_ipv4 == Some(endpoint.address.is_ipv4()));
        if best.is_some_and(|best| rank > best) {
            continue;
        }
        if best != Some(rank) {
            candidates.clear();
            best = Some(rank);
        }
        let ramp = if state == EndpointState::Ready { endpoint.ramp(slow_start) } else { 1.0 };
        let weight = f64::from(share.weight) * ramp;
        let connections = u32::try_from(endpoint.connections()).unwrap_or(u32::MAX);
        candidates.push(Candidate { index, endpoint, weight, load: (f64::from(connections) + 1.0) / weight });
    }
    candidates
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::super::endpoint::EndpointSlot;
    use super::super::health::{ProbeResult, Thresholds};
    use super::super::settings::Share;
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { rise: 1, fall: 1, unready: 1 };
    const SLOW_START: Duration = Duration::from_secs(30);
    const BALANCES: [Balance; 4] =
        [Balance::LeastConnections, Balance::RoundRobin, Balance::Random, Balance::SourceHash];

    fn policy(balance: Balance, turn: usize) -> Policy {
        Policy { balance, slow_start: SLOW_START, turn, client: client(turn) }
    }

    fn client(number: usize) -> IpAddr {
        let [.., high, low] = number.to_be_bytes();
        [10, 0, high, low].into()
    }

    fn endpoints(addresses: &[&str]) -> Vec<Arc<Endpoint>> {
        addresses.iter().map(|address| Arc::new(Endpoint::new(address.parse().unwrap(), Share::DEFAULT))).collect()
    }

    fn three() -> Vec<Arc<Endpoint>> {
        endpoints(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"])
    }

    /// How often each endpoint is picked for connections that stay open.
    fn shares(endpoints: &[Arc<Endpoint>], balance: Balance, connections: usize) -> Vec<usize> {
        let mut slots = Vec::new();
        let untried: Vec<usize> = (0..endpoints.len()).collect();
        let mut shares = vec![0; endpoints.len()];
        for turn in 0..connections {
            let index = pick(endpoints, &untried, None, &policy(balance, turn)).unwrap();
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
        for balance in BALANCES {
            let next = |untried: &[usize]| pick(&endpoints, untried, None, &policy(balance, 0));
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
        let next = |untried: &[usize], failed| pick(&endpoints, untried, failed, &policy(Balance::RoundRobin, 0));
        assert_eq!(
            [next(&[0, 1, 2, 3], None), next(&[1, 2, 3], Some(false)), next(&[1, 3], Some(true))],
            [Some(0), Some(2), Some(1)]
        );
    }

    /// Some untried endpoint is picked, however states change meanwhile.
    #[test]
    fn b12_an_endpoint_is_picked_while_states_change() {
        let endpoints: Vec<Arc<Endpoint>> =
            (1..=64).map(|port| Arc::new(Endpoint::new(([192, 0, 2, 1], port).into(), Share::DEFAULT))).collect();
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
            let picked = (0..20_000)
                .all(|turn| pick(&endpoints, &untried, None, &policy(BALANCES[turn % BALANCES.len()], turn)).is_some());
            is_over.store(true, Relaxed);
            assert!(picked);
        });
    }

    fn weighted(shares: &[(u16, bool)]) -> Vec<Arc<Endpoint>> {
        let endpoint = |(number, (weight, is_backup)): (usize, &(u16, bool))| {
            let address = ([192, 0, 2, u8::try_from(number).unwrap()], 1).into();
            Arc::new(Endpoint::new(address, Share { weight: *weight, is_backup: *is_backup }))
        };
        shares.iter().enumerate().map(endpoint).collect()
    }

    #[tokio::test]
    async fn b30_endpoints_get_shares_by_weight() {
        let endpoints = || weighted(&[(1, false), (3, false), (6, false)]);
        assert_eq!(shares(&endpoints(), Balance::LeastConnections, 1000), [100, 300, 600]);
        assert_eq!(shares(&endpoints(), Balance::RoundRobin, 1000), [100, 300, 600]);
        let random = shares(&endpoints(), Balance::Random, 1000);
        assert!((70..130).contains(&random[0]) && (550..650).contains(&random[2]), "{random:?}");
        // By client: exact only on average.
        let hashed = shares(&endpoints(), Balance::SourceHash, 10_000);
        assert!((900..1100).contains(&hashed[0]) && (5700..6300).contains(&hashed[2]), "{hashed:?}");
        // No endpoint gets its share in one go.
        let endpoints = weighted(&[(1, false), (3, false)]);
        let turn = |turn| pick(&endpoints, &[0, 1], None, &policy(Balance::RoundRobin, turn)).unwrap();
        assert_eq!((0..8).map(turn).collect::<Vec<_>>(), [1, 0, 1, 1, 1, 0, 1, 1]);
    }

    #[tokio::test]
    async fn b31_backups_serve_while_no_other_endpoint_is_ready() {
        let endpoints = weighted(&[(1, false), (1, false), (1, true), (1, true)]);
        let unreachable = ProbeResult::Unreachable(String::new());
        for balance in BALANCES {
            let picked = shares(&endpoints, balance, 100);
            assert_eq!(picked[2..], [0, 0], "{balance:?}");
            // A connection that reaches no other endpoint still gets a backup.
            let after_failures = pick(&endpoints, &[2, 3], None, &policy(balance, 0));
            assert!(matches!(after_failures, Some(2 | 3)), "{balance:?}");
        }
        for endpoint in &endpoints[..2] {
            endpoint.apply_check_result(&unreachable, THRESHOLDS);
        }
        for balance in BALANCES {
            let picked = shares(&endpoints, balance, 100);
            assert_eq!(picked[..2], [0, 0], "{balance:?}");
            assert!(picked[2] > 0 && picked[3] > 0, "{balance:?}");
        }
        endpoints[2].apply_check_result(&unreachable, THRESHOLDS);
        endpoints[3].apply_check_result(&unreachable, THRESHOLDS);
        let picked = shares(&endpoints, Balance::LeastConnections, 100);
        assert_eq!(picked[2..], [0, 0], "none is ready: those that are no backup are tried first");
        endpoints[1].apply_check_result(&ProbeResult::Ready, THRESHOLDS);
        assert_eq!(shares(&endpoints, Balance::RoundRobin, 100), [0, 100, 0, 0]);
    }

    #[test]
    fn b32_a_client_keeps_its_endpoint_when_others_come_and_go() {
        let endpoints = weighted(&[(1, false); 5]);
        let all: Vec<usize> = (0..5).collect();
        let pick_for =
            |number, untried: &[usize]| pick(&endpoints, untried, None, &policy(Balance::SourceHash, number)).unwrap();
        let before: Vec<usize> = (0..1000).map(|client| pick_for(client, &all)).collect();
        assert!((0..5).all(|index| before.iter().filter(|picked| **picked == index).count() > 150));
        for gone in 0..5 {
            let rest: Vec<usize> = all.iter().copied().filter(|index| *index != gone).collect();
            for (client, picked) in before.iter().enumerate() {
                let after = pick_for(client, &rest);
                assert!(after == *picked || *picked == gone, "client {client}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_recovered_endpoint_starts_slowly() {
        let endpoints = three();
        endpoints[0].apply_check_result(&ProbeResult::Unreachable(String::new()), THRESHOLDS);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(endpoints[0].ramp(SLOW_START) > 0.99, "slow start begins with the recovery");
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
