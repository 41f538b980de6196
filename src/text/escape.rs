//! Untrusted text, made safe for terminals, log viewers and web pages.

use std::borrow::Cow;

/// Escapes (`\u{202e}`) control characters, which steer terminals and end lines, and characters that are invisible or
/// reorder those around them.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_visible(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_debug());
        }
    }
    shown.into()
}

/// Whether the character is shown as itself.
pub(crate) fn is_visible(character: char) -> bool {
    matches!(character, '"' | '\'' | '\\') || character.escape_debug().len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bidi_and_invisible_characters_are_escaped() {
        for character in [
            '\0',
            '\x07',
            '\x1b',
            '\n',
            '\r',
            '\t',
            '\x7f',
            '\u{85}',
            '\u{9b}',
            '\u{a0}',
            '\u{ad}',
            '\u{61c}',
            '\u{200b}',
            '\u{200e}',
            '\u{200f}',
            '\u{2028}',
            '\u{202a}',
            '\u{202e}',
            '\u{2060}',
            '\u{2066}',
            '\u{2069}',
            '\u{feff}',
            '\u{e0041}',
            '\u{f0000}',
        ] {
            let shown = visible(&format!("a{character}b")).into_owned();
            assert!(shown.starts_with("a\\") && shown.chars().all(is_visible), "{shown:?}");
        }
    }

    #[test]
    fn visible_characters_are_kept() {
        for text in ["", "a.example", "CN=\"Jos\u{e9}'s CA\", O=東京 – ✓", "\\", "ελ"] {
            assert_eq!(visible(text), text);
        }
    }
}
