//! `snigate check`

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::admin::{Hosts, PerRoute};
use crate::client_hello::IpLiteral;
use crate::config::{Admin, Config, FileCounts, Listener, Route};
use crate::connection::admission::SourceLimits;
use crate::connection::reject::RejectWith;
use crate::listener::Presence;
use crate::proxy_protocol::Outgoing;
use crate::relay::Engine;
use crate::route::{Matchers, Names};
use crate::text::input;
use crate::text::units::{size, span};
use crate::upstream::health::{CaFile, EXPECTED};
use crate::upstream::{
    Backend, HealthCheck, HttpCheck, MaxAge, OnRemove, Source, Split, Thresholds, TlsCheck, UpstreamSettings,
};
use anyhow::Context;

#[cfg(feature = "gateway")]
use super::main::EXIT_CONFIG;
#[cfg(feature = "gateway")]
use super::output::printable_lines;
use super::routing::{conditions, limits, tlv_text};
use crate::cli::Check;
#[cfg(feature = "gateway")]
use crate::gateway::offline::Offline;

pub(super) fn run(options: &Check) -> anyhow::Result<ExitCode> {
    let file = options.file.as_ref().or(options.config.as_ref()).context("expected FILE or --config")?;
    #[cfg(feature = "gateway")]
    if let Some((objects, config)) = super::manifests::find(file, &options.in_files)? {
        return check_objects(file, &objects, &config);
    }
    let config = Config::load(file)?;
    std::io::stdout().write_all(describe(file, &config)?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Objects of Kubernetes: what they amount to, and what is wrong with them.
#[cfg(feature = "gateway")]
fn check_objects(file: &Path, objects: &Offline, config: &Config) -> anyhow::Result<ExitCode> {
    let problems = objects.problems();
    let mut text = format!(
        "{}: {}.\n",
        input::name_of(file),
        match problems.len() {
            0 => "the objects are valid".into(),
            count => crate::text::units::counted(count, "problem"),
        }
    );
    for problem in &problems {
        writeln!(text, "problem    {problem}")?;
    }
    for object in &objects.assumed {
        writeln!(text, "assumed    {object}")?;
    }
    for (kind, count) in &objects.ignored {
        writeln!(text, "ignored    {kind}: {count}")?;
    }
    text.push_str(&describe_routing(config)?);
    std::io::stdout().write_all(printable_lines(&text).as_bytes())?;
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CONFIG) })
}

fn describe(file: &Path, config: &Config) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "{} is valid.", input::name_of(file))?;
    let FileCounts { included, networks } = config.files;
    if included + networks > 0 {
        writeln!(
            text,
            "files      {}: this one, {included} included, {networks} with networks",
            1 + included + networks
        )?;
    }
    for pattern in &config.unmatched_includes {
        writeln!(text, "warning    include: {pattern} matches no file")?;
    }
    text.push_str(&describe_routing(config)?);
    let timeouts = &config.timeouts;
    writeln!(
        text,
        "\ntimeouts   hello {}, idle {}, half_close {}, drain {}, upgrade_drain {}, shutdown_delay {}",
        span(timeouts.hello),
        span(timeouts.idle),
        span(timeouts.half_close),
        span(timeouts.drain),
        span(timeouts.upgrade_drain),
        span(timeouts.shutdown_delay)
    )?;
    let tcp = &config.tcp;
    writeln!(
        text,
        "tcp        keepalive idle {}, interval {}, count {}, user_timeout {}",
        span(tcp.keepalive_idle),
        span(tcp.keepalive_interval),
        tcp.keepalive_count,
        span(config.user_timeout)
    )?;
    let connections = config.limits.connections.map_or("auto (file descriptors)".into(), |limit| limit.to_string());
    let buffers = config.limits.buffer_bytes.map_or("auto (memory)".into(), size);
    let SourceLimits { concurrent, new } = config.limits.source;
    let concurrent = concurrent.map_or("unlimited".into(), |limit| limit.to_string());
    let new = new.map_or("unlimited".into(), |rate| rate.to_string());
    writeln!(
        text,
        "limits     connections {connections}, per_source {concurrent}, new_per_source {new}, hello_bytes {}, buffer_bytes {buffers}, park_after {}",
        size(config.limits.hello_bytes),
        config.limits.park_after.map_or("never".into(), span)
    )?;
    let log = &config.log;
    let level = log.level.as_str().to_lowercase();
    let progress = log.progress.map_or("never".into(), span);
    writeln!(
        text,
        "log        format {}, level {level}, refusals_per_second {}, progress {progress}",
        log.format, log.refusals_per_second
    )?;
    write_process(&mut text, config)?;
    Ok(text)
}

