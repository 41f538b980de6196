//! The proxies, with equal settings: one route, keepalive on both legs, no log unless the name says so.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub const NAME: &str = "devkubernetes01.example.com";

/// The CPUs of the proxy; load and backend take the last one.
const PROXY_CPUS: &str = "0";

#[derive(Clone, Debug)]
pub enum Kind {
    Snigate { binary: PathBuf, log: bool },
    Haproxy { splice: bool },
    Nginx,
}

impl Kind {
    pub fn all(others: &[PathBuf]) -> Vec<Self> {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_snigate"));
        let mut kinds = vec![Self::Snigate { binary: binary.clone(), log: false }, Self::Snigate { binary, log: true }];
        kinds.extend(others.iter().map(|binary| Self::Snigate { binary: binary.clone(), log: false }));
        kinds.extend([Self::Haproxy { splice: false }, Self::Haproxy { splice: true }, Self::Nginx]);
        kinds
    }

    pub fn name(&self) -> String {
        match self {
            Self::Snigate { binary, .. } if binary != Path::new(env!("CARGO_BIN_EXE_snigate")) => {
                format!("snigate {}", binary.display())
            }
            Self::Snigate { log: false, .. } => "snigate".into(),
            Self::Snigate { log: true, .. } => "snigate, log on".into(),
            Self::Haproxy { splice: false } => "HAProxy".into(),
            Self::Haproxy { splice: true } => "HAProxy splice-auto".into(),
            Self::Nginx => "nginx".into(),
        }
    }

    pub fn is_haproxy(&self) -> bool {
        matches!(self, Self::Haproxy { .. })
    }
}

/// A running proxy, killed when it is dropped.
pub struct Proxy {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Proxy {
    pub fn start(kind: &Kind, backend: SocketAddr, workers: usize) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (config, arguments): (String, Vec<String>) = match kind {
            Kind::Snigate { binary, log } => (
                format!(
                    "listen: {address}\nworkers: {workers}\nroutes:\n  - {{sni: {NAME}, upstream: \"{backend}\"}}\nlog: {{level: {}}}\n",
                    if *log { "info" } else { "error" }
                ),
                vec![binary.display().to_string(), "run".into(), "-c".into(), path("config")],
            ),
            Kind::Haproxy { splice } => (
                format!(
                    "global
  nbthread {workers}
  maxconn {}
defaults
  mode tcp
  option tcpka
  timeout connect 10s
  timeout client 24h
  timeout server 24h
  {}
frontend edge
  bind {address}
  tcp-request inspect-delay 10s
  tcp-request content accept if {{ req_ssl_hello_type 1 }}
  use_backend cluster if {{ req_ssl_sni -i {NAME} }}
backend cluster
  server one {backend}
",
                    // As many as 20,000 descriptors allow: with splice, each may have pipes.
                    if *splice { 7900 } else { 9900 },
                    if *splice { "option splice-auto" } else { "" }
                ),
                vec!["haproxy".into(), "-db".into(), "-f".into(), path("config")],
            ),
            Kind::Nginx => (
                format!(
                    "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
user root;
worker_processes {workers};
worker_rlimit_nofile 20000;
pid {};
error_log /dev/null;
events {{ worker_connections 19900; }}
stream {{
  map $ssl_preread_server_name $upstream {{ {NAME} {backend}; }}
  server {{
    listen {address} so_keepalive=on;
    ssl_preread on;
    proxy_pass $upstream;
    proxy_socket_keepalive on;
    proxy_timeout 24h;
  }}
}}
",
                    path("pid")
                ),
                vec!["nginx".into(), "-c".into(), path("config")],
            ),
        };
        std::fs::write(path("config"), config).unwrap();
        let cpus = if workers == 1 { PROXY_CPUS.to_owned() } else { format!("0-{}", workers - 1) };
        let child = Command::new("taskset")
            .args(["-c", &cpus])
            .args(&arguments)
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("taskset is needed");
        let proxy = Self { child, address, _directory: directory };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "{} does not listen; is it installed?", kind.name());
            std::thread::sleep(Duration::from_millis(10));
        }
        proxy
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // nginx ends its workers only when it is asked.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let deadline = Instant::now() + Duration::from_millis(300);
        while Instant::now() < deadline && self.child.try_wait().is_ok_and(|status| status.is_none()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
