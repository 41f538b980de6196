//! `/api/status` as text, of all routes or of some.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use hyper::body::Bytes;

use super::exposition::PIECE;
use super::{State, View, status};
use crate::text::escape::visible;

/// What runs at one moment. Any number of clients can read any part of it.
#[derive(Debug)]
pub(super) struct Snapshot {
    view: Arc<View>,
    /// All but the routes, up to its end.
    head: String,
    chunks: Vec<Bytes>,
    /// Where each route is: the chunk, and from where to where without the separator that follows.
    routes: Vec<(usize, Range<usize>)>,
}

const SEPARATOR: &str = ",\n";

impl Snapshot {
    /// Takes a while for many routes.
    pub(super) fn of(state: &State) -> Self {
        let view = state.view.load_full();
        let mut head = format!("{:#}", status::without_routes(state, &view));
        head.truncate(head.strip_suffix("\n}").map_or(head.len(), str::len));
        let (mut chunks, mut chunk, mut routes) = (Vec::new(), String::new(), Vec::new());
        for route in &view.routes {
            if chunk.len() > PIECE {
                chunks.push(Bytes::copy_from_slice(chunk.as_bytes()));
                chunk.clear();
            }
            let begin = chunk.len();
            // Writing to a string cannot fail.
            let _ = write!(chunk, "    {}", format!("{:#}", status::route(route)).replace('\n', "\n    "));
            routes.push((chunks.len(), begin..chunk.len()));
            chunk.push_str(SEPARATOR);
        }
        chunks.push(chunk.into());
        Self { view, head, chunks, routes }
    }

    /// An error says which route there is not.
    pub(super) fn page(&self, wanted: &Wanted) -> Result<Page, String> {
        let Wanted { route, offset, limit } = wanted;
        let mut routes = 0..self.routes.len();
        if let Some(name) = route {
            let found = self.view.routes.iter().position(|route| route.counters.name() == name);
            let found = found.ok_or_else(|| format!("there is no route `{}`\n", visible(name)))?;
            routes = found..found + 1;
        }
        let first = routes.start.saturating_add(*offset).min(routes.end);
        let last = first.saturating_add(*limit).min(routes.end);
        let mut slices: Vec<(usize, Range<usize>)> = Vec::new();
        for (chunk, text) in &self.routes[first..last] {
            match slices.last_mut() {
                Some((before, slice)) if before == chunk => slice.end = text.end,
                Some((_, slice)) => {
                    slice.end += SEPARATOR.len();
                    slices.push((*chunk, text.clone()));
                }
                None => slices.push((*chunk, text.clone())),
            }
        }
        let is_empty = slices.is_empty();
        let (open, close) = if is_empty { ("[", "]\n}\n") } else { ("[\n", "\n  ]\n}\n") };
        let head = format!("{},\n  \"offset\": {offset},\n  \"routes\": {open}", self.head);
        Ok(Page { head: head.into(), slices, close })
    }
}

/// Which routes are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Only the one with this name.
    route: Option<String>,
    offset: usize,
    limit: usize,
}

impl Wanted {
    /// From the query of a URL; an error says what is wrong with it.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut wanted = Self { route: None, offset: 0, limit: usize::MAX };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let number = || value.parse().map_err(|_| format!("{key}: expected a number, got `{}`\n", visible(value)));
            match key {
                "route" => {
                    let name = percent_decoded(value).and_then(|bytes| String::from_utf8(bytes).ok());
                    wanted.route = Some(name.ok_or("route: expected a name, percent-encoded\n")?);
                }
                "offset" => wanted.offset = number()?,
                "limit" => wanted.limit = number()?,
                _ => return Err(format!("unknown parameter `{}`; expected route, offset or limit\n", visible(key))),
            }
        }
        Ok(wanted)
    }
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        rest = more;
        if *first == b'%' {
            let (digits, more) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = more;
        } else {
            bytes.push(*first);
        }
    }
    Some(bytes)
}

/// A part of a snapshot.
#[derive(Debug)]
pub(super) struct Page {
    head: Bytes,
    slices: Vec<(usize, Range<usize>)>,
    close: &'static str,
}

impl Page {
    pub(super) fn length(&self) -> usize {
        self.head.len() + self.slices.iter().map(|(_, slice)| slice.len()).sum::<usize>() + self.close.len()
    }

    pub(super) fn piece(&self, snapshot: &Snapshot, index: usize) -> Option<Bytes> {
        match index.checked_sub(1) {
            None => Some(self.head.clone()),
            Some(slice) if slice < self.slices.len() => {
                let (chunk, range) = &self.slices[slice];
                Some(snapshot.chunks[*chunk].slice(range.clone()))
            }
            Some(slice) if slice == self.slices.len() => Some(Bytes::from_static(self.close.as_bytes())),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_which_routes_are_wanted() {
        let all = Wanted { route: None, offset: 0, limit: usize::MAX };
        assert_eq!(Wanted::parse(""), Ok(all.clone()));
        assert_eq!(Wanted::parse("offset=20&limit=10"), Ok(Wanted { offset: 20, limit: 10, ..all.clone() }));
        let star = Wanted { route: Some("*.a b".into()), ..all };
        assert_eq!((Wanted::parse("route=*.a%20b"), Wanted::parse("route=%2A.a%20b&")), (Ok(star.clone()), Ok(star)));
        for (query, says) in [
            ("limit=-1", "limit: expected a number, got `-1`\n"),
            ("offset", "offset: expected a number, got ``\n"),
            ("page=1", "unknown parameter `page`; expected route, offset or limit\n"),
            ("route=%ff", "route: expected a name, percent-encoded\n"),
            ("route=a%2", "route: expected a name, percent-encoded\n"),
        ] {
            assert_eq!(Wanted::parse(query), Err(says.into()), "{query}");
        }
    }
}
