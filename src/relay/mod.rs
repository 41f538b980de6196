//! Relays bytes between two sockets until both sides are done.
//!
//! All bytes are delivered in order, both ways. A FIN is passed on after all data before it; a reset is passed on as a
//! reset, after the data received before it; an error in one direction does not discard data of the other.
//!
//! An idle connection has no buffer: data passes through one scratch buffer per worker thread, and only what a slow
//! reader has not accepted is kept, at most 64 KiB per direction, while nothing more is read for it. When the
//! [`budget`] for all connections is used up, it is 4 KiB.
//!
//! A bulk transfer is moved by splice(2), through a pipe that is only allocated while data is in it: at most 256 KiB of
//! kernel memory.

pub(crate) mod budget;
mod flow;
mod liveness;
mod pipe;
pub(crate) mod sys;
pub(crate) mod tcp;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use self::flow::{Fault, Flow, FlowEvent};
use self::liveness::Liveness;
pub(crate) use self::liveness::PROBE_TIME;
pub(crate) use self::pipe::set_limit as set_pipe_limit;
use self::tcp::TcpOptions;

/// How long a connection may be inactive, and how silent peers are probed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// No data in either direction.
    pub(crate) idle: Duration,
    /// No data in either direction once one side has closed.
    pub(crate) half_close: Duration,
    /// Data waits for a side that accepts none of it.
    pub(crate) stalled: Duration,
    /// For the upstream, once the connection is not a short one.
    pub(crate) keepalive: TcpOptions,
}

/// An event that the relay reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// This many bytes from this side were written to the other side's socket.
    Delivered(Side, usize),
    /// The first bytes from the upstream, as many as one read returned.
    Answered(&'a [u8]),
    /// Data was sent to the upstream ten seconds ago, and it has not sent any yet.
    Unanswered,
}

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Copy, and splice bulk transfers.
    Auto,
    /// Always copy.
    Copy,
    /// Always splice, as long as pipes are available.
    Splice,
}

/// One of the two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The peer that connected to us.
    Client,
    /// The peer that we connected to.
    Upstream,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RelayEnd {
    /// Both sides have sent a FIN, this one first.
    Closed(Side),
    /// This side has sent a FIN and closed its socket: its kernel answered data sent later with a reset.
    ClosedThenReset(Side),
    /// This side has reset the connection.
    Reset(Side),
    /// This side does not answer keepalives, has not acknowledged data for 30 seconds, or accepted no data for
    /// [`Deadlines::stalled`].
    Dead(Side),
    /// [`Deadlines::idle`] has passed.
    IdleTimeout,
    /// [`Deadlines::half_close`] has passed.
    HalfCloseTimeout,
    /// The upstream has not answered the probe of [`RelayCommand::Probe`].
    ProbeUnanswered,
    /// By [`RelayCommand::Stop`].
    Stopped,
    /// By [`RelayCommand::StopIfQuiet`].
    StoppedQuiet,
}

/// Longer than a message takes from its first to its last byte.
const QUIET: Duration = Duration::from_secs(1);

/// A command to a running relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RelayCommand {
    /// End the relay.
    Stop,
    /// End the relay if both sides have been silent for a second and no data is on the way: whatever protocol they speak,
    /// they are between two messages.
    StopIfQuiet,
    /// Probe the upstream, unless it was heard since then, and end the relay if it does not answer.
    Probe(Instant),
}

