//! The proxies, with equal settings: keepalive on both legs, no log unless asked for.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use procfs::process::Process;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::load::{NAME, PATIENCE};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    Snigate(PathBuf),
    Haproxy {
        splice: bool,
    },
    Nginx,
    /// See [`crate::floor`].
    Floor,
}

impl Program {
    /// This build of snigate, then others.
    pub fn snigates(against: &[PathBuf]) -> Vec<Self> {
        let others = against.iter().map(|binary| fs::canonicalize(binary).expect("--against"));
        [PathBuf::from(env!("CARGO_BIN_EXE_snigate"))].into_iter().chain(others).map(Self::Snigate).collect()
    }

    pub fn all(against: &[PathBuf]) -> Vec<Self> {
        [Self::snigates(against), vec![Self::Haproxy { splice: false }, Self::Nginx]].concat()
    }

    /// nginx has no active health checks.
    pub fn with_health_checks(against: &[PathBuf]) -> Vec<Self> {
        Self::all(against).into_iter().filter(|program| *program != Self::Nginx).collect()
    }

    pub fn name(&self) -> String {
        match self {
            Self::Snigate(binary) if binary == Path::new(env!("CARGO_BIN_EXE_snigate")) => "snigate".into(),
            Self::Snigate(binary) => format!("snigate {}", binary.display()),
            Self::Haproxy { splice: false } => "HAProxy".into(),
            Self::Haproxy { splice: true } => "HAProxy splice-auto".into(),
            Self::Nginx => "nginx".into(),
            Self::Floor => "floor".into(),
        }
    }

    fn binary(&self) -> PathBuf {
        match self {
            Self::Snigate(binary) => binary.clone(),
            Self::Haproxy { .. } => installed("haproxy"),
            Self::Nginx => installed("nginx"),
            Self::Floor => std::env::current_exe().unwrap(),
        }
    }
}

fn installed(program: &str) -> PathBuf {
    let directories = std::env::var("PATH").unwrap_or_default();
    let mut paths = directories.split(':').chain(["/usr/sbin"]).map(|directory| Path::new(directory).join(program));
    paths.find(|path| path.exists()).unwrap_or_else(|| panic!("is {program} installed?"))
}

#[derive(Clone, Default)]
pub struct Setup {
    /// Of every route. Several have health checks.
    pub endpoints: Vec<SocketAddr>,
    /// So many threads or processes, pinned to as many CPUs. Default: all CPUs; of nginx, one process.
    pub workers: Option<usize>,
    /// The limit, as each proxy counts connections.
    pub connections: Option<usize>,
    pub log: bool,
    /// PROXY headers are accepted, and sent to endpoints: with the TLV by which snigate finds the route.
    pub proxied: bool,
    /// More routes than can be measured with all the same endpoints.
    pub fleet: Option<Fleet>,
    /// Of snigate.
    pub parking: Option<Parking>,
}

pub const TLV: (u8, &str) = (0xe0, "kubernetes01");

/// Routes with an endpoint each, which has health checks, and metrics.
#[derive(Clone)]
pub struct Fleet {
    pub routes: Vec<(String, SocketAddr)>,
    pub admin: SocketAddr,
}

/// When silent connections are parked, and where the metrics say how many are.
#[derive(Clone)]
pub struct Parking {
    pub after: &'static str,
    pub admin: SocketAddr,
}

impl Parking {
    pub fn after(after: &'static str) -> Self {
        Self { after, admin: unused_address() }
    }
}

impl Setup {
    pub fn new(endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { endpoints: endpoints.into_iter().collect(), ..Self::default() }
    }

