//! Hellos made by hand, well-formed unless a test says otherwise.

#![allow(dead_code, reason = "shared by unit tests, integration tests and benches, each of which uses a part")]
#![allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "test code")]

pub const SERVER_NAME: u16 = 0;
pub const ALPN: u16 = 16;
pub const PADDING: u16 = 21;
pub const EARLY_DATA: u16 = 42;
pub const SUPPORTED_VERSIONS: u16 = 43;
pub const KEY_SHARE: u16 = 51;
pub const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

#[derive(Clone)]
pub struct Hello {
    pub legacy_version: u16,
    pub session_id: Vec<u8>,
    pub cipher_suites: Vec<u8>,
    pub compression_methods: Vec<u8>,
    /// `None`: the message ends before the extension block.
    pub extensions: Option<Vec<(u16, Vec<u8>)>>,
}

impl Hello {
    /// What a TLS 1.3 client sends, without a name.
    pub fn new() -> Self {
        Self {
            legacy_version: 0x0303,
            session_id: vec![0x5e; 32],
            cipher_suites: [[0x13, 0x01], [0x13, 0x02], [0x13, 0x03], [0xc0, 0x2f]].concat(),
            compression_methods: vec![0],
            extensions: Some(vec![
                (10, vector_u16(&[0x00, 0x1d, 0x00, 0x17])),
                (13, vector_u16(&[0x04, 0x03, 0x08, 0x04])),
                (SUPPORTED_VERSIONS, vector_u8(&[0x03, 0x04, 0x03, 0x03])),
                (KEY_SHARE, vector_u16(&[&[0x00, 0x1d][..], &vector_u16(&[0x7e; 32])].concat())),
            ]),
        }
    }

    /// The same, asking for `name`.
    pub fn to(name: &str) -> Self {
        Self::new().server_name(name.as_bytes())
    }

    pub fn server_name(self, name: &[u8]) -> Self {
        self.extension(SERVER_NAME, server_name_list(&[(0, name)]))
    }

    pub fn alpn(self, protocols: &[&str]) -> Self {
        let list: Vec<u8> = protocols.iter().flat_map(|protocol| vector_u8(protocol.as_bytes())).collect();
        self.extension(ALPN, vector_u16(&list))
    }

    pub fn extension(mut self, extension_type: u16, content: impl Into<Vec<u8>>) -> Self {
        self.extensions.get_or_insert_default().push((extension_type, content.into()));
        self
    }

    /// The extension in front of all others.
    pub fn first_extension(mut self, extension_type: u16, content: impl Into<Vec<u8>>) -> Self {
        self.extensions.get_or_insert_default().insert(0, (extension_type, content.into()));
        self
    }

    pub fn without_extensions(mut self) -> Self {
        self.extensions = None;
        self
    }

    /// Padded (RFC 7685) until the record is `length` bytes long.
    pub fn padded_to(self, length: usize) -> Self {
        let missing = length - self.record().len() - 4;
        self.extension(PADDING, vec![0; missing])
    }

    /// The handshake message.
    pub fn message(&self) -> Vec<u8> {
        let mut body = self.legacy_version.to_be_bytes().to_vec();
        body.extend([0xa5; 32]);
        body.extend(vector_u8(&self.session_id));
        body.extend(vector_u16(&self.cipher_suites));
        body.extend(vector_u8(&self.compression_methods));
        if let Some(extensions) = &self.extensions {
            let block: Vec<u8> = extensions
                .iter()
                .flat_map(|(extension_type, content)| {
                    [&extension_type.to_be_bytes()[..], &vector_u16(content)].concat()
                })
                .collect();
            body.extend(vector_u16(&block));
        }
        handshake(1, &body)
    }

    /// The message in one record.
    pub fn record(&self) -> Vec<u8> {
        record(22, &self.message())
    }

    /// The message cut into records of `size` bytes each.
    pub fn records(&self, size: usize) -> Vec<u8> {
        self.message().chunks(size).flat_map(|fragment| record(22, fragment)).collect()
    }
}

pub fn record(content_type: u8, payload: &[u8]) -> Vec<u8> {
    [&[content_type, 3, 1][..], &vector_u16(payload)].concat()
}

pub fn handshake(message_type: u8, body: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[message_type, high, middle, low], body].concat()
}

pub fn server_name_list(names: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> =
        names.iter().flat_map(|(name_type, name)| [&[*name_type][..], &vector_u16(name)].concat()).collect();
    vector_u16(&list)
}

pub fn vector_u8(content: &[u8]) -> Vec<u8> {
    [&[u8::try_from(content.len()).unwrap()], content].concat()
}

pub fn vector_u16(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
}
