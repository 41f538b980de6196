//! Names of endpoints: what a name server may say, and what ports and addresses may do.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use rustix::process::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::support::client::{End, alert};
use crate::support::network::{Answer, NameServer, alone};
use crate::support::{Backend, Client, Hello, Router, eventually};

const NAME: &str = "a.example";
const PORT: u16 = 6443;

fn config(listen: &str, upstream: &str) -> String {
    format!(
        "listen: {listen}\nadmin: 127.0.0.1:9443\nroutes:\n  - sni: {NAME}\n    upstream: {{{upstream}, slow_start: 0s}}\n"
    )
}

fn named() -> String {
    config("127.0.0.9:6443", &format!("endpoints: \"api.test:{PORT}\", resolve_every: 50ms, connect: {{timeout: 2s}}"))
}

/// An API server that says `here` first.
fn serve(ip: &str) -> Backend {
    let address = SocketAddr::new(ip.parse().unwrap(), PORT);
    Backend::start_on(std::net::TcpListener::bind(address).unwrap(), |mut stream| {
        let _ = stream.write_all(b"here");
        let _ = stream.read_to_end(&mut Vec::new());
    })
}

fn ips(ips: &[&str]) -> Answer {
    Answer::Addresses(ips.iter().map(|ip| ip.parse().unwrap()).collect())
}

fn ask(router: &Router) -> ((Vec<u8>, End), Value) {
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    client.finish();
    let told = client.rest();
    (told, router.account_of(client.address()))
}

