//! How a hello arrives.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use crate::support::client::{End, alert};
use crate::support::hello::{self, handshake, record, server_name_list};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, Router, eventually, tls};

const NAME: &str = "a.example";

/// Sends the pieces one by one, then more, and expects all of it back from an echoing upstream.
fn echoes(router: &Router, pieces: &[&[u8]]) {
    let mut client = Client::connect(router.address());
    for piece in pieces {
        client.write(piece);
    }
    client.write(b"and more");
    client.finish();
    let (echo, end) = client.rest();
    assert!(echo == [&pieces.concat()[..], b"and more"].concat(), "not what was sent: {} bytes", echo.len());
    assert_eq!(end, End::Fin);
}

/// What a client that sends this is told, and what is logged of it.
fn refused(router: &Router, bytes: &[u8]) -> (Vec<u8>, serde_json::Value) {
    let mut client = Client::send(router.address(), bytes);
    let (answer, end) = client.rest();
    assert_eq!(end, End::Fin, "closed in order");
    let address = client.address();
    drop(client);
    (answer, router.account_of(address))
}

#[test]
fn a01_hello_in_segments_of_one_byte() {
    let backend = Backend::echo();
    let router = Router::routing(&[(NAME, backend.address())]);
    let hello = Hello::to(NAME).record();
    echoes(&router, &hello.chunks(1).collect::<Vec<_>>());
}

#[test]
fn a02_hello_split_at_every_byte() {
    let backend = Backend::echo();
    let router = Router::routing(&[(NAME, backend.address())]);
    let hello = tls::rustls_hello(NAME);
    for offset in 0..=hello.len() {
        let (first, second) = hello.split_at(offset);
        echoes(&router, &[first, second]);
    }
}

#[test]
fn a03_hello_split_over_records() {
    let backend = Backend::echo();
    let router = Router::routing(&[(NAME, backend.address())]);
    let hello = Hello::to(NAME);
    let name = hello.message().windows(NAME.len()).position(|window| window == NAME.as_bytes()).unwrap();
    for size in [1, 2, 3, 4, 5, 50, name, name + 4, hello.message().len() - 1] {
        echoes(&router, &[&hello.records(size)]);
    }
    let message = hello.message();
    let (first, second) = message.split_at(20);
    let with_empty_record = [record(22, first), record(22, &[]), record(22, second)].concat();
    let (answer, account) = refused(&router, &with_empty_record);
    assert_eq!((answer, account["outcome"].as_str()), (alert(50), Some("malformed")));
}

#[test]
fn a04_post_quantum_hello_whose_second_segment_is_late() {
    let backend = Backend::echo();
    let router = Router::routing(&[(NAME, backend.address())]);
    let hello = tls::rustls_hello(NAME);
    assert!(hello.len() > 1200, "rustls offers X25519MLKEM768");
    let mut client = Client::send(router.address(), &hello[..1100]);
    // The delay is what is tested: nothing may be decided meanwhile.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(backend.accepted(), 0);
    client.write(&hello[1100..]);
    assert_eq!(client.read(hello.len()), hello);
}

#[test]
fn a05_hello_of_15_kilobytes() {
    let backend = Backend::echo();
    let router = Router::routing(&[(NAME, backend.address())]);
    echoes(&router, &[&Hello::to(NAME).padded_to(15_000).record()]);
    echoes(&router, &[&Hello::to(NAME).padded_to(16_384).record()]);
}

#[test]
fn a06_hello_beyond_the_limit() {
    let backend = Backend::echo();
    let router = Router::routing(&[(NAME, backend.address())]);
    let large = Hello::to(NAME).padded_to(40_000).records(16_384);
    let (answer, account) = refused(&router, &large);
    assert_eq!((answer, account["outcome"].as_str()), (alert(80), Some("hello_too_large")));
    assert!(account["bytes.received"].as_u64().unwrap() <= 16_384, "no more is read than is allowed: {account}");
    let series = "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"_none\",outcome=\"hello_too_large\"}";
    assert_eq!(router.metric(series), 1.0);

    let roomy = Router::start(&config(&[(NAME, backend.address())], "limits: {hello_bytes: 64KiB}\n"));
    echoes(&roomy, &[&large]);
    let tight = Router::start(&config(&[(NAME, backend.address())], "limits: {hello_bytes: 1024}\n"));
    assert_eq!(refused(&tight, &Hello::to(NAME).padded_to(1025).record()).1["outcome"], "hello_too_large");
    echoes(&tight, &[&Hello::to(NAME).padded_to(1024).record()]);
}

