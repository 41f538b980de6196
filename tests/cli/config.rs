//! What is refused in a file, and in which words. The same words from `check` and `run`: it is the same code.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::{Router, all_output, snigate};

pub const VALID: &str = "listen: 127.0.0.1:0\nroutes:\n  - sni: a.example\n    upstream: 127.0.0.1:1\n";

fn check(path: &Path) -> Output {
    let checked = snigate().arg("check").arg(path).output().unwrap();
    let with_option = snigate().args(["check", "-c"]).arg(path).output().unwrap();
    assert_eq!((&with_option.stdout, &with_option.stderr), (&checked.stdout, &checked.stderr));
    checked
}

/// What `check` and `run` say of these bytes, both exiting with 78.
fn complaint(bytes: &[u8]) -> String {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, bytes).unwrap();
    let checked = check(&path);
    let text = String::from_utf8(checked.stderr).unwrap();
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(500)]);
    assert_eq!(checked.status.code(), Some(78), "{shown}\n{text}");
    let run = snigate().args(["run", "-c"]).arg(&path).output().unwrap();
    assert_eq!(run.status.code(), Some(78), "{shown}");
    assert_eq!(String::from_utf8(run.stderr).unwrap(), text, "g15: one code path");
    assert!(checked.stdout.is_empty());
    let prefix = format!("snigate: {}", path.display());
    text.strip_prefix(&prefix).unwrap_or_else(|| panic!("{text}")).trim_end().to_owned()
}

#[track_caller]
fn refused(text: &str, expected: &str) {
    assert_eq!(complaint(text.as_bytes()), expected, "{text}");
}

/// A file whose route has these lines.
pub fn route(lines: &str) -> String {
    format!("listen: 127.0.0.1:0\nroutes:\n  - {}\n", lines.replace('\n', "\n    "))
}

pub fn with(lines: &str) -> String {
    format!("{VALID}{lines}\n")
}

