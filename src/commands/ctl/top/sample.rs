//! What the instance says of itself at one moment.

use std::time::Instant;

use serde_json::Value;

use crate::commands::admin::array;
use crate::upstream::DRAINED;

/// An answer to `/api/status` and one to `/api/refusals`.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) instance: Instance,
    /// Clients that match no route.
    pub(super) unrouted: Counters,
    pub(super) routes: Vec<Route>,
    /// The newest first.
    pub(super) refusals: Vec<Refusal>,
    /// Upper bounds of the buckets; in seconds, ascending.
    pub(super) answer_bounds: Vec<f64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Instance {
    pub(super) version: String,
    pub(super) host: String,
    pub(super) process: u64,
    pub(super) uptime_seconds: u64,
    pub(super) is_draining: bool,
    /// Connections that old processes still have after an upgrade.
    pub(super) predecessor_connections: u64,
    pub(super) reload_error: Option<String>,
    /// Routes without a ready endpoint.
    pub(super) failing_open: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) name: String,
    pub(super) sni: Vec<String>,
    /// Which endpoints get connections: `primary`, `backup` or `all`.
    pub(super) serving: String,
    pub(super) open: u64,
    pub(super) counters: Counters,
    pub(super) endpoints: Vec<Endpoint>,
}

/// Since the start of the process.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: u64,
    pub(super) rejected: u64,
    pub(super) received: u64,
    pub(super) sent: u64,
    /// How many answers took how long, in buckets.
    pub(super) answers: Vec<u64>,
}

#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    /// Or the hostname, if it has no address.
    pub(super) address: String,
    pub(super) state: State,
    pub(super) is_backup: bool,
    pub(super) open: u64,
    pub(super) cause: String,
}

/// The worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    NoAddress,
    Dead,
    Unready,
    Drained,
    /// No connection or check so far.
    Unknown,
    Ready,
}

#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// RFC 3339.
    pub(super) time: String,
    pub(super) client: String,
    pub(super) route: String,
    pub(super) server_name: String,
    pub(super) outcome: String,
    pub(super) reason: String,
}

/// An answer to `/connections`.
#[derive(Clone, Debug, Default)]
pub(super) struct Connections {
    pub(super) awaiting_hello: u64,
    pub(super) connecting: u64,
    pub(super) relaying: u64,
    pub(super) parked: u64,
    pub(super) rejected: u64,
    /// How many connections the route has that is looked into.
    pub(super) matched: usize,
    /// The first of them.
    pub(super) listed: Vec<Connection>,
}

#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) id: String,
    pub(super) client: String,
    pub(super) server_name: String,
    pub(super) endpoint: String,
    pub(super) age_seconds: f64,
    pub(super) idle_seconds: f64,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) client_rtt_ms: Option<f64>,
    pub(super) state: String,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().into()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

impl Sample {
    pub(super) fn new(at: Instant, status: &Value, refusals: &Value) -> Self {
        Self {
            at,
            instance: Instance::new(status),
            unrouted: Counters::new(&status["unrouted"]),
            routes: array(&status["routes"]).iter().map(Route::new).collect(),
            refusals: array(refusals).iter().map(Refusal::new).collect(),
            answer_bounds: array(&status["answer_bounds_seconds"]).iter().filter_map(Value::as_f64).collect(),
        }
    }
}

impl Instance {
    fn new(status: &Value) -> Self {
        Self {
            version: text(&status["version"]),
            host: text(&status["host"]),
            process: number(&status["process"]),
            uptime_seconds: number(&status["uptime_seconds"]),
            is_draining: status["draining"] == true,
            predecessor_connections: number(&status["predecessor_connections"]),
            reload_error: status["config"]["last_error"].as_str().map(Into::into),
            failing_open: number(&status["summary"]["failing_open"]),
        }
    }
}

impl Route {
    fn new(route: &Value) -> Self {
        Self {
            name: text(&route["name"]),
            sni: array(&route["sni"]).iter().map(text).collect(),
            serving: text(&route["serving"]),
            open: number(&route["connections"]),
            counters: Counters::new(route),
            endpoints: array(&route["upstream"]).iter().flat_map(Endpoint::all).collect(),
        }
    }

    /// How many of its endpoints are ready.
    pub(super) fn ready(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.state >= State::Unknown).count()
    }
}

impl Counters {
    fn new(counters: &Value) -> Self {
        Self {
            accepted: number(&counters["accepted"]),
            rejected: number(&counters["rejected"]),
            received: number(&counters["bytes_received"]),
            sent: number(&counters["bytes_sent"]),
            answers: array(&counters["answer_counts"]).iter().map(number).collect(),
        }
    }
}

impl Endpoint {
    /// All endpoints of a destination.
    fn all(destination: &Value) -> Vec<Self> {
        let is_backup = destination["backup"] == true;
        let endpoint = |endpoint: &Value| Self {
            address: text(&endpoint["address"]),
            state: State::new(endpoint),
            is_backup,
            open: number(&endpoint["connections"]),
            cause: text(&endpoint["cause"]),
        };
        match array(&destination["endpoints"]) {
            [] => vec![Self {
                address: text(&destination["destination"]),
                state: State::NoAddress,
                is_backup,
                open: 0,
                cause: "the hostname has no address".into(),
            }],
            endpoints => endpoints.iter().map(endpoint).collect(),
        }
    }
}

impl State {
    fn new(endpoint: &Value) -> Self {
        match endpoint["state"].as_str() {
            Some("drained") => Self::Drained,
            _ if endpoint["known"] == false => Self::Unknown,
            Some("ready") => Self::Ready,
            Some("unready") => Self::Unready,
            _ => Self::Dead,
        }
    }

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::NoAddress => "no address",
            Self::Dead => "dead",
            Self::Unready => "unready",
            Self::Drained => DRAINED,
            Self::Unknown => "unknown",
            Self::Ready => "ready",
        }
    }
}

impl Refusal {
    fn new(refusal: &Value) -> Self {
        Self {
            time: text(&refusal["time"]),
            client: text(&refusal["client"]),
            route: text(&refusal["route"]),
            server_name: text(&refusal["server_name"]),
            outcome: text(&refusal["outcome"]),
            reason: text(&refusal["reason"]),
        }
    }
}

impl Connections {
    pub(super) fn new(answer: &Value) -> Self {
        let states = &answer["states"];
        Self {
            awaiting_hello: number(&states["awaiting_hello"]),
            connecting: number(&states["connecting"]),
            relaying: number(&states["relaying"]),
            parked: number(&states["parked"]),
            rejected: number(&states["rejected"]),
            matched: answer["matched"].as_u64().and_then(|count| count.try_into().ok()).unwrap_or_default(),
            listed: array(&answer["connections"]).iter().map(Connection::new).collect(),
        }
    }
}

impl Connection {
    fn new(connection: &Value) -> Self {
        Self {
            id: text(&connection["id"]),
            client: text(&connection["client"]),
            server_name: text(&connection["server_name"]),
            endpoint: text(&connection["endpoint"]),
            age_seconds: connection["age_seconds"].as_f64().unwrap_or_default(),
            idle_seconds: connection["idle_seconds"].as_f64().unwrap_or_default(),
            received: number(&connection["bytes_received"]),
            sent: number(&connection["bytes_sent"]),
            client_rtt_ms: connection["client_rtt_ms"].as_f64(),
            state: text(&connection["state"]),
        }
    }
}
