//! A mock API server with its own certificate authority.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::client::Identity;

/// The CA of a cluster.
pub(super) struct Authority {
    name: &'static str,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new(name: &'static str) -> anyhow::Result<Self> {
        let mut parameters = CertificateParams::new([])?;
        parameters.distinguished_name.push(DnType::CommonName, format!("{name} CA"));
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        Ok(Self { name, issuer: CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)? })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(super) fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone())?;
        Ok(roots)
    }

    pub(super) fn issue_client(&self, user: &str) -> anyhow::Result<Identity> {
        let mut parameters = CertificateParams::new([])?;
        parameters.distinguished_name.push(DnType::CommonName, user);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok(Identity::new(user, parameters.signed_by(&key, &self.issuer)?, key))
    }

    fn issue_server(&self, name: &str) -> anyhow::Result<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
        let mut parameters = CertificateParams::new([name.into()])?;
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?;
        Ok((certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }
}

pub(super) struct Cluster {
    address: SocketAddr,
}

impl Cluster {
    /// Starts a server with a certificate for `name`; with `user`, it requires a client certificate of this CA.
    pub(super) async fn start(authority: &Authority, name: &str, user: Option<&Identity>) -> anyhow::Result<Self> {
        let (certificate, key) = authority.issue_server(name)?;
        let builder = ServerConfig::builder();
        let builder = match user {
            Some(_) => {
                let verifier = WebPkiClientVerifier::builder(Arc::new(authority.roots()?)).build()?;
                builder.with_client_cert_verifier(verifier)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(vec![certificate], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];

        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let known = user.map(|user| (user.certificate().clone(), user.name().to_owned()));
        let cluster = authority.name();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(acceptor.clone(), stream, cluster, known.clone()));
            }
        });
        Ok(Self { address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    cluster: &'static str,
    known: Option<(CertificateDer<'static>, String)>,
) {
    // The client reports a failed handshake.
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let presented = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let client = match (presented, known) {
        (None, _) => "anonymous".to_owned(),
        (Some(presented), Some((certificate, name))) if *presented == certificate => name,
        (Some(_), _) => "another user".to_owned(),
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(request.uri().path(), cluster, &client);
        async { Ok::<_, Infallible>(response) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn respond(path: &str, cluster: &str, client: &str) -> Response<Full<Bytes>> {
    let body = match path {
        "/readyz" => "ok".into(),
        "/version" => {
            serde_json::json!({ "gitVersion": "v1.34.0-demo", "cluster": cluster, "client": client }).to_string()
        }
        _ => {
            let mut response = Response::new(Full::new("try /version or /readyz\n".into()));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
    };
    Response::new(Full::new((body + "\n").into()))
}
