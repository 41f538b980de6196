//! Translations compared with HAProxy and nginx: known results, and generated configurations that both serve.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::support::{Backend, Hello, PATIENCE, Process, Router, all_output, eventually, snigate};

/// The same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % end
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

/// The exit code, standard output and standard error.
fn import(from: &str, source: &str, arguments: &[&str], files: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let directory = TempDir::new().unwrap();
    for (name, text) in files.iter().chain(&[("source", source)]) {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let mut command = snigate();
    let output = command.args(["import", from, "source"]).args(arguments).current_dir(&directory).output().unwrap();
    let [text, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.code(), text, error)
}

fn check(text: &str) -> bool {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, text).unwrap();
    snigate().arg("check").arg(&path).output().unwrap().status.success()
}

/// What `explain` says about a client.
fn explain(text: &str, name: &str) -> String {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("snigate.yaml");
    std::fs::write(&path, text).unwrap();
    let output = snigate().arg("explain").arg("-c").arg(&path).args(["--sni", name]).output().unwrap();
    all_output(&output)
}

const FRONT: &str = "defaults\n mode tcp\nfrontend f\n bind :6443\n tcp-request inspect-delay 5s
 tcp-request content reject if !{ req_ssl_hello_type 1 }\n";
const BACK: &str = "\nbackend one\n server s 10.0.0.1:6443\nbackend two\n server s 10.0.0.2:6443\n";

/// Each needs no `--lossy`, and is followed by the endpoints that names are routed to.
#[test]
fn rules_with_an_exact_translation() {
    let files = [("a.lst", "a.example\n"), ("b.lst", "b.example\n"), ("to.map", "a.example one\nb.example two\n")];
    for (rules, routed) in [
        (
            "acl ok req.ssl_sni -i a.example\n acl ok req.ssl_sni -m end -i .b.example\n tcp-request content reject if !ok\n default_backend one",
            &[("a.example", "10.0.0.1"), ("x.b.example", "10.0.0.1"), ("b.example", ""), ("z.example", "")][..],
        ),
        (
            "acl l req.ssl_sni -i -f a.lst -f b.lst\n use_backend one if l\n default_backend two",
            &[("a.example", "10.0.0.1"), ("b.example", "10.0.0.1"), ("c.example", "10.0.0.2")],
        ),
        (
            "tcp-request content set-var(req.be) req.ssl_sni,lower,map_str(to.map)\n use_backend %[var(req.be)] if { var(req.be) -m found }\n default_backend two",
            &[("a.example", "10.0.0.1"), ("b.example", "10.0.0.2"), ("c.example", "10.0.0.2")],
        ),
        (
            "use_backend two if { req.ssl_sni -m reg -i ^(api|www)\\.x\\.example$ }\n use_backend one if { req.ssl_sni -m reg \\.x\\.example$ }\n default_backend two",
            &[("api.x.example", "10.0.0.2"), ("y.x.example", "10.0.0.1"), ("x.example", "10.0.0.2")],
        ),
        (
            "use_backend two if !{ req.ssl_sni -i a.example }\n default_backend one",
            &[("a.example", "10.0.0.1"), ("b.example", "10.0.0.2")],
        ),
        (
            "use_backend one if { req.ssl_sni -i a.example } { src 192.0.2.0/24 }\n use_backend two if { req.ssl_sni -i b.example }",
            &[("a.example", "10.0.0.1"), ("b.example", "10.0.0.2")],
        ),
    ] {
        let (code, text, error) = import("haproxy", &format!("{FRONT} {rules}{BACK}"), &[], &files);
        assert_eq!(code, Some(0), "{rules}\n{error}");
        for (name, expected) in routed {
            let output = explain(&text, name);
            let is_right = if expected.is_empty() { !output.contains("10.0.0.") } else { output.contains(expected) };
            assert!(is_right, "{name} of\n{rules}\nin\n{text}\n{output}");
        }
    }
}

