//! The control socket itself, and those who misuse it.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use super::Operated;
use crate::lifecycle::upgrade::{UNBOUND, upgrade};
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, PATIENCE, Router, all_output, eventually, snigate};

const NAME: &str = "a.example";

/// Why it does not start with the socket there.
fn does_not_start(path: &Path) -> String {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("snigate.yaml");
    let text = config(&[(NAME, "127.0.0.1:1".parse().unwrap())], &format!("control: {}\n", path.display()));
    fs::write(&file, text).unwrap();
    let output = snigate().arg("run").arg("-c").arg(&file).output().unwrap();
    assert!(matches!(output.status.code(), Some(1 | 78)), "{output:?}");
    all_output(&output)
}

#[test]
fn e20_a_path_that_is_not_ours_is_refused() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("control.sock");
    fs::write(&path, "a file").unwrap();
    let told = does_not_start(&path);
    assert!(told.contains("control: ") && told.contains("exists and is not a socket"), "{told}");
    fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let told = does_not_start(&path);
    assert!(told.contains("another process listens there; each instance needs a path of its own"), "{told}");
    drop(other);
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    let told = does_not_start(&path);
    assert!(told.contains("and could put a socket of their own there"), "{told}");
    for long in ["relative.sock", &format!("/{}", "x".repeat(107)), "/"] {
        let told = does_not_start(Path::new(long));
        assert!(
            told.contains("expected an absolute path of at most 107 bytes, such as /run/snigate/control.sock"),
            "{told}"
        );
    }
}

#[test]
fn e20_a_socket_that_was_left_behind_is_replaced_and_only_its_user_may_connect() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("control.sock");
    drop(UnixListener::bind(&path).unwrap());
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let text = config(&[(NAME, "127.0.0.1:1".parse().unwrap())], &format!("control: {}\n", path.display()));
    let _router = Router::start(&text);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let output = snigate().arg("ctl").arg("--socket").arg(&path).arg("routes").output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
}

#[test]
fn e20_an_instance_that_cannot_be_reached_is_told() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("control.sock");
    let ctl = || {
        let output = snigate().arg("ctl").arg("--socket").arg(&path).arg("routes").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        all_output(&output)
    };
    let told = ctl();
    assert!(told.contains("there is no such socket; set `control: "), "{told}");
    drop(UnixListener::bind(&path).unwrap());
    let told = ctl();
    assert!(told.contains("no process listens there"), "{told}");
}

/// What `ctl` prints for this socket, whether it succeeds or not.
fn routes(path: &Path) -> String {
    all_output(&snigate().arg("ctl").arg("--socket").arg(path).arg("routes").output().unwrap())
}

#[test]
fn e20_an_upgrade_in_the_sandbox_serves_even_if_it_cannot_listen_for_operators() {
    let backend = Backend::echo();
    let text = config(&[(NAME, backend.address())], "");
    let operated = Operated::start(&text);
    let router = &operated.router;
    let elsewhere = operated.socket.with_file_name("elsewhere.sock");
    let told = router.reload(&format!("{text}control: {}\n", elsewhere.display()));
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("control cannot be changed from "), "{reason}");
    assert!(reason.ends_with(" by a reload; restart snigate"), "an upgrade stays in the sandbox: {reason}");
    upgrade(router);
    let told = router.wait("why not", |line| line["message"] == "operators cannot reach this process; restart snigate");
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.starts_with("control: ") && reason.contains("Permission denied"), "{reason}");
    Client::send(router.address(), &Hello::to(NAME).record()).read(1);
    assert!(!elsewhere.exists());
    assert!(routes(&elsewhere).contains("there is no such socket"));
}

