//! Configurations that take the place of the running one.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::backend::{closed, free, free_everywhere};
use crate::support::client::{End, alert};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, PATIENCE, Router, eventually, snigate};

const NAME: &str = "a.example";
const OTHER: &str = "b.example";

/// What a client that asks for this name gets, and what is logged of it.
fn ask(router: SocketAddr, name: &str) -> (Vec<u8>, End) {
    let mut client = Client::send(router, &Hello::to(name).record());
    client.finish();
    client.rest()
}

fn answered(by: &str) -> (Vec<u8>, End) {
    (by.as_bytes().to_vec(), End::Fin)
}

fn connections(router: &Router, route: &str) -> f64 {
    router.metric(&format!("snigate_connections_active{{route=\"{route}\"}}"))
}

#[test]
fn g01_g02_g15_a_bad_file_changes_nothing_and_a_good_one_after_it_is_taken() {
    let (first, second) = (Backend::named("first"), Backend::named("second"));
    let router = Router::routing(&[(NAME, first.address())]);
    let held = Client::connect(router.address());
    let good = config(&[(NAME, second.address())], "");
    let bad = [
        ("", "empty"),
        ("listen: [", "unmatched bracket"),
        ("listen: 127.0.0.1:0\nroutes: []\n", "empty list"),
        (&good.replace("sni", "snii"), "unknown key `snii`"),
        (&good.replace("upstream:", "upstraem:"), "unknown key `upstraem`"),
        (&format!("{good}timeouts: {{drain: 10}}\n"), "timeouts.drain"),
        (&format!("{good}limits: {{connections: 9999999}}\n"), "file descriptors"),
        (&good.replace("127.0.0.1:0\nadmin", "192.0.2.1:1\nadmin"), "no interface of this machine has this address"),
        (&format!("{good}  - {{sni: {NAME}, upstream: \"h:1\"}}\n"), "neither route is more specific"),
    ];
    for (number, (text, reason)) in bad.iter().enumerate() {
        let told = router.reload(text);
        assert_eq!(
            (told["level"].as_str(), told["message"].as_str()),
            (Some("ERROR"), Some("reload failed; keeping the running configuration"))
        );
        let told = told["reason"].as_str().unwrap();
        assert!(told.starts_with(router.config.to_str().unwrap()) && told.contains(reason), "{told}");
        assert_eq!(ask(router.address(), NAME), answered("first"));
        assert_eq!(router.metric("snigate_config_reloads_total{result=\"failure\"}"), (number + 1) as f64);
        assert_eq!(router.metric("snigate_config_last_reload_successful"), 0.0);
        // What can be said without binding anything is said by `check`, in the same words.
        let check = snigate().arg("check").arg(&router.config).output().unwrap();
        if !check.status.success() {
            assert!(String::from_utf8(check.stderr).unwrap().contains(told));
        }
    }
    std::fs::remove_file(&router.config).unwrap();
    assert!(router.reload_as_it_is()["reason"].as_str().unwrap().contains("cannot read the configuration"));

    let told = router.reload(&good);
    assert_eq!((told["message"].as_str(), told["changed"].as_u64()), (Some("reloaded"), Some(1)));
    assert_eq!(ask(router.address(), NAME), answered("second"));
    assert_eq!(router.metric("snigate_config_reloads_total{result=\"success\"}"), 1.0);
    assert_eq!(router.metric("snigate_config_last_reload_successful"), 1.0);
    assert!(router.metric("snigate_config_last_reload_success_timestamp_seconds") > 1.7e9);
    drop(held);
}

#[test]
fn g02_of_a_storm_of_signals_the_last_content_wins() {
    let backends = [Backend::named("even"), Backend::named("odd")];
    let router = Router::routing(&[(NAME, backends[0].address())]);
    for number in 1..=200 {
        let routes = [(NAME, backends[number % 2].address()), (OTHER, backends[0].address())];
        let text = config(&routes[..1 + usize::from(number == 200)], "");
        // Never half a file.
        std::fs::write(router.config.with_extension("new"), text).unwrap();
        std::fs::rename(router.config.with_extension("new"), &router.config).unwrap();
        for _ in 0..5 {
            router.signal(Signal::HUP);
        }
        assert!(["even", "odd"].map(answered).contains(&ask(router.address(), NAME)));
    }
    router.wait("the last content", |line| line["message"] == "reloaded" && line["routes"] == 2);
    assert_eq!(ask(router.address(), OTHER), answered("even"));
    let log = router.log();
    assert!(log.iter().all(|line| line["level"] != "ERROR"), "{log:?}");
    assert!(log.iter().filter(|line| line["message"] == "reloaded").count() < 1000, "some were one");
}

/// Listeners by name, all routes to one upstream.
fn listening(addresses: &[(&str, SocketAddr)], upstream: SocketAddr, more: &str) -> String {
    let listener = |(name, address): &(&str, SocketAddr)| format!("  - {{name: {name}, address: \"{address}\"}}\n");
    let listeners: String = addresses.iter().map(listener).collect();
    format!("listen:\n{listeners}admin: 127.0.0.1:0\nroutes:\n  - sni: {NAME}\n    upstream: \"{upstream}\"\n{more}")
}

