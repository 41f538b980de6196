//! The lists of the page: their columns, and a row for each route, endpoint, refusal and connection.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::list::{Cell, Column, List, Row, Tone};
use super::sample::{Connection, Counters, Endpoint, Refusal, Route, State};
use super::timeline::{Latency, Timeline};
use crate::commands::ctl::table::{bytes, duration, milliseconds, rate};
use crate::telemetry::UNROUTED;

const fn text(title: &'static str, min_width: usize, rank: u8) -> Column {
    Column { title, is_number: false, descends: false, min_width, rank }
}

const fn number(title: &'static str, min_width: usize, rank: u8) -> Column {
    Column { title, is_number: true, descends: true, min_width, rank }
}

const fn ascending(column: Column) -> Column {
    Column { descends: false, ..column }
}

/// Width of an IPv4 address with its port.
const ADDRESS: usize = 21;

const ROUTES: [Column; 9] = [
    text("ROUTE", 10, 9),
    number("NEW/s", 6, 8),
    number("OPEN", 6, 7),
    number("IN/s", 8, 3),
    number("OUT/s", 8, 4),
    number("REJ/s", 6, 6),
    number("P50", 6, 1),
    number("P99", 6, 2),
    text("READY", 5, 5),
];
const ENDPOINTS: [Column; 5] =
    [text("ROUTE", 10, 5), text("ENDPOINT", 12, 9), text("STATE", 4, 8), number("OPEN", 6, 7), text("CAUSE", 8, 6)];
const REFUSALS: [Column; 6] = [
    ascending(number("AGE", 6, 7)),
    text("CLIENT", ADDRESS, 9),
    text("ROUTE", 6, 5),
    text("SNI", 8, 6),
    text("OUTCOME", 10, 8),
    text("REASON", 8, 4),
];
const CONNECTIONS: [Column; 9] = [
    text("CLIENT", ADDRESS, 9),
    text("SNI", 8, 2),
    text("ENDPOINT", ADDRESS, 5),
    number("AGE", 6, 8),
    number("IDLE", 6, 7),
    number("IN", 8, 4),
    number("OUT", 8, 6),
    number("RTT", 6, 1),
    text("STATE", 8, 3),
];

/// What `/connections` sorts by, for each of those columns.
const CONNECTION_SORTS: [Option<&str>; 9] =
    [Some("client"), None, Some("endpoint"), Some("age"), Some("idle"), Some("received"), Some("sent"), None, None];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Routes,
    Endpoints,
    Refusals,
    Connections,
}

impl Kind {
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Routes => "Routes",
            Self::Endpoints => "Endpoints",
            Self::Refusals => "Refusals",
            Self::Connections => "Connections",
        }
    }

    /// Sorted by new connections, by what is wrong, the newest or the oldest first.
    pub(super) fn list(self) -> List {
        match self {
            Self::Routes => List::new(&ROUTES, 1),
            Self::Endpoints => List::new(&ENDPOINTS, 2),
            Self::Refusals => List::new(&REFUSALS, 0),
            Self::Connections => List::new(&CONNECTIONS, 3),
        }
    }
}

/// What `/connections` is to be sorted by.
pub(super) fn connection_sort(list: &List) -> &'static str {
    CONNECTION_SORTS[list.sorted_by].unwrap_or("age")
}

fn optional(value: Option<f64>, shown: impl FnOnce(f64) -> String) -> Cell {
    // Below all others.
    value.map_or_else(|| Cell::number("-".into(), -1.0), |value| Cell::number(shown(value), value))
}

#[expect(clippy::cast_precision_loss, reason = "for sorting")]
fn count(count: u64) -> Cell {
    Cell::number(count.to_string(), count as f64)
}

#[expect(clippy::cast_precision_loss, reason = "for sorting")]
fn size(size: u64) -> Cell {
    Cell::number(bytes(size), size as f64)
}

pub(super) fn per_second(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes per second, at least 0")]
    bytes(value.round() as u64)
}

/// A row per route, and one for clients that match none.
pub(super) fn routes(timeline: &Timeline) -> Vec<Row> {
    let mut rows: Vec<Row> = timeline.now.routes.iter().map(|route| route_row(timeline, route)).collect();
    let [new, rejected, ..] = numbers(timeline, UNROUTED, &timeline.now.unrouted);
    let none = || optional(None, rate);
    // No worse than any route.
    let ready = Cell::number("-".into(), 1.0);
    rows.push(Row {
        id: UNROUTED.into(),
        route: Some(UNROUTED.into()),
        tone: Tone::Faint,
        cells: vec![Cell::text(UNROUTED), new, none(), none(), none(), rejected, none(), none(), ready],
    });
    rows
}

