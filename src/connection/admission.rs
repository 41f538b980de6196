//! Access rules (`allow`, `deny`, `deny_ja4`), per-source limits and limits on rates.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError};

use tokio::time::Instant;

use crate::client_hello::Ja4;
use crate::connection::networks::{FoundNetwork, MAX_SHOWN, Networks};
use crate::sync::{Mutex, MutexGuard};
use crate::text::units::{Rate, counted, first_of};

/// A set of JA4 fingerprints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprints(
    /// Sorted.
    Box<[Ja4]>,
);

impl FromIterator<Ja4> for Fingerprints {
    fn from_iter<I: IntoIterator<Item = Ja4>>(fingerprints: I) -> Self {
        let mut fingerprints: Vec<Ja4> = fingerprints.into_iter().collect();
        fingerprints.sort_unstable();
        fingerprints.dedup();
        Self(fingerprints.into())
    }
}

impl Fingerprints {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Fingerprints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&first_of(self.0.iter(), MAX_SHOWN))
    }
}

/// The networks from which clients are admitted, and clients that are not admitted from anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct AccessRules {
    /// `None`: all.
    pub(crate) allow: Option<Networks>,
    /// Overrides `allow`.
    pub(crate) deny: Option<Networks>,
    pub(crate) deny_ja4: Fingerprints,
}

impl AccessRules {
    /// Whether a client with this address, in its canonical form, is admitted.
    pub(crate) fn admit(&self, client: IpAddr) -> bool {
        self.decide(client).is_ok()
    }

    /// The client's fingerprint, if it is denied. It is computed only if any is.
    pub(crate) fn denied_fingerprint(&self, fingerprint: impl FnOnce() -> Option<Ja4>) -> Option<Ja4> {
        if self.deny_ja4.is_empty() {
            return None;
        }
        fingerprint().filter(|fingerprint| self.deny_ja4.0.binary_search(fingerprint).is_ok())
    }

    /// The network of `allow` that admits the client, if `allow` is set.
    pub(crate) fn decide(&self, client: IpAddr) -> Result<Option<FoundNetwork<'_>>, NotAdmitted<'_>> {
        if let Some(network) = self.deny.as_ref().and_then(|deny| deny.find(client)) {
            return Err(NotAdmitted::Denied(network));
        }
        self.allow.as_ref().map(|allow| allow.find(client).ok_or(NotAdmitted::NotAllowed)).transpose()
    }
}

/// Why a client is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotAdmitted<'n> {
    /// This network of `deny` contains its address.
    Denied(FoundNetwork<'n>),
    /// No network of `allow` contains its address.
    NotAllowed,
}

impl fmt::Display for AccessRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.allow {
            None => f.write_str("allow all")?,
            Some(allow) => write!(f, "allow {allow}")?,
        }
        if let Some(deny) = &self.deny {
            write!(f, ", deny {deny}")?;
        }
        if self.deny_ja4.is_empty() { Ok(()) } else { write!(f, ", deny_ja4 {}", self.deny_ja4) }
    }
}

/// Limits per source: an IPv4 address, or an IPv6 /64, which is what one site gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceLimits {
    /// Concurrent connections.
    pub(crate) concurrent: Option<u32>,
    /// Rate of new connections.
    pub(crate) new: Option<Rate>,
}

/// Whether one more event is within the rate, and then counts it. Rates are limited by GCRA, the generic cell rate algorithm;
/// `replenished` is its theoretical arrival time: when the whole burst is available again.
fn admits(rate: Rate, replenished: &mut Instant, now: Instant) -> bool {
    // Of a lower rate before a reload, it may be later than this one ever makes it.
    let used = (*replenished).clamp(now, now + rate.per);
    let next = used + rate.per / rate.count;
    let admits = next <= now + rate.per;
    *replenished = if admits { next } else { used };
    admits
}

/// How much of a rate is used up.
#[derive(Debug)]
pub(crate) struct RateUsage(Mutex<Instant>);

impl Default for RateUsage {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl RateUsage {
    /// Whether one more event is within the rate, and then counts it.
    pub(crate) fn admits(&self, rate: Rate) -> bool {
        admits(rate, &mut self.0.lock().unwrap_or_else(PoisonError::into_inner), Instant::now())
    }
}

/// Which limit a source has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// This many concurrent connections.
    Concurrent(u32),
    /// This rate of new connections.
    New(Rate),
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Concurrent(limit) => {
                let connections = counted(*limit, "connection");
                write!(f, "the client's source has reached limits.per_source: {connections}")
            }
            Self::New(rate) => write!(f, "the client's source exceeds limits.new_per_source: {rate}"),
        }
    }
}

