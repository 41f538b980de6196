//! Classes of clients that a route can tell apart, and the client addresses within one.

use std::collections::BTreeSet;

use super::addresses::AddressSet;
use super::name_match::{NameClass, Truth};

/// Clients that differ in nothing that a route can match, except for their addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClientClass<'a> {
    pub(super) name: NameClass<'a>,
    pub(super) alpn: AlpnClass<'a>,
}

/// Routes of one frontend can tell clients apart by one list of protocols: two routes with different lists would both
/// match a client that offers protocols of both.
#[derive(Clone, Copy, Debug)]
pub(super) struct AlpnClass<'a> {
    pub(super) protocols: &'a BTreeSet<String>,
    /// Whether the client offers one of them.
    pub(super) is_offered: bool,
}

/// The client addresses for which an expression holds within one class of clients.
#[derive(Clone, Debug)]
pub(super) struct Coverage {
    pub(super) certain: AddressSet,
    /// Those for which the translation lets it hold.
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
