//! Reading the source and the files that it refers to.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// As large as a configuration may be.
pub(super) const MAX_SIZE: u64 = 32 * 1024 * 1024;

/// Files that the source refers to, such as maps.
pub(super) struct SourceFiles {
    /// What relative paths start from.
    pub(super) directory: PathBuf,
}

impl SourceFiles {
    pub(super) fn read(&self, path: &str) -> Result<String, String> {
        let path = self.directory.join(path);
        // Opening a named pipe could block.
        let is_file = std::fs::metadata(&path).map_err(|error| error.to_string())?.is_file();
        if !is_file {
            return Err("not a regular file".into());
        }
        read_file(&path).map_err(|error| error.to_string())
    }
}

pub(super) fn read_file(path: &Path) -> std::io::Result<String> {
    File::open(path).and_then(read_text)
}

/// Comments may have bytes that are not UTF-8.
pub(super) fn read_text(from: impl Read) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(std::io::Error::other(format!("larger than {} MiB", MAX_SIZE >> 20)));
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).into())
}