#[test]
fn a07_impossible_lengths_are_refused_at_once() {
    let backend = Backend::echo();
    let router = Router::routing(&[("*", backend.address())]);
    let cases: [(&[u8], &str, u8); 5] = [
        (&[22, 3, 1, 0, 0], "malformed", 50),
        (&[22, 3, 1, 0x40, 1], "malformed", 50),
        (&[22, 3, 1, 0xff, 0xff], "malformed", 50),
        (&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff], "hello_too_large", 80),
        (&record(22, &handshake(1, &[])), "malformed", 50),
    ];
    for (bytes, outcome, description) in cases {
        let (answer, account) = refused(&router, bytes);
        assert_eq!((answer, account["outcome"].as_str()), (alert(description), Some(outcome)), "{bytes:?}");
    }
    assert_eq!(backend.accepted(), 0, "never given to the catch-all");
}

#[test]
fn a08_a09_a10_a12_bad_names_never_reach_a_catch_all() {
    let backend = Backend::echo();
    let router = Router::routing(&[("*", backend.address())]);
    let with = |content: Vec<u8>| Hello::new().extension(hello::SERVER_NAME, content).record();
    let named = |name: &[u8]| Hello::new().server_name(name).record();
    let mut cases = vec![
        with(vec![0xff, 0xff, 0, 0, 1, b'a']),
        with(vec![0, 4, 0, 0xff, 0xff, b'a']),
        with(vec![0, 5, 0, 0, 1, b'a']),
        with(vec![]),
        with(server_name_list(&[])),
        with(server_name_list(&[(0, b"")])),
        with(server_name_list(&[(0, b"a.example"), (0, b"b.example")])),
        with(server_name_list(&[(1, b"a.example")])),
        Hello::to("a.example").server_name(b"b.example").record(),
        named(&[b'a'; 256]),
        named(format!("{}.example", "a".repeat(64)).as_bytes()),
    ];
    for name in ["a\0.example", "a b", "a%2e", "a/b", "a:1", "a\r\nb", "ä", "a..b", ".a", "-", "..", "a.example.."] {
        cases.push(named(name.as_bytes()));
    }
    for address in
        ["192.0.2.1.", "127.1", "[::1", "[192.0.2.1]", "fe80::1%eth0", "0x7f.1", "017700000001", "2130706433"]
    {
        cases.push(named(address.as_bytes()));
    }
    for case in cases {
        let (answer, account) = refused(&router, &case);
        assert_eq!(answer, alert(50), "{account}");
        assert_eq!(account["outcome"], "malformed", "{account}");
        assert!(account["reason"].is_string(), "{account}");
    }
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn a12_an_address_in_place_of_the_name_is_none_or_refused() {
    let (rest, other) = (Backend::named("rest"), Backend::named("other"));
    let router = Router::start(&format!(
        "listen: [{{name: open, address: 127.0.0.1:0}}, {{name: strict, address: 127.0.0.1:0, ip_literal_sni: refuse}}]\n\
         routes: [{{sni: \"*.example\", upstream: \"{}\"}}, {{name: rest, listener: [open, strict], upstream: \"{}\"}}]\n",
        other.address(),
        rest.address()
    ));
    let [open, strict] = ["open", "strict"].map(|name| router.address_of(|listener| listener == name));
    for address in ["192.0.2.1", "::1", "[2001:db8::1]", "::ffff:192.0.2.1"] {
        let hello = Hello::to(address).record();
        let mut client = Client::send(open, &hello);
        client.finish();
        assert_eq!(client.rest().0, b"rest", "{address}");
        let account = router.account_of(client.address());
        assert_eq!((account["route"].as_str(), account["outcome"].as_str()), (Some("rest"), Some("completed")));
        assert_eq!(account["server.address"], address.trim_matches(['[', ']']), "what was sent is logged");

        let mut client = Client::send(strict, &hello);
        assert_eq!(client.rest(), (alert(50), End::Fin), "{address}");
        let account = router.account_of(client.address());
        assert_eq!((&account["outcome"], &account["route"]), (&"malformed".into(), &"_none".into()), "{account}");
    }
    // All else in the hello is looked at as ever.
    let twice = Hello::to("192.0.2.1").server_name(b"a.example").record();
    let two = Hello::new().extension(hello::SERVER_NAME, server_name_list(&[(0, b"192.0.2.1"), (0, b"a.example")]));
    for wrong in [twice, two.record()] {
        assert_eq!(Client::send(open, &wrong).rest(), (alert(50), End::Fin));
    }

    // Where nobody takes clients without a name, nobody takes these.
    router
        .reload(&format!("listen: 127.0.0.2:0\nroutes: [{{sni: \"*.example\", upstream: \"{}\"}}]\n", other.address()));
    let only =
        router.wait("the new listener", |line| line["message"] == "listening" && line["listener"] == "127.0.0.2:0");
    let mut client = Client::send(only["address"].as_str().unwrap().parse().unwrap(), &Hello::to("192.0.2.1").record());
    assert_eq!(client.rest(), (alert(112), End::Fin));
    assert_eq!(router.account_of(client.address())["outcome"], "no_name");
}

#[test]
fn a11_case_and_a_trailing_dot_make_no_difference() {
    let backend = Backend::echo();
    let router = Router::routing(&[(NAME, backend.address()), ("*.b.example", backend.address())]);
    for name in ["a.example", "A.EXAMPLE", "a.Example.", "x.b.example", "X.B.example."] {
        echoes(&router, &[&Hello::to(name).record()]);
    }
}

#[test]
fn a13_what_is_not_tls_fails_closed() {
    let (silent, named) = (Backend::echo(), Backend::echo());
    let router = Router::routing(&[("*", silent.address()), (NAME, named.address())]);
    for bytes in [&b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n"[..], b"SSH-2.0-x\r\n", b"\x80\x2e\x01\x03\x01", &[0; 9]]
    {
        let (answer, account) = refused(&router, bytes);
        assert!(answer.is_empty(), "no alert for what is no TLS");
        assert_eq!(account["outcome"], "not_tls");
    }
    assert_eq!(silent.accepted() + named.accepted(), 0);

    echoes(&router, &[&Hello::new().record()]);
    echoes(&router, &[&Hello::new().without_extensions().record()]);
    assert_eq!((silent.accepted(), named.accepted()), (2, 0), "clients without a name go to the catch-all");

    let strict = Router::routing(&[(NAME, named.address())]);
    let (answer, account) = refused(&strict, &Hello::new().record());
    assert_eq!((answer, account["outcome"].as_str()), (alert(112), Some("no_name")));
}

#[test]
fn a14_a_silent_client_is_cut_at_the_deadline() {
    let router = Router::start(&config(&[(NAME, Backend::echo().address())], "timeouts: {hello: 300ms}\n"));
    let mut client = Client::connect(router.address());
    assert_eq!(client.rest(), (alert(80), End::Fin));
    let account = router.account_of(client.address());
    assert_eq!(account["outcome"], "hello_timeout");
    assert!(account["duration_ms"].as_f64().unwrap() >= 300.0);
}

#[test]
fn a15_a17_progress_does_not_extend_the_one_deadline() {
    let router = Router::start(&config(&[(NAME, Backend::echo().address())], "timeouts: {hello: 500ms}\n"));
    for raw in [Hello::to(NAME).record(), Hello::to(NAME).records(1)] {
        let client = Client::connect(router.address());
        let mut writer = client.stream.try_clone().unwrap();
        let done = std::sync::Arc::new(AtomicBool::new(false));
        let stop = std::sync::Arc::clone(&done);
        let trickle = std::thread::spawn(move || {
            for byte in raw {
                if stop.load(SeqCst) || writer.write_all(&[byte]).is_err() {
                    break;
                }
                // One byte at a time, slowly, is what is tested.
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let account = router.account_of(client.address());
        done.store(true, SeqCst);
        trickle.join().unwrap();
        assert_eq!(account["outcome"], "hello_timeout", "{account}");
        assert!(account["bytes.received"].as_u64().unwrap() > 5, "it did make progress: {account}");
    }
}

#[test]
fn a19_what_follows_the_hello_is_forwarded_unread() {
    let backend = Backend::echo();
    let router = Router::routing(&[(NAME, backend.address())]);
    let message = Hello::to(NAME).message();
    echoes(&router, &[&record(22, &[&message[..], b"\x0b garbage"].concat())]);
    echoes(&router, &[&[record(22, &message), vec![0xff; 9000]].concat()]);
}

#[test]
fn a20_early_data_goes_to_one_endpoint_only() {
    let hello = Hello::to(NAME).extension(hello::EARLY_DATA, []).record();
    let flight = [hello, record(23, &[0xed; 800])].concat();
    let echo = Backend::echo();
    let router = Router::routing(&[(NAME, echo.address())]);
    echoes(&router, &[&flight]);

    let resets = Backend::start(|mut stream| {
        let _ = std::io::Read::read(&mut stream, &mut [0; 100]);
        crate::support::backend::reset(stream);
    });
    let spare = Backend::echo();
    let upstream = format!("[\"{}\", \"{}\"]", resets.address(), spare.address());
    let config = format!("listen: 127.0.0.1:0\nroutes:\n  - sni: {NAME}\n    upstream: {upstream}\n");
    let router = Router::start(&config);
    let mut client = Client::send(router.address(), &flight);
    assert_eq!(client.rest(), (Vec::new(), End::Reset));
    assert_eq!(router.account_of(client.address())["outcome"], "upstream_reset");
    assert_eq!((resets.accepted(), spare.accepted()), (1, 0), "not replayed");
}

#[test]
fn a23_waiting_for_the_rest_of_a_hello_costs_no_cpu() {
    let router = Router::routing(&[(NAME, Backend::echo().address())]);
    let hello = Hello::to(NAME).record();
    let clients: Vec<Client> = (0..50).map(|_| Client::send(router.address(), &hello[..hello.len() / 2])).collect();
    eventually("all are accepted", || router.metric("snigate_connections_active{route=\"_none\"}") == 50.0);
    let spent = || router.metric("process_cpu_seconds_total");
    let before = spent();
    // Time in which nothing may happen.
    std::thread::sleep(Duration::from_secs(1));
    let used = spent() - before;
    assert!(used <= 0.1, "{used} s of CPU for 50 waiting clients; spinning would take a whole second");
    drop(clients);
}

#[test]
fn a24_clients_that_leave_within_their_hello_are_gone_quietly() {
    let backend = Backend::echo();
    let router = Router::routing(&[(NAME, backend.address())]);
    let half = &Hello::to(NAME).record()[..100];

    let client = Client::send(router.address(), half);
    client.finish();
    let account = router.account_of(client.address());
    assert_eq!((account["outcome"].as_str(), account["closed_by"].as_str()), (Some("client_gone"), Some("client")));
    assert_eq!(account["level"], "INFO");

    let client = Client::send(router.address(), half);
    let address = client.address();
    crate::support::backend::reset(client.stream);
    assert_eq!(router.account_of(address)["outcome"], "client_gone");

    let bare = Client::connect(router.address());
    let port = bare.address().port();
    drop(bare);
    let gone = "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"_none\",outcome=\"client_gone\"}";
    eventually("all three are counted", || router.metric(gone) == 3.0);
    assert!(router.log().iter().all(|line| line["client.port"] != port), "a bare connect is a health check");
    (0..200).for_each(|_| drop(Client::connect(router.address())));
    eventually("those are counted", || router.metric(gone) == 203.0);
    assert!(router.log().iter().all(|line| line["suppressed"].is_null()), "nor does it use up what may be logged");
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn a25_a_client_that_closes_its_side_right_after_the_hello_is_served() {
    let backend = Backend::start(|mut stream| {
        let (request, _) = crate::support::client::rest(&mut stream);
        stream.write_all(format!("{} bytes", request.len()).as_bytes()).unwrap();
    });
    let router = Router::routing(&[(NAME, backend.address())]);
    let hello = Hello::to(NAME).record();
    let mut client = Client::send(router.address(), &hello);
    client.finish();
    assert_eq!(client.rest(), (format!("{} bytes", hello.len()).into_bytes(), End::Fin));
    assert_eq!(router.account_of(client.address())["outcome"], "completed");
}
