//! Checks one endpoint directly, like a client and then like the health check.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::name::NamePattern;
use crate::text::units::{counted, first_of, time};
use crate::upstream::health::{Handshake, check_once, tls_error_message};
use crate::upstream::{EXPIRES_SOON_SECONDS, EndpointCertificate, HealthCheck, ProbeResult, Thresholds};
use rustls::ProtocolVersion;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::context::{RouteContext, no_response};
use super::report::{CheckResult, Verdict};
use super::tls_error::{MAX_NAMES, dns_names, handshake_failure, untrusted};

/// The results, and the certificate of the endpoint if there was one.
pub(super) async fn check(
    context: Arc<RouteContext>,
    address: SocketAddr,
) -> (Vec<CheckResult>, Option<EndpointCertificate>) {
    let begun = Instant::now();
    let stream = match context.connect_to_endpoint(address).await {
        Ok(stream) => stream,
        Err(reason) => {
            let says = format!("cannot connect: {reason}");
            return (vec![CheckResult::new(Verdict::Failed, "connect", address, says).since(begun)], None);
        }
    };
    let mut results = vec![CheckResult::new(Verdict::Ok, "connect", address, "accepts connections").since(begun)];

    let begun = Instant::now();
    let handshake = timeout(context.check_timeout, handshake(&context, address, stream)).await;
    let Handshake { certificate, stream } = match handshake {
        Ok(Ok(handshake)) => handshake,
        Ok(Err(reason)) => {
            results.push(CheckResult::new(Verdict::Failed, "tls", address, reason).since(begun));
            return (results, None);
        }
        Err(_) => {
            let says = format!("TLS handshake failed: {}", no_response(context.check_timeout));
            results.push(CheckResult::new(Verdict::Failed, "tls", address, says).since(begun));
            return (results, None);
        }
    };
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let now = i64::try_from(seconds).unwrap_or(i64::MAX);
    match &stream {
        Ok(stream) => {
            results.push(CheckResult::new(Verdict::Ok, "tls", address, session(stream)).since(begun));
            results.push(check_chain(&context, address, certificate.as_ref()));
        }
        Err(error) => match untrusted(error, &context, certificate.as_ref()) {
            // The check of the validity reports this.
            Some(_) if certificate.as_ref().is_some_and(|one| now < one.begins || one.expires < now) => {}
            Some(reason) => results.push(CheckResult::new(Verdict::Failed, "chain", address, reason).since(begun)),
            None => {
                let says = handshake_failure(error);
                results.push(CheckResult::new(Verdict::Failed, "tls", address, says).since(begun));
            }
        },
    }
    if let Some(certificate) = &certificate {
        results.extend(check_names(&context, address, certificate));
        results.push(check_validity(address, certificate, now));
    }
    if stream.is_ok() {
        drop(stream);
        results.push(check_ready(&context, address).await);
    }
    (results, certificate)
}

