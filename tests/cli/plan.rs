//! `snigate plan`: what a reload would change.

use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use crate::support::backend::{closed, free};
use crate::support::network::{FAR, NEAR, Neighbour, alone};
use crate::support::tls::Authority;
use crate::support::{Backend, Client, Hello, PATIENCE, Router, eventually, snigate};

/// One listener, and routes with these upstreams.
fn text(routes: &[(&str, String)], more: &str) -> String {
    let routes: String =
        routes.iter().map(|(name, upstream)| format!("  - {{sni: {name}, upstream: {upstream}}}\n")).collect();
    format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n{routes}{more}")
}

fn endpoints(addresses: &[SocketAddr]) -> String {
    format!("{{endpoints: {:?}}}", addresses.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn plan(new: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new.yaml");
    std::fs::write(&path, new).unwrap();
    let ran = snigate().args(["plan", "-c"]).arg(&path).args(arguments).output().unwrap();
    let output = String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap();
    (ran.status.code(), output.replace(path.to_str().unwrap(), "new.yaml"))
}

#[test]
fn a_reload_does_what_plan_printed() {
    let (backend, accepted) = Backend::held();
    let (second, second_accepted) = Backend::held();
    let (one, two) = (backend.address(), second.address());
    let before = [
        ("stays.example", endpoints(&[one])),
        ("goes.example", endpoints(&[one])),
        ("keeps.example", format!("{{endpoints: \"{one}\", on_remove: keep}}")),
        ("changes.example", endpoints(&[one, two])),
    ];
    let router = Router::start(&text(&before, "timeouts: {drain: 1s}\n"));
    let admin = router.admin().to_string();
    let open = |name: &str, count: usize| -> Vec<Client> {
        (0..count).map(|_| Client::send(router.address(), &Hello::to(name).record())).collect()
    };
    let mut clients = open("goes.example", 3);
    clients.extend(open("keeps.example", 1));
    clients.extend(open("stays.example", 1));
    clients.extend(open("changes.example", 4));
    let _upstreams: Vec<TcpStream> = (0..7)
        .map(|_| accepted.recv_timeout(PATIENCE).unwrap())
        .chain((0..2).map(|_| second_accepted.recv_timeout(PATIENCE).unwrap()))
        .collect();
    let active = |name: &str| router.metric(&format!("snigate_connections_active{{route=\"{name}\"}}"));
    eventually("all", || active("changes.example") == 4.0 && active("goes.example") == 3.0);

    let three = free();
    let after = [
        ("stays.example", endpoints(&[one])),
        ("changes.example", endpoints(&[one, three])),
        ("comes.example", endpoints(&[one])),
    ];
    let new = text(&after, "timeouts: {drain: 1s}\n");
    let (code, output) = plan(&new, &["--admin", &admin]);
    assert_eq!(
        output,
        format!(
            "A reload to new.yaml would change (timeouts, limits and other settings are not compared):

listeners
    127.0.0.1:0  unchanged

routes
  ~ changes.example
      - {two}  2 open connections: closed after 1s
      + {three}
  + comes.example
  - goes.example  3 open connections: closed after 1s
  - keeps.example  1 open connection: not closed
    1 unchanged

connections that would be closed: 5
"
        )
    );
    assert_eq!(code, Some(0));
    assert_eq!(active("goes.example"), 3.0, "nothing has changed");
    let (code, as_json) = plan(&new, &["--admin", &admin, "--json", "--exit-code"]);
    assert_eq!(code, Some(2), "connections would be closed");
    assert_eq!(
        serde_json::from_str::<Value>(&as_json).unwrap(),
        serde_json::json!({
            "listeners": [{"address": "127.0.0.1:0", "change": "unchanged"}],
            "routes": [
                {
                    "route": "changes.example", "change": "changed", "endpoints_added": [three.to_string()],
                    "endpoints_changed": [],
                    "endpoints_removed": [{"endpoint": two.to_string(), "on_remove": "drain", "connections": 2}],
                },
                {"route": "comes.example", "change": "added"},
                {"route": "goes.example", "change": "removed", "on_remove": "drain", "connections": 3},
                {"route": "keeps.example", "change": "removed", "on_remove": "keep", "connections": 1},
            ],
            "admin": [],
            "routes_unchanged": 1,
            "drain_seconds": 1.0,
            "drained": [],
            "connections_closed": 5,
        })
    );
    let (code, _) = plan(&new, &["--from", router.config.to_str().unwrap(), "--exit-code"]);
    assert_eq!(code, Some(2), "they might be");

    let (_, from) = plan(&new, &["--from", router.config.to_str().unwrap()]);
    let mut uncounted = output.replace("\nconnections that would be closed: 5\n", "");
    for counted in ["1 open connection:", "2 open connections:", "3 open connections:"] {
        uncounted = uncounted.replace(counted, "open connections:");
    }
    assert_eq!(from, uncounted);

    router.reload(&new);
    router.wait_many("five were closed", 5, |line| line["outcome"] == "drained");
    assert_eq!((active("stays.example"), active("keeps.example"), active("changes.example")), (1.0, 1.0, 2.0));
    let (code, output) = plan(&new, &["--admin", &admin, "--exit-code"]);
    assert_eq!(code, Some(0), "nothing would be closed");
    assert!(output.ends_with("    3 unchanged\n\nconnections that would be closed: 0\n"), "{output}");
}

#[test]
fn endpoints_are_removed_as_the_running_configuration_says() {
    let (backend, accepted) = Backend::held();
    let (second, second_accepted) = Backend::held();
    let (one, two) = (backend.address(), second.address());
    let router = Router::start(&text(&[("a.example", endpoints(&[one, two]))], "timeouts: {drain: 1s}\n"));
    let _clients: Vec<Client> =
        (0..2).map(|_| Client::send(router.address(), &Hello::to("a.example").record())).collect();
    let _upstreams = [&accepted, &second_accepted].map(|accepted| accepted.recv_timeout(PATIENCE).unwrap());
    let keeps = format!("{{endpoints: \"{one}\", on_remove: keep}}");
    let new = text(&[("a.example", keeps)], "timeouts: {drain: 1s}\n");
    let admin = router.admin().to_string();
    eventually("it is counted", || {
        let (code, output) = plan(&new, &["--admin", &admin, "--exit-code"]);
        code == Some(2) && output.contains(&format!("- {two}  1 open connection: closed after 1s\n"))
    });
    router.reload(&new);
    router.wait("it is closed", |line| line["outcome"] == "drained" && line["upstream.address"] == two.to_string());
}

#[test]
fn the_file_of_the_running_instance_changes_nothing_wherever_plan_runs_and_whatever_options_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.write(directory.path(), "ca.pem");
    let path = directory.path().join("snigate.yaml");
    let upstream = "{endpoints: \"127.0.0.1:9\", health_check: {tls: {ca_file: ca.pem}}}".to_owned();
    std::fs::write(&path, text(&[("a.example", upstream)], "")).unwrap();
    let mut command = snigate();
    command.args(["run", "--log-format", "json", "-c"]).arg(&path);
    let router = Router::spawn(command, path, tempfile::tempdir().unwrap());
    let admin = router.admin().to_string();
    let planned = snigate()
        .args(["plan", "-c", "snigate.yaml", "--admin", &admin])
        .current_dir(directory.path())
        .output()
        .unwrap();
    let output = String::from_utf8([planned.stdout, planned.stderr].concat()).unwrap();
    assert_eq!(planned.status.code(), Some(0), "{output}");
    assert!(output.contains("    1 unchanged\n") && !output.contains("~ "), "{output}");
}

#[test]
fn a_route_is_unchanged_if_its_listener_is_and_changed_if_that_is_another() {
    let listener = |name: &str| format!("{{name: {name}, address: \"127.0.0.1:0\"}}");
    let text = |listen: &[&str], at: &str| {
        let listen: Vec<String> = listen.iter().map(|name| listener(name)).collect();
        format!(
            "listen: [{}]\nadmin: 127.0.0.1:0\nroutes:\n  - {{sni: a.example, listener: {at}, upstream: \"127.0.0.1:9\"}}\n",
            listen.join(", ")
        )
    };
    let router = Router::start(&text(&["one", "two"], "two"));
    let changed = |new: &str| router.reload(new)["changed"].as_u64().unwrap();
    assert_eq!(changed(&text(&["zero", "one", "two"], "two")), 0, "a listener before it");
    assert_eq!(changed(&text(&["zero", "two", "one"], "one")), 1, "the second of three in both");
}

#[test]
fn changed_listeners_and_rejected_reloads_are_printed() {
    let route = [("a.example", "\"127.0.0.1:1\"".to_owned())];
    let router = Router::start(&text(&route, ""));
    let admin = router.admin().to_string();
    let new = text(&route, "workers: 2\n").replace("127.0.0.1:0\nadmin", "127.0.0.2:6443\nadmin");
    let here = &free().to_string();
    let new = new.replace("127.0.0.2:6443", here);
    let (code, output) = plan(&new, &["--admin", &admin]);
    assert!(
        output.starts_with("snigate: a reload to new.yaml would be rejected: workers cannot be changed from auto to 2"),
        "{output}"
    );
    assert_eq!(code, Some(78), "`plan && kill -HUP` does not reload");
    let (code, output) = plan(&new.replace("workers: 2\n", ""), &["--admin", &admin]);
    let expected = format!(
        "  + {here}  starts listening\n  - 127.0.0.1:0  stops listening after draining its accept queue; open connections continue\n"
    );
    assert!(output.contains(&expected), "{output}");
    assert_eq!(code, Some(0));
    let by_name = format!("localhost:{}", router.admin().port());
    assert_eq!(plan(&new.replace("workers: 2\n", ""), &["--admin", &by_name]), (code, output));

    let occupied = Backend::named("another").address().to_string();
    let wanted = new.replace("workers: 2\n", "").replace(here, &occupied);
    let (code, output) = plan(&wanted, &["--admin", &admin]);
    assert!(output.contains(&format!("  + {occupied}  cannot listen: address already in use\n")), "{output}");
    let expected = format!("snigate: a reload to new.yaml would fail now: cannot listen on {occupied}: ");
    assert!(output.contains(&expected) && output.ends_with("; another process is listening on it\n"), "{output}");
    assert_eq!(code, Some(1));
    let (code, output) = plan(&wanted, &["--from", router.config.to_str().unwrap()]);
    let expected =
        format!("  + {occupied}  starts listening; on this machine that would fail: address already in use\n");
    assert!(output.contains(&expected) && code == Some(0), "{output}");
    let listening = |address: &str| new.replace("workers: 2\n", "").replace(here, address);
    let running = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(running.path(), listening("127.0.0.2:6443")).unwrap();
    let (code, output) = plan(&listening("0.0.0.0:6443"), &["--from", running.path().to_str().unwrap()]);
    assert!(
        code == Some(0) && output.contains("  + 0.0.0.0:6443"),
        "it overlaps with the address that it replaces: {output}"
    );

    let (code, output) = plan("listen: nonsense\n", &["--admin", &admin]);
    assert!(output.contains("new.yaml:1:9: listen: ") && code == Some(78), "{output}");
    let unreachable = closed().to_string();
    let (code, output) = plan(&new, &["--admin", &unreachable]);
    assert!(
        output.starts_with(&format!("snigate: cannot read the status from the admin listener at {unreachable}: ")),
        "{output}"
    );
    assert_eq!(code, Some(1));
    let (code, output) = plan(&new, &["--admin", &router.address().to_string()]);
    assert!(code == Some(1) && output.contains("cannot read the status"), "{output}");
    assert_eq!(plan(&new, &[]).0, Some(2));
}

#[test]
fn the_status_describes_the_running_configuration() {
    let backend = Backend::named("served");
    let router = Router::start(&text(&[("a.example", endpoints(&[backend.address(), closed()]))], ""));
    let (status, body) = router.get("/api/status");
    let value: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, value["version"].as_str()), (200, Some(env!("CARGO_PKG_VERSION"))));
    assert_eq!(
        (value["draining"].as_bool(), value["config"]["last_reload_successful"].as_bool()),
        (Some(false), Some(true))
    );
    assert_eq!(value["listeners"][0]["address"], router.address().to_string());
    let route = &value["routes"][0];
    assert_eq!((route["name"].as_str(), route["sni"][0].as_str()), (Some("a.example"), Some("a.example")));
    assert_eq!(route["upstream"].as_array().unwrap().len(), 2);
    let endpoint = &route["upstream"][0]["endpoints"][0];
    assert_eq!(
        (endpoint["address"].as_str(), endpoint["state"].as_str()),
        (Some(&*backend.address().to_string()), Some("ready"))
    );
    assert_eq!((&endpoint["known"], &endpoint["last_check"]), (&false.into(), &Value::Null));
    let digest = |router: &Router| {
        let status: Value = serde_json::from_str(&router.get("/api/status").1).unwrap();
        status["config"]["digest"].as_str().unwrap().to_owned()
    };
    let (first, content) = (digest(&router), std::fs::read_to_string(&router.config).unwrap());
    router.reload(&format!("{content}# another content\n"));
    assert_ne!(digest(&router), first);
    router.reload(&content);
    assert_eq!(digest(&router), first);
}

