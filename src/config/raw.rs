//! The file as it is written: one struct per map, every key optional that has a default. What the values mean is
//! decided where this is turned into the types of the rooms.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::Deserialize;

use super::text::{
    AdminAddress, CheckName, Count, FilePath, HeldSize, HelloSize, Label, Network, NewRate, OneOrMany, Protocol,
    RequestPath, Seconds, Service, Short, Shorthand, Span, SpanOrZero, StatusRange, Text, TrustedFile, UserTimeout,
    Workers, one_of_many,
};
use crate::name::NamePattern;
use crate::text::Destination;

/// A key that stands there has a value: an empty one is a mistake, not the default.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "The configuration of snigate")]
pub(super) struct Config {
    /// Where clients connect: an address, or a list of addresses and of maps with `address`.
    pub(super) listen: Listen,
    /// How a client is told that it is not served. Default: alert.
    #[serde(default, deserialize_with = "present")]
    pub(super) refuse: Option<RejectWith>,
    /// Which clients go where: the most specific name wins, whatever the order.
    #[schemars(length(min = 1))]
    pub(super) routes: Vec<Route>,
    /// How long things may take.
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    /// Options of both legs of every connection.
    #[serde(default)]
    pub(super) tcp: Tcp,
    /// How much there may be.
    #[serde(default)]
    pub(super) limits: Limits,
    /// How bytes are relayed. Default: auto.
    #[serde(default, deserialize_with = "present")]
    pub(super) relay: Option<Relay>,
    /// Worker threads, 1 to 1024. Default: auto, the CPUs that this process may use.
    #[serde(default, deserialize_with = "present")]
    pub(super) workers: Option<Text<Workers>>,
    /// Whether this file is looked at every second, and taken when it has another content. Default: false.
    #[serde(default)]
    pub(super) watch: bool,
    /// Loopback address of metrics, probes and status page, or a map with `address`. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) admin: Option<Short<Admin>>,
    /// Whether the process gives up what it will not need. Default: auto.
    #[serde(default, deserialize_with = "present")]
    pub(super) sandbox: Option<Sandbox>,
    /// What is logged, and how.
    #[serde(default)]
    pub(super) log: Log,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Sandbox {
    /// As far as the kernel lets it.
    Auto,
    /// All of it, or there is no start.
    Require,
    /// Nothing.
    Off,
}

/// An address, or a list of addresses and maps.
pub(super) struct Listen(pub(super) Vec<Short<Listener>>);

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListenVisitor;

        impl<'de> serde::de::Visitor<'de> for ListenVisitor {
            type Value = Listen;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an address such as 0.0.0.0:6443, or a list of addresses and of maps with `address`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Listen, E> {
                one_of_many(text).map(|Text(address)| Listen(vec![Short(Listener::at(address))]))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Listen, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, sequence: A) -> Result<Listen, A::Error> {
                Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(sequence)).map(Listen)
            }
        }

        deserializer.deserialize_any(ListenVisitor)
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    /// Name in logs, metrics and `routes[].listener`. Default: the address.
    #[serde(default, deserialize_with = "present")]
    pub(super) name: Option<Text<Label>>,
    /// Address and port. `[::]` takes IPv4, too; with port 0 the kernel chooses.
    pub(super) address: Text<SocketAddr>,
    /// How a client is told here that it is not served. Default: the `refuse` of all listeners.
    #[serde(default, deserialize_with = "present")]
    pub(super) refuse: Option<RejectWith>,
    /// Networks that clients may come from. Default: everywhere.
    #[serde(default, deserialize_with = "present")]
    pub(super) allow: Option<OneOrMany<Text<Network>>>,
    /// Networks that clients may not come from, whatever is allowed. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) deny: Option<OneOrMany<Text<Network>>>,
    /// Balancers that connect here and name the client in a PROXY header. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) accept_proxy: Option<AcceptProxy>,
    /// What an IP address in place of the name is, which TLS forbids and some clients send. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) ip_literal_sni: Option<IpLiteralSni>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum IpLiteralSni {
    /// Malformed: the client is refused.
    Refuse,
    /// No name: the client goes where clients without a name go.
    None,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AcceptProxy {
    /// Networks of the balancers; nobody else may connect.
    pub(super) from: OneOrMany<Text<Network>>,
}