const SHARDS: usize = 16;
/// Sources without a connection that a shard remembers, approximately. A flood from ever new addresses evicts others,
/// which resets their rate, but does not grow memory.
const MAX_IDLE: usize = 4096;

/// The connections and the rate of each source. It outlives every configuration.
#[derive(Debug)]
pub(crate) struct SourceTable {
    shards: [Mutex<Shard>; SHARDS],
    // Keyed, so that sources cannot be chosen to collide.
    hasher: RandomState,
}

#[derive(Debug)]
struct Shard {
    sources: HashMap<SourceKey, SourceUsage>,
    /// The size at which sources that no longer matter are evicted.
    sweep_at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum SourceKey {
    V4(Ipv4Addr),
    V6(u64),
}

impl SourceKey {
    fn of(client: IpAddr) -> Self {
        match client {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6(u64::try_from(u128::from(address) >> 64).unwrap_or(0)),
        }
    }
}

#[derive(Debug)]
struct SourceUsage {
    open: u32,
    /// See [`admits`].
    replenished: Instant,
}

impl Default for SourceTable {
    fn default() -> Self {
        let shard = |_| Mutex::new(Shard { sources: HashMap::new(), sweep_at: MAX_IDLE });
        Self { shards: std::array::from_fn(shard), hasher: RandomState::new() }
    }
}

impl SourceTable {
    /// A permit for a connection from this client; `None` if there is no limit.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        client: IpAddr,
        limits: &SourceLimits,
    ) -> Result<Option<SourcePermit>, Excess> {
        if *limits == SourceLimits::default() {
            return Ok(None);
        }
        let within_limits = |usage: &mut SourceUsage, now| {
            if let Some(limit) = limits.concurrent
                && usage.open >= limit
            {
                return Err(Excess::Concurrent(limit));
            }
            if let Some(rate) = limits.new
                && !admits(rate, &mut usage.replenished, now)
            {
                return Err(Excess::New(rate));
            }
            Ok(())
        };
        self.permit(client, within_limits).map(Some)
    }

    /// A permit for a connection that another process has admitted.
    pub(crate) fn adopt(self: &Arc<Self>, client: IpAddr, limits: &SourceLimits) -> Option<SourcePermit> {
        if *limits == SourceLimits::default() {
            return None;
        }
        self.permit(client, |_, _| Ok(())).ok()
    }

    /// Counts a connection from this client, unless `check` fails.
    fn permit(
        self: &Arc<Self>,
        client: IpAddr,
        check: impl FnOnce(&mut SourceUsage, Instant) -> Result<(), Excess>,
    ) -> Result<SourcePermit, Excess> {
        let source = SourceKey::of(client);
        let now = Instant::now();
        let mut shard = self.shard(source);
        shard.make_room(now);
        let usage = shard.sources.entry(source).or_insert(SourceUsage { open: 0, replenished: now });
        check(usage, now)?;
        usage.open += 1;
        drop(shard);
        Ok(SourcePermit { table: Arc::clone(self), source })
    }

