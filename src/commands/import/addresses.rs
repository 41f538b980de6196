//! Sets of client addresses, and the `allow` and `deny` lists that admit such a set.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// First and last addresses, in ascending order, neither overlapping nor adjacent.
type Ranges = Vec<(u128, u128)>;

const V4_LAST: u128 = u32::MAX as u128;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct AddressSet {
    v4: Ranges,
    v6: Ranges,
}

/// An empty list restricts nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct AccessList {
    pub(super) allow: Vec<IpNet>,
    pub(super) deny: Vec<IpNet>,
}

impl AccessList {
    pub(super) fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    pub(super) fn deny_all() -> Self {
        Self { allow: Vec::new(), deny: AddressSet::all().networks() }
    }

    /// Admits exactly the clients `wanted` of all clients `within`; with the networks that the source mentions, if
    /// that is possible.
    pub(super) fn of(wanted: &AddressSet, within: &AddressSet, mentioned: &[IpNet]) -> Self {
        if wanted == within {
            return Self::default();
        }
        // An empty list of networks to allow would admit everyone.
        if wanted.is_empty() {
            return Self::deny_all();
        }
        let admits_wanted = |sources: &Self| sources.admitted(within) == *wanted;
        let overlaps = |network: &IpNet, set: &AddressSet| !AddressSet::of(&[*network]).and(set).is_empty();
        let denied: Vec<IpNet> = mentioned.iter().filter(|network| !overlaps(network, wanted)).copied().collect();
        let denied: Vec<IpNet> = denied.into_iter().filter(|network| overlaps(network, within)).collect();
        let allowed: Vec<IpNet> = mentioned.iter().filter(|network| overlaps(network, wanted)).copied().collect();
        let inside: Vec<IpNet> = {
            let allowed = AddressSet::of(&allowed);
            denied.iter().filter(|network| overlaps(network, &allowed)).copied().collect()
        };
        let allowed_only = Self { allow: wanted.networks(), deny: Vec::new() };
        let denied_only = Self { allow: Vec::new(), deny: within.minus(wanted).networks() };
        let shorter = if denied_only.deny.len() < allowed_only.allow.len() { denied_only } else { allowed_only };
        let candidates = [
            Self { allow: Vec::new(), deny: outermost(denied) },
            Self { allow: outermost(allowed), deny: outermost(inside) },
        ];
        candidates.into_iter().find(admits_wanted).unwrap_or(shorter)
    }

    fn admitted(&self, within: &AddressSet) -> AddressSet {
        let allowed = if self.allow.is_empty() { within.clone() } else { within.and(&AddressSet::of(&self.allow)) };
        allowed.minus(&AddressSet::of(&self.deny))
    }
}

/// Without networks that others contain.
fn outermost(networks: Vec<IpNet>) -> Vec<IpNet> {
    let mut kept: Vec<IpNet> = Vec::new();
    for network in networks {
        if !kept.iter().any(|other| other.contains(&network)) {
            kept.retain(|other| !network.contains(other));
            kept.push(network);
        }
    }
    kept
}

impl AddressSet {
    pub(super) fn none() -> Self {
        Self::default()
    }

    pub(super) fn all() -> Self {
        Self { v4: vec![(0, V4_LAST)], v6: vec![(0, u128::MAX)] }
    }

