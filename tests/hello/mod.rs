//! How a ClientHello arrives, and what is read from it.

/// Segments, records, slow and malformed hellos.
mod arrival;
/// The seeds of the fuzzers, replayed.
mod fuzz_seeds;
/// Real TLS clients and servers.
mod interop;