    fn snigate(&self, address: SocketAddr, names: &[String]) -> String {
        let endpoints: Vec<String> = self.endpoints.iter().map(SocketAddr::to_string).collect();
        let (number, value) = TLV;
        let upstream = match &*endpoints {
            [endpoint] if self.proxied => {
                format!("{{endpoints: \"{endpoint}\", proxy_protocol: {{version: v2, pass: {number}}}}}")
            }
            [endpoint] => format!("\"{endpoint}\""),
            _ => format!(
                "{{endpoints: {endpoints:?}, connect: {{timeout: 10s, per_try: 3s}}, health_check: {{interval: 5s, timeout: 4s, rise: 2, fall: 3}}}}"
            ),
        };
        let matcher = if self.proxied { format!(", proxy_tlv: {{{number}: {value}}}") } else { String::new() };
        let routes = names.iter().map(|name| format!("  - {{sni: {name}{matcher}, upstream: {upstream}}}\n"));
        let listen = if self.proxied {
            format!("[{{address: \"{address}\", accept_proxy: {{from: 127.0.0.0/8}}}}]")
        } else {
            address.to_string()
        };
        let fleet = self.fleet.iter().flat_map(|fleet| &fleet.routes).map(|(name, endpoint)| {
            format!("  - {{sni: {name}, upstream: {{endpoints: [\"{endpoint}\"], health_check: {{interval: 5s, timeout: 4s}}}}}}\n")
        });
        let admin = self.fleet.as_ref().map(|fleet| fleet.admin).or(self.parking.as_ref().map(|parking| parking.admin));
        let limits = [
            self.connections.map(|limit| format!("connections: {limit}")),
            self.parking.as_ref().map(|parking| format!("park_after: {}", parking.after)),
        ];
        format!(
            "listen: {listen}\n{}routes:\n{}timeouts: {{drain: 24h}}\nlog: {{level: {}}}\n{}limits: {{{}}}\n",
            admin.map_or(String::new(), |admin| format!("admin: {admin}\n")),
            routes.chain(fleet).collect::<String>(),
            if self.log { "info" } else { "error" },
            self.workers.map_or(String::new(), |workers| format!("workers: {workers}\n")),
            limits.into_iter().flatten().collect::<Vec<_>>().join(", ")
        )
    }

    fn haproxy(&self, address: SocketAddr, names: &[String], directory: &Path, splice: bool) -> String {
        let checks = "option redispatch 1
  retries 3
  timeout connect 3s
  timeout check 4s
  balance leastconn
  default-server check inter 5s rise 2 fall 3 on-marked-down shutdown-sessions";
        let servers = self.endpoints.iter().map(|endpoint| {
            format!("  server {endpoint} {endpoint}{}\n", if self.proxied { " send-proxy-v2" } else { "" })
        });
        format!(
            "global
  {}
  maxconn {}
  stats socket {} mode 600 level admin expose-fd listeners
  {}
defaults
  mode tcp
  option tcpka
  timeout connect 10s
  timeout client 24h
  timeout server 24h
  {}
  {}
frontend edge
  bind {address}{}
  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req_ssl_hello_type 1 }}
  use_backend cluster if {{ req_ssl_sni -i {} }}
{}
backend cluster
  {}
{}{}",
            self.workers.map_or(String::new(), |workers| format!("nbthread {workers}")),
            // As many as 20,000 descriptors allow: with splice, a connection may have pipes.
            self.connections.unwrap_or(if splice { 7900 } else { 9900 }),
            directory.join("stats").display(),
            if self.log { "log stderr format raw local0 info" } else { "" },
            if self.log { "log global\n  option tcplog" } else { "" },
            if splice { "option splice-auto" } else { "" },
            if self.proxied { " accept-proxy" } else { "" },
            names.join(" "),
            if self.fleet.is_some() {
                format!("  use_backend %[req_ssl_sni,lower,map({})]", self.map(directory).display())
            } else {
                String::new()
            },
            if self.endpoints.len() > 1 { checks } else { "" },
            servers.collect::<String>(),
            self.fleet.as_ref().map_or(String::new(), Fleet::haproxy)
        )
    }

    /// HAProxy's backend for each name.
    fn map(&self, directory: &Path) -> PathBuf {
        let path = directory.join("map");
        let routes = self.fleet.iter().flat_map(|fleet| &fleet.routes);
        fs::write(&path, routes.map(|(name, _)| format!("{name} {name}\n")).collect::<String>()).unwrap();
        path
    }

    fn nginx(&self, address: SocketAddr, names: &[String], directory: &Path) -> String {
        // Debian has the module in a file of its own.
        let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
        let load = if Path::new(module).exists() { format!("load_module {module};") } else { String::new() };
        let routes = names.iter().map(|name| format!("{name} {}; ", self.endpoints[0]));
        format!(
            "{load}
user root;
worker_processes {};
worker_rlimit_nofile 20000;
pid {};
error_log /dev/null crit;
events {{ worker_connections {}; }}
stream {{
  log_format line '$remote_addr:$remote_port [$time_local] $ssl_preread_server_name $upstream_addr $status $bytes_sent $bytes_received $session_time';
  access_log {};
  map $ssl_preread_server_name $upstream {{ {} }}
  server {{
    listen {address}{} so_keepalive=on backlog=4096;
    ssl_preread on;{}
    proxy_pass $upstream;
    proxy_socket_keepalive on;
    proxy_half_close on;
    proxy_timeout 24h;
  }}
}}
",
            self.workers.unwrap_or(1),
            directory.join("pid").display(),
            self.connections.unwrap_or(19900),
            if self.log { "/dev/null line" } else { "off" },
            routes.collect::<String>(),
            if self.proxied { " proxy_protocol" } else { "" },
            if self.proxied { " proxy_protocol on;" } else { "" }
        )
    }
}

