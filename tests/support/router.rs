//! The program under test.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::lines::Lines;
use super::{PATIENCE, exit, watchdog};

/// The binary, logging as it does by default.
#[track_caller]
pub fn snigate() -> Command {
    watchdog::step("a command of snigate");
    let mut command = Command::new(env!("CARGO_BIN_EXE_snigate"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// A running `snigate run`, killed when it is dropped.
pub struct Router {
    child: Child,
    lines: Arc<Lines>,
    pub config: PathBuf,
    _directory: TempDir,
}

impl Router {
    /// Starts with this configuration and waits until it listens.
    #[track_caller]
    pub fn start(config: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("snigate.yaml");
        std::fs::write(&path, config).unwrap();
        let mut command = snigate();
        command.arg("run").arg("-c").arg(&path);
        let router = Self::spawn(command, path, directory);
        let listeners = router.wait("starting", |line| line["message"] == "starting")["listeners"].as_u64().unwrap();
        let has_admin = config.contains("admin:");
        router.wait_many("listening", usize::try_from(listeners).unwrap() + usize::from(has_admin), |line| {
            line["message"] == "listening"
        });
        router
    }

    /// One listener on a port of the kernel's choice, an admin listener, and these routes.
    #[track_caller]
    pub fn routing(routes: &[(&str, SocketAddr)]) -> Self {
        Self::start(&config(routes, ""))
    }

    pub fn spawn(command: Command, config: PathBuf, directory: TempDir) -> Self {
        Self::spawn_with(command, config, directory, Stdio::null())
    }

    /// With this standard output.
    pub fn spawn_with(mut command: Command, config: PathBuf, directory: TempDir, stdout: Stdio) -> Self {
        let mut child = command.stderr(Stdio::piped()).stdout(stdout).spawn().unwrap();
        // It holds what was given to the child.
        drop(command);
        let lines = Lines::of(child.stderr.take().unwrap());
        Self { child, lines, config, _directory: directory }
    }

    /// All log lines so far. Each must be one JSON object.
    pub fn log(&self) -> Vec<Value> {
        self.log_since(0)
    }

    /// The same without the first so many lines.
    pub fn log_since(&self, first: usize) -> Vec<Value> {
        let lines = self.lines.since(first);
        let json = |line: &String| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        lines.iter().map(json).collect()
    }

    /// The first log line that is so, now or later.
    #[track_caller]
    pub fn wait(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        self.wait_many(what, 1, is_so).remove(0)
    }

    #[track_caller]
    pub fn wait_many(&self, what: &str, count: usize, is_so: impl Fn(&Value) -> bool) -> Vec<Value> {
        self.lines.wait(what, count, |line| {
            let line = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            is_so(&line).then_some(line)
        })
    }

    /// The first line, of whatever format, that is so, now or later.
    #[track_caller]
    pub fn wait_line(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        self.lines.wait(what, 1, |line| is_so(line).then(|| line.to_owned())).remove(0)
    }

    /// What was logged of the connection from this client.
    #[track_caller]
    pub fn account_of(&self, client: SocketAddr) -> Value {
        self.wait(&format!("client {client}"), |line| {
            let is_its = line["client.port"] == client.port() && line["client.address"] == client.ip().to_string();
            is_its && line["outcome"].is_string()
        })
    }

    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        self.address_of(|name| name != "_admin")
    }

    #[track_caller]
    pub fn admin(&self) -> SocketAddr {
        self.address_of(|name| name == "_admin")
    }

    #[track_caller]
    pub fn address_of(&self, is_it: impl Fn(&str) -> bool) -> SocketAddr {
        let line = self.wait("its address", |line| {
            line["message"] == "listening" && line["listener"].as_str().is_some_and(&is_it)
        });
        line["address"].as_str().unwrap().parse().unwrap()
    }

    /// `GET` from the admin listener, of what is so now: the status and the body.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        let (head, body) = self.get_with(path, "cache-control: no-cache\r\n");
        (head.split(' ').nth(1).unwrap().parse().unwrap(), String::from_utf8(body).unwrap())
    }

    /// The same with these headers only: the head and the body.
    #[track_caller]
    pub fn get_with(&self, path: &str, headers: &str) -> (String, Vec<u8>) {
        watchdog::step(format!("GET {path}"));
        let mut stream = TcpStream::connect(self.admin()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}connection: close\r\n\r\n").unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).unwrap();
        let end = response.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
        (String::from_utf8(response[..end].to_vec()).unwrap(), response[end + 4..].to_vec())
    }

    /// The value of the metric with this name and these labels, as they are printed. Those of a route are left out while they
    /// are 0.
    #[track_caller]
    pub fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let name = series.split('{').next().unwrap();
        let name = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let is_always_there = ["snigate_connections_active", "snigate_endpoint_state"].contains(&name);
        let is_of_a_route = series.contains("route=\"") && !series.contains("\"_none\"");
        let is_zero = is_of_a_route && !is_always_there && text.contains(&format!("# TYPE {name} "));
        value.unwrap_or_else(|| if is_zero { "0" } else { panic!("no {series} in\n{text}") }).parse().unwrap()
    }

    /// Writes this configuration and asks for it to be taken; what was logged of that.
    #[track_caller]
    pub fn reload(&self, config: &str) -> Value {
        std::fs::write(&self.config, config).unwrap();
        self.reload_as_it_is()
    }

    #[track_caller]
    pub fn reload_as_it_is(&self) -> Value {
        let is_told = |line: &Value| {
            line["message"]
                .as_str()
                .is_some_and(|message| message == "reloaded" || message.starts_with("reload failed"))
        };
        let before = self.log().iter().filter(|line| is_told(line)).count();
        self.signal(Signal::HUP);
        self.wait_many("the reload", before + 1, is_told).pop().unwrap()
    }

    /// The processes that have taken over, the last one at the end.
    pub fn successors(&self) -> Vec<Pid> {
        let lines = self.lines.so_far();
        let log = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let upgraded = log.filter_map(|line| line["process"].as_i64());
        upgraded.map(|process| Pid::from_raw(process as i32).unwrap()).collect()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// How many it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid().as_raw_nonzero())).unwrap().count()
    }

    /// Its resident memory, in bytes.
    pub fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_nonzero())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        1024.0 * line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits for the process to exit by itself.
    #[track_caller]
    pub fn exit(&mut self) -> ExitStatus {
        exit(&mut self.child, || self.lines.so_far().join("\n"))
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for successor in self.successors() {
            let _ = kill_process(successor, Signal::KILL);
        }
    }
}

/// A configuration with an admin listener; a route named `*` takes all names. `more` are further lines.
pub fn config(routes: &[(&str, SocketAddr)], more: &str) -> String {
    let route = |(name, upstream): &(&str, SocketAddr)| match *name {
        "*" => format!("  - upstream: \"{upstream}\"\n"),
        name => format!("  - sni: \"{name}\"\n    upstream: \"{upstream}\"\n"),
    };
    let routes: String = routes.iter().map(route).collect();
    format!("listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nroutes:\n{routes}{more}")
}
