//! A client that verifies what it reaches.

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

/// Who a client says it is.
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

/// What became of a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// An answer, over a connection whose certificate was verified.
    Body { cluster: String, seen: String, certificate: String },
    /// A fatal TLS alert, and the certificate if one was seen and verified before.
    Alert { alert: String, certificate: Option<String> },
}

/// `GET /version` of `name` at `address`, trusting only the authority.
pub(super) async fn ask(
    address: SocketAddr,
    name: &'static str,
    authority: &Authority,
    identity: Option<&Identity>,
) -> anyhow::Result<Answer> {
    let builder = ClientConfig::builder().with_root_certificates(authority.roots()?);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivatePkcs8KeyDer::from(identity.key.serialize_der());
            builder.with_client_auth_cert(vec![identity.certificate().clone()], key.into())?
        }
    };
    let tcp = TcpStream::connect(address).await?;
    // That it is this name's and this authority's, the handshake verifies.
    let certificate = format!("{name}, by {} CA", authority.name());
    let stream = match TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name)?, tcp).await {
        Ok(stream) => stream,
        Err(error) => return refused(error.into(), None),
    };
    match get(stream, name).await {
        Ok((cluster, seen)) => Ok(Answer::Body { cluster, seen, certificate }),
        // With TLS 1.3 a server refuses a client's certificate only after the client has finished.
        Err(error) => refused(error, Some(certificate)),
    }
}

fn refused(error: anyhow::Error, certificate: Option<String>) -> anyhow::Result<Answer> {
    match alert(&error) {
        Some(alert) => Ok(Answer::Alert { alert, certificate }),
        None => Err(error),
    }
}

/// The cluster that answered, and whom it saw.
async fn get(mut stream: TlsStream<TcpStream>, name: &str) -> anyhow::Result<(String, String)> {
    let request = format!("GET /version HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
    // A server that has refused us closes: the write then fails, and the alert is still to be read.
    let written = stream.write_all(request.as_bytes()).await;
    let mut response = String::new();
    stream.read_to_string(&mut response).await?;
    written?;
    let (_, body) = response.split_once("\r\n\r\n").context("an answer without a body")?;
    let body: Value = serde_json::from_str(body)?;
    let field = |key: &str| body[key].as_str().map(ToOwned::to_owned).context("an answer without its fields");
    Ok((field("cluster")?, field("client")?))
}

/// The alert that ended the connection, if one did.
fn alert(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        let io_error = cause.downcast_ref::<io::Error>()?;
        match io_error.get_ref()?.downcast_ref()? {
            rustls::Error::AlertReceived(alert) => Some(format!("{alert:?}")),
            _ => None,
        }
    })
}
