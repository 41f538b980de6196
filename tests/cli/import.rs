//! `snigate import`: configurations of HAProxy and nginx.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::backend::free;
use crate::support::tls::Authority;
use crate::support::{Backend, Client, Hello, Router, eventually, snigate};

/// HAProxy terminates TLS in front of DC/OS Kubernetes; one cluster, whose server is not verified.
const ONE_CLUSTER: &str = "\
global
  log 127.0.0.1 local0
  maxconn 20000
  pidfile /var/run/haproxy.pid
  daemon

defaults
  log global
  option dontlognull
  timeout connect 10s
  timeout client 86400s
  timeout server 86400s

frontend fe
  # The public address.
  bind :6443 ssl crt /etc/ssl/snakeoil.pem
  mode http
  default_backend kubernetes

backend kubernetes
  mode http
  balance leastconn
  server kubernetes apiserver.kubernetes.l4lb.thisdcos.directory:6443 ssl verify none check
";

/// The same for two clusters, with verification.
const TWO_CLUSTERS: &str = "\
defaults
  mode tcp
  timeout connect 10s
  timeout client 86400s
  timeout server 86400s

frontend fe
  bind *:6443 ssl crt /etc/ssl/snakeoil.pem
  use_backend kubernetes01 if { ssl_fc_sni devkubernetes01.example.com }
  use_backend kubernetes02 if { ssl_fc_sni devkubernetes02.example.com }
  default_backend kubernetes01

backend kubernetes01
  balance leastconn
  server s1 apiserver.devkubernetes01.l4lb.thisdcos.directory:6443 check ssl verify required ca-file CA/one.pem

backend kubernetes02
  option httpchk GET /readyz
  balance leastconn
  server s1 apiserver.devkubernetes02.l4lb.thisdcos.directory:6443 check inter 2s fall 3 rise 2 fastinter 1s ssl verify required ca-file CA/two.pem verifyhost kubernetes
";

const PASSTHROUGH: &str = r#"global
    nbthread 4
    hard-stop-after 30s
    frobnicate
defaults
    mode tcp
    timeout connect 5000
    timeout client 50s
    timeout server 1h
    option tcplog
    default-server inter 3s fall 3
frontend web
    mode http
    bind :80
    redirect scheme https
frontend tls
    bind :6443,10.0.0.1:8443
    bind *:443
    bind :::443 v4v6 accept-proxy
    bind unix@/run/x.sock
    tcp-request inspect-delay 5s
    acl internal src 10.0.0.0/8 192.168.0.1
    acl blocked src 10.66.0.1/16
    tcp-request connection reject if blocked
    tcp-request connection reject if !internal
    tcp-request content accept if { req_ssl_hello_type 1 }
    tcp-request content reject
    acl a req.ssl_sni -i A.example.com. a2.example.com
    acl b req.ssl_sni -m end -i .b.example.com
    acl b req_ssl_sni -i b.example.com
    acl r req.ssl_sni -m reg ^x
    use_backend one if a || b
    use_backend two if { req.ssl_sni -i x.b.example.com a.example.com c.example.com 10.0.0.1 }
    use_backend two if r
    use_backend two if !a
    use_backend two unless a
    use_backend two if { req.ssl_sni -i i.example.com } internal
    use_backend two if { hdr(host) -i h.example.com }
    use_backend gone if { req.ssl_sni -i g.example.com }
    use_backend %[req.ssl_sni,lower,map(hosts.map)] if { req.ssl_sni -m found }
    default_backend two
listen direct
    bind 127.0.0.1:7443
    balance roundrobin
    option httpchk GET /readyz
    http-check expect status 200
    timeout check 2s
    server m1 10.0.0.2:6443 check check-ssl verify none
    server m2 10.0.0.3:6443 check check-ssl verify none backup
    server m3 127.0.0.1:7443 check check-ssl verify none
    server m4 10.0.0.4:6443 disabled
backend one
    balance source
    server-template s 3 api.one.example:6443 check resolvers dns init-addr none
    server s4 [2001:db8::1]:6443 weight 5 maxconn 100 send-proxy-v2 check slowstart 10s
backend two
    balance random(2)
    server s1 "api.two.example:6443" frob
    server s2 unix@/x
    server s3 'unclosed
backend unused
    server s1 10.0.0.5:1
resolvers dns
    nameserver a 10.0.0.53:53
"#;

const HOSTS: &str = "m1.example.com two\n# a comment\n\nm2.example.com one\nm3.example.com nobody\n*.m.example.com one\na2.example.com two\n";

const NGINX: &str = r#"user www-data;
events { worker_connections 1024; }
stream {
    log_format basic '$remote_addr [$time_local] '
                     '$protocol';
    map $ssl_preread_server_name $name {
        hostnames;
        default rest;
        a.example.com up1;
        *.b.example.com up2;
        .c.example.com up3;
        ~^x\d+ up1;
        d.example.com 10.0.0.9:6443;
        e.example.com "";
        A.example.com up2;
        "" rest;
        include more.map;
    }
    upstream up1 { least_conn; server api.one.example:6443 max_fails=3 fail_timeout=10s; server 10.0.0.2:6443 backup; }
    upstream up2 {
        server unix:/run/x.sock;
        server api.two.example:6443 weight=5;
    }
    upstream up3 { hash $remote_addr; server 10.0.0.3:6443; }
    upstream rest { random two least_conn; server 10.0.0.4:6443; }
    upstream unused { server 10.0.0.5:1; }
    server {
        listen 443;
        listen [::]:443;
        ssl_preread on;
        proxy_pass $name;
        proxy_connect_timeout 1s;
        proxy_timeout 10m;
        preread_timeout 5;
        proxy_protocol on;
        allow 10.0.0.0/8;
        deny all;
    }
    server {
        listen 8443 reuseport;
        listen 53 udp;
        proxy_pass up1;
        frobnicate yes;
    }
}
http {
    server { listen 80; }
}
"#;

struct Imported {
    directory: TempDir,
    code: Option<i32>,
    text: String,
    error: String,
}

/// With `--lossy`, in a directory with CA files and a map. The result is `snigate.yaml` there.
fn import(from: &str, source: impl AsRef<[u8]>) -> Imported {
    import_with(from, source, &["--lossy"], &[])
}

/// The same with these files.
fn import_with(from: &str, source: impl AsRef<[u8]>, arguments: &[&str], files: &[(&str, &str)]) -> Imported {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("CA")).unwrap();
    for name in ["CA/one.pem", "CA/two.pem"] {
        Authority::new().write(directory.path(), name);
    }
    std::fs::write(at("hosts.map"), HOSTS).unwrap();
    std::fs::write(at("source.cfg"), source).unwrap();
    for (name, text) in files {
        std::fs::write(at(name), text).unwrap();
    }
    let mut command = snigate();
    let output =
        command.args(["import", from, "source.cfg"]).args(arguments).current_dir(directory.path()).output().unwrap();
    std::fs::write(at("snigate.yaml"), &output.stdout).unwrap();
    let [text, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Imported { code: output.status.code(), text, error, directory }
}

impl Imported {
    /// Without comments and empty lines.
    fn config(&self) -> String {
        let is_comment = |line: &&str| line.trim_start().starts_with('#') || line.is_empty();
        self.text.lines().filter(|line| !is_comment(line)).map(|line| format!("{line}\n")).collect()
    }

    fn check(&self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.error);
        let output = snigate().arg("check").arg("snigate.yaml").current_dir(self.directory.path()).output().unwrap();
        assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), self.text);
        String::from_utf8(output.stdout).unwrap()
    }

    /// The notes for a location, each on one line.
    fn note(&self, place: &str) -> String {
        let notes = self.text.split("#\n").filter(|note| note.starts_with(&format!("# {place}:")));
        let notes: Vec<String> = notes.map(|note| note.replace("\n#     ", " ")).collect();
        assert!(!notes.is_empty(), "{place} in\n{}", self.text);
        notes.join("\n")
    }

    /// Every line with content is translated, or has a note.
    fn accounts_for(&self, source: &str) {
        let translated = self.text.lines().find_map(|line| line.strip_prefix("# Translated lines: ")).unwrap();
        let mut seen = BTreeSet::new();
        let mut add = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            seen.extend(first.parse::<usize>().unwrap()..=last.parse::<usize>().unwrap());
        };
        translated.trim_end_matches('.').split(", ").for_each(&mut add);
        let not_needed = self
            .text
            .lines()
            .find_map(|line| line.strip_prefix("# Not needed in snigate (logging, workers, buffers and so on): "));
        let not_needed = not_needed.map_or("", |line| line.split(", and ").next().unwrap().trim_end_matches('.'));
        not_needed.split(", ").filter(|range| !range.is_empty()).for_each(&mut add);
        for note in self.text.lines().filter_map(|line| line.strip_prefix("# line")) {
            add(note.trim_start_matches("s ").trim_start().split(':').next().unwrap());
        }
        for (index, line) in source.lines().enumerate() {
            let is_empty = line.trim().is_empty() || line.trim().starts_with('#');
            assert!(is_empty || seen.contains(&(index + 1)), "line {}: {line}\n{}", index + 1, self.text);
        }
    }
}

