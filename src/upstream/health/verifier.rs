//! Verifies the certificate of a health check.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::super::certificate::EndpointCertificate;
use super::authorities::Authorities;

/// Verifies the chain, and the name if one is configured. Records the certificate in any case.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) provider: Arc<CryptoProvider>,
    /// `None`: nothing is verified.
    pub(super) trust: Option<TrustedAuthorities>,
    /// `None`: the name is not verified.
    pub(super) name: Option<ServerName<'static>>,
    pub(super) shown: Mutex<Option<CertificateDer<'static>>>,
}

#[derive(Debug)]
pub(super) struct TrustedAuthorities {
    pub(super) authorities: Arc<Authorities>,
    /// Verifies chains with these authorities.
    pub(super) chain: Arc<WebPkiServerVerifier>,
}

impl Verifier {
    /// Verifies a certificate that is in `ca_file` itself: without a chain, and it may be a CA certificate, as
    /// `openssl req -x509` makes them. Its dates and names are still verified.
    fn verify_pinned(&self, certificate: &CertificateDer<'_>, time: UnixTime) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        let dates = EndpointCertificate::read(certificate).ok_or(CertificateError::BadEncoding)?;
        let since_epoch =
            |seconds: i64| UnixTime::since_unix_epoch(Duration::from_secs(seconds.try_into().unwrap_or(0)));
        let (not_before, not_after) = (since_epoch(dates.begins), since_epoch(dates.expires));
        if time < not_before {
            return Err(CertificateError::NotValidYetContext { time, not_before }.into());
        }
        if time > not_after {
            return Err(CertificateError::ExpiredContext { time, not_after }.into());
        }
        if let Some(name) = &self.name {
            verify_server_name(&parsed, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    pub(super) fn take_shown(&self) -> Option<CertificateDer<'static>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        asked_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.clone().into_owned());
        let Some(TrustedAuthorities { authorities, chain }) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        if authorities.has(end_entity) {
            return self.verify_pinned(end_entity, now);
        }
        let name = self.name.as_ref().unwrap_or(asked_name);
        match chain.verify_server_cert(end_entity, intermediates, name, ocsp_response, now) {
            // The name is verified after the chain.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if self.name.is_none() => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
    use rustls::RootCertStore;

    use super::*;

    fn parameters(is_ca: bool, years: (i32, i32)) -> CertificateParams {
        let mut parameters = CertificateParams::new(["a.example".to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, "a.example");
        parameters.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
        (parameters.not_before, parameters.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
        parameters
    }

    fn self_signed(is_ca: bool, years: (i32, i32)) -> CertificateDer<'static> {
        parameters(is_ca, years).self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    /// Verifies `shown` in 2025, with `trusted` in `ca_file`.
    fn verify(
        trusted: &CertificateDer<'static>,
        shown: &CertificateDer<'_>,
        name: Option<&'static str>,
    ) -> Result<(), Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let authorities = Arc::new(Authorities { certificates: vec![trusted.clone()], roots: Arc::new(roots) });
        let builder =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&authorities.roots), Arc::clone(&provider));
        let trust = Some(TrustedAuthorities { authorities, chain: builder.build().unwrap() });
        let name = name.map(|name| name.try_into().unwrap());
        let verifier = Verifier { provider, trust, name, shown: Mutex::default() };
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_750_000_000));
        let asked: ServerName<'_> = "b.example".try_into().unwrap();
        verifier.verify_server_cert(shown, &[], &asked, &[], now).map(drop)
    }

    #[test]
    fn a_pinned_certificate_is_trusted_for_its_names_and_dates() {
        for is_ca in [true, false] {
            let own = self_signed(is_ca, (2024, 2030));
            assert_eq!(verify(&own, &own, Some("a.example")), Ok(()), "{is_ca}");
            assert_eq!(verify(&own, &own, None), Ok(()), "{is_ca}");
            let wrong = |result| match result {
                Err(Error::InvalidCertificate(error)) => error,
                other => panic!("{is_ca}: {other:?}"),
            };
            let name = wrong(verify(&own, &own, Some("b.example")));
            assert!(matches!(name, CertificateError::NotValidForNameContext { .. }), "{name:?}");
            let expired = self_signed(is_ca, (2020, 2021));
            let expired = wrong(verify(&expired, &expired, None));
            assert!(matches!(expired, CertificateError::ExpiredContext { .. }), "{expired:?}");
            let early = self_signed(is_ca, (2026, 2030));
            let early = wrong(verify(&early, &early, None));
            assert!(matches!(early, CertificateError::NotValidYetContext { .. }), "{early:?}");
        }
    }

    #[test]
    fn a_similar_certificate_is_not_trusted() {
        let (own, twin) = (self_signed(true, (2024, 2030)), self_signed(true, (2024, 2030)));
        assert!(verify(&own, &twin, None).is_err(), "with the same name");
        let key = KeyPair::generate().unwrap();
        let [old, renewed] =
            [(2024, 2029), (2024, 2030)].map(|years| parameters(true, years).self_signed(&key).unwrap().der().clone());
        let error = format!("{:?}", verify(&old, &renewed, None).unwrap_err());
        assert!(error.contains("CaUsedAsEndEntity"), "with the same key: {error}");
    }

    #[test]
    fn the_issuer_of_a_pinned_certificate_need_not_be_known() {
        let authority =
            CertifiedIssuer::self_signed(parameters(true, (2024, 2030)), KeyPair::generate().unwrap()).unwrap();
        let leaf = parameters(false, (2024, 2030)).signed_by(&KeyPair::generate().unwrap(), &authority).unwrap();
        assert_eq!(verify(leaf.der(), leaf.der(), Some("a.example")), Ok(()));
        assert_eq!(verify(&authority.der().clone(), leaf.der(), Some("a.example")), Ok(()));
    }
}
