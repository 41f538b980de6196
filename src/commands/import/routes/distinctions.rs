//! How rules tell apart where clients arrive.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::commands::import::addresses::AddressSet;
use crate::commands::import::client_class::{ArrivalClass, TlvClass};
use crate::commands::import::expression::Test;

/// For clients of one name.
#[derive(Clone, Debug, Default)]
pub(super) struct Distinctions {
    /// Short prefixes first.
    destinations: Vec<IpNet>,
    /// The first TLV that is tested, and its values.
    tlv: Option<(u8, BTreeSet<Vec<u8>>)>,
}

impl Distinctions {
    pub(super) fn add(&mut self, test: &Test) {
        match test {
            Test::Destination(networks) => self.destinations.extend(networks.networks()),
            Test::ProxyTlv(number, values) => {
                let (first, all) = self.tlv.get_or_insert_with(|| (*number, BTreeSet::new()));
                if first == number {
                    all.extend(values.iter().cloned());
                }
            }
            Test::Names(_)
            | Test::HasSni
            | Test::ClientAddress(_)
            | Test::Alpn(_)
            | Test::Constant(_)
            | Test::OverLimit(_)
            | Test::Unknown(_) => {}
        }
    }

    /// Without networks that others divide up.
    pub(super) fn finish(&mut self) {
        let all = std::mem::take(&mut self.destinations);
        let inner = |network: &IpNet| {
            let inner = all.iter().filter(|other| *other != network && network.contains(*other));
            AddressSet::of(&inner.copied().collect::<Vec<_>>())
        };
        let has_own = |network: &IpNet| !AddressSet::of(&[*network]).minus(&inner(network)).is_empty();
        self.destinations = all.iter().filter(|network| has_own(network)).copied().collect();
        self.destinations.sort_by_key(|network| (network.prefix_len(), *network));
        self.destinations.dedup();
    }

    /// The general ones first.
    pub(super) fn arrivals(&self) -> Vec<ArrivalClass<'_>> {
        let tlvs: Vec<TlvClass<'_>> = match &self.tlv {
            None => vec![TlvClass::Any],
            Some((number, values)) => {
                let values = std::iter::once(None).chain(values.iter().map(|value| Some(value.as_slice())));
                values.map(|value| TlvClass::Value { number: *number, value }).collect()
            }
        };
        let destinations = || std::iter::once(None).chain(self.destinations.iter().copied().map(Some));
        let arrivals = |tlv| destinations().map(move |destination| ArrivalClass { destination, tlv });
        tlvs.into_iter().flat_map(arrivals).collect()
    }
}
