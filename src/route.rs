//! Routes clients by server name (SNI), ALPN and listener.
//!
//! A route matches a client if all its matchers do. Among matching routes, an exact name wins over a wildcard, a longer
//! wildcard over a shorter one, and any name over a catch-all; with the same name, the route with more matchers wins.
//! The order of insertion does not matter: two routes of equal rank that the same client could match are a [`Conflict`],
//! reported when the second one is inserted.
//!
//! A lookup costs one hash per label of the name, independent of the number of routes.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::client_hello::Alpn;
use crate::name::{MAX_LENGTH, NamePattern, ServerName, parents};

/// A table of routes, each with a target of type `T`.
#[derive(Debug)]
pub struct RouteTable<T> {
    // The standard hasher is keyed, so clients cannot choose names that collide.
    exact: HashMap<Box<str>, RouteEntries<T>>,
    suffix: HashMap<Box<str>, RouteEntries<T>>,
    catch_all: RouteEntries<T>,
}

/// Routes with the same name, the one with the most matchers first.
type RouteEntries<T> = Vec<RouteEntry<T>>;

#[derive(Debug)]
struct RouteEntry<T> {
    matchers: Matchers,
    target: T,
}

/// Conditions on a client besides its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Matchers {
    /// The client must offer at least one of these ALPN protocols (RFC 7301); `None`: no condition.
    pub alpn: Option<Box<[Box<[u8]>]>>,
    /// The client must have connected to one of these listeners, by index; `None`: no condition.
    pub listeners: Option<Box<[usize]>>,
}

impl Matchers {
    fn rank(&self) -> usize {
        let Self { alpn, listeners } = self;
        usize::from(alpn.is_some()) + usize::from(listeners.is_some())
    }

    fn hold(&self, client: &Client<'_>) -> bool {
        self.listener_holds(client.listener) && self.alpn_holds(client.alpn)
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

    /// Whether the same client could satisfy both. A client can offer any set of protocols, so different `alpn` never
    /// excludes that.
    fn overlap(&self, other: &Self) -> bool {
        let Self { alpn: _, listeners } = self;
        match (listeners, &other.listeners) {
            (Some(ours), Some(theirs)) => ours.iter().any(|listener| theirs.contains(listener)),
            _ => true,
        }
    }
}

/// The properties of a client that decide its route.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// SNI (RFC 6066, section 3).
    pub server_name: Option<ServerName<'a>>,
    /// ALPN (RFC 7301).
    pub alpn: Option<Alpn<'a>>,
    /// Index of the listener that it connected to.
    pub listener: usize,
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

/// Two routes of equal rank that the same client could match.
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
        Self { exact: HashMap::new(), suffix: HashMap::new(), catch_all: Vec::new() }
    }
}

impl<T: Clone> RouteTable<T> {
    /// Inserts a route from each of `patterns` to `target`; without patterns it is a catch-all route.
    ///
    /// # Errors
    ///
    /// Fails if a route of equal rank could match the same client. Patterns before the conflicting one stay inserted.
    pub fn insert(
        &mut self,
        patterns: &[NamePattern],
        matchers: &Matchers,
        target: &T,
    ) -> Result<(), Box<Conflict<T>>> {
        if patterns.is_empty() {
            return add(&mut self.catch_all, None, matchers, target);
        }
        for pattern in patterns {
            let entries = match pattern {
                NamePattern::Exact(name) => self.exact.entry(name.clone()).or_default(),
                NamePattern::Suffix(suffix) => self.suffix.entry(suffix.clone()).or_default(),
            };
            add(entries, Some(pattern), matchers, target)?;
        }
        Ok(())
    }
}

fn add<T: Clone>(
    entries: &mut RouteEntries<T>,
    pattern: Option<&NamePattern>,
    matchers: &Matchers,
    target: &T,
) -> Result<(), Box<Conflict<T>>> {
    let equal = |entry: &&RouteEntry<T>| entry.matchers.rank() == matchers.rank() && entry.matchers.overlap(matchers);
    if let Some(entry) = entries.iter().find(equal) {
        return Err(Box::new(Conflict {
            earlier: entry.target.clone(),
            later: target.clone(),
            pattern: pattern.cloned(),
        }));
    }
    entries.push(RouteEntry { matchers: matchers.clone(), target: target.clone() });
    entries.sort_by_key(|entry| Reverse(entry.matchers.rank()));
    Ok(())
}

