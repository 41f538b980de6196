//! Writes a configuration for people.

use std::fmt::Write as _;

use crate::name::NamePattern;
use crate::text::units::span;
use ipnet::IpNet;

use super::draft::{Check, Draft, Frontend, TlsCheck, Upstream};
use super::expression::Limit;
use super::routes::Route;
use super::sources::Sources;
use crate::commands::yaml::scalar;

/// Whether CA files are named, or left out so that the rest can be checked without them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CaFiles {
    Named,
    LeftOut,
}

pub(super) fn write(text: &mut String, draft: &Draft, routes: &[Route], ca_files: CaFiles) -> std::fmt::Result {
    let listeners = Listener::all(&draft.frontends);
    write_listeners(text, &listeners)?;
    if draft.frontends.iter().any(|frontend| frontend.ended_tls) {
        text.push_str(
            "
# TLS ended at the proxy before. It does not end here, so clients see the API server's own certificate: they need its
# CA, and where it does not carry the name they connect to, they set `tls-server-name` to one that it carries. That is
# then the name they ask for, so it must stand in `sni`, too. Names that may be needed stand there as comments.",
        );
    }
    text.push_str("\nroutes:");
    for (number, route) in routes.iter().enumerate() {
        text.push_str(if number == 0 { "\n" } else { "\n\n" });
        let at = (draft.frontends.len() > 1).then(|| {
            let names = listeners.iter().filter(|listener| listener.frontend == route.frontend);
            names.map(|listener| scalar(&listener.name)).collect::<Vec<_>>()
        });
        write_route(text, route, at.as_deref())?;
        match &route.upstream {
            Some(upstream) => write_upstream(text, &draft.upstreams[upstream], ca_files)?,
            // All are denied, so nothing is ever connected to.
            None => write!(text, "    upstream: {NOWHERE}")?,
        }
    }
    text.push('\n');
    let timeouts = draft.timeouts.named().map(|(key, all)| (key, all.last()));
    if timeouts.iter().any(|(_, longest)| longest.is_some()) {
        text.push_str("\ntimeouts:\n");
        for (key, longest) in timeouts.into_iter().filter_map(|(key, longest)| Some((key, longest?))) {
            writeln!(text, "  {key}: {}", span(longest.0))?;
        }
    }
    if !draft.limits.is_empty() {
        text.push_str("\nlimits:\n");
        for limit in &draft.limits {
            match limit {
                Limit::Connections(count) => writeln!(text, "  per_source: {count}")?,
                Limit::New(count, period) => writeln!(text, "  new_per_source: {}", rate(*count, *period))?,
            }
        }
    }
    Ok(())
}

/// So many in so many milliseconds.
fn rate(count: u64, period: Option<u64>) -> String {
    let (unit, length) = match period.unwrap_or(1000) {
        0..=1000 => ("s", 1000),
        1001..=60_000 => ("m", 60_000),
        _ => ("h", 3_600_000),
    };
    let per_unit = u128::from(count) * length / u128::from(period.unwrap_or(1000).max(1));
    format!("{}/{unit}", per_unit.clamp(1, 1_000_000))
}

/// Where a route leads that refuses all: an address for documentation.
const NOWHERE: &str = "192.0.2.1:9";

struct Listener<'a> {
    name: String,
    address: String,
    accept_proxy: &'a [IpNet],
    frontend: usize,
    sources: &'a Sources,
}

impl<'a> Listener<'a> {
    fn all(frontends: &'a [Frontend]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for (number, frontend) in frontends.iter().enumerate() {
            for address in &frontend.addresses {
                let is_free = |name: &String| all.iter().all(|listener| listener.name != *name);
                let numbered = (2..).map(|number| format!("{}-{number}", frontend.name));
                let name = std::iter::once(frontend.name.clone()).chain(numbered).find(is_free);
                let name = name.unwrap_or_default();
                let accept_proxy = frontend.accept_proxy.get(address).map_or(&[][..], Vec::as_slice);
                let (sources, address) = (&frontend.sources, address.to_string());
                all.push(Self { name, address, accept_proxy, frontend: number, sources });
            }
        }
        all
    }
}

