//! The guides for those who come from HAProxy and nginx; and the messages of kubectl in docs/troubleshooting.md.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::backend::closed;
use crate::support::pages::{block, page};
use crate::support::router::config;
use crate::support::tls::{self, Authority};
use crate::support::{Backend, Client, Hello, Router, all_output, snigate};

const FROM_HAPROXY: &str = "docs/migrate-from-haproxy.md";
const FROM_NGINX: &str = "docs/migrate-from-nginx.md";

/// The recipe's file, imported in a directory with the CA files that it names.
fn imported(recipe: &str) -> (TempDir, String) {
    let directory = TempDir::new().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/haproxy").join(recipe);
    std::fs::copy(source, directory.path().join(recipe)).unwrap();
    for number in ["01", "02"] {
        Authority::new().write(directory.path(), &format!("dev.kubernetes{number}-ca.pem"));
    }
    let output = snigate().args(["import", "haproxy", recipe]).current_dir(directory.path()).output().unwrap();
    assert!(output.status.success(), "{}", all_output(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    std::fs::write(directory.path().join("snigate.yaml"), &text).unwrap();
    let checked = snigate().args(["check", "snigate.yaml"]).current_dir(directory.path()).output().unwrap();
    assert!(checked.status.success(), "{}", all_output(&checked));
    (directory, text)
}

/// Serves the configuration with local addresses and without checks: clients that send this name reach that backend.
fn serves(text: &str, names: &[(Option<&str>, &[u8])]) {
    let backends = [Backend::named("one"), Backend::named("two")];
    let mut text = text.replace("0.0.0.0:6443", "127.0.0.1:0");
    for (number, backend) in ["01", "02"].iter().zip(&backends) {
        let name = format!("- apiserver.devkubernetes{number}.l4lb.thisdcos.directory:6443");
        text = text.replace(&name, &format!("- {}", backend.address()));
        text = text.replace(&format!("{{ca_file: dev.kubernetes{number}-ca.pem}}"), "{verify: false}");
    }
    let router = Router::start(&text);
    for (name, expected) in names {
        let hello = name.map_or_else(Hello::new, Hello::to);
        let mut client = Client::send(router.address(), &hello.record());
        client.finish_if_open();
        assert_eq!(client.rest().0, *expected, "{name:?}");
    }
}

#[test]
fn the_recipe_for_one_cluster_serves_every_client() {
    let (_directory, text) = imported("one-cluster.cfg");
    serves(&text, &[(None, b"one"), (Some("whatever.example"), b"one")]);
}

#[test]
fn the_recipe_for_two_clusters_routes_by_name() {
    let (directory, text) = imported("two-clusters.cfg");
    let (first, second) = ("devkubernetes01.example.com", "devkubernetes02.example.com");
    serves(&text, &[(Some(first), b"one"), (Some(second), b"two"), (None, b"one"), (Some("other.example"), b"one")]);
    // The result is the one in the guide, and the commands of the guide work.
    shows(&text, &block(FROM_HAPROXY, "imported"));
    typed(directory.path(), &block(FROM_HAPROXY, "import"));
    assert!(typed(directory.path(), &block(FROM_HAPROXY, "check")).contains("kubernetes02"));
}

/// Every line of this excerpt is in the text.
fn shows(text: &str, excerpt: &str) {
    for line in excerpt.lines().map(str::trim).filter(|line| !line.is_empty()) {
        assert!(text.lines().any(|own| own.trim() == line), "{line} in\n{text}");
    }
}

/// What these commands say, typed in this directory.
fn typed(directory: &Path, commands: &str) -> String {
    let commands = commands.replace("snigate ", concat!(env!("CARGO_BIN_EXE_snigate"), " "));
    let output = Command::new("sh").args(["-ec", &commands]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{commands}: {}", all_output(&output));
    all_output(&output)
}

#[test]
fn the_guide_for_nginx_shows_what_becomes_of_its_configuration() {
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("nginx.conf"), block(FROM_NGINX, "nginx")).unwrap();
    assert_eq!(typed(directory.path(), &block(FROM_NGINX, "import")), "", "nothing is left out");
    let text = std::fs::read_to_string(directory.path().join("snigate.yaml")).unwrap();
    let made: String = text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    assert_eq!(made.trim(), block(FROM_NGINX, "imported").trim());
    assert!(typed(directory.path(), &block(FROM_NGINX, "check")).contains("*.dev.example.com"));
}

#[test]
#[ignore = "needs kubectl and openssl"]
fn the_other_commands_of_the_guide_work() {
    let directory = TempDir::new().unwrap();
    let authority = Authority::new();
    authority.write(directory.path(), "dev.kubernetes01-ca.pem");
    let server = tls::serve(&authority, "kubernetes", false);
    let commands = [block(FROM_HAPROXY, "names"), block(FROM_HAPROXY, "kubectl")];
    for (command, expected) in commands.iter().zip(["DNS:kubernetes", "Cluster \"dev01\" set."]) {
        let typed =
            command.replace("apiserver.devkubernetes01.l4lb.thisdcos.directory:6443", &server.address().to_string());
        let mut shell = Command::new("sh");
        shell.args(["-c", &typed]).current_dir(directory.path()).env("KUBECONFIG", directory.path().join("config"));
        let output = shell.output().unwrap();
        assert!(all_output(&output).contains(expected), "{command}: {}", all_output(&output));
    }
}

/// What kubectl prints for each cause.
#[test]
#[ignore = "needs kubectl"]
fn kubectl_prints_what_the_table_says() {
    let directory = TempDir::new().unwrap();
    let (authority, other) = (Authority::new(), Authority::new());
    let ca = authority.write(directory.path(), "ca.pem");
    let other_ca = other.write(directory.path(), "other.pem");
    let good = tls::serve(&authority, "kubernetes", false);
    let plain = Backend::start(|mut stream| {
        let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
        let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.9\r\n");
    });
    let http = Backend::start(|mut stream| {
        let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
    });
    let closes = Backend::start(|mut stream| {
        let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
    });
    let expired = crate::support::api_server::ApiServer::start(&authority, "expired.example");
    expired.show(&authority.issue_expired("expired.example"));
    let routes: Vec<(&str, SocketAddr)> = vec![
        ("kubernetes", good.address()),
        ("uncovered.example", good.address()),
        ("dead.example", closed()),
        ("plain.example", plain.address()),
        ("http.example", http.address()),
        ("closes.example", closes.address()),
        ("expired.example", expired.address()),
    ];
    let denied = format!("  - {{sni: denied.example, allow: 192.0.2.0/24, upstream: \"{}\"}}\n", good.address());
    let router = Router::start(&config(&routes, &denied));
    let ask = |server: SocketAddr, name: &str, ca: &Path| {
        let output = Command::new("timeout")
            .args(["8", "kubectl", "--kubeconfig=/dev/null", "--token=x"])
            .arg(format!("--server=https://{server}"))
            .args([&format!("--tls-server-name={name}"), &format!("--certificate-authority={}", ca.display())])
            .args(["get", "--raw", "/version", "--request-timeout=5s"])
            .output()
            .unwrap();
        all_output(&output)
    };
    assert!(ask(router.address(), "kubernetes", &ca).contains("gitVersion"));
    for (message, name, ca) in [
        ("remote error: tls: unrecognized name", "unknown.example", &ca),
        ("remote error: tls: internal error", "dead.example", &ca),
        ("remote error: tls: access denied", "denied.example", &ca),
        ("x509: certificate is valid for", "uncovered.example", &ca),
        ("x509: certificate signed by unknown authority", "kubernetes", &other_ca),
        ("x509: certificate has expired or is not yet valid", "expired.example", &ca),
        ("first record does not look like a TLS handshake", "plain.example", &ca),
        ("server gave HTTP response to HTTPS client", "http.example", &ca),
        ("EOF", "closes.example", &ca),
    ] {
        let output = ask(router.address(), name, ca);
        assert!(output.contains(message), "{name}: {output}");
        assert!(page("docs/troubleshooting.md").contains(&format!("`{message}")), "{message}");
    }
    let unreachable = ask(closed(), "kubernetes", &ca);
    // Depends on the version of kubectl.
    assert!(unreachable.contains("connection refused") || unreachable.contains("was refused"), "{unreachable}");
}
