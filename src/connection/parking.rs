//! Connections at rest: no task and no registration with the runtime, only two sockets and a record.
//!
//! The invariant: a connection either has a task, or it is [`Parked`] in its entry of the registry and both sockets are in
//! the epoll set of the [`ParkingLot`], or it is an [`Unparked`] on its way from one to the other. It changes hands under
//! the registry's lock only, so no event, message or deadline is lost: the first of them continues the connection, and
//! what follows finds a task.

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::TcpStream as Socket;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval};

use crate::connection::established::{Established, Relaying};
use crate::connection::live::{ConnectionId, LiveConnection};
use crate::connection::registry::{Handle, ParkError, Registry};
use crate::relay::{RelaySettings, Rest, Start, sys};
use crate::telemetry::{ClosedBy, Outcome};

/// A connection at rest.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(super) client: Socket,
    pub(super) upstream: Socket,
    pub(super) established: Established,
    pub(super) rest: Rest,
    is_watched: bool,
}

/// A connection at rest that is about to be continued, here or in another process.
#[derive(Debug)]
pub(crate) struct Unparked {
    pub(super) connection: Box<Parked>,
    pub(super) handle: Handle,
}

/// At most so many connections are continued before others have their turn.
const BATCH: usize = 64;
/// How often deadlines are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// Entries of the registry that are looked at under one lock.
const SWEEP_CHUNK: usize = 4096;

/// What watches parked connections.
#[derive(Debug)]
pub(crate) struct ParkingLot {
    epoll: Arc<OwnedFd>,
    resume: UnboundedSender<Unparked>,
    parked: Arc<AtomicU64>,
}

impl ParkingLot {
    /// Opens the lot of this registry, which keeps the number of parked connections in `parked`.
    pub(crate) fn open(registry: &Arc<Registry>, parked: Arc<AtomicU64>) -> io::Result<()> {
        let epoll = Arc::new(epoll::create(CreateFlags::CLOEXEC)?);
        let events = sys::watch(Arc::clone(&epoll))?;
        let (resume, resumed) = mpsc::unbounded_channel();
        let count = Arc::clone(&parked);
        if registry.lot().set(Self { epoll, resume, parked }).is_ok() {
            tokio::spawn(sweep(Arc::clone(registry), count));
            tokio::spawn(watch(Arc::clone(registry), events, resumed));
        }
        Ok(())
    }

    /// Nobody continues what is sent there, and no event is looked at.
    #[cfg(all(test, shuttle))]
    pub(super) fn sending_to(resume: UnboundedSender<Unparked>, parked: Arc<AtomicU64>) -> io::Result<Self> {
        Ok(Self { epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?), resume, parked })
    }

    pub(super) fn resume(&self, unparked: Unparked) -> Result<(), Unparked> {
        self.resume.send(unparked).map_err(|failed| failed.0)
    }

    /// Adds the sockets of a connection, whose entry is about to be parked, to the set.
    pub(super) fn watch(&self, connection: &mut Parked, index: u32) -> io::Result<()> {
        let (data, flags) = (EventData::new_u64(index.into()), EventFlags::IN | EventFlags::RDHUP);
        epoll::add(&self.epoll, &connection.client, data, flags)?;
        if let Err(error) = epoll::add(&self.epoll, &connection.upstream, data, flags) {
            let _ = epoll::delete(&self.epoll, &connection.client);
            return Err(error.into());
        }
        connection.is_watched = true;
        self.parked.fetch_add(1, Relaxed);
        Ok(())
    }

    fn unwatch(&self, connection: &mut Parked) {
        if mem::take(&mut connection.is_watched) {
            // Both are in the set, so neither fails.
            let _ = epoll::delete(&self.epoll, &connection.client);
            let _ = epoll::delete(&self.epoll, &connection.upstream);
            self.parked.fetch_sub(1, Relaxed);
        }
    }
}

