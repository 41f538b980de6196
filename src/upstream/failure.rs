//! Why an endpoint was not reached.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// No endpoint was reached.
#[derive(Debug, thiserror::Error)]
#[error("{tries} failed; {last}")]
pub(crate) struct ConnectError {
    /// The gravest of the failures.
    pub(crate) kind: Failure,
    /// How many names and addresses failed.
    pub(crate) tries: usize,
    /// The one that failed last with this kind, and how.
    pub(crate) last: String,
}

impl ConnectError {
    pub(super) fn none() -> Self {
        Self { kind: Failure::NoEndpoint, tries: 0, last: "no endpoint".into() }
    }

    pub(super) fn or(&mut self, kind: Failure, place: &dyn fmt::Display, error: &dyn fmt::Display) {
        self.tries += 1;
        if kind >= self.kind {
            self.kind = kind;
            self.last = format!("{place}: {error}");
        }
    }
}

/// Kinds of failure; a later one says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// There is no address to connect to.
    NoEndpoint,
    /// The address is one of our own listeners.
    Loop,
    /// This machine could not try: no descriptor, port, memory or address of that family.
    Local,
    /// The endpoint refused, or could not be reached.
    Refused,
    /// The endpoint did not answer.
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

/// What the error says, without its number.
pub(crate) fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_failure_is_told() {
        let mut failure = ConnectError::none();
        failure.or(Failure::TimedOut, &"a", &"slow");
        failure.or(Failure::Refused, &"b", &"closed");
        assert_eq!((failure.kind, failure.to_string().as_str()), (Failure::TimedOut, "2 failed; a: slow"));
        assert_eq!(plain(&Errno::CONNREFUSED.into()), "connection refused");
    }
}
