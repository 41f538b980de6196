//! Parses YAML, and finds the position of a key or value in a document.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Position;
use super::yaml_error::{YamlError, explain};

/// Maximum nesting of flow collections (`[`, `{`): the parser's time is quadratic in it.
const MAX_FLOW_DEPTH: usize = 64;

/// The whole of a document.
pub(super) trait Root: DeserializeOwned {
    /// The keys that it usually has.
    const KEYS: &'static str;

    /// Why it has no other keys than those that it knows, if they may be known elsewhere.
    const NO_OTHER_KEYS: Option<&'static str> = None;
}

/// Parses one document.
pub(super) fn parse<T: Root>(bytes: &[u8]) -> Result<T, YamlError> {
    let text = decode(bytes)?;
    check_depth(text)?;
    if has_no_content(text) {
        return Err(YamlError { position: None, message: format!("the file is empty; expected at least {}", T::KEYS) });
    }
    serde_yaml::from_str(text).map_err(|error| explain::<T>(text, &error))
}

/// The text without its byte order mark, as the parser sees it.
pub(super) fn decode(bytes: &[u8]) -> Result<&str, YamlError> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(YamlError { position: None, message: "the file is UTF-16; save it as UTF-8".into() });
    }
    let text = str::from_utf8(bytes).map_err(|error| {
        let valid = str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        YamlError::at(valid, valid.len(), "invalid UTF-8 from here on")
    })?;
    if let Some(offset) = text.find('\0') {
        return Err(YamlError::at(text, offset, "NUL byte"));
    }
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

pub(super) fn check_depth(text: &str) -> Result<(), YamlError> {
    let mut depth = 0usize;
    let mut before = b'\n';
    let mut in_comment = false;
    for (offset, byte) in text.bytes().enumerate() {
        in_comment = byte != b'\n' && (in_comment || (byte == b'#' && before.is_ascii_whitespace()));
        before = byte;
        match byte {
            _ if in_comment => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_FLOW_DEPTH {
            return Err(YamlError::at(text, offset, format!("brackets nested more than {MAX_FLOW_DEPTH} levels deep")));
        }
    }
    Ok(())
}

fn has_no_content(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---")
}

/// The path of a key or value in a document.
#[derive(Clone, Debug)]
pub(super) struct YamlPath<'a> {
    steps: Vec<PathStep<'a>>,
    /// Whether it is the key, not its value.
    is_key: bool,
    /// Which of several equal keys, from 1.
    occurrence: usize,
}

#[derive(Clone, Copy, Debug)]
enum PathStep<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> YamlPath<'a> {
    /// The value at a path such as `routes[0].sni`.
    pub(super) fn value(path: &'a str) -> Self {
        let steps = path
            .split(['.', '['])
            .filter(|step| !step.is_empty())
            .map(|step| match step.strip_suffix(']').and_then(|index| index.parse().ok()) {
                Some(index) => PathStep::Index(index),
                None => PathStep::Key(step),
            })
            .collect();
        Self { steps, is_key: false, occurrence: 1 }
    }

    /// A key of the map at a path.
    pub(super) fn key(path: &'a str, key: &'a str) -> Self {
        let mut steps = Self::value(path).steps;
        steps.push(PathStep::Key(key));
        Self { steps, is_key: true, occurrence: 1 }
    }

    /// The second occurrence of a duplicate key.
    pub(super) fn second(path: &'a str, key: &'a str) -> Self {
        Self { occurrence: 2, ..Self::key(path, key) }
    }
}

/// The position of a path in the text.
///
/// Deserialized values do not have a position, but errors do: the document is parsed again up to the path, where an
/// error is raised.
pub(super) fn locate(text: &str, path: &YamlPath<'_>) -> Option<Position> {
    let walk = Walk { steps: &path.steps, is_key: path.is_key, occurrence: path.occurrence };
    let error = walk.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    error.location().map(|at| Position { line: at.line(), column: at.column() })
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    steps: &'a [PathStep<'a>],
    is_key: bool,
    occurrence: usize,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the path to locate")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((PathStep::Key(wanted), rest)) = self.steps.split_first() else {
            return Err(A::Error::custom("here"));
        };
        let here = self.is_key && rest.is_empty();
        let mut seen = 0;
        while let Some(found) =
            map.next_key_seed(KeyIs { wanted, raise_at: here.then_some(self.occurrence), seen: &mut seen })?
        {
            if found && !here {
                return map.next_value_seed(Self { steps: rest, ..self });
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let Some((PathStep::Index(wanted), rest)) = self.steps.split_first() else {
            return Err(A::Error::custom("here"));
        };
        for _ in 0..*wanted {
            sequence.next_element::<IgnoredAny>()?;
        }
        sequence.next_element_seed(Self { steps: rest, ..self }).map(drop)
    }
}

/// Compares a key; raises an error at the occurrence to locate.
struct KeyIs<'a> {
    wanted: &'a str,
    raise_at: Option<usize>,
    seen: &'a mut usize,
}

impl<'de> DeserializeSeed<'de> for KeyIs<'_> {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for KeyIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        let found = key == self.wanted;
        *self.seen += usize::from(found);
        if found && Some(*self.seen) == self.raise_at { Err(E::custom("here")) } else { Ok(found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_located() {
        let text = "listen: a\nroutes:\n  - sni: [a, b]\n  - {sni: c, sni: d}\n";
        let line_and_column = |path: YamlPath<'_>| locate(text, &path).map(|at| (at.line, at.column));
        assert_eq!(line_and_column(YamlPath::value("listen")), Some((1, 9)));
        assert_eq!(line_and_column(YamlPath::value("routes[0].sni[1]")), Some((3, 14)));
        assert_eq!(line_and_column(YamlPath::key("", "routes")), Some((2, 1)));
        assert_eq!(line_and_column(YamlPath::key("routes[1]", "sni")), Some((4, 6)));
        assert_eq!(line_and_column(YamlPath::second("routes[1]", "sni")), Some((4, 14)));
        assert_eq!(line_and_column(YamlPath::value("nowhere")), None);
    }
}
