//! What systemd is told, and the sockets that it passes on. Without systemd nothing happens here.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::{NotifyState, notify, watchdog_enabled};
use socket2::SockRef;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{interval, timeout};
use tracing::debug;

use crate::listener::InheritedSocket;

/// What systemd is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It serves, and is the main process of the unit.
    Serving,
    /// It takes a new configuration.
    Reloading,
    /// It ends.
    Stopping,
    /// Another process serves, and is the main process from now on.
    SucceededBy(u32),
    /// It is alive.
    Alive,
}

/// Where to tell systemd. What it is told, a thread of its own sends: the socket may be full.
#[derive(Clone, Debug)]
pub(crate) struct Manager(Option<SyncSender<(Phase, oneshot::Sender<()>)>>);

/// More than that is not worth to be told late.
const MAX_UNSENT: usize = 16;

/// For it to be told what it must know before this process may end.
const PATIENCE: Duration = Duration::from_secs(1);

impl Manager {
    /// If there is one.
    pub(crate) fn find() -> Self {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Self(None);
        }
        let (sender, phases) = sync_channel::<(Phase, oneshot::Sender<()>)>(MAX_UNSENT);
        let send_all = move || {
            for (phase, sent) in phases {
                send(phase);
                // Where nobody waits for it, it is dropped.
                let _ = sent.send(());
            }
        };
        let thread = std::thread::Builder::new().name("systemd".into()).spawn(send_all);
        Self(thread.ok().map(|_| sender))
    }

    /// Tells it, sooner or later; not at all if it does not listen.
    pub(crate) fn tell(&self, phase: Phase) {
        drop(self.send(phase));
    }

    /// Tells it, and waits until it is told, but not for long.
    pub(crate) async fn tell_now(&self, phase: Phase) {
        if let Some(sent) = self.send(phase) {
            // Late or not: there is nothing to be done about it.
            let _ = timeout(PATIENCE, sent).await;
        }
    }

    fn send(&self, phase: Phase) -> Option<oneshot::Receiver<()>> {
        let (sent, is_sent) = oneshot::channel();
        if self.0.as_ref()?.try_send((phase, sent)).is_err() {
            debug!(?phase, "systemd does not listen");
            return None;
        }
        Some(is_sent)
    }

    /// Tells it that we are alive, twice as often as it asks for (`WatchdogSec=`), for as long as the runtime works and this
    /// is not aborted.
    pub(crate) fn keep_telling(&self) -> Option<AbortHandle> {
        let within = watchdog_enabled()?;
        let manager = self.clone();
        let telling = tokio::spawn(async move {
            let mut turn = interval(within / 2);
            loop {
                turn.tick().await;
                manager.tell(Phase::Alive);
            }
        });
        Some(telling.abort_handle())
    }
}

fn send(phase: Phase) {
    let told = match phase {
        Phase::Serving => notify(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]),
        Phase::Reloading => {
            // Type=notify-reload wants the time, too.
            let now = NotifyState::monotonic_usec_now();
            now.and_then(|now| notify(&[NotifyState::Reloading, now]))
        }
        Phase::Stopping => notify(&[NotifyState::Stopping]),
        Phase::SucceededBy(process) => notify(&[NotifyState::MainPid(process), NotifyState::Ready]),
        Phase::Alive => notify(&[NotifyState::Watchdog]),
    };
    if let Err(reason) = told {
        debug!(%reason, "cannot tell systemd");
    }
}

/// The sockets of a socket unit (`LISTEN_FDS`).
pub(crate) fn sockets() -> io::Result<Vec<InheritedSocket>> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for number in 0..passed.len() {
        if let Some(socket) = passed.take_tcp_listener(number)? {
            // Nobody else is to have it.
            SockRef::from(&socket).set_cloexec(true)?;
            sockets.push(InheritedSocket { address: socket.local_addr()?, name: None, socket });
        }
    }
    Ok(sockets)
}
