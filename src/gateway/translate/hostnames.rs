//! Hostnames of listeners and routes, and which of two is more specific.

use std::fmt;

use crate::name::{NameError, NamePattern, parents};

/// The names that a listener or route matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Hostname {
    /// Every name, and clients without SNI.
    Any,
    Pattern(NamePattern),
}

impl Hostname {
    pub(super) fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() { Ok(Self::Any) } else { NamePattern::parse(text).map(Self::Pattern) }
    }

    /// Whether every name that the other one matches is matched by this one, too.
    pub(super) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Pattern(NamePattern::Exact(own)), Self::Pattern(NamePattern::Exact(other))) => own == other,
            (Self::Pattern(_), Self::Any)
            | (Self::Pattern(NamePattern::Exact(_)), Self::Pattern(NamePattern::Suffix(_))) => false,
            (Self::Pattern(NamePattern::Suffix(own)), Self::Pattern(NamePattern::Exact(other))) => is_below(other, own),
            (Self::Pattern(NamePattern::Suffix(own)), Self::Pattern(NamePattern::Suffix(other))) => {
                own == other || is_below(other, own)
            }
        }
    }

    /// The patterns that cover it, other than itself; the most specific first.
    pub(super) fn wider(&self) -> impl Iterator<Item = Self> {
        let name = match self {
            Self::Any => None,
            Self::Pattern(NamePattern::Exact(name) | NamePattern::Suffix(name)) => Some(&**name),
        };
        let suffixes =
            name.into_iter().flat_map(parents).map(|parent| Self::Pattern(NamePattern::Suffix(parent.into())));
        suffixes.chain(name.map(|_| Self::Any))
    }

    /// The names that both match. Of two patterns that have any in common, one covers the other.
    pub(super) fn intersection<'h>(&'h self, other: &'h Self) -> Option<&'h Self> {
        if self.covers(other) {
            Some(other)
        } else if other.covers(self) {
            Some(self)
        } else {
            None
        }
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("every name"),
            Self::Pattern(pattern) => pattern.fmt(f),
        }
    }
}

/// Whether a name is below a domain, at any depth.
fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::name::ServerName;

    fn hostname(text: &str) -> Hostname {
        Hostname::parse(text).unwrap()
    }

    #[test]
    fn the_intersection_is_the_more_specific_one() {
        let cases = [
            ("", "", Some("")),
            ("", "*.com", Some("*.com")),
            ("", "a.example.com", Some("a.example.com")),
            ("a.example.com", "a.example.com", Some("a.example.com")),
            ("a.example.com", "A.example.com", Some("a.example.com")),
            ("a.example.com", "b.example.com", None),
            ("*.example.com", "a.example.com", Some("a.example.com")),
            ("*.example.com", "a.b.example.com", Some("a.b.example.com")),
            ("*.example.com", "example.com", None),
            ("*.example.com", "badexample.com", None),
            ("*.example.com", "*.com", Some("*.example.com")),
            ("*.example.com", "*.b.example.com", Some("*.b.example.com")),
            ("*.example.com", "*.example.com", Some("*.example.com")),
            ("*.example.com", "*.example.net", None),
            ("*.example.com", "*.badexample.com", None),
        ];
        for (one, other, expected) in cases {
            let (one, other, expected) = (hostname(one), hostname(other), expected.map(hostname));
            assert_eq!(one.intersection(&other), expected.as_ref(), "{one:?} {other:?}");
            assert_eq!(other.intersection(&one), expected.as_ref(), "{other:?} {one:?}");
        }
    }

    fn some_hostname() -> impl Strategy<Value = Hostname> {
        "(\\*\\.)?([ab]\\.){0,3}[ab]|".prop_map(|text| hostname(&text))
    }

    proptest! {
        #[test]
        fn the_intersection_matches_what_both_match(
            one in some_hostname(),
            other in some_hostname(),
            name in "([ab]\\.){0,4}[ab]",
        ) {
            let name = ServerName::parse(name.as_bytes()).unwrap();
            let matches = |hostname: &Hostname| match hostname {
                Hostname::Any => true,
                Hostname::Pattern(pattern) => pattern.matches(&name),
            };
            let both = matches(&one) && matches(&other);
            prop_assert_eq!(one.intersection(&other).is_some_and(matches), both);
            prop_assert!(!one.covers(&other) || !matches(&other) || matches(&one));
            prop_assert_eq!(other.wider().any(|wider| wider == one), one.covers(&other) && one != other);
        }
    }
}