#[test]
fn the_recipe_for_one_cluster() {
    let imported = import("haproxy", ONE_CLUSTER);
    assert_eq!(
        imported.config(),
        "listen: 0.0.0.0:6443
routes:
  - name: kubernetes
    upstream:
      endpoints:
        - apiserver.kubernetes.l4lb.thisdcos.directory:6443
      balance: least_connections
      connect: {timeout: 10s}
      health_check:
        tls: {verify: false}
timeouts:
  idle: 24h
"
    );
    imported.check();
    imported.accounts_for(ONE_CLUSTER);
    assert!(imported.note("line 16").contains("is not in that certificate's SAN, they set `tls-server-name`"));
    assert!(
        imported.text.contains("# Not needed in snigate (logging, workers, buffers and so on): 2-5, 8-9."),
        "{}",
        imported.text
    );
}

#[test]
fn the_recipe_for_two_clusters() {
    let imported = import("haproxy", TWO_CLUSTERS);
    let expected = "
routes:
  - name: kubernetes01
    sni:
      - devkubernetes01.example.com
      # - apiserver.devkubernetes01.l4lb.thisdcos.directory
    upstream:
      endpoints:
        - apiserver.devkubernetes01.l4lb.thisdcos.directory:6443
      balance: least_connections
      connect: {timeout: 10s}
      health_check:
        tls: {ca_file: CA/one.pem}

  - name: kubernetes02
    sni:
      - devkubernetes02.example.com
      # - apiserver.devkubernetes02.l4lb.thisdcos.directory
    upstream:
      endpoints:
        - apiserver.devkubernetes02.l4lb.thisdcos.directory:6443
      balance: least_connections
      connect: {timeout: 10s}
      health_check:
        interval: 2s
        rise: 2
        fall: 3
        tls: {ca_file: CA/two.pem, server_name: kubernetes}
        http: {path: /readyz}

  - name: kubernetes01-default
    upstream:
";
    assert!(imported.text.contains(expected), "{}", imported.text);
    let checked = imported.check();
    imported.accounts_for(TWO_CLUSTERS);
    assert!(checked.contains("two.pem, name kubernetes), GET /readyz"), "{checked}");
    assert!(imported.note("line 20").contains("`fastinter`"));

    let with_aliases = imported.text.replace("      # - apiserver", "      - apiserver");
    std::fs::write(imported.directory.path().join("snigate.yaml"), with_aliases).unwrap();
    imported.check();

    let without_files = import("haproxy", TWO_CLUSTERS.replace("CA/", "/nowhere/"));
    assert_eq!(without_files.code, Some(0));
    assert!(without_files.note("line 15").contains("/nowhere/one.pem: No such file"), "{}", without_files.text);
    assert!(without_files.text.contains("tls: {ca_file: /nowhere/one.pem}"));
}

#[test]
fn haproxy_that_lets_tls_through() {
    let imported = import("haproxy", PASSTHROUGH);
    assert_eq!(
        imported.config(),
        r#"listen:
  - name: tls
    address: 0.0.0.0:6443
    allow: [10.0.0.0/8, 192.168.0.1/32]
    deny: [10.66.0.0/16]
  - name: tls-2
    address: 10.0.0.1:8443
    allow: [10.0.0.0/8, 192.168.0.1/32]
    deny: [10.66.0.0/16]
  - name: tls-3
    address: "[::]:443"
    allow: [10.0.0.0/8, 192.168.0.1/32]
    deny: [10.66.0.0/16]
  - name: direct
    address: 127.0.0.1:7443
routes:
  - name: one
    sni:
      - a.example.com
      - a2.example.com
      - "*.b.example.com"
      - b.example.com
    listener: [tls, tls-2, tls-3]
    upstream:
      endpoints:
        - api.one.example:6443
      balance: source_hash
      connect: {timeout: 5s}
      health_check:
        interval: 3s
        fall: 3
  - name: two
    listener: [tls, tls-2, tls-3]
    upstream:
      endpoints:
        - api.two.example:6443
      balance: random
      connect: {timeout: 5s}
  - name: direct
    listener: direct
    upstream:
      endpoints:
        - 10.0.0.2:6443
        - {address: 10.0.0.3:6443, backup: true}
      balance: round_robin
      connect: {timeout: 5s}
      health_check:
        interval: 3s
        timeout: 2s
        fall: 3
        tls: {verify: false}
        http: {path: /readyz}
timeouts:
  idle: 1h
  drain: 30s
"#
    );
    imported.check();
    imported.accounts_for(PASSTHROUGH);
    for (place, expected) in [
        ("line 4", "unknown keyword `frobnicate`"),
        ("lines 12-15", "plain HTTP"),
        ("line 19", "Clients that send a PROXY header are rejected"),
        ("line 20", "`unix@/run/x.sock` left out"),
        ("line 21", "10s"),
        ("line 27", "never used: the rule in line 26"),
        ("line 31", "`^x` is translated as names that start with x"),
        ("line 36", "never used"),
        ("line 37", "no effect for i.example.com: the rule in line 35"),
        ("line 39", "no effect for g.example.com: the rule in line 35"),
        ("line 50", "forwarding loop"),
        ("line 51", "disabled in the source"),
        ("line 53", "not to the same one as the source does"),
        ("line 54", "the one in line 55 differs"),
        ("line 55", "left out: it gets a PROXY v2 header, the server in line 54 gets no PROXY header"),
    ] {
        assert!(imported.note(place).contains(expected), "{place}: {expected} in {}", imported.note(place));
    }
    assert!(imported.note("hosts.map, line 5").contains("there is no backend `nobody`"));
    assert!(imported.note("hosts.map, line 7").contains("no effect for a2.example.com: the rule in line 32"));
}

#[test]
fn nginx_with_a_map() {
    let imported = import("nginx", NGINX);
    assert_eq!(
        imported.config(),
        r#"listen:
  - name: port-443
    address: "[::]:443"
    allow: [10.0.0.0/8]
  - name: port-8443
    address: 0.0.0.0:8443
routes:
  - name: up1
    sni: a.example.com
    listener: port-443
    upstream:
      endpoints:
        - api.one.example:6443
        - {address: 10.0.0.2:6443, backup: true}
      balance: least_connections
      connect: {timeout: 1s}
      proxy_protocol: v1
  - name: 10.0.0.9:6443
    sni: d.example.com
    listener: port-443
    upstream:
      endpoints:
        - 10.0.0.9:6443
      connect: {timeout: 1s}
      proxy_protocol: v1
  - name: rejected
    sni: e.example.com
    listener: port-443
    deny: [0.0.0.0/0, "::/0"]
    upstream: 192.0.2.1:9
  - name: up2
    sni: "*.b.example.com"
    listener: port-443
    upstream:
      endpoints:
        - api.two.example:6443
      connect: {timeout: 1s}
      proxy_protocol: v1
  - name: up3
    sni:
      - c.example.com
      - "*.c.example.com"
    listener: port-443
    upstream:
      endpoints:
        - 10.0.0.3:6443
      balance: source_hash
      connect: {timeout: 1s}
      proxy_protocol: v1
  - name: rest
    listener: port-443
    upstream:
      endpoints:
        - 10.0.0.4:6443
      balance: random
      connect: {timeout: 1s}
      proxy_protocol: v1
  - name: up1-2
    listener: port-8443
    upstream:
      endpoints:
        - api.one.example:6443
        - {address: 10.0.0.2:6443, backup: true}
      balance: least_connections
timeouts:
  hello: 5s
  idle: 10m
"#
    );
    imported.check();
    imported.accounts_for(NGINX);
    for (place, expected) in [
        ("line 12", "the regular expression"),
        ("line 14", "no upstream: these clients are rejected, as in nginx"),
        ("line 15", "no effect for a.example.com: the rule in line 9"),
        ("line 17", "`include more.map` cannot be read"),
        ("line 21", "Unix sockets are not supported"),
        ("line 24", "not to the same one as the source does"),
        ("line 26", "no translated `server` uses `unused`"),
        ("line 41", "TCP only"),
        ("line 43", "`frobnicate`"),
        ("lines 46-48", "only `stream` blocks are"),
    ] {
        assert!(imported.note(place).contains(expected), "{place}: {expected} in {}", imported.note(place));
    }
    let on_one_line: String = NGINX.lines().map(|line| format!("{} ", line.trim_start())).collect();
    let on_one_line = import("nginx", on_one_line);
    assert_eq!(on_one_line.config(), imported.config());
    assert!(on_one_line.note("line 1").contains("`frobnicate`: no equivalent"));
}

