//! The lists in a hello, in the client's order. They borrow from the message and are iterated without copying.

use std::iter::FusedIterator;

use super::{Absent, Cursor, Field, Reason};

/// The offered application protocols (RFC 7301, section 3.1).
#[derive(Clone, Copy, Debug)]
pub struct Alpn<'a>(&'a [u8]);

impl<'a> Alpn<'a> {
    pub(super) fn parse(content: &'a [u8]) -> Result<Self, Absent> {
        let mut content = Cursor(content);
        let list = content.vector_u16(Field::Extensions).map_err(|_| Absent::Malformed)?;
        if content.is_empty() { Self::from_list(list) } else { Err(Absent::Malformed) }
    }

    /// Parses a `ProtocolNameList` without its own length: each name is preceded by one byte with its length.
    ///
    /// # Errors
    ///
    /// The list is empty or malformed.
    pub fn from_list(list: &'a [u8]) -> Result<Self, Absent> {
        if list.is_empty() {
            return Err(Absent::Malformed);
        }
        let mut rest = Cursor(list);
        while !rest.is_empty() {
            // "Empty strings MUST NOT be included and byte strings MUST NOT be truncated." (RFC 7301, section 3.1)
            if rest.vector_u8(Field::Extensions).map_err(|_| Absent::Malformed)?.is_empty() {
                return Err(Absent::Malformed);
            }
        }
        Ok(Self(list))
    }

    /// Encodes names as such a list; `None` if one is empty or longer than 255 bytes.
    pub fn encode<'p>(names: impl IntoIterator<Item = &'p [u8]>) -> Option<Vec<u8>> {
        let mut list = Vec::new();
        for name in names {
            list.push(u8::try_from(name.len()).ok().filter(|length| *length > 0)?);
            list.extend(name);
        }
        Some(list)
    }

    /// The `ProtocolNameList` without its length.
    #[must_use]
    pub fn as_list(&self) -> &'a [u8] {
        self.0
    }

    /// The names of the protocols, such as `h2`. They are untrusted: escape them before showing them.
    #[must_use]
    pub fn iter(&self) -> Protocols<'a> {
        Protocols(Cursor(self.0))
    }
}

/// An iterator over the names in an [`Alpn`] list.
#[derive(Clone, Debug)]
pub struct Protocols<'a>(Cursor<'a>);

impl<'a> Iterator for Protocols<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        self.0.vector_u8(Field::Extensions).ok()
    }
}

impl FusedIterator for Protocols<'_> {}

/// The offered TLS versions (RFC 8446, section 4.2.1).
#[derive(Clone, Copy, Debug)]
pub struct SupportedVersions<'a>(&'a [[u8; 2]]);

impl<'a> SupportedVersions<'a> {
    pub(super) fn parse(content: &'a [u8]) -> Result<Self, Absent> {
        let mut content = Cursor(content);
        let list = content.vector_u8(Field::Extensions).map_err(|_| Absent::Malformed)?;
        let codes = codes(list).filter(|_| content.is_empty());
        codes.map(Self).ok_or(Absent::Malformed)
    }

    /// The versions as encoded in TLS: `0x0304` is TLS 1.3.
    #[must_use]
    pub fn iter(&self) -> Codes<'a> {
        Codes(self.0.iter())
    }
}

/// The offered cipher suites (RFC 8446, section 4.1.2), at least one.
#[derive(Clone, Copy, Debug)]
pub struct CipherSuites<'a>(&'a [[u8; 2]]);

impl<'a> CipherSuites<'a> {
    pub(super) fn from_list(list: &'a [u8]) -> Option<Self> {
        codes(list).map(Self)
    }

    /// The suites as encoded in TLS: `0x1301` is `TLS_AES_128_GCM_SHA256`.
    #[must_use]
    pub fn iter(&self) -> Codes<'a> {
        Codes(self.0.iter())
    }
}

