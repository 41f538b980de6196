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
mod rest;
pub(crate) mod sys;
pub(crate) mod tcp;

use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use self::flow::{Fault, Flow, FlowEvent};
use self::liveness::Liveness;
pub(crate) use self::liveness::PROBE_TIME;
pub(crate) use self::pipe::set_limit as set_pipe_limit;
pub(crate) use self::rest::{PortableRest, Rest};
use self::tcp::TcpOptions;

/// How bytes are moved, how long a connection may be inactive, and how silent peers are probed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelaySettings {
    pub(crate) engine: Engine,
    /// No data in either direction.
    pub(crate) idle: Duration,
    /// No data in either direction once one side has closed.
    pub(crate) half_close: Duration,
    /// Data waits for a side that accepts none of it.
    pub(crate) stalled: Duration,
    /// For the upstream, once the connection is not a short one.
    pub(crate) keepalive: TcpOptions,
    /// The relay comes to rest after this time without data; `None`: never by itself.
    pub(crate) park_after: Option<Duration>,
    /// Between events [`Event::Progress`]; `None`: there are none.
    pub(crate) progress: Option<Duration>,
}

/// An event that the relay reports.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'a> {
    /// This many bytes from this side were written to the other side's socket.
    Delivered(Side, usize),
    /// The first bytes from the upstream, as many as one read returned.
    Answered(&'a [u8]),
    /// Data was sent to the upstream ten seconds ago, and it has not sent any yet.
    Unanswered,
    /// [`RelaySettings::progress`] has passed, or has passed again.
    Progress { client: &'a TcpStream, upstream: &'a TcpStream },
    /// As asked by [`RelayCommand::Report`].
    Report {
        /// For how long no data has been moved.
        idle: Duration,
        client: &'a TcpStream,
        upstream: &'a TcpStream,
    },
}

