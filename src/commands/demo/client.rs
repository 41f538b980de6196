//! A client that verifies what it reaches.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rcgen::{Certificate, KeyPair};
use serde_json::Value;
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
    /// A fatal TLS alert.
    Alert(String),
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
    let result = match TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name)?, tcp).await {
        // With TLS 1.3 a server refuses a client's certificate only after the client has finished.
        Ok(stream) => get(stream, name, authority).await,
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(answer) => Ok(answer),
        Err(error) => {
            alert(&error).map(Answer::Alert).ok_or(error).with_context(|| format!("GET https://{name}/version"))
        }
    }
}

async fn get(stream: TlsStream<TcpStream>, name: &str, authority: &Authority) -> anyhow::Result<Answer> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get("/version").header("host", name).body(Empty::<Bytes>::new())?;
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        // The connection's own error says more than that the request was lost.
        Err(error) => return Err(driver.await?.err().unwrap_or(error).into()),
    };
    let body: Value = serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?;
    let field = |key: &str| body[key].as_str().map(ToOwned::to_owned).context("an answer without its fields");
    // That it is this name's and this authority's, the handshake has verified.
    let certificate = format!("{name}, by {} CA", authority.name());
    Ok(Answer::Body { cluster: field("cluster")?, seen: field("client")?, certificate })
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
