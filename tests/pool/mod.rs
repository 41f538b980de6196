//! Endpoints: how they are found, checked, chosen and reached.

/// Checks, failover and recovery.
mod health;
/// Hostnames and the name server.
mod names;
/// What routes share.
mod shared;
/// Connecting, retries, loops.
mod upstream;
