//! Checks an endpoint through the running snigate, like a client.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::upstream::health::{Handshake, read_token, request};
use crate::upstream::{EndpointCertificate, ProbeResult};
use rustls::AlertDescription;
use rustls::pki_types::ServerName;
use tokio::time::timeout;

use super::context::{RouteContext, no_response};
use super::report::{CheckResult, Verdict};
use super::tls_error::{handshake_failure, is_disconnect, untrusted};

const HTTP: &[u8] = b"http/1.1";

/// `certificates`: those that the endpoints presented directly.
pub(super) async fn check(
    context: Arc<RouteContext>,
    listener: SocketAddr,
    certificates: Arc<Vec<EndpointCertificate>>,
) -> CheckResult {
    let begun = Instant::now();
    let within = context.route.upstream.budget.timeout + context.check_timeout;
    let late = |_| (Verdict::Failed, format!("{} through snigate", no_response(within)));
    let exchange = exchange(&context, listener, &certificates);
    let (verdict, says) = timeout(within, exchange).await.unwrap_or_else(late);
    CheckResult::new(verdict, "through", listener, says).since(begun)
}

/// A handshake, and then the request of the health check.
async fn exchange(
    context: &RouteContext,
    listener: SocketAddr,
    certificates: &[EndpointCertificate],
) -> (Verdict, String) {
    let failed = |says: String| (Verdict::Failed, says);
    let client = match context.tls_client().await {
        Ok(client) => client.offering(alpn(context)),
        Err(reason) => return failed(reason),
    };
    let stream = match context.connect(listener).await {
        Ok(stream) => stream,
        Err(reason) => return failed(format!("cannot connect any more: {reason}")),
    };
    let local = stream.local_addr();
    let name = context.sni.clone().unwrap_or_else(|| ServerName::from(listener.ip()));
    let host = name.to_str().into_owned();
    let Handshake { certificate, stream } = client.handshake(name, stream).await;
    let certificate = certificate.as_ref();
    let is_known = certificate.is_some_and(|certificate| certificates.iter().any(|one| one.is_same(certificate)));
    let mut stream = match stream {
        Ok(stream) => stream,
        Err(error) => {
            let is_admitted = local.is_ok_and(|local| context.admits(listener, local));
            return failed_handshake(&error, context, certificate, is_known, is_admitted);
        }
    };

    let (verdict, server) = match (is_known, &context.tls.ca_file) {
        (true, _) => (Verdict::Ok, "certificate of an endpoint"),
        (false, Some(_)) if certificates.is_empty() => (Verdict::Ok, "verified certificate"),
        (false, Some(_)) => (Verdict::Note, "verified certificate, but not that of an endpoint"),
        (false, None) if certificates.is_empty() => {
            return (Verdict::Note, "unverified certificate, and none of an endpoint to compare it with".into());
        }
        (false, None) => {
            return failed(
                "not the certificate of an endpoint: does the running snigate have another configuration?".into(),
            );
        }
    };
    let (_, session) = stream.get_ref();
    if let Some(other) = session.alpn_protocol().filter(|protocol| *protocol != HTTP) {
        return (verdict, format!("{server}; no request sent, as the route requires ALPN {}", other.escape_ascii()));
    }
    let token = match context.http.token_file.as_deref().map(read_token).transpose() {
        Ok(token) => token,
        Err(reason) => return failed(reason),
    };
    match request(&mut stream, &host, &context.http, token).await {
        Ok(None) => (verdict, format!("{server}; {}", context.expected_response())),
        Ok(Some(_)) => (verdict, format!("{server}; alive")),
        // The check of the endpoint reports this as a failure.
        Err(ProbeResult::Unready(reason)) => (Verdict::Note, format!("{server}; not ready: {reason}")),
        Err(ProbeResult::Unreachable(reason) | ProbeResult::Wrong(reason)) => {
            (context.verdict_on_unexpected_response(), format!("{server}; request failed: {reason}"))
        }
        Err(ProbeResult::Ready) => (verdict, server.into()),
    }
}

/// What the route requires; HTTP/1.1 if it can be.
fn alpn(context: &RouteContext) -> Vec<Vec<u8>> {
    match &context.route.matchers.alpn {
        Some(required) if !required.iter().any(|protocol| **protocol == *HTTP) => {
            required.iter().map(|protocol| protocol.to_vec()).collect()
        }
        _ => vec![HTTP.to_vec()],
    }
}

fn failed_handshake(
    error: &io::Error,
    context: &RouteContext,
    certificate: Option<&EndpointCertificate>,
    is_known: bool,
    is_admitted: bool,
) -> (Verdict, String) {
    if let Some(reason) = untrusted(error, context, certificate) {
        return if is_known {
            (Verdict::Note, "certificate of an endpoint, which does not verify; no request sent".into())
        } else {
            (Verdict::Failed, reason)
        };
    }
    let alert = error.get_ref().and_then(|error| match error.downcast_ref() {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        _ => None,
    });
    let name = context.sni.as_ref().map_or("clients without SNI".into(), ServerName::to_str);
    let says = match alert {
        Some(AlertDescription::UnrecognisedName) => {
            format!("the running snigate has no route for {name} (unrecognized_name): was it reloaded?")
        }
        Some(AlertDescription::AccessDenied) if is_admitted => {
            "the running snigate denies this machine (access_denied), but the configuration file allows it: was it reloaded?"
                .into()
        }
        Some(AlertDescription::AccessDenied) => {
            let says = "not checked: `allow` and `deny` do not admit this machine (access_denied)";
            return (Verdict::Note, says.into());
        }
        Some(AlertDescription::InternalError) => {
            "the running snigate reached no endpoint, or is at one of its limits (internal_error): see its log".into()
        }
        None if is_disconnect(error) => format!(
            "closed without a TLS alert: does the running snigate have a route for {name}? (`refuse` sets how it rejects clients)"
        ),
        _ => handshake_failure(error),
    };
    (Verdict::Failed, says)
}
