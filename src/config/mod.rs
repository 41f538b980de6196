//! The configuration file, parsed into the types that the rest of the program uses. A [`Config`] is always valid.

#[cfg(feature = "gateway")]
mod annotations;
mod build;
mod documents;
mod files;
mod quantities;
mod raw;
mod schema;
mod text;
mod upstream;
mod values;
mod yaml;
mod yaml_error;

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[cfg(feature = "gateway")]
pub(crate) use self::annotations::{RouteSettings, route_settings};
use self::build::Scope;
use self::documents::{Documents, Included};
pub(crate) use self::files::parse_networks;
pub(crate) use self::schema::schema;
use self::text::{OneOrMany, Short, Text, Written as _};
use self::values::{TlvNumber, TlvValue};
use crate::admin::{Hosts, PerRoute};
use crate::client_hello::IpLiteral;
use crate::connection::accept_proxy::AcceptProxy;
use crate::connection::admission::{AccessRules, SourceLimits};
use crate::connection::reject::RejectWith;
use crate::listener::Presence;
use crate::name::NamePattern;
use crate::process::inputs::Inputs;
use crate::process::sandbox::Sandbox;
use crate::relay::Engine;
use crate::relay::tcp::TcpOptions;
use crate::route::{Matchers, Names};
use crate::text::Destination;
use crate::text::escape::visible;
use crate::text::input;
use crate::text::units::Rate;
use crate::upstream::{Source, UpstreamSettings};

/// A valid configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Digest of what its files contain; `None` without a file.
    pub(crate) digest: Option<u64>,
    pub(crate) files: FileCounts,
    /// Patterns of `include` that match no file.
    pub(crate) unmatched_includes: Vec<String>,
    /// At least one, except beside a cluster; no two with the same name or address.
    pub(crate) listeners: Vec<Listener>,
    /// At least one, except beside a cluster; no two with the same name, and no two of equal rank that the same client
    /// could match.
    pub(crate) routes: Vec<Route>,
    /// Names that less specific routes do not get.
    pub(crate) excluded: Vec<(Names, Matchers)>,
    pub(crate) timeouts: Timeouts,
    /// For connections with clients and with endpoints.
    pub(crate) tcp: TcpOptions,
    /// How long a peer may read nothing of what was sent.
    pub(crate) user_timeout: Duration,
    pub(crate) limits: Limits,
    pub(crate) relay: Engine,
    /// Number of worker threads; `None`: one per CPU available to the process.
    pub(crate) workers: Option<usize>,
    /// Whether to reload the file when it changes.
    pub(crate) watch: bool,
    /// The Unix socket at which a new process finds this one.
    pub(crate) upgrade_socket: Option<PathBuf>,
    /// The Unix socket for operators.
    pub(crate) control: Option<PathBuf>,
    pub(crate) admin: Option<Admin>,
    pub(crate) sandbox: Sandbox,
    pub(crate) log: Log,
}

/// How many files were read beside the main one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileCounts {
    /// By `include`.
    pub(crate) included: usize,
    /// Lists of networks.
    pub(crate) networks: usize,
}

/// The admin listener.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    /// Port 0 lets the kernel choose.
    pub(crate) address: SocketAddr,
    /// Hostnames that it answers for.
    pub(crate) hosts: Hosts,
    /// Series of each route and endpoint in `/metrics`.
    pub(crate) per_route: PerRoute,
}

/// An address that clients connect to.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    /// In logs, metrics and `routes[].listener`.
    pub(crate) name: String,
    /// Port 0 lets the kernel choose.
    pub(crate) address: SocketAddr,
    /// Whether the address may be one that no interface has yet.
    pub(crate) presence: Presence,
    /// Whether the others serve if this one cannot be opened.
    pub(crate) is_optional: bool,
    pub(crate) refuse: RejectWith,
    /// `None`: clients connect directly, and no peer sends a PROXY header.
    pub(crate) accept_proxy: Option<AcceptProxy>,
    /// How to treat an IP address as SNI.
    pub(crate) ip_literal: IpLiteral,
    pub(crate) sources: AccessRules,
}

/// Which clients go to which upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// In logs and metrics.
    pub(crate) name: String,
    /// The names that it matches; empty: every name, and clients without SNI.
    pub(crate) patterns: Vec<NamePattern>,
    pub(crate) matchers: Matchers,
    /// In a cluster, the names depend on the listener: these instead of `patterns` and `matchers`.
    pub(crate) by_listener: Vec<(Names, Matchers)>,
    pub(crate) sources: AccessRules,
    /// `None`: unlimited.
    pub(crate) max_connections: Option<u32>,
    /// `None`: unlimited.
    pub(crate) new_connections: Option<Rate>,
    pub(crate) upstream: UpstreamSettings,
}

