//! What becomes of established connections at an upgrade.

use std::fs;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use super::upgrade::{UNBOUND, install, linked, serving, upgrade};
use crate::support::backend::fill;
use crate::support::client::{End, rest};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, PATIENCE, Router, eventually, pattern};

const NAME: &str = "a.example";

fn is_in_new(line: &Value) -> bool {
    line["message"] == "connections of the old process continue here" || line["message"] == "the old process has exited"
}

pub fn connect(router: &Router, held: &std::sync::mpsc::Receiver<TcpStream>) -> (Client, TcpStream) {
    let hello = Hello::to(NAME).record();
    let client = Client::send(router.address(), &hello);
    let mut upstream = held.recv_timeout(PATIENCE).unwrap();
    upstream.set_read_timeout(Some(PATIENCE)).unwrap();
    upstream.read_exact(&mut vec![0; hello.len()]).unwrap();
    (client, upstream)
}

/// Both directions work.
pub fn works(client: &mut Client, upstream: &mut TcpStream) {
    client.write(b"up");
    upstream.read_exact(&mut [0; 2]).unwrap();
    upstream.write_all(b"down").unwrap();
    assert_eq!(client.read(4), b"down");
}

fn active(router: &Router) -> f64 {
    router.metric(&format!("snigate_connections_active{{route=\"{NAME}\"}}"))
}

#[test]
fn h22_connections_of_the_old_process_are_not_accepted_again() {
    let (backend, held) = Backend::held();
    let (mut router, _) = linked(&config(&[(NAME, backend.address())], ""));
    let mut streams: Vec<_> = (0..5).map(|_| connect(&router, &held)).collect();
    let accepted = |router: &Router| {
        let status: Value = serde_json::from_str(&router.get("/api/status").1).unwrap();
        status["routes"][0]["accepted"].as_u64().unwrap()
    };
    assert_eq!(accepted(&router), 5);
    upgrade(&router);
    assert_eq!(router.exit().code(), Some(0), "all have moved");
    assert_eq!((active(&router), accepted(&router)), (5.0, 0));
    streams.push(connect(&router, &held));
    drop(streams.remove(0));
    eventually("one has ended", || active(&router) == 5.0);
    assert_eq!(accepted(&router), 1);
}

#[test]
fn h22_connections_that_are_never_parked_are_not_parked_by_an_upgrade_either() {
    let (backend, held) = Backend::held();
    let (mut router, _) = linked(&config(&[(NAME, backend.address())], "limits: {park_after: never}\n"));
    let mut streams: Vec<_> = (0..5).map(|_| connect(&router, &held)).collect();
    upgrade(&router);
    assert_eq!(router.exit().code(), Some(0), "all have moved");
    assert_eq!((active(&router), router.metric("snigate_connections_parked")), (5.0, 0.0));
    streams.iter_mut().for_each(|(client, upstream)| works(client, upstream));
}

#[test]
fn h22_b35_an_upgrade_moves_no_connection_to_another_endpoint() {
    let [(one, first), (two, second)] = [Backend::held(), Backend::held()];
    let more = "timeouts: {drain: 1s}\nlimits: {park_after: 100ms}\n";
    let text = config(&[(NAME, one.address())], more).replace(
        &format!("upstream: \"{}\"", one.address()),
        &format!(
            "upstream: {{endpoints: [\"{}\", \"{}\"], slow_start: 0s, rebalance: 1/s}}",
            one.address(),
            two.address()
        ),
    );
    let (mut router, _) = linked(&text);
    let hello = Hello::to(NAME).record();
    let mut left: Vec<Client> = (0..10).map(|_| Client::send(router.address(), &hello)).collect();
    let [stay, go] =
        [first, second].map(|held| (0..5).map(|_| held.recv_timeout(PATIENCE).unwrap()).collect::<Vec<_>>());
    drop(go);
    left.iter().for_each(|client| client.stream.set_nonblocking(true).unwrap());
    eventually("those of one endpoint have ended", || {
        left.retain_mut(|client| !client.stream.read(&mut [0]).is_ok_and(|length| length == 0));
        left.len() == 5
    });
    eventually("only the others are left", || active(&router) == 5.0);
    upgrade(&router);
    assert_eq!(router.exit().code(), Some(0), "they have moved");
    // Longer than until the first would be closed. Nothing else could show that nothing happens.
    std::thread::sleep(Duration::from_secs(3));
    assert!(router.log().iter().all(|line| line["outcome"] != "drained"), "{:?}", router.log());
    assert_eq!(active(&router), 5.0);
    drop(stay);
}

