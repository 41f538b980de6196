//! Bytes, closes and resets through the binary. The relay's own tests cover more orders of events.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::support::backend::reset;
use crate::support::client::{End, rest};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, Router, pattern};

const NAME: &str = "a.example";

/// A client and the upstream's end of its connection, behind the hello.
fn connected(router: &Router, upstream: &std::sync::mpsc::Receiver<TcpStream>) -> (Client, TcpStream) {
    let hello = Hello::to(NAME).record();
    let client = Client::send(router.address(), &hello);
    let mut upstream = upstream.recv_timeout(crate::support::PATIENCE).unwrap();
    let mut received = vec![0; hello.len()];
    upstream.read_exact(&mut received).unwrap();
    assert_eq!(received, hello);
    (client, upstream)
}

#[test]
fn d01_the_answer_arrives_after_the_client_has_closed_its_side() {
    let (backend, held) = Backend::held();
    let router = Router::routing(&[(NAME, backend.address())]);
    let (mut client, mut upstream) = connected(&router, &held);
    client.finish();
    assert_eq!(rest(&mut upstream), (Vec::new(), End::Fin));
    let answer = pattern(30_000_000);
    let sent = answer.clone();
    let writer = std::thread::spawn(move || upstream.write_all(&sent).unwrap());
    assert!(client.rest() == (answer, End::Fin));
    writer.join().unwrap();
    let account = router.account_of(client.address());
    assert_eq!((account["outcome"].as_str(), account["closed_by"].as_str()), (Some("completed"), Some("client")));
    assert_eq!(account["bytes.sent"], 30_000_000);
}

#[test]
fn d02_the_client_sends_after_the_upstream_has_closed_its_side() {
    let (backend, held) = Backend::held();
    let router = Router::routing(&[(NAME, backend.address())]);
    let (mut client, mut upstream) = connected(&router, &held);
    upstream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.rest(), (Vec::new(), End::Fin));
    let request = pattern(30_000_000);
    let sent = request.clone();
    let address = client.address();
    let writer = std::thread::spawn(move || client.write(&sent));
    assert!(rest(&mut upstream) == (request, End::Fin));
    writer.join().unwrap();
    assert_eq!(router.account_of(address)["closed_by"], "upstream");
}

#[test]
fn d03_both_close_at_once_behind_full_buffers() {
    let (backend, held) = Backend::held();
    let router = Router::routing(&[(NAME, backend.address())]);
    for _ in 0..10 {
        transfers(&router, &held, 3_000_000);
    }
}

#[test]
fn d04_d05_a_reset_of_one_side_becomes_a_reset_of_the_other() {
    let (backend, held) = Backend::held();
    let router = Router::routing(&[(NAME, backend.address())]);

    let (mut client, mut upstream) = connected(&router, &held);
    upstream.write_all(&pattern(100_000)).unwrap();
    assert_eq!(client.read(50_000), pattern(50_000));
    reset(upstream);
    let (received, end) = client.rest();
    assert!(pattern(100_000)[50_000..].starts_with(&received));
    assert_eq!(end, End::Reset);
    assert_eq!(router.account_of(client.address())["outcome"], "upstream_reset");

    let (client, mut upstream) = connected(&router, &held);
    let address = client.address();
    reset(client.stream);
    assert_eq!(rest(&mut upstream), (Vec::new(), End::Reset), "though it is silent");
    assert_eq!(router.account_of(address)["outcome"], "client_reset");
}

#[test]
fn d06_a_reset_while_sending_leaves_what_was_received_before() {
    let (backend, held) = Backend::held();
    let router = Router::routing(&[(NAME, backend.address())]);
    let (mut client, mut upstream) = connected(&router, &held);
    // An answer, and then a close with unread bytes: the kernel resets.
    client.write(&[1; 1000]);
    upstream.read_exact(&mut [0; 1]).unwrap();
    upstream.write_all(&pattern(200_000)).unwrap();
    assert_eq!(client.read(200_000), pattern(200_000));
    drop(upstream);
    assert_eq!(client.rest().0, b"");
}

#[test]
fn d09_single_bytes_both_ways() {
    let router = Router::routing(&[(NAME, Backend::echo().address())]);
    let hello = Hello::to(NAME).record();
    let mut client = Client::send(router.address(), &hello);
    assert_eq!(client.read(hello.len()), hello);
    for byte in pattern(5000) {
        client.write(&[byte]);
        assert_eq!(client.read(1), [byte]);
    }
}

#[test]
fn d15_idle_and_d16_half_closed_connections_end_at_their_deadlines() {
    let (backend, held) = Backend::held();
    let timeouts = "timeouts: {idle: 700ms, half_close: 200ms}\n";
    let router = Router::start(&config(&[(NAME, backend.address())], timeouts));

    let (mut client, mut upstream) = connected(&router, &held);
    assert_eq!(client.rest(), (Vec::new(), End::Fin));
    assert_eq!(rest(&mut upstream), (Vec::new(), End::Fin));
    let account = router.account_of(client.address());
    assert_eq!((account["outcome"].as_str(), account["closed_by"].as_str()), (Some("idle_timeout"), Some("us")));
    assert!(account["duration_ms"].as_f64().unwrap() >= 700.0);

    let (mut client, _upstream) = connected(&router, &held);
    client.finish();
    assert_eq!(client.rest().0, b"");
    let account = router.account_of(client.address());
    assert_eq!(account["outcome"], "half_close_timeout");
    assert!(account["duration_ms"].as_f64().unwrap() < 700.0, "{account}");
}

