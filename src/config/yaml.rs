//! YAML in, with errors an operator can act on: which line, which key, what was expected instead.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Position;

/// Flow collections (`[`, `{`) nested deeper than any configuration is; the parser's time is quadratic in it.
const MAX_FLOW_DEPTH: usize = 64;

/// What is wrong, and where.
#[derive(Debug)]
pub(super) struct YamlError {
    pub(super) position: Option<Position>,
    pub(super) message: String,
}

impl YamlError {
    fn at(text: &str, offset: usize, message: impl Into<String>) -> Self {
        let before = &text[..offset];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
        Self { position: Some(Position { line, column }), message: message.into() }
    }
}

/// Reads one document.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, YamlError> {
    let text = decode(bytes)?;
    check_depth(text)?;
    if has_no_content(text) {
        return Err(YamlError {
            position: None,
            message: "the file is empty; expected at least `listen` and `routes`".into(),
        });
    }
    serde_yaml::from_str(text).map_err(|error| explain(text, &error))
}

/// The text that line numbers count in.
pub(super) fn decode(bytes: &[u8]) -> Result<&str, YamlError> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(YamlError { position: None, message: "the file is UTF-16; save it as UTF-8".into() });
    }
    let text = str::from_utf8(bytes).map_err(|error| {
        let valid = str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default();
        YamlError::at(valid, valid.len(), "the file is not UTF-8 from here on")
    })?;
    if let Some(offset) = text.find('\0') {
        return Err(YamlError::at(text, offset, "a NUL byte"));
    }
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn check_depth(text: &str) -> Result<(), YamlError> {
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
            return Err(YamlError::at(text, offset, format!("brackets nested deeper than {MAX_FLOW_DEPTH}")));
        }
    }
    Ok(())
}

fn has_no_content(text: &str) -> bool {
    text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---")
}

/// The parser's error, with the position of the very key and the nearest known one.
fn explain(text: &str, error: &serde_yaml::Error) -> YamlError {
    let message = error.to_string();
    let location = error.location();
    let at_end = location.as_ref().map(|at| format!(" at line {} column {}", at.line(), at.column()));
    let message = at_end.and_then(|end| message.strip_suffix(&end)).unwrap_or(&message);
    let position = location.map(|at| Position { line: at.line(), column: at.column() });
    if position.is_some_and(|at| character_at(text, at) == Some('\t')) {
        return YamlError { position, message: "a tab; YAML is indented with spaces".into() };
    }

    let (path, what) = match message.split_once(": ") {
        Some((path, what)) if is_path(path) => (path, what),
        _ => ("", message),
    };
    let prefix = if path.is_empty() { String::new() } else { format!("{path}: ") };
    if let Some((position, message)) = swallowed_line(what, text, position) {
        return YamlError { position: Some(position), message: format!("{prefix}{message}") };
    }
    if let Some((key, known)) = quoted(what, "unknown field `") {
        let position = locate(text, &Place::key(path, key)).or(position);
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        let hint = match nearest(key, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("expected one of {}", known.join(", ")),
        };
        return YamlError { position, message: format!("{prefix}unknown key `{key}`; {hint}") };
    }
    if let Some((key, _)) = quoted(what, "duplicate field `") {
        let place = Place::key(path, key);
        let first = locate(text, &place).map_or_else(String::new, |first| format!(", first on line {}", first.line));
        let position = locate(text, &Place { occurrence: 2, ..place }).or(position);
        return YamlError { position, message: format!("{prefix}the key `{key}` stands twice{first}") };
    }
    if let Some((key, _)) = quoted(what, "missing field `") {
        return YamlError { position, message: format!("{prefix}the key `{key}` is missing") };
    }
    YamlError { position, message: format!("{prefix}{}", in_our_words(what, text, position)) }
}

/// The parser speaks of Rust types and of the inside of YAML.
fn in_our_words(what: &str, text: &str, position: Option<Position>) -> String {
    let line = position.and_then(|at| text.lines().nth(at.line - 1)).unwrap_or_default();
    if what.contains("while scanning an alias") || what.starts_with("unknown anchor") {
        return "a name that begins with `*` needs quotes: \"*.example.com\"".into();
    }
    if what.contains("while parsing a flow node") && line.contains("[:") {
        return "an address in brackets needs quotes: \"[::]:6443\"".into();
    }
    if what.starts_with("invalid type: string") && position.is_some_and(|at| at == Position { line: 1, column: 1 }) {
        return "the file is text without keys; expected `listen` and `routes` (for HAProxy's and nginx's files there is \
            `snigate import`)"
            .into();
    }
    if let Some(plain) = of_libyaml(what) {
        return plain.into();
    }
    if let Some((value, expected)) = quoted(what, "unknown variant `") {
        return format!("`{value}`: {}", expected.trim_start_matches(", "));
    }
    let what = match what.split_once(", expected struct ") {
        Some((what, _)) => format!("{what}, expected a map of keys"),
        None => what.to_owned(),
    };
    // A second position in the message, of the same place.
    let what = what.split(" at line ").next().unwrap_or_default();
    what.replace(
        "deserializing from YAML containing more than one document is not supported",
        "more than one document (`---`); expected one",
    )
    .replace("invalid type: unit value", "no value")
    .replace("invalid type: ", "")
    .replace("invalid value: ", "")
    .replace("expected a sequence", "expected a list, each item behind `- `")
    .replace("sequence, ", "a list, ")
    .replace("map, ", "a map, ")
    .replace("a boolean", "true or false")
}

