//! Turns the file as written into a valid configuration: fills in defaults and checks values against each other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::documents::{Documents, Included, WrittenRoute};
use super::files::Files;
use super::text::{OneOrMany, Short, Text};
use super::{Admin, Config, FileCounts, Limits, Listener, Log, LogFormat, Route, Timeouts, raw, upstream, values};
use crate::admin::{Hosts, PerRoute};
use crate::client_hello::{DEFAULT_LIMIT, IpLiteral, Ja4};
use crate::connection::accept_proxy::{AcceptProxy, Others};
use crate::connection::admission::{AccessRules, SourceLimits};
use crate::connection::networks::Networks;
use crate::connection::reject::RejectWith;
use crate::listener::{Presence, overlap};
use crate::name::NamePattern;
use crate::process::inputs::Inputs;
use crate::process::sandbox::Sandbox;
use crate::relay::Engine;
use crate::relay::tcp::TcpOptions;
use crate::route::{Matchers, RouteTable};
use crate::telemetry::UNROUTED;

/// An invalid value in a well-formed document.
pub(super) struct InvalidValue {
    pub(super) location: Location,
    pub(super) message: String,
    /// The earlier value that it conflicts with.
    pub(super) conflicts_with: Option<Location>,
}

/// A value of a document.
#[derive(Clone)]
pub(super) struct Location {
    /// The main file is 0.
    pub(super) document: usize,
    pub(super) path: String,
}

impl Location {
    fn in_main_file(path: impl Into<String>) -> Self {
        Self { document: 0, path: path.into() }
    }
}

impl InvalidValue {
    pub(super) fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { location: Location::in_main_file(path), message: message.into(), conflicts_with: None }
    }

    fn conflict(path: impl Into<String>, message: impl Into<String>, earlier: Location) -> Self {
        Self { conflicts_with: Some(earlier), ..Self::at(path, message) }
    }

    pub(super) fn in_document(mut self, document: usize) -> Self {
        self.location.document = document;
        self
    }
}

/// What a configuration is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// It has all that is served.
    Complete,
    /// Listeners and routes of a cluster come in addition.
    Base,
}

/// Builds the configuration from the main file, and from what the files that it includes have.
pub(super) fn config(
    raw: raw::Config,
    scope: Scope,
    included: Included,
    documents: &Documents,
    inputs: &mut Inputs,
) -> Result<Config, InvalidValue> {
    let raw::Config {
        listen,
        refuse,
        routes,
        include,
        timeouts,
        tcp,
        limits,
        relay,
        workers,
        watch,
        upgrade,
        control,
        admin,
        sandbox,
        log,
    } = raw;
    if scope == Scope::Base {
        check_base(watch, &upgrade)?;
    }
    let raw::Tcp { keepalive, user_timeout } = tcp;
    let mut files = Files::new(documents.directory(0), inputs);
    let listeners = match listen {
        None if scope == Scope::Base => Vec::new(),
        None => return Err(InvalidValue::at("", "missing key `listen`")),
        Some(listen) => build_listeners(listen.0, refuse, &mut files)?,
    };
    let routes = match routes {
        None if scope == Scope::Base => included.routes,
        None if include.is_none() => return Err(InvalidValue::at("", "missing key `routes`")),
        None if included.routes.is_empty() => {
            return Err(InvalidValue::at("include", "matches no file, and this file has no `routes`"));
        }
        None => included.routes,
        Some(routes) => [WrittenRoute::all(0, routes)?, included.routes].into_iter().flatten().collect(),
    };
    let routes = build_routes(routes, &listeners, documents, &mut files)?;
    Ok(Config {
        digest: None,
        files: FileCounts { included: documents.included(), networks: files.network_files() },
        unmatched_includes: included.unmatched,
        routes,
        excluded: Vec::new(),
        timeouts: build_timeouts(timeouts),
        tcp: build_tcp_options(&keepalive),
        user_timeout: user_timeout.map_or(Duration::from_secs(15 * 60), |timeout| timeout.0.0),
        limits: build_limits(limits),
        relay: match relay {
            None | Some(raw::Relay::Auto) => Engine::Auto,
            Some(raw::Relay::Copy) => Engine::Copy,
            Some(raw::Relay::Splice) => Engine::Splice,
        },
        workers: workers.and_then(|workers| workers.0.0),
        watch,
        upgrade_socket: upgrade.socket.map(|Text(values::SocketPath(path))| path),
        control: control.map(|Text(values::SocketPath(path))| path),
        admin: admin.map(|admin| build_admin(admin.0, &listeners)).transpose()?,
        sandbox: match sandbox {
            None | Some(raw::Sandbox::Auto) => Sandbox::Auto,
            Some(raw::Sandbox::Require) => Sandbox::Require,
            Some(raw::Sandbox::Off) => Sandbox::Off,
        },
        log: build_log(log),
        listeners,
    })
}

