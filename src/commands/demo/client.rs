//! A client that verifies the server certificate.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use rcgen::{Certificate, KeyPair};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig};

use super::cluster::Authority;

/// A client certificate and its key.
pub(super) struct Identity {
    name: String,
    certificate: Certificate,
    key: KeyPair,
}

impl Identity {
    pub(super) fn new(name: &str, certificate: Certificate, key: KeyPair) -> Self {
        Self { name: name.into(), certificate, key }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        self.certificate.der()
    }

    pub(super) fn certificate_pem(&self) -> String {
        self.certificate.pem()
    }

    pub(super) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

/// The result of a request.
#[derive(Debug)]
pub(super) enum VersionResult {
    Success {
        cluster: String,
        authenticated_as: String,
        certificate: String,
    },
    /// A fatal TLS alert, and the server certificate if it was verified before.
    Alert {
        alert: String,
        certificate: Option<String>,
    },
}

/// Requests `GET /version` from `name` at `address`, trusting only this CA.
pub(super) async fn get_version(
    address: SocketAddr,
    name: &'static str,
    authority: &Authority,
    identity: Option<&Identity>,
) -> anyhow::Result<VersionResult> {
    let builder = ClientConfig::builder().with_root_certificates(authority.roots()?);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivatePkcs8KeyDer::from(identity.key.serialize_der());
            builder.with_client_auth_cert(vec![identity.certificate().clone()], key.into())?
        }
    };
    let tcp = TcpStream::connect(address).await?;
    // The handshake verifies both.
    let certificate = format!("{name}, issued by {} CA", authority.name());
    let stream = match TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name)?, tcp).await {
        Ok(stream) => stream,
        Err(error) => return alert_or_error(error.into(), None),
    };
    match get(stream, name).await {
        Ok((cluster, authenticated_as)) => Ok(VersionResult::Success { cluster, authenticated_as, certificate }),
        // In TLS 1.3 a server refuses a client certificate only after the client's handshake is complete.
        Err(error) => alert_or_error(error, Some(certificate)),
    }
}

fn alert_or_error(error: anyhow::Error, certificate: Option<String>) -> anyhow::Result<VersionResult> {
    match alert(&error) {
        Some(alert) => Ok(VersionResult::Alert { alert, certificate }),
        None => Err(error),
    }
}

/// The cluster that responded, and the client that it authenticated.
async fn get(mut stream: TlsStream<TcpStream>, name: &str) -> anyhow::Result<(String, String)> {
    let request = format!("GET /version HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
    // If the server refuses the client, the write may fail before its alert is read.
    let written = stream.write_all(request.as_bytes()).await;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    written?;
    let (_, body) = response.split_once("\r\n\r\n").context("response without a body")?;
    let body: Value = serde_json::from_str(body)?;
    let field = |key: &str| body[key].as_str().map(ToOwned::to_owned).context("response without the expected fields");
    Ok((field("cluster")?, field("client")?))
}

/// The TLS alert that closed the connection, if any.
fn alert(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        let io_error = cause.downcast_ref::<io::Error>()?;
        match io_error.get_ref()?.downcast_ref()? {
            rustls::Error::AlertReceived(alert) => Some(format!("{alert:?}")),
            _ => None,
        }
    })
}
