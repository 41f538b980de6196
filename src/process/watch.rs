//! Watches the files of a configuration for changes.
//!
//! By polling: that works with renames, the `..data` link of a `ConfigMap`, and file systems without notifications.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::inputs::{Inputs, Stamps, Unreadable};

const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// How long the content must stay the same before it is loaded, so that a file is not loaded while it is written.
const SETTLE_TIME: Duration = Duration::from_millis(500);

/// The watched files.
#[derive(Debug)]
pub(crate) struct FileWatch {
    /// What was loaded last.
    loaded: Arc<Inputs>,
    /// The stamps of the files when they last had the loaded content.
    unchanged: Option<Stamps>,
    /// Any write counts as a change, even one of the same content.
    is_held_back: bool,
    is_unreadable: bool,
    next_look: Instant,
    /// Another content, which must be the same at the next look.
    unsettled: Option<Inputs>,
}

impl FileWatch {
    /// Watches what was loaded.
    pub(crate) fn new(loaded: Inputs) -> Self {
        Self {
            loaded: Arc::new(loaded),
            unchanged: None,
            is_held_back: false,
            is_unreadable: false,
            next_look: Instant::now() + POLL_INTERVAL,
            unsettled: None,
        }
    }

    /// Something else was loaded.
    pub(crate) fn set_loaded(&mut self, inputs: Inputs) {
        *self = Self { is_unreadable: self.is_unreadable, ..Self::new(inputs) };
    }

    /// What was loaded is not applied: any further write counts as a change, even one with the same content.
    pub(crate) fn set_held_back(&mut self) {
        self.unchanged = Some(self.loaded.stamps_when_read());
        self.is_held_back = true;
    }

    /// Completes when the content differs from what was loaded last. Can be dropped and called again at any time.
    pub(crate) async fn changed(&mut self) {
        loop {
            sleep_until(self.next_look).await;
            match self.has_changed().await {
                Ok(true) => return,
                Ok(false) => self.is_unreadable = false,
                Err(Unreadable { path, reason }) => {
                    if !std::mem::replace(&mut self.is_unreadable, true) {
                        let file = path.display();
                        warn!(%file, reason, "cannot read a watched file; keeping the running configuration");
                    }
                }
            }
        }
    }

    async fn has_changed(&mut self) -> Result<bool, Unreadable> {
        let changed = self.changed_content().await;
        let unsettled = self.unsettled.take();
        self.next_look = Instant::now() + POLL_INTERVAL;
        let Some(content) = changed? else { return Ok(false) };
        if let Some(unsettled) = unsettled
            && !content.differ_from(&unsettled)?
        {
            return Ok(true);
        }
        self.unsettled = Some(content);
        self.next_look = Instant::now() + SETTLE_TIME;
        Ok(false)
    }

    async fn changed_content(&mut self) -> Result<Option<Inputs>, Unreadable> {
        let now = self.look(Inputs::stamps_now).await;
        if self.unchanged == now {
            return Ok(None);
        }
        let Some(content) = self.look(Inputs::read_again).await else { return Ok(None) };
        if !content.differ_from(&self.loaded)? && !self.is_held_back {
            self.unchanged = now;
            return Ok(None);
        }
        Ok(Some(content))
    }

    /// On a blocking thread: the file system may hang.
    async fn look<T: Send + 'static>(&self, look: fn(&Inputs) -> T) -> Option<T> {
        let inputs = Arc::clone(&self.loaded);
        spawn_blocking(move || look(&inputs)).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use tempfile::TempDir;
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    struct Watched {
        directory: TempDir,
        watch: FileWatch,
        /// What is loaded after a change.
        load: fn(&Path) -> Inputs,
    }

    impl Watched {
        fn new(directory: TempDir, load: fn(&Path) -> Inputs) -> Self {
            let watch = FileWatch::new(load(directory.path()));
            Self { directory, watch, load }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, name: &str, content: &str) {
            fs::write(self.path(name), content).unwrap();
        }

        /// Replaces a file or link by rename.
        fn link(&self, target: &str, name: &str) {
            symlink(target, self.path("..new")).unwrap();
            fs::rename(self.path("..new"), self.path(name)).unwrap();
        }

        async fn changes(&mut self) -> bool {
            let has_changed = timeout(POLL_INTERVAL * 3, self.watch.changed()).await.is_ok();
            if has_changed {
                self.watch.set_loaded((self.load)(self.directory.path()));
            }
            has_changed
        }
    }

