//! Who may come in, and how many at a time.

use std::net::SocketAddr;

use crate::support::client::{alert, ask_from, client_from, refused, served};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, Router, eventually};

const NAME: &str = "a.example";

const DENIED: u8 = 49;
const OVER_LIMIT: u8 = 80;

#[test]
fn e03_a_listener_lets_in_whom_it_may() {
    let backend = Backend::named("served");
    let text = config(&[(NAME, backend.address())], "").replace(
        "listen: 127.0.0.1:0",
        "listen: [{address: \"127.0.0.1:0\", allow: [127.0.0.0/16, 127.3.0.1], deny: 127.0.0.7}]",
    );
    let router = Router::start(&text);
    for (from, allowed) in
        [("127.0.0.1", true), ("127.0.255.255", true), ("127.3.0.1", true), ("127.3.0.2", false), ("127.0.0.7", false)]
    {
        assert_eq!(ask_from(from, router.address(), NAME), if allowed { served() } else { refused(DENIED) }, "{from}");
    }
    assert_eq!(backend.accepted(), 3, "nobody else reached it");
    let account = router.wait("who was refused", |line| line["client.address"] == "127.0.0.7");
    assert_eq!((account["outcome"].as_str(), account["level"].as_str()), (Some("denied"), Some("INFO")));
    assert_eq!(account["reason"], "the client's address is not allowed at this listener");
    // It is told before it has said anything.
    let mut silent = client_from("127.0.0.7", router.address());
    assert_eq!(silent.read(7), alert(DENIED));
}

#[test]
fn e02_a_route_lets_in_whom_it_may_whatever_the_family_of_the_listener() {
    let backend = Backend::named("served");
    let text = format!(
        "listen: \"[::]:0\"\nadmin: 127.0.0.1:0\nroutes:\n  - {{sni: {NAME}, allow: 127.0.0.2, upstream: \"{0}\"}}\n  - {{sni: b.example, deny: \"::ffff:127.0.0.0/104\", upstream: \"{0}\"}}\n",
        backend.address()
    );
    let router = Router::start(&text);
    let address = SocketAddr::new("127.0.0.1".parse().unwrap(), router.address().port());
    assert_eq!(ask_from("127.0.0.2", address, NAME), served());
    assert_eq!(ask_from("127.0.0.3", address, NAME), refused(DENIED));
    let mut other = Client::send(address, &Hello::to("b.example").record());
    assert_eq!(other.rest().0, alert(DENIED));
    assert_eq!(backend.accepted(), 1, "no dial for who is not allowed");
    let account = router.wait("who was refused", |line| line["outcome"] == "denied");
    assert_eq!((account["route"].as_str(), account["client.address"].as_str()), (Some(NAME), Some("127.0.0.3")));
    eventually("it is counted for its route", || {
        router.metric("snigate_connections_total{listener=\"[::]:0\",route=\"a.example\",outcome=\"denied\"}") == 1.0
    });
}

