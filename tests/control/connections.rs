//! Who is connected, and closing some of them.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Operated;
use crate::lifecycle::hand_over::{connect, works};
use crate::lifecycle::upgrade::{linked, upgrade};
use crate::support::client::{End, client_from};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, eventual, eventually, snigate};

const NAME: &str = "a.example";

fn connections(operated: &Operated, arguments: &[&str]) -> Vec<Value> {
    let text = operated.says(&[&["connections", "--json"], arguments].concat());
    let listed: Value = serde_json::from_str(&text).unwrap();
    listed["connections"].as_array().unwrap().clone()
}

fn clients(operated: &Operated, arguments: &[&str]) -> Vec<String> {
    connections(operated, arguments).iter().map(|one| one["client"].as_str().unwrap().to_owned()).collect()
}

pub(super) fn open(operated: &Operated, from: &str, name: &str) -> Client {
    let mut client = client_from(from, operated.router.address());
    client.write(&Hello::to(name).record());
    client.read(1);
    client
}

#[test]
fn connections_are_listed_with_all_that_is_known_whether_parked_or_not() {
    let (backend, held) = Backend::held();
    let more = "limits: {park_after: 100ms}\n";
    let operated = Operated::start(&config(&[(NAME, backend.address())], more));
    let (mut client, mut upstream) = connect(&operated.router, &held);
    works(&mut client, &mut upstream);
    let received = Hello::to(NAME).record().len() + 2;
    for state in ["relaying", "parked"] {
        let one = eventual(state, || connections(&operated, &[]).into_iter().find(|one| one["state"] == state));
        let text = |key: &str| one[key].as_str().unwrap().to_owned();
        assert_eq!(text("client"), client.address().to_string());
        assert_eq!([text("route"), text("server_name")], [NAME, NAME]);
        assert_eq!(text("endpoint"), backend.address().to_string());
        assert_eq!(text("listener"), "127.0.0.1:0");
        assert_eq!((&one["bytes_received"], &one["bytes_sent"]), (&received.into(), &4.into()));
        let (age, idle) = (one["age_seconds"].as_f64().unwrap(), one["idle_seconds"].as_f64().unwrap());
        assert!(age >= idle && idle >= 0.0 && age < 30.0, "{one}");
        assert!(one["client_rtt_ms"].is_f64() && one["upstream_rtt_ms"].is_f64(), "{one}");
        works_again(&mut client, &mut upstream, state);
    }
    let table = operated.says(&["connections"]);
    let mut lines = table.lines();
    assert!(lines.next().unwrap().starts_with("ID "), "{table}");
    assert!(lines.next().unwrap().contains(&format!("{}  {NAME}  {NAME}  ", client.address())), "{table}");
    assert!(lines.next().unwrap().starts_with("1 match; of all connections "), "{table}");
}

/// Not before its bytes were looked at.
fn works_again(client: &mut Client, upstream: &mut std::net::TcpStream, state: &str) {
    if state == "parked" {
        works(client, upstream);
    }
}

#[test]
fn connections_are_filtered_and_sorted() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&[(NAME, backend.address()), ("b.example", backend.address())], ""));
    let old = open(&operated, "127.0.0.1", NAME);
    let young = open(&operated, "127.0.0.2", "b.example");
    let [old, young] = [&old, &young].map(|client| client.address().to_string());
    let listed = |arguments: &[&str]| clients(&operated, arguments).join(" ");
    let both = format!("{old} {young}");
    assert_eq!(listed(&[]), both, "the oldest first");
    assert_eq!(listed(&["--route", NAME]), old);
    assert_eq!(listed(&["--sni", "B.example"]), young);
    assert_eq!(listed(&["--client", "127.0.0.2"]), young);
    assert_eq!(listed(&["--client", "127.0.0.0/30"]), both);
    assert_eq!(listed(&["--endpoint", &backend.address().to_string(), "--route", NAME]), old);
    assert_eq!(listed(&["--endpoint", "127.0.0.1:1"]), "");
    assert_eq!(listed(&["--older", "1h"]), "");
    assert_eq!(listed(&["--idle", "0s", "--sort", "client", "--limit", "1"]), old);
    let id = connections(&operated, &["--route", NAME])[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(listed(&["--id", &id]), old);
    assert!(operated.fails(&["connections", "--client", "nowhere"]).contains("client: `nowhere`: expected an address"));
    let text = operated.says(&["connections", "--limit", "1"]);
    assert!(text.contains("1 of 2 are listed; --limit lists more\n"), "{text}");
}