impl Fleet {
    fn haproxy(&self) -> String {
        let backends = self.routes.iter().map(|(name, endpoint)| {
            format!("backend {name}\n  timeout check 4s\n  server endpoint {endpoint} check inter 5s\n")
        });
        let exporter = "  mode http\n  http-request use-service prometheus-exporter if { path /metrics }\n";
        format!("frontend admin\n  bind {}\n{exporter}{}", self.admin, backends.collect::<String>())
    }
}

/// A running proxy in a process group of its own, killed when it is dropped.
pub struct Proxy {
    pub program: Program,
    pub address: SocketAddr,
    directory: TempDir,
    pub setup: Setup,
    child: Option<Child>,
    /// The process that receives signals.
    main: Option<Pid>,
    group: Option<Pid>,
    /// Receives snigate's messages for systemd.
    manager: UnixDatagram,
}

impl Proxy {
    pub fn start(program: &Program, setup: Setup) -> Self {
        let address = unused_address();
        let directory = TempDir::new().unwrap();
        let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
        let program = program.clone();
        let mut proxy = Self { program, address, directory, setup, child: None, main: None, group: None, manager };
        proxy.configure([]);
        proxy.install(true);
        proxy.run();
        let name = proxy.program.name();
        until(&format!("{name} listens"), || {
            // nginx daemonizes: its first process has been waited for.
            let exited = proxy.child.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(exited.is_none_or(|status| status.success()), "{name} does not start: {}", exited.unwrap());
            TcpStream::connect(address).is_ok()
        });
        proxy
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration, with routes for these names, too.
    pub fn configure(&self, more: impl IntoIterator<Item = String>) {
        let names: Vec<String> = [NAME.to_owned()].into_iter().chain(more).collect();
        let (setup, address, directory) = (&self.setup, self.address, self.directory.path());
        self.write(&match &self.program {
            Program::Snigate(_) => setup.snigate(address, &names),
            Program::Haproxy { splice } => setup.haproxy(address, &names, directory, *splice),
            Program::Nginx => setup.nginx(address, &names, directory),
            Program::Floor => String::new(),
        });
    }

    /// Makes the configuration invalid for every proxy.
    pub fn break_configuration(&self) {
        self.write(&(fs::read_to_string(self.path("config")).unwrap() + "nonsense: 1\n"));
    }

    fn write(&self, config: &str) {
        fs::write(self.path("new"), config).unwrap();
        fs::rename(self.path("new"), self.path("config")).unwrap();
    }

    /// Installs what the next upgrade starts: the binary, or a program that exits at once.
    pub fn install(&self, works: bool) {
        // HAProxy's master executes whatever is there, and does not survive a broken binary.
        let works = works || matches!(self.program, Program::Haproxy { .. });
        symlink(if works { self.program.binary() } else { "/bin/false".into() }, self.path("next")).unwrap();
        fs::rename(self.path("next"), self.path("proxy")).unwrap();
    }

    pub fn run(&mut self) {
        let mut command = Command::new(self.path("proxy"));
        match &self.program {
            Program::Snigate(_) => command.args(["run", "-c"]).arg(self.path("config")),
            Program::Haproxy { .. } => command.args(["-W", "-db", "-f"]).arg(self.path("config")),
            Program::Nginx => command.arg("-c").arg(self.path("config")),
            Program::Floor => {
                command.args(["floor", &self.address.to_string()]).arg(self.setup.endpoints[0].to_string())
            }
        };
        command.env_remove("RUST_LOG").env("NOTIFY_SOCKET", self.path("notify")).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let cpus = sched_getaffinity(None).unwrap();
        if let Some(workers) = self.setup.workers {
            pin(0..workers);
        }
        let mut child = command.spawn().unwrap();
        sched_setaffinity(None, &cpus).unwrap();
        self.main = Some(Pid::from_child(&child));
        match &self.program {
            Program::Snigate(_) => drop(self.notified()),
            // It can only be upgraded as a daemon, which has a process group of its own.
            Program::Nginx => {
                child.wait().unwrap();
                until("nginx writes its process ID", || self.pid_of_nginx().is_some());
                self.main = self.pid_of_nginx();
            }
            Program::Haproxy { .. } | Program::Floor => {}
        }
        self.group = self.main;
        self.child = Some(child);
    }

    /// Waits until snigate reports that it serves, and as which process.
    pub fn notified(&self) -> Option<Pid> {
        let mut message = [0; 4096];
        loop {
            let length = self.manager.recv(&mut message).ok()?;
            let message = String::from_utf8_lossy(&message[..length]).into_owned();
            if let Some(process) = message.lines().find_map(|line| line.strip_prefix("MAINPID=")) {
                return Pid::from_raw(process.parse().unwrap());
            }
        }
    }

    fn pid_of_nginx(&self) -> Option<Pid> {
        fs::read_to_string(self.path("pid")).ok()?.trim().parse().ok().and_then(Pid::from_raw)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.main.unwrap(), signal).unwrap();
    }

