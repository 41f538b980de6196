//! Endpoints that an operator has drained: they get no new connections, whatever their health, until they are resumed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::endpoint::Endpoint;

/// What is drained, by name of the route. Reloads and upgrades keep it, and connections read it without a lock.
#[derive(Debug, Default)]
pub(crate) struct Drains(ArcSwap<BTreeMap<Box<str>, Drain>>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Drain {
    /// All endpoints, also those that are added later.
    Route,
    Endpoints(BTreeSet<SocketAddr>),
}

/// All of a route, or one of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drained {
    pub(crate) route: Box<str>,
    pub(crate) endpoint: Option<SocketAddr>,
}

/// The whole route is drained, so that one endpoint cannot be resumed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the whole route is drained; resume the route, then drain the other endpoints")]
pub(crate) struct WholeRoute;

impl Drains {
    /// Returns whether it was in service before.
    pub(crate) fn drain(&self, drained: &Drained) -> bool {
        let Drained { route, endpoint } = drained;
        let is_new = |all: &BTreeMap<Box<str>, Drain>| match (all.get(route), endpoint) {
            (Some(Drain::Route), _) => false,
            (Some(Drain::Endpoints(some)), Some(endpoint)) => !some.contains(endpoint),
            (Some(Drain::Endpoints(_)), None) | (None, _) => true,
        };
        let before = self.0.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            if is_new(&all) {
                match (all.get_mut(route), endpoint) {
                    (Some(Drain::Endpoints(some)), Some(endpoint)) => _ = some.insert(*endpoint),
                    (_, Some(endpoint)) => _ = all.insert(route.clone(), Drain::Endpoints([*endpoint].into())),
                    (_, None) => _ = all.insert(route.clone(), Drain::Route),
                }
            }
            all
        });
        is_new(&before)
    }

    /// Returns whether it was drained before.
    pub(crate) fn resume(&self, resumed: &Drained) -> Result<bool, WholeRoute> {
        let Drained { route, endpoint } = resumed;
        if endpoint.is_some() && self.0.load().get(route) == Some(&Drain::Route) {
            return Err(WholeRoute);
        }
        let before = self.0.rcu(|all| {
            let mut all = BTreeMap::clone(all);
            let is_over = match (all.get_mut(route), endpoint) {
                (Some(Drain::Endpoints(some)), Some(endpoint)) => some.remove(endpoint) && some.is_empty(),
                (_, Some(_)) => false,
                (_, None) => true,
            };
            if is_over {
                all.remove(route);
            }
            all
        });
        Ok(match (before.get(route), endpoint) {
            (Some(Drain::Endpoints(some)), Some(endpoint)) => some.contains(endpoint),
            (before, _) => before.is_some(),
        })
    }

    /// Everything that is drained, by route.
    pub(crate) fn all(&self) -> Vec<Drained> {
        let mut drained = Vec::new();
        for (route, drain) in &**self.0.load() {
            let of_route = |endpoint| Drained { route: route.clone(), endpoint };
            match drain {
                Drain::Route => drained.push(of_route(None)),
                Drain::Endpoints(some) => drained.extend(some.iter().map(|endpoint| of_route(Some(*endpoint)))),
            }
        }
        drained
    }

    /// Whether this endpoint of the route is drained.
    pub(super) fn contains(&self, route: &str, endpoint: SocketAddr) -> bool {
        self.0.load().get(route).is_some_and(|drain| drain.contains(endpoint))
    }

    /// The endpoints of the route that are not drained.
    pub(super) fn in_service(&self, route: &str, endpoints: Arc<Vec<Arc<Endpoint>>>) -> Arc<Vec<Arc<Endpoint>>> {
        match self.0.load().get(route) {
            None => endpoints,
            Some(drain) => {
                Arc::new(endpoints.iter().filter(|endpoint| !drain.contains(endpoint.address)).cloned().collect())
            }
        }
    }
}

impl Drain {
    fn contains(&self, endpoint: SocketAddr) -> bool {
        match self {
            Self::Route => true,
            Self::Endpoints(some) => some.contains(&endpoint),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(route: &str, endpoint: Option<&str>) -> Drained {
        Drained { route: route.into(), endpoint: endpoint.map(|endpoint| endpoint.parse().unwrap()) }
    }

    #[test]
    fn endpoints_and_routes_are_drained_and_resumed() {
        let drains = Drains::default();
        let (one, two) = (of("a", Some("192.0.2.1:1")), of("a", Some("192.0.2.2:1")));
        assert!(drains.drain(&one) && !drains.drain(&one) && drains.drain(&two));
        assert!(drains.contains("a", "192.0.2.1:1".parse().unwrap()));
        assert!(!drains.contains("b", "192.0.2.1:1".parse().unwrap()));
        assert_eq!(drains.all(), [one.clone(), two.clone()]);
        assert_eq!(drains.resume(&one), Ok(true));
        assert_eq!((drains.resume(&one), drains.all()), (Ok(false), vec![two.clone()]));

        assert!(drains.drain(&of("a", None)) && !drains.drain(&of("a", None)) && !drains.drain(&one));
        assert_eq!(drains.all(), [of("a", None)]);
        assert_eq!(drains.resume(&two), Err(WholeRoute));
        assert!(drains.contains("a", "192.0.2.9:1".parse().unwrap()));
        assert_eq!((drains.resume(&of("a", None)), drains.resume(&of("a", None))), (Ok(true), Ok(false)));
        assert_eq!(drains.all(), []);
    }
}
