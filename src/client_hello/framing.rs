//! Finds the ClientHello in the received bytes. Quotations are of RFC 8446.

use tls_parser::{TlsHandshakeType, TlsRecordType, parse_tls_record_header};

use super::{ClientHello, HANDSHAKE_HEADER_LENGTH, Parsed, Reason};

/// The default limit on the size of a hello, including record headers: 16 KiB.
pub const DEFAULT_LIMIT: usize = 16 * 1024;

/// `TLSPlaintext.length` may not exceed this (RFC 8446, section 5.1).
const MAX_RECORD_LENGTH: usize = 1 << 14;
const RECORD_HEADER_LENGTH: usize = 5;
/// A ClientHello with an empty session id, one cipher suite, one compression method and no extensions.
const MIN_BODY_LENGTH: usize = 2 + 32 + 1 + 2 + 2 + 1 + 1;

/// Whether the hello is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Incomplete,
    /// [`Framing::message`] returns the message.
    Complete,
}

/// Follows a hello through TCP segments and TLS records; one per connection.
///
/// Each call gets all bytes received so far, and examines only few of those from earlier calls again.
#[derive(Debug)]
pub struct Framing {
    limit: usize,
    /// Where the header of the current record starts in the received bytes.
    record: usize,
    /// The part of the message in earlier records.
    fragments: Vec<u8>,
    /// The length of the complete hello in received bytes.
    length: Option<usize>,
}

impl Default for Framing {
    fn default() -> Self {
        Self::new(DEFAULT_LIMIT)
    }
}

impl Framing {
    /// Accepts hellos of up to `limit` bytes, including record headers.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, record: 0, fragments: Vec::new(), length: None }
    }

    /// Continues to parse. `received` is everything received so far, including the bytes of earlier calls.
    pub fn parse<'a>(&'a mut self, received: &'a [u8]) -> Parsed<'a> {
        match self.advance(received) {
            Ok(Progress::Incomplete) => Parsed::Incomplete,
            Ok(Progress::Complete) => match ClientHello::parse(self.message(received)) {
                Ok(hello) => Parsed::Complete(hello),
                Err(invalid) => Parsed::Invalid(invalid),
            },
            Err(reason) => Parsed::Invalid(reason.into()),
        }
    }

    /// Like [`parse`](Self::parse), but without parsing the message once it is complete.
    ///
    /// # Errors
    ///
    /// The bytes are not the start of a hello, or it is larger than the limit.
    pub fn advance(&mut self, received: &[u8]) -> Result<Progress, Reason> {
        if self.length.is_some() {
            return Ok(Progress::Complete);
        }
        let within_limit = &received[..received.len().min(self.limit)];
        match self.advance_within_limit(within_limit)? {
            Progress::Incomplete if within_limit.len() == self.limit => Err(Reason::TooLarge),
            progress => Ok(progress),
        }
    }

    fn advance_within_limit(&mut self, received: &[u8]) -> Result<Progress, Reason> {
        loop {
            let Some(record_length) = record_length(&received[self.record..])? else {
                return Ok(Progress::Incomplete);
            };
            let start = self.record + RECORD_HEADER_LENGTH;
            let end = start + record_length;
            let payload = &received[start..end.min(received.len())];

            let message_length = message_length(&self.fragments, payload)?;
            let missing = message_length.map(|length| length - self.fragments.len());
            if let Some(missing) = missing {
                if start + missing > self.limit {
                    return Err(Reason::TooLarge);
                }
                // Not before the record is complete: servers read whole records and would wait for the rest.
                if missing <= payload.len() && payload.len() == record_length {
                    if !self.fragments.is_empty() {
                        self.fragments.extend_from_slice(&payload[..missing]);
                    }
                    self.length = Some(start + missing);
                    return Ok(Progress::Complete);
                }
            }
            if payload.len() < record_length {
                return Ok(Progress::Incomplete);
            }
            // "Handshake messages MAY be […] fragmented across several records […]" (section 5.1)
            self.fragments.extend_from_slice(payload);
            self.record = end;
        }
    }

    /// The handshake message, including its header, once it is complete; empty before.
    #[must_use]
    pub fn message<'a>(&'a self, received: &'a [u8]) -> &'a [u8] {
        match self.length {
            Some(length) if self.fragments.is_empty() => &received[RECORD_HEADER_LENGTH..length],
            Some(_) => &self.fragments,
            None => &[],
        }
    }

    /// Memory used for copied fragments, in bytes.
    #[must_use]
    pub fn copied(&self) -> usize {
        self.fragments.capacity()
    }

    /// The length of the hello in received bytes, once it is complete. What follows, such as early data, is not examined.
    #[must_use]
    pub fn length(&self) -> Option<usize> {
        self.length
    }
}

