//! Lists and watches, and an API server that is unwell.

use std::io::Write;

use super::*;

#[test]
fn i05_lists_come_in_pages() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    api.apply_all((0..1200).map(|number| service(&format!("other-{number}"))));
    let _replica = Replica::start(&api, &[]).ready();
    assert_eq!(ask(edge, NAME), served());
    let requests = api.requests();
    let lists = requests
        .iter()
        .filter(|request| request.path.starts_with("/api/v1/services?") && request.path.contains("limit=500"));
    assert_eq!(lists.count(), 3);
}

#[test]
fn i06_watches_that_end_are_cut_or_too_old_are_begun_again() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    let replica = Replica::start(&api, &["--watch-seconds", "1"]).ready();
    // They end by themselves, and go on where they were.
    let (lists, watches) = api.reads("tlsroutes");
    eventually("more watches", || api.reads("tlsroutes").1 > watches + 1);
    assert_eq!(api.reads("tlsroutes").0, lists, "nothing is listed again");

    api.cut_watches();
    api.apply(route("b", "b.example.com", &[("api", 1)]));
    eventually("what came after they were cut", || is_served(edge, "b.example.com"));

    api.bookmark();
    api.apply(route("c", "c.example.com", &[("api", 1)]));
    eventually("what came after a bookmark", || is_served(edge, "c.example.com"));

    // What has happened meanwhile is only in a list.
    api.delete("tlsroutes", "default", "b");
    api.compact();
    eventually("another list", || api.reads("tlsroutes").0 > lists);
    eventually("what was removed", || ask(edge, "b.example.com") == closed());
    assert_eq!(ask(edge, "c.example.com"), served());
    assert_eq!(replica.0.get("/readyz").0, 200);
}

#[test]
fn i07_watches_that_say_nothing_any_more_are_replaced() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    let _replica = Replica::start(&api, &["--watch-seconds", "1"]).ready();
    let (_, watches) = api.reads("tlsroutes");
    eventually("a watch", || api.reads("tlsroutes").1 > watches);
    api.stall_watches();
    api.apply(route("b", "b.example.com", &[("api", 1)]));
    eventually("what they did not say", || is_served(edge, "b.example.com"));
}

#[test]
fn i08_what_is_served_stays_while_the_api_server_is_away() {
    let (backend, streams) = Backend::held();
    let (api, edge) = cluster(&backend);
    let replica = Replica::start(&api, &[]).ready();
    reported(&api);
    api.go_away();
    replica.0.wait("that it is away", |line| {
        line["message"] == "cannot watch; what is known stays in use" && line["kind"] == "TLSRoute"
    });
    let mut client = Client::send(edge, &Hello::to(NAME).record());
    let mut stream = streams.recv().unwrap();
    stream.write_all(b"served").unwrap();
    assert_eq!(client.read(6), b"served");
    assert!(replica.is_ready());
    api.apply(route("a", "b.example.com", &[("api", 1)]));
    let reloads = replica.count("reloaded");
    api.come_back();
    eventually("what has changed meanwhile", || replica.count("reloaded") > reloads);
    assert_eq!(ask(edge, NAME), closed());
    replica.0.wait("that it is back", |line| line["message"] == "watching again" && line["kind"] == "TLSRoute");
    stream.write_all(b"still here").unwrap();
    assert_eq!(client.read(10), b"still here", "a route that changes keeps its streams");
}

#[test]
fn i08_it_starts_without_the_api_server_and_is_ready_when_all_is_listed() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    api.go_away();
    let replica = Replica::start(&api, &[]);
    replica.0.wait("that it is away", |line| line["message"] == "cannot watch; what is known stays in use");
    assert_eq!(replica.0.get("/readyz"), (503, "starting\n".into()));
    assert_eq!(replica.0.get("/livez").0, 200);
    api.come_back();
    let _replica = replica.ready();
    assert_eq!(ask(edge, NAME), served());
}

#[test]
fn i09_kinds_that_the_cluster_does_not_have_are_reported_once_and_looked_for_again() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    let v1 = "gateway.networking.k8s.io/v1";
    api.lack(&[(v1, "tlsroutes"), (v1, "referencegrants")]);
    let replica = Replica::start(&api, &[]).ready();
    for kind in ["TLSRoute", "ReferenceGrant"] {
        let line = replica.0.wait(kind, |line| line["kind"] == kind && line["level"] == "WARN");
        let message = "the cluster does not have this kind; install the standard channel of Gateway API";
        assert_eq!(line["message"], message);
    }
    assert!(api.requests().iter().any(|request| request.path.contains("/v1beta1/referencegrants")));
    assert_eq!(ask(edge, NAME), closed());
    api.lack(&[]);
    eventually("the route", || is_served(edge, NAME));
    assert_eq!(replica.0.log().iter().filter(|line| line["kind"] == "TLSRoute" && line["level"] == "WARN").count(), 1);
}

#[test]
fn i10_another_token_is_read_when_the_old_one_is_refused() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    let directory = TempDir::new().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "old").unwrap();
    api.demand("old");
    let replica = Replica::with_token(&api, Some(&token), &[]).ready();
    reported(&api);
    std::fs::write(&token, "new").unwrap();
    api.demand("new");
    api.apply(route("b", "b.example.com", &[("api", 1)]));
    eventually("what came after the rotation", || is_served(edge, "b.example.com"));
    eventually("its status", || of_route(&api, "b", "Accepted") == truly("Accepted"));
    replica.0.wait("it", |line| line["message"] == "the API server refused the credentials; they were read again");
}

#[test]
fn only_the_metadata_of_namespaces_is_asked_for_and_no_secret_at_all() {
    let backend = Backend::named("served");
    let (api, _) = cluster(&backend);
    let _replica = Replica::start(&api, &["--namespace", "default", "--ingress-class", "nginx"]).ready();
    reported(&api);
    let requests = api.requests();
    let reads = |path: &str| requests.iter().filter(|request| request.path.starts_with(path)).count();
    assert!(reads("/api/v1/namespaces/default/services?") > 0);
    assert!(reads("/apis/networking.k8s.io/v1/namespaces/default/ingresses?") > 0);
    assert_eq!(reads("/apis/gateway.networking.k8s.io/v1/tlsroutes"), 0, "not in all namespaces");
    assert!(!requests.iter().any(|request| request.path.contains("secrets")));
    let namespaces = requests.iter().filter(|request| request.path.starts_with("/api/v1/namespaces?"));
    assert!(
        namespaces.clone().count() > 0
            && namespaces.clone().all(|request| request.accept.contains("PartialObjectMetadata"))
    );
}
