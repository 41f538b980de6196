//! Log lines and metrics.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::support::backend::{closed, free, reset};
use crate::support::client::alert;
use crate::support::hello::ENCRYPTED_CLIENT_HELLO;
use crate::support::lines::Lines;
use crate::support::router::config;
use crate::support::tls::{self, Authority};
use crate::support::{Backend, Client, Hello, Process, Router, eventually, snigate};

const NAME: &str = "a.example";
/// By ja4plus, like the others here.
const FINGERPRINT_WITH_ECH: &str = "t13d0407h2_77f0cd3447db_c7112704c764";

fn serve_one(router: &Router, hello: &Hello) -> serde_json::Value {
    let mut client = Client::send(router.address(), &hello.record());
    client.finish();
    client.rest();
    router.account_of(client.address())
}

#[test]
fn a_connection_is_one_line_with_all_fields() {
    // It closes after the client has.
    let backend = Backend::start(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
        let _ = stream.write_all(b"four");
    });
    let router = Router::routing(&[(NAME, backend.address())]);
    let hello = Hello::to(NAME).alpn(&["h2", "http/1.1"]);
    let account = serve_one(&router, &hello);
    for (field, value) in [
        ("level", "INFO"),
        ("message", "connection"),
        ("client.address", "127.0.0.1"),
        ("listener", "127.0.0.1:0"),
        ("server.address", NAME),
        ("tls.next_protocol", "h2,http/1.1"),
        ("tls.protocol.version", "1.3"),
        ("tls.client.ja4", "t13d0406h2_77f0cd3447db_e12c865f31a5"),
        ("route", NAME),
        ("upstream.address", &backend.address().to_string()),
        ("outcome", "completed"),
        ("closed_by", "client"),
    ] {
        assert_eq!(account[field], value, "{field} in {account}");
    }
    assert_eq!((&account["bytes.received"], &account["bytes.sent"]), (&hello.record().len().into(), &4.into()));
    assert_eq!(account["client.retransmits"], 0);
    assert!(account["tls.ech"].is_null(), "{account}");
    for field in ["duration_ms", "hello_ms", "connect_ms", "answer_ms", "client.rtt_ms", "upstream.rtt_ms"] {
        assert!(account[field].as_f64().is_some_and(|value| value > 0.0), "{field} in {account}");
    }
    assert!(account["upstream.local.address"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(router.log().iter().filter(|line| line["outcome"].is_string()).count(), 1);
}

#[test]
fn rejected_clients_have_a_fingerprint_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, config(&[(NAME, closed())], "")).unwrap();
    let mut command = snigate();
    // No line of a connection that is served is written.
    command.env("RUST_LOG", "info,snigate::telemetry=warn").args(["run", "-c"]).arg(&path);
    let router = Router::spawn(command, path, directory);
    let refused = serve_one(&router, &Hello::to(NAME).alpn(&["h2"]).extension(ENCRYPTED_CLIENT_HELLO, [0; 9]));
    assert_eq!((&refused["outcome"], &refused["level"]), (&"connect_refused".into(), &"WARN".into()));
    assert_eq!((&refused["tls.client.ja4"], &refused["tls.ech"]), (&FINGERPRINT_WITH_ECH.into(), &true.into()));
    assert!(refused["client.rtt_ms"].is_null(), "it was not served: {refused}");

    let router = Router::routing(&[(NAME, closed())]);
    let unknown = serve_one(&router, &Hello::to("b.example"));
    assert_eq!(unknown["tls.client.ja4"], "t13d040500_77f0cd3447db_e12c865f31a5");
    let malformed = serve_one(&router, &Hello::new().server_name(b"a..b"));
    assert_eq!((&malformed["outcome"], &malformed["tls.client.ja4"]), (&"malformed".into(), &serde_json::Value::Null));
}

