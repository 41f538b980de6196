//! A hello says the same however it is cut into records.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snigate::client_hello::{Framing, Parsed, Progress};

/// Room for one record header per byte.
const LIMIT: usize = 6 * 16 * 1024;

fuzz_target!(|received: &[u8]| {
    let mut framing = Framing::default();
    let Ok(Progress::Complete) = framing.advance(received) else { return };
    let message = framing.message(received).to_vec();
    let expected = describe(&Framing::default().parse(received));

    // The sizes of the records are taken from the input itself.
    let mut records = Vec::new();
    let mut rest = &message[..];
    for size in received.iter().rev().cycle() {
        let (fragment, more) = rest.split_at(usize::from(*size).max(1).min(rest.len()));
        records.extend([22, 3, 1]);
        records.extend(u16::try_from(fragment.len()).unwrap().to_be_bytes());
        records.extend(fragment);
        rest = more;
        if rest.is_empty() {
            break;
        }
    }
    let mut recut = Framing::new(LIMIT);
    assert_eq!(describe(&recut.parse(&records)), expected);
    assert_eq!(recut.message(&records), message);
    assert_eq!(recut.length(), Some(records.len()));
});

fn describe(parsed: &Parsed<'_>) -> String {
    format!("{parsed:?}")
}
