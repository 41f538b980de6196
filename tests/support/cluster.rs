//! A cluster as its pods know it: an API server that demands client certificates of its own CA.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustls::{ServerConnection, StreamOwned};

use super::tls::{self, Authority, Issued, read_head, respond, server_config};
use super::{Backend, all_output, watchdog};

/// By which pods call every API server.
pub const SERVICE: &str = "kubernetes.default.svc";
/// By which they connect to it, and send no SNI.
pub const SERVICE_ADDRESS: &str = "10.96.0.1";

pub struct Cluster {
    name: &'static str,
    authority: Authority,
    /// The certificate of a client.
    jane: Issued,
    server: Backend,
}

impl Cluster {
    /// Its certificate is valid for pods, and for this name.
    pub fn start(name: &'static str) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), name)
    }

    pub fn start_on(listener: TcpListener, name: &'static str) -> Self {
        let authority = Authority::called(&format!("{name} CA"));
        let issued = authority.issue_for(&[SERVICE, SERVICE_ADDRESS, name].map(Into::into));
        let config = server_config(&issued, Some(&authority));
        let body = answer(name);
        let server = Backend::start_on(listener, move |stream| {
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
            if read_head(&mut stream).is_some() {
                respond(stream, 200, &body);
            }
        });
        Self { name, jane: authority.issue("jane"), authority, server }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.server.accepted()
    }

    /// Whether its client reaches it, and no other cluster, by this name or IP address in place of its server's.
    #[track_caller]
    pub fn is_reached(&self, by: SocketAddr, name: &'static str) {
        assert_eq!(self.get(by, name), Ok(answer(self.name)), "{} by {by} as {name}", self.name);
    }

    /// What its client is answered.
    pub fn get(&self, by: SocketAddr, name: &'static str) -> Result<String, String> {
        self.get_over(TcpStream::connect(by).unwrap(), name)
    }

    /// The same over this connection.
    pub fn get_over(&self, stream: TcpStream, name: &'static str) -> Result<String, String> {
        tls::get_over(stream, &self.authority, name, Some(&self.jane))
    }

    /// Whether `kubectl` of its client reaches it by this address, in the network of this thread.
    #[track_caller]
    pub fn is_reached_by_kubectl(&self, server: &str, arguments: &[&str]) {
        watchdog::step(format!("kubectl of {}", self.name));
        let directory = tempfile::tempdir().unwrap();
        let config = self.kubeconfig(directory.path(), server);
        let mut kubectl = Command::new("kubectl");
        kubectl.arg("--kubeconfig").arg(config).args(arguments).args(["get", "--raw", "/version"]);
        assert_eq!(all_output(&kubectl.output().unwrap()), answer(self.name), "{} {arguments:?}", self.name);
    }

    fn kubeconfig(&self, directory: &Path, server: &str) -> PathBuf {
        self.authority.write(directory, "ca.pem");
        self.jane.write(directory, "jane");
        let path = directory.join("config");
        let text = format!(
            "apiVersion: v1
kind: Config
current-context: pod
contexts: [{{name: pod, context: {{cluster: own, user: jane}}}}]
clusters: [{{name: own, cluster: {{server: \"https://{server}\", certificate-authority: ca.pem}}}}]
users: [{{name: jane, user: {{client-certificate: jane.pem, client-key: jane-key.pem}}}}]
"
        );
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn answer(name: &str) -> String {
    format!("{{\"gitVersion\":\"{name}\"}}")
}