/// One or more codes of two bytes each.
fn codes(list: &[u8]) -> Option<&[[u8; 2]]> {
    let (codes, rest) = list.as_chunks();
    (rest.is_empty() && !codes.is_empty()).then_some(codes)
}

/// An iterator over the codes in [`SupportedVersions`] or [`CipherSuites`].
#[derive(Clone, Debug)]
pub struct Codes<'a>(std::slice::Iter<'a, [u8; 2]>);

#[cfg(feature = "ja4")]
impl<'a> Codes<'a> {
    /// The codes of an extension that consists of a vector of them; `None` if it is malformed.
    pub(super) fn from_vector(content: &'a [u8]) -> Option<Self> {
        let mut content = Cursor(content);
        let list = content.vector_u16(Field::Extensions).ok().filter(|_| content.is_empty())?;
        codes(list).map(|codes| Self(codes.iter()))
    }
}

impl Iterator for Codes<'_> {
    type Item = u16;

    fn next(&mut self) -> Option<u16> {
        self.0.next().copied().map(u16::from_be_bytes)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl DoubleEndedIterator for Codes<'_> {
    fn next_back(&mut self) -> Option<u16> {
        self.0.next_back().copied().map(u16::from_be_bytes)
    }
}

impl ExactSizeIterator for Codes<'_> {}
impl FusedIterator for Codes<'_> {}

/// The extensions of a hello (RFC 8446, section 4.2), including GREASE; no type occurs twice. There may be none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extensions<'a>(pub(super) &'a [u8]);

impl<'a> Extensions<'a> {
    /// Iterates over the extensions.
    #[must_use]
    pub fn iter(&self) -> ExtensionsIter<'a> {
        ExtensionsIter(Cursor(self.0))
    }

    /// Iterates over the types of the extensions.
    pub fn types(&self) -> impl Iterator<Item = u16> + use<'a> {
        self.iter().map(|extension| extension.extension_type)
    }
}

/// An extension. Only its length was validated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension<'a> {
    /// The type as encoded in TLS: 16 is ALPN.
    pub extension_type: u16,
    /// The content, not parsed.
    pub content: &'a [u8],
}

impl<'a> Extension<'a> {
    pub(super) fn read(block: &mut Cursor<'a>) -> Result<Self, Reason> {
        let extension_type = block.u16(Field::Extensions)?;
        let content = block.vector_u16(Field::Extensions)?;
        Ok(Self { extension_type, content })
    }
}

/// An iterator over [`Extensions`].
#[derive(Clone, Debug)]
pub struct ExtensionsIter<'a>(Cursor<'a>);

impl<'a> Iterator for ExtensionsIter<'a> {
    type Item = Extension<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        Extension::read(&mut self.0).ok()
    }
}

impl FusedIterator for ExtensionsIter<'_> {}

macro_rules! into_iterator {
    ($($list:ident: $iterator:ident of $item:ty),+) => {$(
        impl<'a> IntoIterator for $list<'a> {
            type Item = $item;
            type IntoIter = $iterator<'a>;

            fn into_iter(self) -> Self::IntoIter {
                self.iter()
            }
        }

        impl<'a> IntoIterator for &$list<'a> {
            type Item = $item;
            type IntoIter = $iterator<'a>;

            fn into_iter(self) -> Self::IntoIter {
                self.iter()
            }
        }
    )+};
}

