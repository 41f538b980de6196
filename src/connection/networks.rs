//! Networks in access rules and `accept_proxy.from`.

use std::fmt;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A set of networks. A lookup is a binary search, however many there are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Networks {
    /// First and last addresses, sorted; no two ranges overlap.
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match network {
                IpNet::V4(network) => v4.push(network),
                IpNet::V6(network) => v6.push(network),
            }
        }
        let v4 = Ipv4Net::aggregate(&v4).into_iter().map(|net| (net.network().into(), net.broadcast().into()));
        let v6 = Ipv6Net::aggregate(&v6).into_iter().map(|net| (net.network().into(), net.broadcast().into()));
        let (mut v4, mut v6): (Vec<_>, Vec<_>) = (v4.collect(), v6.collect());
        v4.sort_unstable();
        v6.sort_unstable();
        Self { v4: v4.into(), v6: v6.into() }
    }
}

impl Networks {
    /// Whether the address, in its canonical form, is in one of them.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.find(address).is_some()
    }

    /// The network that contains the address, in its canonical form. Adjacent networks that form a larger one are merged.
    pub(crate) fn find(&self, address: IpAddr) -> Option<IpNet> {
        fn find<T: Copy + Ord>(ranges: &[(T, T)], address: T) -> Option<(T, T)> {
            let after = ranges.partition_point(|(first, _)| *first <= address);
            after.checked_sub(1).map(|index| ranges[index]).filter(|(_, last)| address <= *last)
        }
        match address {
            IpAddr::V4(address) => find(&self.v4, address.into()).map(network_v4),
            IpAddr::V6(address) => find(&self.v6, address.into()).map(network_v6),
        }
    }
}

/// Networks listed by `Display`; the rest are counted.
const MAX_SHOWN: usize = 16;

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v4 = self.v4.iter().copied().map(network_v4);
        let all = v4.chain(self.v6.iter().copied().map(network_v6));
        for (index, network) in all.take(MAX_SHOWN).enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            if network.prefix_len() == network.max_prefix_len() {
                write!(f, "{}", network.addr())?;
            } else {
                write!(f, "{network}")?;
            }
        }
        match (self.v4.len() + self.v6.len()).saturating_sub(MAX_SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// The network with this first and last address.
fn network_v4((first, last): (u32, u32)) -> IpNet {
    let length = (first ^ last).leading_zeros();
    Ipv4Net::new_assert(first.into(), u8::try_from(length).unwrap_or(32)).into()
}

fn network_v6((first, last): (u128, u128)) -> IpNet {
    let length = (first ^ last).leading_zeros();
    Ipv6Net::new_assert(first.into(), u8::try_from(length).unwrap_or(128)).into()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn networks(list: &[&str]) -> Networks {
        list.iter().map(|network| network.parse::<IpNet>().unwrap()).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn e03_the_largest_and_the_smallest_networks() {
        let everyone = networks(&["0.0.0.0/0"]);
        assert!(everyone.contains(ip("255.255.255.255")) && !everyone.contains(ip("::1")));
        assert!(networks(&["::/0"]).contains(ip("ffff::")));
        assert!(
            networks(&["192.0.2.7/32"]).contains(ip("192.0.2.7"))
                && !networks(&["192.0.2.7/32"]).contains(ip("192.0.2.8"))
        );
    }

    proptest! {
        #[test]
        fn e03_agrees_with_a_scan_over_all_networks(
            list in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..20),
            near in proptest::collection::vec(any::<(u8, i8)>(), 1..20),
        ) {
            let list: Vec<Ipv4Net> = list.iter().map(|(bits, length)| Ipv4Net::new((*bits).into(), *length).unwrap().trunc()).collect();
            let set: Networks = list.iter().map(|network| IpNet::V4(*network)).collect();
            for (number, offset) in near {
                let base: u32 = list.get(usize::from(number) % list.len().max(1)).map_or(0, |network| network.broadcast().into());
                let address = Ipv4Addr::from(base.wrapping_add_signed(offset.into()));
                prop_assert_eq!(set.contains(address.into()), list.iter().any(|network| network.contains(&address)), "{}", address);
            }
        }
    }
}
