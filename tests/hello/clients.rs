//! The hellos of real clients in `tests/hellos`: what these programs send here, today, still goes where the list says. With
//! `SNIGATE_WRITE=1` they replace those in the tree.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use snigate::client_hello::{Framing, Parsed};
use tempfile::TempDir;

use super::corpus::{Place, parsed, read_list};
use crate::support::tls::{self, Authority};
use crate::support::{PATIENCE, Process, eventual};

/// The name in the list, and how a shell starts the client. `PORT` is where it shall connect, at 127.0.0.1, and `DIR` has
/// the programs below.
const CLIENTS: [(&str, &str); 15] = [
    ("openssl", "openssl s_client -connect 127.0.0.1:PORT -servername a.example"),
    ("openssl-tls12", "openssl s_client -tls1_2 -connect 127.0.0.1:PORT -servername a.example"),
    ("openssl-no-name", "openssl s_client -connect 127.0.0.1:PORT -noservername"),
    ("curl", "curl -sk --connect-to ::127.0.0.1:PORT https://a.example/"),
    ("curl-address", "curl -sk https://127.0.0.1:PORT/"),
    ("gnutls", "gnutls-cli --insecure --sni-hostname a.example --port PORT 127.0.0.1"),
    ("nss", "tstclnt -D -o -Q -h 127.0.0.1 -p PORT -a a.example"),
    ("go", "go run DIR/client.go 127.0.0.1:PORT"),
    ("go-tls12", "go run DIR/client.go 127.0.0.1:PORT 1.2"),
    ("java", "java DIR/Get.java DIR/ca.pem PORT a.example"),
    ("node", "node -e \"require('tls').connect({port: PORT, host: '127.0.0.1', servername: 'a.example'})\""),
    ("python", "python3 DIR/client.py PORT"),
    ("kubectl", "kubectl --token=x --server=https://127.0.0.1:PORT --tls-server-name=a.example get --raw /version"),
    ("kubectl-address", "kubectl --token=x --server=https://127.0.0.1:PORT get --raw /version"),
    (
        "chromium",
        "chromium --headless --no-sandbox --disable-gpu --user-data-dir=DIR/chromium --disable-background-networking \
         --host-resolver-rules='MAP a.example 127.0.0.1:PORT, MAP * ~NOTFOUND' https://a.example/",
    ),
];

const PYTHON: &str = "\
import socket, ssl, sys
plain = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
ssl.create_default_context().wrap_socket(plain, server_hostname='a.example')
";

const GO: &str = r#"package main

import (
	"crypto/tls"
	"os"
)

func main() {
	config := &tls.Config{ServerName: "a.example", NextProtos: []string{"h2", "http/1.1"}}
	if len(os.Args) > 2 {
		config.MaxVersion = tls.VersionTLS12
	}
	tls.Dial("tcp", os.Args[1], config)
}
"#;

#[test]
#[ignore = "needs openssl, curl, gnutls-cli, tstclnt, go, java, node, python3, kubectl and chromium"]
fn real_clients_still_send_what_the_list_says() {
    let directory = TempDir::new().unwrap();
    Authority::new().write(directory.path(), "ca.pem");
    std::fs::write(directory.path().join("client.go"), GO).unwrap();
    std::fs::write(directory.path().join("client.py"), PYTHON).unwrap();
    std::fs::write(directory.path().join("Get.java"), include_str!("../support/Get.java")).unwrap();
    let captured = CLIENTS.map(|(name, command)| (name, captured(directory.path(), command)));
    for (name, hello) in captured.into_iter().chain([("rustls", tls::rustls_hello("a.example"))]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hellos/bytes").join(name);
        if std::env::var_os("SNIGATE_WRITE").is_some() {
            std::fs::write(path, &hello).unwrap();
        }
        let place = parsed(&hello);
        let is_right = read_list(|listed| {
            listed.name == name && listed.from != "generated" && listed.right == [place] && place != Place::Refused
        });
        assert!(is_right, "{name}: {place}");
    }
}

/// The first hello that this client sends.
fn captured(directory: &Path, command: &str) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let command = command.replace("PORT", &port).replace("DIR", directory.to_str().unwrap());
    let child = Command::new("sh")
        .args(["-c", &format!("exec {command}")])
        .current_dir(directory)
        .env("KUBECONFIG", "/dev/null")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = Process(child);
    listener.set_nonblocking(true).unwrap();
    let mut stream = eventual(&command, || match listener.accept() {
        Ok((stream, _)) => Some(stream),
        Err(_) => {
            let exit = child.0.try_wait().unwrap();
            assert!(exit.is_none(), "{command}: did not connect: {exit:?}");
            None
        }
    });
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut hello, mut buffer) = (Vec::new(), [0; 65536]);
    while matches!(Framing::default().parse(&hello), Parsed::Incomplete) {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "{command}: left within its hello");
        hello.extend_from_slice(&buffer[..length]);
    }
    drop(child);
    hello
}
