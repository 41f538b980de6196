//! One health check: connect, and depending on the configuration a TLS handshake and an HTTP request.

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

use super::super::certificate::EndpointCertificate;
use super::super::failure::{self, Failure};
use super::super::local_address;
use super::state::ProbeResult;
use super::tls::{Handshake, TlsClient, tls_error_message};
use super::{HealthCheck, HttpCheck, TlsCheck};
use crate::proxy_protocol;
use crate::relay;
use crate::text::units::span;

/// Maximum size of a response body; `/readyz` lists the checks that failed.
const MAX_ANSWER: usize = 16 * 1024;

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

/// Makes one check, with one deadline for all of it. `header`: the PROXY header to send first.
pub(crate) async fn check_once(
    address: SocketAddr,
    check: &HealthCheck,
    header: Option<proxy_protocol::Version>,
) -> CheckReport {
    let mut report = CheckReport { result: Ok(ProbeResult::Ready), certificate: None, note: None };
    let mut is_connected = false;
    let result = timeout(check.timeout, run(address, check, header, &mut report, &mut is_connected)).await;
    let timed_out = |_| {
        let within = span(check.timeout);
        Err(Ok(if is_connected {
            // Its kernel responds, so its connections may still work.
            ProbeResult::Wrong(format!("connected, but no response within {within}"))
        } else {
            ProbeResult::Unreachable(format!("connect: no response within {within}"))
        }))
    };
    if let Err(result) = result.unwrap_or_else(timed_out) {
        report.result = result;
    }
    report
}

type EarlyResult = Result<ProbeResult, String>;

async fn run(
    address: SocketAddr,
    check: &HealthCheck,
    header: Option<proxy_protocol::Version>,
    report: &mut CheckReport,
    is_connected: &mut bool,
) -> Result<(), EarlyResult> {
    let credentials = credentials(check).await?;
    // Not with the options of relayed connections, which delay the last ACK of the handshake until data is sent.
    let connected = TcpStream::connect(address).await;
    let connected = connected.and_then(|stream| local_address(&stream, address).map(|_| stream));
    let mut stream = connected.map_err(|error| match Failure::of(&error) {
        Failure::Local => Err(error.to_string()),
        _ => Ok(ProbeResult::Unreachable(format!("connect: {}", failure::error_message(&error)))),
    })?;
    *is_connected = true;
    // There are many checks, so avoid TIME_WAIT.
    relay::reset_on_close(&stream);
    if let Some(version) = header {
        let sent = stream.write_all(&proxy_protocol::header(version, None)).await;
        sent.map_err(|error| Ok(ProbeResult::Wrong(format!("PROXY header: {}", failure::error_message(&error)))))?;
    }
    let (Some(tls), Some(credentials)) = (&check.tls, credentials) else { return Ok(()) };
    let name = tls.asked_name.clone().unwrap_or_else(|| ServerName::from(address.ip()));
    let host = tls.asked_name.as_ref().map_or_else(|| address.to_string(), |name| name.to_str().into_owned());
    let Handshake { certificate, stream } = credentials.client.handshake(name, stream).await;
    report.certificate = certificate;
    let stream = stream.map_err(|error| Ok(ProbeResult::Wrong(format!("TLS: {}", tls_error_message(&error)))))?;
    let Some(http) = &check.http else { return Ok(()) };
    report.note = request(stream, &host, http, credentials.token).await.map_err(Ok)?;
    Ok(())
}

/// Read from files for every check, because certificates and tokens are renewed in place.
struct Credentials {
    client: TlsClient,
    token: Option<HeaderValue>,
}

impl Credentials {
    fn read(tls: &TlsCheck, token_file: Option<&Path>) -> Result<Self, String> {
        Ok(Self { client: TlsClient::read(tls)?, token: token_file.map(read_token).transpose()? })
    }
}

/// Reads the credentials on a blocking thread, because the file system may hang. Problems with local files are not the
/// endpoint's failure.
async fn credentials(check: &HealthCheck) -> Result<Option<Credentials>, EarlyResult> {
    let Some(tls) = check.tls.clone() else { return Ok(None) };
    let token_file = check.http.as_ref().and_then(|http| http.token_file.clone());
    let read = tokio::task::spawn_blocking(move || Credentials::read(&tls, token_file.as_deref())).await;
    read.map_err(|error| Err(error.to_string()))?.map(Some).map_err(Err)
}

/// Sends the request over this connection. Returns a warning for the operator, if there is one.
pub(crate) async fn request(
    stream: TlsStream<TcpStream>,
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
        // The response may have arrived together with the end.
        _ = connection => exchange.await?,
    };
    match status {
        status if http.expect.iter().any(|range| range.contains(&status.as_u16())) => Ok(None),
        StatusCode::INTERNAL_SERVER_ERROR | StatusCode::SERVICE_UNAVAILABLE => {
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

/// The `Authorization` header with the token in this file.
pub(crate) fn read_token(path: &Path) -> Result<HeaderValue, String> {
    let token = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let value = HeaderValue::try_from(format!("Bearer {}", token.trim()));
    // The content must not be logged, even if it is not a token.
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