/// Rejects what has no effect beside a cluster.
fn check_base(watch: bool, upgrade: &raw::Upgrade) -> Result<(), InvalidValue> {
    let raw::Upgrade { socket } = upgrade;
    let invalid = |key, instead| InvalidValue::at(key, format!("has no effect in `snigate gateway`; {instead}"));
    if watch {
        return Err(invalid("watch", "use SIGHUP or `snigate ctl reload`"));
    }
    if socket.is_some() {
        return Err(invalid("upgrade.socket", "to upgrade, replace the Pod"));
    }
    Ok(())
}

fn build_listeners(
    listen: Vec<Short<raw::Listener>>,
    default: Option<raw::RejectWith>,
    files: &mut Files<'_>,
) -> Result<Vec<Listener>, InvalidValue> {
    if listen.is_empty() {
        return Err(InvalidValue::at("listen", "empty list; expected at least one address such as 0.0.0.0:6443"));
    }
    let mut listeners: Vec<Listener> = Vec::new();
    for (index, Short(listener)) in listen.into_iter().enumerate() {
        let raw::Listener {
            name,
            address: Text(address),
            refuse,
            allow,
            deny,
            deny_ja4,
            accept_proxy,
            freebind,
            ip_literal_sni,
        } = listener;
        let is_named = name.is_some();
        let name = name.map_or_else(|| address.to_string(), |name| name.0.0);
        let path = format!("listen[{index}]");
        if let Some(other) = listeners.iter().position(|other| overlap(other.address, address)) {
            return Err(InvalidValue::conflict(
                path,
                format!("{address} is already used by listen[{other}]"),
                Location::in_main_file(format!("listen[{other}]")),
            ));
        }
        if let Some(other) = listeners.iter().position(|other| other.name == name) {
            let other = Location::in_main_file(format!("listen[{other}]"));
            let message = duplicate_name(&name, is_named, "from its address", &other.path);
            return Err(InvalidValue::conflict(path, message, other));
        }
        let refuse = match refuse.or(default) {
            None | Some(raw::RejectWith::Alert) => RejectWith::Alert,
            Some(raw::RejectWith::Close) => RejectWith::Close,
            Some(raw::RejectWith::Reset) => RejectWith::Reset,
        };
        let accept_proxy = accept_proxy.map(|raw::AcceptProxy { from, others }| {
            Ok(AcceptProxy {
                from: build_networks(from, &format!("{path}.accept_proxy.from"), files)?,
                others: match others {
                    None | Some(raw::Others::Refuse) => Others::Refuse,
                    Some(raw::Others::Direct) => Others::Direct,
                },
            })
        });
        let accept_proxy = accept_proxy.transpose()?;
        let presence = if freebind { Presence::Expected } else { Presence::Required };
        let ip_literal = match ip_literal_sni {
            None | Some(raw::IpLiteralSni::None) => IpLiteral::NoName,
            Some(raw::IpLiteralSni::Refuse) => IpLiteral::Refused,
        };
        let sources = build_sources(allow, deny, deny_ja4, &path, files)?;
        listeners.push(Listener {
            name,
            address,
            presence,
            is_optional: false,
            refuse,
            accept_proxy,
            ip_literal,
            sources,
        });
    }
    Ok(listeners)
}