#[test]
fn h30_connections_that_last_have_lines_while_they_do_parked_or_not() {
    let backend = Backend::echo();
    for park_after in ["100ms", "never"] {
        let more = format!("log: {{progress: 1s}}\nlimits: {{park_after: {park_after}}}\n");
        let router = Router::start(&config(&[(NAME, backend.address())], &more));
        let hello = Hello::to(NAME).record();
        let mut client = Client::send(router.address(), &hello);
        client.read(hello.len());
        let (address, length) = (client.address(), hello.len());
        let parked = if park_after == "never" { 0.0 } else { 1.0 };
        let lines = router.wait_many("lines while it lasts", 3, |line| line["message"] == "connection open");
        eventually("it is parked again", || router.metric("snigate_connections_parked") == parked);
        for (number, line) in (1..).zip(&lines) {
            assert_eq!((&line["client.port"], &line["level"]), (&address.port().into(), &"INFO".into()));
            assert_eq!((&line["bytes.received"], &line["bytes.sent"]), (&length.into(), &length.into()), "{line}");
            assert_eq!(
                (&line["route"], &line["upstream.address"]),
                (&NAME.into(), &backend.address().to_string().into())
            );
            assert!(line["outcome"].is_null() && line["closed_by"].is_null(), "{line}");
            assert!(line["client.rtt_ms"].is_number() && line["tls.client.ja4"].is_string(), "{line}");
            let duration = line["duration_ms"].as_f64().unwrap();
            assert!(duration >= 1000.0 * f64::from(number), "line {number} too early: {line}");
        }
        // It is the same stream.
        client.write(b"more");
        assert_eq!(client.read(4), b"more");
        client.finish();
        client.rest();
        let account = router.account_of(address);
        assert_eq!((&account["outcome"], &account["bytes.sent"]), (&"completed".into(), &(length + 4).into()));
    }
}

#[test]
fn what_the_kernel_measured_is_logged_of_connections_that_were_reset_too() {
    let (backend, held) = Backend::held();
    let router = Router::routing(&[(NAME, backend.address())]);
    for by_client in [true, false] {
        let client = Client::send(router.address(), &Hello::to(NAME).record());
        let (address, upstream) = (client.address(), held.recv().unwrap());
        reset(if by_client { client.stream.try_clone().unwrap() } else { upstream.try_clone().unwrap() });
        drop((client, upstream));
        let account = router.account_of(address);
        assert_eq!(account["outcome"], if by_client { "client_reset" } else { "upstream_reset" });
        for field in ["client.rtt_ms", "upstream.rtt_ms"] {
            assert!(account[field].as_f64().is_some_and(|rtt| rtt > 0.0), "{field} in {account}");
        }
        assert_eq!(account["client.retransmits"], 0);
    }
}

