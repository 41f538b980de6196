//! `include`: files beside the source, or in what `nginx -T` prints.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::syntax::{self, Directive};
use crate::commands::import::Files;
use crate::commands::import::ledger::Ledger;

/// No file includes others so deeply.
const MAX_DEPTH: usize = 8;
/// Of one pattern.
const MOST: usize = 1000;
/// What stands before each file in what `nginx -T` prints.
const MARK: &str = "# configuration file ";

/// A file in the dump: its path, how many lines stand before it, and its text.
struct Dumped<'s> {
    path: PathBuf,
    before: usize,
    text: &'s str,
}

pub(super) struct Includes<'s> {
    files: &'s Files,
    dump: Vec<Dumped<'s>>,
}

/// The directives of the source, with those of the files that it includes in their places.
pub(super) fn read(source: &str, files: &Files, ledger: &mut Ledger) -> Vec<Directive> {
    let dump = split(source);
    let Some(main) = dump.first() else {
        let mut all = syntax::read(source, ledger);
        Includes { files, dump }.fill(&mut all, None, 0, ledger);
        return all;
    };
    for (number, line) in source.lines().enumerate() {
        if number < main.before && !line.trim().is_empty() {
            ledger.note(
                &crate::commands::import::ledger::Place::line(number + 1),
                "not needed: what nginx says of its test",
            );
        }
    }
    let mut all = syntax::read(main.text, &mut Ledger::new(""));
    let before = main.before;
    for directive in &mut all {
        directive.moved(None, before);
    }
    let directory = main.path.parent().map(Path::to_path_buf);
    Includes { files, dump }.fill(&mut all, directory.as_deref(), 0, ledger);
    all
}

fn split(source: &str) -> Vec<Dumped<'_>> {
    let mut all: Vec<Dumped<'_>> = Vec::new();
    let (mut offset, mut start) = (0, 0);
    for (number, line) in source.split_inclusive('\n').enumerate() {
        if let Some(path) = line.trim_end().strip_prefix(MARK).and_then(|path| path.strip_suffix(':')) {
            if let Some(last) = all.last_mut() {
                last.text = &source[start..offset];
            }
            start = offset + line.len();
            all.push(Dumped { path: path.into(), before: number + 1, text: &source[start..] });
        }
        offset += line.len();
    }
    all
}

impl Includes<'_> {
    fn fill(&self, directives: &mut Vec<Directive>, directory: Option<&Path>, depth: usize, ledger: &mut Ledger) {
        let mut filled = Vec::with_capacity(directives.len());
        for mut directive in std::mem::take(directives) {
            let is_http = directive.words.first().is_some_and(|word| word == "http");
            if let Some(block) = directive.block.as_mut().filter(|_| !is_http) {
                self.fill(&mut block.directives, directory, depth, ledger);
            }
            let [word, pattern] = &directive.words[..] else {
                filled.push(directive);
                continue;
            };
            if word != "include" || directive.block.is_some() {
                filled.push(directive);
                continue;
            }
            let place = directive.place();
            let Some(all) = self.files(pattern, directory).filter(|_| depth < MAX_DEPTH) else {
                let reason = format!(
                    "`include {pattern}`: cannot be read here, so what is in it is left out, such as rules that \
                    refuse clients; put the file beside this one, or import what `nginx -T` prints"
                );
                ledger.wider(&place, reason);
                continue;
            };
            ledger.carry(&place);
            for mut one in all {
                self.fill(&mut one, directory, depth + 1, ledger);
                filled.append(&mut one);
            }
        }
        *directives = filled;
    }

    /// A pattern may stand for no file, a name may not.
    fn files(&self, pattern: &str, directory: Option<&Path>) -> Option<Vec<Vec<Directive>>> {
        let has_stars = pattern.contains(['*', '?', '[']);
        if !self.dump.is_empty() {
            let wanted = directory.unwrap_or(Path::new("")).join(pattern);
            let wanted = wanted.to_string_lossy();
            let found: Vec<_> = self.dump.iter().filter(|file| fits(&wanted, &file.path.to_string_lossy())).collect();
            let read = found.iter().map(|file| {
                let mut all = syntax::read(file.text, &mut Ledger::new(""));
                for directive in &mut all {
                    directive.moved(None, file.before);
                }
                all
            });
            return (has_stars || !found.is_empty()).then(|| read.collect());
        }
        let mut paths = vec![pattern.to_owned()];
        if has_stars {
            let (folder, name) = pattern.rsplit_once('/').unwrap_or(("", pattern));
            let listed =
                std::fs::read_dir(self.files.directory().join(if folder.is_empty() { "." } else { folder })).ok()?;
            let names = listed.flatten().filter_map(|entry| entry.file_name().into_string().ok());
            paths = names.filter(|one| fits(name, one)).take(MOST).collect();
            paths.sort();
            if !folder.is_empty() {
                for path in &mut paths {
                    *path = format!("{folder}/{path}");
                }
            }
        }
        let read = |path: &String| {
            let text = self.files.read(path).ok()?;
            let mut all = syntax::read(&text, &mut Ledger::new(""));
            let file: Rc<str> = path.as_str().into();
            for directive in &mut all {
                directive.moved(Some(&file), 0);
            }
            Some(all)
        };
        paths.iter().map(read).collect()
    }
}

/// Of a pattern with `*` and `?`.
fn fits(pattern: &str, text: &str) -> bool {
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
    use super::fits;

    #[test]
    fn patterns_fit_within_a_folder() {
        assert!(fits("/a/*.conf", "/a/b.conf") && fits("b?", "bc") && fits("*", "x"));
        assert!(!fits("/a/*.conf", "/a/b/c.conf") && !fits("*.conf", "x.map") && !fits("b?", "b"));
    }
}
