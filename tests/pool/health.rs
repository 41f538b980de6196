//! Pools: endpoints that are checked, that fail, and that come back.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use socket2::{SockFilter, Socket};
use tempfile::TempDir;

use crate::support::api_server::{ApiServer, Mood};
use crate::support::backend::{black_hole, free};
use crate::support::client::{End, alert};
use crate::support::tls::{Authority, get};
use crate::support::{Backend, Client, Hello, PATIENCE, Process, Router, eventually, snigate, watchdog};

const NAME: &str = "a.example";

/// A router with one route to these, and more of its `upstream` map.
fn router(endpoints: &[SocketAddr], more: &str) -> Router {
    Router::start(&text(endpoints, more))
}

fn text(endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = endpoints.iter().map(|address| format!("\"{address}\"")).collect();
    format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - sni: {NAME}\n    upstream:\n      endpoints: [{}]\n      slow_start: 0s\n      {more}\n",
        endpoints.join(", ")
    )
}

/// A check of what HTTP and TLS say, fast.
fn check(authority: &Authority, directory: &TempDir, http: &str) -> String {
    let ca = authority.write(directory.path(), "ca.pem");
    format!(
        "health_check: {{interval: 200ms, rise: 2, fall: 2, tls: {{ca_file: {}, server_name: {NAME}}}, http: {{{http}}}}}",
        ca.display()
    )
}

fn state(router: &Router, endpoint: SocketAddr, state: &str) -> Value {
    router.wait(&format!("{endpoint} {state}"), |line| {
        line["before"].is_string() && line["endpoint"] == endpoint.to_string() && line["state"] == state
    })
}

/// Where new connections go.
fn reached(router: &Router) -> String {
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    client.finish();
    client.rest();
    router.account_of(client.address())["upstream.address"].as_str().unwrap().into()
}

fn metric(router: &Router, endpoint: SocketAddr, state: &str) -> f64 {
    router.metric(&format!("snigate_endpoint_state{{route=\"{NAME}\",endpoint=\"{endpoint}\",state=\"{state}\"}}"))
}

#[test]
fn b12_who_says_not_ready_keeps_its_connections_and_gets_no_new_ones() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let (first, second) = (ApiServer::start(&authority, NAME), ApiServer::start(&authority, NAME));
    let router = router(&[first.address(), second.address()], &check(&authority, &directory, ""));
    let mut held = Client::send(router.address(), &Hello::to(NAME).record());
    assert_eq!(held.read(1), [22], "a ServerHello");
    let connections = |server: &ApiServer| {
        router.metric(&format!("snigate_endpoint_connections{{route=\"{NAME}\",endpoint=\"{}\"}}", server.address()))
    };
    let (going, staying) = if connections(&first) == 1.0 { (&first, &second) } else { (&second, &first) };
    assert_eq!((connections(going), connections(staying)), (1.0, 0.0));

    going.be(Mood::Status(500, "[+]ping ok\n[-]shutdown failed: reason withheld\nreadyz check failed"));
    let told = state(&router, going.address(), "unready");
    assert_eq!(told["cause"], "/readyz 500: shutdown");
    assert_eq!(
        (told["level"].as_str(), told["before"].as_str(), told["in_a_row"].as_u64()),
        (Some("WARN"), Some("ready"), Some(2))
    );
    for _ in 0..6 {
        assert_eq!(reached(&router), staying.address().to_string());
    }
    assert_eq!(metric(&router, going.address(), "unready"), 1.0);
    assert_eq!(metric(&router, staying.address(), "ready"), 1.0);
    assert_eq!(connections(going), 1.0, "the one it had stays");

    drop(held);
    going.be(Mood::Status(200, "ok"));
    assert_eq!(state(&router, going.address(), "ready")["level"], "INFO");
    eventually("it is used again", || reached(&router) == going.address().to_string());
    assert!(
        going
            .requests()
            .iter()
            .all(|head| head.starts_with("GET /readyz HTTP/1.1\r\n") && head.contains(&format!("host: {NAME}\r\n")))
    );
}

