//! A TLS client that verifies certificates as configured, and records what the server sends.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::certificate::EndpointCertificate;
use super::super::failure;
use super::TlsCheck;
use super::authorities::{Authorities, CaFile, not_pem, parse_certificates};
use super::files::{self, Bytes, read_file};
use super::verifier::{TrustedAuthorities, Verifier};
use crate::server_hello::alert_name;
use crate::text::escape::visible;
use crate::text::units::time;

/// What the files of a check contained.
#[derive(Clone, Debug)]
pub(super) struct Contents {
    ca: Option<Ca>,
    /// Certificate chain and key.
    client: Option<(Bytes, Bytes)>,
    pub(super) token: Option<Bytes>,
}

#[derive(Clone, Debug)]
enum Ca {
    Pem(Bytes),
    System(Arc<Authorities>),
}

impl Contents {
    /// Reads them here and now.
    pub(super) fn read(tls: &TlsCheck, token_file: Option<&Path>) -> Result<Self, String> {
        let ca = match &tls.ca_file {
            None => None,
            Some(CaFile::File(path)) => Some(Ca::Pem(read_file(path)?)),
            Some(CaFile::System) => Some(Ca::System(Authorities::of_system()?)),
        };
        let client = tls.client.as_ref().map(|(chain, key)| Ok::<_, String>((read_file(chain)?, read_file(key)?)));
        Ok(Self { ca, client: client.transpose()?, token: token_file.map(read_file).transpose()? })
    }

    /// The same, with one reader per file, from which nobody waits for long.
    pub(super) async fn fetch(tls: &TlsCheck, token_file: Option<&Path>) -> Result<Self, String> {
        let ca = match &tls.ca_file {
            None => None,
            Some(CaFile::File(path)) => Some(Ca::Pem(files::content(path).await?)),
            Some(CaFile::System) => Some(Ca::System(files::system_authorities().await?)),
        };
        let client = match &tls.client {
            None => None,
            Some((chain, key)) => Some((files::content(chain).await?, files::content(key).await?)),
        };
        let token = match token_file {
            None => None,
            Some(path) => Some(files::content(path).await?),
        };
        Ok(Self { ca, client, token })
    }

    /// Whether nothing has changed: the readers return the same value for the same content.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same = |one: &Option<Bytes>, other: &Option<Bytes>| match (one, other) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        let is_same_ca = match (&self.ca, &other.ca) {
            (None, None) => true,
            (Some(Ca::Pem(one)), Some(Ca::Pem(other))) => Arc::ptr_eq(one, other),
            (Some(Ca::System(one)), Some(Ca::System(other))) => Arc::ptr_eq(one, other),
            _ => false,
        };
        let client = |contents: &Self| contents.client.clone().unzip();
        let ((chain, key), (other_chain, other_key)) = (client(self), client(other));
        is_same_ca && same(&chain, &other_chain) && same(&key, &other_key) && same(&self.token, &other.token)
    }
}

/// Verifies as one check says, and remembers the certificate that it was shown last.
#[derive(Clone, Debug)]
pub(crate) struct TlsClient {
    config: Arc<ClientConfig>,
    verifier: Arc<Verifier>,
}

/// The result of a handshake.
#[derive(Debug)]
pub(crate) struct Handshake {
    /// The server's certificate, whether it was verified or not.
    pub(crate) certificate: Option<EndpointCertificate>,
    /// An error if the certificate could not be verified.
    pub(crate) stream: io::Result<TlsStream<TcpStream>>,
}

impl TlsClient {
    /// Reads the files of the check.
    pub(crate) fn read(tls: &TlsCheck) -> Result<Self, String> {
        Self::new(tls, &Contents::read(tls, None)?)
    }

    pub(super) fn new(tls: &TlsCheck, contents: &Contents) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let authorities = match (&contents.ca, &tls.ca_file) {
            (Some(Ca::Pem(pem)), Some(CaFile::File(path))) => Some(Arc::new(Authorities::of_pem(pem, path)?)),
            (Some(Ca::System(authorities)), _) => Some(Arc::clone(authorities)),
            _ => None,
        };
        let trust = match authorities.zip(tls.ca_file.as_ref()) {
            None => None,
            Some((authorities, from)) => {
                let roots = Arc::clone(&authorities.roots);
                let builder = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider));
                let chain = builder.build().map_err(|error| format!("{from}: {error}"))?;
                Some(TrustedAuthorities { authorities, chain })
            }
        };
        let verifier = Arc::new(Verifier {
            provider: Arc::clone(&provider),
            trust,
            name: tls.verified_name.clone(),
            shown: Mutex::default(),
        });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as _);
        let mut config = match tls.client.as_ref().zip(contents.client.as_ref()) {
            None => builder.with_no_client_auth(),
            Some(((chain, key), (chain_pem, key_pem))) => {
                let certificates = parse_certificates(chain_pem, chain)?;
                let secret = PrivateKeyDer::from_pem_slice(key_pem)
                    .map_err(|error| format!("{}: {}", key.display(), not_pem(&error)))?;
                let with = builder.with_client_auth_cert(certificates, secret);
                with.map_err(|error| format!("{}: {error}", chain.display()))?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), verifier })
    }

    /// Offers these ALPN protocols instead of HTTP/1.1.
    pub(crate) fn offering(mut self, protocols: Vec<Vec<u8>>) -> Self {
        Arc::make_mut(&mut self.config).alpn_protocols = protocols;
        self
    }

    /// Asks for this name; for none, if it is an address.
    pub(crate) async fn handshake(&self, name: ServerName<'static>, stream: TcpStream) -> Handshake {
        let stream = TlsConnector::from(Arc::clone(&self.config)).connect(name, stream).await;
        let certificate = self.verifier.take_shown().and_then(|der| EndpointCertificate::read(&der));
        Handshake { certificate, stream }
    }
}

/// Why TLS failed. Messages of rustls are long; the first sentence is enough.
pub(crate) fn tls_error_message(error: &io::Error) -> String {
    if error.raw_os_error().is_some() {
        return failure::error_message(error);
    }
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => return alert_message(*alert),
        Some(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            return format!("certificate, or that of an issuing CA, expired on {}", time(not_after.as_secs()));
        }
        Some(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) => {
            return format!("certificate not valid before {}; check the clocks", time(not_before.as_secs()));
        }
        _ => {}
    }
    let text = error.to_string();
    if text.contains("CaUsedAsEndEntity") {
        return "self-signed or CA certificate; it is only trusted if `ca_file` contains this certificate itself"
            .into();
    }
    visible(text.split("; ").next().unwrap_or(&text)).into_owned()
}

fn alert_message(alert: AlertDescription) -> String {
    use AlertDescription as Alert;
    let name = alert_name(alert.into()).map_or_else(|| format!("{alert:?}"), str::to_owned);
    match alert {
        Alert::CertificateRequired => {
            "client certificate required; set `client_certificate` and `client_key` in `health_check.http`".into()
        }
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA => {
            format!("client certificate of `health_check.http` missing or rejected (TLS alert {name})")
        }
        _ => format!("rejected with TLS alert {name}"),
    }
}