/// Each with a part of the result, without `--lossy`.
#[test]
fn settings_that_translate_to_others() {
    let to = "map $ssl_preread_server_name $s { a.example one; default rest; } map $s $up { one 10.0.0.1:1; rest 10.0.0.2:1; }";
    for (from, source, expected) in [
        ("nginx", format!("stream {{ {to} server {{ listen 443; ssl_preread on; proxy_pass $up; }} }}"), "sni: a.example\n    upstream: 10.0.0.1:1"),
        ("nginx", format!("stream {{ {to} server {{ listen 443 proxy_protocol; set_real_ip_from 10.0.0.0/8; ssl_preread on; proxy_pass $up; }} }}"), "accept_proxy: {from: [10.0.0.0/8]}"),
        ("nginx", "stream { map $ssl_preread_alpn_protocols $up { ~\\bacme-tls/1\\b 10.0.0.1:1; default 10.0.0.2:1; } server { listen 443; ssl_preread on; proxy_pass $up; } }".into(), "alpn: [acme-tls/1]\n    upstream: 10.0.0.1:1"),
        ("nginx", "stream { limit_conn_zone $binary_remote_addr zone=z:1m; server { listen 443; limit_conn z 7; proxy_pass 10.0.0.1:1; } }".into(), "per_source: 7"),
        ("nginx", "stream { server { listen 443; server_name a.example; proxy_pass 10.0.0.1:1; } }".into(), "- name: 10.0.0.1:1-default\n    upstream: 10.0.0.1:1"),
        ("nginx", "stream { geo $ok { default 0; 10.0.0.0/8 1; 10.9.0.0/16 0; } map $ok $up { 1 10.0.0.1:1; default \"\"; } server { listen 443; proxy_pass $up; } }".into(), "allow: [10.0.0.0/8]\n    deny: [10.9.0.0/16]"),
        ("haproxy", format!("{FRONT} stick-table type ip size 1m store conn_cur\n tcp-request connection track-sc0 src\n tcp-request connection reject if {{ sc0_conn_cur gt 9 }}\n default_backend one{BACK}"), "per_source: 9"),
        ("haproxy", format!("{FRONT} default_backend own{BACK}backend own\n server s 127.0.0.1:9443 send-proxy\nfrontend tls\n mode http\n bind 127.0.0.1:9443 accept-proxy ssl crt x\n default_backend one\n"), "- 127.0.0.1:9443\n      proxy_protocol: v1"),
        ("haproxy", format!("{FRONT} default_backend many{BACK}backend many\n use-server s2 if {{ req.ssl_sni -i a.example }}\n server s1 10.0.0.8:1\n server s2 10.0.0.9:1\n"), "sni: a.example\n    upstream: 10.0.0.9:1"),
        ("haproxy", format!(".if !version_atleast(2.0)\nfrontend old\n bind :1\n default_backend two\n.else\n{FRONT} default_backend one\n.endif{BACK}"), "listen: 0.0.0.0:6443"),
    ] {
        let (code, text, error) = import(from, &source, &[], &[]);
        assert!(code == Some(0) && text.contains(expected), "{expected} of\n{source}\nin\n{text}{error}");
    }
}

/// Without it nothing is written, and the error names the line.
#[test]
fn differences_for_clients_need_lossy() {
    for (rules, line) in [
        ("tcp-request content reject if { req.ssl_sni -m reg ^x[0-9] }\n default_backend one", "line 7"),
        ("use_backend one if { req.ssl_ver 3.0 }\n default_backend two", "line 7"),
        ("use_backend one if { req.ssl_alpn -m str h2 }\n default_backend two", "line 7"),
        (
            "use_backend one if { req.ssl_alpn -m sub h2 }\n use_backend two if { req.ssl_alpn -m sub acme-tls/1 }\n default_backend one",
            "line 8",
        ),
        ("use_backend one if { req.ssl_sni -m reg ^[^.]+\\.x\\.example$ }\n default_backend two", "line 7"),
        ("tcp-request content reject if !{ req.ssl_sni -m found }\n default_backend two", "line 7"),
        ("use_backend one if { req.ssl_sni a.example }\n default_backend srv", "line 8"),
    ] {
        let source = format!("{FRONT} {rules}{BACK}backend srv\n server-template s 3 _api._tcp.x.example check\n");
        let (code, text, error) = import("haproxy", &source, &[], &[]);
        assert_eq!((code, text.as_str()), (Some(1), ""), "{rules}");
        assert!(error.contains("--lossy") && error.contains(&format!("\n  {line}: ")), "{rules}\n{error}");
        let (code, text, _) = import("haproxy", &source, &["--lossy"], &[]);
        assert_eq!(code, Some(0), "{rules}");
        let head = text.split("\nlisten:").next().unwrap();
        assert!(head.contains(&format!("\n# {line}: ")), "{text}");
    }
    let nginx = "stream { server { listen 443; include deny.conf; proxy_pass 10.0.0.1:6443; } }";
    let (code, _, error) = import("nginx", nginx, &[], &[]);
    assert!(code == Some(1) && error.contains("`include deny.conf`"), "{error}");
    let (code, text, error) = import("nginx", nginx, &[], &[("deny.conf", "deny 10.9.0.0/16;\n")]);
    assert!(code == Some(0) && text.contains("deny: [10.9.0.0/16]"), "{text}{error}");
    let dump = format!(
        "nginx: the configuration file /etc/nginx/nginx.conf syntax is ok\n# configuration file /etc/nginx/nginx.conf:\n{nginx}\n\n# configuration file /etc/nginx/deny.conf:\ndeny 10.9.0.0/16;\n"
    );
    let (code, text, error) = import("nginx", &dump, &[], &[]);
    assert!(code == Some(0) && text.contains("deny: [10.9.0.0/16]"), "{text}{error}");
}