/// A name that is not in the file is explained by its `origin`.
fn duplicate_name(name: &str, is_named: bool, origin: &str, other: &str) -> String {
    if is_named {
        format!("duplicate name `{name}`, already used by {other}")
    } else {
        format!("duplicate name `{name}` ({origin}), already used by {other}; set `name` on one of them")
    }
}

fn build_routes<'d>(
    written: Vec<WrittenRoute>,
    listeners: &[Listener],
    documents: &'d Documents,
    files: &mut Files<'d>,
) -> Result<Vec<Route>, InvalidValue> {
    let locations: Vec<Location> = written.iter().map(|written| written.location.clone()).collect();
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut table = RouteTable::default();
    let mut routes = Vec::new();
    for (index, WrittenRoute { location, route: raw }) in written.into_iter().enumerate() {
        files.directory = documents.directory(location.document);
        let in_document = |invalid: InvalidValue| invalid.in_document(location.document);
        let is_named = raw.name.is_some();
        let route = build_route(raw, &location.path, listeners, files).map_err(in_document)?;
        table.insert(&route.patterns, &route.matchers, &index).map_err(|conflict| {
            let earlier = &locations[conflict.earlier];
            let other = documents.name_of(earlier, &location);
            let matched = match conflict.pattern {
                Some(name) if conflict.earlier == index => {
                    let path = format!("{}.sni", location.path);
                    return in_document(InvalidValue::at(path, format!("duplicate name `{name}`")));
                }
                Some(name) => format!("`{name}` is already matched by {other}"),
                None => format!("{other} is already a catch-all route"),
            };
            let message = format!("{matched}, and neither route is more specific");
            in_document(InvalidValue::conflict(&location.path, message, earlier.clone()))
        })?;
        if let Some(other) = names.insert(route.name.clone(), index) {
            let origin =
                if route.patterns.is_empty() { "the default of a catch-all route" } else { "from its first `sni`" };
            let other = &locations[other];
            let message = duplicate_name(&route.name, is_named, origin, &documents.name_of(other, &location));
            return Err(in_document(InvalidValue::conflict(&location.path, message, other.clone())));
        }
        routes.push(route);
    }
    Ok(routes)
}

fn build_route(
    raw: raw::Route,
    path: &str,
    listeners: &[Listener],
    files: &mut Files<'_>,
) -> Result<Route, InvalidValue> {
    let raw::Route {
        name,
        sni,
        alpn,
        listener,
        client,
        destination,
        proxy_tlv,
        allow,
        deny,
        deny_ja4,
        max_connections,
        new_connections,
        upstream: Short(upstream),
    } = raw;
    let patterns: Vec<NamePattern> = sni.map_or_else(Vec::new, |sni| sni.0.into_iter().map(|text| text.0).collect());
    let name = match (name, patterns.first()) {
        (Some(Text(name)), _) => name.0,
        (None, Some(first)) => first.to_string(),
        (None, None) => "default".into(),
    };
    if name == UNROUTED {
        let message = format!("`{UNROUTED}` is reserved for connections without a route; set `name` on this route");
        return Err(InvalidValue::at(format!("{path}.sni"), message));
    }

    let index_of = |Text(wanted): Text<values::Label>| {
        listeners.iter().position(|listener| listener.name == wanted.0).ok_or_else(|| {
            let known: Vec<&str> = listeners.iter().map(|listener| &*listener.name).collect();
            let message = format!("unknown listener `{}`; expected one of {}", wanted.0, known.join(", "));
            InvalidValue::at(format!("{path}.listener"), message)
        })
    };
    let networks = |list: OneOrMany<Text<values::Network>>| {
        list.0.into_iter().map(|Text(values::Network(network))| network).collect()
    };
    let matchers = Matchers {
        proxy_tlvs: proxy_tlv.map_or_else(Box::default, |tlvs| tlvs.0.into_iter().collect()),
        destinations: destination.map(networks),
        clients: client.map(networks),
        alpn: alpn.map(|alpn| alpn.0.into_iter().map(|Text(protocol)| protocol.0.into_bytes().into()).collect()),
        listeners: listener.map(|names| names.0.into_iter().map(index_of).collect()).transpose()?,
    };

    check_matchers(&matchers, path, listeners)?;

    let upstream = upstream::build(upstream, &format!("{path}.upstream"), &patterns, listeners, files)?;
    let sources = build_sources(allow, deny, deny_ja4, path, files)?;
    let max_connections = max_connections.map(|count| count.0.0);
    let new_connections = new_connections.map(|rate| rate.0.0);
    let by_listener = Vec::new();
    Ok(Route { name, patterns, matchers, by_listener, sources, max_connections, new_connections, upstream })
}

