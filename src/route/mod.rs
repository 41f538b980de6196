//! Routes clients by server name (SNI), and by how they arrived.
//!
//! A route matches a client if all its matchers do. Among matching routes, an exact name wins over a wildcard, a longer
//! wildcard over a shorter one, and any name over a catch-all. With the same name, the first of these decides that only
//! one of them has: TLVs of the PROXY header (more over fewer), the network that the client connected to (a longer prefix
//! over a shorter one), the client's own network (likewise), the listener, ALPN. The order of insertion does not matter:
//! two routes that the same client could match, and of which none is more specific, are a [`Conflict`], reported when
//! the second one is inserted.
//!
//! A lookup costs one hash per label of the name, and for routes with the same name some per combination of TLV numbers and
//! prefix lengths that they use, independent of the number of routes.

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
    exact: HashMap<Box<str>, Candidates<Option<T>>>,
    suffix: HashMap<Box<str>, Candidates<Option<T>>>,
    catch_all: Candidates<Option<T>>,
    no_sni: Candidates<Option<T>>,
    matches_destinations: bool,
}

/// Which clients a route matches by their SNI.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Names {
    /// Those that send one of these names.
    Patterns(Vec<NamePattern>),
    /// All, also those without SNI.
    All,
    /// Those without SNI.
    NoSni,
}

impl From<&[NamePattern]> for Names {
    /// No pattern is every name.
    fn from(patterns: &[NamePattern]) -> Self {
        if patterns.is_empty() { Self::All } else { Self::Patterns(patterns.into()) }
    }
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
    /// A catch-all route, which matches every name and clients without SNI, or a route for the latter only.
    CatchAll,
}

/// Two routes that the same client could match, and of which none is more specific.
#[derive(Debug, PartialEq, Eq)]
pub struct Conflict<T> {
    /// The target that is already in the table; if the names are excluded, `later`.
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
            no_sni: Candidates::default(),
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
        self.add(&patterns.into(), matchers, target)
    }

    /// Inserts a route that matches these names.
    ///
    /// # Errors
    ///
    /// As [`RouteTable::insert`].
    pub fn add(&mut self, names: &Names, matchers: &Matchers, target: &T) -> Result<(), Box<Conflict<T>>> {
        self.put(names, matchers, Some(target)).map_err(|(earlier, pattern)| {
            let later = target.clone();
            Box::new(Conflict { earlier: earlier.unwrap_or_else(|| target.clone()), later, pattern })
        })
    }

    /// Takes names away from less specific routes: clients that this matches have no route.
    ///
    /// # Errors
    ///
    /// Fails with a name that is already taken by a route or excluded; `None` if that is not by name.
    pub fn exclude(&mut self, names: &Names, matchers: &Matchers) -> Result<(), Option<NamePattern>> {
        self.put(names, matchers, None).map_err(|(_, pattern)| pattern)
    }

    /// An error is the target that is already there, and for which name.
    fn put(
        &mut self,
        names: &Names,
        matchers: &Matchers,
        target: Option<&T>,
    ) -> Result<(), (Option<T>, Option<NamePattern>)> {
        self.matches_destinations |= matchers.destinations.is_some();
        let (matchers, target) = (Arc::new(matchers.clone()), target.cloned());
        let patterns = match names {
            Names::All => return self.catch_all.insert(&matchers, &target).map_err(|earlier| (earlier, None)),
            Names::NoSni => return self.no_sni.insert(&matchers, &target).map_err(|earlier| (earlier, None)),
            Names::Patterns(patterns) => patterns,
        };
        for pattern in patterns {
            let candidates = match pattern {
                NamePattern::Exact(name) => self.exact.entry(name.clone()).or_default(),
                NamePattern::Suffix(suffix) => self.suffix.entry(suffix.clone()).or_default(),
            };
            candidates.insert(&matchers, &target).map_err(|earlier| (earlier, Some(pattern.clone())))?;
        }
        Ok(())
    }
}

