//! However the bytes arrive, the answer is the same, and it is given at the same byte.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snigate::client_hello::{Framing, Parsed};

fuzz_target!(|received: &[u8]| {
    let at_once = format!("{:?}", Framing::default().parse(received));

    let mut framing = Framing::default();
    let decided_at =
        (0..=received.len()).find(|length| !matches!(framing.parse(&received[..*length]), Parsed::Incomplete));
    let Some(decided_at) = decided_at else {
        assert_eq!(at_once, "Incomplete");
        return;
    };
    assert_eq!(at_once, format!("{:?}", framing.parse(&received[..decided_at])), "byte by byte");
    assert_eq!(at_once, format!("{:?}", framing.parse(received)), "asked again, with what follows");
    if let Some(length) = framing.length() {
        assert_eq!(length, decided_at, "complete at its last byte");
    }

    // Every strict prefix is incomplete to a parser that has seen nothing before, too.
    let step = (decided_at / 64).max(1);
    for length in (0..decided_at).step_by(step) {
        assert!(matches!(Framing::default().parse(&received[..length]), Parsed::Incomplete));
    }

    // Two segments, cut where the input says.
    let cut = usize::from(*received.last().unwrap_or(&0)) * decided_at / 255;
    let mut framing = Framing::default();
    let _ = framing.advance(&received[..cut]);
    assert_eq!(at_once, format!("{:?}", framing.parse(received)), "cut at {cut}");
});
