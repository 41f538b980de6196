//! Two sockets, until both ends are done.
//!
//! Every byte is delivered in order, both ways. A FIN is passed on after all bytes before it; a reset is passed on as
//! a reset, after what had been received before it; an error in one direction does not discard what the other still
//! holds. An idle connection holds no buffer: bytes pass through one per worker thread, and only what a slow
//! reader has not taken is kept, at most 64 KiB per direction, during which nothing more is read for it. When all connections
//! together keep too much ([`held`](crate::relay::budget)), it is 4 KiB for those that come to it then.
//!
//! A direction that proves to be bulk is moved by splice(2), through a pipe that it has only while bytes are in it. What
//! is in a pipe for a slow reader is the kernel's and at most 256 KiB of pages.

pub(crate) mod budget;
mod flow;
mod pipe;
pub(crate) mod sys;
pub(crate) mod tcp;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use flow::{Fault, Flow, Piece};
pub(crate) use pipe::set_limit as set_pipe_limit;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use self::tcp::TcpOptions;

/// How long a connection may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// No byte in either direction.
    pub(crate) idle: Duration,
    /// No byte in either direction since one side has closed.
    pub(crate) half_close: Duration,
    /// A side takes none of the bytes that wait for it.
    pub(crate) stalled: Duration,
}

/// What happens while a connection is relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// So many bytes from this side were handed to the other side's kernel.
    Delivered(Side, usize),
    /// The first bytes of the upstream have come, as many as came at once.
    Answered(&'a [u8]),
    /// The upstream was sent bytes ten seconds ago, and has not sent one yet.
    Unanswered,
}

/// How bytes are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Copied; spliced while much comes in a row.
    Auto,
    /// Always copied.
    Copy,
    /// Always spliced, as far as there are pipes.
    Splice,
}

/// One of the two peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that connected to us.
    Client,
    /// The one that we connected to.
    Upstream,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Both sides have closed in order, this one first.
    Closed(Side),
    /// This side has closed in order, and had closed completely: what was sent to it later was answered by a reset.
    ClosedThenReset(Side),
    /// This side reset the connection.
    Reset(Side),
    /// This side does not answer keepalives any more, has not acknowledged what was sent to it for half a minute, or took
    /// no byte for [`Deadlines::stalled`].
    Dead(Side),
    /// [`Deadlines::idle`] has passed.
    IdleTimeout,
    /// [`Deadlines::half_close`] has passed.
    HalfCloseTimeout,
    /// The upstream has acknowledged nothing since [`Command::Probe`] said that it might be dead.
    ProbeUnanswered,
    /// As commanded.
    Stopped,
}

/// What a relay can be told while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// To end.
    Stop,
    /// To end if the upstream has acknowledged nothing since then, and does not now.
    Probe(Instant),
}

