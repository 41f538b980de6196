//! Connections that wait for their client, and may be closed to make room for others.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use super::{CloseReason, ConnectionEntry, Entries, Handle, Message, Phase, Registry, TaskState};

/// A connection is not shed for missing its hello before this: more than a round trip to any client.
const MIN_HELLO_WAIT: Duration = Duration::from_secs(1);

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The client's hello.
    Hello,
    /// The client's close.
    Close,
}

/// Waiting connections, the newest at the end.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Index in the slab, and since when. Entries that no longer wait are removed lazily.
    entries: VecDeque<(u32, Instant)>,
    pub(super) waiting: usize,
}

impl Registry {
    /// Makes room for a new connection: closes the oldest one that was rejected and still lingers, or else the oldest one
    /// without a hello. A hello is given [`MIN_HELLO_WAIT`], unless more than `max_awaiting_hello` are awaited.
    pub(crate) fn shed_one(&self, max_awaiting_hello: usize) {
        let mut entries = self.entries();
        let is_crowded = entries.awaiting_hello.waiting > max_awaiting_hello;
        let min_wait = if is_crowded { Duration::ZERO } else { MIN_HELLO_WAIT };
        let _ = entries.close_oldest(Wait::Close, Duration::ZERO) || entries.close_oldest(Wait::Hello, min_wait);
    }
}

impl Handle {
    /// Marks the connection as waiting for its client until the guard is dropped.
    pub(crate) fn wait(&self, wait: Wait) -> WaitGuard {
        let registry = self.registry.clone();
        let since = registry.as_ref().map_or_else(Instant::now, |registry| registry.entries().begin(self.index, wait));
        WaitGuard { wait, since, index: self.index, registry }
    }
}

/// Marks a connection as waiting for its client. See [`Handle::wait`].
#[derive(Debug)]
pub(crate) struct WaitGuard {
    wait: Wait,
    since: Instant,
    index: u32,
    registry: Option<Arc<Registry>>,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        if let Some(registry) = &self.registry {
            registry.entries().end(self.index, self.wait, self.since);
        }
    }
}

impl Entries {
    pub(super) fn queue(&mut self, wait: Wait) -> (&mut Slab<ConnectionEntry>, &mut Queue) {
        match wait {
            Wait::Hello => (&mut self.open, &mut self.awaiting_hello),
            Wait::Close => (&mut self.open, &mut self.awaiting_close),
        }
    }

    fn begin(&mut self, index: u32, wait: Wait) -> Instant {
        let since = Instant::now();
        let (open, queue) = self.queue(wait);
        if let Some(entry) = open.get_mut(index as usize) {
            debug_assert!(!matches!(entry.phase, Phase::Waiting(..)), "a connection waits for one thing at a time");
            entry.phase = Phase::Waiting(wait, since);
            queue.waiting += 1;
            if queue.entries.len() > 2 * queue.waiting + 64 {
                queue.entries.retain(|(index, since)| is_waiting(open, *index, wait, *since));
            }
            queue.entries.push_back((index, since));
        }
        since
    }

    fn end(&mut self, index: u32, wait: Wait, since: Instant) -> bool {
        let (open, queue) = self.queue(wait);
        let was_waiting = is_waiting(open, index, wait, since);
        if was_waiting {
            queue.waiting -= 1;
            open[index as usize].phase = Phase::Connecting;
        }
        was_waiting
    }

    /// Closes the connection that has waited longest, if it has waited `at_least` this long. Whether there was one.
    fn close_oldest(&mut self, wait: Wait, at_least: Duration) -> bool {
        loop {
            let (open, queue) = self.queue(wait);
            let Some((index, since)) = queue.entries.front().copied() else { return false };
            if is_waiting(open, index, wait, since) && since.elapsed() < at_least {
                return false;
            }
            queue.entries.pop_front();
            if !self.end(index, wait, since) {
                continue;
            }
            match mem::replace(&mut self.open[index as usize].state, TaskState::Notified) {
                TaskState::Running(task) => return task.send(Message::Close(CloseReason::Shed)).is_ok(),
                // Another message is pending; a connection without an endpoint is never parked.
                TaskState::Notified | TaskState::Parked { .. } => {}
            }
        }
    }
}

fn is_waiting(open: &Slab<ConnectionEntry>, index: u32, wait: Wait, since: Instant) -> bool {
    open.get(index as usize).is_some_and(|entry| entry.phase == Phase::Waiting(wait, since))
}

#[cfg(all(test, shuttle))]
impl Registry {
    /// How many connections wait.
    pub(in crate::connection) fn waiting(&self) -> [usize; 2] {
        let entries = self.entries();
        [&entries.awaiting_hello, &entries.awaiting_close].map(|queue| queue.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::registry::tests::is_closed;

    #[tokio::test]
    async fn connections_that_no_longer_wait_take_no_memory() {
        let registry = Registry::new();
        let handles: Vec<Handle> = (0..200).map(|_| registry.register()).collect();
        drop(handles.iter().map(|handle| handle.wait(Wait::Hello)).collect::<Vec<_>>());
        for _ in 0..1000 {
            drop(handles[0].wait(Wait::Hello));
        }
        let length = registry.entries().awaiting_hello.entries.len();
        assert!(length < 70, "{length}");
        // With many that wait, they are removed rarely, since that looks at all of them.
        let _waiting: Vec<_> = handles[1..].iter().map(|handle| handle.wait(Wait::Hello)).collect();
        let lengths = (0..1000).map(|_| {
            drop(handles[0].wait(Wait::Hello));
            registry.entries().awaiting_hello.entries.len()
        });
        let most = lengths.max().unwrap();
        assert!((400..500).contains(&most), "{most}");
    }

    #[tokio::test(start_paused = true)]
    async fn a16_the_connection_that_waited_longest_is_shed() {
        let registry = Registry::new();
        let mut entries: Vec<Handle> = (0..6).map(|_| registry.register()).collect();
        let first = entries[0].wait(Wait::Hello);
        let _second = entries[1].wait(Wait::Hello);
        drop(first);
        let _third = entries[2].wait(Wait::Hello);
        registry.shed_one(2);
        assert!(!entries.iter_mut().any(is_closed), "none has waited long enough");
        registry.shed_one(1);
        assert!(
            is_closed(&mut entries[1]) && entries[1].close_reason() == CloseReason::Shed,
            "two wait, one more than allowed"
        );
        assert!(!is_closed(&mut entries[1]), "once");
        tokio::time::advance(MIN_HELLO_WAIT).await;
        let _fourth = entries[3].wait(Wait::Hello);
        let _rejected = entries[4].wait(Wait::Close);
        registry.shed_one(9);
        assert!(is_closed(&mut entries[4]), "a rejected connection is shed first");
        registry.shed_one(9);
        assert!(is_closed(&mut entries[2]) && !is_closed(&mut entries[3]), "then one that has waited for a second");
        registry.shed_one(9);
        assert!(!is_closed(&mut entries[3]));
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_micros(1)).await;
            drop(entries[5].wait(Wait::Hello));
        }
        assert!(registry.entries().awaiting_hello.entries.len() < 100, "entries that no longer wait are removed");
        entries.clear();
        let entries = registry.entries();
        assert_eq!((entries.awaiting_hello.waiting, entries.awaiting_close.waiting), (0, 0));
    }
}
