//! The connection limit, derived from file descriptors and memory.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::StartError;
use super::memory::Memory;
use crate::admin::{self, control};
use crate::relay::{self, Engine};
use crate::upstream::MAX_LOOKUPS;
use crate::upstream::health::{MAX_CHECKS, MAX_READERS};

/// Descriptors for everything but connections: the admin's, health checks, lookups, files, and the rest of the process.
const RESERVED_DESCRIPTORS: u64 =
    29 + (admin::MAX_CONNECTIONS + control::MAX_CONNECTIONS + MAX_CHECKS + MAX_LOOKUPS + MAX_READERS) as u64;
/// Descriptors without which nothing works: runtimes, listeners, the log.
const MIN_RESERVED_DESCRIPTORS: u64 = 24;
/// Its own, the one that a successor would get, and those of a connection that it has accepted beyond the limit.
const DESCRIPTORS_PER_LISTENER: u64 = 4;
/// More are not faster: a pipe is only in use while data is in it.
const MAX_PIPES: u64 = 64;
const DESCRIPTORS_PER_PIPE: u64 = 2;
/// Two sockets.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;
/// Used when there is no limit on file descriptors.
const MAX_CONNECTIONS: usize = 1 << 20;

/// The resources that a configuration may use.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResourceLimits {
    connections: usize,
    listeners: usize,
    pipes: u64,
    descriptors: Option<u64>,
}

/// Raises the soft limit on file descriptors to the hard limit.
pub(super) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!(%error, "cannot raise RLIMIT_NOFILE");
    }
}

/// Derives the connection limit from what listeners and pipes leave; an error if the configured limit is higher.
pub(super) fn resource_limits(
    configured: Option<usize>,
    listeners: usize,
    engine: Engine,
    memory: Memory,
) -> Result<ResourceLimits, StartError> {
    let descriptors = getrlimit(Resource::Nofile).current;
    let pipes = match engine {
        Engine::Copy => 0,
        Engine::Auto | Engine::Splice => descriptors.map_or(MAX_PIPES, |available| MAX_PIPES.min(available / 32)),
    };
    let reserved = RESERVED_DESCRIPTORS + DESCRIPTORS_PER_LISTENER * listeners as u64 + DESCRIPTORS_PER_PIPE * pipes;
    let connections = match (configured, descriptors) {
        (Some(wanted), Some(available)) => {
            let needed = reserved + DESCRIPTORS_PER_CONNECTION * wanted as u64;
            if needed > available {
                return Err(StartError::Descriptors { wanted, needed, available });
            }
            wanted
        }
        (Some(wanted), None) => wanted,
        (None, Some(available)) => derived(available, reserved).min(memory.connections()).max(1),
        (None, None) => MAX_CONNECTIONS.min(memory.connections()).max(1),
    };
    Ok(ResourceLimits { connections, listeners, pipes, descriptors })
}

fn derived(descriptors: u64, reserved: u64) -> usize {
    let reserved = reserved.min((descriptors / 4).max(MIN_RESERVED_DESCRIPTORS));
    let fitting = descriptors.saturating_sub(reserved) / DESCRIPTORS_PER_CONNECTION;
    usize::try_from(fitting).unwrap_or(MAX_CONNECTIONS).clamp(1, MAX_CONNECTIONS)
}

/// Permits for connections.
#[derive(Debug)]
pub(super) struct Capacity {
    pub(super) permits: Arc<Semaphore>,
    total: usize,
    pub(super) connections: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(0)), total: 0, connections: 0 }
    }
}

impl Capacity {
    /// Sets new limits. A lower one closes no connections: permits are removed as connections end.
    pub(super) fn set(&mut self, limits: ResourceLimits) {
        let ResourceLimits { connections, listeners, pipes, descriptors } = limits;
        relay::set_pipe_limit(usize::try_from(pipes).unwrap_or(0));
        if connections != self.connections {
            info!(connections, descriptors, "connection limit");
        }
        // Each accept loop holds a permit while it waits for a client.
        let total = connections + listeners - 1;
        if total >= self.total {
            self.permits.add_permits(total - self.total);
        } else {
            let too_many = self.total - total;
            let in_use = too_many - self.permits.forget_permits(too_many);
            let permits = Arc::clone(&self.permits);
            tokio::spawn(async move {
                for _ in 0..in_use {
                    // The semaphore is never closed.
                    let Ok(permit) = permits.acquire().await else { return };
                    permit.forget();
                }
            });
        }
        (self.total, self.connections) = (total, connections);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_limit_is_derived_from_descriptors() {
        for (descriptors, connections) in [(20_000, 9968), (1024, 480), (64, 20), (3, 1), (0, 1), (u64::MAX, 1 << 20)] {
            assert_eq!(derived(descriptors, 64), connections, "{descriptors} descriptors");
        }
    }

    #[tokio::test]
    async fn a_lower_limit_waits_for_connections_to_end() {
        let limits = |connections| ResourceLimits { connections, listeners: 1, pipes: 0, descriptors: None };
        let mut capacity = Capacity::default();
        capacity.set(limits(3));
        let open = Arc::clone(&capacity.permits).acquire_many_owned(3).await.unwrap();
        capacity.set(limits(1));
        tokio::task::yield_now().await;
        drop(open);
        while capacity.permits.available_permits() != 1 {
            tokio::task::yield_now().await;
        }
        capacity.set(limits(2));
        assert_eq!(capacity.permits.available_permits(), 2);
    }
}
