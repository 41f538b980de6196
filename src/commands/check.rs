//! `snigate check`

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::ExitCode;

use crate::admin::Hosts;
use crate::client_hello::IpLiteral;
use crate::config::{Admin, Config, Listener, Route};
use crate::connection::admission::SourceLimits;
use crate::connection::reject::RejectWith;
use crate::relay::Engine;
use crate::text::input;
use crate::text::units::{size, span};
use crate::upstream::health::{CaFile, EXPECTED};
use crate::upstream::{Balance, HealthCheck, HttpCheck, OnRemove, Thresholds, TlsCheck, UpstreamSettings};
use anyhow::Context;

use super::{any_listener, any_protocol};
use crate::cli::Check;

pub(super) fn run(options: &Check) -> anyhow::Result<ExitCode> {
    let file = options.file.as_ref().or(options.config.as_ref()).context("expected FILE or --config")?;
    let config = Config::load(file)?;
    std::io::stdout().write_all(describe(file, &config)?.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn describe(file: &Path, config: &Config) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "{} is valid.", input::name_of(file))?;

    writeln!(text, "\nlisteners")?;
    for Listener { name, address, refuse, balancers, ip_literal, sources } in &config.listeners {
        let refuse = match refuse {
            RejectWith::Alert => "a TLS alert",
            RejectWith::Close => "a close",
            RejectWith::Reset => "a reset",
        };
        let name = if *name == address.to_string() { String::new() } else { format!("{name} on ") };
        let named = balancers.as_ref().map_or(String::new(), |from| format!(", named in PROXY headers from {from}"));
        let literal = match ip_literal {
            IpLiteral::NoName => "",
            IpLiteral::Refused => ", refusing IP addresses as names",
        };
        writeln!(text, "  {name}{address}, refusing with {refuse}, open to {sources}{named}{literal}")?;
    }

    writeln!(text, "\nroutes")?;
    for route in &config.routes {
        writeln!(text, "  {}", route.name)?;
        writeln!(text, "    takes     {}", takes(route, &config.listeners))?;
        let most = route.max_connections.map_or(String::new(), |most| format!(", at most {most} at a time"));
        writeln!(text, "    open to   {}{most}", route.sources)?;
        upstream(&mut text, &route.upstream)?;
    }

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
        "tcp        keepalive {} then {} times every {}, user_timeout {}",
        span(tcp.keepalive_idle),
        tcp.keepalive_count,
        span(tcp.keepalive_interval),
        span(config.user_timeout)
    )?;
    let connections = config.limits.connections.map_or("as descriptors allow".into(), |limit| limit.to_string());
    let buffers = config.limits.buffer_bytes.map_or("as memory allows".into(), size);
    let SourceLimits { concurrent, new } = config.limits.source;
    let concurrent = concurrent.map_or("any number".into(), |limit| limit.to_string());
    let new = new.map_or("any number".into(), |rate| rate.to_string());
    writeln!(
        text,
        "limits     connections {connections}, per_source {concurrent}, new_per_source {new}, hello_bytes {}, buffer_bytes {buffers}",
        size(config.limits.hello_bytes)
    )?;
    let log = &config.log;
    let level = log.level.as_str().to_lowercase();
    writeln!(text, "log        format {}, level {level}, refusals_per_second {}", log.format, log.refusals_per_second)?;
    let engine = match config.relay {
        Engine::Auto => "auto",
        Engine::Copy => "copy",
        Engine::Splice => "splice",
    };
    writeln!(text, "relay      {engine}")?;
    writeln!(text, "workers    {}", config.workers.map_or("auto".into(), |workers| workers.to_string()))?;
    writeln!(text, "sandbox    {}", config.sandbox.label())?;
    writeln!(text, "watch      {}", config.watch)?;
    let admin = config.admin.as_ref().map_or("none".into(), |Admin { address, hosts: Hosts(hosts) }| {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let hosts = [&["addresses".into(), "localhost".into()], &hosts[..]].concat();
        format!("{address}, answering for {}", hosts.join(", "))
    });
    writeln!(text, "admin      {admin}")?;
    Ok(text)
}

fn upstream(text: &mut String, upstream: &UpstreamSettings) -> std::fmt::Result {
    let UpstreamSettings {
        destinations,
        balance,
        budget,
        slow_start,
        dead_grace,
        on_remove,
        resolve_every,
        proxy_protocol,
        health_check,
    } = upstream;
    let destinations: Vec<String> = destinations.iter().map(ToString::to_string).collect();
    let (timeout, per_try) = (span(budget.timeout), span(budget.per_try));
    let header = proxy_protocol.map_or(String::new(), |version| format!(", PROXY header {}", version.label()));
    writeln!(text, "    leads to  {} (within {timeout}, {per_try} per try{header})", destinations.join(", "))?;
    let balance = match balance {
        Balance::LeastConnections => "least_connections",
        Balance::RoundRobin => "round_robin",
        Balance::Random => "random",
    };
    let dead = dead_grace.map_or("keeps its connections".into(), |grace| format!("is cut after {}", span(grace)));
    let removed = match on_remove {
        OnRemove::Drain => "is drained",
        OnRemove::Keep => "keeps its connections",
        OnRemove::Cut => "is cut",
    };
    writeln!(
        text,
        "    balances  by {balance}, slow_start {}; names every {}; who is gone {dead}, who is removed {removed}",
        span(*slow_start),
        span(*resolve_every)
    )?;
    let Some(HealthCheck { interval, timeout, thresholds, tls, http }) = health_check else {
        return writeln!(text, "    checks    nothing");
    };
    let mut what = vec!["connect".to_owned()];
    if let Some(TlsCheck { ca_file, verified_name, asked_name: _, client }) = tls {
        let chain = ca_file.as_ref().map_or("any certificate".into(), |from| match from {
            CaFile::File(file) => format!("CA {}", file.display()),
            CaFile::System => from.to_string(),
        });
        let name = verified_name.as_ref().map_or(String::new(), |name| format!(" and name {}", name.to_str()));
        let client = if client.is_some() { ", showing a certificate" } else { "" };
        what.push(format!("TLS with {chain}{name}{client}"));
    }
    if let Some(HttpCheck { path, token_file, expect, unauthorized_is_alive }) = http {
        let token = if token_file.is_some() { " with a token" } else { "" };
        let unauthorized = if *unauthorized_is_alive { "alive" } else { "failed" };
        let expect = if *expect == [EXPECTED] { String::new() } else { format!("expect: {}, ", statuses(expect)) };
        what.push(format!("GET {path}{token} ({expect}unauthorized: {unauthorized})"));
    }
    let Thresholds { rise, fall, unready } = thresholds;
    let unready = if http.is_some() { format!(", unready {unready}") } else { String::new() };
    writeln!(
        text,
        "    checks    {}, every {} within {}, rise {rise}, fall {fall}{unready}",
        what.join(", "),
        span(*interval),
        span(*timeout),
    )
}

fn statuses(expect: &[RangeInclusive<u16>]) -> String {
    let range = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => format!("{first}-{last}"),
    };
    expect.iter().map(range).collect::<Vec<_>>().join(" ")
}

fn takes(route: &Route, listeners: &[Listener]) -> String {
    let mut takes: String = if route.patterns.is_empty() {
        "every other name, and clients that send none".into()
    } else {
        route.patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    if let Some(alpn) = &route.matchers.alpn {
        let _ = write!(takes, "; offering {}", any_protocol(alpn));
    }
    if let Some(numbers) = &route.matchers.listeners {
        let _ = write!(takes, "; at {}", any_listener(numbers, listeners));
    }
    takes
}
