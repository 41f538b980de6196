//! Included files and lists of networks, while they change.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::client::{End, ask_from, refused, served};
use crate::support::{Backend, Router};

const DENIED: u8 = 49;
const UNKNOWN: u8 = 112;

fn ask(router: &Router, name: &str) -> (Vec<u8>, End) {
    ask_from("127.0.0.1", router.address(), name)
}

fn route(name: &str, more: &str, upstream: SocketAddr) -> String {
    format!("routes:\n  - {{sni: {name}, {more}upstream: \"{upstream}\"}}\n")
}

fn main_file(more: &str, upstream: SocketAddr) -> String {
    format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\n{more}{}", route("main.example", "", upstream))
}

fn directory(router: &Router) -> PathBuf {
    router.config.parent().unwrap().to_path_buf()
}

/// Replaces a file or link by rename.
fn put(path: &Path, make: impl FnOnce(&Path)) {
    let new = path.with_file_name("..new");
    make(&new);
    fs::rename(new, path).unwrap();
}

fn reloaded(router: &Router, count: usize) -> Value {
    router.wait_many("the reload", count, |line| line["message"] == "reloaded").pop().unwrap()
}

fn failed(router: &Router, count: usize) -> String {
    let told = router
        .wait_many("the failure", count, |line| line["message"] == "reload failed; keeping the running configuration");
    told[count - 1]["reason"].as_str().unwrap().to_owned()
}

fn digest(router: &Router) -> String {
    let status: Value = serde_json::from_str(&router.get("/api/status").1).unwrap();
    status["config"]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn g16_included_files_are_loaded_as_they_come_change_and_go() {
    let backend = Backend::named("served");
    let router = Router::start(&main_file("watch: true\ninclude: routes.d/*.yaml\n", backend.address()));
    let warning = router.wait("that there is none", |line| line["message"] == "include matches no file");
    assert_eq!((warning["level"].as_str(), warning["include"].as_str()), (Some("WARN"), Some("routes.d/*.yaml")));
    let before = digest(&router);

    // As a ConfigMap is mounted.
    let routes = directory(&router).join("routes.d");
    for (version, name) in [("..1", "one.example"), ("..2", "two.example")] {
        fs::create_dir_all(routes.join(version)).unwrap();
        fs::write(routes.join(version).join("a.yaml"), route(name, "", backend.address())).unwrap();
    }
    symlink("..1", routes.join("..data")).unwrap();
    symlink("..data/a.yaml", routes.join("a.yaml")).unwrap();
    let told = reloaded(&router, 1);
    assert_eq!((told["by"].as_str(), told["added"].as_u64()), (Some("watch"), Some(1)));
    assert_eq!(ask(&router, "one.example"), served());
    let with_one = digest(&router);
    assert_ne!(with_one, before, "the digest is of all files");

    put(&routes.join("..data"), |new| symlink("..2", new).unwrap());
    reloaded(&router, 2);
    assert_eq!(ask(&router, "one.example"), refused(UNKNOWN));
    assert_eq!(ask(&router, "two.example"), served());
    assert_ne!(digest(&router), with_one);

    put(&routes.join("b.yaml"), |new| fs::write(new, route("three.example", "", backend.address())).unwrap());
    reloaded(&router, 3);
    assert_eq!(ask(&router, "three.example"), served());

    // As a whole or not at all.
    put(&routes.join("a.yaml"), |new| fs::write(new, route("four.example", "", backend.address())).unwrap());
    reloaded(&router, 4);
    let three = route("three.example", "", backend.address());
    put(&routes.join("c.yaml"), |new| fs::write(new, &three).unwrap());
    let reason = failed(&router, 1);
    let [b, c] = ["b.yaml", "c.yaml"].map(|name| routes.join(name).display().to_string());
    assert!(
        reason.starts_with(&format!("{c}:2:5: routes[0]: ")) && reason.contains(&format!("routes[0] of {b}:2")),
        "{reason}"
    );
    assert_eq!(ask(&router, "four.example"), served());
    put(&routes.join("c.yaml"), |new| fs::write(new, three.replace("three", "five")).unwrap());
    reloaded(&router, 5);
    assert_eq!(ask(&router, "five.example"), served());

    fs::remove_file(routes.join("b.yaml")).unwrap();
    assert_eq!(reloaded(&router, 6)["removed"], 1);
    assert_eq!(ask(&router, "three.example"), refused(UNKNOWN));
}

#[test]
fn g16_a_directory_that_is_lost_does_not_remove_its_routes() {
    let backend = Backend::named("served");
    let router = Router::start(&main_file("watch: true\ninclude: routes.d/*.yaml\n", backend.address()));
    let routes = directory(&router).join("routes.d");
    let new = directory(&router).join("new");
    fs::create_dir(&new).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(new.join(format!("{name}.yaml")), route(&format!("{name}.example"), "", backend.address())).unwrap();
    }
    fs::rename(&new, &routes).unwrap();
    reloaded(&router, 1);
    fs::rename(&routes, &new).unwrap();
    assert!(failed(&router, 1).contains("the change removes 3 of 4 routes"));
    assert_eq!(ask(&router, "a.example"), served());
    // It returns with one route more.
    fs::write(new.join("d.yaml"), route("d.example", "", backend.address())).unwrap();
    fs::rename(&new, &routes).unwrap();
    assert_eq!(reloaded(&router, 2)["added"], 1);
    assert_eq!(ask(&router, "a.example"), served());
}

