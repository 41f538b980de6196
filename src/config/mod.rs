//! What the operator wrote, as the types that the rooms work with. A configuration that exists is a valid one.

mod build;
mod raw;
mod schema;
mod text;
mod upstream;
mod yaml;

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use self::schema::schema;
use self::text::{OneOrMany, Short, Text};
use self::yaml::{Place, YamlError};
use crate::admin::{Hosts, PerRoute};
use crate::client_hello::IpLiteral;
use crate::connection::admission::{Networks, SourceLimits, Sources};
use crate::connection::reject::RejectWith;
use crate::name::NamePattern;
use crate::process::sandbox::Sandbox;
use crate::relay::Engine;
use crate::relay::tcp::TcpOptions;
use crate::route::Matchers;
use crate::text::Destination;
use crate::text::escape::visible;
use crate::text::input;
use crate::upstream::Settings;

/// A valid configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Of the file's content, if there is a file.
    pub(crate) digest: Option<u64>,
    /// At least one; no two with the same name or address.
    pub(crate) listeners: Vec<Listener>,
    /// At least one; no two with the same name, and none that takes another's clients at equal rank.
    pub(crate) routes: Vec<Route>,
    /// How long things may take.
    pub(crate) timeouts: Timeouts,
    /// For both legs of every connection.
    pub(crate) tcp: TcpOptions,
    /// How long a peer may take none of the bytes that wait for it.
    pub(crate) user_timeout: Duration,
    /// How much there may be.
    pub(crate) limits: Limits,
    /// How bytes are relayed.
    pub(crate) relay: Engine,
    /// Worker threads; `None`: as many as CPUs are allowed to this process.
    pub(crate) workers: Option<usize>,
    /// Whether the file is looked at all the time, and taken when it changes.
    pub(crate) watch: bool,
    /// Where the admin listener is.
    pub(crate) admin: Option<Admin>,
    /// What the process gives up.
    pub(crate) sandbox: Sandbox,
    /// What is logged, and how.
    pub(crate) log: Log,
}

/// Where the admin listener is.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    /// With port 0 the kernel chooses.
    pub(crate) address: SocketAddr,
    /// For whom it answers.
    pub(crate) hosts: Hosts,
    /// How much `/metrics` has about each route.
    pub(crate) per_route: PerRoute,
}

/// An address that clients connect to.
#[derive(Clone, Debug)]
pub(crate) struct Listener {
    /// In logs, metrics and `routes[].listener`.
    pub(crate) name: String,
    /// With port 0 the kernel chooses.
    pub(crate) address: SocketAddr,
    /// How clients are refused here.
    pub(crate) refuse: RejectWith,
    /// Who connects here in place of clients, and names them in PROXY headers; `None`: clients connect themselves.
    pub(crate) balancers: Option<Networks>,
    /// What an address in place of a name is.
    pub(crate) ip_literal: IpLiteral,
    /// From where they may come.
    pub(crate) sources: Sources,
}

/// Which clients go where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Route {
    /// In logs and metrics.
    pub(crate) name: String,
    /// The names it takes; none: every name, and clients that send none.
    pub(crate) patterns: Vec<NamePattern>,
    /// What else a client must satisfy.
    pub(crate) matchers: Matchers,
    /// From where its clients may come.
    pub(crate) sources: Sources,
    /// How many connections it may have; `None`: any number.
    pub(crate) max_connections: Option<u32>,
    /// Where it leads.
    pub(crate) upstream: Settings,
}

impl Route {
    /// A number that another configuration of the same route has, too, in another process of the same version.
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// From accept to the whole hello.
    pub(crate) hello: Duration,
    /// No byte in either direction.
    pub(crate) idle: Duration,
    /// No byte in either direction since one side has closed.
    pub(crate) half_close: Duration,
    /// For open connections at the end, and for those of what a reload removes.
    pub(crate) drain: Duration,
    /// For open connections after an upgrade, in the old process.
    pub(crate) upgrade_drain: Duration,
    /// From the signal to stop, when readiness goes, to the last accept.
    pub(crate) shutdown_delay: Duration,
}

