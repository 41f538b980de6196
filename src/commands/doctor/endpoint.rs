//! One API server, asked as its clients and the health check ask it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::name::NamePattern;
use crate::proxy_protocol;
use crate::text::units::{first_of, time};
use crate::upstream::health::{Handshake, check_once, tls_error_message};
use crate::upstream::{EXPIRES_SOON_SECONDS, EndpointCertificate, HealthCheck, ProbeResult, Thresholds};
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ProtocolVersion};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::report::{Check, Mark};
use super::route::{Visit, late};

/// The most names of a certificate that are listed.
const MAX_NAMES: usize = 6;

/// What was found, and the certificate that was shown.
pub(super) async fn examine(visit: Arc<Visit>, address: SocketAddr) -> (Vec<Check>, Option<EndpointCertificate>) {
    let begun = Instant::now();
    let stream = match visit.connect(address).await {
        Ok(stream) => stream,
        Err(reason) => {
            let says = format!("cannot be reached: {reason}");
            return (vec![Check::new(Mark::Failed, "connect", address, says).since(begun)], None);
        }
    };
    let mut checks = vec![Check::new(Mark::Ok, "connect", address, "accepts connections").since(begun)];

    let begun = Instant::now();
    let Handshake { certificate, stream } = match timeout(visit.patience, handshake(&visit, address, stream)).await {
        Ok(Ok(handshake)) => handshake,
        Ok(Err(reason)) => {
            checks.push(Check::new(Mark::Failed, "tls", address, reason).since(begun));
            return (checks, None);
        }
        Err(_) => {
            let says = format!("accepts connections, but does not speak TLS: {}", late(visit.patience));
            checks.push(Check::new(Mark::Failed, "tls", address, says).since(begun));
            return (checks, None);
        }
    };
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let now = i64::try_from(seconds).unwrap_or(i64::MAX);
    match &stream {
        Ok(stream) => {
            checks.push(Check::new(Mark::Ok, "tls", address, session(stream)).since(begun));
            checks.push(chain(&visit, address, certificate.as_ref()));
        }
        Err(error) => match untrusted(error, &visit, certificate.as_ref()) {
            // What is wrong with its dates is told below.
            Some(_) if certificate.as_ref().is_some_and(|one| now < one.begins || one.expires < now) => {}
            Some(reason) => checks.push(Check::new(Mark::Failed, "chain", address, reason).since(begun)),
            None => {
                checks.push(Check::new(Mark::Failed, "tls", address, failed(error)).since(begun));
            }
        },
    }
    if let Some(certificate) = &certificate {
        checks.extend(names(&visit, address, certificate));
        checks.push(dates(address, certificate, now));
    }
    if stream.is_ok() {
        drop(stream);
        checks.push(ready(&visit, address).await);
    }
    (checks, certificate)
}

/// As clients come: with a PROXY header where the endpoint wants one, and offering what they do.
async fn handshake(visit: &Visit, address: SocketAddr, mut stream: TcpStream) -> Result<Handshake, String> {
    let client = visit.client().await?.offering(vec![b"h2".to_vec(), b"http/1.1".to_vec()]);
    if let Some(version) = visit.route.upstream.proxy_protocol {
        let sent = stream.write_all(&proxy_protocol::header(version, None)).await;
        sent.map_err(|error| format!("takes no PROXY header: {}", tls_error_message(&error)))?;
    }
    let name = visit.tls.asked_name.clone().unwrap_or_else(|| ServerName::from(address.ip()));
    Ok(client.handshake(name, stream).await)
}

fn session(stream: &TlsStream<TcpStream>) -> String {
    let (_, session) = stream.get_ref();
    let version = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS",
    };
    let protocol = session.alpn_protocol().map_or("no ALPN".into(), |protocol| protocol.escape_ascii().to_string());
    format!("{version}, {protocol}")
}

fn chain(visit: &Visit, address: SocketAddr, certificate: Option<&EndpointCertificate>) -> Check {
    let issuer = certificate.map_or("?", |certificate| &certificate.issuer);
    let Some(ca) = &visit.tls.ca_file else {
        let says =
            format!("issued by {issuer}; not verified, because there is no `health_check.tls.ca_file`, nor --ca");
        return Check::new(Mark::Note, "chain", address, says);
    };
    Check::new(Mark::Ok, "chain", address, format!("verifies against {ca}, issued by {issuer}"))
}

/// Why the certificate was not believed, if that is what went wrong.
pub(super) fn untrusted(error: &io::Error, visit: &Visit, certificate: Option<&EndpointCertificate>) -> Option<String> {
    let rustls::Error::InvalidCertificate(reason) = error.get_ref()?.downcast_ref()? else { return None };
    let ca = visit.tls.ca_file.as_ref().map_or("`ca_file`".into(), ToString::to_string);
    let issuer = certificate.map_or("?", |certificate| &certificate.issuer);
    Some(match reason {
        CertificateError::UnknownIssuer => format!("the certificate was issued by {issuer}, which is not in {ca}"),
        CertificateError::BadSignature => format!(
            "the certificate was issued by {issuer}, but with another key than the one in {ca}: is the file of another cluster, or of an earlier one?"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let wanted = visit.tls.verified_name.as_ref().map_or("?".into(), ServerName::to_str);
            let carried = certificate.map_or("?".into(), carried);
            format!("the certificate is not for {wanted} (`health_check.tls.server_name`), but for {carried}")
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the CA in {ca}, or one between it and the certificate, has expired")
        }
        _ => tls_error_message(error),
    })
}