fn route_row(timeline: &Timeline, route: &Route) -> Row {
    let [new, rejected, received, sent, p50, p99] = numbers(timeline, &route.name, &route.counters);
    let (ready, all) = (route.ready(), route.endpoints.len());
    let serving = if route.serving == "primary" { String::new() } else { format!(" {}", route.serving) };
    let tone = match ready {
        0 => Tone::Bad,
        _ if ready < all => Tone::Doubtful,
        _ => Tone::Plain,
    };
    #[expect(clippy::cast_precision_loss, reason = "for sorting")]
    let ready = Cell::number(format!("{ready}/{all}{serving}"), ready as f64 / all.max(1) as f64);
    Row {
        id: route.name.clone(),
        route: Some(route.name.clone()),
        tone,
        cells: vec![Cell::text(&route.name), new, count(route.open), received, sent, rejected, p50, p99, ready],
    }
}

/// New and rejected connections, bytes each way, and latencies.
fn numbers(timeline: &Timeline, name: &str, counters: &Counters) -> [Cell; 6] {
    let rates = timeline.rates(name, counters);
    let latency = timeline.latency(name, counters);
    [
        optional(rates.map(|rates| rates.accepted), rate),
        optional(rates.map(|rates| rates.rejected), rate),
        optional(rates.map(|rates| rates.received), per_second),
        optional(rates.map(|rates| rates.sent), per_second),
        optional(latency.map(|Latency { p50, .. }| p50), milliseconds),
        optional(latency.map(|Latency { p99, .. }| p99), milliseconds),
    ]
}

/// Endpoints of this route, or of all.
pub(super) fn endpoints(timeline: &Timeline, of: Option<&str>) -> Vec<Row> {
    let routes = timeline.now.routes.iter().filter(|route| of.is_none_or(|of| of == route.name));
    let each = |route: &Route| -> Vec<Row> {
        let row = |(index, endpoint)| endpoint_row(route, index, endpoint);
        route.endpoints.iter().enumerate().map(row).collect()
    };
    routes.flat_map(each).collect()
}

/// How many are in which state.
pub(super) fn endpoint_states(timeline: &Timeline, of: Option<&str>) -> String {
    let routes = timeline.now.routes.iter().filter(|route| of.is_none_or(|of| of == route.name));
    let mut counts = BTreeMap::new();
    for endpoint in routes.flat_map(|route| &route.endpoints) {
        *counts.entry(endpoint.state).or_insert(0) += 1;
    }
    counts.iter().map(|(state, count)| format!("{count} {}", state.label())).collect::<Vec<_>>().join(", ")
}

fn endpoint_row(route: &Route, index: usize, endpoint: &Endpoint) -> Row {
    let Endpoint { address, state, is_backup, open, cause } = endpoint;
    let tone = match state {
        State::NoAddress | State::Dead => Tone::Bad,
        State::Unready | State::Drained => Tone::Doubtful,
        State::Unknown => Tone::Faint,
        State::Ready => Tone::Plain,
    };
    let backup = if *is_backup { " backup" } else { "" };
    Row {
        id: format!("{} {index} {address}", route.name),
        route: Some(route.name.clone()),
        tone,
        cells: vec![
            Cell::text(&route.name),
            Cell::text(address),
            Cell::number(format!("{}{backup}", state.label()), f64::from(*state as u8)),
            count(*open),
            Cell::text(cause),
        ],
    }
}

/// Refusals of this route, or of all.
pub(super) fn refusals(refusals: &[Refusal], of: Option<&str>, now: SystemTime) -> Vec<Row> {
    let wanted = refusals.iter().filter(|refusal| of.is_none_or(|of| of == refusal.route));
    wanted.map(|refusal| refusal_row(refusal, now)).collect()
}

fn refusal_row(refusal: &Refusal, now: SystemTime) -> Row {
    let Refusal { time, client, route, server_name, outcome, reason } = refusal;
    let at = humantime::parse_rfc3339(time).unwrap_or(now);
    let age = now.duration_since(at).unwrap_or(Duration::ZERO).as_secs_f64();
    Row {
        id: format!("{time} {client}"),
        route: Some(route.clone()),
        tone: Tone::Plain,
        cells: vec![
            Cell::number(duration(age), age),
            Cell::text(client),
            Cell::text(route),
            Cell::text(server_name),
            Cell::text(outcome),
            Cell::text(reason),
        ],
    }
}

pub(super) fn connections(connections: &[Connection]) -> Vec<Row> {
    connections.iter().map(connection_row).collect()
}

fn connection_row(connection: &Connection) -> Row {
    let Connection {
        id,
        client,
        server_name,
        endpoint,
        age_seconds,
        idle_seconds,
        received,
        sent,
        client_rtt_ms,
        state,
    } = connection;
    Row {
        id: id.clone(),
        route: None,
        tone: Tone::Plain,
        cells: vec![
            Cell::text(client),
            Cell::text(server_name),
            Cell::text(endpoint),
            Cell::number(duration(*age_seconds), *age_seconds),
            Cell::number(duration(*idle_seconds), *idle_seconds),
            size(*received),
            size(*sent),
            optional(*client_rtt_ms, milliseconds),
            Cell::text(state),
        ],
    }
}
