//! What happens to clients of one name, by the address that they connect to, a TLV and ALPN.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::class_result::{ClassResult, compare_without_sni};
use super::distinctions::Distinctions;
use super::evaluate::Evaluator;
use crate::commands::import::client_class::{AlpnClass, ArrivalClass, ClientClass, TlvClass};
use crate::commands::import::name_match::NameClass;
use crate::commands::import::notes::Notes;

#[derive(Debug)]
pub(super) struct NameResult {
    /// The first is for all arrivals that no other is for.
    pub(super) by_arrival: Vec<ArrivalResult>,
}

/// What happens to clients that arrive alike, without and with the protocols of the ALPN test, if there is one.
#[derive(Debug)]
pub(super) struct ArrivalResult {
    /// Empty: all others.
    pub(super) destinations: Vec<IpNet>,
    pub(super) tlv: Option<(u8, Vec<u8>)>,
    pub(super) plain: ClassResult,
    /// The protocols of `with_alpn`.
    pub(super) alpn: BTreeSet<String>,
    pub(super) with_alpn: Option<ClassResult>,
}

impl ArrivalResult {
    pub(super) fn is_general(&self) -> bool {
        self.destinations.is_empty() && self.tlv.is_none()
    }

    fn is_same(&self, other: &Self) -> bool {
        (&self.plain, &self.with_alpn) == (&other.plain, &other.with_alpn)
            && (self.with_alpn.is_none() || self.alpn == other.alpn)
    }

    /// Whether clients of `other` match the route of this one, if they have no more specific one.
    fn covers(&self, other: &Self) -> bool {
        let contains = |network: &IpNet| other.destinations.iter().all(|other| network.contains(other));
        let is_wider = match (&self.destinations[..], &other.destinations[..]) {
            ([], _) => true,
            (_, []) => false,
            (networks, _) => networks.iter().any(contains),
        };
        is_wider && (self.tlv.is_none() || self.tlv == other.tlv)
    }

    /// In the order in which routes are preferred.
    fn specificity(&self) -> (bool, Option<u8>) {
        (self.tlv.is_some(), self.destinations.first().map(IpNet::prefix_len))
    }
}

impl NameResult {
    pub(super) fn evaluate(evaluator: &mut Evaluator<'_>, name: NameClass<'_>) -> Self {
        let distinctions = evaluator.distinctions(&[name]);
        Self::new(evaluate_all(evaluator, name, &[name], &distinctions))
    }

    /// For clients with other names, compared with those without SNI, whose routes are the same.
    pub(super) fn of_others(evaluator: &mut Evaluator<'_>, notes: &mut Notes) -> Self {
        let both = [NameClass::Other, NameClass::NoSni];
        let distinctions = evaluator.distinctions(&both);
        let [others, without_sni] = both.map(|name| evaluate_all(evaluator, name, &both, &distinctions));
        for (others, without_sni) in others.iter().zip(&without_sni) {
            compare_without_sni(&others.plain, &without_sni.plain, notes);
            if others.with_alpn.is_some() || without_sni.with_alpn.is_some() {
                let with_alpn = |one: &ArrivalResult| one.with_alpn.as_ref().unwrap_or(&one.plain).clone();
                compare_without_sni(&with_alpn(others), &with_alpn(without_sni), notes);
            }
        }
        Self::new(others)
    }

    /// Leaves out what more general routes do as well.
    fn new(all: Vec<ArrivalResult>) -> Self {
        let mut kept: Vec<ArrivalResult> = Vec::new();
        for result in all {
            let general = kept.iter().filter(|other| other.covers(&result)).max_by_key(|other| other.specificity());
            if general.is_none_or(|general| !general.is_same(&result)) {
                kept.push(result);
            }
        }
        let mut by_arrival: Vec<ArrivalResult> = Vec::new();
        for result in kept {
            let same = by_arrival.iter_mut().find(|other| {
                other.destinations.is_empty() == result.destinations.is_empty()
                    && other.tlv == result.tlv
                    && other.is_same(&result)
            });
            match same {
                Some(same) => same.destinations.extend(result.destinations),
                None => by_arrival.push(result),
            }
        }
        Self { by_arrival }
    }

    /// For arrivals that no rule tells apart from others.
    pub(super) fn general(&self) -> &ClassResult {
        &self.by_arrival[0].plain
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.by_arrival.len() == other.by_arrival.len()
            && self.by_arrival.iter().zip(&other.by_arrival).all(|(one, other)| {
                (&one.destinations, &one.tlv) == (&other.destinations, &other.tlv) && one.is_same(other)
            })
    }
}

/// `alike`: names that have the same routes.
fn evaluate_all(
    evaluator: &mut Evaluator<'_>,
    name: NameClass<'_>,
    alike: &[NameClass<'_>],
    distinctions: &Distinctions,
) -> Vec<ArrivalResult> {
    let evaluate = |arrival: ArrivalClass<'_>| {
        let protocols = evaluator.alpn_protocols(alike, arrival);
        let mut result = |is_offered| {
            let alpn = AlpnClass { protocols: &protocols, is_offered };
            evaluator.evaluate(ClientClass { name, arrival, alpn })
        };
        let plain = result(false);
        let with_alpn = (!protocols.is_empty()).then(|| result(true)).filter(|with_alpn| *with_alpn != plain);
        let tlv = match arrival.tlv {
            TlvClass::Any | TlvClass::Value { value: None, .. } => None,
            TlvClass::Value { number, value: Some(value) } => Some((number, value.to_vec())),
        };
        let destinations = arrival.destination.into_iter().collect();
        ArrivalResult { destinations, tlv, plain, alpn: protocols, with_alpn }
    };
    distinctions.arrivals().into_iter().map(evaluate).collect()
}
