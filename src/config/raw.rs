//! The file as it is written: one struct per map, every key optional that has a default. What the values mean is
//! decided where this is turned into the types of the rooms.

use std::net::SocketAddr;

use serde::Deserialize;

use super::text::{
    AdminAddress, CheckName, Count, FilePath, HeldSize, HelloSize, Label, Network, NewRate, OneOrMany, Protocol,
    RequestPath, Seconds, Service, Short, Shorthand, Span, SpanOrZero, Text, UserTimeout, Workers,
};
use crate::name::NamePattern;
use crate::upstream::Destination;

/// A key that stands there has a value: an empty one is a mistake, not the default.
fn present<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    pub(super) listen: Listen,
    #[serde(default, deserialize_with = "present")]
    pub(super) refuse: Option<Refuse>,
    pub(super) routes: Vec<Route>,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    #[serde(default)]
    pub(super) tcp: Tcp,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default, deserialize_with = "present")]
    pub(super) relay: Option<Relay>,
    #[serde(default, deserialize_with = "present")]
    pub(super) workers: Option<Text<Workers>>,
    #[serde(default)]
    pub(super) watch: bool,
    #[serde(default, deserialize_with = "present")]
    pub(super) admin: Option<Short<Admin>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) sandbox: Option<Sandbox>,
    #[serde(default)]
    pub(super) log: Log,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Sandbox {
    Auto,
    Require,
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
                let one = Short::deserialize(serde::de::value::StrDeserializer::new(text))?;
                Ok(Listen(vec![one]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, sequence: A) -> Result<Listen, A::Error> {
                Vec::deserialize(serde::de::value::SeqAccessDeserializer::new(sequence)).map(Listen)
            }
        }

        deserializer.deserialize_any(ListenVisitor)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    #[serde(default, deserialize_with = "present")]
    pub(super) name: Option<Text<Label>>,
    pub(super) address: Text<SocketAddr>,
    #[serde(default, deserialize_with = "present")]
    pub(super) refuse: Option<Refuse>,
    #[serde(default, deserialize_with = "present")]
    pub(super) allow: Option<OneOrMany<Text<Network>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) deny: Option<OneOrMany<Text<Network>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) accept_proxy: Option<AcceptProxy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AcceptProxy {
    pub(super) from: OneOrMany<Text<Network>>,
}

impl Listener {
    /// Only an address, all else as it is by default.
    pub(super) fn at(address: SocketAddr) -> Self {
        Self { name: None, address: Text(address), refuse: None, allow: None, deny: None, accept_proxy: None }
    }
}

impl Shorthand for Listener {
    const EXPECTED: &'static str = "an address such as 0.0.0.0:6443, or a map with `address`";
    type Text = SocketAddr;

    fn from_text(address: SocketAddr) -> Self {
        Self::at(address)
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Refuse {
    Alert,
    Close,
    Reset,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    #[serde(default, deserialize_with = "present")]
    pub(super) name: Option<Text<Label>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) sni: Option<OneOrMany<Text<NamePattern>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) alpn: Option<OneOrMany<Text<Protocol>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) listener: Option<OneOrMany<Text<Label>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) allow: Option<OneOrMany<Text<Network>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) deny: Option<OneOrMany<Text<Network>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) max_connections: Option<Text<Count<1, 10_000_000>>>,
    pub(super) upstream: Short<Upstream>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Upstream {
    #[serde(default, deserialize_with = "present")]
    pub(super) endpoints: Option<OneOrMany<Text<Destination>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) dcos: Option<Short<Dcos>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) balance: Option<Balance>,
    #[serde(default)]
    pub(super) connect: Connect,
    #[serde(default, deserialize_with = "present")]
    pub(super) slow_start: Option<Text<SpanOrZero>>,
    #[serde(default)]
    pub(super) dead: Dead,
    #[serde(default, deserialize_with = "present")]
    pub(super) on_remove: Option<OnRemove>,
    #[serde(default, deserialize_with = "present")]
    pub(super) resolve_every: Option<Text<Span>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) proxy_protocol: Option<ProxyProtocol>,
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
pub(super) struct Dcos(pub(super) Destination);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DcosService {
    #[serde(default, deserialize_with = "present")]
    service: Option<Text<Service>>,
    #[serde(default, deserialize_with = "present")]
    port: Option<Text<Count<1, 65535>>>,
}

