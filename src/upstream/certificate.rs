//! The certificates of endpoints: names, validity and changes.

use std::collections::HashSet;
use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::name::{NamePattern, parents};
use crate::text::escape::visible;

/// Certificates that expire sooner than this cause a warning.
pub(crate) const EXPIRES_SOON_SECONDS: i64 = 14 * 24 * 3600;

/// A server's certificate, unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointCertificate {
    /// All DNS names in the SAN extension, as written, made [`visible`].
    pub(crate) names: Vec<String>,
    /// The IP addresses in the SAN extension.
    pub(crate) addresses: Vec<IpAddr>,
    /// `notBefore`, as a Unix timestamp.
    pub(crate) begins: i64,
    /// `notAfter`, as a Unix timestamp.
    pub(crate) expires: i64,
    /// The distinguished name of the issuer, made [`visible`].
    pub(crate) issuer: String,
    /// The public key.
    key: Vec<u8>,
}

impl EndpointCertificate {
    /// Parses a certificate; `None` if it is malformed.
    pub(crate) fn read(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let mut read = Self {
            names: Vec::new(),
            addresses: Vec::new(),
            begins: certificate.validity().not_before.timestamp(),
            expires: certificate.validity().not_after.timestamp(),
            issuer: visible(&certificate.issuer().to_string()).into_owned(),
            key: certificate.public_key().raw.to_vec(),
        };
        let san = certificate.subject_alternative_name().ok().flatten();
        for name in san.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => read.names.push(visible(name).into_owned()),
                GeneralName::IPAddress(octets) => read.addresses.extend(address(octets)),
                _ => {}
            }
        }
        Some(read)
    }

    /// Those of `names` that the certificate is not valid for (RFC 9525, section 6.3). A wildcard matches exactly one label.
    /// Both lists may have thousands of entries.
    pub(crate) fn not_covered<'n>(&self, names: &'n [NamePattern]) -> Vec<&'n NamePattern> {
        let own: HashSet<String> = self.names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let covers = |pattern: &&NamePattern| {
            let pattern = pattern.to_string();
            let by_wildcard = || parents(&pattern).next().is_some_and(|parent| own.contains(&format!("*.{parent}")));
            own.contains(&pattern) || by_wildcard()
        };
        names.iter().filter(|pattern| !covers(pattern)).collect()
    }

    /// Whether it is the same certificate, and not a renewed one.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.key == other.key && self.expires == other.expires
    }
}

/// The certificates seen at an endpoint: behind one address there may be several servers with different ones.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// The most recent at the end, each with whether it was about to expire.
    seen: Vec<(EndpointCertificate, Expiry)>,
}

/// What changed with the certificate of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CertificateChange {
    /// It was not seen before.
    pub(super) is_new: bool,
    /// How it differs from the previous one, if it is new and there was one.
    pub(super) change: Option<&'static str>,
    /// It expires soon or has expired, which it did not, or had not, when it was last seen.
    pub(super) expiry: Option<Expiry>,
}

/// How near the end of a certificate's validity is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Expiry {
    Later,
    Soon,
    Past,
}

/// Certificates remembered per endpoint; older ones are forgotten, and count as new again.
const MAX_SEEN: usize = 16;

impl Certificates {
    pub(super) fn last(&self) -> Option<&EndpointCertificate> {
        self.seen.last().map(|(certificate, _)| certificate)
    }

    /// Records a certificate.
    pub(super) fn record(&mut self, certificate: EndpointCertificate, expiry: Expiry) -> CertificateChange {
        let known = self.seen.iter().position(|(shown, _)| shown.is_same(&certificate));
        let mut change = CertificateChange { is_new: known.is_none(), ..CertificateChange::default() };
        let before = known.map_or(Expiry::Later, |index| self.seen.remove(index).1);
        change.expiry = (expiry > before).then_some(expiry);
        if known.is_none() {
            change.change =
                self.last().map(|last| match (last.issuer != certificate.issuer, last.key != certificate.key) {
                    (true, _) => "another issuer",
                    (false, true) => "another key",
                    (false, false) => "renewed",
                });
            if self.seen.len() == MAX_SEEN {
                self.seen.remove(0);
            }
        }
        for (former, _) in &mut self.seen {
            // The server chooses how many names there are, and only those of the last certificate are used.
            (former.names, former.addresses) = (Vec::new(), Vec::new());
        }
        self.seen.push((certificate, expiry));
        change
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(names: &[&str]) -> EndpointCertificate {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        EndpointCertificate::read(rcgen::generate_simple_self_signed(names).unwrap().cert.der()).unwrap()
    }

    #[test]
    fn a_certificate_covers_the_names_that_clients_can_verify() {
        let certificate = issued(&["Dev.Example.com", "*.apps.example.com", "192.0.2.1"]);
        assert_eq!(certificate.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let covers = |pattern: &str| certificate.not_covered(&[NamePattern::parse(pattern).unwrap()]).is_empty();
        for name in ["dev.example.com", "a.apps.example.com", "*.apps.example.com"] {
            assert!(covers(name), "{name}");
        }
        for name in ["example.com", "apps.example.com", "a.b.apps.example.com", "*.dev.example.com"] {
            assert!(!covers(name), "{name}");
        }
        assert!(EndpointCertificate::read(&vec![0x30, 0x03, 1, 2, 3].into()).is_none());
    }

    #[test]
    fn long_lists_of_names_are_read_completely() {
        let names: Vec<String> = (0..2000).map(|number| format!("n{number}.example")).collect();
        let certificate = issued(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(certificate.names, names);
        let wanted = ["n1999.example", "n2000.example", "n0.example"].map(|name| NamePattern::parse(name).unwrap());
        assert_eq!(certificate.not_covered(&wanted), [&wanted[1]]);
    }

    #[test]
    fn text_from_the_certificate_is_escaped() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "good \u{202e}live\u{2066}\x1b[2J");
        let certificate = EndpointCertificate::read(params.self_signed(&key).unwrap().der()).unwrap();
        assert!(certificate.issuer.contains("good \\u{202e}live\\u{2066}\\u{1b}[2J"), "{}", certificate.issuer);
    }

    #[test]
    fn known_certificates_are_not_reported_as_new() {
        let (one, other) = (issued(&["a.example"]), issued(&["a.example"]));
        let mut certificates = Certificates::default();
        let first = CertificateChange { is_new: true, ..CertificateChange::default() };
        assert_eq!(certificates.record(one.clone(), Expiry::Later), first);
        let second = CertificateChange { is_new: true, change: Some("another key"), expiry: Some(Expiry::Soon) };
        assert_eq!(certificates.record(other.clone(), Expiry::Soon), second);
        for _ in 0..3 {
            assert_eq!(certificates.record(one.clone(), Expiry::Later), CertificateChange::default());
            assert_eq!(certificates.record(other.clone(), Expiry::Soon), CertificateChange::default());
        }
        for expiry in [Expiry::Soon, Expiry::Past] {
            let change = certificates.record(one.clone(), expiry);
            assert_eq!(change, CertificateChange { expiry: Some(expiry), ..CertificateChange::default() }, "later");
            assert_eq!(certificates.record(one.clone(), expiry), CertificateChange::default());
        }
        assert_eq!(certificates.last(), Some(&one));
    }
}