/// The length of the record that starts here, once its header is complete.
fn record_length(received: &[u8]) -> Result<Option<usize>, Reason> {
    let [content_type, rest @ ..] = received else { return Ok(None) };
    // "[…] if a handshake message is split over two or more records, there MUST NOT be any other records between them"
    // (section 5.1); before the first, nothing but a ClientHello is TLS to us.
    if TlsRecordType(*content_type) != TlsRecordType::Handshake {
        return Err(Reason::NotTls);
    }
    // Section 5.1 has the version ignored; but its first byte is what tells TLS from other protocols.
    if rest.first().is_some_and(|major| *major != 3) {
        return Err(Reason::NotTls);
    }
    let Ok((_, header)) = parse_tls_record_header(received) else { return Ok(None) };
    match usize::from(header.len) {
        // "Implementations MUST NOT send zero-length fragments of Handshake types […]" (section 5.1)
        0 => Err(Reason::EmptyRecord),
        length if length > MAX_RECORD_LENGTH => Err(Reason::RecordTooLong),
        length => Ok(Some(length)),
    }
}

/// The length of the handshake message with its header, once the header is complete.
fn message_length(fragments: &[u8], payload: &[u8]) -> Result<Option<usize>, Reason> {
    let mut bytes = fragments.iter().chain(payload).copied();
    let Some(message_type) = bytes.next() else { return Ok(None) };
    // "[…] it is REQUIRED to send the ClientHello as its first TLS message." (section 4.1.2)
    if TlsHandshakeType(message_type) != TlsHandshakeType::ClientHello {
        return Err(Reason::NotClientHello);
    }
    let (Some(high), Some(middle), Some(low)) = (bytes.next(), bytes.next(), bytes.next()) else { return Ok(None) };
    let body_length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    if body_length < MIN_BODY_LENGTH {
        return Err(Reason::TooShort);
    }
    Ok(Some(HANDSHAKE_HEADER_LENGTH + body_length))
}

#[cfg(test)]
mod tests {
    use super::super::sample::{Hello, handshake, record};
    use super::*;
    use crate::name::NameError;

    fn reason(received: &[u8]) -> Option<Reason> {
        match Framing::default().parse(received) {
            Parsed::Invalid(invalid) => Some(invalid.reason),
            Parsed::Complete(_) | Parsed::Incomplete => None,
        }
    }