/// Continues parked connections: at their first event, or when the registry says so.
async fn watch(registry: Arc<Registry>, epoll: AsyncFd<Arc<OwnedFd>>, mut resumed: UnboundedReceiver<Unparked>) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut ready = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            // First, so that the events of one that is to be continued are not looked at again.
            biased;
            count = resumed.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return;
                }
                batch.drain(..).for_each(Unparked::resume);
                yield_now().await;
            }
            readable = epoll.readable() => {
                let Ok(mut readable) = readable else { return };
                if take_events(epoll.get_ref(), &mut ready) < BATCH {
                    readable.clear_ready();
                }
                // One that was continued meanwhile is ignored.
                ready.drain(..).for_each(|index| registry.resume_at(index));
            }
        }
    }
}

/// Adds the indices of connections with an event, at most [`BATCH`], and returns how many. After an error, that is as if
/// there were more.
fn take_events(epoll: &OwnedFd, indices: &mut Vec<usize>) -> usize {
    let mut events = [MaybeUninit::<Event>::uninit(); BATCH];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let Ok((events, _)) = epoll::wait(epoll, &mut events, Some(&now)) else { return BATCH };
    indices.extend(events.iter().filter_map(|event| usize::try_from(event.data.u64()).ok()));
    events.len()
}

/// Continues parked connections whose deadline has passed.
async fn sweep(registry: Arc<Registry>, parked: Arc<AtomicU64>) {
    let mut tick = interval(SWEEP_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        for start in (0..).step_by(SWEEP_CHUNK) {
            if parked.load(Relaxed) == 0 || !registry.resume_due(start..start + SWEEP_CHUNK) {
                break;
            }
            yield_now().await;
        }
    }
}

impl Parked {
    /// Takes the sockets from the runtime. If that fails, the connection ends.
    pub(super) fn new(
        established: Established,
        client: TcpStream,
        upstream: TcpStream,
        rest: Rest,
    ) -> Option<Box<Self>> {
        match (client.into_std(), upstream.into_std()) {
            (Ok(client), Ok(upstream)) => Some(Box::new(Self::at_rest(established, client, upstream, rest))),
            (Err(error), _) | (_, Err(error)) => {
                established.fail(&error);
                None
            }
        }
    }

    /// Sockets that the runtime does not have.
    pub(super) fn at_rest(established: Established, client: Socket, upstream: Socket, rest: Rest) -> Self {
        Self { client, upstream, established, rest, is_watched: false }
    }

    pub(super) fn describe(&self, id: ConnectionId) -> LiveConnection {
        let Established { record, slot, .. } = &self.established;
        let sockets = (&self.client, &self.upstream);
        LiveConnection::new(id, (record, slot.endpoint()), sockets, self.rest.idle(), true)
    }

    fn deadline(&self) -> tokio::time::Instant {
        self.rest.deadline(&self.established.settings)
    }
}

/// Parks a connection that has come to rest, or lets it leave if another process takes connections over.
pub(super) fn park(connection: Box<Parked>, handle: Handle) {
    let unparked = Unparked { connection, handle };
    match unparked.handle.leaving() {
        Some(leaving) => match leaving.send(unparked) {
            Ok(()) => {}
            Err(failed) => failed.0.park(),
        },
        None => unparked.park(),
    }
}

impl Unparked {
    /// Parks it in this process, or continues it if it cannot be parked.
    pub(super) fn park(self) {
        // The side that has closed is readable for ever.
        if self.connection.rest.is_half_closed() {
            return self.resume();
        }
        let Self { connection, handle } = self;
        let deadline = connection.deadline();
        match handle.park(connection, deadline) {
            Ok(()) => {}
            Err(ParkError::Notified(unparked)) => unparked.resume(),
            Err(ParkError::Unwatched(mut unparked, reason)) => {
                let established = &mut unparked.connection.established;
                established.record.cannot_park(&reason);
                let settings = RelaySettings { park_after: None, ..*established.settings };
                established.settings = Arc::new(settings);
                unparked.resume();
            }
        }
    }

