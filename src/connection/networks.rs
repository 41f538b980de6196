//! Networks in `allow`, `deny` and `accept_proxy.from`.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::text::units::counted;

/// Networks, those of files among them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Networks(Box<[Arc<NetworkSet>]>);

/// A set of networks. A lookup is a binary search, however many there are.
#[derive(Debug)]
pub(crate) struct NetworkSet {
    /// First and last addresses, sorted; no two ranges overlap.
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
    /// Digest of the ranges. Many routes may have this set, and all of them are compared at a reload.
    digest: u64,
    /// Where they were read from, and how many.
    file: Option<(PathBuf, usize)>,
}

/// A network that contains an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FoundNetwork<'n> {
    /// Adjacent networks that form a larger one are merged.
    pub(crate) network: IpNet,
    /// The file that has it.
    pub(crate) file: Option<&'n Path>,
}

impl FromIterator<Arc<NetworkSet>> for Networks {
    fn from_iter<I: IntoIterator<Item = Arc<NetworkSet>>>(sets: I) -> Self {
        Self(sets.into_iter().collect())
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        Self([Arc::new(networks.into_iter().collect())].into())
    }
}

impl Networks {
    /// Whether the address, in its canonical form, is in one of them.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.find(address).is_some()
    }

    /// The network that contains the address, in its canonical form.
    pub(crate) fn find(&self, address: IpAddr) -> Option<FoundNetwork<'_>> {
        self.0.iter().find_map(|set| {
            let file = set.file.as_ref().map(|(path, _)| &**path);
            set.find(address).map(|network| FoundNetwork { network, file })
        })
    }
}

impl FromIterator<IpNet> for NetworkSet {
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
        let mut hasher = DefaultHasher::new();
        (&v4, &v6).hash(&mut hasher);
        Self { v4: v4.into(), v6: v6.into(), digest: hasher.finish(), file: None }
    }
}

impl NetworkSet {
    /// The networks of a file.
    pub(crate) fn of_file(path: &Path, networks: Vec<IpNet>) -> Self {
        let file = Some((path.into(), networks.len()));
        Self { file, ..networks.into_iter().collect() }
    }

    fn find(&self, address: IpAddr) -> Option<IpNet> {
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

/// The network with this first and last address.
fn network_v4((first, last): (u32, u32)) -> IpNet {
    let length = (first ^ last).leading_zeros();
    Ipv4Net::new_assert(first.into(), u8::try_from(length).unwrap_or(32)).into()
}

fn network_v6((first, last): (u128, u128)) -> IpNet {
    let length = (first ^ last).leading_zeros();
    Ipv6Net::new_assert(first.into(), u8::try_from(length).unwrap_or(128)).into()
}

impl PartialEq for NetworkSet {
    fn eq(&self, other: &Self) -> bool {
        let Self { v4, v6, digest, file: _ } = self;
        *digest == other.digest && *v4 == other.v4 && *v6 == other.v6
    }
}

impl Eq for NetworkSet {}

impl Hash for NetworkSet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, set) in self.0.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            set.fmt(f)?;
        }
        Ok(())
    }
}

/// Networks and fingerprints listed by `Display`; the rest are counted.
pub(super) const MAX_SHOWN: usize = 16;

impl fmt::Display for NetworkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((path, count)) = &self.file {
            return write!(f, "{} ({})", path.display(), counted(*count, "network"));
        }
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

impl fmt::Display for FoundNetwork<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, file } = self;
        write!(f, "{network}")?;
        file.map_or(Ok(()), |file| write!(f, " of {}", file.display()))
    }
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
        let one = networks(&["192.0.2.7/32"]);
        assert!(one.contains(ip("192.0.2.7")) && !one.contains(ip("192.0.2.8")));
        assert!(!networks(&[]).contains(ip("192.0.2.7")));
    }

    #[test]
    fn networks_of_a_file_are_equal_wherever_it_is() {
        let list = || vec!["10.0.0.0/9".parse().unwrap(), "10.128.0.0/9".parse().unwrap()];
        let of = |path: &str, networks| Networks::from_iter([Arc::new(NetworkSet::of_file(Path::new(path), networks))]);
        let (one, another) = (of("a", list()), of("b", list()));
        assert_eq!(one, another);
        assert_ne!(one, of("a", list().split_off(1)));
        assert_eq!(one.to_string(), "a (2 networks)");
        assert_eq!(one.find(ip("10.1.2.3")).unwrap().to_string(), "10.0.0.0/8 of a");
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
