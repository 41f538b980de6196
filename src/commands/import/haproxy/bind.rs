//! `bind`.

use std::net::SocketAddr;

use super::sections::SectionLine;
use crate::commands::import::draft::{AcceptProxyDraft, Draft, Frontend, ListenResult, TLS_NOT_TERMINATED};
use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::values::listen_address;

/// Longer ranges of ports are left out.
const MAX_PORTS: u16 = 64;

pub(super) fn terminates_tls(line: &SectionLine) -> bool {
    line.words[0] == "bind" && line.words.iter().any(|word| word == "ssl")
}

/// Addresses that snigate could listen at; none if the line is not a `bind`.
pub(super) fn addresses(line: &SectionLine) -> Vec<SocketAddr> {
    if line.words[0] != "bind" {
        return Vec::new();
    }
    let texts = line.words.get(1).map(String::as_str).unwrap_or_default();
    texts.split(',').filter_map(|text| parse(text).ok()).flatten().collect()
}

pub(super) fn listen(
    frontend: &mut Frontend,
    addresses: &str,
    parameters: &[&str],
    location: &Location,
    draft: &Draft,
    notes: &mut Notes,
) {
    // Whether a listener accepts IPv4 clients, too.
    let mut is_dual_stack = false;
    let mut listening = Vec::new();
    for text in addresses.split(',') {
        let all = match parse(text) {
            Ok(all) => all,
            Err(reason) => {
                notes.rejects_or_reroutes(location, format!("`{text}` left out: {reason}"));
                continue;
            }
        };
        for address in all {
            is_dual_stack |= address.is_ipv6() && address.ip().is_unspecified();
            match draft.listen(frontend, address) {
                ListenResult::Added => {
                    listening.push(address);
                    frontend.locations.insert(location.clone());
                }
                ListenResult::MergedInto(merged) => {
                    frontend.locations.insert(location.clone());
                    is_dual_stack = false;
                    let has_it_before = frontend.accept_proxy.keys().any(|other| other.port() == merged.port());
                    match (parameters.contains(&"accept-proxy"), has_it_before) {
                        (true, true) => listening.push(merged),
                        (false, false) => {}
                        _ => {
                            frontend.accept_proxy.remove(&merged);
                            let reason = format!(
                                "`accept-proxy` left out: {merged} serves two addresses, and only one of them has it. \
                                Clients that send a PROXY header are rejected"
                            );
                            notes.rejects_or_reroutes(location, reason);
                        }
                    }
                    notes.note(location, format!("one listener at {merged} serves this address, too"));
                }
                ListenResult::InUse(reason) => {
                    notes.rejects_or_reroutes(location, format!("`{text}` left out: {reason}"));
                }
            }
        }
    }
    let has = |wanted: &str| parameters.contains(&wanted);
    if has("ssl") {
        notes.note(location, TLS_NOT_TERMINATED);
    }
    if has("v6only") && is_dual_stack {
        notes.admits_more(location, "`v6only`: snigate's listener at [::] accepts IPv4 clients, too");
    }
    if has("accept-proxy") && !listening.is_empty() {
        let reason = "`accept-proxy`: PROXY headers are accepted from every address, as in HAProxy; restrict \
            `accept_proxy` to the networks of your load balancers";
        notes.note(location, reason);
        frontend.accept_proxy.extend(listening.iter().map(|address| (*address, AcceptProxyDraft::everywhere())));
    }
    let value = |key: &str| parameters.iter().position(|word| *word == key).and_then(|at| parameters.get(at + 1));
    if has("ssl") && value("verify") == Some(&"required") {
        notes.admits_more(location, "`verify required`: HAProxy rejects clients without a certificate; snigate admits them, and the API server has to reject them");
    }
    let with_value =
        ["crt", "verify", "ca-file", "crl-file", "alpn", "ciphers", "ciphersuites", "ssl-min-ver", "crt-list"];
    let flags = ["ssl", "v4v6", "v6only", "accept-proxy"];
    let mut rest = Vec::new();
    let mut is_value = false;
    for word in parameters {
        let known = with_value.contains(word) || flags.contains(word);
        if !known && !is_value {
            rest.push(*word);
        }
        is_value = with_value.contains(word);
    }
    if !rest.is_empty() {
        notes.note(location, format!("`{}` ignored: not needed, or no equivalent", rest.join(" ")));
    }
}

fn parse(text: &str) -> Result<Vec<SocketAddr>, String> {
    if text.starts_with('/') || text.starts_with("unix@") || text.starts_with("abns@") {
        return Err("snigate listens at IP addresses only, not at Unix sockets".into());
    }
    let (host, port) = text.rsplit_once(':').ok_or("expected address:port")?;
    let (host, is_ipv6) = match (host.strip_prefix("ipv4@"), host.strip_prefix("ipv6@")) {
        (Some(host), _) => (host, false),
        (_, Some(host)) => (host, true),
        _ => (host, false),
    };
    let host = if is_ipv6 && matches!(host, "" | "*") { "::" } else { host };
    let ports = port.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match ports {
        Some((first, last)) if first <= last && last - first < MAX_PORTS => {
            (first..=last).map(|port: u16| listen_address(host, &port.to_string())).collect()
        }
        _ => listen_address(host, port).map(|address| vec![address]),
    }
}
