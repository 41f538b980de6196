//! The Unix sockets of the configuration: `upgrade.socket`, at which a process that was started by anyone finds the running
//! one, and takes over from it, and `control`, at which operators change it.
//!
//! At an upgrade the listening sockets themselves are handed over, so that the same files serve all processes one after
//! another. Only the same user and root may connect, which both sides check.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;

use crate::relay::sys;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("{key}: {}: {reason}", path.display())]
pub(crate) struct SocketError {
    /// Of the configuration.
    key: &'static str,
    path: PathBuf,
    reason: String,
}

/// What was found at the path.
#[derive(Debug)]
pub(crate) enum Found {
    /// A process serves, and was connected to.
    Running(UnixStream),
    /// There was none; the next process will find this one.
    Nobody(UnixListener),
}

/// Connects to the process that serves at this path, or else listens there.
pub(crate) fn open(key: &'static str, path: &Path) -> Result<Found, SocketError> {
    open_unless(key, path, |_| false)
}

/// The same, but replaces the socket of a running process that no longer needs it (`is_left`).
pub(crate) fn open_unless(
    key: &'static str,
    path: &Path,
    is_left: impl FnOnce(&UnixStream) -> bool,
) -> Result<Found, SocketError> {
    find(path, is_left).map_err(|reason| SocketError { key, path: path.into(), reason })
}

/// Whether this socket is bound to the path, and its file still there.
pub(crate) fn is_at(socket: &UnixListener, path: &Path) -> bool {
    let is_bound = socket.local_addr().is_ok_and(|address| address.as_pathname().is_none_or(|bound| bound == path));
    is_bound && path.exists()
}

fn find(path: &Path, is_left: impl FnOnce(&UnixStream) -> bool) -> Result<Found, String> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let in_directory = |error: io::Error| format!("{}: {error}", directory.display());
    let remove = || fs::remove_file(path).map_err(|error| error.to_string());
    let locked = File::open(directory).map_err(in_directory)?;
    let mode = locked.metadata().map_err(in_directory)?.mode();
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        return Err(format!(
            "others may write to {} (mode {:o}), and could put a socket of their own there; expected mode 755 or less",
            directory.display(),
            mode & 0o7777
        ));
    }
    // Of several that find nobody, one listens. Released when it is closed.
    flock(&locked, FlockOperation::LockExclusive).map_err(|error| in_directory(error.into()))?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.to_string()),
        Ok(file) if !file.file_type().is_socket() => {
            return Err("exists and is not a socket; remove it, or set another path".into());
        }
        Ok(file) if file.uid() != geteuid().as_raw() && file.uid() != 0 => {
            return Err(format!("belongs to the user {}; expected the user of this process or root", file.uid()));
        }
        Ok(file) if file.mode() & 0o077 != 0 => {
            return Err(format!("others may connect to it (mode {:o}); expected mode 600", file.mode() & 0o7777));
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(stream) if Peer::of(&stream).map_err(|error| error.to_string())?.is_trusted() => {
                if !is_left(&stream) {
                    return Ok(Found::Running(stream));
                }
                remove()?;
            }
            Ok(_) => return Err("another user listens there".into()),
            // Its process has ended.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => remove()?,
            Err(error) => return Err(error.to_string()),
        },
    }
    // Others that connect before the mode is set are turned away by their user.
    let listener = UnixListener::bind(path).and_then(|listener| {
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    listener.map(Found::Nobody).map_err(|error| error.to_string())
}

/// Who is at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// User ID.
    pub(crate) user: u32,
    /// Process ID; `None` if it is in another PID namespace.
    pub(crate) process: Option<u32>,
}

impl Peer {
    pub(crate) fn of(stream: impl AsFd) -> io::Result<Self> {
        let (user, process) = sys::peer_credentials(stream)?;
        Ok(Self { user, process: Some(process).filter(|process| *process != 0) })
    }

    /// Whether it is the same user or root.
    pub(crate) fn is_trusted(self) -> bool {
        self.user == geteuid().as_raw() || self.user == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(path: &Path) -> String {
        match open("control", path) {
            Ok(found) => panic!("{found:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn h25_a_running_process_is_found_and_a_socket_that_was_left_behind_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("upgrade.sock");
        let Found::Nobody(listener) = open("upgrade.socket", &path).unwrap() else { panic!("somebody is there") };
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(matches!(open("upgrade.socket", &path).unwrap(), Found::Running(_)));
        drop(listener);
        assert!(matches!(open("upgrade.socket", &path).unwrap(), Found::Nobody(_)));
    }

    #[test]
    fn h25_what_is_not_ours_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("upgrade.sock");
        fs::write(&path, "a file").unwrap();
        assert!(reason(&path).ends_with("exists and is not a socket; remove it, or set another path"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
        fs::remove_file(&path).unwrap();

        let _listener = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        assert!(reason(&path).ends_with("others may connect to it (mode 666); expected mode 600"));
        fs::remove_file(&path).unwrap();

        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
        assert!(reason(&path).contains("(mode 777), and could put a socket of their own there"));
        assert!(!path.exists());
        assert!(reason(&directory.path().join("missing/upgrade.sock")).contains("No such file or directory"));
    }
}
