//! One health check: connect, and as far as it is asked for, TLS and a request.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::super::certificate::Certificate;
use super::super::failure::{self, Failure};
use super::super::local_address;
use super::state::ProbeResult;
use super::tls::{Handshake, TlsClient, said};
use super::{HealthCheck, HttpCheck, TlsCheck};
use crate::proxy_protocol;
use crate::relay;
use crate::text::units::span;

/// The most of an answer that is read: `/readyz` names the checks that failed.
const MAX_ANSWER: usize = 16 * 1024;

/// What a check has brought.
#[derive(Debug)]
pub(crate) struct Answer {
    /// An error is our own: there was no check.
    pub(crate) result: Result<ProbeResult, String>,
    /// As it was shown, whatever is to be thought of it.
    pub(crate) certificate: Option<Certificate>,
    /// What the operator should know although it is no failure.
    pub(crate) note: Option<&'static str>,
}

/// Asks once. All of it has one deadline. `header`: how the endpoint wants to be told who is there, if it does.
pub(crate) async fn ask_once(
    address: SocketAddr,
    check: &HealthCheck,
    header: Option<proxy_protocol::Version>,
) -> Answer {
    let mut answer = Answer { result: Ok(ProbeResult::Ready), certificate: None, note: None };
    let mut is_connected = false;
    let result = timeout(check.timeout, ask(address, check, header, &mut answer, &mut is_connected)).await;
    let late = |_| {
        let within = span(check.timeout);
        Err(Ok(if is_connected {
            // Its kernel is there, and with it perhaps the connections it has.
            ProbeResult::Wrong(format!("connected, but no answer within {within}"))
        } else {
            ProbeResult::Unreachable(format!("connect: no answer within {within}"))
        }))
    };
    if let Err(result) = result.unwrap_or_else(late) {
        answer.result = result;
    }
    answer
}

type End = Result<ProbeResult, String>;

async fn ask(
    address: SocketAddr,
    check: &HealthCheck,
    header: Option<proxy_protocol::Version>,
    answer: &mut Answer,
    is_connected: &mut bool,
) -> Result<(), End> {
    let credentials = credentials(check).await?;
    // Not as connections are: their handshake waits for the first bytes, and a check may have none.
    let connected = TcpStream::connect(address).await;
    let connected = connected.and_then(|stream| local_address(&stream, address).map(|_| stream));
    let mut stream = connected.map_err(|error| match Failure::of(&error) {
        Failure::Local => Err(error.to_string()),
        _ => Ok(ProbeResult::Unreachable(format!("connect: {}", failure::plain(&error)))),
    })?;
    *is_connected = true;
    // Checks are many: their ends should not wait in TIME_WAIT.
    relay::reset_on_close(&stream);
    if let Some(version) = header {
        let sent = stream.write_all(&proxy_protocol::header(version, None)).await;
        sent.map_err(|error| Ok(ProbeResult::Wrong(format!("PROXY header: {}", failure::plain(&error)))))?;
    }
    let (Some(tls), Some(credentials)) = (&check.tls, credentials) else { return Ok(()) };
    let name = tls.asked_name.clone().unwrap_or_else(|| ServerName::from(address.ip()));
    let host = tls.asked_name.as_ref().map_or_else(|| address.to_string(), |name| name.to_str().into_owned());
    let Handshake { certificate, stream } = credentials.client.handshake(name, stream).await;
    answer.certificate = certificate;
    let stream = stream.map_err(|error| Ok(ProbeResult::Wrong(format!("TLS: {}", said(&error)))))?;
    let Some(http) = &check.http else { return Ok(()) };
    answer.note = request(stream, &host, http, credentials.token).await.map_err(Ok)?;
    Ok(())
}

/// What is read from files for every check: certificates and tokens are renewed under the same names.
struct Credentials {
    client: TlsClient,
    token: Option<HeaderValue>,
}

impl Credentials {
    fn read(tls: &TlsCheck, token_file: Option<&Path>) -> Result<Self, String> {
        Ok(Self { client: TlsClient::read(tls)?, token: token_file.map(read_token).transpose()? })
    }
}

/// On a thread where a file system that hangs holds up nobody else. What is wrong with our own files is not the
/// endpoint's fault.
async fn credentials(check: &HealthCheck) -> Result<Option<Credentials>, End> {
    let Some(tls) = check.tls.clone() else { return Ok(None) };
    let token_file = check.http.as_ref().and_then(|http| http.token_file.clone());
    let read = tokio::task::spawn_blocking(move || Credentials::read(&tls, token_file.as_deref())).await;
    read.map_err(|error| Err(error.to_string()))?.map(Some).map_err(Err)
}

/// Asks over this connection; what the operator should know although it is no failure.
pub(crate) async fn request(
    stream: TlsStream<TcpStream>,
    host: &str,
    http: &HttpCheck,
    token: Option<HeaderValue>,
) -> Result<Option<&'static str>, ProbeResult> {
    // What is behind it says more: an alert, for one, where a certificate of ours is wanted.
    let wrong = |error: &dyn Error| {
        let cause = error.source();
        let of_tls = cause.and_then(|cause| cause.downcast_ref()).filter(|error| is_of_tls(error));
        ProbeResult::Wrong(match (of_tls, cause) {
            (Some(error), _) => format!("TLS: {}", said(error)),
            (_, Some(cause)) => format!("HTTP: {error}: {cause}"),
            (_, None) => format!("HTTP: {error}"),
        })
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| wrong(&error))?;
    let mut request = Request::get(http.path.clone())
        .header(HOST, host)
        .header(USER_AGENT, concat!("snigate/", env!("CARGO_PKG_VERSION"), " (health check)"));
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, token);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| wrong(&error))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| wrong(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        Ok((status, body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
    };
    let mut exchange = pin!(exchange);
    let (status, body) = tokio::select! {
        biased;
        result = &mut exchange => result?,
        // The last bytes may have come with the end.
        _ = connection => exchange.await?,
    };
    match status {
        status if http.expect.iter().any(|range| range.contains(&status.as_u16())) => Ok(None),
        StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE => {
            Err(ProbeResult::Unready(format!("{} {}{}", http.path, status.as_u16(), failed_checks(&body))))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if http.unauthorized_is_alive => Ok(Some(
            "it is alive, but does not say whether it is ready: anonymous requests are not allowed; set `token_file` or `client_certificate`",
        )),
        _ => Err(ProbeResult::Wrong(format!("{} {}", http.path, status.as_u16()))),
    }
}

fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<rustls::Error>)
}

/// The header that carries the token in this file.
pub(crate) fn read_token(path: &Path) -> Result<HeaderValue, String> {
    let token = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let value = HeaderValue::try_from(format!("Bearer {}", token.trim()));
    // What is in the file is not for the log, not even if it is no token.
    let mut value = value.map_err(|_| format!("{}: not a token", path.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// An API server says which of its checks failed in lines such as `[-]etcd failed: reason withheld`.
fn failed_checks(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let failed = text.lines().filter_map(|line| line.strip_prefix("[-]")?.split(' ').next());
    let failed: Vec<String> = failed.take(5).map(|name| name.chars().take(64).collect()).collect();
    if failed.is_empty() { String::new() } else { format!(": {}", failed.join(", ").escape_debug()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unready_api_server_says_why() {
        let body =
            b"[+]ping ok\n[-]etcd failed: reason withheld\n[-]shutdown failed: reason withheld\nreadyz check failed\n";
        assert_eq!(failed_checks(body), ": etcd, shutdown");
        assert_eq!(failed_checks(b"no"), "");
    }
}