#[test]
fn e10_hostile_names_cannot_forge_log_lines() {
    let router = Router::routing(&[(NAME, Backend::echo().address())]);
    for (name, logged) in [
        (&b"x\r\n{\"message\":\"forged\"}"[..], r#"x\r\n{\"message\":\"forged\"}"#),
        (b"\x1b[31mred", r"\x1b[31mred"),
        ("\u{202e}gpj".as_bytes(), r"\xe2\x80\xaegpj"),
        (b"\xff\xfe", r"\xff\xfe"),
        (b"quote\"back\\slash", r#"quote\"back\\slash"#),
    ] {
        let account = serve_one(&router, &Hello::new().server_name(name));
        assert_eq!(account["server.address"], logged);
        assert_eq!(account["outcome"], "malformed");
    }
    let account = serve_one(&router, &Hello::to(NAME).alpn(&["h2\r\n", "\u{1b}"]));
    assert_eq!(account["tls.next_protocol"], r"h2\r\n,\x1b");
    let long = serve_one(&router, &Hello::new().server_name(&[b'\n'; 9000]));
    assert_eq!(long["server.address"].as_str().unwrap().len(), 255);
    // `log` parses every line: each is one JSON object.
    assert!(router.log().iter().all(|line| line["message"] != "forged"));
}

#[test]
fn refusals_beyond_the_limit_are_counted_and_summarised() {
    let router = Router::start(&config(&[(NAME, Backend::echo().address())], "log: {refusals_per_second: 2}\n"));
    for _ in 0..40 {
        let mut client = Client::send(router.address(), &Hello::to("b.example").record());
        client.finish();
        client.rest();
    }
    let unknown = "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"_none\",outcome=\"unknown_name\"}";
    eventually("all are counted", || router.metric(unknown) == 40.0);
    let logged = |router: &Router| {
        let log = router.log();
        let of = |message| log.iter().filter(move |line| line["message"] == message);
        let suppressed: u64 = of("rejections not logged").map(|line| line["suppressed"].as_u64().unwrap()).sum();
        (of("refused").count() as u64, suppressed)
    };
    eventually("each is logged or summarised", || {
        let (lines, suppressed) = logged(&router);
        lines + suppressed == 40
    });
    assert!(logged(&router).1 > 0);
    router.wait("the summary", |line| {
        line["message"] == "rejections not logged" && line["outcome"] == "unknown_name" && line["level"] == "INFO"
    });
}

#[test]
fn warnings_beyond_the_limit_are_summarised_as_warnings() {
    // At this level, no line says where it listens.
    let listen = free();
    let text = config(&[(NAME, closed())], "log: {level: warn, refusals_per_second: 2}\n");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, text.replace("listen: 127.0.0.1:0", &format!("listen: {listen}"))).unwrap();
    let mut command = snigate();
    command.arg("run").arg("-c").arg(&path);
    let router = Router::spawn(command, path, directory);
    eventually("it listens", || std::net::TcpStream::connect(listen).is_ok());
    for _ in 0..20 {
        Client::send(listen, &Hello::to(NAME).record()).rest();
    }
    eventually("each is logged or summarised", || {
        let log = router.log();
        let of = |message| log.iter().filter(move |line| line["message"] == message);
        let suppressed: u64 = of("rejections not logged").map(|line| line["suppressed"].as_u64().unwrap()).sum();
        assert!(of("rejections not logged").all(|line| line["level"] == "WARN"));
        of("refused").count() as u64 + suppressed == 20 && suppressed > 0
    });
}

#[test]
fn metrics_tell_what_happened() {
    let backend = Backend::named("four");
    let router = Router::routing(&[(NAME, backend.address())]);
    let hello = Hello::to(NAME);
    serve_one(&router, &hello);
    serve_one(&router, &Hello::to("b.example"));
    let (status, text) = router.get("/metrics");
    assert_eq!(status, 200);
    assert!(!text.contains("# EOF"), "the format is that of Prometheus, unless another is asked for");
    let received = hello.record().len();
    for series in [
        "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"a.example\",outcome=\"completed\"} 1".to_owned(),
        "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"_none\",outcome=\"unknown_name\"} 1".into(),
        "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"a.example\",outcome=\"connect_refused\"} 0".into(),
        "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"_none\",outcome=\"malformed\"} 0".into(),
        "snigate_connections_active{route=\"a.example\"} 0".into(),
        "snigate_connections_active{route=\"_none\"} 0".into(),
        format!("snigate_bytes_total{{route=\"a.example\",direction=\"received\"}} {received}"),
        "snigate_bytes_total{route=\"a.example\",direction=\"sent\"} 4".into(),
        "snigate_hello_seconds_count 2".into(),
        "snigate_connect_seconds_count{route=\"a.example\"} 1".into(),
        "snigate_answer_seconds_count{route=\"a.example\"} 1".into(),
        "snigate_connection_seconds_count{route=\"a.example\"} 1".into(),
        format!("snigate_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(text.lines().any(|line| line == series), "{series} in\n{text}");
    }
    for name in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_start_time_seconds"] {
        assert!(router.metric(name) > 0.0, "{name}");
    }
    assert!(router.metric("process_cpu_seconds_total") >= 0.0);
}

#[test]
fn clients_that_no_route_takes_are_told_apart() {
    let backend = Backend::named("served");
    let router = Router::start(&format!(
        "listen: 127.0.0.1:0\nroutes:\n  - {{sni: {NAME}, alpn: h2, upstream: \"{}\"}}\n",
        backend.address()
    ));
    for (hello, outcome, reason) in [
        (Hello::to("b.example"), "unknown_name", "no route matches this name, and there is no catch-all route"),
        (Hello::to(NAME), "unknown_name", "no other matcher of the routes with this name matches the client"),
        (Hello::new(), "no_name", "the client sent no SNI, and there is no catch-all route"),
    ] {
        let account = serve_one(&router, &hello);
        assert_eq!((account["outcome"].as_str(), account["reason"].as_str()), (Some(outcome), Some(reason)));
    }
}

#[test]
fn text_lines_are_sentences() {
    let backend = Backend::named("four");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snigate.yaml");
    let routes = [(NAME, backend.address()), ("dead.example", closed())];
    let address = free();
    let text = config(&routes, "log: {format: text}\n").replace("127.0.0.1:0\nadmin", &format!("{address}\nadmin"));
    std::fs::write(&path, text).unwrap();
    let mut command = snigate();
    command.args(["run", "-c"]).arg(&path);
    let router = Router::spawn(command, path, directory);
    let listening = router.wait_line("that it listens", |line| line.contains("listening"));
    let expected = format!("Z  INFO listening listener={address} address={address}");
    assert!(listening.ends_with(&expected), "{listening}");
    let told = |hello: Hello| {
        let mut client = Client::send(address, &hello.record());
        client.finish();
        client.rest();
        let from = client.address().to_string();
        let line = router.wait_line("the client", |line| line.contains(&from));
        let (_, line) = line.split_once("Z ").unwrap();
        // How long it took is another time each time.
        let (begin, end) = line.split_once(" after ").unwrap();
        let (_, end) = end.split_once(" ms").unwrap();
        format!("{}{end}", begin.replace(&from, "CLIENT"))
    };
    let upstream = backend.address();
    let received = Hello::to(NAME).record().len();
    assert_eq!(
        told(Hello::to(NAME)),
        format!(
            " INFO connection CLIENT -> {NAME} -> {upstream}: completed, closed by client, {received} B up, 4 B down"
        )
    );
    let refused = told(Hello::to("dead.example"));
    assert!(refused.starts_with(" WARN refused CLIENT -> dead.example: connect_refused, closed by us; "), "{refused}");
    assert!(refused.ends_with(": connection refused"), "{refused}");
    assert_eq!(
        told(Hello::new().server_name(b"\x1b[31m\n")),
        " INFO refused CLIENT -> \\x1b[31m\\n: malformed, closed by us; the name has a character other than letters, digits, '-', '_' and '.'"
    );
}

#[test]
fn rust_log_wins_over_the_configured_level() {
    let backend = Backend::named("served");
    let start = |wanted: &str| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("snigate.yaml");
        std::fs::write(&path, config(&[(NAME, backend.address())], "log: {level: warn}\n")).unwrap();
        let mut command = snigate();
        command.env("RUST_LOG", wanted).args(["run", "-c"]).arg(&path);
        Router::spawn(command, path, directory)
    };
    let router = start("warn,snigate::telemetry=debug,snigate::server=info");
    let bare = Client::connect(router.address());
    bare.finish();
    assert_eq!(router.account_of(bare.address())["level"], "DEBUG");
    let ignored = start("snigate=loud").wait("what is wrong with it", |_| true);
    assert_eq!(
        (ignored["level"].as_str(), ignored["message"].as_str()),
        (Some("WARN"), Some("invalid RUST_LOG; ignored"))
    );
    assert_eq!(ignored["value"], "snigate=loud");
    assert!(ignored["reason"].as_str().unwrap().contains("expected one of \"off\", \"error\", \"warn\""), "{ignored}");
    let ignored = start("[span]=debug").wait("what is wrong with it", |_| true);
    assert!(ignored["reason"].as_str().unwrap().contains("list of LEVEL or TARGET=LEVEL"), "{ignored}");
    start("error, snigate::server = info").wait("what is asked for", |line| line["level"] == "INFO");
}

