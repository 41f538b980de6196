use schemars::JsonSchema;
use serde::Deserialize;

use super::super::quantities::{Age, BoundedDuration, ConnectionRate, Count, DurationOrZero, Percentage, Weight};
use super::super::text::{OneOrMany, Short, Shorthand, Text};
use super::super::values::{
    CheckName, FilePath, HeaderVersion, RequestPath, Service, Source, StatusRange, TlvNumber, TrustedFile,
};
use super::present;
use super::tlvs::Tlvs;
use crate::text::Destination;

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["endpoints"]}, {"required": ["dcos"]}]))]
pub(crate) struct Upstream {
    /// Endpoints as host:port, or maps with `address`; a hostname stands for all addresses it resolves to.
    #[serde(default, deserialize_with = "present")]
    pub(crate) endpoints: Option<OneOrMany<Short<Endpoint>>>,
    /// Instead of `endpoints`: a Kubernetes cluster on DC/OS, by its service name.
    #[serde(default, deserialize_with = "present")]
    pub(crate) dcos: Option<Short<Dcos>>,
    /// Load balancing algorithm. Default: `least_connections`.
    #[serde(default, deserialize_with = "present")]
    pub(crate) balance: Option<Balance>,
    /// Timeouts for connecting to an endpoint. Default: 10s in total, 3s per address.
    #[serde(default)]
    pub(crate) connect: Connect,
    /// Time over which an endpoint that has recovered is ramped up to its full share, 0s to 366d. Default: 30s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) slow_start: Option<Text<DurationOrZero>>,
    /// Whether and when connections to a dead endpoint are closed. Default: cut after 15s.
    #[serde(default)]
    pub(crate) dead: Dead,
    /// What happens to connections when a reload removes their route or endpoint. Default: drain.
    #[serde(default, deserialize_with = "present")]
    pub(crate) on_remove: Option<OnRemove>,
    /// Interval between DNS lookups of the endpoints, 1ms to 366d. Default: 10s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) resolve_every: Option<Text<BoundedDuration>>,
    /// PROXY header to send to endpoints: its version, or a map with `version`; kube-apiserver does not support it.
    /// Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) proxy_protocol: Option<Short<ProxyProtocol>>,
    /// Local address of connections to endpoints, one for each family, or client for the client's own address.
    /// Default: chosen by the kernel.
    #[serde(default, deserialize_with = "present")]
    pub(crate) source: Option<OneOrMany<Text<Source>>>,
    /// Close connections that are older than this, so that clients connect anew. Default: never.
    #[serde(default, deserialize_with = "present")]
    pub(crate) max_age: Option<Short<MaxAge>>,
    /// Close parked connections at this rate after an endpoint has returned, until shares are even. Default: never.
    #[serde(default, deserialize_with = "present")]
    pub(crate) rebalance: Option<Text<ConnectionRate>>,
    /// Active health check; `{}` only connects. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) health_check: Option<HealthCheck>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Endpoint {
    /// host:port; a hostname stands for all addresses it resolves to.
    pub(crate) address: Text<Destination>,
    /// Share of connections relative to other endpoints, 1 to 256; for a hostname, of each of its addresses. Default: 1.
    #[serde(default, deserialize_with = "present")]
    pub(crate) weight: Option<Text<Weight>>,
    /// Use this endpoint while no other is ready, and for connections that none of them accepts. Default: false.
    #[serde(default)]
    pub(crate) backup: bool,
}

impl Shorthand for Endpoint {
    const EXPECTED: &'static str = "host:port, or a map with `address`";
    type Scalar = Destination;

    fn from_text(address: Destination) -> Self {
        Self { address: Text(address), weight: None, backup: false }
    }
}

impl Shorthand for Upstream {
    const EXPECTED: &'static str = "\"host:port\", a list of them, or a map with `endpoints` or `dcos`";
    type Scalar = Destination;

    fn from_text(endpoint: Destination) -> Self {
        Self::with_endpoints(vec![endpoint])
    }

    fn from_list(endpoints: Vec<Text<Destination>>) -> Option<Self> {
        Some(Self::with_endpoints(endpoints.into_iter().map(|endpoint| endpoint.0).collect()))
    }
}

