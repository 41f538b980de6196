//! Many routes on one machine: what they share is looked up and checked once, and what hangs delays nothing else.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustls::{ServerConnection, StreamOwned};
use socket2::{SockFilter, Socket};
use tempfile::TempDir;

use crate::support::api_server::{ApiServer, Mood};
use crate::support::backend::{fill, free};
use crate::support::tls::{Authority, read_head, server_config};
use crate::support::{Backend, Client, Hello, Process, Router, eventually, watchdog};

const NAME: &str = "a.example";

/// A configuration with this upstream map for each route.
fn config<'u>(upstreams: impl IntoIterator<Item = (String, &'u str)>) -> String {
    let mut text = "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n".to_owned();
    for (name, upstream) in upstreams {
        writeln!(text, "  - {{sni: {name}, upstream: {upstream}}}").unwrap();
    }
    text
}

fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("c{number}.example"))
}

/// How long it takes until the server has accepted so many connections more.
fn time_for(accepted: impl Fn() -> usize, more: usize) -> Duration {
    let (before, start) = (accepted(), Instant::now());
    eventually("checks", || accepted() >= before + more);
    start.elapsed()
}

#[test]
fn b24_routes_to_one_server_with_equal_checks_share_them_while_they_come_and_go() {
    let server = Backend::held().0;
    let interval = Duration::from_millis(200);
    let upstream = |more: &str| {
        format!("{{endpoints: \"{}\", health_check: {{interval: 200ms, timeout: 200ms, {more}}}}}", server.address())
    };
    // Thresholds are a route's own, and so are not part of what is checked.
    let (first, others) = (upstream("fall: 2"), upstream("fall: 5"));
    let all = || names(50).enumerate().map(|(number, name)| (name, if number == 0 { &*first } else { &*others }));
    let router = Router::start(&config(all()));
    assert!(time_for(|| server.accepted(), 10) > 5 * interval, "one check for all");

    router.reload(&config(all().skip(1)));
    assert!(time_for(|| server.accepted(), 10) > 5 * interval, "the first has left");
    router.reload(&config(all().take(10)));
    assert!(time_for(|| server.accepted(), 10) > 5 * interval, "it is back, and others have left");

    router.reload(&config(names(1).map(|name| (name, "{endpoints: \"127.0.0.1:9\"}"))));
    // One may have begun.
    let mut before = server.accepted();
    let mut since = Instant::now();
    eventually("the check ends with the last route", || {
        if server.accepted() != before {
            (before, since) = (server.accepted(), Instant::now());
        }
        since.elapsed() > 5 * interval
    });
}

#[test]
fn b24_what_a_shared_check_finds_every_route_sees_by_its_own_thresholds() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let ca = authority.write(directory.path(), "ca.pem");
    let server = ApiServer::start(&authority, NAME);
    let upstream = |fall: u32| {
        format!(
            "{{endpoints: \"{}\", health_check: {{interval: 200ms, rise: 1, fall: {fall}, tls: {{ca_file: {}, server_name: {NAME}}}, http: {{}}}}}}",
            server.address(),
            ca.display()
        )
    };
    let (soon, late) = (upstream(2), upstream(12));
    let router = Router::start(&config([("soon.example".into(), &*soon), ("late.example".into(), &*late)]));
    server.be(Mood::Status(404, "nothing here"));
    let state = |route: &str, state: &str| {
        router.wait(state, |line| line["before"].is_string() && line["route"] == route && line["state"] == state)
    };
    assert_eq!(state("soon.example", "dead")["in_a_row"], 2);
    assert_eq!(state("late.example", "dead")["in_a_row"], 12);
    server.be(Mood::Status(200, "ok"));
    state("soon.example", "ready");
    state("late.example", "ready");
    for route in ["soon.example", "late.example"] {
        let not_covered =
            router.wait("each route's own names", |line| line["route"] == route && line["not_covered"] == route);
        assert_eq!(not_covered["covered"], NAME);
    }
}

