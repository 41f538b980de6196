//! Connections that leave: another process may continue them.

use std::mem;
use std::ops::Range;

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::{Handle, Message, Phase, Registry, TaskState};
use crate::connection::parking::Unparked;

impl Registry {
    /// From now on connections leave when they come to rest. Those that are open have to be asked for it.
    pub(crate) fn leave_to(&self, leaving: UnboundedSender<Unparked>) {
        self.entries().leaving = Some(leaving);
    }

    /// No more connections leave.
    pub(crate) fn stop_leaving(&self) {
        self.entries().leaving = None;
    }

    /// Asks the connections with these indices to leave, and returns those that are parked. Whether there are higher indices.
    pub(in crate::connection) fn ask_to_leave(&self, indices: Range<usize>) -> (Vec<Unparked>, bool) {
        let mut parked = Vec::new();
        let mut entries = self.entries();
        let has_more = entries.has_more_after(&indices);
        for index in indices {
            let Some(entry) = entries.open.get_mut(index) else { continue };
            if entry.stays || !matches!(entry.phase, Phase::ConnectedTo(_)) {
                continue;
            }
            match self.unpark(index, entry) {
                Some(unparked) => parked.push(unparked),
                None => {
                    self.send(index, entry, Message::HandOver);
                }
            }
        }
        (parked, has_more)
    }
}

impl Handle {
    /// Where the connection goes, if it leaves.
    pub(in crate::connection) fn leaving(&self) -> Option<UnboundedSender<Unparked>> {
        let entries = self.registry.as_ref()?.entries();
        let stays = entries.open.get(self.index as usize)?.stays;
        entries.leaving.clone().filter(|_| !stays)
    }

    /// No message reaches the connection from here on, because another process may continue it: who sends one learns that.
    /// `false` if there is a message that it must receive first.
    pub(in crate::connection) fn begin_offer(&mut self) -> bool {
        let Some(registry) = &self.registry else { return false };
        let mut entries = registry.entries();
        let Some(entry) = entries.open.get_mut(self.index as usize) else { return false };
        match mem::replace(&mut entry.state, TaskState::Notified) {
            TaskState::Running(_) => true,
            TaskState::Notified | TaskState::Parked { .. } => match self.messages.try_recv() {
                Ok(Message::HandOver | Message::Report) => true,
                Ok(message @ (Message::Close(_) | Message::CloseIfQuiet | Message::Probe(_))) => {
                    let (sender, messages) = oneshot::channel();
                    self.messages = messages;
                    let _ = sender.send(message);
                    false
                }
                Err(_) => false,
            },
        }
    }

    /// It continues in this process, and receives messages again.
    pub(in crate::connection) fn end_offer(&mut self) {
        self.receive_again(false);
    }

    /// The connection stays when others leave.
    pub(in crate::connection) fn set_stays(&self) {
        let Some(registry) = &self.registry else { return };
        if let Some(entry) = registry.entries().open.get_mut(self.index as usize) {
            entry.stays = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::connection::live::States;
    use crate::connection::registry::CloseReason;
    use crate::connection::registry::tests::message_of;
    use crate::upstream::EndpointId;

    #[tokio::test]
    async fn h28_who_closes_a_connection_learns_that_another_process_may_have_it() {
        let registry = Registry::new();
        let mut connection = registry.register();
        connection.connected_to(EndpointId::next(), None);
        let id = registry.entries().open[0].id(0);
        let closed = Some(Message::Close(CloseReason::Operator));

        registry.ask_to_leave(0..1);
        assert!(connection.begin_offer(), "that it is to leave is no reason against it");
        assert!(!registry.close_one(id) && registry.is_open(id), "not reached, and not ended");
        connection.end_offer();
        assert_eq!(message_of(&mut connection), None);
        assert!(registry.close_one(id));
        assert!(!connection.begin_offer(), "it is to be closed here");
        assert_eq!(message_of(&mut connection), closed);

        let mut other = registry.register();
        other.connected_to(EndpointId::next(), None);
        assert!(other.begin_offer());
        registry.close_all();
        other.end_offer();
        assert_eq!(message_of(&mut other), Some(Message::Close(CloseReason::Draining)));

        drop(connection);
        assert!(!registry.is_open(id));
        let _in_its_place = registry.register();
        assert!(!registry.is_open(id));
    }

    #[tokio::test]
    async fn h22_who_stays_or_has_no_endpoint_is_not_asked_to_leave() {
        let registry = Registry::new();
        let mut connections: Vec<Handle> = (0..3).map(|_| registry.register()).collect();
        for connection in &connections[1..] {
            connection.connected_to(EndpointId::next(), None);
        }
        connections[2].set_stays();
        registry.ask_to_leave(0..3);
        let asked: Vec<_> = connections.iter_mut().map(message_of).collect();
        assert_eq!(asked, [None, Some(Message::HandOver), None]);
    }

    #[tokio::test]
    async fn h22_who_has_another_message_is_asked_to_leave_after_it() {
        let registry = Registry::new();
        let mut connections = [registry.register(), registry.register()];
        for connection in &connections {
            connection.connected_to(EndpointId::next(), None);
        }
        connections[1].set_stays();
        registry.look(0..2, &mut States::default());
        registry.leave_to(mpsc::unbounded_channel().0);
        registry.ask_to_leave(0..2);
        assert_eq!(connections.each_mut().map(message_of), [Some(Message::Report); 2]);
        assert_eq!(connections.each_mut().map(message_of), [Some(Message::HandOver), None]);
    }

    #[tokio::test]
    async fn h22_who_connects_is_asked_to_leave_until_no_more_leave() {
        let registry = Registry::new();
        registry.leave_to(mpsc::unbounded_channel().0);
        let [mut earlier, mut later] = [registry.register(), registry.register()];
        earlier.connected_to(EndpointId::next(), None);
        registry.stop_leaving();
        later.connected_to(EndpointId::next(), None);
        assert_eq!([&mut earlier, &mut later].map(message_of), [Some(Message::HandOver), None]);
        assert!(earlier.leaving().is_none());
    }
}
