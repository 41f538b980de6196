//! Files of patterns and maps that the source names.

use crate::commands::import::Files;
use crate::commands::import::ledger::Place;
use crate::commands::import::names::Form;
use crate::commands::import::regex;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) place: Place,
}

pub(super) fn read(path: &str, files: &Files) -> Result<Vec<Entry>, String> {
    let text = files.read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let file = path.into();
    let lines = text.lines().map(str::trim).enumerate();
    let says_something = |(_, line): &(usize, &str)| !line.is_empty() && !line.starts_with('#');
    let entry = |(index, line): (usize, &str)| {
        let (key, value) = line.split_once(|character: char| character.is_ascii_whitespace()).unwrap_or((line, ""));
        Entry { key: key.to_owned(), value: value.trim().to_owned(), place: Place::elsewhere(&file, index + 1) }
    };
    Ok(lines.filter(says_something).map(entry).collect())
}

/// The names that compare so with the text, and those besides of which that is not known.
pub(super) fn forms(method: &str, text: &str) -> Result<(Vec<Form>, Option<String>), String> {
    match method {
        "reg" => regex::forms(text),
        _ => Form::of_method(method, text).map(|form| (vec![form], None)),
    }
}