/// Translates sources, each with parts of the result, some of which are notes.
fn results_have(from: &str, cases: &[(&str, &[&str])]) {
    for (source, expected) in cases {
        let imported = import(from, source);
        let text = imported.text.replace("\n#     ", " ");
        for expected in *expected {
            assert!(text.contains(expected), "{expected}\nof\n{source}\nin\n{}{}", imported.text, imported.error);
        }
        imported.check();
        imported.accounts_for(source);
    }
}

#[test]
fn weights_and_backups_are_carried_over() {
    results_have(
        "haproxy",
        &[
            (
                "listen f\n bind :1\n server s 10.0.0.1:2 weight 10\n server t api.example:2 backup\n server u 10.0.0.3:2",
                &[
                    "- {address: 10.0.0.1:2, weight: 10}\n        - {address: api.example:2, backup: true}\n        - 10.0.0.3:2\n",
                    "`weight` counts for each address of the hostname",
                ],
            ),
            // Equal weights are none.
            (
                "listen f\n bind :1\n default-server weight 0\n server s 10.0.0.1:2 weight 256\n server t 10.0.0.2:2 weight 256",
                &["- 10.0.0.1:2\n        - 10.0.0.2:2\n"],
            ),
            ("listen f\n bind :1\n server s 10.0.0.1:2 weight 257\n", &["`weight 257`: not a number from 0 to 256"]),
            (
                "listen f\n bind :1\n server s 10.0.0.1:2\n server t 10.0.0.2:2 backup\n server u 10.0.0.3:2 backup",
                &[
                    "# line 5: server u 10.0.0.3:2 backup without `option allbackups` HAProxy uses only the first backup",
                ],
            ),
            // Without other servers, backups are used all the time.
            (
                "listen f\n bind :1\n server s 10.0.0.1:2 disabled\n server t 10.0.0.2:2 backup\n server u 10.0.0.3:2 backup",
                &["- 10.0.0.2:2\n        - {address: 10.0.0.3:2, backup: true}\n"],
            ),
            (
                "listen f\n bind :1\n option allbackups\n server t 10.0.0.2:2 backup\n server u 10.0.0.3:2 backup",
                &["- 10.0.0.2:2\n        - 10.0.0.3:2\n"],
            ),
            (
                "listen f\n bind :1\n server s unix@/run/x\n server t 10.0.0.2:2 backup",
                &["upstream: 10.0.0.2:2\n", "# line 4: server t 10.0.0.2:2 backup this backup is used all the time"],
            ),
        ],
    );
    results_have(
        "nginx",
        &[
            (
                "upstream u { server 10.0.0.1:2 weight=3; server 10.0.0.2:2 backup; server 10.0.0.3:2 down; }\nserver { listen 1; proxy_pass u; }",
                &[
                    "- {address: 10.0.0.1:2, weight: 3}\n        - {address: 10.0.0.2:2, backup: true}\n",
                    "`10.0.0.3:2` left out: it is marked as `down`",
                ],
            ),
            (
                "upstream u { server 10.0.0.1:2 weight=1000; server 10.0.0.2:2 weight=500; server 10.0.0.3:2; }\nserver { listen 1; proxy_pass u; }",
                &["weight: 256}", "weight: 128}", "        - 10.0.0.3:2\n", "`weight=500` becomes 128"],
            ),
        ],
    );
    let all = import(
        "haproxy",
        "listen f\n bind :1\n option allbackups\n server s 10.0.0.1:2\n server t 10.0.0.2:2 backup\n server u 10.0.0.3:2 backup\n",
    );
    assert!(all.text.contains("10.0.0.3:2, backup: true}") && !all.text.contains("allbackups"), "{}", all.text);
}

#[test]
fn sources_of_connections_are_carried_over() {
    let needs = "needs the capability CAP_NET_ADMIN";
    let server = " server s 10.0.0.1:2";
    let listen = |lines: &str| format!("listen f\n bind :1\n{lines}\n");
    for (lines, expected) in [
        (format!("{server} source 10.0.9.9"), &["source: 10.0.9.9\n"][..]),
        (format!(" default-server source 10.0.9.9:0\n{server}"), &["source: 10.0.9.9\n"]),
        (
            format!("{server}\n source 10.0.9.9:1024-2048 interface eth0"),
            &["source: 10.0.9.9\n", "the ports of `source`", "`interface` ignored"],
        ),
        (format!(" source 10.0.9.9\n{server} source 0.0.0.0"), &["upstream: 10.0.0.1:2\n"]),
        (format!(" source 0.0.0.0 usesrc clientip\n{server}"), &["source: client\n", needs]),
        (format!("{server} source 0.0.0.0 usesrc client"), &["source: client\n", needs]),
        (
            format!("{server} source 0.0.0.0 usesrc hdr_ip(x)"),
            &["upstream: 10.0.0.1:2\n", "`usesrc hdr_ip(x)` ignored"],
        ),
        (format!("{server} source eth0.example"), &["`source eth0.example` ignored"]),
        (format!("{server} source 10.0.9.9\n server t [::1]:2 source ::2"), &["source: [10.0.9.9, \"::2\"]\n"]),
        (
            format!("{server} source 10.0.9.9\n server t 10.0.0.2:2"),
            &["line 4: server t 10.0.0.2:2 its `source` differs"],
        ),
        (format!("{server} source ::9"), &["upstream: 10.0.0.1:2\n"]),
        (" source ::9\n server t api.example:1\n".into(), &["source: \"::9\"\n"]),
    ] {
        results_have("haproxy", &[(&listen(&lines), expected)]);
    }
    let server = "server { listen 1; proxy_pass 10.0.0.1:2;";
    for (line, expected) in [
        ("proxy_bind 10.0.9.9;", &["source: 10.0.9.9\n"][..]),
        ("proxy_bind off;", &["upstream: 10.0.0.1:2\n"]),
        ("proxy_bind $remote_addr transparent;", &["source: client\n", needs]),
        ("proxy_bind $server_addr;", &["`proxy_bind $server_addr` ignored"]),
        ("proxy_bind 10.0.9.9 transparent;", &["`proxy_bind 10.0.9.9 transparent` ignored"]),
        ("proxy_bind ::9;", &["the source address ::9 is left out"]),
    ] {
        results_have("nginx", &[(&format!("{server}\n{line}\n}}"), expected)]);
    }
}

#[test]
fn hashes_of_the_client_address_are_carried_over() {
    let other = "not to the same one as the source does";
    for (balance, expected) in [
        ("source", &["balance: source_hash", other][..]),
        ("source\n hash-type consistent", &["balance: source_hash", "`source_hash` is consistent"]),
        ("hash src", &["balance: source_hash", other]),
        ("hash src,ipmask(24)", &["`balance hash src,ipmask(24)` ignored"]),
        ("first", &["`balance first` ignored: no equivalent"]),
    ] {
        results_have(
            "haproxy",
            &[(&format!("listen f\n bind :1\n balance {balance}\n server s 10.0.0.1:2"), expected)],
        );
    }
    for (hash, expected) in [
        ("$remote_addr", &["balance: source_hash", other][..]),
        ("${binary_remote_addr} consistent", &["balance: source_hash", other]),
        ("$remote_addr$remote_port", &["`hash $remote_addr$remote_port` ignored"]),
        ("$ssl_preread_server_name", &["`hash $ssl_preread_server_name` ignored"]),
    ] {
        let source =
            format!("upstream u {{ server 10.0.0.1:2;\nhash {hash};\n}}\nserver {{ listen 1; proxy_pass u; }}");
        results_have("nginx", &[(&source, expected)]);
    }
}

