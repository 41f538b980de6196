//! How the pages are written down.

use crate::support::pages::{all, page, prose};

fn is_delimiter(row: &str) -> bool {
    row.starts_with('|') && row.contains("--") && row.chars().all(|letter| matches!(letter, '|' | '-' | ':' | ' '))
}

#[test]
fn tables_have_rows() {
    let mut count = 0;
    for path in all() {
        let text = page(&path);
        let mut lines = prose(&text).peekable();
        while let Some((number, line)) = lines.next() {
            if is_delimiter(line.trim_start()) {
                let is_row = lines.peek().is_some_and(|(_, next)| next.trim_start().starts_with('|'));
                assert!(is_row, "{path}:{number}: no row follows");
                count += 1;
            }
        }
    }
    assert!(count > 50, "{count}");
}
