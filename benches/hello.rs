//! What one hello costs, and one lookup in lists of networks: `cargo bench --bench hello`.

#![allow(clippy::pedantic, clippy::unwrap_used, missing_docs, reason = "a bench")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use criterion::{Criterion, criterion_group, criterion_main};
use ipnet::IpNet;
use snigate::client_hello::{ClientHello, Framing, Parsed};
use snigate::name::{NamePattern, ServerName};
use snigate::route::{Arrival, Client, Matchers, RouteTable, Tlvs};

#[path = "../tests/support/hello.rs"]
mod sample;

use sample::Hello;

fn parser(criterion: &mut Criterion) {
    let hello = Hello::to("devkubernetes01.example.com").alpn(&["h2", "http/1.1"]);
    let in_sixteen = hello.clone().padded_to(1730);
    let cases = [
        ("517 bytes, one record", hello.clone().padded_to(517).record(), 0),
        ("1730 bytes, one record", hello.padded_to(1730).record(), 0),
        ("1730 bytes, 16 records", in_sixteen.records(in_sixteen.message().len().div_ceil(16)), usize::MAX),
    ];
    let mut group = criterion.benchmark_group("client_hello");
    for (name, raw, most_allocations) in cases {
        let parse = || match Framing::default().parse(black_box(&raw)) {
            Parsed::Complete(hello) => hello.server_name.is_some(),
            _ => false,
        };
        let walk = || match Framing::default().parse(black_box(&raw)) {
            Parsed::Complete(hello) => {
                let codes = hello.cipher_suites.into_iter().chain(hello.supported_versions.into_iter().flatten());
                let sum = codes.chain(hello.extensions.types()).map(usize::from).sum::<usize>();
                sum + hello.alpn.into_iter().flatten().map(<[u8]>::len).sum::<usize>()
            }
            _ => 0,
        };
        let ja4 = || match Framing::default().parse(black_box(&raw)) {
            Parsed::Complete(hello) => Some(hello.ja4()),
            _ => None,
        };
        let before = ALLOCATIONS.load(Relaxed);
        assert!(parse() && walk() > 0);
        let allocations = ALLOCATIONS.load(Relaxed) - before;
        assert!(allocations <= most_allocations, "{name}: {allocations} allocations");
        println!("{name}: {allocations} allocations");
        group.bench_function(name, |bencher| bencher.iter(parse));
        group.bench_function(format!("{name}, all lists"), |bencher| bencher.iter(walk));
        group.bench_function(format!("{name}, JA4"), |bencher| bencher.iter(ja4));
    }
    group.finish();
}

fn lookup(criterion: &mut Criterion) {
    let message = Hello::to("host.cluster7.tenants.example.com").message();
    let by_wildcard = ClientHello::parse(&message).unwrap().server_name;
    let exact = ServerName::parse(b"c0.exact.example.com").ok();
    let unknown = ServerName::parse(b"nobody.knows.this.name").ok();
    let mut group = criterion.benchmark_group("route");
    for count in [1, 1_000, 100_000] {
        let mut table = RouteTable::default();
        for number in 0..count {
            let exact = NamePattern::parse(&format!("c{number}.exact.example.com")).unwrap();
            let wildcard = NamePattern::parse(&format!("*.cluster{}.tenants.example.com", number + 7)).unwrap();
            table.insert(&[exact, wildcard], &Matchers::default(), &number).unwrap();
        }
        for (name, server_name) in [("exact", exact), ("wildcard", by_wildcard), ("unknown", unknown)] {
            let client = Client::new(server_name, None, Arrival::default());
            assert_eq!(table.find(&client).is_some(), name != "unknown");
            group.bench_function(format!("{name} of {count} routes"), |bencher| {
                bencher.iter(|| table.find(black_box(&client)).map(|found| *found.target));
            });
        }
    }
    for count in [1, 1_000, 100_000] {
        let tlv = |number: usize| {
            let value = format!("cluster{number:06}").into_bytes();
            (encoded(0xe0, &value), Matchers { proxy_tlvs: [(0xe0, value.into())].into(), ..Matchers::default() })
        };
        let destination = |number: usize| {
            let [.., a, b, c] = number.to_be_bytes();
            IpAddr::from([10, a, b, c])
        };
        let (mut by_tlv, mut by_destination) = (RouteTable::default(), RouteTable::default());
        for number in 0..count {
            by_tlv.insert(&[], &tlv(number).1, &number).unwrap();
            let destinations = Some([IpNet::from(destination(number))].into());
            by_destination.insert(&[], &Matchers { destinations, ..Matchers::default() }, &number).unwrap();
        }
        let (encoded, _) = tlv(count - 1);
        let with_tlv = Arrival { tlvs: Tlvs::parse(&encoded).unwrap(), ..Arrival::default() };
        let to_address = Arrival { destination: Some(destination(count - 1)), ..Arrival::default() };
        for (what, table, arrival) in [("TLV", by_tlv, with_tlv), ("destination", by_destination, to_address)] {
            let client = Client::new(exact, None, arrival);
            assert_eq!(table.find(&client).map(|found| *found.target), Some(count - 1));
            group.bench_function(format!("{what} of {count} routes with one name"), |bencher| {
                bencher.iter(|| table.find(black_box(&client)).map(|found| *found.target));
            });
        }
    }
    group.finish();
}

/// `allow` and `deny` with a file: `cargo bench --bench hello -- networks`.
#[cfg(feature = "router")]
fn networks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("networks");
    for (family, count) in
        ["IPv4", "IPv6"].into_iter().flat_map(|family| [1, 1_000, 100_000].map(|count| (family, count)))
    {
        // Spread over the address space, and none adjacent to another.
        let spread = |number: u32| number.wrapping_mul(0x9e37_79b1) | 0x100;
        let address = |number: u32| match family {
            "IPv4" => IpAddr::from(spread(number).to_be_bytes()),
            _ => IpAddr::from((u128::from(0x2000_0000 | spread(number) >> 3) << 96 | 1 << 80).to_be_bytes()),
        };
        let length = if family == "IPv4" { 24 } else { 48 };
        let line = |number| format!("{}\n", IpNet::new(address(number), length).unwrap().trunc());
        let file: String = (0..count).map(line).collect();
        let (before, start) = (ALLOCATED.load(Relaxed), std::time::Instant::now());
        let contains = snigate::internals::networks(file.as_bytes()).unwrap();
        let (took, kept) = (start.elapsed(), ALLOCATED.load(Relaxed) - before);
        println!("{count} {family} networks: read in {took:?}, {kept} bytes of memory");
        // Different ones, half of them in a network: a processor learns the way of a single one.
        let addresses: Vec<IpAddr> = (0..4096).map(|number| address(number * 48)).collect();
        let found = addresses.iter().filter(|address| contains(**address)).count();
        assert!(count < 100_000 || (1024..3072).contains(&found), "{found}");
        let mut next = addresses.iter().cycle();
        group.bench_function(format!("one of {count} {family} networks"), |bencher| {
            bencher.iter(|| contains(black_box(*next.next().unwrap())));
        });
    }
    group.finish();
}

#[cfg(not(feature = "router"))]
fn networks(_: &mut Criterion) {}

fn encoded(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

/// Counts allocations, and the bytes that are allocated.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(unsafe_code, reason = "the trait is unsafe; both methods only pass on to the system's allocator")]
// SAFETY: the contract is the system allocator's, which does all the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        ALLOCATED.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the pointer came from `alloc` above, so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

criterion_group!(benches, parser, lookup, networks);
criterion_main!(benches);
