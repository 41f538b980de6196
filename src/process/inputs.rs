//! The files that a configuration is read from, and the patterns that find some of them.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::text::glob;
use crate::text::input::{self, MAX_SIZE};
use crate::text::units::size;

/// Maximum number of files that a pattern finds.
const MAX_FILES: usize = 10_000;

/// What was read: files, and what patterns found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    files: Vec<File>,
    patterns: Vec<Pattern>,
}

/// A file, and a digest of its content, if it could be read.
#[derive(Clone, Debug)]
struct File {
    path: PathBuf,
    /// Before it was read.
    stamp: Option<Stamp>,
    content: Result<u64, Unreadable>,
}

#[derive(Clone, Debug)]
struct Pattern {
    /// Where the pattern starts.
    directory: PathBuf,
    wanted: PathBuf,
    found: Result<Vec<File>, Unreadable>,
}

/// Why a file or directory cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct Unreadable {
    pub(crate) path: PathBuf,
    pub(crate) reason: String,
}

impl Unreadable {
    fn new(path: &Path, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }
}

/// Metadata that changes with every write, rename or link.
type Stamp = (u64, u64, u64, i64, i64, i64, i64);

/// The files that a pattern found, with their contents.
type Contents = Result<Vec<(PathBuf, Vec<u8>)>, Unreadable>;

/// Files and their stamps; without one, a file does not exist.
pub(crate) type Stamps = Vec<(PathBuf, Option<Stamp>)>;

impl Inputs {
    /// Reads a file, or standard input.
    pub(crate) fn read(&mut self, path: &Path) -> Result<Vec<u8>, Unreadable> {
        let (file, content) = File::read(path);
        self.files.push(file);
        content
    }

    /// Reads all files that a pattern finds, in order of their names.
    pub(crate) fn read_matching(&mut self, directory: &Path, pattern: &Path) -> Contents {
        let (pattern, contents) = Pattern::read(directory, pattern);
        self.patterns.push(pattern);
        contents
    }

    /// Those that were named, then those that patterns found.
    fn all_files(&self) -> impl Iterator<Item = &File> {
        self.files.iter().chain(self.patterns.iter().flat_map(|pattern| pattern.found.iter().flatten()))
    }