impl Listener {
    /// Only an address, all else as it is by default.
    pub(super) fn at(address: SocketAddr) -> Self {
        Self {
            name: None,
            address: Text(address),
            refuse: None,
            allow: None,
            deny: None,
            accept_proxy: None,
            ip_literal_sni: None,
        }
    }
}

impl Shorthand for Listener {
    const EXPECTED: &'static str = "an address such as 0.0.0.0:6443, or a map with `address`";
    type Text = SocketAddr;

    fn from_text(address: SocketAddr) -> Self {
        Self::at(address)
    }
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum RejectWith {
    /// A TLS alert, which ends a client at once.
    Alert,
    /// A plain close.
    Close,
    /// A TCP reset.
    Reset,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    /// Unique name in logs and metrics. Default: the first `sni`, else default.
    #[serde(default, deserialize_with = "present")]
    pub(super) name: Option<Text<Label>>,
    /// Names that clients ask for; `*.` stands for any depth below. Default: every name, and none.
    #[serde(default, deserialize_with = "present")]
    pub(super) sni: Option<OneOrMany<Text<NamePattern>>>,
    /// Application protocols of which the client offers one, such as h2. Default: any.
    #[serde(default, deserialize_with = "present")]
    pub(super) alpn: Option<OneOrMany<Text<Protocol>>>,
    /// Names of listeners at which the client arrives. Default: all.
    #[serde(default, deserialize_with = "present")]
    pub(super) listener: Option<OneOrMany<Text<Label>>>,
    /// Networks that clients may come from. Default: everyone.
    #[serde(default, deserialize_with = "present")]
    pub(super) allow: Option<OneOrMany<Text<Network>>>,
    /// Networks that clients may not come from, whatever is allowed. Default: nobody.
    #[serde(default, deserialize_with = "present")]
    pub(super) deny: Option<OneOrMany<Text<Network>>>,
    /// Connections at a time, 1 to 10000000. Default: any number.
    #[serde(default, deserialize_with = "present")]
    pub(super) max_connections: Option<Text<Count<1, 10_000_000>>>,
    /// Where it leads: host:port, a list of them, or a map with `endpoints` or `dcos`.
    pub(super) upstream: Short<Upstream>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["endpoints"]}, {"required": ["dcos"]}]))]
pub(super) struct Upstream {
    /// Endpoints as host:port; a name stands for all its addresses.
    #[serde(default, deserialize_with = "present")]
    pub(super) endpoints: Option<OneOrMany<Text<Destination>>>,
    /// In place of `endpoints`: the service of a Kubernetes cluster on DC/OS.
    #[serde(default, deserialize_with = "present")]
    pub(super) dcos: Option<Short<Dcos>>,
    /// Who gets a new connection. Default: `least_connections`.
    #[serde(default, deserialize_with = "present")]
    pub(super) balance: Option<Balance>,
    /// How long connecting may take. Default: 10s in all, 3s per try.
    #[serde(default)]
    pub(super) connect: Connect,
    /// From the return of an endpoint to its full share, 0s to 366d. Default: 30s.
    #[serde(default, deserialize_with = "present")]
    pub(super) slow_start: Option<Text<SpanOrZero>>,
    /// What becomes of connections of an endpoint that is gone. Default: cut after 15s.
    #[serde(default)]
    pub(super) dead: Dead,
    /// What becomes of connections when a reload removes their route or endpoint. Default: drain.
    #[serde(default, deserialize_with = "present")]
    pub(super) on_remove: Option<OnRemove>,
    /// Between lookups of names, 1ms to 366d. Default: 10s.
    #[serde(default, deserialize_with = "present")]
    pub(super) resolve_every: Option<Text<Span>>,
    /// Version of the PROXY header that endpoints are sent; API servers understand none. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) proxy_protocol: Option<ProxyProtocol>,
    /// How endpoints are asked whether they are ready; `{}` connects and no more. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) health_check: Option<HealthCheck>,
}