#[test]
fn g09_listeners_come_and_go_without_their_connections() {
    let (backend, held) = Backend::held();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let (_reserved, port) = free_everywhere();
    let [stays, goes, comes] = [("stays", any), ("goes", free()), ("comes", SocketAddr::from(([127, 0, 0, 1], port)))];
    let router = Router::start(&listening(&[stays, goes], backend.address(), ""));
    let stays_at = router.address_of(|name| name == "stays");
    let hello = Hello::to(NAME).record();
    let open = |address| (Client::send(address, &hello), held.recv_timeout(PATIENCE).unwrap());
    let (mut clients, mut upstreams): (Vec<Client>, Vec<TcpStream>) = [stays_at, goes.1].map(open).into_iter().unzip();

    // The whole or nothing: one of the two new addresses is taken.
    let taken = TcpListener::bind(any).unwrap();
    let told =
        router.reload(&listening(&[stays, comes, ("taken", taken.local_addr().unwrap())], backend.address(), ""));
    assert!(told["reason"].as_str().unwrap().contains("another process is listening on it"), "{told}");
    assert!(TcpStream::connect(comes.1).is_err() && TcpStream::connect(goes.1).is_ok());

    assert_eq!(router.reload(&listening(&[stays, comes], backend.address(), ""))["listeners"], 2);
    eventually("closed", || TcpStream::connect(goes.1).is_err());
    for address in [comes.1, stays_at] {
        let (client, upstream) = open(address);
        clients.push(client);
        upstreams.push(upstream);
    }
    assert_eq!(router.address_of(|name| name == "comes"), comes.1);
    for (client, mut upstream) in clients.iter_mut().zip(upstreams) {
        std::io::Write::write_all(&mut upstream, b"still here").unwrap();
        assert_eq!(client.read(10), b"still here");
        drop(upstream);
        client.finish_if_open();
        client.rest();
        assert!(
            ["stays", "goes", "comes"].contains(&router.account_of(client.address())["listener"].as_str().unwrap())
        );
    }
    let series = |name: &str| {
        let (_, text) = router.get("/metrics");
        text.contains(&format!("snigate_connections_total{{listener=\"{name}\","))
    };
    assert!(series("stays") && series("comes") && series("goes"), "its connections have ended, a scraper sees");

    // A wider address of the same port takes the place of the narrow one, and back.
    let wide: SocketAddr = format!("0.0.0.0:{}", comes.1.port()).parse().unwrap();
    let serves = |address: SocketAddr, listener: &str| {
        eventually(&format!("{listener} serves"), || {
            let Ok(stream) = TcpStream::connect(address) else { return false };
            drop(stream);
            let mut client = Client::send(address, &hello);
            drop(held.recv().unwrap());
            client.rest();
            router.account_of(client.address())["listener"] == listener
        });
    };
    let told = router.reload(&listening(&[stays, ("wide", wide)], backend.address(), ""));
    assert_eq!(told["message"], "reloaded", "{told}");
    serves(comes.1, "wide");
    serves(SocketAddr::new([127, 0, 0, 9].into(), wide.port()), "wide");
    let stranger = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    stranger.set_reuse_address(true).unwrap();
    assert!(stranger.bind(&wide.into()).is_err(), "the port is shared with nobody else");
    let told = router.reload(&listening(&[stays, comes], backend.address(), ""));
    assert_eq!(told["message"], "reloaded", "{told}");
    serves(comes.1, "comes");

    // Another name for the same address is no other listener.
    assert_eq!(router.reload(&listening(&[("renamed", stays.1), comes], backend.address(), ""))["message"], "reloaded");
    let mut client = Client::send(stays_at, &hello);
    drop(held.recv_timeout(PATIENCE).unwrap());
    client.rest();
    assert_eq!(router.account_of(client.address())["listener"], "renamed");
}

/// The queue of a removed listener waits for permits, and nothing waits for it.
#[test]
fn g09_a_removed_listener_whose_clients_wait_does_not_hold_up_the_reload() {
    let (backend, held) = Backend::held();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let goes = free();
    let limit = "limits: {connections: 1}\n";
    let router = Router::start(&listening(&[("stays", any), ("goes", goes)], backend.address(), limit));
    let hello = Hello::to(NAME).record();
    let first = Client::send(router.address_of(|name| name == "stays"), &hello);
    let upstream = held.recv_timeout(PATIENCE).unwrap();
    let mut waiting = Client::send(goes, &hello);
    router.wait("that it is full", |line| {
        line["message"].as_str().is_some_and(|message| message.starts_with("limits.connections reached"))
    });
    let told = router.reload(&listening(&[("stays", any)], backend.address(), limit));
    assert_eq!((told["message"].as_str(), told["listeners"].as_u64()), (Some("reloaded"), Some(1)));
    drop((first, upstream));
    let mut served = held.recv_timeout(PATIENCE).unwrap();
    std::io::Write::write_all(&mut served, b"served").unwrap();
    assert_eq!(waiting.read(6), b"served", "it has waited in the queue of the removed listener");
    assert_eq!(router.log().iter().filter(|line| line["message"] == "reloaded").count(), 1);
}

/// Two listeners whose ports the kernel has chosen.
fn two_chosen(order: [&str; 2], route: &str, backend: SocketAddr) -> String {
    let listeners = order.map(|name| format!("{{name: {name}, address: \"127.0.0.1:0\"}}")).join(", ");
    format!(
        "listen: [{listeners}]\nadmin: 127.0.0.1:0\nroutes: [{{sni: {NAME}, listener: {route}, upstream: \"{backend}\"}}]\n"
    )
}

