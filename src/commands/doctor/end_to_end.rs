//! The same through the running snigate: the way that clients come.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::upstream::health::{Handshake, read_token, request};
use crate::upstream::{EndpointCertificate, ProbeResult};
use rustls::AlertDescription;
use rustls::pki_types::ServerName;
use tokio::time::timeout;

use super::endpoint::{failed, is_end, untrusted};
use super::report::{Check, Mark};
use super::route::{Visit, late};

const HTTP: &[u8] = b"http/1.1";

/// `shown`: by the endpoints themselves.
pub(super) async fn examine(visit: Arc<Visit>, door: SocketAddr, shown: Arc<Vec<EndpointCertificate>>) -> Check {
    let begun = Instant::now();
    let within = visit.route.upstream.budget.timeout + visit.patience;
    let late = |_| (Mark::Failed, format!("{} through snigate", late(within)));
    let (mark, says) = timeout(within, ask(&visit, door, &shown)).await.unwrap_or_else(late);
    Check::new(mark, "through", door, says).since(begun)
}

async fn ask(visit: &Visit, door: SocketAddr, shown: &[EndpointCertificate]) -> (Mark, String) {
    let wrong = |says: String| (Mark::Failed, says);
    let client = match visit.client().await {
        Ok(client) => client.offering(offer(visit)),
        Err(reason) => return wrong(reason),
    };
    let stream = match visit.connect(door).await {
        Ok(stream) => stream,
        Err(reason) => return wrong(format!("does not accept connections any more: {reason}")),
    };
    let local = stream.local_addr();
    let name = visit.asked_name.clone().unwrap_or_else(|| ServerName::from(door.ip()));
    let host = name.to_str().into_owned();
    let Handshake { certificate, stream } = client.handshake(name, stream).await;
    let is_same = certificate.as_ref().is_some_and(|certificate| shown.iter().any(|one| one.is_same(certificate)));
    let mut stream = match stream {
        Ok(stream) => stream,
        Err(error) => {
            let is_admitted = local.is_ok_and(|local| visit.admits(door, local));
            return refused(&error, visit, certificate.as_ref(), is_same, is_admitted);
        }
    };

    let (mark, what) = match (is_same, &visit.tls.ca_file) {
        (true, _) => (Mark::Ok, "the certificate of an endpoint"),
        (false, Some(_)) if shown.is_empty() => (Mark::Ok, "a certificate that verifies"),
        (false, Some(_)) => (Mark::Note, "a certificate that verifies, but that no endpoint has shown"),
        (false, None) if shown.is_empty() => {
            return (Mark::Note, "answers, but no endpoint has shown its certificate: whose answer is it?".into());
        }
        (false, None) => {
            let says = "a certificate that no endpoint has shown: does the running snigate have another configuration?";
            return wrong(says.into());
        }
    };
    let (_, session) = stream.get_ref();
    if let Some(other) = session.alpn_protocol().filter(|protocol| *protocol != HTTP) {
        return (mark, format!("{what}; nothing was asked, since the route is for {}", other.escape_ascii()));
    }
    let token = match visit.http.token_file.as_deref().map(read_token).transpose() {
        Ok(token) => token,
        Err(reason) => return wrong(reason),
    };
    match request(&mut stream, &host, &visit.http, token).await {
        Ok(None) => (mark, format!("{what}; {}", visit.well_answered())),
        Ok(Some(_)) => (mark, format!("{what}; alive")),
        // The way is what counts here.
        Err(ProbeResult::Unready(reason)) => (Mark::Note, format!("{what}; not ready: {reason}")),
        Err(ProbeResult::Unreachable(reason) | ProbeResult::Wrong(reason)) => {
            (visit.mark_of_wrong_answer(), format!("{what}; does not answer as an API server does: {reason}"))
        }
        Err(ProbeResult::Ready) => (mark, what.into()),
    }
}

/// What takes the route, and HTTP/1.1 if that does.
fn offer(visit: &Visit) -> Vec<Vec<u8>> {
    match &visit.route.matchers.alpn {
        Some(wanted) if !wanted.iter().any(|protocol| **protocol == *HTTP) => {
            wanted.iter().map(|protocol| protocol.to_vec()).collect()
        }
        _ => vec![HTTP.to_vec()],
    }
}

fn refused(
    error: &io::Error,
    visit: &Visit,
    certificate: Option<&EndpointCertificate>,
    is_same: bool,
    is_admitted: bool,
) -> (Mark, String) {
    if let Some(reason) = untrusted(error, visit, certificate) {
        return if is_same {
            (Mark::Note, "the certificate of an endpoint, which is not believed, so nothing was asked".into())
        } else {
            (Mark::Failed, reason)
        };
    }
    let alert = error.get_ref().and_then(|error| match error.downcast_ref() {
        Some(rustls::Error::AlertReceived(alert)) => Some(*alert),
        _ => None,
    });
    let name = visit.asked_name.as_ref().map_or("clients that ask for no name".into(), ServerName::to_str);
    let says = match alert {
        Some(AlertDescription::UnrecognisedName) => {
            format!("the running snigate has no route for {name} (unrecognized_name): was it reloaded?")
        }
        Some(AlertDescription::AccessDenied) if is_admitted => {
            "the running snigate does not let this machine in (access_denied), although the configuration does: was it reloaded?".into()
        }
        Some(AlertDescription::AccessDenied) => {
            let says = "not checked: `allow` and `deny` do not let this machine in (access_denied)";
            return (Mark::Note, says.into());
        }
        Some(AlertDescription::InternalError) => {
            "the running snigate reaches no endpoint of the route, or is at one of its limits (internal_error): its log says which".into()
        }
        None if is_end(error) => {
            format!("closed without a word: has the running snigate a route for {name}? (`refuse` says how it refuses)")
        }
        _ => failed(error),
    };
    (Mark::Failed, says)
}
