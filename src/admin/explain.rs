//! Which route a client with this name would get now.

use serde_json::{Value, json};

use super::AdminHandles;
use super::query::Query;
use crate::client_hello::Alpn;
use crate::connection::unrouted;
use crate::name::ServerName;
use crate::route::{Arrival, Client, MatchedBy};
use crate::text::pasted;

/// From a query such as `name=NAME&alpn=h2,http/1.1&listener=NAME`; without `name`, of a client that sends no SNI. The
/// error says what is wrong with it.
pub(super) fn explain(mut query: Query, handles: &AdminHandles) -> Result<Value, String> {
    let view = handles.view.load_full();
    let name = query.take("name");
    let server_name = name.as_deref().map(|name| {
        ServerName::parse(name.as_bytes()).map_err(|error| format!("name: `{name}`: {}\n", pasted::name(name, error)))
    });
    let server_name = server_name.transpose()?;
    let alpn = query.take("alpn");
    let protocols: Vec<&str> = alpn.iter().flat_map(|alpn| alpn.split(',')).collect();
    let list = Alpn::encode(protocols.iter().map(|protocol| protocol.as_bytes()))
        .ok_or("alpn: expected names of 1 to 255 bytes, separated by commas\n")?;
    let listener = query.take("listener");
    query
        .finish()
        .map_err(|unknown| format!("{unknown}; expected ?name=NAME, with &alpn=NAMES or &listener=NAME\n"))?;
    let index = listener.as_deref().map_or(Some(0), |name| view.listeners.iter().position(|at| *at.name == *name));
    let index = index.ok_or_else(|| {
        let known: Vec<&str> = view.listeners.iter().map(|at| &*at.name).collect();
        format!("listener: there is none with this name; expected one of {}\n", known.join(", "))
    })?;

    let client =
        Client::new(server_name, Alpn::from_list(&list).ok(), Arrival { listener: index, ..Arrival::default() });
    // None only while nothing is served yet.
    let table = view.table.upgrade().unwrap_or_default();
    let found = table.find(&client);
    let (rejection, matched) = match &found {
        None => (Some(unrouted(&client, &table)), None),
        Some(found) => (
            None,
            match found.by {
                MatchedBy::Exact => server_name.map(|name| name.to_string()),
                MatchedBy::Suffix(suffix) => Some(format!("*.{suffix}")),
                MatchedBy::CatchAll => None,
            },
        ),
    };
    Ok(json!({
        "name": server_name.map(|name| name.to_string()),
        "alpn": protocols,
        "listener": view.listeners.get(index).map(|at| &at.name),
        "route": found.map(|found| found.target.counters.name()),
        "matched": matched,
        "outcome": rejection.as_ref().map(|rejection| rejection.outcome.label()),
        "reason": rejection.and_then(|rejection| rejection.reason),
    }))
}