/// Why there is no TLS, whoever was asked.
pub(super) fn failed(error: &io::Error) -> String {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(_)) => "what answers is not TLS".into(),
        Some(rustls::Error::AlertReceived(_)) => tls_error_message(error),
        _ if is_end(error) => "closes the connection instead of speaking TLS".into(),
        _ => format!("TLS fails: {}", tls_error_message(error)),
    }
}

/// Whether the other end has left.
pub(super) fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Whether clients that ask for the route's names will believe it.
fn names(visit: &Visit, address: SocketAddr, certificate: &EndpointCertificate) -> Option<Check> {
    let wanted = visit.names();
    if wanted.is_empty() {
        return None;
    }
    let missing = certificate.not_covered(&wanted);
    let is_exact = |name: &NamePattern| name.as_exact().is_some();
    let carried = carried(certificate);
    if missing.is_empty() {
        return Some(Check::new(Mark::Ok, "names", address, format!("the certificate is for {carried}")));
    }
    // Who has an alias for `tls-server-name` in `sni` knows that the other names are not covered.
    let patterns = &visit.route.patterns;
    let uncovered = certificate.not_covered(patterns);
    let has_alias =
        patterns.iter().filter(|name| is_exact(name)).count() > uncovered.iter().filter(|name| is_exact(name)).count();
    let is_failure = missing.iter().any(|name| is_exact(name)) && !has_alias;
    let them = if let [only] = &missing[..] { only.to_string() } else { "them".into() };
    let says = format!(
        "the certificate is not for {}, but for {carried}: add {them} as a SAN to the API server's certificate{}",
        first_of(missing.iter(), MAX_NAMES),
        alias(visit, certificate)
    );
    Some(Check::new(if is_failure { Mark::Failed } else { Mark::Note }, "names", address, says))
}

/// How clients can verify it as it is, if they can: by a name that it carries and that leads here, or can be made to.
fn alias(visit: &Visit, certificate: &EndpointCertificate) -> String {
    let aliases =
        || certificate.names.iter().filter(|name| NamePattern::parse(name).is_ok() && !name.starts_with("*."));
    let is_ours =
        |alias: &&String| visit.route.patterns.iter().any(|pattern| pattern.to_string().eq_ignore_ascii_case(alias));
    if let Some(alias) = aliases().find(is_ours) {
        return format!(", or set `tls-server-name: {alias}` in kubeconfigs");
    }
    if let Some(alias) = aliases().find(|alias| visit.other_with(alias).is_none()) {
        return format!(", or set `tls-server-name: {alias}` in kubeconfigs, with {alias} added to `sni`");
    }
    match aliases().next().and_then(|alias| Some((alias, visit.other_with(alias)?))) {
        Some((alias, other)) => format!(
            " (`tls-server-name: {alias}` in kubeconfigs is no cure: it would lead to the route {}, which has that name in `sni`)",
            other.name
        ),
        None => String::new(),
    }
}

fn carried(certificate: &EndpointCertificate) -> String {
    if certificate.names.is_empty() {
        return "no DNS name".into();
    }
    first_of(certificate.names.iter(), MAX_NAMES)
}

fn dates(address: SocketAddr, certificate: &EndpointCertificate, now: i64) -> Check {
    let day = |seconds: i64| time(u64::try_from(seconds).unwrap_or(0)).to_string().chars().take(10).collect::<String>();
    let left = u64::try_from(certificate.expires - now).map(Duration::from_secs);
    let (mark, says) = match left {
        Err(_) => (Mark::Failed, format!("the certificate has expired on {}", day(certificate.expires))),
        Ok(_) if now < certificate.begins => (
            Mark::Failed,
            format!("the certificate is not valid before {}: is a clock wrong?", day(certificate.begins)),
        ),
        Ok(left) if certificate.expires - now < EXPIRES_SOON_SECONDS => {
            let days = left.as_secs() / (24 * 3600);
            (Mark::Note, format!("the certificate expires on {}, in {days} days", day(certificate.expires)))
        }
        Ok(_) => (Mark::Ok, format!("the certificate is valid until {}", day(certificate.expires))),
    };
    Check::new(mark, "expiry", address, says)
}

/// The very health check.
async fn ready(visit: &Visit, address: SocketAddr) -> Check {
    let check = HealthCheck {
        interval: visit.patience,
        timeout: visit.patience,
        thresholds: Thresholds { rise: 1, fall: 1, unready: 1 },
        tls: Some(visit.tls.clone()),
        http: Some(visit.http.clone()),
    };
    let begun = Instant::now();
    let answer = check_once(address, &check, visit.route.upstream.proxy_protocol).await;
    let (mark, says) = match answer.result {
        Ok(ProbeResult::Ready) => (Mark::Ok, answer.note.map_or_else(|| visit.well_answered(), ToOwned::to_owned)),
        Ok(ProbeResult::Unready(reason)) => (Mark::Failed, format!("not ready: {reason}")),
        Ok(ProbeResult::Unreachable(reason) | ProbeResult::Wrong(reason)) => {
            (visit.mark_of_wrong_answer(), format!("does not answer as an API server does: {reason}"))
        }
        Err(reason) => (Mark::Failed, format!("was not asked: {reason}")),
    };
    Check::new(mark, "ready", address, says).since(begun)
}