#[test]
fn g09_listeners_of_one_address_are_known_by_their_names() {
    let backend = Backend::named("served");
    let router = Router::start(&two_chosen(["one", "two"], "one", backend.address()));
    let [one, two] = ["one", "two"].map(|name| router.address_of(|listener| listener == name));
    let is_as_configured = |serving: &str| {
        for (name, address) in [("one", one), ("two", two)] {
            let expected = if name == serving { answered("served") } else { (alert(112), End::Fin) };
            assert_eq!(ask(address, NAME), expected, "{name}");
        }
    };
    is_as_configured("one");
    for (order, serving) in [(["two", "one"], "one"), (["one", "two"], "two")] {
        assert_eq!(router.reload(&two_chosen(order, serving, backend.address()))["message"], "reloaded");
        is_as_configured(serving);
    }
    std::fs::write(&router.config, two_chosen(["two", "one"], "one", backend.address())).unwrap();
    router.signal(Signal::USR2);
    let new = router.wait("the upgrade", |line| line["message"] == "upgraded; the new process serves");
    router.wait("the end", |line| line["message"] == "drained");
    is_as_configured("one");
    let new = rustix::process::Pid::from_raw(new["process"].as_i64().unwrap() as i32).unwrap();
    rustix::process::kill_process(new, Signal::KILL).unwrap();
}

#[test]
fn the_admin_listener_moves() {
    let backend = Backend::named("served");
    let router = Router::routing(&[(NAME, backend.address())]);
    let (before, after) = (router.admin(), free());
    let text = config(&[(NAME, backend.address())], "").replace("admin: 127.0.0.1:0", &format!("admin: {after}"));
    assert_eq!(router.reload(&text)["message"], "reloaded");
    eventually("closed", || TcpStream::connect(before).is_err());
    assert!(TcpStream::connect(after).is_ok());
    router.reload(&text.replace(&format!("admin: {after}\n"), ""));
    eventually("closed, too", || TcpStream::connect(after).is_err());
    assert_eq!(ask(router.address(), NAME), answered("served"));
}

#[test]
fn addresses_change_hands_between_the_admin_and_a_listener() {
    let backend = Backend::named("served");
    let [one, two] = [free(), free()];
    let text = |listener: SocketAddr, admin: Option<SocketAddr>| {
        let admin = admin.map_or(String::new(), |admin| format!("admin: {admin}\n"));
        let text = config(&[(NAME, backend.address())], "");
        text.replace("listen: 127.0.0.1:0", &format!("listen: {listener}")).replace("admin: 127.0.0.1:0\n", &admin)
    };
    let router = Router::start(&text(one, Some(two)));
    for (listener, admin) in [(two, Some(one)), (one, Some(two)), (two, None), (one, Some(two))] {
        assert_eq!(router.reload(&text(listener, admin))["message"], "reloaded");
        eventually("the listener serves", || {
            TcpStream::connect(listener).is_ok() && ask(listener, NAME) == answered("served")
        });
        if let Some(admin) = admin {
            eventually("the admin answers", || {
                let Ok(stream) = TcpStream::connect(admin) else { return false };
                let mut client = Client { stream };
                client.write(format!("GET /livez HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n").as_bytes());
                client.rest().0.starts_with(b"HTTP/1.1 200")
            });
        }
    }
}

#[test]
fn g10_a_hello_that_arrived_before_goes_where_it_would_have_gone() {
    let (old, new) = (Backend::named("old"), Backend::named("new"));
    let router = Router::routing(&[(NAME, old.address())]);
    let hello = Hello::to(NAME).record();
    let mut client = Client::send(router.address(), &hello[..20]);
    eventually("accepted", || connections(&router, "_none") == 1.0);
    router.reload(&config(&[(NAME, new.address())], ""));
    client.write(&hello[20..]);
    client.finish();
    assert_eq!(client.rest(), answered("old"));
    assert_eq!(ask(router.address(), NAME), answered("new"));
}