/// What a relay belongs to.
pub(crate) trait Owner {
    /// Polls for the next command.
    fn poll_command(&mut self, cx: &mut Context<'_>) -> Poll<RelayCommand>;

    /// Called for every event.
    fn on_event(&mut self, event: Event<'_>);
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
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
    /// [`RelaySettings::stalled`].
    Dead(Side),
    /// [`RelaySettings::idle`] has passed.
    IdleTimeout,
    /// [`RelaySettings::half_close`] has passed.
    HalfCloseTimeout,
    /// The upstream has not answered the probe of [`RelayCommand::Probe`].
    ProbeUnanswered,
    /// By [`RelayCommand::Stop`].
    Stopped,
    /// By [`RelayCommand::StopIfQuiet`].
    StoppedQuiet,
}

/// What became of a relay.
#[derive(Debug)]
pub(crate) enum RelayResult {
    /// The sockets are to be closed.
    Ended(RelayEnd),
    /// The relay is at rest, and can be continued with the same sockets, here or in another process.
    Resting(Rest),
}

/// What a relay starts with.
#[derive(Debug)]
pub(crate) enum Start {
    /// The hello, which was already read from the client and is sent to the upstream first.
    Hello(Vec<u8>),
    /// The state of a relay that came to rest. Boxed, because it is stored as long as the relay runs.
    Rest(Box<Rest>),
}

/// How long a relay that is to come to rest waits for its peers to accept what is buffered before it reads again: one may
/// be stalled for hours.
const HOLD_BACK: Duration = Duration::from_secs(2);

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
    /// Come to rest as soon as nothing is buffered. For up to [`HOLD_BACK`], no more is read meanwhile.
    Rest,
    /// Send [`Event::Report`].
    Report,
}

/// Relays until both sides are done, a deadline passes, a command ends it, or it comes to rest. At its end the caller drops
/// both sockets, which closes them with a FIN, or with a RST to pass on a reset.
pub(crate) fn copy_bidirectional<'a>(
    client: &'a TcpStream,
    upstream: &'a TcpStream,
    start: Start,
    settings: &'a RelaySettings,
    owner: impl Owner,
) -> impl Future<Output = RelayResult> {
    // Created outside the future, which would otherwise store all arguments.
    let mut relay = Relay::new(client, upstream, start, settings, owner);
    async move {
        let end = {
            let mut timer = pin!(sleep(relay.settings.idle));
            let relayed = poll_fn(|cx| {
                while let Poll::Ready(command) = relay.owner.poll_command(cx) {
                    match command {
                        RelayCommand::Stop => return Poll::Ready(Step::End(RelayEnd::Stopped)),
                        RelayCommand::StopIfQuiet if relay.is_quiet() => {
                            return Poll::Ready(Step::End(RelayEnd::StoppedQuiet));
                        }
                        RelayCommand::StopIfQuiet => {}
                        RelayCommand::Probe(since) => relay.liveness.probe(relay.upstream, since),
                        RelayCommand::Rest if relay.is_to_rest => {}
                        RelayCommand::Rest => {
                            relay.is_to_rest = true;
                            relay.hold_back_until = Some(Box::new(Instant::now() + HOLD_BACK));
                        }
                        RelayCommand::Report => relay.report(),
                    }
                }
                relay.poll(cx, timer.as_mut())
            })
            .await;
            match relayed {
                Step::Rest => return RelayResult::Resting(relay.into_rest()),
                Step::End(end) => end,
            }
        };
        if let RelayEnd::Reset(side) | RelayEnd::ClosedThenReset(side) | RelayEnd::Dead(side) = end {
            let (failed, other) = match side {
                Side::Client => (relay.client, relay.upstream),
                Side::Upstream => (relay.upstream, relay.client),
            };
            reset_on_close(failed);
            let half_close = relay.settings.half_close;
            let stopped = poll_fn(|cx| {
                loop {
                    match ready!(relay.owner.poll_command(cx)) {
                        RelayCommand::Stop => return Poll::Ready(()),
                        RelayCommand::Report => relay.report(),
                        RelayCommand::StopIfQuiet | RelayCommand::Probe(_) | RelayCommand::Rest => {}
                    }
                }
            });
            tokio::select! {
                () = Box::pin(all_acknowledged(other, half_close)) => {}
                () = stopped => {}
            }
            reset_on_close(other);
        }
        RelayResult::Ended(end)
    }
}

/// What a running relay does next.
enum Step {
    End(RelayEnd),
    Rest,
}

type ResetWatch<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;

struct Relay<'a, O> {
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
    reset_watch: Option<ResetWatch<'a>>,
    settings: &'a RelaySettings,
    last_activity: Instant,
    liveness: Liveness,
    /// Whether the upstream has sent nothing yet, and that was not reported.
    awaits_answer: bool,
    /// By [`RelayCommand::Rest`].
    is_to_rest: bool,
    /// Until then, nothing is read. Boxed, because it is rare.
    hold_back_until: Option<Box<Instant>>,
    /// When [`Event::Progress`] is next reported. Boxed, because few configurations have it.
    progress_at: Option<Box<Instant>>,
    /// Whether it continues after a rest: something has probably been received, which the runtime has not seen yet.
    resumes: bool,
    owner: O,
}

