//! Reads all objects once, without watching them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use kube::runtime::watcher;
use serde_json::Value;

use super::follow::{Watched, cause, list, resource};
use super::link::{ConnectError, Link, describe};
use super::store::Store;
use super::{Access, watched};
use crate::gateway::api::{Key, Kind};
use crate::gateway::snapshot::Snapshot;

/// How long the API server may be silent.
const SILENCE: Duration = Duration::from_secs(15);
/// Lists at a time.
const CONCURRENT: usize = 4;

/// What a cluster has.
#[derive(Debug)]
pub(crate) struct Reading {
    /// The URL of the API server.
    pub(crate) server: String,
    pub(crate) snapshot: Snapshot,
    /// Statuses of the objects that snigate reports on.
    pub(crate) statuses: BTreeMap<(Kind, Key), Value>,
    /// Kinds that the API server does not have.
    pub(crate) missing: BTreeSet<Kind>,
}

/// Why a cluster cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("cannot reach the API server at {server}: {reason}")]
    Unreachable { server: String, reason: String },
    #[error("the API server at {server} does not accept the credentials (401)")]
    Unauthorized { server: String },
    #[error(
        "the API server at {server} forbids what is needed (403); grant the verb `list` on {}",
        .lists.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Forbidden { server: String, lists: Vec<Listed> },
    #[error("the API server at {server} does not list {list}: {reason}")]
    Failed { server: String, list: Listed, reason: String },
}

/// What a list is of.
#[derive(Debug)]
pub(crate) struct Listed {
    kind: Kind,
    namespace: Option<String>,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let group = match self.kind.group() {
            "" => "core",
            group => group,
        };
        write!(f, "`{}` of the API group {group}", resource(self.kind, "v1").plural)?;
        match &self.namespace {
            Some(namespace) => write!(f, " in the namespace {namespace}"),
            None => f.write_str(" in the whole cluster"),
        }
    }
}

/// Reads what `snigate gateway` would watch.
pub(crate) async fn read(access: &Access) -> Result<Reading, ReadError> {
    let link = Link::open(access.way(SILENCE)).await?;
    let all = watched(access);
    let store = Store::new(all.len());
    let lists = all.into_iter().map(|watched| async {
        let listed = list(&watched, &link).await;
        (watched, listed)
    });
    let lists: Vec<_> = stream::iter(lists).buffered(CONCURRENT).collect().await;
    let (mut missing, mut failed) = (BTreeSet::new(), Vec::new());
    for (watched, listed) in lists {
        match listed {
            Ok(Some(objects)) => drop(store.replace(watched.kind, &BTreeSet::new(), objects)),
            Ok(None) => drop(missing.insert(watched.kind)),
            Err(error) => failed.push((watched, error)),
        }
    }
    if !failed.is_empty() {
        return Err(why(failed, link.server()));
    }
    let (snapshot, statuses) = store.into_objects();
    Ok(Reading { server: link.server().into(), snapshot, statuses, missing })
}

/// All that is forbidden, or else the first failure.
fn why(failed: Vec<(Watched, watcher::Error)>, server: &str) -> ReadError {
    let server = server.to_owned();
    let code = |error: &watcher::Error| match cause(error) {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    };
    let listed = |Watched { kind, namespace, seconds: _ }| Listed { kind, namespace };
    let (forbidden, others): (Vec<_>, Vec<_>) = failed.into_iter().partition(|(_, error)| code(error) == Some(403));
    let Some((watched, error)) = others.into_iter().next() else {
        return ReadError::Forbidden {
            server,
            lists: forbidden.into_iter().map(|(watched, _)| listed(watched)).collect(),
        };
    };
    let reason = cause(&error).map_or_else(|| describe(&error), |error| describe(error));
    match (code(&error), cause(&error)) {
        (Some(401), _) => ReadError::Unauthorized { server },
        (None, Some(_)) => ReadError::Unreachable { server, reason },
        _ => ReadError::Failed { server, list: listed(watched), reason },
    }
}