#[test]
fn h28_only_what_matches_is_closed_and_no_faster_than_said() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&[(NAME, backend.address()), ("b.example", backend.address())], ""));
    let mut to_close: Vec<Client> = (0..6).map(|_| open(&operated, "127.0.0.1", NAME)).collect();
    let mut other = open(&operated, "127.0.0.1", "b.example");
    let usage = operated.ctl(&["close"]);
    assert_eq!(usage.status.code(), Some(2), "nothing is closed without a filter or --all");
    assert_eq!(operated.ctl(&["close", "--all", "--route", NAME]).status.code(), Some(2));
    let dry = operated.says(&["close", "--all", "--dry-run"]);
    assert_eq!(dry, format!("7 connections would be closed ({NAME} 6, b.example 1)\n"));
    assert_eq!(connections(&operated, &[]).len(), 7);

    let begun = Instant::now();
    let told = operated.says(&["close", "--route", NAME, "--rate", "10/s"]);
    assert!(begun.elapsed() >= Duration::from_millis(500), "the sixth one half a second after the first");
    assert!(told.starts_with(&format!("6 connections to close ({NAME} 6)\n")), "{told}");
    assert!(told.ends_with("6 closed\n"), "{told}");
    for client in &mut to_close {
        client.rest();
        let line = operated.router.account_of(client.address());
        assert_eq!((&line["outcome"], &line["closed_by"]), (&"drained".into(), &"us".into()));
        assert_eq!(line["reason"], "closed by an operator");
    }
    other.write(b"still there");
    other.read(Hello::to("b.example").record().len() - 1 + 11);
    let line = operated.router.wait("what was done", |line| line["verb"] == "close");
    assert_eq!(
        (&line["filter"], &line["matched"], &line["closed"]),
        (&format!("route={NAME}").into(), &6.into(), &6.into())
    );
    assert_eq!(operated.says(&["close", "--route", NAME]), "0 connections to close\n0 closed\n");
}

#[test]
fn h28_parked_connections_are_closed_too() {
    let (backend, held) = Backend::held();
    let operated = Operated::start(&config(&[(NAME, backend.address())], "limits: {park_after: 100ms}\n"));
    let (mut client, _upstream) = connect(&operated.router, &held);
    eventually("it is parked", || operated.router.metric("snigate_connections_parked") == 1.0);
    operated.says(&["close", "--all"]);
    assert_eq!(client.rest().1, End::Fin);
    assert_eq!(operated.router.account_of(client.address())["reason"], "closed by an operator");
    assert_eq!(operated.router.metric("snigate_connections_parked"), 0.0);
}

#[test]
fn h28_closing_stops_when_the_operator_leaves() {
    let (backend, held) = Backend::held();
    let operated = Operated::start(&config(&[(NAME, backend.address())], ""));
    let mut streams: Vec<_> = (0..6).map(|_| connect(&operated.router, &held)).collect();
    let mut ctl: Command = snigate();
    ctl.arg("ctl").arg("--socket").arg(&operated.socket).args(["close", "--all", "--rate", "1"]);
    let mut closing = ctl.stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(closing.stdout.take().unwrap()).lines();
    assert_eq!(told.next().unwrap().unwrap(), format!("6 connections to close ({NAME} 6)"));
    operated.router.wait("the first", |line| line["outcome"] == "drained");
    kill_process(Pid::from_child(&closing), Signal::TERM).unwrap();
    closing.wait().unwrap();
    let line = operated.router.wait("that it has stopped", |line| line["verb"] == "close");
    assert_eq!(line["interrupted"], true, "{line}");
    let closed = line["closed"].as_u64().unwrap();
    assert!((1..6).contains(&closed), "{line}");
    let left = connections(&operated, &[]).len() as u64;
    assert_eq!(left, 6 - closed);
    let open = clients(&operated, &[]);
    streams.retain(|(client, _)| open.contains(&client.address().to_string()));
    streams.iter_mut().for_each(|(client, upstream)| works(client, upstream));
}