    fn name(received: &[u8]) -> Option<String> {
        match Framing::default().parse(received) {
            Parsed::Complete(hello) => hello.server_name.map(|name| name.to_string()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a02_every_prefix_is_incomplete() {
        for hello in [Hello::to("a.example"), Hello::to("a.example").padded_to(1700), Hello::new().without_extensions()]
        {
            for raw in [hello.record(), hello.records(100), hello.records(1)] {
                for length in 0..raw.len() {
                    assert!(matches!(Framing::default().parse(&raw[..length]), Parsed::Incomplete), "{length}");
                }
                assert!(matches!(Framing::default().parse(&raw), Parsed::Complete(_)));
            }
        }
    }

    #[test]
    fn a01_byte_by_byte_is_the_same_as_at_once() {
        for raw in [Hello::to("a.example").record(), Hello::to("a.example").records(7)] {
            let mut framing = Framing::default();
            for length in 0..raw.len() {
                assert_eq!(framing.advance(&raw[..length]), Ok(Progress::Incomplete));
                assert!(framing.message(&raw[..length]).is_empty());
            }
            assert_eq!(framing.advance(&raw), Ok(Progress::Complete));
            assert_eq!(framing.message(&raw), Hello::to("a.example").message());
            assert_eq!(framing.length(), Some(raw.len()));
            let is_split = raw != Hello::to("a.example").record();
            let copied = if is_split { framing.message(&raw).len() } else { 0 };
            assert!(framing.copied() >= copied && (framing.copied() > 0) == is_split);
            assert_eq!(framing.advance(&raw), Ok(Progress::Complete), "asking again changes nothing");
            assert_eq!(framing.message(&raw), Hello::to("a.example").message());
        }
    }

    #[test]
    fn a03_hello_split_over_records() {
        let hello = Hello::to("a.example");
        for size in 1..=hello.message().len() {
            assert_eq!(name(&hello.records(size)).as_deref(), Some("a.example"), "records of {size}");
        }
        let mut with_empty_record = record(22, &hello.message()[..20]);
        with_empty_record.extend(record(22, &[]));
        assert_eq!(reason(&with_empty_record), Some(Reason::EmptyRecord));
    }

    #[test]
    fn a05_a06_the_limit_is_on_raw_bytes() {
        let hello = Hello::to("a.example").padded_to(15_000);
        assert_eq!(name(&hello.record()).as_deref(), Some("a.example"));

        let largest = Hello::to("a.example").padded_to(DEFAULT_LIMIT).record();
        assert_eq!(name(&largest).as_deref(), Some("a.example"));
        let too_large = Hello::to("a.example").padded_to(DEFAULT_LIMIT + 1);
        assert_eq!(reason(&too_large.record()[..9]), Some(Reason::TooLarge), "known from the handshake header");
        assert!(matches!(Framing::new(DEFAULT_LIMIT + 1).parse(&too_large.record()), Parsed::Complete(_)));

        let mut framing = Framing::new(700);
        let raw = Hello::to("a.example").records(1);
        let refused = (0..=raw.len()).find(|length| framing.advance(&raw[..*length]).is_err());
        assert!(refused.is_some_and(|length| length <= 700), "record headers count");

        let raw = record(22, &[&Hello::to("a.example").message()[..], b"garbage"].concat());
        let mut framing = Framing::new(raw.len() - 1);
        assert_eq!(framing.advance(&raw[..raw.len() - 2]), Ok(Progress::Incomplete));
        assert_eq!(framing.advance(&raw), Err(Reason::TooLarge), "so does what is behind the hello in its record");
    }

    #[test]
    fn a07_lengths_that_cannot_be_are_refused_at_once() {
        assert_eq!(reason(&[22, 3, 1, 0, 0]), Some(Reason::EmptyRecord));
        assert_eq!(reason(&[22, 3, 1, 0x40, 0x01]), Some(Reason::RecordTooLong));
        assert_eq!(reason(&[22, 3, 1, 0xff, 0xff]), Some(Reason::RecordTooLong));
        assert_eq!(reason(&[22, 3, 1, 0x40, 0x00, 1, 0xff, 0xff, 0xff]), Some(Reason::TooLarge));
        assert_eq!(reason(&[22, 3, 1, 0x40, 0x00, 1, 0x01, 0x00, 0x00]), Some(Reason::TooLarge));
        assert_eq!(reason(&record(22, &handshake(1, &[]))), Some(Reason::TooShort));
        assert_eq!(reason(&record(22, &handshake(1, &[0; MIN_BODY_LENGTH - 1]))), Some(Reason::TooShort));
        let smallest =
            Hello { session_id: vec![], cipher_suites: vec![0x13, 0x01], ..Hello::new().without_extensions() };
        assert_eq!(smallest.message().len(), HANDSHAKE_HEADER_LENGTH + MIN_BODY_LENGTH);
        assert_eq!(name(&smallest.record()), None);
    }

    #[test]
    fn a10_a_complete_message_with_a_bad_name_is_invalid() {
        let raw = Hello::to("a..example").record();
        assert_eq!(reason(&raw[..raw.len() - 1]), None);
        assert_eq!(reason(&raw), Some(Reason::Name(NameError::EmptyLabel)));
    }

    #[test]
    fn a13_what_is_not_tls_is_refused_at_the_first_byte_that_shows_it() {
        for (bytes, length) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], 1),
            (b"SSH-2.0-OpenSSH_9.9\r\n", 1),
            (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00", 1),
            (b"\x16\x02\x00", 2),
            (b"\x00", 1),
        ] {
            assert_eq!(reason(&bytes[..length]), Some(Reason::NotTls));
            assert_eq!(reason(bytes), Some(Reason::NotTls));
            assert_eq!(reason(&bytes[..length - 1]), None);
        }
    }

    #[test]
    fn a18_other_messages_first_are_refused() {
        let hello = Hello::to("a.example").record();
        for first in [record(21, &[1, 0]), record(20, &[1]), record(23, &[0; 40])] {
            assert_eq!(reason(&[first, hello.clone()].concat()), Some(Reason::NotTls));
        }
        assert_eq!(reason(&record(22, &handshake(0, &[]))), Some(Reason::NotClientHello));
        assert_eq!(reason(&[record(22, &[]), hello].concat()), Some(Reason::EmptyRecord));
    }

    #[test]
    fn a19_what_follows_the_hello_is_not_looked_at() {
        let hello = Hello::to("a.example");
        let in_the_same_record = record(22, &[&hello.message()[..], b"garbage"].concat());
        let in_the_next = [&hello.record()[..], b"garbage"].concat();
        for raw in [in_the_same_record, in_the_next] {
            let mut framing = Framing::default();
            assert_eq!(framing.advance(&raw), Ok(Progress::Complete));
            assert_eq!(framing.length(), Some(raw.len() - b"garbage".len()));
            assert_eq!(framing.message(&raw), hello.message());
        }
    }
}
