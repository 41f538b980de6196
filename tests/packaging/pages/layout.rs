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

#[test]
fn lines_have_at_most_120_columns() {
    for path in all() {
        for (number, line) in prose(&page(&path)) {
            let is_row = line.trim_start().starts_with('|');
            let columns = line.chars().count();
            assert!(columns <= 120 || is_row || is_link(line.trim()), "{path}:{number}: {columns} columns");
        }
    }
}

/// Nothing else, so that there is no place for a break.
fn is_link(line: &str) -> bool {
    line.starts_with(['[', '!']) && line.matches("](").count() == 1 && line.ends_with(')')
}