#[test]
fn h28_closing_does_not_catch_up() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&[(NAME, backend.address())], ""));
    let streams: Vec<Client> = (0..30).map(|_| open(&operated, "127.0.0.1", NAME)).collect();
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| {
            let begun = Instant::now();
            assert!(operated.says(&["close", "--all", "--rate", "10"]).ends_with("30 closed\n"));
            begun.elapsed()
        });
        operated.router.wait("the first", |line| line["outcome"] == "drained");
        operated.router.signal(Signal::STOP);
        // As long as this, it can close nothing, and it must not make up for that.
        std::thread::sleep(Duration::from_secs(2));
        operated.router.signal(Signal::CONT);
        let took = closing.join().unwrap();
        assert!(took >= Duration::from_millis(4500), "{took:?}: 2.9 s without the stop of 2 s");
    });
    drop(streams);
}

#[test]
fn h28_connections_of_the_old_process_are_listed_and_closed_after_an_upgrade() {
    let (backend, held) = Backend::held();
    let (operated, _) = Operated::starting(&config(&[(NAME, backend.address())], ""), linked);
    let (mut client, mut upstream) = connect(&operated.router, &held);
    works(&mut client, &mut upstream);
    upgrade(&operated.router);
    let one = eventual("it has arrived", || {
        let output = operated.ctl(&["connections", "--json"]);
        let listed: Value = serde_json::from_slice(&output.stdout).ok()?;
        listed["connections"].as_array()?.first().cloned()
    });
    assert_eq!(one["bytes_sent"], 4, "of both processes");
    operated.says(&["close", "--id", one["id"].as_str().unwrap()]);
    assert_eq!(client.rest().1, End::Fin);
}

#[test]
fn h28_connections_that_stay_in_the_old_process_are_mentioned() {
    let (backend, held) = Backend::held();
    let kept = |name: &str| {
        format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - {{sni: {name}, upstream: {{endpoints: \"{}\", on_remove: \
             keep}}}}\n",
            backend.address()
        )
    };
    let (operated, _) = Operated::starting(&kept(NAME), linked);
    let (mut client, mut upstream) = connect(&operated.router, &held);
    std::fs::write(&operated.router.config, operated.with_socket(&kept("other.example"))).unwrap();
    upgrade(&operated.router);
    let said = "1 more connection has stayed in an old process, where it is neither listed nor closed";
    eventually("the list says so", || operated.says(&["connections"]).contains(said));
    assert!(operated.says(&["close", "--all", "--dry-run"]).contains(said));
    works(&mut client, &mut upstream);
}

#[test]
fn h28_lists_of_many_connections_delay_no_stream() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&[(NAME, backend.address())], "limits: {park_after: 100ms}\n"));
    let _all: Vec<Client> = (0..300).map(|_| open(&operated, "127.0.0.1", NAME)).collect();
    let mut busy = open(&operated, "127.0.0.1", NAME);
    busy.read(Hello::to(NAME).record().len() - 1);
    std::thread::scope(|scope| {
        let lists: Vec<_> = (0..4).map(|_| scope.spawn(|| connections(&operated, &[]).len())).collect();
        for _ in 0..200 {
            busy.write(b"ping");
            assert_eq!(busy.read(4), b"ping");
        }
        for list in lists {
            assert_eq!(
                list.join().unwrap(),
                301,
                "each is listed once, parked, relayed or on the way from one to the other"
            );
        }
    });
}
