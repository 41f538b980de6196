//! Bytes between client and endpoint.

/// Order, closes and resets.
mod bytes;
/// Links that fail, in network namespaces.
mod links;
