//! We never see another name than rustls does, nor one where it sees none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;
use snigate::client_hello::{DEFAULT_LIMIT, Framing, Parsed};

fuzz_target!(|received: &[u8]| {
    let received = &received[..received.len().min(DEFAULT_LIMIT)];
    let mut framing = Framing::default();
    let Parsed::Complete(ours) = framing.parse(received) else { return };
    let Some(theirs) = rustls_name(received) else { return };
    match (ours.server_name, theirs) {
        (Some(ours), Some(theirs)) => {
            assert!(ours.as_str().eq_ignore_ascii_case(theirs.trim_end_matches('.')), "{ours} is not {theirs}");
        }
        (Some(ours), None) => panic!("rustls sees no name where we see {ours}"),
        // We refuse more names than rustls does, but never take a hello with one for a hello without.
        (None, Some(theirs)) => panic!("rustls sees {theirs} where we see no name"),
        (None, None) => {}
    }
});

/// The name that rustls takes from the hello; `None` if it refuses the hello.
fn rustls_name(mut received: &[u8]) -> Option<Option<String>> {
    let mut acceptor = Acceptor::default();
    loop {
        match acceptor.accept() {
            Ok(Some(accepted)) => return Some(accepted.client_hello().server_name().map(ToOwned::to_owned)),
            Ok(None) if received.is_empty() => return None,
            Ok(None) => {
                acceptor.read_tls(&mut received).ok()?;
            }
            Err(_) => return None,
        }
    }
}
