//! Regular expressions that only list names and suffixes.

use super::name_match::NameMatch;

/// Expressions with more alternatives are not translated.
const MAX_NAMES: usize = 64;
const NOT_A_LIST: &str = "the regular expression is not just a list of names and suffixes";

#[derive(Clone, Debug, PartialEq, Eq)]
enum RegexPart {
    Text(String),
    /// An unescaped dot.
    AnyCharacter,
    /// `[^.]+`
    Label,
    /// `.*`
    Anything,
    /// `.+`
    Something,
}

/// What the expression matches, and the names that it may match besides.
pub(super) fn name_matches(expression: &str) -> Result<(Vec<NameMatch>, Option<String>), String> {
    let (mut matches, mut may_match) = (Vec::new(), None);
    for text in alternatives(expression).ok_or(NOT_A_LIST)? {
        let is_start = text.starts_with('^');
        let text = text.trim_start_matches('^');
        let is_end = text.ends_with('$') && !text.ends_with("\\$");
        let text = if is_end { &text[..text.len() - 1] } else { text };
        for parts in combinations(text).ok_or(NOT_A_LIST)? {
            let (one, more) = name_match(&parts, is_start, is_end).ok_or(NOT_A_LIST)?;
            matches.push(one);
            may_match = may_match.or(more);
        }
    }
    if matches.is_empty() || matches.len() > MAX_NAMES { Err(NOT_A_LIST.into()) } else { Ok((matches, may_match)) }
}

fn name_match(parts: &[RegexPart], is_start: bool, is_end: bool) -> Option<(NameMatch, Option<String>)> {
    let (mut parts, mut is_start, mut is_end) = (parts, is_start, is_end);
    if let (true, [RegexPart::Anything, rest @ ..]) = (is_start, parts) {
        (is_start, parts) = (false, rest);
    }
    if let (true, [rest @ .., RegexPart::Anything]) = (is_end, parts) {
        (is_end, parts) = (false, rest);
    }
    let mut head = None;
    if let [first @ (RegexPart::Label | RegexPart::Something), rest @ ..] = parts {
        (head, parts) = (Some(first), rest);
    }
    let mut text = String::new();
    for part in parts {
        match part {
            RegexPart::Text(more) => text.push_str(more),
            RegexPart::AnyCharacter => text.push('.'),
            RegexPart::Label | RegexPart::Anything | RegexPart::Something => return None,
        }
    }
    let has_any_character = parts.contains(&RegexPart::AnyCharacter);
    let one = match (head, is_start, is_end) {
        (Some(RegexPart::Label), true, _) => NameMatch::OneLabelBelow(hostname(text.strip_prefix('.')?)?),
        // Without `^` the expression needs only one of several labels.
        (Some(_), _, _) => NameMatch::below(text.strip_prefix('.')?).ok()?,
        (None, true, true) if has_any_character => NameMatch::AnyCharacterForDot(hostname(&text)?),
        (None, true, true) => NameMatch::exact(&text).ok()?,
        (None, true, false) => return Some((NameMatch::by_method("beg", &text).ok()?, None)),
        (None, false, true) => NameMatch::by_method("end", &text).ok()?,
        (None, false, false) => return Some((NameMatch::by_method("sub", &text).ok()?, None)),
    };
    let may_match = if !is_end {
        Some(format!("names that continue after `{text}`, as the expression has no `$`"))
    } else if has_any_character {
        Some(format!("names with another character where `{text}` has an unescaped dot"))
    } else {
        None
    };
    Some((one, may_match))
}

fn hostname(text: &str) -> Option<String> {
    match NameMatch::exact(text).ok()? {
        NameMatch::Exact(text) => Some(text),
        _ => None,
    }
}

/// Parentheses around the whole expression are removed.
fn alternatives(text: &str) -> Option<Vec<String>> {
    let inside = |text: &str| {
        let (text, is_anchored) = match text.strip_prefix("^(").and_then(|text| text.strip_suffix(")$")) {
            Some(inside) => (inside, true),
            None => (text.strip_prefix('(')?.strip_suffix(')')?, false),
        };
        let pieces = split(text.strip_prefix("?:").unwrap_or(text))?;
        let anchored = |piece: &str| if is_anchored { format!("^{piece}$") } else { piece.to_owned() };
        Some(pieces.into_iter().map(anchored).collect())
    };
    match &split(text)?[..] {
        [one] => Some(inside(one).unwrap_or_else(|| vec![(*one).to_owned()])),
        pieces => Some(pieces.iter().map(|piece| (*piece).to_owned()).collect()),
    }
}

