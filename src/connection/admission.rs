//! Who may come in, and how many at a time.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tokio::time::Instant;

use crate::text::units::span;

/// A set of networks. A lookup is a binary search, however many there are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Networks {
    /// First and last addresses, ordered; no two overlap.
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

    /// The one that the address, in its canonical form, is in. Networks that are one together count as one.
    pub(crate) fn find(&self, address: IpAddr) -> Option<IpNet> {
        fn find<T: Copy + Ord>(ranges: &[(T, T)], address: T) -> Option<(T, T)> {
            let after = ranges.partition_point(|(first, _)| *first <= address);
            after.checked_sub(1).map(|number| ranges[number]).filter(|(_, last)| address <= *last)
        }
        match address {
            IpAddr::V4(address) => find(&self.v4, address.into()).map(network_v4),
            IpAddr::V6(address) => find(&self.v6, address.into()).map(network_v6),
        }
    }
}

/// From where clients may come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Sources {
    /// From nowhere else, if there are any.
    pub(crate) allow: Option<Networks>,
    /// Not from there, whatever is allowed.
    pub(crate) deny: Option<Networks>,
}

impl Sources {
    /// Whether a client with this canonical address may come in.
    pub(crate) fn admit(&self, client: IpAddr) -> bool {
        self.decide(client).is_ok()
    }

    /// The network by which it may, if it takes one; or why it may not.
    pub(crate) fn decide(&self, client: IpAddr) -> Result<Option<IpNet>, NotAdmitted> {
        if let Some(network) = self.deny.as_ref().and_then(|deny| deny.find(client)) {
            return Err(NotAdmitted::Denied(network));
        }
        self.allow.as_ref().map(|allow| allow.find(client).ok_or(NotAdmitted::NotAllowed)).transpose()
    }
}

/// Why a client may not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// It comes from this network of `deny`.
    Denied(IpNet),
    /// It comes from none of `allow`.
    NotAllowed,
}

/// More are counted.
const MAX_SHOWN: usize = 16;

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v4 = self.v4.iter().copied().map(network_v4);
        let all = v4.chain(self.v6.iter().copied().map(network_v6));
        for (number, network) in all.take(MAX_SHOWN).enumerate() {
            f.write_str(if number == 0 { "" } else { ", " })?;
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

/// What the two ends of a network are those of.
fn network_v4((first, last): (u32, u32)) -> IpNet {
    let length = (first ^ last).leading_zeros();
    Ipv4Net::new_assert(first.into(), u8::try_from(length).unwrap_or(32)).into()
}

fn network_v6((first, last): (u128, u128)) -> IpNet {
    let length = (first ^ last).leading_zeros();
    Ipv6Net::new_assert(first.into(), u8::try_from(length).unwrap_or(128)).into()
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.allow {
            None => f.write_str("allow all")?,
            Some(allow) => write!(f, "allow {allow}")?,
        }
        self.deny.as_ref().map_or(Ok(()), |deny| write!(f, ", deny {deny}"))
    }
}

/// How much one source may have: an IPv4 address, or the 64 bits of IPv6 that a network has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceLimits {
    /// Connections at a time.
    pub(crate) concurrent: Option<u32>,
    /// New connections.
    pub(crate) new: Option<Rate>,
}

/// So many in so much time, at once if they come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// At least 1.
    pub(crate) count: u32,
    /// Not zero.
    pub(crate) per: Duration,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "m",
            3600 => "h",
            _ => return write!(f, "{} per {}", self.count, span(self.per)),
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// Why a source may have no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// It has so many connections.
    Concurrent(u32),
    /// It comes faster than this.
    New(Rate),
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Concurrent(limit) => write!(f, "its source has {limit} connections already (limits.per_source)"),
            Self::New(rate) => write!(f, "its source makes more than {rate} (limits.new_per_source)"),
        }
    }
}

const SHARDS: usize = 16;
/// Sources without a connection that a shard remembers, give or take: who comes from ever new addresses makes others
/// forgotten, which gives them a fresh rate, but takes no memory.
const MAX_IDLE: usize = 4096;

/// What each source has. It outlives every configuration.
#[derive(Debug)]
pub(crate) struct Table {
    shards: [Mutex<Shard>; SHARDS],
    // Keyed, so that sources cannot be chosen to collide.
    hasher: RandomState,
}

#[derive(Debug)]
struct Shard {
    sources: HashMap<Source, Entry>,
    /// With so many it is cleared of those that matter no more.
    sweep_at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    V4(Ipv4Addr),
    V6(u64),
}

impl Source {
    fn of(client: IpAddr) -> Self {
        match client {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6(u64::try_from(u128::from(address) >> 64).unwrap_or(0)),
        }
    }
}

#[derive(Debug)]
struct Entry {
    open: u32,
    /// When all that it has used of its rate is given back.
    rested: Instant,
}

impl Default for Table {
    fn default() -> Self {
        let shard = |_| Mutex::new(Shard { sources: HashMap::new(), sweep_at: MAX_IDLE });
        Self { shards: std::array::from_fn(shard), hasher: RandomState::new() }
    }
}