/// The API server of a cluster on DC/OS.
#[derive(Deserialize, JsonSchema)]
#[serde(try_from = "DcosService")]
pub(crate) struct Dcos(#[schemars(with = "DcosService")] pub(crate) Destination);

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DcosService {
    /// Service name. Default: kubernetes-cluster.
    #[serde(default, deserialize_with = "present")]
    service: Option<Text<Service>>,
    /// Port of the API server. Default: 6443.
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
    type Scalar = Service;

    fn from_text(service: Service) -> Self {
        // `Service::read` has already built this destination once.
        Destination::dcos(&service.0, DCOS_PORT).map_or_else(|_| unreachable!("a service makes a valid name"), Self)
    }
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Balance {
    /// The endpoint with the fewest open connections.
    LeastConnections,
    /// Each endpoint in turn.
    RoundRobin,
    /// The less loaded of two random endpoints (power of two choices).
    Random,
    /// The same endpoint for the same client address (rendezvous hashing).
    SourceHash,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProxyProtocol {
    /// Version of the header.
    pub(crate) version: Text<HeaderVersion>,
    /// TLVs to add, by number; version 2 only. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) tlvs: Option<Tlvs>,
    /// Numbers of the TLVs of the client's own PROXY header to pass on; version 2 only. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) pass: Option<OneOrMany<Text<TlvNumber>>>,
}

impl Shorthand for ProxyProtocol {
    const EXPECTED: &'static str = "v1, v2, or a map with `version`";
    type Scalar = HeaderVersion;

    fn from_text(version: HeaderVersion) -> Self {
        Self { version: Text(version), tlvs: None, pass: None }
    }
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MaxAge {
    /// Age at which a connection is closed, 1s to 366d.
    pub(crate) after: Text<Age>,
    /// Random addition to the age of each connection, so that they do not end together, 0% to 100%. Default: 25%.
    #[serde(default, deserialize_with = "present")]
    pub(crate) jitter: Option<Text<Percentage>>,
}

impl Shorthand for MaxAge {
    const EXPECTED: &'static str = "a duration such as 12h, or a map with `after`";
    type Scalar = Age;

    fn from_text(after: Age) -> Self {
        Self { after: Text(after), jitter: None }
    }
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnRemove {
    /// Close them after `timeouts.drain`.
    Drain,
    /// Leave them open.
    Keep,
    /// Close them immediately.
    Cut,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dead {
    /// How long an endpoint is unreachable before its connections are closed, 1ms to 366d. Default: 15s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) grace: Option<Text<BoundedDuration>>,
    /// Whether connections to a dead endpoint are closed. Default: cut.
    #[serde(default, deserialize_with = "present")]
    pub(crate) connections: Option<DeadConnections>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeadConnections {
    /// Close them after `grace`.
    Cut,
    /// Leave them open.
    Keep,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("dependencies" = {"http": ["tls"], "unready": ["http"]}))]
pub(crate) struct HealthCheck {
    /// Time between checks of an endpoint, with 10% jitter, 1ms to 366d. Default: 5s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) interval: Option<Text<BoundedDuration>>,
    /// Timeout of a whole check, 1ms to 366d, at most `interval`. Default: 4s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) timeout: Option<Text<BoundedDuration>>,
    /// Consecutive successful checks after which an endpoint is ready, 1 to 127. Default: 2.
    #[serde(default, deserialize_with = "present")]
    pub(crate) rise: Option<Text<Count<1, 127>>>,
    /// Consecutive failed checks after which an endpoint is dead, 1 to 127. Default: 3.
    #[serde(default, deserialize_with = "present")]
    pub(crate) fall: Option<Text<Count<1, 127>>>,
    /// Consecutive HTTP responses 500 or 503 after which an endpoint is unready, 1 to 127; the first one is followed by
    /// another check within a second. Default: 2, or `fall` if that is 1.
    #[serde(default, deserialize_with = "present")]
    pub(crate) unready: Option<Text<Count<1, 127>>>,
    /// Check over TLS, and how to verify the certificate. Default: no TLS.
    #[serde(default, deserialize_with = "present")]
    pub(crate) tls: Option<TlsCheck>,
    /// HTTP request to send over that TLS connection. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) http: Option<HttpCheck>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TlsCheck {
    /// PEM file with the CA that must have issued the certificate, or with the certificate itself; `system`: the CAs
    /// of this machine.
    #[serde(default, deserialize_with = "present")]
    pub(crate) ca_file: Option<Text<TrustedFile>>,
    /// Name to send as SNI and to verify in the certificate. Default: the first exact `sni`, sent but not verified.
    #[serde(default, deserialize_with = "present")]
    pub(crate) server_name: Option<Text<CheckName>>,
    /// Verify the certificate; false accepts any. Default: true.
    #[serde(default, deserialize_with = "present")]
    pub(crate) verify: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("dependencies" = {"client_certificate": ["client_key"], "client_key": ["client_certificate"]}))]
pub(crate) struct HttpCheck {
    /// Path to request. Default: /readyz.
    #[serde(default, deserialize_with = "present")]
    pub(crate) path: Option<Text<RequestPath>>,
    /// File with a bearer token, read again for every check. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) token_file: Option<Text<FilePath>>,
    /// PEM file with a client certificate; requires `client_key`. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) client_certificate: Option<Text<FilePath>>,
    /// PEM file with the private key of `client_certificate`. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) client_key: Option<Text<FilePath>>,
    /// HTTP statuses that count as ready, such as 204, 200-399 or a list of those. Default: 200.
    #[serde(default, deserialize_with = "present")]
    pub(crate) expect: Option<OneOrMany<Text<StatusRange>>>,
    /// How to treat 401 and 403. Default: alive.
    #[serde(default, deserialize_with = "present")]
    pub(crate) unauthorized: Option<Unauthorized>,
}

#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unauthorized {
    /// As ready.
    Alive,
    /// As a failed check.
    Failed,
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Connect {
    /// Total, over all addresses that are tried, 1ms to 366d. Default: 10s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) timeout: Option<Text<BoundedDuration>>,
    /// Per address, 1ms to 366d, at most `timeout`. Default: 3s.
    #[serde(default, deserialize_with = "present")]
    pub(crate) per_try: Option<Text<BoundedDuration>>,
}
