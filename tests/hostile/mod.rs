//! Clients and machines at their worst.

/// Stalled hellos, slow readers, floods.
mod abuse;
/// System calls that fail.
mod faults;
/// Samples of a process.
mod record;
/// Everything at once.
mod soak;
