//! Another process takes over: one that this one starts, or one that connects to the socket of `upgrade.socket`.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{error, info, warn};

use super::control::Control;
use super::signals::{Busy, Signals};
use super::{RunEnd, exit_immediately, hand_over};
use crate::process::unix_socket::{self, Found, Peer};
use crate::process::upgrade::{self, Successor};
use crate::server::Server;
use crate::upstream::Drained;

pub(super) const KEY: &str = "upgrade.socket";

/// Where a new process connects, if `upgrade.socket` is configured.
pub(super) struct UpgradeListener(Option<tokio::net::UnixListener>);

impl UpgradeListener {
    /// Listens with the socket that this process has created or inherited, or with a new one if that has another path.
    pub(super) fn new(path: Option<&Path>, socket: Option<UnixListener>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self(None)) };
        let inherited = socket.filter(|socket| unix_socket::is_at(socket, path));
        let socket = inherited.or_else(|| match unix_socket::open(KEY, path) {
            Ok(Found::Nobody(socket)) => Some(socket),
            Ok(Found::Running(_)) => {
                warn!(path = %path.display(), "another instance listens at upgrade.socket; no process can take over from this one");
                None
            }
            Err(reason) => {
                // The sandbox may have been entered before the key was set.
                warn!(%reason, "no process can take over from this one; restart snigate");
                None
            }
        });
        let listen = |socket: UnixListener| {
            socket.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(socket)
        };
        socket.map(listen).transpose().map(Self)
    }

    /// A duplicate for the next process.
    pub(super) fn try_clone(&self) -> io::Result<Option<UnixListener>> {
        self.0.as_ref().map(|socket| Ok(socket.as_fd().try_clone_to_owned()?.into())).transpose()
    }

    /// The next process of the same user or root that connects.
    pub(super) async fn accept(&self) -> UnixStream {
        let Some(socket) = &self.0 else { return std::future::pending().await };
        loop {
            match socket.accept().await.and_then(|(stream, _)| stream.into_std()) {
                Ok(stream) if Peer::of(&stream).is_ok_and(Peer::is_trusted) => return stream,
                Ok(_) => warn!("another user has connected to upgrade.socket; ignored"),
                Err(reason) => {
                    warn!(%reason, "cannot accept a process at upgrade.socket; retrying");
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Starts a new process, or serves the one that has connected. `None`: that failed, and this one continues to serve.
pub(super) async fn upgrade(
    server: &mut Server,
    signals: &mut Signals,
    control: &Control,
    upgrades: &UpgradeListener,
    connected: Option<UnixStream>,
) -> Option<RunEnd> {
    info!("upgrading");
    let is_child = connected.is_none();
    let starting = async {
        let sockets = upgrade::Sockets {
            listeners: server.sockets()?,
            upgrade: upgrades.try_clone()?,
            control: control.try_clone()?,
            drained: server.drained().into_iter().map(|Drained { route, endpoint }| (route, endpoint)).collect(),
        };
        match connected {
            Some(process) => upgrade::accept(process, sockets).await,
            None => upgrade::start(sockets).await,
        }
    };
    let mut starting = pin!(starting);
    let (started, stopped) = tokio::select! {
        started = &mut starting => (started, None),
        signal = signals.stop(Busy::Upgrading) => {
            if is_child {
                info!("upgrade aborted");
                return Some(RunEnd::Stop(signal));
            }
            // It may have been told already that it serves alone, and is not for this process to end.
            info!(signal, "shutting down once the upgrade has succeeded or failed; repeat the signal to abort it");
            tokio::select! {
                started = starting => (started, Some(signal)),
                signal = signals.stop(Busy::Upgrading) => return Some(RunEnd::Stop(signal)),
            }
        }
    };
    match started {
        Ok(successor) => {
            let process = successor.process;
            info!(process, "upgraded; the new process serves");
            if signals.take_reload() {
                // It may have read the file before the change.
                send_reload(process);
            }
            Some(RunEnd::Upgraded { successor, stopped })
        }
        Err(reason) => match stopped {
            None => {
                error!(%reason, "upgrade failed; this process continues to serve");
                None
            }
            Some(signal) => {
                error!(%reason, "upgrade failed; this process shuts down");
                Some(RunEnd::Stop(signal))
            }
        },
    }
}

fn send_reload(process: Option<u32>) {
    let process = process.and_then(|process| Pid::from_raw(process.try_into().ok()?));
    let sent = process
        .ok_or_else(|| "it is in another PID namespace".to_owned())
        .and_then(|process| kill_process(process, Signal::HUP).map_err(|error| error.to_string()));
    if let Err(reason) = sent {
        warn!(reason, "cannot pass SIGHUP on to the new process; send it there");
    }
}

/// Leaves these listeners to the running process, and serves the connections that were accepted meanwhile.
pub(super) async fn yield_to_running(server: &mut Server, adopted: &[bool], mut signals: Signals) -> ExitCode {
    server.yield_to_successor(adopted).await;
    let deadline = Instant::now() + server.timeouts().drain;
    tokio::select! {
        _ = server.finish(deadline) => ExitCode::FAILURE,
        signal = signals.stop(Busy::Draining) => exit_immediately(signal, server.connections()),
    }
}

/// Hands connections over to the successor, those that still arrive from a predecessor too, and drains what stays for
/// `timeouts.upgrade_drain`, or for `timeouts.drain` after a signal to stop (`stopped`: one that came before).
pub(super) async fn yield_to_successor(
    server: &mut Server,
    successor: Successor,
    stopped: Option<&'static str>,
    arrivals: Option<JoinHandle<()>>,
    mut signals: Signals,
) -> ExitCode {
    let drain = server.timeouts().drain;
    let taken_over = successor.taken_over.clone();
    // Before the listeners are closed, which may have to wait for room.
    match successor.into_channel() {
        Ok(channel) => {
            tokio::spawn(hand_over::send(channel, server.departures(), server.count_connections(), drain));
        }
        Err(reason) => warn!(%reason, "cannot hand connections over to the new process"),
    }
    server.yield_to_successor(&taken_over).await;
    let deadline = Instant::now() + server.timeouts().upgrade_drain;
    let finished = async {
        if let Some(arrivals) = arrivals {
            let _ = timeout_at(deadline, arrivals).await;
        }
        server.finish(deadline).await
    };
    let stop = async {
        match stopped {
            Some(signal) => signal,
            None => signals.stop(Busy::Draining).await,
        }
    };
    let sooner = tokio::select! {
        _ = finished => {
            if std::process::id() == 1 && stopped.is_none() {
                // If it exited, the container would be started again, and take over in its turn.
                info!("handed over; waiting to be stopped, because the container ends with this process");
                signals.stop(Busy::Draining).await;
            }
            return ExitCode::SUCCESS;
        }
        signal = stop => {
            info!(signal, "shutting down; repeat the signal to exit immediately");
            deadline.min(Instant::now() + drain)
        }
    };
    tokio::select! {
        _ = server.finish(sooner) => ExitCode::SUCCESS,
        signal = signals.stop(Busy::Draining) => exit_immediately(signal, server.connections()),
    }
}
