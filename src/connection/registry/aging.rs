//! Connections that are closed because of their age, and turns among those that are to be closed.

use std::time::Duration;

use slab::Slab;
use tokio::time::sleep;

use super::{CloseReason, ConnectionEntry, Entries, Handle, Message, Registry, TaskState};

/// Maximum number of connections that are closed in a second because of their age, or asked to close.
const MAX_AGED: usize = 100;
/// A connection that has been asked to close and was never quiet since is closed in the middle of a message after this.
const QUIET_WITHIN_SECONDS: u32 = 60;

/// Whether a connection is closed for its age. Times are in [`Registry::seconds`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Age {
    /// Never.
    Unlimited,
    /// From then on.
    ExpiresAt(u32),
    /// Since then, it has been asked to close once it is quiet.
    AskedAt(u32),
}

impl Registry {
    /// Closes connections at their maximum age, for as long as the process runs.
    pub(crate) async fn close_aged(&self) {
        loop {
            self.aging.notified().await;
            while self.close_some_aged() {
                sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// A moment in whole seconds since this was made: a quarter of the size of an `Instant`, for each connection.
    pub(super) fn seconds(&self, from_now: Duration) -> u32 {
        let since = self.created.elapsed() + from_now;
        u32::try_from(since.as_millis().div_ceil(1000)).unwrap_or(u32::MAX)
    }

    /// Closes at most [`MAX_AGED`] connections, or asks them to. Whether any have a maximum age.
    fn close_some_aged(&self) -> bool {
        let now = self.seconds(Duration::ZERO);
        let mut entries = self.entries();
        let Entries { open, next_aged, aging, .. } = &mut *entries;
        in_turn(open, next_aged, MAX_AGED, |index, entry| {
            let message = match entry.age {
                Age::AskedAt(since) if now - since >= QUIET_WITHIN_SECONDS => Message::Close(CloseReason::MaxAge),
                Age::AskedAt(_) => Message::CloseIfQuiet,
                Age::ExpiresAt(at) if at <= now => Message::CloseIfQuiet,
                Age::Unlimited | Age::ExpiresAt(_) => return false,
            };
            if matches!(entry.state, TaskState::Notified) {
                return false;
            }
            if matches!(entry.age, Age::ExpiresAt(_)) {
                entry.age = Age::AskedAt(now);
            }
            // Otherwise it has just ended.
            let _ = self.send(index, entry, message);
            true
        });
        *aging > 0
    }
}

impl Handle {
    /// How long until the connection is too old.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        let registry = self.registry.as_ref()?;
        match registry.entries().open.get(self.index as usize)?.age {
            Age::Unlimited => None,
            Age::ExpiresAt(at) => Some(Duration::from_secs(at.saturating_sub(registry.seconds(Duration::ZERO)).into())),
            Age::AskedAt(_) => Some(Duration::ZERO),
        }
    }
}

/// Lets `take` choose connections, from index `next` on and then from the first one, until it has taken `most`. The search
/// after this one begins behind the last one taken, so that each has its turn. Returns how many were taken.
pub(super) fn in_turn(
    open: &mut Slab<ConnectionEntry>,
    next: &mut usize,
    most: usize,
    mut take: impl FnMut(usize, &mut ConnectionEntry) -> bool,
) -> usize {
    let (start, mut taken) = (*next, 0);
    for is_behind in [true, false] {
        for (index, entry) in open.iter_mut().filter(|(index, _)| (*index >= start) == is_behind) {
            if taken == most {
                return taken;
            }
            if take(index, entry) {
                taken += 1;
                *next = index + 1;
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::connection::registry::tests::message_of;
    use crate::upstream::EndpointId;

    #[tokio::test(start_paused = true)]
    async fn b34_aged_connections_take_turns_and_are_closed_if_they_are_never_quiet() {
        let registry = Registry::new();
        let endpoint = EndpointId::next();
        let hour = Duration::from_secs(3600);
        let mut handles: Vec<Handle> = (0..120).map(|_| registry.register()).collect();
        for handle in &handles {
            handle.connected_to(endpoint, Some(hour));
        }
        let mut ageless = registry.register();
        ageless.connected_to(endpoint, None);
        assert_eq!((handles[0].time_left(), ageless.time_left()), (Some(hour), None));
        assert!(registry.close_some_aged());
        assert!(handles.iter_mut().all(|handle| message_of(handle).is_none()), "too early");
        tokio::time::advance(hour).await;
        let mut asked = vec![0; handles.len()];
        for _ in 0..6 {
            // A task may poll so many channels until it yields.
            tokio::task::yield_now().await;
            registry.close_some_aged();
            let messages = handles.iter_mut().map(message_of).collect::<Vec<_>>();
            assert!(messages.iter().flatten().all(|message| *message == Message::CloseIfQuiet));
            assert_eq!(messages.iter().flatten().count(), MAX_AGED);
            for (asked, message) in asked.iter_mut().zip(messages) {
                *asked += usize::from(message.is_some());
            }
        }
        assert!(asked.iter().all(|asked| *asked == 5), "each in turn: {asked:?}");
        assert_eq!(handles[0].time_left(), Some(Duration::ZERO));
        tokio::time::advance(Duration::from_secs(QUIET_WITHIN_SECONDS.into())).await;
        for _ in 0..2 {
            registry.close_some_aged();
        }
        tokio::task::yield_now().await;
        assert!(handles.iter_mut().all(|handle| message_of(handle) == Some(Message::Close(CloseReason::MaxAge))));
        tokio::task::yield_now().await;
        assert_eq!(message_of(&mut ageless), None);
        drop(handles);
        assert!(!registry.close_some_aged(), "none is left");
        assert_eq!(registry.entries().aging, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn b34_a_single_connection_is_closed_at_its_age_and_so_is_the_next() {
        let registry = Registry::new();
        let ager = Arc::clone(&registry);
        tokio::spawn(async move { ager.close_aged().await });
        for _ in 0..2 {
            let mut handle = registry.register();
            handle.connected_to(EndpointId::next(), Some(Duration::from_secs(10)));
            let begun = Instant::now();
            let message = poll_fn(|cx| handle.poll_message(cx));
            assert_eq!(timeout(Duration::from_secs(60), message).await, Ok(Message::CloseIfQuiet));
            assert!((10..12).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        }
    }
}