fn told(router: &Router, message: &str, key: &str, value: &str) -> Value {
    router.wait(message, |line| line["message"] == message && line[key] == value)
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn c01_c02_c03_c07_addresses_that_change_vanish_and_lead_to_ourselves() {
    alone(&named(), "true", |router| {
        let _servers = [serve("127.0.0.2"), serve("127.0.0.3")];
        let names = NameServer::start(Answer::NoSuchName);
        let failed = told(router, "cannot resolve hostname; keeping the last addresses", "name", "api.test:6443");
        assert_eq!((failed["kept"].as_u64(), failed["level"].as_str()), (Some(0), Some("WARN")));
        let (refused, account) = ask(router);
        assert_eq!((refused, account["outcome"].as_str()), ((alert(80), End::Fin), Some("no_endpoint")));
        assert!(account["reason"].as_str().unwrap().contains("api.test"), "{account}");
        let duration = account["duration_ms"].as_f64().unwrap();
        assert!(account["connect_ms"].is_null() && duration < 1000.0, "fails fast: {account}");

        names.say(ips(&["127.0.0.2"]));
        told(router, "addresses changed", "added", "127.0.0.2:6443");
        let mut held = Client::send(router.address(), &Hello::to(NAME).record());
        assert_eq!(held.read(4), b"here");

        names.say(ips(&["127.0.0.3"]));
        let gone = told(router, "addresses changed", "removed", "127.0.0.2:6443");
        assert_eq!(gone["connections"], 1);
        assert_eq!(ask(router).1["upstream.address"], "127.0.0.3:6443");

        names.say(ips(&[]));
        router.wait("that the last is kept", |line| line["kept"] == 1);
        assert_eq!(ask(router).1["upstream.address"], "127.0.0.3:6443");

        names.say(ips(&["127.0.0.9"]));
        told(router, "endpoint ignored: it is one of snigate's own listeners", "endpoint", "127.0.0.9:6443");
        let (refused, account) = ask(router);
        assert_eq!((refused, account["outcome"].as_str()), ((alert(80), End::Fin), Some("loop")));

        held.finish();
        assert_eq!(held.rest(), (Vec::new(), End::Fin), "it has seen it all");
    });
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn c02_c04_c06_what_a_name_server_should_not_say_changes_nothing() {
    alone(&named(), "true", |router| {
        let _server = serve("127.0.0.2");
        let names = NameServer::start(ips(&["127.0.0.2"]));
        told(router, "addresses changed", "added", "127.0.0.2:6443");
        let elsewhere: IpAddr = "127.0.0.3".parse().unwrap();
        let strange = [
            Answer::ServerFailure,
            Answer::Silence,
            Answer::Circle,
            Answer::Forged(elsewhere),
            Answer::CompressionLoop,
            Answer::NoSuchName,
        ];
        // It may have been asked before the name server was there.
        let is_resolved = |line: &Value| line["message"] == "hostname resolves again";
        let before = router.log().iter().filter(|line| is_resolved(line)).count();
        for (number, answer) in strange.into_iter().enumerate() {
            let what = format!("{answer:?}");
            names.say(answer);
            let kept = router.wait_many(&what, number + 1, |line| line["kept"] == 1).pop().unwrap();
            assert!(kept["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{what}: {kept}");
            let ((said, _), account) = ask(router);
            assert_eq!((said.as_slice(), &account["upstream.address"]), (&b"here"[..], &"127.0.0.2:6443".into()));
            assert!(account["connect_ms"].as_f64().unwrap() < 500.0, "{what}: no connection waits for it: {account}");
            names.say(ips(&["127.0.0.2"]));
            router.wait_many("hostname resolves again", before + number + 1, is_resolved);
        }

        names.say(Answer::Chain(12, elsewhere));
        told(router, "addresses changed", "added", "127.0.0.3:6443");

        // Five hundred, by TCP, cut to what anybody has.
        names.say(Answer::Addresses((0..500).map(|n| IpAddr::from([127, 1, n as u8, (n >> 8) as u8])).collect()));
        eventually("many", || router.get("/metrics").1.matches("snigate_endpoint_state{").count() == 3 * 64);
    });
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn c08_addresses_of_a_family_that_leads_nowhere_are_passed_over() {
    alone(&named(), "ip addr add 2001:db8::1/128 dev lo nodad", |router| {
        let _servers = [serve("127.0.0.2"), serve("2001:db8::1")];
        let names = NameServer::start(ips(&["2001:db8::1"]));
        told(router, "addresses changed", "added", "[2001:db8::1]:6443");
        assert_eq!(ask(router).1["upstream.address"], "[2001:db8::1]:6443", "AAAA only");

        names.say(ips(&["127.0.0.2"]));
        told(router, "addresses changed", "added", "127.0.0.2:6443");
        assert_eq!(ask(router).1["upstream.address"], "127.0.0.2:6443", "A only");

        // There is no route to the first.
        names.say(ips(&["2001:db8:1::1", "127.0.0.2"]));
        told(router, "addresses changed", "added", "[2001:db8:1::1]:6443");
        for _ in 0..4 {
            assert_eq!(ask(router).1["upstream.address"], "127.0.0.2:6443");
        }
    });
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn a_name_that_turns_its_addresses_over_is_one_line_each_time() {
    alone(&named(), "true", |router| {
        let all: Vec<String> = (10..18).map(|last| format!("127.0.0.{last}")).collect();
        let slice = |from: usize| (from..from + 4).map(|number| &*all[number % 8]).collect::<Vec<_>>();
        let names = NameServer::start(ips(&slice(0)));
        let changes = || router.log().iter().filter(|line| line["message"] == "addresses changed").count();
        let list = |ips: &[&str]| ips.iter().map(|ip| format!("{ip}:6443")).collect::<Vec<_>>().join(", ");
        told(router, "addresses changed", "added", &list(&slice(0)));
        for turn in [4, 0, 4] {
            // The same in another order is no change, whether it is seen or not.
            let mut turned = slice((turn + 4) % 8);
            turned.reverse();
            names.say(ips(&turned));
            let before = changes();
            names.say(ips(&slice(turn)));
            eventually("the change", || changes() > before);
            let line = router.log().into_iter().rfind(|line| line["message"] == "addresses changed").unwrap();
            assert_eq!(line["addresses"], 4, "{line}");
            let sorted = |value: &Value| {
                let mut list: Vec<String> = value.as_str().unwrap().split(", ").map(Into::into).collect();
                list.sort();
                list.join(", ")
            };
            assert_eq!(sorted(&line["added"]), list(&slice(turn)), "{line}");
            assert_eq!(sorted(&line["removed"]), list(&slice((turn + 4) % 8)), "{line}");
        }
        assert_eq!(changes(), 4);
    });
}

/// From a port that the kernel would not choose.
fn client_from(port: u16, router: SocketAddr) -> Client {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    socket.connect(&router.into()).unwrap();
    let mut client = Client { stream: socket.into() };
    client.write(&Hello::to(NAME).record());
    client
}

/// So that a close leaves no port in TIME_WAIT.
fn take_back(client: Client) {
    crate::support::backend::reset(client.stream);
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn b17_without_a_free_port_the_next_endpoint_serves_until_there_is_one() {
    // An even number: of an odd one the kernel does not always look at all.
    let ports = "echo 40000 40003 > /proc/sys/net/ipv4/ip_local_port_range";
    let config = config("127.0.0.1:443", "endpoints: [\"127.0.0.2:6443\", \"127.0.0.3:6443\"]");
    alone(&config, ports, |router| {
        let _servers = [serve("127.0.0.2"), serve("127.0.0.3")];
        // Four ports to each of two endpoints.
        let mut clients: Vec<Client> = (0..8).map(|n| client_from(50_000 + n, router.address())).collect();
        for client in &mut clients {
            assert_eq!(client.read(4), b"here");
        }
        let mut refused = client_from(50_100, router.address());
        refused.finish();
        assert_eq!(refused.rest(), (alert(80), End::Fin));
        let account = router.account_of(refused.address());
        assert_eq!((account["outcome"].as_str(), account["level"].as_str()), (Some("local_error"), Some("ERROR")));
        assert!(account["reason"].as_str().unwrap().contains("cannot assign requested address"), "{account}");

        let address = clients[3].address();
        take_back(clients.swap_remove(3));
        router.account_of(address);
        assert_eq!(client_from(50_200, router.address()).read(4), b"here", "as soon as there is a port again");
        assert!(router.log().iter().all(|line| line["state"] != "dead"), "this was no endpoint's fault");
    });
}

/// Connections from these ports to 127.0.0.2 that only the endpoint still has: the kernel forgets a socket in repair mode
/// without a word to the peer.
const FORGET: &str = "
import socket
TCP_REPAIR = 19
for port in range(40000, 40004):
    gone = socket.socket()
    gone.bind(('127.0.0.1', port))
    gone.connect(('127.0.0.2', 6443))
    gone.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    gone.close()
";

/// Two clients of a router of which each port has such a connection to the first of its two endpoints. The second one is
/// sent to the endpoint that has no connection yet, so one of them meets what is stale. Returns the accounts of both.
fn with_stale_connections(setup: &str, per_try: &str) -> [Value; 2] {
    let setup = format!("echo 40000 40003 > /proc/sys/net/ipv4/ip_local_port_range && {setup}");
    let upstream = format!(
        "endpoints: [\"127.0.0.2:{PORT}\", \"127.0.0.3:{PORT}\"], connect: {{per_try: {per_try}, timeout: 20s}}"
    );
    let mut accounts = None;
    alone(&config("127.0.0.1:443", &upstream), &setup, |router| {
        let _servers = [serve("127.0.0.2"), serve("127.0.0.3")];
        assert!(std::process::Command::new("python3").args(["-c", FORGET]).status().unwrap().success());
        let clients = [50_000, 50_001].map(|port| client_from(port, router.address()));
        accounts = Some(clients.map(|mut client| {
            assert_eq!(client.read(4), b"here");
            let address = client.address();
            take_back(client);
            router.account_of(address)
        }));
    });
    accounts.unwrap()
}

#[test]
#[ignore = "needs root, unshare, ip, nft and python3"]
fn b18_an_endpoint_that_takes_a_connection_for_one_long_gone_is_passed_over() {
    // As behind a firewall to which the reset, which would end it, belongs to no connection.
    let no_reset = "nft 'table ip firewall { chain out { type filter hook output priority 0;
        ip daddr 127.0.0.2 tcp flags & rst == rst drop; }; }'";
    let accounts = with_stale_connections(no_reset, "300ms");
    assert!(accounts.iter().all(|account| account["upstream.address"] == "127.0.0.3:6443"), "{accounts:?}");
    let reasons: Vec<&str> = accounts.iter().filter_map(|account| account["reason"].as_str()).collect();
    assert!(matches!(reasons[..], [reason] if reason.contains("127.0.0.2:6443")), "{accounts:?}");
}

#[test]
#[ignore = "needs root, unshare, ip and python3"]
fn b18_the_reset_of_a_connection_long_gone_makes_room_for_the_new_one() {
    let accounts = with_stale_connections("true", "10s");
    let mut endpoints = accounts.each_ref().map(|account| account["upstream.address"].as_str().unwrap());
    endpoints.sort_unstable();
    assert_eq!(endpoints, ["127.0.0.2:6443", "127.0.0.3:6443"]);
    assert!(accounts.iter().all(|account| account["reason"].is_null()), "{accounts:?}");
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn b19_a_connection_to_itself_is_a_refusal() {
    // The kernel can choose no port but the one that is connected to.
    let ports = "echo 40000 40000 > /proc/sys/net/ipv4/ip_local_port_range";
    let ports = &format!("ip addr add 10.77.0.1/32 dev lo && {ports}");
    for endpoint in ["127.0.0.1:40000", "10.77.0.1:40000", "[::ffff:127.0.0.1]:40000", "0.0.0.0:40000"] {
        let config = config("127.0.0.1:443", &format!("endpoints: \"{endpoint}\""));
        alone(&config, ports, |router| {
            let mut client = client_from(50_000, router.address());
            client.finish();
            assert_eq!(client.rest(), (alert(80), End::Fin));
            let account = router.account_of(client.address());
            assert_eq!(account["outcome"], "connect_refused", "{endpoint}");
            assert!(account["reason"].as_str().unwrap().contains("connection refused"), "{account}");
        });
    }
    let checked = "endpoints: \"127.0.0.1:40000\", health_check: {interval: 100ms, fall: 2}";
    alone(&config("127.0.0.1:443", checked), ports, |router| {
        router
            .wait("what checks find", |line| line["state"] == "dead" && line["cause"] == "connect: connection refused");
    });
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn c10_connections_to_addresses_that_a_name_had_long_ago_are_closed_with_their_route() {
    const ADDRESSES: u8 = 80;
    let other = "  - {sni: other.example, upstream: \"127.0.0.1:9\"}\n";
    let upstream = format!("endpoints: \"api.test:{PORT}\", resolve_every: 50ms, on_remove: cut");
    let text = config("127.0.0.1:443", &upstream) + other;
    alone(&text, "true", |router| {
        let _server = Backend::start_on(std::net::TcpListener::bind("0.0.0.0:6443").unwrap(), |mut stream| {
            let _ = stream.write_all(b"here");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let names = NameServer::start(ips(&["127.2.0.1"]));
        let mut clients = Vec::new();
        for number in 1..=ADDRESSES {
            names.say(Answer::Addresses(vec![IpAddr::from([127, 2, 0, number])]));
            told(router, "addresses changed", "added", &format!("127.2.0.{number}:6443"));
            let mut client = Client::send(router.address(), &Hello::to(NAME).record());
            assert_eq!(client.read(4), b"here");
            clients.push(client);
        }
        let head = text.split("routes:").next().unwrap();
        router.reload(&format!("{head}routes:\n{other}"));
        for client in &mut clients {
            client.rest();
            assert_eq!(router.account_of(client.address())["outcome"], "drained");
        }
    });
}

/// A connection to 127.0.0.2, and a router whose route has these endpoints.
fn held(endpoints: &str, on_remove: &str, then: impl FnOnce(&Router, &NameServer, Client, &dyn Fn(&str, &str)) + Send) {
    let text = |endpoints: &str, on_remove: &str| {
        let upstream = format!("endpoints: \"{endpoints}:{PORT}\", resolve_every: 50ms, on_remove: {on_remove}");
        config("127.0.0.9:6443", &upstream)
    };
    alone(&text(endpoints, on_remove), "true", |router| {
        let _servers = [serve("127.0.0.2"), serve("127.0.0.3")];
        let names = NameServer::start(ips(&["127.0.0.2"]));
        if endpoints == "api.test" {
            told(router, "addresses changed", "added", "127.0.0.2:6443");
        }
        let mut client = Client::send(router.address(), &Hello::to(NAME).record());
        assert_eq!(client.read(4), b"here");
        then(router, &names, client, &|endpoints, on_remove| _ = router.reload(&text(endpoints, on_remove)));
    });
}

/// It has not been closed.
fn completes(router: &Router, mut client: Client) {
    client.finish();
    assert_eq!(client.rest(), (Vec::new(), End::Fin));
    assert_eq!(router.account_of(client.address())["outcome"], "completed");
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn g11_a_name_in_place_of_its_addresses_closes_no_connection() {
    held("127.0.0.2", "cut", |router, names, client, reload| {
        names.say(ips(&["127.0.0.3", "127.0.0.2"]));
        reload("api.test", "cut");
        told(router, "addresses changed", "name", "api.test:6443");
        // What this reload removes is closed before the next one is reported.
        reload("api.test", "keep");
        completes(router, client);
    });
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn g11_a_name_that_lacks_the_addresses_in_whose_place_it_is_removes_them() {
    held("127.0.0.2", "cut", |router, names, mut client, reload| {
        names.say(ips(&["127.0.0.3"]));
        reload("api.test", "cut");
        client.rest();
        assert_eq!(router.account_of(client.address())["outcome"], "drained");
    });
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn c10_connections_to_addresses_that_a_name_had_long_ago_are_closed_with_their_name() {
    held("api.test", "cut", |router, names, mut client, reload| {
        names.say(ips(&["127.0.0.3"]));
        told(router, "addresses changed", "removed", "127.0.0.2:6443");
        reload("127.0.0.3", "cut");
        client.rest();
        assert_eq!(router.account_of(client.address())["outcome"], "drained");
    });
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn h23_what_a_reload_has_kept_of_a_name_an_upgrade_keeps_too() {
    held("api.test", "keep", |router, names, client, reload| {
        names.say(ips(&["127.0.0.3"]));
        told(router, "addresses changed", "removed", "127.0.0.2:6443");
        reload("127.0.0.3", "cut");
        router.signal(Signal::USR2);
        router.wait("the upgrade", |line| line["message"] == "upgraded; the new process serves");
        router.wait("that it moves", |line| line["message"] == "the old process has exited");
        completes(router, client);
    });
}

/// A client that waits for the first answer of a name server that cannot be reached, and a reload meanwhile.
fn reload_while_waiting(routes_after: &str, then: impl FnOnce(&Router, Client) + Send) {
    let text = config("127.0.0.9:6443", &format!("endpoints: \"api.test:{PORT}\", connect: {{timeout: 1m}}"));
    // What is sent to 192.0.2.1 comes back, and is not for this machine.
    let silence = "ip route add 192.0.2.1 dev lo && echo 'nameserver 192.0.2.1\noptions timeout:30' > resolv.conf";
    alone(&text, silence, |router| {
        let _server = serve("127.0.0.2");
        let client = Client::send(router.address(), &Hello::to(NAME).record());
        let active = format!("snigate_connections_active{{route=\"{NAME}\"}}");
        eventually("it waits", || router.metric(&active) == 1.0);
        let head = text.split("routes:").next().unwrap();
        router.reload(&format!("{head}routes:\n{routes_after}"));
        then(router, client);
    });
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn g11_a_client_that_waits_for_a_lookup_is_refused_when_its_route_is_removed() {
    reload_while_waiting("  - {sni: other.example, upstream: \"127.0.0.1:9\"}\n", |router, mut client| {
        assert_eq!(client.rest(), (alert(80), End::Fin));
        let account = router.account_of(client.address());
        assert_eq!(account["outcome"], "no_endpoint", "{account}");
        assert_eq!(account["reason"], "1 failed; api.test:6443: the route was removed");
    });
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn g11_a_client_that_waits_for_a_lookup_turns_to_the_endpoints_of_the_next_configuration() {
    let changed = format!("  - {{sni: {NAME}, upstream: {{endpoints: \"127.0.0.2:{PORT}\", on_remove: cut}}}}\n");
    reload_while_waiting(&changed, |router, mut client| {
        assert_eq!(client.read(4), b"here");
        let open = format!("snigate_endpoint_connections{{route=\"{NAME}\",endpoint=\"127.0.0.2:{PORT}\"}}");
        assert_eq!(router.metric(&open), 1.0, "it is counted at an endpoint that a removal knows");
    });
}
