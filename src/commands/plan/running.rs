//! What a running instance says of itself, or what its file says.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::config::{Config, Route};
use crate::server::fixed;
use serde_json::Value;

/// What runs now.
pub(super) struct Running {
    /// Whether it is known to run on this machine, and in this container.
    pub(super) is_here: bool,
    /// Names by address.
    pub(super) listeners: BTreeMap<String, String>,
    /// The admin listener's address.
    pub(super) admin: Option<String>,
    pub(super) routes: BTreeMap<String, RunningRoute>,
    /// What no reload changes, by key.
    pub(super) fixed: BTreeMap<String, String>,
}

pub(super) struct RunningRoute {
    pub(super) digest: String,
    pub(super) on_remove: String,
    /// `None`: nobody has counted.
    pub(super) connections: Option<u64>,
    /// Destinations, and the connections to the addresses that each stands for.
    pub(super) destinations: Vec<(String, Option<u64>)>,
}

impl Running {
    pub(super) fn of_config(config: &Config) -> Self {
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
    pub(super) fn of_status(status: &Value, is_own: bool) -> Option<Self> {
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
    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.keys().chain(&self.admin).filter_map(|address| address.parse().ok())
    }

    /// Those that the new configuration has and this one does not.
    pub(super) fn new_addresses(&self, new: &Config) -> impl Iterator<Item = SocketAddr> {
        let listeners = new.listeners.iter().map(|listener| listener.address);
        let listeners = listeners.filter(|address| !self.listeners.contains_key(&address.to_string()));
        let admin = new.admin.as_ref().map(|admin| admin.address);
        listeners.chain(admin.filter(|address| self.admin != Some(address.to_string())))
    }
}

/// As the admin listener tells it.
pub(super) fn digest(route: &Route) -> String {
    format!("{:016x}", route.digest())
}
