//! Replicas, of which one writes status.

use super::*;

/// Two replicas, each with its own way to the API server. The first one holds the Lease.
fn two(api: &KubeApi) -> [(KubeApi, Replica); 2] {
    let ways = [api.entrance(), api.entrance()];
    let first = Replica::start(&ways[0], &[]).ready();
    eventually("a holder", || is_holder(&first));
    // Both serve the same addresses, so on one machine the second one's listener is not available.
    let second = Replica::start(&ways[1], &[]).ready();
    let [one, two] = ways;
    [(one, first), (two, second)]
}

fn is_holder(replica: &Replica) -> bool {
    replica.count("holding the Lease: this replica writes status") > 0
}

#[test]
fn i13_one_replica_writes_and_when_it_is_killed_the_other_one_does() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    let [(_, first), (_, second)] = two(&api);
    reported(&api);
    assert!(!is_holder(&second));
    let before = holder(&api);
    drop(first);
    // It has noticed nothing yet, and serves.
    eventually("the other one", || is_served(edge, NAME));
    api.apply(route("b", "b.example.com", &[("api", 1)]));
    eventually("its status", || of_route(&api, "b", "Accepted") == truly("Accepted"));
    assert!(is_holder(&second) && holder(&api) != before);
}

#[test]
fn i13_a_holder_that_stops_leaves_the_lease_to_the_other_one() {
    let backend = Backend::named("served");
    let (api, _) = cluster(&backend);
    let [(_, mut first), (_, second)] = two(&api);
    reported(&api);
    first.stop();
    eventually("the other holder", || is_holder(&second));
    let lease = api.get("leases", "snigate", "snigate.dev-gateway").unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
}

#[test]
fn i13_a_holder_that_is_cut_off_serves_and_writes_no_more() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    let [(way, first), (_, second)] = two(&api);
    reported(&api);
    way.go_away();
    eventually("the other holder", || is_holder(&second));
    first.0.wait("that it has lost it", |line| {
        line["message"] == "lost the Lease; this replica serves, and writes no status"
    });
    assert_eq!(ask(edge, NAME), served());
    api.apply(route("b", "b.example.com", &[("api", 1)]));
    eventually("its status", || of_route(&api, "b", "Accepted") == truly("Accepted"));
    way.come_back();
    eventually("what has changed meanwhile", || is_served(edge, "b.example.com"));
    assert_eq!(first.count("holding the Lease: this replica writes status"), 1);
}

#[test]
fn without_status_nothing_is_written_at_all() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    let mut replica = Replica::start(&api, &["--no-status"]).ready();
    assert_eq!(ask(edge, NAME), served());
    replica.stop();
    assert!(!api.requests().iter().any(|request| request.is_write()), "{:?}", api.requests());
    assert!(api.all("leases").is_empty() && api.all("events").is_empty());
}