fn write_listeners(text: &mut String, listeners: &[Listener<'_>]) -> std::fmt::Result {
    if let [Listener { address, sources, accept_proxy: [], .. }] = listeners
        && sources.is_empty()
    {
        return writeln!(text, "listen: {}", scalar(address));
    }
    text.push_str("listen:\n");
    for Listener { name, address, sources, accept_proxy, .. } in listeners {
        writeln!(text, "  - name: {}\n    address: {}", scalar(name), scalar(address))?;
        if !accept_proxy.is_empty() {
            writeln!(text, "    accept_proxy: {{from: [{}]}}", networks(accept_proxy))?;
        }
        write_sources(text, sources)?;
    }
    Ok(())
}

fn write_sources(text: &mut String, sources: &Sources) -> std::fmt::Result {
    for (key, all) in [("allow", &sources.allow), ("deny", &sources.deny)] {
        if !all.is_empty() {
            writeln!(text, "    {key}: [{}]", networks(all))?;
        }
    }
    Ok(())
}

fn networks(all: &[IpNet]) -> String {
    all.iter().map(|network| scalar(&network.to_string())).collect::<Vec<_>>().join(", ")
}

fn write_route(text: &mut String, route: &Route, at: Option<&[String]>) -> std::fmt::Result {
    let Route { name, names, alpn, aliases, sources, upstream, frontend: _ } = route;
    if upstream.is_none() {
        text.push_str("  # Clients that ask for these names are refused.\n");
    }
    writeln!(text, "  - name: {}", scalar(name))?;
    let written = |name: &NamePattern| scalar(&name.to_string());
    match &names[..] {
        [] => {}
        [name] if aliases.is_empty() => writeln!(text, "    sni: {}", written(name))?,
        names => {
            text.push_str("    sni:\n");
            names.iter().try_for_each(|name| writeln!(text, "      - {}", written(name)))?;
            aliases.iter().try_for_each(|name| writeln!(text, "      # - {}", written(name)))?;
        }
    }
    if !alpn.is_empty() {
        let alpn: Vec<String> = alpn.iter().map(|protocol| scalar(protocol)).collect();
        writeln!(text, "    alpn: [{}]", alpn.join(", "))?;
    }
    match at {
        None => {}
        Some([name]) => writeln!(text, "    listener: {name}")?,
        Some(names) => writeln!(text, "    listener: [{}]", names.join(", "))?,
    }
    write_sources(text, sources)
}

/// Without the last line's end.
fn write_upstream(text: &mut String, upstream: &Upstream, ca_files: CaFiles) -> std::fmt::Result {
    let Upstream { endpoints, backups, balance, connect_timeout, slow_start, proxy_protocol, check, .. } = upstream;
    let mut more = String::new();
    if let Some(balance) = balance {
        write!(more, "\n      balance: {balance}")?;
    }
    if let Some(timeout) = connect_timeout {
        write!(more, "\n      connect: {{timeout: {}}}", span(*timeout))?;
    }
    if let Some(slow_start) = slow_start {
        write!(more, "\n      slow_start: {}", span(*slow_start))?;
    }
    if let Some(version) = proxy_protocol {
        write!(more, "\n      proxy_protocol: {version}")?;
    }
    if let Some(check) = check {
        write_check(&mut more, check, ca_files)?;
    }
    let destination = |text: &dyn ToString| scalar(&text.to_string());
    if let [(endpoint, _)] = &endpoints[..]
        && more.is_empty()
        && backups.is_empty()
    {
        return write!(text, "    upstream: {}", destination(endpoint));
    }
    text.push_str("    upstream:\n      endpoints:");
    endpoints.iter().try_for_each(|(endpoint, _)| write!(text, "\n        - {}", destination(endpoint)))?;
    backups.iter().try_for_each(|backup| write!(text, "\n        # - {} # a backup", destination(backup)))?;
    text.push_str(&more);
    Ok(())
}

fn write_check(text: &mut String, check: &Check, ca_files: CaFiles) -> std::fmt::Result {
    let Check { interval, timeout, rise, fall, tls, path } = check;
    let tls = tls.as_ref().map(|tls| match (tls, ca_files) {
        (TlsCheck::Unverified, _) | (_, CaFiles::LeftOut) => "{verify: false}".to_owned(),
        (TlsCheck::Verified { ca_file, server_name: None }, _) => format!("{{ca_file: {}}}", scalar(ca_file)),
        (TlsCheck::Verified { ca_file, server_name: Some(name) }, _) => {
            format!("{{ca_file: {}, server_name: {}}}", scalar(ca_file), scalar(name))
        }
    });
    let values = [
        ("interval", interval.map(span)),
        ("timeout", timeout.map(span)),
        ("rise", rise.map(|rise| rise.to_string())),
        ("fall", fall.map(|fall| fall.to_string())),
        ("tls", tls),
        ("http", path.as_ref().map(|path| format!("{{path: {}}}", scalar(path)))),
    ];
    if values.iter().all(|(_, value)| value.is_none()) {
        return text.write_str("\n      health_check: {}");
    }
    text.push_str("\n      health_check:");
    for (key, value) in values {
        if let Some(value) = value {
            write!(text, "\n        {key}: {value}")?;
        }
    }
    Ok(())
}