/// Every key that there is, but for files.
pub const EVERYTHING: &str = "listen:
  - 127.0.0.1:0
  - {name: inside, address: \"[::1]:0\", refuse: close, ip_literal_sni: refuse, allow: [\"::1\", \"2001:db8::/32\"], deny: 192.0.2.1, deny_ja4: t13d1516h2_8daaf6152771_e5627efa2ab1}
refuse: reset
routes:
  - name: one
    sni: [a.example, \"*.a.example\"]
    alpn: [h2]
    listener: [inside]
    allow: 10.0.0.0/8
    deny: [10.1.0.0/16]
    deny_ja4: [t13d1516h2_8daaf6152771_e5627efa2ab1, t12i040000_77f0cd3447db_000000000000]
    max_connections: 5000
    new_connections: 200/s
    upstream: {endpoints: [127.0.0.1:1, \"b.example:6443\", \"[::1]:2\"], connect: {timeout: 10s, per_try: 3s}}
  - upstream:
      dcos: {service: dev/kubernetes01, port: 6443}
      balance: random
      slow_start: 0s
      dead: {grace: 15s, connections: keep}
      on_remove: drain
      resolve_every: 10s
      health_check:
        interval: 5s
        timeout: 4s
        rise: 2
        fall: 3
        tls: {server_name: kubernetes, verify: false}
        http: {path: /readyz, expect: [200-399, 404], unauthorized: failed}
timeouts: {hello: 10s, idle: 24h, half_close: 60s, drain: 0s}
tcp: {keepalive: {idle: 30s, interval: 5s, count: 3}, user_timeout: 15m}
limits: {connections: 100, hello_bytes: 16KiB, per_source: 1000, new_per_source: 50/s}
relay: splice
sandbox: require
workers: 2
admin: {address: 127.0.0.1:0, allow_remote: true, hosts: [admin.example, \"*.svc\"]}
log: {format: json, level: debug, refusals_per_second: 0, progress: 10m}
";

#[test]
fn g15_what_check_accepts_runs() {
    for text in [VALID, EVERYTHING] {
        let router = Router::start(text);
        let checked = check(&router.config);
        let output = String::from_utf8(checked.stdout).unwrap();
        assert_eq!(checked.status.code(), Some(0), "{output}");
        assert!(output.contains("is valid."), "{output}");
    }
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, EVERYTHING).unwrap();
    let output = String::from_utf8(check(&path).stdout).unwrap();
    for told in [
        "127.0.0.1:0: allow all; refuse with reset\n",
        "inside on [::1]:0: allow ::1, 2001:db8::/32, deny 192.0.2.1, deny_ja4 t13d1516h2_8daaf6152771_e5627efa2ab1; refuse with close; IP addresses in SNI are refused\n",
        "(expect: 200-399 404, unauthorized: failed)",
        "hosts IP addresses, localhost, admin.example, *.svc",
        "access     allow 10.0.0.0/8, deny 10.1.0.0/16, deny_ja4 t12i040000_77f0cd3447db_000000000000, t13d1516h2_8daaf6152771_e5627efa2ab1; max_connections 5000; new_connections 200/s\n",
        "access     allow all\n",
        "matches    a.example, *.a.example; listener inside; ALPN h2\n",
        "routes to  127.0.0.1:1, b.example:6443, [::1]:2 (timeout 10s, 3s per try)\n",
        "matches    catch-all (any other name, or no SNI)\n",
        "balance    random, slow_start 0s\n",
        "on endpoint failure: keep its connections\n",
        "health check: none (passive only)\n",
        "health check: TCP connect, TLS (not verified, name kubernetes), GET /readyz (expect:",
        "hello 10s, idle 24h, half_close 1m, drain 0s",
        "keepalive idle 30s, interval 5s, count 3, user_timeout 15m",
        "connections 100, per_source 1000, new_per_source 50/s, hello_bytes 16KiB",
        "relay      splice",
        "format json, level debug, refusals_per_second 0, progress 10m",
    ] {
        assert!(output.contains(told), "{told}\nin\n{output}");
    }
}

#[test]
fn g03_what_stands_twice_is_refused_with_both_places() {
    refused("listen: 127.0.0.1:0\nlisten: 127.0.0.1:0\nroutes: []\n", ":2:1: duplicate key `listen` (first on line 1)");
    refused(
        &route("sni: a.example\nupstream: 127.0.0.1:1\nsni: b.example"),
        ":5:5: routes[0]: duplicate key `sni` (first on line 3)",
    );
    let two = |first: &str, second: &str| format!("listen: 127.0.0.1:0\nroutes:\n  - {first}\n  - {second}\n");
    refused(
        &two("{name: x, sni: a.example, upstream: \"h:1\"}", "{name: x, sni: b.example, upstream: \"h:1\"}"),
        ":4:5: routes[1]: duplicate name `x`, already used by routes[0] (line 3)",
    );
    refused(
        &two(
            "{name: x, sni: a.example, upstream: \"h:1\"}",
            "{name: y, sni: [b.example, A.Example.], upstream: \"h:1\"}",
        ),
        ":4:5: routes[1]: `a.example` is already matched by routes[0], and neither route is more specific (line 3)",
    );
    refused(
        &two("{name: x, upstream: \"h:1\"}", "{name: y, upstream: \"h:1\"}"),
        ":4:5: routes[1]: routes[0] is already a catch-all route, and neither route is more specific (line 3)",
    );
    let at = |listener: &str| format!("{{sni: a.example, listener: {listener}, upstream: \"h:1\"}}");
    let listen = "listen: [{name: a, address: 127.0.0.1:7001}, {name: b, address: 127.0.0.1:7002}]";
    refused(
        &two(&at("a"), &at("b")).replace("listen: 127.0.0.1:0", listen),
        ":4:5: routes[1]: duplicate name `a.example` (from its first `sni`), already used by routes[0]; set `name` on one of them (line 3)",
    );
    refused(
        &two("{listener: a, upstream: \"h:1\"}", "{listener: b, upstream: \"h:1\"}")
            .replace("listen: 127.0.0.1:0", listen),
        ":4:5: routes[1]: duplicate name `default` (the default of a catch-all route), already used by routes[0]; set `name` on one of them (line 3)",
    );
    refused(
        "listen: [127.0.0.1:0, 127.0.0.1:0]\nroutes: [{upstream: \"h:1\"}]\n",
        ":1:23: listen[1]: duplicate name `127.0.0.1:0` (from its address), already used by listen[0]; set `name` on one of them (line 1)",
    );
    refused(&route("sni: [a.example, a.example]\nupstream: h:1"), ":3:10: routes[0].sni: duplicate name `a.example`");
    refused(
        "listen: [127.0.0.1:7001, 127.0.0.1:7001]\nroutes: [{upstream: \"h:1\"}]\n",
        ":1:26: listen[1]: 127.0.0.1:7001 is already used by listen[0] (line 1)",
    );
    refused(
        "listen: [{name: a, address: 127.0.0.1:7001}, 127.0.0.1:7001]\nroutes: [{upstream: \"h:1\"}]\n",
        ":1:46: listen[1]: 127.0.0.1:7001 is already used by listen[0] (line 1)",
    );
}

#[test]
fn g04_unknown_keys_are_refused_with_the_nearest_one() {
    refused(&with("timeout: {}"), ":5:1: unknown key `timeout`; did you mean `timeouts`?");
    refused(&with("timeouts: {halfclose: 1s}"), ":5:12: timeouts: unknown key `halfclose`; did you mean `half_close`?");
    refused(&route("snii: a\nupstream: h:1"), ":3:5: routes[0]: unknown key `snii`; did you mean `sni`?");
    refused(
        &route("upstream: {endpoint: h:1}"),
        ":3:16: routes[0].upstream: unknown key `endpoint`; did you mean `endpoints`?",
    );
    refused(&with("tcp: {xyz: 1}"), ":5:7: tcp: unknown key `xyz`; expected one of keepalive, user_timeout");
    // Keys that this version does not have are unknown, not ignored.
    for key in ["sandboxes: auto", "limits: {buffers: 5}"] {
        assert!(complaint(with(key).as_bytes()).contains("unknown key"), "{key}");
    }
}

#[test]
fn g04_wrong_values_are_refused_with_what_was_expected() {
    const DURATION: &str = "expected a duration from 1ms to 366d with a unit, such as 10s, 500ms, 15m or 24h";
    for value in ["-1s", "10", "1e9", "nan", "inf", "99999999999999999999s", "10 parsecs", "\"\""] {
        let told = complaint(with(&format!("timeouts: {{hello: {value}}}")).as_bytes());
        assert!(told.starts_with(":5:19: timeouts.hello: ") && told.ends_with(DURATION), "{value}: {told}");
    }
    refused(&with("timeouts: {idle: 400d}"), &format!(":5:18: timeouts.idle: `400d`: out of range; {DURATION}"));
    refused(&with("timeouts: {idle: 0s}"), &format!(":5:18: timeouts.idle: `0s`: out of range; {DURATION}"));
    for value in ["-1", "0", "1.5", "1e3", "no", "0o17777777777", "99999999999", ".nan", ".inf", "[1]", "{}"] {
        let told = complaint(with(&format!("limits: {{connections: {value}}}")).as_bytes());
        assert!(told.starts_with(":5:23: limits.connections: "), "{value}: {told}");
        assert!(told.ends_with("expected a whole number from 1 to 10000000"), "{value}: {told}");
    }
    for value in ["1023", "65537", "16kb", "-1KiB", "64MiB"] {
        let told = complaint(with(&format!("limits: {{hello_bytes: {value}}}")).as_bytes());
        assert!(told.ends_with("expected a size from 1KiB to 64KiB, such as 16KiB"), "{value}: {told}");
    }
    refused(
        &with("log: {level: loud}"),
        ":5:14: log.level: `loud`: expected one of `error`, `warn`, `info`, `debug`, `trace`",
    );
    for value in ["0/s", "50", "50/d", "-1/s", "1.5/s", "2000000/s"] {
        let told = complaint(with(&format!("limits: {{new_per_source: {value}}}")).as_bytes());
        assert!(
            told.ends_with("expected a rate from 1/h to 1000000/s, such as 50/s, 300/m or 1000/h"),
            "{value}: {told}"
        );
    }
    for value in ["t13d1516h2", "q13d0312h3_55b375c5d22e_06cda9e17597", "cd08e31494f9531f560d64c695473da9", "7", "\"\""]
    {
        let told = complaint(route(&format!("deny_ja4: [{value}]\nupstream: h:1")).as_bytes());
        assert!(told.starts_with(":3:16: routes[0].deny_ja4[0]: "), "{told}");
        let expected = "expected a JA4 fingerprint of TLS over TCP such as t13d1516h2_8daaf6152771_e5627efa2ab1";
        assert!(told.ends_with(expected), "{value}: {told}");
    }
    for (value, reason) in [
        ("10.0.0.1/8", "`10.0.0.1/8`: host bits are set (did you mean 10.0.0.0/8?); "),
        ("10.0.0.0/33", "`10.0.0.0/33`: "),
        ("example.com", "`example.com`: "),
        ("\"fe80::1%eth0\"", "`fe80::1%eth0`: "),
    ] {
        let listen = format!("listen: [{{address: \"127.0.0.1:0\", allow: {value}}}]");
        let told = complaint(with("").replace("listen: 127.0.0.1:0", &listen).as_bytes());
        let expected =
            format!("allow: {reason}expected a network such as 192.0.2.0/24 or \"2001:db8::/32\", or a single address");
        assert!(told.ends_with(&expected), "{value}: {told}");
    }
    refused(&with("workers: 0"), ":5:10: workers: `0`: out of range; expected auto, or a whole number from 1 to 1024");
    refused(
        &with("tcp: {keepalive: {idle: 1500ms}}"),
        ":5:25: tcp.keepalive.idle: `1500ms`: out of range; expected a duration of whole seconds from 1s to 32767s, such as 30s",
    );
}

#[test]
fn g04_wrong_names_and_addresses_are_refused_with_what_was_expected() {
    const NAME: &str = "expected a DNS name such as a.example.com, or \"*.example.com\" for all names below it";
    for (value, reason) in [
        ("192.0.2.1", "the name is an IP address; "),
        ("a..b", "the name has an empty label; "),
        ("\"a^b\"", "the name has a character other than letters, digits, '-', '_' and '.'; "),
        ("\"*\"", "to match every name, omit `sni`; "),
    ] {
        let shown = value.trim_matches('"');
        refused(
            &route(&format!("sni: {value}\nupstream: h:1")),
            &format!(":3:10: routes[0].sni: `{shown}`: {reason}{NAME}"),
        );
    }
    refused(&route("sni: [a.example, 7]\nupstream: h:1"), &format!(":3:22: routes[0].sni[1]: integer `7`, {NAME}"));
    const ENDPOINT: &str = "expected host:port such as api.example.com:6443, 192.0.2.1:6443 or \"[2001:db8::1]:6443\"";
    let told = complaint(route("upstream: https://api.example.com:6443").as_bytes());
    assert!(told.contains("a URL; write api.example.com:6443; expected host:port"), "{told}");
    let told = complaint(route("upstream: 10.0.0.256:6443").as_bytes());
    assert!(told.contains("neither an IP address nor a DNS name; expected host:port"), "{told}");
    refused(&route("upstream: a"), &format!(":3:15: routes[0].upstream: `a`: the port is missing; {ENDPOINT}"));
    refused(
        &route("upstream: \"2001:db8::1:6443\""),
        &format!(
            ":3:15: routes[0].upstream: `2001:db8::1:6443`: an IPv6 address needs brackets; write \"[2001:db8::1]:6443\"; {ENDPOINT}"
        ),
    );
    refused(
        "listen: localhost:6443\nroutes: []\n",
        ":1:9: listen: `localhost:6443`: this is a hostname; write 127.0.0.1:6443 or \"[::1]:6443\"; expected an IP address and port such as 0.0.0.0:6443 or \"[::]:6443\"",
    );
    refused(
        &route("listener: [other]\nupstream: h:1"),
        ":3:15: routes[0].listener: unknown listener `other`; expected one of 127.0.0.1:0",
    );
}

#[test]
fn a_label_has_up_to_253_characters_of_any_length() {
    let named = |letters: usize| route(&format!("name: {}\nupstream: 127.0.0.1:1", "ä".repeat(letters)));
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    for letters in [130, 253] {
        std::fs::write(&path, named(letters)).unwrap();
        let checked = check(&path);
        assert!(checked.status.success(), "{letters}: {}", all_output(&checked));
    }
    let told = complaint(named(254).as_bytes());
    assert!(told.ends_with("expected a name of 1 to 253 printable characters that does not start with '_'"), "{told}");
}

#[test]
fn empty_lists_and_missing_keys_are_refused() {
    refused(
        "listen: 127.0.0.1:0\nroutes: []\n",
        ":2:9: routes: empty list; expected at least one route with `sni` and `upstream`",
    );
    refused("listen: []\nroutes: []\n", ":1:9: listen: empty list; expected at least one address such as 0.0.0.0:6443");
    refused("listen: 127.0.0.1:0\n", ":1:1: missing key `routes`");
    refused(&route("sni: a.example"), ":3:5: routes[0]: missing key `upstream`");
    assert!(complaint(route("sni: []\nupstream: h:1").as_bytes()).contains("routes[0].sni: empty list; expected"));
    assert!(complaint(route("upstream: []").as_bytes()).contains("routes[0].upstream: empty list; expected"));
    refused(
        &with("admin:"),
        ":5:7: admin: no value, expected an address such as 127.0.0.1:9443, or a map with `address`",
    );
    refused(&with("workers: [2]"), ":5:10: workers: a list, expected auto, or a whole number from 1 to 1024");
}

#[test]
fn keys_without_a_value_are_refused_not_defaulted() {
    for key in ["sni", "alpn", "listener"] {
        let told = complaint(route(&format!("{key}:\nupstream: h:1")).as_bytes());
        assert!(told.starts_with(":3:") && told.contains(&format!("routes[0].{key}: no value, expected")), "{told}");
    }
}

#[test]
fn what_yaml_takes_for_its_own_needs_quotes() {
    refused(
        &route("sni: *.example.com\nupstream: h:1"),
        ":3:11: a name that starts with `*` needs quotes: \"*.example.com\"",
    );
    refused("listen: [::]:6443\nroutes: []\n", ":1:10: an address in brackets needs quotes: \"[::]:6443\"");
    let told = complaint(with("timeouts: [10s]").as_bytes());
    assert!(told.ends_with("timeouts: a list, expected a map of keys"), "{told}");
    let told = complaint(b"global\n  maxconn 100\n");
    assert!(told.contains(":1:1: the file has no keys; expected `listen` and `routes`"), "{told}");
    let told = complaint(b"listen: 127.0.0.1:0\nroutes:\n  sni: a\n");
    assert!(told.ends_with("routes: a map, expected a list with `- ` before each item"), "{told}");
}

#[test]
fn values_that_do_not_go_together_are_refused() {
    refused(
        &route("upstream: {endpoints: h:1, connect: {timeout: 1s, per_try: 2s}}"),
        ":3:64: routes[0].upstream.connect.per_try: must not be longer than `timeout`",
    );
    let told = complaint(route("sni: _none\nupstream: h:1").as_bytes());
    assert!(told.contains("set `name` on this route"), "{told}");
    refused(&route("upstream: [h:1, H:1, h:1]"), ":3:15: routes[0].upstream: duplicate endpoint h:1");
    for (first, second) in
        [("0.0.0.0", "127.0.0.1"), ("\"[::]", "127.0.0.1"), ("\"[::]", "0.0.0.0"), ("\"[::]", "\"[::1]")]
    {
        let close = |host: &str| format!("{host}:7001{}", if host.starts_with('"') { "\"" } else { "" });
        let text = format!("listen: [{}, {}]\nroutes: [{{upstream: \"h:1\"}}]\n", close(first), close(second));
        assert!(complaint(text.as_bytes()).contains("7001 is already used by listen[0] (line 1)"), "{text}");
    }
    let told = complaint(with("admin: 127.0.0.1:7001").replace("127.0.0.1:0", "0.0.0.0:7001").as_bytes());
    assert!(told.contains("admin: 127.0.0.1:7001 is already used by the listener"), "{told}");
}

#[test]
fn brackets_in_comments_are_no_nesting() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, VALID.to_owned() + &"# an interval [0, 10)\n".repeat(100)).unwrap();
    assert!(check(&path).status.success());
}

#[test]
fn loops_and_remote_admin_listeners_are_refused() {
    for (listen, upstream) in [
        ("127.0.0.1:7001", "127.0.0.1:7001"),
        ("0.0.0.0:7001", "127.0.0.5:7001"),
        ("\"[::]:7001\"", "\"[::1]:7001\""),
        ("\"[::]:7001\"", "\"[::ffff:127.0.0.1]:7001\""),
    ] {
        let told = complaint(format!("listen: {listen}\nroutes: [{{upstream: {upstream}}}]\n").as_bytes());
        assert!(told.contains("this is snigate's own listener"), "{told}");
    }
    let told = complaint(with("admin: 0.0.0.0:9443").as_bytes());
    assert!(told.contains("admin: 0.0.0.0:9443 is reachable from other machines; expected a loopback"), "{told}");
}

#[test]
fn more_connections_than_descriptors_are_refused_with_the_arithmetic() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, with("limits: {connections: 5000000}")).unwrap();
    let output = snigate().args(["run", "-c"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("5000000 connections need 10000465 file descriptors"), "{told}");
}

#[test]
fn g05_bombs_are_refused_quickly() {
    let mut aliases = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let previous = format!("*a{}, ", level - 1).repeat(9);
        aliases += &format!("a{level}: &a{level} [{}]\n", previous.trim_end_matches(", "));
    }
    let expanding = format!("x: 1\n{aliases}listen: *a11\nroutes: []\n");
    let used: String = aliases.replace("a0: &a0 [", "listen: &a0 [");
    let mut chain = String::from("a0: &a0 x\n");
    for link in 1..50_000 {
        chain += &format!("a{link}: &a{link} *a{}\n", link - 1);
    }
    let bombs = [
        expanding,
        used,
        chain,
        format!("listen: {}", "[".repeat(20_000)),
        format!("listen: {}", "{a: ".repeat(20_000)),
        format!("listen:\n{}", "- ".repeat(20_000)),
        format!("routes:\n{}", "? ".repeat(20_000)),
    ];
    for bomb in bombs {
        let start = Instant::now();
        complaint(bomb.as_bytes());
        // Two processes; unbounded, each of these takes minutes or all memory.
        assert!(start.elapsed() < Duration::from_secs(5), "{:.60} took {:?}", bomb, start.elapsed());
    }
}

#[test]
fn g05_only_regular_files_of_bounded_size_are_read() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut large = std::fs::File::create(path("large")).unwrap();
    large.write_all(VALID.as_bytes()).unwrap();
    large.set_len(1 << 30).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    for (path, expected) in [
        (path("large"), "larger than 32MiB"),
        (path("fifo"), "not a regular file"),
        ("/dev/zero".into(), "not a regular file"),
        (directory.path().into(), "not a regular file"),
        (path("missing"), "No such file or directory"),
    ] {
        let output = check(&path);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{told}");
        assert!(told.contains(expected) && told.contains(&path.display().to_string()), "{told}");
    }
}

