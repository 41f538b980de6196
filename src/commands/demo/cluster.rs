//! A stand-in for an API server, with a certificate authority of its own.

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

/// A cluster's certificate authority.
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

    /// What its clients and servers trust.
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

/// A running stand-in.
pub(super) struct Cluster {
    address: SocketAddr,
}

impl Cluster {
    /// Serves under `name`; only to the holder of `user`'s certificate, if one is given.
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
    // A failed handshake is the client's to tell.
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let client = match (shown, known) {
        (None, _) => "no certificate".to_owned(),
        (Some(shown), Some((certificate, name))) if *shown == certificate => name,
        (Some(_), _) => "a stranger".to_owned(),
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.uri().path(), cluster, &client);
        async { Ok::<_, Infallible>(response) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn answer(path: &str, cluster: &str, client: &str) -> Response<Full<Bytes>> {
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
