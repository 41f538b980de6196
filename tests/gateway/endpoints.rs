//! Endpoints of Services, which come and go without a reload.

use std::io::Write;

use super::*;

#[test]
fn i03_endpoints_change_without_a_reload_and_streams_go_on() {
    let (first, streams) = Backend::held();
    let second = Backend::named("served");
    let (api, edge) = cluster(&first);
    let replica = Replica::start(&api, &[]).ready();
    let reloads = replica.count("reloaded");
    let mut client = Client::send(edge, &Hello::to(NAME).record());
    let mut stream = streams.recv().unwrap();

    // The first Pod terminates, and another one is ready.
    api.apply(slice("api", 0, first.address(), Pod::Terminating));
    api.apply(slice("api", 1, second.address(), Pod::Ready));
    eventually("the other Pod", || {
        second.accepted() > 0 || {
            let _ = ask_shortly(edge);
            false
        }
    });
    assert_eq!(ask(edge, NAME), served());
    stream.write_all(b"still here").unwrap();
    assert_eq!(client.read(10), b"still here");

    api.delete("endpointslices", "default", "api-0");
    api.apply(slice("api", 1, second.address(), Pod::Unready));
    eventually("that there is none", || ask(edge, NAME) == closed());
    let refused = replica.0.wait("the refusal", |line| line["outcome"] == "no_endpoint");
    assert!(
        refused["reason"].as_str().unwrap().contains("default/api:6443: the Service has no ready endpoint"),
        "{refused}"
    );
    stream.write_all(b"and here").unwrap();
    assert_eq!(client.read(8), b"and here");

    api.apply(slice("api", 1, second.address(), Pod::Ready));
    eventually("its return", || is_served(edge, NAME));
    assert_eq!(replica.count("reloaded"), reloads);
    assert_eq!(replica.0.get("/readyz").0, 200);
}

/// Connects and leaves: the endpoint may never answer.
fn ask_shortly(edge: SocketAddr) -> Client {
    Client::send(edge, &Hello::to(NAME).record())
}

#[test]
fn i04_connections_are_split_by_weight_and_a_missing_backend_refuses_its_share() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let (api, edge) = cluster(&one);
    api.apply(service("other"));
    api.apply(slice("other", 0, two.address(), Pod::Ready));
    api.apply(route("a", NAME, &[("api", 2), ("other", 1), ("missing", 1)]));
    let _replica = Replica::start(&api, &[]).ready();
    let mut counts = [0; 3];
    for _ in 0..400 {
        let index = match &*ask(edge, NAME).0 {
            b"one" => 0,
            b"two" => 1,
            b"" => 2,
            other => panic!("{}", other.escape_ascii()),
        };
        counts[index] += 1;
    }
    for (count, expected) in counts.iter().zip([200_i32, 100, 100]) {
        // Five standard deviations and more.
        assert!((count - expected).abs() < 60, "{counts:?}");
    }
    eventually("what is reported", || {
        of_route(&api, "a", "ResolvedRefs") == Some(("False".into(), "BackendNotFound".into()))
    });
    assert_eq!(of_route(&api, "a", "Accepted"), truly("Accepted"));
}
