//! Reloads and log levels by order of an operator.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use super::Operated;
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, Stop, snigate};

const NAME: &str = "a.example";

#[test]
fn a_reload_answers_with_what_has_changed_or_why_it_failed() {
    let backend = Backend::echo();
    let one = config(&[(NAME, backend.address())], "");
    let operated = Operated::start(&one);
    let two = operated.with_socket(&config(&[(NAME, backend.address()), ("b.example", backend.address())], ""));
    std::fs::write(&operated.router.config, &two).unwrap();
    assert_eq!(operated.says(&["reload"]), "reloaded: 1 route added, 0 changed, 0 removed, 1 unchanged\n");
    let line = operated.router.wait("it is told", |line| line["message"] == "reloaded");
    assert_eq!(line["by"], "control");
    assert!(line["operator.user"].is_u64() && line["operator.process"].is_u64(), "{line}");

    std::fs::write(&operated.router.config, two.replace("routes:", "roots:")).unwrap();
    let failed = operated.fails(&["reload"]);
    assert!(failed.contains("unknown key `roots`; did you mean `routes`?"), "{failed}");
    let line = operated.router.wait("it is told", |line| line["level"] == "ERROR");
    assert_eq!((&line["by"], line["operator.user"].is_u64()), (&"control".into(), true));
    let mut client = Client::send(operated.router.address(), &Hello::to("b.example").record());
    client.read(1);

    // What is fixed at the start.
    std::fs::write(&operated.router.config, two.replace("control.sock", "other.sock")).unwrap();
    let failed = operated.fails(&["reload"]);
    assert!(failed.contains("control cannot be changed from ") && failed.contains("by a reload"), "{failed}");
}

#[test]
fn the_log_level_changes_until_the_next_reload() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&[(NAME, backend.address())], ""));
    let bare = || {
        let client = Client::connect(operated.router.address());
        let port = client.address().port();
        drop(client);
        // Connections that end later are logged later.
        let after = Client::send(operated.router.address(), &Hello::to("unknown.example").record());
        operated.router.account_of(after.address());
        port
    };
    let is_logged = |port: u16| operated.router.log().iter().any(|line| line["client.port"] == port);
    let before = bare();
    assert_eq!(operated.says(&["log-level", "debug"]), "log level debug until the next reload\n");
    let seen = bare();
    operated.router.wait("a bare connect", |line| line["client.port"] == seen);
    assert!(!is_logged(before));
    operated.says(&["reload"]);
    let after = bare();
    assert!(!is_logged(after));
    assert_eq!(snigate().args(["ctl", "log-level", "loud"]).output().unwrap().status.code(), Some(2));
}

#[test]
fn g07_a_watched_file_is_applied_while_operators_give_orders() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&[(NAME, backend.address())], "watch: true\n"));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                operated.says(&["log-level", "info"]);
                // More often than the file is looked at.
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        let _stop = Stop(&is_over);
        let changed = config(&[(NAME, backend.address()), ("b.example", backend.address())], "watch: true\n");
        std::fs::write(&operated.router.config, operated.with_socket(&changed)).unwrap();
        let reloaded = operated.router.wait("the reload", |line| line["message"] == "reloaded");
        assert_eq!((&reloaded["by"], &reloaded["added"]), (&"watch".into(), &1.into()));
    });
}

#[test]
fn routes_and_endpoints_are_listed() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&[(NAME, backend.address()), ("b.example", backend.address())], ""));
    let routes = operated.says(&["routes"]);
    let columns: Vec<Vec<&str>> = routes.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(columns[0], ["ROUTE", "CONNECTIONS", "RECEIVED", "SENT", "SERVING", "ENDPOINTS"]);
    assert_eq!(columns[1], [NAME, "0", "0", "B", "0", "B", "primary", "1", "of", "1", "ready"]);
    assert_eq!(columns.len(), 3);
    let endpoints = operated.says(&["endpoints", NAME]);
    let columns: Vec<Vec<&str>> = endpoints.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(columns[1], [NAME, &backend.address().to_string(), "ready", "0"]);
    assert_eq!(columns.len(), 2);
    assert!(operated.fails(&["endpoints", "c.example"]).contains("c.example"));
}
