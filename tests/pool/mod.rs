//! Endpoints: how they are found, checked, chosen and reached.

/// Checks, failover and recovery.
mod health;
/// Hostnames and the name server.
mod names;
/// Connecting, retries, loops.
mod upstream;