#[test]
fn bytes_of_long_connections_are_counted_while_they_last() {
    let backend = Backend::echo();
    let router = Router::routing(&[(NAME, backend.address())]);
    let hello = Hello::to(NAME).record();
    let mut client = Client::send(router.address(), &hello);
    client.read(hello.len());
    let sent = "snigate_bytes_total{route=\"a.example\",direction=\"sent\"}";
    // They are counted when they have been sent, which a client may see first.
    eventually("they are counted", || router.metric(sent) == hello.len() as f64);
    assert_eq!(router.metric("snigate_connections_active{route=\"a.example\"}"), 1.0);
}

#[test]
fn the_admin_listener_only_answers_what_it_has() {
    let router = Router::routing(&[(NAME, Backend::echo().address())]);
    assert_eq!(router.get("/livez"), (200, "ok\n".into()));
    assert_eq!(router.get("/readyz").0, 200);
    assert_eq!(router.get("/nothing").0, 404);
    let mut post = Client::send(router.admin(), b"POST /metrics HTTP/1.1\r\nhost: [::1]\r\nconnection: close\r\n\r\n");
    assert!(post.rest().0.starts_with(b"HTTP/1.1 405 "));
}

fn metric(admin: SocketAddr, series: &str) -> f64 {
    let request = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\ncache-control: no-cache\r\nconnection: close\r\n\r\n";
    let mut client = Client::send(admin, request);
    let text = String::from_utf8(client.rest().0).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    value.unwrap().parse().unwrap()
}