#[test]
fn a_name_that_a_reload_adds_is_compared_with_the_certificate_that_is_known() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let ca = authority.write(directory.path(), "ca.pem");
    let server = ApiServer::start(&authority, NAME);
    let upstream = format!(
        "{{endpoints: \"{}\", health_check: {{interval: 100ms, tls: {{ca_file: {}, server_name: {NAME}}}, http: {{}}}}}}",
        server.address(),
        ca.display()
    );
    let text = |names: &str| {
        format!(
            "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - {{name: r, sni: [{names}], upstream: {upstream}}}\n"
        )
    };
    let router = Router::start(&text(NAME));
    eventually("a check", || !server.requests().is_empty());
    let known = || router.get("/metrics").1.contains("snigate_endpoint_certificate_expiry_timestamp_seconds{");
    eventually("its certificate is known", known);
    for added in ["added.example", "more.example"] {
        let told = router.reload(&text(&format!("{NAME}, {added}")));
        assert_eq!(told["message"], "reloaded");
        router.wait("the name is not covered", |line| line["not_covered"] == added);
    }
    assert_eq!(router.log().iter().filter(|line| line["not_covered"].is_string()).count(), 2);
}

/// A port at which no address of 127.0.0.0/8 answers.
fn black_holes() -> (Socket, u16) {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = Socket::from(listener);
    // `ret 0`: accept no byte of any packet.
    socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
    (socket, port)
}

#[test]
fn b25_hundreds_of_endpoints_that_do_not_answer_do_not_delay_the_checks_of_one_that_does() {
    let server = Backend::held().0;
    let (_holes, port) = black_holes();
    let check = "health_check: {interval: 1s, timeout: 1s}";
    let holes: Vec<String> = (0..400u32)
        .map(|number| format!("{{endpoints: \"127.7.{}.{}:{port}\", {check}}}", number / 200, number % 200 + 1))
        .collect();
    let alive = format!("{{endpoints: \"{}\", {check}}}", server.address());
    let upstreams = names(400).zip(holes.iter().map(|hole| &**hole)).chain([(NAME.into(), &*alive)]);
    let router = Router::start(&config(upstreams));
    router.wait("that one is dead", |line| line["state"] == "dead");
    // Without fairness, more than a minute.
    let took = time_for(|| server.accepted(), 8);
    assert!(took < Duration::from_secs(16), "eight checks, one a second, took {took:?}");
}

#[test]
fn b26_an_endpoint_that_is_dead_without_checks_is_tried_by_the_router_itself() {
    watchdog::may_take(Duration::from_secs(120));
    let (address, alive) = (free(), Backend::named("alive"));
    let upstream = format!("{{endpoints: [\"{address}\", \"{}\"], balance: round_robin}}", alive.address());
    let router = Router::start(&config([(NAME.into(), &*upstream)]));
    let is_now = |state: &'static str| {
        router.wait(state, |line| {
            line["endpoint"] == address.to_string() && line["before"].is_string() && line["state"] == state
        })
    };
    for _ in 0..6 {
        let mut client = Client::send(router.address(), &Hello::to(NAME).record());
        client.finish();
        client.rest();
    }
    assert!(is_now("dead")["cause"].as_str().unwrap().contains("refused"));
    // From here on no client comes.
    let _returned = Backend::start_on(TcpListener::bind(address).unwrap(), drop);
    is_now("ready");
}

#[test]
fn b27_a_file_that_hangs_is_reported_by_name_and_changes_no_state() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let ca = authority.write(directory.path(), "ca.pem");
    let server = ApiServer::start(&authority, NAME);
    let upstream = format!(
        "{{endpoints: \"{}\", health_check: {{interval: 200ms, timeout: 200ms, tls: {{ca_file: {}, server_name: {NAME}}}}}}}",
        server.address(),
        ca.display()
    );
    let text = config(names(20).map(|name| (name, &*upstream)));
    let router = Router::start(&text);
    eventually("a check", || server.accepted() > 0);

    // Opening a pipe hangs like a file on a file server that is gone.
    let pipe = directory.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    std::fs::rename(&pipe, &ca).unwrap();
    let reported = router.wait("the file", |line| line["file"] == ca.display().to_string());
    assert_eq!(
        reported["message"],
        "cannot read a file of a health check: the file system does not respond; using its last content"
    );
    time_for(|| server.accepted(), 5);
    let threads = std::fs::read_dir(format!("/proc/{}/task", router.pid().as_raw_nonzero())).unwrap().count();
    assert!(threads < 40, "{threads} threads");
    assert_eq!(router.log().iter().filter(|line| line["file"] == reported["file"]).count(), 1, "told once");

    router.signal(Signal::HUP);
    let refused = router.wait("that a reload is refused", |line| {
        line["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("ca_file") && reason.contains("the file system does not respond"))
    });
    assert_eq!(refused["level"], "ERROR");
    assert!(!router.log().iter().any(|line| line["state"] == "dead"), "no endpoint is blamed");

    let answering = directory.path().join("answering");
    authority.write(directory.path(), "answering");
    assert!(std::fs::metadata(&answering).unwrap().size() > 0);
    std::fs::rename(&answering, &ca).unwrap();
    router.reload_as_it_is();
}

