//! `snigate import`

mod draft;
mod expression;
mod haproxy;
mod ledger;
mod names;
mod nginx;
mod regex;
mod routes;
mod sources;
mod values;
mod yaml;

use std::fs::File;
use std::io::{Read, Write as _, stderr, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Config;
use anyhow::{Context, bail};

use self::draft::Draft;
use self::ledger::Ledger;
use self::yaml::CaFiles;
use super::printable;
use crate::cli::{Import, ImportFrom};

/// As large as a configuration may be.
const MAX_SIZE: u64 = 32 * 1024 * 1024;
/// How many reasons are told when nothing comes of a file.
const TOLD: usize = 20;

pub(super) fn run(options: &Import) -> anyhow::Result<ExitCode> {
    let path = &options.file;
    let is_stdin = path.as_os_str() == "-";
    let name = if is_stdin { "standard input".into() } else { path.file_name().unwrap_or_default().to_string_lossy() };
    let cannot =
        || format!("cannot read {}", if is_stdin { "standard input".into() } else { path.display().to_string() });
    let source = if is_stdin { text(stdin()) } else { File::open(path).and_then(text) }.with_context(cannot)?;
    let files = Files { directory: if is_stdin { PathBuf::new() } else { path.parent().unwrap_or(path).into() } };
    let name = printable(&name);
    let Translated { text, ledger } = translate(options.from, &source, &name, &files)?;
    let (grave, others) = ledger.counts();
    if grave > 0 && !options.lossy {
        bail!(
            "nothing is written, as not all clients would be served as {name} serves them; change it, or write the \
            result all the same with --lossy:{}",
            ledger.first_notes(TOLD)
        );
    }
    stdout().write_all(text.as_bytes())?;
    // Who sends the result into a file sees this all the same.
    let told = match (grave, others) {
        (0, 0) => return Ok(ExitCode::SUCCESS),
        (0, _) => format!("snigate: read the {others} notes at the end of what was made of {name} before you use it\n"),
        (_, _) => format!(
            "snigate: not all clients are served as {name} serves them: read the {grave} notes at the head of the \
            result, and the {others} at its end\n"
        ),
    };
    stderr().write_all(told.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

struct Translated {
    text: String,
    /// With what is not carried over, or means something else.
    ledger: Ledger,
}

fn translate(from: ImportFrom, source: &str, name: &str, files: &Files) -> anyhow::Result<Translated> {
    let mut ledger = Ledger::new(source);
    let mut draft = Draft::default();
    let (kind, routes) = match from {
        ImportFrom::Haproxy => ("haproxy", haproxy::translate(source, files, &mut draft, &mut ledger)),
        ImportFrom::Nginx => ("nginx", nginx::translate(source, files, &mut draft, &mut ledger)),
    };
    if routes.is_empty() {
        let needed = match from {
            ImportFrom::Haproxy => "a `frontend` or `listen` that TLS comes to, and a `backend` that it leads to",
            ImportFrom::Nginx => "a `stream` with a `server` that leads somewhere",
        };
        let notes = ledger.first_notes(TOLD);
        bail!("no route could be made of {name}; expected {needed}{}{notes}", if notes.is_empty() { "" } else { ":" });
    }
    let mut without_files = String::new();
    yaml::write(&mut without_files, &draft, &routes, CaFiles::LeftOut)?;
    Config::from_yaml(without_files.as_bytes()).map_err(|error| {
        anyhow::anyhow!("what was made of {name} is not valid, which is a fault of `import`: {error}")
    })?;

    let mut text = format!(
        "# Made by `snigate import {kind}` of {name}. Read it before it is used: what could not be carried over, or
# means something else here, stands at the end. Where the source says nothing, snigate's defaults hold.
#
#   snigate check FILE
#   snigate explain -c FILE --sni NAME
"
    );
    ledger.write_grave(&mut text);
    text.push('\n');
    yaml::write(&mut text, &draft, &routes, CaFiles::Named)?;
    ledger.write(&mut text);
    if text.len() as u64 > MAX_SIZE {
        bail!("what was made of {name} is larger than {} MiB", MAX_SIZE >> 20);
    }
    Ok(Translated { text, ledger })
}

/// Files that the source names.
struct Files {
    directory: PathBuf,
}

impl Files {
    fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    fn read(&self, path: &str) -> Result<String, String> {
        let path = self.directory.join(path);
        // A pipe in its place could keep us waiting.
        let is_file = std::fs::metadata(&path).map_err(|error| error.to_string())?.is_file();
        if !is_file {
            return Err("not a regular file".into());
        }
        File::open(path).and_then(text).map_err(|error| error.to_string())
    }
}

/// Bytes that are not UTF-8 may stand in comments.
fn text(from: impl Read) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(std::io::Error::other(format!("larger than {} MiB", MAX_SIZE >> 20)));
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).into())
}
