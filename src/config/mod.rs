//! What the operator wrote, as the types that the rooms work with. A configuration that exists is a valid one.

mod raw;
mod text;
mod yaml;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::text::{OneOrMany, Short, Text};
use self::yaml::{Place, YamlError};
use crate::client_hello::DEFAULT_LIMIT;
use crate::name::NamePattern;
use crate::refusal::Refuse;
use crate::route::{Matchers, RouteTable};
use crate::tcp::TcpOptions;
use crate::upstream::{ConnectBudget, Endpoint};

/// Room for 100,000 routes.
const MAX_FILE_SIZE: u64 = 32 * 1024 * 1024;

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one; no two with the same name or address.
    pub listeners: Vec<Listener>,
    /// At least one; no two with the same name, and none that takes another's clients at equal rank.
    pub routes: Vec<Route>,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// For both legs of every connection.
    pub tcp: TcpOptions,
    /// How much there may be.
    pub limits: Limits,
    /// Worker threads; `None`: as many as CPUs are allowed to this process.
    pub workers: Option<usize>,
    /// Where the admin listener is.
    pub admin: Option<SocketAddr>,
    /// What is logged, and how.
    pub log: Log,
}

/// An address that clients connect to.
#[derive(Clone, Debug)]
pub struct Listener {
    /// In logs, metrics and `routes[].listener`.
    pub name: String,
    /// With port 0 the kernel chooses.
    pub address: SocketAddr,
    /// How clients are refused here.
    pub refuse: Refuse,
}

/// Which clients go where.
#[derive(Clone, Debug)]
pub struct Route {
    /// In logs and metrics.
    pub name: String,
    /// The names it takes; none: every name, and clients that send none.
    pub patterns: Vec<NamePattern>,
    /// What else a client must satisfy.
    pub matchers: Matchers,
    /// At least one.
    pub endpoints: Vec<Endpoint>,
    /// How long reaching one may take.
    pub connect: ConnectBudget,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// From accept to the whole hello.
    pub hello: Duration,
    /// No byte in either direction.
    pub idle: Duration,
    /// No byte in either direction since one side has closed.
    pub half_close: Duration,
    /// For open connections at the end.
    pub drain: Duration,
}

/// How much there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; `None`: as many as descriptors allow.
    pub connections: Option<usize>,
    /// Raw bytes of a hello.
    pub hello_bytes: usize,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// The least that is logged.
    pub level: tracing::Level,
    /// Refusals with the same outcome that are logged per second; 0: all.
    pub refusals_per_second: u32,
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// A position in the file, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

/// Why a configuration is refused.
#[derive(Debug)]
pub struct ConfigError {
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
        f.write_str(&self.message)
    }
}

impl Config {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let in_file = |error: YamlError| ConfigError {
            file: Some(path.to_owned()),
            position: error.position,
            message: error.message,
        };
        let bytes = read(path).map_err(|message| in_file(YamlError { position: None, message }))?;
        Self::parse(&bytes).map_err(in_file)
    }

    /// Reads the contents of a file.
    pub fn from_yaml(bytes: &[u8]) -> Result<Self, ConfigError> {
        Self::parse(bytes).map_err(|error| ConfigError { file: None, position: error.position, message: error.message })
    }

    /// What `snigate run` is given without a file: listeners, routes by name, and where all others go.
    pub fn from_arguments(
        listen: Vec<SocketAddr>,
        routes: Vec<(NamePattern, Endpoint)>,
        default: Option<Endpoint>,
    ) -> Result<Self, ConfigError> {
        let listen = listen
            .into_iter()
            .map(|address| Short(raw::Listener { name: None, address: Text(address), refuse: None }))
            .collect();
        let route = |sni: Option<NamePattern>, endpoint| raw::Route {
            name: None,
            sni: sni.map(|sni| OneOrMany(vec![Text(sni)])),
            alpn: None,
            listener: None,
            upstream: Short(raw::Upstream {
                endpoints: OneOrMany(vec![Text(endpoint)]),
                connect: raw::Connect::default(),
            }),
        };
        let routes = routes.into_iter().map(|(sni, endpoint)| route(Some(sni), endpoint));
        let raw = raw::Config {
            listen: raw::Listen(listen),
            refuse: None,
            routes: routes.chain(default.map(|endpoint| route(None, endpoint))).collect(),
            timeouts: raw::Timeouts::default(),
            tcp: raw::Tcp::default(),
            limits: raw::Limits::default(),
            workers: None,
            admin: None,
            log: raw::Log::default(),
        };
        Self::build(raw).map_err(|wrong| ConfigError { file: None, position: None, message: wrong.message })
    }

    fn parse(bytes: &[u8]) -> Result<Self, YamlError> {
        let raw = yaml::parse(bytes)?;
        Self::build(raw).map_err(|wrong| {
            let text = yaml::decode(bytes).unwrap_or_default();
            let locate = |path: &str| yaml::locate(text, &Place::value(path));
            let first = wrong.first.and_then(|path| locate(&path));
            let first = first.map_or_else(String::new, |first| format!(" (line {})", first.line));
            YamlError { position: locate(&wrong.path), message: format!("{}: {}{first}", wrong.path, wrong.message) }
        })
    }

    fn build(raw: raw::Config) -> Result<Self, Wrong> {
        let raw::Config { listen, refuse, routes, timeouts, tcp, limits, workers, admin, log } = raw;
        let listeners = build_listeners(listen.0, refuse)?;
        let routes = build_routes(routes, &listeners)?;
        Ok(Self {
            routes,
            timeouts: build_timeouts(timeouts),
            tcp: build_tcp(tcp),
            limits: build_limits(limits),
            workers: workers.and_then(|workers| workers.0.0),
            admin: admin.map(|admin| build_admin(admin.0, &listeners)).transpose()?,
            log: build_log(log),
            listeners,
        })
    }
}

