//! Why a TLS handshake failed.

use std::io;

use crate::text::units::first_of;
use crate::upstream::EndpointCertificate;
use crate::upstream::health::tls_error_message;
use rustls::CertificateError;
use rustls::pki_types::ServerName;

use super::context::RouteContext;

/// DNS names of a certificate in a message.
pub(super) const MAX_NAMES: usize = 6;

/// Why the certificate does not verify; `None` if something else failed.
pub(super) fn untrusted(
    error: &io::Error,
    context: &RouteContext,
    certificate: Option<&EndpointCertificate>,
) -> Option<String> {
    let rustls::Error::InvalidCertificate(reason) = error.get_ref()?.downcast_ref()? else { return None };
    let ca = context.tls.ca_file.as_ref().map_or("`ca_file`".into(), ToString::to_string);
    let issuer = certificate.map_or("?", |certificate| &certificate.issuer);
    Some(match reason {
        CertificateError::UnknownIssuer => format!("the certificate was issued by {issuer}, which is not in {ca}"),
        CertificateError::BadSignature => format!(
            "the certificate was issued by {issuer}, but not with the CA key in {ca}: is that file from another cluster, or \
             out of date?"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let expected = context.tls.verified_name.as_ref().map_or("?".into(), ServerName::to_str);
            let names = certificate.map_or("?".into(), dns_names);
            format!(
                "the certificate is not valid for {expected} (`health_check.tls.server_name`); its DNS names: {names}"
            )
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the CA in {ca}, or an intermediate CA, has expired")
        }
        _ => tls_error_message(error),
    })
}

/// Why the handshake failed, if the certificate is not the reason.
pub(super) fn handshake_failure(error: &io::Error) -> String {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(_)) => "the response is not TLS".into(),
        Some(rustls::Error::AlertReceived(_)) => tls_error_message(error),
        _ if is_disconnect(error) => "the connection was closed during the TLS handshake".into(),
        _ => format!("TLS handshake failed: {}", tls_error_message(error)),
    }
}

pub(super) fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

pub(super) fn dns_names(certificate: &EndpointCertificate) -> String {
    if certificate.names.is_empty() {
        return "none".into();
    }
    first_of(certificate.names.iter(), MAX_NAMES)
}
