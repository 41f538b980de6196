//! What all connections are, for operators: those with a task report it themselves.

use std::ops::Range;

use tokio::sync::MutexGuard as AsyncMutexGuard;
use tokio::sync::mpsc::UnboundedSender;

use super::{Handle, Message, Phase, Registry, TaskState, Wait};
use crate::connection::live::{ConnectionId, LiveConnection, States};

/// What a step of a survey has found.
#[derive(Debug)]
pub(in crate::connection) struct Look {
    pub(in crate::connection) parked: Vec<LiveConnection>,
    /// The number of connections that will report.
    pub(in crate::connection) asked: usize,
    /// Whether there are higher indices.
    pub(in crate::connection) has_more: bool,
}

impl Registry {
    /// Waits for others who survey the connections.
    pub(in crate::connection) async fn surveying(&self) -> AsyncMutexGuard<'_, ()> {
        self.surveying.lock().await
    }

    /// Where connections report to.
    pub(in crate::connection) fn report_to(&self, reports: Option<UnboundedSender<LiveConnection>>) {
        self.entries().reports = reports;
    }

    /// Counts the connections with these indices, asks those with a task to report, and returns those that are parked.
    pub(in crate::connection) fn look(&self, indices: Range<usize>, states: &mut States) -> Look {
        let mut entries = self.entries();
        let mut look = Look { parked: Vec::new(), asked: 0, has_more: entries.has_more_after(&indices) };
        for index in indices {
            let Some(entry) = entries.open.get_mut(index) else { continue };
            *match (entry.phase, &entry.state) {
                (Phase::Waiting(Wait::Hello, _), _) => &mut states.awaiting_hello,
                (Phase::Waiting(Wait::Close, _), _) => &mut states.rejected,
                (Phase::Connecting, _) => &mut states.connecting,
                (Phase::ConnectedTo(_), TaskState::Parked { .. }) => &mut states.parked,
                (Phase::ConnectedTo(_), TaskState::Running(_) | TaskState::Notified) => &mut states.relaying,
            } += 1;
            match &entry.state {
                TaskState::Parked { connection, .. } => look.parked.push(connection.describe(entry.id(index))),
                TaskState::Running(_) if matches!(entry.phase, Phase::ConnectedTo(_)) => {
                    look.asked += usize::from(self.send(index, entry, Message::Report));
                }
                TaskState::Running(_) | TaskState::Notified => {}
            }
        }
        look
    }
}

impl Handle {
    /// Answers [`Message::Report`].
    pub(in crate::connection) fn report(&self, describe: impl FnOnce(ConnectionId) -> LiveConnection) {
        let Some(registry) = &self.registry else { return };
        let entries = registry.entries();
        let id = entries.open.get(self.index as usize).map(|entry| entry.id(self.index as usize));
        let reports = entries.reports.clone();
        drop(entries);
        if let (Some(id), Some(reports)) = (id, reports) {
            // Nobody waits for it any more.
            let _ = reports.send(describe(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::registry::tests::message_of;
    use crate::upstream::EndpointId;

    #[tokio::test]
    async fn h28_all_connections_are_counted_and_those_with_an_endpoint_are_asked() {
        let registry = Registry::new();
        let mut connections: Vec<Handle> = (0..10).map(|_| registry.register()).collect();
        let _hellos: Vec<_> = connections[..4].iter().map(|connection| connection.wait(Wait::Hello)).collect();
        let _closes: Vec<_> = connections[4..7].iter().map(|connection| connection.wait(Wait::Close)).collect();
        connections[9].connected_to(EndpointId::next(), None);
        let mut states = States::default();
        let look = registry.look(0..10, &mut states);
        assert_eq!((look.asked, look.parked.len()), (1, 0));
        let expected = States { awaiting_hello: 4, rejected: 3, connecting: 2, relaying: 1, parked: 0 };
        assert_eq!(states, expected);
        let asked: Vec<_> = connections.iter_mut().map(message_of).collect();
        assert_eq!(asked, [&[None; 9][..], &[Some(Message::Report)]].concat());
    }
}
