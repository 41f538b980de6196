//! `snigate plan`

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::Value;
use snigate::accept::{BindError, is_free};
use snigate::config::{Config, Route, overlap};
use snigate::server::{ReloadError, fixed};
use snigate::units::span;
use snigate::upstream::{OwnAddresses, plain};

use super::admin::status;
use super::{Refused, load, printable_lines, runtime};
use crate::cli::Plan;

pub(super) fn run(options: &Plan) -> anyhow::Result<ExitCode> {
    let new = load(&options.config)?;
    let running = match (&options.admin, &options.from) {
        (Some(admin), _) => {
            let (status, addresses) = runtime::run(status(admin))??;
            let own = OwnAddresses::read();
            Running::of_status(&status, addresses.iter().all(|address| own.has(address.ip())))
                .with_context(|| format!("{admin} answers, but not as an admin listener of this version does"))?
        }
        (None, Some(from)) => Running::of_config(&Config::load(from)?),
        (None, None) => bail!("expected --admin or --from"),
    };
    if let Some(refusal) = refusal(&running, &new) {
        bail!(Refused(format!("a reload to {} would be refused: {refusal}", options.config.display())));
    }
    let taken: BTreeMap<SocketAddr, BindError> =
        running.new_addresses(&new).filter_map(|address| Some((address, is_free(address).err()?))).collect();
    let text = describe(&options.config, &running, &new, &taken)?;
    // Some of it is what the other end calls its routes.
    io::stdout().write_all(printable_lines(&text).as_bytes())?;
    let is_known = |taken: &&BindError| running.is_here && !may_differ(&taken.error);
    if let Some(error) = taken.values().find(is_known) {
        bail!("a reload to {} would be refused now: {error}", options.config.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// What runs now.
struct Running {
    /// Whether it is known to run on this machine, and in this container.
    is_here: bool,
    /// Names by address.
    listeners: BTreeMap<String, String>,
    /// Its address.
    admin: Option<String>,
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
            is_here: false,
            listeners: listeners.map(|listener| (listener.address.to_string(), listener.name.clone())).collect(),
            admin: config.admin.as_ref().map(|admin| admin.address.to_string()),
            routes: config.routes.iter().map(|one| (one.name.clone(), route(one))).collect(),
            fixed: fixed(config).map(|(key, value)| (key.into(), value)).into(),
        }
    }

    /// `None` if something is missing. `is_own`: this machine's address has answered.
    fn of_status(status: &Value, is_own: bool) -> Option<Self> {
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
            // A port that is forwarded is another machine's; many machines have one name.
            is_here: is_own && status["host"] == *rustix::system::uname().nodename().to_string_lossy(),
            listeners: status["listeners"].as_array()?.iter().map(listener).collect::<Option<_>>()?,
            admin: Some(text(&status["admin"])?),
            routes: status["routes"].as_array()?.iter().map(route).collect::<Option<_>>()?,
            fixed: status["config"]["fixed"].as_object()?.iter().map(fixed).collect::<Option<_>>()?,
        })
    }
}

impl Running {
    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.keys().chain(&self.admin).filter_map(|address| address.parse().ok())
    }

    /// Those that would have to be listened at anew.
    fn new_addresses(&self, new: &Config) -> impl Iterator<Item = SocketAddr> {
        let listeners = new.listeners.iter().map(|listener| listener.address);
        let listeners = listeners.filter(|address| !self.listeners.contains_key(&address.to_string()));
        let admin = new.admin.as_ref().map(|admin| admin.address);
        listeners.chain(admin.filter(|address| self.admin != Some(address.to_string())))
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
    let in_the_way = || {
        running.new_addresses(new).find_map(|wanted| {
            let running = running.addresses().find(|running| overlap(wanted, *running))?;
            Some(ReloadError::InTheWay { wanted, running })
        })
    };
    is_fixed.or_else(in_the_way)
}

/// What this user may not, the running instance may.
fn may_differ(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// What becomes of a new address. `taken`: why it cannot be listened at here.
fn fate(running: &Running, taken: Option<&BindError>) -> String {
    match taken.map(|taken| &taken.error) {
        None => "begins to listen".into(),
        Some(error) if !running.is_here => {
            format!("begins to listen; on this machine it could not: {}", plain(error))
        }
        Some(error) if may_differ(error) => "begins to listen, if the running instance may: this user may not".into(),
        Some(error) => format!("cannot be listened at: {}", plain(error)),
    }
}

/// `taken`: new addresses that cannot be listened at here, and why.
fn describe(
    file: &Path,
    running: &Running,
    new: &Config,
    taken: &BTreeMap<SocketAddr, BindError>,
) -> Result<String, std::fmt::Error> {
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
            None => {
                writeln!(text, "  + {address}  {}", fate(running, taken.get(&listener.address)))?;
            }
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

    let admin = new.admin.as_ref().map(|admin| admin.address);
    match (&running.admin, admin) {
        (Some(before), Some(after)) if *before == after.to_string() => {}
        (before, after) => {
            if let Some(after) = after {
                writeln!(text, "  + {after}  admin, {}", fate(running, taken.get(&after)))?;
            }
            if let Some(before) = before {
                writeln!(text, "  - {before}  admin, closes")?;
            }
        }
    }

    writeln!(text, "\nroutes")?;
    let drain = span(new.timeouts.drain);
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