impl Shorthand for Upstream {
    const EXPECTED: &'static str = "\"host:port\", a list of them, or a map with `endpoints` or `dcos`";
    type Text = Destination;

    fn from_text(endpoint: Destination) -> Self {
        Self::of(vec![Text(endpoint)])
    }

    fn from_list(endpoints: Vec<Text<Destination>>) -> Option<Self> {
        Some(Self::of(endpoints))
    }
}

/// The API server of a cluster on DC/OS.
#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "DcosService")]
pub(super) struct Dcos(#[schemars(with = "DcosService")] pub(super) Destination);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DcosService {
    /// Name of the service. Default: kubernetes-cluster.
    #[serde(default, deserialize_with = "present")]
    service: Option<Text<Service>>,
    /// Port of its API server. Default: 6443.
    #[serde(default, deserialize_with = "present")]
    port: Option<Text<Count<1, 65535>>>,
}

impl TryFrom<DcosService> for Dcos {
    type Error = String;

    fn try_from(DcosService { service, port }: DcosService) -> Result<Self, String> {
        let service = service.map_or_else(|| "kubernetes-cluster".into(), |service| service.0.0);
        let port = port.and_then(|port| u16::try_from(port.0.0).ok()).unwrap_or(DCOS_PORT);
        Destination::dcos(&service, port).map(Self)
    }
}

const DCOS_PORT: u16 = 6443;

impl Shorthand for Dcos {
    const EXPECTED: &'static str = "the name of a service such as dev/kubernetes01, or a map with `service` and `port`";
    type Text = Service;

