//! Objects of Kubernetes in files, in place of a configuration.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::gateway::api::manifests::{is_manifest, objects};
use crate::gateway::configuration::configuration;
use crate::gateway::offline::{Offline, translate_objects};
use crate::gateway::translate::IngressOptions;
use crate::text::input::{is_stdin, name_of, read};
use anyhow::{Context as _, bail};

use crate::cli::InFiles;

/// The objects of these files together.
pub(super) fn translate(files: &[&PathBuf], options: &InFiles) -> anyhow::Result<Offline> {
    let mut all = Vec::new();
    for file in files {
        let content = read(file).with_context(|| format!("cannot read {}", name_of(file)))?;
        all.extend(objects(&content).map_err(|reason| anyhow::anyhow!("{}: {reason}", name_of(file)))?);
    }
    let InFiles { ingress_class, ingress_port } = options;
    let default = IngressOptions::default();
    let class = ingress_class.clone().unwrap_or(default.class);
    Ok(translate_objects(all, IngressOptions { class, port: ingress_port.unwrap_or(default.port) }))
}

/// What the objects of a file amount to, if it has any. Standard input and pipes have none, as they can be read only once.
pub(super) fn find(file: &Path, options: &InFiles) -> anyhow::Result<Option<(Offline, Config)>> {
    if is_stdin(file) || !file.is_file() || !read(file).is_ok_and(|content| is_manifest(&content)) {
        if let Some(option) = options.given() {
            bail!("{option} is for files with objects of Kubernetes; {} is read as a configuration", name_of(file));
        }
        return Ok(None);
    }
    let offline = translate(&[&file.to_owned()], options)?;
    let config = configuration(&Config::empty_base()?, &offline.plan.routing);
    Ok(Some((offline, config)))
}

/// The configuration that a file has, or that its objects amount to.
pub(super) fn load(file: &Path, options: &InFiles) -> anyhow::Result<Config> {
    let Some((offline, config)) = find(file, options)? else { return Ok(Config::load(file)?) };
    if config.listeners.is_empty() {
        bail!("{}: nothing is served:\n  {}", name_of(file), offline.problems().join("\n  "));
    }
    Ok(config)
}
