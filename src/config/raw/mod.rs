//! The file as written: one struct per map, and every key that has a default is optional. The doc comments here are
//! the descriptions in the JSON Schema.

mod listener;
mod networks;
mod tlvs;
mod upstream;

use schemars::JsonSchema;
use serde::Deserialize;

pub(crate) use self::listener::{AcceptProxy, IpLiteralSni, Listen, Listener, Others, RejectWith};
pub(crate) use self::networks::NetworkEntry;
pub(crate) use self::tlvs::Tlvs;
pub(crate) use self::upstream::{
    Balance, Connect, Dead, DeadConnections, Endpoint, HealthCheck, HttpCheck, MaxAge, OnRemove, ProxyProtocol,
    TlsCheck, Unauthorized, Upstream,
};
use super::quantities::{
    BoundedDuration, BufferSize, ConnectionRate, Count, DurationOrZero, HelloSize, Interval, ParkAfter, Seconds,
    UserTimeout, Workers,
};
use super::text::{OneOrMany, Short, Shorthand, Text};
use super::values::{AdminAddress, FilePattern, Label, Network, Protocol, SocketPath};
use super::yaml::Root;
use crate::client_hello::Ja4;
use crate::name::NamePattern;

/// For `deserialize_with`: a key without a value is an error, not the default.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "The configuration of snigate")]
#[schemars(extend("required" = ["listen"], "anyOf" = [{"required": ["routes"]}, {"required": ["include"]}]))]
pub(crate) struct Config {
    /// Addresses to listen on: one address, or a list of addresses and of maps with `address`.
    #[serde(default, deserialize_with = "present")]
    pub(crate) listen: Option<Listen>,
    /// How a client is rejected. Default: alert.
    #[serde(default, deserialize_with = "present")]
    pub(crate) refuse: Option<RejectWith>,
    /// Which clients go to which upstream: the most specific name wins, whatever the order in the file.
    #[serde(default, deserialize_with = "present")]
    #[schemars(length(min = 1))]
    pub(crate) routes: Option<Vec<Route>>,
    /// More files, with `routes` only: a path, or a pattern such as routes.d/*.yaml, or a list. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) include: Option<OneOrMany<Text<FilePattern>>>,
    /// Timeouts of connections and of the shutdown.
    #[serde(default)]
    pub(crate) timeouts: Timeouts,
    /// TCP options, for connections with clients and with endpoints.
    #[serde(default)]
    pub(crate) tcp: Tcp,
    /// Limits on connections and memory.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// How bytes are relayed. Default: auto.
    #[serde(default, deserialize_with = "present")]
    pub(crate) relay: Option<Relay>,
    /// Number of worker threads, 1 to 1024. Default: auto, one per CPU available to the process.
    #[serde(default, deserialize_with = "present")]
    pub(crate) workers: Option<Text<Workers>>,
    /// How another process takes over from this one.
    #[serde(default)]
    pub(crate) upgrade: Upgrade,
    /// Unix socket for operators (snigate ctl), which is created with mode 600. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) control: Option<Text<SocketPath>>,
    /// Watch this file, and those that it includes or names in lists of networks, and reload when one changes. Default: false.
    #[serde(default)]
    pub(crate) watch: bool,
    /// Loopback address for metrics, probes and the status page, or a map with `address`. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) admin: Option<Short<Admin>>,
    /// Drop all privileges that the running process does not need. Default: auto.
    #[serde(default, deserialize_with = "present")]
    pub(crate) sandbox: Option<Sandbox>,
    /// Log settings.
    #[serde(default)]
    pub(crate) log: Log,
}

impl Root for Config {
    const KEYS: &'static str = "`listen` and `routes`";
}

/// A file that another one includes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Included {
    pub(crate) routes: Vec<Route>,
}

