//! DNS lookups of commands.

use std::net::SocketAddr;

use crate::text::Destination;
use crate::upstream::{error_message, lookup};

/// The addresses of a destination.
pub(super) async fn addresses(destination: &Destination) -> anyhow::Result<Vec<SocketAddr>> {
    let Some((host, port)) = destination.name() else { return Ok(destination.address().into_iter().collect()) };
    lookup(host, port).await.map_err(|error| anyhow::anyhow!("{host} does not resolve: {}", unresolved(&error)))
}

/// The resolver's message, without the standard library's prefix.
pub(super) fn unresolved(error: &std::io::Error) -> String {
    error_message(error).trim_start_matches("failed to lookup address information: ").to_owned()
}
