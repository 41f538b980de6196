//! Endpoints: how they are found, checked, chosen and reached.

/// Checks, failover and recovery.
mod health;
/// Hostnames and the name server.
mod names;
/// What routes share.
mod shared;
/// Weights, backups, local addresses and ages.
mod shares;
/// Connecting, retries, loops.
mod upstream;