/// Reads a regular file of bounded size.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("cannot read the configuration: {error}");
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() {
        return Err("cannot read the configuration: not a regular file".into());
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_FILE_SIZE + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    if bytes.len() as u64 > MAX_FILE_SIZE {
        return Err(format!("the configuration is larger than {} MiB", MAX_FILE_SIZE >> 20));
    }
    Ok(bytes)
}

/// What is wrong with a well-formed file.
struct Wrong {
    path: String,
    message: String,
    /// The path of the other value, where two do not go together.
    first: Option<String>,
}

impl Wrong {
    fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), first: None }
    }

    fn with(path: impl Into<String>, message: impl Into<String>, first: impl Into<String>) -> Self {
        Self { first: Some(first.into()), ..Self::at(path, message) }
    }
}

fn build_listeners(listen: Vec<Short<raw::Listener>>, default: Option<raw::Refuse>) -> Result<Vec<Listener>, Wrong> {
    if listen.is_empty() {
        return Err(Wrong::at("listen", "an empty list; expected at least one address such as 0.0.0.0:6443"));
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for (number, Short(listener)) in listen.into_iter().enumerate() {
        let raw::Listener { name, address: Text(address), refuse } = listener;
        let name = name.map_or_else(|| address.to_string(), |name| name.0.0);
        let path = format!("listen[{number}]");
        if let Some(other) = listeners.iter().position(|other| other.name == name) {
            return Err(Wrong::with(
                path,
                format!("the name `{name}` is taken by listen[{other}]"),
                format!("listen[{other}]"),
            ));
        }
        let is_taken = |other: &Listener| address.port() != 0 && other.address == address;
        if let Some(other) = listeners.iter().position(is_taken) {
            return Err(Wrong::with(
                path,
                format!("{address} is taken by listen[{other}]"),
                format!("listen[{other}]"),
            ));
        }
        let refuse = match refuse.or(default) {
            None | Some(raw::Refuse::Alert) => Refuse::Alert,
            Some(raw::Refuse::Close) => Refuse::Close,
            Some(raw::Refuse::Reset) => Refuse::Reset,
        };
        listeners.push(Listener { name, address, refuse });
    }
    Ok(listeners)
}

fn build_routes(raw_routes: Vec<raw::Route>, listeners: &[Listener]) -> Result<Vec<Route>, Wrong> {
    if raw_routes.is_empty() {
        return Err(Wrong::at("routes", "an empty list; expected at least one route with `sni` and `upstream`"));
    }
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut table = RouteTable::default();
    let mut routes = Vec::new();
    for (number, raw) in raw_routes.into_iter().enumerate() {
        let path = format!("routes[{number}]");
        let route = build_route(raw, &path, listeners)?;
        if let Some(other) = names.insert(route.name.clone(), number) {
            let message = format!("the name `{}` is taken by routes[{other}]", route.name);
            return Err(Wrong::with(path, message, format!("routes[{other}]")));
        }
        table.insert(&route.patterns, &route.matchers, &number).map_err(|conflict| {
            let claimed = conflict.pattern.map_or_else(|| "clients without a name".into(), |name| format!("`{name}`"));
            let message = if conflict.earlier == number {
                return Wrong::at(format!("{path}.sni"), format!("{claimed} stands twice"));
            } else {
                format!("{claimed} would match routes[{}] as well, and neither is more specific", conflict.earlier)
            };
            Wrong::with(&path, message, format!("routes[{}]", conflict.earlier))
        })?;
        routes.push(route);
    }
    Ok(routes)
}

fn build_route(raw: raw::Route, path: &str, listeners: &[Listener]) -> Result<Route, Wrong> {
    let raw::Route { name, sni, alpn, listener, upstream: Short(upstream) } = raw;
    let raw::Upstream { endpoints, connect: raw::Connect { timeout, per_try } } = upstream;
    let patterns: Vec<NamePattern> = sni.map_or_else(Vec::new, |sni| sni.0.into_iter().map(|text| text.0).collect());
    let name = match (name, patterns.first()) {
        (Some(Text(name)), _) => name.0,
        (None, Some(first)) => first.to_string(),
        (None, None) => "default".into(),
    };

    let number_of = |Text(wanted): Text<text::Label>| {
        listeners.iter().position(|listener| listener.name == wanted.0).ok_or_else(|| {
            let known: Vec<&str> = listeners.iter().map(|listener| &*listener.name).collect();
            let message = format!("no listener is named `{}`; expected one of {}", wanted.0, known.join(", "));
            Wrong::at(format!("{path}.listener"), message)
        })
    };
    let matchers = Matchers {
        alpn: alpn.map(|alpn| alpn.0.into_iter().map(|Text(protocol)| protocol.0.into_bytes().into()).collect()),
        listeners: listener.map(|names| names.0.into_iter().map(number_of).collect()).transpose()?,
    };

    let endpoints: Vec<Endpoint> = endpoints.0.into_iter().map(|endpoint| endpoint.0).collect();
    for endpoint in &endpoints {
        let is_reached_by = |listener: &&Listener| endpoint.address().is_some_and(|to| leads_to(to, listener.address));
        if let Some(listener) = listeners.iter().find(is_reached_by) {
            let message =
                format!("{endpoint} is the listener `{}` itself: connections would go in circles", listener.name);
            return Err(Wrong::at(format!("{path}.upstream"), message));
        }
    }
    let timeout = timeout.map_or(Duration::from_secs(10), |timeout| timeout.0.0);
    let per_try = per_try.map_or(Duration::from_secs(3), |per_try| per_try.0.0);
    Ok(Route { name, patterns, matchers, endpoints, connect: ConnectBudget { timeout, per_try } })
}

/// Whether a connection to `address` would arrive at the listener, as far as can be told from the two.
fn leads_to(address: SocketAddr, listener: SocketAddr) -> bool {
    let (ip, listening) = (address.ip().to_canonical(), listener.ip().to_canonical());
    let here = ip.is_loopback() || ip.is_unspecified();
    address.port() == listener.port() && (ip == listening || (listening.is_unspecified() && here))
}

fn build_timeouts(raw: raw::Timeouts) -> Timeouts {
    let raw::Timeouts { hello, idle, half_close, drain } = raw;
    let seconds = Duration::from_secs;
    Timeouts {
        hello: hello.map_or(seconds(10), |hello| hello.0.0),
        idle: idle.map_or(seconds(24 * 3600), |idle| idle.0.0),
        half_close: half_close.map_or(seconds(60), |half_close| half_close.0.0),
        drain: drain.map_or(seconds(25), |drain| drain.0.0),
    }
}

fn build_tcp(raw: raw::Tcp) -> TcpOptions {
    let raw::Tcp { keepalive: raw::Keepalive { idle, interval, count }, user_timeout } = raw;
    TcpOptions {
        keepalive_idle: idle.map_or(Duration::from_secs(30), |idle| idle.0.0),
        keepalive_interval: interval.map_or(Duration::from_secs(5), |interval| interval.0.0),
        keepalive_count: count.map_or(3, |count| count.0.0),
        user_timeout: user_timeout.map_or(Duration::from_secs(15 * 60), |timeout| timeout.0.0),
    }
}

fn build_limits(raw: raw::Limits) -> Limits {
    let raw::Limits { connections, hello_bytes } = raw;
    Limits {
        connections: connections.map(|connections| connections.0.0 as usize),
        hello_bytes: hello_bytes.map_or(DEFAULT_LIMIT, |size| size.0.0),
    }
}

fn build_admin(raw: raw::Admin, listeners: &[Listener]) -> Result<SocketAddr, Wrong> {
    let raw::Admin { address: Text(address), allow_remote } = raw;
    if !allow_remote && !address.ip().to_canonical().is_loopback() {
        let message = format!(
            "{address} can be reached from other machines; expected a loopback address such as 127.0.0.1:9443, or {{address: \"{address}\", allow_remote: true}}"
        );
        return Err(Wrong::at("admin", message));
    }
    let is_taken = |listener: &&Listener| address.port() != 0 && leads_to(address, listener.address);
    match listeners.iter().find(is_taken) {
        Some(listener) => Err(Wrong::at("admin", format!("{address} is taken by the listener `{}`", listener.name))),
        None => Ok(address),
    }
}

fn build_log(raw: raw::Log) -> Log {
    let raw::Log { format, level, refusals_per_second } = raw;
    Log {
        format: match format {
            None | Some(raw::LogFormat::Auto) => LogFormat::Auto,
            Some(raw::LogFormat::Text) => LogFormat::Text,
            Some(raw::LogFormat::Json) => LogFormat::Json,
        },
        level: match level {
            Some(raw::LogLevel::Error) => tracing::Level::ERROR,
            Some(raw::LogLevel::Warn) => tracing::Level::WARN,
            None | Some(raw::LogLevel::Info) => tracing::Level::INFO,
            Some(raw::LogLevel::Debug) => tracing::Level::DEBUG,
            Some(raw::LogLevel::Trace) => tracing::Level::TRACE,
        },
        refusals_per_second: refusals_per_second.map_or(50, |count| count.0.0),
    }
}
