//! What the fuzzers check of random inputs, checked of every input up to a bound. The bytes stand for the classes that the
//! parser tells apart.

use super::fuzz_seeds::properties;
use crate::support::Hello;

/// Calls this with every string of up to `length` of these bytes.
fn every(bytes: &[u8], length: usize, check: &mut impl FnMut(&[u8])) {
    fn longer(prefix: &mut Vec<u8>, bytes: &[u8], length: usize, check: &mut impl FnMut(&[u8])) {
        check(prefix);
        if prefix.len() < length {
            for byte in bytes {
                prefix.push(*byte);
                longer(prefix, bytes, length, check);
                prefix.pop();
            }
        }
    }
    longer(&mut Vec::new(), bytes, length, check);
}

#[test]
fn every_short_name_holds() {
    let mut count = 0;
    every(b"aX09-_.:[\0\xc3", 5, &mut |name| {
        properties::name(name);
        count += 1;
    });
    assert_eq!(count, (0..=5).map(|length| 11_usize.pow(length)).sum::<usize>());
}

#[test]
fn every_start_of_a_hello_holds() {
    let mut count = 0;
    // Record and message types, versions, and lengths of nothing, of little, of 2^14 and beyond.
    every(&[0, 1, 2, 3, 21, 22, 64, 255], 6, &mut |start| {
        properties::client_hello(start);
        count += 1;
    });
    assert_eq!(count, (0..=6).map(|length| 8_usize.pow(length)).sum::<usize>());
}

#[test]
fn a08_a_hello_with_any_byte_changed_names_no_other_than_rustls_sees() {
    let hello = Hello::to("a.example").record();
    for at in 0..hello.len() {
        let mut changed = hello.clone();
        for byte in 0..=u8::MAX {
            changed[at] = byte;
            properties::differential(&changed);
        }
    }
}

#[test]
fn every_short_proxy_header_holds() {
    const START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let address = [192, 0, 2, 1, 192, 0, 2, 2, 4, 87, 1, 187];
    // Command, family, length and what follows: addresses, then up to two TLVs.
    every(&[0, 1, 3, 4, 12, 0x11, 0x20, 0x21], 4, &mut |start| {
        properties::proxy_header(&[START, start].concat());
    });
    every(&[0, 1, 2, 3, 4, 255], 6, &mut |tlvs| {
        let length = u8::try_from(address.len() + tlvs.len()).unwrap();
        properties::proxy_header(&[START, &[0x21, 0x11, 0, length], &address, tlvs].concat());
    });
}