#[test]
fn h22_connections_continue_in_the_new_process_and_are_counted_once() {
    let (backend, held) = Backend::held();
    let more = "limits: {per_source: 4, park_after: 100ms}\n";
    let (mut router, _) = linked(&config(&[(NAME, backend.address())], more));
    let hello = Hello::to(NAME).record().len() as u64;
    let (mut spoken, mut spoken_upstream) = connect(&router, &held);
    works(&mut spoken, &mut spoken_upstream);
    let (mut silent, mut silent_upstream) = connect(&router, &held);
    let (half, mut half_upstream) = connect(&router, &held);
    half.finish();
    assert_eq!(half_upstream.read(&mut [0]).unwrap(), 0);
    let (mut busy, mut busy_upstream) = connect(&router, &held);
    let writer = std::thread::spawn(move || {
        let body = pattern(1 << 20);
        for _ in 0..200 {
            busy_upstream.write_all(&body).unwrap();
        }
        busy_upstream
    });
    assert!(busy.read(1 << 20) == pattern(1 << 20));
    eventually("one is parked", || router.metric("snigate_connections_parked") >= 1.0);

    upgrade(&router);
    for _ in 1..200 {
        assert!(busy.read(1 << 20) == pattern(1 << 20));
    }
    assert_eq!(router.exit().code(), Some(0), "none stays");
    eventually("all are reported", || {
        let log = router.log();
        log.iter().filter(|line| is_in_new(line)).map(|line| line["connections"].as_u64().unwrap()).sum::<u64>() == 4
    });
    assert!((active(&router) - 4.0).abs() < f64::EPSILON);
    // The new process counts them against the limit of their source.
    let mut fifth = Client::send(router.address(), &Hello::to(NAME).record());
    fifth.rest();
    assert_eq!(router.account_of(fifth.address())["outcome"], "over_limit");

    works(&mut spoken, &mut spoken_upstream);
    works(&mut silent, &mut silent_upstream);
    let mut busy_upstream = writer.join().unwrap();
    works(&mut busy, &mut busy_upstream);
    // The half that is open stays so, and ends in order.
    half_upstream.write_all(b"answer").unwrap();
    drop(half_upstream);
    let mut half = half;
    assert_eq!(half.rest(), (b"answer".to_vec(), End::Fin));
    for (client, mut upstream) in
        [(&mut spoken, spoken_upstream), (&mut silent, silent_upstream), (&mut busy, busy_upstream)]
    {
        client.finish();
        assert_eq!(rest(&mut upstream), (Vec::new(), End::Fin));
        drop(upstream);
        assert_eq!(client.rest().1, End::Fin);
    }
    for (client, received, sent) in [(&spoken, 4, 8), (&silent, 2, 4), (&half, 0, 6), (&busy, 2, (200 << 20) + 4)] {
        let account = router.account_of(client.address());
        assert_eq!(account["outcome"], "completed", "{account}");
        assert_eq!(account["bytes.received"], hello + received, "{account}");
        assert_eq!(account["bytes.sent"], sent, "{account}");
        assert_eq!(account["server.address"], NAME);
        assert!(account["hello_ms"].is_number() && account["connect_ms"].is_number(), "{account}");
        assert_eq!(account["tls.client.ja4"], "t13d040500_77f0cd3447db_e12c865f31a5");
        assert!(account["client.rtt_ms"].is_number() && account["upstream.rtt_ms"].is_number(), "{account}");
        let of_client = |line: &Value| line["client.port"] == client.address().port();
        assert_eq!(router.log().iter().filter(|line| of_client(line)).count(), 1, "one line");
    }
    eventually("the gauges are back", || active(&router) == 0.0 && router.metric("snigate_connections_parked") == 0.0);
    let completed = router.metric(&format!(
        "snigate_connections_total{{listener=\"127.0.0.1:0\",route=\"{NAME}\",outcome=\"completed\"}}"
    ));
    assert!((completed - 4.0).abs() < f64::EPSILON, "{completed}");
}

#[test]
fn h22_a_stalled_stream_follows_as_soon_as_it_is_read() {
    let (backend, held) = Backend::held();
    let (mut router, _) = linked(&config(&[(NAME, backend.address())], ""));
    let (mut client, mut upstream) = connect(&router, &held);
    let sent = fill(&mut upstream);
    upgrade(&router);
    router.wait("it stays", |line| line["message"] == "connections continue in the old process");
    // What the client sends meanwhile arrives.
    client.write(b"wait");
    let mut received = [0; 4];
    upstream.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"wait");

    let all = client.read(sent.len());
    assert_eq!(router.exit().code(), Some(0), "it has followed");
    upstream.write_all(b"end").unwrap();
    assert_eq!(client.read(3), b"end");
    assert!(all == sent, "in order, and each byte once");
}

