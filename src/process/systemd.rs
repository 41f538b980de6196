//! Notifications to systemd (`sd_notify(3)`) and socket activation. Without systemd, this does nothing.

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

/// A notification to systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notification {
    /// This process serves, and is the main process of the unit.
    Serving,
    /// A new configuration is being loaded.
    Reloading,
    /// The process is shutting down.
    Stopping,
    /// The process with this ID serves, and is the main process from now on.
    SucceededBy(u32),
    /// Watchdog keep-alive.
    Alive,
}

/// Sends notifications, on a thread of its own, because the socket may be full.
#[derive(Clone, Debug)]
pub(crate) struct Notifier(Option<SyncSender<(Notification, oneshot::Sender<()>)>>);

/// Maximum number of queued notifications; later ones are dropped.
const MAX_UNSENT: usize = 16;

/// How long to wait until a notification is sent, before this process may end.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

impl Notifier {
    /// Does nothing if this process was not started by systemd.
    pub(crate) fn from_env() -> Self {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Self(None);
        }
        let (sender, notifications) = sync_channel::<(Notification, oneshot::Sender<()>)>(MAX_UNSENT);
        let send_all = move || {
            for (notification, sent) in notifications {
                send(notification);
                // Fails if the caller does not wait.
                let _ = sent.send(());
            }
        };
        let thread = std::thread::Builder::new().name("systemd".into()).spawn(send_all);
        Self(thread.ok().map(|_| sender))
    }

    /// Queues a notification.
    pub(crate) fn notify(&self, notification: Notification) {
        drop(self.send(notification));
    }

    /// Sends a notification and waits until it is sent, up to [`SEND_TIMEOUT`].
    pub(crate) async fn notify_now(&self, notification: Notification) {
        if let Some(sent) = self.send(notification) {
            // A timeout is ignored: nothing depends on it.
            let _ = timeout(SEND_TIMEOUT, sent).await;
        }
    }

    fn send(&self, notification: Notification) -> Option<oneshot::Receiver<()>> {
        let (sent, is_sent) = oneshot::channel();
        if self.0.as_ref()?.try_send((notification, sent)).is_err() {
            debug!(?notification, "cannot notify systemd: queue full");
            return None;
        }
        Some(is_sent)
    }

    /// Starts to send watchdog keep-alives, twice per `WatchdogSec=`, until aborted. They stop if the runtime hangs.
    pub(crate) fn start_watchdog(&self) -> Option<AbortHandle> {
        let within = watchdog_enabled()?;
        let notifier = self.clone();
        let watchdog = tokio::spawn(async move {
            let mut tick = interval(within / 2);
            loop {
                tick.tick().await;
                notifier.notify(Notification::Alive);
            }
        });
        Some(watchdog.abort_handle())
    }
}

fn send(notification: Notification) {
    let sent = match notification {
        Notification::Serving => notify(&[NotifyState::MainPid(std::process::id()), NotifyState::Ready]),
        Notification::Reloading => {
            // Type=notify-reload requires the time, too.
            let now = NotifyState::monotonic_usec_now();
            now.and_then(|now| notify(&[NotifyState::Reloading, now]))
        }
        Notification::Stopping => notify(&[NotifyState::Stopping]),
        Notification::SucceededBy(process) => notify(&[NotifyState::MainPid(process), NotifyState::Ready]),
        Notification::Alive => notify(&[NotifyState::Watchdog]),
    };
    if let Err(reason) = sent {
        debug!(%reason, "cannot notify systemd");
    }
}

/// The sockets of a socket unit (`LISTEN_FDS`).
pub(crate) fn sockets() -> io::Result<Vec<InheritedSocket>> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        if let Some(socket) = passed.take_tcp_listener(index)? {
            // Child processes must not inherit it.
            SockRef::from(&socket).set_cloexec(true)?;
            sockets.push(InheritedSocket { address: socket.local_addr()?, name: None, socket });
        }
    }
    Ok(sockets)
}
