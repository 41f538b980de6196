//! The router, and all that is around it: one thread moves every byte, so that nothing depends on how threads take turns.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use super::bytes;
use super::checks::{self, Probe};
use super::endpoints::Endpoint;
use super::names::Names;
use super::peer::Peer;
use super::script::{Arrival, Behaviour, CLUSTER, Check, Config, ENDPOINTS, Filter, From, Kind, Operation, Route};
use crate::support::{PATIENCE, Router, snigate};

pub struct World<'n> {
    /// What takes longer has failed.
    pub patience: Duration,
    pub router: Router,
    control: PathBuf,
    listeners: [SocketAddr; 2],
    pub endpoints: [Endpoint; ENDPOINTS],
    pub clients: BTreeMap<usize, Peer>,
    /// The other ends, by the number of their client.
    pub upstreams: BTreeMap<usize, Peer>,
    /// Those of which it is not known yet whose they are, with the endpoint.
    pub strangers: Vec<(usize, Peer)>,
    /// Of these, those that ask for their endpoint's health.
    probes: Vec<Probe>,
    /// The router's ends of those that have ended before anything told whose they are.
    pub nameless: BTreeSet<String>,
    /// Lines of ended connections, by the number of their client.
    pub lines: BTreeMap<usize, Vec<Value>>,
    lines_read: usize,
    pub serving: Pid,
    sockets_at_start: usize,
    names: Option<&'n Names>,
    /// Which endpoints the name has.
    named: Vec<usize>,
}

impl<'n> World<'n> {
    pub fn start(config: &Config, patience: Duration, names: Option<&'n Names>, named: &[usize]) -> Self {
        let directory = TempDir::new().unwrap();
        let (path, control) = (directory.path().join("snigate.yaml"), directory.path().join("control.sock"));
        let endpoints: [Endpoint; ENDPOINTS] =
            std::array::from_fn(|number| Endpoint::new(names.map(|_| Names::address(number))));
        std::fs::write(&path, text(config, &endpoints, &control)).unwrap();
        if let Some(names) = names {
            names.say(named);
        }
        let mut command = names.map_or_else(snigate, Names::snigate);
        command.arg("run").arg("-c").arg(&path);
        let router = Router::spawn(command, path, directory);
        router.wait_many("that it listens", 3, |line| line["message"] == "listening");
        let listeners = ["plain", "proxied"].map(|name| router.address_of(|listener| listener == name));
        let serving = router.pid();
        let mut world = Self {
            patience,
            router,
            control,
            listeners,
            endpoints,
            clients: BTreeMap::new(),
            upstreams: BTreeMap::new(),
            strangers: Vec::new(),
            probes: Vec::new(),
            nameless: BTreeSet::new(),
            lines: BTreeMap::new(),
            lines_read: 0,
            serving,
            sockets_at_start: 0,
            names,
            named: named.to_vec(),
        };
        world.until("the control socket", |world| world.ask("/api/status").is_some().then_some(())).unwrap();
        world.has_resolved(config).unwrap();
        world.sockets_at_start = sockets_of(world.serving).len();
        world
    }

