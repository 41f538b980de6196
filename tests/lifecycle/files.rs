//! Included files, while they change.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::client::{End, alert};
use crate::support::{Backend, Client, Hello, Router};

const UNKNOWN: u8 = 112;

fn ask(router: &Router, name: &str) -> (Vec<u8>, End) {
    let mut client = Client::send(router.address(), &Hello::to(name).record());
    client.finish_if_open();
    client.rest()
}

fn served() -> (Vec<u8>, End) {
    (b"served".to_vec(), End::Fin)
}

fn refused(description: u8) -> (Vec<u8>, End) {
    (alert(description), End::Fin)
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
