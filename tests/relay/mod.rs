//! Bytes between client and endpoint.

/// Links that fail, in network namespaces.
mod links;
/// Order, closes and resets.
mod relay;