#[test]
fn constant_tlvs_are_carried_over() {
    for (parameters, expected) in [
        (
            "send-proxy-v2 set-proxy-v2-tlv-fmt(0xe0) kubernetes01 set-proxy-v2-tlv-fmt(225) 5%%",
            &["proxy_protocol:\n        version: v2\n        tlvs: {0xe0: kubernetes01, 0xe1: \"5%\"}\n"][..],
        ),
        ("send-proxy-v2 set-proxy-v2-tlv-fmt(0xe0) 0x10", &["tlvs: {0xe0: \"0x30783130\"}"]),
        ("send-proxy-v2 set-proxy-v2-tlv-fmt(0xe0) %[fc_pp_tlv(0xE0)]", &["pass: [0xe0]"]),
        (
            "send-proxy-v2 set-proxy-v2-tlv-fmt(0xe0) %[src]",
            &["proxy_protocol: v2", "%[src]` left out: the value of a TLV"],
        ),
        ("send-proxy-v2 set-proxy-v2-tlv-fmt(0x02) a.example", &["proxy_protocol: v2", "sends the client's SNI"]),
        ("send-proxy-v2 set-proxy-v2-tlv-fmt(x) a", &["expected the number of a TLV"]),
        ("set-proxy-v2-tlv-fmt(0xe0) a", &["no effect without `send-proxy-v2`"]),
        ("send-proxy-v2 proxy-v2-options authority", &["proxy_protocol: v2", "`proxy-v2-options authority` ignored"]),
        (
            "send-proxy-v2\n server t 10.0.0.2:2 send-proxy-v2 set-proxy-v2-tlv-fmt(0xe0) a",
            &["left out: it gets a PROXY v2 header with TLV 0xe0=a, the server in line 3 gets a PROXY v2 header,"],
        ),
    ] {
        results_have("haproxy", &[(&format!("listen f\n bind :1\n server s 10.0.0.1:2 {parameters}\n"), expected)]);
    }
}

#[test]
fn peers_that_send_proxy_headers_are_carried_over() {
    let rest = " default_backend b\nbackend b\n server s 10.0.0.1:1\n";
    let expect = "tcp-request connection expect-proxy layer4";
    let peer = "before HAProxy reads its PROXY header";
    for (rules, expected) in [
        (
            format!(" {expect} if {{ src 10.1.0.0/16 }}\n"),
            &["accept_proxy: {from: [10.1.0.0/16], others: direct}", "# Translated lines: 1-6.\n"][..],
        ),
        (
            format!(" acl lb src 10.1.0.1\n {expect} if lb\n {expect} if {{ src ::1 }}\n"),
            &["from: [10.1.0.1/32, \"::1/128\"], others: direct}"],
        ),
        (format!(" {expect}\n"), &["accept_proxy: {from: [0.0.0.0/0, \"::/0\"]}"]),
        (format!(" {expect} if {{ src 10.1.0.0/16 }}\n {expect}\n"), &["accept_proxy: {from: [0.0.0.0/0, \"::/0\"]}"]),
        (
            format!(" {expect} unless {{ src 10.1.0.0/16 }}\n"),
            &["listen: 0.0.0.0:1\n", "Clients that send a PROXY header are rejected"],
        ),
        (
            format!(" tcp-request connection accept if {{ src 10.1.0.1 }}\n {expect} if {{ src 10.1.0.0/16 }}\n"),
            &["clients that an earlier rule accepts must send", peer],
        ),
        (" bind :2 accept-proxy\n tcp-request connection reject if !{ src 10.1.0.0/16 }\n".into(), &[peer]),
    ] {
        results_have("haproxy", &[(&format!("frontend f\n bind :1\n{rules}{rest}"), expected)]);
    }
    let geo = "geo $to {\n10.0.0.0/8 10.9.0.2:1;\ndefault 10.9.0.1:1;\n}\n";
    let server = |more: &str| format!("{geo}server {{ listen 1 proxy_protocol; {more} proxy_pass $to; }}\n");
    let peer = "without `set_real_ip_from` nginx compares the peer's address";
    results_have(
        "nginx",
        &[(&server(""), &[peer]), (&server("set_real_ip_from 10.1.0.0/16;"), &["from: [10.1.0.0/16]}"])],
    );
}