    fn from_text(service: Service) -> Self {
        // Whether it makes a name was seen when it was read.
        Destination::dcos(&service.0, DCOS_PORT).map_or_else(|_| unreachable!("a service is a name"), Self)
    }
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Balance {
    /// The endpoint with the fewest connections.
    LeastConnections,
    /// One after the other.
    RoundRobin,
    /// The better of two at random.
    Random,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProxyProtocol {
    V1,
    V2,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnRemove {
    /// Closed after `timeouts.drain`.
    Drain,
    /// They stay.
    Keep,
    /// Closed at once.
    Cut,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Dead {
    /// From the finding that an endpoint is gone to the cut, 1ms to 366d. Default: 15s.
    #[serde(default, deserialize_with = "present")]
    pub(super) grace: Option<Text<Span>>,
    /// Whether its connections are cut. Default: cut.
    #[serde(default, deserialize_with = "present")]
    pub(super) connections: Option<DeadConnections>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum DeadConnections {
    /// After `grace`.
    Cut,
    /// Never.
    Keep,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("dependencies" = {"http": ["tls"], "unready": ["http"]}))]
pub(super) struct HealthCheck {
    /// Between checks of an endpoint, give or take a tenth, 1ms to 366d. Default: 5s.
    #[serde(default, deserialize_with = "present")]
    pub(super) interval: Option<Text<Span>>,
    /// Of a whole check, 1ms to 366d, at most the interval. Default: 4s.
    #[serde(default, deserialize_with = "present")]
    pub(super) timeout: Option<Text<Span>>,
    /// Findings in a row, 1 to 127, after which it is ready. Default: 2.
    #[serde(default, deserialize_with = "present")]
    pub(super) rise: Option<Text<Count<1, 127>>>,
    /// Findings in a row, 1 to 127, after which it is no longer. Default: 3.
    #[serde(default, deserialize_with = "present")]
    pub(super) fall: Option<Text<Count<1, 127>>>,
    /// Answers 500 or 503 in a row, 1 to 127, after which it is unready; after the first one it is checked again within a
    /// second. Default: 2, or `fall` if that is 1.
    #[serde(default, deserialize_with = "present")]
    pub(super) unready: Option<Text<Count<1, 127>>>,
    /// Check over TLS, and which certificate is right. Default: no TLS.
    #[serde(default, deserialize_with = "present")]
    pub(super) tls: Option<TlsCheck>,
    /// Ask over that TLS whether it is ready. Default: it is not asked.
    #[serde(default, deserialize_with = "present")]
    pub(super) http: Option<HttpCheck>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsCheck {
    /// PEM file of the CA that the certificate must come from, or of that very certificate; `system`: the CAs of this
    /// machine.
    #[serde(default, deserialize_with = "present")]
    pub(super) ca_file: Option<Text<TrustedFile>>,
    /// Name to ask for, and that the certificate must carry. Default: the first exact `sni`, not verified.
    #[serde(default, deserialize_with = "present")]
    pub(super) server_name: Option<Text<CheckName>>,
    /// Whether the certificate is verified; false believes anyone. Default: true.
    #[serde(default, deserialize_with = "present")]
    pub(super) verify: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("dependencies" = {"client_certificate": ["client_key"], "client_key": ["client_certificate"]}))]
pub(super) struct HttpCheck {
    /// What is asked for. Default: /readyz.
    #[serde(default, deserialize_with = "present")]
    pub(super) path: Option<Text<RequestPath>>,
    /// File of a bearer token, read anew for every check. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) token_file: Option<Text<FilePath>>,
    /// PEM file of a client certificate, with `client_key`. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) client_certificate: Option<Text<FilePath>>,
    /// PEM file of its key. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) client_key: Option<Text<FilePath>>,
    /// Statuses that count as ready, such as 204, 200-399 or a list of those. Default: 200.
    #[serde(default, deserialize_with = "present")]
    pub(super) expect: Option<OneOrMany<Text<StatusRange>>>,
    /// What 401 and 403 mean. Default: alive.
    #[serde(default, deserialize_with = "present")]
    pub(super) unauthorized: Option<Unauthorized>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unauthorized {
    /// It counts as ready.
    Alive,
    /// The check has failed.
    Failed,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Connect {
    /// In all, 1ms to 366d. Default: 10s.
    #[serde(default, deserialize_with = "present")]
    pub(super) timeout: Option<Text<Span>>,
    /// Per address, 1ms to 366d, at most `timeout`. Default: 3s.
    #[serde(default, deserialize_with = "present")]
    pub(super) per_try: Option<Text<Span>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    /// From accept to the whole ClientHello, 1ms to 366d. Default: 10s.
    #[serde(default, deserialize_with = "present")]
    pub(super) hello: Option<Text<Span>>,
    /// Without a byte in either direction, 1ms to 366d. Default: 24h.
    #[serde(default, deserialize_with = "present")]
    pub(super) idle: Option<Text<Span>>,
    /// Without a byte after one side has closed, 1ms to 366d. Default: 60s.
    #[serde(default, deserialize_with = "present")]
    pub(super) half_close: Option<Text<Span>>,
    /// For open connections at a stop, and of what a reload removes, 0s to 366d. Default: 25s.
    #[serde(default, deserialize_with = "present")]
    pub(super) drain: Option<Text<SpanOrZero>>,
    /// For open connections in the old process after an upgrade, 0s to 366d. Default: 24h.
    #[serde(default, deserialize_with = "present")]
    pub(super) upgrade_drain: Option<Text<SpanOrZero>>,
    /// After the signal to stop, still accepting, so that balancers notice, 0s to 366d. Default: 0s.
    #[serde(default, deserialize_with = "present")]
    pub(super) shutdown_delay: Option<Text<SpanOrZero>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tcp {
    /// Probes by which dead idle peers are found. Default: after 30s, every 5s, 3 of them.
    #[serde(default)]
    pub(super) keepalive: Keepalive,
    /// How long a peer may take none of the bytes that wait for it, 1s to 24d. Default: 15m.
    #[serde(default, deserialize_with = "present")]
    pub(super) user_timeout: Option<Text<UserTimeout>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Keepalive {
    /// Without a byte before the first probe, 1s to 32767s. Default: 30s.
    #[serde(default, deserialize_with = "present")]
    pub(super) idle: Option<Text<Seconds>>,
    /// Between probes, 1s to 32767s. Default: 5s.
    #[serde(default, deserialize_with = "present")]
    pub(super) interval: Option<Text<Seconds>>,
    /// Probes without an answer, 1 to 127. Default: 3.
    #[serde(default, deserialize_with = "present")]
    pub(super) count: Option<Text<Count<1, 127>>>,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    /// Connections at a time; beyond, clients wait in the queue. Default: from `RLIMIT_NOFILE`.
    #[serde(default, deserialize_with = "present")]
    pub(super) connections: Option<Text<Count<1, 10_000_000>>>,
    /// Raw bytes of a ClientHello, 1KiB to 64KiB. Default: 16KiB.
    #[serde(default, deserialize_with = "present")]
    pub(super) hello_bytes: Option<Text<HelloSize>>,
    /// Bytes that wait for hellos and slow readers in all, 1MiB to 1024GiB. Default: a quarter of the memory.
    #[serde(default, deserialize_with = "present")]
    pub(super) buffer_bytes: Option<Text<HeldSize>>,
    /// Connections at a time of an IPv4 address or IPv6 /64, 1 to 10000000. Default: any number.
    #[serde(default, deserialize_with = "present")]
    pub(super) per_source: Option<Text<Count<1, 10_000_000>>>,
    /// New connections of such a source, such as 50/s, 300/m or 1000/h. Default: any number.
    #[serde(default, deserialize_with = "present")]
    pub(super) new_per_source: Option<Text<NewRate>>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Relay {
    /// Copied, and moved by splice(2) while much comes in a row.
    Auto,
    /// Always copied.
    Copy,
    /// Always moved by splice(2).
    Splice,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    /// Address and port.
    pub(super) address: Text<AdminAddress>,
    /// Whether the address may be one that other machines reach. Default: false.
    #[serde(default)]
    pub(super) allow_remote: bool,
    /// Names by which it is reached, besides addresses and localhost; requests for others are refused. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) hosts: Option<OneOrMany<Text<NamePattern>>>,
    /// What `/metrics` has.
    #[serde(default)]
    pub(super) metrics: Metrics,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Metrics {
    /// How much of each route and endpoint. Default: full.
    #[serde(default, deserialize_with = "present")]
    pub(super) per_route: Option<PerRoute>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum PerRoute {
    /// Everything.
    Full,
    /// Histograms with sum and count, but without buckets.
    Totals,
    /// Only sums over all routes and endpoints.
    Off,
}

impl Shorthand for Admin {
    const EXPECTED: &'static str = "an address such as 127.0.0.1:9443, or a map with `address`";
    type Text = AdminAddress;

    fn from_text(address: AdminAddress) -> Self {
        Self { address: Text(address), allow_remote: false, hosts: None, metrics: Metrics::default() }
    }
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    /// What a line looks like. Default: auto.
    #[serde(default, deserialize_with = "present")]
    pub(super) format: Option<LogFormat>,
    /// The least that is logged. Default: info.
    #[serde(default, deserialize_with = "present")]
    pub(super) level: Option<LogLevel>,
    /// Refusals with the same outcome that are logged per second; 0: all. Default: 50.
    #[serde(default, deserialize_with = "present")]
    pub(super) refusals_per_second: Option<Text<Count<0, 1_000_000>>>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One object per line.
    Json,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}
