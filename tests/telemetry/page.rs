//! The status page, in a browser.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::api_server::{ApiServer, Mood};
use crate::support::backend::free;
use crate::support::browser::{Browser, ENTER, ESCAPE, LEFT};
use crate::support::router::config;
use crate::support::tls::{Authority, get};
use crate::support::{Backend, Client, Hello, Router, eventual, eventually, snigate};

const NAME: &str = "dev.example.com";
const OTHER: &str = "prod.example.com";

fn text(browser: &Browser, id: &str) -> String {
    browser.eval(&format!("document.getElementById('{id}').innerText")).as_str().unwrap().to_owned()
}

/// Where somebody wants to look at it, it is left there.
fn keep(browser: &Browser, name: &str) {
    let picture = browser.screenshot();
    assert!(picture.starts_with(b"\x89PNG"));
    if let Some(directory) = std::env::var_os("SNIGATE_SCREENSHOTS") {
        std::fs::write(std::path::Path::new(&directory).join(name), picture).unwrap();
    }
}

/// Two checked routes: one with three API servers, one whose certificate neither lasts nor covers its name.
fn clusters(directory: &TempDir) -> (Authority, Vec<ApiServer>, Router) {
    let authority = Authority::new();
    let ca = authority.write(directory.path(), "ca.pem");
    let mut servers: Vec<ApiServer> = (0..3).map(|_| ApiServer::start(&authority, NAME)).collect();
    servers.push(ApiServer::start(&authority, "kubernetes"));
    servers[3].show(&authority.issue_for_days("kubernetes", 5));
    let list = |servers: &[ApiServer]| {
        format!("{:?}", servers.iter().map(|one| one.address().to_string()).collect::<Vec<_>>())
    };
    let check = format!(
        "health_check: {{interval: 200ms, rise: 1, fall: 2, tls: {{ca_file: {}}}, http: {{}}}}, slow_start: 0s",
        ca.display()
    );
    let router = Router::start(&format!(
        "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n  - {{sni: {NAME}, upstream: {{endpoints: {}, {check}}}}}\n  - {{sni: {OTHER}, upstream: {{endpoints: {}, {check}}}}}\n",
        list(&servers[..3]),
        list(&servers[3..])
    ));
    (authority, servers, router)
}

#[test]
#[ignore = "needs chromedriver"]
fn what_dies_turns_red_without_a_reload_of_the_page() {
    let directory = TempDir::new().unwrap();
    let (authority, servers, router) = clusters(&directory);
    let browser = Browser::start(1100, 920, false);
    browser.open(&format!("http://{}/", router.admin()));
    eventually("it is shown", || text(&browser, "verdict").starts_with("Healthy: 2 routes, 4 endpoints"));
    eventually("all are known", || browser.eval("document.querySelectorAll('li.unknown').length") == 0);
    browser.eval("window.stays = true");
    eventually("the certificate is seen", || {
        text(&browser, "certificates").contains("does not cover prod.example.com")
    });
    assert!(text(&browser, "certificates").contains("expires in 4 d 23 h"), "{}", text(&browser, "certificates"));

    // Some traffic, and clients that are refused: also one that would like to be part of the page.
    for _ in 0..20 {
        get(router.address(), &authority, NAME, None).unwrap();
    }
    for name in [&b"unknown.example.com"[..], b"<img src=x onerror=alert(1)>"] {
        let mut client = Client::send(router.address(), &Hello::new().server_name(name).record());
        client.finish();
        client.rest();
    }
    servers[0].be(Mood::Status(500, "[-]etcd failed: reason withheld"));
    servers[1].be(Mood::Reset);
    eventually("the troubles are told", || {
        text(&browser, "verdict") == "1 endpoint is dead; 1 endpoint is unready. (2 routes, 4 endpoints)"
    });
    let red = browser.eval("[...document.querySelectorAll('#routes li.dead')].map((one) => [one.innerText, getComputedStyle(one).backgroundColor])");
    assert!(red[0][0].as_str().unwrap().starts_with(&format!("{} dead: ", servers[1].address())), "{red}");
    assert_eq!(red[0][1], "rgb(179, 38, 30)");
    eventually("the refusals are told", || {
        let refusals = text(&browser, "refusals");
        ["unknown_name", "malformed", "<img src=x onerror=alert(1)>"].iter().all(|word| refusals.contains(word))
    });
    let new_per_second = "document.querySelector('polyline')?.getAttribute('points')";
    let rises = || browser.eval(new_per_second).as_str().is_some_and(|points| points.contains(",1.0"));
    eventually("lines are drawn", rises);
    browser.open(&format!("http://{}/", router.admin()));
    browser.eval("window.stays = true");
    eventually("who comes later sees what was before", rises);
    eventually("and everything else", || text(&browser, "refusals").contains("unknown_name"));
    keep(&browser, "status-light.png");

    servers[0].be(Mood::Status(200, "ok"));
    servers[1].be(Mood::Status(200, "ok"));
    eventually("all is well again", || text(&browser, "verdict").starts_with("Healthy"));
    assert_eq!(browser.eval("window.stays"), true, "the page was never loaded again");
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}

