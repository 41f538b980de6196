//! One health check: connect, and depending on the configuration a TLS handshake and an HTTP request.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::super::certificate::EndpointCertificate;
use super::super::failure::{self, Failure};
use super::super::source::{Dial, Purpose, connect_to};
use super::files::read_file;
use super::state::ProbeResult;
use super::tls::{Contents, Handshake, TlsClient, tls_error_message};
use super::{HealthCheck, HttpCheck, TlsCheck};
use crate::text::units::span;

/// For the body of a response that lists what is not ready.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// The report of a check.
#[derive(Debug)]
pub(crate) struct CheckReport {
    /// An error is local: the check could not be made.
    pub(crate) result: Result<ProbeResult, String>,
    /// The server's certificate, whether it was verified or not.
    pub(crate) certificate: Option<EndpointCertificate>,
    /// A warning for the operator, although the check succeeded.
    pub(crate) note: Option<&'static str>,
}

/// Checks once, with the files read here and now.
pub(crate) async fn check_once(address: SocketAddr, check: &HealthCheck, dial: &Dial) -> CheckReport {
    let credentials = check.tls.clone().map(|tls| {
        let token_file = check.http.as_ref().and_then(|http| http.token_file.clone());
        let read = move || {
            let contents = Contents::read(&tls, token_file.as_deref())?;
            Credentials::new(&tls, token_file.as_deref(), &contents)
        };
        tokio::task::spawn_blocking(read)
    });
    let credentials = match credentials {
        None => Ok(None),
        Some(read) => read.await.unwrap_or_else(|error| Err(error.to_string())).map(Some),
    };
    match credentials {
        Ok(credentials) => probe(address, check, dial, credentials.as_ref()).await,
        Err(reason) => CheckReport::not_made(reason),
    }
}

impl CheckReport {
    pub(super) fn not_made(reason: String) -> Self {
        Self { result: Err(reason), certificate: None, note: None }
    }
}

/// Checks once. All of it has one deadline, but for the polite end.
pub(super) async fn probe(
    address: SocketAddr,
    check: &HealthCheck,
    dial: &Dial,
    credentials: Option<&Credentials>,
) -> CheckReport {
    let mut report = CheckReport { result: Ok(ProbeResult::Ready), certificate: None, note: None };
    let mut is_connected = false;
    let result =
        timeout(check.timeout, try_probe(address, check, dial, credentials, &mut report, &mut is_connected)).await;
    let late = |_| {
        let within = span(check.timeout);
        Err(Ok(if is_connected {
            // Its kernel responds, so its connections may still work.
            ProbeResult::Wrong(format!("connected, but no response within {within}"))
        } else {
            ProbeResult::Unreachable(format!("connect: no response within {within}"))
        }))
    };
    match result.unwrap_or_else(late) {
        Ok(Some(stream)) => close(stream).await,
        Ok(None) => {}
        Err(result) => report.result = result,
    }
    report
}

/// How long the server may take to send what it sends last and to close.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);

/// Ends TLS in order (`close_notify`), and lets the server close first: it logs no error, and neither side is reset by bytes
/// that nobody has read, such as its session tickets.
async fn close(mut stream: TlsStream<TcpStream>) {
    let end = async {
        stream.get_mut().1.send_close_notify();
        let _ = stream.flush().await;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await.is_ok_and(|length| length > 0) {}
        // The FIN may come after the close_notify.
        let tcp = stream.get_mut().0;
        while tcp.read(&mut rest).await.is_ok_and(|length| length > 0) {}
    };
    let _ = timeout(CLOSE_TIMEOUT, end).await;
}

type NoResult = Result<ProbeResult, String>;

async fn try_probe(
    address: SocketAddr,
    check: &HealthCheck,
    dial: &Dial,
    credentials: Option<&Credentials>,
    report: &mut CheckReport,
    is_connected: &mut bool,
) -> Result<Option<TlsStream<TcpStream>>, NoResult> {
    // Not as connections are: their handshake waits for the first bytes, and a check may have none.
    let connected = connect_to(address, dial.local, Purpose::Check).await;
    let (mut stream, _) = connected.map_err(|error| match dial.local.failure(&error) {
        Failure::Local => Err(error.to_string()),
        _ => Ok(ProbeResult::Unreachable(format!("connect: {}", failure::error_message(&error)))),
    })?;
    *is_connected = true;
    let header = dial.header(&stream).map_err(|error| Err(error.to_string()))?;
    if !header.is_empty() {
        let sent = stream.write_all(&header).await;
        sent.map_err(|error| Ok(ProbeResult::Wrong(format!("PROXY header: {}", failure::error_message(&error)))))?;
    }
    let (Some(tls), Some(credentials)) = (&check.tls, credentials) else { return Ok(None) };
    let name = tls.asked_name.clone().unwrap_or_else(|| ServerName::from(address.ip()));
    let host = tls.asked_name.as_ref().map_or_else(|| address.to_string(), |name| name.to_str().into_owned());
    let Handshake { certificate, stream } = credentials.client.handshake(name, stream).await;
    report.certificate = certificate;
    let mut stream = stream.map_err(|error| Ok(ProbeResult::Wrong(format!("TLS: {}", tls_error_message(&error)))))?;
    if let Some(http) = &check.http {
        report.note = request(&mut stream, &host, http, credentials.token.clone()).await.map_err(Ok)?;
    }
    Ok(Some(stream))
}