/// What `explain` says about a client.
fn explain(imported: &Imported, arguments: &[&str]) -> String {
    let mut command = snigate();
    command.args(["explain", "-c", "snigate.yaml"]).args(arguments);
    let output = command.current_dir(imported.directory.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Without `--lossy`: parts of the result, and the endpoints that clients are routed to.
fn routes_clients(from: &str, source: &str, expected: &[&str], clients: &[(&[&str], &str)]) {
    let imported = import_with(from, source, &[], &[]);
    assert_eq!(imported.code, Some(0), "{source}\n{}", imported.error);
    imported.check();
    imported.accounts_for(source);
    for expected in expected {
        assert!(imported.text.contains(expected), "{expected}\nof\n{source}\nin\n{}", imported.text);
    }
    for (arguments, endpoint) in clients {
        let output = explain(&imported, arguments);
        let is_served = output.contains("10.9.0.") && !output.contains(" denied: ");
        let is_right = is_served != endpoint.is_empty() && output.contains(endpoint);
        assert!(is_right, "{arguments:?} is not {endpoint}\nof\n{source}\nin\n{}\n{output}", imported.text);
    }
}

const FRONT: &str = "frontend f\n mode tcp\n bind :6443\n tcp-request inspect-delay 10s\n";
const BACK: &str =
    "backend one\n server s 10.9.0.1:1\nbackend two\n server s 10.9.0.2:1\nbackend three\n server s 10.9.0.3:1\n";

#[test]
fn a_backend_for_a_part_of_anothers_network_admits_nobody_else() {
    // Of as many clients each: the first has the part that the second lacks.
    for (inner, outer) in [("10.0.0.0/9", "10.0.0.0/8"), ("127.0.0.0/9", "127.0.0.0/8")] {
        let (low, high) = (inner.replace(".0.0.0/9", ".1.2.3"), inner.replace(".0.0.0/9", ".200.2.3"));
        let clients: &[(&[&str], &str)] = &[
            (&["--no-sni", "--client", &low], "10.9.0.1:1"),
            (&["--no-sni", "--client", &high], "10.9.0.2:1"),
            (&["--no-sni", "--client", "198.51.100.1"], ""),
            (&["--sni", "a.example", "--client", "198.51.100.1"], ""),
        ];
        let rules = format!(" use_backend one if {{ src {inner} }}\n use_backend two if {{ src {outer} }}\n");
        routes_clients("haproxy", &format!("{FRONT}{rules}{BACK}"), &[], clients);
    }
}

#[test]
fn clients_choose_backends_by_their_network() {
    routes_clients(
        "haproxy",
        &format!(
            "{FRONT} use_backend two if {{ req.ssl_sni -i a.example }} {{ src 10.1.0.0/16 }}
 use_backend three if {{ req.ssl_sni -i a.example }} {{ src 10.0.0.0/8 192.168.0.1 }}\n default_backend one\n{BACK}"
        ),
        &["sni: a.example\n    client: [10.0.0.0/8, 192.168.0.1/32]\n    upstream: 10.9.0.3:1\n"],
        &[
            (&["--sni", "a.example", "--client", "10.1.2.3"], "10.9.0.2:1"),
            (&["--sni", "a.example", "--client", "10.2.2.3"], "10.9.0.3:1"),
            (&["--sni", "a.example", "--client", "192.168.0.1"], "10.9.0.3:1"),
            (&["--sni", "a.example", "--client", "192.0.2.1"], "10.9.0.1:1"),
            (&["--sni", "b.example", "--client", "10.1.2.3"], "10.9.0.1:1"),
        ],
    );
    // Some of the clients are rejected.
    routes_clients(
        "haproxy",
        &format!(
            "{FRONT} tcp-request content reject if {{ req.ssl_sni -i a.example }} {{ src 10.1.0.0/16 }}
 use_backend two if {{ src 10.0.0.0/8 }}\n use_backend one if {{ src ::/0 }}\n{BACK}"
        ),
        &["client: \"::/0\""],
        &[
            (&["--sni", "a.example", "--client", "10.1.2.3"], ""),
            (&["--sni", "a.example", "--client", "10.2.2.3"], "10.9.0.2:1"),
            (&["--sni", "b.example", "--client", "10.1.2.3"], "10.9.0.2:1"),
            (&["--no-sni", "--client", "10.1.2.3"], "10.9.0.2:1"),
            (&["--sni", "b.example", "--client", "::1"], "10.9.0.1:1"),
            (&["--sni", "b.example", "--client", "192.0.2.1"], ""),
        ],
    );
    routes_clients(
        "nginx",
        "geo $to {\ndefault 10.9.0.1:1;\n10.0.0.0/8 10.9.0.2:1;\n10.1.0.0/16 10.9.0.3:1;\n}\nserver { listen 1; ssl_preread on; proxy_pass $to; }",
        &["client: 10.1.0.0/16", "client: 10.0.0.0/8"],
        &[
            (&["--sni", "a.example", "--client", "10.1.2.3"], "10.9.0.3:1"),
            (&["--sni", "a.example", "--client", "10.2.2.3"], "10.9.0.2:1"),
            (&["--no-sni", "--client", "192.0.2.1"], "10.9.0.1:1"),
        ],
    );
}

#[test]
fn clients_choose_backends_by_the_address_they_connect_to() {
    routes_clients(
        "haproxy",
        &format!(
            "{FRONT} acl second dst 172.31.0.2\n acl service dst 172.31.0.0/16
 use_backend two if second\n use_backend three if service {{ src 10.0.0.0/8 }}
 use_backend one if !service\n{BACK}"
        ),
        &[
            "destination: 172.31.0.2/32\n    upstream: 10.9.0.2:1",
            "destination: 172.31.0.0/16\n    allow: [10.0.0.0/8]",
        ],
        &[
            (&["--no-sni", "--destination", "172.31.0.2", "--client", "192.0.2.1"], "10.9.0.2:1"),
            (&["--sni", "a.example", "--destination", "172.31.0.1", "--client", "10.0.0.1"], "10.9.0.3:1"),
            (&["--no-sni", "--destination", "172.31.0.1", "--client", "192.0.2.1"], ""),
            (&["--no-sni", "--destination", "192.0.2.9", "--client", "192.0.2.1"], "10.9.0.1:1"),
        ],
    );
}

#[test]
fn clients_choose_backends_by_a_tlv() {
    let front = FRONT.replace(":6443", ":6443 accept-proxy");
    let rules = " use_backend two if { fc_pp_tlv(0xE0) k2 }\n use_backend three if { fc_pp_tlv(224) -m bin 6b33 00ff }
 use_backend three if { fc_pp_authority a.example }\n default_backend one\n";
    let (with_header, without) = (&["proxy_tlv: {0xe0: k2}", "proxy_tlv: {0xe0: k3}", "{0xe0: \"0x00ff\"}"], &[]);
    let exact = rules.replace(" use_backend three if { fc_pp_authority a.example }\n", "");
    let of = |tlv: &'static str| ["--sni", "a.example", "--tlv", tlv];
    routes_clients(
        "haproxy",
        &format!("{front}{exact}{BACK}"),
        with_header,
        &[
            (&of("0xe0=k2"), "10.9.0.2:1"),
            (&of("0xe0=k3"), "10.9.0.3:1"),
            (&of("0xe0=K2"), "10.9.0.1:1"),
            (&of("0xe1=k2"), "10.9.0.1:1"),
        ],
    );
    // Without PROXY headers no rule matches.
    routes_clients("haproxy", &format!("{FRONT}{exact}{BACK}"), without, &[(&["--sni", "a.example"], "10.9.0.1:1")]);
    // Two TLVs could both match a client.
    let imported = import("haproxy", format!("{front}{rules}{BACK}"));
    assert!(imported.note("line 7").contains("it tests TLV 0x02, another rule tests TLV 0xe0"), "{}", imported.text);
    for (test, reason) in [
        ("fc_pp_tlv(0xe0) -i k2", "`proxy_tlv` of a route does not ignore case"),
        ("fc_pp_tlv(0xe0) -m beg k", "`proxy_tlv` of a route compares whole values; `-m beg` does not"),
        ("fc_pp_tlv(0xe0) -m bin 6b3", "`6b3` is not hexadecimal"),
        ("fc_pp_tlv(0xe0) -m found", "`-m found`"),
    ] {
        let source = format!("{front} use_backend two if {{ {test} }}\n default_backend one\n{BACK}");
        let imported = import_with("haproxy", source, &[], &[]);
        assert!(imported.code == Some(1) && imported.error.contains("line 5: "), "{test}: {}", imported.error);
        assert!(imported.error.contains(reason), "{reason} in {}", imported.error);
    }
}

#[test]
fn clients_choose_backends_by_alpn() {
    let of = |name: &'static str, alpn: &'static str| ["--sni", name, "--alpn", alpn, "--client", "192.0.2.1"];
    routes_clients(
        "haproxy",
        &format!(
            "{FRONT} use_backend two if {{ req.ssl_sni -i a.example }} {{ req.ssl_alpn -m sub h2 }}
 use_backend three if {{ req.ssl_sni -i b.example }} {{ req.ssl_alpn acme-tls/1 }}\n default_backend one\n{BACK}"
        ),
        &["sni: a.example\n    alpn: [h2]\n", "sni: b.example\n    alpn: [acme-tls/1]\n"],
        &[
            (&of("a.example", "http/1.1,h2"), "10.9.0.2:1"),
            (&of("a.example", "acme-tls/1"), "10.9.0.1:1"),
            (&of("b.example", "acme-tls/1"), "10.9.0.3:1"),
            (&of("b.example", "h2"), "10.9.0.1:1"),
        ],
    );
    // A route with `client` comes before one with `alpn`.
    routes_clients(
        "haproxy",
        &format!(
            "{FRONT} use_backend two if {{ req.ssl_alpn -m sub h2 }}\n use_backend three if {{ src 10.0.0.0/8 }}
 default_backend one\n{BACK}"
        ),
        &[],
        &[
            (&["--no-sni", "--alpn", "h2", "--client", "10.0.0.1"], "10.9.0.2:1"),
            (&["--no-sni", "--client", "10.0.0.1"], "10.9.0.3:1"),
            (&["--no-sni", "--alpn", "h2", "--client", "192.0.2.1"], "10.9.0.2:1"),
            (&["--no-sni", "--client", "192.0.2.1"], "10.9.0.1:1"),
        ],
    );
    routes_clients(
        "nginx",
        "map $ssl_preread_alpn_protocols $to {\n\"~\\b(h2|acme-tls/1)\\b\" 10.9.0.2:1;\ndefault 10.9.0.1:1;\n}\nserver { listen 1; ssl_preread on; proxy_pass $to; }",
        &["alpn: [acme-tls/1, h2]"],
        &[(&of("a.example", "h2,http/1.1"), "10.9.0.2:1"), (&of("a.example", "http/1.1"), "10.9.0.1:1")],
    );
}

/// Each with a part of the result.
#[test]
fn haproxy_by_small_cases() {
    let backend = "backend b\n server s 10.0.0.1:6443";
    for (front, expected) in [
        ("bind *:6443\n default_backend b", "listen: 0.0.0.0:6443"),
        ("bind :::6443\n default_backend b", "listen: \"[::]:6443\""),
        ("bind ipv6@:6443\n default_backend b", "listen: \"[::]:6443\""),
        ("bind [2001:db8::1]:6443\n default_backend b", "listen: \"[2001:db8::1]:6443\""),
        ("bind :6443-6445,:1\n default_backend b", "address: 0.0.0.0:6445"),
        ("bind :1\n bind $ADDRESS:2\n default_backend b", "`$ADDRESS:2` left out: snigate listens at IP addresses"),
        (
            "bind :1\n use_backend b if { req.ssl_sni -m end example.com }",
            "      - example.com\n      - \"*.example.com\"",
        ),
        ("bind :1\n use_backend b if { req.ssl_sni -m dom a.example }", "names with `a.example` in the middle"),
        ("bind :1 ssl crt x\n use_backend b if { ssl_fc_sni_end .a.example }", "sni: \"*.a.example\""),
        ("bind :1\n use_backend b if { req.ssl_sni -f hosts.map }", "m1.example.com"),
        (
            "bind :1\n use_backend %[req.ssl_sni,lower,map_str(hosts.map)]\n default_backend b",
            "there is no backend `two`",
        ),
        (
            "bind :1\n use_backend %[req.ssl_sni,lower,map(gone.map)]\n default_backend b",
            "cannot read gone.map: No such file",
        ),
        (
            "bind :1\n use_backend %[src,map_ip(x)]\n default_backend b",
            "the converter `map_ip(x)` cannot be translated",
        ),
        ("bind :1\n use_backend b-%[req.ssl_sni]\n default_backend b", "Translated lines: 1-6"),
        (
            "bind :1\n use_backend b if { req.ssl_sni -m found }",
            "clients without SNI are routed to `b` instead of rejected",
        ),
        (
            "bind :1\n use_backend %[req.ssl_sni,map(hosts.map,b)]\n use_backend b if { req.ssl_sni a.example }",
            "no effect for a.example: the rule in line 3",
        ),
        ("bind :1\n use_backend %[req.ssl_sni,map(.)]\n default_backend b", "cannot read .: not a regular file"),
        (
            "bind :1\n use_backend b if TRUE\n use_backend b if { req.ssl_sni a.example }",
            "no effect for a.example: the rule in line 3",
        ),
        ("bind :1\n use_backend b if { req.ssl_sni a.example } { src 10.0.0.0/8 }", "allow: [10.0.0.0/8]"),
        ("bind :1\n use_backend b if { req.ssl_sni a.example } !{ src 10.0.0.0/8 }", "deny: [10.0.0.0/8]"),
        (
            "bind :1\n tcp-request connection reject unless { src 10.0.0.0/8 }\n default_backend b",
            "allow: [10.0.0.0/8]",
        ),
        (
            "bind :1\n tcp-request connection accept if { src 10.0.0.0/8 ::1 }\n tcp-request connection reject\n default_backend b",
            "allow: [10.0.0.0/8, \"::1/128\"]",
        ),
        (
            "bind :1\n tcp-request connection reject if !{ src 10.0.0.0/8 }\n tcp-request connection reject if !{ src 10.1.0.0/16 }\n default_backend b",
            "allow: [10.1.0.0/16]",
        ),
        (
            "bind :1\n tcp-request connection reject if { src host.example }\n default_backend b",
            "(`src host.example`: expected networks): clients that this rule would",
        ),
        ("bind :1\n tcp-request connection reject if { src -f gone }\n default_backend b", "cannot read gone"),
        (
            "bind :1\n tcp-request content reject if !{ req_ssl_hello_type 1 }\n default_backend b",
            "Translated lines: 1-6",
        ),
        (
            "bind :1\n default_backend b\nfrontend g\n bind 127.0.0.1:1\n default_backend b",
            "`f` already listens at 0.0.0.0:1",
        ),
        (
            "bind :1\n default_backend b\nfrontend g\n bind :2\n default_backend b",
            "- name: g\n    address: 0.0.0.0:2\n\nroutes:\n  - name: b\n    listener: f\n",
        ),
        ("bind :1\n timeout client 0\n default_backend b", "`0`: out of range"),
        ("bind :1\n timeout client-fin 30s\n default_backend b", "half_close: 30s"),
        (
            "bind :1\n mode http\n use_backend b\nlisten l\n bind :2\n server s 10.0.0.9:1",
            "lines 1-4: frontend f\n#     not translated: plain HTTP",
        ),
        ("bind :1 ssl crt x\n default_backend b", "snigate forwards the client's TLS connection, so the server"),
        ("bind :1\n default_backend b\n.if defined(X)\n.endif", "left out up to `.endif`"),
        ("bind :1\n default_backend b\nlisten l\n bind :2\n disabled\n server s 10.0.0.2:1", "disabled in the source"),
        (
            "bind :1\n tcp-request content accept if { req.ssl_sni a }\n tcp-request content reject\n default_backend b",
            "sni: a",
        ),
        (
            "bind :1\n tcp-request content reject if {\n default_backend b",
            "(a brace is not closed): clients that this rule would reject",
        ),
        (
            "bind :1\n tcp-request connection accept if { src ::1 }\n http-request deny if { src 10.0.0.0/8 }\n default_backend b",
            "deny: [10.0.0.0/8]",
        ),
    ] {
        let source = format!("frontend f\n {front}\n{backend}\n");
        let imported = import("haproxy", &source);
        assert!(imported.text.contains(expected), "{expected}\nof\n{source}\nin\n{}{}", imported.text, imported.error);
        imported.check();
        imported.accounts_for(&source);
    }
    let front = "listen f\n bind :1\n";
    for (back, expected) in [
        (" server s 10.0.0.1:6443 check", "health_check: {}"),
        (" server s 10.0.0.1:6443", "    upstream: 10.0.0.1:6443"),
        (" server s [::1]:2 no-check", "    upstream: \"[::1]:2\""),
        (" server s 2001:db8::1:2", "    upstream: \"[2001:db8::1]:2\""),
        (" server s 10.0.0.1:2\n server t 10.0.0.1:2", "duplicate endpoint 10.0.0.1:2"),
        (" server s 10.0.0.1:2\n server t api.example", "the port is missing"),
        (" server s 10.0.0.1:2 weight 0\n server t 10.0.0.2:2", "`weight 0`, so it gets no connections"),
        (
            " server s 10.0.0.1:2 check ssl verify required ca-file CA/one.pem sni str(a.example)",
            "`sni str(a.example)` ignored: clients send their own SNI",
        ),
        (
            " server s 10.0.0.1:2 check ssl verify required ca-file @system-ca",
            "the health check does not verify the server",
        ),
        (" server s 10.0.0.1:2 check ssl ca-file \"CA/o ne.pem\"", "tls: {ca_file: \"CA/o ne.pem\"}"),
        (" server s 10.0.0.1:2 ssl verify required ca-file CA/one.pem", "snigate would do so in a health check"),
        (" server s 10.0.0.1:2 check\n option httpchk GET /readyz", "snigate makes HTTP checks over TLS only"),
        (" server s 10.0.0.1:2 check\n option ssl-hello-chk", "tls: {verify: false}"),
        (
            " server s 10.0.0.1:2 check verify none\n option httpchk\n http-check connect ssl\n http-check send meth GET uri /healthz",
            "http: {path: /healthz}",
        ),
        (
            " server s 10.0.0.1:2 check check-ssl verify none\n option httpchk GET /readyz\n http-check expect status 200",
            "401 and 403 count as alive",
        ),
        (" server s 10.0.0.1:2 check rise 999 inter 1x", "`999`: not a number from 1 to 127"),
        (" server s 10.0.0.1:2 check inter 2s\n timeout check 3s", "left out: it is longer than the `interval`"),
        (" server s 10.0.0.1:2 check send-proxy", "proxy_protocol: v1"),
        (" server s 10.0.0.1:2 check port 8080 fall", "`fall`: not understood"),
        (" server s 10.0.0.1:2\n balance uri\n retries 3\n option redispatch", "`balance uri` ignored"),
    ] {
        let source = format!("{front}{back}\n");
        let imported = import("haproxy", &source);
        assert!(imported.text.contains(expected), "{expected}\nof\n{source}\nin\n{}{}", imported.text, imported.error);
        imported.accounts_for(&source);
        if !source.contains("o ne.pem") {
            imported.check();
        }
    }
    let source = format!("{front} server s 10.0.0.1:2 check\n option httpchk\n http-check expect status 200\n");
    let imported = import("haproxy", &source);
    assert!(imported.text.contains("health_check: {}") && !imported.text.contains("401"), "{}", imported.text);
    imported.accounts_for(&source);
}

#[test]
fn nginx_by_small_cases() {
    let map = "map $ssl_preread_server_name $u { a.example up; }";
    let upstream = "upstream up { server 10.0.0.1:6443; }";
    for (source, expected) in [
        ("server { listen 443; proxy_pass 10.0.0.1:6443; }", "    upstream: 10.0.0.1:6443"),
        ("server { listen 127.0.0.1:443; proxy_pass up; }", "listen: 127.0.0.1:443"),
        ("server { listen [::]:443; proxy_pass up; }", "nginx accepts IPv6 clients only here"),
        ("server { listen 443 ssl; ssl_certificate x; proxy_pass up; }", "The source terminates TLS, snigate does not"),
        ("server { listen 443; ssl_preread on; proxy_pass $u; }", "sni: a.example"),
        ("server { listen 443; proxy_pass $u; }", "without `ssl_preread on`"),
        ("server { listen 443; proxy_pass ${u}; }", "sni: a.example"),
        (
            "server { listen 443; proxy_pass $ssl_preread_server_name:443; } server { listen 1; proxy_pass up; }",
            "the endpoint is only known once a client connects",
        ),
        (
            "server { listen 443; proxy_pass up; } server { listen 443; proxy_pass up; }",
            "0.0.0.0:443 left out: `port-443` already listens at",
        ),
        (
            "server { listen 443; server_name a.example .b.example; proxy_pass up; } server { listen 443 default_server; server_name c.example; proxy_pass 10.0.0.9:1; }",
            "sni:\n      - a.example\n      - b.example\n      - \"*.b.example\"\n    upstream: 10.0.0.1:6443",
        ),
        (
            "server { listen 443; proxy_pass up; deny 10.1.0.0/16; allow 10.0.0.0/8; deny all; }",
            "allow: [10.0.0.0/8]\n    deny: [10.1.0.0/16]",
        ),
        ("server { listen 443; proxy_pass up; allow 10.0.0.0/8; deny 10.1.0.0/16; }", "never used"),
        ("proxy_timeout 1h 30m; proxy_timeout 90m; server { listen 443; proxy_pass up; }", "idle: 90m"),
        (
            "map $remote_addr $v { default up; } server { listen 443; proxy_pass up; }",
            "no translated `server` uses `$v`",
        ),
        (
            "map $ssl_preread_server_name $v { *.x.example up; default up; } server { listen 443; ssl_preread on; proxy_pass $v; }",
            "without `hostnames`",
        ),
    ] {
        for source in
            [format!("stream {{\n{map}\n{upstream}\n{source}\n}}\n"), format!("{map}\n{upstream}\n{source}\n")]
        {
            let imported = import("nginx", &source);
            assert!(
                imported.text.contains(expected),
                "{expected}\nof\n{source}\nin\n{}{}",
                imported.text,
                imported.error
            );
            imported.check();
            imported.accounts_for(&source);
        }
    }
}

#[test]
fn what_is_imported_serves() {
    let [one, two, rest] = ["one", "two", "rest"].map(Backend::named);
    let haproxy = format!(
        "frontend f\n bind 127.0.0.1:6443\n mode tcp\n tcp-request inspect-delay 5s\n use_backend one if {{ req.ssl_sni -i A.example }}
 use_backend two if {{ req.ssl_sni -m end .a.example }}\n default_backend rest
backend one\n server s {} check\nbackend two\n server s {}\nbackend rest\n server s {}\n",
        one.address(),
        two.address(),
        rest.address()
    );
    let nginx = format!(
        "stream {{ map $ssl_preread_server_name $u {{ hostnames; A.example one; *.a.example {}; default {}; }}
upstream one {{ server {}; }} server {{ listen 127.0.0.1:6443; ssl_preread on; proxy_pass $u; }} }}",
        two.address(),
        rest.address(),
        one.address()
    );
    for (from, source) in [("haproxy", haproxy), ("nginx", nginx)] {
        let imported = import(from, source);
        imported.check();
        let router = Router::start(&imported.text.replace("127.0.0.1:6443", "127.0.0.1:0"));
        for (hello, expected) in [
            (Hello::to("a.example"), "one"),
            (Hello::to("x.y.a.example"), "two"),
            (Hello::to("b.example"), "rest"),
            (Hello::new(), "rest"),
        ] {
            let mut client = Client::send(router.address(), &hello.record());
            client.finish();
            assert_eq!(client.rest().0, expected.as_bytes(), "{from}");
        }
    }
}

