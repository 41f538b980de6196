//! Conditions, with the reasons that the API names.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::gateway::plan::{
    Applied, Condition, GatewayStatus, ListenFailure, ListenerStatus, Problem, Published, PublishedAddress,
};
use crate::gateway::translate::INVALID_ANNOTATIONS;

/// Our conditions that are absent where they do not hold.
const ONLY_IF_TRUE: [&str; 1] = [INVALID_ANNOTATIONS];

/// Maximum length of a message, in bytes.
const MAX_MESSAGE: usize = 32_768;

/// Existing conditions with those that are wanted. Those of types that are not ours are kept, as are those that are already
/// of a later generation.
pub(super) fn merge(existing: &Value, wanted: &[Condition], generation: i64, now: &str) -> Value {
    let mut conditions: Vec<Value> = existing.as_array().cloned().unwrap_or_default();
    let is_wanted = |kind: &Value| wanted.iter().any(|wanted| *kind == *wanted.kind);
    conditions.retain(|condition| {
        is_wanted(&condition["type"]) || !ONLY_IF_TRUE.iter().any(|kind| condition["type"] == **kind)
    });
    for Condition { kind, is_true, reason, message } in wanted {
        let status = if *is_true { "True" } else { "False" };
        let before = conditions.iter_mut().find(|condition| condition["type"] == **kind);
        let is_stale = |before: &Value| before["observedGeneration"].as_i64().is_some_and(|seen| seen > generation);
        let same = before.as_ref().filter(|before| before["status"] == status);
        let since = same.and_then(|before| before["lastTransitionTime"].as_str()).unwrap_or(now);
        let condition = json!({
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message.get(..message.floor_char_boundary(MAX_MESSAGE)),
            "observedGeneration": generation,
            "lastTransitionTime": since,
        });
        match before {
            Some(before) if is_stale(before) => {}
            Some(before) => *before = condition,
            None => conditions.push(condition),
        }
    }
    conditions.into()
}

/// What is said of a Gateway once its listeners were opened.
pub(super) struct GatewayOutcome {
    pub(super) conditions: Vec<Condition>,
    pub(super) addresses: Vec<PublishedAddress>,
    pub(super) generation: i64,
}

pub(super) fn gateway(wanted: &GatewayStatus, published: &Published, applied: &Applied) -> GatewayOutcome {
    let GatewayStatus { generation, refused, requested, listeners } = wanted;
    let condition = |kind, is_true, reason, message: String| Condition { kind, is_true, reason, message };
    let (accepted, unaccepted): (Vec<_>, Vec<_>) =
        listeners.iter().partition(|listener| refusal(listener, applied).is_none());
    let names =
        |listeners: &[&ListenerStatus]| listeners.iter().map(|listener| &*listener.name).collect::<Vec<_>>().join(", ");
    let not_valid = || match (&accepted[..], &unaccepted[..]) {
        ([], _) => "no listener is valid".into(),
        (accepted, unaccepted) => {
            format!("not valid: {}; accepted: {}", names(unaccepted), names(accepted))
        }
    };
    let is_accepted = if let Some(Problem { reason, message }) = refused {
        condition("Accepted", false, reason, message.clone())
    } else if unaccepted.is_empty() && !accepted.is_empty() {
        condition("Accepted", true, "Accepted", String::new())
    } else {
        condition("Accepted", !accepted.is_empty(), "ListenersNotValid", not_valid())
    };

    let all = addresses(published, applied);
    let unusable: Vec<String> = requested
        .iter()
        .filter_map(|address| match published {
            Published::Own => {
                let mut failures =
                    applied.failed.iter().filter(|(socket, failure)| socket.ip() == *address && failure.is_address);
                failures.next().map(|(_, failure)| format!("{address}: {}", failure.reason))
            }
            Published::Addresses(addresses) => {
                let is_published = addresses.contains(&PublishedAddress::Ip(*address));
                (!is_published).then(|| format!("{address} is not an address of the load balancer"))
            }
        })
        .collect();
    let is_usable = |address: &PublishedAddress| match address {
        _ if requested.is_empty() => true,
        PublishedAddress::Ip(ip) => {
            requested.contains(ip) && !unusable.iter().any(|text| text.starts_with(&ip.to_string()))
        }
        PublishedAddress::Hostname(_) => false,
    };
    let assigned: Vec<PublishedAddress> = match published {
        Published::Own if !requested.is_empty() => {
            requested.iter().copied().map(PublishedAddress::Ip).filter(is_usable).collect()
        }
        _ => all.into_iter().filter(is_usable).collect(),
    };
    let is_programmed = listeners.iter().any(|listener| is_served(listener, applied));
    let programmed = if !is_accepted.is_true {
        condition("Programmed", false, "Invalid", is_accepted.message.clone())
    } else if !unusable.is_empty() {
        condition("Programmed", false, "AddressNotUsable", unusable.join("; "))
    } else if assigned.is_empty() {
        condition("Programmed", false, "AddressNotAssigned", "no address is known yet".into())
    } else if !is_programmed {
        condition("Programmed", false, "Invalid", "no listener could be opened".into())
    } else {
        condition("Programmed", true, "Programmed", String::new())
    };
    GatewayOutcome { conditions: vec![is_accepted, programmed], addresses: assigned, generation: *generation }
}

