//! The addresses that a cluster tells clients.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::gateway::api::{Key, Kind};
use crate::gateway::cluster::Reading;
use crate::gateway::plan::{Plan, Route};
use crate::gateway::translate::Options;
use crate::upstream::lookup;
use serde_json::Value;

use crate::commands::unresolved;

pub(super) struct Published {
    /// IP addresses and hostnames, and what those resolve to.
    resolved: BTreeMap<String, Result<Vec<IpAddr>, String>>,
    /// Where clients reach each route, by its name.
    routes: BTreeMap<String, Vec<SocketAddr>>,
}

impl Published {
    pub(super) async fn read(reading: &Reading, plan: &Plan, options: &Options) -> Self {
        let ours = plan.statuses.gateways.keys().map(|key| (Kind::Gateway, key));
        let ours = ours.chain(plan.statuses.ingresses.iter().map(|key| (Kind::Ingress, key)));
        let mut published = Self { resolved: BTreeMap::new(), routes: BTreeMap::new() };
        for value in ours.flat_map(|(kind, key)| values(reading, kind, key)).collect::<BTreeSet<_>>() {
            let addresses = match value.parse() {
                Ok(address) => Ok(vec![address]),
                Err(_) => match lookup(&value, 0).await {
                    Ok(addresses) => Ok(addresses.iter().map(SocketAddr::ip).collect()),
                    Err(error) => Err(unresolved(&error)),
                },
            };
            published.resolved.insert(value, addresses);
        }
        for route in &plan.routing.routes {
            let entrances = published.entrances(route, reading, plan, options);
            published.routes.insert(route.name.clone(), entrances.into_iter().collect());
        }
        published
    }

    pub(super) fn of_route(&self, name: &str) -> Vec<SocketAddr> {
        self.routes.get(name).cloned().unwrap_or_default()
    }

    /// What an object publishes, and what that resolves to.
    pub(super) fn of_object(
        &self,
        reading: &Reading,
        kind: Kind,
        key: &Key,
    ) -> impl Iterator<Item = (String, &Result<Vec<IpAddr>, String>)> {
        values(reading, kind, key).into_iter().filter_map(|value| {
            let resolved = self.resolved.get(&value)?;
            Some((value, resolved))
        })
    }

    fn entrances(&self, route: &Route, reading: &Reading, plan: &Plan, options: &Options) -> BTreeSet<SocketAddr> {
        let key = &route.object.key;
        if route.object.kind == Kind::Ingress {
            let port = options.ingress.as_ref().map(|ingress| ingress.port);
            return self.at(reading, Kind::Ingress, key, port);
        }
        let listeners = route.matches.iter().flat_map(|at| &at.listeners);
        let matched: BTreeSet<u16> = listeners.map(|index| plan.routing.listeners[*index].port()).collect();
        let parents = plan.statuses.routes.get(key).map(|status| &status.parents[..]).unwrap_or_default();
        let gateways: BTreeSet<Key> = parents.iter().map(|status| status.parent.key(&key.namespace)).collect();
        let entrances = gateways.iter().flat_map(|gateway| {
            let listeners = reading.snapshot.gateways.get(gateway).map(|gateway| &gateway.spec.listeners[..]);
            let ports = listeners.unwrap_or_default().iter().map(|listener| listener.port);
            self.at(reading, Kind::Gateway, gateway, ports.filter(|port| matched.contains(port)))
        });
        entrances.collect()
    }

    /// These ports of the addresses that an object publishes.
    fn at(
        &self,
        reading: &Reading,
        kind: Kind,
        key: &Key,
        ports: impl IntoIterator<Item = u16>,
    ) -> BTreeSet<SocketAddr> {
        let resolved = self.of_object(reading, kind, key).filter_map(|(_, resolved)| resolved.as_ref().ok());
        let addresses: Vec<IpAddr> = resolved.flatten().copied().collect();
        let at_port = |port| addresses.iter().map(move |address| SocketAddr::new(*address, port));
        ports.into_iter().flat_map(at_port).collect()
    }
}

/// The IP addresses and hostnames in the status of a Gateway or an Ingress.
fn values(reading: &Reading, kind: Kind, key: &Key) -> Vec<String> {
    let Some(status) = reading.statuses.get(&(kind, key.clone())) else { return Vec::new() };
    let (list, fields) = match kind {
        Kind::Ingress => (&status["loadBalancer"]["ingress"], ["ip", "hostname"]),
        _ => (&status["addresses"], ["value", "value"]),
    };
    let value = |entry: &Value| fields.iter().find_map(|field| entry[field].as_str()).map(ToOwned::to_owned);
    list.as_array().into_iter().flatten().filter_map(value).collect()
}