#[test]
fn a_case_sensitive_comparison_of_names_gets_a_note() {
    for (condition, is_noted) in [
        ("req.ssl_sni a.example", true),
        ("req.ssl_sni -m end .a.example", true),
        ("req.ssl_sni,map(hosts.map) -m found", true),
        ("req.ssl_sni -i a.example", false),
        ("req.ssl_sni,lower a.example", false),
        ("req.ssl_sni,lower,map(hosts.map) -m found", false),
        ("req.ssl_sni -m found", false),
    ] {
        let front = "frontend f\n bind :1\n tcp-request inspect-delay 5s\n";
        let source = format!("{front} use_backend b if {{ {condition} }}\nbackend b\n server s 10.0.0.1:1\n");
        let imported = import("haproxy", &source);
        let is_found = imported.text.contains("HAProxy compares the server name case-sensitively");
        assert_eq!(is_found, is_noted, "{condition} in\n{}", imported.text);
    }
}

/// Three backends, and rules for them in the order in which they are tried.
#[test]
#[ignore = "needs HAProxy, and nginx with its stream module"]
fn haproxy_and_nginx_route_to_the_same_backends() {
    let backends = ["one", "two", "rest"].map(Backend::named);
    let [one, two, rest] = backends.each_ref().map(Backend::address);
    let port = free().port();
    let haproxy = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 5s\n timeout server 5s
frontend f\n bind 127.0.0.1:{port}\n tcp-request inspect-delay 5s
 acl one req.ssl_sni -i A.example b.example
 acl one req.ssl_sni -i -m end .c.example
 acl here src 127.0.0.0/8
 tcp-request connection reject if !here
 tcp-request content accept if {{ req_ssl_hello_type 1 }}
 use_backend one if one
 use_backend two if {{ req.ssl_sni -i x.c.example c.example b.example d.example }}
 use_backend %[req.ssl_sni,lower,map(hosts.map)]\n default_backend rest
backend one\n server s {one}\nbackend two\n server s {two}\nbackend rest\n server s {rest}\n"
    );
    let nginx = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so; daemon off; master_process off; error_log stderr;
