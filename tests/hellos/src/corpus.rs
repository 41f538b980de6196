//! The list of hellos, `hellos.ini`: which bytes are sent, where they may arrive, and which sentence says so.

use std::collections::BTreeMap;
use std::fmt;

/// A hello of the list.
#[derive(Debug)]
pub struct Hello<'a> {
    pub name: &'a str,
    /// The file with its bytes, from the directory of the list.
    pub file: &'a str,
    pub sent: Sent,
    /// Where it may arrive; the first is best.
    pub right: Vec<Place>,
    /// Where it should not arrive, but does no harm: its one name is that of this backend, which will refuse it.
    pub harmless: Vec<Place>,
    /// The client that sent it, or `generated`.
    pub from: &'a str,
    pub rule: Rule<'a>,
}

/// How the bytes are cut into segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sent {
    #[default]
    Whole,
    /// Segments of this size.
    Each(usize),
    /// Cut at these offsets.
    At(Vec<usize>),
}

impl Sent {
    /// The segments.
    pub fn cut<'b>(&self, bytes: &'b [u8]) -> Vec<&'b [u8]> {
        match self {
            Self::Whole => vec![bytes],
            Self::Each(size) => bytes.chunks(*size).collect(),
            Self::At(offsets) => {
                let ends = offsets.iter().copied().chain([bytes.len()]);
                let starts = [0].into_iter().chain(offsets.iter().copied());
                starts.zip(ends).map(|(start, end)| &bytes[start..end]).collect()
            }
        }
    }
}

/// Where a hello ends up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The backend of `a.example`.
    A,
    /// The backend of `b.example`.
    B,
    /// The backend of every other name, and of clients without one.
    Other,
    /// No backend.
    Refused,
}

impl Place {
    const ALL: [Self; 4] = [Self::A, Self::B, Self::Other, Self::Refused];
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::A => "a",
            Self::B => "b",
            Self::Other => "other",
            Self::Refused => "refused",
        })
    }
}

/// The sentence that decides.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    pub source: &'a str,
    pub says: &'a str,
}

/// Reads the list.
///
/// # Errors
///
/// A message with the stanza that is wrong.
pub fn parse(list: &str) -> Result<Vec<Hello<'_>>, String> {
    let mut rules = BTreeMap::new();
    let mut hellos = Vec::new();
    for Stanza { title, mut keys } in stanzas(list)? {
        let wrong = |what: &str| format!("hellos.ini: [{title}]: {what}");
        let mut take = |key: &str| keys.remove(key).ok_or_else(|| wrong(&format!("{key} is missing")));
        if let Some(name) = title.strip_prefix("rule ") {
            let rule = Rule { source: take("source")?, says: take("says")? };
            if rules.insert(name, rule).is_some() {
                return Err(wrong("duplicate rule"));
            }
        } else {
            let places = |text: &str| {
                let known = |place| Place::ALL.into_iter().find(|known| known.to_string() == place);
                let places = text.split(", ").map(known).collect::<Option<Vec<_>>>();
                places.ok_or_else(|| wrong(&format!("{text}: expected a, b, other or refused")))
            };
            let rule = take("rule")?;
            hellos.push(Hello {
                name: title,
                file: take("bytes")?,
                sent: sent(take("sent").unwrap_or("whole")).ok_or_else(|| wrong("sent: expected whole, each or at"))?,
                right: places(take("right")?)?,
                harmless: take("harmless").map_or(Ok(Vec::new()), places)?,
                from: take("from")?,
                rule: *rules.get(rule).ok_or_else(|| wrong(&format!("rule = {rule}: not defined above")))?,
            });
        }
        if let Some(key) = keys.keys().next() {
            return Err(wrong(&format!("unknown key {key}")));
        }
    }
    Ok(hellos)
}

fn sent(text: &str) -> Option<Sent> {
    match text.split_once(' ') {
        None if text == "whole" => Some(Sent::Whole),
        Some(("each", size)) => size.parse().ok().filter(|size| *size > 0).map(Sent::Each),
        Some(("at", offsets)) => {
            offsets.split(' ').map(|offset| offset.parse().ok()).collect::<Option<_>>().map(Sent::At)
        }
        _ => None,
    }
}

struct Stanza<'a> {
    title: &'a str,
    keys: BTreeMap<&'a str, &'a str>,
}

/// A subset of INI, as Python's configparser reads it: titles, `key = value`, comments on lines of their own.
fn stanzas(list: &str) -> Result<Vec<Stanza<'_>>, String> {
    let mut stanzas: Vec<Stanza<'_>> = Vec::new();
    for (number, line) in list.lines().enumerate() {
        let wrong = || format!("hellos.ini: line {}: {line}", number + 1);
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(title) = line.strip_prefix('[') {
            let title = title.strip_suffix(']').ok_or_else(wrong)?;
            stanzas.push(Stanza { title, keys: BTreeMap::new() });
            continue;
        }
        let (key, value) = line.split_once(" = ").ok_or_else(wrong)?;
        let stanza = stanzas.last_mut().ok_or_else(wrong)?;
        if stanza.keys.insert(key, value).is_some() {
            return Err(wrong());
        }
    }
    Ok(stanzas)
}
