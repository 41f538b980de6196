//! Whether the two peers are still alive: by what they acknowledge while data is in flight, and by keepalive probes when
//! the upstream's endpoint was found dead.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::tcp::TcpOptions;
use super::{Side, sys};

/// How long the upstream has to acknowledge a probe; one is sent every second.
pub(crate) const PROBE_TIME: Duration = Duration::from_secs(4);

/// How long a peer may acknowledge nothing, not even probes of its closed window, while data is in flight. The kernel
/// sends no keepalives then, and retransmits for a quarter of an hour before it gives up.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// Between checks while data is in flight.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Liveness {
    next_check: Option<Instant>,
    /// Boxed, because few connections have one.
    suspicion: Option<Box<Suspicion>>,
}

/// Since when each side has had data in flight and acknowledged nothing.
#[derive(Debug, Default)]
struct Suspicion {
    client: Option<Instant>,
    upstream: Option<Instant>,
    probe: Option<KeepaliveProbe>,
}

/// A probe of the upstream that is under way.
#[derive(Debug)]
struct KeepaliveProbe {
    started: Instant,
    /// The keepalive options to restore.
    options: TcpOptions,
}

impl Liveness {
    pub(super) fn with_check_at(next_check: Option<Instant>) -> Self {
        Self { next_check, suspicion: None }
    }

    /// Data was sent to a peer: check some time later whether it was acknowledged.
    pub(super) fn data_sent(&mut self, now: Instant) {
        self.next_check.get_or_insert(now + CHECK_INTERVAL);
    }

    /// When the next check or the end of a probe is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.next_check, self.probe_deadline()].into_iter().flatten().min()
    }

    fn probe_deadline(&self) -> Option<Instant> {
        Some(self.suspicion.as_ref()?.probe.as_ref()?.started + PROBE_TIME)
    }

    pub(super) fn is_probing(&self) -> bool {
        self.suspicion.as_ref().is_some_and(|suspicion| suspicion.probe.is_some())
    }

    /// Starts a probe of the upstream, unless it was heard since then or a probe is under way.
    pub(super) fn probe(&mut self, upstream: &TcpStream, since: Instant) {
        let now = Instant::now();
        if self.is_probing() || was_heard(upstream, now - since) {
            return;
        }
        if let Ok(options) = TcpOptions::probe(upstream) {
            self.suspicion.get_or_insert_default().probe = Some(KeepaliveProbe { started: now, options });
        }
    }

    /// Ends a probe that is due. Whether the upstream did not answer it.
    pub(super) fn has_probe_failed(&mut self, upstream: &TcpStream, now: Instant) -> bool {
        if self.probe_deadline().is_none_or(|deadline| now < deadline) {
            return false;
        }
        let Some(probe) = self.suspicion.as_mut().and_then(|suspicion| suspicion.probe.take()) else { return false };
        if !was_heard(upstream, probe.started.elapsed()) && !has_closed_window(upstream) {
            return true;
        }
        // If this fails, the kernel sends more keepalives than it has to.
        let _ = probe.options.keep_alive(upstream);
        false
    }

    pub(super) fn is_check_due(&self, now: Instant) -> bool {
        self.next_check.is_some_and(|at| now >= at)
    }

    /// Checks both sides. Returns one that is dead.
    pub(super) fn check(&mut self, client: &TcpStream, upstream: &TcpStream, now: Instant) -> Option<Side> {
        let mut suspicion = self.suspicion.take().map_or_else(Suspicion::default, |suspicion| *suspicion);
        let client_is_dead = is_dead(client, &mut suspicion.client, now);
        let upstream_is_dead = is_dead(upstream, &mut suspicion.upstream, now);
        let is_suspicious = suspicion.client.or(suspicion.upstream).is_some();
        self.suspicion = (is_suspicious || suspicion.probe.is_some()).then(|| Box::new(suspicion));
        self.next_check = is_suspicious.then(|| now + CHECK_INTERVAL);
        if client_is_dead { Some(Side::Client) } else { upstream_is_dead.then_some(Side::Upstream) }
    }
}

/// Whether the peer has acknowledged nothing for too long. `suspected` is the time of the first check that found data in
/// flight, as long as nothing was acknowledged since.
fn is_dead(socket: &TcpStream, suspected: &mut Option<Instant>, now: Instant) -> bool {
    let Ok(sys::TcpInfo { in_flight: 1.., last_ack, .. }) = sys::tcp_info(socket) else {
        *suspected = None;
        return false;
    };
    let since = suspected.filter(|since| last_ack >= now - *since).unwrap_or(now);
    *suspected = Some(since);
    now - since >= MAX_SILENCE
}

/// Whether data is waiting because the peer's window is closed. The kernel sends window probes then instead of keepalives,
/// up to two minutes apart, so that none was acknowledged proves nothing.
fn has_closed_window(socket: &TcpStream) -> bool {
    let has_none_in_flight = sys::tcp_info(socket).is_ok_and(|info| info.in_flight == 0);
    has_none_in_flight && sys::unacknowledged(socket).is_ok_and(|waiting| waiting > 0)
}

/// Whether anything was received from the peer within this time.
fn was_heard(socket: &TcpStream, within: Duration) -> bool {
    sys::tcp_info(socket).is_ok_and(|info| info.last_heard < within)
}
