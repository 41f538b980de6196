//! What an endpoint's certificate says, as far as its operator should know.

use std::collections::HashSet;
use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::name::{NamePattern, parents};
use crate::text::escape::visible;

/// A certificate that expires sooner is worth a warning.
pub(crate) const EXPIRES_SOON_SECONDS: i64 = 14 * 24 * 3600;

/// A server's certificate. Nothing is verified here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// The DNS names it is for, as they stand in it, all of them; what would not be seen as itself is escaped.
    pub(crate) names: Vec<String>,
    /// The addresses it is for.
    pub(crate) addresses: Vec<IpAddr>,
    /// From when it is valid, in seconds since the epoch.
    pub(crate) begins: i64,
    /// Until when it is valid, in seconds since the epoch.
    pub(crate) expires: i64,
    /// Who has issued it; what would not be seen as itself is escaped.
    pub(crate) issuer: String,
    /// The public key, to see whether it is another one.
    key: Vec<u8>,
}

impl Certificate {
    /// Reads a certificate; `None` if it is none.
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
        let alternatives = certificate.subject_alternative_name().ok().flatten();
        for name in alternatives.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::DNSName(name) => read.names.push(visible(name).into_owned()),
                GeneralName::IPAddress(octets) => read.addresses.extend(address(octets)),
                _ => {}
            }
        }
        Some(read)
    }

    /// The names that clients cannot verify with it (RFC 9525, section 6.3). A wildcard stands for the names one label below.
    /// There may be thousands of both.
    pub(crate) fn not_covered<'n>(&self, names: &'n [NamePattern]) -> Vec<&'n NamePattern> {
        let own: HashSet<String> = self.names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let covers = |pattern: &&NamePattern| {
            let pattern = pattern.to_string();
            let by_wildcard = || parents(&pattern).next().is_some_and(|parent| own.contains(&format!("*.{parent}")));
            own.contains(&pattern) || by_wildcard()
        };
        names.iter().filter(|pattern| !covers(pattern)).collect()
    }

    /// Whether it is the same one, and not one that was renewed.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.key == other.key && self.expires == other.expires
    }
}

/// The certificates that an endpoint has shown. Behind one address there may be several servers, each with its own.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// The last at the end, each with whether its end was near.
    shown: Vec<(Certificate, bool)>,
}

/// What is new about a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// It was not shown before.
    pub(super) is_new: bool,
    /// It was not, but others were: in words, what is different from the last one.
    pub(super) change: Option<&'static str>,
    /// Its end is near, and was not when it was last shown.
    pub(super) expires_soon: bool,
}

/// Of how many certificates an endpoint is known; more come as news again.
const MAX_SHOWN: usize = 16;

impl Certificates {
    pub(super) fn last(&self) -> Option<&Certificate> {
        self.shown.last().map(|(certificate, _)| certificate)
    }

    /// Remembers it.
    pub(super) fn show(&mut self, certificate: Certificate, expires_soon: bool) -> News {
        let known = self.shown.iter().position(|(shown, _)| shown.is_same(&certificate));
        let mut news = News { is_new: known.is_none(), change: None, expires_soon };
        if let Some(number) = known {
            let (_, was_soon) = self.shown.remove(number);
            news.expires_soon &= !was_soon;
        } else {
            news.change =
                self.last().map(|last| match (last.issuer != certificate.issuer, last.key != certificate.key) {
                    (true, _) => "another issuer",
                    (false, true) => "another key",
                    (false, false) => "renewed",
                });
            if self.shown.len() == MAX_SHOWN {
                self.shown.remove(0);
            }
        }
        for (former, _) in &mut self.shown {
            // The other end chooses how many there are, and only those of the last one are asked for.
            (former.names, former.addresses) = (Vec::new(), Vec::new());
        }
        self.shown.push((certificate, expires_soon));
        news
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issued(names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        Certificate::read(rcgen::generate_simple_self_signed(names).unwrap().cert.der()).unwrap()
    }

    #[test]
    fn a_certificate_covers_what_clients_can_verify() {
        let certificate = issued(&["Dev.Example.com", "*.apps.example.com", "192.0.2.1"]);
        assert_eq!(certificate.addresses, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let covers = |pattern: &str| certificate.not_covered(&[NamePattern::parse(pattern).unwrap()]).is_empty();
        for name in ["dev.example.com", "a.apps.example.com", "*.apps.example.com"] {
            assert!(covers(name), "{name}");
        }
        for name in ["example.com", "apps.example.com", "a.b.apps.example.com", "*.dev.example.com"] {
            assert!(!covers(name), "{name}");
        }
        assert!(Certificate::read(&vec![0x30, 0x03, 1, 2, 3].into()).is_none());
    }

    #[test]
    fn no_name_is_too_far_down_the_list() {
        let names: Vec<String> = (0..2000).map(|number| format!("n{number}.example")).collect();
        let certificate = issued(&names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(certificate.names, names);
        let wanted = ["n1999.example", "n2000.example", "n0.example"].map(|name| NamePattern::parse(name).unwrap());
        assert_eq!(certificate.not_covered(&wanted), [&wanted[1]]);
    }

    #[test]
    fn what_others_have_written_into_it_can_be_shown() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "good \u{202e}live\u{2066}\x1b[2J");
        let certificate = Certificate::read(params.self_signed(&key).unwrap().der()).unwrap();
        assert!(certificate.issuer.contains("good \\u{202e}live\\u{2066}\\u{1b}[2J"), "{}", certificate.issuer);
    }

    #[test]
    fn what_was_seen_is_no_news() {
        let (one, other) = (issued(&["a.example"]), issued(&["a.example"]));
        let mut certificates = Certificates::default();
        let first = News { is_new: true, ..News::default() };
        assert_eq!(certificates.show(one.clone(), false), first);
        let second = News { is_new: true, change: Some("another key"), expires_soon: true };
        assert_eq!(certificates.show(other.clone(), true), second);
        for _ in 0..3 {
            assert_eq!(certificates.show(one.clone(), false), News::default());
            assert_eq!(certificates.show(other.clone(), true), News::default());
        }
        assert_eq!(certificates.show(one.clone(), true), News { expires_soon: true, ..News::default() }, "by and by");
        assert_eq!(certificates.last(), Some(&one));
    }
}
