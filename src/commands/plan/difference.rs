//! What a reload would change: as data, as text, as JSON.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::config::{Config, Route};
use crate::listener::BindError;
use crate::text::units::span;
use crate::upstream::{OnRemove, error_message};
use serde_json::{Value, json};

use super::may_differ;
use super::running::{Running, RunningRoute, digest};

/// Timeouts, limits and other settings left aside.
pub(super) struct Difference {
    listeners: Vec<(String, ListenerChange)>,
    /// Of the admin listener.
    admin: Vec<(String, ListenerChange)>,
    routes: Vec<(String, RouteChange)>,
    /// Routes that stay as they are.
    unchanged: usize,
    /// `timeouts.drain`
    drain: Duration,
}

enum ListenerChange {
    Added,
    /// It cannot be bound, or this cannot be tried.
    Unavailable {
        error: String,
        /// Whether the running instance would find the same.
        certainty: Certainty,
    },
    Renamed {
        from: String,
        to: String,
    },
    Unchanged,
    Removed,
}

enum Certainty {
    Certain,
    /// It runs on another machine, or that is not known.
    Elsewhere,
    /// It may have more rights than this user.
    MoreRights,
}

enum RouteChange {
    Added,
    Changed { removed: Vec<(String, Closing)>, added: Vec<String> },
    Removed(Closing),
}

/// What becomes of open connections.
struct Closing {
    /// `None`: nobody has counted.
    connections: Option<u64>,
    policy: String,
}

impl Difference {
    /// `taken`: new addresses that cannot be bound here, and why.
    pub(super) fn between(running: &Running, new: &Config, taken: &BTreeMap<SocketAddr, BindError>) -> Self {
        let mut listeners: Vec<(String, ListenerChange)> = new
            .listeners
            .iter()
            .map(|listener| {
                let address = listener.address.to_string();
                let change = match running.listeners.get(&address) {
                    Some(name) if *name == listener.name => ListenerChange::Unchanged,
                    Some(name) => ListenerChange::Renamed { from: name.clone(), to: listener.name.clone() },
                    None => added(running, taken.get(&listener.address)),
                };
                (address, change)
            })
            .collect();
        let stays = |address: &String| new.listeners.iter().any(|listener| listener.address.to_string() == *address);
        let removed = running.listeners.keys().filter(|address| !stays(address));
        listeners.extend(removed.map(|address| (address.clone(), ListenerChange::Removed)));

        let mut admin = Vec::new();
        let after = new.admin.as_ref().map(|admin| admin.address);
        if running.admin != after.map(|address| address.to_string()) {
            admin.extend(after.map(|address| (address.to_string(), added(running, taken.get(&address)))));
            admin.extend(running.admin.iter().map(|address| (address.clone(), ListenerChange::Removed)));
        }

        let change = |route: &Route| match running.routes.get(&route.name) {
            None => Some(RouteChange::Added),
            Some(before) if before.digest == digest(route) => None,
            Some(before) => Some(changed(before, route)),
        };
        let mut routes: Vec<(String, RouteChange)> =
            new.routes.iter().filter_map(|route| Some((route.name.clone(), change(route)?))).collect();
        let unchanged = new.routes.len() - routes.len();
        let kept: HashSet<&str> = new.routes.iter().map(|route| &*route.name).collect();
        let removed = running.routes.iter().filter(|(name, _)| !kept.contains(name.as_str()));
        routes.extend(removed.map(|(name, before)| {
            let closing = Closing { connections: before.connections, policy: before.on_remove.clone() };
            (name.clone(), RouteChange::Removed(closing))
        }));
        Self { listeners, admin, routes, unchanged, drain: new.timeouts.drain }
    }

    fn closings(&self) -> impl Iterator<Item = &Closing> {
        self.routes.iter().flat_map(|(_, change)| match change {
            RouteChange::Added => Vec::new(),
            RouteChange::Changed { removed, .. } => removed.iter().map(|(_, closing)| closing).collect(),
            RouteChange::Removed(closing) => vec![closing],
        })
    }

    /// How many connections would be closed; `None`: nobody has counted.
    fn closed(&self) -> Option<u64> {
        self.closings().filter(|closing| !closing.keeps()).map(|closing| closing.connections).sum()
    }

    /// Whether open connections would be closed, or might be where nobody has counted.
    pub(super) fn closes(&self) -> bool {
        self.closed() != Some(0)
    }

    pub(super) fn text(&self, file: &Path) -> Result<String, fmt::Error> {
        let mut text = String::new();
        writeln!(
            text,
            "What a reload to {} would change, timeouts, limits and other settings left aside:",
            file.display()
        )?;
        writeln!(text, "\nlisteners")?;
        for (address, change) in &self.listeners {
            writeln!(text, "  {} {address}  {}", change.sign(), change.text())?;
        }
        for (address, change) in &self.admin {
            let what = if matches!(change, ListenerChange::Removed) { "stops listening".into() } else { change.text() };
            writeln!(text, "  {} {address}  admin, {what}", change.sign())?;
        }
        writeln!(text, "\nroutes")?;
        for (name, change) in &self.routes {
            match change {
                RouteChange::Added => writeln!(text, "  + {name}")?,
                RouteChange::Removed(closing) => writeln!(text, "  - {name}  {}", closing.text(self.drain))?,
                RouteChange::Changed { removed, added } => {
                    writeln!(text, "  ~ {name}")?;
                    for (endpoint, closing) in removed {
                        writeln!(text, "      - {endpoint}  {}", closing.text(self.drain))?;
                    }
                    for endpoint in added {
                        writeln!(text, "      + {endpoint}")?;
                    }
                }
            }
        }
        writeln!(text, "    {} unchanged", self.unchanged)?;
        if let Some(closed) = self.closed().filter(|_| self.is_counted()) {
            writeln!(text, "\nconnections that would be closed: {closed}")?;
        }
        Ok(text)
    }

