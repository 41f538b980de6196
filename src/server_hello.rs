//! Parses the unencrypted start of a TLS server's reply: a ServerHello, a HelloRetryRequest or an alert.

use tls_parser::{TlsRecordType, parse_tls_record_header};

/// The first message of a TLS server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A ServerHello with the negotiated version, such as `0x0304` for TLS 1.3 (RFC 8446, section 4.1.3).
    Hello(u16),
    /// A HelloRetryRequest with the version it selects (RFC 8446, section 4.1.4).
    Retry(u16),
    /// An alert with this description (RFC 8446, section 6). See [`alert_name`].
    Alert(u8),
}

const RECORD_HEADER_LENGTH: usize = 5;
const HANDSHAKE_HEADER_LENGTH: usize = 4;
const SERVER_HELLO: u8 = 2;
const SUPPORTED_VERSIONS: u16 = 43;

/// The `random` that makes a ServerHello a HelloRetryRequest: SHA-256 of that word (RFC 8446, section 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

impl Answer {
    /// Parses the first bytes of a reply; `None` if they are incomplete or not one of these messages.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (_, header) = parse_tls_record_header(bytes).ok()?;
        let payload = bytes.get(RECORD_HEADER_LENGTH..)?;
        match header.record_type {
            TlsRecordType::Alert => payload.get(1).copied().map(Self::Alert),
            TlsRecordType::Handshake if payload.first() == Some(&SERVER_HELLO) => {
                server_hello(payload.get(HANDSHAKE_HEADER_LENGTH..)?)
            }
            _ => None,
        }
    }
}

fn server_hello(body: &[u8]) -> Option<Answer> {
    let (version, rest) = body.split_first_chunk::<2>()?;
    let (random, rest) = rest.split_first_chunk::<32>()?;
    let (session_id_length, rest) = rest.split_first()?;
    // Skips the cipher suite and the compression method.
    let rest = rest.get(usize::from(*session_id_length) + 3..)?;
    let extensions = rest.get(2..).unwrap_or_default();
    let version = supported_version(extensions).unwrap_or(u16::from_be_bytes(*version));
    Some(if *random == RETRY { Answer::Retry(version) } else { Answer::Hello(version) })
}

/// Since TLS 1.3, the version is in an extension (RFC 8446, section 4.2.1).
fn supported_version(mut extensions: &[u8]) -> Option<u16> {
    while let Some((head, rest)) = extensions.split_first_chunk::<4>() {
        let [kind, length] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_be_bytes);
        let content = rest.get(..usize::from(length))?;
        if kind == SUPPORTED_VERSIONS {
            return content.try_into().ok().map(u16::from_be_bytes);
        }
        extensions = &rest[usize::from(length)..];
    }
    None
}

/// The name of an alert description in the IANA registry of TLS alerts; `None` if it is unknown.
#[must_use]
pub fn alert_name(description: u8) -> Option<&'static str> {
    Some(match description {
        0 => "close_notify",
        10 => "unexpected_message",
        20 => "bad_record_mac",
        22 => "record_overflow",
        40 => "handshake_failure",
        42 => "bad_certificate",
        43 => "unsupported_certificate",
        44 => "certificate_revoked",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        47 => "illegal_parameter",
        48 => "unknown_ca",
        49 => "access_denied",
        50 => "decode_error",
        51 => "decrypt_error",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        86 => "inappropriate_fallback",
        90 => "user_canceled",
        109 => "missing_extension",
        110 => "unsupported_extension",
        112 => "unrecognized_name",
        113 => "bad_certificate_status_response",
        115 => "unknown_psk_identity",
        116 => "certificate_required",
        120 => "no_application_protocol",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ServerHello in a record.
    fn hello(random: [u8; 32], extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend(random);
        body.push(32);
        body.extend([7; 32]);
        body.extend([0x13, 0x01, 0]);
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        let length = u8::try_from(body.len()).unwrap();
        let record = [22, 3, 3, 0, length + 4, SERVER_HELLO, 0, 0, length];
        [&record[..], &body].concat()
    }

    #[test]
    fn the_negotiated_version_is_found() {
        let key_share = [0, 51, 0, 2, 0, 29];
        let chosen = [0, 43, 0, 2, 3, 4];
        let extensions = [&key_share[..], &chosen].concat();
        assert_eq!(Answer::parse(&hello([1; 32], &extensions)), Some(Answer::Hello(0x0304)));
        assert_eq!(Answer::parse(&hello(RETRY, &extensions)), Some(Answer::Retry(0x0304)));
        assert_eq!(Answer::parse(&hello([1; 32], &key_share)), Some(Answer::Hello(0x0303)));
        assert_eq!(Answer::parse(&hello([1; 32], &[])), Some(Answer::Hello(0x0303)));
    }

    #[test]
    fn alerts_have_names() {
        let alert = Answer::parse(&[21, 3, 3, 0, 2, 2, 40]);
        assert_eq!(alert, Some(Answer::Alert(40)));
        assert_eq!((alert_name(40), alert_name(255)), (Some("handshake_failure"), None));
        // Those that TLS 1.3 has no more, and that of ECH, which servers do not send in the clear.
        let others = [21, 30, 41, 60, 100, 111, 114, 121];
        for description in 0..=u8::MAX {
            let letters = alert_name(description).map(|name| name.replace('_', ""));
            let expected =
                rustls::AlertDescription::from(description).as_str().filter(|_| !others.contains(&description));
            let expected = expected.map(|name| name.to_lowercase().replace("unrecognised", "unrecognized"));
            assert_eq!(letters, expected, "{description}");
        }
    }

    #[test]
    fn truncated_and_other_messages_are_not_parsed() {
        let whole = hello([1; 32], &[0, 43, 0, 2, 3, 4]);
        for length in 0..whole.len() {
            // A hello truncated in its extensions looks like one without any.
            let answer = Answer::parse(&whole[..length]);
            assert!(answer.is_none() || answer == Some(Answer::Hello(0x0303)), "{length}");
        }
        let mut certificate = whole.clone();
        certificate[RECORD_HEADER_LENGTH] = 11;
        assert_eq!(Answer::parse(&certificate), None);
        for bytes in
            [&b"HTTP/1.1 400 Bad Request"[..], &[22, 3, 3, 0, 4, 11, 0, 0, 0], &[23, 3, 3, 0, 1, 0], &[21, 3, 3, 0, 2]]
        {
            assert_eq!(Answer::parse(bytes), None, "{bytes:?}");
        }
    }
}
