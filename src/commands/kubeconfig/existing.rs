//! An existing kubeconfig, of which one cluster is updated.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde_yaml::{Mapping, Value};

use super::ca::ClusterCa;
use crate::cli::ServerUrl;
use crate::text::input;

pub(super) struct Existing {
    document: Mapping,
    /// The base of its relative paths.
    directory: PathBuf,
    /// The name of the cluster to update, and its index in `clusters`.
    name: String,
    index: usize,
}

impl Existing {
    /// `cluster`: the one to update, by default that of the current context.
    pub(super) fn read(path: &Path, cluster: Option<&str>) -> anyhow::Result<Self> {
        let file = input::name_of(path);
        let directory = if input::is_stdin(path) { Path::new("") } else { path.parent().unwrap_or(path) };
        let directory = std::env::current_dir()?.join(directory);
        let bytes = input::read(path).with_context(|| format!("cannot read {file}"))?;
        Self::parse(&bytes, directory, cluster).with_context(|| format!("cannot update {file}"))
    }

    fn parse(bytes: &[u8], directory: PathBuf, cluster: Option<&str>) -> anyhow::Result<Self> {
        let document = serde_yaml::from_slice(bytes).and_then(|mut document: Value| {
            document.apply_merge()?;
            Ok(document)
        });
        let document = match document {
            Ok(Value::Mapping(document)) => document,
            Ok(_) => bail!("not a YAML mapping; expected a kubeconfig"),
            // The parser's message could contain secrets of the file.
            Err(error) => {
                let place = error.location().map_or(String::new(), |at| format!(" at line {}", at.line()));
                bail!("invalid YAML{place}; expected a kubeconfig")
            }
        };
        let clusters: Vec<&str> =
            list(&document, "clusters").iter().map(|cluster| text(cluster, "name").unwrap_or_default()).collect();
        let known =
            if clusters.is_empty() { "no clusters".into() } else { format!("clusters: {}", clusters.join(", ")) };
        let name = match cluster {
            Some(name) => name,
            None => current_cluster(&document)
                .with_context(|| format!("no current context with a cluster; expected --cluster NAME ({known})"))?,
        };
        let index = clusters.iter().position(|cluster| *cluster == name);
        let index = index.with_context(|| format!("no cluster `{name}` ({known})"))?;
        let name = name.to_owned();
        Ok(Self { document, directory, name, index })
    }

    /// How kubectl verifies the cluster now.
    pub(super) fn ca(&self) -> anyhow::Result<ClusterCa> {
        let Some(cluster) = self.cluster() else { return Ok(ClusterCa::System) };
        if let Some(data) = text(cluster, "certificate-authority-data") {
            return Ok(ClusterCa::Data(data.into()));
        }
        if let Some(path) = text(cluster, "certificate-authority") {
            return ClusterCa::read(&self.directory.join(path)).with_context(|| {
                format!("cannot read the CA of the cluster `{}`; replace it with --ca FILE", self.name)
            });
        }
        if self.verifies() {
            return Ok(ClusterCa::System);
        }
        bail!(
            "the cluster `{}` is not verified (`insecure-skip-tls-verify`); expected --ca FILE, or --insecure-skip-tls-verify to keep \
             it so",
            self.name
        )
    }

    /// The name that kubectl verifies now, which the certificate must therefore have.
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
        list(&self.document, "clusters").get(self.index)?.get("cluster")
    }

    /// Replaces how the cluster is reached and verified.
    pub(super) fn update(mut self, connection: Mapping, notes: &mut Vec<String>) -> anyhow::Result<Mapping> {
        let entry = self.document.get_mut("clusters").and_then(|clusters| clusters.get_mut(self.index));
        let entry = entry.and_then(Value::as_mapping_mut).context("`clusters` has an entry that is not a mapping")?;
        let mut cluster = connection;
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
        notes.push(format!("Only the cluster `{}` was changed; comments were removed.", self.name));
        if make_absolute(&mut self.document, &self.directory)? {
            notes.push("Relative paths of files were made absolute, so that this file can be moved.".into());
        }
        Ok(self.document)
    }
}

fn current_cluster(document: &Mapping) -> Option<&str> {
    let current = document.get("current-context")?.as_str()?;
    let context = list(document, "contexts").iter().find(|context| text(context, "name") == Some(current));
    text(context?.get("context")?, "cluster")
}

/// Changes paths relative to the kubeconfig's directory; returns whether there were any.
fn make_absolute(document: &mut Mapping, directory: &Path) -> anyhow::Result<bool> {
    let mut any = false;
    for (list, kind) in [("clusters", "cluster"), ("users", "user")] {
        let entries = document.get_mut(list).and_then(Value::as_sequence_mut).into_iter().flatten();
        for (key, value) in entries.filter_map(|entry| entry.get_mut(kind)?.as_mapping_mut()).flatten() {
            let path = match key.as_str() {
                Some("certificate-authority" | "client-certificate" | "client-key" | "tokenFile") => value,
                // kubectl searches PATH for a command without a slash.
                Some("exec") => match value.get_mut("command") {
                    Some(command) if command.as_str().is_some_and(|path| path.contains('/')) => command,
                    _ => continue,
                },
                _ => continue,
            };
            if let Some(relative) = path.as_str().filter(|path| !path.is_empty() && Path::new(path).is_relative()) {
                let absolute = directory.join(relative).into_os_string().into_string();
                *path = absolute.map_err(|_| anyhow!("the path of the kubeconfig's directory is not UTF-8"))?.into();
                any = true;
            }
        }
    }
    Ok(any)
}

fn list<'d>(document: &'d Mapping, key: &str) -> &'d [Value] {
    document.get(key).and_then(Value::as_sequence).map_or(&[], Vec::as_slice)
}

/// `None` if the text is empty: kubectl treats that as absent.
fn text<'d>(value: &'d Value, key: &str) -> Option<&'d str> {
    value.get(key)?.as_str().filter(|text| !text.is_empty())
}
