//! What is asked of the table, and the conditions of a route on it.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::client_hello::Alpn;
use crate::name::ServerName;

/// The properties of a client that decide its route.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// SNI (RFC 6066, section 3).
    pub server_name: Option<ServerName<'a>>,
    /// ALPN (RFC 7301).
    pub alpn: Option<Alpn<'a>>,
    /// Where it came from and where it connected to.
    pub arrival: Arrival<'a>,
}

impl<'a> Client<'a> {
    /// A client that arrived like this and sent this in its `ClientHello`.
    #[must_use]
    pub fn new(server_name: Option<ServerName<'a>>, alpn: Option<Alpn<'a>>, arrival: Arrival<'a>) -> Self {
        Self { server_name, alpn, arrival }
    }
}

/// What is known of a client before its `ClientHello`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival<'a> {
    /// Index of the listener that it connected to.
    pub listener: usize,
    /// Its own address, in canonical form; `None`: unknown, so no condition on it holds.
    pub client: Option<IpAddr>,
    /// The address that it connected to, in canonical form; `None`: unknown.
    pub destination: Option<IpAddr>,
    /// The TLVs of its PROXY header.
    pub tlvs: Tlvs<'a>,
}

/// The type-length-value vectors (TLVs) of a PROXY header, as encoded there (PROXY protocol, section 2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tlvs<'a>(&'a [u8]);

impl<'a> Tlvs<'a> {
    /// `None` if the last one is cut off.
    #[must_use]
    pub fn parse(encoded: &'a [u8]) -> Option<Self> {
        let mut rest = encoded;
        while !rest.is_empty() {
            rest = split(rest)?.2;
        }
        Some(Self(encoded))
    }

    /// Appends one to encoded TLVs; `None` if the value is longer than 65,535 bytes.
    pub fn append(encoded: &mut Vec<u8>, number: u8, value: &[u8]) -> Option<()> {
        let length = u16::try_from(value.len()).ok()?;
        encoded.push(number);
        encoded.extend(length.to_be_bytes());
        encoded.extend(value);
        Some(())
    }

    /// As in the header.
    #[must_use]
    pub fn as_encoded(self) -> &'a [u8] {
        self.0
    }

    /// Numbers and values, in their order in the header.
    pub fn iter(self) -> impl Iterator<Item = (u8, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (number, value, more) = split(rest)?;
            rest = more;
            Some((number, value))
        })
    }

    /// The values of one number.
    pub fn of(self, number: u8) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(other, _)| *other == number).map(|(_, value)| value)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// The first TLV, and what follows it.
fn split(encoded: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[number, high, low], rest) = encoded.split_first_chunk()?;
    let (value, rest) = rest.split_at_checked(u16::from_be_bytes([high, low]).into())?;
    Some((number, value, rest))
}

/// Conditions on a client besides its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Matchers {
    /// The client's PROXY header must have all of these TLVs; of several with one number, any may have the value.
    /// Sorted by number, and no number twice.
    pub proxy_tlvs: Box<[(u8, Box<[u8]>)]>,
    /// The client must have connected to an address in one of these networks; `None`: no condition.
    pub destinations: Option<Box<[IpNet]>>,
    /// The client's address must be in one of these networks; `None`: no condition.
    pub clients: Option<Box<[IpNet]>>,
    /// The client must have connected to one of these listeners, by index; `None`: no condition.
    pub listeners: Option<Box<[usize]>>,
    /// The client must offer at least one of these ALPN protocols (RFC 7301); `None`: no condition.
    pub alpn: Option<Box<[Box<[u8]>]>>,
}

impl Matchers {
    /// Whether a client with these TLVs in its PROXY header can match.
    #[must_use]
    pub fn tlvs_hold(&self, tlvs: Tlvs<'_>) -> bool {
        self.proxy_tlvs.iter().all(|(number, wanted)| tlvs.of(*number).any(|value| value == &**wanted))
    }

    /// Whether a client that connected to this address can match.
    #[must_use]
    pub fn destination_holds(&self, destination: Option<IpAddr>) -> bool {
        contains(self.destinations.as_deref(), destination)
    }

    /// Whether a client with this address can match.
    #[must_use]
    pub fn client_holds(&self, client: Option<IpAddr>) -> bool {
        contains(self.clients.as_deref(), client)
    }

    /// Whether a client of this listener can match.
    #[must_use]
    pub fn listener_holds(&self, listener: usize) -> bool {
        self.listeners.as_ref().is_none_or(|wanted| wanted.contains(&listener))
    }

    /// Whether a client that offers these protocols can match.
    #[must_use]
    pub fn alpn_holds(&self, offered: Option<Alpn<'_>>) -> bool {
        self.alpn.as_ref().is_none_or(|wanted| {
            offered.is_some_and(|offered| offered.iter().any(|offer| wanted.iter().any(|want| **want == *offer)))
        })
    }

    /// Whether all of them hold for the client.
    #[must_use]
    pub fn hold(&self, client: &Client<'_>) -> bool {
        let Arrival { listener, client: address, destination, tlvs } = client.arrival;
        self.tlvs_hold(tlvs)
            && self.destination_holds(destination)
            && self.client_holds(address)
            && self.listener_holds(listener)
            && self.alpn_holds(client.alpn)
    }

    /// Whether a client can have the TLVs of both: not if one number would need two values.
    pub(super) fn tlvs_can_meet(&self, other: &Self) -> bool {
        self.proxy_tlvs.iter().all(|(number, value)| {
            other.proxy_tlvs.iter().all(|(other_number, other_value)| number != other_number || value == other_value)
        })
    }

    /// Whether a client can be at a listener of both.
    pub(super) fn listeners_can_meet(&self, other: &Self) -> bool {
        match (&self.listeners, &other.listeners) {
            (Some(ours), Some(theirs)) => ours.iter().any(|listener| theirs.contains(listener)),
            _ => true,
        }
    }
}

fn contains(networks: Option<&[IpNet]>, address: Option<IpAddr>) -> bool {
    networks
        .is_none_or(|networks| address.is_some_and(|address| networks.iter().any(|network| network.contains(&address))))
}
