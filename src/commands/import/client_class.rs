//! Classes of clients that a route can tell apart, and the client addresses within one.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::addresses::AddressSet;
use super::name_match::{NameClass, Truth};

/// Clients that differ in nothing that a route can match, except for their own addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientClass<'a> {
    pub(super) name: NameClass<'a>,
    pub(super) arrival: ArrivalClass<'a>,
    pub(super) alpn: AlpnClass<'a>,
}

/// How clients arrive, as far as rules tell that apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArrivalClass<'a> {
    /// The longest network of any rule that contains the address that they connect to; `None`: in no network.
    pub(super) destination: Option<IpNet>,
    pub(super) tlv: TlvClass<'a>,
}

/// Routes of one name can tell clients apart by the values of one TLV: a client may have any other TLV, too.
#[derive(Clone, Copy, Debug)]
pub(super) enum TlvClass<'a> {
    /// No client has TLVs, or no rule tests them.
    Any,
    /// `None`: none of the values that rules test.
    Value { number: u8, value: Option<&'a [u8]> },
}

/// Routes that only differ in ALPN can tell clients apart by one list of protocols: two with different lists would both
/// match a client that offers protocols of both.
#[derive(Clone, Copy, Debug)]
pub(super) struct AlpnClass<'a> {
    pub(super) protocols: &'a BTreeSet<String>,
    /// Whether the client offers one of them.
    pub(super) is_offered: bool,
}

impl ArrivalClass<'_> {
    /// Whether the client connects to an address in these networks.
    pub(super) fn is_to(self, networks: &AddressSet) -> bool {
        let is_inside = |network: AddressSet| networks.and(&network) == network;
        self.destination.is_some_and(|network| is_inside(AddressSet::of(&[network])))
    }
}

impl TlvClass<'_> {
    /// Whether the client has this TLV with one of these values; an error is the number of the TLV that is known.
    pub(super) fn has(self, number: u8, values: &BTreeSet<Vec<u8>>) -> Result<bool, u8> {
        match self {
            Self::Any => Ok(false),
            Self::Value { number: own, value } if own == number => {
                Ok(value.is_some_and(|value| values.contains(value)))
            }
            Self::Value { number: other, .. } => Err(other),
        }
    }
}

/// The client addresses for which an expression holds within one class of clients.
#[derive(Clone, Debug)]
pub(super) struct Coverage {
    pub(super) certain: AddressSet,
    /// Addresses for which the translation lets it hold.
    pub(super) assumed: AddressSet,
    pub(super) possible: AddressSet,
}

impl Coverage {
    pub(super) fn of(truth: Truth) -> Self {
        let all = |holds| if holds { AddressSet::all() } else { AddressSet::none() };
        let (certain, assumed, possible) = match truth {
            Truth::Yes => (true, true, true),
            Truth::No => (false, false, false),
            Truth::Partly { assumed } => (false, assumed, true),
        };
        Self { certain: all(certain), assumed: all(assumed), possible: all(possible) }
    }

    pub(super) fn combine(self, other: &Self, operation: fn(&AddressSet, &AddressSet) -> AddressSet) -> Self {
        Self {
            certain: operation(&self.certain, &other.certain),
            assumed: operation(&self.assumed, &other.assumed),
            possible: operation(&self.possible, &other.possible),
        }
    }
}
