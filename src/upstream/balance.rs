//! Which endpoint is tried next.

use std::sync::Arc;
use std::time::Duration;

use super::condition::State;
use super::endpoint::Endpoint;

/// How endpoints share new connections. None remembers a client: one that reconnects, because its API server asked it
/// to, can land elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Balance {
    /// Where there are the fewest; equals take turns.
    #[default]
    LeastConnections,
    /// In turn.
    RoundRobin,
    /// The one with fewer connections of two chosen at random.
    Random,
}

/// The next to be tried of those that were not, by their numbers: the best state first, among those another family than
/// that of the address which has just failed, among those by `balance`.
pub(super) fn pick(
    endpoints: &[Arc<Endpoint>],
    tried: &[usize],
    balance: Balance,
    turn: usize,
    slow_start: Duration,
) -> Option<usize> {
    let failed_family = tried.last().map(|last| endpoints[*last].address.is_ipv4());
    let rank = |number: usize| {
        let endpoint = &endpoints[number];
        (endpoint.state(), failed_family == Some(endpoint.address.is_ipv4()))
    };
    let untried = || (0..endpoints.len()).filter(|number| !tried.contains(number));
    let best = untried().map(rank).min()?;
    let candidates = || untried().filter(|number| rank(*number) == best);
    let count = candidates().count();
    let in_turn = || candidates().cycle().skip(turn % count).take(count);
    let weight = |number: usize| if best.0 == State::Ready { endpoints[number].weight(slow_start) } else { 1.0 };
    let load = |number: usize| {
        let connections = u32::try_from(endpoints[number].connections()).unwrap_or(u32::MAX);
        (f64::from(connections) + 1.0) / weight(number)
    };
    let lightest = |first: usize, second: usize| if load(second) < load(first) { second } else { first };
    let any = || candidates().nth(fastrand::usize(..count));
    match balance {
        Balance::LeastConnections => in_turn().reduce(lightest),
        // What starts slowly leaves its turn to any, not always to its neighbour.
        Balance::RoundRobin => in_turn().next().filter(|number| fastrand::f64() < weight(*number)).or_else(any),
        Balance::Random => any().zip(any()).map(|(first, second)| lightest(first, second)),
    }
}

#[cfg(test)]
mod tests {

    use super::super::condition::{Finding, Thresholds};
    use super::super::endpoint::Place;
    use super::*;

    const THRESHOLDS: Thresholds = Thresholds { rise: 1, fall: 1 };
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
            let number = pick(endpoints, &[], balance, turn, SLOW_START).unwrap();
            shares[number] += 1;
            held.push(Place::take(&endpoints[number]));
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
        endpoints[1].learn(&Finding::Gone(String::new()), THRESHOLDS);
        assert_eq!(shares(&endpoints, Balance::RoundRobin, 300), [150, 0, 150]);
    }

    #[tokio::test]
    async fn few_connections_attract_more() {
        let endpoints = three();
        let _held: Vec<Place> = (0..50).map(|_| Place::take(&endpoints[1])).collect();
        assert_eq!(shares(&endpoints, Balance::LeastConnections, 100), [50, 0, 50]);
        assert!(shares(&endpoints, Balance::Random, 200)[1] < 60);
    }

    #[tokio::test]
    async fn the_best_state_is_tried_first_and_the_worst_at_last() {
        let endpoints = three();
        endpoints[0].learn(&Finding::Gone(String::new()), THRESHOLDS);
        endpoints[2].learn(&Finding::Unready(String::new()), THRESHOLDS);
        for balance in [Balance::LeastConnections, Balance::RoundRobin, Balance::Random] {
            let next = |tried: &[usize]| pick(&endpoints, tried, balance, 0, SLOW_START);
            assert_eq!(
                [next(&[]), next(&[1]), next(&[1, 2]), next(&[1, 2, 0])],
                [Some(1), Some(2), Some(0), None],
                "{balance:?}"
            );
        }
    }

    #[tokio::test]
    async fn c08_after_a_failure_the_other_family_is_next() {
        let endpoints = endpoints(&["[2001:db8::1]:1", "[2001:db8::2]:1", "192.0.2.1:1", "192.0.2.2:1"]);
        let next = |tried: &[usize]| pick(&endpoints, tried, Balance::RoundRobin, 0, SLOW_START);
        assert_eq!([next(&[]), next(&[0]), next(&[0, 2])], [Some(0), Some(2), Some(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_recovered_starts_slowly() {
        let endpoints = three();
        endpoints[0].learn(&Finding::Gone(String::new()), THRESHOLDS);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(endpoints[0].weight(SLOW_START) > 0.99, "as long as it has not recovered");
        endpoints[0].learn(&Finding::Ready, THRESHOLDS);
        let share = |balance| shares(&endpoints, balance, 300)[0];
        assert!((10..=20).contains(&share(Balance::LeastConnections)));
        assert!((10..=70).contains(&share(Balance::RoundRobin)));
        tokio::time::sleep(SLOW_START / 2).await;
        assert!((55..=65).contains(&share(Balance::LeastConnections)));
        tokio::time::sleep(SLOW_START / 2).await;
        assert_eq!(share(Balance::LeastConnections), 100);
    }
}
