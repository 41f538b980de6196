//! A connection whose endpoint is connected: relayed, at rest, and at its end.

use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::admission::SourcePermit;
use crate::connection::live::LiveConnection;
use crate::connection::parking::{self, Parked};
use crate::connection::registry::{CloseReason, Handle, Message};
use crate::relay::{self, Event, RelayCommand, RelayEnd, RelayResult, RelaySettings, Side, Start, sys};
use crate::server_hello::Answer;
use crate::telemetry::{ClosedBy, ConnectionRecord, Measured, Outcome};
use crate::upstream::EndpointSlot;

/// What belongs to a connection besides its sockets, from the connect to its end.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) record: ConnectionRecord,
    pub(crate) slot: EndpointSlot,
    pub(crate) settings: Arc<RelaySettings>,
    pub(crate) source_permit: Option<Box<SourcePermit>>,
    pub(crate) permit: OwnedSemaphorePermit,
}

#[cfg(test)]
impl Established {
    /// To an endpoint in no pool, with limits and counters of its own.
    pub(super) fn sample(client: std::net::SocketAddr, settings: RelaySettings) -> Self {
        use tokio::sync::Semaphore;

        use crate::telemetry::Counters;

        Self {
            record: ConnectionRecord::open(&Arc::new(Counters::new(0)).listener("api"), client),
            slot: EndpointSlot::sample(),
            settings: settings.into(),
            source_permit: None,
            permit: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
        }
    }
}

/// A connection that is about to be relayed.
#[derive(Debug)]
pub(crate) struct Relaying {
    pub(crate) connection: Established,
    pub(crate) client: TcpStream,
    pub(crate) upstream: TcpStream,
    pub(crate) start: Start,
    pub(crate) handle: Handle,
}

impl Relaying {
    /// Relays until the connection ends, which is recorded, or comes to rest: then it is parked, or handed over to another
    /// process.
    #[expect(clippy::manual_async_fn, reason = "its future would store `self` twice")]
    pub(crate) fn run(mut self) -> impl Future<Output = ()> + Send {
        async move {
            let Self { connection: Established { record, slot, settings, .. }, client, upstream, start, handle } =
                &mut self;
            let start = mem::replace(start, Start::Hello(Vec::new()));
            let served = Served { record, slot, handle };
            let result = relay::copy_bidirectional(client, upstream, start, settings, served).await;
            match result {
                RelayResult::Ended(end) => {
                    let Self { connection, client, upstream, handle, .. } = self;
                    let Established { mut record, slot, source_permit, permit, .. } = connection;
                    let upstream_closed = matches!(
                        end,
                        RelayEnd::Closed(Side::Upstream)
                            | RelayEnd::ClosedThenReset(Side::Upstream)
                            | RelayEnd::Reset(Side::Upstream)
                    );
                    if upstream_closed {
                        report_no_answer(&mut record, &slot, "closed without an answer to a ClientHello");
                    }
                    let (outcome, closed_by) = outcome_of(end, handle.close_reason());
                    record.end(outcome, closed_by, reason_of(end, handle.close_reason()));
                    if record.is_logged() {
                        record.fields.measured = Some(Box::new(measured(&client, &upstream)));
                    }
                    // Before the end is counted and logged.
                    drop((client, upstream, slot, source_permit, permit));
                }
                RelayResult::Resting(rest) => {
                    let Self { connection, client, upstream, handle, .. } = self;
                    if let Some(connection) = Parked::new(connection, client, upstream, rest) {
                        parking::park(connection, handle);
                    }
                }
            }
        }
    }
}

/// A connection while it is relayed.
struct Served<'c> {
    record: &'c mut ConnectionRecord,
    slot: &'c EndpointSlot,
    handle: &'c mut Handle,
}

