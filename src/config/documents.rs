//! The files of a configuration: the main one, and those that it includes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::build::{InvalidValue, Location};
use super::text::{OneOrMany, Text};
use super::values::FilePattern;
use super::yaml::{self, Root, YamlPath};
use super::yaml_error::YamlError;
use super::{ConfigError, Position, raw};
use crate::process::inputs::Inputs;
use crate::text::input;

/// The main file, then those that it includes, in their order.
pub(super) struct Documents(Vec<Document>);

struct Document {
    /// `None`: not from a file.
    path: Option<PathBuf>,
    content: Vec<u8>,
}

/// What the files of `include` have.
#[derive(Default)]
pub(super) struct Included {
    pub(super) routes: Vec<WrittenRoute>,
    /// Patterns that match no file.
    pub(super) unmatched: Vec<String>,
}

/// A route as written, and where.
pub(super) struct WrittenRoute {
    pub(super) location: Location,
    pub(super) route: raw::Route,
}

impl Documents {
    /// The main file; `path` is `None` if it is not from a file.
    pub(super) fn new(path: Option<&Path>, content: Vec<u8>) -> Self {
        Self(vec![Document { path: path.map(Into::into), content }])
    }

    /// Parses the main file.
    pub(super) fn parse(&self) -> Result<raw::Config, ConfigError> {
        self.0[0].parse()
    }

    /// Reads the files of `include`.
    pub(super) fn include(
        &mut self,
        patterns: OneOrMany<Text<FilePattern>>,
        inputs: &mut Inputs,
    ) -> Result<Included, ConfigError> {
        let mut included = Included::default();
        let mut seen = HashSet::new();
        for Text(FilePattern(pattern)) in patterns.0 {
            let found = inputs.read_matching(self.directory(0), Path::new(&pattern)).map_err(|unreadable| {
                let message = format!("`{pattern}`: cannot read {}: {}", unreadable.path.display(), unreadable.reason);
                self.error(InvalidValue::at("include", message))
            })?;
            if found.is_empty() {
                included.unmatched.push(pattern);
            }
            for (path, content) in found {
                if !seen.insert(path.clone()) {
                    continue;
                }
                let document = Document { path: Some(path), content };
                let raw::Included { routes: written } = document.parse()?;
                let written = WrittenRoute::all(self.0.len(), written);
                self.0.push(document);
                included.routes.extend(written.map_err(|invalid| self.error(invalid))?);
            }
        }
        Ok(included)
    }

    /// How many files are included.
    pub(super) fn included(&self) -> usize {
        self.0.len() - 1
    }

    /// The directory of a document, where relative paths in it start.
    pub(super) fn directory(&self, document: usize) -> &Path {
        self.0[document].path.as_deref().and_then(Path::parent).unwrap_or(Path::new(""))
    }

    /// An earlier value as it is called in messages about another one.
    pub(super) fn name_of(&self, earlier: &Location, from: &Location) -> String {
        let document = &self.0[earlier.document];
        match &document.path {
            Some(file) if earlier.document != from.document => {
                let line = document.locate(&earlier.path).map_or_else(String::new, |at| format!(":{}", at.line));
                format!("{} of {}{line}", earlier.path, input::name_of(file))
            }
            _ => earlier.path.clone(),
        }
    }

    /// The error with its position.
    pub(super) fn error(&self, invalid: InvalidValue) -> ConfigError {
        let InvalidValue { location: Location { document, path }, message, conflicts_with } = invalid;
        let earlier = conflicts_with.filter(|location| location.document == document);
        let document = &self.0[document];
        let earlier = earlier.and_then(|location| document.locate(&location.path));
        let earlier = earlier.map_or_else(String::new, |earlier| format!(" (line {})", earlier.line));
        let prefix = if path.is_empty() { String::new() } else { format!("{path}: ") };
        document.error(YamlError { position: document.locate(&path), message: format!("{prefix}{message}{earlier}") })
    }
}

impl Document {
    fn parse<T: Root>(&self) -> Result<T, ConfigError> {
        yaml::parse(&self.content).map_err(|error| self.error(error))
    }

    fn error(&self, YamlError { position, message }: YamlError) -> ConfigError {
        ConfigError { file: self.path.as_deref().map(|path| input::name_of(path).into()), position, message }
    }

    fn locate(&self, path: &str) -> Option<Position> {
        yaml::locate(yaml::decode(&self.content).unwrap_or_default(), &YamlPath::value(path))
    }
}

impl WrittenRoute {
    /// The routes of a document, at least one.
    pub(super) fn all(document: usize, routes: Vec<raw::Route>) -> Result<Vec<Self>, InvalidValue> {
        if routes.is_empty() {
            let message = "empty list; expected at least one route with `sni` and `upstream`";
            return Err(InvalidValue::at("routes", message).in_document(document));
        }
        let at = |(index, route)| Self { location: Location { document, path: format!("routes[{index}]") }, route };
        Ok(routes.into_iter().enumerate().map(at).collect())
    }
}