    /// Begins with it in this process: at rest, if connections are parked.
    pub(super) fn start(self) {
        match self.connection.established.settings.park_after {
            Some(_) => self.park(),
            None => self.resume(),
        }
    }

    /// Continues it in this process although others leave.
    pub(super) fn stay_for_good(self) {
        self.handle.set_stays();
        self.park();
    }

    /// Another process continues it.
    pub(super) fn handed_over(self) {
        let Self { connection, handle: _handle } = self;
        let Parked { client, upstream, established, .. } = *connection;
        let Established { record, slot, source_permit, permit, settings: _ } = established;
        drop((client, upstream, slot, source_permit, permit));
        record.handed_over();
    }

    /// The process ends, and it is not known whether another one has the connection.
    pub(super) fn abandon(self) {
        let Self { connection, handle: _handle } = self;
        let mut record = connection.established.record;
        record.end(
            Outcome::Drained,
            ClosedBy::Us,
            Some("the new process has not answered whether it continues it".into()),
        );
    }

    /// Takes it out of the epoll set.
    pub(super) fn unwatch(&mut self) {
        if let Some(lot) = self.handle.registry().and_then(|registry| registry.lot().get()) {
            lot.unwatch(&mut self.connection);
        }
    }

    /// Continues it in this process.
    pub(super) fn resume(mut self) {
        self.unwatch();
        let Self { connection, handle } = self;
        let Parked { client, upstream, established, rest, is_watched: _ } = *connection;
        match (TcpStream::from_std(client), TcpStream::from_std(upstream)) {
            (Ok(client), Ok(upstream)) => {
                let start = Start::Rest(Box::new(rest));
                tokio::spawn(Relaying { connection: established, client, upstream, start, handle }.run());
            }
            (Err(error), _) | (_, Err(error)) => established.fail(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::connection::tests::{pair, settings};

    /// A connection at rest, and its client and its server.
    async fn at_rest(registry: &Arc<Registry>) -> (Unparked, TcpStream, TcpStream) {
        let ([client, accepted], [upstream, server]) = (pair().await, pair().await);
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        let relay = RelaySettings { idle: minute, park_after: Some(second), ..settings() };
        let established = Established::sample(client.local_addr().unwrap(), relay);
        let handle = registry.register();
        handle.connected_to(established.slot.endpoint().id, None);
        let connection = Parked::new(established, accepted, upstream, Rest::new()).unwrap();
        (Unparked { connection, handle }, client, server)
    }

    #[tokio::test(start_paused = true)]
    async fn h24_a_connection_that_cannot_be_watched_is_relayed_and_not_parked_again() {
        let registry = Registry::new();
        let (unparked, mut client, mut server) = at_rest(&registry).await;
        // There is no lot yet.
        unparked.park();
        let parked = Arc::default();
        ParkingLot::open(&registry, Arc::clone(&parked)).unwrap();
        sleep(Duration::from_secs(50)).await;
        assert_eq!(parked.load(Relaxed), 0);
        client.write_all(b"still here").await.unwrap();
        let mut received = [0; 10];
        server.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"still here");
    }

    #[tokio::test(start_paused = true)]
    async fn h24_a_parked_connection_is_left_alone_until_its_deadline() {
        let registry = Registry::new();
        let parked = Arc::default();
        ParkingLot::open(&registry, Arc::clone(&parked)).unwrap();
        let (unparked, mut client, _server) = at_rest(&registry).await;
        let begun = Instant::now();
        unparked.park();
        while begun.elapsed() < Duration::from_secs(59) {
            assert_eq!(parked.load(Relaxed), 1, "after {:?}", begun.elapsed());
            sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        assert!((60..62).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        assert_eq!(parked.load(Relaxed), 0);
    }
}
