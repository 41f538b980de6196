//! What the translation of a section needs from the whole file.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::sections::Section;
use crate::commands::import::files::SourceFiles;
use crate::commands::import::values::duration;

pub(super) struct FileContext<'a> {
    pub(super) files: &'a SourceFiles,
    /// Names of all `backend` and `listen` sections.
    pub(super) backends: HashSet<&'a str>,
    /// The periods of `conn_rate` in stick tables, in milliseconds, by section.
    rate_periods: HashMap<&'a str, u64>,
    ca_base: Option<&'a str>,
}

impl<'a> FileContext<'a> {
    pub(super) fn new(sections: &'a [Section], files: &'a SourceFiles) -> Self {
        let globals = sections.iter().filter(|section| section.kind == "global").flat_map(|section| &section.lines);
        let ca_base =
            globals.filter(|line| line.words[0] == "ca-base").filter_map(|line| line.words.get(1)).next_back();
        let backends = sections.iter().filter(|section| section.is_backend());
        let period = |section: &'a Section| Some((section.name.as_str(), rate_period(section)?));
        Self {
            files,
            backends: backends.map(|section| section.name.as_str()).collect(),
            rate_periods: sections.iter().filter_map(period).collect(),
            ca_base: ca_base.map(String::as_str),
        }
    }

    pub(super) fn rate_period(&self, section: &str) -> Option<u64> {
        self.rate_periods.get(section).copied()
    }

    pub(super) fn ca_file(&self, file: &str) -> String {
        match self.ca_base {
            Some(base) if !file.starts_with('@') => Path::new(base).join(file).to_string_lossy().into(),
            _ => file.into(),
        }
    }
}

fn rate_period(section: &Section) -> Option<u64> {
    let table = section.lines.iter().rfind(|line| line.words[0] == "stick-table")?;
    let (_, period) = table.words.iter().find_map(|word| word.split_once("conn_rate("))?;
    let period = duration(period.split_once(')')?.0, "ms").ok()?;
    u64::try_from(period.as_millis()).ok()
}
