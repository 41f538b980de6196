//! The files that values of a configuration name.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::upstream::health::{Authorities, CaFile};

/// The files that a configuration names: many routes may name the same.
pub(super) struct Files<'f> {
    /// Relative paths start here.
    pub(super) directory: &'f Path,
    /// CAs that have been read.
    authorities: HashSet<CaFile>,
}

impl<'f> Files<'f> {
    pub(super) fn new(directory: &'f Path) -> Self {
        Self { directory, authorities: HashSet::new() }
    }

    pub(super) fn path(&self, file: &Path) -> PathBuf {
        self.directory.join(file)
    }

    pub(super) fn check_authorities(&mut self, from: &CaFile) -> Result<(), String> {
        if !self.authorities.contains(from) {
            Authorities::read(from)?;
            self.authorities.insert(from.clone());
        }
        Ok(())
    }
}
