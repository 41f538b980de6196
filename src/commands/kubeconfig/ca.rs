//! How kubectl verifies the API server.

use std::fmt::Write as _;
use std::path::Path;

use crate::config::Route;
use crate::upstream::health::{Authorities, CaFile};
use anyhow::bail;
use data_encoding::BASE64;
use serde_yaml::Value;

use super::existing::Existing;
use crate::cli::Kubeconfig;

#[derive(Debug)]
pub(super) enum ClusterCa {
    /// `certificate-authority-data`: PEM in base64.
    Data(String),
    /// The CAs of the system that kubectl runs on.
    System,
    /// `insecure-skip-tls-verify`
    SkipVerify,
}

impl ClusterCa {
    pub(super) fn select(options: &Kubeconfig, route: &Route, existing: Option<&Existing>) -> anyhow::Result<Self> {
        let check = route.upstream.health_check.as_ref();
        let ca_file = check.and_then(|check| check.tls.as_ref()?.ca_file.as_ref());
        let file = options.ca.clone().map(CaFile::File).or(ca_file.cloned());
        match (file, existing) {
            _ if options.insecure_skip_tls_verify => Ok(Self::SkipVerify),
            (Some(CaFile::System), _) => Ok(Self::System),
            (Some(CaFile::File(file)), _) => Self::read(&file),
            (None, Some(existing)) => existing.ca(),
            (None, None) => bail!(
                "no CA for the route `{}`: API servers do not send theirs, so it cannot be fetched; expected --ca FILE, \
                 `health_check: {{tls: {{ca_file: FILE}}}}` in its `upstream`, or --insecure-skip-tls-verify",
                route.name
            ),
        }
    }

    /// Only the certificates, as the file may also have a private key.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let authorities = Authorities::read(&CaFile::File(path.to_owned())).map_err(anyhow::Error::msg)?;
        let mut pem = String::new();
        for certificate in &authorities.certificates {
            let text = BASE64.encode(certificate);
            pem.push_str("-----BEGIN CERTIFICATE-----\n");
            for line in text.as_bytes().chunks(64) {
                writeln!(pem, "{}", String::from_utf8_lossy(line))?;
            }
            pem.push_str("-----END CERTIFICATE-----\n");
        }
        Ok(Self::Data(BASE64.encode(pem.as_bytes())))
    }

    /// The key and the value in the kubeconfig.
    pub(super) fn entry(self) -> Option<(Value, Value)> {
        match self {
            Self::Data(data) => Some(("certificate-authority-data".into(), data.into())),
            Self::System => None,
            Self::SkipVerify => Some(("insecure-skip-tls-verify".into(), true.into())),
        }
    }
}