impl<T> RouteTable<T> {
    /// The route of the client; `None` if no route matches.
    #[must_use]
    pub fn find(&self, client: &Client<'_>) -> Option<Match<'_, T>> {
        client
            .server_name
            .and_then(|name| self.find_by_name(&name, client))
            .or_else(|| first(&self.catch_all, client, MatchedBy::CatchAll))
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
        let exact = self.exact.get(name).and_then(|entries| first(entries, client, MatchedBy::Exact));
        if exact.is_some() || self.suffix.is_empty() {
            return exact;
        }
        parents(name).find_map(|parent| {
            let (suffix, entries) = self.suffix.get_key_value(parent)?;
            first(entries, client, MatchedBy::Suffix(suffix))
        })
    }
}

fn first<'t, T>(entries: &'t RouteEntries<T>, client: &Client<'_>, by: MatchedBy<'t>) -> Option<Match<'t, T>> {
    let candidate = entries.iter().find(|candidate| candidate.matchers.hold(client))?;
    Some(Match { target: &candidate.target, by })
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

    fn at(listeners: &[usize]) -> Matchers {
        Matchers { listeners: Some(listeners.into()), ..any() }
    }

    fn find(table: &RouteTable<usize>, name: Option<&str>) -> Option<usize> {
        let server_name = name.map(|name| ServerName::parse(name.as_bytes()).unwrap());
        table.find(&Client { server_name, alpn: None, listener: 0 }).map(|found| *found.target)
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
            (&["*.example"], at(&[7])),
            (&[], any()),
        ])
        .unwrap();
        let message = Hello::to("a.example").alpn(&["http/1.1", "h2"]).message();
        let hello = ClientHello::parse(&message).unwrap();
        let client = Client { server_name: hello.server_name, alpn: hello.alpn.ok(), listener: 7 };
        assert_eq!(table.find(&client).map(|found| *found.target), Some(1));
        assert_eq!(table.find(&Client { alpn: None, ..client }).map(|found| *found.target), Some(0));
        let message = Hello::to("a.example").alpn(&["http/1.1"]).message();
        let unwanted = ClientHello::parse(&message).unwrap().alpn.ok();
        assert_eq!(table.find(&Client { alpn: unwanted, ..client }).map(|found| *found.target), Some(0));

        let other = Client { server_name: ServerName::parse(b"b.example").ok(), ..client };
        assert_eq!(table.find(&other), Some(Match { target: &2, by: MatchedBy::Suffix("example") }));
        assert!(table.knows(ServerName::parse(b"c.example").unwrap()), "for clients of listener 7");
        assert!(!table.knows(ServerName::parse(b"example").unwrap()));
        assert_eq!(table.find(&Client { listener: 1, ..other }), Some(Match { target: &3, by: MatchedBy::CatchAll }));
    }

    #[test]
    fn equal_rank_is_a_conflict_where_one_client_could_match_both() {
        let name: &[&str] = &["a.example"];
        let conflicting = [
            (any(), any()),
            (alpn(&["h2"]), alpn(&["http/1.1"])),
            (alpn(&["h2"]), at(&[1])),
            (at(&[1, 2]), at(&[2, 3])),
        ];
        for (first, second) in conflicting {
            let conflict = table(&[(name, first), (&["b.example"], any()), (name, second)]).unwrap_err();
            assert_eq!(*conflict, Conflict { earlier: 0, later: 2, pattern: NamePattern::parse("a.example").ok() });
        }
        for (first, second) in [(any(), alpn(&["h2"])), (at(&[1]), at(&[2])), (at(&[1]), any())] {
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
            let found = table.find(&Client { server_name: Some(server_name), alpn: None, listener: 0 });
            prop_assert_eq!(found.map(|found| found.target), expected.or(catch_all.then_some(&fallback)));
        }
    }
}