/// Relays until both sides are done, a deadline passes or a command ends it. The caller then drops both sockets, which
/// closes them with a FIN, or with a RST to pass on a reset.
///
/// `hello` was already read from the client and is sent to the upstream first. `on_event` is called for every [`Event`],
/// and `poll_command` is polled for the next [`RelayCommand`].
pub(crate) fn copy_bidirectional<'a>(
    client: &'a TcpStream,
    upstream: &'a TcpStream,
    engine: Engine,
    hello: Vec<u8>,
    deadlines: &'a Deadlines,
    mut poll_command: impl FnMut(&mut Context<'_>) -> Poll<RelayCommand>,
    on_event: impl FnMut(Event<'_>),
) -> impl Future<Output = RelayEnd> {
    // Created outside the future, which would otherwise store all arguments.
    let mut relay = Relay::new(client, upstream, engine, hello, deadlines, on_event);
    async move {
        let end = {
            let mut timer = pin!(sleep(relay.deadlines.idle));
            poll_fn(|cx| {
                while let Poll::Ready(command) = poll_command(cx) {
                    match command {
                        RelayCommand::Stop => return Poll::Ready(RelayEnd::Stopped),
                        RelayCommand::StopIfQuiet if relay.is_quiet() => return Poll::Ready(RelayEnd::StoppedQuiet),
                        RelayCommand::StopIfQuiet => {}
                        RelayCommand::Probe(since) => relay.liveness.probe(relay.upstream, since),
                    }
                }
                relay.poll(cx, timer.as_mut())
            })
            .await
        };
        if let RelayEnd::Reset(side) | RelayEnd::ClosedThenReset(side) | RelayEnd::Dead(side) = end {
            let (failed, other) = match side {
                Side::Client => (relay.client, relay.upstream),
                Side::Upstream => (relay.upstream, relay.client),
            };
            reset_on_close(failed);
            let stopped = poll_fn(|cx| {
                while ready!(poll_command(cx)) != RelayCommand::Stop {}
                Poll::Ready(())
            });
            tokio::select! {
                () = Box::pin(all_acknowledged(other, relay.deadlines.half_close)) => {}
                () = stopped => {}
            }
            reset_on_close(other);
        }
        end
    }
}

type ResetWatch<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;

struct Relay<'a, E> {
    client: &'a TcpStream,
    upstream: &'a TcpStream,
    /// Client to upstream.
    up: Flow,
    /// Upstream to client.
    down: Flow,
    closed_first: Option<Side>,
    /// Bytes delivered to the side that closed first, since it did; saturating at 4 GiB.
    delivered_after_close: u32,
    fault: Option<RelayEnd>,
    /// A side that has closed is no longer read from, so its reset would go unnoticed while the other side is silent.
    reset_watch: Option<(Side, ResetWatch<'a>)>,
    deadlines: &'a Deadlines,
    last_activity: Instant,
    liveness: Liveness,
    /// Whether the upstream has sent nothing yet, and that was not reported.
    awaits_answer: bool,
    on_event: E,
}

impl<'a, E: FnMut(Event<'_>)> Relay<'a, E> {
    fn new(
        client: &'a TcpStream,
        upstream: &'a TcpStream,
        engine: Engine,
        hello: Vec<u8>,
        deadlines: &'a Deadlines,
        on_event: E,
    ) -> Self {
        Self {
            client,
            upstream,
            up: Flow::new(engine, hello),
            down: Flow::new(engine, Vec::new()),
            closed_first: None,
            delivered_after_close: 0,
            fault: None,
            reset_watch: None,
            deadlines,
            last_activity: Instant::now(),
            liveness: Liveness::default(),
            awaits_answer: true,
            on_event,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>) -> Poll<RelayEnd> {
        self.poll_flow(cx, Side::Client, Readiness::Required);
        self.poll_flow(cx, Side::Upstream, Readiness::Required);
        self.poll_reset_watch(cx);
        if self.up.ended() && self.down.ended() {
            let closed = self.closed_first.map(RelayEnd::Closed);
            return Poll::Ready(self.fault.or(closed).unwrap_or(RelayEnd::Stopped));
        }
        self.poll_deadline(cx, timer)
    }

    fn poll_flow(&mut self, cx: &mut Context<'_>, from: Side, readiness: Readiness) {
        let (flow, source, destination) = match from {
            Side::Client => (&mut self.up, self.client, self.upstream),
            Side::Upstream => (&mut self.down, self.upstream, self.client),
        };
        let mut moved = 0;
        let mut report = |event: FlowEvent<'_>| match event {
            FlowEvent::First(bytes) if from == Side::Upstream => (self.on_event)(Event::Answered(bytes)),
            FlowEvent::First(_) => {}
            FlowEvent::Delivered(length) => {
                moved += length;
                (self.on_event)(Event::Delivered(from, length));
            }
        };
        let end = flow.poll(cx, source, destination, readiness, &mut report);
        if moved > 0 || end.is_ready() {
            self.last_activity = Instant::now();
        }
        if self.closed_first == Some(from.other()) {
            let moved = u32::try_from(moved).unwrap_or(u32::MAX);
            self.delivered_after_close = self.delivered_after_close.saturating_add(moved);
        }
        if moved > 0 {
            self.awaits_answer &= from == Side::Client;
            self.liveness.data_sent(self.last_activity);
        }
        let end = end.map(|end| match self.fault {
            None => end.and_then(|()| flow.finish(destination, self.closed_first.is_some())),
            // An EOF after a failed write is a reset that the write has already reported.
            Some(_) => end.and(Err(Fault::Source(io::ErrorKind::ConnectionReset.into()))),
        });
        match end {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => {
                if self.closed_first.is_none() {
                    self.closed_first = Some(from);
                    self.reset_watch = Some((from, Box::pin(async { source.ready(Interest::ERROR).await.map(drop) })));
                }
            }
            Poll::Ready(Err(Fault::Source(error))) => self.fail(from, &error),
            Poll::Ready(Err(Fault::Destination(error))) => {
                // The other direction continues: what this side sent before it failed is still to be read.
                flow.abort();
                self.record_fault(from.other(), &error);
            }
        }
    }

    /// Polls for a reset of the side that closed first.
    fn poll_reset_watch(&mut self, cx: &mut Context<'_>) {
        let Some((side, watch)) = &mut self.reset_watch else { return };
        let Poll::Ready(result) = watch.as_mut().poll(cx) else { return };
        let side = *side;
        self.reset_watch = None;
        let error = result.and_then(|()| self.socket(side).take_error()).unwrap_or_else(Some);
        self.fail(side, &error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()));
    }

    /// The side has failed, and all it sent was read.
    fn fail(&mut self, side: Side, error: &io::Error) {
        self.record_fault(side, error);
        self.up.abort();
        self.down.abort();
    }

    fn record_fault(&mut self, side: Side, error: &io::Error) {
        if self.fault.is_none() {
            self.fault = Some(match fault(side, error) {
                RelayEnd::Reset(side) if self.had_closed(side) => RelayEnd::ClosedThenReset(side),
                fault => fault,
            });
        }
    }

    /// Whether this side had closed its socket, and not only its half of the connection: its kernel has acknowledged none
    /// of the data sent after its FIN, and reset the connection.
    fn had_closed(&self, side: Side) -> bool {
        self.closed_first == Some(side)
            && sys::unacknowledged(self.socket(side))
                .is_ok_and(|outstanding| outstanding >= self.delivered_after_close.max(1) as usize)
    }

    /// See [`RelayCommand::StopIfQuiet`].
    fn is_quiet(&self) -> bool {
        let is_empty = |side| {
            let unread = rustix::io::ioctl_fionread(self.socket(side)).unwrap_or(0);
            // A close would discard what a slow reader has not acknowledged yet, if it sends anything meanwhile.
            unread == 0 && sys::unacknowledged(self.socket(side)).unwrap_or(0) == 0
        };
        self.closed_first.is_none()
            && self.last_activity.elapsed() >= QUIET
            && self.up.blocked_since().is_none()
            && self.down.blocked_since().is_none()
            && is_empty(Side::Client)
            && is_empty(Side::Upstream)
    }

    fn socket(&self, side: Side) -> &'a TcpStream {
        match side {
            Side::Client => self.client,
            Side::Upstream => self.upstream,
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<RelayEnd> {
        let silence = if self.up.ended() || self.down.ended() {
            (self.last_activity + self.deadlines.half_close, RelayEnd::HalfCloseTimeout)
        } else {
            (self.last_activity + self.deadlines.idle, RelayEnd::IdleTimeout)
        };
        let stall = |flow: &Flow, to| Some((flow.blocked_since()? + self.deadlines.stalled, RelayEnd::Dead(to)));
        let stalls = [stall(&self.up, Side::Upstream), stall(&self.down, Side::Client)].into_iter().flatten();
        let (deadline, end) = stalls.fold(silence, |first, other| if other.0 < first.0 { other } else { first });
        loop {
            let next = self.liveness.deadline().map_or(deadline, |at| at.min(deadline));
            // Activity does not reset the timer; when it fires too early, it is set again.
            if timer.deadline() > next {
                timer.as_mut().reset(next);
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if now >= deadline {
                return Poll::Ready(end);
            }
            if self.liveness.has_probe_failed(self.upstream, now) {
                return Poll::Ready(RelayEnd::ProbeUnanswered);
            }
            if self.liveness.is_check_due(now) {
                // Also when they are set already: the calls cost less than remembering for each connection.
                if !self.liveness.is_probing() {
                    // If this fails, a dead upstream is noticed when data is sent to it.
                    let _ = self.deadlines.keepalive.keep_alive(self.upstream);
                }
                if std::mem::take(&mut self.awaits_answer) {
                    (self.on_event)(Event::Unanswered);
                }
                if let Some(side) = self.liveness.check(self.client, self.upstream, now) {
                    return Poll::Ready(RelayEnd::Dead(side));
                }
                self.read_unannounced(cx);
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// Reads data without waiting for readiness: a read stops before an urgent byte, and the kernel does not report the
    /// rest as readable.
    fn read_unannounced(&mut self, cx: &mut Context<'_>) {
        for from in [Side::Client, Side::Upstream] {
            if rustix::io::ioctl_fionread(self.socket(from)).is_ok_and(|waiting| waiting > 0) {
                self.poll_flow(cx, from, Readiness::Ignored);
                // The flow may have ended.
                cx.waker().wake_by_ref();
            }
        }
    }
}

/// Whether to read only after the kernel has reported the socket as readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    Required,
    Ignored,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }
}

fn fault(side: Side, error: &io::Error) -> RelayEnd {
    match error.kind() {
        // Unanswered keepalives or retransmissions, and ICMP errors received meanwhile.
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            RelayEnd::Dead(side)
        }
        _ => RelayEnd::Reset(side),
    }
}

/// Makes the close send a RST.
pub(crate) fn reset_on_close(socket: &TcpStream) {
    // If this fails, it is an ordinary close.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Completes when the peer has acknowledged all data, because a RST would discard the rest, or when it has acknowledged
/// nothing for `timeout`. Polls at growing intervals, because the kernel does not report this.
async fn all_acknowledged(socket: &TcpStream, timeout: Duration) {
    let mut pause = Duration::from_millis(1);
    let mut outstanding = usize::MAX;
    let mut last_progress = Instant::now();
    while let Ok(now_outstanding @ 1..) = sys::unacknowledged(socket) {
        if now_outstanding < outstanding {
            outstanding = now_outstanding;
            last_progress = Instant::now();
        }
        let is_unreachable = socket.peer_addr().is_err();
        if is_unreachable || last_progress.elapsed() >= timeout {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tests;
