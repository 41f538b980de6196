//! snigate routes TLS connections by the server name that clients ask for, without terminating TLS: one address for
//! the Kubernetes APIs of many clusters. It holds no certificate and no key; the API server's own certificate
//! reaches the client, and client certificates reach the API server.
//!
//! This is the library behind the `snigate` command. Its way through the code is a connection's way through the
//! program, told in one function, [`connection::serve`]:
//!
//! 1. [`accept`] takes a permit, so that clients beyond the limit wait in the kernel's queue, and accepts.
//! 2. [`hello`] reads from the socket under one absolute deadline, until [`client_hello`] has seen a whole
//!    ClientHello or found that there is none; where a balancer connects, its [`proxy_protocol`] header comes first.
//! 3. [`route`] finds the most specific route for the [`name`]. Before and after that, [`admission`] says who may come in.
//! 4. [`upstream`] connects to one of the route's endpoints.
//! 5. [`relay`] moves bytes between the two sockets until both sides are done. What the API server answers first is told by
//!    [`server_hello`].
//! 6. [`account`] counts and logs, once, what became of it. A client that cannot be served has been told why by
//!    [`refusal`].
//!
//! Around that, [`config`] turns what the operator wrote into the types of the rooms above, [`server`] puts the rooms
//! together, and takes them apart when the configuration changes ([`watch`]) or the process is to end; [`roster`] knows
//! all connections that are to be told then, or when there is no place for others. [`held`] bounds the memory that slow peers
//! take; [`sandbox`] gives up what the process does not need. [`upgrade`] hands the listeners to a new process, [`systemd`] is told of
//! all this, and [`admin`] shows the counters. [`units`] writes durations and sizes as the configuration takes them, [`visible`] what
//! others have sent so that it can be shown, and [`pasted`] knows what is typed where a name or an address should be.
//!
//! # As a library
//! [`client_hello`], [`server_hello`], [`name`] and [`route`] are pure: bytes and names in, answers out. They are all there is with
//! `default-features = false`. Feature `router` (default) brings everything that does I/O, feature `demo` (default)
//! the `demo` command with its throwaway certificates.

#[cfg(feature = "router")]
mod admin;
#[cfg(feature = "router")]
mod cli;
pub mod client_hello;
#[cfg(feature = "router")]
mod commands;
#[cfg(feature = "router")]
mod config;
#[cfg(feature = "router")]
mod connection;
#[cfg(feature = "router")]
mod listener;
#[cfg(feature = "router")]
mod logging;
pub mod name;
#[cfg(feature = "router")]
mod process;
#[cfg(feature = "router")]
mod proxy_protocol;
#[cfg(feature = "router")]
mod relay;
pub mod route;
#[cfg(feature = "router")]
mod server;
pub mod server_hello;
#[cfg(feature = "router")]
mod telemetry;
#[cfg(feature = "router")]
mod text;
#[cfg(feature = "router")]
mod upstream;

/// What the fuzzers and their replay need of the private rooms. No part of the public API.
#[cfg(feature = "router")]
#[doc(hidden)]
pub mod internals {
    pub use crate::proxy_protocol::{
        Header, InvalidHeader, MAX_LENGTH, ProxiedAddresses, ProxiedClient, Version, header, parse,
    };

    /// Reads a configuration; how many listeners and routes it has.
    pub fn config(yaml: &[u8]) -> Result<(usize, usize), String> {
        let config = crate::config::Config::from_yaml(yaml).map_err(|error| error.to_string())?;
        Ok((config.listeners.len(), config.routes.len()))
    }
}

#[cfg(feature = "router")]
#[doc(hidden)]
pub use commands::main;