#[test]
fn h21_after_an_upgrade_the_old_process_checks_only_what_has_connections() {
    let (idle, (busy, held)) = (Backend::held().0, Backend::held());
    let interval = Duration::from_millis(300);
    let upstream = |address: SocketAddr| {
        format!("{{endpoints: \"{address}\", health_check: {{interval: 300ms, timeout: 300ms}}}}")
    };
    let (for_idle, for_busy) = (upstream(idle.address()), upstream(busy.address()));
    let router = Router::start(&config([("idle.example".into(), &*for_idle), (NAME.into(), &*for_busy)]));
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    eventually("the stream", || {
        held.try_iter().any(|mut stream| {
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).is_ok() && stream.write_all(b"up").is_ok() && {
                // The client does not read it, so the stream stays in the old process.
                fill(&mut stream);
                std::mem::forget(stream);
                true
            }
        })
    });
    assert_eq!(client.read(2), b"up");

    router.signal(Signal::USR2);
    router.wait("the upgrade", |line| {
        line["message"].as_str().is_some_and(|message| message.contains("took over") || message.contains("upgraded"))
            || line["successor"].is_u64()
    });
    // One that had begun may still end.
    time_for(|| idle.accepted(), 2);
    assert!(time_for(|| idle.accepted(), 10) > 6 * interval, "one process checks what is idle");
    assert!(time_for(|| busy.accepted(), 10) < 9 * interval, "both check what has a stream in the old one");
}

/// Answers each request with these pieces, a moment apart; when `forever`, the last one again and again.
fn answering(authority: &Authority, pieces: &'static [&'static str], forever: bool) -> Backend {
    let config = server_config(&authority.issue(NAME), None);
    Backend::start(move |stream| {
        let mut stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), stream);
        if read_head(&mut stream).is_none() {
            return;
        }
        for piece in pieces {
            if stream.write_all(piece.as_bytes()).and_then(|()| stream.flush()).is_err() {
                return;
            }
        }
        while forever && stream.write_all(pieces[pieces.len() - 1].as_bytes()).is_ok() {}
        let _ = stream.sock.read(&mut [0; 1024]);
    })
}

#[test]
fn b28_http_answers_in_pieces_chunked_provisional_large_or_endless_are_understood() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let ca = authority.write(directory.path(), "ca.pem");
    let large: &'static str = Box::leak(
        format!("HTTP/1.1 200 OK\r\nx-large: {}\r\ncontent-length: 2\r\n\r\nok", "x".repeat(15 * 1024)).into(),
    );
    let large: &'static [&'static str] = Box::leak(Box::new([large]));
    let ready: [(&str, &'static [&'static str], bool); 5] = [
        ("pieces", &["HTTP/1.1 2", "00 O", "K\r\ncontent-le", "ngth: 2\r\n\r\no", "k"], false),
        (
            "provisional",
            &["HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"],
            false,
        ),
        ("chunked", &["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"], false),
        ("large", large, false),
        ("endless", &["HTTP/1.1 200 OK\r\n\r\n", "0123456789abcdef"], true),
    ];
    let unready: [(&str, &'static [&'static str], bool); 2] = [
        (
            "named",
            &["HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n", "e\r\n[-]etcd failed\r\n0\r\n\r\n"],
            false,
        ),
        ("never", &["HTTP/1.1 500 No\r\n\r\n[-]etcd failed: reason withheld\n", "more\n"], true),
    ];
    let servers: Vec<(&str, Backend)> = ready
        .iter()
        .chain(&unready)
        .map(|(name, pieces, forever)| (*name, answering(&authority, pieces, *forever)))
        .collect();
    let upstreams: Vec<String> = servers.iter().map(|(_, server)| checked(server, &ca.display().to_string())).collect();
    let routes = servers.iter().zip(&upstreams).map(|((name, _), upstream)| (format!("{name}.example"), &**upstream));
    let router = Router::start(&config(routes));
    for (name, _, _) in unready {
        let line = router.wait(name, |line| line["state"] == "unready" && line["route"] == format!("{name}.example"));
        assert!(line["cause"].as_str().unwrap().ends_with(": etcd"), "{name}: {line}");
    }
    for (_, server) in &servers {
        eventually("more checks than a failure needs", || server.accepted() >= 5);
    }
    let status: serde_json::Value = serde_json::from_str(&router.get("/api/status").1).unwrap();
    for (name, _, _) in ready {
        let routes = status["routes"].as_array().unwrap();
        let route = routes.iter().find(|route| route["name"] == format!("{name}.example")).unwrap();
        let endpoint = &route["upstream"][0]["endpoints"][0];
        assert!(endpoint["state"] == "ready" && endpoint["last_check"].is_object(), "{name}: {endpoint}");
        let has_failed = |line: &serde_json::Value| line["before"].is_string() && line["route"] == route["name"];
        assert!(!router.log().iter().any(has_failed), "{name}");
    }
}