/// A hundred thousand networks, of which the first is this.
fn list(first: &str) -> String {
    let network = |number: u32| {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number * 512);
        let wide = std::net::Ipv6Addr::from((0x2001_0db8_u128 << 96) | (u128::from(number) << 65));
        format!("{address}/24 # and\n{wide}/64\n")
    };
    let networks: String = (0..49_999).map(network).collect();
    format!("{first}\n# the rest\n{networks}127.0.0.3\n")
}

#[test]
fn g17_a_list_of_networks_is_read_once_for_all_routes_and_watched() {
    let backend = Backend::named("served");
    let names: Vec<String> = (0..300).map(|number| format!("n{number}.example")).collect();
    let routes: String = names
        .iter()
        .map(|name| format!("  - {{sni: {name}, deny: {{file: blocked}}, upstream: \"{}\"}}\n", backend.address()))
        .collect();
    let text = main_file("watch: true\n", backend.address()) + &routes;
    let router = Router::start(&text.replace("{file: blocked}", "127.0.0.2"));
    assert_eq!(ask_from("127.0.0.2", router.address(), "n7.example"), refused(DENIED));
    let before = router.memory();

    let path = directory(&router).join("blocked");
    fs::write(&path, list("127.0.0.4")).unwrap();
    assert_eq!(router.reload(&text)["message"], "reloaded");
    for (client, is_served) in [("127.0.0.2", true), ("127.0.0.3", false), ("127.0.0.4", false)] {
        assert_eq!(ask_from(client, router.address(), "n7.example") == served(), is_served, "{client}");
    }
    let grown = router.memory() - before;
    assert!(grown < f64::from(48 << 20), "{grown} bytes; 300 copies would be 600 MB");

    // With a bad line, the old list stays.
    let good = list("127.0.0.5");
    let bad: String = good
        .lines()
        .enumerate()
        .map(|(index, line)| if index == 69_999 { "10.0.0.0/33\n".into() } else { format!("{line}\n") })
        .collect();
    put(&path, |new| fs::write(new, bad).unwrap());
    let reason = failed(&router, 1);
    assert!(
        reason.contains(&format!("routes[1].deny: {}:70000: `10.0.0.0/33`: expected a network", path.display())),
        "{reason}"
    );
    assert_eq!(ask_from("127.0.0.4", router.address(), "n7.example"), refused(DENIED));
    assert_eq!(ask_from("127.0.0.5", router.address(), "n7.example"), served());
    put(&path, |new| fs::write(new, good).unwrap());
    assert_eq!(reloaded(&router, 2)["changed"], 300);
    assert_eq!(ask_from("127.0.0.4", router.address(), "n7.example"), served());
    assert_eq!(ask_from("127.0.0.5", router.address(), "n299.example"), refused(DENIED));
    // A missing list is no empty list.
    fs::remove_file(&path).unwrap();
    let told = router.wait("that it is missing", |line| {
        line["message"] == "cannot read a watched file; keeping the running configuration"
    });
    assert_eq!(told["file"], path.display().to_string());
    assert!(router.reload_as_it_is()["reason"].as_str().unwrap().contains("blocked: No such file"));
    assert_eq!(ask_from("127.0.0.5", router.address(), "n7.example"), refused(DENIED));
}