#[test]
fn b12_who_said_not_ready_is_ready_once_it_is_no_longer_checked() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let (going, staying) = (ApiServer::start(&authority, NAME), ApiServer::start(&authority, NAME));
    let endpoints = [going.address(), staying.address()];
    let router = router(&endpoints, &check(&authority, &directory, ""));
    going.be(Mood::Status(500, "[-]shutdown failed"));
    state(&router, going.address(), "unready");
    router.reload(&text(&endpoints, ""));
    let told = state(&router, going.address(), "ready");
    assert_eq!((&told["before"], &told["level"]), (&"unready".into(), &"INFO".into()));
    eventually("it is used again", || reached(&router) == going.address().to_string());
}

#[test]
fn certificates_that_do_not_verify_make_an_endpoint_dead_and_cut_nothing() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let (server, spare) = (ApiServer::start(&authority, NAME), ApiServer::start(&authority, NAME));
    let more = format!("dead: {{grace: 1ms}}\n      {}", check(&authority, &directory, ""));
    let router = router(&[server.address(), spare.address()], &more);
    eventually("its first check", || !server.requests().is_empty());
    let good = authority.issue(NAME);
    for (issued, cause) in [
        // Another CA with the same name.
        (Authority::new().issue(NAME), "BadSignature"),
        (authority.issue("b.example"), "not valid for name"),
        (authority.issue_expired(NAME), "certificate, or that of an issuing CA, expired on 2021-01-01T00:00:00Z"),
    ] {
        server.show(&issued);
        let told = router.wait("the cause", |line| {
            line["state"] == "dead" && line["cause"].as_str().is_some_and(|told| told.contains(cause))
        });
        assert!(told["cause"].as_str().unwrap().starts_with("TLS: "), "{told}");
        server.show(&good);
        let count = |state: &str| {
            router.log().iter().filter(|line| line["before"].is_string() && line["state"] == state).count()
        };
        eventually("it is ready again", || count("ready") == count("dead"));
    }
    assert!(
        router
            .log()
            .iter()
            .all(|line| !line["message"].as_str().is_some_and(|message| message.starts_with("probing connections")))
    );
    router.wait("the other key", |line| line["message"] == "certificate changed" && line["changed"] == "another key");
    router.wait("the expired one", |line| {
        line["message"].as_str().is_some_and(|told| told == "certificate has expired")
            && line["hours_ago"].as_i64() > Some(0)
    });
    let wrong = router.wait("the name", |line| line["not_covered"] == NAME);
    assert_eq!((wrong["covered"].as_str(), wrong["level"].as_str()), (Some("b.example"), Some("WARN")));
    let series = format!(
        "snigate_endpoint_certificate_expiry_timestamp_seconds{{route=\"{NAME}\",endpoint=\"{}\"}}",
        server.address()
    );
    assert!(router.metric(&series) > 0.0);
}

#[test]
fn a_certificate_of_many_names_and_a_strange_issuer_is_told_as_it_is() {
    let (authority, directory) = (Authority::called("good \u{202e}live\x1b[2J"), TempDir::new().unwrap());
    let server = ApiServer::start(&authority, NAME);
    let names: Vec<String> = (0..150).map(|number| format!("n{number}.example")).chain([NAME.into()]).collect();
    server.show(&authority.issue_for(&names));
    let router = router(&[server.address()], &check(&authority, &directory, ""));
    eventually("a check", || router.get("/api/status").1.contains("\"names_total\": 151"));
    let status: Value = serde_json::from_str(&router.get("/api/status").1).unwrap();
    let certificate = &status["routes"][0]["upstream"][0]["endpoints"][0]["certificate"];
    assert_eq!(certificate["not_covered"], serde_json::json!([]));
    assert_eq!(certificate["names"].as_array().unwrap().len(), 100, "shown, not decided on");
    assert!(certificate["issuer"].as_str().unwrap().contains("good \\u{202e}live\\u{1b}[2J"), "{certificate}");
    let uncovered =
        format!("snigate_endpoint_certificate_uncovered_names{{route=\"{NAME}\",endpoint=\"{}\"}}", server.address());
    assert_eq!(router.metric(&uncovered), 0.0);

    let text =
        std::fs::read_to_string(&router.config).unwrap().replacen("127.0.0.1:0", &router.address().to_string(), 1);
    let file = directory.path().join("doctor.yaml");
    std::fs::write(&file, text).unwrap();
    for format in [&[][..], &["--json"]] {
        let doctor = snigate().arg("doctor").arg("-c").arg(&file).args(format).output().unwrap();
        let told = String::from_utf8(doctor.stdout).unwrap();
        assert!(doctor.status.success(), "{told}");
        assert!(told.contains("and 145 more") && told.contains("\\u{202e}"), "{told}");
        assert!(!told.contains(['\u{202e}', '\x1b']), "{told:?}");
    }
    server.show(&Authority::called("other \u{202e}").issue(NAME));
    router.wait("the other issuer", |line| line["issuer"].as_str().is_some_and(|issuer| issuer.contains("\\u{202e}")));
    assert!(router.log().iter().all(|line| line["not_covered"].is_null()));
}