#[test]
#[ignore = "needs chromedriver"]
fn a_reload_changes_what_is_shown_from_one_route_to_five_hundred() {
    let backend = Backend::named("served");
    let names: Vec<String> = (0..500).map(|number| format!("cluster{number:03}.example.com")).collect();
    let routes: Vec<(&str, SocketAddr)> = names.iter().map(|name| (name.as_str(), backend.address())).collect();
    let router = Router::start(&config(&routes[..1], ""));
    let browser = Browser::start(390, 844, true);
    browser.open(&format!("http://{}/", router.admin()));
    eventually("one", || text(&browser, "verdict") == "Healthy: 1 route, 1 endpoint.");
    assert!(text(&browser, "routes").contains("not contacted yet"), "nothing checks it, and nobody has asked for it");
    assert_eq!(browser.eval("matchMedia('(prefers-color-scheme: dark)').matches"), true);
    keep(&browser, "status-phone-dark.png");
    router.reload(&config(&routes, ""));
    eventually("all", || text(&browser, "verdict") == "Healthy: 500 routes, 500 endpoints.");
    assert_eq!(browser.eval("document.querySelectorAll('#routes tbody tr').length"), 500);
    let is_too_wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
    assert_eq!(browser.eval(is_too_wide), false, "at the width of a phone");
    browser.eval("document.querySelector('#routes tbody button').click()");
    assert_eq!(text(&browser, "drawer-title"), "cluster000.example.com");
    let is_within =
        "(() => { const drawer = document.getElementById('drawer'); return drawer.scrollWidth <= innerWidth; })()";
    assert_eq!(browser.eval(is_within), true);
    keep(&browser, "status-phone-route.png");
    browser.press(ESCAPE);
    router.reload(&config(&routes[..3], "nonsense: 1\n"));
    eventually("the refusal", || text(&browser, "verdict").starts_with("the last reload failed. (500 routes"));
    router.reload(&config(&routes[..3], ""));
    eventually("three", || text(&browser, "verdict") == "Healthy: 3 routes, 3 endpoints.");
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}