/// The upstream map of a server that is checked over HTTP.
fn checked(server: &Backend, ca: &str) -> String {
    format!(
        "{{endpoints: \"{}\", health_check: {{interval: 1500ms, timeout: 1500ms, tls: {{ca_file: {ca}, server_name: {NAME}}}, http: {{}}}}}}",
        server.address()
    )
}

/// Serves HTTPS on a port that it prints, and prints what Go's server logs.
const GO_SERVER: &str = r#"package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(listener.Addr())
	server := &http.Server{ErrorLog: log.New(os.Stdout, "", 0)}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	log.Fatal(server.ServeTLS(listener, os.Args[1], os.Args[2]))
}
"#;

#[test]
#[ignore = "needs go"]
fn b29_a_go_server_logs_nothing_about_tls_and_http_checks() {
    watchdog::may_take(Duration::from_secs(240));
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let ca = authority.write(directory.path(), "ca.pem");
    let (chain, key) = authority.issue(NAME).write(directory.path(), "server");
    let source = directory.path().join("server.go");
    std::fs::write(&source, GO_SERVER).unwrap();
    let program = directory.path().join("server");
    let built = Command::new("go").args(["build", "-o"]).args([&program, &source]).env("GO111MODULE", "off").status();
    assert!(built.unwrap().success());
    let mut server = Process(Command::new(program).args([chain, key]).stdout(Stdio::piped()).spawn().unwrap());
    let lines = crate::support::lines::Lines::of(server.0.stdout.take().unwrap());
    let address = lines.wait("its address", 1, |line| Some(line.to_owned())).remove(0);
    // Checks that time out are logged; so that none does, there are many slow ones, which differ, in place of a fast one.
    let check = |number: usize, more: &str| {
        let timeout = 4000 - number;
        format!("{{endpoints: \"{address}\", health_check: {{interval: 4s, timeout: {timeout}ms{more}}}}}")
    };
    let tls = format!(", tls: {{ca_file: {}, server_name: {NAME}}}", ca.display());
    let http = format!("{tls}, http: {{}}");
    let upstreams: Vec<(String, String)> = [&tls, &http]
        .into_iter()
        .cycle()
        .take(50)
        .enumerate()
        .map(|(number, more)| (format!("n{number}.example"), check(number, more)))
        .collect();
    let of_tcp = check(0, "");
    let router = Router::start(&config(upstreams.iter().map(|(name, check)| (name.clone(), &**check))));
    let checks = || router.metric("snigate_check_lateness_seconds_count");
    eventually("a hundred checks", || checks() >= 100.0);
    assert_eq!(lines.so_far().len(), 1, "{:?}", lines.so_far());
    drop(router);
    // Where it is not spoken to, it says so: the log is read.
    let _router = Router::start(&config([("tcp.example".into(), &*of_tcp)]));
    lines.wait("an error", 1, |line| line.contains("TLS handshake error").then_some(()));
}
