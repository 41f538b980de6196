//! Why connecting to an upstream failed.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// No endpoint could be connected to.
#[derive(Debug, thiserror::Error)]
#[error("{tries} failed; {last}")]
pub(crate) struct ConnectError {
    /// The most significant failure.
    pub(crate) kind: Failure,
    /// How many hostnames and addresses failed.
    pub(crate) tries: usize,
    /// The last address that failed with this kind, and the error.
    pub(crate) last: String,
}

impl ConnectError {
    pub(super) fn none() -> Self {
        Self { kind: Failure::NoEndpoint, tries: 0, last: "no endpoint".into() }
    }

    /// Nothing was tried, for this reason.
    pub(super) fn add_reason(&mut self, reason: &str) {
        self.tries += 1;
        self.last = reason.into();
    }

    pub(super) fn add(&mut self, kind: Failure, endpoint: &dyn fmt::Display, error: &dyn fmt::Display) {
        self.tries += 1;
        if kind >= self.kind {
            self.kind = kind;
            self.last = format!("{endpoint}: {error}");
        }
    }
}

/// Kinds of failure, in ascending order of significance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// There is no address to connect to.
    NoEndpoint,
    /// The address is one of snigate's own listeners.
    Loop,
    /// A local error: no file descriptor, port, memory, or usable local address.
    Local,
    /// The endpoint refused the connection or was unreachable.
    Refused,
    /// The connection timed out.
    TimedOut,
}

impl Failure {
    pub(super) fn of(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(
                Errno::MFILE
                | Errno::NFILE
                | Errno::NOBUFS
                | Errno::NOMEM
                | Errno::ADDRNOTAVAIL
                | Errno::PERM
                | Errno::AFNOSUPPORT,
            ) => Self::Local,
            Some(Errno::TIMEDOUT) => Self::TimedOut,
            _ => Self::Refused,
        }
    }
}

/// The message of the error, without its number.
pub(crate) fn error_message(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_significant_failure_is_reported() {
        let mut failure = ConnectError::none();
        failure.add(Failure::TimedOut, &"a", &"slow");
        failure.add(Failure::Refused, &"b", &"closed");
        assert_eq!((failure.kind, failure.to_string().as_str()), (Failure::TimedOut, "2 failed; a: slow"));
        assert_eq!(error_message(&Errno::CONNREFUSED.into()), "connection refused");
    }
}
