//! TLS clients and servers of rustls.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::{Backend, PATIENCE};

/// A certificate authority.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub struct Issued {
    pub certificate: CertificateDer<'static>,
    pub key: KeyPair,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        Self::called("test CA")
    }

    pub fn called(name: &str) -> Self {
        let mut parameters = CertificateParams::new([]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap())
    }

    pub fn issue(&self, name: &str) -> Issued {
        self.issue_with(name, |_| {})
    }

    /// One for all of these names.
    pub fn issue_for(&self, names: &[String]) -> Issued {
        self.issue_with(&names[0], |parameters| {
            let alternatives = CertificateParams::new(names).unwrap().subject_alt_names;
            parameters.subject_alt_names = alternatives;
        })
    }

    /// One that was valid in 2020.
    pub fn issue_expired(&self, name: &str) -> Issued {
        self.issue_with(name, |parameters| {
            parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
        })
    }

    /// One that expires so many days from now.
    pub fn issue_for_days(&self, name: &str, days: u64) -> Issued {
        let day = std::time::Duration::from_secs(24 * 3600);
        self.issue_with(name, |parameters| {
            parameters.not_after = (std::time::SystemTime::now() + day * u32::try_from(days).unwrap()).into();
        })
    }

    /// One that is valid from this year on.
    pub fn issue_from(&self, name: &str, year: i32) -> Issued {
        self.issue_with(name, |parameters| parameters.not_before = rcgen::date_time_ymd(year, 1, 1))
    }

    fn issue_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Issued {
        let mut parameters = CertificateParams::new([name.to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        change(&mut parameters);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        Issued { certificate: certificate.der().clone(), pem: certificate.pem(), key }
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }

    /// Writes the authority's certificate; its path.
    pub fn write(&self, directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, self.0.pem()).unwrap();
        path
    }
}

impl Issued {
    /// Writes certificate and key; their paths.
    pub fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (directory.join(format!("{name}.pem")), directory.join(format!("{name}-key.pem")));
        std::fs::write(&certificate, &self.pem).unwrap();
        std::fs::write(&key, self.key.serialize_pem()).unwrap();
        (certificate, key)
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

/// An HTTPS server that answers every request with its name. With `wants_client`, only to clients that hold a
/// certificate of the authority.
pub fn serve(authority: &Authority, name: &str, wants_client: bool) -> Backend {
    let config = server_config(&authority.issue(name), wants_client.then_some(authority));
    let body = format!("{{\"gitVersion\":\"{name}\"}}");
    Backend::start(move |stream| {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        if read_head(&mut stream).is_some() {
            respond(stream, 200, &body);
        }
    })
}

/// Shows this certificate; lets in only clients that hold one of the authority, if one is given.
pub fn server_config(issued: &Issued, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => builder
            .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(authority.roots())).build().unwrap()),
    };
    Arc::new(builder.with_single_cert(vec![issued.certificate.clone()], issued.key()).unwrap())
}

/// The head of a request, unless the client goes before it is whole.
pub fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8(head).unwrap())
}

/// Answers, and waits until the client has closed.
pub fn respond(mut stream: StreamOwned<ServerConnection, TcpStream>, status: u16, body: &str) {
    let head = "content-type: application/json\r\nconnection: close";
    let _ = write!(stream, "HTTP/1.1 {status} x\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.conn.send_close_notify();
    let _ = stream.flush();
    let _ = stream.read_to_end(&mut Vec::new());
}

/// A verified `GET` through the router: what was answered, or the TLS error.
pub fn get(
    router: SocketAddr,
    authority: &Authority,
    name: &'static str,
    identity: Option<&Issued>,
) -> Result<String, String> {
    get_over(TcpStream::connect(router).unwrap(), authority, name, identity)
}

/// The same over this connection.
pub fn get_over(
    tcp: TcpStream,
    authority: &Authority,
    name: &'static str,
    identity: Option<&Issued>,
) -> Result<String, String> {
    let builder = ClientConfig::builder().with_root_certificates(authority.roots());
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some(issued) => builder.with_client_auth_cert(vec![issued.certificate.clone()], issued.key()).unwrap(),
    };
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let connection = ClientConnection::new(Arc::new(config), ServerName::try_from(name).unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, tcp);
    let request = format!("GET /version HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
    let mut response = String::new();
    if let Err(error) = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut response)) {
        return Err(alert(&mut stream).unwrap_or_else(|| error.to_string()));
    }
    Ok(response.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// What a server that has refused us said before it closed. Its close makes our writes fail, and rustls reads only after
/// it has written.
fn alert(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> Option<String> {
    loop {
        if let Err(error) = stream.conn.process_new_packets() {
            return Some(error.to_string());
        }
        if stream.conn.read_tls(&mut stream.sock).ok()? == 0 {
            return None;
        }
    }
}

/// The hello that rustls sends for this name.
pub fn rustls_hello(name: &'static str) -> Vec<u8> {
    let config = ClientConfig::builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from(name).unwrap()).unwrap();
    let mut hello = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut hello).unwrap();
    }
    hello
}
