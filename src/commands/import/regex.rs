//! Regular expressions that are names or suffixes in disguise.

use super::names::Form;

/// More alternatives are no list of names.
const MOST: usize = 64;

/// A part of an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A dot that is not escaped.
    Any,
    /// Characters of one label, at least one.
    Label,
    /// Any characters; whether there must be one.
    Rest {
        at_least_one: bool,
    },
}

/// The forms, and what is lost besides where they are no names exactly.
pub(super) fn forms(expression: &str) -> Result<(Vec<Form>, Option<String>), String> {
    const NO_LIST: &str = "a regular expression that is no list of names and suffixes";
    let alternatives = top_level(expression).ok_or(NO_LIST)?;
    let mut forms = Vec::new();
    let mut caveat = None;
    for text in alternatives {
        let begins = text.starts_with('^');
        let text = text.trim_start_matches('^');
        let ends = text.ends_with('$') && !text.ends_with("\\$");
        let text = if ends { &text[..text.len() - 1] } else { text };
        for parts in expand(text).ok_or(NO_LIST)? {
            let (form, more) = of_parts(&parts, begins, ends).ok_or(NO_LIST)?;
            forms.push(form);
            caveat = caveat.or(more);
        }
    }
    if forms.is_empty() || forms.len() > MOST { Err(NO_LIST.into()) } else { Ok((forms, caveat)) }
}

fn of_parts(parts: &[Part], begins: bool, ends: bool) -> Option<(Form, Option<String>)> {
    let (mut begins, mut ends) = (begins, ends);
    let mut parts = parts.to_vec();
    if begins && parts.first() == Some(&(Part::Rest { at_least_one: false })) {
        (begins, _) = (false, parts.remove(0));
    }
    if ends && parts.last() == Some(&(Part::Rest { at_least_one: false })) {
        (ends, _) = (false, parts.pop());
    }
    let mut loose = false;
    let mut head = None;
    if let Some(Part::Label | Part::Rest { at_least_one: true }) = parts.first() {
        head = Some(parts.remove(0));
    }
    let mut text = String::new();
    for part in parts {
        match part {
            Part::Text(more) => text.push_str(&more),
            Part::Any => {
                loose = true;
                text.push('.');
            }
            Part::Label | Part::Rest { .. } => return None,
        }
    }
    let open = (!ends).then(|| format!("names that go on after `{text}`, as the expression has no `$`"));
    let form = match (head, begins, ends) {
        (Some(Part::Label), true, _) => Form::OneBelow(plain(text.strip_prefix('.')?)?),
        // Of labels before it one is enough.
        (Some(_), _, _) => Form::below(text.strip_prefix('.')?).ok()?,
        (None, true, true) if loose => Form::Loose(plain(&text)?),
        (None, true, true) => Form::exact(&text).ok()?,
        (None, true, false) => return Some((Form::of_method("beg", &text).ok()?, None)),
        (None, false, true) => Form::of_method("end", &text).ok()?,
        (None, false, false) => return Some((Form::of_method("sub", &text).ok()?, None)),
    };
    let dots = loose.then(|| format!("names that have another character in place of a dot in `{text}`"));
    Some((form, open.or(dots)))
}

fn plain(text: &str) -> Option<String> {
    match Form::exact(text).ok()? {
        Form::Exact(text) => Some(text),
        _ => None,
    }
}

/// At bars that are in no parentheses; a pair around all is taken off.
fn top_level(text: &str) -> Option<Vec<String>> {
    let pieces = split(text)?;
    let inside = |text: &str| {
        let (text, anchored) = match text.strip_prefix("^(").and_then(|text| text.strip_suffix(")$")) {
            Some(inside) => (inside, true),
            None => (text.strip_prefix('(')?.strip_suffix(')')?, false),
        };
        let text = text.strip_prefix("?:").unwrap_or(text);
        let pieces = split(text)?;
        let anchor = |piece: &str| if anchored { format!("^{piece}$") } else { piece.to_owned() };
        Some(pieces.iter().map(|piece| anchor(piece)).collect())
    };
    match &pieces[..] {
        [one] => Some(inside(one).unwrap_or_else(|| vec![(*one).to_owned()])),
        _ => Some(pieces.into_iter().map(str::to_owned).collect()),
    }
}

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