#[test]
#[ignore = "needs root, unshare and ip"]
fn another_machine_with_the_same_hostname_is_not_this_one() {
    let config = |listen: &str| {
        format!(
            "listen: {listen}\nadmin: {{address: 0.0.0.0:9000, allow_remote: true}}\nroutes: [{{sni: a, upstream: \"127.0.0.1:1\"}}]\n"
        )
    };
    let new = config(&format!("{FAR}:6443"));
    let neighbour = Neighbour::new();
    alone(&config("0.0.0.0:443"), &neighbour.link(), |_| {
        let _occupied = neighbour.inside(|| std::net::TcpListener::bind((FAR, 6443)).unwrap());
        let elsewhere = neighbour.inside(|| plan(&new, &["--admin", &format!("{NEAR}:9000")]));
        let expected =
            format!("  + {FAR}:6443  starts listening; on this machine that would fail: address already in use\n");
        assert!(elsewhere.1.contains(&expected) && elsewhere.0 == Some(0), "{elsewhere:?}");
        let here = plan(&config("10.9.0.9:6443"), &["--admin", &format!("{NEAR}:9000")]);
        assert!(here.1.contains("  + 10.9.0.9:6443  cannot listen: ") && here.0 == Some(1), "{here:?}");
    });
}

#[test]
fn a_new_admin_address_is_tested() {
    let backend = Backend::named("served");
    let routes = [("a.example", endpoints(&[backend.address()]))];
    let router = Router::start(&text(&routes, ""));
    let admin = router.admin().to_string();
    let with_admin =
        |address: SocketAddr| text(&routes, "").replace("admin: 127.0.0.1:0", &format!("admin: \"{address}\""));
    let (wanted, occupied) = (free(), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let (status, output) = plan(&with_admin(wanted), &["--admin", &admin]);
    assert_eq!(status, Some(0), "{output}");
    assert!(output.contains(&format!("  + {wanted}  admin: starts listening\n")), "{output}");
    assert!(output.contains("  - 127.0.0.1:0  admin: stops listening\n"), "{output}");

    let occupied = occupied.local_addr().unwrap();
    let (status, output) = plan(&with_admin(occupied), &["--admin", &admin]);
    assert_eq!(status, Some(1), "{output}");
    assert!(output.contains(&format!("  + {occupied}  admin: cannot listen: ")), "{output}");
    let refused = router.reload(&with_admin(occupied));
    assert!(refused["reason"].as_str().unwrap().contains("another process is listening on it"), "{refused}");
}