/// One whose log is not read here, so that its addresses are given to it: where it listens, and its admin listener. All refusals
/// are logged.
fn unread(backend: &Backend, stderr: impl Into<Stdio>) -> (Process, SocketAddr, SocketAddr) {
    let (address, admin) = (free(), free());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snigate.yaml");
    let text = config(&[(NAME, backend.address())], "log: {refusals_per_second: 0}\n")
        .replace("listen: 127.0.0.1:0", &format!("listen: {address}"))
        .replace("admin: 127.0.0.1:0", &format!("admin: {admin}"));
    std::fs::write(&path, text).unwrap();
    let router = Process(snigate().args(["run", "-c"]).arg(&path).stderr(stderr).spawn().unwrap());
    eventually("it listens", || std::net::TcpStream::connect(admin).is_ok());
    (router, address, admin)
}

fn is_served(address: SocketAddr) -> bool {
    let mut client = Client::send(address, &Hello::to(NAME).record());
    client.finish();
    client.rest().0 == b"served"
}

fn ask_wrongly(address: SocketAddr) {
    let mut client = Client::send(address, b"GET / HTTP/1.1\r\n\r\n");
    client.finish_if_open();
    client.rest();
}

#[test]
fn e12_a_log_that_nobody_reads_holds_nothing_up() {
    let backend = Backend::named("served");
    let (mut router, address, admin) = unread(&backend, Stdio::piped());
    let lost = || metric(admin, "snigate_log_lines_lost_total");
    // A pipe holds 64 KiB, and some thousand lines wait.
    let mut refused: u64 = 0;
    while lost() == 0.0 {
        for _ in 0..500 {
            ask_wrongly(address);
        }
        refused += 500;
        assert!(refused < 20_000, "no line is lost");
    }
    assert!(is_served(address));

    // As soon as somebody reads, it is told, and every line is there or counted.
    let lines = Lines::of(router.0.stderr.take().unwrap());
    let json = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let is_loss = |line: &serde_json::Value| {
        line["message"].as_str().is_some_and(|message| message.starts_with("log lines lost"))
    };
    let told = lines.wait("how many were lost", 1, |line| Some(json(line)).filter(is_loss)).remove(0);
    let before = lines.so_far().iter().map(|line| json(line)).take_while(|line| !is_loss(line)).collect::<Vec<_>>();
    let read = before.iter().filter(|line| line["outcome"].is_string()).count() as u64;
    assert_eq!(told["level"], "WARN");
    assert_eq!((told["lost"].as_f64(), told["lost"].as_u64()), (Some(lost()), Some(refused + 1 - read)), "{told}");
    router.signal(rustix::process::Signal::TERM);
    lines.wait("the last line", 1, |line| (json(line)["message"] == "drained").then_some(()));
    assert_eq!(router.exit().code(), Some(0));
}

#[test]
fn e12_a_log_that_cannot_be_written_holds_nothing_up() {
    let backend = Backend::named("served");
    let (log, stderr) = std::io::pipe().unwrap();
    drop(log);
    let (mut router, address, admin) = unread(&backend, stderr);
    let lost = || metric(admin, "snigate_log_lines_lost_total");
    eventually("lines are lost", || lost() > 0.0);
    assert!(is_served(address));
    router.signal(rustix::process::Signal::TERM);
    assert_eq!(router.exit().code(), Some(0));
}

