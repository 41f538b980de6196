//! What is served, and what is reported of it.

use std::io::Write;
use std::net::TcpListener;

use serde_json::json;

use super::*;
use crate::support::all_output;

#[test]
fn i12_what_the_cluster_says_is_served_and_reported_and_nothing_is_written_again() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    let mut replica = Replica::start(&api, &[]).ready();
    assert_eq!(ask(edge, NAME), served());
    assert_eq!(ask(edge, "b.example.com"), closed(), "a refused client gets no alert");
    reported(&api);
    assert_eq!(of_route(&api, "a", "ResolvedRefs"), truly("ResolvedRefs"));
    let class = api.get("gatewayclasses", "", "snigate").unwrap();
    assert_eq!(condition(&class["status"]["conditions"], "Accepted"), truly("Accepted"));
    assert_eq!(holder(&api).map(|holder| holder.is_string()), Some(true));

    // Not by what changes nothing, and not because objects are listed again.
    let writes = api.status_writes();
    assert_eq!(writes, 3, "class, Gateway and route, once each");
    let (lists, _) = api.reads("tlsroutes");
    api.compact();
    eventually("another list", || api.reads("tlsroutes").0 > lists);
    api.apply(namespace("other"));
    let mut changed = api.get("services", "default", "api").unwrap();
    changed["metadata"]["annotations"] = json!({"a": "b"});
    api.apply(changed);
    // The next write comes after whatever those might have caused.
    api.apply(route("b", "b.example.com", &[("api", 1)]));
    eventually("the status of another route", || of_route(&api, "b", "Accepted") == truly("Accepted"));
    eventually("both routes", || {
        api.get("gateways", "default", "edge").unwrap()["status"]["listeners"][0]["attachedRoutes"] == 2
    });
    let written: Vec<String> = api
        .requests()
        .iter()
        .filter(|request| request.is_status_write())
        .map(|request| request.path.clone())
        .skip(writes)
        .collect();
    assert_eq!(written.len(), 2, "the new route, and the count of the Gateway: {written:?}");
    replica.stop();
}

#[test]
fn i11_what_others_write_at_the_same_time_stays() {
    let backend = Backend::named("served");
    let (api, _) = cluster(&backend);
    let mut foreign = route("a", NAME, &[("api", 1)]);
    let parent = json!({"parentRef": {"name": "other"}, "controllerName": "example.com/other", "conditions": []});
    foreign["status"] = json!({"parents": [parent]});
    api.apply(foreign);
    api.conflict(3);
    let _replica = Replica::start(&api, &[]).ready();
    eventually("the status of the Gateway", || of_gateway(&api, "Programmed") == truly("Programmed"));
    eventually("both parents", || {
        let parents = api.get("tlsroutes", "default", "a").unwrap()["status"]["parents"].clone();
        parents.as_array().is_some_and(|parents| parents.len() == 2)
            && parents[0]["controllerName"] == "example.com/other"
    });
    assert!(api.requests().iter().any(|request| request.is_status_write() && request.status == 409));
}

#[test]
fn i01_a_bad_object_spoils_no_other() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    let mut bad = route("bad", "b.example.com", &[("api", 1)]);
    bad["spec"]["hostnames"] = json!(7);
    api.apply(bad);
    let replica = Replica::start(&api, &[]).ready();
    assert_eq!(ask(edge, NAME), served());
    let line = replica.0.wait("the bad object", |line| line["object"] == "TLSRoute default/bad");
    assert!(line["reason"].as_str().unwrap().contains("invalid type: integer `7`"), "{line}");
    reported(&api);
    // Mended, it is served.
    api.apply(route("bad", "b.example.com", &[("api", 1)]));
    eventually("the mended route", || is_served(edge, "b.example.com"));
}

