//! Health checks of endpoints, and what is done about those that are dead.

mod authorities;
mod checks;
mod dead;
mod files;
mod probe;
mod state;
mod tls;
mod verifier;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::ServerName;

pub(crate) use self::authorities::{Authorities, CaFile};
pub(in crate::upstream) use self::checks::Subscription;
pub(crate) use self::checks::{Checks, MAX_CHECKS};
pub(in crate::upstream) use self::dead::attend;
pub(crate) use self::files::{MAX_READERS, read_file};
pub(crate) use self::probe::{check_once, read_token, request};
pub(crate) use self::state::HealthState;
pub(crate) use self::state::{ProbeResult, State, Thresholds};
pub(crate) use self::tls::{Handshake, TlsClient, said};

/// How an endpoint is asked whether it is ready. Without `tls`: whether it can be connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HealthCheck {
    /// From one to the next, give or take a tenth.
    pub(crate) interval: Duration,
    /// For one, from connecting to the answer.
    pub(crate) timeout: Duration,
    /// How many in a row change the state.
    pub(crate) thresholds: Thresholds,
    /// A TLS handshake.
    pub(crate) tls: Option<TlsCheck>,
    /// A request over that TLS.
    pub(crate) http: Option<HttpCheck>,
}

/// Whether the other end of TLS is who it should be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TlsCheck {
    /// The certificates that are trusted; `None`: all, nothing is verified.
    pub(crate) ca_file: Option<CaFile>,
    /// The name that the certificate must carry, too; `None`: any.
    pub(crate) verified_name: Option<ServerName<'static>>,
    /// The name that is asked for (SNI).
    pub(crate) asked_name: Option<ServerName<'static>>,
    /// Certificate chain and key that we show, both PEM.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HttpCheck {
    /// `/readyz`
    pub(crate) path: hyper::Uri,
    /// A bearer token.
    pub(crate) token_file: Option<PathBuf>,
    /// What counts as ready.
    pub(crate) expect: Vec<RangeInclusive<u16>>,
    /// Whether 401 and 403 mean that it is alive, which is all that can be known then.
    pub(crate) unauthorized_is_alive: bool,
}

/// How API servers say that they are ready.
pub(crate) const EXPECTED: RangeInclusive<u16> = 200..=200;

/// Whether a file has certificates that can be trusted: what is wrong with it, otherwise.
pub(crate) fn read_roots(path: &Path) -> Result<(), String> {
    Authorities::read(&CaFile::File(path.to_owned())).map(drop)
}
