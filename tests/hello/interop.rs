//! Clients and servers of others. These need programs that not every machine has, so plain `cargo test` leaves them
//! out; `.ci/run` installs the programs and runs them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::support::backend::{closed, free};
use crate::support::tls::{self, Authority};
use crate::support::{Router, all_output, eventually};

const NAME: &str = "a.example";

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"))
}

/// Certificates as files.
struct Files {
    directory: TempDir,
    authority: Authority,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let authority = Authority::new();
        let ca = authority.write(directory.path(), "ca.pem");
        let (certificate, key) = authority.issue(NAME).write(directory.path(), "server");
        Self { directory, authority, ca, certificate, key }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// `openssl s_server`, killed when it is dropped.
struct OpensslServer {
    child: Child,
    address: SocketAddr,
}

impl OpensslServer {
    fn start(files: &Files, arguments: &[&str]) -> Self {
        let address = free();
        let child = Command::new("openssl")
            .args(["s_server", "-quiet", "-accept", &address.to_string()])
            .args(["-cert".as_ref(), files.certificate.as_os_str(), "-key".as_ref(), files.key.as_os_str()])
            .args(arguments)
            // At the end of its input it would stop.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is needed");
        eventually("openssl s_server listens", || std::net::TcpStream::connect(address).is_ok());
        Self { child, address }
    }
}

impl Drop for OpensslServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `openssl s_client` through the router, verifying chain and name.
fn openssl_client(files: &Files, router: SocketAddr, arguments: &[&str]) -> (bool, String) {
    let address = router.to_string();
    let common = ["s_client", "-connect", &address, "-CAfile", text(&files.ca), "-verify_return_error"];
    let output = run("openssl", &[&common[..], &["-verify_hostname", NAME], arguments].concat());
    (output.status.success(), all_output(&output))
}

#[test]
#[ignore = "needs openssl"]
fn openssl_with_tls_1_2_and_1_3_with_and_without_a_name() {
    let files = Files::new();
    for version in ["-tls1_2", "-tls1_3"] {
        let server = OpensslServer::start(&files, &[version, "-www"]);
        let router = Router::routing(&[(NAME, server.address), ("*", server.address)]);
        for name in [&["-servername", NAME][..], &["-noservername"]] {
            let (verified, told) = openssl_client(&files, router.address(), &[name, &[version]].concat());
            assert!(verified && told.contains("Verification: OK"), "{version} {name:?}: {told}");
        }
        let strict = Router::routing(&[("b.example", server.address)]);
        for name in [&["-servername", NAME][..], &["-noservername"]] {
            let (verified, told) = openssl_client(&files, strict.address(), &[name, &[version]].concat());
            assert!(!verified && told.contains("unrecognized name") && told.contains("112"), "{told}");
        }
    }
}

#[test]
#[ignore = "needs openssl"]
fn openssl_with_a_client_certificate() {
    let files = Files::new();
    let (certificate, key) = files.authority.issue("jane").write(files.directory.path(), "jane");
    for version in ["-tls1_2", "-tls1_3"] {
        let demand = ["-Verify", "1", "-verify_return_error", "-CAfile", text(&files.ca), "-www", version];
        let server = OpensslServer::start(&files, &demand);
        let router = Router::routing(&[(NAME, server.address)]);
        let identity = ["-servername", NAME, "-cert", text(&certificate), "-key", text(&key)];
        let (verified, told) = openssl_client(&files, router.address(), &identity);
        assert!(verified && told.contains("Verification: OK"), "{version}: {told}");
    }
}

#[test]
#[ignore = "needs openssl"]
fn a20_openssl_with_early_data() {
    let files = Files::new();
    let server = OpensslServer::start(&files, &["-tls1_3", "-early_data", "-no_anti_replay"]);
    let router = Router::routing(&[(NAME, server.address)]);
    let (session, early) = (files.path("session"), files.path("early"));
    std::fs::write(&early, "GET / HTTP/1.0\r\n\r\n").unwrap();
    // The ticket comes after the handshake: the first connection lasts until it is there.
    let mut first = Command::new("openssl")
        .args(["s_client", "-connect", &router.address().to_string(), "-servername", NAME])
        .args(["-sess_out", text(&session)])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("openssl is needed");
    let has_end = |pem: String| pem.contains("END SSL SESSION PARAMETERS");
    eventually("a session ticket", || std::fs::read_to_string(&session).is_ok_and(has_end));
    first.kill().unwrap();
    first.wait().unwrap();
    let resume = ["-servername", NAME, "-sess_in", text(&session), "-early_data", text(&early)];
    let (verified, told) = openssl_client(&files, router.address(), &resume);
    assert!(verified && told.contains("Early data was accepted"), "{told}");
}

#[test]
#[ignore = "needs curl"]
fn curl_reaches_each_cluster_and_is_told_of_unknown_names() {
    let files = Files::new();
    let server = tls::serve(&files.authority, NAME, false);
    let router = Router::routing(&[(NAME, server.address()), ("dead.example", closed())]);
    let curl = |name: &str| {
        let to = format!("::{}", router.address());
        run("curl", &["-sS", "--cacert", text(&files.ca), "--connect-to", &to, &format!("https://{name}/version")])
    };
    let answered = curl(NAME);
    assert_eq!(String::from_utf8_lossy(&answered.stdout), "{\"gitVersion\":\"a.example\"}");
    let unknown = curl("b.example");
    assert_eq!(unknown.status.code(), Some(35));
    assert!(all_output(&unknown).contains("unrecognized name"), "{}", all_output(&unknown));
    let dead = all_output(&curl("dead.example"));
    assert!(dead.contains("internal error"), "{dead}");
}

#[test]
#[ignore = "needs kubectl"]
fn kubectl_with_and_without_verification_and_with_tls_server_name() {
    let files = Files::new();
    let server = tls::serve(&files.authority, NAME, false);
    let router = Router::routing(&[(NAME, server.address()), ("dead.example", closed())]);
    let url = format!("https://{}", router.address());
    let kubectl = |arguments: &[&str]| {
        let common = ["--kubeconfig=/dev/null", "--token=x", "--server", &url];
        all_output(&run("kubectl", &[&common, arguments, &["get", "--raw", "/version"]].concat()))
    };
    let ca = format!("--certificate-authority={}", text(&files.ca));
    assert_eq!(kubectl(&[&ca, "--tls-server-name", NAME]), "{\"gitVersion\":\"a.example\"}");
    assert_eq!(kubectl(&["--insecure-skip-tls-verify", "--tls-server-name", NAME]), "{\"gitVersion\":\"a.example\"}");
    let unknown = kubectl(&["--insecure-skip-tls-verify", "--tls-server-name", "b.example"]);
    assert!(unknown.contains("remote error: tls: unrecognized name"), "{unknown}");
    let dead = kubectl(&["--insecure-skip-tls-verify", "--tls-server-name", "dead.example"]);
    assert!(dead.contains("remote error: tls: internal error"), "{dead}");
    // An IP address is no name: kubectl then asks for none.
    let nameless = kubectl(&["--insecure-skip-tls-verify"]);
    assert!(nameless.contains("remote error: tls: unrecognized name"), "{nameless}");
}

#[test]
#[ignore = "needs java"]
fn java_verifies_the_clusters_certificate() {
    let files = Files::new();
    let server = tls::serve(&files.authority, NAME, false);
    let router = Router::routing(&[(NAME, server.address())]);
    let program = files.path("Get.java");
    std::fs::write(&program, include_str!("../support/Get.java")).unwrap();
    let port = router.address().port().to_string();
    let get = |name: &str| all_output(&run("java", &[text(&program), text(&files.ca), &port, name]));
    let answer = get(NAME);
    assert!(answer.contains("{\"gitVersion\":\"a.example\"}"), "{answer}");
    let unknown = get("b.example");
    assert!(unknown.contains("unrecognized_name"), "{unknown}");
}
