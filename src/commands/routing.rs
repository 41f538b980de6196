//! Routes and what they match, as commands look them up and print them.

use crate::client_hello::Alpn;
use crate::config::{Config, Listener, Route};
use crate::route::RouteTable;
use crate::text::units::first_of;

/// Finds the indices of routes.
pub(super) fn route_table(config: &Config) -> RouteTable<usize> {
    let mut table = RouteTable::default();
    for (index, route) in config.routes.iter().enumerate() {
        // The configuration is valid, so there are no conflicts.
        let _ = table.insert(&route.patterns, &route.matchers, &index);
    }
    table
}

/// Encodes a protocol name list as in a `ClientHello`.
pub(super) fn alpn_list<'p>(protocols: impl IntoIterator<Item = &'p [u8]>) -> Vec<u8> {
    let mut list = Vec::new();
    for protocol in protocols {
        list.push(u8::try_from(protocol.len()).unwrap_or(u8::MAX));
        list.extend(protocol);
    }
    list
}

/// The ALPN that kubectl offers.
pub(super) fn kubectl_alpn() -> Option<Alpn<'static>> {
    Alpn::from_list(b"\x02h2\x08http/1.1").ok()
}

pub(super) fn any_protocol(protocols: &[Box<[u8]>]) -> String {
    protocols.iter().map(|protocol| protocol.escape_ascii().to_string()).collect::<Vec<_>>().join(" or ")
}

pub(super) fn any_listener(indices: &[usize], listeners: &[Listener]) -> String {
    indices.iter().map(|index| &*listeners[*index].name).collect::<Vec<_>>().join(" or ")
}

/// Routes that an error lists when a name matches none.
const MAX_LISTED: usize = 20;

pub(super) fn listed<'c>(routes: impl ExactSizeIterator<Item = &'c Route>) -> String {
    first_of(routes.map(|route| &route.name), MAX_LISTED)
}