#[test]
fn e20_an_upgrade_without_the_sandbox_listens_where_it_is_told_and_again_if_the_file_is_gone() {
    let backend = Backend::echo();
    let text = config(&[(NAME, backend.address())], UNBOUND);
    for (name, is_gone) in [("control.sock", true), ("elsewhere.sock", false)] {
        let operated = Operated::start(&text);
        let (router, socket) = (&operated.router, operated.socket.with_file_name(name));
        if is_gone {
            fs::remove_file(&operated.socket).unwrap();
        }
        fs::write(&router.config, format!("{text}control: {}\n", socket.display())).unwrap();
        upgrade(router);
        assert!(routes(&socket).contains(NAME), "{name}: {}", routes(&socket));
    }
}

fn send(operated: &Operated, request: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(&operated.socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).unwrap();
    stream
}

fn response(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    // It may be closed with unread bytes.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn e20_garbage_half_requests_and_crowds_do_not_keep_others_out() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&[(NAME, backend.address())], ""));
    let told = response(send(&operated, b"\x16\x03\x01garbage\r\n\r\n"));
    assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
    let head = "host: s\r\nconnection: close\r\n\r\n";
    for (request, status) in [
        ("GET /close HTTP/1.1\r\n", 405),
        ("POST /connections HTTP/1.1\r\n", 405),
        ("POST /close HTTP/1.1\r\n", 400),
        ("POST /close?all=perhaps HTTP/1.1\r\n", 400),
        ("POST /close?all=true&rate=0 HTTP/1.1\r\n", 400),
        ("POST /close?all=true&all=true HTTP/1.1\r\n", 400),
        ("POST /drain HTTP/1.1\r\n", 400),
        ("POST /drain?route=a.example&endpoint=nowhere HTTP/1.1\r\n", 400),
        ("POST /drain?route=unknown HTTP/1.1\r\n", 409),
        ("POST /log-level?level=loud HTTP/1.1\r\n", 400),
        ("POST /reload?x=y HTTP/1.1\r\n", 400),
        ("DELETE /nothing HTTP/1.1\r\n", 404),
        ("GET /connections?sort=size HTTP/1.1\r\n", 400),
        ("GET /livez HTTP/1.1\r\n", 200),
        ("GET /metrics HTTP/1.1\r\n", 200),
    ] {
        let told = response(send(&operated, format!("{request}{head}").as_bytes()));
        assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {told}");
    }
    // Far more than there are places for; none says all it has to.
    let _crowd: Vec<UnixStream> = (0..100).map(|_| send(&operated, b"POST /close?all=tr")).collect();
    assert!(operated.says(&["routes"]).contains(NAME));
    let mut client = Client::send(operated.router.address(), &Hello::to(NAME).record());
    client.read(1);
    assert!(!operated.router.log().iter().any(|line| line["verb"] == "close"));
}

#[test]
fn the_socket_has_the_history_and_the_address_of_the_admin_listener() {
    let backend = Backend::echo();
    let without = config(&[(NAME, backend.address())], "").replace("admin: 127.0.0.1:0\n", "");
    let operated = Operated::start(&without);
    let get = |path: &str| -> Value {
        let request = format!("GET {path} HTTP/1.0\r\nhost: localhost\r\ncache-control: no-cache\r\n\r\n");
        let told = response(send(&operated, request.as_bytes()));
        let (_, body) = told.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap()
    };
    eventually("a step of the route", || get("/api/history")["routes"][NAME]["new_per_second"][0] == 0.0);
    assert_eq!(get("/api/status")["admin"], Value::Null);
    let with = operated.with_socket(&config(&[(NAME, backend.address())], ""));
    assert_eq!(operated.router.reload(&with)["message"], "reloaded");
    assert_eq!(get("/api/status")["admin"], "127.0.0.1:0");
}

#[test]
fn e20_who_does_not_read_keeps_nobody_out() {
    let backend = Backend::echo();
    let operated = Operated::start(&config(&[(NAME, backend.address())], ""));
    let _unread: Vec<UnixStream> =
        (0..8).map(|_| send(&operated, &b"GET /metrics HTTP/1.1\r\nhost: s\r\n\r\n".repeat(20))).collect();
    assert!(operated.says(&["connections"]).contains("0 match"));
}
