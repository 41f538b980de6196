//! Which route a client gets, and whether it is admitted.

/// Allow, deny and limits.
mod admission;
/// Clients without a hostname of their own, as pods are.
mod in_cluster;
/// TLVs, destinations and client networks.
mod matching;
/// PROXY headers.
mod proxy;
/// Alerts, closes and resets.
mod rejection;
/// Server names, ALPN, listeners.
mod routing;