/// All that the groups may stand for.
fn expand(text: &str) -> Option<Vec<Vec<Part>>> {
    let mut all: Vec<Vec<Part>> = vec![Vec::new()];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        let part;
        match first {
            '(' => {
                let end = closing(after)?;
                let (inside, tail) = (&after[..end], &after[end + 1..]);
                let inside = inside.strip_prefix("?:").unwrap_or(inside);
                let mut choices: Vec<Vec<Part>> = Vec::new();
                for piece in split(inside)? {
                    choices.extend(expand(piece)?);
                }
                let tail = match tail.strip_prefix('?') {
                    Some(tail) => {
                        choices.push(Vec::new());
                        tail
                    }
                    None if tail.starts_with(['*', '+', '{']) => return None,
                    None => tail,
                };
                all = all.iter().flat_map(|one| choices.iter().map(move |more| [&one[..], more].concat())).collect();
                if all.len() > MOST {
                    return None;
                }
                rest = tail;
                continue;
            }
            '[' => {
                let end = after.find(']')?;
                let class = &after[..end];
                let tail = &after[end + 1..];
                let repeated = tail.strip_prefix('+');
                let is_label = matches!(class, "^." | "^\\.") && repeated.is_some();
                let is_dot = matches!(class, "." | "\\.");
                match (is_label, is_dot, repeated) {
                    (true, _, Some(tail)) => (part, rest) = (Part::Label, tail),
                    (_, true, None) => (part, rest) = (Part::Text(".".into()), tail),
                    _ => return None,
                }
            }
            '.' => match after.chars().next() {
                Some('*') => (part, rest) = (Part::Rest { at_least_one: false }, &after[1..]),
                Some('+') => (part, rest) = (Part::Rest { at_least_one: true }, &after[1..]),
                _ => (part, rest) = (Part::Any, after),
            },
            '\\' => {
                let escaped = after.chars().next()?;
                if !matches!(escaped, '.' | '-' | '_' | '/') {
                    return None;
                }
                (part, rest) = (Part::Text(escaped.into()), &after[escaped.len_utf8()..]);
            }
            letter if letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_') => {
                (part, rest) = (Part::Text(letter.to_ascii_lowercase().into()), after);
            }
            _ => return None,
        }
        if rest.starts_with(['?', '*', '+', '{']) {
            return None;
        }
        for one in &mut all {
            match (one.last_mut(), &part) {
                (Some(Part::Text(text)), Part::Text(more)) => text.push_str(more),
                _ => one.push(part.clone()),
            }
        }
    }
    Some(all)
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
    fn names_and_suffixes_are_seen_through() {
        let exact = |text: &str| Form::Exact(text.into());
        let below = |text: &str| Form::Below(text.into());
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
            (r"^[^.]+\.apps\.x$", vec![Form::OneBelow("apps.x".into())]),
            (r"^[^\.]+\.apps\.x", vec![Form::OneBelow("apps.x".into())]),
            (r"two\.example$", vec![Form::Ends("two.example".into())]),
            (r"^API-", vec![Form::Begins("api-".into())]),
            (r"kube", vec![Form::Contains("kube".into())]),
            (r"^a.example$", vec![Form::Loose("a.example".into())]),
        ] {
            assert_eq!(forms(expression).unwrap().0, expected, "{expression}");
        }
        assert!(forms(r"^[^.]+\.apps\.x").unwrap().1.unwrap().contains("no `$`"));
        for expression in [r"^x\d+$", "a{2}", "(a", "a)", r"^(a|b)+\.x$", "[a-z]*", "", "^$", r"^a\..*\.b$", "a|"] {
            assert!(forms(expression).is_err(), "{expression}: {:?}", forms(expression));
        }
    }
}
