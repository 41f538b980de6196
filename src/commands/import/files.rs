//! Reading the source and the files that it refers to.

use std::io;
use std::path::{Path, PathBuf};

use crate::text::input;

/// Files that the source refers to, such as maps.
pub(super) struct SourceFiles {
    /// What relative paths start from.
    pub(super) directory: PathBuf,
}

impl SourceFiles {
    pub(super) fn read(&self, path: &str) -> Result<String, String> {
        let path = self.directory.join(path);
        text_of(input::read_regular(&path)).map_err(|error| error.to_string())
    }
}

pub(super) fn read_source(path: &Path) -> io::Result<String> {
    text_of(input::read(path))
}

/// Comments may have bytes that are not UTF-8.
fn text_of(content: io::Result<Vec<u8>>) -> io::Result<String> {
    let content = content?;
    let text = String::from_utf8_lossy(&content);
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).into())
}