impl<'a, O: Owner> Relay<'a, O> {
    fn new(
        client: &'a TcpStream,
        upstream: &'a TcpStream,
        start: Start,
        settings: &'a RelaySettings,
        owner: O,
    ) -> Self {
        let (hello, rest, resumes) = match start {
            Start::Hello(hello) => (hello, Rest::new(), false),
            Start::Rest(rest) => (Vec::new(), *rest, true),
        };
        let Rest {
            last_activity,
            liveness,
            delivered_after_close,
            closed_first,
            awaits_answer,
            has_begun,
            progress_at,
        } = rest;
        let first_progress = |interval| Box::new(Instant::now() + interval);
        let flow = |side, bytes, has_begun| {
            if closed_first == Some(side) { Flow::finished() } else { Flow::new(settings.engine, bytes, has_begun) }
        };
        Self {
            client,
            upstream,
            up: flow(Side::Client, hello, has_begun[0]),
            down: flow(Side::Upstream, Vec::new(), has_begun[1]),
            closed_first,
            delivered_after_close,
            fault: None,
            reset_watch: closed_first.map(|side| {
                let closed = match side {
                    Side::Client => client,
                    Side::Upstream => upstream,
                };
                watch_for_reset(closed)
            }),
            settings,
            last_activity,
            liveness,
            awaits_answer,
            is_to_rest: false,
            hold_back_until: None,
            progress_at: settings.progress.map(|interval| progress_at.unwrap_or_else(|| first_progress(interval))),
            resumes,
            owner,
        }
    }

