//! Errors of the YAML parser, turned into messages for operators: where, which key, and what was expected.

use super::Position;
use super::yaml::{Root, YamlPath, locate};

/// An error in a document, and its position.
#[derive(Debug)]
pub(super) struct YamlError {
    pub(super) position: Option<Position>,
    pub(super) message: String,
}

impl YamlError {
    pub(super) fn at(text: &str, offset: usize, message: impl Into<String>) -> Self {
        let before = &text[..offset];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
        Self { position: Some(Position { line, column }), message: message.into() }
    }
}

/// Rewrites the parser's error: the position is that of the key, and an unknown key gets the nearest known one.
pub(super) fn explain<T: Root>(text: &str, error: &serde_yaml::Error) -> YamlError {
    let message = error.to_string();
    let location = error.location();
    let at_end = location.as_ref().map(|at| format!(" at line {} column {}", at.line(), at.column()));
    let message = at_end.and_then(|end| message.strip_suffix(&end)).unwrap_or(&message);
    let position = location.map(|at| Position { line: at.line(), column: at.column() });
    if position.is_some_and(|at| character_at(text, at) == Some('\t')) {
        return YamlError { position, message: "tab character; YAML must be indented with spaces".into() };
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
        let position = locate(text, &YamlPath::key(path, key)).or(position);
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        let hint = match nearest(key, &known) {
            _ if path.is_empty()
                && let Some(hint) = T::NO_OTHER_KEYS =>
            {
                hint.into()
            }
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("expected one of {}", known.join(", ")),
        };
        return YamlError { position, message: format!("{prefix}unknown key `{key}`; {hint}") };
    }
    if let Some((key, _)) = quoted(what, "duplicate field `") {
        let first = locate(text, &YamlPath::key(path, key));
        let first = first.map_or_else(String::new, |first| format!(" (first on line {})", first.line));
        let position = locate(text, &YamlPath::second(path, key)).or(position);
        return YamlError { position, message: format!("{prefix}duplicate key `{key}`{first}") };
    }
    if let Some((key, _)) = quoted(what, "missing field `") {
        return YamlError { position, message: format!("{prefix}missing key `{key}`") };
    }
    YamlError { position, message: format!("{prefix}{}", rephrase::<T>(what, text, position)) }
}

/// The parser's messages name Rust types and YAML internals; these name what the operator wrote.
fn rephrase<T: Root>(what: &str, text: &str, position: Option<Position>) -> String {
    let line = position.and_then(|at| text.lines().nth(at.line - 1)).unwrap_or_default();
    if what.contains("while scanning an alias") || what.starts_with("unknown anchor") {
        return "a name that starts with `*` needs quotes: \"*.example.com\"".into();
    }
    if what.contains("while parsing a flow node") && line.contains("[:") {
        return "an address in brackets needs quotes: \"[::]:6443\"".into();
    }
    if what.starts_with("invalid type: string") && position.is_some_and(|at| at == Position { line: 1, column: 1 }) {
        return format!(
            "the file has no keys; expected {} (to convert an HAProxy or nginx configuration, use `snigate import`)",
            T::KEYS
        );
    }
    if let Some(message) = libyaml_message(what) {
        return message.into();
    }
    if let Some((value, expected)) = quoted(what, "unknown variant `") {
        return format!("`{value}`: {}", expected.trim_start_matches(", "));
    }
    let what = match what.split_once(", expected struct ") {
        Some((what, _)) => format!("{what}, expected a map of keys"),
        None => what.to_owned(),
    };
    // Some messages end with the same position once more.
    let what = what.split(" at line ").next().unwrap_or_default();
    what.replace(
        "deserializing from YAML containing more than one document is not supported",
        "more than one document (`---`); expected one",
    )
    .replace("invalid type: unit value", "no value")
    .replace("invalid type: ", "")
    .replace("invalid value: ", "")
    .replace("expected a sequence", "expected a list with `- ` before each item")
    .replace("sequence, ", "a list, ")
    .replace("map, ", "a map, ")
    .replace("a boolean", "true or false")
}

/// A key that is indented too far is parsed as part of the value above it.
fn swallowed_line(what: &str, text: &str, position: Option<Position>) -> Option<(Position, String)> {
    let (value, _) = quoted(what, "`")?;
    let line = position?.line + 1;
    let next = text.lines().nth(line - 1)?;
    let (key, _) = next.split_once(':')?;
    let is_swallowed =
        !key.trim().is_empty() && value.split_once(' ').is_some_and(|(_, rest)| rest.starts_with(key.trim()));
    let column = next.chars().take_while(|character| *character == ' ').count() + 1;
    let message = || format!("key `{}` is indented too far, so it is read as part of the value above it", key.trim());
    is_swallowed.then(|| (Position { line, column }, message()))
}

/// The most frequent messages of libyaml, and what is usually wrong.
fn libyaml_message(what: &str) -> Option<&'static str> {
    const MESSAGES: [(&str, &str); 14] = [
        (
            "did not find expected key",
            "the indentation does not match the lines above, or a quote or bracket is not closed",
        ),
        (
            "mapping values are not allowed in this context",
            "unexpected `:`: the line is indented too far, or the value needs quotes",
        ),
        (
            "did not find expected '-' indicator",
            "the indentation does not match the list above: all its items must start with `- ` in the same column",
        ),
        ("could not find expected ':'", "missing `:` after a key, here or on the line above"),
        ("found character that cannot start any token", "a value that starts with this character needs quotes"),
        ("found unexpected end of stream", "unclosed quote at the end of the file"),
        ("did not find expected ',' or ']'", "missing `,` or closing `]`"),
        ("did not find expected ',' or '}'", "missing `,` or closing `}`"),
        (
            "block sequence entries are not allowed in this context",
            "a list item (`- `) must start on its own line, below its key",
        ),
        (
            "found unknown escape character",
            "unknown escape in double quotes; in single quotes, `\\` is an ordinary character",
        ),
        ("found undefined tag handle", "a value that starts with `!` needs quotes"),
        ("did not find expected node content", "missing value, or unmatched bracket"),
        (
            "did not find expected <document start>",
            "this line belongs to no key; check its indentation, and that of the first line",
        ),
        ("control characters are not allowed", "control character; save the file as plain text"),
    ];
    MESSAGES.into_iter().find(|(theirs, _)| what.contains(theirs)).map(|(_, message)| message)
}

fn character_at(text: &str, Position { line, column }: Position) -> Option<char> {
    text.lines().nth(line.checked_sub(1)?)?.chars().nth(column.checked_sub(1)?)
}

fn quoted<'a>(message: &'a str, start: &str) -> Option<(&'a str, &'a str)> {
    message.strip_prefix(start)?.split_once('`')
}

/// Whether this is a path as the parser prints it, such as `routes[0].upstream`.
fn is_path(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.[]".contains(&byte))
}

/// The known key that is most similar, if any is similar enough.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let closeness = |candidate: &&str| strsim::jaro_winkler(key, candidate);
    let best = known.iter().copied().max_by(|left, right| closeness(left).total_cmp(&closeness(right)))?;
    (closeness(&best) > 0.75).then_some(best)
}