/// The listeners and routes.
fn describe_routing(config: &Config) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "\nlisteners")?;
    for listener in &config.listeners {
        let Listener { name, address, presence, is_optional, refuse, accept_proxy, ip_literal, sources } = listener;
        let refuse = match refuse {
            RejectWith::Alert => "TLS alert",
            RejectWith::Close => "close",
            RejectWith::Reset => "reset",
        };
        let name = if *name == address.to_string() { String::new() } else { format!("{name} on ") };
        let proxy = accept_proxy.as_ref().map_or(String::new(), |accept| format!("; {accept}"));
        let presence = match presence {
            Presence::Required => "",
            Presence::Expected => "; freebind",
        };
        let optional = if *is_optional { "; the others serve without it" } else { "" };
        let literal = match ip_literal {
            IpLiteral::NoName => "",
            IpLiteral::Refused => "; IP addresses in SNI are refused",
        };
        writeln!(text, "  {name}{address}: {sources}; refuse with {refuse}{proxy}{literal}{presence}{optional}")?;
    }

    writeln!(text, "\nroutes")?;
    for route in &config.routes {
        writeln!(text, "  {}", route.name)?;
        writeln!(text, "    matches    {}", matches(route, config))?;
        let access = [route.sources.to_string()].into_iter().chain(limits(route)).collect::<Vec<_>>().join("; ");
        writeln!(text, "    access     {access}")?;
        write_upstream(&mut text, &route.upstream)?;
    }
    if !config.excluded.is_empty() {
        writeln!(text, "\nnot routed")?;
    }
    for excluded in &config.excluded {
        writeln!(text, "  {}", names_at(excluded, config))?;
    }
    Ok(text)
}

fn write_process(text: &mut String, config: &Config) -> std::fmt::Result {
    let engine = match config.relay {
        Engine::Auto => "auto",
        Engine::Copy => "copy",
        Engine::Splice => "splice",
    };
    writeln!(text, "relay      {engine}")?;
    writeln!(text, "workers    {}", config.workers.map_or("auto".into(), |workers| workers.to_string()))?;
    writeln!(text, "sandbox    {}", config.sandbox.label())?;
    writeln!(text, "watch      {}", config.watch)?;
    let path = |path: &Option<PathBuf>| path.as_ref().map_or("none".into(), |path| path.display().to_string());
    writeln!(text, "upgrade    socket {}", path(&config.upgrade_socket))?;
    writeln!(text, "control    {}", path(&config.control))?;
    let admin = config.admin.as_ref().map_or("none".into(), |Admin { address, hosts: Hosts(hosts), per_route }| {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let hosts = [&["IP addresses".into(), "localhost".into()], &hosts[..]].concat();
        let metrics = match per_route {
            PerRoute::Full => "",
            PerRoute::Totals => "; metrics per route: totals",
            PerRoute::Off => "; metrics per route: off",
        };
        format!("{address}, hosts {}{metrics}", hosts.join(", "))
    });
    writeln!(text, "admin      {admin}")
}

/// The shares of backends, by weight.
fn shares(Split(backends): &Split, endpoints: &[String]) -> String {
    let share = |Backend { weight, destination }: &Backend| match destination {
        Ok(index) => format!("{weight} to {}", endpoints[*index]),
        Err(reason) => format!("{weight} refused ({reason})"),
    };
    backends.iter().map(share).collect::<Vec<_>>().join(", ")
}

