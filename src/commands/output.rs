//! Escapes untrusted text, so that it cannot control the terminal or end a comment.

use crate::text::escape::visible;

pub(super) fn printable(text: &str) -> String {
    visible(text).into_owned()
}

/// Like `printable`, but keeps newlines.
pub(super) fn printable_lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}