    pub(super) fn json(&self) -> Value {
        let listener = |(address, change): &(String, ListenerChange)| match change {
            ListenerChange::Added => json!({"address": address, "change": "added"}),
            ListenerChange::Unavailable { error, certainty } => {
                let is_certain = matches!(certainty, Certainty::Certain);
                json!({"address": address, "change": "added", "cannot_listen": error, "certain": is_certain})
            }
            ListenerChange::Renamed { from, to } => {
                json!({"address": address, "change": "renamed", "from": from, "to": to})
            }
            ListenerChange::Unchanged => json!({"address": address, "change": "unchanged"}),
            ListenerChange::Removed => json!({"address": address, "change": "removed"}),
        };
        let route = |(name, change): &(String, RouteChange)| match change {
            RouteChange::Added => json!({"route": name, "change": "added"}),
            RouteChange::Removed(closing) => {
                json!({"route": name, "change": "removed", "on_remove": closing.policy, "connections": closing.connections})
            }
            RouteChange::Changed { removed, added } => {
                let removed: Vec<Value> = removed
                    .iter()
                    .map(|(endpoint, closing)| {
                        json!({"endpoint": endpoint, "on_remove": closing.policy, "connections": closing.connections})
                    })
                    .collect();
                json!({"route": name, "change": "changed", "endpoints_removed": removed, "endpoints_added": added})
            }
        };
        json!({
            "listeners": self.listeners.iter().map(listener).collect::<Vec<_>>(),
            "admin": self.admin.iter().map(listener).collect::<Vec<_>>(),
            "routes": self.routes.iter().map(route).collect::<Vec<_>>(),
            "routes_unchanged": self.unchanged,
            "drain_seconds": self.drain.as_secs_f64(),
            "connections_closed": self.closed().filter(|_| self.is_counted()),
        })
    }

    fn is_counted(&self) -> bool {
        self.closings().all(|closing| closing.connections.is_some())
    }
}

impl ListenerChange {
    fn sign(&self) -> char {
        match self {
            Self::Added | Self::Unavailable { .. } => '+',
            Self::Renamed { .. } => '~',
            Self::Unchanged => ' ',
            Self::Removed => '-',
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Added => "starts listening".into(),
            Self::Unavailable { error, certainty: Certainty::Certain } => format!("cannot listen: {error}"),
            Self::Unavailable { error, certainty: Certainty::Elsewhere } => {
                format!("starts listening; on this machine it could not: {error}")
            }
            Self::Unavailable { error: _, certainty: Certainty::MoreRights } => {
                "starts listening, if the running instance may: this user may not".into()
            }
            Self::Renamed { from, to } => format!("renamed from {from} to {to}"),
            Self::Unchanged => "unchanged".into(),
            Self::Removed => "stops listening after draining its accept queue; open connections continue".into(),
        }
    }
}

/// What becomes of a new address. `taken`: why it cannot be bound here.
fn added(running: &Running, taken: Option<&BindError>) -> ListenerChange {
    let Some(taken) = taken else { return ListenerChange::Added };
    let certainty = if !running.is_here {
        Certainty::Elsewhere
    } else if may_differ(&taken.error) {
        Certainty::MoreRights
    } else {
        Certainty::Certain
    };
    ListenerChange::Unavailable { error: error_message(&taken.error), certainty }
}

fn changed(before: &RunningRoute, route: &Route) -> RouteChange {
    let has = |wanted: &str| route.upstream.destinations.iter().any(|to| to.to_string() == *wanted);
    let policy = route.upstream.on_remove.label();
    let removed = before.destinations.iter().filter(|(to, _)| !has(to));
    let had = |wanted: &String| before.destinations.iter().any(|(to, _)| to == wanted);
    RouteChange::Changed {
        removed: removed
            .map(|(to, connections)| (to.clone(), Closing { connections: *connections, policy: policy.into() }))
            .collect(),
        added: route.upstream.destinations.iter().map(ToString::to_string).filter(|to| !had(to)).collect(),
    }
}

impl Closing {
    fn keeps(&self) -> bool {
        self.policy == OnRemove::Keep.label()
    }

    fn text(&self, drain: Duration) -> String {
        let open = self.connections.map_or("open connections".into(), |connections| format!("{connections} open"));
        if self.keeps() {
            return format!("{open}: kept");
        }
        let is_cut = self.policy == OnRemove::Cut.label();
        let when = if is_cut { "at once".into() } else { format!("after {}", span(drain)) };
        format!("{open}: closed {when}")
    }
}
