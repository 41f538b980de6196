//! `/metrics` and `/api/status` as scrapers and scripts read them.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::router::config;
use crate::support::{Backend, Client, Hello, Router, eventually};

const NAME: &str = "a.example";
const OPEN_METRICS: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

fn serve_one(router: &Router, name: &str) {
    let mut client = Client::send(router.address(), &Hello::to(name).record());
    client.finish();
    client.rest();
    router.account_of(client.address());
}

/// The content type and the text.
fn scrape(router: &Router, accept: &str) -> (String, String) {
    let (head, body) = router.get_with("/metrics", &format!("cache-control: no-cache\r\n{accept}"));
    let of_type = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
    (of_type.into(), String::from_utf8(body).unwrap())
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("cluster{number:05}.region.example.test")).collect()
}

fn many(count: usize, more: &str) -> Router {
    let backend = Backend::named("four");
    let names = names(count);
    let routes: Vec<_> = names.iter().map(|name| (name.as_str(), backend.address())).collect();
    let router = Router::start(&config(&routes, more));
    serve_one(&router, &names[0]);
    router
}

#[test]
fn the_text_format_is_for_all_but_those_who_ask_for_openmetrics() {
    let router = Router::routing(&[(NAME, Backend::named("four").address())]);
    serve_one(&router, NAME);
    for accept in ["", "accept: text/plain;version=0.0.4;q=1,*/*;q=0.1\r\n", "accept: application/json\r\n"] {
        let (of_type, text) = scrape(&router, accept);
        assert_eq!(of_type, "text/plain; version=0.0.4; charset=utf-8", "{accept}");
        assert!(!text.contains("# UNIT") && !text.contains("# EOF") && text.ends_with('\n'));
        for (name, kind) in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')) {
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{name} {kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} {kind}");
        }
        assert!(text.contains("# TYPE snigate_build_info gauge\nsnigate_build_info{version="));
    }
    let (of_type, text) = scrape(&router, &format!("accept: {OPEN_METRICS}\r\n"));
    assert_eq!(of_type, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(text.contains("# TYPE snigate_connections counter\n") && text.ends_with("# EOF\n"));
    assert!(text.contains("# TYPE snigate_answer_seconds histogram\n# UNIT snigate_answer_seconds seconds\n"));
}

fn read_by(program: &str, arguments: &[&str], text: &str) -> String {
    let mut command = Command::new(program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "needs python3-prometheus-client and promtool"]
fn other_readers_of_both_formats_understand_the_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let authority = crate::support::tls::Authority::new();
    let server = crate::support::api_server::ApiServer::start(&authority, NAME);
    let ca = authority.write(directory.path(), "ca.pem");
    let backend = Backend::named("four");
    let config = |per_route: &str| {
        format!(
            "listen: 127.0.0.1:0\nadmin: {{address: 127.0.0.1:0, metrics: {{per_route: {per_route}}}}}\nroutes:\n  - {{name: \"a \\\"quoted\\\" \\\\ one\", sni: {NAME}, upstream: {{endpoints: \"{}\", health_check: {{interval: 100ms, tls: {{ca_file: {}}}}}}}}}\n  - {{sni: b.example, upstream: \"{}\"}}\n",
            server.address(),
            ca.display(),
            backend.address()
        )
    };
    let router = Router::start(&config("full"));
    serve_one(&router, "b.example");
    eventually("a check", || router.get("/api/status").1.contains("expires_timestamp_seconds"));
    for per_route in ["full", "totals", "off"] {
        assert_eq!(router.reload(&config(per_route))["message"], "reloaded");
        let read = |module: &str| {
            format!(
                "import sys
from prometheus_client.{module} import text_string_to_metric_families as parse
for family in parse(sys.stdin.read()):
    print(family.name, family.type, family.unit, len(family.samples), [dict(sample.labels) for sample in family.samples][:1])"
            )
        };
        for (accept, module, expected) in [
            (
                format!("accept: {OPEN_METRICS}\r\n"),
                "openmetrics.parser",
                ["snigate_connections counter ", "snigate_answer_seconds histogram seconds ", "snigate_build info "],
            ),
            (
                String::new(),
                "parser",
                ["snigate_connections counter ", "snigate_answer_seconds histogram ", "snigate_build_info gauge "],
            ),
        ] {
            let (_, text) = scrape(&router, &accept);
            let told = read_by("/usr/bin/python3", &["-c", &read(module)], &text);
            for family in expected {
                assert!(told.lines().any(|line| line.starts_with(family)), "{per_route}: {family} in\n{told}");
            }
            assert_eq!(told.contains("a \"quoted\" \\\\ one"), per_route != "off", "{told}");
        }
        read_by("promtool", &["check", "metrics"], &scrape(&router, "").1);
    }
}

