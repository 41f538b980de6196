//! `source` of a backend or a server.

use std::net::IpAddr;

use crate::commands::import::notes::{Location, Notes};
use crate::commands::import::upstream_draft::{NEEDS_CAPABILITY, SourceDraft};

/// The words after `source`.
#[derive(Clone)]
pub(super) struct SourceParameters {
    location: Location,
    address: String,
    /// After `usesrc`.
    pub(super) transparent: Option<String>,
}

impl SourceParameters {
    pub(super) fn new(address: &str, location: &Location) -> Self {
        Self { location: location.clone(), address: address.into(), transparent: None }
    }

    /// Reads the `source` line of a backend.
    pub(super) fn read(words: &[&str], location: &Location, notes: &mut Notes) -> Self {
        let (address, rest) = words.split_first().map_or(("", words), |(address, rest)| (*address, rest));
        let mut source = Self::new(address, location);
        let value = |key| rest.iter().position(|word| *word == key).and_then(|at| rest.get(at + 1));
        source.transparent = value("usesrc").map(|word| (*word).to_owned());
        if rest.contains(&"interface") {
            notes.note(location, INTERFACE_IGNORED);
        }
        source
    }

    pub(super) fn translate(&self, notes: &mut Notes) -> SourceDraft {
        let location = &self.location;
        match self.transparent.as_deref() {
            Some("client" | "clientip") => {
                notes.note(location, NEEDS_CAPABILITY);
                return SourceDraft::Client;
            }
            Some(transparent) => {
                let reason = format!(
                    "`usesrc {transparent}` ignored: `source` of an upstream is an address of this machine, or the client's"
                );
                notes.note(location, reason);
            }
            None => {}
        }
        if self.address.is_empty() || self.address == "*" {
            return SourceDraft::Any;
        }
        let Some((address, ports)) = address_and_ports(&self.address) else {
            notes
                .note(location, format!("`source {}` ignored: `source` of an upstream is an IP address", self.address));
            return SourceDraft::Any;
        };
        if ports.is_some_and(|ports| ports != "0") {
            notes.note(location, "the ports of `source` are ignored: the kernel chooses them");
        }
        if address.is_unspecified() { SourceDraft::Any } else { SourceDraft::Addresses(vec![address]) }
    }
}

pub(super) const INTERFACE_IGNORED: &str = "`interface` ignored: the kernel chooses the interface by its routes";

fn address_and_ports(text: &str) -> Option<(IpAddr, Option<&str>)> {
    let text = text.strip_prefix("ipv4@").or_else(|| text.strip_prefix("ipv6@")).unwrap_or(text);
    let ip = |host: &str| host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    let (address, ports) = if let Some(address) = ip(text) {
        (address, None)
    } else {
        let (host, ports) = text.rsplit_once(':')?;
        (if matches!(host, "" | "*") { IpAddr::from([0; 4]) } else { ip(host)? }, Some(ports))
    };
    (!address.is_multicast()).then(|| (address.to_canonical(), ports))
}
