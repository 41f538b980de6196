//! How a ClientHello arrives, and what is read from it.

/// The seeds of the fuzzers, replayed.
mod fuzz_seeds;
/// Segments, records, slow and malformed hellos.
mod hello;
/// Real TLS clients and servers.
mod interop;