#[test]
fn what_is_expected_is_ready() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let server = ApiServer::start(&authority, NAME);
    server.be(Mood::Status(302, "elsewhere"));
    let router = router(&[server.address()], &check(&authority, &directory, "expect: [200-399, 404]"));
    for _ in 0..2 {
        let before = server.requests().len();
        eventually("more checks", || server.requests().len() > before + 3);
        assert_eq!(metric(&router, server.address(), "ready"), 1.0);
        server.be(Mood::Status(404, "not there"));
    }
    server.be(Mood::Status(400, "no"));
    let dead = state(&router, server.address(), "dead");
    assert!(dead["cause"].as_str().unwrap().contains("/readyz 400"), "{dead}");
}

#[test]
fn a_server_that_wants_to_know_who_asks_is_alive() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let (server, spare) = (ApiServer::start(&authority, NAME), ApiServer::start(&authority, NAME));
    let both = [server.address(), spare.address()];
    server.be(Mood::Status(403, "Forbidden"));
    let lenient = router(&both, &check(&authority, &directory, ""));
    let note = lenient.wait("the note", |line| line["message"] == "health check");
    assert!(note["note"].as_str().unwrap().contains("`token_file`"), "{note}");
    assert_eq!(metric(&lenient, server.address(), "ready"), 1.0);

    let strict = router(&both, &check(&authority, &directory, "unauthorized: failed"));
    assert_eq!(state(&strict, server.address(), "dead")["cause"], "/readyz 403");

    std::fs::write(directory.path().join("token"), "first\n").unwrap();
    server.be(Mood::Token("second"));
    let path = directory.path().join("token");
    let with_token =
        router(&both, &check(&authority, &directory, &format!("unauthorized: failed, token_file: {}", path.display())));
    state(&with_token, server.address(), "dead");
    std::fs::write(&path, "second\n").unwrap();
    state(&with_token, server.address(), "ready");
    assert!(with_token.log().iter().all(|line| !line.to_string().contains("second")), "tokens are not logged");

    server.be(Mood::Status(200, "ok"));
    server.demand(&authority.issue(NAME), &authority);
    let (certificate, key) = authority.issue("snigate").write(directory.path(), "client");
    let identity = format!("client_certificate: {}, client_key: {}", certificate.display(), key.display());
    let with_certificate = router(&both, &check(&authority, &directory, &identity));
    eventually("checks with a certificate", || server.requests().len() > 5);
    assert_eq!(metric(&with_certificate, server.address(), "ready"), 1.0);
    assert_eq!(state(&strict, server.address(), "dead")["state"], "dead");
}

