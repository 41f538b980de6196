//! The established connections that match a filter, as JSON.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use ipnet::IpNet;
use serde_json::{Value, json};
use strum::{EnumString, IntoStaticStr};

use super::{ControlHandles, Query};
use crate::connection::live::{ConnectionId, LiveConnection, States, survey};
use crate::connection::registry::Registry;
use crate::text::units::span;

/// Which connections are meant: those that everything here applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    id: Option<ConnectionId>,
    route: Option<String>,
    endpoint: Option<SocketAddr>,
    client: Option<IpNet>,
    sni: Option<String>,
    older: Option<Duration>,
    idle: Option<Duration>,
}

impl Filter {
    /// Takes its parameters out of the query; the error says what is expected.
    pub(super) fn take(query: &mut Query) -> Result<Self, String> {
        const DURATION: &str = "a duration such as 90s or 2h";
        let duration = |value: &str| humantime::parse_duration(value).ok();
        let network = |value: &str| value.parse().ok().or_else(|| Some(value.parse::<IpAddr>().ok()?.into()));
        Ok(Self {
            id: query.parse("id", "the ID of a connection, such as 17-4242")?,
            route: query.take("route"),
            endpoint: query.parse("endpoint", "an address such as 10.0.0.1:6443")?,
            client: query.parse_with("client", "an address or a network such as 10.0.0.0/8", network)?,
            sni: query.take("sni").map(|name| name.to_ascii_lowercase()),
            older: query.parse_with("older", DURATION, duration)?,
            idle: query.parse_with("idle", DURATION, duration)?,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn matches(&self, connection: &LiveConnection) -> bool {
        let Self { id, route, endpoint, client, sni, older, idle } = self;
        id.is_none_or(|id| connection.id == id)
            && route.as_deref().is_none_or(|route| *route == *connection.route)
            && endpoint.is_none_or(|endpoint| connection.endpoint == endpoint)
            && client.is_none_or(|client| client.contains(&connection.client.ip()))
            && sni.as_deref().is_none_or(|name| connection.server_name.as_deref() == Some(name))
            && older.is_none_or(|older| connection.age >= older)
            && idle.is_none_or(|idle| connection.idle >= idle)
    }

    /// As it was asked for, for the log.
    pub(super) fn text(&self) -> String {
        let Self { id, route, endpoint, client, sni, older, idle } = self;
        let text = |key: &str, value: Option<String>| value.map(|value| format!("{key}={value}"));
        let parts = [
            text("id", id.map(|id| id.to_string())),
            text("route", route.clone()),
            text("endpoint", endpoint.map(|endpoint| endpoint.to_string())),
            text("client", client.map(|client| client.to_string())),
            text("sni", sni.clone()),
            text("older", older.map(span)),
            text("idle", idle.map(span)),
        ];
        if self.is_empty() { "all".into() } else { parts.into_iter().flatten().collect::<Vec<_>>().join(" ") }
    }
}

/// What a list is sorted by.
#[derive(Clone, Copy, Debug, Default, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
enum Sort {
    /// The oldest first.
    #[default]
    Age,
    /// The longest idle first.
    Idle,
    /// The most bytes first.
    Received,
    Sent,
    Client,
    Route,
    Endpoint,
}

impl Sort {
    fn sort(self, connections: &mut [LiveConnection]) {
        match self {
            Self::Age => connections.sort_by_key(|one| Reverse(one.age)),
            Self::Idle => connections.sort_by_key(|one| Reverse(one.idle)),
            Self::Received => connections.sort_by_key(|one| Reverse(one.received)),
            Self::Sent => connections.sort_by_key(|one| Reverse(one.sent)),
            Self::Client => connections.sort_by_key(|one| one.client),
            Self::Route => connections.sort_by(|one, other| one.route.cmp(&other.route)),
            Self::Endpoint => connections.sort_by_key(|one| one.endpoint),
        }
    }
}

/// Which connections are listed, and how.
#[derive(Debug)]
pub(super) struct Selection {
    filter: Filter,
    sort: Sort,
    limit: usize,
}

impl Selection {
    pub(super) fn take(query: &mut Query) -> Result<Self, String> {
        Ok(Self {
            filter: Filter::take(query)?,
            sort: query.parse("sort", "age, idle, received, sent, client, route or endpoint")?.unwrap_or_default(),
            limit: query.parse("limit", "a number")?.unwrap_or(usize::MAX),
        })
    }
}

/// The matching connections, and how many connections are in which state.
pub(super) async fn matching(registry: &Arc<Registry>, filter: &Filter) -> (Vec<LiveConnection>, States) {
    let mut found = Vec::new();
    let visit = |connection: LiveConnection| {
        if filter.matches(&connection) {
            found.push(connection);
        }
    };
    let states = survey(registry, visit).await;
    (found, states)
}

pub(super) async fn list(handles: &ControlHandles, selection: Selection) -> Bytes {
    let Selection { filter, sort, limit } = selection;
    let (mut connections, states) = matching(&handles.registry, &filter).await;
    let elsewhere = handles.predecessor_connections();
    let write = move || {
        sort.sort(&mut connections);
        let States { awaiting_hello, connecting, relaying, parked, rejected } = states;
        let states = json!({
            "awaiting_hello": awaiting_hello,
            "connecting": connecting,
            "relaying": relaying,
            "parked": parked,
            "rejected": rejected,
        });
        // One connection per line: readable, and quick to write for 100,000.
        let mut text = format!(
            "{{\n  \"states\": {states},\n  \"predecessor_connections\": {elsewhere},\n  \"matched\": {},\n  \"connections\": [",
            connections.len()
        );
        for (number, connection) in connections.iter().take(limit).enumerate() {
            text.push_str(if number == 0 { "\n    " } else { ",\n    " });
            text.push_str(&object(connection).to_string());
        }
        text.push_str(if connections.is_empty() || limit == 0 { "]\n}\n" } else { "\n  ]\n}\n" });
        Bytes::from(text)
    };
    // A panic has been logged.
    tokio::task::spawn_blocking(write).await.unwrap_or_default()
}

fn object(connection: &LiveConnection) -> Value {
    let LiveConnection {
        id,
        client,
        listener,
        route,
        server_name,
        endpoint,
        age,
        idle,
        received,
        sent,
        is_parked,
        client_rtt,
        upstream_rtt,
    } = connection;
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    json!({
        "id": id.to_string(),
        "client": client.to_string(),
        "listener": listener,
        "route": route,
        "server_name": server_name,
        "endpoint": endpoint.to_string(),
        "age_seconds": age.as_secs_f64(),
        "idle_seconds": idle.as_secs_f64(),
        "bytes_received": received,
        "bytes_sent": sent,
        "state": if *is_parked { "parked" } else { "relaying" },
        "client_rtt_ms": client_rtt.map(milliseconds),
        "upstream_rtt_ms": upstream_rtt.map(milliseconds),
    })
}