    #[tokio::test(start_paused = true)]
    async fn g07_a_change_is_noticed_although_other_requests_interrupt_the_watch() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("c.yaml"), "one").unwrap();
        let mut watched = Watched::new(directory, one_file);
        watched.write("c.yaml", "two");
        let begun = Instant::now();
        while timeout(SETTLE_TIME / 2, watched.watch.changed()).await.is_err() {
            assert!(begun.elapsed() < POLL_INTERVAL * 3);
        }
    }

    fn one_file(directory: &Path) -> Inputs {
        let mut inputs = Inputs::default();
        let _ = inputs.read(&directory.join("c.yaml"));
        inputs
    }

    #[tokio::test(start_paused = true)]
    async fn g07_every_way_to_replace_a_file_is_noticed_once_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "one").unwrap();
        symlink("a", directory.path().join("..data")).unwrap();
        symlink("..data", directory.path().join("c.yaml")).unwrap();
        let mut watched = Watched::new(directory, one_file);
        assert!(!watched.changes().await, "unchanged");

        watched.write("a", "two");
        assert!(watched.changes().await, "written");
        assert!(!watched.changes().await, "once");
        watched.write("a", "two");
        assert!(!watched.changes().await, "the same content again");

        watched.write("b", "three");
        watched.link("b", "..data");
        assert!(watched.changes().await, "a link with a new target, as in a ConfigMap");

        watched.write("new", "four");
        fs::rename(watched.path("new"), watched.path("c.yaml")).unwrap();
        assert!(watched.changes().await, "replaced by rename, as editors do");

        fs::remove_file(watched.path("c.yaml")).unwrap();
        assert!(!watched.changes().await, "a missing file is not a change");
        watched.write("c.yaml", "five");
        assert!(watched.changes().await);

        watched.write("c.yaml", "six");
        watched.watch.set_loaded(one_file(watched.directory.path()));
        assert!(!watched.changes().await, "loaded for another reason, such as SIGHUP");
        watched.watch.set_held_back();
        assert!(!watched.changes().await, "held back");
        fs::remove_file(watched.path("c.yaml")).unwrap();
        watched.write("c.yaml", "six");
        assert!(watched.changes().await, "written again");

        // A file that is still growing is not loaded.
        let path = watched.path("c.yaml");
        let grows = async {
            for number in 0..20 {
                fs::write(&path, format!("{number}")).unwrap();
                sleep(SETTLE_TIME / 2).await;
            }
            Instant::now()
        };
        let ((), written) = tokio::join!(watched.watch.changed(), grows);
        assert!(written.elapsed() >= SETTLE_TIME / 2, "after the last write");
    }

    #[tokio::test(start_paused = true)]
    async fn g07_files_that_a_pattern_finds_are_noticed_as_they_come_change_and_go() {
        fn load(directory: &Path) -> Inputs {
            let mut inputs = one_file(directory);
            let _ = inputs.read_matching(directory, Path::new("routes.d/*.yaml"));
            let _ = inputs.read(&directory.join("list"));
            inputs
        }
        let directory = tempfile::tempdir().unwrap();
        for (path, content) in [("c.yaml", "main"), ("list", "10.0.0.0/8")] {
            fs::write(directory.path().join(path), content).unwrap();
        }
        let mut watched = Watched::new(directory, load);
        fs::create_dir(watched.path("routes.d")).unwrap();
        assert!(!watched.changes().await, "an empty directory");

        // As a ConfigMap is mounted.
        for version in ["..1", "..2"] {
            fs::create_dir(watched.path("routes.d").join(version)).unwrap();
            watched.write(&format!("routes.d/{version}/a.yaml"), version);
        }
        watched.link("..1", "routes.d/..data");
        watched.link("..data/a.yaml", "routes.d/a.yaml");
        assert!(watched.changes().await, "a first file");
        watched.link("..2", "routes.d/..data");
        assert!(watched.changes().await, "another version of the directory");
        watched.write("routes.d/.b.yaml.swp", "x");
        watched.write("routes.d/b.yaml~", "x");
        assert!(!watched.changes().await, "files of editors");
        watched.write("routes.d/b.yaml", "b");
        assert!(watched.changes().await, "one more");
        watched.link("missing", "routes.d/b.yaml");
        assert!(!watched.changes().await, "a link without a target");
        fs::remove_file(watched.path("routes.d/b.yaml")).unwrap();
        assert!(watched.changes().await, "one less");
        fs::remove_dir_all(watched.path("routes.d")).unwrap();
        assert!(watched.changes().await, "no more files");

        watched.write("list", "10.0.0.0/9");
        assert!(watched.changes().await, "another file");
        fs::remove_file(watched.path("list")).unwrap();
        assert!(!watched.changes().await, "a list that is gone");
        watched.write("c.yaml", "without the list");
        assert!(watched.changes().await, "no longer needed");
        watched.write("list", "10.0.0.0/9");
        assert!(watched.changes().await, "back");
        // It is broken when it is loaded: nothing changes until it is whole again.
        fs::create_dir(watched.path("routes.d")).unwrap();
        watched.link("missing", "routes.d/a.yaml");
        assert!(watched.changes().await, "a link without a target, for the first time");
        assert!(!watched.changes().await, "still without one");
        watched.write("routes.d/missing", "a");
        assert!(watched.changes().await, "its target");
    }
}