/// Two routes, one of which goes: what becomes of its connection.
fn removed(policy: &str, is_cut: bool) {
    let (backend, held) = Backend::held();
    let text = |policy: &str| {
        format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ntimeouts: {{drain: 300ms}}\nroutes:\n  - {{sni: {OTHER}, upstream: \"{}\"}}\n{policy}",
            backend.address()
        )
    };
    let leaving =
        format!("  - {{sni: {NAME}, upstream: {{endpoints: \"{}\", on_remove: {policy}}}}}\n", backend.address());
    let router = Router::start(&text(&leaving));
    let mut clients: Vec<Client> =
        [NAME, OTHER].map(|name| Client::send(router.address(), &Hello::to(name).record())).into();
    let _upstreams: Vec<TcpStream> = (0..2).map(|_| held.recv_timeout(PATIENCE).unwrap()).collect();
    eventually("both", || connections(&router, NAME) + connections(&router, OTHER) == 2.0);

    assert_eq!(router.reload(&text(""))["removed"], 1);
    assert_eq!(ask(router.address(), NAME), (alert(112), End::Fin), "no new ones");
    assert_eq!(connections(&router, OTHER), 1.0);
    if is_cut {
        clients[0].rest();
        let account = router.account_of(clients[0].address());
        assert_eq!((account["outcome"].as_str(), account["route"].as_str()), (Some("drained"), Some(NAME)));
        router.wait("that it was cut", |line| {
            line["message"] == "closed connections of removed routes and endpoints" && line["closed"] == 1
        });
        let ended = router.metric(&format!(
            "snigate_connections_total{{listener=\"127.0.0.1:0\",route=\"{NAME}\",outcome=\"drained\"}}"
        ));
        assert_eq!((ended, connections(&router, NAME)), (1.0, 0.0), "a scraper sees the end of it");
    } else {
        // Longer than the drain would have been.
        clients[0].stream.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
        let waited = std::io::Read::read(&mut clients[0].stream, &mut [0]).unwrap_err();
        assert_eq!(waited.kind(), std::io::ErrorKind::WouldBlock, "still open");
        assert_eq!(connections(&router, NAME), 1.0, "and still counted");
    }
    clients[1].finish();
    assert_eq!(connections(&router, OTHER), 1.0);
}

#[test]
fn g11_connections_of_a_removed_route_are_drained() {
    removed("drain", true);
}

#[test]
fn g11_connections_of_a_removed_route_are_kept_if_the_operator_wants() {
    removed("keep", false);
}

#[test]
fn g11_connections_of_a_removed_route_are_cut_if_the_operator_wants() {
    removed("cut", true);
}

#[test]
fn g11_connections_of_a_removed_endpoint_follow_the_configuration_that_had_it() {
    let (backend, held) = Backend::held();
    let (other, _other_held) = Backend::held();
    let text = |endpoint: &Backend, policy: &str| {
        format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ntimeouts: {{drain: 100ms}}\nroutes:\n  - {{sni: {NAME}, upstream: \
             {{endpoints: \"{}\", on_remove: {policy}}}}}\n",
            endpoint.address()
        )
    };
    for (before, after) in [("keep", "cut"), ("cut", "keep")] {
        let router = Router::start(&text(&backend, before));
        let mut client = Client::send(router.address(), &Hello::to(NAME).record());
        let mut upstream = held.recv_timeout(PATIENCE).unwrap();
        eventually("connected", || connections(&router, NAME) == 1.0);
        router.reload(&text(&other, after));
        if before == "cut" {
            client.rest();
            assert_eq!(router.account_of(client.address())["outcome"], "drained");
        } else {
            router.wait("it stays", |line| {
                line["message"] == "connections of removed routes and endpoints stay open (on_remove: keep)"
            });
            std::io::Write::write_all(&mut upstream, b"still here").unwrap();
            assert_eq!(client.read(10), b"still here");
        }
    }
}

#[test]
fn g11_an_endpoint_that_returns_and_goes_again_follows_its_last_removal_only() {
    let (backend, held) = Backend::held();
    let (other, other_held) = Backend::held();
    let text = |routes: &str| format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n{routes}");
    let route = |name: &str, endpoint: &Backend, policy: &str| {
        format!("  - {{sni: {name}, upstream: {{endpoints: \"{}\", on_remove: {policy}}}}}\n", endpoint.address())
    };
    let router = Router::start(&text(&(route(NAME, &backend, "cut") + &route(OTHER, &other, "cut"))));
    // While its hello arrives, what the next reload removes is not done with.
    let hello = Hello::to(OTHER).record();
    let mut late = Client::send(router.address(), &hello[..10]);
    eventually("accepted", || connections(&router, "_none") == 1.0);
    router.reload(&text(&route(NAME, &other, "keep")));
    router.reload(&text(&route(NAME, &backend, "keep")));
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    let mut upstream = held.recv_timeout(PATIENCE).unwrap();
    router.reload(&text(&route(NAME, &other, "keep")));
    late.write(&hello[10..]);
    let _late_upstream = other_held.recv_timeout(PATIENCE).unwrap();
    late.rest();
    let done =
        router.wait("it is done with", |line| line["message"] == "closed connections of removed routes and endpoints");
    assert_eq!(done["closed"], 1, "only what the first reload has removed");
    std::io::Write::write_all(&mut upstream, b"still here").unwrap();
    assert_eq!(client.read(10), b"still here");
}

/// A route to these, with a check that sees nothing wrong in a listener.
fn pool(endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
    let check = "health_check: {interval: 100ms, fall: 2, rise: 2}";
    format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ntimeouts: {{drain: 200ms}}\nroutes:\n  - sni: {NAME}\n    upstream: {{endpoints: [{}], {check}{more}}}\n",
        endpoints.join(", ")
    )
}

#[test]
fn endpoints_that_stay_keep_health_and_connections_and_those_that_go_are_drained() {
    let (first, held) = Backend::held();
    let (second, also_held) = Backend::held();
    let dead = free();
    let router = Router::start(&pool(&[first.address(), second.address(), dead], ""));
    let state = |endpoint: SocketAddr, state: &str| {
        router.metric(&format!("snigate_endpoint_state{{route=\"{NAME}\",endpoint=\"{endpoint}\",state=\"{state}\"}}"))
    };
    eventually("dead", || state(dead, "dead") == 1.0);
    let hello = Hello::to(NAME).record();
    let is_ours = |stream: &TcpStream| {
        // A check sends nothing.
        let mut byte = [0];
        stream.peek(&mut byte).is_ok_and(|length| length == 1)
    };
    let mut clients: Vec<Client> = (0..4).map(|_| Client::send(router.address(), &hello)).collect();
    let at = |held: &Receiver<TcpStream>| -> Vec<TcpStream> {
        std::iter::repeat_with(|| held.recv_timeout(PATIENCE).unwrap()).filter(is_ours).take(2).collect()
    };
    let (mut stay, _go) = (at(&held), at(&also_held));
    let open = |endpoint: SocketAddr| {
        router.metric(&format!("snigate_endpoint_connections{{route=\"{NAME}\",endpoint=\"{endpoint}\"}}"))
    };
    eventually("two each", || open(first.address()) >= 2.0 && open(second.address()) >= 2.0);

    let told = router.reload(&pool(&[first.address(), dead], ", slow_start: 7s"));
    assert_eq!((told["changed"].as_u64(), told["removed"].as_u64()), (Some(1), Some(0)));
    assert_eq!(state(dead, "dead"), 1.0, "what was known is known");
    assert_eq!(open(first.address()), 2.0, "what was counted is counted");
    let ended = router.wait_many("two ends", 2, |line: &Value| line["outcome"] == "drained");
    assert!(ended.iter().all(|line| line["upstream.address"] == second.address().to_string()));
    for upstream in &mut stay {
        std::io::Write::write_all(upstream, b"x").unwrap();
    }
    for client in &mut clients {
        if ended.iter().any(|line| line["client.port"] == client.address().port()) {
            client.rest();
        } else {
            assert_eq!(client.read(1), b"x");
        }
    }
    assert_eq!(open(first.address()), 2.0);
    let log = router.log();
    let deaths = log.iter().filter(|line| line["message"] == "endpoint is dead").count();
    assert_eq!(deaths, 1, "it did not die again");
}

#[test]
fn connections_of_a_removed_endpoint_are_in_the_metrics_until_they_end() {
    let (backend, held) = Backend::held();
    let text = |endpoint: SocketAddr| {
        format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - {{sni: {NAME}, upstream: {{endpoints: \"{endpoint}\", on_remove: keep}}}}\n"
        )
    };
    let router = Router::start(&text(backend.address()));
    let client = Client::send(router.address(), &Hello::to(NAME).record());
    let upstream = held.recv_timeout(PATIENCE).unwrap();
    let labels = format!("route=\"{NAME}\",endpoint=\"{}\"", backend.address());
    let open = || router.metric(&format!("snigate_endpoint_connections{{{labels}}}"));
    eventually("it is counted", || open() == 1.0);
    router.reload(&text(closed()));
    assert_eq!(open(), 1.0, "it is kept");
    assert!(!router.get("/metrics").1.contains(&format!("snigate_endpoint_state{{{labels}")), "it has no state");
    drop((client, upstream));
    eventually("it has ended", || open() == 0.0);
}

#[test]
fn g11_connections_of_a_removed_route_are_open_in_the_status() {
    let (backend, held) = Backend::held();
    let text = |name: &str| {
        let endpoint = backend.address();
        format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - {{sni: {name}, upstream: {{endpoints: \"{endpoint}\", on_remove: keep}}}}\n"
        )
    };
    let router = Router::start(&text(NAME));
    let client = Client::send(router.address(), &Hello::to(NAME).record());
    let upstream = held.recv_timeout(PATIENCE).unwrap();
    let open = || {
        let status: Value = serde_json::from_str(&router.get("/api/status").1).unwrap();
        status["connections"]["open"].as_u64().unwrap()
    };
    eventually("it is counted", || open() == 1);
    router.reload(&text("other.example"));
    assert_eq!(open(), 1);
    drop((client, upstream));
    eventually("it has ended", || open() == 0);
}

#[test]
fn g12_what_is_read_at_the_start_only_is_refused_by_name() {
    let backend = Backend::echo();
    let routes = [(NAME, backend.address())];
    let router = Router::routing(&routes);
    for (key, more) in [("workers", "workers: 3\n"), ("log.format", "log: {format: text}\n")] {
        let told = router.reload(&config(&routes, more));
        let reason = told["reason"].as_str().unwrap();
        assert!(reason.contains(&format!("{key} cannot be changed from ")), "{reason}");
        assert!(reason.ends_with("by a reload; restart snigate, or upgrade it with SIGUSR2"), "{reason}");
    }
    // All else can.
    let more = "timeouts: {hello: 1s, idle: 1h}\ntcp: {keepalive: {idle: 7s}}\nlimits: {connections: 7}\nrelay: copy\nrefuse: close\nlog: {refusals_per_second: 1}\n";
    assert_eq!(router.reload(&config(&routes, more))["message"], "reloaded");
    assert_eq!(ask(router.address(), "unknown.example"), answered(""), "closed, and no alert");
    router.wait("the new limit", |line| line["message"] == "connection limit" && line["connections"] == 7);
    let hello = Hello::to(NAME).record();
    let connected = || {
        let mut client = Client::send(router.address(), &hello);
        assert_eq!(client.read(hello.len()), hello);
        client
    };
    let held: Vec<Client> = (0..7).map(|_| connected()).collect();
    router.wait("that it is reached", |line| {
        line["message"].as_str().is_some_and(|message| message.contains("limits.connections reached"))
    });
    drop(held);
    connected();
}

#[test]
fn a_reload_changes_the_level_of_the_log() {
    let backend = Backend::named("served");
    let routes = [(NAME, backend.address()), ("dead.example", closed())];
    let router = Router::routing(&routes);
    let bare = || {
        let client = Client::connect(router.address());
        client.finish();
        client.address().port()
    };
    let unseen = bare();
    router.reload(&config(&routes, "log: {level: debug}\n"));
    let seen = bare();
    assert_eq!(router.wait("a bare connect", |line| line["client.port"] == seen)["level"], "DEBUG");
    assert!(!router.log().iter().any(|line| line["client.port"] == unseen));

    std::fs::write(&router.config, config(&routes, "log: {level: warn}\n")).unwrap();
    router.signal(Signal::HUP);
    let mut warnings = 0;
    eventually("only warnings are left", || {
        ask(router.address(), NAME);
        ask(router.address(), "dead.example");
        warnings += 1;
        router.wait_many("the warning", warnings, |line| line["outcome"] == "connect_refused");
        let log = router.log();
        log.iter().rev().take(2).all(|line| line["level"] == "WARN")
    });
}

#[test]
fn g07_a_watched_file_that_removes_most_routes_is_applied_only_when_it_is_written_again() {
    let backend = Backend::named("served");
    let text = |names: &[&str]| {
        let routes: Vec<(&str, SocketAddr)> = names.iter().map(|name| (*name, backend.address())).collect();
        config(&routes, "watch: true\n")
    };
    let (all, few) = (text(&[NAME, OTHER, "c.example", "d.example"]), text(&[NAME]));
    let router = Router::start(&all);
    let held_back = |count: usize| {
        let told = router.wait_many("that it is held back", count, |line| {
            line["reason"].as_str().is_some_and(|reason| reason.contains("removes 3 of 4 routes"))
        });
        assert_eq!(told[count - 1]["message"], "reload failed; keeping the running configuration");
        assert_eq!(ask(router.address(), OTHER), answered("served"));
    };
    let reloaded = |count: usize, by: &str| {
        let told = router.wait_many("the reload", count, |line| line["message"] == "reloaded");
        assert_eq!(told[count - 1]["by"], by);
    };
    std::fs::write(&router.config, &few).unwrap();
    held_back(1);
    assert_eq!(router.metric("snigate_config_last_reload_successful"), 0.0);
    std::fs::write(&router.config, &few).unwrap();
    reloaded(1, "watch");
    assert_eq!(ask(router.address(), OTHER), (alert(112), End::Fin));

    std::fs::write(&router.config, &all).unwrap();
    reloaded(2, "watch");
    std::fs::write(&router.config, &few).unwrap();
    held_back(2);
    router.signal(Signal::HUP);
    reloaded(3, "SIGHUP");
}

#[test]
fn g07_what_an_operator_has_approved_is_tried_again_although_it_removes_most_routes() {
    let (backend, held) = Backend::held();
    let other = TcpListener::bind(free()).unwrap();
    let text = |listen: &str, names: &[&str]| {
        let routes: Vec<(&str, SocketAddr)> = names.iter().map(|name| (*name, backend.address())).collect();
        let text = config(&routes, "watch: true\ntimeouts: {idle: 15s}\n");
        text.replace("listen: 127.0.0.1:0", &format!("listen: {listen}"))
    };
    let router = Router::start(&text("127.0.0.1:0", &[NAME, OTHER, "c.example", "d.example"]));
    let taken = format!("[127.0.0.1:0, \"{}\"]", other.local_addr().unwrap());
    std::fs::write(&router.config, text(&taken, &[NAME])).unwrap();
    router.signal(Signal::HUP);
    let failed = |line: &Value| line["message"] == "reload failed; keeping the running configuration";
    router.wait("that it fails", |line| {
        failed(line) && line["by"] == "SIGHUP" && line["reason"].as_str().unwrap().contains("in use")
    });
    drop(other);
    let reloaded = retried(&router, &held);
    assert_eq!((&reloaded["by"], &reloaded["removed"]), (&"watch".into(), &3.into()));
}

/// The reload after one that failed, with `idle: 15s`.
fn retried(router: &Router, held: &Receiver<TcpStream>) -> Value {
    // Which takes half a minute; this client tells when half of that is over.
    let client = Client::send(router.address(), &Hello::to(NAME).record());
    let _upstream = held.recv_timeout(PATIENCE).unwrap();
    assert_eq!(router.account_of(client.address())["outcome"], "idle_timeout");
    router.wait("the reload", |line| line["message"] == "reloaded")
}

#[test]
fn g07_a_watched_file_is_taken_however_it_is_replaced() {
    let backends = [Backend::named("first"), Backend::named("second"), Backend::named("third")];
    let text = |number: usize, more: &str| config(&[(NAME, backends[number].address())], more);
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    // As a ConfigMap is mounted.
    for (number, version) in ["..1", "..2"].into_iter().enumerate() {
        std::fs::create_dir(path(version)).unwrap();
        std::fs::write(path(version).join("snigate.yaml"), text(number, "")).unwrap();
    }
    symlink("..1", path("..data")).unwrap();
    symlink("..data/snigate.yaml", path("snigate.yaml")).unwrap();
    let mut command = snigate();
    command.args(["run", "--watch", "-c"]).arg(path("snigate.yaml"));
    let config_file = path("snigate.yaml");
    let router = Router::spawn(command, config_file.clone(), directory);
    assert_eq!(ask(router.address(), NAME), answered("first"));

    let directory = config_file.parent().unwrap();
    symlink("..2", directory.join("..new")).unwrap();
    std::fs::rename(directory.join("..new"), directory.join("..data")).unwrap();
    router.wait("the second", |line| line["message"] == "reloaded");
    assert_eq!(ask(router.address(), NAME), answered("second"));

    std::fs::write(directory.join("edited"), "listen: nonsense\n").unwrap();
    std::fs::rename(directory.join("edited"), &config_file).unwrap();
    router.wait("the refusal", |line| line["message"] == "reload failed; keeping the running configuration");
    std::fs::write(&config_file, text(2, "watch: true\n")).unwrap();
    router.wait_many("the third", 2, |line| line["message"] == "reloaded");
    assert_eq!(ask(router.address(), NAME), answered("third"));
}

#[test]
fn without_a_file_there_is_nothing_to_reload() {
    let backend = Backend::named("served");
    let mut command = snigate();
    command.args(["run", "--listen", "127.0.0.1:0", "--default", &backend.address().to_string()]);
    let directory = TempDir::new().unwrap();
    let router = Router::spawn(command, directory.path().into(), directory);
    assert_eq!(ask(router.address(), NAME), answered("served"));
    router.signal(Signal::HUP);
    router.wait("why not", |line| {
        line["message"].as_str().is_some_and(|told| {
            told.contains("reload failed") && line["reason"] == "no configuration file: snigate was started without one"
        })
    });
    assert_eq!(ask(router.address(), NAME), answered("served"));
}

#[test]
fn g07_a_watched_file_that_could_not_be_applied_is_tried_again() {
    let (backend, held) = Backend::held();
    // Of an address that no other test takes as soon as this one frees it.
    let other = TcpListener::bind(free()).unwrap();
    let text = |listen: &str| {
        let text = config(&[(NAME, backend.address())], "watch: true\ntimeouts: {idle: 15s}\n");
        text.replace("listen: 127.0.0.1:0", &format!("listen: {listen}"))
    };
    let router = Router::start(&text("127.0.0.1:0"));
    std::fs::write(&router.config, text(&format!("[127.0.0.1:0, \"{}\"]", other.local_addr().unwrap()))).unwrap();
    let failed = |line: &Value| line["message"] == "reload failed; keeping the running configuration";
    assert!(router.wait("that it fails", failed)["reason"].as_str().unwrap().contains("in use"));
    drop(other);
    let reloaded = retried(&router, &held);
    assert_eq!((&reloaded["by"], &reloaded["listeners"]), (&"watch".into(), &2.into()));
    assert_eq!(router.metric("snigate_config_last_reload_successful"), 1.0);
}

#[test]
fn g08_a_thousand_routes_a_hundred_times_leave_memory_and_descriptors_flat() {
    let backend = Backend::named("served");
    let names: Vec<String> = (0..1000).map(|number| format!("n{number}.example")).collect();
    let text = |skipped: usize| {
        let routes: Vec<(&str, SocketAddr)> = names
            .iter()
            .enumerate()
            .filter(|(number, _)| *number != skipped)
            .map(|(_, name)| (name.as_str(), backend.address()))
            .collect();
        config(&routes, "timeouts: {drain: 0s}\n")
    };
    let router = Router::start(&text(1000));
    let mut memory = Vec::new();
    for round in 0..100 {
        assert_eq!(router.reload(&text(round))["message"], "reloaded");
        memory.push(router.memory());
    }
    let before = router.descriptors();
    assert!(before < 40, "{before} descriptors");
    let (early, late) = (memory[20], memory[99]);
    assert!(late < early * 1.3, "{early} B after 20 reloads, {late} B after 100");
    assert_eq!(ask(router.address(), "n5.example"), answered("served"));
}

#[test]
fn g11_what_comes_back_before_it_is_drained_keeps_its_connections() {
    let (first, held) = Backend::held();
    let (second, also_held) = Backend::held();
    let pool = |addresses: &[SocketAddr]| {
        format!("{{endpoints: {:?}}}", addresses.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let text = |routes: &[(&str, &[SocketAddr])]| {
        let routes: String = routes
            .iter()
            .map(|(name, addresses)| format!("  - {{sni: {name}, upstream: {}}}\n", pool(addresses)))
            .collect();
        format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ntimeouts: {{drain: 1s}}\nroutes:\n{routes}")
    };
    let (one, both): (&[_], &[_]) = (&[first.address()], &[first.address(), second.address()]);
    let router = Router::start(&text(&[(NAME, both), (OTHER, one), ("last.example", one)]));
    let mut clients: Vec<Client> = [NAME, NAME, OTHER, "last.example"]
        .map(|name| Client::send(router.address(), &Hello::to(name).record()))
        .into();
    let mut upstreams = vec![also_held.recv_timeout(PATIENCE).unwrap()];
    upstreams.extend((0..3).map(|_| held.recv_timeout(PATIENCE).unwrap()));

    // An endpoint and a route go, and come back; one more route goes, whose end tells that the time of all is over.
    router.reload(&text(&[(NAME, one), ("last.example", one)]));
    assert_eq!(router.reload(&text(&[(NAME, both), (OTHER, one), ("last.example", one)]))["added"], 1);
    router.reload(&text(&[(NAME, both), (OTHER, one)]));
    clients[3].rest();
    router.wait("the end", |line| line["message"] == "closed connections of removed routes and endpoints");
    for upstream in &mut upstreams {
        let _ = std::io::Write::write_all(upstream, b"x");
    }
    for client in &mut clients[..3] {
        assert_eq!(client.read(1), b"x");
    }
    assert_eq!(router.log().iter().filter(|line| line["outcome"] == "drained").count(), 1);
}

#[test]
fn g11_a_route_that_comes_back_has_what_it_had_kept() {
    let (first, held) = Backend::held();
    let (second, also_held) = Backend::held();
    let text = |routes: &[(&str, &str)]| {
        let routes: String =
            routes.iter().map(|(name, upstream)| format!("  - {{sni: {name}, upstream: {upstream}}}\n")).collect();
        format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ntimeouts: {{drain: 1s}}\nroutes:\n{routes}")
    };
    let (one, other) = (first.address(), second.address());
    let keeps = format!("{{endpoints: [\"{one}\"], on_remove: keep}}");
    let drains = format!("{{endpoints: [\"{other}\"], on_remove: drain}}");
    let router = Router::start(&text(&[(NAME, &keeps), (OTHER, &drains)]));
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    let mut last = Client::send(router.address(), &Hello::to(OTHER).record());
    let (mut upstream, _other) = (held.recv_timeout(PATIENCE).unwrap(), also_held.recv_timeout(PATIENCE).unwrap());

    // The endpoint goes, and its connection stays; then the route goes, and comes back while it drains. The end of another
    // route tells that the time is over.
    router.reload(&text(&[(NAME, &drains), (OTHER, &drains)]));
    router.reload(&text(&[(OTHER, &drains)]));
    assert_eq!(router.reload(&text(&[(NAME, &drains), (OTHER, &drains)]))["added"], 1);
    router.reload(&text(&[(NAME, &drains)]));
    last.rest();
    router.wait("the end", |line| line["message"] == "closed connections of removed routes and endpoints");
    std::io::Write::write_all(&mut upstream, b"x").unwrap();
    assert_eq!(client.read(1), b"x");
}

#[test]
fn g11_what_was_to_drain_before_its_route_went_drains_when_the_route_is_back() {
    let ((first, _), (second, held)) = (Backend::held(), Backend::held());
    let (one, other) = (first.address(), second.address());
    let text = |routes: &[(&str, SocketAddr)]| config(routes, "timeouts: {drain: 2s}\n");
    let router = Router::start(&text(&[(NAME, other), (OTHER, one)]));
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    let _upstream = held.recv_timeout(PATIENCE).unwrap();
    // Its endpoint goes; then the route, which comes back before the connection is closed.
    router.reload(&text(&[(NAME, one), (OTHER, one)]));
    router.reload(&text(&[(OTHER, one)]));
    assert_eq!(router.reload(&text(&[(NAME, one), (OTHER, one)]))["added"], 1);
    client.rest();
    let account = router.account_of(client.address());
    assert_eq!((&account["outcome"], &account["route"]), (&"drained".into(), &NAME.into()), "{account}");
}

#[test]
fn g11_a_route_that_comes_back_while_its_connections_are_cut_has_the_rest() {
    const CLIENTS: usize = 1500;
    let backend = Backend::echo();
    let routes = |names: &[&str]| {
        let route = |name| {
            format!("  - {{sni: {name}, upstream: {{endpoints: [\"{}\"], on_remove: cut}}}}\n", backend.address())
        };
        format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n{}", names.iter().map(route).collect::<String>())
    };
    let router = Router::start(&routes(&[NAME, OTHER]));
    let hello = Hello::to(NAME).record();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::send(router.address(), &hello)).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.read(hello.len()), hello));
    router.reload(&routes(&[OTHER]));
    assert_eq!(router.reload(&routes(&[NAME, OTHER]))["added"], 1);
    let told = router.wait("the end", |line| line["message"] == "closed connections of removed routes and endpoints");
    let closed = usize::try_from(told["closed"].as_u64().unwrap()).unwrap();
    assert!(closed < CLIENTS, "all of them");
    eventually("the others stay", || connections(&router, NAME) == (CLIENTS - closed) as f64);
}

#[test]
fn g10_g11_a_hello_that_outlasts_two_reloads_leads_nowhere_for_long() {
    let ((backend, held), (other, also_held)) = (Backend::held(), Backend::held());
    let (all, none) = ([(NAME, backend.address()), (OTHER, other.address())], [("c.example", other.address())]);
    let more = "timeouts: {drain: 1s}\n";
    let router = Router::start(&config(&all, more));
    let mut last = Client::send(router.address(), &Hello::to(OTHER).record());
    let _other = also_held.recv_timeout(PATIENCE).unwrap();
    let hello = Hello::to(NAME).record();
    let mut slow = Client::send(router.address(), &hello[..20]);
    eventually("it is waited for", || connections(&router, "_none") == 1.0);
    router.reload(&config(&all, more));
    router.reload(&config(&none, more));
    // The end of the other tells that the time is over.
    last.rest();
    std::io::Write::write_all(&mut slow.stream, &hello[20..]).unwrap();
    let _upstream = held.recv_timeout(PATIENCE).unwrap();
    slow.rest();
    assert_eq!(router.account_of(slow.address())["outcome"], "drained");
}

#[test]
fn g05_a_pipe_in_place_of_the_file_holds_nothing_up() {
    let backend = Backend::named("served");
    let mut router = Router::start(&config(&[(NAME, backend.address())], "workers: 1\n"));
    std::fs::remove_file(&router.config).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&router.config).status().unwrap().success());
    let told = router.reload_as_it_is();
    assert!(told["reason"].as_str().unwrap().ends_with("not a regular file"), "{told}");
    assert_eq!(ask(router.address(), NAME), answered("served"));
    let output = snigate().args(["run", "-c"]).arg(&router.config).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    router.signal(Signal::TERM);
    assert_eq!(router.exit().code(), Some(0));
}

#[test]
fn limits_go_down_and_up_under_connections() {
    let backend = Backend::echo();
    let text = |limit: usize| config(&[(NAME, backend.address())], &format!("limits: {{connections: {limit}}}\n"));
    let router = Router::start(&text(20));
    let hello = Hello::to(NAME).record();
    let open = || {
        let mut client = Client::send(router.address(), &hello);
        client.read(hello.len());
        client
    };
    let mut clients: Vec<Client> = (0..20).map(|_| open()).collect();
    for limit in [5, 12, 3, 8] {
        assert_eq!(router.reload(&text(limit))["message"], "reloaded");
    }
    // None of those that are open is cut. When they have ended, there is room for eight.
    for client in &mut clients {
        client.write(b"there?");
        client.read(6);
    }
    for client in clients.drain(..) {
        client.finish();
    }
    eventually("all have ended", || connections(&router, NAME) == 0.0);
    clients.extend((0..8).map(|_| open()));
    let mut waits = Client::send(router.address(), &hello);
    router.wait("that the limit is reached", |line| {
        line["message"].as_str().is_some_and(|message| message.contains("limits.connections reached"))
    });
    assert_eq!(connections(&router, NAME), 8.0);
    clients.pop().unwrap().finish();
    assert_eq!(waits.read(hello.len()), hello);
}