/// Relays until both sides are done, a deadline passes or a command ends it. What is left to do for the caller is to drop
/// both sockets: that closes them, with a FIN or, where that is what one side has done, with a RST.
///
/// `engine` says how; no engine changes what arrives. `hello` is what has been read from the client already; it goes to
/// the upstream first. `happens` is told of every [`Event`]. `command` is polled for the next [`Command`].
pub(crate) fn copy_bidirectional<'a>(
    client: &'a TcpStream,
    upstream: &'a TcpStream,
    engine: Engine,
    hello: Vec<u8>,
    deadlines: &'a Deadlines,
    mut command: impl FnMut(&mut Context<'_>) -> Poll<Command>,
    happens: impl FnMut(Event<'_>),
) -> impl Future<Output = Ending> {
    // Outside of the future, and with it the arguments that are not needed any more.
    let mut relay = Relay::new(client, upstream, engine, hello, deadlines, happens);
    async move {
        let ending = {
            let mut timer = pin!(sleep(relay.deadlines.idle));
            poll_fn(|cx| {
                while let Poll::Ready(command) = command(cx) {
                    match command {
                        Command::Stop => return Poll::Ready(Ending::Stopped),
                        Command::Probe(since) => relay.probe(since),
                    }
                }
                relay.poll(cx, timer.as_mut())
            })
            .await
        };
        if let Ending::Reset(side) | Ending::ClosedThenReset(side) | Ending::Dead(side) = ending {
            let (gone, survivor) = match side {
                Side::Client => (relay.client, relay.upstream),
                Side::Upstream => (relay.upstream, relay.client),
            };
            reset_on_close(gone);
            let stopped = poll_fn(|cx| {
                while ready!(command(cx)) != Command::Stop {}
                Poll::Ready(())
            });
            tokio::select! {
                () = Box::pin(acknowledged(survivor, relay.deadlines.half_close)) => {}
                () = stopped => {}
            }
            reset_on_close(survivor);
        }
        ending
    }
}

type Watch<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + Send + 'a>>;

struct Relay<'a, E> {
    client: &'a TcpStream,
    upstream: &'a TcpStream,
    /// Client to upstream.
    up: Flow,
    /// Upstream to client.
    down: Flow,
    closed_first: Option<Side>,
    /// How many bytes were delivered to the side that closed first, since then; more than 4 GiB are as good as all.
    late: u32,
    fault: Option<Ending>,
    /// Nobody reads from a side that has closed, so its reset would go unnoticed while the other side is silent.
    watch: Option<(Side, Watch<'a>)>,
    deadlines: &'a Deadlines,
    last_activity: Instant,
    /// When to see whether the peers still answer: some time after bytes went to one of them.
    look_at: Option<Instant>,
    suspicion: Option<Box<Suspicion>>,
    /// Whether the upstream has not sent a byte yet, and that was not told.
    awaits_answer: bool,
    happens: E,
}

/// Since when a side has had bytes to acknowledge and has acknowledged nothing.
#[derive(Debug, Default)]
struct Suspicion {
    client: Option<Instant>,
    upstream: Option<Instant>,
    probe: Option<Probe>,
}

/// The upstream is asked whether it is still there.
#[derive(Debug)]
struct Probe {
    begun: Instant,
    /// What its keepalives were before.
    options: TcpOptions,
}

/// For a peer to acknowledge one of the probes, one a second.
pub(crate) const PROBE_TIME: Duration = Duration::from_secs(4);

/// How long a side may acknowledge nothing, not even probes of its closed window, while bytes are on the way to it.
/// Keepalives are not sent then, and retransmission goes on for a quarter of an hour.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// How often that is looked at, while bytes go.
const LOOK_EVERY: Duration = Duration::from_secs(10);

impl<'a, E: FnMut(Event<'_>)> Relay<'a, E> {
    fn new(
        client: &'a TcpStream,
        upstream: &'a TcpStream,
        engine: Engine,
        hello: Vec<u8>,
        deadlines: &'a Deadlines,
        happens: E,
    ) -> Self {
        Self {
            client,
            upstream,
            up: Flow::new(engine, hello),
            down: Flow::new(engine, Vec::new()),
            closed_first: None,
            late: 0,
            fault: None,
            watch: None,
            deadlines,
            last_activity: Instant::now(),
            look_at: None,
            suspicion: None,
            awaits_answer: true,
            happens,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>) -> Poll<Ending> {
        self.poll_flow(cx, Side::Client, Readiness::AsAnnounced);
        self.poll_flow(cx, Side::Upstream, Readiness::AsAnnounced);
        self.poll_watch(cx);
        if self.up.ended() && self.down.ended() {
            let closed = self.closed_first.map(Ending::Closed);
            return Poll::Ready(self.fault.or(closed).unwrap_or(Ending::Stopped));
        }
        self.poll_deadline(cx, timer)
    }

    fn poll_flow(&mut self, cx: &mut Context<'_>, from: Side, readiness: Readiness) {
        let (flow, source, destination) = match from {
            Side::Client => (&mut self.up, self.client, self.upstream),
            Side::Upstream => (&mut self.down, self.upstream, self.client),
        };
        let mut moved = 0;
        let mut tell = |piece: Piece<'_>| match piece {
            Piece::First(bytes) if from == Side::Upstream => (self.happens)(Event::Answered(bytes)),
            Piece::First(_) => {}
            Piece::Delivered(length) => {
                moved += length;
                (self.happens)(Event::Delivered(from, length));
            }
        };
        let end = flow.poll(cx, source, destination, readiness, &mut tell);
        if moved > 0 || end.is_ready() {
            self.last_activity = Instant::now();
        }
        if self.closed_first == Some(from.other()) {
            self.late = self.late.saturating_add(u32::try_from(moved).unwrap_or(u32::MAX));
        }
        if moved > 0 {
            self.awaits_answer &= from == Side::Client;
            self.look_at.get_or_insert(self.last_activity + LOOK_EVERY);
        }
        let end = end.map(|end| match self.fault {
            None => end.and_then(|()| flow.finish(destination, self.closed_first.is_some())),
            // An EOF after a failed write is a reset that was noticed earlier.
            Some(_) => end.and(Err(Fault::Source(io::ErrorKind::ConnectionReset.into()))),
        });
        match end {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => {
                if self.closed_first.is_none() {
                    self.closed_first = Some(from);
                    self.watch = Some((from, Box::pin(async { source.ready(Interest::ERROR).await.map(drop) })));
                }
            }
            Poll::Ready(Err(Fault::Source(error))) => self.lose(from, &error),
            Poll::Ready(Err(Fault::Destination(error))) => {
                // The other flow goes on: what this side sent before it went is still to be read.
                flow.give_up();
                self.note(from.other(), &error);
            }
        }
    }

    /// The reset of the side that closed first.
    fn poll_watch(&mut self, cx: &mut Context<'_>) {
        let Some((side, watch)) = &mut self.watch else { return };
        let Poll::Ready(result) = watch.as_mut().poll(cx) else { return };
        let side = *side;
        self.watch = None;
        let error = result.and_then(|()| self.socket(side).take_error()).unwrap_or_else(Some);
        self.lose(side, &error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()));
    }

    /// The side is gone, and all it sent has been read.
    fn lose(&mut self, side: Side, error: &io::Error) {
        self.note(side, error);
        self.up.give_up();
        self.down.give_up();
    }

    fn note(&mut self, side: Side, error: &io::Error) {
        if self.fault.is_none() {
            self.fault = Some(match fault(side, error) {
                Ending::Reset(side) if self.had_closed(side) => Ending::ClosedThenReset(side),
                fault => fault,
            });
        }
    }

    /// Whether this side closed its socket, and not only its half of the connection: its kernel has answered what came
    /// after its FIN by a reset, and has acknowledged nothing of it.
    fn had_closed(&self, side: Side) -> bool {
        self.closed_first == Some(side)
            && sys::unacknowledged(self.socket(side)).is_ok_and(|outstanding| outstanding >= self.late.max(1) as usize)
    }

    fn socket(&self, side: Side) -> &'a TcpStream {
        match side {
            Side::Client => self.client,
            Side::Upstream => self.upstream,
        }
    }

    /// Asks the upstream whether it is still there, unless it has been heard since then.
    fn probe(&mut self, since: Instant) {
        let now = Instant::now();
        if has_been_heard(self.upstream, now - since)
            || self.suspicion.as_ref().is_some_and(|some| some.probe.is_some())
        {
            return;
        }
        if let Ok(options) = TcpOptions::probe(self.upstream) {
            self.suspicion.get_or_insert_default().probe = Some(Probe { begun: now, options });
        }
    }

    /// Whether the upstream has left the probe unanswered.
    fn is_unanswered(&mut self) -> bool {
        let Some(probe) = self.suspicion.as_mut().and_then(|suspicion| suspicion.probe.take()) else { return false };
        if !has_been_heard(self.upstream, probe.begun.elapsed()) && !has_closed_window(self.upstream) {
            return true;
        }
        // Should that fail, the peer is looked after more closely than it must be.
        let _ = probe.options.keep_alive(self.upstream);
        false
    }

    fn probe_ends_at(&self) -> Option<Instant> {
        Some(self.suspicion.as_ref()?.probe.as_ref()?.begun + PROBE_TIME)
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<Ending> {
        let silence = if self.up.ended() || self.down.ended() {
            (self.last_activity + self.deadlines.half_close, Ending::HalfCloseTimeout)
        } else {
            (self.last_activity + self.deadlines.idle, Ending::IdleTimeout)
        };
        let stall = |flow: &Flow, to| Some((flow.holding_since()? + self.deadlines.stalled, Ending::Dead(to)));
        let stalls = [stall(&self.up, Side::Upstream), stall(&self.down, Side::Client)].into_iter().flatten();
        let (deadline, ending) = stalls.fold(silence, |first, other| if other.0 < first.0 { other } else { first });
        loop {
            let probe_ends_at = self.probe_ends_at();
            let next = [self.look_at, probe_ends_at].into_iter().flatten().fold(deadline, Instant::min);
            // Activity does not move the timer: that it was too early is noticed when it fires.
            if timer.deadline() > next {
                timer.as_mut().reset(next);
            }
            ready!(timer.as_mut().poll(cx));
            let now = Instant::now();
            if now >= deadline {
                return Poll::Ready(ending);
            }
            if probe_ends_at.is_some_and(|at| now >= at) && self.is_unanswered() {
                return Poll::Ready(Ending::ProbeUnanswered);
            }
            if self.look_at.is_some_and(|at| now >= at) {
                if let Some(side) = self.look(now) {
                    return Poll::Ready(Ending::Dead(side));
                }
                self.read_what_was_not_announced(cx);
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// A read ends before an urgent byte although more has come, and nothing announces the rest.
    fn read_what_was_not_announced(&mut self, cx: &mut Context<'_>) {
        for from in [Side::Client, Side::Upstream] {
            if rustix::io::ioctl_fionread(self.socket(from)).is_ok_and(|waiting| waiting > 0) {
                self.poll_flow(cx, from, Readiness::Ignored);
                // That may have been the end of it.
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Whether one of the sides is gone without a word.
    fn look(&mut self, now: Instant) -> Option<Side> {
        if std::mem::take(&mut self.awaits_answer) {
            (self.happens)(Event::Unanswered);
        }
        let mut suspicion = self.suspicion.take().map_or_else(Suspicion::default, |suspicion| *suspicion);
        let is_dead = |socket: &TcpStream, since: &mut Option<Instant>| {
            let Ok(sys::Acknowledged { outstanding: 1.., last, heard: _ }) = sys::acknowledged(socket) else {
                *since = None;
                return false;
            };
            // What it acknowledged after it fell under suspicion clears it.
            let first = since.filter(|since| last >= now - *since).unwrap_or(now);
            *since = Some(first);
            now - first >= MAX_SILENCE
        };
        let client = is_dead(self.client, &mut suspicion.client);
        let upstream = is_dead(self.upstream, &mut suspicion.upstream);
        let is_suspicious = suspicion.client.or(suspicion.upstream).is_some();
        self.suspicion = (is_suspicious || suspicion.probe.is_some()).then(|| Box::new(suspicion));
        self.look_at = is_suspicious.then(|| now + LOOK_EVERY);
        if client { Some(Side::Client) } else { upstream.then_some(Side::Upstream) }
    }
}

/// Whether bytes wait for the peer to take more. The kernel sends no keepalives then, but probes of the window, up to two
/// minutes apart: that none was acknowledged says nothing.
fn has_closed_window(socket: &TcpStream) -> bool {
    let is_nothing_on_the_way = sys::acknowledged(socket).is_ok_and(|known| known.outstanding == 0);
    is_nothing_on_the_way && sys::unacknowledged(socket).is_ok_and(|waiting| waiting > 0)
}

/// Whether the kernel must say that there is something to read before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Readiness {
    AsAnnounced,
    Ignored,
}

/// Whether anything has come from the peer within this time.
fn has_been_heard(socket: &TcpStream, within: Duration) -> bool {
    sys::acknowledged(socket).is_ok_and(|known| known.heard < within)
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }
}

fn fault(side: Side, error: &io::Error) -> Ending {
    match error.kind() {
        // Keepalive, retransmission, and the ICMP answers that arrive while they run.
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Ending::Dead(side)
        }
        _ => Ending::Reset(side),
    }
}

/// Lets the close be a RST.
pub(crate) fn reset_on_close(socket: &TcpStream) {
    // If the option fails, what is left is an ordinary close.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Until the peer has all that was sent to it: a RST would discard what it has not. Gives up when nothing was
/// acknowledged for as long as `patience`. The kernel does not announce this, so it is asked, ever more rarely.
async fn acknowledged(socket: &TcpStream, patience: Duration) {
    let mut pause = Duration::from_millis(1);
    let mut outstanding = usize::MAX;
    let mut last_progress = Instant::now();
    while let Ok(now_outstanding @ 1..) = sys::unacknowledged(socket) {
        if now_outstanding < outstanding {
            outstanding = now_outstanding;
            last_progress = Instant::now();
        }
        let is_unreachable = socket.peer_addr().is_err();
        if is_unreachable || last_progress.elapsed() >= patience {
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
