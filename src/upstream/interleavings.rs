//! What connections share of an endpoint, under many schedules: see [`crate::sync`].

use std::sync::Arc;

use shuttle::thread::spawn;

use super::endpoint::{Endpoint, EndpointSlot};
use super::health::{ProbeResult, Thresholds};
use crate::sync::check;

#[test]
fn b09_one_connection_tries_a_dead_endpoint_and_all_are_counted() {
    check(|| {
        let endpoint = Endpoint::sample();
        let thresholds = Thresholds { rise: 1, fall: 1, unready: 1 };
        endpoint.apply_check_result(&ProbeResult::Unreachable("refused".into()), thresholds).unwrap();
        endpoint.allow_trial();
        let connections: Vec<_> = (0..3)
            .map(|_| {
                let endpoint = Arc::clone(&endpoint);
                spawn(move || {
                    let tries = endpoint.takes_trial();
                    let slot = EndpointSlot::take(&endpoint);
                    assert!((1..=3).contains(&slot.endpoint().connections()));
                    tries
                })
            })
            .collect();
        let tries: Vec<bool> = connections.into_iter().map(|connection| connection.join().unwrap()).collect();
        assert_eq!(tries.into_iter().filter(|tries| *tries).count(), 1);
        assert_eq!(endpoint.connections(), 0);
    });
}
