//! A name that passes is one to everybody, and means the same in a hello and in a configuration.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls::pki_types::DnsName;
use snigate::name::{NamePattern, ServerName};

fuzz_target!(|bytes: &[u8]| {
    let Ok(name) = ServerName::parse(bytes) else { return };
    let folded = name.to_string();
    assert_eq!(ServerName::parse(folded.as_bytes()).unwrap(), name);
    assert!(DnsName::try_from(folded.as_str()).is_ok(), "{folded} is no name to rustls");
    assert!(folded.parse::<std::net::IpAddr>().is_err());

    let exact = NamePattern::parse(&folded).unwrap();
    assert!(exact.matches(&name) && exact.to_string() == folded);
    if let Some((_, parent)) = folded.split_once('.') {
        let wildcard = NamePattern::parse(&format!("*.{parent}")).unwrap();
        assert!(wildcard.matches(&name));
        assert!(!wildcard.matches(&ServerName::parse(parent.as_bytes()).unwrap()), "the apex");
    }
});