#[test]
fn f16_a_route_has_no_more_connections_than_it_may() {
    let backend = Backend::echo();
    let text = |limit: u32| {
        format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - {{sni: {NAME}, max_connections: {limit}, upstream: \"{0}\"}}\n  - {{sni: b.example, upstream: \"{0}\"}}\n",
            backend.address()
        )
    };
    let router = Router::start(&text(2));
    let hello = Hello::to(NAME).record();
    let connect = || {
        let mut client = Client::send(router.address(), &hello);
        assert_eq!(client.read(hello.len()), hello);
        client
    };
    let held = [connect(), connect()];
    for _ in 0..3 {
        let mut client = Client::send(router.address(), &hello);
        assert_eq!(client.rest().0, alert(OVER_LIMIT));
        let account = router.account_of(client.address());
        assert_eq!((account["outcome"].as_str(), account["route"].as_str()), (Some("over_limit"), Some(NAME)));
        assert_eq!(account["reason"], "the route has reached max_connections: 2");
    }
    assert_eq!(backend.accepted(), 2);
    // Others have theirs.
    let other = Hello::to("b.example").record();
    assert_eq!(Client::send(router.address(), &other).read(other.len()), other);
    router.reload(&text(3));
    let third = connect();
    assert_eq!(Client::send(router.address(), &hello).rest().0, alert(OVER_LIMIT));
    // Those that are refused and do not go take no place either.
    let refused = || {
        let mut client = Client::send(router.address(), &hello);
        assert_eq!(client.read(7), alert(OVER_LIMIT));
        client
    };
    let lingering = [refused(), refused(), refused()];
    drop(held);
    eventually("their places are free", || {
        Client::send(router.address(), &hello)
            .stream
            .peek(&mut [0; 7])
            .is_ok_and(|_| router.metric("snigate_connections_active{route=\"a.example\"}") < 3.0)
    });
    drop(third);
    connect();
    drop(lingering);
}

#[test]
fn f06_a_source_that_takes_all_it_may_takes_nothing_from_others() {
    let backend = Backend::named("served");
    let router = Router::start(&config(&[(NAME, backend.address())], "limits: {per_source: 5}\n"));
    let held: Vec<Client> = (0..5).map(|_| client_from("127.0.0.2", router.address())).collect();
    eventually("they are in", || router.metric("snigate_connections_active{route=\"_none\"}") == 5.0);
    for _ in 0..50 {
        assert_eq!(ask_from("127.0.0.2", router.address(), NAME), refused(OVER_LIMIT));
    }
    assert_eq!(ask_from("127.0.0.3", router.address(), NAME), served());
    let account = router.wait("who was refused", |line| line["outcome"] == "over_limit");
    assert_eq!(account["reason"], "the client's source has reached limits.per_source: 5 connections");
    // What it has counts for a new configuration, too.
    router.reload(&config(&[(NAME, backend.address())], "limits: {per_source: 6}\n"));
    let sixth = client_from("127.0.0.2", router.address());
    eventually("it is in", || router.metric("snigate_connections_active{route=\"_none\"}") == 6.0);
    assert_eq!(ask_from("127.0.0.2", router.address(), NAME), refused(OVER_LIMIT));
    drop((held, sixth));
    eventually("it has room again", || ask_from("127.0.0.2", router.address(), NAME) == served());
}

#[test]
fn a_source_that_comes_too_fast_is_slowed_down() {
    let backend = Backend::named("served");
    let router = Router::start(&config(&[(NAME, backend.address())], "limits: {new_per_source: 10/h}\n"));
    for _ in 0..10 {
        assert_eq!(ask_from("127.0.0.2", router.address(), NAME), served());
    }
    assert_eq!(ask_from("127.0.0.2", router.address(), NAME), refused(OVER_LIMIT));
    assert_eq!(ask_from("127.0.0.3", router.address(), NAME), served());
    let account = router.wait("who was refused", |line| line["outcome"] == "over_limit");
    assert_eq!(account["reason"], "the client's source exceeds limits.new_per_source: 10/h");
}

#[test]
fn f16_a_route_that_gets_too_many_new_connections_takes_nothing_from_others() {
    let backend = Backend::named("served");
    let limited = |rate: &str| {
        format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - {{sni: {NAME}, new_connections: {rate}, upstream: \"{0}\"}}\n  - {{sni: b.example, upstream: \"{0}\"}}\n",
            backend.address()
        )
    };
    let router = Router::start(&limited("10/h"));
    for number in 0..10 {
        assert_eq!(ask_from(&format!("127.0.0.{}", 2 + number), router.address(), NAME), served());
    }
    assert_eq!(ask_from("127.0.0.2", router.address(), NAME), refused(OVER_LIMIT));
    let account = router.wait("who was refused", |line| line["outcome"] == "over_limit");
    assert_eq!(
        (&account["reason"], &account["route"]),
        (&"the route exceeds new_connections: 10/h".into(), &NAME.into())
    );
    let over = "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"a.example\",outcome=\"over_limit\"}";
    eventually("it is counted", || router.metric(over) == 1.0);
    let mut other = Client::send(router.address(), &Hello::to("b.example").record());
    other.finish();
    assert_eq!(other.rest(), served());

    // What was used of a rate counts for the next one.
    router.reload(&limited("11/h"));
    assert_eq!(ask_from("127.0.0.2", router.address(), NAME), refused(OVER_LIMIT));
    router.reload(&limited("1000/s"));
    eventually("the higher rate applies", || ask_from("127.0.0.2", router.address(), NAME) == served());
}

#[test]
fn e22_clients_are_denied_by_their_fingerprint() {
    const PLAIN: &str = "t13d040500_77f0cd3447db_e12c865f31a5";
    const H2: &str = "t13d0406h2_77f0cd3447db_e12c865f31a5";
    let backend = Backend::named("served");
    let router = Router::start(&format!(
        "listen: [{{address: \"127.0.0.1:0\", deny_ja4: {PLAIN}}}]\nroutes:\n  - {{sni: {NAME}, deny_ja4: [{PLAIN}, {H2}], upstream: \"{0}\"}}\n  - {{sni: b.example, upstream: \"{0}\"}}\n",
        backend.address()
    ));
    for (hello, fingerprint, denied) in [
        (Hello::to("b.example"), PLAIN, Some("at this listener")),
        (Hello::to(NAME).alpn(&["h2"]), H2, Some("for this route")),
        (Hello::to("b.example").alpn(&["h2"]), H2, None),
        (Hello::to(NAME).alpn(&["h3"]), "t13d0406h3_77f0cd3447db_e12c865f31a5", None),
    ] {
        // However it is cut into records.
        for bytes in [hello.record(), hello.records(20)] {
            let mut client = Client::send(router.address(), &bytes);
            client.finish_if_open();
            assert_eq!(client.rest(), if denied.is_some() { refused(DENIED) } else { served() });
            let account = router.account_of(client.address());
            assert_eq!(account["tls.client.ja4"], fingerprint);
            if let Some(place) = denied {
                assert_eq!(account["outcome"], "denied");
                assert_eq!(account["reason"], format!("the client's JA4 fingerprint is denied {place}"));
            }
        }
    }
    assert_eq!(backend.accepted(), 4, "nobody else reached it");
}

#[test]
fn thousands_of_networks_are_looked_up_at_once() {
    let backend = Backend::named("served");
    let networks: Vec<String> = (0..5000).map(|number| format!("10.{}.{}.0/25", number / 250, number % 250)).collect();
    let text = format!(
        "listen: 127.0.0.1:0\nroutes:\n  - {{sni: {NAME}, allow: [127.0.0.1, {}], upstream: \"{}\"}}\n",
        networks.join(", "),
        backend.address()
    );
    let router = Router::start(&text);
    assert_eq!(ask_from("127.0.0.1", router.address(), NAME), served());
    assert_eq!(ask_from("127.0.0.2", router.address(), NAME), refused(DENIED));
}