pid nginx.pid; events {{}}\nstream {{ map $ssl_preread_server_name $to {{ hostnames; *.c.example {one}; A.example one;
 .d.example {two}; x.c.example {two}; m1.example.com one; default {rest}; }} upstream one {{ server {one}; }}
 server {{ listen 127.0.0.1:{port}; ssl_preread on; proxy_half_close on; proxy_pass $to; }} }}\n"
    );
    let names = ["a.example", "b.example", "c.example", "x.c.example", "y.x.c.example", "d.example", "e.d.example"];
    let names = names.into_iter().chain(["m1.example.com", "m2.example.com", "x.m1.example.com", "example"]);
    let hellos: Vec<Hello> = names.map(Hello::to).chain([Hello::new()]).collect();
    let ask = |address, hello: &Hello| {
        let mut client = Client::send(address, &hello.record());
        client.finish();
        client.rest().0
    };
    for (from, arguments, source) in [("haproxy", ["-db", "-f"], haproxy), ("nginx", ["-p", "."], nginx)] {
        let imported = import(from, &source);
        imported.check();
        let router = Router::start(&imported.text.replace(&format!("127.0.0.1:{port}"), "127.0.0.1:0"));
        let mut command = Command::new(from);
        command.args(arguments).args(if from == "nginx" { &["-c", "source.cfg"][..] } else { &["source.cfg"] });
        let mut other = command.current_dir(imported.directory.path()).stdin(Stdio::null()).spawn().unwrap();
        let address = ([127, 0, 0, 1], port).into();
        eventually("it listens", || std::net::TcpStream::connect(address).is_ok());
        let answers = hellos.iter().map(|hello| (ask(address, hello), ask(router.address(), hello)));
        let answers: Vec<_> = answers.collect();
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(answers.iter().all(|(theirs, ours)| theirs == ours && !ours.is_empty()), "{from}: {answers:?}");
    }
}

#[test]
fn misspelt_words_are_noted_in_the_order_of_lines() {
    let source = "global\n maxcon 1\ndefaults\n mode tpc\n timeout clint 5s\n option tcplgo\nfrontend f\n bind :1
 tcp-request inspct-delay 5s\n use_bakend b\n defualt_backend b\nbackend b\n servr s 10.0.0.1:1\n no opton tcplog\n";
    let imported = import("haproxy", source);
    assert_eq!(imported.code, Some(1));
    let mut rest = imported.error.as_str();
    for expected in [
        "lines 7-11: frontend f: not translated: no upstream is left",
        "line 2: maxcon 1: unknown keyword `maxcon`; did you mean `maxconn`?\n",
        "line 4: mode tpc: unknown mode `tpc`; did you mean `tcp`?",
        "line 5: timeout clint 5s: unknown timeout `clint`; did you mean `client`?\n",
        "line 6: option tcplgo: unknown option `tcplgo`; did you mean `tcplog`?\n",
        "line 9: tcp-request inspct-delay 5s: unknown rule `inspct-delay`; did you mean `inspect-delay`?\n",
        "line 10: use_bakend b: unknown keyword `use_bakend`; did you mean `use_backend`?\n",
        "line 11: defualt_backend b: unknown keyword `defualt_backend`; did you mean `default_backend`?\n",
        "lines 12-14: backend b: not translated: no translated rule uses this backend",
        "line 13: servr s 10.0.0.1:1: unknown keyword `servr`; did you mean `server`?\n",
        "line 14: no opton tcplog: unknown keyword `opton`; did you mean `option`?",
    ] {
        let at = rest.find(expected).unwrap_or_else(|| panic!("{expected} in {rest} of {}", imported.error));
        rest = &rest[at..];
    }
}

#[test]
fn a_misspelt_section_is_noted_wherever_it_is() {
    let rest = "frontend f\n bind :1\n default_backend b\nbackend b\n server s 10.0.0.1:1\n";
    for (header, meant) in [("fronted g", "frontend"), ("Listen g", "listen"), ("bakend b", "backend")] {
        let source = format!("{rest}resolvers r\n nameserver one 10.0.0.2:53\n{header}\n mode tcp\n bind :7443\n");
        let word = header.split(' ').next().unwrap();
        let expected = format!("# line 8: {header}\n#     unknown section `{word}`; did you mean `{meant}`?");
        let imported = import("haproxy", &source);
        assert!(imported.text.contains(&expected), "{}", imported.text);
        imported.accounts_for(&source);
    }
    let source = format!("{rest}peers p\n peer a 10.0.0.2:1\nmailers m\n mailer a 10.0.0.2:1\nring r\n backlog 1\n");
    let imported = import("haproxy", &source);
    assert!(!imported.text.contains("unknown"), "{}", imported.text);
}

