//! `bind`.

use std::net::SocketAddr;

use super::access::everywhere;
use super::sections::Line;
use crate::commands::import::draft::{Draft, Frontend, Listens, TLS_ENDED};
use crate::commands::import::ledger::{Ledger, Place};
use crate::commands::import::values::listen_address;

/// Of one range.
const MOST_PORTS: u16 = 64;

pub(super) fn is_bind(line: &Line) -> bool {
    line.words[0] == "bind"
}

pub(super) fn ends_tls(line: &Line) -> bool {
    line.words.iter().any(|word| word == "ssl")
}

/// All that can be understood.
pub(super) fn addresses(line: &Line) -> Vec<SocketAddr> {
    let texts = line.words.get(1).map(String::as_str).unwrap_or_default();
    texts.split(',').filter_map(|text| read(text).ok()).flatten().collect()
}

pub(super) fn listen(
    frontend: &mut Frontend,
    addresses: &str,
    parameters: &[&str],
    place: &Place,
    draft: &Draft,
    ledger: &mut Ledger,
) {
    let mut wide = false;
    let mut listening = Vec::new();
    for text in addresses.split(',') {
        let all = match read(text) {
            Ok(all) => all,
            Err(reason) => {
                ledger.narrower(place, format!("`{text}` is left out, and nothing listens for its clients: {reason}"));
                continue;
            }
        };
        for address in all {
            wide |= address.is_ipv6() && address.ip().is_unspecified();
            match draft.listen(frontend, address) {
                Listens::Yes => {
                    listening.push(address);
                    frontend.places.insert(place.clone());
                }
                Listens::With(wider) => {
                    frontend.places.insert(place.clone());
                    wide = false;
                    let before = frontend.accept_proxy.keys().any(|other| other.port() == wider.port());
                    match (parameters.contains(&"accept-proxy"), before) {
                        (true, true) => listening.push(wider),
                        (false, false) => {}
                        _ => {
                            frontend.accept_proxy.remove(&wider);
                            let reason = "one of two addresses that are one listener here has `accept-proxy`, which \
                                that listener has not: clients with PROXY headers are refused";
                            ledger.narrower(place, reason);
                        }
                    }
                    ledger.note(place, format!("{wider} stands for both addresses, as it takes the clients of both"));
                }
                Listens::Taken(reason) => ledger.narrower(place, format!("`{text}` is left out: {reason}")),
            }
        }
    }
    let has = |wanted: &str| parameters.contains(&wanted);
    if has("ssl") {
        ledger.note(place, TLS_ENDED);
    }
    if has("v6only") && wide {
        ledger.wider(place, "`v6only`: a listener at [::] takes IPv4 clients, too");
    }
    if has("accept-proxy") {
        let reason = "`accept-proxy`: PROXY headers are accepted from every address, as before; let `accept_proxy` have \
            but the networks of the balancers";
        ledger.note(place, reason);
        frontend.accept_proxy.extend(listening.iter().map(|address| (*address, everywhere())));
    }
    let value = |key: &str| parameters.iter().position(|word| *word == key).and_then(|at| parameters.get(at + 1));
    if has("ssl") && value("verify") == Some(&"required") {
        ledger.wider(place, "`verify required`: clients without a certificate are refused by HAProxy; here the server decides, which gets the client's certificate");
    }
    let of_tls =
        ["ssl", "crt", "verify", "ca-file", "crl-file", "alpn", "ciphers", "ciphersuites", "ssl-min-ver", "crt-list"];
    let said = ["v4v6", "v6only", "accept-proxy"];
    let mut rest = Vec::new();
    let mut is_value = false;
    for word in parameters {
        let known = of_tls.contains(word) || said.contains(word);
        if !known && !is_value {
            rest.push(*word);
        }
        is_value = of_tls.contains(word) && *word != "ssl";
    }
    if !rest.is_empty() {
        ledger.note(place, format!("`{}`: not needed, or without a counterpart", rest.join(" ")));
    }
}

fn read(text: &str) -> Result<Vec<SocketAddr>, String> {
    if text.starts_with('/') || text.starts_with("unix@") || text.starts_with("abns@") {
        return Err("a Unix socket; snigate listens at IP addresses only".into());
    }
    let (host, port) = text.rsplit_once(':').ok_or("it is no address and port")?;
    let (host, is_ipv6) = match (host.strip_prefix("ipv4@"), host.strip_prefix("ipv6@")) {
        (Some(host), _) => (host, false),
        (_, Some(host)) => (host, true),
        _ => (host, false),
    };
    let host = if is_ipv6 && matches!(host, "" | "*") { "::" } else { host };
    let ports = port.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    match ports {
        Some((first, last)) if first <= last && last - first < MOST_PORTS => {
            (first..=last).map(|port: u16| listen_address(host, &port.to_string())).collect()
        }
        _ => listen_address(host, port).map(|address| vec![address]),
    }
}
