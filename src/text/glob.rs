//! Patterns of file names: `*` stands for any characters but `/`, `?` for one.

/// Whether the pattern matches the whole text.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    for wanted in pattern {
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            let is_next = |at: usize| at > 0 && ends[at - 1] && (wanted == '?' || wanted == text[at - 1]);
            next[at] = match wanted {
                '*' => ends[at] || (at > 0 && next[at - 1] && text[at - 1] != '/'),
                _ => is_next(at),
            };
        }
        ends = next;
    }
    ends[text.len()]
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_within_a_directory() {
        assert!(matches("/a/*.conf", "/a/b.conf") && matches("b?", "bc") && matches("*", "x"));
        assert!(!matches("/a/*.conf", "/a/b/c.conf") && !matches("*.conf", "x.map") && !matches("b?", "b"));
    }
}