/// Maximum number of pairs of a `destination` and a `client` network of a route: each is an entry in the route table.
const MAX_PAIRS: usize = 65_536;

fn check_matchers(matchers: &Matchers, path: &str, listeners: &[Listener]) -> Result<(), InvalidValue> {
    let Matchers { proxy_tlvs, destinations, clients, listeners: _, alpn: _ } = matchers;
    let mut own = listeners.iter().enumerate().filter(|(index, _)| matchers.listener_holds(*index));
    if !proxy_tlvs.is_empty() && own.all(|(_, listener)| listener.accept_proxy.is_none()) {
        let message = "never matches: no listener of this route accepts PROXY headers; set `accept_proxy` on one";
        return Err(InvalidValue::at(format!("{path}.proxy_tlv"), message));
    }
    let count = |networks: &Option<Box<[_]>>| networks.as_ref().map_or(1, |networks| networks.len());
    for (key, networks) in [("destination", destinations), ("client", clients)] {
        let networks = networks.as_deref().unwrap_or_default();
        let mut seen = HashSet::new();
        if let Some(duplicate) = networks.iter().find(|network| !seen.insert(**network)) {
            return Err(InvalidValue::at(format!("{path}.{key}"), format!("duplicate network {duplicate}")));
        }
    }
    let pairs = count(destinations).saturating_mul(count(clients));
    if pairs > MAX_PAIRS {
        let message = format!("{pairs} pairs of `destination` and `client` networks; expected at most {MAX_PAIRS}");
        return Err(InvalidValue::at(format!("{path}.client"), message));
    }
    Ok(())
}

type NetworkList = OneOrMany<Short<raw::NetworkEntry>>;

fn build_sources(
    allow: Option<NetworkList>,
    deny: Option<NetworkList>,
    deny_ja4: Option<OneOrMany<Text<Ja4>>>,
    path: &str,
    files: &mut Files<'_>,
) -> Result<AccessRules, InvalidValue> {
    let mut build = |list: Option<NetworkList>, key| {
        list.map(|list| build_networks(list, &format!("{path}.{key}"), files)).transpose()
    };
    let fingerprints = deny_ja4.into_iter().flat_map(|list| list.0).map(|Text(fingerprint)| fingerprint);
    Ok(AccessRules { allow: build(allow, "allow")?, deny: build(deny, "deny")?, deny_ja4: fingerprints.collect() })
}

fn build_networks(list: NetworkList, path: &str, files: &mut Files<'_>) -> Result<Networks, InvalidValue> {
    let (mut own, mut from_files) = (Vec::new(), Vec::new());
    for Short(entry) in list.0 {
        match entry {
            raw::NetworkEntry::Network(values::Network(network)) => own.push(network),
            raw::NetworkEntry::File(values::FilePath(file)) => {
                from_files.push(files.networks(&file).map_err(|reason| InvalidValue::at(path, reason))?);
            }
        }
    }
    let own = (!own.is_empty()).then(|| Arc::new(own.into_iter().collect()));
    Ok(own.into_iter().chain(from_files).collect())
}

