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
pub(in crate::upstream) use self::checks::CheckSubscription;
pub(crate) use self::checks::{Checks, MAX_CHECKS};
pub(in crate::upstream) use self::dead::watch_dead;
pub(crate) use self::files::{MAX_READERS, read_file};
pub(crate) use self::probe::{check_once, read_token, request};
pub(crate) use self::state::HealthState;
pub(crate) use self::state::{EndpointState, ProbeResult, Thresholds};
pub(crate) use self::tls::{Handshake, TlsClient, tls_error_message};

/// How an endpoint is asked whether it is ready. Without `tls`: whether it can be connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HealthCheck {
    /// Time between checks, with 10% jitter.
    pub(crate) interval: Duration,
    /// For a whole check.
    pub(crate) timeout: Duration,
    pub(crate) thresholds: Thresholds,
    pub(crate) tls: Option<TlsCheck>,
    /// The request to send over that TLS connection.
    pub(crate) http: Option<HttpCheck>,
}

/// The TLS part of a health check.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TlsCheck {
    /// The trusted certificates; `None`: nothing is verified.
    pub(crate) ca_file: Option<CaFile>,
    /// The name that the certificate must be valid for; `None`: any.
    pub(crate) verified_name: Option<ServerName<'static>>,
    /// The name to send as SNI.
    pub(crate) asked_name: Option<ServerName<'static>>,
    /// Client certificate chain and key, both PEM files.
    pub(crate) client: Option<(PathBuf, PathBuf)>,
}

/// The HTTP part of a health check.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HttpCheck {
    /// Such as `/readyz`.
    pub(crate) path: hyper::Uri,
    /// File with a bearer token.
    pub(crate) token_file: Option<PathBuf>,
    /// Statuses that count as ready.
    pub(crate) expect: Vec<RangeInclusive<u16>>,
    /// Whether 401 and 403 count as ready: the server is alive, and no more can be known.
    pub(crate) unauthorized_is_alive: bool,
}

/// The status of a ready API server.
pub(crate) const EXPECTED: RangeInclusive<u16> = 200..=200;

/// Whether a file has certificates that can be trusted: what is wrong with it, otherwise.
pub(crate) fn read_roots(path: &Path) -> Result<(), String> {
    Authorities::read(&CaFile::File(path.to_owned())).map(drop)
}