impl Table {
    /// A place for a connection from there, if there is a limit; or why it gets none.
    pub(crate) fn enter(
        self: &Arc<Self>,
        client: IpAddr,
        limits: &SourceLimits,
    ) -> Result<Option<SourcePermit>, Excess> {
        if *limits == SourceLimits::default() {
            return Ok(None);
        }
        let source = Source::of(client);
        let now = Instant::now();
        let mut shard = self.shard(source);
        shard.make_room(now);
        let entry = shard.sources.entry(source).or_insert(Entry { open: 0, rested: now });
        if let Some(limit) = limits.concurrent
            && entry.open >= limit
        {
            return Err(Excess::Concurrent(limit));
        }
        if let Some(rate) = limits.new {
            let rested = entry.rested.max(now) + rate.per / rate.count;
            if rested > now + rate.per {
                return Err(Excess::New(rate));
            }
            entry.rested = rested;
        }
        entry.open += 1;
        drop(shard);
        Ok(Some(SourcePermit { table: Arc::clone(self), source }))
    }

    fn shard(&self, source: Source) -> MutexGuard<'_, Shard> {
        let number = usize::try_from(self.hasher.hash_one(source) % SHARDS as u64).unwrap_or(0);
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn make_room(&mut self, now: Instant) {
        if self.sources.len() < self.sweep_at {
            return;
        }
        self.sources.retain(|_, entry| entry.open > 0 || entry.rested > now);
        let is_busy = |entry: &&Entry| entry.open > 0;
        let open = self.sources.values().filter(is_busy).count();
        if self.sources.len() - open >= MAX_IDLE / 2 {
            self.sources.retain(|_, entry| entry.open > 0);
        }
        self.sweep_at = open + MAX_IDLE;
    }
}

/// A connection's place among those of its source, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct SourcePermit {
    table: Arc<Table>,
    source: Source,
}

impl Drop for SourcePermit {
    fn drop(&mut self) {
        let mut shard = self.table.shard(self.source);
        if let Some(entry) = shard.sources.get_mut(&self.source) {
            entry.open -= 1;
            if entry.open == 0 && entry.rested <= Instant::now() {
                shard.sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn networks(list: &[&str]) -> Networks {
        list.iter().map(|network| network.parse::<IpNet>().unwrap()).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn e03_denied_is_denied_whatever_is_allowed() {
        let sources =
            Sources { allow: Some(networks(&["10.0.0.0/8", "2001:db8::/32"])), deny: Some(networks(&["10.1.0.0/16"])) };
        for (address, admitted) in [
            ("10.0.0.1", true),
            ("10.1.0.1", false),
            ("11.0.0.1", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(sources.admit(ip(address)), admitted, "{address}");
        }
        let network = |text: &str| text.parse::<IpNet>().unwrap();
        assert_eq!(sources.decide(ip("10.0.0.1")), Ok(Some(network("10.0.0.0/8"))));
        assert_eq!(sources.decide(ip("10.1.0.1")), Err(NotAdmitted::Denied(network("10.1.0.0/16"))));
        assert_eq!(sources.to_string(), "10.0.0.0/8, 2001:db8::/32, not from 10.1.0.0/16");
        assert!(Sources::default().admit(ip("192.0.2.1")));
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

    #[tokio::test(start_paused = true)]
    async fn e04_a_source_has_so_many_and_a_network_of_ipv6_is_one_source() {
        let table = Arc::new(Table::default());
        let limits = SourceLimits { concurrent: Some(2), new: None };
        let first = table.enter(ip("2001:db8::1"), &limits).unwrap();
        let _second = table.enter(ip("2001:db8::2"), &limits).unwrap();
        assert_eq!(table.enter(ip("2001:db8::3"), &limits).unwrap_err(), Excess::Concurrent(2));
        assert!(table.enter(ip("2001:db8:0:1::3"), &limits).is_ok(), "another network");
        drop(first);
        assert!(table.enter(ip("2001:db8::3"), &limits).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn new_connections_have_a_rate() {
        let table = Arc::new(Table::default());
        let rate = Rate { count: 5, per: Duration::from_secs(1) };
        let limits = SourceLimits { concurrent: None, new: Some(rate) };
        let come = |times: usize| (0..times).filter(|_| table.enter(ip("192.0.2.1"), &limits).is_ok()).count();
        assert_eq!(come(20), 5, "at once");
        assert_eq!(table.enter(ip("192.0.2.1"), &limits).unwrap_err(), Excess::New(rate));
        tokio::time::advance(Duration::from_millis(400)).await;
        assert_eq!(come(20), 2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(come(20), 5, "no more for having waited long");
    }

    #[tokio::test(start_paused = true)]
    async fn e05_ever_new_sources_take_no_memory_and_no_place_of_others() {
        let table = Arc::new(Table::default());
        let rate = Rate { count: 1, per: Duration::from_secs(3600) };
        let limits = SourceLimits { concurrent: Some(1), new: Some(rate) };
        let known = || table.shards.iter().map(|shard| shard.lock().unwrap().sources.len()).sum::<usize>();
        let seat = table.enter(ip("192.0.2.1"), &limits).unwrap();
        for number in 0..1_000_000_u32 {
            assert!(table.enter(IpAddr::V4((0x0a00_0000 + number).into()), &limits).is_ok());
        }
        assert!(known() <= SHARDS * (MAX_IDLE + 1), "{}", known());
        assert!(table.enter(ip("192.0.2.1"), &limits).is_err(), "who has a connection is never forgotten");
        drop(seat);
        tokio::time::advance(2 * rate.per).await;
        assert!(table.enter(ip("192.0.2.1"), &limits).is_ok());
    }
}
