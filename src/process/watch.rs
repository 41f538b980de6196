//! Watches a file for changes.
//!
//! By polling: that works with renames, the `..data` link of a `ConfigMap`, and file systems without notifications.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::warn;

use crate::text::input;

const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long the content must stay the same before it is loaded, so that a file is not loaded while it is written.
const SETTLE_TIME: Duration = Duration::from_millis(500);

/// A watched file.
#[derive(Debug)]
pub(crate) struct FileWatch {
    path: PathBuf,
    /// Of the content that was loaded last; `None`: there was none.
    loaded: Option<Digest>,
    /// The stamp of the file when it last had the loaded content.
    unchanged: Option<Stamp>,
    is_missing: bool,
}

/// A hash of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    /// Hashes a content.
    pub(crate) fn of(content: &[u8]) -> Self {
        Self(input::digest(content))
    }
}

/// Metadata that changes with every write, rename or link.
pub(crate) type Stamp = (u64, u64, u64, i64, i64, i64, i64);

fn stamp(metadata: &Metadata) -> Stamp {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}

fn digest(path: &Path) -> io::Result<Digest> {
    input::read_regular(path).map(|content| Digest::of(&content))
}

impl FileWatch {
    /// Watches a file whose content was loaded, if there was one.
    pub(crate) fn new(path: PathBuf, loaded: Option<Digest>) -> Self {
        Self { path, loaded, unchanged: None, is_missing: false }
    }

    /// Another content was loaded.
    pub(crate) fn set_loaded(&mut self, content: Option<Digest>) {
        self.loaded = content;
        self.unchanged = None;
    }

    /// The metadata of the file, if it exists.
    pub(crate) async fn stamp(&self) -> Option<Stamp> {
        self.read(|path| fs::metadata(path)).await.ok().map(|metadata| stamp(&metadata))
    }

    /// The loaded content, read when the file had this stamp, was not applied: any further write counts as a change, even
    /// one with the same content.
    pub(crate) fn set_held_back(&mut self, stamp: Option<Stamp>) {
        self.loaded = None;
        self.unchanged = stamp;
    }

    /// Completes when the content differs from the one that was loaded last.
    pub(crate) async fn changed(&mut self) {
        loop {
            sleep(POLL_INTERVAL).await;
            match self.has_changed().await {
                Ok(true) => return,
                Ok(false) => self.is_missing = false,
                Err(reason) => {
                    if !std::mem::replace(&mut self.is_missing, true) {
                        warn!(file = %self.path.display(), %reason, "cannot read the watched file; keeping the running configuration");
                    }
                }
            }
        }
    }

    async fn has_changed(&mut self) -> io::Result<bool> {
        let now = stamp(&self.read(|path| fs::metadata(path)).await?);
        if self.unchanged == Some(now) {
            return Ok(false);
        }
        let content = self.read(digest).await?;
        if self.loaded == Some(content) {
            self.unchanged = Some(now);
            return Ok(false);
        }
        sleep(SETTLE_TIME).await;
        let is_settled = self.read(digest).await? == content;
        Ok(is_settled)
    }

    /// On a blocking thread: the file system may hang.
    async fn read<T: Send + 'static>(&self, read: fn(&Path) -> io::Result<T>) -> io::Result<T> {
        let path = self.path.clone();
        spawn_blocking(move || read(&path)).await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::time::{Instant, timeout};

    use super::*;

    async fn changes(watch: &mut FileWatch) -> bool {
        let has_changed = timeout(POLL_INTERVAL * 3, watch.changed()).await.is_ok();
        if has_changed {
            watch.set_loaded(digest(&watch.path).ok());
        }
        has_changed
    }

    #[tokio::test(start_paused = true)]
    async fn g07_every_way_to_replace_a_file_is_noticed_once_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("a"), "one").unwrap();
        symlink("a", path("..data")).unwrap();
        symlink("..data", path("c.yaml")).unwrap();
        let mut watch = FileWatch::new(path("c.yaml"), digest(&path("c.yaml")).ok());
        assert!(!changes(&mut watch).await, "unchanged");

        fs::write(path("a"), "two").unwrap();
        assert!(changes(&mut watch).await, "written");
        assert!(!changes(&mut watch).await, "once");
        fs::write(path("a"), "two").unwrap();
        assert!(!changes(&mut watch).await, "the same content again");

        fs::write(path("b"), "three").unwrap();
        symlink("b", path("..new")).unwrap();
        fs::rename(path("..new"), path("..data")).unwrap();
        assert!(changes(&mut watch).await, "a link with a new target, as in a ConfigMap");

        fs::write(path("new"), "four").unwrap();
        fs::rename(path("new"), path("c.yaml")).unwrap();
        assert!(changes(&mut watch).await, "replaced by rename, as editors do");

        fs::remove_file(path("c.yaml")).unwrap();
        assert!(!changes(&mut watch).await, "a missing file is not a change");
        fs::write(path("c.yaml"), "five").unwrap();
        assert!(changes(&mut watch).await);

        fs::write(path("c.yaml"), "six").unwrap();
        watch.set_loaded(Some(Digest::of(b"six")));
        assert!(!changes(&mut watch).await, "loaded for another reason, such as SIGHUP");

        // A file that is still growing is not loaded.
        let grows = async {
            for number in 0..20 {
                fs::write(path("c.yaml"), format!("{number}")).unwrap();
                sleep(SETTLE_TIME / 2).await;
            }
            Instant::now()
        };
        let ((), written) = tokio::join!(watch.changed(), grows);
        assert!(written.elapsed() >= SETTLE_TIME / 2, "after the last write");
    }
}