#[test]
#[ignore = "needs chromedriver"]
fn what_is_wrong_comes_first_and_hundreds_of_routes_can_be_filtered() {
    let backend = Backend::named("served");
    let route = |number: usize| {
        let endpoint = if number % 40 == 17 { free() } else { backend.address() };
        format!(
            "  - {{sni: cluster{number:03}.example.com, upstream: {{endpoints: \"{endpoint}\", \
             health_check: {{interval: 500ms, timeout: 500ms, fall: 1}}}}}}\n"
        )
    };
    let routes: String = (0..200).map(route).collect();
    let router = Router::start(&format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n{routes}"));
    let browser = Browser::start(1100, 920, false);
    browser.open(&format!("http://{}/", router.admin()));
    eventually("five are dead", || text(&browser, "verdict").starts_with("5 routes have no ready endpoint"));
    let names = || {
        browser.eval("[...document.querySelectorAll('#routes tbody tr:not([hidden]) th button')].map((one) => one.innerText).slice(0, 7)")
    };
    let broken = ["017", "057", "097", "137", "177"].map(|number| format!("cluster{number}.example.com"));
    eventually("the dead are first", || {
        names().as_array().unwrap()[..5].iter().zip(&broken).all(|(one, other)| one == other)
    });
    assert_eq!(names()[5], "cluster000.example.com", "then the order of the file");
    keep(&browser, "status-many.png");

    let show = |words: &str| {
        browser.eval(&format!(
            "(() => {{ const input = document.getElementById('filter'); input.value = '{words}'; input.dispatchEvent(new Event('input')); }})()"
        ));
        text(&browser, "matches")
    };
    assert_eq!(show("dead"), "5 of 200 routes");
    assert_eq!(show("Cluster05 dead"), "1 of 200 routes");
    assert_eq!(names(), serde_json::json!(["cluster057.example.com"]));
    assert_eq!(show("cluster19"), "10 of 200 routes");
    assert_eq!(show(&backend.address().to_string()), "195 of 200 routes");
    assert_eq!(show("nothing like it"), "0 of 200 routes");
    assert_eq!(show(""), "");
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}

#[test]
fn with_too_many_routes_those_in_trouble_are_shown() {
    let backend = Backend::named("served");
    let route = |number: usize| format!("  - {{sni: c{number}.example.com, upstream: \"{}\"}}\n", backend.address());
    let routes: String = (0..1001).map(route).collect();
    let last = format!(
        "  - {{sni: last.example.com, upstream: {{endpoints: \"{}\", health_check: {{interval: 100ms, fall: 1}}}}}}\n",
        free()
    );
    let router = Router::start(&format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n{routes}{last}"));
    let mut events = BufReader::new(TcpStream::connect(router.admin()).unwrap());
    events.get_ref().write_all(b"GET /api/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").unwrap();
    let mut line = String::new();
    let shown = eventual("it is dead", || {
        line.clear();
        events.read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(line.strip_prefix("data: ")?).ok()?;
        (event["status"]["summary"]["dead"] == 1).then(|| event["status"]["routes"].clone())
    });
    let names: Vec<&str> = shown.as_array().unwrap().iter().map(|route| route["name"].as_str().unwrap()).collect();
    assert_eq!((names.len(), names[0], names[1]), (1000, "last.example.com", "c0.example.com"));
}

#[test]
#[ignore = "needs chromedriver"]
fn a_route_opens_beside_the_list_and_says_where_a_name_goes() {
    let directory = TempDir::new().unwrap();
    let (authority, servers, router) = clusters(&directory);
    let browser = Browser::start(1100, 920, false);
    browser.open(&format!("http://{}/", router.admin()));
    eventually("it is shown", || text(&browser, "verdict").starts_with("Healthy: 2 routes, 4 endpoints"));
    for _ in 0..20 {
        get(router.address(), &authority, NAME, None).unwrap();
    }
    servers[3].be(Mood::Status(500, "[-]etcd failed: reason withheld"));
    let focused = "document.activeElement.innerText";
    let button = "[...document.querySelectorAll('#routes .name')].find((one) => one.innerText === 'prod.example.com')";
    browser.eval(&format!("{button}.focus()"));
    browser.press(ENTER);
    assert_eq!(text(&browser, "drawer-title"), OTHER);
    eventually("its endpoint", || {
        let endpoints = text(&browser, "drawer-endpoints");
        ["unready: ", "Not covered", "prod.example.com", "expires", " ago, took "]
            .iter()
            .all(|word| endpoints.contains(word))
    });
    assert!(text(&browser, "drawer-endpoints").contains(&servers[3].address().to_string()));

    let explain = |name: &str| {
        browser.eval(
            "(() => { const input = document.getElementById('explain-name'); input.value = ''; input.focus(); })()",
        );
        browser.press(name);
        browser.press(ENTER);
    };
    for (name, says) in [
        (OTHER, "Route prod.example.com, by prod.example.com."),
        (NAME, "Route dev.example.com, by dev.example.com – not this one."),
        (
            "unknown.example.com",
            "Refused with unknown_name: no route matches this name, and there is no catch-all route.",
        ),
        ("https://dev.example.com", "name: `https://dev.example.com`: this is a URL; write `dev.example.com`"),
        ("<img>", "name: `<img>`: the name has a character other than letters, digits, '-', '_' and '.'"),
    ] {
        explain(name);
        eventually("an answer", || text(&browser, "explanation").trim_end() == says);
    }
    let chart = |what: &str| browser.eval(&format!("document.querySelector('#drawer .chart'){what}"));
    eventually("two steps", || {
        chart(".querySelector('polyline').getAttribute('points')").as_str().is_some_and(|points| points.contains(' '))
    });
    chart(".focus()");
    let newest = chart(".getAttribute('aria-valuetext')");
    browser.press(LEFT);
    let before = chart(".getAttribute('aria-valuetext')");
    assert!(before != newest && before.as_str().unwrap().contains(" UTC: "), "{newest} {before}");
    keep(&browser, "status-route.png");
    browser.press(ESCAPE);
    assert_eq!(browser.eval("document.getElementById('drawer').open"), false);
    assert_eq!(browser.eval(focused), OTHER, "the focus is where it was");
    let complaints = browser.complaints();
    let is_refused = |entry: &Value| entry["message"].as_str().unwrap().contains("with a status of 400 (");
    assert!(complaints.len() == 2 && complaints.iter().all(is_refused), "the browser says so itself: {complaints:?}");
}

#[test]
#[ignore = "needs chromedriver"]
fn what_is_drained_is_no_fault_and_columns_are_sorted() {
    let backends = [Backend::echo(), Backend::echo()];
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("control.sock");
    let routes: Vec<(&str, SocketAddr)> = vec![
        ("b.example.com", backends[0].address()),
        ("a.example.com", backends[1].address()),
        ("c.example.com", backends[1].address()),
    ];
    let router = Router::start(&config(&routes, &format!("control: {}\n", socket.display())));
    let mut client = Client::send(router.address(), &Hello::new().server_name(b"c.example.com").record());
    client.read(1);
    let drained = snigate().args(["ctl", "--socket"]).arg(&socket).args(["drain", "b.example.com"]).status().unwrap();
    assert!(drained.success());

    let browser = Browser::start(1100, 920, true);
    browser.open(&format!("http://{}/", router.admin()));
    eventually("no fault", || text(&browser, "verdict") == "Healthy: 3 routes, 3 endpoints.");
    assert_eq!(text(&browser, "drained"), "1 endpoint is drained by an operator: no new connections.");
    let chip = browser.eval("document.querySelector('#routes .chip.drained').innerText");
    assert_eq!(chip, format!("{} drained", backends[0].address()));
    assert!(text(&browser, "routes").contains("all endpoints are drained: new connections are refused"));
    assert_eq!(text(&browser, "open"), "1");

    let sort = |column: &str| {
        browser.eval(&format!("document.querySelector('#routes [data-by={column}]').click()"));
        browser.eval(&format!(
            "[...document.querySelectorAll('#routes .name')].map((one) => one.innerText[0]).join('') + ' ' \
             + document.querySelector('#routes th:has([data-by={column}])').ariaSort"
        ))
    };
    assert_eq!(sort("route"), "abc ascending");
    assert_eq!(sort("route"), "cba descending");
    assert_eq!(sort("route"), "bac none", "the order of the file");
    assert_eq!(sort("open"), "cba descending");
    assert_eq!(browser.eval("document.querySelectorAll('[aria-sort=descending], [aria-sort=ascending]').length"), 1);
    keep(&browser, "status-drained-dark.png");
    let nameless = "[...document.querySelectorAll('button, input, table, dialog')].filter((one) => \
         !(one.innerText || one.labels?.length || one.caption || one.getAttribute('aria-labelledby') || one.closest('[aria-labelledby]'))).length";
    assert_eq!(browser.eval(nameless), 0, "everything has a name");
    let twice = "[...document.querySelectorAll('[id]')].filter((one, at, all) => all.findIndex((other) => other.id === one.id) !== at).length";
    assert_eq!(browser.eval(twice), 0, "no name is there twice");
    assert_eq!(browser.complaints(), Vec::<Value>::new());
}

#[test]
fn the_page_comes_alone_and_is_never_run_with_what_clients_sent() {
    let backend = Backend::named("served");
    let router = Router::routing(&[(NAME, backend.address())]);
    for (path, kind) in [
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/routes.js", "text/javascript"),
        ("/drawer.js", "text/javascript"),
        ("/parts.js", "text/javascript"),
    ] {
        let mut client = Client::send(
            router.admin(),
            format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n").as_bytes(),
        );
        let response = String::from_utf8(client.rest().0).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains(&format!("content-type: {kind}")), "{head}");
        assert!(head.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{head}");
        assert!(!body.contains("http://") || path == "/parts.js", "nothing from elsewhere");
        assert!(!body.contains("innerHTML"));
    }
}

#[test]
fn viewers_and_scrapers_do_not_keep_each_other_out() {
    let backend = Backend::named("served");
    let router = Router::routing(&[(NAME, backend.address())]);
    let view = || {
        let mut client = Client::send(router.admin(), b"GET /api/events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n");
        let status = String::from_utf8(client.read(12)).unwrap();
        (client, status)
    };
    // They never read on.
    let viewers: Vec<(Client, String)> = (0..8).map(|_| view()).collect();
    assert!(viewers.iter().all(|(_, status)| status == "HTTP/1.1 200"));
    assert_eq!(view().1, "HTTP/1.1 503");
    for _ in 0..50 {
        assert_eq!(router.get("/livez").0, 200);
    }
    drop(viewers);
    // Each leaves when it is noticed: the one that has found a place keeps it.
    let mut viewer = eventual("a place is free", || {
        let (client, status) = view();
        (status == "HTTP/1.1 200").then_some(client)
    });
    let seen = viewer.read_until("two events", |seen| String::from_utf8_lossy(seen).matches("data: {").count() >= 2);
    let seen = String::from_utf8(seen).unwrap();
    assert!(seen.contains("\"accepted\":0") && seen.contains(NAME), "{seen}");
    assert!(seen.contains("event: history\n"), "{seen}");
    let history: Value = serde_json::from_str(&router.get("/api/history").1).unwrap();
    assert_eq!(history["step_seconds"], 5);
    assert_eq!(history["routes"][NAME]["new_per_second"][0], 0.0);
}
