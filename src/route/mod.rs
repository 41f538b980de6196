//! Routes clients by server name (SNI), and by how they arrived.
//!
//! A route matches a client if all its matchers do. Among matching routes, an exact name wins over a wildcard, a longer
//! wildcard over a shorter one, and any name over a catch-all. With the same name, the first of these decides that only
//! one of them has: TLVs of the PROXY header (more over fewer), the network that the client connected to (a longer prefix
//! over a shorter one), the client's own network (likewise), the listener, ALPN. The order of insertion does not matter:
//! two routes that the same client could match, and of which none is more specific, are a [`Conflict`], reported when
//! the second one is inserted.
//!
//! A lookup costs one hash per label of the name, and for routes with the same name one per TLV number and prefix length
//! that they use, independent of the number of routes.

mod candidates;
mod client;

use std::collections::HashMap;
use std::sync::Arc;

use self::candidates::Candidates;
pub use self::client::{Arrival, Client, Matchers, Tlvs};
use crate::name::{MAX_LENGTH, NamePattern, ServerName, parents};

/// A table of routes, each with a target of type `T`.
#[derive(Debug)]
pub struct RouteTable<T> {
    // The standard hasher is keyed, so clients cannot choose names that collide.
    exact: HashMap<Box<str>, Candidates<T>>,
    suffix: HashMap<Box<str>, Candidates<T>>,
    catch_all: Candidates<T>,
    matches_destinations: bool,
}

/// The route found for a client.
#[derive(Debug, PartialEq, Eq)]
pub struct Match<'t, T> {
    /// The route's target.
    pub target: &'t T,
    /// How the name matched.
    pub by: MatchedBy<'t>,
}

/// How a name matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatchedBy<'t> {
    /// An exact name.
    Exact,
    /// A wildcard: `*.` and this suffix.
    Suffix(&'t str),
    /// A catch-all route, which matches every name and clients without SNI.
    CatchAll,
}

/// Two routes that the same client could match, and of which none is more specific.
#[derive(Debug, PartialEq, Eq)]
pub struct Conflict<T> {
    /// The target that is already in the table.
    pub earlier: T,
    /// The target that was not inserted.
    pub later: T,
    /// The name of both; `None` if both are catch-all routes.
    pub pattern: Option<NamePattern>,
}

impl<T> Default for RouteTable<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            suffix: HashMap::new(),
            catch_all: Candidates::default(),
            matches_destinations: false,
        }
    }
}

impl<T: Clone> RouteTable<T> {
    /// Inserts a route from each of `patterns` to `target`; without patterns it is a catch-all route.
    ///
    /// # Errors
    ///
    /// Fails if the same client could match another route, and none is more specific. Patterns before the conflicting one stay inserted.
    pub fn insert(
        &mut self,
        patterns: &[NamePattern],
        matchers: &Matchers,
        target: &T,
    ) -> Result<(), Box<Conflict<T>>> {
        self.matches_destinations |= matchers.destinations.is_some();
        let matchers = Arc::new(matchers.clone());
        let conflict = |earlier, pattern: Option<&NamePattern>| {
            Box::new(Conflict { earlier, later: target.clone(), pattern: pattern.cloned() })
        };
        if patterns.is_empty() {
            return self.catch_all.insert(&matchers, target).map_err(|earlier| conflict(earlier, None));
        }
        for pattern in patterns {
            let candidates = match pattern {
                NamePattern::Exact(name) => self.exact.entry(name.clone()).or_default(),
                NamePattern::Suffix(suffix) => self.suffix.entry(suffix.clone()).or_default(),
            };
            candidates.insert(&matchers, target).map_err(|earlier| conflict(earlier, Some(pattern)))?;
        }
        Ok(())
    }
}

