//! Routes and what they match, as commands look them up and print them.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::client_hello::Alpn;
use crate::config::{Config, Route};
use crate::route::{Arrival, Client, Matchers, RouteTable, Tlvs};
use crate::text::units::first_of;

/// Finds the indices of routes.
pub(super) fn route_table(config: &Config) -> RouteTable<usize> {
    let mut table = RouteTable::default();
    for (index, route) in config.routes.iter().enumerate() {
        // The configuration is valid, so there are no conflicts.
        for (names, matchers) in route.entries() {
            let _ = table.add(&names, &matchers, &index);
        }
    }
    for (names, matchers) in &config.excluded {
        let _ = table.exclude(names, matchers);
    }
    table
}

/// The ALPN that kubectl offers.
pub(super) fn kubectl_alpn() -> Option<Alpn<'static>> {
    Alpn::from_list(b"\x02h2\x08http/1.1").ok()
}

/// A client that meets all matchers of a route but its names, the listener and ALPN.
pub(super) struct FittingClient {
    client: Option<IpAddr>,
    destination: Option<IpAddr>,
    tlvs: Vec<u8>,
}

impl FittingClient {
    /// Several, as another route may have a smaller network within one of this route.
    pub(super) fn all_of(route: &Route) -> impl Iterator<Item = Self> {
        let Matchers { proxy_tlvs, destinations, clients, listeners: _, alpn: _ } = &route.matchers;
        let tlvs = encode_tlvs(proxy_tlvs).unwrap_or_default();
        let clients = samples(clients.as_deref());
        samples(destinations.as_deref()).into_iter().flat_map(move |destination| {
            let tlvs = tlvs.clone();
            clients.clone().into_iter().map(move |client| Self { client, destination, tlvs: tlvs.clone() })
        })
    }

    pub(super) fn arrival(&self, listener: usize) -> Arrival<'_> {
        let tlvs = Tlvs::parse(&self.tlvs).unwrap_or_default();
        Arrival { listener, client: self.client, destination: self.destination, tlvs }
    }
}

/// Addresses within these networks: the ends and the middle of each of the first ones.
fn samples(networks: Option<&[IpNet]>) -> Vec<Option<IpAddr>> {
    const MAX_NETWORKS: usize = 16;
    let Some(networks) = networks else { return vec![None] };
    let of_network = |network: &IpNet| {
        let middle = network.subnets(network.prefix_len().saturating_add(1)).ok().and_then(Iterator::last);
        [Some(network.network()), middle.map(|half| half.network()), Some(network.broadcast())]
    };
    networks.iter().take(MAX_NETWORKS).flat_map(of_network).flatten().map(Some).collect()
}

/// As in a PROXY header; `None` if a value is longer than 65,535 bytes.
pub(super) fn encode_tlvs(tlvs: &[(u8, Box<[u8]>)]) -> Option<Vec<u8>> {
    let mut encoded = Vec::new();
    for (number, value) in tlvs {
        Tlvs::append(&mut encoded, *number, value)?;
    }
    Some(encoded)
}

/// The matchers of a route besides its names, or those of them that do not hold for a client.
pub(super) fn conditions(route: &Route, config: &Config, unmet_by: Option<&Client<'_>>) -> Vec<String> {
    let matchers = &route.matchers;
    let Matchers { proxy_tlvs, destinations, clients, listeners, alpn } = matchers;
    let is_shown = |holds: fn(&Matchers, &Client<'_>) -> bool| unmet_by.is_none_or(|client| !holds(matchers, client));
    let mut conditions = Vec::new();
    if is_shown(|matchers, client| matchers.tlvs_hold(client.arrival.tlvs)) {
        conditions.extend(proxy_tlvs.iter().map(|(number, value)| format!("PROXY TLV {}", tlv_text(*number, value))));
    }
    let networks = |networks: &[IpNet]| first_of(networks.iter().map(shortest), MAX_LISTED);
    if let Some(destinations) = destinations
        && is_shown(|matchers, client| matchers.destination_holds(client.arrival.destination))
    {
        conditions.push(format!("destination {}", networks(destinations)));
    }
    if let Some(clients) = clients
        && is_shown(|matchers, client| matchers.client_holds(client.arrival.client))
    {
        conditions.push(format!("client {}", networks(clients)));
    }
    if let Some(indices) = listeners
        && is_shown(|matchers, client| matchers.listener_holds(client.arrival.listener))
    {
        let names = indices.iter().map(|index| &*config.listeners[*index].name);
        conditions.push(format!("listener {}", names.collect::<Vec<_>>().join(" or ")));
    }
    if let Some(protocols) = alpn
        && is_shown(|matchers, client| matchers.alpn_holds(client.alpn))
    {
        let protocols = protocols.iter().map(|protocol| protocol.escape_ascii().to_string());
        conditions.push(format!("ALPN {}", protocols.collect::<Vec<_>>().join(" or ")));
    }
    conditions
}

/// The limits on connections of a route.
pub(super) fn limits(route: &Route) -> Vec<String> {
    let connections = route.max_connections.map(|limit| format!("max_connections {limit}"));
    let new = route.new_connections.map(|rate| format!("new_connections {rate}"));
    connections.into_iter().chain(new).collect()
}

/// A network of one address is written as the address.
fn shortest(network: &IpNet) -> String {
    let is_one = network.prefix_len() == network.max_prefix_len();
    if is_one { network.addr().to_string() } else { network.to_string() }
}

/// As in the configuration.
pub(super) fn tlv_text(number: u8, value: &[u8]) -> String {
    let is_text = value.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') && !value.starts_with(b"0x");
    let value = if is_text {
        String::from_utf8_lossy(value).into_owned()
    } else {
        value.iter().fold("0x".to_owned(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    format!("{number:#04x}={value}")
}

/// Routes that an error lists when a name matches none, and networks of a matcher.
const MAX_LISTED: usize = 20;

pub(super) fn listed<'c>(routes: impl ExactSizeIterator<Item = &'c Route>) -> String {
    first_of(routes.map(|route| &route.name), MAX_LISTED)
}