    /// A client connects, and begins to send.
    pub fn arrive(&mut self, arrival: &Arrival) -> Result<(), String> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        socket.bind(&SocketAddr::from((bytes::source(arrival), 0)).into()).unwrap();
        let connected = socket.connect(&self.listener(arrival).into());
        connected.map_err(|error| format!("client {} cannot connect: {error}", arrival.number))?;
        let mut client = Peer::new(socket.into());
        let first = bytes::first(arrival);
        for segment in first.chunks(arrival.segments.unwrap_or(first.len().max(1))) {
            client.send(segment.to_vec());
        }
        // At once: the deadline of the hello runs.
        while client.is_to_write() && client.write() {}
        self.clients.insert(arrival.number, client);
        Ok(())
    }

    pub fn listener(&self, arrival: &Arrival) -> SocketAddr {
        self.listeners[usize::from(listener(arrival) == "proxied")]
    }

    /// Moves what can be moved, for which it waits a little. Whether there was something.
    pub fn advance(&mut self) -> bool {
        let ready = self.ready();
        let (of_peers, of_endpoints) = ready.split_at(ready.len() - ENDPOINTS);
        let mut has_advanced = false;
        for (peer, _) in self.peers_mut().zip(of_peers).filter(|(_, is_ready)| **is_ready) {
            has_advanced |= peer.advance();
        }
        for (number, _) in of_endpoints.iter().enumerate().filter(|(_, is_ready)| **is_ready) {
            while let Some(peer) = self.endpoints[number].accept(&mut self.nameless) {
                self.strangers.push((number, peer));
                has_advanced = true;
            }
        }
        self.answer_checks();
        has_advanced
    }

    fn answer_checks(&mut self) {
        let asking = self.strangers.extract_if(.., |(_, peer)| checks::asks(&peer.received));
        self.probes.extend(asking.map(|(endpoint, peer)| Probe::new(endpoint, peer)));
        let endpoints = &self.endpoints;
        self.probes.retain_mut(|probe| probe.answer(endpoints[probe.endpoint].behaviour != Behaviour::Unready));
    }

    fn peers_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        let strangers = self.strangers.iter_mut().map(|(_, peer)| peer);
        let probes = self.probes.iter_mut().map(|probe| &mut probe.peer);
        self.clients.values_mut().chain(self.upstreams.values_mut()).chain(strangers).chain(probes)
    }

    /// Which peers, in their order, and then which endpoints have something to do.
    fn ready(&self) -> Vec<bool> {
        let strangers = self.strangers.iter().map(|(_, peer)| peer);
        let probes = self.probes.iter().map(|probe| &probe.peer);
        let peers = self.clients.values().chain(self.upstreams.values()).chain(strangers).chain(probes);
        let awaited = peers.map(|peer| (peer.stream.as_fd(), peer.awaited()));
        let endpoints = self.endpoints.iter().map(|endpoint| (endpoint.socket.as_fd(), endpoint.awaited()));
        let awaited: Vec<_> = awaited.chain(endpoints).collect();
        let is_watched = |(_, flags): &&(_, PollFlags)| !flags.is_empty();
        // poll(2) reports errors also of sockets without flags: these are left out.
        let watched =
            awaited.iter().filter(is_watched).map(|(socket, flags)| PollFd::from_borrowed_fd(*socket, *flags));
        let mut watched: Vec<_> = watched.collect();
        // Log lines and processes are no descriptors here.
        let little = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        let _ = poll(&mut watched, Some(&little));
        let mut watched = watched.iter();
        let is_ready = |one: &(_, PollFlags)| is_watched(&one) && !watched.next().unwrap().revents().is_empty();
        awaited.iter().map(is_ready).collect()
    }

    /// Moves bytes until there is something.
    pub fn until<T>(&mut self, what: &str, mut find: impl FnMut(&mut Self) -> Option<T>) -> Result<T, String> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(found) = find(self) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(format!("{what}: not within {:?}", self.patience));
            }
            self.advance();
        }
    }

    /// Reads what has been logged since.
    pub fn read_lines(&mut self) {
        for line in self.router.log_since(self.lines_read) {
            self.lines_read += 1;
            if line["outcome"].is_string() {
                let address = line["client.address"].as_str().unwrap_or_default();
                let number: usize = address.rsplit('.').next().unwrap().parse().unwrap();
                self.lines.entry(number - 1).or_default().push(line);
            }
        }
    }

    /// Carries an operation out while bytes move. Whether it succeeds, and how many connections it closes.
    pub fn operate(&mut self, operation: &Operation) -> Result<(bool, Option<u64>), String> {
        match operation {
            Operation::Reload(config) => {
                self.write(config);
                self.order("/reload")
            }
            Operation::Name(endpoints) => {
                self.named.clone_from(endpoints);
                if let Some(names) = self.names {
                    names.say(endpoints);
                }
                Ok((true, None))
            }
            Operation::NameServerFails => self.without_names(),
            Operation::BadReload(text) => {
                std::fs::write(&self.router.config, text).unwrap();
                self.order("/reload")
            }
            Operation::Drain(kind, endpoint) => self.order(&format!("/drain?{}", self.named(*kind, *endpoint))),
            Operation::Resume(kind, endpoint) => self.order(&format!("/resume?{}", self.named(*kind, *endpoint))),
            Operation::Close(filter) => {
                let filter = match filter {
                    Filter::All => "all=true".into(),
                    Filter::Route(kind) => format!("route={}", kind.name()),
                    Filter::Endpoint(endpoint) => format!("endpoint={}", self.endpoints[*endpoint].address),
                    // Its own address, or the one in its PROXY header.
                    Filter::Client(number) => {
                        let own = self.clients.get(number).map(|client| client.addresses[0].ip());
                        let address = match own {
                            Some(IpAddr::V4(own)) if own.octets()[1] != 2 => own,
                            _ => bytes::named(*number),
                        };
                        format!("client={address}")
                    }
                };
                self.order(&format!("/close?rate=100000&{filter}"))
            }
            Operation::Upgrade => self.upgrade(),
            Operation::UpgradeTo(config) => {
                self.write(config);
                self.upgrade()
            }
        }
    }

    /// The router knows which endpoints the name has.
    pub fn has_resolved(&mut self, config: &Config) -> Result<(), String> {
        let named = config.routes.iter().filter(|route| route.is_named);
        let routes: BTreeSet<&str> = named.map(|route| route.kind.name()).collect();
        if routes.is_empty() {
            return Ok(());
        }
        let expected: BTreeSet<String> =
            self.named.iter().map(|endpoint| self.endpoints[*endpoint].address.to_string()).collect();
        self.until("the name is resolved", |world| {
            let status: Value = serde_json::from_str(&world.ask("/api/status")?).ok()?;
            let is_named = |route: &&Value| route["name"].as_str().is_some_and(|name| routes.contains(name));
            let has_all = |route: &Value| {
                let endpoints = route["upstream"][0]["endpoints"].as_array()?;
                let addresses = endpoints.iter().map(|endpoint| Some(endpoint["address"].as_str()?.to_owned()));
                Some(addresses.collect::<Option<BTreeSet<String>>>()? == expected)
            };
            let named: Vec<&Value> = status["routes"].as_array()?.iter().filter(is_named).collect();
            let are_all = named.len() == routes.len() && named.iter().all(|route| has_all(route) == Some(true));
            are_all.then_some(())
        })
    }

    /// The router knows the health of these endpoints, each with the name of its route.
    pub fn has_noticed(&mut self, expected: &[(&str, usize, &str)]) -> Result<(), String> {
        let expected: Vec<(&str, String, &str)> = expected
            .iter()
            .map(|(route, endpoint, health)| (*route, self.endpoints[*endpoint].address.to_string(), *health))
            .collect();
        let mut missing = None;
        let noticed = self.until("the health of endpoints", |world| {
            let status: Value = serde_json::from_str(&world.ask("/api/status")?).ok()?;
            let is_so = |(route, address, health): &&(&str, String, &str)| {
                let route = status["routes"].as_array()?.iter().find(|known| known["name"] == *route)?;
                let mut endpoints =
                    route["upstream"].as_array()?.iter().flat_map(|one| one["endpoints"].as_array()).flatten();
                let endpoint = endpoints.find(|endpoint| endpoint["address"] == address.as_str())?;
                (endpoint["health"] == *health).then_some(())
            };
            missing = expected.iter().find(|one| is_so(one).is_none()).cloned();
            missing.is_none().then_some(())
        });
        noticed.map_err(|error| format!("{error}: {missing:?}"))
    }

    /// The name server fails, until the router has seen it.
    fn without_names(&mut self) -> Result<(bool, Option<u64>), String> {
        let Some(names) = self.names else { return Ok((true, None)) };
        let status = self.ask("/api/status").unwrap_or_default();
        if status.contains(Names::NAME) {
            names.fail();
            self.until_logged("cannot resolve hostname")?;
            names.say(&self.named);
            self.until_logged("hostname resolves again")?;
        }
        Ok((true, None))
    }

    fn write(&self, config: &Config) {
        std::fs::write(&self.router.config, text(config, &self.endpoints, &self.control)).unwrap();
    }

    fn named(&self, kind: Kind, endpoint: Option<usize>) -> String {
        let endpoint = endpoint.map(|endpoint| format!("&endpoint={}", self.endpoints[endpoint].address));
        format!("route={}{}", kind.name(), endpoint.unwrap_or_default())
    }

    fn order(&mut self, path: &str) -> Result<(bool, Option<u64>), String> {
        let (status, body) = self.until(path, |world| {
            let answer = world.request("POST", path)?;
            // Just after an upgrade.
            (!answer.1.contains("no longer serves")).then_some(answer)
        })?;
        if !matches!(status, 200 | 409) {
            return Err(format!("{path}: {status} {body}"));
        }
        let matched = body.split("\"matched\":").nth(1).and_then(|rest| rest.split([',', '}']).next());
        Ok((status == 200 && !body.contains("\"error\""), matched.map(|count| count.parse().unwrap())))
    }

    /// Answers of the process that serves, or of the one before it.
    pub fn ask(&mut self, path: &str) -> Option<String> {
        self.request("GET", path).map(|(_, body)| body)
    }

    /// The answer's status and body, for which the others do not wait: it may take a second. `None`: there is none.
    fn request(&mut self, method: &str, path: &str) -> Option<(u16, String)> {
        let control = self.control.clone();
        std::thread::scope(|scope| {
            let (answered, answer) = mpsc::channel();
            scope.spawn(move || answered.send(request(&control, method, path)));
            loop {
                // Most answers are there at once.
                match answer.recv_timeout(Duration::from_millis(2)) {
                    Ok(answer) => return answer,
                    Err(mpsc::RecvTimeoutError::Timeout) => self.advance(),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return None,
                };
            }
        })
    }

    fn upgrade(&mut self) -> Result<(bool, Option<u64>), String> {
        let before = self.router.log_since(0).len();
        kill_process(self.serving, Signal::USR2).unwrap();
        let done = self.until("the upgrade", |world| {
            let is_done = |line: &Value| {
                let message = line["message"].as_str().unwrap_or_default();
                message.starts_with("upgraded;") || message.starts_with("upgrade failed;")
            };
            world.router.log_since(before).into_iter().find(is_done)
        })?;
        let Some(process) = done["process"].as_i64() else { return Ok((false, None)) };
        let old = std::mem::replace(&mut self.serving, Pid::from_raw(i32::try_from(process).unwrap()).unwrap());
        self.until("the old process accepts no more", |world| {
            sockets_of(old).is_disjoint(&sockets_of(world.serving)).then_some(())
        })?;
        self.until("the new process has the control socket", |world| {
            let status: Value = serde_json::from_str(&world.ask("/api/status")?).ok()?;
            (status["process"] == process).then_some(())
        })?;
        Ok((true, None))
    }

    /// What can move to the new process has, since so many lines were logged.
    pub fn has_moved(&mut self, lines: usize) -> Result<(), String> {
        self.until_one_is_logged(lines, &["connections continue in the old process", "the old process has exited"])
    }

    /// A message that begins so.
    fn until_logged(&mut self, message: &str) -> Result<(), String> {
        self.until_one_is_logged(self.router.log_since(0).len(), &[message])
    }

    fn until_one_is_logged(&mut self, lines: usize, messages: &[&str]) -> Result<(), String> {
        let is_one = |line: &Value| {
            let logged = line["message"].as_str().unwrap_or_default();
            messages.iter().any(|message| logged.starts_with(message))
        };
        self.until(messages[0], |world| world.router.log_since(lines).iter().any(is_one).then_some(()))
    }

    /// The values of all series, now.
    pub fn metrics(&mut self) -> Option<BTreeMap<String, f64>> {
        let text = self.ask("/metrics")?;
        let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        Some(series.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    /// The processes end, with nothing left behind.
    pub fn stop(mut self) -> Result<(), String> {
        // Otherwise checks of those that hang wait, each with a socket.
        self.endpoints.iter_mut().for_each(|endpoint| endpoint.behave(Behaviour::Serves));
        let descriptors = self.sockets_at_start;
        self.until("descriptors are closed", |world| (sockets_of(world.serving).len() <= descriptors).then_some(()))
            .map_err(|error| {
                format!("{error}: {} sockets, {descriptors} at the start", sockets_of(self.serving).len())
            })?;
        let first = self.router.pid();
        let is_first = first == self.serving;
        kill_process(self.serving, Signal::TERM).unwrap();
        if self.router.exit().code() != Some(0) {
            return Err("the first process has failed".into());
        }
        let later = self.router.successors();
        self.until("all processes end", |_| {
            (is_first || later.iter().all(|process| test_kill_process(*process).is_err())).then_some(())
        })
    }
}

/// The name of the listener where a client arrives.
pub fn listener(arrival: &Arrival) -> &'static str {
    match arrival.from {
        From::Plain | From::Denied | From::PlainWithHeader => "plain",
        From::HeaderV1 | From::HeaderV2 | From::HeaderV2WithTlv | From::WithoutHeader | From::Unlisted => "proxied",
    }
}

