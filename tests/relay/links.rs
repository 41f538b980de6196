//! Links and addresses that go away, and links that lose what is sent: a router with another machine beside it, each in a
//! network of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::Receiver;

use crate::support::backend::Backend;
use crate::support::network::{FAR, NEAR, Neighbour, alone, shell};
use crate::support::{Client, Hello, PATIENCE, Router, eventually, pattern};

const ECHO: &str = "echo.example";
const HELD: &str = "held.example";
const FAR_ECHO: &str = "far-echo.example";
const FAR_HELD: &str = "far-held.example";
const PORT: u16 = 7000;

fn config(tcp: &str) -> String {
    format!(
        "listen: 0.0.0.0:{PORT}
admin: 127.0.0.1:7001
routes:
  - {{sni: {ECHO}, upstream: \"127.0.0.1:7002\"}}
  - {{sni: {HELD}, upstream: \"127.0.0.1:7003\"}}
  - {{sni: {FAR_ECHO}, upstream: \"{FAR}:7002\"}}
  - {{sni: {FAR_HELD}, upstream: \"{FAR}:7003\"}}
tcp: {tcp}
"
    )
}

/// The backends that the thread's network has.
fn backends(address: &str) -> Mutex<Receiver<TcpStream>> {
    let bind = |port: u16| TcpListener::bind((address, port)).unwrap();
    Backend::start_on(bind(7002), |mut stream| {
        let mut buffer = vec![0; 65536];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    });
    let (sender, receiver) = std::sync::mpsc::channel();
    Backend::start_on(bind(7003), move |stream| drop(sender.send(stream)));
    Mutex::new(receiver)
}

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), PORT)
}

/// A stream with the backend's end of it.
fn held(router: &str, name: &str, backends: &Mutex<Receiver<TcpStream>>) -> (Client, TcpStream) {
    let hello = Hello::to(name).record();
    let client = Client::send(at(router), &hello);
    let mut upstream = backends.lock().unwrap().recv_timeout(PATIENCE).unwrap();
    upstream.read_exact(&mut vec![0; hello.len()]).unwrap();
    (client, upstream)
}

/// A stream whose bytes come back.
fn echoing(router: &str, name: &str) -> Client {
    let hello = Hello::to(name).record();
    let mut client = Client::send(at(router), &hello);
    assert_eq!(client.read(hello.len()), hello);
    client
}

fn echoes(client: &mut Client) {
    client.write(b"there and back");
    assert_eq!(client.read(14), b"there and back");
}

/// Sends as fast as it is read, until there is nobody any more.
fn pour(mut from: TcpStream, to: &TcpStream) {
    let mut to = to.try_clone().unwrap();
    std::thread::spawn(move || while from.write_all(&[0x5a; 65536]).is_ok() {});
    std::thread::spawn(move || while let Ok(1..) = to.read(&mut [0; 65536]) {});
}

fn ended(router: &Router, client: SocketAddr) -> (String, String) {
    let account = router.account_of(client);
    let text = |key: &str| account[key].as_str().unwrap().to_owned();
    (text("outcome"), text("closed_by"))
}

fn dead(side: &str) -> (String, String) {
    ("peer_dead".into(), side.into())
}

const QUICK: &str = "{keepalive: {idle: 1s, interval: 1s, count: 2}, user_timeout: 1s}";
const SOON: &str = "{user_timeout: 1s}";
const AS_USUAL: &str = "{user_timeout: 15m}";

#[test]
#[ignore = "needs root, unshare, nsenter and ip"]
fn h17_the_connections_of_an_address_that_moves_away_end_and_it_can_come_back() {
    const VIP: &str = "10.9.0.7";
    let neighbour = Neighbour::new();
    let setup = format!("{}\nip address add {VIP}/32 dev edge", neighbour.link());
    alone(&config(QUICK), &setup, |router| {
        let backends = backends("127.0.0.1");
        let (silent, mut kept) = neighbour.inside(|| (echoing(VIP, ECHO), echoing(NEAR, ECHO)));
        let (reading, upstream) = neighbour.inside(|| held(VIP, HELD, &backends));

        shell(&format!("ip address del {VIP}/32 dev edge"));
        pour(upstream, &reading.stream);
        assert_eq!(ended(router, reading.address()), dead("client"), "bytes wait for it");
        assert_eq!(ended(router, silent.address()), dead("client"), "nothing waits for it");
        echoes(&mut kept);
        neighbour.inside(|| drop(echoing(NEAR, ECHO)));

        shell(&format!("ip address add {VIP}/32 dev edge"));
        echoes(&mut neighbour.inside(|| echoing(VIP, ECHO)));
        echoes(&mut kept);
    });
}

#[test]
#[ignore = "needs root, unshare, nsenter and ip"]
fn h18_a_link_that_goes_down_and_comes_back_costs_nobody_a_stream() {
    let neighbour = Neighbour::new();
    alone(&config(AS_USUAL), &neighbour.link(), |router| {
        let near = backends("127.0.0.1");
        let far = neighbour.inside(|| backends(FAR));
        let ((mut client, mut upstream), mut far_client) =
            neighbour.inside(|| (held(NEAR, HELD, &near), echoing(NEAR, ECHO)));
        let (mut near_client, mut far_upstream) = held("127.0.0.1", FAR_HELD, &far);

        shell("ip link set edge down");
        // All of it waits in kernels.
        for stream in [&mut client.stream, &mut upstream, &mut near_client.stream, &mut far_upstream] {
            stream.write_all(b"meanwhile").unwrap();
        }
        echoes(&mut echoing("127.0.0.1", ECHO));
        shell("ip link set edge up");

        for stream in [&mut upstream, &mut client.stream, &mut far_upstream, &mut near_client.stream] {
            let mut received = [0; 9];
            stream.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"meanwhile");
        }
        echoes(&mut far_client);
        neighbour.inside(|| echoes(&mut echoing(NEAR, FAR_ECHO)));
        assert!(router.log().iter().all(|line| line["outcome"].is_null() || line["outcome"] == "completed"));
    });
}

#[test]
#[ignore = "needs root, unshare, ip, ss and a kernel with INET_DIAG_DESTROY"]
fn h18_sockets_that_are_closed_from_outside_are_told_and_listened_on_again() {
    alone(&config(AS_USUAL), "true", |router| {
        let backends = backends("127.0.0.1");
        let mut kept = echoing("127.0.0.1", ECHO);
        let kill = |state: &str, filter: &str| {
            let killed = shell(&format!("ss --kill --no-header --tcp state {state} '{filter}'"));
            assert!(!killed.is_empty(), "{filter}: the kernel destroys no sockets");
        };
        let connections = |outcome: &str| {
            router.metric(&format!(
                "snigate_connections_total{{listener=\"0.0.0.0:{PORT}\",route=\"{HELD}\",outcome=\"{outcome}\"}}"
            ))
        };
        for (number, (is_client, outcome)) in [(true, "client_reset"), (false, "upstream_reset")].iter().enumerate() {
            let (mut client, mut upstream) = held("127.0.0.1", HELD, &backends);
            let port = if *is_client { client.address().port() } else { upstream.peer_addr().unwrap().port() };
            // Our side of it.
            kill(
                "established",
                &if *is_client { format!("dport = {port} and sport = {PORT}") } else { format!("sport = {port}") },
            );
            assert_eq!(ended(router, client.address()).0, *outcome, "{number}");
            client.rest();
            let _ = upstream.read(&mut [0]);
            assert_eq!(connections(outcome), 1.0);
        }
        for port in [PORT, 7001] {
            kill("listening", &format!("sport = {port}"));
            router.wait("that it listens again", |line| {
                line["reason"].as_str().is_some_and(|reason| reason.ends_with("listening again"))
            });
            eventually("it accepts", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        }
        echoes(&mut echoing("127.0.0.1", ECHO));
        assert_eq!(router.get("/livez").0, 200);
        assert_eq!(router.metric("snigate_accept_errors_total{error=\"other\"}"), 2.0, "the admin listener's, too");
        echoes(&mut kept);
    });
}

#[test]
#[ignore = "needs root, unshare, nsenter and ip"]
fn d22_large_segments_that_vanish_end_their_connection_only() {
    for side in ["client", "upstream"] {
        let neighbour = Neighbour::new();
        // Segments as they go over a wire: others would be let through, whatever their size.
        let setup = format!("{}\nip link set edge gso_max_segs 1", neighbour.link());
        alone(&config(SOON), &setup, |router| {
            let near = backends("127.0.0.1");
            let far = neighbour.inside(|| backends(FAR));
            let mut other = echoing("127.0.0.1", ECHO);
            let (client, upstream) = match side {
                "client" => neighbour.inside(|| held(NEAR, HELD, &near)),
                _ => held("127.0.0.1", FAR_HELD, &far),
            };
            // Both sides know of 1,500 bytes, and nobody tells them of this.
            neighbour.inside(|| shell("ip link set far mtu 600"));
            for (from, to) in [(&client.stream, &upstream), (&upstream, &client.stream)] {
                (&*from).write_all(b"small").unwrap();
                (&*to).read_exact(&mut [0; 5]).unwrap();
            }
            let address = client.address();
            match side {
                "client" => pour(upstream, &client.stream),
                _ => pour(client.stream, &upstream),
            }
            assert_eq!(ended(router, address), dead(side));
            echoes(&mut other);
            neighbour.inside(|| echoes(&mut echoing(NEAR, FAR_ECHO)));
        });
    }
}

#[test]
#[ignore = "needs root, unshare, nsenter, ip, tc and nft"]
fn d21_a_link_that_loses_and_delays_changes_no_byte() {
    let neighbour = Neighbour::new();
    let lose = "nft 'table ip lossy { chain arriving {
            type filter hook input priority 0
            iifname != lo numgen random mod 100 < 5 counter drop
        }
    }'";
    let setup =
        format!("{}\n{lose} && tc qdisc add dev edge root tbf rate 20mbit burst 16kb latency 50ms", neighbour.link());
    alone(&config(AS_USUAL), &setup, |router| {
        neighbour.inside(|| {
            backends(FAR);
            shell(lose);
            let bytes = pattern(100_000);
            // Both legs go over the link.
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        let mut client = echoing(NEAR, FAR_ECHO);
                        let (mut writer, bytes) = (client.stream.try_clone().unwrap(), &bytes);
                        scope.spawn(move || writer.write_all(bytes).unwrap());
                        assert!(client.read(bytes.len()) == *bytes);
                    });
                }
            });
            let lost = shell("nft list ruleset");
            assert!(!lost.contains("counter packets 0 "), "{lost}");
        });
        assert!(!shell("nft list ruleset").contains("counter packets 0 "));
        assert!(router.log().iter().all(|line| line["outcome"].is_null() || line["outcome"] != "peer_dead"));
    });
}