/// At each `|` that is not inside parentheses.
fn split(text: &str) -> Option<Vec<&str>> {
    let (mut depth, mut escaped, mut start) = (0usize, false, 0);
    let mut pieces = Vec::new();
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' => depth += 1,
            ')' => depth = depth.checked_sub(1)?,
            '|' if depth == 0 => {
                pieces.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    (depth == 0 && !escaped).then_some(pieces)
}

/// Every combination of the alternatives in groups.
fn combinations(text: &str) -> Option<Vec<Vec<RegexPart>>> {
    let mut all: Vec<Vec<RegexPart>> = vec![Vec::new()];
    let mut rest = text;
    while !rest.is_empty() {
        let choices;
        if let Some(group) = rest.strip_prefix('(') {
            (choices, rest) = group_choices(group)?;
        } else {
            let part;
            (part, rest) = next_part(rest)?;
            choices = vec![vec![part]];
        }
        if rest.starts_with(['?', '*', '+', '{']) {
            return None;
        }
        all = all.iter().flat_map(|one| choices.iter().map(move |more| [&one[..], more].concat())).collect();
        if all.len() > MAX_NAMES {
            return None;
        }
    }
    Some(all)
}

/// Starts after the opening parenthesis; also returns the text after the group.
fn group_choices(text: &str) -> Option<(Vec<Vec<RegexPart>>, &str)> {
    let end = closing(text)?;
    let inside = text[..end].strip_prefix("?:").unwrap_or(&text[..end]);
    let mut choices = Vec::new();
    for piece in split(inside)? {
        choices.extend(combinations(piece)?);
    }
    let rest = &text[end + 1..];
    match rest.strip_prefix('?') {
        Some(rest) => {
            choices.push(Vec::new());
            Some((choices, rest))
        }
        None => Some((choices, rest)),
    }
}

fn next_part(text: &str) -> Option<(RegexPart, &str)> {
    let first = text.chars().next()?;
    let after = &text[first.len_utf8()..];
    match first {
        '[' => {
            let (class, rest) = after.split_once(']')?;
            match (class, rest.strip_prefix('+')) {
                ("^." | "^\\.", Some(rest)) => Some((RegexPart::Label, rest)),
                ("." | "\\.", None) => Some((RegexPart::Text(".".into()), rest)),
                _ => None,
            }
        }
        '.' => Some(match after.chars().next() {
            Some('*') => (RegexPart::Anything, &after[1..]),
            Some('+') => (RegexPart::Something, &after[1..]),
            _ => (RegexPart::AnyCharacter, after),
        }),
        '\\' => {
            let escaped = after.chars().next().filter(|escaped| matches!(escaped, '.' | '-' | '_' | '/'))?;
            Some((RegexPart::Text(escaped.into()), &after[1..]))
        }
        letter if letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_') => {
            Some((RegexPart::Text(letter.to_ascii_lowercase().into()), after))
        }
        _ => None,
    }
}

fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut escaped) = (0usize, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '(' => depth += 1,
            ')' if depth == 0 => return Some(at),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_and_suffixes_are_recognised() {
        let exact = |text: &str| NameMatch::Exact(text.into());
        let below = |text: &str| NameMatch::Below(text.into());
        for (expression, expected) in [
            (r"^a\.example$", vec![exact("a.example")]),
            (r"^(api|console)\.two\.example$", vec![exact("api.two.example"), exact("console.two.example")]),
            (r"^(?:a\.x|b\.x)$", vec![exact("a.x"), exact("b.x")]),
            (r"^a\.x$|^b\.x$", vec![exact("a.x"), exact("b.x")]),
            (r"\.two\.example$", vec![below("two.example")]),
            (r"^.*\.two\.example$", vec![below("two.example")]),
            (r"^.+\.two\.example$", vec![below("two.example")]),
            (r"[.]two[.]example$", vec![below("two.example")]),
            (r"^(.+\.)?x\.y$", vec![below("x.y"), exact("x.y")]),
            (r"^[^.]+\.apps\.x$", vec![NameMatch::OneLabelBelow("apps.x".into())]),
            (r"^[^\.]+\.apps\.x", vec![NameMatch::OneLabelBelow("apps.x".into())]),
            (r"two\.example$", vec![NameMatch::EndsWith("two.example".into())]),
            (r"^API-", vec![NameMatch::StartsWith("api-".into())]),
            (r"kube", vec![NameMatch::Contains("kube".into())]),
            (r"^a.example$", vec![NameMatch::AnyCharacterForDot("a.example".into())]),
        ] {
            assert_eq!(name_matches(expression).unwrap().0, expected, "{expression}");
        }
        assert!(name_matches(r"^[^.]+\.apps\.x").unwrap().1.unwrap().contains("no `$`"));
        for expression in [r"^x\d+$", "a{2}", "(a", "a)", r"^(a|b)+\.x$", "[a-z]*", "", "^$", r"^a\..*\.b$", "a|"] {
            assert!(name_matches(expression).is_err(), "{expression}: {:?}", name_matches(expression));
        }
    }
}