/// Titles of notes at the top.
const ADMITTED: &str = "\n# Clients that the source rejects and snigate admits:\n";
const REJECTED: &str = "\n# Clients that snigate rejects, or routes to another upstream than the source:\n";

const NAMES: [&str; 8] =
    ["a.example", "b.example", "x.a.example", "y.x.a.example", "x.b.example", "ab.example", "c.other", ""];
const BACKENDS: [&str; 3] = ["one", "two", "rest"];

/// `hosts`: where it listens.
fn haproxy_test(random: &mut Random, hosts: &[String; 2]) -> String {
    let not = random.of(&["", "", "!"]);
    let test = match random.below(10) {
        0 | 1 => format!("req.ssl_sni -i {}", random.of(&NAMES[..7])),
        2 => format!("req.ssl_sni -i -m end {}", random.of(&[".a.example", ".b.example", ".x.a.example", "b.example"])),
        3 => format!("req.ssl_sni -i {} {}", random.of(&NAMES[..7]), random.of(&NAMES[..7])),
        4 => format!(
            "src {}",
            random.of(&[
                "127.0.0.1",
                "127.0.0.0/24",
                "127.0.0.2 10.0.0.0/8",
                "127.0.0.3",
                "127.0.0.0/9",
                "127.0.0.0/8"
            ])
        ),
        5 => format!(
            "req.ssl_sni -m reg -i {}",
            random.of(&["\\.a\\.example$", "^(a|b)\\.example$", "^[^.]+\\.a\\.example$", "^x\\."])
        ),
        6 => format!("req.ssl_sni -m {}", random.of(&["found", "beg x.", "sub x.a", "dom a.example"])),
        7 => format!("req.ssl_sni,lower,map(to.map) -m {}", random.of(&["found", "str one", "beg t"])),
        8 => format!("dst {}", random.of(&[&hosts[0], &hosts[1], "127.128.0.0/9"])),
        _ => format!("req.ssl_alpn -m sub {}", random.of(&["h2", "h2", "acme-tls/1"])),
    };
    format!("{not}{{ {test} }}")
}

fn haproxy_frontend(random: &mut Random, hosts: &[String; 2]) -> String {
    let mut text = " mode tcp\n tcp-request inspect-delay 5s\n".to_owned();
    for _ in 0..random.below(3) {
        let from = random.of(&["127.0.0.1", "127.0.0.2", "127.0.0.0/31", "127.0.0.0/24"]);
        let not = random.of(&["", "!"]);
        let action = random.of(&["accept", "reject"]);
        text.push_str(&format!(" tcp-request connection {action} if {not}{{ src {from} }}\n"));
    }
    text.push_str(" tcp-request content reject if !{ req_ssl_hello_type 1 }\n");
    for _ in 0..random.below(3) {
        let action = random.of(&["accept", "reject"]);
        text.push_str(&format!(" tcp-request content {action} if {}\n", haproxy_test(random, hosts)));
    }
    for _ in 0..1 + random.below(4) {
        let word = random.of(&["if", "if", "unless"]);
        let mut condition = haproxy_test(random, hosts);
        if random.below(2) == 0 {
            condition = format!("{condition} {}{}", random.of(&["", "or "]), haproxy_test(random, hosts));
        }
        match random.below(5) {
            0 => text.push_str(&format!(
                " use_backend %[req.ssl_sni,lower,map(to.map{})] {word} {condition}\n",
                random.of(&["", ",rest"])
            )),
            _ => text.push_str(&format!(" use_backend {} {word} {condition}\n", random.of(&BACKENDS))),
        }
    }
    if random.below(3) > 0 {
        text.push_str(&format!(" default_backend {}\n", random.of(&BACKENDS)));
    }
    text
}

