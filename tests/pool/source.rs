//! The local address of connections to endpoints.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::mpsc::channel;

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::support::client::alert;
use crate::support::network::{Neighbour, alone, shell};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, PATIENCE, Router};

const NAME: &str = "a.example";

#[test]
fn endpoints_see_the_configured_address_and_checks_come_from_it_too() {
    let (sender, peers) = channel();
    let backend = Backend::start(move |mut stream| {
        let peer = stream.peer_addr().unwrap().ip();
        let is_check = stream.read(&mut [0; 1024]).unwrap_or(0) == 0;
        let _ = stream.write_all(b"served");
        let _ = sender.send((peer, is_check));
    });
    let router = Router::start(&format!(
        "listen: 127.0.0.1:0
routes:
  - {{sni: {NAME}, upstream: {{endpoints: \"{}\", source: 127.0.0.9, health_check: {{interval: 100ms}}}}}}
",
        backend.address()
    ));
    let next = |is_check: bool| {
        let (peer, _) =
            std::iter::from_fn(|| peers.recv_timeout(PATIENCE).ok()).find(|peer| peer.1 == is_check).unwrap();
        peer.to_string()
    };
    assert_eq!(next(true), "127.0.0.9");
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    client.finish();
    assert_eq!(client.rest().0, b"served");
    assert_eq!(next(false), "127.0.0.9");
}

#[test]
fn an_address_that_no_interface_has_is_an_error_of_this_machine() {
    let backend = Backend::named("served");
    let text = config(&[(NAME, backend.address())], "").replace(
        &format!("upstream: \"{}\"", backend.address()),
        &format!("upstream: {{endpoints: \"{}\", source: 192.0.2.1}}", backend.address()),
    );
    let router = Router::start(&text);
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    client.rest();
    let account = router.account_of(client.address());
    assert_eq!(account["outcome"], "local_error");
    assert!(account["reason"].as_str().unwrap().contains("no interface has the address in `source`"), "{account}");
}

/// Where the client is, and where it finds the router.
const CLIENT: [&str; 2] = ["10.9.1.2", "10.9.1.1"];
const CLIENT_6: [&str; 2] = ["fd00:1::2", "fd00:1::1"];
/// Where the endpoint is, and where it finds the router.
const ENDPOINT: [&str; 2] = ["10.9.2.2", "10.9.2.1"];
const ENDPOINT_6: [&str; 2] = ["fd00:2::2", "fd00:2::1"];

/// What the endpoint saw of a client with this port (0: any) that connects to that port of the router; the address of the
/// client; and its connection, which is still open.
fn seen([client, router]: [&str; 2], from: u16, to: u16, name: &str) -> (SocketAddr, SocketAddr, Client) {
    let at = |address: &str, port: u16| SocketAddr::new(address.parse().unwrap(), port);
    let socket = Socket::new(Domain::for_address(at(client, from)), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&at(client, from).into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(&at(router, to).into()).unwrap();
    let mut client = Client { stream: socket.into() };
    client.write(&Hello::to(name).record());
    let peer = client.read_until("the address", |bytes| bytes.ends_with(b"\n"));
    (String::from_utf8(peer).unwrap().trim().parse().unwrap(), client.address(), client)
}

#[test]
#[ignore = "needs root for network namespaces"]
fn endpoints_see_the_clients_own_address_and_port() {
    let [client, endpoint] = [(); 2].map(|()| Neighbour::new());
    let config = format!(
        "listen: [\"[::]:7000\", \"[::]:7001\"]
admin: 127.0.0.1:7002
sandbox: require
routes:
  - {{sni: {NAME}, upstream: {{endpoints: \"{}:6443\", source: client}}}}
  - {{sni: six.example, upstream: {{endpoints: \"[{}]:6443\", source: client}}}}
  - {{sni: ours.example, upstream: {{endpoints: \"{}:6443\", source: {}}}}}
",
        ENDPOINT[0], ENDPOINT_6[0], ENDPOINT[0], CLIENT[1]
    );
    // What the endpoint sends to clients is for the router.
    let setup = format!(
        "{} && {} && ip address add {}/64 dev client nodad && ip address add {}/64 dev endpoint nodad &&
         for family in -4 -6; do
             ip $family rule add iif endpoint lookup 100 && ip $family route add local default dev lo table 100 || exit
         done",
        client.link_by("client", CLIENT[1], "eth0", CLIENT[0]),
        endpoint.link_by("endpoint", ENDPOINT[1], "eth0", ENDPOINT[0]),
        CLIENT_6[1],
        ENDPOINT_6[1]
    );
    alone(&config, &setup, |router| {
        endpoint.inside(|| {
            shell(&format!("ip address add {}/64 dev eth0 nodad", ENDPOINT_6[0]));
            shell(&format!(
                "ip route add default via {} && ip -6 route add default via {}",
                ENDPOINT[1], ENDPOINT_6[1]
            ));
            for address in [ENDPOINT[0], ENDPOINT_6[0]] {
                Backend::start_on(TcpListener::bind((address, 6443)).unwrap(), |mut stream| {
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = writeln!(stream, "{}", stream.peer_addr().unwrap());
                    let _ = stream.read_to_end(&mut Vec::new());
                });
            }
        });
        // A loopback address cannot be shown to another machine: no fault of the endpoint's, however often it happens.
        for _ in 0..4 {
            let mut client = Client::send("127.0.0.1:7000".parse().unwrap(), &Hello::to(NAME).record());
            assert_eq!(client.rest().0, alert(80));
            let account = router.account_of(client.address());
            assert_eq!(account["outcome"], "local_error", "{account}");
            let reason = account["reason"].as_str().unwrap();
            assert!(reason.contains("the endpoint cannot be reached from the client's address"), "{reason}");
        }
        let ready = format!("{{route=\"{NAME}\",endpoint=\"{}:6443\",state=\"ready\"}}", ENDPOINT[0]);
        assert_eq!(router.metric(&format!("snigate_endpoint_state{ready}")), 1.0);

        client.inside(|| {
            shell(&format!("ip address add {}/64 dev eth0 nodad", CLIENT_6[0]));
            for (own, name) in [(CLIENT, NAME), (CLIENT_6, "six.example")] {
                let (peer, first, _open) = seen(own, 40_000, 7000, name);
                assert_eq!(peer, first);
                // From the same port, to another port of the router: to the endpoint both would be the same connection.
                let (peer, second, _open) = seen(own, 40_000, 7001, name);
                assert_eq!(second, first);
                assert_eq!(peer.ip(), first.ip());
                assert_ne!(peer.port(), first.port());
                for _ in 0..20 {
                    let (peer, client, _) = seen(own, 0, 7000, name);
                    assert_eq!(peer, client);
                }
            }
            let (peer, ..) = seen(CLIENT, 0, 7000, "six.example");
            assert_eq!(peer.ip().to_string(), ENDPOINT_6[1], "the client has no address of this family");
            let (peer, ..) = seen(CLIENT, 0, 7000, "ours.example");
            assert_eq!(peer.ip().to_string(), CLIENT[1], "the address in `source`");
            // The port of a client's connection to the endpoint is not in the way of a listener.
            let (peer, first, _open) = seen(CLIENT, 7200, 7000, NAME);
            assert_eq!(peer, first);
            let line = router.reload(&config.replace("\"[::]:7001\"", "\"[::]:7001\", \"[::]:7200\""));
            assert_eq!(line["message"], "reloaded", "{line}");
        });
    });
}

/// A route to this endpoint from the client's address.
fn transparent(backend: &Backend) -> String {
    config(&[(NAME, backend.address())], "sandbox: off\n").replace(
        &format!("upstream: \"{}\"", backend.address()),
        &format!("upstream: {{endpoints: \"{}\", source: client}}", backend.address()),
    )
}

#[test]
fn a_start_without_the_capability_warns() {
    let backend = Backend::named("served");
    let router = Router::start(&transparent(&backend));
    // What is logged of this is logged after the warning.
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    client.finish_if_open();
    client.rest();
    router.account_of(client.address());
    let is_warning =
        |line: &Value| line["message"].as_str().is_some_and(|text| text.contains("requires CAP_NET_ADMIN"));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let net_admin = (u64::from_str_radix(effective.trim(), 16).unwrap() >> 12) & 1;
    assert_eq!(router.log().iter().any(is_warning), net_admin == 0, "{effective}");
}

#[test]
#[ignore = "needs root, and setpriv"]
fn without_the_capability_the_log_says_which_one_is_missing() {
    let backend = Backend::named("served");
    let text = transparent(&backend);
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-net_admin,-net_raw", env!("CARGO_BIN_EXE_snigate"), "run", "-c"]).arg(&path);
    command.env_remove("RUST_LOG");
    let router = Router::spawn(command, path, directory);
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    assert_eq!(client.rest().0, alert(80));
    let account = router.account_of(client.address());
    assert_eq!((&account["outcome"], &account["level"]), (&"local_error".into(), &"ERROR".into()));
    let reason = account["reason"].as_str().unwrap();
    assert!(reason.contains("`source: client` requires CAP_NET_ADMIN"), "{reason}");
}
