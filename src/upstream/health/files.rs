//! Files that checks need, each read by one thread at a time, beside all that has a deadline: a file system that hangs
//! costs a thread per file, and no endpoint its state.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tracing::{info, warn};

use super::authorities::Authorities;

/// Checks that begin within this time after a file was read share what it contained.
const FRESH: Duration = Duration::from_millis(900);

/// A file that takes longer is reported, and its last content is used.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// How long reading may take while a configuration is loaded: the file is refused then.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Threads that read; when all hang, nothing more is read.
pub(crate) const MAX_READERS: usize = 32;

/// No certificate, key or token is larger.
const MAX_SIZE: u64 = 4 << 20;

pub(super) type Bytes = Arc<[u8]>;

/// What is read again and again, and may take for ever.
#[derive(Debug)]
struct Slow<T> {
    what: String,
    known: Mutex<Content<T>>,
    done: Notify,
}

#[derive(Debug)]
struct Content<T> {
    last: Option<Result<T, String>>,
    last_good: Option<T>,
    read_at: Option<Instant>,
    is_reading: bool,
    hang_reported: bool,
}

/// The content of a file.
pub(super) async fn content(path: &Path) -> Result<Bytes, String> {
    static FILES: LazyLock<Mutex<HashMap<PathBuf, Arc<Slow<Bytes>>>>> = LazyLock::new(Mutex::default);
    let file = {
        let mut files = FILES.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Slow::new(path.display().to_string()));
        Arc::clone(files.entry(path.to_owned()).or_insert_with(new))
    };
    let path = path.to_owned();
    file.get(move || read_blocking(&path), |one, other| one == other).await
}

/// The CAs that this machine trusts.
pub(super) async fn system_authorities() -> Result<Arc<Authorities>, String> {
    static SYSTEM: LazyLock<Arc<Slow<Arc<Authorities>>>> =
        LazyLock::new(|| Arc::new(Slow::new("the system's CAs".into())));
    Arc::clone(&SYSTEM).get(Authorities::of_system, Arc::ptr_eq).await
}

/// Reads a file, for who can wait a moment; what is wrong with it, with its name.
pub(crate) fn read_file(path: &Path) -> Result<Bytes, String> {
    let hangs = || does_not_respond(path.display());
    let (sender, content) = mpsc::sync_channel(1);
    let from = path.to_owned();
    let reader = start_reader(move || drop(sender.send(read_blocking(&from)))).ok_or_else(hangs)?;
    let content = content.recv_timeout(LOAD_TIMEOUT).map_err(|_| hangs())?;
    // It has nothing left to do.
    let _ = reader.join();
    content
}

fn read_blocking(path: &Path) -> Result<Bytes, String> {
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_SIZE).read_to_end(&mut bytes)?;
        Ok(bytes.into())
    };
    read().map_err(|error: std::io::Error| format!("{}: {error}", path.display()))
}

fn does_not_respond(file: impl Display) -> String {
    format!("{file}: the file system does not respond")
}

/// `None`: too many readers hang.
fn start_reader(read: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    static READERS: Semaphore = Semaphore::const_new(MAX_READERS);
    let permit = READERS.try_acquire().ok()?;
    let run = move || {
        let _permit = permit;
        read();
    };
    std::thread::Builder::new().name("file".into()).stack_size(256 * 1024).spawn(run).ok()
}

impl<T: Clone + Send + 'static> Slow<T> {
    fn new(what: String) -> Self {
        let known = Content { last: None, last_good: None, read_at: None, is_reading: false, hang_reported: false };
        Self { what, known: Mutex::new(known), done: Notify::new() }
    }

    /// What was read a moment ago, or what is there now; while it cannot be read, what was there last.
    async fn get(
        self: Arc<Self>,
        read: impl FnOnce() -> Result<T, String> + Send + 'static,
        is_same: fn(&T, &T) -> bool,
    ) -> Result<T, String> {
        let done = self.done.notified();
        {
            let mut known = self.known();
            if let (Some(last), false) = (&known.last, known.is_reading)
                && known.read_at.is_some_and(|at| at.elapsed() < FRESH)
            {
                return last.clone();
            }
            if !known.is_reading {
                let file = Arc::clone(&self);
                known.is_reading = start_reader(move || file.finish(read(), is_same)).is_some();
            }
        }
        if timeout(READ_TIMEOUT, done).await.is_ok()
            && let Some(last) = &self.known().last
        {
            return last.clone();
        }
        let mut known = self.known();
        if !std::mem::replace(&mut known.hang_reported, true) {
            warn!(
                file = self.what,
                "cannot read a file of a health check: the file system does not respond; using its last content"
            );
        }
        known.last_good.clone().ok_or_else(|| does_not_respond(&self.what))
    }

    fn finish(&self, content: Result<T, String>, is_same: fn(&T, &T) -> bool) {
        let mut known = self.known();
        known.is_reading = false;
        known.read_at = Some(Instant::now());
        if std::mem::take(&mut known.hang_reported) {
            info!(file = self.what, "file of a health check can be read again");
        }
        // The same content stays the same value, so that nothing is parsed again.
        let content = content.map(|new| match &known.last_good {
            Some(last) if is_same(last, &new) => last.clone(),
            _ => new,
        });
        if let Ok(content) = &content {
            known.last_good = Some(content.clone());
        }
        known.last = Some(content);
        drop(known);
        self.done.notify_waiters();
    }

    fn known(&self) -> MutexGuard<'_, Content<T>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_hangs_is_read_once_and_its_last_content_is_used() {
        let file = Arc::new(Slow::<u32>::new("ca.pem".into()));
        let same = |one: &u32, other: &u32| one == other;
        assert_eq!(Arc::clone(&file).get(|| Ok(1), same).await, Ok(1));
        file.known().read_at = Some(Instant::now().checked_sub(2 * FRESH).unwrap());

        let (release, hang) = mpsc::channel::<()>();
        let read_late = move || {
            let _ = hang.recv();
            Ok(2)
        };
        assert_eq!(Arc::clone(&file).get(read_late, same).await, Ok(1), "what it was before");
        assert!(file.known().is_reading && file.known().hang_reported);
        let never = || panic!("one reader per file");
        assert_eq!(Arc::clone(&file).get(never, same).await, Ok(1));

        let answers = file.done.notified();
        drop(release);
        answers.await;
        assert_eq!(Arc::clone(&file).get(|| Ok(3), same).await, Ok(2), "read a moment ago");
        assert!(!file.known().hang_reported);
    }

    #[tokio::test]
    async fn a_file_that_never_answered_is_an_error_with_its_name() {
        let file = Arc::new(Slow::<u32>::new("ca.pem".into()));
        let (_release, hang) = mpsc::channel::<()>();
        let read_late = move || {
            let _ = hang.recv();
            Ok(2)
        };
        let error = file.get(read_late, |one, other| one == other).await.unwrap_err();
        assert_eq!(error, "ca.pem: the file system does not respond");
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_file_is_said_with_its_name() {
        let error = content(Path::new("/nowhere/ca.pem")).await.unwrap_err();
        assert!(error.starts_with("/nowhere/ca.pem: No such file"), "{error}");
    }
}