impl<'de> Deserialize<'de> for Dcos {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let DcosService { service, port } = DcosService::deserialize(deserializer)?;
        let service = service.map_or_else(|| "kubernetes-cluster".into(), |service| service.0.0);
        let port = port.and_then(|port| u16::try_from(port.0.0).ok()).unwrap_or(DCOS_PORT);
        Destination::dcos(&service, port).map(Self).map_err(serde::de::Error::custom)
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

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Balance {
    LeastConnections,
    RoundRobin,
    Random,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ProxyProtocol {
    V1,
    V2,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnRemove {
    Drain,
    Keep,
    Cut,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dead {
    #[serde(default, deserialize_with = "present")]
    pub(super) grace: Option<Text<Span>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) connections: Option<DeadConnections>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DeadConnections {
    Cut,
    Keep,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HealthCheck {
    #[serde(default, deserialize_with = "present")]
    pub(super) interval: Option<Text<Span>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) timeout: Option<Text<Span>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) rise: Option<Text<Count<1, 127>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) fall: Option<Text<Count<1, 127>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) tls: Option<TlsCheck>,
    #[serde(default, deserialize_with = "present")]
    pub(super) http: Option<HttpCheck>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsCheck {
    #[serde(default, deserialize_with = "present")]
    pub(super) ca_file: Option<Text<FilePath>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) server_name: Option<Text<CheckName>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) verify: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpCheck {
    #[serde(default, deserialize_with = "present")]
    pub(super) path: Option<Text<RequestPath>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) token_file: Option<Text<FilePath>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) client_certificate: Option<Text<FilePath>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) client_key: Option<Text<FilePath>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) unauthorized: Option<Unauthorized>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unauthorized {
    Alive,
    Failed,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Connect {
    #[serde(default, deserialize_with = "present")]
    pub(super) timeout: Option<Text<Span>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) per_try: Option<Text<Span>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    #[serde(default, deserialize_with = "present")]
    pub(super) hello: Option<Text<Span>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) idle: Option<Text<Span>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) half_close: Option<Text<Span>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) drain: Option<Text<SpanOrZero>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) upgrade_drain: Option<Text<SpanOrZero>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) shutdown_delay: Option<Text<SpanOrZero>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tcp {
    #[serde(default)]
    pub(super) keepalive: Keepalive,
    #[serde(default, deserialize_with = "present")]
    pub(super) user_timeout: Option<Text<UserTimeout>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keepalive {
    #[serde(default, deserialize_with = "present")]
    pub(super) idle: Option<Text<Seconds>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) interval: Option<Text<Seconds>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) count: Option<Text<Count<1, 127>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    #[serde(default, deserialize_with = "present")]
    pub(super) connections: Option<Text<Count<1, 10_000_000>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) hello_bytes: Option<Text<HelloSize>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) held_bytes: Option<Text<HeldSize>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) per_source: Option<Text<Count<1, 10_000_000>>>,
    #[serde(default, deserialize_with = "present")]
    pub(super) new_per_source: Option<Text<NewRate>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Relay {
    Auto,
    Copy,
    Splice,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    pub(super) address: Text<AdminAddress>,
    #[serde(default)]
    pub(super) allow_remote: bool,
}

impl Shorthand for Admin {
    const EXPECTED: &'static str = "an address such as 127.0.0.1:9443, or a map with `address`";
    type Text = AdminAddress;

    fn from_text(address: AdminAddress) -> Self {
        Self { address: Text(address), allow_remote: false }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    #[serde(default, deserialize_with = "present")]
    pub(super) format: Option<LogFormat>,
    #[serde(default, deserialize_with = "present")]
    pub(super) level: Option<LogLevel>,
    #[serde(default, deserialize_with = "present")]
    pub(super) refusals_per_second: Option<Text<Count<0, 1_000_000>>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogFormat {
    Auto,
    Text,
    Json,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}
