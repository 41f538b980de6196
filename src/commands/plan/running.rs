//! What is running: from the status of the instance, or from its configuration file.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::commands::admin::drained;
use crate::config::{Config, Route};
use crate::server::fixed;
use crate::upstream::{EndpointSettings, Share};
use serde_json::Value;

pub(super) struct Running {
    /// Whether it certainly runs on this machine, in this container.
    pub(super) is_here: bool,
    /// Names by configured address.
    pub(super) listeners: BTreeMap<String, String>,
    /// The admin listener's address.
    pub(super) admin: Option<String>,
    pub(super) routes: BTreeMap<String, RunningRoute>,
    /// The keys that a reload cannot change, and their values.
    pub(super) fixed: BTreeMap<String, String>,
    /// Endpoints that operators have drained, each with its route.
    pub(super) drained: Vec<(String, String)>,
}

pub(super) struct RunningRoute {
    pub(super) digest: String,
    pub(super) on_remove: String,
    /// Open connections; `None`: unknown.
    pub(super) connections: Option<u64>,
    pub(super) endpoints: Vec<RunningEndpoint>,
}

pub(super) struct RunningEndpoint {
    pub(super) destination: String,
    pub(super) share: Share,
    /// Open connections to all its addresses; `None`: unknown.
    pub(super) connections: Option<u64>,
}

impl Running {
    pub(super) fn from_config(config: &Config) -> Self {
        let names = config.listener_names();
        let route = |route: &Route| RunningRoute {
            digest: digest(route, &names),
            on_remove: route.upstream.on_remove.label().into(),
            connections: None,
            endpoints: route
                .upstream
                .endpoints
                .iter()
                .map(|EndpointSettings { destination, share }| RunningEndpoint {
                    destination: destination.to_string(),
                    share: *share,
                    connections: None,
                })
                .collect(),
        };
        let listeners = config.listeners.iter();
        Self {
            is_here: false,
            listeners: listeners.map(|listener| (listener.address.to_string(), listener.name.clone())).collect(),
            admin: config.admin.as_ref().map(|admin| admin.address.to_string()),
            routes: config.routes.iter().map(|one| (one.name.clone(), route(one))).collect(),
            fixed: fixed(config).into_iter().filter_map(|(key, value)| Some((key.into(), value?))).collect(),
            drained: Vec::new(),
        }
    }

    /// `None` if a field is missing. `is_local`: the status came from an address of this machine.
    pub(super) fn from_status(status: &Value, is_local: bool) -> Option<Self> {
        let text = |value: &Value| Some(value.as_str()?.to_owned());
        let listener = |value: &Value| Some((text(&value["configured"])?, text(&value["name"])?));
        let endpoint = |value: &Value| {
            let endpoints = value["endpoints"].as_array()?.iter();
            let connections = endpoints.map(|endpoint| endpoint["connections"].as_u64()).sum::<Option<u64>>()?;
            let weight = u16::try_from(value["weight"].as_u64()?).ok()?;
            Some(RunningEndpoint {
                destination: text(&value["destination"])?,
                share: Share { weight, is_backup: value["backup"].as_bool()? },
                connections: Some(connections),
            })
        };
        let route = |value: &Value| {
            let route = RunningRoute {
                digest: text(&value["digest"])?,
                on_remove: text(&value["on_remove"])?,
                connections: Some(value["connections"].as_u64()?),
                endpoints: value["upstream"].as_array()?.iter().map(endpoint).collect::<Option<_>>()?,
            };
            Some((text(&value["name"])?, route))
        };
        let fixed = |(key, value): (&String, &Value)| Some((key.clone(), text(value)?));
        Some(Self {
            // Neither is enough: a local port may be forwarded to another machine, and machines can share a hostname.
            is_here: is_local && status["host"] == *rustix::system::uname().nodename().to_string_lossy(),
            listeners: status["listeners"].as_array()?.iter().map(listener).collect::<Option<_>>()?,
            admin: Some(text(&status["admin"])?),
            routes: status["routes"].as_array()?.iter().map(route).collect::<Option<_>>()?,
            fixed: status["config"]["fixed"].as_object()?.iter().map(fixed).collect::<Option<_>>()?,
            drained: drained(status),
        })
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.keys().chain(&self.admin).filter_map(|address| address.parse().ok())
    }

    /// Addresses that only the new configuration listens on.
    pub(super) fn new_addresses(&self, new: &Config) -> impl Iterator<Item = SocketAddr> {
        let listeners = new.listeners.iter().map(|listener| listener.address);
        let listeners = listeners.filter(|address| !self.listeners.contains_key(&address.to_string()));
        let admin = new.admin.as_ref().map(|admin| admin.address);
        listeners.chain(admin.filter(|address| self.admin != Some(address.to_string())))
    }
}

/// As in the status.
pub(super) fn digest(route: &Route, listeners: &[&str]) -> String {
    format!("{:016x}", route.digest(listeners))
}
