//! `snigate plan`

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use snigate::config::{Config, Route, overlap};
use snigate::server::{ReloadError, fixed};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Refused;
use crate::cli::Plan;

/// For the admin listener to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Room for the status of 100,000 routes.
const MAX_STATUS: usize = 256 * 1024 * 1024;

pub(super) fn run(options: &Plan) -> anyhow::Result<ExitCode> {
    let new = Config::load(&options.config)?;
    let running = match (options.admin, &options.from) {
        (Some(admin), _) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let status = runtime.block_on(async { timeout(PATIENCE, status(admin)).await });
            let status = status.map_err(anyhow::Error::from).and_then(|status| status);
            Running::of_status(&status.with_context(|| format!("cannot ask the admin listener at {admin}"))?)
                .with_context(|| format!("{admin} answers, but not as an admin listener of this version does"))?
        }
        (None, Some(from)) => Running::of_config(&Config::load(from)?),
        (None, None) => unreachable!("one of them is required"),
    };
    if let Some(refusal) = refusal(&running, &new) {
        anyhow::bail!(Refused(format!("a reload to {} would be refused: {refusal}", options.config.display())));
    }
    std::io::stdout().write_all(describe(&options.config, &running, &new)?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

async fn status(admin: SocketAddr) -> anyhow::Result<Value> {
    let stream = TcpStream::connect(admin).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/api/status").header("host", admin.to_string()).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    ensure!(response.status() == StatusCode::OK, "it answers {}", response.status());
    let body = Limited::new(response.into_body(), MAX_STATUS).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
    Ok(serde_json::from_slice(&body)?)
}

/// What runs now.
struct Running {
    /// Names by address.
    listeners: BTreeMap<String, String>,
    routes: BTreeMap<String, RunningRoute>,
    /// What no reload changes, by key.
    fixed: BTreeMap<String, String>,
}

struct RunningRoute {
    digest: String,
    on_remove: String,
    /// `None`: nobody has counted.
    connections: Option<u64>,
    /// Destinations, and the connections to the addresses that each stands for.
    destinations: Vec<(String, Option<u64>)>,
}

impl Running {
    fn of_config(config: &Config) -> Self {
        let route = |route: &Route| RunningRoute {
            digest: digest(route),
            on_remove: route.upstream.on_remove.label().into(),
            connections: None,
            destinations: route.upstream.destinations.iter().map(|to| (to.to_string(), None)).collect(),
        };
        let listeners = config.listeners.iter();
        Self {
            listeners: listeners.map(|listener| (listener.address.to_string(), listener.name.clone())).collect(),
            routes: config.routes.iter().map(|one| (one.name.clone(), route(one))).collect(),
            fixed: fixed(config).map(|(key, value)| (key.into(), value)).into(),
        }
    }

    /// `None` if something is missing.
    fn of_status(status: &Value) -> Option<Self> {
        let text = |value: &Value| Some(value.as_str()?.to_owned());
        let listener = |value: &Value| Some((text(&value["configured"])?, text(&value["name"])?));
        let destination = |value: &Value| {
            let endpoints = value["endpoints"].as_array()?.iter();
            let connections = endpoints.map(|endpoint| endpoint["connections"].as_u64()).sum::<Option<u64>>()?;
            Some((text(&value["destination"])?, Some(connections)))
        };
        let route = |value: &Value| {
            let route = RunningRoute {
                digest: text(&value["digest"])?,
                on_remove: text(&value["on_remove"])?,
                connections: Some(value["connections"].as_u64()?),
                destinations: value["upstream"].as_array()?.iter().map(destination).collect::<Option<_>>()?,
            };
            Some((text(&value["name"])?, route))
        };
        let fixed = |(key, value): (&String, &Value)| Some((key.clone(), text(value)?));
        Some(Self {
            listeners: status["listeners"].as_array()?.iter().map(listener).collect::<Option<_>>()?,
            routes: status["routes"].as_array()?.iter().map(route).collect::<Option<_>>()?,
            fixed: status["config"]["fixed"].as_object()?.iter().map(fixed).collect::<Option<_>>()?,
        })
    }
}

/// As the admin listener tells it.
fn digest(route: &Route) -> String {
    format!("{:016x}", route.digest())
}

/// What the running instance would say, as far as that can be known here.
fn refusal(running: &Running, new: &Config) -> Option<ReloadError> {
    let is_fixed = fixed(new).into_iter().find_map(|(key, wanted)| {
        let running = running.fixed.get(key).filter(|running| **running != wanted)?.clone();
        Some(ReloadError::Fixed { key, running, wanted })
    });
    let addresses = || running.listeners.keys().filter_map(|address| address.parse().ok());
    let is_new = |wanted: &SocketAddr| addresses().all(|running| running != *wanted);
    let in_the_way = || {
        new.listeners.iter().map(|listener| listener.address).filter(is_new).find_map(|wanted| {
            let running = addresses().find(|running| overlap(wanted, *running))?;
            Some(ReloadError::InTheWay { wanted, running })
        })
    };
    is_fixed.or_else(in_the_way)
}

fn describe(file: &Path, running: &Running, new: &Config) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(
        text,
        "What a reload to {} would change, timeouts, limits and other settings left aside:",
        file.display()
    )?;

    writeln!(text, "\nlisteners")?;
    for listener in &new.listeners {
        let address = listener.address.to_string();
        match running.listeners.get(&address) {
            None => writeln!(text, "  + {address}  begins to listen")?,
            Some(name) if *name != listener.name => {
                writeln!(text, "  ~ {address}  is called {} instead of {name}", listener.name)?;
            }
            Some(_) => writeln!(text, "    {address}  stays")?,
        }
    }
    let stays = |address: &String| new.listeners.iter().any(|listener| listener.address.to_string() == *address);
    for address in running.listeners.keys().filter(|address| !stays(address)) {
        writeln!(text, "  - {address}  serves its queue and closes; its connections stay")?;
    }

    writeln!(text, "\nroutes")?;
    let drain = humantime::format_duration(new.timeouts.drain).to_string();
    let known = running.routes.values().all(|route| route.connections.is_some());
    let mut ending = Ending { closed: known.then_some(0), drain };
    let mut unchanged = 0;
    for route in &new.routes {
        match running.routes.get(&route.name) {
            None => writeln!(text, "  + {}", route.name)?,
            Some(before) if before.digest == digest(route) => unchanged += 1,
            Some(before) => {
                writeln!(text, "  ~ {}", route.name)?;
                let has = |wanted: &str| route.upstream.destinations.iter().any(|to| to.to_string() == *wanted);
                for (gone, connections) in before.destinations.iter().filter(|(to, _)| !has(to)) {
                    let fate = ending.add(route.upstream.on_remove.label(), *connections);
                    writeln!(text, "      - {gone}  {fate}")?;
                }
                let had = |wanted: &str| before.destinations.iter().any(|(to, _)| to == wanted);
                let added = route.upstream.destinations.iter().map(ToString::to_string);
                for added in added.filter(|to| !had(to)) {
                    writeln!(text, "      + {added}")?;
                }
            }
        }
    }
    let kept: HashSet<&str> = new.routes.iter().map(|route| &*route.name).collect();
    for (name, before) in running.routes.iter().filter(|(name, _)| !kept.contains(name.as_str())) {
        writeln!(text, "  - {name}  {}", ending.add(&before.on_remove, before.connections))?;
    }
    writeln!(text, "    {unchanged} unchanged")?;
    if let Some(closed) = ending.closed {
        writeln!(text, "\nconnections that would be closed: {closed}")?;
    }
    Ok(text)
}

/// Connections that a reload would end; `None`: nobody has counted.
struct Ending {
    closed: Option<u64>,
    drain: String,
}

impl Ending {
    /// What becomes of so many connections.
    fn add(&mut self, on_remove: &str, connections: Option<u64>) -> String {
        let open = connections.map_or("open connections".into(), |connections| format!("{connections} open"));
        if on_remove == "keep" {
            return format!("{open}: kept");
        }
        self.closed = self.closed.zip(connections).map(|(sum, more)| sum + more);
        let when = if on_remove == "cut" { "at once".into() } else { format!("after {}", self.drain) };
        format!("{open}: closed {when}")
    }
}