/// The configuration, as a file.
fn text(config: &Config, endpoints: &[Endpoint; ENDPOINTS], control: &std::path::Path) -> String {
    let mut text = format!(
        "listen:\n  - {{name: plain, address: \"127.0.0.1:0\"}}\n  \
         - {{name: proxied, address: \"127.0.0.1:0\", accept_proxy: {{from: 127.2.0.0/16}}}}\n\
         admin: 127.0.0.1:0\ncontrol: {}\nlimits: {{park_after: 100ms}}\ntimeouts: {{hello: 5s, drain: 100ms}}\n\
         log: {{refusals_per_second: 0}}\nroutes:\n",
        control.display()
    );
    for Route { kind, endpoints: reached, on_remove, balance, sends_header, check, is_named } in &config.routes {
        let matches = match kind {
            Kind::Exact => "sni: a.example".into(),
            Kind::Alpn => "sni: a.example, alpn: h2".into(),
            Kind::Tlv => format!("sni: a.example, proxy_tlv: {{0xe0: {CLUSTER}}}"),
            Kind::Wildcard => "sni: \"*.b.example\"".into(),
            Kind::Guarded => "sni: d.example, deny: 127.3.0.0/16".into(),
            Kind::Any => String::new(),
        };
        let reached: Vec<String> = reached
            .iter()
            .map(|(index, is_backup)| format!("{{address: \"{}\", backup: {is_backup}}}", endpoints[*index].address))
            .collect();
        let reached = if *is_named { format!("\"{}\"", Names::NAME) } else { reached.join(", ") };
        let header = if *sends_header { ", proxy_protocol: v1" } else { "" };
        let check = match check {
            Check::None => String::new(),
            Check::Connects => ", health_check: {interval: 1s, timeout: 1s}".into(),
            // A machine that is too busy to answer in time makes no endpoint dead.
            Check::Asks => format!(
                ", health_check: {{interval: 500ms, timeout: 500ms, rise: 1, fall: 10, unready: 1, \
                 tls: {{verify: false, server_name: {}}}, http: {{}}}}",
                checks::NAME
            ),
        };
        let comma = if matches.is_empty() { "" } else { ", " };
        text += &format!(
            "  - {{name: {}{comma}{matches}, upstream: {{endpoints: [{}], on_remove: {}, balance: {balance}, \
             slow_start: 0s, resolve_every: 50ms, connect: {{timeout: 5s, per_try: 500ms}}{header}{check}}}}}\n",
            kind.name(),
            reached,
            on_remove.name()
        );
    }
    text
}

/// The answer's status and body. `None`: there is none.
fn request(control: &PathBuf, method: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = UnixStream::connect(control).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers = "host: localhost\r\ncache-control: no-cache\r\n";
    write!(stream, "{method} {path} HTTP/1.0\r\n{headers}\r\n").ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// The sockets that a process has open, by inode.
fn sockets_of(process: Pid) -> BTreeSet<PathBuf> {
    let links = std::fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())).into_iter().flatten();
    let targets = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).collect()
}