#[test]
fn e12_a_log_whose_writes_must_not_block_loses_nothing_either() {
    let backend = Backend::named("served");
    let (log, stderr) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&stderr, true).unwrap();
    let (mut router, address, _) = unread(&backend, stderr);
    // Some times what a pipe holds.
    let refused = 1000;
    for _ in 0..refused {
        ask_wrongly(address);
    }
    let read = Arc::new(AtomicUsize::new(0));
    let reader = Arc::clone(&read);
    std::thread::spawn(move || {
        for line in BufReader::new(log).lines().map(Result::unwrap) {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            reader.fetch_add(usize::from(line["message"] == "refused"), Relaxed);
        }
    });
    eventually("every line is there", || read.load(Relaxed) == refused);
    router.signal(rustix::process::Signal::TERM);
    assert_eq!(router.exit().code(), Some(0));
}

#[test]
fn what_the_server_answers_first_is_told() {
    let authority = Authority::new();
    let server = tls::serve(&authority, NAME, false);
    let refuses = Backend::start(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(&alert(40));
    });
    let routes = [(NAME, server.address()), ("refused.example", refuses.address())];
    for engine in ["auto", "copy", "splice"] {
        let router = Router::start(&config(&routes, &format!("relay: {engine}\n")));
        tls::get(router.address(), &authority, NAME, None).unwrap();
        let account = router.wait("its end", |line| line["route"] == NAME && line["outcome"].is_string());
        assert_eq!(account["tls.established.version"], "1.3");
        assert!(account["tls.alert"].is_null(), "{account}");

        let mut client = Client::send(router.address(), &Hello::to("refused.example").record());
        assert_eq!(client.rest().0, alert(40));
        client.finish_if_open();
        let account = router.account_of(client.address());
        assert_eq!(account["tls.alert"], "handshake_failure");
        assert!(account["tls.established.version"].is_null(), "{account}");
    }
}

#[test]
fn the_last_refusals_are_remembered_with_their_reasons() {
    let router = Router::start(&config(&[(NAME, closed())], "log: {refusals_per_second: 0}\n"));
    for name in ["first.example", NAME] {
        serve_one(&router, &Hello::to(name));
    }
    for number in 0..300 {
        serve_one(&router, &Hello::to(&format!("n{number}.example")));
        if number == 0 {
            let refusals: serde_json::Value = serde_json::from_str(&router.get("/api/refusals").1).unwrap();
            let told = |number: usize, key: &str| refusals[number][key].as_str().unwrap_or("").to_owned();
            assert_eq!((told(0, "server_name"), told(0, "outcome")), ("n0.example".into(), "unknown_name".into()));
            assert_eq!((told(1, "route"), told(1, "outcome")), (NAME.into(), "connect_refused".into()));
            assert!(told(1, "reason").contains("connection refused"), "{refusals}");
            assert!(told(2, "client").starts_with("127.0.0.1:") && told(2, "time").ends_with('Z'), "{refusals}");
            assert_eq!(told(2, "listener"), "127.0.0.1:0");
        }
    }
    let refusals: serde_json::Value = serde_json::from_str(&router.get("/api/refusals").1).unwrap();
    assert_eq!((refusals.as_array().unwrap().len(), &refusals[0]["server_name"]), (256, &"n299.example".into()));
}

#[test]
fn e11_z8_names_that_clients_make_up_add_no_series() {
    let backend = Backend::named("served");
    let router = Router::routing(&[(NAME, backend.address()), ("*.any.example", backend.address())]);
    let ask = |name: &str| {
        let mut client = Client::send(router.address(), &Hello::to(name).record());
        client.finish();
        client.rest();
    };
    let series = || router.get("/metrics").1.lines().filter(|line| !line.starts_with('#')).count();
    for name in ["first.unknown.example", "first.any.example", NAME] {
        ask(name);
    }
    eventually("all are counted", || router.metric("snigate_connection_seconds_count{route=\"*.any.example\"}") == 1.0);
    let before = series();
    for number in 0..2000 {
        ask(&format!("n{number}.unknown.example"));
        ask(&format!("n{number}.any.example"));
    }
    assert_eq!(series(), before);
    let unknown = "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"_none\",outcome=\"unknown_name\"}";
    eventually("all are counted", || router.metric(unknown) == 2001.0);
}