#[test]
fn i02_a_port_that_is_taken_costs_that_listener_only_and_is_tried_again() {
    let backend = Backend::named("served");
    let (api, edge) = cluster(&backend);
    let taken = TcpListener::bind((edge.ip(), 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    api.apply(gateway("edge", edge.ip(), &[edge.port(), port]));
    let replica = Replica::start(&api, &[]).ready();
    assert_eq!(ask(edge, NAME), served());
    let line = replica.0.wait("the listener", |line| line["message"] == "listener is not available; the others serve");
    assert_eq!(
        line["reason"],
        format!(
            "cannot listen on {}:{port}: Address already in use (os error 98); another process is listening on it",
            edge.ip()
        )
    );
    let listener = |number: usize| {
        let gateway = api.get("gateways", "default", "edge").unwrap();
        condition(&gateway["status"]["listeners"][number]["conditions"], "Programmed")
    };
    eventually("what is reported of both", || {
        listener(0) == truly("Programmed") && listener(1).is_some_and(|(status, _)| status == "False")
    });
    drop(taken);
    eventually("the other listener", || listener(1) == truly("Programmed"));
    assert_eq!(ask((edge.ip(), port).into(), NAME), served());
}

#[test]
fn listeners_come_and_go_and_streams_stay() {
    let (backend, streams) = Backend::held();
    let (api, edge) = cluster(&backend);
    let other = free();
    let _replica = Replica::start(&api, &[]).ready();
    let mut client = Client::send(edge, &Hello::to(NAME).record());
    let mut stream = streams.recv().unwrap();
    api.apply(gateway("edge", edge.ip(), &[edge.port()]));
    api.apply(gateway("more", other.ip(), &[other.port()]));
    let mut second = route("second", NAME, &[("api", 1)]);
    second["spec"]["parentRefs"] = json!([{"name": "more"}]);
    api.apply(second);
    eventually("the other Gateway", || TcpStream::connect(other).is_ok());
    api.delete("gateways", "default", "more");
    eventually("its end", || TcpStream::connect(other).is_err());
    stream.write_all(b"still here").unwrap();
    assert_eq!(client.read(10), b"still here");
}

#[test]
fn the_base_configuration_serves_beside_the_cluster() {
    let (backend, other) = (Backend::named("served"), Backend::named("static"));
    let (api, edge) = cluster(&backend);
    let base = crate::support::router::config(&[(NAME, other.address())], "");
    let replica = Replica::with_base(&api, None, &base, &[]).ready();
    let own =
        replica.0.wait("its own listener", |line| line["message"] == "listening" && line["listener"] == "127.0.0.1:0");
    let own = own["address"].as_str().unwrap().parse().unwrap();
    assert_eq!((ask(own, NAME).0, ask(edge, NAME).0), (b"static".to_vec(), b"served".to_vec()));
    // Another one, without a restart.
    let third = Backend::named("third");
    std::fs::write(&replica.0.config, crate::support::router::config(&[(NAME, third.address())], "")).unwrap();
    let reloads = replica.count("reloaded");
    replica.0.signal(Signal::HUP);
    eventually("the reload", || replica.count("reloaded") > reloads);
    assert_eq!((ask(own, NAME).0, ask(edge, NAME).0), (b"third".to_vec(), b"served".to_vec()));
}

#[test]
fn a_reload_says_who_asked_for_it() {
    let backend = Backend::named("served");
    let (api, _) = cluster(&backend);
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("control.sock");
    let base = format!("admin: 127.0.0.1:0\ncontrol: {}\n", socket.display());
    let replica = Replica::with_base(&api, None, &base, &[]).ready();
    let reload = || snigate().arg("ctl").arg("--socket").arg(&socket).arg("reload").output().unwrap();
    let is_by_operator = |line: &Value| {
        assert_eq!(line["by"], "control");
        line["operator.user"].is_u64() && line["operator.process"].is_u64()
    };

    assert_eq!(all_output(&reload()), "reloaded: 0 routes added, 0 changed, 0 removed, 1 unchanged\n");
    let line = replica.0.wait("the reload", |line| line["message"] == "reloaded" && line["by"] != "cluster");
    assert!(is_by_operator(&line) && line["listeners"] == 1 && line["routes"] == 1, "{line}");

    std::fs::write(&replica.0.config, base.replace("admin", "amdin")).unwrap();
    assert_eq!(reload().status.code(), Some(1));
    let line = replica.0.wait("its failure", |line| line["level"] == "ERROR");
    assert!(is_by_operator(&line), "{line}");

    std::fs::write(&replica.0.config, &base).unwrap();
    replica.0.signal(Signal::HUP);
    let line = replica.0.wait("another reload", |line| line["by"] == "SIGHUP");
    assert!(line["message"] == "reloaded" && line["operator.user"].is_null(), "{line}");
}

#[test]
fn a_base_configuration_has_no_keys_without_effect() {
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("base.yaml");
    for (base, error) in [
        (
            "log: {}\nwatch: true\n",
            "2:8: watch: has no effect in `snigate gateway`; use SIGHUP or `snigate ctl reload`",
        ),
        (
            "upgrade: {socket: /run/snigate/upgrade.sock}\n",
            "1:19: upgrade.socket: has no effect in `snigate gateway`; to upgrade, replace the Pod",
        ),
    ] {
        std::fs::write(&config, base).unwrap();
        let output = snigate().arg("gateway").arg("-c").arg(&config).output().unwrap();
        let said = all_output(&output);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(&format!("{}:{error}", config.display())), "{said}");
    }
}