impl Route {
    /// Its entries in the route table.
    pub(crate) fn entries(&self) -> Vec<(Names, Matchers)> {
        if self.by_listener.is_empty() {
            vec![(self.patterns.as_slice().into(), self.matchers.clone())]
        } else {
            self.by_listener.clone()
        }
    }

    /// Equal for equal routes, also in another process of the same version. `listeners`: the names of all.
    pub(crate) fn digest(&self, listeners: &[&str]) -> u64 {
        let Self { name, patterns, matchers, by_listener, sources, max_connections, new_connections, upstream } = self;
        let mut hasher = DefaultHasher::new();
        (name, patterns, sources, max_connections, new_connections, upstream).hash(&mut hasher);
        hash_matchers(matchers, listeners, &mut hasher);
        for (names, matchers) in by_listener {
            names.hash(&mut hasher);
            hash_matchers(matchers, listeners, &mut hasher);
        }
        hasher.finish()
    }
}

/// With the names of listeners: their indices depend on the others.
fn hash_matchers(matchers: &Matchers, names: &[&str], hasher: &mut impl Hasher) {
    let Matchers { proxy_tlvs, destinations, clients, listeners, alpn } = matchers;
    (proxy_tlvs, destinations, clients, alpn).hash(hasher);
    let name = |index: &usize| names.get(*index);
    listeners.as_ref().map(|listeners| listeners.iter().map(name).collect::<Vec<_>>()).hash(hasher);
}

/// Timeouts of connections and of the shutdown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// From accept until the ClientHello is complete.
    pub(crate) hello: Duration,
    /// No data in either direction.
    pub(crate) idle: Duration,
    /// No data in either direction once one side has closed.
    pub(crate) half_close: Duration,
    /// For open connections at shutdown, and for those whose route or endpoint a reload removes.
    pub(crate) drain: Duration,
    /// For open connections in the old process after an upgrade.
    pub(crate) upgrade_drain: Duration,
    /// How long to keep accepting after the shutdown signal, while readiness fails.
    pub(crate) shutdown_delay: Duration,
}

/// Limits on connections and memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Concurrent connections; `None`: as many as file descriptors allow.
    pub(crate) connections: Option<usize>,
    /// Size of a ClientHello, with its record headers.
    pub(crate) hello_bytes: usize,
    /// Buffers of all connections together; `None`: derived from the memory.
    pub(crate) buffer_bytes: Option<usize>,
    pub(crate) source: SourceLimits,
    /// Time without data after which connections are parked; `None`: never.
    pub(crate) park_after: Option<Duration>,
}

/// Log settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    /// Whether an option of the command line has set it, and not the file.
    pub(crate) is_format_option: bool,
    /// Minimum level.
    pub(crate) level: tracing::Level,
    /// Rejections logged per second and outcome; 0: all.
    pub(crate) refusals_per_second: u32,
    /// Between lines of a connection that lasts; `None`: it has only one, at its end.
    pub(crate) progress: Option<Duration>,
}

impl Log {
    /// An option of the command line has priority.
    pub(crate) fn set_format(&mut self, option: Option<LogFormat>) {
        self.is_format_option = option.is_some();
        self.format = option.unwrap_or(self.format);
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Auto,
            is_format_option: false,
            level: tracing::Level::INFO,
            refusals_per_second: 50,
            progress: None,
        }
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    Text,
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// A position in the file; line and column count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) line: usize,
    /// In characters.
    pub(crate) column: usize,
}

/// Why a configuration is invalid.
#[derive(Debug)]
pub(crate) struct ConfigError {
    file: Option<PathBuf>,
    position: Option<Position>,
    message: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}", file.display())?;
            if let Some(Position { line, column }) = self.position {
                write!(f, ":{line}:{column}")?;
            }
            f.write_str(": ")?;
        }
        // The message quotes the file.
        f.write_str(&visible(&self.message))
    }
}

/// The text of a YAML file that is safe to parse; an error says why it is not.
#[cfg(feature = "gateway")]
pub(crate) fn yaml_text(bytes: &[u8]) -> Result<&str, String> {
    yaml::decode(bytes).and_then(|text| yaml::check_depth(text).map(|()| text)).map_err(|error| error.message)
}

impl Config {
    /// In the order of the configuration.
    pub(crate) fn listener_names(&self) -> Vec<&str> {
        self.listeners.iter().map(|listener| &*listener.name).collect()
    }

