//! What the running process may still do.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::backend::free;
use crate::support::router::config;
use crate::support::{Backend, Client, Hello, Router, eventually, snigate};

const NAME: &str = "a.example";

fn is_served(address: std::net::SocketAddr) -> bool {
    let mut client = Client::send(address, &Hello::to(NAME).record());
    client.finish_if_open();
    client.rest().0 == b"served"
}

/// `CAP_NET_BIND_SERVICE` and `CAP_NET_ADMIN`, by their bits.
const BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;

#[test]
#[ignore = "needs root, to have capabilities"]
fn b33_the_sandbox_keeps_net_admin_only_for_routes_with_the_clients_address() {
    let backend = Backend::named("served");
    let ordinary = config(&[(NAME, backend.address())], "");
    let transparent = ordinary.replace(
        &format!("upstream: \"{}\"", backend.address()),
        &format!("upstream: {{endpoints: \"{}\", source: client}}", backend.address()),
    );
    let effective = |router: &Router| {
        let status = fs::read_to_string(format!("/proc/{}/status", router.pid().as_raw_nonzero())).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        u64::from_str_radix(value.trim(), 16).unwrap()
    };
    let router = Router::start(&transparent);
    assert_eq!(effective(&router), BIND_SERVICE | NET_ADMIN);
    assert!(is_served(router.address()), "from the client's own address, with another port");

    let router = Router::start(&ordinary);
    assert_eq!(effective(&router), BIND_SERVICE);
    let line = router.reload(&transparent);
    let reason = line["reason"].as_str().unwrap();
    assert!(reason.contains("requires CAP_NET_ADMIN, and this process does not have it"), "{line}");
    assert!(is_served(router.address()), "the old configuration is kept");
}

#[test]
fn no_thread_has_more_than_it_needs() {
    let backend = Backend::named("served");
    let router = Router::routing(&[(NAME, backend.address())]);
    assert!(is_served(router.address()));
    let process = Path::new("/proc").join(router.pid().as_raw_nonzero().to_string());
    let threads: Vec<_> = fs::read_dir(process.join("task")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(threads.len() > 2, "{threads:?}");
    for thread in threads {
        let status = fs::read_to_string(thread.join("status")).unwrap();
        let value = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        assert_eq!(value("NoNewPrivs:"), "1", "{status}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            let capabilities = u64::from_str_radix(&value(set), 16).unwrap();
            assert_eq!(capabilities & !BIND_SERVICE, 0, "only CAP_NET_BIND_SERVICE: {set} in {status}");
        }
    }
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
}

/// Whether a binary that takes over can write a file; it is started by the process that is asked.
fn can_write(sandbox: &str) -> bool {
    let backend = Backend::named("served");
    let directory = TempDir::new().unwrap();
    let (binary, path, written) =
        (directory.path().join("snigate"), directory.path().join("snigate.yaml"), directory.path().join("written"));
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_snigate"), &binary).unwrap();
    let text = format!("sandbox: {sandbox}\n");
    fs::write(&path, config(&[(NAME, backend.address())], &text)).unwrap();
    let mut command = snigate();
    command = {
        let mut linked = std::process::Command::new(&binary);
        linked
            .envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))))
            .stdin(std::process::Stdio::null());
        linked.args(["run", "-c"]).arg(&path);
        linked
    };
    let router = Router::spawn(command, path, directory);
    router.wait("that it listens", |line| line["message"] == "listening");
    fs::remove_file(&binary).unwrap();
    let script = format!("#!/bin/sh\nexec 2>/dev/null\necho x > {}\nexit 3\n", written.display());
    fs::write(&binary, script).unwrap();
    fs::set_permissions(&binary, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    router.signal(Signal::USR2);
    router.wait("that it was no snigate", |line| {
        line["message"].as_str().is_some_and(|message| message.starts_with("upgrade failed"))
    });
    assert!(is_served(router.address()));
    written.exists()
}

#[test]
fn it_cannot_write_files_nor_can_what_it_starts() {
    assert!(can_write("off"), "otherwise this test would see nothing");
    assert!(!can_write("auto"));
}

#[test]
fn a_reload_still_reads_files_and_listens_on_low_ports() {
    let backend = Backend::named("served");
    let routes = [(NAME, backend.address())];
    let router = Router::routing(&routes);
    let listen = format!("listen: [127.0.0.1:0, {{name: low, address: \"{}:443\"}}]", free().ip());
    router.reload(&config(&routes, "").replace("listen: 127.0.0.1:0", &listen));
    let low = router.address_of(|name| name == "low");
    eventually("it is served there", || is_served(low));
    let told = router.reload(&config(&routes, "sandbox: off\n"));
    assert!(told["reason"].as_str().unwrap().contains("sandbox cannot be changed from auto to off"), "{told}");
}
