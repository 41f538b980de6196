//! `listen`.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::stream::StreamSettings;
use super::syntax::Directive;
use crate::commands::import::draft::{AcceptProxyDraft, Draft, Frontend, ListenResult, TLS_NOT_TERMINATED};
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::values::{listen_address, network};

/// Whether the server is the default one at one of its addresses.
pub(super) fn listen_all(
    frontend: &mut Frontend,
    listens: &[&Directive],
    settings: &StreamSettings<'_>,
    draft: &Draft,
    notes: &mut Notes,
) -> bool {
    // Compares its own addresses only; later it is known whether it shares those of another server.
    let no_others = Draft::default();
    let mut is_default = false;
    let mut ipv6_only = Vec::new();
    for directive in listens {
        let location = directive.location();
        let parameters = &directive.words[2..];
        let has = |wanted: &str| parameters.iter().any(|parameter| parameter == wanted);
        let text = &directive.words[1];
        if has("udp") {
            notes.note(&location, format!("`{text} udp` left out: snigate forwards TCP only"));
            continue;
        }
        let address = match address(text) {
            Ok(address) => address,
            Err(reason) => {
                notes.rejects_or_reroutes(&location, format!("`{text}` left out: {reason}"));
                continue;
            }
        };
        if let ListenResult::MergedInto(merged) = no_others.listen(frontend, address) {
            notes.note(&location, format!("one listener at {merged} serves this address, too"));
        } else if address.is_ipv6() && address.ip().is_unspecified() && !has("ipv6only=off") {
            ipv6_only.push((address.port(), location.clone()));
        }
        frontend.locations.insert(location.clone());
        is_default |= has("default_server") || has("default");
        if has("ssl") {
            frontend.terminated_tls = true;
            notes.note(&location, TLS_NOT_TERMINATED);
        }
        if has("proxy_protocol") {
            accept_proxy(frontend, address, settings, &location, notes);
        }
        let known = ["ssl", "proxy_protocol", "default_server", "default", "ipv6only=off", "ipv6only=on"];
        let rest: Vec<&str> = parameters.iter().map(String::as_str).filter(|word| !known.contains(word)).collect();
        if !rest.is_empty() {
            notes.note(&location, format!("`{}` ignored: not needed, or no equivalent", rest.join(" ")));
        }
    }
    for (port, location) in ipv6_only {
        let others = draft.frontends.iter().flat_map(|other| &other.addresses).copied();
        let mut all = listens.iter().filter_map(|listen| address(&listen.words[1]).ok()).chain(others);
        if !all.any(|one| one.is_ipv4() && one.port() == port) {
            let reason = "nginx accepts IPv6 clients only here (no `ipv6only=off`); snigate's listener at [::] accepts \
                IPv4 clients, too";
            notes.admits_more(&location, reason);
        }
    }
    is_default
}

fn accept_proxy(
    frontend: &mut Frontend,
    address: SocketAddr,
    settings: &StreamSettings<'_>,
    location: &Location,
    notes: &mut Notes,
) {
    let trusted: Vec<IpNet> = settings.set_real_ip_from.iter().filter_map(|from| network(&from.words[1])).collect();
    frontend.locations.extend(settings.set_real_ip_from.iter().map(|from| from.location()));
    if !trusted.is_empty() {
        let reason =
            "with `accept_proxy` connections from peers outside the networks of `set_real_ip_from` are rejected";
        notes.note(location, reason);
        let accept_proxy = AcceptProxyDraft { from: trusted, others_are_direct: false };
        frontend.accept_proxy.insert(address, accept_proxy);
        return;
    }
    let reason = "`proxy_protocol`: PROXY headers are accepted from every address, as in nginx; restrict `accept_proxy` \
        to the networks of your load balancers";
    notes.note(location, reason);
    if !settings.access.is_empty() {
        let reason = "`allow` and `deny` apply to the client address in the PROXY header, which any peer can forge; \
            without `set_real_ip_from` nginx applies them to the peer's address";
        notes.admits_more(location, reason);
    }
    frontend.accept_proxy.insert(address, AcceptProxyDraft::everywhere());
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if text.starts_with("unix:") {
        return Err("snigate listens at IP addresses only, not at Unix sockets".into());
    }
    match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => listen_address(host, port),
        _ => listen_address("", text),
    }
}