fn write_upstream(text: &mut String, upstream: &UpstreamSettings) -> std::fmt::Result {
    let UpstreamSettings {
        endpoints,
        split,
        balance,
        budget,
        slow_start,
        dead_grace,
        on_remove,
        resolve_every,
        proxy_protocol,
        source,
        max_age,
        rebalance,
        health_check,
    } = upstream;
    let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    let (timeout, per_try) = (span(budget.timeout), span(budget.per_try));
    let header = proxy_protocol.as_ref().map_or(String::new(), header);
    let source = match source {
        Source::Any => String::new(),
        Source::Client => ", from the client's address".into(),
        Source::Addresses { v4, v6 } => {
            let addresses = v4.iter().map(ToString::to_string).chain(v6.iter().map(ToString::to_string));
            format!(", from {}", addresses.collect::<Vec<_>>().join(" and "))
        }
    };
    writeln!(text, "    routes to  {} (timeout {timeout}, {per_try} per try{source}{header})", endpoints.join(", "))?;
    if let Some(split) = split {
        writeln!(text, "    split      {}", shares(split, &endpoints))?;
    }
    writeln!(text, "    balance    {}, slow_start {}", balance.label(), span(*slow_start))?;
    if let Some(MaxAge { after, jitter }) = max_age {
        writeln!(text, "    max_age    {} and up to {jitter}% more", span(*after))?;
    }
    if let Some(rate) = rebalance {
        writeln!(text, "    rebalance  {rate}")?;
    }
    writeln!(text, "    hostnames re-resolved every {}", span(*resolve_every))?;
    let on_failure = dead_grace
        .map_or("keep its connections".into(), |grace| format!("close its connections after {}", span(grace)));
    writeln!(text, "    on endpoint failure: {on_failure}")?;
    let on_removal = match on_remove {
        OnRemove::Drain => "drain",
        OnRemove::Keep => "keep its connections",
        OnRemove::Cut => "close its connections",
    };
    writeln!(text, "    on removal: {on_removal}")?;
    let Some(HealthCheck { interval, timeout, thresholds, tls, http }) = health_check else {
        return writeln!(text, "    health check: none (passive only)");
    };
    let mut steps = vec!["TCP connect".to_owned()];
    if let Some(TlsCheck { ca_file, verified_name, asked_name: _, client }) = tls {
        let chain = ca_file.as_ref().map_or("not verified".into(), |ca| match ca {
            CaFile::File(file) => format!("CA {}", file.display()),
            CaFile::System => "system CAs".into(),
        });
        let name = verified_name.as_ref().map_or(String::new(), |name| format!(", name {}", name.to_str()));
        let client = if client.is_some() { ", client certificate" } else { "" };
        steps.push(format!("TLS ({chain}{name}{client})"));
    }
    if let Some(HttpCheck { path, token_file, expect, unauthorized_is_alive }) = http {
        let token = if token_file.is_some() { " with token" } else { "" };
        let unauthorized = if *unauthorized_is_alive { "alive" } else { "failed" };
        let expect = if *expect == [EXPECTED] { String::new() } else { format!("expect: {}, ", statuses(expect)) };
        steps.push(format!("GET {path}{token} ({expect}unauthorized: {unauthorized})"));
    }
    let Thresholds { rise, fall, unready } = thresholds;
    let unready = if http.is_some() { format!(", unready {unready}") } else { String::new() };
    writeln!(
        text,
        "    health check: {}, every {}, timeout {}, rise {rise}, fall {fall}{unready}",
        steps.join(", "),
        span(*interval),
        span(*timeout),
    )
}

fn header(Outgoing { version, tlvs, pass }: &Outgoing) -> String {
    let tlvs = tlvs.iter().map(|(number, value)| format!(" with TLV {}", tlv_text(*number, value)));
    let pass = pass.iter().map(|number| format!(" passing TLV {number:#04x}"));
    format!(", PROXY header {}{}", version.label(), tlvs.chain(pass).collect::<String>())
}

fn statuses(expect: &[RangeInclusive<u16>]) -> String {
    let range = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    expect.iter().map(range).collect::<Vec<_>>().join(" ")
}

/// Names, and the listeners at which they are meant.
fn names_at((names, matchers): &(Names, Matchers), config: &Config) -> String {
    let names = match names {
        Names::Patterns(patterns) => patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        Names::All => "any other name, or no SNI".into(),
        Names::NoSni => "no SNI".into(),
    };
    let listeners = matchers.listeners.iter().flatten().map(|index| &*config.listeners[*index].name);
    format!("{names} at {}", listeners.collect::<Vec<_>>().join(", "))
}

fn matches(route: &Route, config: &Config) -> String {
    if !route.by_listener.is_empty() {
        return route.by_listener.iter().map(|entry| names_at(entry, config)).collect::<Vec<_>>().join("; ");
    }
    let names: String = if route.patterns.is_empty() {
        "catch-all (any other name, or no SNI)".into()
    } else {
        route.patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    [names].into_iter().chain(conditions(route, config, None)).collect::<Vec<_>>().join("; ")
}
