//! Changes to hellos that keep, or break on purpose, the lengths of TLS: what a fuzzer that flips bytes rarely finds.

use fastrand::Rng;
use libfuzzer_sys::fuzzer_mutate;

#[path = "../tests/support/hello.rs"]
mod sample;

use sample::{ALPN, EARLY_DATA, ENCRYPTED_CLIENT_HELLO, Hello, PADDING, SERVER_NAME, SUPPORTED_VERSIONS};

const NAMES: [&[u8]; 12] = [
    b"a.example",
    b"A.Example.",
    b"b.example..",
    b"192.0.2.1",
    b"[::1]",
    b"a.example\0.b.example",
    b"*.example",
    b"xn--bcher-kva.example",
    b"",
    b".",
    b"a_b-c.example",
    b"\xc3\xa9.example",
];
const TYPES: [u16; 8] =
    [SERVER_NAME, ALPN, PADDING, EARLY_DATA, SUPPORTED_VERSIONS, ENCRYPTED_CLIENT_HELLO, 51, 0x0a0a];

/// For `fuzz_mutator!`: the bytes are changed in place; their new length is returned.
pub fn hello(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut rng = Rng::with_seed(seed.into());
    let read = if rng.u8(..4) == 0 { None } else { read(&data[..size]) };
    let Some(mut hello) = read else { return fuzzer_mutate(data, size, max_size) };
    for _ in 0..rng.usize(1..4) {
        change(&mut hello, &mut rng);
    }
    let mut bytes = match rng.u8(..4) {
        0 => hello.records(rng.usize(1..hello.message().len().max(2))),
        1 => hello.records(rng.usize(1..9)),
        _ => hello.record(),
    };
    if rng.u8(..4) == 0 {
        // Most of the lengths are near the beginning.
        let at = if rng.bool() { rng.usize(..bytes.len()) } else { rng.usize(..bytes.len().min(100)) };
        bytes[at] = bytes[at].wrapping_add(rng.u8(1..6)).wrapping_sub(rng.u8(1..6));
    }
    let length = bytes.len().min(max_size);
    data[..length].copy_from_slice(&bytes[..length]);
    length
}

fn change(hello: &mut Hello, rng: &mut Rng) {
    let name = rng.choice(NAMES).unwrap_or_default();
    let extensions = hello.extensions.get_or_insert_default();
    let at = if extensions.is_empty() { None } else { Some(rng.usize(..extensions.len())) };
    match (rng.u8(..14), at) {
        (0, Some(at)) => extensions.push(extensions[at].clone()),
        (1, Some(at)) => drop(extensions.remove(at)),
        (2, Some(at)) => extensions.rotate_left(at),
        (3, Some(at)) => extensions[at].0 = rng.choice(TYPES).unwrap_or_default(),
        (4, Some(at)) => {
            let content = &mut extensions[at].1;
            let keep = rng.usize(..=content.len());
            content.truncate(keep);
        }
        (5, Some(at)) => extensions[at].1.push(rng.u8(..)),
        (6, Some(at)) if !extensions[at].1.is_empty() => {
            let content = &mut extensions[at].1;
            let byte = rng.usize(..content.len());
            content[byte] = rng.u8(..);
        }
        (7, _) => extensions.insert(0, (SERVER_NAME, sample::server_name_list(&[(0, name)]))),
        (8, _) => {
            let other = rng.choice(NAMES).unwrap_or_default();
            extensions.push((SERVER_NAME, sample::server_name_list(&[(rng.u8(..3), name), (rng.u8(..2), other)])));
        }
        (9, _) => hello.session_id = vec![7; rng.usize(..40)],
        (10, _) => hello.cipher_suites = vec![0x13, 0x01, 0x13][..rng.usize(..4)].to_vec(),
        (11, _) => hello.compression_methods = vec![0; rng.usize(..3)],
        (12, _) => hello.extensions = None,
        _ => hello.legacy_version = rng.choice([0x0301, 0x0303, 0x0304, 0x0200]).unwrap_or_default(),
    }
}

/// Takes a hello apart as far as it is one; its random is not kept.
fn read(record: &[u8]) -> Option<Hello> {
    let mut rest = record.get(9..)?;
    let mut take = |length: usize| {
        let (taken, more) = rest.split_at_checked(length)?;
        rest = more;
        Some(taken.to_vec())
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
    let version = take(2)?;
    take(32)?;
    let mut vector = |prefix: usize| {
        let length = number(&take(prefix)?);
        take(length)
    };
    let (session_id, cipher_suites, compression_methods) = (vector(1)?, vector(2)?, vector(1)?);
    let block = vector(2).unwrap_or_default();
    let mut extensions = Vec::new();
    let mut block = &block[..];
    while let [a, b, high, low, more @ ..] = block {
        let Some((content, more)) = more.split_at_checked(number(&[*high, *low])) else { break };
        extensions.push((u16::from_be_bytes([*a, *b]), content.to_vec()));
        block = more;
    }
    Some(Hello {
        legacy_version: u16::from_be_bytes([version[0], version[1]]),
        session_id,
        cipher_suites,
        compression_methods,
        extensions: Some(extensions),
    })
}