/// With the PROXY header that the endpoint expects, and the ALPN of kubectl.
async fn handshake(context: &RouteContext, address: SocketAddr, mut stream: TcpStream) -> Result<Handshake, String> {
    let client = context.tls_client().await?.offering(vec![b"h2".to_vec(), b"http/1.1".to_vec()]);
    let header = context.route.upstream.dial(address).header(&stream).map_err(|error| error.to_string())?;
    if !header.is_empty() {
        let sent = stream.write_all(&header).await;
        sent.map_err(|error| format!("cannot send the PROXY header: {}", tls_error_message(&error)))?;
    }
    let name = context.tls.asked_name.clone().unwrap_or_else(|| ServerName::from(address.ip()));
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

fn check_chain(context: &RouteContext, address: SocketAddr, certificate: Option<&EndpointCertificate>) -> CheckResult {
    let issuer = certificate.map_or("?", |certificate| &certificate.issuer);
    let Some(ca) = &context.tls.ca_file else {
        let says = format!("issued by {issuer}; not verified, as neither `health_check.tls.ca_file` nor --ca is set");
        return CheckResult::new(Verdict::Note, "chain", address, says);
    };
    CheckResult::new(Verdict::Ok, "chain", address, format!("verified with {ca}, issued by {issuer}"))
}

/// Whether clients can verify the certificate by the hostnames of the route.
fn check_names(context: &RouteContext, address: SocketAddr, certificate: &EndpointCertificate) -> Option<CheckResult> {
    let expected = context.names();
    if expected.is_empty() {
        return None;
    }
    let missing = certificate.not_covered(&expected);
    if missing.is_empty() {
        let says = format!("the certificate is valid for {}", dns_names(certificate));
        return Some(CheckResult::new(Verdict::Ok, "names", address, says));
    }
    // With one valid name in `sni`, clients can use `tls-server-name`, and the operator probably knows.
    let patterns = &context.route.patterns;
    let is_exact = |name: &NamePattern| name.as_exact().is_some();
    let uncovered = certificate.not_covered(patterns);
    let has_alias =
        patterns.iter().filter(|name| is_exact(name)).count() > uncovered.iter().filter(|name| is_exact(name)).count();
    let is_failure = missing.iter().any(|name| is_exact(name)) && !has_alias;
    let them = if let [only] = &missing[..] { only.to_string() } else { "them".into() };
    let says = format!(
        "the certificate is not valid for {}; its DNS names: {}; add {them} to its SANs{}",
        first_of(missing.iter(), MAX_NAMES),
        dns_names(certificate),
        alternative(context, certificate)
    );
    Some(CheckResult::new(if is_failure { Verdict::Failed } else { Verdict::Note }, "names", address, says))
}

/// Whether clients could use `tls-server-name` instead, with a name of the certificate that is routed to the route.
fn alternative(context: &RouteContext, certificate: &EndpointCertificate) -> String {
    let aliases =
        || certificate.names.iter().filter(|name| NamePattern::parse(name).is_ok() && !name.starts_with("*."));
    let is_in_sni =
        |alias: &&String| context.route.patterns.iter().any(|pattern| pattern.to_string().eq_ignore_ascii_case(alias));
    if let Some(alias) = aliases().find(is_in_sni) {
        return format!(", or set `tls-server-name: {alias}` in kubeconfigs");
    }
    if let Some(alias) = aliases().find(|alias| context.other_route_with(alias).is_none()) {
        let hostnames = context.shared.source.hostnames();
        return format!(", or set `tls-server-name: {alias}` in kubeconfigs and add {alias} to {hostnames}");
    }
    match aliases().next().and_then(|alias| Some((alias, context.other_route_with(alias)?))) {
        Some((alias, other)) => format!(
            " (`tls-server-name: {alias}` in kubeconfigs would not help: the route {} has {alias} in {})",
            other.name,
            context.shared.source.hostnames()
        ),
        None => String::new(),
    }
}

fn check_validity(address: SocketAddr, certificate: &EndpointCertificate, now: i64) -> CheckResult {
    let day = |seconds: i64| time(u64::try_from(seconds).unwrap_or(0)).to_string().chars().take(10).collect::<String>();
    let left = u64::try_from(certificate.expires - now).map(Duration::from_secs);
    let (verdict, says) = match left {
        Err(_) => (Verdict::Failed, format!("the certificate expired on {}", day(certificate.expires))),
        Ok(_) if now < certificate.begins => (
            Verdict::Failed,
            format!("the certificate is not valid before {}: is a clock wrong?", day(certificate.begins)),
        ),
        Ok(left) if certificate.expires - now < EXPIRES_SOON_SECONDS => {
            let days = counted(left.as_secs() / (24 * 3600), "day");
            (Verdict::Note, format!("the certificate expires on {}, in {days}", day(certificate.expires)))
        }
        Ok(_) => (Verdict::Ok, format!("the certificate is valid until {}", day(certificate.expires))),
    };
    CheckResult::new(verdict, "expiry", address, says)
}

/// Runs the health check of the route, or the default one.
async fn check_ready(context: &RouteContext, address: SocketAddr) -> CheckResult {
    let check = HealthCheck {
        interval: context.check_timeout,
        timeout: context.check_timeout,
        thresholds: Thresholds { rise: 1, fall: 1, unready: 1 },
        tls: Some(context.tls.clone()),
        http: Some(context.http.clone()),
    };
    let begun = Instant::now();
    let report = check_once(address, &check, &context.route.upstream.dial(address)).await;
    let (verdict, says) = match report.result {
        Ok(ProbeResult::Ready) => {
            (Verdict::Ok, report.note.map_or_else(|| context.expected_response(), ToOwned::to_owned))
        }
        Ok(ProbeResult::Unready(reason)) => (Verdict::Failed, format!("not ready: {reason}")),
        Ok(ProbeResult::Unreachable(reason) | ProbeResult::Wrong(reason)) => {
            (context.verdict_on_unexpected_response(), format!("request failed: {reason}"))
        }
        Err(reason) => (Verdict::Failed, format!("not checked: {reason}")),
    };
    CheckResult::new(verdict, "ready", address, says).since(begun)
}
