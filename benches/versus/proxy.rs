//! The proxies, with equal settings: one route, keepalive on both legs, no log unless the name says so.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::load::Work;
use crate::measure;

pub const NAME: &str = "devkubernetes01.example.com";

/// The CPUs of the proxy; load and backend take the last one.
const PROXY_CPUS: &str = "0";

#[derive(Clone, Debug)]
pub enum Kind {
    Snigate {
        binary: PathBuf,
        log: bool,
    },
    Haproxy {
        splice: bool,
        log: bool,
    },
    Nginx {
        log: bool,
    },
    /// See [`crate::floor`].
    Floor,
    /// No proxy: what is added is the difference to this.
    Direct,
}

impl Kind {
    pub fn all(others: &[PathBuf]) -> Vec<Self> {
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_snigate"));
        let mut kinds = vec![Self::Snigate { binary: binary.clone(), log: false }];
        kinds.extend(others.iter().map(|binary| Self::Snigate { binary: binary.clone(), log: false }));
        kinds.extend([
            Self::Haproxy { splice: false, log: false },
            Self::Haproxy { splice: true, log: false },
            Self::Nginx { log: false },
            Self::Floor,
            Self::Direct,
            Self::Snigate { binary, log: true },
            Self::Haproxy { splice: false, log: true },
            Self::Nginx { log: true },
        ]);
        kinds
    }

    pub fn name(&self) -> String {
        let base = match self {
            Self::Snigate { binary, .. } if binary != Path::new(env!("CARGO_BIN_EXE_snigate")) => {
                return format!("snigate {}", binary.display());
            }
            Self::Snigate { .. } => "snigate",
            Self::Haproxy { splice: false, .. } => "HAProxy",
            Self::Haproxy { splice: true, .. } => "HAProxy splice-auto",
            Self::Nginx { .. } => "nginx",
            Self::Floor => "floor",
            Self::Direct => "no proxy",
        };
        format!("{base}{}", if self.logs() { ", log on" } else { "" })
    }

    pub fn is_haproxy(&self) -> bool {
        matches!(self, Self::Haproxy { .. })
    }

    pub fn logs(&self) -> bool {
        match self {
            Self::Snigate { log, .. } | Self::Haproxy { log, .. } | Self::Nginx { log } => *log,
            Self::Floor | Self::Direct => false,
        }
    }

    /// Whether it makes a difference to this work.
    pub fn does(&self, work: Work) -> bool {
        match work {
            // A log line is per connection.
            Work::Connect { .. } => true,
            Work::RoundTrip { .. } | Work::Tls { .. } => !self.logs(),
            Work::Bulk { .. } => !self.logs() && !matches!(self, Self::Floor | Self::Direct),
            Work::Idle { .. } => match self {
                Self::Snigate { .. } => true,
                Self::Haproxy { splice, log } => !splice && !log,
                Self::Nginx { log } => !log,
                Self::Floor | Self::Direct => false,
            },
        }
    }
}

/// A running proxy, killed when it is dropped.
pub struct Proxy {
    child: Option<Child>,
    address: SocketAddr,
    _directory: TempDir,
}

impl Proxy {
    pub fn start(kind: &Kind, backend: SocketAddr, workers: usize) -> Self {
        Self::start_with(kind, backend, workers, None)
    }

    /// With at most so many connections, and each one's usual patience for a hello.
    pub fn start_with(kind: &Kind, backend: SocketAddr, workers: usize, connections: Option<usize>) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (config, arguments): (String, Vec<String>) = match kind {
            Kind::Snigate { binary, log } => (
                format!(
                    "listen: {address}\nworkers: {workers}\nroutes:\n  - {{sni: {NAME}, upstream: \"{backend}\"}}\nlog: {{level: {}}}\n{}",
                    if *log { "info" } else { "error" },
                    connections.map_or(String::new(), |limit| format!("limits: {{connections: {limit}}}\n"))
                ),
                vec![binary.display().to_string(), "run".into(), "-c".into(), path("config")],
            ),
            Kind::Haproxy { splice, log } => (
                format!(
                    "global
  nbthread {workers}
  maxconn {}
  {}
defaults
  mode tcp
  {}
  option tcpka
  timeout connect 10s
  timeout client 24h
  timeout server 24h
  {}
frontend edge
  bind {address}
  tcp-request inspect-delay {}
  tcp-request content accept if {{ req_ssl_hello_type 1 }}
  use_backend cluster if {{ req_ssl_sni -i {NAME} }}
backend cluster
  server one {backend}
",
                    // As many as 20,000 descriptors allow: with splice, each may have pipes.
                    connections.unwrap_or(if *splice { 7900 } else { 9900 }),
                    if *log { "log stderr format raw local0 info" } else { "" },
                    if *log { "log global\n  option tcplog" } else { "" },
                    if *splice { "option splice-auto" } else { "" },
                    if connections.is_some() { "5s" } else { "10s" }
                ),
                vec!["haproxy".into(), "-db".into(), "-f".into(), path("config")],
            ),
            Kind::Nginx { log } => (
                format!(
                    "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
user root;
worker_processes {workers};
worker_rlimit_nofile 20000;
pid {};
error_log /dev/null;
events {{ worker_connections {}; }}
stream {{
  log_format line '$remote_addr:$remote_port [$time_local] $ssl_preread_server_name $upstream_addr $status $bytes_sent $bytes_received $session_time';
  access_log {};
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
                    path("pid"),
                    connections.unwrap_or(19900),
                    if *log { "/dev/null line" } else { "off" }
                ),
                vec!["nginx".into(), "-c".into(), path("config")],
            ),
            Kind::Floor => {
                let program = std::env::current_exe().unwrap().display().to_string();
                (String::new(), vec![program, "--floor".into(), address.to_string(), backend.to_string()])
            }
            Kind::Direct => return Self { child: None, address: backend, _directory: directory },
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
        let proxy = Self { child: Some(child), address, _directory: directory };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "{} does not listen; is it installed?", kind.name());
            std::thread::sleep(Duration::from_millis(10));
        }
        proxy
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The process that accepts: of nginx, its worker.
    pub fn accepting(&self) -> u32 {
        *measure::family(self.pid().unwrap()).last().unwrap()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        // nginx ends its workers only when it is asked.
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::INT);
        let deadline = Instant::now() + Duration::from_millis(300);
        while Instant::now() < deadline && child.try_wait().is_ok_and(|status| status.is_none()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}