fn build_timeouts(raw: raw::Timeouts) -> Timeouts {
    let raw::Timeouts { hello, idle, half_close, drain, upgrade_drain, shutdown_delay } = raw;
    let seconds = Duration::from_secs;
    Timeouts {
        hello: hello.map_or(seconds(10), |hello| hello.0.0),
        idle: idle.map_or(seconds(24 * 3600), |idle| idle.0.0),
        half_close: half_close.map_or(seconds(60), |half_close| half_close.0.0),
        drain: drain.map_or(seconds(25), |drain| drain.0.0),
        upgrade_drain: upgrade_drain.map_or(seconds(24 * 3600), |drain| drain.0.0),
        shutdown_delay: shutdown_delay.map_or(Duration::ZERO, |delay| delay.0.0),
    }
}

fn build_tcp_options(raw: &raw::Keepalive) -> TcpOptions {
    let raw::Keepalive { idle, interval, count } = raw;
    let default = TcpOptions::default();
    TcpOptions {
        keepalive_idle: idle.as_ref().map_or(default.keepalive_idle, |idle| idle.0.0),
        keepalive_interval: interval.as_ref().map_or(default.keepalive_interval, |interval| interval.0.0),
        keepalive_count: count.as_ref().map_or(default.keepalive_count, |count| count.0.0),
    }
}

fn build_limits(raw: raw::Limits) -> Limits {
    let raw::Limits { connections, hello_bytes, buffer_bytes, per_source, new_per_source, park_after } = raw;
    Limits {
        connections: connections.map(|connections| connections.0.0 as usize),
        hello_bytes: hello_bytes.map_or(DEFAULT_LIMIT, |size| size.0.0),
        buffer_bytes: buffer_bytes.map(|size| size.0.0),
        source: SourceLimits {
            concurrent: per_source.map(|count| count.0.0),
            new: new_per_source.map(|rate| rate.0.0),
        },
        park_after: park_after.map_or(Some(Duration::from_secs(30)), |after| after.0.0),
    }
}

fn build_admin(raw: raw::Admin, listeners: &[Listener]) -> Result<Admin, InvalidValue> {
    let raw::Admin { address: Text(values::AdminAddress(address)), allow_remote, hosts, metrics } = raw;
    let raw::Metrics { per_route } = metrics;
    let per_route = match per_route {
        None | Some(raw::PerRoute::Full) => PerRoute::Full,
        Some(raw::PerRoute::Totals) => PerRoute::Totals,
        Some(raw::PerRoute::Off) => PerRoute::Off,
    };
    let hosts = Hosts(hosts.map_or_else(Vec::new, |hosts| hosts.0.into_iter().map(|Text(host)| host).collect()));
    if !allow_remote && !address.ip().to_canonical().is_loopback() {
        let message = format!(
            "{address} is reachable from other machines; expected a loopback address such as 127.0.0.1:9443, or {{address: \"{address}\", allow_remote: true}}"
        );
        return Err(InvalidValue::at("admin", message));
    }
    match listeners.iter().find(|listener| overlap(address, listener.address)) {
        Some(listener) => {
            Err(InvalidValue::at("admin", format!("{address} is already used by the listener `{}`", listener.name)))
        }
        None => Ok(Admin { address, hosts, per_route }),
    }
}

fn build_log(raw: raw::Log) -> Log {
    let raw::Log { format, level, refusals_per_second, progress } = raw;
    let default = Log::default();
    Log {
        is_format_option: false,
        format: match format {
            None => default.format,
            Some(raw::LogFormat::Auto) => LogFormat::Auto,
            Some(raw::LogFormat::Text) => LogFormat::Text,
            Some(raw::LogFormat::Json) => LogFormat::Json,
        },
        level: match level {
            Some(raw::LogLevel::Error) => tracing::Level::ERROR,
            Some(raw::LogLevel::Warn) => tracing::Level::WARN,
            None => default.level,
            Some(raw::LogLevel::Info) => tracing::Level::INFO,
            Some(raw::LogLevel::Debug) => tracing::Level::DEBUG,
            Some(raw::LogLevel::Trace) => tracing::Level::TRACE,
        },
        refusals_per_second: refusals_per_second.map_or(default.refusals_per_second, |count| count.0.0),
        progress: progress.map(|interval| interval.0.0),
    }
}
