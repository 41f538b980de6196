//! Collects names with equal results in one route.

use std::collections::HashMap;

use crate::name::NamePattern;
use ipnet::IpNet;

use super::client_networks::ClientNetworks;
use super::name_result::{ArrivalResult, NameResult};
use super::{RouteDraft, RouteMatchers};
use crate::commands::import::addresses::{AccessList, AddressSet};

/// Networks of one route: a configuration has a limit on the pairs of both.
const MAX_DESTINATIONS: usize = 64;
const MAX_CLIENTS: usize = 1024;

pub(super) struct RouteCollector<'a> {
    pub(super) all: Vec<RouteDraft>,
    /// The number of a route by its other properties, and whether it has names.
    numbers: HashMap<(Option<String>, AccessList, RouteMatchers, bool), usize>,
    admitted: &'a AddressSet,
    mentioned: &'a [IpNet],
    networks: ClientNetworks,
}

impl<'a> RouteCollector<'a> {
    pub(super) fn new(admitted: &'a AddressSet, mentioned: &'a [IpNet]) -> Self {
        let networks = ClientNetworks::new(mentioned);
        Self { all: Vec::new(), numbers: HashMap::new(), admitted, mentioned, networks }
    }

    /// `None`: all other names.
    pub(super) fn add(&mut self, pattern: Option<&NamePattern>, result: &NameResult) {
        for arrival in &result.by_arrival {
            let ArrivalResult { destinations, tlv, plain, alpn, with_alpn } = arrival;
            // Clients that no route matches are rejected anyway.
            let is_unmatched = pattern.is_none() && arrival.is_general() && plain.shares.is_empty();
            let classes: Vec<_> = std::iter::once(plain).chain(with_alpn).collect();
            let divided = self.networks.divide(&classes);
            for (index, (class, parts)) in classes.into_iter().zip(divided).enumerate() {
                for part in parts.iter().filter(|_| index > 0 || !is_unmatched) {
                    let upstream = part.upstream.clone();
                    let access = upstream.as_ref().map_or_else(AccessList::deny_all, |upstream| {
                        let wanted = class.clients_of(upstream).and(&part.clients);
                        AccessList::of(&wanted, &self.admitted.and(&part.clients), self.mentioned)
                    });
                    let alpn: Vec<String> = if index == 0 { Vec::new() } else { alpn.iter().cloned().collect() };
                    for destinations in chunks(destinations, MAX_DESTINATIONS) {
                        for clients in chunks(&part.networks, MAX_CLIENTS) {
                            let (alpn, tlv, destinations) = (alpn.clone(), tlv.clone(), destinations.clone());
                            let matchers = RouteMatchers { alpn, clients, destinations, tlv };
                            self.add_one(pattern, upstream.clone(), access.clone(), matchers);
                        }
                    }
                }
            }
        }
    }

    fn add_one(
        &mut self,
        pattern: Option<&NamePattern>,
        upstream: Option<String>,
        access: AccessList,
        matchers: RouteMatchers,
    ) {
        let key = (upstream.clone(), access.clone(), matchers.clone(), pattern.is_some());
        let number = *self.numbers.entry(key).or_insert(self.all.len());
        if number == self.all.len() {
            let (name, names, aliases) = (String::new(), Vec::new(), Vec::new());
            self.all.push(RouteDraft { name, names, matchers, aliases, frontend: 0, access, upstream });
        }
        self.all[number].names.extend(pattern.cloned());
    }
}

/// One empty list for an empty one.
fn chunks(all: &[IpNet], length: usize) -> Vec<Vec<IpNet>> {
    if all.is_empty() { vec![Vec::new()] } else { all.chunks(length).map(<[_]>::to_vec).collect() }
}