#[test]
fn h22_where_there_is_no_room_connections_wait_for_it() {
    let (backend, held) = Backend::held();
    let text = config(&[(NAME, backend.address())], "");
    let (mut router, _) = linked(&text);
    let (first, first_upstream) = connect(&router, &held);
    let (second, second_upstream) = connect(&router, &held);
    // One of the two is for the client that may come next.
    fs::write(&router.config, format!("{text}limits: {{connections: 2}}\n")).unwrap();
    upgrade(&router);
    router.wait("one stays", |line| {
        line["message"] == "connections continue in the old process" && line["connections"] == 1
    });
    // Either may have been the one.
    let mut both = [(first, first_upstream), (second, second_upstream)];
    for (client, upstream) in &mut both {
        works(client, upstream);
    }
    let [(mut first, mut first_upstream), (mut second, mut second_upstream)] = both;
    first.finish();
    rest(&mut first_upstream);
    drop(first_upstream);
    first.rest();
    works(&mut second, &mut second_upstream);
    assert_eq!(router.exit().code(), Some(0), "the other has followed, or was the first");
    works(&mut second, &mut second_upstream);
}

#[test]
fn h23_connections_of_a_route_that_the_new_process_lacks_follow_on_remove() {
    let (other, _other_held) = Backend::held();
    let route = |name: &str, backend: &Backend, policy: &str| {
        format!("  - sni: {name}\n    upstream: {{endpoints: \"{}\", on_remove: {policy}}}\n", backend.address())
    };
    let (backend, held) = Backend::held();
    for policy in ["cut", "drain", "keep"] {
        let text = |routes: String| {
            format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\ntimeouts: {{drain: 500ms}}\nroutes:\n{routes}")
        };
        let (mut router, _) = linked(&text(route(NAME, &backend, policy)));
        let (mut client, mut upstream) = connect(&router, &held);
        fs::write(&router.config, text(route("other.example", &other, policy))).unwrap();
        upgrade(&router);
        if policy == "keep" {
            router.wait("it stays", |line| line["message"] == "connections continue in the old process");
            works(&mut client, &mut upstream);
            drop((client, upstream));
        } else {
            assert_eq!(client.rest(), (Vec::new(), End::Fin), "{policy}");
            let account = router.account_of(client.address());
            assert_eq!(account["outcome"], "drained", "{account}");
            assert_eq!(account["reason"], "its route or endpoint is no longer configured");
        }
        assert_eq!(router.exit().code(), Some(0));
    }
}