pub(super) fn listener(wanted: &ListenerStatus, applied: &Applied) -> Vec<Condition> {
    let condition = |kind, is_true, reason, message: String| Condition { kind, is_true, reason, message };
    let (is_accepted, accepted, why) = match refusal(wanted, applied) {
        None => (true, "Accepted", String::new()),
        Some(Problem { reason, message }) => (false, reason, message),
    };
    let conflict = match &wanted.conflict {
        None => condition("Conflicted", false, "NoConflicts", String::new()),
        Some(Problem { reason, message }) => condition("Conflicted", true, reason, message.clone()),
    };
    let resolved = if wanted.invalid_kinds.is_empty() {
        condition("ResolvedRefs", true, "ResolvedRefs", String::new())
    } else {
        let message = format!(
            "{}: not supported; expected TLSRoute at a listener with protocol TLS",
            wanted.invalid_kinds.join(", ")
        );
        condition("ResolvedRefs", false, "InvalidRouteKinds", message)
    };
    let failed: Vec<String> = failures(wanted, applied).map(|(_, failure)| failure.reason.clone()).collect();
    let programmed = if is_served(wanted, applied) {
        condition("Programmed", true, "Programmed", String::new())
    } else if !is_accepted {
        condition("Programmed", false, "Invalid", why.clone())
    } else if !failed.is_empty() {
        condition("Programmed", false, "Invalid", failed.join("; "))
    } else {
        condition("Programmed", false, "Invalid", "not served".into())
    };
    vec![condition("Accepted", is_accepted, accepted, why), conflict, resolved, programmed]
}

/// The addresses at which clients reach the listeners.
pub(super) fn addresses(published: &Published, applied: &Applied) -> Vec<PublishedAddress> {
    match published {
        Published::Own => applied.own_addresses.iter().copied().map(PublishedAddress::Ip).collect(),
        Published::Addresses(addresses) => addresses.clone(),
    }
}

/// Why a listener is not accepted. A port that another process uses is one of the reasons.
fn refusal(listener: &ListenerStatus, applied: &Applied) -> Option<Problem> {
    let own = listener.refused.clone().or_else(|| listener.conflict.clone());
    own.or_else(|| {
        let mut failures = failures(listener, applied).filter(|(_, failure)| !failure.is_address);
        let (_, failure) = failures.next()?;
        Some(Problem { reason: "PortUnavailable", message: failure.reason.clone() })
    })
}

fn failures<'a>(
    listener: &'a ListenerStatus,
    applied: &'a Applied,
) -> impl Iterator<Item = (&'a SocketAddr, &'a ListenFailure)> {
    listener.sockets.iter().filter_map(|address| applied.failed.get_key_value(address))
}

/// Whether clients can connect at one of its addresses.
fn is_served(listener: &ListenerStatus, applied: &Applied) -> bool {
    listener.sockets.iter().any(|address| !applied.failed.contains_key(address))
}