impl relay::Owner for Served<'_> {
    fn poll_command(&mut self, cx: &mut Context<'_>) -> Poll<RelayCommand> {
        self.handle.poll_message(cx).map(|message| match message {
            Message::Close(_) => RelayCommand::Stop,
            Message::CloseIfQuiet => RelayCommand::StopIfQuiet,
            Message::Probe(since) => RelayCommand::Probe(since),
            Message::HandOver => RelayCommand::Rest,
            Message::Report => RelayCommand::Report,
        })
    }

    fn on_event(&mut self, event: Event<'_>) {
        let Self { record, slot, handle } = self;
        match event {
            Event::Delivered(Side::Client, bytes) => record.received(bytes),
            Event::Delivered(Side::Upstream, bytes) => record.sent(bytes),
            Event::Answered(bytes) => {
                slot.answered();
                record.answered(Answer::parse(bytes));
            }
            Event::Unanswered => report_no_answer(record, slot, "no answer to a ClientHello in time"),
            Event::Progress { client, upstream } => record.log_progress(|| measured(client, upstream)),
            Event::Report { idle, client, upstream } => {
                handle.report(|id| LiveConnection::new(id, (record, slot.endpoint()), (client, upstream), idle, false));
            }
        }
    }
}

impl Established {
    /// The runtime cannot serve the sockets.
    pub(super) fn fail(mut self, error: &std::io::Error) {
        self.record.end(Outcome::LocalError, ClosedBy::Us, Some(error.to_string().into()));
    }
}

/// What the kernel knows of both connections, also after a reset.
pub(super) fn measured(client: impl AsFd, upstream: impl AsFd) -> Measured {
    let (client, upstream) = (sys::tcp_info(client).ok(), sys::tcp_info(upstream).ok());
    Measured {
        client_rtt: client.and_then(|info| info.rtt),
        client_retransmits: client.map(|info| info.retransmits),
        upstream_rtt: upstream.and_then(|info| info.rtt),
    }
}

/// Reports, once per connection, an endpoint that has sent nothing.
fn report_no_answer(record: &mut ConnectionRecord, slot: &EndpointSlot, cause: &str) {
    if record.has_sent_nothing() && !mem::replace(&mut record.no_answer_reported, true) {
        slot.did_not_answer(cause);
    }
}

/// Why a connection was closed by us, where the outcome does not say it.
fn reason_of(end: RelayEnd, close_reason: CloseReason) -> Option<Box<str>> {
    match (end, close_reason) {
        (RelayEnd::Stopped, CloseReason::Removed) => Some("its route or endpoint is no longer configured".into()),
        (RelayEnd::Stopped, CloseReason::Operator) => Some("closed by an operator".into()),
        (RelayEnd::Stopped, CloseReason::Rebalance) => Some("rebalanced: another endpoint has returned".into()),
        (RelayEnd::ProbeUnanswered, _) => Some("the endpoint is dead and does not acknowledge this connection".into()),
        _ => None,
    }
}

fn outcome_of(end: RelayEnd, close_reason: CloseReason) -> (Outcome, ClosedBy) {
    let by = |side| match side {
        Side::Client => ClosedBy::Client,
        Side::Upstream => ClosedBy::Upstream,
    };
    match end {
        RelayEnd::Closed(side) | RelayEnd::ClosedThenReset(side) => (Outcome::Completed, by(side)),
        RelayEnd::Reset(side @ Side::Client) => (Outcome::ClientReset, by(side)),
        RelayEnd::Reset(side @ Side::Upstream) => (Outcome::UpstreamReset, by(side)),
        RelayEnd::Dead(side) => (Outcome::PeerDead, by(side)),
        RelayEnd::IdleTimeout => (Outcome::IdleTimeout, ClosedBy::Us),
        RelayEnd::HalfCloseTimeout => (Outcome::HalfCloseTimeout, ClosedBy::Us),
        RelayEnd::ProbeUnanswered => (Outcome::CutEndpoint, ClosedBy::Us),
        RelayEnd::StoppedQuiet => (Outcome::MaxAge, ClosedBy::Us),
        RelayEnd::Stopped => match close_reason {
            CloseReason::MaxAge => (Outcome::MaxAge, ClosedBy::Us),
            CloseReason::Draining | CloseReason::Removed | CloseReason::Operator | CloseReason::Rebalance => {
                (Outcome::Drained, ClosedBy::Us)
            }
            CloseReason::Shed => (Outcome::OverLimit, ClosedBy::Us),
        },
    }
}
