//! Conditions, with the reasons that the API names.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::gateway::plan::{Applied, Condition, GatewayStatus, ListenerStatus, Problem, Published, PublishedAddress};
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
            "message": shortened(message, MAX_MESSAGE),
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

    let unusable: BTreeMap<IpAddr, String> =
        requested.iter().filter_map(|address| Some((*address, unusable(*address, published, applied)?))).collect();
    let usable = requested.iter().filter(|address| !unusable.contains_key(address));
    let assigned: Vec<PublishedAddress> = if requested.is_empty() {
        addresses(published, applied)
    } else {
        usable.map(|address| PublishedAddress::Ip(*address)).collect()
    };
    let is_programmed = listeners.iter().any(|listener| is_served(listener, applied));
    let programmed = if !is_accepted.is_true {
        condition("Programmed", false, "Invalid", is_accepted.message.clone())
    } else if !unusable.is_empty() {
        condition("Programmed", false, "AddressNotUsable", unusable.into_values().collect::<Vec<_>>().join("; "))
    } else if assigned.is_empty() {
        condition("Programmed", false, "AddressNotAssigned", "no address is known yet".into())
    } else if !is_programmed {
        condition("Programmed", false, "Invalid", "no listener could be opened".into())
    } else {
        condition("Programmed", true, "Programmed", String::new())
    };
    GatewayOutcome { conditions: vec![is_accepted, programmed], addresses: assigned, generation: *generation }
}

/// Why an address that a Gateway requests cannot be used.
fn unusable(address: IpAddr, published: &Published, applied: &Applied) -> Option<String> {
    match published {
        Published::Own => {
            applied.failed.iter().find(|(socket, _)| socket.ip() == address).map(|(_, reason)| reason.clone())
        }
        Published::Addresses(addresses) => {
            let is_published = addresses.contains(&PublishedAddress::Ip(address));
            (!is_published).then(|| format!("{address} is not an address at which clients reach the listeners"))
        }
    }
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
    let resolved = Condition::resolved_refs(wanted.unresolved.as_ref());
    let programmed = if is_served(wanted, applied) {
        condition("Programmed", true, "Programmed", String::new())
    } else if !is_accepted {
        condition("Programmed", false, "Invalid", why.clone())
    } else {
        let mut failures = wanted.sockets.iter().filter_map(|socket| applied.failed.get(socket));
        let reason = failures.next().cloned();
        condition(
            "Programmed",
            false,
            "Invalid",
            reason.unwrap_or_else(|| "the Gateway is not accepted, or no kind of route is supported".into()),
        )
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
        let everywhere = listener.sockets.iter().find(|socket| socket.ip().is_unspecified())?;
        let message = applied.failed.get(everywhere)?.clone();
        Some(Problem { reason: "PortUnavailable", message })
    })
}

/// Whether clients can connect at one of its addresses.
fn is_served(listener: &ListenerStatus, applied: &Applied) -> bool {
    listener.sockets.iter().any(|address| !applied.failed.contains_key(address))
}

/// The beginning of a text, of at most so many bytes.
pub(crate) fn shortened(text: &str, most: usize) -> &str {
    let ends = text.char_indices().map(|(index, letter)| index + letter.len_utf8());
    &text[..ends.take_while(|end| *end <= most).last().unwrap_or(0)]
}