impl Root for Included {
    const KEYS: &'static str = "`routes`";
    const NO_OTHER_KEYS: Option<&'static str> = Some("an included file has `routes` only");
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sandbox {
    /// As much as the kernel supports.
    Auto,
    /// Fail to start if any part of it is not possible.
    Require,
    /// No sandbox.
    Off,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Route {
    /// Unique name in logs and metrics. Default: the first `sni`, else default.
    #[serde(default, deserialize_with = "present")]
    pub(crate) name: Option<Text<Label>>,
    /// Server names (SNI) to match; `*.` matches any depth of subdomains. Default: any name, or no SNI at all.
    #[serde(default, deserialize_with = "present")]
    pub(crate) sni: Option<OneOrMany<Text<NamePattern>>>,
    /// ALPN protocols, such as h2; the client must offer at least one of them. Default: any.
    #[serde(default, deserialize_with = "present")]
    pub(crate) alpn: Option<OneOrMany<Text<Protocol>>>,
    /// Names of the listeners that this route applies to. Default: all.
    #[serde(default, deserialize_with = "present")]
    pub(crate) listener: Option<OneOrMany<Text<Label>>>,
    /// Networks of clients that this route applies to; other clients go on to other routes. Default: all.
    #[serde(default, deserialize_with = "present")]
    pub(crate) client: Option<OneOrMany<Text<Network>>>,
    /// Networks with the address that the client connected to, from the PROXY header if there is one. Default: any.
    #[serde(default, deserialize_with = "present")]
    pub(crate) destination: Option<OneOrMany<Text<Network>>>,
    /// TLVs of the client's PROXY header (version 2) by number, all of which must be there. Default: any.
    #[serde(default, deserialize_with = "present")]
    pub(crate) proxy_tlv: Option<Tlvs>,
    /// Networks to accept clients from. Default: any.
    #[serde(default, deserialize_with = "present")]
    pub(crate) allow: Option<OneOrMany<Short<NetworkEntry>>>,
    /// Networks to deny clients from; overrides `allow`. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) deny: Option<OneOrMany<Short<NetworkEntry>>>,
    /// JA4 fingerprints of clients to deny. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) deny_ja4: Option<OneOrMany<Text<Ja4>>>,
    /// Maximum number of concurrent connections, 1 to 10000000. Default: unlimited.
    #[serde(default, deserialize_with = "present")]
    pub(crate) max_connections: Option<Text<Count<1, 10_000_000>>>,
    /// Maximum rate of new connections, such as 200/s, 300/m or 1000/h. Default: unlimited.
    #[serde(default, deserialize_with = "present")]
    pub(crate) new_connections: Option<Text<ConnectionRate>>,
    /// Where to connect: host:port, a list of them, or a map with `endpoints` or `dcos`.
    pub(crate) upstream: Short<Upstream>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Timeouts {
    /// From accept until the ClientHello is complete, 1ms to 366d. Default: 10s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) hello: Option<Text<BoundedDuration>>,
    /// Close after no data in either direction for this long, 1ms to 366d. Default: 24h.
    #[serde(default, deserialize_with = "present")]
    pub(crate) idle: Option<Text<BoundedDuration>>,
    /// Close after no data for this long once one side has closed, 1ms to 366d. Default: 60s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) half_close: Option<Text<BoundedDuration>>,
    /// How long open connections may continue at shutdown, or after a reload removes their route or endpoint,
    /// 0s to 366d. Default: 25s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) drain: Option<Text<DurationOrZero>>,
    /// How long open connections may continue in the old process after an upgrade, 0s to 366d. Default: 24h.
    #[serde(default, deserialize_with = "present")]
    pub(crate) upgrade_drain: Option<Text<DurationOrZero>>,
    /// How long to keep accepting after the shutdown signal, while `/readyz` fails, so that load balancers notice,
    /// 0s to 366d. Default: 0s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) shutdown_delay: Option<Text<DurationOrZero>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tcp {
    /// TCP keepalive, to detect dead idle peers. Default: after 30s, every 5s, 3 probes.
    #[serde(default)]
    pub(crate) keepalive: Keepalive,
    /// How long a peer whose kernel answers may read nothing of what was sent, 1s to 24d. Default: 15m.
    #[serde(default, deserialize_with = "present")]
    pub(crate) user_timeout: Option<Text<UserTimeout>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Keepalive {
    /// Idle time before the first probe, 1s to 32767s. Default: 30s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) idle: Option<Text<Seconds>>,
    /// Time between probes, 1s to 32767s. Default: 5s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) interval: Option<Text<Seconds>>,
    /// Unanswered probes after which the peer is dead, 1 to 127. Default: 3.
    #[serde(default, deserialize_with = "present")]
    pub(crate) count: Option<Text<Count<1, 127>>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Upgrade {
    /// Unix socket at which a new process finds the running one, and takes over its listeners and connections. It is created
    /// with mode 600. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) socket: Option<Text<SocketPath>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    /// Maximum number of concurrent connections; clients beyond it wait in the accept queue.
    /// Default: derived from `RLIMIT_NOFILE`.
    #[serde(default, deserialize_with = "present")]
    pub(crate) connections: Option<Text<Count<1, 10_000_000>>>,
    /// Maximum size of a ClientHello, 1KiB to 64KiB. Default: 16KiB.
    #[serde(default, deserialize_with = "present")]
    pub(crate) hello_bytes: Option<Text<HelloSize>>,
    /// Maximum memory for buffers of all connections together, 1MiB to 1024GiB. Default: a quarter of the memory.
    #[serde(default, deserialize_with = "present")]
    pub(crate) buffer_bytes: Option<Text<BufferSize>>,
    /// Maximum number of concurrent connections per IPv4 address or IPv6 /64, 1 to 10000000. Default: unlimited.
    #[serde(default, deserialize_with = "present")]
    pub(crate) per_source: Option<Text<Count<1, 10_000_000>>>,
    /// Maximum rate of new connections per IPv4 address or IPv6 /64, such as 50/s, 300/m or 1000/h. Default: unlimited.
    #[serde(default, deserialize_with = "present")]
    pub(crate) new_per_source: Option<Text<ConnectionRate>>,
    /// Connections without data for this long, 100ms to 366d, are parked, which takes less memory; `never`: none are.
    /// Default: 30s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) park_after: Option<Text<ParkAfter>>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Relay {
    /// Copy, and switch to splice(2) during bulk transfers.
    Auto,
    /// Always copy.
    Copy,
    /// Always use splice(2).
    Splice,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Admin {
    /// Address and port.
    pub(crate) address: Text<AdminAddress>,
    /// Allow an address that other machines can reach. Default: false.
    #[serde(default)]
    pub(crate) allow_remote: bool,
    /// Hostnames to answer for, besides IP addresses and localhost; requests for other hosts are refused. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) hosts: Option<OneOrMany<Text<NamePattern>>>,
    /// Contents of `/metrics`.
    #[serde(default)]
    pub(crate) metrics: Metrics,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metrics {
    /// Series of each route and endpoint. Default: full.
    #[serde(default, deserialize_with = "present")]
    pub(crate) per_route: Option<PerRoute>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PerRoute {
    /// All of them.
    Full,
    /// Histograms with count and sum, but without buckets.
    Totals,
    /// None: every metric is a sum over all routes and endpoints.
    Off,
}

impl Shorthand for Admin {
    const EXPECTED: &'static str = "an address such as 127.0.0.1:9443, or a map with `address`";
    type Scalar = AdminAddress;

    fn from_text(address: AdminAddress) -> Self {
        Self { address: Text(address), allow_remote: false, hosts: None, metrics: Metrics::default() }
    }
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Log {
    /// Format of log lines. Default: auto.
    #[serde(default, deserialize_with = "present")]
    pub(crate) format: Option<LogFormat>,
    /// Minimum level to log. Default: info.
    #[serde(default, deserialize_with = "present")]
    pub(crate) level: Option<LogLevel>,
    /// Rejections to log per second and outcome; 0 logs all. Default: 50.
    #[serde(default, deserialize_with = "present")]
    pub(crate) refusals_per_second: Option<Text<Count<0, 1_000_000>>>,
    /// Log a line of each open connection this often, 1s to 366d. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) progress: Option<Text<Interval>>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Human-readable text.
    Text,
    /// One JSON object per line.
    Json,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}
