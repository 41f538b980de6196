//! How many instructions a hello costs by its size, counted by valgrind, so that the numbers repeat: `cargo bench --bench
//! linear`. Fails if a larger one costs more per byte.

#![allow(clippy::pedantic, clippy::unwrap_used, missing_docs, reason = "a bench")]

use std::hint::black_box;
use std::process::{Command, Stdio};

use snigate::client_hello::{Framing, Parsed, Progress};

#[path = "../tests/support/hello.rs"]
mod sample;

use sample::Hello;

const NAME: &str = "devkubernetes01.example.com";
/// Room for a record header per byte.
const LIMIT: usize = 6 * 65_536;
/// Small enough that every hello here has several: one in a single record is not copied, and costs nothing per byte.
const RECORD: usize = 1_000;
/// How much more per byte the largest of a kind may cost than the smallest: a buffer that grows is copied up to twice. With
/// quadratic time it would be sixteen times as much.
const TOLERANCE: f64 = 2.5;

/// A kind of hello, and the sizes that are compared.
struct Kind {
    name: &'static str,
    sizes: [usize; 3],
    make: fn(usize) -> Vec<u8>,
    /// Hands over the bytes so many at a time.
    segment: usize,
}

const KINDS: [Kind; 5] = [
    Kind { name: "bytes of padding", sizes: [4_000, 16_000, 64_000], make: padded, segment: usize::MAX },
    Kind { name: "tiny extensions", sizes: [1_000, 4_000, 16_000], make: extensions, segment: usize::MAX },
    Kind { name: "cipher suites", sizes: [2_000, 8_000, 32_000], make: cipher_suites, segment: usize::MAX },
    Kind { name: "records of a byte", sizes: [4_000, 16_000, 64_000], make: records, segment: usize::MAX },
    Kind { name: "segments of a byte", sizes: [4_000, 16_000, 64_000], make: padded, segment: 1 },
];

fn padded(size: usize) -> Vec<u8> {
    Hello::to(NAME).extension(sample::PADDING, vec![0; size]).records(RECORD)
}

fn extensions(count: usize) -> Vec<u8> {
    let types = 0x4000..0x4000 + u16::try_from(count).unwrap();
    types.fold(Hello::to(NAME), |hello, number| hello.extension(number, [])).records(RECORD)
}

fn cipher_suites(count: usize) -> Vec<u8> {
    Hello { cipher_suites: [0x13, 0x01].repeat(count), ..Hello::to(NAME) }.records(RECORD)
}

fn records(size: usize) -> Vec<u8> {
    Hello::to(NAME).extension(sample::PADDING, vec![0; size]).records(1)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, flag, kind, size, times] = &arguments[..]
        && flag == "--parse"
    {
        let kind = KINDS.iter().find(|known| known.name == kind).unwrap();
        return parse(&(kind.make)(size.parse().unwrap()), kind.segment, times.parse().unwrap());
    }
    println!("{:<20} {:>7} {:>9} {:>13} {:>9}", "", "number", "bytes", "instructions", "per byte");
    for kind in &KINDS {
        let mut smallest = None;
        for size in kind.sizes {
            let bytes = (kind.make)(size).len();
            let instructions = counted(kind, size, 2) - counted(kind, size, 1);
            let per_byte = instructions as f64 / bytes as f64;
            println!("{:<20} {size:>7} {bytes:>9} {instructions:>13} {per_byte:>9.2}", kind.name);
            let limit = *smallest.get_or_insert(per_byte) * TOLERANCE;
            assert!(per_byte <= limit, "{size} {}: {per_byte:.2} instructions per byte, at most {limit:.2}", kind.name);
        }
    }
}

fn parse(received: &[u8], segment: usize, times: usize) {
    for _ in 0..times {
        let mut framing = Framing::new(LIMIT);
        let mut so_far = 0;
        while so_far < received.len() {
            so_far = received.len().min(so_far.saturating_add(segment));
            let progress = framing.advance(black_box(&received[..so_far]));
            assert_eq!(progress == Ok(Progress::Complete), so_far == received.len());
        }
        let Parsed::Complete(hello) = framing.parse(black_box(received)) else { panic!("not a hello") };
        assert_eq!(hello.server_name.unwrap().as_str(), NAME);
    }
}

/// The instructions of a process that parses the hello so many times.
fn counted(kind: &Kind, size: usize, times: usize) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(["--parse", kind.name, &size.to_string(), &times.to_string()])
        .stdout(Stdio::null())
        .output()
        .expect("valgrind is needed");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let count = told.lines().find_map(|line| line.split_once("Collected : ")).expect("valgrind tells the count");
    count.1.trim().parse().unwrap()
}