    pub fn reload(&self) {
        self.signal(if matches!(self.program, Program::Haproxy { .. }) { Signal::USR2 } else { Signal::HUP });
    }

    /// Whether another process serves.
    pub async fn upgrade(&mut self, works: bool) -> bool {
        // Forget the messages about reloads.
        self.manager.set_nonblocking(true).unwrap();
        while self.notified().is_some() {}
        self.manager.set_nonblocking(false).unwrap();
        let before = self.main;
        self.signal(Signal::USR2);
        match self.program {
            Program::Snigate(_) if works => self.main = tokio::task::block_in_place(|| self.notified()).or(before),
            Program::Nginx if works => {
                let begun = Instant::now();
                while self.pid_of_nginx().is_none_or(|now| Some(now) == before) {
                    if begun.elapsed() > Duration::from_secs(3) {
                        return false;
                    }
                    sleep(Duration::from_millis(5)).await;
                }
                sleep(Duration::from_millis(100)).await;
                self.main = self.pid_of_nginx();
                kill_process(before.unwrap(), Signal::QUIT).unwrap();
                sleep(Duration::from_millis(100)).await;
            }
            _ => sleep(Duration::from_millis(300)).await,
        }
        works && (self.main != before || matches!(self.program, Program::Haproxy { .. }))
    }

    /// Asks the proxy to exit after its last connection.
    pub fn stop(&self) {
        self.signal(match self.program {
            Program::Snigate(_) | Program::Floor => Signal::TERM,
            Program::Haproxy { .. } => Signal::USR1,
            Program::Nginx => Signal::QUIT,
        });
    }

    /// When it exits by itself.
    pub async fn exited(&mut self) -> Option<Instant> {
        for _ in 0..60_000 {
            let has_exited = match self.program {
                Program::Nginx => self.processes().is_empty(),
                _ => self.child.as_mut()?.try_wait().unwrap().is_some(),
            };
            if has_exited {
                return Some(Instant::now());
            }
            sleep(Duration::from_millis(1)).await;
        }
        None
    }

    /// The process that accepts: the worker, where there is one.
    pub fn accepting(&self) -> Pid {
        let pids = self.processes().into_iter().filter_map(|process| Pid::from_raw(process.pid));
        pids.max_by_key(|pid| Some(*pid) != self.main).unwrap()
    }

    /// All processes of the group.
    pub fn processes(&self) -> Vec<Process> {
        let is_member = |process: &Process| {
            process.stat().is_ok_and(|stat| Pid::from_raw(stat.pgrp) == self.group && stat.state != 'Z')
        };
        procfs::process::all_processes().unwrap().flatten().filter(is_member).collect()
    }

    /// CPU time of all threads.
    pub fn cpu(&self) -> Duration {
        let tasks = self.processes().into_iter().flat_map(|process| process.tasks().unwrap().flatten());
        Duration::from_nanos(tasks.filter_map(|task| task.schedstat().ok()).map(|stat| stat.sum_exec_runtime).sum())
    }

    /// Memory that is the processes' own, in bytes: no code, nothing shared.
    pub fn own_memory(&self) -> u64 {
        self.processes().iter().filter_map(|process| process.status().ok()?.rssanon).sum::<u64>() * 1024
    }

    /// How many descriptors they have open.
    pub fn descriptors(&self) -> usize {
        self.processes().iter().filter_map(|process| process.fd_count().ok()).sum()
    }

    /// One of snigate's metrics, of all routes. Without [`Setup::parking`] there are none.
    pub fn metric(&self, name: &str) -> Option<u64> {
        let mut stream = TcpStream::connect(self.setup.parking.as_ref()?.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let series =
            answer.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        Some(series.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum())
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> u64 {
        self.processes().iter().filter_map(|process| process.status().ok()?.vmrss).sum::<u64>() * 1024
    }

    pub fn kill(&mut self) {
        if let Some(group) = self.group {
            // It may have exited already.
            let _ = kill_process_group(group, Signal::KILL);
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
        until("all processes exit", || self.group.is_none() || self.processes().is_empty());
        let _ = fs::remove_file(self.path("pid"));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Restricts this thread, and the threads and processes that it starts, to these CPUs.
pub fn pin(cpus: Range<usize>) {
    let mut set = CpuSet::new();
    cpus.for_each(|cpu| set.set(cpu));
    sched_setaffinity(None, &set).unwrap();
}

fn unused_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