#[test]
fn b13_a_check_that_hangs_ends_and_leaks_nothing() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let servers =
        [ApiServer::start(&authority, NAME), ApiServer::start(&authority, NAME), ApiServer::start(&authority, NAME)];
    let addresses: Vec<SocketAddr> = servers.iter().map(ApiServer::address).collect();
    let ca = authority.write(directory.path(), "ca.pem");
    let check = format!("health_check: {{interval: 10ms, tls: {{ca_file: {}}}, http: {{}}}}", ca.display());
    let router = router(&addresses, &check);
    servers[0].be(Mood::Hang);
    servers[1].be(Mood::Reset);
    assert_eq!(state(&router, addresses[0], "dead")["cause"], "connected, but no response within 10ms");
    state(&router, addresses[1], "dead");
    let probes: usize = std::env::var("SNIGATE_PROBES").map_or(1000, |probes| probes.parse().unwrap());
    let checked = || servers.iter().map(ApiServer::accepted).sum::<usize>();
    let open = router.metric("process_open_fds");
    let deadline = Instant::now() + Duration::from_secs(600);
    watchdog::may_take(Duration::from_secs(900));
    while checked() < probes {
        assert!(Instant::now() < deadline, "{} checks", checked());
        std::thread::sleep(Duration::from_millis(20));
    }
    let now = router.metric("process_open_fds");
    assert!(now <= open + 6.0, "{open} descriptors have become {now}");
}

/// No packet to this socket arrives any more. For a listening one: those that it has accepted are left alone.
fn black_out<S: Into<Socket>>(socket: S) {
    socket.into().attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
}

/// An endpoint that goes away beside one that stays, and a stream to it.
struct Going {
    router: Router,
    client: Client,
    /// The endpoint's end of the stream.
    stream: TcpStream,
    /// `None` once nobody listens there any more.
    listener: Option<TcpListener>,
    address: SocketAddr,
    staying: SocketAddr,
}

impl Going {
    /// With such a `dead` key.
    fn start(dead: &str) -> Self {
        Self::beside(Backend::named("there").address(), dead)
    }

    fn beside(staying: SocketAddr, dead: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let router = router(
            &[address, staying],
            &format!("balance: round_robin\n      dead: {dead}\n      health_check: {{interval: 100ms, fall: 2}}"),
        );
        let hello = Hello::to(NAME).record();
        let client = Client::send(router.address(), &hello);
        // Checks come, too, and say nothing.
        let stream = loop {
            let mut stream = listener.accept().unwrap().0;
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            if stream.read_exact(&mut vec![0; hello.len()]).is_ok() {
                break stream;
            }
        };
        let mut going = Self { router, client, stream, listener: Some(listener), address, staying };
        going.flows();
        going.client.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        going
    }

    fn flows(&mut self) {
        self.stream.write_all(b"down").unwrap();
        assert_eq!(self.client.read(4), b"down");
        self.client.write(b"up");
        self.stream.read_exact(&mut [0; 2]).unwrap();
    }

    /// The checks have found out, and new connections go elsewhere.
    fn is_dead(&self, cause: &str) {
        let change = state(&self.router, self.address, "dead");
        assert_eq!((change["cause"].as_str(), change["connections"].as_u64()), (Some(cause), Some(1)));
        assert_eq!(reached(&self.router), self.staying.to_string());
    }

    fn wait_for_probe(&self) {
        self.router.wait("the probe", |line| {
            line["message"]
                .as_str()
                .is_some_and(|message| message.starts_with("probing connections to a dead endpoint"))
                && line["connections"] == 1
        });
    }

    fn ended_as(&self) -> (Value, Value) {
        let account = self.router.account_of(self.client.address());
        (account["outcome"].clone(), account["closed_by"].clone())
    }
}

/// How an API server looks that shuts down: it listens no more, and serves its streams to their ends.
#[test]
fn b23_streams_of_an_endpoint_that_refuses_connections_last_until_it_ends_them() {
    let mut going = Going::start("{grace: 300ms}");
    going.listener = None;
    going.is_dead("connect: connection refused");
    going.wait_for_probe();
    // Longer than a probe takes. Nothing else could show that nothing happens.
    std::thread::sleep(Duration::from_secs(6));
    going.flows();
    going.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(going.client.rest(), (Vec::new(), End::Fin));
    going.client.finish();
    assert_eq!(going.ended_as(), ("completed".into(), "upstream".into()));
}

/// Frozen, and with a full queue: its kernel answers for the connections that it has.
#[test]
fn b23_streams_that_a_frozen_endpoints_kernel_acknowledges_last() {
    let mut going = Going::start("{grace: 300ms}");
    black_out(going.listener.as_ref().unwrap().try_clone().unwrap());
    going.is_dead("connect: no response within 100ms");
    going.wait_for_probe();
    std::thread::sleep(Duration::from_secs(6));
    going.flows();
}

