//! Whom kubectl believes.

use std::fmt::Write as _;
use std::path::Path;

use crate::config::Route;
use crate::upstream::health::{Authorities, CaFile};
use anyhow::bail;
use data_encoding::BASE64;
use serde_yaml::Value;

use super::existing::Existing;
use crate::cli::Kubeconfig;

/// Whom kubectl believes.
#[derive(Debug)]
pub(super) enum Trust {
    /// Whom these certificates vouch for: PEM in base64.
    Authority(String),
    /// Whom the CAs of its own system vouch for.
    System,
    Anyone,
}

impl Trust {
    pub(super) fn choose(options: &Kubeconfig, route: &Route, existing: Option<&Existing>) -> anyhow::Result<Self> {
        let check = route.upstream.health_check.as_ref();
        let ca_file = check.and_then(|check| check.tls.as_ref()?.ca_file.as_ref());
        let from = options.ca.clone().map(CaFile::File).or(ca_file.cloned());
        match (from, existing) {
            _ if options.insecure_skip_tls_verify => Ok(Self::Anyone),
            (Some(CaFile::System), _) => Ok(Self::System),
            (Some(CaFile::File(file)), _) => Self::in_file(&file),
            (None, Some(existing)) => existing.trust(),
            (None, None) => bail!(
                "no CA for the route `{}`: API servers do not send theirs, so it cannot be asked for; expected --ca FILE, \
                 `health_check: {{tls: {{ca_file: FILE}}}}` in its `upstream`, or --insecure-skip-tls-verify",
                route.name
            ),
        }
    }

    /// The certificates alone: there may be a key beside them.
    pub(super) fn in_file(path: &Path) -> anyhow::Result<Self> {
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
        Ok(Self::Authority(BASE64.encode(pem.as_bytes())))
    }

    /// The key and the value that say so.
    pub(super) fn entry(self) -> Option<(Value, Value)> {
        match self {
            Self::Authority(data) => Some(("certificate-authority-data".into(), data.into())),
            Self::System => None,
            Self::Anyone => Some(("insecure-skip-tls-verify".into(), true.into())),
        }
    }
}
