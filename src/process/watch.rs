//! Looks at a file until its content changes.
//!
//! It is polled: that survives renames, the `..data` link of a `ConfigMap` and file systems that tell nobody.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::warn;

use crate::text::input;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// For so long the content must stay the same: a file that is being written is not taken half.
const SETTLED: Duration = Duration::from_millis(500);

/// A file, and what is known of it.
#[derive(Debug)]
pub(crate) struct Watch {
    path: PathBuf,
    /// Of the content that was taken last; `None`: there was none.
    taken: Option<Digest>,
    /// As it was when the content was found to be the one that was taken.
    unchanged: Option<Stamp>,
    is_missing: bool,
}

/// Stands for a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    /// Of this content.
    pub(crate) fn of(content: &[u8]) -> Self {
        Self(input::digest(content))
    }
}

/// What changes with every write, rename or link.
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

impl Watch {
    /// This content has been taken, if there was one.
    pub(crate) fn new(path: PathBuf, taken: Option<Digest>) -> Self {
        Self { path, taken, unchanged: None, is_missing: false }
    }

    /// Another one has been taken.
    pub(crate) fn has_taken(&mut self, content: Option<Digest>) {
        self.taken = content;
        self.unchanged = None;
    }

    /// What the file looks like from outside, if it is there.
    pub(crate) async fn stamp(&self) -> Option<Stamp> {
        self.read(|path| fs::metadata(path)).await.ok().map(|metadata| stamp(&metadata))
    }

    /// The content that the file has had since it looked like this is not applied: it has changed when it is written again,
    /// whatever is written.
    pub(crate) fn has_held_back(&mut self, stamp: Option<Stamp>) {
        self.taken = None;
        self.unchanged = stamp;
    }

    /// Until the file has another content than the one that was taken last.
    pub(crate) async fn changed(&mut self) {
        loop {
            sleep(EVERY).await;
            match self.look().await {
                Ok(true) => return,
                Ok(false) => self.is_missing = false,
                Err(reason) => {
                    if !std::mem::replace(&mut self.is_missing, true) {
                        warn!(file = %self.path.display(), %reason, "cannot read the watched configuration; the running one stays");
                    }
                }
            }
        }
    }

    async fn look(&mut self) -> io::Result<bool> {
        let now = stamp(&self.read(|path| fs::metadata(path)).await?);
        if self.unchanged == Some(now) {
            return Ok(false);
        }
        let content = self.read(digest).await?;
        if self.taken == Some(content) {
            self.unchanged = Some(now);
            return Ok(false);
        }
        sleep(SETTLED).await;
        let is_settled = self.read(digest).await? == content;
        Ok(is_settled)
    }

    /// A file system that hangs must not hang us.
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

    async fn changes(watch: &mut Watch) -> bool {
        let has_changed = timeout(EVERY * 3, watch.changed()).await.is_ok();
        if has_changed {
            watch.has_taken(digest(&watch.path).ok());
        }
        has_changed
    }

    #[tokio::test(start_paused = true)]
    async fn g07_every_way_to_replace_a_file_is_seen_and_no_half_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("a"), "one").unwrap();
        symlink("a", path("..data")).unwrap();
        symlink("..data", path("c.yaml")).unwrap();
        let mut watch = Watch::new(path("c.yaml"), digest(&path("c.yaml")).ok());
        assert!(!changes(&mut watch).await, "as it was when it was taken");

        fs::write(path("a"), "two").unwrap();
        assert!(changes(&mut watch).await, "written");
        assert!(!changes(&mut watch).await, "once");
        fs::write(path("a"), "two").unwrap();
        assert!(!changes(&mut watch).await, "the same again");

        fs::write(path("b"), "three").unwrap();
        symlink("b", path("..new")).unwrap();
        fs::rename(path("..new"), path("..data")).unwrap();
        assert!(changes(&mut watch).await, "a link that leads elsewhere, as in a ConfigMap");

        fs::write(path("new"), "four").unwrap();
        fs::rename(path("new"), path("c.yaml")).unwrap();
        assert!(changes(&mut watch).await, "another file of that name, as editors write");

        fs::remove_file(path("c.yaml")).unwrap();
        assert!(!changes(&mut watch).await, "no file is no change");
        fs::write(path("c.yaml"), "five").unwrap();
        assert!(changes(&mut watch).await);

        fs::write(path("c.yaml"), "six").unwrap();
        watch.has_taken(Some(Digest::of(b"six")));
        assert!(!changes(&mut watch).await, "somebody else has asked for it to be taken");

        // While it grows it is left alone.
        let grows = async {
            for number in 0..20 {
                fs::write(path("c.yaml"), format!("{number}")).unwrap();
                sleep(SETTLED / 2).await;
            }
            Instant::now()
        };
        let ((), written) = tokio::join!(watch.changed(), grows);
        assert!(written.elapsed() >= SETTLED / 2, "after the last write");
    }
}
