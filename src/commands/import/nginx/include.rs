//! `include`: files next to the source, or within the output of `nginx -T`.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::syntax::{self, Directive};
use crate::commands::import::files::SourceFiles;
use crate::commands::import::notes::{Location, Notes};
use crate::text::glob;

/// Files may include each other without end.
const MAX_DEPTH: usize = 8;
/// Files that one pattern matches.
const MAX_FILES: usize = 1000;
/// Before each file in the output of `nginx -T`.
const FILE_HEADER: &str = "# configuration file ";

/// A file in the output of `nginx -T`.
struct DumpedFile<'s> {
    path: PathBuf,
    lines_before: usize,
    text: &'s str,
}

pub(super) struct Includes<'s> {
    files: &'s SourceFiles,
    dump: Vec<DumpedFile<'s>>,
}

/// The directives of the source, with each `include` replaced by the directives of its files.
pub(super) fn read(source: &str, files: &SourceFiles, notes: &mut Notes) -> Vec<Directive> {
    let dump = split(source);
    let Some(main) = dump.first() else {
        let mut all = syntax::read(source, notes);
        Includes { files, dump }.resolve(&mut all, None, 0, notes);
        return all;
    };
    for (number, line) in source.lines().enumerate().take(main.lines_before) {
        if !line.trim().is_empty() {
            notes.not_needed(&Location::line(number + 1));
        }
    }
    let mut all = main.read();
    let directory = main.path.parent().map(Path::to_path_buf);
    Includes { files, dump }.resolve(&mut all, directory.as_deref(), 0, notes);
    all
}

fn split(source: &str) -> Vec<DumpedFile<'_>> {
    let mut all: Vec<DumpedFile<'_>> = Vec::new();
    let (mut offset, mut start) = (0, 0);
    for (number, line) in source.split_inclusive('\n').enumerate() {
        if let Some(path) = line.trim_end().strip_prefix(FILE_HEADER).and_then(|path| path.strip_suffix(':')) {
            if let Some(last) = all.last_mut() {
                last.text = &source[start..offset];
            }
            start = offset + line.len();
            all.push(DumpedFile { path: path.into(), lines_before: number + 1, text: &source[start..] });
        }
        offset += line.len();
    }
    all
}

impl Includes<'_> {
    fn resolve(&self, directives: &mut Vec<Directive>, directory: Option<&Path>, depth: usize, notes: &mut Notes) {
        let mut resolved = Vec::with_capacity(directives.len());
        for mut directive in std::mem::take(directives) {
            let is_http = directive.words.first().is_some_and(|word| word == "http");
            if let Some(block) = directive.block.as_mut().filter(|_| !is_http) {
                self.resolve(&mut block.directives, directory, depth, notes);
            }
            let [word, pattern] = &directive.words[..] else {
                resolved.push(directive);
                continue;
            };
            if word != "include" || directive.block.is_some() {
                resolved.push(directive);
                continue;
            }
            let location = directive.location();
            let Some(all) = self.files(pattern, directory).filter(|_| depth < MAX_DEPTH) else {
                let reason = format!(
                    "`include {pattern}` cannot be read, so its contents are left out, such as `deny` rules: put the \
                    file next to this one, or import the output of `nginx -T`"
                );
                notes.admits_more(&location, reason);
                continue;
            };
            notes.translated(&location);
            for mut one in all {
                self.resolve(&mut one, directory, depth + 1, notes);
                resolved.append(&mut one);
            }
        }
        *directives = resolved;
    }

    /// The directives of each file; `None`: one cannot be read. A pattern may match no file, a name has to.
    fn files(&self, pattern: &str, directory: Option<&Path>) -> Option<Vec<Vec<Directive>>> {
        let is_pattern = pattern.contains(['*', '?', '[']);
        if !self.dump.is_empty() {
            let wanted = directory.unwrap_or(Path::new("")).join(pattern);
            let wanted = wanted.to_string_lossy();
            let found = self.dump.iter().filter(|file| glob::matches(&wanted, &file.path.to_string_lossy()));
            let found: Vec<_> = found.map(DumpedFile::read).collect();
            return (is_pattern || !found.is_empty()).then_some(found);
        }
        let paths = if is_pattern { self.paths(pattern)? } else { vec![pattern.to_owned()] };
        let read = |path: &String| {
            let text = self.files.read(path).ok()?;
            let file: Rc<str> = path.as_str().into();
            Some(read_file(&text, Some(&file), 0))
        };
        paths.iter().map(read).collect()
    }

    fn paths(&self, pattern: &str) -> Option<Vec<String>> {
        let (directory, name) = match pattern.rsplit_once('/') {
            Some(("", name)) => ("/", name),
            Some(parts) => parts,
            None => (".", pattern),
        };
        let entries = std::fs::read_dir(self.files.directory.join(directory)).ok()?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|one| glob::matches(name, one)).take(MAX_FILES).collect();
        names.sort();
        let path = |name: String| if directory == "." { name } else { format!("{directory}/{name}") };
        Some(names.into_iter().map(path).collect())
    }
}

impl DumpedFile<'_> {
    fn read(&self) -> Vec<Directive> {
        read_file(self.text, None, self.lines_before)
    }
}

fn read_file(text: &str, file: Option<&Rc<str>>, lines_before: usize) -> Vec<Directive> {
    let mut all = syntax::read(text, &mut Notes::new(""));
    for directive in &mut all {
        directive.move_to(file, lines_before);
    }
    all
}