    /// Reads a file, or standard input, and the files that it names.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path, &mut Inputs::default())
    }

    /// Like [`Self::load`], and records which files were read, also if one of them is invalid.
    pub(crate) fn read(path: &Path, inputs: &mut Inputs) -> Result<Self, ConfigError> {
        Self::read_as(path, Scope::Complete, inputs)
    }

    /// Reads a configuration to which a cluster adds listeners and routes, so that it need not have any.
    #[cfg(feature = "gateway")]
    pub(crate) fn read_base(path: &Path, inputs: &mut Inputs) -> Result<Self, ConfigError> {
        Self::read_as(path, Scope::Base, inputs)
    }

    /// The defaults, without listeners and routes.
    #[cfg(feature = "gateway")]
    pub(crate) fn empty_base() -> Result<Self, ConfigError> {
        Self::parse(Documents::new(None, b"watch: false\n".into()), Scope::Base, &mut Inputs::default())
    }

    fn read_as(path: &Path, scope: Scope, inputs: &mut Inputs) -> Result<Self, ConfigError> {
        let content = inputs.read(path).map_err(|unreadable| ConfigError {
            file: Some(input::name_of(path).into()),
            position: None,
            message: format!("cannot read the configuration: {}", unreadable.reason),
        })?;
        let config = Self::parse(Documents::new(Some(path), content), scope, inputs)?;
        Ok(Self { digest: Some(inputs.digest()), ..config })
    }

    /// Parses the content of a file. Paths in it are relative to the current directory.
    pub(crate) fn from_yaml(bytes: &[u8]) -> Result<Self, ConfigError> {
        Self::parse(Documents::new(None, bytes.into()), Scope::Complete, &mut Inputs::default())
    }

    fn parse(mut documents: Documents, scope: Scope, inputs: &mut Inputs) -> Result<Self, ConfigError> {
        let raw = documents.parse()?;
        let included = match &raw.include {
            Some(include) => documents.include(include.clone(), inputs)?,
            None => Included::default(),
        };
        build::config(raw, scope, included, &documents, inputs).map_err(|invalid| documents.error(invalid))
    }

    /// The configuration of `snigate run` without a file: listeners, routes, and an upstream for all other clients.
    pub(crate) fn from_arguments(
        listen: Vec<SocketAddr>,
        routes: Vec<(NamePattern, Destination)>,
        default: Option<Destination>,
    ) -> Result<Self, ConfigError> {
        let listen = listen.into_iter().map(|address| Short(raw::Listener::at(address))).collect();
        let route = |sni: Option<NamePattern>, endpoint| raw::Route {
            name: None,
            sni: sni.map(|sni| OneOrMany(vec![Text(sni)])),
            alpn: None,
            listener: None,
            client: None,
            destination: None,
            proxy_tlv: None,
            allow: None,
            deny: None,
            deny_ja4: None,
            max_connections: None,
            new_connections: None,
            upstream: Short(raw::Upstream::with_endpoints(vec![endpoint])),
        };
        let routes = routes.into_iter().map(|(sni, endpoint)| route(Some(sni), endpoint));
        let raw = raw::Config {
            listen: Some(raw::Listen(listen)),
            refuse: None,
            routes: Some(routes.chain(default.map(|endpoint| route(None, endpoint))).collect()),
            include: None,
            timeouts: raw::Timeouts::default(),
            tcp: raw::Tcp::default(),
            limits: raw::Limits::default(),
            relay: None,
            workers: None,
            watch: false,
            upgrade: raw::Upgrade::default(),
            control: None,
            admin: None,
            sandbox: None,
            log: raw::Log::default(),
        };
        let documents = Documents::new(None, Vec::new());
        let inputs = &mut Inputs::default();
        build::config(raw, Scope::Complete, Included::default(), &documents, inputs).map_err(|invalid| ConfigError {
            file: None,
            position: None,
            message: invalid.message,
        })
    }

    /// A route that connects from the addresses of its clients.
    pub(crate) fn transparent_route(&self) -> Option<&Route> {
        self.routes.iter().find(|route| route.upstream.source == Source::Client)
    }
}

/// Parses a TLV of a PROXY header, written as `NUMBER=VALUE`.
pub(crate) fn tlv(text: &str) -> Result<(u8, Box<[u8]>), String> {
    let (number, value) = text.split_once('=').ok_or("expected NUMBER=VALUE such as 0xe0=kubernetes01")?;
    let (TlvNumber(number), TlvValue(value)) = (TlvNumber::parse(number)?, TlvValue::parse(value)?);
    Ok((number, value))
}