#[test]
fn compressed_is_what_asks_for_it_and_it_says_the_same() {
    let router = many(300, "");
    let (plain_head, plain) = router.get_with("/metrics", "accept-encoding: br, gzip;q=0\r\n");
    assert!(!plain_head.contains("content-encoding") && plain_head.contains("vary: accept, accept-encoding"));
    let (head, zipped) = router.get_with("/metrics", "accept-encoding: deflate, gzip;q=1.0\r\n");
    assert!(head.contains("content-encoding: gzip") && head.contains(&format!("content-length: {}", zipped.len())));
    let mut text = String::new();
    flate2::read::GzDecoder::new(&zipped[..]).read_to_string(&mut text).unwrap();
    let active = |text: &str| text.lines().filter(|line| line.starts_with("snigate_connections_active{")).count();
    assert_eq!((active(&text), active(&String::from_utf8_lossy(&plain))), (301, 301));
    assert!(zipped.len() * 5 < text.len(), "{} of {}", zipped.len(), text.len());
}

#[test]
fn an_idle_route_costs_little_and_its_states_are_there() {
    let router = many(400, "");
    let (_, text) = router.get("/metrics");
    let of = |name: &str| -> Vec<&str> {
        let label = format!("route=\"{name}\"");
        text.lines().filter(|line| line.contains(&label)).collect()
    };
    let idle = of("cluster00399.region.example.test");
    assert_eq!(idle.len(), 4, "{idle:?}");
    assert_eq!(idle[0], "snigate_connections_active{route=\"cluster00399.region.example.test\"} 0");
    assert!(idle[1..].iter().all(|line| line.starts_with("snigate_endpoint_state{")), "{idle:?}");
    assert!(text.len() < 400 * 2048 / 4, "{} bytes", text.len());
    // A group is there as a whole, or not at all.
    let used = of("cluster00000.region.example.test");
    let is_there = |series: &str| used.iter().any(|line| line.starts_with(series));
    assert!(is_there("snigate_answer_seconds_count{"), "{used:?}");
    assert!(is_there("snigate_connections_total{") && used.iter().any(|line| line.ends_with("\"peer_dead\"} 0")));
    assert!(used.len() < 60, "{}", used.len());
    // What is of the process begins with zero.
    let malformed = "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"_none\",outcome=\"malformed\"} 0";
    assert!(text.lines().any(|line| line == malformed));
}

#[test]
fn per_route_metrics_can_be_fewer_or_none() {
    let backend = Backend::named("four");
    let config = |per_route: &str, routes: &[&str]| {
        let mut text = format!(
            "listen: 127.0.0.1:0\nadmin: {{address: 127.0.0.1:0, metrics: {{per_route: {per_route}}}}}\nroutes:\n"
        );
        for name in routes {
            let _ = writeln!(text, "  - {{sni: {name}, upstream: \"{}\"}}", backend.address());
        }
        text
    };
    let router = Router::start(&config("full", &[NAME, "b.example"]));
    serve_one(&router, NAME);
    serve_one(&router, "b.example");
    let metrics = || router.get("/metrics").1;
    let bucket = "snigate_answer_seconds_bucket{route=\"a.example\",le=\"";
    let buckets = |text: &str| text.lines().filter(|line| line.starts_with(bucket)).count();
    assert_eq!(buckets(&metrics()), 10);

    assert_eq!(router.reload(&config("totals", &[NAME, "b.example"]))["message"], "reloaded");
    let text = metrics();
    assert_eq!(buckets(&text), 1);
    for series in [
        "snigate_answer_seconds_count{route=\"a.example\"} 1",
        "snigate_connection_seconds_bucket{route=\"_none\",le=\"0.1\"} 0",
        "snigate_connections_total{listener=\"127.0.0.1:0\",route=\"b.example\",outcome=\"completed\"} 1",
    ] {
        assert!(text.lines().any(|line| line == series), "{series} in\n{text}");
    }

    let mut open = Client::send(router.address(), &Hello::to(NAME).record());
    open.read(4);
    for routes in [&[NAME, "b.example"][..], &[NAME]] {
        assert_eq!(router.reload(&config("off", routes))["message"], "reloaded");
        let text = metrics();
        assert!(!text.contains("route=\"") && !text.contains("endpoint=\""), "{text}");
        for series in [
            "snigate_connections_total{listener=\"127.0.0.1:0\",outcome=\"completed\"} 2".to_owned(),
            "snigate_connections_total{listener=\"127.0.0.1:0\",outcome=\"unknown_name\"} 0".into(),
            "snigate_answer_seconds_bucket{le=\"10.0\"} 3".into(),
            "snigate_bytes_total{direction=\"sent\"} 12".into(),
            format!("snigate_endpoint_state{{state=\"ready\"}} {}", routes.len()),
            "snigate_endpoint_state{state=\"dead\"} 0".into(),
            "snigate_route_failing_open 0".into(),
        ] {
            assert!(text.lines().any(|line| line == series), "{series} in\n{text}");
        }
    }
}

