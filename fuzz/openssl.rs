//! The same question to OpenSSL.

use std::io::{self, Read, Write};
use std::sync::{Arc, LazyLock, Mutex};

use openssl::ssl::{NameType, SniError, Ssl, SslContext, SslMethod, SslStream, SslVersion};
use snigate::client_hello::{DEFAULT_LIMIT, Framing, Parsed};

/// We never see another name than OpenSSL does, nor one where it sees none.
pub fn differential(received: &[u8]) {
    let received = &received[..received.len().min(DEFAULT_LIMIT)];
    let mut framing = Framing::default();
    let Parsed::Complete(ours) = framing.parse(received) else { return };
    let Some(theirs) = name(received) else { return };
    let ours = ours.server_name.map(|name| name.to_string());
    let theirs = theirs.map(|name| String::from_utf8_lossy(&name).trim_end_matches('.').to_ascii_lowercase());
    assert_eq!(ours, theirs);
}

/// What a server sees and where it keeps it.
type Seen = Arc<Mutex<Option<Option<Vec<u8>>>>>;

static CONTEXT: LazyLock<(SslContext, Seen)> = LazyLock::new(|| {
    let seen: Seen = Arc::default();
    let mut builder = SslContext::builder(SslMethod::tls_server()).unwrap();
    builder.set_min_proto_version(Some(SslVersion::TLS1)).unwrap();
    builder.set_security_level(0);
    let told = Arc::clone(&seen);
    builder.set_servername_callback(move |ssl, _| {
        let name = ssl.servername_raw(NameType::HOST_NAME).map(<[u8]>::to_vec);
        *told.lock().unwrap() = Some(name);
        // Enough was seen.
        Err(SniError::ALERT_FATAL)
    });
    (builder.build(), seen)
});

/// The name that OpenSSL takes from the hello; `None` if it refuses the hello before it asks for the name.
fn name(received: &[u8]) -> Option<Option<Vec<u8>>> {
    struct Wire<'a>(&'a [u8]);
    impl Read for Wire<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for Wire<'_> {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (context, seen) = &*CONTEXT;
    *seen.lock().unwrap() = None;
    let _ = SslStream::new(Ssl::new(context).unwrap(), Wire(received)).unwrap().accept();
    seen.lock().unwrap().take()
}
