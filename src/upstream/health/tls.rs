//! A TLS client that verifies certificates as configured, and records what the server sends.

use std::io;
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
use super::authorities::{Authorities, not_pem, read_certificates};
use super::verifier::{TrustedAuthorities, Verifier};
use crate::server_hello::alert_name;
use crate::text::escape::visible;
use crate::text::units::time;

/// For one handshake only, because files are renewed in place.
#[derive(Debug)]
pub(crate) struct TlsClient {
    config: ClientConfig,
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
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let trust = match &tls.ca_file {
            None => None,
            Some(from) => {
                let authorities = Authorities::read(from)?;
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
        let mut config = match &tls.client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let certificates = read_certificates(chain)?;
                let secret = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| format!("{}: {}", key.display(), not_pem(&error)))?;
                let with = builder.with_client_auth_cert(certificates, secret);
                with.map_err(|error| format!("{}: {error}", chain.display()))?
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { config, verifier })
    }

    /// Offers these ALPN protocols instead of HTTP/1.1.
    pub(crate) fn offering(mut self, protocols: Vec<Vec<u8>>) -> Self {
        self.config.alpn_protocols = protocols;
        self
    }

    /// Makes the handshake. `name` is sent as SNI, unless it is an IP address.
    pub(crate) async fn handshake(self, name: ServerName<'static>, stream: TcpStream) -> Handshake {
        let stream = TlsConnector::from(Arc::new(self.config)).connect(name, stream).await;
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
