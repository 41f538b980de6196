//! Objects of Kubernetes in files, in place of a configuration.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::gateway::api::manifests::{is_manifest, objects};
use crate::gateway::configuration::configuration;
use crate::gateway::offline::{DEFAULT_INGRESS_CLASS, Offline, translate_objects};
use crate::text::input::{is_stdin, name_of, read};
use anyhow::{Context as _, bail};

/// The objects of these files together.
pub(super) fn translate(files: &[&PathBuf], ingress_class: &str) -> anyhow::Result<Offline> {
    let mut all = Vec::new();
    for file in files {
        let content = read(file).with_context(|| format!("cannot read {}", name_of(file)))?;
        all.extend(objects(&content).map_err(|reason| anyhow::anyhow!("{}: {reason}", name_of(file)))?);
    }
    Ok(translate_objects(all, ingress_class))
}

/// What the objects of a file amount to, if it has any. Standard input and pipes have none, as they can be read only once.
pub(super) fn find(file: &Path) -> anyhow::Result<Option<(Offline, Config)>> {
    if is_stdin(file) || !file.is_file() || !read(file).is_ok_and(|content| is_manifest(&content)) {
        return Ok(None);
    }
    let offline = translate(&[&file.to_owned()], DEFAULT_INGRESS_CLASS)?;
    let config = configuration(&Config::empty_base()?, &offline.plan.routing);
    Ok(Some((offline, config)))
}

/// The configuration that a file has, or that its objects amount to.
pub(super) fn load(file: &Path) -> anyhow::Result<Config> {
    let Some((offline, config)) = find(file)? else { return Ok(Config::load(file)?) };
    if config.listeners.is_empty() {
        bail!("{}: nothing is served:\n  {}", name_of(file), offline.problems().join("\n  "));
    }
    Ok(config)
}