#[test]
fn h23_connections_to_endpoints_that_are_removed_but_kept_continue_in_the_new_process() {
    let (backend, held) = Backend::held();
    let (other, _other_held) = Backend::held();
    let text = |endpoint: &Backend, policy: &str| {
        let endpoint = endpoint.address();
        format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - sni: {NAME}\n    upstream: {{endpoints: \"{endpoint}\"{policy}}}\n"
        )
    };
    let (mut router, _) = linked(&text(&backend, ", on_remove: keep"));
    let (mut client, mut upstream) = connect(&router, &held);
    // The policy of the old configuration counts, as for a reload.
    fs::write(&router.config, text(&other, "")).unwrap();
    let second = upgrade(&router);
    assert_eq!(router.exit().code(), Some(0), "the old process has nothing left");
    works(&mut client, &mut upstream);
    assert_eq!(active(&router), 1.0);
    // What has moved moves on, although the process that it is in never had the endpoint in its configuration.
    kill_process(second, Signal::USR2).unwrap();
    eventually("the third process serves", || serving(&router) != second);
    eventually("it has moved on", || test_kill_process(second).is_err());
    works(&mut client, &mut upstream);
    assert_eq!(active(&router), 1.0);
    works(&mut client, &mut upstream);
    let address = client.address();
    drop((client, upstream));
    assert_eq!(router.account_of(address)["outcome"], "completed");
}

#[test]
fn h23_a_route_that_the_new_process_lacks_decides_for_endpoints_that_were_kept_before_too() {
    let (backend, held) = Backend::held();
    let (other, _other_held) = Backend::held();
    let text = |name: &str, endpoint: &Backend, policy: &str| {
        let endpoint = endpoint.address();
        format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - sni: {name}\n    upstream: {{endpoints: \"{endpoint}\", \
             on_remove: {policy}}}\n"
        )
    };
    let (mut router, _) = linked(&text(NAME, &backend, "keep"));
    let (mut client, mut upstream) = connect(&router, &held);
    router.reload(&text(NAME, &other, "cut"));
    works(&mut client, &mut upstream);
    fs::write(&router.config, text("other.example", &other, "cut")).unwrap();
    upgrade(&router);
    assert_eq!(client.rest(), (Vec::new(), End::Fin));
    assert_eq!(router.account_of(client.address())["outcome"], "drained");
    assert_eq!(router.exit().code(), Some(0));
}

#[test]
fn h23_a_reload_after_an_upgrade_is_over_although_the_old_process_lives() {
    let (backend, held) = Backend::held();
    let (stalled_backend, stalled) = Backend::held();
    let more = "timeouts: {drain: 0s}\n";
    let remaining = ("b.example", stalled_backend.address());
    let (router, _) = linked(&config(&[(NAME, backend.address()), remaining], more));
    let (mut client, _upstream) = connect(&router, &held);
    let _stalled_client = Client::send(router.address(), &Hello::to("b.example").record());
    let mut stalled = stalled.recv_timeout(PATIENCE).unwrap();
    fill(&mut stalled);
    let new = upgrade(&router);
    router.wait("one has moved", is_in_new);
    router.wait("one has not", |line| line["message"] == "connections continue in the old process");

    fs::write(&router.config, config(&[remaining], more)).unwrap();
    kill_process(new, Signal::HUP).unwrap();
    let closed =
        router.wait("it is over", |line| line["message"] == "closed connections of removed routes and endpoints");
    assert_eq!(closed["closed"], 1);
    assert_eq!(client.rest(), (Vec::new(), End::Fin));
    assert!(!router.log().iter().any(|line| line["message"] == "the old process has exited"));
}

/// What a new process does that is not this program.
const ROLE: &str = "TEST_SUCCESSOR";

/// Not a test, but the new process of the next ones: it takes the listeners, says that it serves, and then does not
/// behave.
#[test]
fn successor() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut channel = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    channel.write_all(b"hi v2").unwrap();
    let receive = |bytes: &mut [u8]| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(128))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::WAITALL | RecvFlags::CMSG_CLOEXEC;
        recvmsg(&channel, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags).unwrap();
    };
    let mut listeners = 0;
    loop {
        let mut message = [0; 512];
        receive(&mut message);
        if message == [0; 512] {
            break;
        }
        listeners += 1;
    }
    (&channel).write_all(b"ready").unwrap();
    (&channel).write_all(&vec![1; listeners]).unwrap();
    let mut confirmed = [0];
    receive(&mut confirmed);
    assert_eq!(confirmed, *b"c");
    receive(&mut [0; 16]);
    match &*role {
        // While it has the connection, without an answer.
        "dies" => std::process::exit(0),
        // It has the connection, and does not say whether it continues it.
        "hangs" => std::thread::sleep(PATIENCE),
        // It does not understand the record.
        "refuses" => {
            channel.write_all(b"?").unwrap();
            channel.read_to_end(&mut Vec::new()).unwrap();
        }
        role => panic!("{role}"),
    }
}

fn upgrade_to(role: &str, router: &Router, binary: &Path) -> Pid {
    let tests = std::env::current_exe().unwrap().display().to_string();
    install(
        binary,
        &format!("#!/bin/sh\nexport {ROLE}={role}\nexec {tests} --exact lifecycle::hand_over::successor >/dev/null\n"),
    );
    upgrade(router)
}

#[test]
fn h09_connections_continue_when_the_new_process_dies_with_them_or_refuses_them() {
    let (backend, held) = Backend::held();
    for role in ["dies", "refuses"] {
        let (router, binary) = linked(&config(&[(NAME, backend.address())], UNBOUND));
        let (mut client, mut upstream) = connect(&router, &held);
        let new = upgrade_to(role, &router, &binary);
        if role == "dies" {
            eventually("it is gone", || test_kill_process(new).is_err());
            router.wait("told", |line| line["message"] == "no more connections are handed over");
        }
        works(&mut client, &mut upstream);
        client.finish();
        rest(&mut upstream);
        drop(upstream);
        assert_eq!(client.rest().1, End::Fin);
        let account = router.account_of(client.address());
        assert_eq!((&account["outcome"], &account["bytes.sent"]), (&"completed".into(), &4.into()), "{account}");
    }
}