#[test]
fn b08_silent_streams_of_an_endpoint_that_is_gone_are_probed_and_closed_after_the_grace() {
    let mut going = Going::start("{grace: 300ms}");
    black_out(going.listener.as_ref().unwrap().try_clone().unwrap());
    black_out(going.stream.try_clone().unwrap());
    going.is_dead("connect: no response within 100ms");
    going.wait_for_probe();
    going.client.rest();
    assert_eq!(going.ended_as(), ("cut_endpoint".into(), "us".into()));
    let account = going.router.account_of(going.client.address());
    assert_eq!(account["reason"], "the endpoint is dead and does not acknowledge this connection");
}

/// It accepts and says nothing; then its machine is gone.
#[test]
fn b08_an_endpoint_that_hangs_before_it_is_gone_loses_its_streams_after_the_grace() {
    let authority = Authority::new();
    let staying = ApiServer::start(&authority, NAME);
    let mut going = Going::beside(staying.address(), "{grace: 300ms}");
    let check = "health_check: {interval: 100ms, fall: 2, tls: {verify: false}}";
    let more = format!("balance: round_robin\n      dead: {{grace: 300ms}}\n      {check}");
    assert_eq!(going.router.reload(&text(&[going.address, going.staying], &more))["message"], "reloaded");
    going.is_dead("connected, but no response within 100ms");
    black_out(going.listener.as_ref().unwrap().try_clone().unwrap());
    black_out(going.stream.try_clone().unwrap());
    eventually("it is unreachable", || {
        let status: Value = serde_json::from_str(&going.router.get("/api/status").1).unwrap();
        let endpoints = status["routes"][0]["upstream"][0]["endpoints"].as_array().unwrap();
        endpoints.iter().any(|endpoint| endpoint["cause"] == "connect: no response within 100ms")
    });
    going.wait_for_probe();
    going.client.rest();
    assert_eq!(going.ended_as(), ("cut_endpoint".into(), "us".into()));
}

/// What was sent and not acknowledged is the probe then: no keepalive is sent beside it.
#[test]
fn b08_streams_with_bytes_on_the_way_to_an_endpoint_that_is_gone_are_closed_after_the_grace() {
    let mut going = Going::start("{grace: 300ms}");
    going.listener = None;
    black_out(going.stream.try_clone().unwrap());
    going.client.write(b"into the void");
    going.is_dead("connect: connection refused");
    going.client.rest();
    assert_eq!(going.ended_as(), ("cut_endpoint".into(), "us".into()));
}

#[test]
fn b08_connections_of_an_endpoint_that_is_gone_are_kept_if_the_operator_wants() {
    let mut going = Going::start("{grace: 300ms, connections: keep}");
    black_out(going.listener.as_ref().unwrap().try_clone().unwrap());
    going.is_dead("connect: no response within 100ms");
    going.client.stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(going.client.stream.read(&mut [0]).is_err(), "longer than the grace, nothing happens");
    going.flows();
}

/// One answer may be a mistake. The second is asked for at once, not after an interval.
#[test]
fn b12_an_endpoint_that_says_that_it_shuts_down_is_believed_soon() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let (going, staying) = (ApiServer::start(&authority, NAME), ApiServer::start(&authority, NAME));
    let check = format!(
        "health_check: {{interval: 3s, fall: 127, tls: {{ca_file: {}}}, http: {{}}}}",
        authority.write(directory.path(), "ca.pem").display()
    );
    let router = router(&[going.address(), staying.address()], &check);
    eventually("a check", || !going.requests().is_empty());
    going.be(Mood::Status(503, "[-]shutdown failed: reason withheld"));
    let start = Instant::now();
    let change = state(&router, going.address(), "unready");
    assert_eq!(change["in_a_row"], 2);
    assert!(start.elapsed() < Duration::from_secs(6), "an interval and a second, not two: {:?}", start.elapsed());
}