into_iterator!(
    Alpn: Protocols of &'a [u8],
    SupportedVersions: Codes of u16,
    CipherSuites: Codes of u16,
    Extensions: ExtensionsIter of Extension<'a>
);

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::sample::{self, Hello, vector_u16};
    use super::super::{ClientHello, Reason};
    use super::*;

    #[test]
    fn iterators_are_fused_and_exact() {
        let message = Hello::to("a.example").alpn(&["h2", "http/1.1"]).message();
        let hello = ClientHello::parse(&message).unwrap();
        let mut suites = hello.cipher_suites.iter();
        assert_eq!(suites.len(), 4);
        assert_eq!((suites.next(), suites.next_back(), suites.len()), (Some(0x1301), Some(0xc02f), 2));
        let mut protocols = hello.alpn.unwrap().into_iter();
        assert_eq!(protocols.by_ref().count(), 2);
        assert_eq!(protocols.next(), None);
        let mut extensions = hello.extensions.iter();
        assert_eq!(extensions.by_ref().last().unwrap().extension_type, sample::ALPN);
        assert_eq!(extensions.next(), None);
        for (extension, extension_type) in (&hello.extensions).into_iter().zip(hello.extensions.types()) {
            assert_eq!(extension.extension_type, extension_type);
        }
    }

    #[test]
    fn names_that_cannot_be_in_a_list_are_not_encoded() {
        let longest = [b'a'; 255];
        let list = Alpn::encode([&b"h2"[..], &longest]).unwrap();
        assert_eq!(Alpn::from_list(&list).unwrap().iter().collect::<Vec<_>>(), [&b"h2"[..], &longest]);
        assert_eq!(Alpn::encode([&b"h2"[..], b""]), None);
        assert_eq!(Alpn::encode([&[b'a'; 256][..]]), None);
    }

    #[test]
    fn a_hello_without_extensions_lists_none() {
        for hello in [Hello::new().without_extensions(), Hello { extensions: Some(vec![]), ..Hello::new() }] {
            let message = hello.message();
            assert_eq!(ClientHello::parse(&message).unwrap().extensions.iter().count(), 0);
        }
    }

    #[test]
    fn a08_no_cipher_suite_or_half_of_one_is_refused() {
        for cipher_suites in [vec![], vec![0x13], vec![0x13, 0x01, 0x13]] {
            let message = Hello { cipher_suites, ..Hello::new() }.message();
            let refused = ClientHello::parse(&message).unwrap_err().reason;
            assert_eq!(refused, Reason::Length(Field::CipherSuites));
        }
    }

    #[test]
    fn half_a_version_is_malformed() {
        for content in [&[0][..], &[1, 3], &[3, 3, 4, 3], &[2, 3, 4, 0]] {
            assert_eq!(SupportedVersions::parse(content).err(), Some(Absent::Malformed), "{content:?}");
        }
    }

    proptest! {
        #[test]
        fn lists_contain_what_was_sent(
            suites in vec(any::<u16>(), 1..40),
            versions in vec(any::<u16>(), 1..20),
            protocols in vec(vec(any::<u8>(), 1..20), 1..8),
            others in vec((64_u16.., vec(any::<u8>(), 0..30)), 0..30),
        ) {
            let mut sent = others;
            let mut seen = std::collections::HashSet::new();
            sent.retain(|(extension_type, _)| seen.insert(*extension_type));
            let list: Vec<u8> = protocols.iter().flat_map(|protocol| sample::vector_u8(protocol)).collect();
            sent.push((sample::ALPN, vector_u16(&list)));
            sent.push((sample::SUPPORTED_VERSIONS, sample::vector_u8(&bytes(&versions))));
            let hello = Hello { cipher_suites: bytes(&suites), extensions: Some(sent.clone()), ..Hello::new() };
            let message = hello.message();
            let hello = ClientHello::parse(&message).unwrap();
            prop_assert!(hello.cipher_suites.into_iter().eq(suites));
            prop_assert!(hello.supported_versions.unwrap().into_iter().eq(versions));
            prop_assert!(hello.alpn.unwrap().into_iter().eq(protocols.iter().map(Vec::as_slice)));
            prop_assert!(hello.extensions.types().eq(sent.iter().map(|(extension_type, _)| *extension_type)));
            let pairs = hello.extensions.into_iter().map(|extension| (extension.extension_type, extension.content));
            prop_assert!(pairs.eq(sent.iter().map(|(extension_type, content)| (*extension_type, content.as_slice()))));
        }
    }

    fn bytes(codes: &[u16]) -> Vec<u8> {
        codes.iter().flat_map(|code| code.to_be_bytes()).collect()
    }
}
