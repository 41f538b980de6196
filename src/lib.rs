//! snigate routes TLS connections by server name (SNI) without terminating TLS: one address for the Kubernetes APIs of
//! many clusters. It holds no certificate and no key; clients see the API server's own certificate, and client
//! certificates reach the API server.
//!
//! This is the library behind the `snigate` command. A tour of the code follows a connection through the program, which
//! is one function, `connection::serve`:
//!
//! 1. `listener::accept` acquires a permit, so that clients beyond the limit wait in the accept queue, and accepts.
//! 2. `connection::read_hello` reads from the socket, with one deadline, until [`client_hello`] has found a complete
//!    ClientHello or an error; behind a load balancer, a `proxy_protocol` header comes first.
//! 3. [`route`] finds the most specific route for the [`name`]. `connection::admission` checks access rules and limits,
//!    before that for the listener and after that for the route.
//! 4. `upstream` connects to one of the route's endpoints.
//! 5. `relay` moves bytes between the two sockets until both sides are done. [`server_hello`] parses the first bytes of
//!    the API server.
//! 6. `telemetry` counts and logs the connection once. `connection::reject` rejects a client that cannot be served.
//!
//! Around that, `config` parses and validates the configuration, and `server` starts, reloads and drains. `process`
//! contains upgrades, systemd notifications, the sandbox and the file watch; `admin` serves metrics and the status page;
//! `logging` writes log lines; `text` formats and parses what operators read and write; `cli` and `commands` are the
//! command line. `gateway` takes listeners and routes from Kubernetes.
//!
//! # As a library
//! [`client_hello`], [`server_hello`], [`name`] and [`route`] are pure: no I/O, no clock, no configuration. They are all
//! that remains with `default-features = false`. Feature `ja4` adds the JA4 fingerprints of hellos; feature `router`
//! (default) adds that and everything that does I/O; feature `demo` (default) adds the `demo` command with its throwaway
//! certificates; feature `gateway` adds the translation of Kubernetes objects.

// Fuzz targets use little of it, and with the command line they would compile it all.
#![cfg_attr(fuzzing, allow(dead_code, unfulfilled_lint_expectations, unreachable_pub, unused_imports))]

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
#[cfg(feature = "gateway")]
mod gateway;
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
mod sync;
#[cfg(feature = "router")]
mod telemetry;
#[cfg(feature = "router")]
mod text;
#[cfg(feature = "router")]
mod upstream;

/// What fuzz targets and benches need of the private modules. Not part of the public API.
#[cfg(feature = "router")]
#[doc(hidden)]
pub mod internals {
    use std::net::IpAddr;

    #[cfg(feature = "gateway")]
    use crate::gateway::translate::IngressOptions;

    pub use crate::proxy_protocol::{
        Header, InvalidHeader, MAX_LENGTH, ProxiedAddresses, ProxiedClient, Version, header, local_header, parse,
    };

    /// Parses a configuration. Returns the number of listeners and routes.
    pub fn config(yaml: &[u8]) -> Result<(usize, usize), String> {
        let config = crate::config::Config::from_yaml(yaml).map_err(|error| error.to_string())?;
        Ok((config.listeners.len(), config.routes.len()))
    }

    /// Translates a file with objects of Kubernetes. Returns the number of routes.
    #[cfg(feature = "gateway")]
    pub fn objects(manifests: &[u8]) -> Result<usize, String> {
        let objects = crate::gateway::api::manifests::objects(manifests)?;
        let offline = crate::gateway::offline::translate_objects(objects, IngressOptions::default());
        // Says all that there is to say.
        let _ = offline.problems();
        Ok(offline.plan.routing.routes.len())
    }

    /// The objects of a cluster.
    #[cfg(feature = "gateway")]
    #[derive(Clone)]
    pub struct Cluster(crate::gateway::snapshot::Snapshot);

    #[cfg(feature = "gateway")]
    impl Cluster {
        #[must_use]
        pub fn of(objects: Vec<serde_json::Value>) -> Self {
            Self(crate::gateway::offline::translate_objects(objects, IngressOptions::default()).snapshot)
        }

        /// As a watch does.
        pub fn apply(&mut self, object: serde_json::Value) {
            let kind = crate::gateway::api::Kind::of(&object).expect("an object that is read");
            assert_eq!(self.0.insert(kind, object), Ok(true), "a change");
        }

        /// Returns the number of routes.
        #[must_use]
        pub fn translate(&self) -> usize {
            let options = crate::gateway::translate::Options::default();
            crate::gateway::translate::translate(&self.0, &options, &[]).routing.routes.len()
        }
    }

    /// Parses a file with networks. Returns whether one of them contains an address.
    pub fn networks(content: &[u8]) -> Result<impl Fn(IpAddr) -> bool + use<>, String> {
        let networks = crate::config::parse_networks(content).map_err(|(_, message)| message)?;
        let networks = networks.into_iter().collect::<crate::connection::networks::Networks>();
        Ok(move |address| networks.contains(address))
    }
}

#[cfg(all(feature = "router", not(fuzzing)))]
#[doc(hidden)]
pub use commands::main;
