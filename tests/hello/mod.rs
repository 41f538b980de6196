//! How a ClientHello arrives, and what is read from it.

/// Segments, records, slow and malformed hellos.
mod arrival;
/// Every input up to a bound.
mod bounded;
/// The hellos of real clients.
mod clients;
/// The open list of hellos, against the parser and the router.
mod corpus;
/// The seeds of the fuzzers, replayed.
mod fuzz_seeds;
/// Hellos that no client sends.
mod generated;
/// Real TLS clients and servers.
mod interop;