    /// Equal for equal contents in the same order.
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for file in self.all_files() {
            file.content.as_ref().ok().hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Reads everything again, as it is now.
    pub(super) fn read_again(&self) -> Self {
        let pattern = |Pattern { directory, wanted, .. }: &Pattern| Pattern::read(directory, wanted).0;
        Self {
            files: self.files.iter().map(|file| File::read(&file.path).0).collect(),
            patterns: self.patterns.iter().map(pattern).collect(),
        }
    }

    /// Whether the contents or the files that patterns find differ from what was read `before`; an error: nothing does, but
    /// something that could be read then cannot be read now. Where something else differs, it may no longer be needed.
    pub(super) fn differ_from(&self, before: &Self) -> Result<bool, Unreadable> {
        let patterns = self.patterns.iter().zip(&before.patterns);
        let patterns =
            patterns.map(|(now, before)| compare(&now.found, &before.found, |now, before| differ(now, before)));
        any_differs(std::iter::once(differ(&self.files, &before.files)).chain(patterns))
    }

    /// The stamps of all files before they were read.
    pub(super) fn stamps_when_read(&self) -> Stamps {
        self.all_files().map(|file| (file.path.clone(), file.stamp)).collect()
    }

    /// The stamps of the same files, and of those that the patterns find, now.
    pub(super) fn stamps_now(&self) -> Stamps {
        let found = |Pattern { directory, wanted, .. }: &Pattern| find(directory, wanted).unwrap_or_default();
        let files = self.files.iter().map(|file| file.path.clone()).chain(self.patterns.iter().flat_map(found));
        let with_stamp = |path: PathBuf| {
            let stamp = stamp(&path);
            (path, stamp)
        };
        files.map(with_stamp).collect()
    }
}

/// Whether two readings of the same files, or of what a pattern found, differ.
fn differ(now: &[File], before: &[File]) -> Result<bool, Unreadable> {
    let is_same_number = now.len() == before.len();
    let before: HashMap<&Path, &File> = before.iter().map(|file| (&*file.path, file)).collect();
    let contents = now.iter().map(|file| {
        let Some(before) = before.get(&*file.path) else { return Ok(true) };
        compare(&file.content, &before.content, |now, before| Ok(now != before))
    });
    any_differs(contents.chain([Ok(!is_same_number)]))
}

/// Whether any does; an error only if none does.
fn any_differs(compared: impl Iterator<Item = Result<bool, Unreadable>>) -> Result<bool, Unreadable> {
    let mut unreadable = None;
    for compared in compared {
        match compared {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(error) => unreadable = unreadable.or(Some(error)),
        }
    }
    unreadable.map_or(Ok(false), Err)
}

/// Whether two readings of one thing differ, by `differ` if both succeeded.
fn compare<T>(
    now: &Result<T, Unreadable>,
    before: &Result<T, Unreadable>,
    differ: impl FnOnce(&T, &T) -> Result<bool, Unreadable>,
) -> Result<bool, Unreadable> {
    match (now, before) {
        (Ok(now), Ok(before)) => differ(now, before),
        (Err(_), Err(_)) => Ok(false),
        (Ok(_), Err(_)) => Ok(true),
        (Err(unreadable), Ok(_)) => Err(unreadable.clone()),
    }
}

impl File {
    fn read(path: &Path) -> (Self, Result<Vec<u8>, Unreadable>) {
        let stamp = stamp(path);
        let content = input::read_regular(path).map_err(|error| Unreadable::new(path, error.to_string()));
        let digest = content.as_deref().map(input::digest).map_err(Clone::clone);
        (Self { path: path.into(), stamp, content: digest }, content)
    }
}

impl Pattern {
    fn read(directory: &Path, wanted: &Path) -> (Self, Contents) {
        let of = |found| Self { directory: directory.into(), wanted: wanted.into(), found };
        let paths = match find(directory, wanted) {
            Ok(paths) => paths,
            Err(unreadable) => return (of(Err(unreadable.clone())), Err(unreadable)),
        };
        let (mut files, mut contents) = (Vec::with_capacity(paths.len()), Ok(Vec::with_capacity(paths.len())));
        let mut room = MAX_SIZE;
        for path in paths {
            let (mut file, content) = File::read(&path);
            let content = content.and_then(|content| match room.checked_sub(content.len()) {
                Some(left) => {
                    room = left;
                    Ok(content)
                }
                None => Err(Unreadable::new(
                    &path,
                    format!("the files of this pattern are larger than {} together", size(MAX_SIZE)),
                )),
            });
            // All of them are looked at, so that a change of any is noticed.
            match (content, &mut contents) {
                (Ok(content), Ok(contents)) => contents.push((path, content)),
                (Ok(_), Err(_)) => {}
                (Err(unreadable), _) => {
                    file.content = Err(unreadable.clone());
                    if contents.is_ok() {
                        contents = Err(unreadable);
                    }
                }
            }
            files.push(file);
        }
        (of(Ok(files)), contents)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let of = |metadata: Metadata| {
        (
            metadata.dev(),
            metadata.ino(),
            metadata.size(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        )
    };
    fs::metadata(path).ok().map(of)
}

/// What a pattern finds, in order of name. A path without wildcards finds itself, whether it exists or not. As in a shell,
/// a wildcard does not match hidden files.
fn find(directory: &Path, pattern: &Path) -> Result<Vec<PathBuf>, Unreadable> {
    let mut found = vec![directory.to_path_buf()];
    let mut is_literal = true;
    for component in pattern.components() {
        let Some(pattern) = wildcards(component) else {
            for path in &mut found {
                path.push(component);
            }
            if !is_literal {
                found.retain(|path| path.symlink_metadata().is_ok());
            }
            continue;
        };
        is_literal = false;
        let mut next = Vec::new();
        for directory in found {
            next.extend(entries(&directory, &pattern).map_err(|error| Unreadable::new(&directory, error.to_string()))?);
            if next.len() > MAX_FILES {
                return Err(Unreadable::new(&directory, format!("the pattern matches more than {MAX_FILES} files")));
            }
        }
        next.sort();
        found = next;
    }
    Ok(found)
}

/// The component, if it has wildcards.
fn wildcards(component: Component<'_>) -> Option<String> {
    component.as_os_str().to_str().filter(|name| name.contains(['*', '?'])).map(Into::into)
}

fn entries(directory: &Path, pattern: &str) -> io::Result<Vec<PathBuf>> {
    let listed = if directory == Path::new("") { Path::new(".") } else { directory };
    let entries = match fs::read_dir(listed) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        let is_hidden = text.starts_with('.') && !pattern.starts_with('.');
        if !is_hidden && glob::matches(pattern, &text) {
            found.push(directory.join(&name));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_find_files_in_order_of_name() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        for path in ["b", "a", "c[1]"] {
            fs::create_dir(at(path)).unwrap();
        }
        for path in ["b/1.yaml", "a/2.yaml", "a/10.yaml", "a/.3.yaml", "a/4.yml", "c[1]/5.yaml", "6.yaml"] {
            fs::write(at(path), path).unwrap();
        }
        let found = |directory: &str, pattern: &str| -> Vec<String> {
            let found = find(&at(directory), Path::new(pattern)).unwrap();
            found.iter().map(|path| path.strip_prefix(at(directory)).unwrap().display().to_string()).collect()
        };
        assert_eq!(found("", "a/*.yaml"), ["a/10.yaml", "a/2.yaml"]);
        assert_eq!(found("", "a/?.yaml"), ["a/2.yaml"]);
        assert_eq!(found("", "a/.*"), ["a/.3.yaml"]);
        assert_eq!(found("", "*/*.yaml"), ["a/10.yaml", "a/2.yaml", "b/1.yaml", "c[1]/5.yaml"]);
        assert_eq!(found("c[1]", "*.yaml"), ["5.yaml"]);
        assert_eq!(found("", "*/1.yaml"), ["b/1.yaml"], "where it exists");
        assert_eq!(found("", "none.yaml"), ["none.yaml"], "a path without wildcards");
        assert_eq!(found("", "none/*.yaml"), [""; 0]);
        let absolute = find(&at("a"), &at("b").join("*.yaml")).unwrap();
        assert_eq!(absolute, [at("b/1.yaml")]);
    }

    #[test]
    fn what_patterns_find_is_limited() {
        let directory = tempfile::tempdir().unwrap();
        let large =
            |name: &str| fs::File::create(directory.path().join(name)).unwrap().set_len(MAX_SIZE as u64).unwrap();
        large("1");
        assert!(Inputs::default().read_matching(directory.path(), Path::new("*")).is_ok());
        large("2");
        let unreadable = Inputs::default().read_matching(directory.path(), Path::new("*")).unwrap_err();
        assert_eq!(unreadable.path, directory.path().join("2"));
        assert_eq!(unreadable.reason, "the files of this pattern are larger than 32MiB together");
    }
}
