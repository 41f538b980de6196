//! Files with patterns (`-f`) and maps.

use crate::commands::import::files::SourceFiles;
use crate::commands::import::name_match::NameMatch;
use crate::commands::import::notes::Location;
use crate::commands::import::regex;

#[derive(Clone, Debug)]
pub(super) struct FileEntry {
    pub(super) key: String,
    /// Empty in files without values.
    pub(super) value: String,
    pub(super) location: Location,
}

pub(super) fn read(path: &str, files: &SourceFiles) -> Result<Vec<FileEntry>, String> {
    let text = files.read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let file = path.into();
    let lines = text.lines().map(str::trim).enumerate();
    let has_entry = |(_, line): &(usize, &str)| !line.is_empty() && !line.starts_with('#');
    let entry = |(index, line): (usize, &str)| {
        let (key, value) = line.split_once(|character: char| character.is_ascii_whitespace()).unwrap_or((line, ""));
        let location = Location::in_file(&file, index + 1);
        FileEntry { key: key.to_owned(), value: value.trim().to_owned(), location }
    };
    Ok(lines.filter(has_entry).map(entry).collect())
}

/// What a pattern matches by this method, and the names that it may match besides.
pub(super) fn name_matches(method: &str, pattern: &str) -> Result<(Vec<NameMatch>, Option<String>), String> {
    match method {
        "reg" => regex::name_matches(pattern),
        _ => NameMatch::by_method(method, pattern).map(|one| (vec![one], None)),
    }
}
