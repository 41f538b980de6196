//! A kubeconfig that is there, and stays as it is but for where one of its clusters is.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde_yaml::{Mapping, Value};

use super::ca::Trust;
use crate::cli::ServerUrl;
use crate::text::input;

pub(super) struct Existing {
    document: Mapping,
    /// What relative paths in it start from.
    directory: PathBuf,
    /// The cluster's name, and which of `clusters` it is.
    name: String,
    number: usize,
}

impl Existing {
    /// `-` for standard input.
    pub(super) fn read(path: &Path, cluster: Option<&str>) -> anyhow::Result<Self> {
        let called = input::name_of(path);
        let directory = if input::is_stdin(path) { Path::new("") } else { path.parent().unwrap_or(path) };
        let directory = std::env::current_dir()?.join(directory);
        let bytes = input::read(path).with_context(|| format!("cannot read {called}"))?;
        Self::parse(&bytes, directory, cluster).with_context(|| format!("{called} cannot be rewritten"))
    }

    fn parse(bytes: &[u8], directory: PathBuf, cluster: Option<&str>) -> anyhow::Result<Self> {
        let document = serde_yaml::from_slice(bytes).and_then(|mut document: Value| {
            document.apply_merge()?;
            Ok(document)
        });
        let document = match document {
            Ok(Value::Mapping(document)) => document,
            Ok(_) => bail!("it is no map of keys; expected a kubeconfig"),
            // Without the parser's words: what is in the file may be a secret.
            Err(error) => {
                let place = error.location().map_or(String::new(), |at| format!(" at line {}", at.line()));
                bail!("it is no YAML{place}; expected a kubeconfig")
            }
        };
        let clusters: Vec<&str> =
            list(&document, "clusters").iter().map(|cluster| text(cluster, "name").unwrap_or_default()).collect();
        let known = if clusters.is_empty() { "has none".into() } else { format!("has {}", clusters.join(", ")) };
        let name = match cluster {
            Some(name) => name,
            None => current_cluster(&document).with_context(|| {
                format!("it has no `current-context` that names a cluster; expected --cluster NAME (it {known})")
            })?,
        };
        let number = clusters.iter().position(|cluster| *cluster == name);
        let number = number.with_context(|| format!("there is no cluster `{name}` in it; it {known}"))?;
        let name = name.to_owned();
        Ok(Self { document, directory, name, number })
    }

    /// Whom kubectl believes now.
    pub(super) fn trust(&self) -> anyhow::Result<Trust> {
        let Some(cluster) = self.cluster() else { return Ok(Trust::System) };
        if let Some(data) = text(cluster, "certificate-authority-data") {
            return Ok(Trust::Authority(data.into()));
        }
        if let Some(path) = text(cluster, "certificate-authority") {
            return Trust::in_file(&self.directory.join(path)).with_context(|| {
                format!("the CA of the cluster `{}` cannot be kept; --ca FILE replaces it", self.name)
            });
        }
        if self.verifies() {
            return Ok(Trust::System);
        }
        bail!(
            "the cluster `{}` has no CA, and is not verified; expected --ca FILE, or --insecure-skip-tls-verify to leave it so",
            self.name
        )
    }

    /// The name that kubectl verifies now, and which the certificate therefore carries.
    pub(super) fn verified_name(&self) -> Option<String> {
        let cluster = self.cluster().filter(|_| self.verifies())?;
        let name = text(cluster, "tls-server-name").map(str::to_ascii_lowercase);
        name.or_else(|| text(cluster, "server")?.parse::<ServerUrl>().ok()?.name)
    }

    fn verifies(&self) -> bool {
        let skips = self.cluster().and_then(|cluster| cluster.get("insecure-skip-tls-verify")?.as_bool());
        skips != Some(true)
    }

    fn cluster(&self) -> Option<&Value> {
        list(&self.document, "clusters").get(self.number)?.get("cluster")
    }

    /// With these entries in place of those that say where the cluster is, and whom to believe there.
    pub(super) fn rewrite(mut self, place: Mapping, notes: &mut Vec<String>) -> anyhow::Result<Mapping> {
        let entry = self.document.get_mut("clusters").and_then(|clusters| clusters.get_mut(self.number));
        let entry = entry.and_then(Value::as_mapping_mut).context("its clusters are no maps of keys")?;
        let mut cluster = place;
        if let Some(Value::Mapping(before)) = entry.remove("cluster") {
            let replaced = [
                "server",
                "tls-server-name",
                "certificate-authority",
                "certificate-authority-data",
                "insecure-skip-tls-verify",
            ];
            let is_kept = |key: &Value| !key.as_str().is_some_and(|key| replaced.contains(&key));
            cluster.extend(before.into_iter().filter(|(key, _)| is_kept(key)));
        }
        entry.insert("cluster".into(), cluster.into());
        notes.push(format!("All but the cluster `{}` is as it was; comments were not kept.", self.name));
        if make_absolute(&mut self.document, &self.directory)? {
            notes.push("Relative paths of files were made absolute, so that this file can be anywhere.".into());
        }
        Ok(self.document)
    }
}

fn current_cluster(document: &Mapping) -> Option<&str> {
    let current = document.get("current-context")?.as_str()?;
    let context = list(document, "contexts").iter().find(|context| text(context, "name") == Some(current));
    text(context?.get("context")?, "cluster")
}

/// Those paths that kubectl looks for beside the kubeconfig. Whether there were any.
fn make_absolute(document: &mut Mapping, directory: &Path) -> anyhow::Result<bool> {
    let mut any = false;
    for (list, kind) in [("clusters", "cluster"), ("users", "user")] {
        let entries = document.get_mut(list).and_then(Value::as_sequence_mut).into_iter().flatten();
        for (key, value) in entries.filter_map(|entry| entry.get_mut(kind)?.as_mapping_mut()).flatten() {
            let path = match key.as_str() {
                Some("certificate-authority" | "client-certificate" | "client-key" | "tokenFile") => value,
                // Without a slash it is looked for in PATH.
                Some("exec") => match value.get_mut("command") {
                    Some(command) if command.as_str().is_some_and(|path| path.contains('/')) => command,
                    _ => continue,
                },
                _ => continue,
            };
            if let Some(relative) = path.as_str().filter(|path| !path.is_empty() && Path::new(path).is_relative()) {
                let absolute = directory.join(relative).into_os_string().into_string();
                *path = absolute.map_err(|_| anyhow!("the path of its directory is not UTF-8"))?.into();
                any = true;
            }
        }
    }
    Ok(any)
}

fn list<'d>(document: &'d Mapping, key: &str) -> &'d [Value] {
    document.get(key).and_then(Value::as_sequence).map_or(&[], Vec::as_slice)
}

/// Nothing where the text is empty, as kubectl sees it.
fn text<'d>(value: &'d Value, key: &str) -> Option<&'d str> {
    value.get(key)?.as_str().filter(|text| !text.is_empty())
}