impl<T> RouteTable<T> {
    /// The route of the client; `None` if no route matches.
    #[must_use]
    pub fn find(&self, client: &Client<'_>) -> Option<Match<'_, T>> {
        client
            .server_name
            .and_then(|name| self.find_by_name(&name, client))
            .or_else(|| find_in(&self.catch_all, client, MatchedBy::CatchAll))
    }

    /// Whether any route has a condition on the address that clients connect to.
    #[must_use]
    pub fn matches_destinations(&self) -> bool {
        self.matches_destinations
    }

    /// Whether any route, other than a catch-all, has this name, regardless of its other matchers.
    #[must_use]
    pub fn knows(&self, name: ServerName<'_>) -> bool {
        let mut buffer = [0; MAX_LENGTH];
        let name = name.fold(&mut buffer);
        self.exact.contains_key(name) || parents(name).any(|parent| self.suffix.contains_key(parent))
    }

    fn find_by_name(&self, name: &ServerName<'_>, client: &Client<'_>) -> Option<Match<'_, T>> {
        let mut buffer = [0; MAX_LENGTH];
        let name = name.fold(&mut buffer);
        let exact = self.exact.get(name).and_then(|candidates| find_in(candidates, client, MatchedBy::Exact));
        if exact.is_some() || self.suffix.is_empty() {
            return exact;
        }
        parents(name).find_map(|parent| {
            let (suffix, candidates) = self.suffix.get_key_value(parent)?;
            find_in(candidates, client, MatchedBy::Suffix(suffix))
        })
    }
}