    fn shard(&self, source: SourceKey) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(self.hasher.hash_one(source) % SHARDS as u64).unwrap_or(0);
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shard {
    fn make_room(&mut self, now: Instant) {
        if self.sources.len() < self.sweep_at {
            return;
        }
        self.sources.retain(|_, entry| entry.open > 0 || entry.replenished > now);
        let has_connections = |entry: &&SourceUsage| entry.open > 0;
        let open = self.sources.values().filter(has_connections).count();
        if self.sources.len() - open >= MAX_IDLE / 2 {
            self.sources.retain(|_, entry| entry.open > 0);
        }
        self.sweep_at = open + MAX_IDLE;
    }
}

/// Counts a connection of a source until it is dropped.
#[derive(Debug)]
pub(crate) struct SourcePermit {
    table: Arc<SourceTable>,
    source: SourceKey,
}

impl Drop for SourcePermit {
    fn drop(&mut self) {
        let mut shard = self.table.shard(self.source);
        if let Some(entry) = shard.sources.get_mut(&self.source) {
            entry.open -= 1;
            if entry.open == 0 && entry.replenished <= Instant::now() {
                shard.sources.remove(&self.source);
            }
        }
    }
}

#[cfg(all(test, shuttle))]
impl SourceTable {
    /// The number of permits.
    pub(super) fn open(&self) -> u32 {
        let shards = self.shards.iter().map(|shard| shard.lock().unwrap());
        shards.map(|shard| shard.sources.values().map(|usage| usage.open).sum::<u32>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ipnet::IpNet;

    use super::*;

    fn networks(list: &[&str]) -> Networks {
        list.iter().map(|network| network.parse::<IpNet>().unwrap()).collect()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn e03_deny_overrides_allow() {
        let sources = AccessRules {
            allow: Some(networks(&["10.0.0.0/8", "2001:db8::/32"])),
            deny: Some(networks(&["10.1.0.0/16"])),
            deny_ja4: Fingerprints::default(),
        };
        for (address, admitted) in [
            ("10.0.0.1", true),
            ("10.1.0.1", false),
            ("11.0.0.1", false),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(sources.admit(ip(address)), admitted, "{address}");
        }
        let network = |text: &str| FoundNetwork { network: text.parse().unwrap(), file: None };
        assert_eq!(sources.decide(ip("10.0.0.1")), Ok(Some(network("10.0.0.0/8"))));
        assert_eq!(sources.decide(ip("10.1.0.1")), Err(NotAdmitted::Denied(network("10.1.0.0/16"))));
        assert_eq!(sources.to_string(), "allow 10.0.0.0/8, 2001:db8::/32, deny 10.1.0.0/16");
        assert!(AccessRules::default().admit(ip("192.0.2.1")));
    }

    #[tokio::test(start_paused = true)]
    async fn e04_connections_are_limited_per_ipv4_address_and_per_ipv6_64() {
        let table = Arc::new(SourceTable::default());
        let limits = SourceLimits { concurrent: Some(2), new: None };
        let first = table.acquire(ip("2001:db8::1"), &limits).unwrap();
        let _second = table.acquire(ip("2001:db8::2"), &limits).unwrap();
        assert_eq!(table.acquire(ip("2001:db8::3"), &limits).unwrap_err(), Excess::Concurrent(2));
        assert!(table.acquire(ip("2001:db8:0:1::3"), &limits).is_ok(), "another network");
        drop(first);
        assert!(table.acquire(ip("2001:db8::3"), &limits).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn new_connections_are_limited_by_rate() {
        let table = Arc::new(SourceTable::default());
        let rate = Rate { count: 5, per: Duration::from_secs(1) };
        let limits = SourceLimits { concurrent: None, new: Some(rate) };
        let acquire = |times: usize| (0..times).filter(|_| table.acquire(ip("192.0.2.1"), &limits).is_ok()).count();
        assert_eq!(acquire(20), 5, "the burst");
        assert_eq!(table.acquire(ip("192.0.2.1"), &limits).unwrap_err(), Excess::New(rate));
        tokio::time::advance(Duration::from_millis(400)).await;
        assert_eq!(acquire(20), 2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(acquire(20), 5, "a longer pause does not enlarge the burst");
    }

    #[tokio::test(start_paused = true)]
    async fn a_higher_rate_applies_at_once() {
        let usage = RateUsage::default();
        let (slow, fast) =
            (Rate { count: 2, per: Duration::from_secs(3600) }, Rate { count: 10, per: Duration::from_secs(1) });
        let admitted = |rate| (0..20).filter(|_| usage.admits(rate)).count();
        assert_eq!(admitted(slow), 2);
        assert_eq!(admitted(fast), 0, "the burst is used up");
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(admitted(fast), 5);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(admitted(fast), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn e05_a_flood_of_new_sources_does_not_grow_memory_or_evict_sources_with_connections() {
        let table = Arc::new(SourceTable::default());
        let rate = Rate { count: 1, per: Duration::from_secs(3600) };
        let limits = SourceLimits { concurrent: Some(1), new: Some(rate) };
        let known = || table.shards.iter().map(|shard| shard.lock().unwrap().sources.len()).sum::<usize>();
        let permit = table.acquire(ip("192.0.2.1"), &limits).unwrap();
        for number in 0..1_000_000_u32 {
            assert!(table.acquire(IpAddr::V4((0x0a00_0000 + number).into()), &limits).is_ok());
        }
        assert!(known() <= SHARDS * (MAX_IDLE + 1), "{}", known());
        assert!(table.acquire(ip("192.0.2.1"), &limits).is_err(), "a source with a connection is never evicted");
        drop(permit);
        tokio::time::advance(2 * rate.per).await;
        assert!(table.acquire(ip("192.0.2.1"), &limits).is_ok());
    }
}
