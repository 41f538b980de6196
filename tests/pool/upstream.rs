//! Reaching an API server.

use std::io::Write;
use std::net::SocketAddr;

use serde_json::Value;
use socket2::Socket;

use crate::support::backend::{black_hole, closed, reset};
use crate::support::client::{End, alert};
use crate::support::{Backend, Client, Hello, Router, eventually};

const NAME: &str = "a.example";

fn routing(endpoints: &[String], connect: &str) -> Router {
    let endpoints: Vec<String> = endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    Router::start(&format!(
        "listen: 127.0.0.1:0
admin: 127.0.0.1:0
routes:
  - sni: {NAME}
    upstream: {{endpoints: [{}], connect: {{{connect}}}}}
",
        endpoints.join(", ")
    ))
}

/// What a client gets, and what is logged of it.
fn ask(router: &Router) -> ((Vec<u8>, End), Value) {
    let mut client = Client::send(router.address(), &Hello::to(NAME).record());
    client.finish();
    (client.rest(), router.account_of(client.address()))
}

/// Every endpoint in turn is tried first, so as many connections as endpoints show that each failure is survived.
fn survives(bad: &[SocketAddr], connect: &str) {
    survives_any(&bad.iter().map(ToString::to_string).collect::<Vec<_>>(), connect);
}

fn survives_any(bad: &[String], connect: &str) {
    let good = Backend::named("served");
    let endpoints: Vec<String> = bad.iter().cloned().chain([good.address().to_string()]).collect();
    let router = routing(&endpoints, connect);
    let mut passed_over = 0;
    for _ in &endpoints {
        let ((answer, end), account) = ask(&router);
        passed_over += usize::from(account["reason"].as_str().is_some_and(|reason| reason.contains(" failed; ")));
        assert_eq!((answer.as_slice(), end), (&b"served"[..], End::Fin), "{account}");
        assert_eq!(account["upstream.address"], good.address().to_string());
        assert!(account["upstream.local.address"].is_string() && account["connect_ms"].is_number());
    }
    assert_eq!(passed_over, bad.len(), "the log tells of the endpoints that failed on the way");
}

#[test]
fn b01_a_refused_endpoint_is_passed_over() {
    survives(&[closed(), closed()], "");
    let router = routing(&[closed().to_string()], "");
    let (told, account) = ask(&router);
    assert_eq!(told, (alert(80), End::Fin));
    assert_eq!(account["outcome"], "connect_refused");
    assert_eq!(account["level"], "WARN");
    assert!(account["reason"].as_str().unwrap().contains("refused"), "{account}");
}

#[test]
fn b02_an_endpoint_that_does_not_answer_is_passed_over() {
    let (_hole, address) = black_hole();
    survives(&[address], "per_try: 200ms");
    let router = routing(&[address.to_string()], "timeout: 300ms");
    let (told, account) = ask(&router);
    assert_eq!((told, account["outcome"].as_str()), ((alert(80), End::Fin), Some("connect_timeout")));
    let lasted = account["duration_ms"].as_f64().unwrap();
    assert!((300.0..3000.0).contains(&lasted), "the budget is kept: {lasted} ms");
}

#[test]
fn b02_timeouts_make_an_endpoint_dead_also_if_one_takes_all_of_the_time() {
    let (_hole, address) = black_hole();
    let good = Backend::named("served");
    for connect in ["timeout: 200ms", "timeout: 200ms, per_try: 200ms"] {
        let router = routing(&[address, good.address()].map(|address| address.to_string()), connect);
        let outcomes: Vec<String> = (0..8).map(|_| ask(&router).1["outcome"].as_str().unwrap().to_owned()).collect();
        let timed_out = outcomes.iter().filter(|outcome| *outcome == "connect_timeout").count();
        assert_eq!(timed_out, 3, "{connect}: {outcomes:?}");
        let told = router.wait("that it is dead", |line| line["state"] == "dead");
        assert_eq!(told["endpoint"], address.to_string());
    }
}

#[test]
fn b22_an_endpoint_that_answers_within_the_timeout_is_waited_for() {
    let (listener, address) = black_hole();
    let router = routing(&[address.to_string()], "per_try: 4s");
    let hello = Hello::to(NAME).record();
    let mut clients: Vec<Client> = (0..100).map(|_| Client::send(router.address(), &hello)).collect();
    eventually("every SYN has been sent again", || {
        let sent_again = sent_syns(address).into_iter().filter(|retransmits| *retransmits > 0);
        sent_again.count() == clients.len()
    });
    Socket::from(listener.try_clone().unwrap()).detach_filter().unwrap();
    let _slow = Backend::start_on(listener, |mut stream| {
        let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
    });
    for client in &mut clients {
        assert_eq!(client.read(hello.len()), hello);
        client.finish();
        let account = router.account_of(client.address());
        assert_eq!((&account["outcome"], &account["reason"]), (&"completed".into(), &Value::Null), "{account}");
        let connect = account["connect_ms"].as_f64().unwrap();
        assert!((1000.0..4000.0).contains(&connect), "{account}");
    }
}