/// Writes until the other side has taken nothing for a while, or is gone, or has taken far too much.
fn push(mut upstream: TcpStream) -> usize {
    upstream.set_write_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
    let mut pushed = 0;
    while pushed < 200_000_000 {
        let Ok(length) = upstream.write(&[0x5a; 65536]) else { break };
        pushed += length;
    }
    pushed
}

#[test]
fn d07_d08_readers_that_stop_are_cut_and_bound_what_is_taken_for_them() {
    let (backend, held) = Backend::held();
    let options = "timeouts: {half_close: 500ms}\ntcp: {user_timeout: 1s}\n";
    let router = Router::start(&config(&[(NAME, backend.address())], options));
    let before = router.memory();

    let (client, upstream) = connected(&router, &held);
    let pushed = push(upstream);
    let account = router.account_of(client.address());
    assert_eq!(account["outcome"], "peer_dead", "d07: {account}");
    assert!(pushed < 50_000_000, "{pushed} bytes were taken for a client that reads none");

    let (client, upstream) = connected(&router, &held);
    client.finish();
    push(upstream);
    let account = router.account_of(client.address());
    assert_eq!(account["outcome"], "half_close_timeout", "d08: {account}");
    assert!(router.memory() - before < 8_000_000.0, "no more than a few chunks are held");
}

/// So many bytes down and up at once, each side closing behind its last.
fn transfers(router: &Router, held: &std::sync::mpsc::Receiver<TcpStream>, length: usize) {
    let bytes = pattern(length);
    let (client, upstream) = connected(router, held);
    let both = [client.stream, upstream].map(|mut stream| {
        let (expected, sent) = (bytes.clone(), bytes.clone());
        let mut writer = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            let writer = std::thread::spawn(move || {
                writer.write_all(&sent).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            assert!(rest(&mut stream) == (expected, End::Fin));
            writer.join().unwrap();
        })
    });
    both.into_iter().for_each(|side| side.join().unwrap());
}

#[test]
fn d12_every_engine_delivers_the_same() {
    for engine in ["auto", "copy", "splice"] {
        let (backend, held) = Backend::held();
        let router = Router::start(&config(&[(NAME, backend.address())], &format!("relay: {engine}\n")));
        transfers(&router, &held, 20_000_000);
    }
}

#[test]
#[ignore = "needs strace"]
fn d13_system_calls_that_fail_in_mid_stream_lose_nothing() {
    for engine in ["auto", "splice"] {
        for fault in [
            "pipe2:error=EMFILE",
            "splice:error=EINVAL:when=1",
            "splice:error=EINVAL:when=2",
            "splice:error=EINVAL:when=7+",
            "splice:error=EINTR:when=2+3",
        ] {
            let (backend, held) = Backend::held();
            let directory = tempfile::TempDir::new().unwrap();
            let path = directory.path().join("c.yaml");
            std::fs::write(&path, config(&[(NAME, backend.address())], &format!("relay: {engine}\n"))).unwrap();
            let mut command = std::process::Command::new("strace");
            command.args(["-D", "-f", "-qqq", "-o", "/dev/null", "-e", &format!("inject={fault}")]);
            command.args([env!("CARGO_BIN_EXE_snigate"), "run", "-c"]).arg(&path);
            let router = Router::spawn(command, path, directory);
            transfers(&router, &held, 20_000_000);
        }
    }
}

#[test]
fn d10_small_buffers_deliver_the_same() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&listener).set_recv_buffer_size(1024).unwrap();
    socket2::SockRef::from(&listener).set_send_buffer_size(2048).unwrap();
    let bytes = pattern(25_000);
    let backend = Backend::start_on(listener, |mut stream| {
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received);
        let _ = stream.write_all(&received);
    });
    for engine in ["auto", "copy", "splice"] {
        let router = Router::start(&config(&[(NAME, backend.address())], &format!("relay: {engine}\n")));
        let sent = [Hello::to(NAME).record(), bytes.clone()].concat();
        let mut client = Client::connect(router.address());
        socket2::SockRef::from(&client.stream).set_recv_buffer_size(1024).unwrap();
        socket2::SockRef::from(&client.stream).set_send_buffer_size(2048).unwrap();
        client.write(&sent);
        client.finish();
        assert!(client.rest() == (sent, End::Fin), "{engine}");
    }
}

#[test]
fn d18_urgent_bytes_are_bytes_of_the_stream() {
    let (backend, held) = Backend::held();
    for engine in ["auto", "copy", "splice"] {
        let router = Router::start(&config(&[(NAME, backend.address())], &format!("relay: {engine}\n")));
        let (mut client, mut upstream) = connected(&router, &held);
        let socket = socket2::SockRef::from(&client.stream);
        assert_eq!(socket.send(b"before").unwrap(), 6);
        assert_eq!(socket.send_out_of_band(b"!").unwrap(), 1);
        let mut received = [0; 7];
        upstream.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"before!", "{engine}: nothing comes after it");
        assert_eq!(socket.send(b"after").unwrap(), 5);
        assert_eq!(socket2::SockRef::from(&upstream).send_out_of_band(b"?").unwrap(), 1);
        assert_eq!(client.read(1), b"?", "{engine}");
        client.finish();
        assert_eq!(rest(&mut upstream), (b"after".to_vec(), End::Fin), "{engine}");
    }
}
