//! Listeners at addresses that no interface has yet.

use std::net::{SocketAddr, TcpStream};

use crate::support::network::{Neighbour, shell};
use crate::support::{Backend, Client, Hello, Router, all_output, snigate};

const NAME: &str = "a.example";

fn is_served(address: &str) {
    let mut client = Client::send(address.parse().unwrap(), &Hello::to(NAME).record());
    client.finish();
    assert_eq!(client.rest().0, b"served", "{address}");
}

fn config(upstream: SocketAddr, more: &str) -> String {
    let of = |address: &str| format!("{{address: \"{address}\"{more}}}");
    format!(
        "listen: [{}, {}]\nroutes:\n  - {{sni: {NAME}, upstream: \"{upstream}\"}}\n",
        of("10.96.0.1:6443"),
        of("[fd00::1]:6443")
    )
}

#[test]
#[ignore = "needs root for network namespaces"]
fn an_address_may_come_later_and_go_and_return() {
    Neighbour::new().inside(|| {
        let backend = Backend::named("served");
        let router = Router::start(&config(backend.address(), ", freebind: true"));
        assert!(TcpStream::connect("10.96.0.1:6443").is_err(), "nobody has the address");
        for _ in 0..2 {
            shell("ip address add 10.96.0.1/32 dev lo && ip address add fd00::1/128 dev lo nodad");
            is_served("10.96.0.1:6443");
            is_served("[fd00::1]:6443");
            shell("ip address delete 10.96.0.1/32 dev lo && ip address delete fd00::1/128 dev lo");
            assert!(TcpStream::connect("10.96.0.1:6443").is_err());
        }
        // A reload adds another such listener, and says why it does not add one that must be there.
        let listen = |more: &str| {
            config(backend.address(), ", freebind: true")
                .replace("listen: [", &format!("listen: [{{name: more, address: \"10.96.0.2:6443\"{more}}}, "))
        };
        let told = router.reload(&listen(""));
        assert!(told["reason"].as_str().unwrap().contains("set `freebind` on the listener"), "{told}");
        assert_eq!(router.reload(&listen(", freebind: true"))["message"], "reloaded");
        shell("ip address add 10.96.0.2/32 dev lo");
        is_served("10.96.0.2:6443");
    });
}

#[test]
fn without_freebind_the_start_fails_and_the_error_says_what_to_set() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("snigate.yaml");
    // No machine has it (RFC 5737).
    let text = config(([127, 0, 0, 1], 1).into(), "").replace("10.96.0.1", "192.0.2.1");
    std::fs::write(&path, text).unwrap();
    let output = snigate().args(["run", "-c"]).arg(&path).output().unwrap();
    let told = all_output(&output);
    assert!(!output.status.success(), "{told}");
    assert!(told.contains("cannot listen on 192.0.2.1:6443"), "{told}");
    assert!(told.contains("set `freebind` on the listener if one will have it later"), "{told}");
}