/// How often the SYN of each connection to this address that has no answer yet was sent again.
fn sent_syns(to: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(to) = to else { unreachable!() };
    let remote = format!("{:08X}:{:04X}", u32::from_ne_bytes(to.ip().octets()), to.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let unanswered = lines.filter(|columns| columns[2] == remote && columns[3] == SYN_SENT);
    unanswered.map(|columns| u8::from_str_radix(columns[6], 16).unwrap()).collect()
}

/// As `/proc/net/tcp` has it.
const SYN_SENT: &str = "02";

#[test]
fn b03_an_endpoint_that_cannot_be_reached_is_passed_over() {
    // A multicast address is unreachable over TCP, a link-local one without a zone invalid: the kernel says so at
    // once, and no packet leaves.
    let unreachable = ["224.0.0.1:6443", "[fe80::1]:6443"].map(String::from);
    survives_any(&unreachable, "");
    let (told, account) = ask(&routing(&unreachable, ""));
    assert_eq!((told, account["outcome"].as_str()), ((alert(80), End::Fin), Some("connect_refused")));
}

#[test]
fn c03_a_name_that_does_not_resolve_does_not_stop_the_start() {
    let router = routing(&["nowhere.invalid:6443".into()], "timeout: 2s");
    let (told, account) = ask(&router);
    assert_eq!((told, account["outcome"].as_str()), ((alert(80), End::Fin), Some("no_endpoint")));
    let good = Backend::named("served");
    let by_name = routing(&[format!("localhost:{}", good.address().port())], "");
    assert_eq!(ask(&by_name).0.0, b"served", "all addresses of the name are tried");
}

#[test]
fn b05_an_endpoint_that_closes_at_once_is_shown_as_it_is() {
    for (ends, expected) in [(End::Fin, "completed"), (End::Reset, "upstream_reset")] {
        let backend = Backend::start(move |mut stream| {
            // The hello is read first: to close with unread bytes would be a reset.
            let _ = std::io::Read::read(&mut stream, &mut [0; 65536]);
            if ends == End::Reset {
                reset(stream);
            }
        });
        let router = Router::routing(&[(NAME, backend.address())]);
        let mut client = Client::send(router.address(), &Hello::to(NAME).record());
        assert_eq!(client.rest(), (Vec::new(), ends));
        client.finish_if_open();
        let account = router.account_of(client.address());
        assert_eq!((account["outcome"].as_str(), account["closed_by"].as_str()), (Some(expected), Some("upstream")));
        assert_eq!(backend.accepted(), 1, "not tried again");
    }
}

#[test]
fn b06_what_an_endpoint_says_before_it_has_read_is_delivered() {
    let backend = Backend::start(|mut stream| {
        stream.write_all(b"too busy").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
    });
    let router = Router::routing(&[(NAME, backend.address())]);
    for _ in 0..100 {
        let mut client = Client::send(router.address(), &Hello::to(NAME).record());
        assert_eq!(client.rest(), (b"too busy".to_vec(), End::Fin));
    }
}

#[test]
fn b14_a_client_that_leaves_stops_the_connect() {
    let (_hole, address) = black_hole();
    let router = routing(&[address.to_string()], "timeout: 60s, per_try: 60s");
    let client = Client::send(router.address(), &Hello::to(NAME).record());
    let local = client.address();
    let active = format!("snigate_connections_active{{route=\"{NAME}\"}}");
    eventually("it is being connected", || router.metric(&active) == 1.0);
    reset(client.stream);
    let account = router.account_of(local);
    assert_eq!((account["outcome"].as_str(), account["closed_by"].as_str()), (Some("client_gone"), Some("client")));
    assert_eq!(account["route"], NAME);
}

#[test]
#[ignore = "needs root, ip and unshare"]
fn b03_routes_that_reject_are_passed_over() {
    // In a network namespace of its own, so that no route of the machine changes.
    let good = "127.0.0.1:7001";
    let script = format!(
        "set -e
ip link set lo up
ip route add unreachable 198.51.100.1/32
ip route add prohibit 198.51.100.2/32
ip route add blackhole 198.51.100.3/32
timeout 20 {} run --listen 127.0.0.1:7000 --route {NAME}=198.51.100.1:1 --route b.example=198.51.100.2:1 \
 --route c.example=198.51.100.3:1 --route d.example={good} --log-format json 2>log &
router=$!
until grep -q listening log; do sleep 0.05; done
for name in {NAME} b.example c.example d.example; do
  timeout 5 openssl s_client -connect 127.0.0.1:7000 -servername $name </dev/null >/dev/null 2>&1 || true
done
kill $router
wait $router || true
cat log",
        env!("CARGO_BIN_EXE_snigate")
    );
    let directory = tempfile::TempDir::new().unwrap();
    let output = std::process::Command::new("unshare")
        .args(["--net", "sh", "-c", &script])
        .current_dir(directory.path())
        .output()
        .expect("unshare is installed");
    let log = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{log}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(log.matches("\"outcome\":\"connect_refused\"").count(), 4, "{log}");
}