    fn into_rest(self) -> Rest {
        Rest {
            last_activity: self.last_activity,
            liveness: self.liveness,
            delivered_after_close: self.delivered_after_close,
            closed_first: self.closed_first,
            awaits_answer: self.awaits_answer,
            has_begun: [self.up.has_begun(), self.down.has_begun()],
            progress_at: self.progress_at,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>) -> Poll<Step> {
        if mem::take(&mut self.resumes) {
            self.poll_flow(cx, Side::Client, Readiness::Ignored);
            self.poll_flow(cx, Side::Upstream, Readiness::Ignored);
        }
        self.poll_flow(cx, Side::Client, Readiness::Required);
        self.poll_flow(cx, Side::Upstream, Readiness::Required);
        self.poll_reset_watch(cx);
        if self.up.ended() && self.down.ended() {
            let closed = self.closed_first.map(RelayEnd::Closed);
            return Poll::Ready(Step::End(self.fault.or(closed).unwrap_or(RelayEnd::Stopped)));
        }
        if self.is_to_rest && self.can_rest() {
            return Poll::Ready(Step::Rest);
        }
        self.poll_deadline(cx, timer)
    }

    /// Whether the sockets hold everything there is to know about the data.
    fn can_rest(&self) -> bool {
        self.fault.is_none()
            && self.up.blocked_since().is_none()
            && self.down.blocked_since().is_none()
            && !self.liveness.is_probing()
    }

    /// When to come to rest by itself.
    fn rests_at(&self) -> Option<Instant> {
        let park_after = self.settings.park_after.filter(|_| self.closed_first.is_none() && self.can_rest());
        park_after.map(|after| self.last_activity + after)
    }

    fn poll_flow(&mut self, cx: &mut Context<'_>, from: Side, readiness: Readiness) {
        let (flow, source, destination) = match from {
            Side::Client => (&mut self.up, self.client, self.upstream),
            Side::Upstream => (&mut self.down, self.upstream, self.client),
        };
        let mut moved = 0;
        let mut report = |event: FlowEvent<'_>| match event {
            FlowEvent::First(bytes) if from == Side::Upstream => self.owner.on_event(Event::Answered(bytes)),
            FlowEvent::First(_) => {}
            FlowEvent::Delivered(length) => {
                moved += length;
                self.owner.on_event(Event::Delivered(from, length));
            }
        };
        // After a fault, what the failed side had sent before is still to be read.
        let end = if self.hold_back_until.is_some() && self.fault.is_none() {
            flow.poll_flush(cx, destination, &mut report)
        } else {
            flow.poll(cx, source, destination, readiness, &mut report)
        };
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
                    self.reset_watch = Some(watch_for_reset(source));
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
        let (Some(side), Some(watch)) = (self.closed_first, &mut self.reset_watch) else { return };
        let Poll::Ready(result) = watch.as_mut().poll(cx) else { return };
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

    fn report(&mut self) {
        let (client, upstream) = (self.client, self.upstream);
        self.owner.on_event(Event::Report { idle: self.last_activity.elapsed(), client, upstream });
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

    fn poll_deadline(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<Step> {
        let is_blocked = self.up.blocked_since().is_some() || self.down.blocked_since().is_some();
        let is_half_closed = self.up.ended() || self.down.ended();
        let (may_last, end) = match self.fault {
            // What was read before waits for its reader.
            Some(fault) if is_blocked => (self.settings.stalled, fault),
            Some(fault) => (self.settings.half_close, fault),
            None if is_half_closed => (self.settings.half_close, RelayEnd::HalfCloseTimeout),
            None => (self.settings.idle, RelayEnd::IdleTimeout),
        };
        let silence = (self.last_activity + may_last, end);
        let stall = |flow: &Flow, to| Some((flow.blocked_since()? + self.settings.stalled, RelayEnd::Dead(to)));
        let stalls = [stall(&self.up, Side::Upstream), stall(&self.down, Side::Client)].into_iter().flatten();
        let (deadline, end) = stalls.fold(silence, |first, other| if other.0 < first.0 { other } else { first });
        loop {
            let rests_at = self.rests_at();
            let boxed = [&self.hold_back_until, &self.progress_at].map(|at| at.as_deref().copied());
            let next =
                [self.liveness.deadline(), rests_at].into_iter().chain(boxed).flatten().fold(deadline, Instant::min);
            // Activity does not reset the timer; when it fires too early, it is set again.
            if timer.deadline() > next {
                timer.as_mut().reset(next);
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if now >= deadline {
                return Poll::Ready(Step::End(end));
            }
            if self.liveness.has_probe_failed(self.upstream, now) {
                return Poll::Ready(Step::End(RelayEnd::ProbeUnanswered));
            }
            if self.hold_back_until.take_if(|until| now >= **until).is_some() {
                // To read again.
                cx.waker().wake_by_ref();
            }
            self.report_progress(now);
            if self.liveness.is_check_due(now) {
                // Also when they are set already: the calls cost less than remembering for each connection.
                if !self.liveness.is_probing() {
                    // If this fails, a dead upstream is noticed when data is sent to it.
                    let _ = self.settings.keepalive.keep_alive(self.upstream);
                }
                if mem::take(&mut self.awaits_answer) {
                    self.owner.on_event(Event::Unanswered);
                }
                if let Some(side) = self.liveness.check(self.client, self.upstream, now) {
                    return Poll::Ready(Step::End(RelayEnd::Dead(side)));
                }
                self.read_unannounced(cx);
            } else if rests_at.is_some_and(|at| now >= at) {
                return Poll::Ready(Step::Rest);
            }
            timer.as_mut().reset(deadline);
        }
    }

    fn report_progress(&mut self, now: Instant) {
        if let (Some(at), Some(interval)) = (self.progress_at.as_deref_mut(), self.settings.progress)
            && now >= *at
        {
            *at = now + interval;
            self.owner.on_event(Event::Progress { client: self.client, upstream: self.upstream });
        }
    }

    /// Reads data without waiting for readiness: a read stops before an urgent byte, and the kernel does not report the
    /// rest as readable.
    fn read_unannounced(&mut self, cx: &mut Context<'_>) {
        for from in [Side::Client, Side::Upstream] {
            for _ in 0..MAX_UNANNOUNCED {
                if !rustix::io::ioctl_fionread(self.socket(from)).is_ok_and(|waiting| waiting > 0) {
                    break;
                }
                self.poll_flow(cx, from, Readiness::Ignored);
                // The flow may have ended.
                cx.waker().wake_by_ref();
            }
        }
    }
}

/// Completes when this side, which has closed, resets the connection.
fn watch_for_reset(closed: &TcpStream) -> ResetWatch<'_> {
    Box::pin(async { closed.ready(Interest::ERROR).await.map(drop) })
}

/// Maximum number of reads of a socket whose data is not reported.
const MAX_UNANNOUNCED: usize = 16;

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