#[test]
fn h10_a_new_process_that_does_not_answer_does_not_keep_the_old_one() {
    let (backend, held) = Backend::held();
    let text = config(&[(NAME, backend.address())], &format!("{UNBOUND}timeouts: {{drain: 100ms}}\n"));
    let (mut router, binary) = linked(&text);
    let (client, _upstream) = connect(&router, &held);
    upgrade_to("hangs", &router, &binary);
    router.wait("that it drains", |line| line["message"] == "draining");
    router.signal(Signal::TERM);
    assert_eq!(router.exit().code(), Some(0));
    let account = router.account_of(client.address());
    assert_eq!(account["outcome"], "drained", "{account}");
}

/// Data that arrives just then is reported once by the kernel.
#[test]
fn h24_what_arrives_at_the_moment_of_parking_is_not_forgotten() {
    let (backend, held) = Backend::held();
    let router = Router::start(&config(&[(NAME, backend.address())], "limits: {park_after: 100ms}\n"));
    std::thread::scope(|scope| {
        for number in 0..16 {
            let (mut client, mut upstream) = connect(&router, &held);
            scope.spawn(move || {
                for round in 0..40 {
                    works(&mut client, &mut upstream);
                    std::thread::sleep(Duration::from_micros(99_000 + 150 * ((number + round) % 16)));
                }
            });
        }
    });
}

#[test]
fn h24_parked_connections_wake_time_out_and_end_as_others_do() {
    let (backend, held) = Backend::held();
    let more = "limits: {park_after: 100ms}\ntimeouts: {idle: 3s}\n";
    let router = Router::start(&config(&[(NAME, backend.address())], more));
    let parked = |count: f64| eventually("they are parked", || router.metric("snigate_connections_parked") == count);
    let (mut client, mut upstream) = connect(&router, &held);
    for _ in 0..3 {
        parked(1.0);
        works(&mut client, &mut upstream);
    }
    // A reset is passed on, and so is a FIN.
    parked(1.0);
    crate::support::backend::reset(upstream);
    assert_eq!(client.rest().1, End::Reset);
    let account = router.account_of(client.address());
    assert_eq!((&account["outcome"], &account["client.retransmits"]), (&"upstream_reset".into(), &0.into()));
    assert!(account["tls.client.ja4"].is_string() && account["upstream.rtt_ms"].is_number(), "{account}");
    let (mut client, mut upstream) = connect(&router, &held);
    parked(1.0);
    client.finish();
    assert_eq!(rest(&mut upstream), (Vec::new(), End::Fin));
    drop(upstream);
    assert_eq!(client.rest().1, End::Fin);
    // The idle timeout.
    let (mut client, _upstream) = connect(&router, &held);
    parked(1.0);
    assert_eq!(client.rest().1, End::Fin);
    let account = router.account_of(client.address());
    assert_eq!(account["outcome"], "idle_timeout");
    let duration = Duration::from_secs_f64(account["duration_ms"].as_f64().unwrap() / 1e3);
    assert!(duration >= Duration::from_secs(3), "{duration:?}");
    parked(0.0);
}

#[test]
fn h24_a_drain_and_a_removal_reach_parked_connections() {
    let (backend, held) = Backend::held();
    let (other, _other_held) = Backend::held();
    let more = "limits: {park_after: 100ms}\ntimeouts: {drain: 200ms}\n";
    let mut router = Router::start(&config(&[(NAME, backend.address())], more));
    let (mut removed, _removed_upstream) = connect(&router, &held);
    eventually("it is parked", || router.metric("snigate_connections_parked") == 1.0);
    fs::write(&router.config, config(&[("other.example", other.address())], more)).unwrap();
    router.signal(Signal::HUP);
    assert_eq!(removed.rest().1, End::Fin);
    assert_eq!(router.account_of(removed.address())["outcome"], "drained");

    fs::write(&router.config, config(&[(NAME, backend.address())], more)).unwrap();
    router.signal(Signal::HUP);
    router.wait_many("both", 2, |line| line["message"] == "reloaded");
    let streams: Vec<(Client, TcpStream)> = (0..100).map(|_| connect(&router, &held)).collect();
    eventually("they are parked", || router.metric("snigate_connections_parked") == 100.0);
    router.signal(Signal::TERM);
    for (mut client, _) in streams {
        assert_eq!(client.rest().1, End::Fin);
    }
    assert_eq!(router.exit().code(), Some(0));
    router.wait("all were cut", |line| line["message"] == "drained" && line["cut"] == 100);
}