fn find_in<'t, T>(candidates: &'t Candidates<T>, client: &Client<'_>, by: MatchedBy<'t>) -> Option<Match<'t, T>> {
    candidates.find(client).map(|target| Match { target, by })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client_hello::ClientHello;
    use crate::client_hello::sample::Hello;

    fn table(routes: &[(&[&str], Matchers)]) -> Result<RouteTable<usize>, Box<Conflict<usize>>> {
        let mut table = RouteTable::default();
        for (number, (patterns, matchers)) in routes.iter().enumerate() {
            table.insert(&parse(patterns), matchers, &number)?;
        }
        Ok(table)
    }

    fn parse(patterns: &[&str]) -> Vec<NamePattern> {
        patterns.iter().map(|pattern| NamePattern::parse(pattern).unwrap()).collect()
    }

    fn any() -> Matchers {
        Matchers::default()
    }

    fn alpn(protocols: &[&str]) -> Matchers {
        Matchers { alpn: Some(protocols.iter().map(|protocol| protocol.as_bytes().into()).collect()), ..any() }
    }

    fn at_listeners(listeners: &[usize]) -> Matchers {
        Matchers { listeners: Some(listeners.into()), ..any() }
    }

    fn find(table: &RouteTable<usize>, name: Option<&str>) -> Option<usize> {
        let server_name = name.map(|name| ServerName::parse(name.as_bytes()).unwrap());
        table.find(&Client::new(server_name, None, Arrival::default())).map(|found| *found.target)
    }

    /// Names come from clients: they must not be able to choose ones that fall into one bucket.
    #[test]
    fn f15_names_are_hashed_with_a_key_of_the_process() {
        fn is_keyed<K, V>(_: &HashMap<K, V, std::hash::RandomState>) {}
        let table = RouteTable::<u8>::default();
        is_keyed(&table.exact);
        is_keyed(&table.suffix);
    }

    #[test]
    fn e14_the_most_specific_name_wins_in_any_order() {
        let mut routes: Vec<(&[&str], Matchers)> = vec![
            (&[], any()),
            (&["*.example.com"], any()),
            (&["*.b.example.com"], any()),
            (&["a.b.example.com"], any()),
        ];
        let expected = [
            ("a.b.example.com", "a.b.example.com"),
            ("A.B.example.com.", "a.b.example.com"),
            ("x.b.example.com", "*.b.example.com"),
            ("x.y.b.example.com", "*.b.example.com"),
            ("b.example.com", "*.example.com"),
            ("example.com", ""),
            ("other", ""),
        ];
        for _ in 0..routes.len() {
            routes.rotate_left(1);
            let table = table(&routes).unwrap();
            for (name, pattern) in expected {
                let found = find(&table, Some(name)).map(|number| routes[number].0.first().copied().unwrap_or(""));
                assert_eq!(found, Some(pattern), "{name}");
            }
            assert_eq!(find(&table, None).map(|number| routes[number].0.len()), Some(0));
        }
    }

    #[test]
    fn without_a_catch_all_the_rest_is_refused() {
        let table = table(&[(&["a.example"], any())]).unwrap();
        assert_eq!(find(&table, Some("b.example")), None);
        assert_eq!(find(&table, None), None);
    }

    #[test]
    fn more_matchers_win_and_fall_through_when_they_do_not_hold() {
        let table = table(&[
            (&["a.example"], any()),
            (&["a.example"], alpn(&["h2", "h3"])),
            (&["*.example"], at_listeners(&[7])),
            (&[], any()),
        ])
        .unwrap();
        let message = Hello::to("a.example").alpn(&["http/1.1", "h2"]).message();
        let hello = ClientHello::parse(&message).unwrap();
        let at = |listener| Arrival { listener, ..Arrival::default() };
        let client = Client::new(hello.server_name, hello.alpn.ok(), at(7));
        assert_eq!(table.find(&client).map(|found| *found.target), Some(1));
        assert_eq!(table.find(&Client { alpn: None, ..client }).map(|found| *found.target), Some(0));
        let message = Hello::to("a.example").alpn(&["http/1.1"]).message();
        let unwanted = ClientHello::parse(&message).unwrap().alpn.ok();
        assert_eq!(table.find(&Client { alpn: unwanted, ..client }).map(|found| *found.target), Some(0));

        let other = Client { server_name: ServerName::parse(b"b.example").ok(), ..client };
        assert_eq!(table.find(&other), Some(Match { target: &2, by: MatchedBy::Suffix("example") }));
        assert!(table.knows(ServerName::parse(b"c.example").unwrap()), "for clients of listener 7");
        assert!(!table.knows(ServerName::parse(b"example").unwrap()));
        assert_eq!(
            table.find(&Client { arrival: at(1), ..other }),
            Some(Match { target: &3, by: MatchedBy::CatchAll })
        );
    }

    #[test]
    fn equal_rank_is_a_conflict_where_one_client_could_match_both() {
        let name: &[&str] = &["a.example"];
        let conflicting =
            [(any(), any()), (alpn(&["h2"]), alpn(&["http/1.1"])), (at_listeners(&[1, 2]), at_listeners(&[2, 3]))];
        for (first, second) in conflicting {
            let conflict = table(&[(name, first), (&["b.example"], any()), (name, second)]).unwrap_err();
            assert_eq!(*conflict, Conflict { earlier: 0, later: 2, pattern: NamePattern::parse("a.example").ok() });
        }
        for (first, second) in [
            (any(), alpn(&["h2"])),
            (at_listeners(&[1]), at_listeners(&[2])),
            (at_listeners(&[1]), any()),
            (alpn(&["h2"]), at_listeners(&[1])),
        ] {
            assert!(table(&[(name, first), (name, second)]).is_ok());
        }
        assert!(table(&[(&[], any()), (&[], any())]).is_err_and(|conflict| conflict.pattern.is_none()));
        assert!(table(&[(&["a.example", "A.example."], any())]).is_err());
    }

    proptest! {
        #[test]
        fn e14_agrees_with_a_scan_over_all_routes(
            patterns in proptest::collection::btree_set("(\\*\\.)?([ab]\\.){0,2}[ab]", 0..12),
            name in "([abc]\\.){0,3}[abc]",
            catch_all: bool,
        ) {
            let patterns: Vec<NamePattern> = patterns.iter().map(|text| NamePattern::parse(text).unwrap()).collect();
            let mut table = RouteTable::default();
            for pattern in &patterns {
                table.insert(std::slice::from_ref(pattern), &any(), pattern).unwrap();
            }
            let fallback = NamePattern::parse("catch-all").unwrap();
            if catch_all {
                table.insert(&[], &any(), &fallback).unwrap();
            }
            let server_name = ServerName::parse(name.as_bytes()).unwrap();
            let length = |pattern: &NamePattern| (matches!(pattern, NamePattern::Exact(_)), pattern.to_string().len());
            let expected = patterns.iter().filter(|pattern| pattern.matches(&server_name)).max_by_key(|pattern| length(pattern));
            let found = table.find(&Client::new(Some(server_name), None, Arrival::default()));
            prop_assert_eq!(found.map(|found| found.target), expected.or(catch_all.then_some(&fallback)));
        }
    }
}
