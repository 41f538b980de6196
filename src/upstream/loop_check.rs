//! Detects forwarding loops: upstreams that are snigate's own listeners.

use std::cell::LazyCell;
use std::net::{IpAddr, SocketAddr};

/// Whether a connection to `address` reaches `listener`, judging by the two addresses alone.
pub(crate) fn arrives_at(address: SocketAddr, listener: SocketAddr) -> bool {
    let (ip, listening) = (address.ip().to_canonical(), listener.ip().to_canonical());
    let here = ip.is_loopback() || ip.is_unspecified();
    address.port() == listener.port()
        && (ip == listening || (ip.is_unspecified() && listening.is_loopback()) || (listening.is_unspecified() && here))
}

/// The addresses of this machine.
#[derive(Debug)]
pub(crate) struct LocalAddresses(Vec<IpAddr>);

impl LocalAddresses {
    /// The current addresses.
    pub(crate) fn read() -> Self {
        // If the kernel does not report them, addresses count as remote.
        Self(if_addrs::get_if_addrs().unwrap_or_default().iter().map(if_addrs::Interface::ip).collect())
    }

    /// Whether this is an address of this machine.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_loopback() || self.0.contains(&address)
    }
}

/// Our own listeners. The addresses of this machine are read at most once, and only if needed.
#[derive(Debug)]
pub(crate) struct OwnListeners<'a> {
    listeners: &'a [SocketAddr],
    addresses: LazyCell<LocalAddresses>,
}

impl<'a> OwnListeners<'a> {
    pub(crate) fn new(listeners: &'a [SocketAddr]) -> Self {
        Self { listeners, addresses: LazyCell::new(LocalAddresses::read) }
    }

    /// Whether a connection to `address` arrives at one of them.
    pub(crate) fn contains(&self, address: SocketAddr) -> bool {
        let same_port = || self.listeners.iter().filter(|listener| listener.port() == address.port());
        same_port().any(|listener| arrives_at(address, *listener))
            || (same_port().any(|listener| listener.ip().is_unspecified()) && self.addresses.has(address.ip()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b15_our_own_addresses_are_known_in_every_form() {
        let leads = |address: &str, listener: &str| {
            OwnListeners::new(&[listener.parse().unwrap()]).contains(address.parse().unwrap())
        };
        for (address, listener) in [
            ("192.0.2.1:6443", "192.0.2.1:6443"),
            ("[::ffff:192.0.2.1]:6443", "192.0.2.1:6443"),
            ("127.0.0.1:6443", "0.0.0.0:6443"),
            ("127.8.8.8:6443", "[::]:6443"),
            ("0.0.0.0:6443", "[::]:6443"),
            ("0.0.0.0:6443", "127.0.0.1:6443"),
            ("[::]:6443", "[::1]:6443"),
        ] {
            assert!(leads(address, listener), "{address} {listener}");
        }
        for (address, listener) in [
            ("192.0.2.1:6443", "0.0.0.0:6443"),
            ("127.0.0.1:6443", "0.0.0.0:6444"),
            ("127.0.0.1:6443", "192.0.2.1:6443"),
            ("127.0.0.2:6443", "127.0.0.1:6443"),
        ] {
            assert!(!leads(address, listener), "{address} {listener}");
        }
    }
}