#[test]
fn b10_without_a_ready_endpoint_all_are_tried_and_none_is_cut() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let only = Backend::start_on(listener.try_clone().unwrap(), |mut stream| {
        let _ = stream.write_all(b"here");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let dead = free();
    let router = router(
        &[only.address(), dead],
        "dead: {grace: 1ms}\n      connect: {per_try: 200ms}\n      health_check: {interval: 100ms, fall: 1, rise: 1}",
    );
    state(&router, dead, "dead");
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    assert_eq!(client.read(4), b"here");
    black_out(listener.try_clone().unwrap());
    state(&router, only.address(), "dead");
    router.wait("that it fails open", |line| {
        line["message"].as_str().is_some_and(|told| told.starts_with("no endpoint is ready"))
    });
    assert_eq!(router.metric(&format!("snigate_route_failing_open{{route=\"{NAME}\"}}")), 1.0);
    let mut late = Client::send(router.address(), &Hello::to(NAME).record());
    assert_eq!(late.rest(), (alert(80), End::Fin), "both were tried");
    assert_eq!(router.account_of(late.address())["outcome"], "connect_timeout");

    Socket::from(listener).detach_filter().unwrap();
    state(&router, only.address(), "ready");
    router.wait("that it is over", |line| line["message"] == "an endpoint is ready again; no longer failing open");
    assert_eq!(router.metric(&format!("snigate_route_failing_open{{route=\"{NAME}\"}}")), 0.0);
    client.finish();
    assert_eq!(client.rest(), (Vec::new(), End::Fin), "it has lived through it");
    assert_eq!(reached(&router), only.address().to_string());
}

#[test]
fn b09_refused_connects_count_without_a_check_and_are_forgiven() {
    let good = Backend::named("there");
    let bad = free();
    let router = router(&[bad, good.address()], "balance: round_robin");
    for _ in 0..6 {
        assert_eq!(reached(&router), good.address().to_string());
    }
    let told = state(&router, bad, "dead");
    assert_eq!((told["cause"].as_str(), told["in_a_row"].as_u64()), (Some("connection refused"), Some(3)));
    let passed_over =
        || router.log().iter().filter(|line| line["reason"].as_str().is_some_and(|r| r.contains("refused"))).count();
    let before = passed_over();
    for _ in 0..10 {
        reached(&router);
    }
    assert_eq!(passed_over(), before, "it is not tried any more");
    let _back = Backend::start_on(TcpListener::bind(bad).unwrap(), |mut stream| {
        let _ = stream.read(&mut [0; 65536]);
        let _ = stream.write_all(b"back");
    });
    eventually("a trial", || reached(&router) == bad.to_string());
    state(&router, bad, "ready");
    eventually("its turn", || reached(&router) == bad.to_string());
}

#[test]
fn b04_an_endpoint_that_never_answers_gets_no_new_connections() {
    let (silent, _connections) = Backend::held();
    let good = Backend::named("there");
    let router = router(&[silent.address(), good.address()], "balance: round_robin");
    let mut held = Vec::new();
    eventually("three wait for an answer", || {
        let mut client = Client::send(router.address(), &Hello::to(NAME).record());
        client.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let is_held = || silent.accepted() > held.len();
        eventually("it is somewhere", || is_held() || client.stream.read(&mut [0]).is_ok());
        if is_held() {
            held.push(client);
        }
        held.len() == 3
    });
    let told = state(&router, silent.address(), "dead");
    assert_eq!(told["cause"], "no answer to a ClientHello in time");
    for _ in 0..4 {
        assert_eq!(reached(&router), good.address().to_string());
    }
    assert_eq!(told["connections"], 3, "they stay");
}

#[test]
fn b05_an_endpoint_that_closes_at_once_is_no_success() {
    let (bad, good) = (Backend::start(drop), Backend::named("there"));
    let router = router(&[bad.address(), good.address()], "balance: round_robin");
    for _ in 0..3 {
        reached(&router);
        reached(&router);
    }
    assert_eq!(state(&router, bad.address(), "dead")["cause"], "closed without an answer to a ClientHello");
}

#[test]
fn b15_a_name_that_leads_to_ourselves_is_a_loop() {
    let config =
        |port: u16| format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes: [{{upstream: \"localhost:{port}\"}}]\n");
    let router = Router::start(&config(1));
    let port = router.address().port();
    router.reload(&config(port));
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    assert_eq!(client.rest(), (alert(80), End::Fin));
    let account = router.account_of(client.address());
    // Where localhost has an IPv6 address too, nobody listens there.
    if account["outcome"] != "connect_refused" {
        assert_eq!(account["outcome"], "loop", "{account}");
    }
    router.wait("the warning", |line| {
        line["endpoint"] == format!("127.0.0.1:{port}")
            && line["message"].as_str().unwrap().contains("snigate's own listeners")
    });
}

#[test]
fn b20_a_client_that_comes_back_lands_elsewhere() {
    let backends = [Backend::named("a"), Backend::named("b"), Backend::named("c")];
    let addresses: Vec<SocketAddr> = backends.iter().map(Backend::address).collect();
    for balance in ["least_connections", "round_robin", "random"] {
        let router = router(&addresses, &format!("balance: {balance}"));
        let mut counts = [0; 3];
        for _ in 0..120 {
            let reached = reached(&router);
            counts[addresses.iter().position(|address| address.to_string() == reached).unwrap()] += 1;
        }
        assert!(counts.iter().all(|count| (20..=60).contains(count)), "{balance}: {counts:?}");
    }
}

#[test]
fn tls_goes_through_a_pool_that_is_checked() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    let (server, spare) = (ApiServer::start(&authority, NAME), ApiServer::start(&authority, NAME));
    let router = router(&[server.address(), spare.address()], &check(&authority, &directory, ""));
    for _ in 0..4 {
        assert_eq!(get(router.address(), &authority, NAME, None), Ok("ok".into()));
    }
}

/// B08 with live streams: no packet of theirs arrives any more, and bytes are on the way.
#[test]
fn b08_a_peer_that_acknowledges_nothing_is_dead_in_45_s_and_a_slow_reader_lives() {
    let (backend, connections) = Backend::held();
    let router = router(&[backend.address()], "");
    let accept = |client: &mut Client| {
        client.write(&Hello::to(NAME).record());
        let mut stream = connections.recv_timeout(PATIENCE).unwrap();
        let mut hello = vec![0; Hello::to(NAME).record().len()];
        stream.read_exact(&mut hello).unwrap();
        stream.write_all(b"answer").unwrap();
        client.read(6);
        stream
    };
    let mut slow = Client::connect(router.address());
    let mut slow_server = accept(&mut slow);
    let mut lost = Client::connect(router.address());
    let lost_server = accept(&mut lost);

    // The slow client reads nothing: everything between fills up.
    slow_server.set_nonblocking(true).unwrap();
    eventually("nobody takes more", || slow_server.write(&[0; 65536]).is_err());
    let start = Instant::now();
    Socket::from(lost_server.try_clone().unwrap()).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
    lost.write(b"into the void");
    lost.stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    lost.rest();
    let lasted = start.elapsed();
    let account = router.account_of(lost.address());
    assert_eq!((account["outcome"].as_str(), account["closed_by"].as_str()), (Some("peer_dead"), Some("upstream")));
    assert!((Duration::from_secs(25)..Duration::from_secs(45)).contains(&lasted), "{lasted:?}");
    assert!(router.log().iter().all(|line| line["client.port"] != slow.address().port()), "the slow reader lives");
}

#[test]
fn black_holes_do_not_hold_up_who_can_be_served() {
    let (_hole, address) = black_hole();
    let good = Backend::named("there");
    let router =
        router(&[address, good.address()], "connect: {per_try: 100ms}\n      health_check: {interval: 100ms, fall: 1}");
    state(&router, address, "dead");
    for _ in 0..5 {
        let mut client = Client::send(router.address(), &Hello::to(NAME).record());
        assert_eq!(client.read(5), b"there");
        client.finish();
        client.rest();
        assert!(router.account_of(client.address())["connect_ms"].as_f64().unwrap() < 100.0);
    }
}

/// An API server as a process: OpenSSL's, which answers with the files of this directory.
fn openssl_server(address: SocketAddr, directory: &TempDir) -> Process {
    let mut command = Command::new("openssl");
    command.args(["s_server", "-WWW", "-quiet", "-cert", "server.pem", "-key", "server-key.pem", "-accept"]);
    command.arg(address.to_string()).current_dir(directory.path());
    Process(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[test]
#[ignore = "needs openssl"]
fn a_certificate_as_openssl_makes_them_is_its_own_ca_file() {
    for more in ["", " -addext basicConstraints=critical,CA:FALSE"] {
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("readyz"), "ok").unwrap();
        let made = Command::new("sh")
            .arg("-c")
            .arg(format!(
                "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN={NAME} \
                 -addext subjectAltName=DNS:{NAME} -keyout server-key.pem -out server.pem{more}"
            ))
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let (right, wrong) = (free(), free());
        let _servers = [openssl_server(right, &directory), openssl_server(wrong, &directory)];
        let file = directory.path().join("server.pem");
        let check = |name: &str| {
            format!(
                "health_check: {{interval: 200ms, rise: 1, fall: 2, tls: {{ca_file: {}, server_name: {name}}}}}",
                file.display()
            )
        };
        let becomes = |router: &Router, endpoint: SocketAddr, state: &str| {
            eventually(&format!("{endpoint} {state}"), || metric(router, endpoint, state) == 1.0);
        };
        let verified = router(&[right], &check(NAME));
        eventually("it is checked", || verified.get("/api/status").1.contains("\"last_check\": {"));
        becomes(&verified, right, "ready");
        becomes(&router(&[wrong], &check("b.example")), wrong, "dead");
    }
}

#[test]
#[ignore = "needs openssl"]
fn b03_b07_b09_b10_endpoints_are_killed_stopped_made_unready_and_brought_back() {
    let (authority, directory) = (Authority::new(), TempDir::new().unwrap());
    authority.issue(NAME).write(directory.path(), "server");
    for (file, content) in [("readyz", "ok"), ("version", "of openssl")] {
        std::fs::write(directory.path().join(file), content).unwrap();
    }
    let [killed, stopped] = [free(), free()];
    let unready = ApiServer::start(&authority, NAME);
    let first = openssl_server(killed, &directory);
    let second = openssl_server(stopped, &directory);
    let router = router(&[killed, stopped, unready.address()], &check(&authority, &directory, ""));
    let becomes = |endpoint: SocketAddr, state: &str| {
        eventually(&format!("{endpoint} {state}"), || metric(&router, endpoint, state) == 1.0);
        // Whoever is chosen, all are served.
        for _ in 0..6 {
            get(router.address(), &authority, NAME, None).unwrap();
        }
    };
    for endpoint in [killed, stopped, unready.address()] {
        becomes(endpoint, "ready");
    }

    drop(first);
    becomes(killed, "dead");
    second.signal(Signal::STOP);
    becomes(stopped, "dead");
    let _first = openssl_server(killed, &directory);
    becomes(killed, "ready");
    unready.be(Mood::Status(500, "[-]shutdown failed"));
    becomes(unready.address(), "unready");
    second.signal(Signal::CONT);
    becomes(stopped, "ready");
    unready.be(Mood::Status(200, "ok"));
    becomes(unready.address(), "ready");

    let log = router.log();
    let changes = log.iter().filter(|line| line["before"].is_string());
    let story: Vec<(&str, &str)> =
        changes.map(|line| (line["endpoint"].as_str().unwrap(), line["state"].as_str().unwrap())).collect();
    let [killed, stopped, unready] = [killed, stopped, unready.address()].map(|endpoint| endpoint.to_string());
    let expected = [
        (&killed, "dead"),
        (&stopped, "dead"),
        (&killed, "ready"),
        (&unready, "unready"),
        (&stopped, "ready"),
        (&unready, "ready"),
    ];
    let from_kill = story.iter().position(|change| *change == (&*killed, "dead")).unwrap();
    assert_eq!(story[from_kill..], expected.map(|(endpoint, state)| (endpoint.as_str(), state)), "{story:?}");
}