const MAP: &str = "a.example one\nx.a.example two\nc.other nowhere\n";

fn nginx_server(
    random: &mut Random,
    number: usize,
    port: u16,
    hosts: &[String; 2],
    backends: &[SocketAddr; 3],
) -> String {
    let mut keys: Vec<&str> = Vec::new();
    let all = [
        "a.example",
        "b.example",
        "x.a.example",
        "*.a.example",
        ".b.example",
        "*.x.a.example",
        "\"~\\.a\\.example$\"",
        "\"~^(a|b)\\.example$\"",
        "default",
        "\"\"",
    ];
    for key in all {
        if random.below(2) == 0 && !(key == ".b.example" && keys.contains(&"b.example")) {
            keys.push(key);
        }
    }
    let mut to = || backends[random.below(backends.len())];
    let entries: String = keys.iter().map(|key| format!("{key} {};", to())).collect();
    let geo = format!("default {}; 127.0.0.1 {}; 127.0.0.0/16 {}; 127.0.0.0/15 {};", to(), to(), to(), to());
    let mut access = String::new();
    for _ in 0..random.below(3) {
        access.push_str(&format!(
            "{} {}; ",
            random.of(&["allow", "deny"]),
            random.of(&["127.0.0.1", "127.0.0.0/24", "all"])
        ));
    }
    let map = match random.below(3) {
        0 => format!("geo $to{number} {{ {geo} }}"),
        _ => format!("map $ssl_preread_server_name $to{number} {{ hostnames; {entries} }}"),
    };
    let [listen, more] = hosts.each_ref().map(|host| format!("listen {host}:{port};"));
    format!("{map}\nserver {{ {listen} {more} ssl_preread on; {access}proxy_pass $to{number}; }}\n")
}

/// The name of the backend that answers, or that the client was refused.
fn answer(from: [u8; 4], to: SocketAddr, name: &str, alpn: &[&str]) -> String {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::V4(Ipv4Addr::from(from)), 0).into()).unwrap();
    match socket.connect(&to.into()) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => return "refused".into(),
        result => result.unwrap(),
    }
    let mut stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let hello = if name.is_empty() { Hello::new() } else { Hello::to(name) };
    let hello = if alpn.is_empty() { hello } else { hello.alpn(alpn) };
    let _ = stream.write_all(&hello.record());
    let mut bytes = Vec::new();
    // A reset means refused, too.
    let _ = stream.read_to_end(&mut bytes);
    let answered = String::from_utf8_lossy(&bytes).into_owned();
    if BACKENDS.contains(&answered.as_str()) { answered } else { "refused".into() }
}

/// A generated frontend, or server, that listens at this port.
struct Front {
    seed: u64,
    port: u16,
    source: String,
    /// Notes at the top of the translation; empty unless it needs `--lossy`.
    serious_notes: String,
}

