//! The trusted certificates of a check.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};

use super::files::read_file;

/// Where they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CaFile {
    /// A PEM file.
    File(PathBuf),
    /// The CAs that this machine trusts.
    System,
}

impl fmt::Display for CaFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::System => f.write_str("the CAs of this system"),
        }
    }
}

/// The trusted certificates, at least one.
#[derive(Debug)]
pub(crate) struct Authorities {
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// The certificates as trust anchors.
    pub(super) roots: Arc<RootCertStore>,
}

impl Authorities {
    /// Reads the certificates.
    pub(crate) fn read(from: &CaFile) -> Result<Arc<Self>, String> {
        match from {
            CaFile::File(path) => Self::of_file(path).map(Arc::new),
            CaFile::System => Self::of_system(),
        }
    }

    fn of_file(path: &Path) -> Result<Self, String> {
        Self::of_pem(&read_file(path)?, path)
    }

    /// Reads them from the content of this file.
    pub(super) fn of_pem(pem: &[u8], path: &Path) -> Result<Self, String> {
        let certificates = parse_certificates(pem, path)?;
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(Self { certificates, roots: Arc::new(roots) })
    }

    /// There are hundreds, in as many files, and they change with the updates of the machine.
    pub(super) fn of_system() -> Result<Arc<Self>, String> {
        const CACHE_TIME: Duration = Duration::from_secs(60);
        static LAST: Mutex<Option<(Instant, Arc<Authorities>)>> = Mutex::new(None);
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, authorities)) = last.as_ref().filter(|(read, _)| read.elapsed() < CACHE_TIME) {
            return Ok(Arc::clone(authorities));
        }
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(found.certs.iter().cloned());
        if usable == 0 {
            let why = found.errors.first().map_or(String::new(), |error| format!(": {error}"));
            return Err(format!("no CA found on this system (SSL_CERT_FILE, SSL_CERT_DIR, /etc/ssl/certs){why}"));
        }
        let authorities = Arc::new(Self { certificates: found.certs, roots: Arc::new(roots) });
        *last = Some((Instant::now(), Arc::clone(&authorities)));
        Ok(authorities)
    }

    /// Whether it contains this certificate.
    pub(super) fn has(&self, certificate: &CertificateDer<'_>) -> bool {
        self.certificates.iter().any(|one| **one == **certificate)
    }
}

/// At least one, from the content of this file.
pub(super) fn parse_certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|error| format!("{}: {}", path.display(), not_pem(&error)))?;
    if certificates.is_empty() {
        return Err(format!("{}: no certificate found; expected PEM (-----BEGIN CERTIFICATE-----)", path.display()));
    }
    Ok(certificates)
}

/// Does not quote the file, which may contain a key.
pub(super) fn not_pem(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        _ => "invalid PEM, or not the expected content".into(),
    }
}