/// A key that is indented too far is taken for a part of the value above it.
fn swallowed_line(what: &str, text: &str, position: Option<Position>) -> Option<(Position, String)> {
    let (value, _) = quoted(what, "`")?;
    let line = position?.line + 1;
    let next = text.lines().nth(line - 1)?;
    let (key, _) = next.split_once(':')?;
    let is_swallowed =
        !key.trim().is_empty() && value.split_once(' ').is_some_and(|(_, rest)| rest.starts_with(key.trim()));
    let column = next.chars().take_while(|character| *character == ' ').count() + 1;
    let message = || format!("the key `{}` is indented too far: here it is a part of the value above it", key.trim());
    is_swallowed.then(|| (Position { line, column }, message()))
}

/// What the parser says most often, and what has happened then.
fn of_libyaml(what: &str) -> Option<&'static str> {
    const WORDS: [(&str, &str); 14] = [
        (
            "did not find expected key",
            "the indentation does not fit the lines above, or a quote or bracket is not closed",
        ),
        (
            "mapping values are not allowed in this context",
            "a `:` where no key can be: the line is indented too far, or the value needs quotes",
        ),
        (
            "did not find expected '-' indicator",
            "the indentation does not fit the list above: all its items begin with `- ` in one column",
        ),
        ("could not find expected ':'", "a key without a `:` behind it, here or on the line above"),
        ("found character that cannot start any token", "a value that begins with this character needs quotes"),
        ("found unexpected end of stream", "a quote is not closed before the end of the file"),
        ("did not find expected ',' or ']'", "a `,` or the closing `]` is missing"),
        ("did not find expected ',' or '}'", "a `,` or the closing `}` is missing"),
        (
            "block sequence entries are not allowed in this context",
            "an item of a list (`- `) begins on a line of its own, below its key",
        ),
        ("found unknown escape character", "an unknown escape in double quotes; in single quotes a `\\` is no escape"),
        ("found undefined tag handle", "a value that begins with `!` needs quotes"),
        ("did not find expected node content", "a value is missing here, or a bracket has no other end"),
        (
            "did not find expected <document start>",
            "a line that belongs to no key: is it, or the first one, indented wrongly?",
        ),
        ("control characters are not allowed", "a control character; save the file as plain text"),
    ];
    WORDS.into_iter().find(|(theirs, _)| what.contains(theirs)).map(|(_, ours)| ours)
}

fn character_at(text: &str, Position { line, column }: Position) -> Option<char> {
    text.lines().nth(line.checked_sub(1)?)?.chars().nth(column.checked_sub(1)?)
}

fn quoted<'a>(message: &'a str, start: &str) -> Option<(&'a str, &'a str)> {
    message.strip_prefix(start)?.split_once('`')
}

/// `routes[0].upstream`, as the parser prints it.
fn is_path(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.[]".contains(&byte))
}

/// The known key that was probably meant.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let closeness = |candidate: &&str| strsim::jaro_winkler(key, candidate);
    let best = known.iter().copied().max_by(|left, right| closeness(left).total_cmp(&closeness(right)))?;
    (closeness(&best) > 0.75).then_some(best)
}

/// A key or value in a document.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    steps: Vec<Step<'a>>,
    /// Whether the key is meant, not its value.
    is_key: bool,
    /// Which of several equal keys.
    occurrence: usize,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> Place<'a> {
    /// The value at a path such as `routes[0].sni`.
    pub(super) fn value(path: &'a str) -> Self {
        let steps = path
            .split(['.', '['])
            .filter(|step| !step.is_empty())
            .map(|step| match step.strip_suffix(']').and_then(|index| index.parse().ok()) {
                Some(index) => Step::Index(index),
                None => Step::Key(step),
            })
            .collect();
        Self { steps, is_key: false, occurrence: 1 }
    }

    fn key(path: &'a str, key: &'a str) -> Self {
        let mut place = Self::value(path);
        place.steps.push(Step::Key(key));
        Self { is_key: true, ..place }
    }
}

/// Where the place is in the text.
///
/// Deserialized values do not know their position, errors do: the document is read again up to the place, and there
/// an error is raised.
pub(super) fn locate(text: &str, place: &Place<'_>) -> Option<Position> {
    let walk = Walk { steps: &place.steps, is_key: place.is_key, occurrence: place.occurrence };
    let error = walk.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    error.location().map(|at| Position { line: at.line(), column: at.column() })
}

#[derive(Clone, Copy)]
struct Walk<'a> {
    steps: &'a [Step<'a>],
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
        f.write_str("the place looked for")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), rest)) = self.steps.split_first() else { return Err(A::Error::custom("here")) };
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
        let Some((Step::Index(wanted), rest)) = self.steps.split_first() else { return Err(A::Error::custom("here")) };
        for _ in 0..*wanted {
            sequence.next_element::<IgnoredAny>()?;
        }
        sequence.next_element_seed(Self { steps: rest, ..self }).map(drop)
    }
}

/// Compares a key; at the occurrence asked for, raises an error instead.
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
    fn places_are_found() {
        let text = "listen: a\nroutes:\n  - sni: [a, b]\n  - {sni: c, sni: d}\n";
        let line_and_column = |place: Place<'_>| locate(text, &place).map(|at| (at.line, at.column));
        assert_eq!(line_and_column(Place::value("listen")), Some((1, 9)));
        assert_eq!(line_and_column(Place::value("routes[0].sni[1]")), Some((3, 14)));
        assert_eq!(line_and_column(Place::key("", "routes")), Some((2, 1)));
        assert_eq!(line_and_column(Place::key("routes[1]", "sni")), Some((4, 6)));
        assert_eq!(line_and_column(Place { occurrence: 2, ..Place::key("routes[1]", "sni") }), Some((4, 14)));
        assert_eq!(line_and_column(Place::value("nowhere")), None);
    }
}