#[test]
fn e13_scrapers_that_are_slow_or_many_hurt_nobody() {
    let backend = Backend::named("served");
    let router = Router::routing(&[(NAME, backend.address())]);
    let request = b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";
    let many: Vec<Client> = (0..1000).map(|_| Client::send(router.admin(), request)).collect();
    for _ in 0..100 {
        assert_eq!(serve_one(&router, &Hello::to(NAME))["outcome"], "completed");
    }
    for mut scraper in many {
        let (response, _) = scraper.rest();
        assert!(response.starts_with(b"HTTP/1.1 200") && response.ends_with(b"\n"));
    }

    // More than there are places, each with half a request.
    let slow: Vec<Client> = (0..100).map(|_| Client::send(router.admin(), b"GET /metrics HTTP/1.1\r\nx: ")).collect();
    assert_eq!(serve_one(&router, &Hello::to(NAME))["outcome"], "completed");
    // They are sent away in time for who waits.
    assert_eq!(router.get("/livez").0, 200);
    drop(slow);
    let huge = [b"GET /".to_vec(), vec![b'x'; 1 << 20]].concat();
    let mut client = Client::connect(router.admin());
    let _ = client.stream.write_all(&huge);
    assert_eq!(router.get("/livez").0, 200);
}

/// What the admin listener answers to this request.
fn asked(router: &Router, request: &str) -> String {
    let mut client = Client::send(router.admin(), request.as_bytes());
    String::from_utf8(client.rest().0).unwrap()
}

#[test]
fn the_admin_listener_answers_only_for_hosts_that_are_its_own() {
    let backend = Backend::named("served");
    let routes = format!("routes: [{{sni: a.example, upstream: \"{}\"}}]\n", backend.address());
    let config = |admin: &str| format!("listen: 127.0.0.1:0\nadmin: {admin}\n{routes}");
    let router = Router::start(&config("127.0.0.1:0"));
    let get = |host: &str, more: &str| {
        asked(&router, &format!("GET /api/status HTTP/1.1\r\nhost: {host}\r\n{more}connection: close\r\n\r\n"))
    };
    let port = router.admin().port();
    for host in [format!("127.0.0.1:{port}"), "localhost".into(), format!("[::1]:{port}"), "10.0.0.9".into()] {
        let answer = get(&host, "");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("a.example"), "{host}: {answer}");
        assert!(!answer.to_lowercase().contains("access-control"), "{answer}");
    }
    let refused = get(&format!("evil.example:{port}"), "");
    assert!(refused.starts_with("HTTP/1.1 421 Misdirected Request\r\n"), "{refused}");
    assert!(refused.contains("hosts: [evil.example]") && !refused.contains("a.example\""), "{refused}");
    let of_page = get("127.0.0.1", "origin: http://evil.example\r\n");
    assert!(of_page.starts_with("HTTP/1.1 403 ") && !of_page.contains("access-control"), "{of_page}");
    assert!(get("127.0.0.1", "sec-fetch-site: cross-site\r\n").starts_with("HTTP/1.1 403 "));

    // As HAProxy and others probe.
    for path in ["/livez", "/readyz", "/metrics"] {
        assert!(asked(&router, &format!("GET {path} HTTP/1.0\r\n\r\n")).contains(" 200 "), "{path}");
    }
    assert!(asked(&router, "GET /api/status HTTP/1.0\r\n\r\n").contains(" 421 "));

    assert_eq!(router.reload(&config("{address: 127.0.0.1:0, hosts: evil.example}"))["message"], "reloaded");
    assert!(get("evil.example", "").starts_with("HTTP/1.1 200 "), "the socket is the same, the names are new");
    router.reload(&config("127.0.0.1:0"));
    assert!(get("evil.example", "").starts_with("HTTP/1.1 421 "));
}
