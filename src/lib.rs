//! snigate routes TLS connections by server name (SNI) without terminating TLS: one address for the Kubernetes APIs of many
//! clusters. It holds no certificate and no key; the API server's own certificate reaches the client, and client
//! certificates reach the API server.
//!
//! # A connection's way
//! The whole way is one function, `connection::serve`, read from top to bottom:
//!
//! 1. `listener` takes a permit and accepts. Without a permit clients wait in the kernel's queue.
//! 2. `connection::read_hello` reads under one absolute deadline until [`client_hello`] has seen a complete `ClientHello`, or
//!    found that there is none. Behind a balancer, the [PROXY header](https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt)
//!    comes first (`proxy_protocol`).
//! 3. [`route`] finds the most specific route for the [`name`]; `connection::admission` applies `allow`, `deny` and limits.
//! 4. `upstream` connects to one of the route's endpoints, which it resolves, checks and balances in the background.
//! 5. `relay` moves bytes between the two sockets until both sides are done. [`server_hello`] reads what the API server answers.
//! 6. `telemetry` counts and logs the connection, once. A client that cannot be served gets an alert from `connection::reject`.
//!
//! # Around it
//! `config` turns the file into the types of these rooms. `server` puts the rooms together, and takes them apart again on reload
//! and shutdown; `connection::registry` knows every open connection, so that it can be closed then. `process` deals with what
//! surrounds the process: its successor in an upgrade, systemd, the sandbox, the watched file. `admin` shows metrics and status,
//! `logging` writes lines, `cli` and `commands` are the command line, and `text` formats and reads what operators see and write.
//!
//! # As a library
//! [`client_hello`], [`server_hello`], [`name`] and [`route`] are pure: bytes and names in, answers out, no I/O. They are all
//! that is compiled with `default-features = false`. Feature `router` (default) is the rest of the program, feature `demo`
//! (default) the `demo` command with its throwaway certificates.

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
