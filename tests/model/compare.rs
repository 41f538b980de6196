//! What is seen and logged of one connection, beside what is expected.

use serde_json::Value;

use super::bytes::{self, payload};
use super::expectation::{Ended, How, Seen};
use super::peer::Peer;
use super::script::{Arrival, From, Sends, Side};
use super::world::listener;
use crate::support::client::{End, alert};

/// How far what is seen is what is expected.
pub enum Looks {
    Right,
    /// This is still missing.
    Incomplete(String),
}

impl Looks {
    pub fn and(self, other: Self) -> Self {
        match self {
            Self::Right => other,
            Self::Incomplete(_) => self,
        }
    }

    pub fn is_right(&self) -> bool {
        matches!(self, Self::Right)
    }
}

/// What one end of a connection has received from the other one, which began with `first`.
pub fn look(who: &str, peer: &Peer, expected: &Seen, number: usize, from: Side, first: &[u8]) -> Result<Looks, String> {
    let received = &peer.received;
    if received.len() > *expected.bytes.end() {
        return Err(format!("{who} got {} bytes, expected {:?}", received.len(), expected.bytes));
    }
    let is_the_same = match expected.is_alert {
        Some(description) => alert(description).starts_with(received),
        None => {
            let begin = received.len().min(first.len());
            let checked = peer.checked.get().max(begin);
            let more = payload(number, from, checked - begin, received.len() - checked);
            received[..begin] == first[..begin] && received[checked..] == more
        }
    };
    if !is_the_same {
        let begin = &received[..received.len().min(40)];
        return Err(format!(
            "{who} got other bytes than were sent: {} of them, {}",
            received.len(),
            begin.escape_ascii()
        ));
    }
    peer.checked.set(received.len());
    let has_all = expected.bytes.contains(&received.len());
    let has_ended = match (expected.end, peer.end) {
        (How::Open, None) | (How::Fin, Some(End::Fin)) | (How::Reset, Some(End::Reset)) | (How::Either, Some(_)) => {
            true
        }
        (How::Fin | How::Reset | How::Either, None) => false,
        (How::Open | How::Fin | How::Reset, Some(_)) => {
            return Err(format!("{who} saw {:?} after {} bytes, expected {expected:?}", peer.end, received.len()));
        }
    };
    if !has_all && peer.end.is_some() {
        return Err(format!("{who} saw the end after {} bytes, expected {expected:?}", received.len()));
    }
    if has_all && has_ended && (peer.has_sent_all() || peer.end.is_some()) {
        Ok(Looks::Right)
    } else {
        Ok(Looks::Incomplete(format!(
            "{who} has {} bytes and end {:?}, expected {expected:?}",
            received.len(),
            peer.end
        )))
    }
}

/// The line of an ended connection says what has happened.
pub fn account(
    line: &Value,
    arrival: &Arrival,
    ended: &Ended,
    endpoints: &[String],
    client: Option<&Peer>,
    upstream: Option<&Peer>,
) -> Result<(), String> {
    let mut wrong = Vec::new();
    let is_completed = ended.is_perhaps_completed && line["outcome"] == "completed";
    let mut check = |field: &str, expected: Value| {
        if line[field] != expected {
            wrong.push(format!("{field} is not {expected}"));
        }
    };
    check("closed_by", if is_completed { "client" } else { ended.closed_by }.into());
    check("route", ended.route.into());
    check("listener", listener(arrival).into());
    if let Some(reason) = ended.reason {
        check("reason", (!is_completed).then_some(reason).into());
    }
    let has_hello = arrival.sends == Sends::Hello
        && !matches!(arrival.from, From::PlainWithHeader | From::WithoutHeader | From::Unlisted);
    if has_hello {
        check("server.address", bytes::name(arrival.name).into());
        check("tls.next_protocol", arrival.offers_h2.then_some("h2,http/1.1").into());
    }
    let is_named = matches!(arrival.from, From::HeaderV1 | From::HeaderV2 | From::HeaderV2WithTlv);
    if is_named && arrival.sends != Sends::Nothing {
        check("client.address", bytes::proxied(arrival).ip().to_string().into());
        check("client.port", bytes::proxied(arrival).port().into());
        check("network.peer.address", bytes::source(arrival).to_string().into());
    } else {
        check("client.address", bytes::source(arrival).to_string().into());
        if let Some(client) = client {
            check("client.port", client.addresses[0].port().into());
        }
        check("network.peer.address", Value::Null);
    }
    if let Some(upstream) = upstream {
        check("upstream.local.address", upstream.addresses[1].to_string().into());
    }
    if !is_completed && !ended.outcomes.iter().any(|outcome| line["outcome"] == *outcome) {
        wrong.push(format!("outcome is not one of {:?}", ended.outcomes));
    }
    let endpoint = &line["upstream.address"];
    let is_right_endpoint = if endpoints.is_empty() {
        endpoint.is_null()
    } else {
        endpoints.iter().any(|expected| endpoint == expected.as_str())
    };
    if !is_right_endpoint {
        wrong.push(format!("upstream.address is not one of {endpoints:?}"));
    }
    for (field, range) in ["bytes.received", "bytes.sent"].into_iter().zip(&ended.bytes) {
        if !line[field].as_u64().is_some_and(|bytes| range.contains(&(bytes as usize))) {
            wrong.push(format!("{field} is not in {range:?}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(format!("{}: {line}", wrong.join("; "))) }
}