#[test]
#[ignore = "needs haproxy"]
fn no_word_that_haproxy_knows_is_called_misspelt() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("haproxy.cfg");
    std::fs::write(&path, "defaults\n mode tcp\n").unwrap();
    let listed = Command::new("/usr/sbin/haproxy").args(["-dKcfg", "-c", "-f"]).arg(&path).output().unwrap();
    let mut source = String::new();
    for line in String::from_utf8(listed.stdout).unwrap().lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix('\t') {
            None if matches!(line, "global" | "listen") => {
                source.push_str(&format!("{line}{}\n", if line == "listen" { " l" } else { "" }))
            }
            None => break,
            Some(keyword) => source.push_str(&format!(" {keyword}\n")),
        }
    }
    for word in ["option dontlog-normal", "option h1-case-adjust-bogus-server", "clitcpka-cnt"] {
        assert!(source.contains(word), "{word} in {source}");
    }
    // Of many notes an error has the first ones only.
    let served = "frontend f\n mode tcp\n bind :1\n default_backend b\nbackend b\n mode tcp\n server s 10.0.0.1:1\n";
    let imported = import("haproxy", format!("{source}{served}"));
    assert_eq!(imported.code, Some(0), "{}", imported.error);
    let unknown: Vec<&str> = imported.text.lines().filter(|line| line.contains("unknown ")).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn what_makes_no_route_is_an_error() {
    for (from, source, expected) in [
        (
            "haproxy",
            "",
            "source.cfg has nothing to make a route of; expected a `frontend` or `listen` that receives TLS",
        ),
        ("haproxy", "frontned f\n bind :1\n", "line 1: frontned f: not inside a section; did you mean `frontend`?"),
        ("haproxy", NGINX, "line 1: user www-data;: not inside a section"),
        ("nginx", ONE_CLUSTER, "the file ends within this directive"),
        ("haproxy", "frontend f\n bind :1\n default_backend b\n", "no server of `b` could be translated"),
        ("nginx", "http { server { listen 80; } }", "`http` not translated: only `stream` blocks are"),
    ] {
        let imported = import(from, source);
        assert_eq!((imported.code, imported.text.as_str()), (Some(1), ""), "{source}");
        assert!(imported.error.contains(expected), "{expected} in {}", imported.error);
    }
    let run = |arguments: &[&str]| snigate().arg("import").args(arguments).output().unwrap();
    let missing = run(&["haproxy", "/nowhere/haproxy.cfg"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8(missing.stderr).unwrap().contains("cannot read /nowhere/haproxy.cfg: No such file"));
    assert!(String::from_utf8(run(&["nginx", "/dev/zero"]).stderr).unwrap().contains("larger than 32MiB"));
    assert_eq!(run(&["caddy", "x"]).status.code(), Some(2));
    assert_eq!(run(&["nginx"]).status.code(), Some(2));
}

#[test]
fn standard_input_is_read() {
    let mut command = snigate();
    command.args(["import", "haproxy", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(ONE_CLUSTER.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.starts_with("# Generated by `snigate import haproxy` from standard input."),
        "{text}"
    );
}

/// Any source gives an error or a valid configuration, and no panic.
fn survives(from: &str, source: &[u8]) {
    let imported = import(from, source);
    match imported.code {
        Some(0) => {
            let is_there = |line: &str| !line.contains("ca_file: ") || line.contains("{ca_file: CA/one.pem}");
            if imported.text.lines().all(is_there) {
                imported.check();
            }
        }
        code => assert_eq!(code, Some(1), "{}\nof\n{}", imported.error, String::from_utf8_lossy(source)),
    }
    let output = format!("{}{}", imported.error, imported.text);
    assert!(
        !output.contains("panicked") && !output.contains("internal error"),
        "{output}\nof\n{}",
        String::from_utf8_lossy(source)
    );
}

#[test]
fn hostile_files_are_survived() {
    let long = "a".repeat(1 << 20);
    let binary: Vec<u8> = (0..1 << 16).map(|number: u32| number.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let sources = [
        Vec::new(),
        binary,
        long.clone().into_bytes(),
        format!("frontend {long}\n bind :1\n default_backend {long}\nbackend {long}\n server {long} 10.0.0.1:1 {long}").into_bytes(),
        format!("stream {{ server {{ listen 1; proxy_pass {long}:1; }} server {{ listen 2; proxy_pass u; }} upstream u {{ server h:1; }} }} {long}").into_bytes(),
        "{".repeat(1 << 20).into_bytes(),
        "}".repeat(1 << 20).into_bytes(),
        "a{".repeat(1 << 19).into_bytes(),
        "frontend f\n".repeat(1 << 14).into_bytes(),
        b"stream { server { listen 1; proxy_pass \"h:1".to_vec(),
        b"frontend f\n bind :1\n acl a src '10.0.0.0/8\n use_backend b if { {\n use_backend b if a or\n use_backend\n bind\n acl\n server".to_vec(),
        b"listen \"_none\"\n bind :1\n server s h:1\nlisten \"a: [b\\\"\"\n bind :2\n server s h:1 # \xe2\x80\xa8routes: []".to_vec(),
        b"\xef\xbb\xbflisten l\r\n bind :1\r\n server s h:1\r\n".to_vec(),
        b"listen l\n bind :1\n server s h:1\n log \x07\x1b[31m\xc2\x85\xe2\x80\xa9x: y\n".to_vec(),
    ];
    for source in sources {
        for from in ["haproxy", "nginx"] {
            survives(from, &source);
        }
    }
}

/// Whatever tells clients or servers apart.
const MATCHERS: &str = "defaults
 source 10.0.9.9
frontend f
 mode tcp
 bind :6443 accept-proxy
 bind 10.0.0.1:7443
 tcp-request inspect-delay 5s
 tcp-request connection expect-proxy layer4 if { src 10.1.0.0/16 }
 acl lan src 10.0.0.0/8 2001:db8::/32
 acl lan2 src 10.1.0.0/16 192.168.0.0/16 0.0.0.0/0
 acl service dst 172.31.0.1 172.31.0.0/16 172.31.0.0/17
 tcp-request content reject if lan { req.ssl_sni -i c.example }
 use_backend two if { req.ssl_sni -i a.example } lan2
 use_backend one if { req.ssl_sni -i a.example } lan or service
 use_backend two if service { req.ssl_alpn -m sub h2 }
 use_backend three if { fc_pp_tlv(0xe0) k1 }
 use_backend two if { fc_pp_tlv(0xe1) -m bin 6b32 00ff }
 use_backend three if { req.ssl_sni -i -m end .example } !service { req.ssl_alpn acme-tls/1 }
 default_backend one
backend one
 balance source
 server s 10.0.0.1:6443 weight 5 send-proxy-v2 set-proxy-v2-tlv-fmt(0xe0) a
 server t api.example:6443 backup source 10.0.9.8 send-proxy-v2 set-proxy-v2-tlv-fmt(0xe0) a
backend two
 server s [::1]:6443 source ::2 usesrc clientip
backend three
 server s 10.0.0.3:6443 backup weight 0
 server t 10.0.0.4:6443 backup send-proxy-v2 set-proxy-v2-tlv-fmt(0x20) %[fc_pp_tlv(0x20)]
";

#[test]
fn broken_files_are_survived() {
    let samples = [
        ("haproxy", ONE_CLUSTER),
        ("haproxy", TWO_CLUSTERS),
        ("haproxy", PASSTHROUGH),
        ("haproxy", MATCHERS),
        ("nginx", NGINX),
    ];
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    survives("haproxy", MATCHERS.as_bytes());
    for round in 0..150 {
        let (from, sample) = samples[round % samples.len()];
        let mut bytes = sample.as_bytes().to_vec();
        for _ in 0..=random(8) {
            let at = random(bytes.len());
            match random(4) {
                0 => drop(bytes.remove(at)),
                1 => bytes[at] = b"{}[]\"'\\#;:%!*. \n0\0\xff"[random(19)],
                2 => bytes.truncate(at + 1),
                _ => {
                    let end = (at + random(200)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    let to = random(bytes.len());
                    bytes.splice(to..to, copy);
                }
            }
        }
        survives(from, &bytes);
    }
}
