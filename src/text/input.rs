//! Reads files named on the command line, or standard input, up to a limit.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::path::Path;

use super::units::size;

/// Nobody writes larger ones by hand, and a file without end must not fill the memory.
pub(crate) const MAX_SIZE: usize = 32 << 20;

/// Whether the path stands for standard input.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-") || path == Path::new("/dev/stdin")
}

/// The name of the file in messages.
pub(crate) fn name_of(path: &Path) -> String {
    if is_stdin(path) { "standard input".into() } else { path.display().to_string() }
}

/// Reads a file, or standard input, of at most [`MAX_SIZE`] bytes.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if is_stdin(path) { read_from(io::stdin().lock()) } else { read_from(File::open(path)?) }
}

/// Reads a regular file, or standard input. For files that are read repeatedly: opening a pipe would block until it has
/// a writer.
pub(crate) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    if !is_stdin(path) && !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    read(path)
}

fn read_from(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_SIZE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_SIZE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {}", size(MAX_SIZE))));
    }
    Ok(bytes)
}

/// A hash of the content, the same in every process of the same version.
pub(crate) fn digest(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_above_the_limit_is_refused() {
        assert_eq!(read_from(io::repeat(b'a').take(MAX_SIZE as u64)).unwrap().len(), MAX_SIZE);
        assert_eq!(read_from(io::repeat(b'a')).unwrap_err().to_string(), "larger than 32MiB");
        assert_eq!(read_regular(Path::new("/dev/null")).unwrap_err().to_string(), "not a regular file");
    }
}