/// Clients are served alike, except for those that a note at the top of the translation is about.
/// `SNIGATE_IMPORT_SEEDS` is the number of configurations, `SNIGATE_IMPORT_FIRST` the first seed.
#[test]
#[ignore = "needs HAProxy, and nginx with its stream module"]
fn generated_configurations_are_served_alike() {
    let number = |key: &str, default: u64| std::env::var(key).map_or(default, |text| text.parse().unwrap());
    let (seeds, first) = (number("SNIGATE_IMPORT_SEEDS", 200), number("SNIGATE_IMPORT_FIRST", 1));
    let backends = BACKENDS.map(Backend::named);
    let addresses = backends.each_ref().map(Backend::address);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    // Loopback addresses of this process alone.
    let [theirs, ours] = [[1, 3], [2, 4]].map(|all| all.map(|last| format!("127.{}.{low}.{last}", 128 | (high & 127))));
    let files = [("to.map", MAP)];
    for from in ["haproxy", "nginx"] {
        let mut fronts: Vec<Front> = Vec::new();
        let back: String = BACKENDS
            .iter()
            .zip(addresses)
            .map(|(name, to)| format!("backend {name}\n mode tcp\n server s {to}\n"))
            .collect();
        let whole = |fronts: &[Front]| {
            let all: String = fronts.iter().map(|front| front.source.as_str()).collect();
            match from {
                "haproxy" => {
                    format!("defaults\n timeout connect 5s\n timeout client 9s\n timeout server 9s\n{all}{back}")
                }
                _ => format!(
                    "load_module /usr/lib/nginx/modules/ngx_stream_module.so; daemon off; master_process off; error_log stderr crit;\npid nginx.pid; events {{ worker_connections 8192; }}\nstream {{ proxy_half_close on;\n{all}}}\n"
                ),
            }
        };
        for seed in first..first + seeds {
            let mut random = Random(seed);
            random.below(2);
            let port = 20_000 + u16::try_from(seed - first).unwrap();
            let source = match from {
                "haproxy" => {
                    let [bind, more] = theirs.each_ref().map(|host| format!(" bind {host}:{port}\n"));
                    format!("frontend f{seed}\n{bind}{more}{}", haproxy_frontend(&mut random, &theirs))
                }
                _ => nginx_server(&mut random, usize::try_from(seed).unwrap(), port, &theirs, &addresses),
            };
            let mut front = Front { seed, port, source, serious_notes: String::new() };
            let source = whole(std::slice::from_ref(&front));
            if import(from, &source, &[], &files).0 != Some(0) {
                let (code, text, error) = import(from, &source, &["--lossy"], &files);
                if error.contains("has nothing to make a route of") {
                    continue;
                }
                assert_eq!(code, Some(0), "{from}, seed {seed}: {error}\n{source}");
                assert!(check(&text), "{from}, seed {seed}:\n{source}\n{text}");
                front.serious_notes = text.split("\nlisten:").next().unwrap().into();
                assert!(front.serious_notes.contains(ADMITTED) || front.serious_notes.contains(REJECTED), "{text}");
            }
            fronts.push(front);
        }
        let exact = fronts.iter().filter(|front| front.serious_notes.is_empty()).count();
        assert!(exact as u64 * 4 >= seeds, "{from}: only {exact} of {seeds} have an exact translation");
        let source = whole(&fronts);
        let (code, text, error) = import(from, &source, &["--lossy"], &files);
        assert_eq!(code, Some(0), "{error}");
        let mut text = text;
        for (theirs, ours) in theirs.iter().zip(&ours) {
            text = text.replace(&format!("address: {theirs}:"), &format!("address: {ours}:"));
            text = text.replace(&format!("{theirs}/32"), &format!("{ours}/32"));
        }
        let router = Router::start(&text);
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("to.map"), MAP).unwrap();
        std::fs::write(directory.path().join("source"), &source).unwrap();
        let mut command = Command::new(from);
        command.args(if from == "nginx" { &["-p", ".", "-c", "source"][..] } else { &["-db", "-f", "source"] });
        let other = command.current_dir(&directory).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let other = Process(other);
        let at = |host: &str, port: u16| SocketAddr::new(host.parse().unwrap(), port);
        eventually("it listens", || TcpStream::connect(at(&theirs[1], fronts.last().unwrap().port)).is_ok());
        let mut differences = 0;
        let offers: &[&[&str]] = if from == "nginx" { &[&[]] } else { &[&[], &["h2"], &["acme-tls/1", "h2"]] };
        let hosts = |name| [0, 1].map(|host| (name, host));
        let arrivals = NAMES.into_iter().flat_map(hosts);
        let hellos: Vec<(&str, usize, &[&str])> =
            arrivals.flat_map(|(name, host)| offers.iter().map(move |alpn| (name, host, *alpn))).collect();
        for Front { seed, port, source, serious_notes } in &fronts {
            for client in [[127, 0, 0, 1], [127, 0, 0, 2], [127, 9, 9, 9]] {
                for (name, host, alpn) in &hellos {
                    let [theirs, ours] =
                        [&theirs, &ours].map(|hosts| answer(client, at(&hosts[*host], *port), name, alpn));
                    if theirs == ours {
                        continue;
                    }
                    differences += 1;
                    let expected = if theirs == "refused" { ADMITTED } else { REJECTED };
                    assert!(
                        serious_notes.contains(expected),
                        "{from}, seed {seed}: {theirs} becomes {ours} for {name:?}, {alpn:?}, from {client:?} to {host}\n{source}\n{serious_notes}"
                    );
                }
            }
        }
        let lossy = fronts.len() - exact;
        assert!(
            lossy == 0 || differences > 0,
            "{from}: none of {lossy} translations differs, so notes warn for nothing"
        );
        drop((router, other));
    }
}