#[test]
fn a_page_of_the_status_has_the_routes_that_were_asked_for() {
    let router = many(250, "");
    let status = |query: &str| -> Value {
        // Shared, so that many pages do not take many seconds.
        let (head, body) = router.get_with(&format!("/api/status{query}"), "");
        let body = String::from_utf8(body).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{query}: {head} {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{query}: {error}: {body}"))
    };
    let names_in = |status: &Value| -> Vec<String> {
        let routes = status["routes"].as_array().unwrap();
        routes.iter().map(|route| route["name"].as_str().unwrap().to_owned()).collect()
    };
    let all = names(250);
    let whole = status("");
    assert_eq!((names_in(&whole), &whole["routes_total"]), (all.clone(), &250.into()));
    // From the first to the last, also where one part of the text ends and the next begins.
    for limit in [1, 7, 100, 1000] {
        let pages =
            (0..250).step_by(limit).flat_map(|offset| names_in(&status(&format!("?offset={offset}&limit={limit}"))));
        assert_eq!(pages.collect::<Vec<_>>(), all, "{limit}");
        if limit == 1 {
            assert_eq!(status("?limit=1")["routes"][0]["accepted"], 1);
        }
    }
    let one = status(&format!("?route={}", all[77].replace("region", "%72egio%6E")));
    assert_eq!((names_in(&one), &one["routes_total"]), (vec![all[77].clone()], &250.into()));
    assert_eq!(one["routes"][0]["upstream"], whole["routes"][77]["upstream"]);
    for query in ["?offset=250", "?limit=0", "?offset=18446744073709551615&limit=18446744073709551615"] {
        assert!(names_in(&status(query)).is_empty(), "{query}");
    }
    for (query, expected, says) in [
        ("?route=nobody.example", 404, "there is no route `nobody.example`\n"),
        ("?limit=all", 400, "expected ?route=NAME, or ?offset=NUMBER&limit=NUMBER\n"),
        ("?pages=2", 400, "expected ?route=NAME, or ?offset=NUMBER&limit=NUMBER\n"),
    ] {
        assert_eq!(router.get(&format!("/api/status{query}")), (expected, says.into()), "{query}");
    }
}

#[test]
fn what_scrapers_do_not_read_is_in_memory_once() {
    let router = many(4000, "");
    let length = router.get("/metrics").1.len();
    let before = router.memory();
    let request = b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\ncache-control: no-cache\r\n\r\n";
    // Some rounds, so that they are not all of one second.
    let mut unread = Vec::new();
    for _ in 0..6 {
        let mut clients: Vec<Client> = (0..3).map(|_| Client::send(router.admin(), request)).collect();
        for client in &mut clients {
            assert_eq!(client.read(12), b"HTTP/1.1 200");
        }
        unread.extend(clients);
    }
    let grown = router.memory() - before;
    assert!(grown < 8.0 * length as f64, "{grown} for {length}");
    // The last ones get all, the first ones know that they do not.
    let whole = |client: &mut Client| client.rest().0.len() > length;
    assert!(whole(unread.last_mut().unwrap()) && !whole(&mut unread[0]));
}
