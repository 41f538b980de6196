//! Writes the draft as a configuration file with comments.

mod upstream;

use std::fmt::Write as _;

use crate::name::NamePattern;
use crate::text::units::span;
use ipnet::IpNet;

use self::upstream::write_upstream;
use super::addresses::AccessList;
use super::draft::{AcceptProxyDraft, Draft, Frontend};
use super::expression::ClientLimit;
use super::routes::{RouteDraft, RouteMatchers};
use super::tlv;
use crate::commands::yaml::scalar;

/// Left out to validate the rest on a machine that does not have them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CaFiles {
    Named,
    LeftOut,
}

pub(super) fn write(text: &mut String, draft: &Draft, routes: &[RouteDraft], ca_files: CaFiles) -> std::fmt::Result {
    let listeners = ListenerEntry::all(&draft.frontends);
    write_listeners(text, &listeners)?;
    if draft.frontends.iter().any(|frontend| frontend.terminated_tls) {
        text.push_str(
            "
# The source terminates TLS, snigate does not: clients see the API server's own certificate and verify it with its CA.
# If the hostname they connect to is not in its SAN, they set `tls-server-name` to one that is. They then send that name
# as SNI, so `sni` needs it, too; likely names are there as comments.",
        );
    }
    text.push_str("\nroutes:");
    for (number, route) in routes.iter().enumerate() {
        text.push_str(if number == 0 { "\n" } else { "\n\n" });
        let listener_names = (draft.frontends.len() > 1).then(|| {
            let names = listeners.iter().filter(|listener| listener.frontend == route.frontend);
            names.map(|listener| scalar(&listener.name)).collect::<Vec<_>>()
        });
        write_route(text, route, listener_names.as_deref())?;
        match &route.upstream {
            Some(upstream) => write_upstream(text, &draft.upstreams[upstream], ca_files)?,
            None => write!(text, "    upstream: {UNUSED_ENDPOINT}")?,
        }
    }
    text.push('\n');
    let timeouts = draft.timeouts.by_key().map(|(key, all)| (key, all.last()));
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
                ClientLimit::Connections(count) => writeln!(text, "  per_source: {count}")?,
                ClientLimit::Rate(count, period) => writeln!(text, "  new_per_source: {}", rate(*count, *period))?,
            }
        }
    }
    Ok(())
}

fn rate(count: u64, period: Option<u64>) -> String {
    let (unit, length) = match period.unwrap_or(1000) {
        0..=1000 => ("s", 1000),
        1001..=60_000 => ("m", 60_000),
        _ => ("h", 3_600_000),
    };
    let per_unit = u128::from(count) * length / u128::from(period.unwrap_or(1000).max(1));
    format!("{}/{unit}", per_unit.clamp(1, 1_000_000))
}

/// Endpoint of a route that rejects all clients; from a network reserved for documentation.
const UNUSED_ENDPOINT: &str = "192.0.2.1:9";

struct ListenerEntry<'a> {
    name: String,
    address: String,
    accept_proxy: Option<&'a AcceptProxyDraft>,
    /// The number of its frontend.
    frontend: usize,
    access: &'a AccessList,
}

impl<'a> ListenerEntry<'a> {
    fn all(frontends: &'a [Frontend]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for (number, frontend) in frontends.iter().enumerate() {
            for address in &frontend.addresses {
                let is_free = |name: &String| all.iter().all(|listener| listener.name != *name);
                let numbered = (2..).map(|number| format!("{}-{number}", frontend.name));
                let name = std::iter::once(frontend.name.clone()).chain(numbered).find(is_free);
                let name = name.unwrap_or_default();
                let accept_proxy = frontend.accept_proxy.get(address);
                let (access, address) = (&frontend.access, address.to_string());
                all.push(Self { name, address, accept_proxy, frontend: number, access });
            }
        }
        all
    }
}

fn write_listeners(text: &mut String, listeners: &[ListenerEntry<'_>]) -> std::fmt::Result {
    if let [ListenerEntry { address, access, accept_proxy: None, .. }] = listeners
        && access.is_empty()
    {
        return writeln!(text, "listen: {}", scalar(address));
    }
    text.push_str("listen:\n");
    for ListenerEntry { name, address, access, accept_proxy, .. } in listeners {
        writeln!(text, "  - name: {}\n    address: {}", scalar(name), scalar(address))?;
        if let Some(AcceptProxyDraft { from, others_are_direct }) = accept_proxy {
            let others = if *others_are_direct { ", others: direct" } else { "" };
            writeln!(text, "    accept_proxy: {{from: [{}]{others}}}", networks(from))?;
        }
        write_access(text, access)?;
    }
    Ok(())
}

fn write_access(text: &mut String, access: &AccessList) -> std::fmt::Result {
    for (key, all) in [("allow", &access.allow), ("deny", &access.deny)] {
        if !all.is_empty() {
            writeln!(text, "    {key}: [{}]", networks(all))?;
        }
    }
    Ok(())
}

fn networks(all: &[IpNet]) -> String {
    all.iter().map(|network| scalar(&network.to_string())).collect::<Vec<_>>().join(", ")
}

fn write_route(text: &mut String, route: &RouteDraft, listeners: Option<&[String]>) -> std::fmt::Result {
    let RouteDraft { name, names, matchers, aliases, access, upstream, frontend: _ } = route;
    let RouteMatchers { alpn, clients, destinations, tlv } = matchers;
    if upstream.is_none() {
        let what = if *matchers == RouteMatchers::default() { "that send these names" } else { "that it matches" };
        writeln!(text, "  # Rejects all clients {what}.")?;
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
    match listeners {
        None => {}
        Some([name]) => writeln!(text, "    listener: {name}")?,
        Some(names) => writeln!(text, "    listener: [{}]", names.join(", "))?,
    }
    for (key, all) in [("client", clients), ("destination", destinations)] {
        match &all[..] {
            [] => {}
            [network] => writeln!(text, "    {key}: {}", scalar(&network.to_string()))?,
            all => writeln!(text, "    {key}: [{}]", networks(all))?,
        }
    }
    if let Some((number, value)) = tlv {
        writeln!(text, "    proxy_tlv: {{{number:#04x}: {}}}", scalar(&tlv::text(value)))?;
    }
    write_access(text, access)
}