    pub(super) fn of(networks: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match network {
                IpNet::V4(net) => {
                    v4.push((u128::from(u32::from(net.network())), u128::from(u32::from(net.broadcast()))));
                }
                IpNet::V6(net) => v6.push((u128::from(net.network()), u128::from(net.broadcast()))),
            }
        }
        Self { v4: union(v4), v6: union(v6) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub(super) fn or(&self, other: &Self) -> Self {
        let joined = |one: &Ranges, other: &Ranges| union(one.iter().chain(other).copied().collect());
        Self { v4: joined(&self.v4, &other.v4), v6: joined(&self.v6, &other.v6) }
    }

    pub(super) fn and(&self, other: &Self) -> Self {
        Self { v4: common(&self.v4, &other.v4), v6: common(&self.v6, &other.v6) }
    }

    pub(super) fn not(&self) -> Self {
        Self { v4: complement(&self.v4, V4_LAST), v6: complement(&self.v6, u128::MAX) }
    }

    pub(super) fn minus(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_empty() { self.clone() } else { self.and(&other.not()) }
    }

    /// By the number of IPv4 addresses, then of IPv6 addresses.
    pub(super) fn is_larger_than(&self, other: &Self) -> bool {
        let size = |ranges: &Ranges| ranges.iter().fold(0u128, |sum, (first, last)| sum.saturating_add(last - first));
        (size(&self.v4), size(&self.v6)) > (size(&other.v4), size(&other.v6))
    }

    /// The fewest networks that make up the set.
    pub(super) fn networks(&self) -> Vec<IpNet> {
        let v4 = self.v4.iter().flat_map(|range| blocks(*range, 32)).filter_map(|(first, length)| {
            let address = Ipv4Addr::from(u32::try_from(first).ok()?);
            Ipv4Net::new(address, length).ok().map(IpNet::V4)
        });
        let v6 = self.v6.iter().flat_map(|range| blocks(*range, 128));
        let v6 = v6.filter_map(|(first, length)| Ipv6Net::new(Ipv6Addr::from(first), length).ok().map(IpNet::V6));
        v4.chain(v6).collect()
    }
}

fn union(mut ranges: Ranges) -> Ranges {
    ranges.sort_unstable();
    let mut joined: Ranges = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    joined
}

fn common(ones: &Ranges, others: &Ranges) -> Ranges {
    let (mut ones, mut others) = (ones.iter().peekable(), others.iter().peekable());
    let mut both = Vec::new();
    while let (Some((one_first, one_last)), Some((first, last))) = (ones.peek(), others.peek()) {
        let (from, to) = (*one_first.max(first), *one_last.min(last));
        if from <= to {
            both.push((from, to));
        }
        if one_last < last {
            ones.next();
        } else {
            others.next();
        }
    }
    both
}

fn complement(ranges: &Ranges, end: u128) -> Ranges {
    let mut outside = Vec::new();
    let mut next = Some(0);
    for (first, last) in ranges {
        if let Some(from) = next
            && from < *first
        {
            outside.push((from, first - 1));
        }
        next = last.checked_add(1).filter(|next| *next <= end);
    }
    outside.extend(next.map(|from| (from, end)));
    outside
}

/// The networks that make up a range: first addresses and prefix lengths.
fn blocks((first, last): (u128, u128), bits: u8) -> Vec<(u128, u8)> {
    let mut all = Vec::new();
    let mut next = Some(first);
    while let Some(from) = next.filter(|from| *from <= last) {
        let mut size = from.trailing_zeros().min(u32::from(bits));
        let end = |size: u32| if size >= 128 { u128::MAX } else { from + ((1u128 << size) - 1) };
        while end(size) > last {
            size -= 1;
        }
        all.push((from, bits - u8::try_from(size).unwrap_or(bits)));
        next = end(size).checked_add(1);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn sets_of_addresses_are_combined() {
        let ten = AddressSet::of(&nets(&["10.0.0.0/8"]));
        let part = AddressSet::of(&nets(&["10.64.0.0/16", "10.65.0.0/16", "::1/128"]));
        assert_eq!(ten.and(&part).networks(), nets(&["10.64.0.0/15"]));
        assert_eq!(ten.not().not(), ten);
        assert_eq!(ten.or(&ten.not()), AddressSet::all());
        assert_eq!(AddressSet::all().not(), AddressSet::none());
        assert_eq!(AddressSet::all().networks(), nets(&["0.0.0.0/0", "::/0"]));
        assert_eq!(ten.not().networks().len(), 9);
        assert!(ten.minus(&ten).is_empty() && AddressSet::all().is_larger_than(&ten));
        let last = AddressSet::of(&nets(&["255.255.255.255/32", "ffff::/16"]));
        assert_eq!(last.not().not().networks(), nets(&["255.255.255.255/32", "ffff::/16"]));
    }

    #[test]
    fn access_lists_use_the_networks_of_the_source() {
        let mentioned = nets(&["10.66.0.0/16", "10.0.0.0/8", "192.168.0.1/32"]);
        let allowed = AddressSet::of(&mentioned[1..]).minus(&AddressSet::of(&mentioned[..1]));
        let written = AccessList::of(&allowed, &AddressSet::all(), &mentioned);
        assert_eq!(written, AccessList { allow: mentioned[1..].to_vec(), deny: mentioned[..1].to_vec() });
        let others = AddressSet::of(&mentioned[..1]).not();
        let written = AccessList::of(&others, &AddressSet::all(), &mentioned[..1]);
        assert_eq!(written, AccessList { allow: vec![], deny: mentioned[..1].to_vec() });
        assert_eq!(AccessList::of(&others, &others, &mentioned), AccessList::default());
        let outside = AddressSet::of(&mentioned[1..2]).not();
        let nobody = AccessList::of(&AddressSet::none(), &outside, &mentioned[..2]);
        assert!(nobody.admitted(&outside).is_empty(), "{nobody:?}");
        for wanted in [&allowed, &others] {
            assert_eq!(AccessList::of(wanted, &AddressSet::all(), &[]).admitted(&AddressSet::all()), *wanted);
        }
    }
}
