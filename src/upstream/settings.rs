//! The settings of a route's upstream.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use strum::{FromRepr, IntoStaticStr};

use super::balance::Balance;
use super::health::HealthCheck;
use crate::proxy_protocol;
use crate::text::Destination;
use crate::text::units::Rate;

/// The upstream settings of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct UpstreamSettings {
    /// At least one that is no backup, unless a split refuses all; no two with the same destination.
    pub(crate) endpoints: Vec<EndpointSettings>,
    /// `None`: `balance` decides between all endpoints.
    pub(crate) split: Option<Split>,
    pub(crate) balance: Balance,
    pub(crate) budget: ConnectBudget,
    /// From the recovery of an endpoint to its full share.
    pub(crate) slow_start: Duration,
    /// How long connections to a dead endpoint may continue; `None`: forever.
    pub(crate) dead_grace: Option<Duration>,
    pub(crate) on_remove: OnRemove,
    /// Interval between DNS lookups.
    pub(crate) resolve_every: Duration,
    /// The PROXY header to send; `None`: none.
    pub(crate) proxy_protocol: Option<proxy_protocol::Outgoing>,
    /// The local address of connections to endpoints.
    pub(crate) source: Source,
    /// `None`: connections may have any age.
    pub(crate) max_age: Option<MaxAge>,
    /// How fast connections move to endpoints that have returned; `None`: they stay.
    pub(crate) rebalance: Option<Rate>,
    /// `None`: passive checks only, by the results of connections.
    pub(crate) health_check: Option<HealthCheck>,
}

#[cfg(test)]
impl UpstreamSettings {
    /// The defaults, without checks.
    pub(super) fn sample(endpoints: Vec<EndpointSettings>) -> Self {
        Self {
            endpoints,
            split: None,
            balance: Balance::LeastConnections,
            budget: ConnectBudget { timeout: Duration::from_secs(10), per_try: Duration::from_secs(3) },
            slow_start: Duration::ZERO,
            dead_grace: None,
            on_remove: OnRemove::Keep,
            resolve_every: Duration::from_secs(10),
            proxy_protocol: None,
            source: Source::Any,
            max_age: None,
            rebalance: None,
            health_check: None,
        }
    }
}

/// An address, or a hostname that stands for all addresses it resolves to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EndpointSettings {
    pub(crate) destination: Destination,
    pub(crate) share: Share,
}

/// The part of an endpoint in new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Share {
    /// Relative to the other endpoints, 1 to 256.
    pub(crate) weight: u16,
    /// Whether it is used only while no endpoint that is no backup is ready.
    pub(crate) is_backup: bool,
}

impl Share {
    /// The share of endpoints that are written as text.
    pub(crate) const DEFAULT: Self = Self { weight: 1, is_backup: false };
}

impl fmt::Display for EndpointSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { destination, share } = self;
        match *share {
            Share::DEFAULT => write!(f, "{destination}"),
            Share { weight: 1, is_backup: _ } => write!(f, "{destination} (backup)"),
            Share { weight, is_backup: false } => write!(f, "{destination} (weight {weight})"),
            Share { weight, is_backup: true } => write!(f, "{destination} (backup, weight {weight})"),
        }
    }
}

/// Divides new connections by weight between backends, whatever the state of their endpoints; `balance` decides between
/// the endpoints of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Split(pub(crate) Box<[Backend]>);

/// A share of new connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Backend {
    pub(crate) weight: u32,
    /// The index of its destination in `endpoints`, or why its share is refused.
    pub(crate) destination: Result<usize, Box<str>>,
}

impl Split {
    /// The backend of a connection, at random. `None`: no backend has any weight.
    pub(super) fn draw(&self) -> Option<&Backend> {
        let total: u64 = self.0.iter().map(|backend| u64::from(backend.weight)).sum();
        let mut rest = (total > 0).then(|| fastrand::u64(..total))?;
        self.0.iter().find(|backend| match rest.checked_sub(backend.weight.into()) {
            Some(left) => {
                rest = left;
                false
            }
            None => true,
        })
    }
}

/// The local address of connections to endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// Chosen by the kernel.
    Any,
    /// One of these, by the family of the endpoint; `None`: chosen by the kernel.
    Addresses { v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr> },
    /// The address of the client.
    Client,
}

/// When old connections are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MaxAge {
    pub(crate) after: Duration,
    /// In percent of `after`: up to so much is added, at random.
    pub(crate) jitter: u8,
}

impl MaxAge {
    /// The maximum age of one connection.
    pub(crate) fn of_one(self) -> Duration {
        self.after.mul_f64(1.0 + f64::from(self.jitter) / 100.0 * fastrand::f64())
    }
}

/// What becomes of connections to an endpoint that the configuration no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromRepr, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[repr(u8)]
pub(crate) enum OnRemove {
    /// Close them after `timeouts.drain`.
    Drain,
    /// Leave them open.
    Keep,
    /// Close them immediately.
    Cut,
}

impl OnRemove {
    /// The value in the configuration.
    pub(crate) fn label(self) -> &'static str {
        self.into()
    }
}

/// Timeouts for connecting to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConnectBudget {
    /// Total, including the wait for the first DNS lookup.
    pub(crate) timeout: Duration,
    /// Per address.
    pub(crate) per_try: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b34_ages_are_spread_over_the_jitter() {
        let max_age = MaxAge { after: Duration::from_secs(100), jitter: 20 };
        let ages: Vec<Duration> = (0..1000).map(|_| max_age.of_one()).collect();
        let (least, most) = (*ages.iter().min().unwrap(), *ages.iter().max().unwrap());
        assert!(least >= max_age.after && most <= Duration::from_secs(120), "{least:?} to {most:?}");
        assert!(most > least + Duration::from_secs(15), "{least:?} to {most:?}");
    }
}
