//! Endpoints: how they are found, checked, chosen and reached.

/// Checks, failover and recovery.
mod health;
/// Hostnames and the name server.
mod names;
/// What routes share.
mod shared;
/// Weights, backups, local addresses and ages.
mod shares;
/// The local address of connections to endpoints.
mod source;
/// Connecting, retries, loops.
mod upstream;
