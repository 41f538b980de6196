//! Suggestions for misspelt words.

use std::collections::BTreeSet;

/// Longer words are not compared.
const MAX_WORD: usize = 253;

/// The known words with the smallest edit distance, if it is small enough for a misspelling.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> BTreeSet<&'k str> {
    let mut nearest = BTreeSet::new();
    if word.len() > MAX_WORD {
        return nearest;
    }
    let word = word.to_ascii_lowercase();
    let mut least = 3.min(word.len() / 4 + 1);
    for known in known {
        let distance = strsim::damerau_levenshtein(&word, &known.to_ascii_lowercase());
        if distance < least {
            least = distance;
            nearest.clear();
        }
        if distance == least {
            nearest.insert(known);
        }
    }
    nearest
}

pub(super) fn did_you_mean(nearest: &BTreeSet<&str>) -> Option<String> {
    let words: Vec<String> = nearest.iter().take(3).map(|word| format!("`{word}`")).collect();
    (!words.is_empty()).then(|| format!("did you mean {}?", words.join(" or ")))
}