/// How much there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Open connections; `None`: as many as descriptors allow.
    pub(crate) connections: Option<usize>,
    /// Raw bytes of a hello.
    pub(crate) hello_bytes: usize,
    /// Bytes that may be held for peers that do not take them, of all connections together; `None`: as memory allows.
    pub(crate) buffer_bytes: Option<usize>,
    /// What one source may have.
    pub(crate) source: SourceLimits,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    /// Text or JSON.
    pub(crate) format: LogFormat,
    /// The least that is logged.
    pub(crate) level: tracing::Level,
    /// Refusals with the same outcome that are logged per second; 0: all.
    pub(crate) refusals_per_second: u32,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, level: tracing::Level::INFO, refusals_per_second: 50 }
    }
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One object per line.
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

/// A position in the file, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The line.
    pub(crate) line: usize,
    /// The column, in characters.
    pub(crate) column: usize,
}

/// Why a configuration is refused.
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
        // It repeats what is in the file.
        f.write_str(&visible(&self.message))
    }
}

impl Config {
    /// Reads a file, or standard input.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::of_file(path, &read(path)?)
    }

    /// Reads what has been [`read`] from this file.
    pub(crate) fn of_file(path: &Path, bytes: &[u8]) -> Result<Self, ConfigError> {
        let directory = path.parent().unwrap_or(Path::new(""));
        Self::parse(bytes, directory).map_err(|YamlError { position, message }| ConfigError {
            file: Some(input::name_of(path).into()),
            position,
            message,
        })
    }

    /// Reads the contents of a file. The files that it names are looked for in the current directory.
    pub(crate) fn from_yaml(bytes: &[u8]) -> Result<Self, ConfigError> {
        Self::parse(bytes, Path::new("")).map_err(|error| ConfigError {
            file: None,
            position: error.position,
            message: error.message,
        })
    }

    /// What `snigate run` is given without a file: listeners, routes by name, and where all others go.
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
            allow: None,
            deny: None,
            max_connections: None,
            upstream: Short(raw::Upstream::of(vec![Text(endpoint)])),
        };
        let routes = routes.into_iter().map(|(sni, endpoint)| route(Some(sni), endpoint));
        let raw = raw::Config {
            listen: raw::Listen(listen),
            refuse: None,
            routes: routes.chain(default.map(|endpoint| route(None, endpoint))).collect(),
            timeouts: raw::Timeouts::default(),
            tcp: raw::Tcp::default(),
            limits: raw::Limits::default(),
            relay: None,
            workers: None,
            watch: false,
            admin: None,
            sandbox: None,
            log: raw::Log::default(),
        };
        build::config(raw, Path::new("")).map_err(|wrong| ConfigError {
            file: None,
            position: None,
            message: wrong.message,
        })
    }

    fn parse(bytes: &[u8], directory: &Path) -> Result<Self, YamlError> {
        let raw = yaml::parse(bytes)?;
        let with_digest = |config| Self { digest: Some(input::digest(bytes)), ..config };
        build::config(raw, directory).map(with_digest).map_err(|wrong| {
            let text = yaml::decode(bytes).unwrap_or_default();
            let locate = |path: &str| yaml::locate(text, &Place::value(path));
            let first = wrong.first.and_then(|path| locate(&path));
            let first = first.map_or_else(String::new, |first| format!(" (line {})", first.line));
            YamlError { position: locate(&wrong.path), message: format!("{}: {}{first}", wrong.path, wrong.message) }
        })
    }
}

/// The content of a configuration file, or of standard input.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    input::read_regular(path).map_err(|error| ConfigError {
        file: Some(input::name_of(path).into()),
        position: None,
        message: format!("cannot read the configuration: {error}"),
    })
}