/// What the files of a check contained, ready to be used: certificates and tokens are renewed under the same names.
#[derive(Debug)]
pub(super) struct Credentials {
    client: TlsClient,
    token: Option<HeaderValue>,
}

impl Credentials {
    pub(super) fn new(tls: &TlsCheck, token_file: Option<&Path>, contents: &Contents) -> Result<Self, String> {
        let token = token_file.zip(contents.token.as_ref()).map(|(path, token)| bearer(token, path)).transpose()?;
        Ok(Self { client: TlsClient::new(tls, contents)?, token })
    }
}

/// How much of a response body is read for its list of failed checks.
const MAX_BODY: usize = 16 * 1024;

/// Requests the path over this connection; what the operator should know although it is no failure.
pub(crate) async fn request(
    stream: &mut TlsStream<TcpStream>,
    host: &str,
    http: &HttpCheck,
    token: Option<HeaderValue>,
) -> Result<Option<&'static str>, ProbeResult> {
    // The cause has details, such as the TLS alert if a client certificate is required.
    let wrong = |error: &dyn Error| {
        let cause = error.source();
        let of_tls = cause.and_then(|cause| cause.downcast_ref()).filter(|error| is_of_tls(error));
        ProbeResult::Wrong(match (of_tls, cause) {
            (Some(error), _) => format!("TLS: {}", tls_error_message(error)),
            (_, Some(cause)) => format!("HTTP: {error}: {cause}"),
            (_, None) => format!("HTTP: {error}"),
        })
    };
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| wrong(&error))?;
    let mut request = Request::get(http.path.clone())
        .header(HOST, host)
        .header(CONNECTION, HeaderValue::from_static("close"))
        .header(USER_AGENT, concat!("snigate/", env!("CARGO_PKG_VERSION"), " (health check)"));
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, token);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| wrong(&error))?;
    let is_unready = |status| matches!(status, StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE);
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| wrong(&error))?;
        let status = response.status();
        let mut body = Vec::new();
        // The status is the answer. A body may be endless, and only one that lists failed checks is of use.
        if is_unready(status) {
            let mut frames = response.into_body();
            let read = async {
                while let Some(Ok(frame)) = frames.frame().await {
                    body.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                    if body.len() > MAX_BODY {
                        break;
                    }
                }
            };
            let _ = timeout(BODY_TIMEOUT, read).await;
        }
        Ok((status, body))
    };
    let mut exchange = pin!(exchange);
    let (status, body) = tokio::select! {
        biased;
        result = &mut exchange => result?,
        // The response may have arrived together with the end.
        _ = connection => exchange.await?,
    };
    match status {
        status if http.expect.iter().any(|range| range.contains(&status.as_u16())) => Ok(None),
        status if is_unready(status) => {
            Err(ProbeResult::Unready(format!("{} {}{}", http.path, status.as_u16(), failed_checks(&body))))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if http.unauthorized_is_alive => Ok(Some(
            "alive, but readiness unknown: anonymous requests are not allowed; set `token_file` or `client_certificate`",
        )),
        _ => Err(ProbeResult::Wrong(format!("{} {}", http.path, status.as_u16()))),
    }
}

fn is_of_tls(error: &io::Error) -> bool {
    error.get_ref().is_some_and(<dyn Error + Send + Sync>::is::<rustls::Error>)
}

/// The header that has the token in this file.
pub(crate) fn read_token(path: &Path) -> Result<HeaderValue, String> {
    bearer(&read_file(path)?, path)
}

fn bearer(token: &[u8], path: &Path) -> Result<HeaderValue, String> {
    let value = HeaderValue::try_from([b"Bearer ", token.trim_ascii()].concat());
    // What is in the file is not for the log, not even if it is no token.
    let mut value = value.map_err(|_| format!("{}: not a token", path.display()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// An API server lists its failed checks in lines such as `[-]etcd failed: reason withheld`.
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
    fn the_failed_checks_of_an_api_server_are_listed() {
        let body =
            b"[+]ping ok\n[-]etcd failed: reason withheld\n[-]shutdown failed: reason withheld\nreadyz check failed\n";
        assert_eq!(failed_checks(body), ": etcd, shutdown");
        assert_eq!(failed_checks(b"no"), "");
    }
}