impl<T> RouteTable<T> {
    /// The route of the client; `None` if no route matches.
    #[must_use]
    pub fn find(&self, client: &Client<'_>) -> Option<Match<'_, T>> {
        let found = match &client.server_name {
            Some(name) => self.find_by_name(name, client),
            None => find_in(&self.no_sni, client, MatchedBy::CatchAll),
        };
        let Match { target, by } = found.or_else(|| find_in(&self.catch_all, client, MatchedBy::CatchAll))?;
        target.as_ref().map(|target| Match { target, by })
    }

    /// Whether any route has no name.
    #[must_use]
    pub fn has_catch_all(&self) -> bool {
        !self.catch_all.is_empty()
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

    /// Without a target, the name is excluded.
    fn find_by_name(&self, name: &ServerName<'_>, client: &Client<'_>) -> Option<Match<'_, Option<T>>> {
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
    use std::net::IpAddr;

    use ipnet::IpNet;
    use proptest::prelude::{Strategy, prop_assert_eq, prop_assume, proptest};

    use super::*;
    use crate::client_hello::Alpn;
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
    fn excluded_names_are_taken_from_less_specific_routes_at_the_same_listener() {
        let mut table = table(&[(&[], at_listeners(&[0, 1])), (&["*.example.com"], at_listeners(&[0, 1]))]).unwrap();
        let names = |patterns: &[&str]| Names::Patterns(parse(patterns));
        table.exclude(&names(&["a.example.com", "*.b.example.com"]), &at_listeners(&[1])).unwrap();
        table.add(&names(&["x.b.example.com"]), &at_listeners(&[1]), &7).unwrap();
        table.exclude(&Names::NoSni, &at_listeners(&[1])).unwrap();
        let find = |name: Option<&str>, listener| {
            let server_name = name.map(|name| ServerName::parse(name.as_bytes()).unwrap());
            let client = Client::new(server_name, None, Arrival { listener, ..Arrival::default() });
            table.find(&client).map(|found| *found.target)
        };
        for (name, at_0, at_1) in [
            (Some("a.example.com"), Some(1), None),
            (Some("y.b.example.com"), Some(1), None),
            (Some("x.b.example.com"), Some(1), Some(7)),
            (Some("c.example.com"), Some(1), Some(1)),
            (Some("other"), Some(0), Some(0)),
            (None, Some(0), None),
        ] {
            assert_eq!((find(name, 0), find(name, 1)), (at_0, at_1), "{name:?}");
        }
        let taken = names(&["*.b.example.com"]);
        assert_eq!(table.exclude(&taken, &at_listeners(&[1])), Err(NamePattern::parse("*.b.example.com").ok()));
        assert_eq!(table.add(&taken, &at_listeners(&[1]), &8).unwrap_err().earlier, 8);
    }

    #[test]
    fn a_route_for_clients_without_sni_wins_over_a_catch_all() {
        let mut table = table(&[(&[], any()), (&["a.example"], any())]).unwrap();
        table.add(&Names::NoSni, &any(), &7).unwrap();
        assert_eq!((find(&table, None), find(&table, Some("b.example"))), (Some(7), Some(0)));
    }

    #[test]
    fn without_a_catch_all_the_rest_is_refused() {
        let mut table = table(&[(&["a.example"], any())]).unwrap();
        assert_eq!(find(&table, Some("b.example")), None);
        assert_eq!(find(&table, None), None);
        assert!(!table.has_catch_all());
        table.add(&Names::All, &any(), &7).unwrap();
        assert_eq!(find(&table, Some("b.example")), Some(7));
        assert!(table.has_catch_all());
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

    fn tlvs(tlvs: &[(u8, &str)]) -> Matchers {
        let mut tlvs: Vec<(u8, Box<[u8]>)> =
            tlvs.iter().map(|(number, value)| (*number, value.as_bytes().into())).collect();
        tlvs.sort();
        Matchers { proxy_tlvs: tlvs.into(), ..any() }
    }

    fn networks(networks: &[&str]) -> Box<[IpNet]> {
        networks.iter().map(|network| network.parse().unwrap()).collect()
    }

    fn to(destinations: &[&str]) -> Matchers {
        Matchers { destinations: Some(networks(destinations)), ..any() }
    }

    fn from(clients: &[&str]) -> Matchers {
        Matchers { clients: Some(networks(clients)), ..any() }
    }

    fn encoded(tlvs: &[(u8, &str)]) -> Vec<u8> {
        let encode = |(number, value): &(u8, &str)| {
            let length = u16::try_from(value.len()).unwrap().to_be_bytes();
            [&[*number][..], &length, value.as_bytes()].concat()
        };
        tlvs.iter().flat_map(encode).collect()
    }

    fn arrived(client: &str, destination: &str) -> Arrival<'static> {
        let address = |text: &str| text.parse().ok();
        Arrival { client: address(client), destination: address(destination), ..Arrival::default() }
    }

    /// Routes without a name, found by how the client arrived.
    fn found(table: &RouteTable<usize>, arrival: Arrival<'_>, header: &[(u8, &str)]) -> Option<usize> {
        let encoded = encoded(header);
        let arrival = Arrival { tlvs: Tlvs::parse(&encoded).unwrap(), ..arrival };
        table.find(&Client::new(None, None, arrival)).map(|found| *found.target)
    }

    #[test]
    fn e17_tlvs_come_before_the_destination_and_that_before_the_client() {
        let table = table(&[
            (&[], tlvs(&[(0x20, "one")])),
            (&[], tlvs(&[(0x20, "one"), (0xe0, "eu")])),
            (&[], to(&["10.0.0.0/8", "2001:db8::1/128"])),
            (&[], to(&["10.1.0.0/16"])),
            (&[], from(&["192.0.2.0/24"])),
            (&[], from(&["192.0.2.7/32"])),
            (&[], at_listeners(&[0])),
            (&[], alpn(&["h2"])),
        ])
        .unwrap();
        let one: &[_] = &[(0x20, "one")];
        let both: &[_] = &[(0x20, "zero"), (0xe0, "eu"), (0x20, "one")];
        for (client, destination, header, expected) in [
            ("192.0.2.7", "10.1.2.3", one, Some(0)),
            ("192.0.2.7", "10.1.2.3", both, Some(1)),
            ("192.0.2.7", "10.1.2.3", &[(0x20, "ones"), (0x20, ""), (0x21, "one")], Some(3)),
            ("192.0.2.7", "10.2.2.3", &[], Some(2)),
            ("192.0.2.7", "2001:db8::1", &[], Some(2)),
            ("192.0.2.7", "2001:db8::2", &[], Some(5)),
            ("192.0.2.8", "", &[], Some(4)),
            ("", "", &[], Some(6)),
        ] {
            assert_eq!(found(&table, arrived(client, destination), header), expected, "{client} {destination}");
        }
        let elsewhere = Arrival { listener: 1, ..Arrival::default() };
        assert_eq!(found(&table, elsewhere, &[]), None);
        assert!(table.matches_destinations());
    }

    #[test]
    fn e17_of_several_tlvs_with_one_number_the_first_that_leads_to_a_route_decides() {
        let table = table(&[(&[], tlvs(&[(0x20, "one")])), (&[], tlvs(&[(0x20, "two")])), (&[], any())]).unwrap();
        assert!(!table.matches_destinations());
        let header = [(0x20, "zero"), (0x20, "two"), (0x20, "one")];
        assert_eq!(found(&table, Arrival::default(), &header), Some(1));
        assert_eq!(found(&table, Arrival::default(), &[(0x20, "zero")]), Some(2));
    }

    #[test]
    fn e17_tlvs_are_read_as_they_were_written() {
        let written = [(0x20, &b"one"[..]), (0xe0, b""), (0x20, b"two")];
        let mut encoded = Vec::new();
        for (number, value) in written {
            Tlvs::append(&mut encoded, number, value).unwrap();
        }
        let tlvs = Tlvs::parse(&encoded).unwrap();
        assert!(tlvs.iter().eq(written));
        assert_eq!(tlvs.as_encoded(), encoded);
        assert!(!tlvs.is_empty() && Tlvs::default().is_empty());
        let whole = (0..=encoded.len()).filter(|length| Tlvs::parse(&encoded[..*length]).is_some());
        assert_eq!(whole.collect::<Vec<_>>(), [0, 6, 9, 15]);
        assert_eq!(Tlvs::append(&mut encoded, 0x20, &vec![0; 65_536]), None);
    }

    #[test]
    fn e17_of_as_many_tlvs_with_other_numbers_the_listener_decides() {
        let here = |matchers| Matchers { listeners: Some([0].into()), ..matchers };
        for (with_listener, without) in [(0x20, 0x21), (0x21, 0x20)] {
            let routes = [(&[][..], here(tlvs(&[(with_listener, "one")]))), (&[][..], tlvs(&[(without, "one")]))];
            let table = table(&routes).unwrap();
            assert_eq!(found(&table, Arrival::default(), &[(0x20, "one"), (0x21, "one")]), Some(0));
        }
    }

    #[test]
    fn e17_only_what_could_meet_conflicts() {
        let conflicting = [
            (tlvs(&[(0x20, "one")]), tlvs(&[(0x21, "two")])),
            (tlvs(&[(0x20, "one"), (0x21, "a")]), tlvs(&[(0x20, "one"), (0x22, "b")])),
            (to(&["10.0.0.0/8", "10.1.0.0/16"]), to(&["10.2.0.0/16", "10.0.0.0/8"])),
            (from(&["2001:db8::/32"]), from(&["2001:db8::/32"])),
        ];
        for (first, second) in conflicting {
            assert!(table(&[(&[], first.clone()), (&[], second.clone())]).is_err(), "{first:?} {second:?}");
        }
        let apart = [
            (tlvs(&[(0x20, "one")]), tlvs(&[(0x20, "two")])),
            (tlvs(&[(0x20, "one"), (0x21, "a")]), tlvs(&[(0x20, "two"), (0x22, "b")])),
            (to(&["10.0.0.0/16"]), to(&["10.1.0.0/16"])),
            (from(&["0.0.0.0/0"]), from(&["::/0"])),
            (from(&["10.0.0.0/8"]), to(&["10.0.0.0/8"])),
        ];
        for (first, second) in apart {
            assert!(table(&[(&[], first.clone()), (&[], second.clone())]).is_ok(), "{first:?} {second:?}");
        }
    }

    /// What decides among routes that match, in words: more TLVs, the longer matching prefix, and so on.
    fn naive<'r>(routes: &'r [Matchers], client: &Client<'_>) -> Option<(usize, &'r Matchers)> {
        let longest = |networks: &Option<Box<[IpNet]>>, address: Option<IpAddr>| {
            let containing = networks.iter().flatten().filter(|network| network.contains(&address.unwrap()));
            containing.map(IpNet::prefix_len).max()
        };
        let key = |matchers: &Matchers| {
            (
                matchers.proxy_tlvs.len(),
                longest(&matchers.destinations, client.arrival.destination),
                longest(&matchers.clients, client.arrival.client),
                matchers.listeners.is_some(),
                matchers.alpn.is_some(),
            )
        };
        let matching = routes.iter().enumerate().filter(|(_, matchers)| matchers.hold(client));
        matching.max_by_key(|(_, matchers)| key(matchers))
    }

    fn some_matchers() -> impl Strategy<Value = Matchers> {
        let network =
            proptest::sample::select(vec!["10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "::/0", "2001:db8::/32"]);
        let some_networks = || {
            let list = proptest::collection::btree_set(network.clone(), 1..3);
            proptest::option::of(list.prop_map(|list| list.into_iter().map(|text| text.parse().unwrap()).collect()))
        };
        let header = proptest::collection::btree_map(0x20_u8..0x23, "[ab]", 0..3);
        let listeners = proptest::option::of(proptest::collection::btree_set(0_usize..3, 1..3));
        (header, some_networks(), some_networks(), listeners, any_bool()).prop_map(
            |(header, destinations, clients, listeners, has_alpn)| Matchers {
                proxy_tlvs: header.into_iter().map(|(number, value)| (number, value.into_bytes().into())).collect(),
                destinations,
                clients,
                listeners: listeners.map(|listeners| listeners.into_iter().collect()),
                alpn: has_alpn.then(|| [Box::from(*b"h2")].into()),
            },
        )
    }

    fn any_bool() -> impl Strategy<Value = bool> {
        proptest::bool::ANY
    }

    proptest! {
        #[test]
        fn e17_agrees_with_a_scan_over_all_matchers(
            routes in proptest::collection::vec(some_matchers(), 1..12),
            clients in proptest::collection::vec(
                (
                    proptest::collection::vec((0x20_u8..0x23, "[abc]"), 0..3),
                    proptest::sample::select(vec!["10.1.1.1", "10.1.2.1", "10.2.1.1", "2001:db8::1", "::1", "192.0.2.1"]),
                    proptest::sample::select(vec!["10.1.1.1", "10.1.2.1", "10.2.1.1", "2001:db8::1", "::1", "192.0.2.1"]),
                    0_usize..3,
                    any_bool(),
                ),
                8,
            ),
        ) {
            let mut table = RouteTable::default();
            let mut inserted: Vec<Matchers> = Vec::new();
            for matchers in routes {
                // A conflicting route may be inserted in part, so each is tried in a table of its own.
                let mut trial = RouteTable::default();
                let all = inserted.iter().chain([&matchers]);
                if all.enumerate().all(|(number, matchers)| trial.insert(&[], matchers, &number).is_ok()) {
                    table = trial;
                    inserted.push(matchers);
                }
            }
            for (header, client, destination, listener, has_alpn) in clients {
                let header: Vec<(u8, &str)> = header.iter().map(|(number, value)| (*number, &**value)).collect();
                // With two values of one number, several routes may match that exclude each other in a configuration.
                let mut numbers: Vec<u8> = header.iter().map(|(number, _)| *number).collect();
                numbers.sort_unstable();
                numbers.dedup();
                prop_assume!(numbers.len() == header.len());
                let encoded = encoded(&header);
                let arrival = Arrival {
                    listener,
                    client: client.parse().ok(),
                    destination: destination.parse().ok(),
                    tlvs: Tlvs::parse(&encoded).unwrap(),
                };
                let offered = has_alpn.then(|| Alpn::from_list(b"\x02h2").unwrap());
                let client = Client::new(None, offered, arrival);
                let expected = naive(&inserted, &client).map(|(number, _)| number);
                prop_assert_eq!(table.find(&client).map(|found| *found.target), expected, "{:?}", inserted);
            }
        }
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
