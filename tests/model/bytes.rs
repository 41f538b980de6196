//! What clients and endpoints send, so that each byte says whose it is.

use std::net::{Ipv4Addr, SocketAddr};

use super::script::{After, Arrival, CLUSTER, From, Name, Sends, Side};
use crate::support::Hello;
use crate::support::hello::{SERVER_NAME, server_name_list};

/// The first thing that an endpoint sends.
pub const ANSWER: usize = 20;
/// Where clients connect that a PROXY header names.
const DESTINATION: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 6443);

/// Where the socket of a client is bound: no two have the same address.
pub fn source(arrival: &Arrival) -> Ipv4Addr {
    let network = match arrival.from {
        From::Plain | From::PlainWithHeader | From::Unlisted => 1,
        From::HeaderV1 | From::HeaderV2 | From::HeaderV2WithTlv | From::WithoutHeader => 2,
        From::Denied => 3,
    };
    Ipv4Addr::new(127, network, 0, last_byte(arrival))
}

/// The client that the PROXY header names.
pub fn proxied(arrival: &Arrival) -> SocketAddr {
    SocketAddr::new(named(arrival.number).into(), 4000 + u16::from(last_byte(arrival)))
}

/// Its address.
pub fn named(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, u8::try_from(number + 1).expect("a script has fewer clients"))
}

fn last_byte(arrival: &Arrival) -> u8 {
    u8::try_from(arrival.number + 1).expect("a script has fewer clients")
}

pub fn hello(arrival: &Arrival) -> Vec<u8> {
    let mut hello = Hello::new();
    // Which client it is.
    hello.session_id[0] = last_byte(arrival);
    if let Some(name) = name(arrival.name) {
        hello = hello.extension(SERVER_NAME, server_name_list(&[(0, name.as_bytes())]));
    }
    if arrival.offers_h2 {
        hello = hello.alpn(&["h2", "http/1.1"]);
    }
    if arrival.padded_to > hello.record().len() + 4 {
        hello = hello.padded_to(arrival.padded_to);
    }
    arrival.records.map_or_else(|| hello.record(), |size| hello.records(size))
}

pub fn name(name: Name) -> Option<&'static str> {
    match name {
        Name::Exact => Some("a.example"),
        Name::BelowWildcard => Some("x.y.b.example"),
        Name::Apex => Some("b.example"),
        Name::Guarded => Some("d.example"),
        Name::Unknown => Some("unknown.example"),
        Name::Literal => Some("192.0.2.99"),
        Name::None => None,
    }
}

/// The PROXY header that a client's balancer sends.
pub fn header(arrival: &Arrival) -> Vec<u8> {
    match arrival.from {
        From::Plain | From::Denied | From::WithoutHeader => Vec::new(),
        From::PlainWithHeader | From::Unlisted | From::HeaderV1 => header_v1(proxied(arrival), DESTINATION),
        From::HeaderV2 => header_v2(proxied(arrival), b""),
        From::HeaderV2WithTlv => {
            let length = u8::try_from(CLUSTER.len()).unwrap();
            header_v2(proxied(arrival), &[&[0xe0, 0, length], CLUSTER.as_bytes()].concat())
        }
    }
}

pub fn header_v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let ports = (source.port(), destination.port());
    format!("PROXY TCP4 {} {} {} {}\r\n", source.ip(), destination.ip(), ports.0, ports.1).into_bytes()
}

fn header_v2(source: SocketAddr, tlvs: &[u8]) -> Vec<u8> {
    let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (source, DESTINATION) else { unreachable!() };
    let addresses = [source.ip().octets(), destination.ip().octets()].concat();
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let content = [&addresses, &ports, tlvs].concat();
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11"[..], &length, &content].concat()
}

/// What a client sends at first, and where the destination in its PROXY header was.
pub fn first(arrival: &Arrival) -> Vec<u8> {
    let (header, hello) = (header(arrival), hello(arrival));
    match arrival.sends {
        Sends::Hello => [header, hello, payload(arrival.number, Side::Client, 0, arrival.early)].concat(),
        Sends::Part(After::Silence | After::Fin | After::Reset) => [&header[..], &hello[..hello.len() / 2]].concat(),
        Sends::Nothing => Vec::new(),
        Sends::Garbage => [&header[..], b"GET / HTTP/1.1\r\n\r\n"].concat(),
    }
}

/// The destination that a client had: that in its header, or `listener`.
pub fn destination(arrival: &Arrival, listener: SocketAddr) -> SocketAddr {
    if header(arrival).is_empty() { listener } else { DESTINATION }
}

/// A part of what this side of a connection sends after the hello.
pub fn payload(number: usize, side: Side, from: usize, length: usize) -> Vec<u8> {
    let salt = number * 2 + usize::from(side == Side::Endpoint) + 1;
    (from..from + length).map(|at| ((at ^ (at >> 8) ^ (at >> 16)) + 37 * salt) as u8).collect()
}