#[test]
fn g06_encodings() {
    let crlf = VALID.replace('\n', "\r\n");
    for accepted in [VALID.trim_end().to_owned(), crlf.clone(), format!("\u{feff}{crlf}"), format!("---\n{VALID}")] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("c.yaml");
        std::fs::write(&path, &accepted).unwrap();
        let output = check(&path);
        assert!(output.status.success(), "{accepted:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let utf16: Vec<u8> = [0xfeff].into_iter().chain(VALID.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    assert_eq!(complaint(&utf16), ": the file is UTF-16; save it as UTF-8");
    assert_eq!(complaint(b"listen: a\nroutes: \xff\n"), ":2:9: invalid UTF-8 from here on");
    assert_eq!(complaint(b"listen: a\nroutes: \0\n"), ":2:9: NUL byte");
    let empty = ": the file is empty; expected at least `listen` and `routes`";
    for nothing in ["", "\n\n", "# all\n# comments\n", "---\n"] {
        assert_eq!(complaint(nothing.as_bytes()), empty, "{nothing:?}");
    }
    let tabs = complaint(b"listen: 127.0.0.1:0\nroutes:\n\t- upstream: h:1\n");
    assert!(tabs.starts_with(":3:1: ") && tabs.contains("tab"), "{tabs}");
    let two = complaint(format!("{VALID}---\n{VALID}").as_bytes());
    assert!(two.contains("more than one document"), "{two}");
}

#[test]
fn usage_errors_exit_with_2() {
    for arguments in [
        &["run"][..],
        &["run", "-c", "x", "--listen", "127.0.0.1:0"],
        &["run", "--listen", "nowhere"],
        &["run", "--listen", "127.0.0.1:0", "--route", "a.example"],
        &["run", "--route", "a.example=h:1"],
        &["explain", "-c", "x"],
        &["run", "--listen", "127.0.0.1:0"],
        &["explain", "-c", "x", "--hello", "-", "--alpn", "h2"],
        &["fly"],
    ] {
        let output = snigate().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

/// A file whose upstream is this.
pub fn upstream(map: &str) -> String {
    route(&format!("sni: a.example\nupstream: {map}"))
}

#[test]
fn pools_are_refused_with_what_is_wrong_in_them() {
    let at = |place: &str| format!(":5:{place}");
    for (map, expected) in [
        ("{balance: random}", "routes[0].upstream: missing key `endpoints` or `dcos`"),
        ("{endpoints: b:1, dcos: x}", "routes[0].upstream.dcos: cannot be combined with `endpoints`"),
        ("{dcos: a b}", "`a b`: expected a service name such as dev/kubernetes01"),
        ("{dcos: {port: 70000}}", "`70000`: out of range; expected a port from 1 to 65535"),
        ("{endpoints: b:1, balance: fastest}", "expected one of `least_connections`, `round_robin`, `random`"),
        ("{endpoints: b:1, slow_start: 5}", "expected a duration"),
        ("{endpoints: b:1, dead: {connections: drop}}", "expected `cut` or `keep`"),
        ("{endpoints: b:1, health_check: {interval: 1s, timeout: 2s}}", "must not be longer than `interval`"),
        ("{endpoints: b:1, health_check: {rise: 0}}", "`0`: out of range; expected a whole number from 1 to 127"),
        ("{endpoints: b:1, health_check: {http: {}}}", "health_check.http: requires `tls`"),
        ("{endpoints: b:1, health_check: {tls: {}}}", "health_check.tls: missing key `ca_file`"),
        ("{endpoints: b:1, health_check: {tls: {ca_file: none.pem}}}", "none.pem: No such file or directory"),
        (
            "{endpoints: b:1, health_check: {tls: {verify: false, ca_file: none.pem}}}",
            "cannot be combined with `verify: false`",
        ),
        (
            "{endpoints: b:1, health_check: {tls: {verify: false, server_name: \"\"}}}",
            "expected a DNS name such as kubernetes",
        ),
        (
            "{endpoints: b:1, health_check: {tls: {verify: false}, http: {path: readyz}}}",
            "expected a path such as /readyz",
        ),
        ("{endpoints: b:1, health_check: {tls: {verify: false}, http: {token_file: none}}}", "none: No such file"),
        (
            "{endpoints: b:1, health_check: {tls: {verify: false}, http: {client_key: /dev/null}}}",
            "`client_key` requires `client_certificate`",
        ),
        (
            "{endpoints: b:1, health_check: {tls: {verify: false}, http: {unauthorized: fine}}}",
            "expected `alive` or `failed`",
        ),
        (
            "{endpoints: b:1, health_check: {tls: {verify: false}, http: {expect: 399-200}}}",
            "the end of the range is below its start; expected an HTTP status from 100 to 599",
        ),
        ("{endpoints: b:1, health_check: {tls: {verify: false}, http: {expect: 600}}}", "`600`: out of range"),
        ("{endpoints: b:1, helth_check: {}}", "health_check"),
    ] {
        let told = complaint(upstream(map).as_bytes());
        assert!(told.contains(expected), "{map}\n{told}");
        assert!(told.starts_with(&at("")) || told.starts_with(":4:"), "{map}: {told}");
    }
}

#[test]
fn g14_what_is_in_a_secret_file_is_not_told() {
    let directory = TempDir::new().unwrap();
    std::fs::write(
        directory.path().join("secret"),
        "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
    )
    .unwrap();
    let config = upstream("{endpoints: b:1, health_check: {tls: {ca_file: secret}}}");
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, config).unwrap();
    let told = String::from_utf8(check(&path).stderr).unwrap();
    assert!(told.contains("secret: no certificate found; expected PEM"), "{told}");
    assert!(!told.contains("c2VjcmV0"), "{told}");
}

#[test]
fn a_dcos_service_is_an_endpoint() {
    for (dcos, expected) in [
        ("dev/kubernetes01", "apiserver.devkubernetes01.l4lb.thisdcos.directory:6443"),
        ("{}", "apiserver.kubernetes-cluster.l4lb.thisdcos.directory:6443"),
        ("{service: a, port: 443}", "apiserver.a.l4lb.thisdcos.directory:443"),
    ] {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("c.yaml");
        std::fs::write(&path, upstream(&format!("{{dcos: {dcos}}}"))).unwrap();
        let told = String::from_utf8(check(&path).stdout).unwrap();
        assert!(told.contains(&format!("routes to  {expected} ")), "{told}");
    }
}

#[test]
fn what_is_pasted_is_named_with_the_right_line() {
    for (text, expected) in [
        (
            route("upstream: \"10.0.0.1:6443, 10.0.0.2:6443\""),
            "several values in one string; write a list: [\"10.0.0.1:6443\", \"10.0.0.2:6443\"]",
        ),
        (route("sni: a.example b.example\nupstream: h:1"), "write a list: [\"a.example\", \"b.example\"]"),
        (route("allow: 10.0.0.0/8;192.0.2.1\nupstream: h:1"), "write a list: [\"10.0.0.0/8\", \"192.0.2.1\"]"),
        (with("").replace("127.0.0.1:0", "0.0.0.0:7001, 0.0.0.0:7002"), "write a list: [\"0.0.0.0:7001\", "),
        (route("upstream: \"[fe80::1%eth0]:6443\""), "link-local addresses with a zone (`%eth0`) are not supported"),
        (route("sni: münchen.example\nupstream: h:1"), "clients send as `xn--mnchen-3ya.example`"),
        (route("upstream: münchen.example:1"), "write `xn--mnchen-3ya.example:1`"),
        (with("").replace("127.0.0.1:0", "6443"), "write 0.0.0.0:6443, or \"[::]:6443\""),
        (with("").replace("127.0.0.1:0", "\"*:6443\""), "write 0.0.0.0:6443, or \"[::]:6443\""),
        (with("admin: localhost:9443"), "a hostname; write 127.0.0.1:9443 or"),
        (with("admin: {address: 127.0.0.1:0, hosts: https://a.example/}"), "a URL; write `a.example`"),
    ] {
        let told = complaint(text.as_bytes());
        assert!(told.contains(expected), "{text}\n{told}");
    }
}

#[test]
fn what_is_in_a_file_does_not_steer_the_terminal() {
    for text in [
        route("sni: \"a\\u202eb\"\nupstream: h:1"),
        with("\"a\\u202eb\": 1"),
        with("log: {level: \"\\e[2J\\u2066\"}"),
        route("name: \"a\\u200fb\"\nupstream: h:1"),
        route("sni: a.example\nlistener: \"\\e[2J\"\nupstream: h:1"),
    ] {
        let told = complaint(text.as_bytes());
        assert!(told.contains("\\u{"), "{told}");
        assert!(!told.contains(['\u{202e}', '\u{2066}', '\u{200f}', '\x1b']), "{told:?}");
    }
}

#[test]
fn what_yaml_cannot_read_is_said_in_plain_words() {
    const HEAD: &str = "listen: 127.0.0.1:0\nroutes:\n";
    for (text, expected) in [
        (
            "  - sni: a.example\n    upstream: h:1\n - sni: b.example\n",
            ":5:2: the indentation does not match the lines above",
        ),
        ("  - sni: a: b\n", ":3:11: unexpected `:`"),
        ("  - {sni: a.example, upstream: \"h:1\"}\n  sni: b\n", "the indentation does not match the list above"),
        ("  - sni: @a\n", ":3:10: a value that starts with this character needs quotes"),
        ("  - sni: \"a\n", "unclosed quote at the end of the file"),
        ("  - sni: !a!b c\n", "a value that starts with `!` needs quotes"),
        ("  - sni: - a\n", "a list item (`- `) must start on its own line"),
        ("  - sni: \"\\q\"\n", "unknown escape in double quotes"),
        ("  - sni: ]\n", "missing value, or unmatched bracket"),
        ("  - alpn: [h2 : , }\n", "a "),
        (
            "  - sni: a.example\n      upstream: h:1\n",
            ":4:7: routes[0].sni: key `upstream` is indented too far, so it is read as part of the value above it",
        ),
    ] {
        let told = complaint(format!("{HEAD}{text}").as_bytes());
        assert!(told.contains(expected), "{text}\n{told}");
        assert!(!told.contains("did not find expected") && !told.contains("not allowed in this context"), "{told}");
    }
}

#[test]
fn a_file_may_come_from_standard_input() {
    for name in ["-", "/dev/stdin"] {
        let check = |text: &str| {
            let mut child = snigate()
                .args(["check", name])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        let valid = check(VALID);
        assert!(valid.status.success() && valid.stdout.starts_with(b"standard input is valid.\n"), "{valid:?}");
        let wrong = check("listen: 127.0.0.1:0\nroutes: 7\n");
        assert_eq!(wrong.status.code(), Some(78));
        let told = String::from_utf8(wrong.stderr).unwrap();
        assert!(told.starts_with("snigate: standard input:2:9: routes: "), "{told}");
    }
}

#[test]
fn the_cas_of_the_machine_may_be_trusted() {
    let config = upstream("{endpoints: b:1, health_check: {tls: {ca_file: system}}}");
    let (directory, authority) = (TempDir::new().unwrap(), crate::support::tls::Authority::new());
    let path = directory.path().join("c.yaml");
    std::fs::write(&path, config).unwrap();
    let file = authority.write(directory.path(), "bundle.pem");
    let check = |file: &Path| {
        let output = snigate().arg("check").arg(&path).env("SSL_CERT_FILE", file).env_remove("SSL_CERT_DIR").output();
        output.unwrap()
    };
    let told = String::from_utf8(check(&file).stdout).unwrap();
    assert!(told.contains("TLS (system CAs"), "{told}");
    let without = check(&directory.path().join("none.pem"));
    let told = String::from_utf8(without.stderr).unwrap();
    assert!(without.status.code() == Some(78) && told.contains("ca_file: no CA found on this system"), "{told}");
}

#[test]
fn e17_matchers_that_cannot_hold_or_conflict_are_refused() {
    let proxied = |lines: &str| {
        let listen = "listen: [{address: \"127.0.0.1:0\", accept_proxy: {from: 192.0.2.1}}]";
        route(lines).replace("listen: 127.0.0.1:0", listen)
    };
    refused(
        &route("proxy_tlv: {0xe0: one}\nupstream: h:1"),
        ":3:16: routes[0].proxy_tlv: never matches: no listener of this route accepts PROXY headers; set `accept_proxy` on one",
    );
    for (value, told) in [
        ("{}", "empty map; expected at least one TLV such as {0xe0: \"kubernetes01\"}"),
        ("{0x100: one}", "expected the number of a TLV from 0x00 to 0xff, such as 0xe0"),
        ("{0xe0: 0x0102}", "expected a value in quotes: text, or bytes in hexadecimal"),
        ("{0xe0: 17}", "expected a value in quotes: text, or bytes in hexadecimal"),
        ("{0xe0: \"0x012\"}", "after `0x` there must be two hexadecimal digits for each byte"),
        ("{0xe0: one, 224: two}", "duplicate TLV 0xe0"),
        ("one", "expected a map from numbers of TLVs to values, such as {0xe0: \"kubernetes01\"}"),
    ] {
        let complaint = complaint(proxied(&format!("proxy_tlv: {value}\nupstream: h:1")).as_bytes());
        assert!(complaint.starts_with(":3:") && complaint.contains(told), "{value}: {complaint}");
    }
    refused(
        &route("destination: 10.9.0.1/16\nupstream: h:1"),
        ":3:18: routes[0].destination: `10.9.0.1/16`: host bits are set (did you mean 10.9.0.0/16?); expected a network such as 192.0.2.0/24 or \"2001:db8::/32\", or a single address",
    );
    refused(
        &route("client: [10.0.0.0/8, 10.0.0.0/8]\nupstream: h:1"),
        ":3:13: routes[0].client: duplicate network 10.0.0.0/8",
    );
    for (first, second) in [
        ("destination: [10.0.0.0/8, 10.1.0.0/16]", "destination: 10.0.0.0/8"),
        ("client: 10.0.0.0/8, destination: 10.0.0.0/8", "destination: 10.0.0.0/8, client: 10.0.0.0/8"),
    ] {
        let routes =
            format!("  - {{name: a, {first}, upstream: \"h:1\"}}\n  - {{name: b, {second}, upstream: \"h:2\"}}\n");
        refused(
            &format!("listen: 127.0.0.1:0\nroutes:\n{routes}"),
            ":4:5: routes[1]: routes[0] is already a catch-all route, and neither route is more specific (line 3)",
        );
    }
}

#[test]
fn b30_upstreams_that_make_no_sense_are_refused() {
    for (upstream, told) in [
        (
            "{endpoints: [\"h:1\", {address: \"i:1\", weight: 0}]}",
            "`0`: out of range; expected a whole number from 1 to 256; to send no connections to an endpoint, remove it from the list",
        ),
        ("{endpoints: {address: \"i:1\", weight: 257}}", "`257`: out of range; expected a whole number from 1 to 256"),
        (
            "{endpoints: [{address: \"i:1\", backup: true}]}",
            "upstream.endpoints: all endpoints are backups; expected at least one without `backup: true`",
        ),
        ("{endpoints: [\"h:1\", {weight: 2}]}", "missing key `address`"),
        ("{endpoints: \"192.0.2.1:1\", source: \"2001:db8::1\"}", "upstream.source: no endpoint has an IPv6 address"),
        (
            "{endpoints: \"h:1\", source: [192.0.2.1, 192.0.2.2]}",
            "two IPv4 addresses; expected at most one of each family",
        ),
        ("{endpoints: \"h:1\", source: [client, 192.0.2.2]}", "`client` cannot be combined with addresses"),
        ("{endpoints: \"h:1\", source: 0.0.0.0}", "`0.0.0.0`: expected an IP address of this machine"),
        ("{endpoints: \"h:1\", source: eth0}", "expected an IP address of this machine such as 192.0.2.9, or client"),
        ("{endpoints: \"h:1\", max_age: 0s}", "expected a duration from 1s to 366d with a unit, such as 12h"),
        (
            "{endpoints: \"h:1\", max_age: {after: 1h, jitter: 101%}}",
            "expected a percentage from 0% to 100%, such as 25%",
        ),
        (
            "{endpoints: \"h:1\", proxy_protocol: {version: v1, tlvs: {0xe0: a}}}",
            "proxy_protocol.tlvs: version 1 has no TLVs",
        ),
        (
            "{endpoints: \"h:1\", proxy_protocol: {version: v2, tlvs: {0x03: a}}}",
            "TLV 0x03 is the checksum of one header",
        ),
        ("{endpoints: \"h:1\", proxy_protocol: {version: v2, pass: 0x01}}", "TLV 0x01 is the client's ALPN"),
        ("{endpoints: \"h:1\", proxy_protocol: {version: v2, pass: 0x02}}", "TLV 0x02 is the client's SNI"),
        ("{endpoints: \"h:1\", proxy_protocol: {version: v2, tlvs: {0x04: a}}}", "TLV 0x04 is padding"),
        (
            "{endpoints: \"h:1\", proxy_protocol: {version: v2, tlvs: {0xe0: a}, pass: [0xe0]}}",
            "proxy_protocol.pass: TLV 0xe0 is also in `tlvs`: clients could send another value",
        ),
        ("{endpoints: \"h:1\", proxy_protocol: v3}", "expected v1 or v2"),
        ("{endpoints: \"h:1\", balance: source}", "source_hash"),
    ] {
        let complaint = complaint(route(&format!("upstream: {upstream}")).as_bytes());
        assert!(complaint.starts_with(":3:") && complaint.contains(told), "{upstream}: {complaint}");
    }
}
