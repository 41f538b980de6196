//! What a reload would change, as data, and the same as text and as JSON.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::config::{Config, Route};
use crate::listener::BindError;
use crate::text::units::{counted, span};
use crate::upstream::{EndpointSettings, OnRemove, Share, error_message};
use serde_json::{Value, json};

use super::lacks_permission;
use super::running::{Running, RunningEndpoint, RunningRoute, digest};

/// Changes of listeners and routes. Timeouts, limits and other settings are not compared.
pub(super) struct Difference {
    listeners: Vec<(String, ListenerChange)>,
    admin: Vec<(String, ListenerChange)>,
    routes: Vec<(String, RouteChange)>,
    /// Number of unchanged routes.
    unchanged: usize,
    /// `timeouts.drain`
    drain: Duration,
    /// Endpoints that stay drained if they stay at all, each with its route.
    drained: Vec<(String, String)>,
}

enum ListenerChange {
    Added,
    /// Added, but this process could not bind it.
    CannotBind {
        error: String,
        /// Whether the running instance would fail, too.
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
    /// It runs on another machine, or may.
    OtherMachine,
    /// It may have more permissions than this user.
    MorePermissions,
}

enum RouteChange {
    Added,
    Changed { removed: Vec<(String, Closing)>, added: Vec<String>, shares: Vec<ShareChange> },
    Removed(Closing),
}

/// An endpoint whose part in new connections changes; its open connections stay.
struct ShareChange {
    endpoint: String,
    before: Share,
    after: Share,
}

/// What happens to the open connections of a removed route or endpoint.
struct Closing {
    /// `None`: unknown.
    connections: Option<u64>,
    /// `on_remove`
    policy: String,
}

impl Difference {
    /// `bind_errors`: the new addresses that this process could not bind.
    pub(super) fn between(running: &Running, new: &Config, bind_errors: &BTreeMap<SocketAddr, BindError>) -> Self {
        let mut listeners: Vec<(String, ListenerChange)> = new
            .listeners
            .iter()
            .map(|listener| {
                let address = listener.address.to_string();
                let change = match running.listeners.get(&address) {
                    Some(name) if *name == listener.name => ListenerChange::Unchanged,
                    Some(name) => ListenerChange::Renamed { from: name.clone(), to: listener.name.clone() },
                    None => added(running, bind_errors.get(&listener.address)),
                };
                (address, change)
            })
            .collect();
        let is_kept = |address: &String| new.listeners.iter().any(|listener| listener.address.to_string() == *address);
        let removed = running.listeners.keys().filter(|address| !is_kept(address));
        listeners.extend(removed.map(|address| (address.clone(), ListenerChange::Removed)));

        let mut admin = Vec::new();
        let after = new.admin.as_ref().map(|admin| admin.address);
        if running.admin != after.map(|address| address.to_string()) {
            admin.extend(after.map(|address| (address.to_string(), added(running, bind_errors.get(&address)))));
            admin.extend(running.admin.iter().map(|address| (address.clone(), ListenerChange::Removed)));
        }

        let names = new.listener_names();
        let change = |route: &Route| match running.routes.get(&route.name) {
            None => Some(RouteChange::Added),
            Some(before) if before.digest == digest(route, &names) => None,
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
        let drained = running.drained.clone();
        Self { listeners, admin, routes, unchanged, drain: new.timeouts.drain, drained }
    }

    fn closings(&self) -> impl Iterator<Item = &Closing> {
        self.routes.iter().flat_map(|(_, change)| match change {
            RouteChange::Added => Vec::new(),
            RouteChange::Changed { removed, .. } => removed.iter().map(|(_, closing)| closing).collect(),
            RouteChange::Removed(closing) => vec![closing],
        })
    }

    /// The number of connections that would be closed; `None`: unknown.
    fn closed(&self) -> Option<u64> {
        self.closings().filter(|closing| !closing.keeps()).map(|closing| closing.connections).sum()
    }

    /// Whether open connections would be closed, or might be if their number is unknown.
    pub(super) fn closes(&self) -> bool {
        self.closed() != Some(0)
    }

    pub(super) fn text(&self, file: &Path) -> Result<String, fmt::Error> {
        let mut text = String::new();
        writeln!(
            text,
            "A reload to {} would change (timeouts, limits and other settings are not compared):",
            file.display()
        )?;
        writeln!(text, "\nlisteners")?;
        for (address, change) in &self.listeners {
            writeln!(text, "  {} {address}  {}", change.sign(), change.text())?;
        }
        for (address, change) in &self.admin {
            let what = if matches!(change, ListenerChange::Removed) { "stops listening".into() } else { change.text() };
            writeln!(text, "  {} {address}  admin: {what}", change.sign())?;
        }
        writeln!(text, "\nroutes")?;
        for (name, change) in &self.routes {
            match change {
                RouteChange::Added => writeln!(text, "  + {name}")?,
                RouteChange::Removed(closing) => writeln!(text, "  - {name}  {}", closing.text(self.drain))?,
                RouteChange::Changed { removed, added, shares } => {
                    writeln!(text, "  ~ {name}")?;
                    for (endpoint, closing) in removed {
                        writeln!(text, "      - {endpoint}  {}", closing.text(self.drain))?;
                    }
                    for endpoint in added {
                        writeln!(text, "      + {endpoint}")?;
                    }
                    for ShareChange { endpoint, before, after } in shares {
                        writeln!(text, "      ~ {endpoint}  {} -> {}", share_text(*before), share_text(*after))?;
                    }
                }
            }
        }
        writeln!(text, "    {} unchanged", self.unchanged)?;
        if !self.drained.is_empty() {
            writeln!(text, "\ndrained by an operator, also after the reload")?;
            for (route, endpoint) in &self.drained {
                writeln!(text, "    {endpoint} of {route}")?;
            }
        }
        if let Some(closed) = self.closed().filter(|_| self.are_connections_known()) {
            writeln!(text, "\nconnections that would be closed: {closed}")?;
        }
        Ok(text)
    }

    pub(super) fn json(&self) -> Value {
        let listener = |(address, change): &(String, ListenerChange)| match change {
            ListenerChange::Added => json!({"address": address, "change": "added"}),
            ListenerChange::CannotBind { error, certainty } => {
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
            RouteChange::Changed { removed, added, shares } => {
                let removed: Vec<Value> = removed
                    .iter()
                    .map(|(endpoint, closing)| {
                        json!({"endpoint": endpoint, "on_remove": closing.policy, "connections": closing.connections})
                    })
                    .collect();
                let share = |share: Share| json!({"weight": share.weight, "backup": share.is_backup});
                let changed = shares.iter().map(|ShareChange { endpoint, before, after }| {
                    json!({"endpoint": endpoint, "before": share(*before), "after": share(*after)})
                });
                json!({
                    "route": name,
                    "change": "changed",
                    "endpoints_removed": removed,
                    "endpoints_added": added,
                    "endpoints_changed": changed.collect::<Vec<_>>(),
                })
            }
        };
        json!({
            "listeners": self.listeners.iter().map(listener).collect::<Vec<_>>(),
            "admin": self.admin.iter().map(listener).collect::<Vec<_>>(),
            "routes": self.routes.iter().map(route).collect::<Vec<_>>(),
            "routes_unchanged": self.unchanged,
            "drain_seconds": self.drain.as_secs_f64(),
            "drained": self.drained.iter().map(|(route, endpoint)| json!({"route": route, "endpoint": endpoint})).collect::<Vec<_>>(),
            "connections_closed": self.closed().filter(|_| self.are_connections_known()),
        })
    }

    fn are_connections_known(&self) -> bool {
        self.closings().all(|closing| closing.connections.is_some())
    }
}

impl ListenerChange {
    fn sign(&self) -> char {
        match self {
            Self::Added | Self::CannotBind { .. } => '+',
            Self::Renamed { .. } => '~',
            Self::Unchanged => ' ',
            Self::Removed => '-',
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Added => "starts listening".into(),
            Self::CannotBind { error, certainty: Certainty::Certain } => format!("cannot listen: {error}"),
            Self::CannotBind { error, certainty: Certainty::OtherMachine } => {
                format!("starts listening; on this machine that would fail: {error}")
            }
            Self::CannotBind { error: _, certainty: Certainty::MorePermissions } => {
                "starts listening, if the running instance has permission: this user does not".into()
            }
            Self::Renamed { from, to } => format!("renamed from {from} to {to}"),
            Self::Unchanged => "unchanged".into(),
            Self::Removed => "stops listening after draining its accept queue; open connections continue".into(),
        }
    }
}

fn added(running: &Running, bind_error: Option<&BindError>) -> ListenerChange {
    let Some(BindError { error, .. }) = bind_error else { return ListenerChange::Added };
    let certainty = if !running.is_here {
        Certainty::OtherMachine
    } else if lacks_permission(error) {
        Certainty::MorePermissions
    } else {
        Certainty::Certain
    };
    ListenerChange::CannotBind { error: error_message(error), certainty }
}

fn changed(before: &RunningRoute, route: &Route) -> RouteChange {
    let mut removed = Vec::new();
    let mut shares = Vec::new();
    for RunningEndpoint { destination, share, connections } in &before.endpoints {
        match route.upstream.endpoints.iter().find(|after| after.destination.to_string() == *destination) {
            None => {
                let closing = Closing { connections: *connections, policy: before.on_remove.clone() };
                removed.push((destination.clone(), closing));
            }
            Some(EndpointSettings { share: after, .. }) if after != share => {
                shares.push(ShareChange { endpoint: destination.clone(), before: *share, after: *after });
            }
            Some(_) => {}
        }
    }
    let had = |wanted: &String| before.endpoints.iter().any(|endpoint| endpoint.destination == *wanted);
    let after = route.upstream.endpoints.iter().map(|endpoint| endpoint.destination.to_string());
    RouteChange::Changed { removed, added: after.filter(|endpoint| !had(endpoint)).collect(), shares }
}

fn share_text(Share { weight, is_backup }: Share) -> String {
    format!("weight {weight}{}", if is_backup { ", backup" } else { "" })
}

impl Closing {
    fn keeps(&self) -> bool {
        self.policy == OnRemove::Keep.label()
    }

    fn text(&self, drain: Duration) -> String {
        let open = match self.connections {
            None => "open connections".into(),
            Some(connections) => counted(connections, "open connection"),
        };
        if self.keeps() {
            return format!("{open}: not closed");
        }
        let is_immediate = self.policy == OnRemove::Cut.label();
        let when = if is_immediate { "immediately".into() } else { format!("after {}", span(drain)) };
        format!("{open}: closed {when}")
    }
}
